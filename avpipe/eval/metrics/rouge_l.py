"""ROUGE-L: F-measure of the longest common subsequence of words.

Paper: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL Workshop 2004.
Author's code: pycocoevalcap 1.2 ``rouge/`` (Ramakrishna Vedantam), whose numbers these are (tests/eval/test_parity.py):
beta = 1.2, and the best precision and the best recall may come from two references. Deviations: of speed alone. As
there, a caption without a word counts as one empty word, which two such captions have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avpipe.eval.ngrams import Ints

NAMES = ("ROUGE_L",)
VERSION = "beta:1.2"

_BETA = 1.2
_CELLS = 1 << 16
"""Words of references compared at once: what is at work then stays in the processor's cache."""


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    import numpy as np

    from avpipe.eval.ngrams import CountedReferences

    references = evaluation.references.once(CountedReferences.of)
    theirs, clips, first_rows = references.words_at_spaces, references.clip_of_row, references.first_rows
    own = references.read(list(evaluation.words.values()), at_spaces_alone=True)
    common = np.empty_like(clips)
    # Those of like lengths on both sides together, so that little is padded: one long caption must not stretch others.
    magnitudes = np.frexp(own.lengths)[1][clips]
    rows = np.lexsort((theirs.lengths, magnitudes))
    start = 0
    while start < len(rows):
        alike = rows[start : start + np.searchsorted(magnitudes[rows[start:]], magnitudes[rows[start]], side="right")]
        cells = theirs.lengths[alike] * np.arange(1, len(alike) + 1)  # of so many, padded to the longest
        some = alike[: max(int(np.searchsorted(cells, _CELLS, side="right")), 1)]
        common[some] = common_subsequence(own.padded(clips[some], -1), theirs.padded(some, -2))
        start += len(some)
    best_precision = np.maximum.reduceat(common / own.lengths[clips], first_rows)
    best_recall = np.maximum.reduceat(common / theirs.lengths, first_rows)
    below = best_recall + _BETA**2 * best_precision
    scores = np.divide(
        (1 + _BETA**2) * best_precision * best_recall, below, out=np.zeros_like(below), where=best_precision > 0
    )
    return MetricResult.of_means({"ROUGE_L": dict(zip(evaluation.words, scores.tolist(), strict=True))})


def common_subsequence(some: npt.NDArray[np.integer], others: npt.NDArray[np.integer]) -> Ints:
    """Length of the longest common subsequence of each pair of rows.

    Args:
        some: ``(N, H)``; what is negative equals nothing in the other.
        others: ``(N, W)``.

    Returns:
        ``(N,)``.
    """
    import numpy as np

    # best[:, j]: of the columns of ``some`` so far and the first j of ``others``
    small = np.int16 if others.shape[1] < np.iinfo(np.int16).max else np.int32
    best = np.zeros((len(others), others.shape[1] + 1), dtype=small)
    for column in some.T:
        longer = best[:, :-1] + (others == column[:, None])
        np.maximum.accumulate(np.maximum(best[:, 1:], longer), axis=1, out=best[:, 1:])
    return best[:, -1].astype(np.int64)
