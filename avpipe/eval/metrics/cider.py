"""CIDEr, that is CIDEr-D: tf-idf weighted n-grams shared with the references, 0 to 10.

Paper: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015.
Author's code: pycocoevalcap 1.2 ``cider/`` (Ramakrishna Vedantam, Tsung-Yi Lin), whose numbers these are
(tests/eval/test_parity.py). What it calls CIDEr, and what papers report under that name, is CIDEr-D: clipped counts,
and a Gaussian penalty on the difference in length, sigma = 6. Deviations: of speed alone.

Of a caption c and a reference r, N clips, and an n-gram g that stands c(g) times in c and in the references of df(g)
clips; l is the number of bigrams::

    w_c(g)     = c(g) * (ln N - ln max(1, df(g)))
    sim_n(c,r) = sum_g min(w_c(g), w_r(g)) w_r(g) / (|w_c| |w_r|) * exp(-(l_c - l_r)^2 / (2 * 6^2))
    CIDEr-D    = 10 * mean over the references and n = 1..4 of sim_n

Document frequencies are counted in the references that are scored against. A single clip therefore scores 0: every
n-gram of its references occurs in all documents there are. With ``idf`` they are counted in another corpus (training
captions, say), each clip of it a document, and the signature names it: such scores cannot be compared with published
ones, but do not depend on what else is scored.

What rewards self-critical training, a few captions a step of any clip, is :mod:`avpipe.pipeline.cider_d`.
"""

from __future__ import annotations

from collections.abc import Sequence

from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult

NAMES = ("CIDEr",)
VERSION = "idf:refs"

SIGMA = 6.0
"""Of the penalty on the difference in length."""


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`."""
    return similarity(evaluation, "CIDEr", clipped=True)


def similarity(
    evaluation: Evaluation, name: str, *, clipped: bool, corpora: Sequence[int] | None = None
) -> MetricResult:
    """CIDEr-D, or the plain CIDEr that came before it.

    Args:
        evaluation: what is scored.
        name: of the score.
        clipped: with min and penalty (CIDEr-D), or without: the cosine of both vectors.
        corpora: of each clip, how many clips its document frequencies are counted over, where these are not all: no
            word then stands in two corpora.
    """
    import numpy as np

    from avpipe.eval.ngrams import LONGEST, Beside, CountedReferences

    references = evaluation.references.once(Beside(evaluation.idf) if evaluation.idf else CountedReferences.of)
    words = references.read(list(evaluation.words.values()))
    clips = len(words.lengths)
    rows = sum(map(len, evaluation.references.words.values()))
    clip_of_row = references.clip_of_row[:rows]  # of what is scored
    documents, first_document = (len(evaluation.idf.words), clips) if evaluation.idf else (clips, 0)
    # Of each clip's corpus, as logarithms.
    sizes = np.log(np.broadcast_to(documents if corpora is None else np.asarray(corpora), len(references.first_rows)))
    total = np.zeros(rows)
    for known, counted in zip(references.orders, references.count(words), strict=True):
        # At last, that of an n-gram that no reference has.
        frequencies = np.log(np.maximum(np.append(known.documents(first_document), 1), 1))
        row_weights = known.counts * (sizes[references.clip_of_row[known.rows]] - frequencies[known.numbers])
        own_frequencies = frequencies[np.minimum(counted.numbers, len(known.keys))]
        own_weights = counted.counts * (sizes[counted.clips] - own_frequencies)
        # Each n-gram of a caption beside each reference of its clip that has it.
        first = np.searchsorted(known.row_clip_keys, counted.clip_keys, side="left")
        several = np.searchsorted(known.row_clip_keys, counted.clip_keys, side="right") - first
        own = np.repeat(own_weights, several)
        places = np.arange(len(own)) + np.repeat(first - (np.cumsum(several) - several), several)
        their = row_weights[places]
        products = (np.minimum(own, their) if clipped else own) * their
        dots = np.bincount(known.rows[places], products, rows)
        norms = np.sqrt(np.bincount(counted.clips, own_weights**2, clips))[clip_of_row]
        norms *= np.sqrt(np.bincount(known.rows, row_weights**2, rows)[:rows])
        total += np.divide(dots, norms, out=np.zeros(rows), where=norms > 0)
    if clipped:
        apart = np.maximum(references.words.lengths[:rows] - 1, 0) - np.maximum(words.lengths - 1, 0)[clip_of_row]
        total *= np.exp(-(apart**2) / (2 * SIGMA**2))
    scores = 10 / LONGEST * np.bincount(clip_of_row, total, clips) / np.bincount(clip_of_row, minlength=clips)
    alone = (
        f"{name} of a single clip is always 0: its word weights are counted over the clips that are scored; "
        "count them in a corpus (idf=)"
    )
    return MetricResult.of_means(
        {name: dict(zip(evaluation.words, scores.tolist(), strict=True))}, notes=(alone,) if documents == 1 else ()
    )
