"""BLEU-1 to BLEU-4: how many n-grams of the candidate occur in a reference.

Paper: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
Author's code: pycocoevalcap 1.2 ``bleu/`` (David Chiang; Hao Fang, Tsung-Yi Lin), which is run as it is; the length of
the reference that is closest in length counts for the brevity penalty. Deviations: none.

The corpus score is computed from the counts of all clips, so it is not the mean of the per-clip scores.
"""

from __future__ import annotations

from avpipe.eval.metric import Candidates, MetricResult, References, Tools, for_original

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
VERSION = "reflen:closest"


def compute(references: References, candidates: Candidates, tools: Tools) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, per_clip = Bleu(4).compute_score(*for_original(references, candidates), verbose=0)
    return MetricResult(
        corpus={name: float(score) for name, score in zip(NAMES, corpus, strict=True)},
        per_clip={
            name: dict(zip(references, map(float, scores), strict=True))
            for name, scores in zip(NAMES, per_clip, strict=True)
        },
    )
