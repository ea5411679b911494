"""Sentence-BERT similarity: the cosine of sentence vectors of a caption and its references, -1 to 1.

Paper: Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019, as used by
Zhou, Zhang, Xu, Xie, Wu and Zhu, "Can Audio Captions Be Evaluated with Image Caption Metrics?", ICASSP 2022.
Author's code: blmoistawinde/fense ``fense/evaluator.py``, whose choice of weights is the default here
(paraphrase-TinyBERT-L6-v2), and sentence-transformers. Labbeti/aac-metrics calls it ``sbert_sim``.

Of a caption c and its references r, with e the mean of the last hidden states over the word pieces, of length 1::

    SBERT_sim = mean over r of e(c) . e(r)

The captions are read as they were written, not as PTB words, as there.

Deviations: of speed alone: equal sentences are read once, and those of a length together.
"""

from __future__ import annotations

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult

NAMES = ("SBERT_sim",)
VERSION = ""  # the weights are told by the result


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are no sentence encoder.
    """
    encoder = evaluation.tools.networks.sentence_encoder
    own = encoder(list(evaluation.captions.values()))
    theirs = evaluation.references.once(encoder.read_references)
    scores = {
        clip_id: float((theirs[clip_id] @ vector).mean(dtype=float))
        for clip_id, vector in zip(evaluation.captions, own, strict=True)
    }
    return MetricResult.of_means({"SBERT_sim": scores}, version=encoder.version)
