"""SPICE: do caption and references speak of the same things, their attributes and their relations?

Paper: Anderson, Fernando, Johnson and Gould, "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016.
Author's code: ``spice-1.0.jar`` and its libraries, as pycocoevalcap 1.2 ships them, with Stanford CoreNLP 3.6.0, which
it does not ship (:mod:`avpipe.eval.corenlp`).

Each caption is parsed into tuples: (dog), (dog, brown), (dog, chase, cat). Those of a clip's references are joined, and
words of one WordNet synset are one::

    P, R  = tuples of the caption that are in the references, by those of the caption, and by those of the references
    SPICE = 2 P R / (P + R), 0 where nothing is shared; of a corpus, the mean

Deviations, none of which touches a number:
 - the jar's main program is not used: it writes its results by a JavaScript engine that Java has not had since
   version 15, holds every parse in memory, and says nothing for minutes. A small program of ours
   (``avpipe/eval/jvm/SpiceLines.java``) calls the same classes in the same order, one caption a line, so that one that
   hangs can be told from one that works;
 - its cache on disk, whose library does not load on modern machines, is replaced (:mod:`avpipe.eval.parses`): a
   caption is parsed once;
 - a sentence for which memory does not suffice is an error, not a sentence without tuples;
 - scores belong to clip ids. (pycocoevalcap scores in sorted order and lists in another, so that clips are given the
   scores of others.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from avpipe.eval.children import Stop, how_many, spread
from avpipe.eval.corenlp import find_corenlp, spice_folder
from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.java import PROGRAMS, JavaChild, JavaError
from avpipe.eval.metric import MetricResult
from avpipe.eval.parses import Parses
from avpipe.eval.tools import Tools, pycocoevalcap_file

NAMES = ("SPICE",)
VERSION = "spice:1.0|corenlp:3.6.0"
JAVA = True

_LIBRARIES = (
    "ejml-0.23.jar",
    "guava-19.0.jar",
    "json-simple-1.1.1.jar",
    "Meteor-1.5.jar",
    "SceneGraphParser-1.0.jar",
    "slf4j-api-1.7.12.jar",
)
_HEAP_MEGABYTES = 4096  # a sentence of 10 words needs 900, one of 150 words 2000
_USUAL_MEGABYTES = 1300
_CAPTIONS_A_CHILD = 300  # some 40 ms each, against 6 s to read the models
_CAPTIONS_A_NOTE = 200  # so many are parsed before they are written down: what an interrupted scoring may lose
_PATIENCE_FACTOR = 10  # a sentence of 200 words may take a minute

Tuples = list[list[str]]


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        JavaError: there is no Java, or the program failed.
        MissingPackageError: the CoreNLP jars are not there; the message says where they were looked for.
    """
    words, references, tools = evaluation.words, evaluation.references, evaluation.tools
    jars = find_corenlp(tools.spice)
    memory = Parses(spice_folder() / f"parses-{'-'.join(str(jar.stat().st_size) for jar in jars)}.sqlite")

    def parse(share: Sequence[str], stop: Stop) -> list[Tuples]:
        found: dict[str, Tuples] = {}
        with _program(jars, tools, stop) as program:
            for first in range(0, len(share), _CAPTIONS_A_NOTE):
                some = share[first : first + _CAPTIONS_A_NOTE]
                new = dict(zip(some, map(_tuples, program.answers(some)), strict=True))
                memory.put(new)
                found |= new
        return [found[caption] for caption in share]

    def compare(share: Sequence[list[Tuples]], stop: Stop) -> list[float]:
        with _program(jars, tools, stop) as program:
            return [_f_score(answer) for answer in program.answers(share)]

    parsed = references.once(_parsed)
    captions = dict.fromkeys([*words.values(), *chain.from_iterable(references.words.values())])
    remembered = memory.get(caption for caption in captions if caption not in parsed)
    parsed |= {caption: parse for caption, parse in remembered.items() if _are_tuples(parse)}
    unknown = [caption for caption in captions if caption not in parsed]
    if unknown:
        processes = tools.processes or how_many(len(unknown), least=_CAPTIONS_A_CHILD, megabytes=_USUAL_MEGABYTES)
        parsed |= zip(unknown, spread(parse, unknown, processes, evaluation.stop), strict=True)
    sides = [
        [parsed[words[clip_id]], list(chain.from_iterable(parsed[caption] for caption in several))]
        for clip_id, several in references.words.items()
    ]
    scores = spread(compare, sides, 1, evaluation.stop)
    return MetricResult.of_means({"SPICE": dict(zip(words, scores, strict=True))})


def _parsed(_: TokenisedReferences) -> dict[str, Tuples]:
    """Tuples by caption, empty at first: what is remembered with the references."""
    return {}


class _Program(JavaChild):
    """``SpiceLines``: JSON-ready questions, and what it answers."""

    def answers(self, questions: Sequence[Any]) -> list[Any]:
        """One a question.

        Raises:
            JavaError: it is no JSON, or a sentence was left out.
        """
        lines = self.ask([json.dumps(question) for question in questions])  # pure ASCII, without a line break
        complaints = [line.strip() for line in self.stderr().splitlines() if "out of memory" in line.lower()]
        if complaints:
            raise JavaError(
                f"SPICE: {_HEAP_MEGABYTES} MB of memory do not suffice for a sentence: {complaints[0]}. "
                "Is it a caption at all?"
            )
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise JavaError(f"SPICE: expected JSON, got something else: {error}") from None


def _program(corenlp: Sequence[Path], tools: Tools, stop: Stop) -> _Program:
    jars = [pycocoevalcap_file("spice", "lib", name) for name in _LIBRARIES]
    path = [PROGRAMS, pycocoevalcap_file("spice", "spice-1.0.jar"), *jars, *corenlp]
    return _Program(
        tools.java.path,
        ["-cp", os.pathsep.join(map(str, path)), "SpiceLines"],
        name="SPICE",
        heap_megabytes=_HEAP_MEGABYTES,
        patience_seconds=tools.patience_seconds,
        patience_factor=_PATIENCE_FACTOR,
        stop=stop,
    )


def _are_tuples(answer: Any) -> bool:
    return isinstance(answer, list) and all(
        isinstance(one, list) and 1 <= len(one) <= 3 and all(isinstance(word, str) for word in one) for one in answer
    )


def _tuples(answer: Any) -> Tuples:
    if not _are_tuples(answer):
        raise JavaError(f"SPICE: expected tuples of 1 to 3 words, got {answer!r:.200}")
    tuples: Tuples = answer
    return tuples


def _f_score(answer: Any) -> float:
    try:
        score = float(answer["All"]["f"])
    except (KeyError, TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise JavaError(f"SPICE: expected scores from 0 to 1, got {answer!r:.200}")
    return score
