"""All shards of one feature set, to read from."""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from avpipe.pipeline.errors import CorruptShardError, FingerprintError, StoreError
from avpipe.pipeline.features import STATUSES, Features, Outcome, Segments
from avpipe.pipeline.files import each
from avpipe.pipeline.shards import Mark, marks, mixture, read_spec, size_fault
from avpipe.pipeline.store._formats import open_reader
from avpipe.pipeline.store._rows import Reader
from avpipe.pipeline.store._text import TextReader

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 64
"""Per feature set and process. Many systems allow a process 1,024 files in all."""


class FeatureSet:
    """The features of a dataset by one encoder: random access and streaming over all finished shards.

    Looks at ``spec.json`` and every completion mark when it is made; opens shards when they are read. A shard without
    a mark is not there. May be pickled, forked and used from several threads: see ``Reader``. From remote storage,
    every shard is copied to this machine when it is first read, and stays there for the next time.

    Args:
        folder: of the feature set.

    Raises:
        CorruptShardError: a shard is gone or has not the size that its mark says; all such shards are named.
        FingerprintError: a shard holds other features than ``spec.json`` says.
        StoreError: there is no feature set, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = read_spec(folder)
        self._marks = tuple(marks(folder))
        self._check()
        if mixed := mixture(self._marks):
            log.warning(
                "%s: shards were computed on different devices (%s); precision=float32 avoids it", folder, mixed
            )
        self._outcomes: dict[str, Outcome] = {}
        self._shard_of: dict[str, int] = {}
        for number, mark in enumerate(self._marks):
            for outcome in mark.outcomes:
                if outcome.clip_id in self._outcomes:
                    raise StoreError(
                        f"clip {outcome.clip_id!r} is in two shards of {folder}: they were cut from two manifests. "
                        f"Delete the folder and extract again"
                    )
                self._outcomes[outcome.clip_id] = outcome
                if outcome.status == "ok":
                    self._shard_of[outcome.clip_id] = number
        self._readers: dict[int, Reader] = {}
        self._texts: dict[int, TextReader] = {}
        self._open: deque[Reader] = deque()

    @property
    def clip_ids(self) -> list[str]:
        """Every clip that has features, in shard order."""
        return list(self._shard_of)

    @property
    def counts(self) -> dict[str, int]:
        """Number of clips by status: ``{"ok": 250, "failed": 4, "skipped": 2}``."""
        found = Counter(outcome.status for outcome in self._outcomes.values())
        return {status: found[status] for status in STATUSES}

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(mark.bytes for mark in self._marks)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._shard_of

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each clip, in shard order."""
        return iter(self._outcomes.values())

    def missing(self, clip_ids: Iterable[str]) -> list[str]:
        """Those of the given clips that no finished shard says anything about: not extracted yet."""
        return [clip_id for clip_id in clip_ids if clip_id not in self._outcomes]

    def num_rows(self, clip_id: str) -> int:
        """How many rows a view of a clip has, without reading them.

        Raises:
            StoreError: as :meth:`read`.
        """
        return self._reader(clip_id).num_rows(clip_id)

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of one clip, in the type that they have on disk.

        Args:
            clip_id: of the clip.
            view: which one of ``spec.views``; 0 is the plain one.

        Raises:
            StoreError: the clip has no features, or not that view, or the set holds text; the message says why.
            CorruptShardError: its shard is damaged.
        """
        return self._reader(clip_id).read(clip_id, view)

    def segments(self, clip_id: str) -> Segments:
        """The text of one clip, from a set that holds text.

        Raises:
            StoreError: the clip has no text, or the set holds rows of numbers.
            CorruptShardError: its shard is damaged.
        """
        if not self.spec.is_text:
            raise StoreError(f"{self.folder} holds rows of {self.spec.dtype}, no text: read them with read()")
        number = self._number(clip_id)
        reader = self._texts.get(number)
        if reader is None:
            opened = self._opened(self._marks[number])
            assert isinstance(opened, TextReader)
            reader = self._texts[number] = opened
        return reader.segments(clip_id)

    def stream(self, seed: int | None = None) -> Iterator[tuple[str, Features]]:
        """Every clip with its features, one shard after the other: for slow disks, where order matters.

        Args:
            seed: shuffle the shards, and the clips within each; the same seed gives the same order. ``None``: the
                order of the disk.

        Raises:
            CorruptShardError: a shard is damaged.
        """
        shuffled = random.Random(seed) if seed is not None else None
        numbers = list(range(len(self._marks)))
        if shuffled:
            shuffled.shuffle(numbers)
        for number in numbers:
            clip_ids = [outcome.clip_id for outcome in self._marks[number].outcomes if outcome.status == "ok"]
            if shuffled:
                shuffled.shuffle(clip_ids)
            for clip_id in clip_ids:
                yield clip_id, self.read(clip_id)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": deque()}

    def _check(self) -> None:
        by_file = {self.folder / mark.file: mark for mark in self._marks}
        found = each(lambda path: size_fault(self.folder, by_file[path]), list(by_file))
        faults = [(path.name, fault) for path, fault in zip(by_file, found, strict=True)]
        broken = [f"  - {file} {fault}" for file, fault in faults if fault]
        if broken:
            raise CorruptShardError(
                f"{self.folder}: {len(broken)} of {len(faults)} shards are broken\n" + "\n".join(broken) + "\n"
                "`avpipe verify --deep` checks every byte, `avpipe extract` writes broken shards again"
            )
        for mark in self._marks:
            if mark.fingerprint != self.spec.fingerprint:
                raise FingerprintError(f"{self.folder}: {self._describe(mark)}")

    def _describe(self, mark: Mark) -> str:
        """How a shard's features differ from what spec.json says."""
        there = open_reader(self.folder / mark.file, mark.sha256).spec
        lines = "\n".join(f"  - {line}" for line in self.spec.differences(there))
        return (
            f"{mark.file} holds other features ({mark.fingerprint}) than spec.json says ({self.spec.fingerprint}); "
            f"spec.json against {mark.file}:\n{lines}\n"
            f"Remove that shard and its mark, and `avpipe extract` again"
        )

    def _reader(self, clip_id: str) -> Reader:
        if self.spec.is_text:
            raise StoreError(f"{self.folder} holds text, no rows of numbers: read it with segments()")
        number = self._number(clip_id)
        reader = self._readers.get(number)
        if reader is None:
            opened = self._opened(self._marks[number])
            assert isinstance(opened, Reader)
            opened.release()  # counted when it is opened to read
            reader = self._readers[number] = opened
        if not reader.is_open:  # the read that follows opens it
            self._open.append(reader)
            if len(self._open) > MAX_OPEN_FILES:
                self._open.popleft().release()
        return reader

    def _number(self, clip_id: str) -> int:
        """Of the shard that holds a clip."""
        number = self._shard_of.get(clip_id)
        if number is None:
            raise StoreError(f"{self.folder} has no features of clip {clip_id!r}: {self._why_not(clip_id)}")
        return number

    def _opened(self, mark: Mark) -> Reader | TextReader:
        reader = open_reader(self.folder / mark.file, mark.sha256)
        if reader.spec.fingerprint != mark.fingerprint:
            raise CorruptShardError(
                f"{reader.path} holds features {reader.spec.fingerprint}, its mark says {mark.fingerprint}. "
                f"Remove both, then `avpipe extract` writes the shard again"
            )
        return reader

    def _why_not(self, clip_id: str) -> str:
        outcome = self._outcomes.get(clip_id)
        if outcome is None:
            return f"no finished shard holds it ({len(self)} clips do have features)"
        return f"{outcome.status} ({outcome.error_type}): {outcome.error_message}"
