"""METEOR 1.5: words aligned by form, stem, synonym and paraphrase.

Paper: Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language",
WMT 2014.
Author's code: ``meteor-1.5.jar`` and its paraphrase table, as pycocoevalcap 1.2 ships them and with its options
(``-l en -norm``). Its Python wrapper is not used: it never reads the jar's stderr, knows no time limit, follows the
machine's locale, and blocks for ever in ``__del__`` after an error.

Deviations, none of which touches a number of sound input:
 - the jar's main program is not used: it has one thread, and reads 5 million pairs of paraphrases, which takes 6 s of
   a core. A small program of ours (``avpipe/eval/jvm/MeteorLines.java``) calls the same classes from several threads,
   and first takes those pairs out of the table that cannot match, because they hold a word, or two words side by side,
   that no caption has. Its answers are, byte for byte, those of the main program to SCORE, which compares a caption
   with its references. What EVAL makes of these is computed here (:func:`aggregate`);
 - a reference that a clip has twice is sent once: the best reference counts, and of equal ones the first;
 - the path of the paraphrase table is given, because the jar looks for it in a wrong place when its own path holds a
   space;
 - a paraphrase table that is damaged, or any exception that is reported, is an error: the jar would print a stack
   trace, go on without paraphrases, and give other scores;
 - ``|||``, which separates fields in the jar's protocol, becomes a space in references too (the wrapper deletes it, in
   candidates only).

Of matches by form, stem, synonym and paraphrase, which weigh 1, 0.6, 0.8 and 0.6, content words by delta = 0.75 and
function words by 1 - delta::

    P, R  = weighted matches / weighted words, of the caption and of the reference
    F     = 1 / ((1 - alpha) / P + alpha / R)                          alpha = 0.85
    score = F * (1 - gamma * (chunks / matched words)^beta)            beta = 0.2, gamma = 0.6

For a corpus all of these are sums over its clips; a clip whose caption is its reference has no chunk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from avpipe.eval.children import Stop, cores
from avpipe.eval.evaluation import Evaluation
from avpipe.eval.java import PROGRAMS, JavaChild, JavaDiedError, JavaError, twice
from avpipe.eval.metric import MetricResult
from avpipe.eval.tools import Tools, pycocoevalcap_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAMES = ("METEOR",)
VERSION = "meteor:1.5"
JAVA = True

_SEPARATOR = " ||| "
_HEAP_MEGABYTES = 2048  # for 60,000 captions 256 are enough, for a million 1024
_UNREADABLE = "cannot read"

_STATISTICS = 23  # numbers in the answer to SCORE: see aggregate
CHUNKS = 20
"""Their place among the counts."""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of form, stem, synonym, paraphrase


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`. The statistics are those of :func:`aggregate`.

    Raises:
        JavaError: there is no Java, or the jar failed.
    """
    tools = evaluation.tools
    questions = []
    for clip_id, references in evaluation.references.words.items():
        different = dict.fromkeys(map(_field, references))
        questions.append(_SEPARATOR.join(("SCORE", *different, _field(evaluation.words[clip_id]))))
    lines = twice(lambda: _converse(questions, tools, evaluation.stop))
    return MetricResult.of_sums(evaluation.words, counts(lines), aggregate)


def aggregate(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """METEOR of counts: what the jar's EVAL gives, to the last digits.

    Args:
        sums: ``(samples, 23)``, the jar's own order, each of a caption and then of its best reference: words; function
            words; for each of form, stem, synonym and paraphrase, content words matched and function words matched;
            then chunks; and last, words matched.

    Returns:
        By name, ``(samples,)``.
    """
    import numpy as np

    words, function_words = sums[:, 0:2], sums[:, 2:4]
    content, function = sums[:, 4:20].reshape(-1, len(_WEIGHTS), 2, 2).transpose(2, 0, 1, 3)
    matches = np.einsum("k,nks->ns", _WEIGHTS, _DELTA * content + (1 - _DELTA) * function)
    weighted = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
    matched = sums[:, 21:].mean(axis=1)
    there = (matches > 0).all(axis=1)
    precision, recall = (matches[there] / weighted[there]).T
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    scores = np.zeros(len(sums))
    scores[there] = mean * (1 - _GAMMA * (sums[there, CHUNKS] / matched[there]) ** _BETA)
    return {"METEOR": scores}


def counts(lines: Sequence[str]) -> npt.NDArray[np.float64]:
    """What :func:`aggregate` sums.

    Args:
        lines: METEOR's answers to SCORE.

    Returns:
        ``(clips, 23)``. A caption that is its reference, every word matched and all in one chunk, has no chunk: so
        does the jar sum.

    Raises:
        JavaError: a line does not hold 23 counts.
    """
    import numpy as np

    found = np.array([_numbers(line) for line in lines]).reshape(-1, _STATISTICS)
    matched = found[:, 4:CHUNKS].reshape(len(found), -1, 2).sum(axis=1)
    is_whole = (matched == found[:, :2]).all(axis=1) & (found[:, CHUNKS] == 1)
    found[is_whole, CHUNKS] = 0
    return found


def _converse(questions: Sequence[str], tools: Tools, stop: Stop) -> list[str]:
    """What METEOR says to SCORE."""
    jar = pycocoevalcap_file("meteor", "meteor-1.5.jar")
    paraphrases = pycocoevalcap_file("meteor", "data", "paraphrase-en.gz")
    threads = tools.processes or cores()
    with JavaChild(
        tools.java.path,
        [
            "-XX:TieredStopAtLevel=1",  # the better compiler costs more than it gains below 300,000 captions
            *("-cp", os.pathsep.join(map(str, (PROGRAMS, jar)))),
            *("MeteorLines", str(paraphrases), str(threads), str(len(questions))),
        ],
        name="METEOR",
        heap_megabytes=_HEAP_MEGABYTES,
        patience_seconds=tools.patience_seconds,
        stop=stop,
    ) as child:
        try:
            answers = child.ask(questions)
        except JavaDiedError:
            _check(child.stderr(), _UNREADABLE)
            raise
        _check(child.stderr(), "Exception")
    return answers


def _check(complaints: str, bad: str) -> None:
    """Raises :class:`JavaError` where a line of complaints has a bad word in it."""
    for line in complaints.splitlines():
        if bad in line:
            raise JavaError(
                f"METEOR met with an error, its numbers are not to be trusted: {line.strip()}. "
                "Try: pip install --force-reinstall pycocoevalcap==1.2"
            )


def _field(caption: str) -> str:
    return caption.replace("|||", " ")


def _numbers(answer: str) -> list[float]:
    try:
        numbers = [float(number) for number in answer.split()]
    except ValueError:
        numbers = []
    sound = len(numbers) == _STATISTICS and all(0 <= number < math.inf for number in numbers)
    # No more words are matched than there are.
    if not sound or any(sum(numbers[4 + side : CHUNKS : 2]) > numbers[side] for side in (0, 1)):
        raise JavaError(f"METEOR: expected {_STATISTICS} counts, got {answer!r}")
    return numbers
