"""Fluency error rate: the share of captions that are no whole, well-formed sentence. Lower is better.

Paper: Zhou, Zhang, Xu, Xie, Wu and Zhu, "Can Audio Captions Be Evaluated with Image Caption Metrics?", ICASSP 2022.
Author's code: blmoistawinde/fense ``fense/evaluator.py``; Labbeti/aac-metrics calls it ``fer``.

A BERT that was trained on captions spoilt on purpose (cut off, an event or word said twice, no conjunction, no verb)
says how likely a caption is broken; above 0.9 it counts as an error. It was trained on captions of sound, from Clotho
and AudioCaps: on captions that speak of what is seen it is out of its field.

The caption is read without punctuation and in small letters, as in aac-metrics; of the author's code two forms are
around, with and without that. References play no part.

Deviations: the author's code takes the last of the detector's outputs ("error") where there are more than 32 captions,
and all six of them where there are fewer, which cannot be meant; here it is always the last, as in aac-metrics.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult, load

NAMES = ("FER",)
VERSION = "threshold:0.9"  # the weights are told by the result
BETTER = "lower"

THRESHOLD = 0.9
"""Of the probability of an error."""
PENALTY = 0.9
"""What an error costs where it is held against another score: this share of it."""


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are no such detector.
    """
    checker = evaluation.tools.networks.error_checker
    errors = checker(list(evaluation.captions.values()))[:, -1] > THRESHOLD
    scores = dict(zip(evaluation.captions, map(float, errors), strict=True))
    return MetricResult.of_means({"FER": scores}, version=f"{VERSION}|{checker.version}")


def penalised(evaluation: Evaluation, metric: str, name: str, penalised_name: str) -> MetricResult:
    """Another metric's scores, where each caption with an error loses most of its own.

    Args:
        evaluation: what is scored.
        metric: module of the other metric.
        name: of its score.
        penalised_name: of the score that is made.

    Raises:
        AvpipeError: one of both metrics cannot run.
    """
    scored, errors = evaluation.result(metric), evaluation.result("fer")
    per_clip = {
        clip_id: score * (1 - PENALTY * errors.per_clip["FER"][clip_id])
        for clip_id, score in scored.per_clip[name].items()
    }
    versions = (scored.version or load(metric).VERSION, errors.version, f"penalty:{PENALTY}")
    return MetricResult.of_means(
        {penalised_name: per_clip}, notes=scored.notes, version="|".join(filter(None, versions))
    )
