"""BLEU-1 to BLEU-4: how many n-grams of the candidate occur in a reference.

Paper: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
Author's code: pycocoevalcap 1.2 ``bleu/`` (David Chiang; Hao Fang, Tsung-Yi Lin), whose numbers these are
(tests/eval/test_parity.py). Of n-grams in a candidate, as many count as are in the one reference that has most of them;
the length of the reference that is closest in length, the shorter of two, counts for the brevity penalty::

    BLEU-n = exp(min(0, 1 - r / c)) * (product for k = 1..n of correct_k / guessed_k)^(1/n)

Deviations: of speed alone.

The corpus score is computed from the counts of all clips, so it is not the mean of the per-clip scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
VERSION = "reflen:closest"

_TINY, _SMALL = 1e-15, 1e-9  # so that nothing is divided by zero


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`. The statistics are those of :func:`aggregate`."""
    import numpy as np

    from avpipe.eval.ngrams import LONGEST, CountedReferences

    references = evaluation.references.once(CountedReferences.of)
    words = references.read(list(evaluation.words.values()))
    clips = len(words.lengths)
    correct = np.zeros((clips, LONGEST))
    for order, counted in enumerate(references.count(words)):
        known = references.orders[order]
        places = np.searchsorted(known.clip_keys, counted.clip_keys)
        places = np.minimum(places, len(known.clip_keys) - 1)
        if len(known.clip_keys):
            there = known.clip_keys[places] == counted.clip_keys
            hits = np.where(there, np.minimum(counted.counts, known.most[places]), 0)
            correct[:, order] = np.bincount(counted.clips, hits, clips)
    guessed = np.maximum(words.lengths[:, None] - np.arange(LONGEST), 0)
    # The nearest length, and of two the shorter: the least of (distance, length), as one number.
    apart = np.abs(references.words.lengths - words.lengths[references.clip_of_row])
    nearest = np.minimum.reduceat(apart << 32 | references.words.lengths, references.first_rows) & (1 << 32) - 1
    statistics = np.column_stack([correct, guessed, words.lengths, nearest]).astype(np.float64)
    return MetricResult.of_sums(evaluation.words, statistics, aggregate)


def aggregate(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """BLEU of counts.

    Args:
        sums: ``(samples, 10)``: correct and guessed n-grams of 1 to 4 words, words, words of the nearest reference.

    Returns:
        By name, ``(samples,)``.
    """
    import numpy as np

    correct, guessed, length, wanted = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    precisions = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=1) ** (1 / np.arange(1, 5))
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
    return {name: precisions[:, order] * brevity for order, name in enumerate(NAMES)}
