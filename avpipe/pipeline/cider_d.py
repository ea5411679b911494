"""CIDEr-D of many captions, fast: what self-critical training is rewarded by.

Source: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015, 1411.5726). The
numbers are those of pycocoevalcap 1.2, which stage three runs, to 1e-9 (tests/pipeline/test_cider_d.py).

Of a caption c and a reference r, both PTB-tokenised words, N documents, and an n-gram g that stands c(g) times in c and
is in df(g) documents::

    w_c(g)     = c(g) * (ln N - ln max(1, df(g)))
    sim_n(c,r) = sum_g min(w_c(g), w_r(g)) w_r(g) / (|w_c| |w_r|) * exp(-(l_c - l_r)^2 / (2 * 6^2))    over n-grams g
    CIDEr-D    = 10 * mean over the references and n = 1..4 of sim_n

l is the number of bigrams, and a similarity with a vector of length 0 is 0. Since it is a mean over references, all of
a clip's together and each alone, averaged, are the same number where the document frequencies are the same.

Time goes into what is done once: n-grams are numbered, a clip's references counted and their norms taken. A caption is
then compared with all references of its clip at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

NGram = tuple[str, ...]

LONGEST = 4
"""The longest n-gram."""
SIGMA = 6.0
"""Of the penalty on the difference in length."""


def ngrams(caption: str) -> Counter[NGram]:
    """How often each n-gram stands in a caption of tokens with spaces between them."""
    words = caption.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


class DocumentFrequencies:
    """In how many documents each n-gram is.

    Args:
        documents: of each, its captions, tokenised. The field's standard: a document is a clip with all its references.

    Raises:
        ValueError: there is no document.
    """

    def __init__(self, documents: Iterable[Iterable[str]]) -> None:
        self._numbers: dict[NGram, int] = {}
        counts: list[int] = []
        self.documents = 0
        for captions in documents:
            self.documents += 1
            for ngram in {ngram for caption in captions for ngram in ngrams(caption)}:
                number = self._numbers.setdefault(ngram, len(counts))
                if number == len(counts):
                    counts.append(0)
                counts[number] += 1
        if not self.documents:
            raise ValueError("documents: expected at least one, got none")
        # At last, where the number -1 finds it: what an n-gram weighs that was never seen.
        self._idf = np.log(self.documents) - np.log(np.array([*counts, 1], dtype=np.float64))

    def __len__(self) -> int:
        """How many n-grams were seen."""
        return len(self._numbers)

    def weights(self, ngrams: Iterable[NGram]) -> npt.NDArray[np.float64]:
        """Of each n-gram ln N - ln max(1, df)."""
        numbers = np.array([self._numbers.get(ngram, -1) for ngram in ngrams], dtype=np.int64)
        found: npt.NDArray[np.float64] = self._idf[numbers]
        return found


class References:
    """The references of one clip, counted once.

    Args:
        captions: tokenised; at least one. They may be empty.
        frequencies: what n-grams weigh.

    Raises:
        ValueError: there is no caption.
    """

    def __init__(self, captions: Sequence[str], frequencies: DocumentFrequencies) -> None:
        if not captions:
            raise ValueError("captions: expected at least one reference, got none")
        counted = [ngrams(caption) for caption in captions]
        self._frequencies = frequencies
        self._columns: dict[NGram, int] = {}
        for ngram in (ngram for counts in counted for ngram in counts):
            self._columns.setdefault(ngram, len(self._columns))
        largest = max((max(counts.values(), default=0) for counts in counted), default=0)
        # As small as they can be: thousands of clips are held.
        self._counts = np.zeros((len(captions), len(self._columns)), dtype=np.min_scalar_type(largest))
        for row, counts in enumerate(counted):
            self._counts[row, [self._columns[ngram] for ngram in counts]] = list(counts.values())
        self._weights = frequencies.weights(self._columns)
        orders = np.eye(LONGEST)[[len(ngram) - 1 for ngram in self._columns]]
        self._norms = np.sqrt((self._counts * self._weights) ** 2 @ orders)  # (references, n)
        self._bigrams = np.array([_bigrams(caption) for caption in captions])

    def __len__(self) -> int:
        """How many references."""
        return len(self._counts)

    def score(self, captions: Sequence[str]) -> npt.NDArray[np.float64]:
        """``(captions,)``: CIDEr-D of each caption against all references, 0 to 10."""
        found: npt.NDArray[np.float64] = self.score_each(captions).mean(axis=1)
        return found

    def score_each(self, captions: Sequence[str]) -> npt.NDArray[np.float64]:
        """``(captions, references)``: CIDEr-D of each caption against each reference alone, 0 to 10."""
        if not captions:
            return np.empty((0, len(self)))
        counted = [ngrams(caption) for caption in captions]
        whole = [ngram for counts in counted for ngram in counts]  # of all captions, one after the other
        own = np.array([count for counts in counted for count in counts.values()]) * self._frequencies.weights(whole)
        # Which caption and n each belongs to, as one number; a sum over g is a sum over those of a number.
        sums = [LONGEST * row + len(ngram) - 1 for row, counts in enumerate(counted) for ngram in counts]
        several = LONGEST * len(captions)
        norms = np.sqrt(np.bincount(np.array(sums, dtype=np.int64), own**2, several))
        places = [place for place, ngram in enumerate(whole) if ngram in self._columns]
        columns = [self._columns[whole[place]] for place in places]
        theirs = self._counts[:, columns] * self._weights[columns]  # (references, shared n-grams)
        belongs = np.zeros((len(places), several))
        belongs[np.arange(len(places)), [sums[place] for place in places]] = 1
        dots = (np.minimum(own[places], theirs) * theirs) @ belongs  # (references, captions * n)
        products = norms * np.tile(self._norms, len(captions))
        cosines = np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)
        means = cosines.reshape(len(self), len(captions), LONGEST).mean(axis=2)
        apart = self._bigrams[:, None] - [_bigrams(caption) for caption in captions]  # (references, captions)
        scores: npt.NDArray[np.float64] = 10 * means * np.exp(-(apart**2) / (2 * SIGMA**2))
        return scores.T


def _bigrams(caption: str) -> int:
    return max(len(caption.split()) - 1, 0)
