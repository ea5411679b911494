"""N-grams of many captions, numbered and counted at once: what BLEU and CIDEr are made of.

Everything is an array over all captions. A word has a number, and an n-gram that of its first n - 1 words with that of
its last; so n-grams are numbered one order after the other, and sorting replaces every dictionary. References are
counted once (:class:`CountedReferences`), and a system's captions then looked up among them
(:meth:`CountedReferences.count`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from avpipe.eval.evaluation import TokenisedReferences

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LONGEST = 4
"""The longest n-gram."""

_SHIFT = 32
"""Two numbers in one: neither reaches 2^31, for so many words do not fit in memory."""
_MASK = (1 << _SHIFT) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """N-grams of one length in the references.

    Attributes:
        keys: of each n-gram, sorted: the number of what is before its last word, and that of its last word. Its place
            is its number.
        clip_keys: of each clip and n-gram in it, sorted: both numbers.
        most: how often the n-gram stands in one reference of the clip at most.
        row_clip_keys: the same as ``clip_keys``, once for each reference that has the n-gram; sorted.
        rows: these references.
        counts: how often it stands in them.
    """

    keys: Ints
    clip_keys: Ints
    most: Ints
    row_clip_keys: Ints
    rows: Ints
    counts: Ints

    @property
    def numbers(self) -> Ints:
        """The n-gram of each row of ``row_clip_keys``."""
        return self.row_clip_keys & _MASK

    def documents(self, first: int = 0) -> Ints:
        """In how many clips each n-gram is, by its number, of those from ``first`` on."""
        start = np.searchsorted(self.clip_keys, first << _SHIFT)
        return np.bincount(self.clip_keys[start:] & _MASK, minlength=len(self.keys))


@dataclass(frozen=True, slots=True)
class Counted:
    """N-grams of one length in captions, one caption a clip.

    Attributes:
        clips: of each clip and n-gram in its caption: the clip, in order.
        numbers: the n-gram; from ``len(order.keys)`` on, one that no reference has.
        counts: how often it stands there.
    """

    clips: Ints
    numbers: Ints
    counts: Ints

    @property
    def clip_keys(self) -> Ints:
        """As in :class:`Order`; sorted."""
        return self.clips << _SHIFT | self.numbers


class Words:
    """Captions as numbers of words, one after the other.

    Args:
        captions: words with single spaces between them.
        known: number by word. Grows by what is new.
        at_spaces_alone: words end at spaces alone, and a caption without a word has one that is empty. Else they end at
            whatever Python calls whitespace, of which the tokeniser leaves one inside a number: "1\xa01/2".

    Attributes:
        numbers: of all words.
        lengths: of each caption, in words.
        starts: where each caption begins.
        plain: every caption has a word, and no whitespace but spaces: both rules agree.
    """

    def __init__(self, captions: Sequence[str], known: dict[str, int], *, at_spaces_alone: bool = False) -> None:
        words = " ".join(captions).split()
        lengths = [caption.count(" ") + 1 for caption in captions]
        self.plain = all(captions) and sum(lengths) == len(words)
        if not self.plain and at_spaces_alone:
            words = " ".join(captions).split(" ")
        elif not self.plain:
            lengths = [len(caption.split()) for caption in captions]
        self.lengths = np.array(lengths, dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        new = [word for word in dict.fromkeys(words) if word not in known]
        known.update(zip(new, count(len(known)), strict=False))
        self.numbers = np.fromiter(map(known.__getitem__, words), dtype=np.int64, count=len(words))

    def padded(self, rows: Ints, filler: int) -> npt.NDArray[np.int32]:
        """Some captions as ``(rows, longest)``, filled up with ``filler``."""
        lengths = self.lengths[rows]
        places = np.arange(lengths.max(initial=0))
        there = places < lengths[:, None]
        table = np.full(there.shape, filler, dtype=np.int32)
        table[there] = self.numbers[(self.starts[rows][:, None] + places)[there]]
        return table


@dataclass(frozen=True, slots=True)
class Beside:
    """Counts references with the captions of another corpus behind them, as more clips.

    Args:
        corpus: what document frequencies are counted in.
    """

    corpus: TokenisedReferences

    def __call__(self, references: TokenisedReferences) -> CountedReferences:
        """For :meth:`avpipe.eval.evaluation.TokenisedReferences.once`."""
        return CountedReferences([*references.words.values(), *self.corpus.words.values()])


class CountedReferences:
    """References of many clips: their words, and their n-grams of 1 to 4 words.

    Args:
        references: of each clip, its captions: words with single spaces between them.

    Attributes:
        words: of all references, clip after clip.
        words_at_spaces: the same, by the other rule of :class:`Words`.
        clip_of_row: the clip of each reference.
        first_rows: of each clip, its first reference.
        orders: of 1 to 4 words.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._known: dict[str, int] = {}
        several = np.fromiter(map(len, references), dtype=np.int64, count=len(references))
        captions = [caption for several in references for caption in several]
        self.words = Words(captions, self._known)
        self.clip_of_row = np.repeat(np.arange(len(references)), several)
        self.first_rows = np.cumsum(several) - several
        known: list[Ints] = []

        def number(keys: Ints, order: int) -> Ints:
            if not order:  # a word is its number
                known.append(np.arange(len(self._known)))
                return keys
            distinct, numbers = np.unique(keys, return_inverse=True)
            known.append(distinct)
            return numbers

        # While the next order is numbered, another core sorts the last one: numpy lets go of the interpreter for that.
        with ThreadPoolExecutor(max_workers=1) as pool:
            counted = [
                pool.submit(self._order, known[order], rows, numbers)
                for order, (rows, numbers) in enumerate(_ngrams(self.words, number))
            ]
        self.orders = [order.result() for order in counted]
        self.words_at_spaces = self.words if self.words.plain else Words(captions, self._known, at_spaces_alone=True)

    @classmethod
    def of(cls, references: TokenisedReferences) -> CountedReferences:
        """For :meth:`avpipe.eval.evaluation.TokenisedReferences.once`."""
        return cls(list(references.words.values()))

    def read(self, captions: Sequence[str], *, at_spaces_alone: bool = False) -> Words:
        """A caption of each clip, in the numbers of the references; see :class:`Words`."""
        return Words(captions, dict(self._known), at_spaces_alone=at_spaces_alone)

    def count(self, words: Words) -> list[Counted]:
        """The n-grams of one caption a clip, for each order."""

        def number(keys: Ints, order: int) -> Ints:
            known = self.orders[order].keys
            places = np.searchsorted(known, keys)
            found = np.minimum(places, len(known) - 1)
            strange = known[found] != keys if len(known) else np.ones(len(keys), dtype=bool)
            places[strange] = len(known) + np.unique(keys[strange], return_inverse=True)[1]
            return places

        return [Counted(*_count(rows, numbers)) for rows, numbers in _ngrams(words, number)]

    def _order(self, keys: Ints, rows: Ints, numbers: Ints) -> Order:
        # Clip, n-gram and reference in one number: one sort does all. Only past 2^63 it would not.
        several = int(np.diff(self.first_rows, append=len(self.clip_of_row)).max(initial=1))
        clips = self.clip_of_row[rows]
        within = rows - self.first_rows[clips]
        sorted_keys, counts = np.unique((clips * len(keys) + numbers) * several + within, return_counts=True)
        pairs, within = np.divmod(sorted_keys, several)
        clips, numbers = np.divmod(pairs, max(len(keys), 1))
        clip_keys = clips << _SHIFT | numbers
        first = np.flatnonzero(np.diff(clip_keys, prepend=-1))
        return Order(
            keys=keys,
            clip_keys=clip_keys[first],
            most=np.maximum.reduceat(counts, first) if len(first) else counts,
            row_clip_keys=clip_keys,
            rows=self.first_rows[clips] + within,
            counts=counts,
        )


def _ngrams(words: Words, number: Callable[[Ints, int], Ints]) -> Iterator[tuple[Ints, Ints]]:
    """Of each order, the caption and the number of each n-gram, in the order of the text.

    Args:
        words: of the captions.
        number: numbers n-grams by their keys; also given the order, from 0.
    """
    rows = np.repeat(np.arange(len(words.lengths)), words.lengths)
    places = np.arange(len(words.numbers))
    left = np.repeat(words.starts + words.lengths, words.lengths) - places  # words from here to the caption's end
    numbers = np.empty_like(places)
    for order in range(LONGEST):
        places = places[left[places] > order]
        last = words.numbers[places + order]
        numbers[places] = number(numbers[places] << _SHIFT | last if order else last, order)
        yield rows[places], numbers[places]


def _count(rows: Ints, numbers: Ints) -> tuple[Ints, Ints, Ints]:
    """How often each number stands in each row: rows in order, numbers, counts."""
    keys, counts = np.unique(rows << _SHIFT | numbers, return_counts=True)
    return keys >> _SHIFT, keys & _MASK, counts
