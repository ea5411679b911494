"""What is scored, as every metric is given it: captions and references, as they are and as PTB words.

What a metric counts in the references is counted once, however many systems are scored against them
(:meth:`TokenisedReferences.once`); what one metric needs of another is computed once (:meth:`Evaluation.result`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from avpipe.eval import ptb
from avpipe.eval.children import Stop

if TYPE_CHECKING:
    from avpipe.eval.metric import MetricResult
    from avpipe.eval.tools import Tools

T = TypeVar("T")


class Remembered:
    """What is computed by whoever asks first; others who ask meanwhile wait for it, and are told, too, if it fails."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Hashable, Future[Any]] = {}

    def get(self, key: Hashable, work: Callable[[], T]) -> T:
        """``work()``, once for each key."""
        with self._lock:
            first = key not in self._found
            future = self._found.setdefault(key, Future())
        if first:  # outside of the lock: something else may be computed meanwhile
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
                raise
        found: T = future.result()
        return found


class TokenisedReferences:
    """References of clips, as PTB words too. Safe in threads; what was counted stays behind when it is pickled.

    Args:
        captions: one or more a clip id, cleaned.
        words: the same, tokenised.

    Attributes:
        captions: as given.
        words: as given.

    Raises:
        ValueError: both sides do not hold the same clips in the same order, with as many captions.
    """

    def __init__(self, captions: Mapping[str, Sequence[str]], words: Mapping[str, Sequence[str]]) -> None:
        if list(captions) != list(words) or any(len(captions[key]) != len(words[key]) for key in words):
            raise ValueError("captions and words: expected the same clips in the same order, with as many captions")
        self.captions, self.words = captions, words
        self._counted = Remembered()

    @classmethod
    def of(cls, captions: Mapping[str, Sequence[str]], tools: Tools) -> TokenisedReferences:
        """Tokenise.

        Raises:
            JavaError: the tokeniser's jar is needed and cannot run.
        """
        return cls(captions, ptb.tokenise_by_clip(captions, tools))

    def once(self, count: Callable[[TokenisedReferences], T]) -> T:
        """``count(self)``, remembered by the function itself."""
        return self._counted.get(count, lambda: count(self))

    def __getstate__(self) -> dict[str, Any]:
        return {"captions": self.captions, "words": self.words}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Evaluation:
    """One caption a clip, and its references.

    Args:
        captions: by clip id, cleaned.
        words: the same, tokenised: words with single spaces between them; may be empty.
        references: of the same clips in the same order.
        tools: Java, time limits and folders.
        idf: another corpus that CIDEr's document frequencies are counted in; by default the references themselves.

    Attributes:
        captions: as given.
        words: as given.
        references: as given.
        tools: as given.
        idf: as given.
        stop: set when nobody waits for results any more: children that are asked for this evaluation then end.

    Raises:
        ValueError: ids or their order differ.
    """

    def __init__(
        self,
        captions: Mapping[str, str],
        words: Mapping[str, str],
        references: TokenisedReferences,
        tools: Tools,
        idf: TokenisedReferences | None = None,
    ) -> None:
        if not list(captions) == list(words) == list(references.words):
            raise ValueError("references and candidates: expected the same ids in the same order")
        self.captions, self.words, self.references, self.tools = captions, words, references, tools
        self.idf = idf
        self.stop = Stop()
        self._results = Remembered()

    def result(self, name: str) -> MetricResult:
        """What a metric says, computed by whoever asks first.

        Args:
            name: of the metric's module.

        Raises:
            UnknownNameError: no metric of that name.
            AvpipeError: it cannot run; the same to all who ask.
        """
        from avpipe.eval.metric import load

        return self._results.get(name, lambda: load(name).compute(self))
