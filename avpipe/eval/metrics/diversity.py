"""Diversity of a set of captions: vocabulary, distinct n-grams, distinct captions.

Paper: Li, Galley, Brockett, Gao and Dolan, "A Diversity-Promoting Objective Function for Neural Conversation Models",
NAACL 2016 (distinct-1 and distinct-2); Devlin, Cheng, Fang, Gupta, Deng, He, Zweig and Mitchell, "Language Models for
Image Captioning: The Quirks and What Works", ACL 2015 (unique captions).
Author's code: none was published for these counts; they are counted as the papers say.

Of all captions of the set together, as PTB words::

    Vocab       distinct words
    Distinct_n  distinct n-grams / n-grams
    Unique      distinct captions / captions

What a clip has of ``Vocab`` and ``Distinct_n`` is that of its own caption, and of ``Unique`` 1 / (clips with the same
caption). References play no part: those of people, scored as captions, say what is usual.

Deviations: none. Distinct_n falls as a set grows, because words come back: only sets of the same clips may be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult

NAMES = ("Vocab", "Distinct_1", "Distinct_2", "Unique")
VERSION = ""
OF_THE_SET = True
COUNTS = ("Vocab",)
BETTER = "neither"


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    captions = {clip_id: tuple(words.split()) for clip_id, words in evaluation.words.items()}
    several = Counter(captions.values())
    corpus = {
        "Vocab": float(len({word for words in captions.values() for word in words})),
        "Distinct_1": distinct(captions.values(), 1),
        "Distinct_2": distinct(captions.values(), 2),
        "Unique": len(several) / len(captions),
    }
    per_clip = {
        "Vocab": {clip_id: float(len(set(words))) for clip_id, words in captions.items()},
        "Distinct_1": {clip_id: distinct([words], 1) for clip_id, words in captions.items()},
        "Distinct_2": {clip_id: distinct([words], 2) for clip_id, words in captions.items()},
        "Unique": {clip_id: 1 / several[words] for clip_id, words in captions.items()},
    }
    return MetricResult(corpus=corpus, per_clip=per_clip)


def distinct(captions: Iterable[tuple[str, ...]], order: int) -> float:
    """Distinct n-grams over all n-grams of the captions; 0 where there are none.

    Args:
        captions: of each, its words.
        order: n.
    """
    ngrams = [words[start : start + order] for words in captions for start in range(len(words) - order + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
