"""Plain CIDEr: the cosine between tf-idf vectors of n-grams, 0 to 10, as it was before CIDEr-D.

Paper: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, equations 1 to 3.
Author's code: vrama91/cider, ``pyciderevalcap/cider/`` (there "CIDEr", beside "CIDErD"): CIDEr-D without clipped counts
and without the penalty on the length. Deviations: the words are those of the PTB tokeniser, as there, and are not
stemmed, as the paper has it but its code does not.

Long captions that repeat what matters can win with it; papers report CIDEr-D, which is the metric ``cider`` here.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics.cider import similarity

NAMES = ("CIDEr-plain",)
VERSION = "idf:refs"


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    return similarity(evaluation, "CIDEr-plain", clipped=False)
