"""SPIDEr: the mean of CIDEr-D and SPICE, one for how it is said and one for what is said.

Paper: Liu, Zhu, Ye, Guadarrama and Murphy, "Improved Image Captioning via Policy Gradient Optimization of SPIDEr",
ICCV 2017.
Author's code: none for the score; like everyone else's, it is the sum of what pycocoevalcap calls CIDEr and SPICE,
halved. CIDEr is on its scale from 0 to 10 there, so it weighs most. Deviations: those of :mod:`.cider` and
:mod:`.spice`; each is computed once, whoever else wants it.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics import cider, spice

NAMES = ("SPIDEr",)
VERSION = f"{cider.VERSION}|{spice.VERSION}"
JAVA = True


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        JavaError: SPICE cannot run.
        MissingPackageError: SPICE lacks its jars.
    """
    said, meant = evaluation.result("cider"), evaluation.result("spice")
    by_clip = {
        clip_id: (score + meant.per_clip["SPICE"][clip_id]) / 2 for clip_id, score in said.per_clip["CIDEr"].items()
    }
    return MetricResult.of_means({"SPIDEr": by_clip}, notes=said.notes)
