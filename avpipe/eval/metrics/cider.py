"""CIDEr, that is CIDEr-D: tf-idf weighted n-grams shared with the references, 0 to 10.

Paper: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015.
Author's code: pycocoevalcap 1.2 ``cider/`` (Ramakrishna Vedantam, Tsung-Yi Lin), which is run as it is. What it calls
CIDEr, and what papers report under that name, is CIDEr-D: clipped counts, and a Gaussian penalty on the difference in
length, sigma = 6. Deviations: none.

Document frequencies are counted in the references that are scored against. A single clip therefore scores 0: every
n-gram of its references occurs in all documents there are.
"""

from __future__ import annotations

from avpipe.eval.metric import Candidates, MetricResult, References, Tools, for_original

NAMES = ("CIDEr",)
VERSION = "idf:refs"


def compute(references: References, candidates: Candidates, tools: Tools) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    from pycocoevalcap.cider.cider import Cider

    corpus, per_clip = Cider().compute_score(*for_original(references, candidates))
    alone = "CIDEr of a single clip is always 0: its word weights are counted over the clips that are scored"
    return MetricResult(
        corpus={"CIDEr": float(corpus)},
        per_clip={"CIDEr": dict(zip(references, map(float, per_clip), strict=True))},
        notes=(alone,) if len(references) == 1 else (),
    )
