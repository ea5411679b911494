"""FENSE: Sentence-BERT similarity, of which a caption with a fluency error keeps a tenth.

Paper: Zhou, Zhang, Xu, Xie, Wu and Zhu, "Can Audio Captions Be Evaluated with Image Caption Metrics?", ICASSP 2022.
Author's code: blmoistawinde/fense; Labbeti/aac-metrics computes the same.

::

    FENSE = SBERT_sim * (1 - 0.9 * error)        error: 1 or 0, of a caption

Deviations: those of ``sbert_sim`` and ``fer``.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics.fer import penalised

NAMES = ("FENSE",)
VERSION = "threshold:0.9|penalty:0.9"  # the weights are told by the result


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        MissingWeightsError: weights are neither here nor to be had.
        CheckpointError: they are no such networks.
    """
    return penalised(evaluation, "sbert_sim", "SBERT_sim", "FENSE")
