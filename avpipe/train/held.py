"""Features that several trainings share: read once, held in memory that all processes of this machine see.

A training alone holds its features itself (``train.cache_features``). Several side by side would read them as often,
and each would take its quarter of the memory. So whoever starts them wraps each feature set first: in
:class:`HeldFeatures`, which the others map and do not copy, or in :class:`OnDisk`, if it is too large.

The memory has no name and no file: nothing is left over, however the processes end.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import accumulate
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

import numpy as np

from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    from avpipe.pipeline.features import FeatureSource


_OF_A_PROCESS = ("_memory", "_data", "_pts_seconds", "_starts")


class HeldFeatures:
    """A feature set in memory. It may be given to a process that :mod:`multiprocessing` starts, which copies nothing.

    The arrays that are read are views of the memory. Who writes to them writes to a copy of one's own.

    Args:
        source: is read once, all views of each clip, in the order given; and not needed any more.
        clip_ids: which clips; those without features are left out.
    """

    def __init__(self, source: FeatureSource, clip_ids: Iterable[str]) -> None:
        self.spec: FeatureSpec = source.spec
        keys = [
            (clip_id, view)
            for clip_id in dict.fromkeys(clip_ids)
            if clip_id in source
            for view in range(self.spec.views)
        ]
        block = _Block()  # grows as the clips come: how many rows they have is known when they are read
        self._rows: dict[tuple[str, int], int] = {}
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        times = []
        for key in keys:
            features = source.read(*key)
            self._dtype = features.data.dtype
            block.append(np.ascontiguousarray(features.data))
            times.append(features.pts_seconds.astype(np.float64))
            self._rows[key] = len(features.data)
        block.append(np.zeros(-block.size % 8, np.uint8))  # the times that follow are aligned
        self._times_start = block.size
        for pts_seconds in times:
            block.append(pts_seconds)
        self._block = block
        self._place()

    def _place(self) -> None:
        self._memory = memory = self._block.map()
        rows = sum(self._rows.values())
        self._data = np.frombuffer(memory, self._dtype, rows * self.spec.dim).reshape(rows, self.spec.dim)
        self._pts_seconds = np.frombuffer(memory, np.float64, rows, self._times_start)
        starts = accumulate(self._rows.values(), initial=0)
        self._starts = dict(zip(self._rows, starts, strict=False))  # the last start is the end

    def __contains__(self, clip_id: object) -> bool:
        return (clip_id, 0) in self._rows

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of a clip, in the type that they have on disk.

        Raises:
            KeyError: it has none, or not that view.
        """
        start = self._starts[clip_id, view]
        stop = start + self._rows[clip_id, view]
        return Features(data=self._data[start:stop], pts_seconds=self._pts_seconds[start:stop])

    def let_go(self) -> None:
        """No longer count what was read to this process's resident memory. It stays in memory, and is there when it is
        read again; what this process has written over it is gone.
        """
        if isinstance(self._memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    @property
    def bytes(self) -> int:
        """What it takes of the memory, once for all processes."""
        return self._block.size

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _OF_A_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._place()


class OnDisk:
    """A feature set that is too large to be held: every clip is read when it is wanted, and no training keeps it."""

    def __init__(self, source: FeatureSource) -> None:
        self.spec: FeatureSpec = source.spec
        self._source = source

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._source

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of a clip."""
        return self._source.read(clip_id, view)


class _Block:
    """Bytes in memory that several processes see.

    ``memfd`` where there is one: containers often have no more than 64 MB in ``/dev/shm``.
    """

    def __init__(self) -> None:
        self.size = 0
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("avpipe-features")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())

    def append(self, array: np.ndarray[Any, Any]) -> None:
        data = memoryview(array.reshape(-1).view(np.uint8).data)
        while data:
            written = os.pwrite(self._descriptor, data, self.size)
            data, self.size = data[written:], self.size + written

    def map(self) -> mmap.mmap | bytearray:
        """All bytes; pages that are written to become this process's own."""
        return mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_COPY) if self.size else bytearray()

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Callable[..., _Block], tuple[Any, int]]:
        return _received, (reduction.DupFd(self._descriptor), self.size)


def _received(descriptor: Any, size: int) -> _Block:
    block = _Block.__new__(_Block)
    block._descriptor, block.size = descriptor.detach(), size
    return block
