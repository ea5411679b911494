"""SPIDEr-FL: SPIDEr, of which a caption with a fluency error keeps a tenth.

Paper: Zhou, Zhang, Xu, Xie, Wu and Zhu, "Can Audio Captions Be Evaluated with Image Caption Metrics?", ICASSP 2022, for
the detector and its penalty; the automated audio captioning task of DCASE 2023 ranks by this score.
Author's code: felixgontier/dcase-2023-baseline ``metrics.py``; Labbeti/aac-metrics calls it ``spider_fl``.

::

    SPIDEr-FL = SPIDEr * (1 - 0.9 * error)       of each clip; the corpus score is their mean

Deviations: those of ``spider`` and ``fer``.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics.fer import penalised

NAMES = ("SPIDEr-FL",)
VERSION = "threshold:0.9|penalty:0.9"  # that of SPIDEr, and the weights, are told by the result
JAVA = True


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        MissingWeightsError: weights are neither here nor to be had.
        ScoringError: SPIDEr cannot run.
    """
    return penalised(evaluation, "spider", "SPIDEr", "SPIDEr-FL")
