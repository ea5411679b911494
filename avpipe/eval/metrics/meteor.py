"""METEOR 1.5: words aligned by form, stem, synonym and paraphrase.

Paper: Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language",
WMT 2014.
Author's code: ``meteor-1.5.jar`` and its paraphrase table, as pycocoevalcap 1.2 ships them and with its options
(``-l en -norm``). Its Python wrapper is not used: it never reads the jar's stderr, knows no time limit, follows the
machine's locale, and blocks for ever in ``__del__`` after an error.

Deviations, none of which touches a number of sound input:
 - the path of the paraphrase table is given, because the jar looks for it in a wrong place when its own path holds a
   space;
 - when the jar reports an exception it is not believed: with a damaged paraphrase table it would print a stack trace,
   go on without paraphrases, and give other scores;
 - ``|||``, which separates fields in the jar's protocol, becomes a space in references too (the wrapper deletes it, in
   candidates only).
"""

from __future__ import annotations

import math

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.java import JavaChild, JavaError, twice
from avpipe.eval.metric import MetricResult
from avpipe.eval.tools import Tools, pycocoevalcap_file

NAMES = ("METEOR",)
VERSION = "meteor:1.5"
JAVA = True

_SEPARATOR = " ||| "
_HEAP_MEGABYTES = 1024  # 512 is enough, 384 doubles the time
_STATISTICS = 23  # numbers in the answer to SCORE


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        JavaError: there is no Java, or the jar failed.
    """
    questions = [
        _SEPARATOR.join(("SCORE", *map(_field, references), _field(evaluation.words[clip_id])))
        for clip_id, references in evaluation.references.words.items()
    ]
    scores = twice(lambda: _converse(questions, evaluation.tools))
    return MetricResult(
        corpus={"METEOR": scores[-1]}, per_clip={"METEOR": dict(zip(evaluation.words, scores[:-1], strict=True))}
    )


def _converse(questions: list[str], tools: Tools) -> list[float]:
    """The score of each question, then that of the corpus.

    Two steps, as the jar wants them: SCORE gives the sufficient statistics of a clip, EVAL turns those of all clips
    into one score each and one for all together.
    """
    jar = pycocoevalcap_file("meteor", "meteor-1.5.jar")
    paraphrases = pycocoevalcap_file("meteor", "data", "paraphrase-en.gz")
    arguments = ["-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(paraphrases)]
    with JavaChild(
        tools.java.path,
        arguments,
        name="METEOR",
        heap_megabytes=_HEAP_MEGABYTES,
        patience_seconds=tools.patience_seconds,
    ) as child:
        statistics = child.ask(questions)
        for line in statistics:
            if len(line.split()) != _STATISTICS:
                raise JavaError(f"METEOR: expected {_STATISTICS} numbers, got {line!r}")
        answers = child.ask([_SEPARATOR.join(("EVAL", *statistics))], answers=len(questions) + 1)
        complaint = child.stderr()
    if "Exception" in complaint:
        raise JavaError(
            f"METEOR went on after an error, its numbers are not to be trusted: {complaint.strip().splitlines()[0]}. "
            "Try: pip install --force-reinstall pycocoevalcap==1.2"
        )
    return [_number(answer) for answer in answers]


def _field(caption: str) -> str:
    return caption.replace("|||", " ")


def _number(answer: str) -> float:
    try:
        value = float(answer)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise JavaError(f"METEOR: expected a number from 0 to 1, got {answer!r}")
    return value
