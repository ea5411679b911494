"""Length of captions in PTB words, and how it compares with that of the references.

Paper: none; the ratio is what Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL
2002, look at before they punish short captions.
Author's code: none. pycocoevalcap prints a ratio too: its BLEU divides by the length of the *nearest* reference, here
the mean of a clip's references counts, which no choice of captions can bring nearer.

::

    Length        mean words of a caption
    Length_ratio  words of all captions / (sum over the clips of the mean words of their references)

Deviations: none. Neither is better the higher it is: a ratio well below 1 tells of captions that say little, well above
1 of captions that go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.metric import MetricResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAMES = ("Length", "Length_ratio")
VERSION = ""
COUNTS = ("Length", "Length_ratio")
BETTER = "neither"


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`. The statistics are those of :func:`aggregate`."""
    import numpy as np

    own = np.array([len(words.split()) for words in evaluation.words.values()], dtype=np.float64)
    statistics = np.column_stack([own, evaluation.references.once(_mean_lengths), np.ones(len(own))])
    return MetricResult.of_sums(evaluation.words, statistics, aggregate)


def aggregate(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Lengths of counts.

    Args:
        sums: ``(samples, 3)``: words of the captions, mean words of the references, clips.

    Returns:
        By name, ``(samples,)``. The ratio to references without a word is 0.
    """
    import numpy as np

    own, theirs, clips = sums.T
    return {"Length": own / clips, "Length_ratio": np.divide(own, theirs, out=np.zeros_like(own), where=theirs > 0)}


def _mean_lengths(references: TokenisedReferences) -> list[float]:
    return [sum(len(words.split()) for words in several) / len(several) for several in references.words.values()]
