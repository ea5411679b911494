"""What every store format shares: collecting the rows of a shard, and reading those of one clip.

A format is a module of this folder with three names::

    SUFFIX                                                  ".h5"
    compose(path, spec, clips, rows) -> None                writes a shard file from collected rows
    read_index(path) -> Index                               says where each clip's bytes lie in it

Rows are collected in a temporary file in the same folder, because neither format can be streamed as it should end: a
contiguous HDF5 dataset must know its length when it is made, the tar file's index stands in front, and clips may arrive
in any order while the bytes of a shard must not depend on it. The price is that a shard is written twice, mostly to the
page cache, and needs twice its space while it is made; memory holds the row times only. Where the shard is to lie in
remote storage, both are below ``$TMPDIR``; what is read from there is read from a copy on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from avpipe.pipeline.errors import ClipError, CorruptShardError, StoreError
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.pipeline.files import atomic_write, flush, sha256, storage_errors, sweep, temporary, write_all
from avpipe.pipeline.store._cache import local_copy

TIME_DTYPE = np.dtype("<f8")


@dataclass(frozen=True, slots=True)
class CollectedClip:
    """A clip's rows in the temporary file.

    Attributes:
        clip_id: of the clip.
        offset: of its rows in the temporary file, in bytes.
        pts_seconds: ``(T,)`` float64.
    """

    clip_id: str
    offset: int
    pts_seconds: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Index:
    """Where each clip's bytes lie in a shard file.

    Attributes:
        spec: of the features.
        clip_ids: in the order of the file.
        num_rows: int64 ``(clips,)``.
        data_offsets: int64 ``(clips,)``, of the clip's ``(T, dim)`` rows, in bytes from the start of the file.
        pts_offsets: int64 ``(clips,)``, of the clip's ``(T,)`` float64 times, likewise.
    """

    spec: FeatureSpec
    clip_ids: tuple[str, ...]
    num_rows: npt.NDArray[np.int64]
    data_offsets: npt.NDArray[np.int64]
    pts_offsets: npt.NDArray[np.int64]


Compose = Callable[[Path, FeatureSpec, Sequence[CollectedClip], int], None]
"""Writes a shard file: its path, the spec, the clips in order, and the descriptor of the temporary file with rows."""


def disk_dtype(spec: FeatureSpec) -> np.dtype[Any]:
    """The type of the rows on disk: little-endian everywhere."""
    return np.dtype(spec.dtype).newbyteorder("<")


class Writer:
    """Writes one shard file: whole when the ``with`` block ends well, absent when it raises.

    Args:
        path: of the shard file.
        spec: of the features.
        compose: of the format.
        order: the clip ids that may come, in the order that they shall have in the file. By default the order in
            which they come.
    """

    def __init__(self, path: Path, spec: FeatureSpec, compose: Compose, order: Sequence[str] | None = None) -> None:
        self.path, self.spec = path, spec
        self._compose, self._order = compose, order
        self._allowed = None if order is None else frozenset(order)
        self._dtype = disk_dtype(spec)
        self._clips: dict[str, CollectedClip] = {}
        self._size = 0
        aside = temporary(path, "rows")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            try:
                self._rows = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            finally:  # also when told to end while the disk made the file
                aside.unlink(missing_ok=True)  # without a name, it goes when the process does, however that ends

    def add(self, clip_id: str, features: Features) -> None:
        """Take one clip's features. Nothing of a clip is kept when this raises.

        Raises:
            ClipError: ``"not_finite"``: there is a NaN or an infinity, or a value too large for the type on disk.
            ValueError: a bug of the caller: the id was not planned, came already or is no UTF-8, or the width is not
                the spec's.
            StoreError: the disk is full, ...
        """
        if clip_id in self._clips:
            raise ValueError(f"clip {clip_id!r} was added to {self.path} before")
        if not clip_id or "\0" in clip_id or (self._allowed is not None and clip_id not in self._allowed):
            raise ValueError(f"clip id: expected one that is planned for {self.path}, got {clip_id!r}")
        clip_id.encode()  # half a character would only be found when the shard is closed
        if features.data.shape[1] != self.spec.dim:
            raise ValueError(
                f"features of {clip_id!r} for {self.spec.name!r}: expected rows of width {self.spec.dim}, "
                f"got shape {features.data.shape}"
            )
        if features.data.shape[0] % self.spec.views:
            raise ValueError(
                f"features of {clip_id!r} for {self.spec.name!r}: expected equally many rows for each of "
                f"{self.spec.views} views, got {features.data.shape[0]} rows"
            )
        rows = _to_disk(features, self._dtype)
        with storage_errors(self.path):
            write_all(self._rows, rows.reshape(-1).view(np.uint8).data, self._size)
        times = features.pts_seconds.astype(TIME_DTYPE)
        self._clips[clip_id] = CollectedClip(clip_id, self._size, times)
        self._size += rows.nbytes

    def commit(self, former_mark: Path | None = None) -> tuple[int, str]:
        """Write the shard file and flush it to the disk.

        Args:
            former_mark: the completion mark of the shard that may stand there: removed at the last moment before the
                new shard takes its place, so that it never vouches for the new one.

        Returns:
            The size of the file in bytes and its sha256, in hex.

        Raises:
            StoreError: the disk is full, ...
        """
        order = self._clips if self._order is None else self._order
        clips = [self._clips[clip_id] for clip_id in order if clip_id in self._clips]
        try:
            with atomic_write(self.path) as aside:
                self._compose(aside, self.spec, clips, self._rows)
                size, digest = aside.stat().st_size, sha256(aside)
                if former_mark:
                    flush(aside)  # only a shard that is safe may replace the former
                    former_mark.unlink(missing_ok=True)
        finally:
            self.abandon()
        return size, digest

    def abandon(self) -> None:
        """Forget what was collected; a shard file that stood there before still stands. Does nothing after commit."""
        if self._rows >= 0:
            os.close(self._rows)
            self._rows = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abandon()


class Reader:
    """Random access to the clips of one shard file: two reads a clip, no decoding, no seek.

    Safe in forked and in spawned processes: a read names its offset (``pread``), so nothing is shared that one
    process could move under another; pickling leaves the open file behind. Holds no HDF5 handle.

    Args:
        path: of the shard file.
        read_index: of the format.
        sha256: of the file, in hex, if it is known; see :func:`local_copy`.

    Raises:
        CorruptShardError: the file is damaged.
        StoreError: the file cannot be read.
    """

    def __init__(self, path: Path, read_index: Callable[[Path], Index], sha256: str = "") -> None:
        self.path, self._sha256 = path, sha256
        local = local_copy(path, sha256)
        self._file: _OpenFile | None = _OpenFile(local)
        self._index = read_index(local)
        self._position = {clip_id: i for i, clip_id in enumerate(self._index.clip_ids)}
        self._dtype = disk_dtype(self._index.spec)

    @property
    def spec(self) -> FeatureSpec:
        """Of the features, as the shard itself says."""
        return self._index.spec

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """In the order of the file."""
        return self._index.clip_ids

    @property
    def is_open(self) -> bool:
        """Whether it holds an open file just now."""
        return self._file is not None

    def num_rows(self, clip_id: str) -> int:
        """How many rows a view of a clip has, without reading them.

        Raises:
            StoreError: no such clip.
        """
        return int(self._index.num_rows[self._locate(clip_id)]) // self.spec.views

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of one clip, in the type that they have on disk.

        Args:
            clip_id: of the clip.
            view: which one of ``spec.views``; 0 is the plain one.

        Raises:
            StoreError: no such clip or view, or the file cannot be read.
            CorruptShardError: the file ends before the clip does.
        """
        i = self._locate(clip_id)
        if not 0 <= view < self.spec.views:
            raise StoreError(f"{self.path} holds {self.spec.views} views of each clip; there is no view {view}")
        rows = int(self._index.num_rows[i]) // self.spec.views
        data = np.empty((rows, self._index.spec.dim), self._dtype)
        pts_seconds = np.empty(rows, TIME_DTYPE)
        with storage_errors(self.path, "read"):
            file = self._file or _OpenFile(local_copy(self.path, self._sha256))
            self._fill(file, data, int(self._index.data_offsets[i]) + view * data.nbytes)
            self._fill(file, pts_seconds, int(self._index.pts_offsets[i]) + view * pts_seconds.nbytes)
        self._file = file
        return Features(data=data, pts_seconds=pts_seconds)

    def release(self) -> None:
        """Close the file; the next read opens it again. A read under way in another thread ends well."""
        self._file = None

    def _locate(self, clip_id: str) -> int:
        try:
            return self._position[clip_id]
        except KeyError:
            raise StoreError(f"{self.path} has no clip {clip_id!r}; it holds {len(self._position)} clips") from None

    def _fill(self, file: _OpenFile, array: npt.NDArray[Any], offset: int) -> None:
        """Read an array's bytes; one ``preadv`` may give less than was asked for."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(file.descriptor, [rest], offset)
            if count == 0:
                raise CorruptShardError(
                    f"{self.path} ends at byte {offset}, a clip needs {len(rest)} more: it was cut short. "
                    f"`avpipe verify --deep` names every such shard, `avpipe extract` writes them again"
                )
            rest, offset = rest[count:], offset + count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class _OpenFile:
    """A descriptor that is closed when its last user lets go of it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        with storage_errors(path, "read"):
            self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _to_disk(features: Features, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A clip's rows in the type of the disk, contiguous.

    Raises:
        ClipError: ``"not_finite"``.
    """
    if not np.isfinite(features.pts_seconds).all():
        raise ClipError("not_finite", "a row's time is NaN or infinite")
    with np.errstate(over="ignore"):  # looked at below
        rows = np.ascontiguousarray(features.data, dtype)
    if np.isfinite(rows).all():
        return rows
    bad = int((~np.isfinite(features.data)).sum())
    if bad:
        raise ClipError("not_finite", f"{bad} of {rows.size} values are NaN or infinite")
    largest = float(np.abs(features.data).max())
    raise ClipError(
        "not_finite", f"values up to {largest:.6g} do not fit {dtype.name}; extract this encoder with dtype=float32"
    )
