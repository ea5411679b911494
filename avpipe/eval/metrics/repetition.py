"""Repetition: how much of a caption says again what it has said. Lower is better.

Paper: Xiong, Dai and Lin, "Move Forward and Tell: A Progressive Generator of Video Descriptions", ECCV 2018; the 4-gram
repetition that Park, Rohrbach, Darrell and Rohrbach, "Adversarial Inference for Multi-Sentence Video Description", CVPR
2019, call RE-4 and Lei et al., "MART", ACL 2020, call R@4.
Author's code: jayleicn/recurrent-transformer ``densevid_eval/evaluateRepetition.py`` counts the same.

Of a caption's PTB words::

    Repetition_4  1 - distinct 4-grams / 4-grams; 0 for less than four words
    Repeats       1 if one to four words stand there twice in a row ("a man a man"), else 0

Both are averaged over the clips. ``Repeats`` is our own: it shows loops too short for a 4-gram to come back.

Deviations: there it is a paragraph, all that is said of a video, of words between spaces; here a caption as PTB words.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics.diversity import distinct

NAMES = ("Repetition_4", "Repeats")
VERSION = ""
BETTER = "lower"

LONGEST = 4


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    captions = {clip_id: tuple(words.split()) for clip_id, words in evaluation.words.items()}
    return MetricResult.of_means(
        {
            "Repetition_4": {clip_id: repetition(words) for clip_id, words in captions.items()},
            "Repeats": {clip_id: float(repeats(words)) for clip_id, words in captions.items()},
        }
    )


def repetition(words: tuple[str, ...]) -> float:
    """Share of the 4-grams that stood there before."""
    return 1 - distinct([words], LONGEST) if len(words) >= LONGEST else 0.0


def repeats(words: tuple[str, ...]) -> bool:
    """Whether one to four words stand there twice in a row."""
    return any(
        words[start : start + size] == words[start + size : start + 2 * size]
        for size in range(1, LONGEST + 1)
        for start in range(len(words) - 2 * size + 1)
    )
