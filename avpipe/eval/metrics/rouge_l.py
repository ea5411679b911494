"""ROUGE-L: F-measure of the longest common subsequence of words.

Paper: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL Workshop 2004.
Author's code: pycocoevalcap 1.2 ``rouge/`` (Ramakrishna Vedantam), which is run as it is: beta = 1.2, and the best
precision and the best recall may come from two references. Deviations: none.
"""

from __future__ import annotations

from avpipe.eval.metric import Candidates, MetricResult, References, Tools, for_original

NAMES = ("ROUGE_L",)
VERSION = "beta:1.2"


def compute(references: References, candidates: Candidates, tools: Tools) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    from pycocoevalcap.rouge.rouge import Rouge

    corpus, per_clip = Rouge().compute_score(*for_original(references, candidates))
    return MetricResult(
        corpus={"ROUGE_L": float(corpus)},
        per_clip={"ROUGE_L": dict(zip(references, map(float, per_clip), strict=True))},
    )
