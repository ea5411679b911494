"""HDF5 shards: all rows of all clips in one contiguous dataset. No chunks, no compression.

::

    data         (rows, dim)      float16 or float32: the rows of the clips one after the other; page-aligned
    pts_seconds  (rows,)          float64: the middle of what each row saw, from its clip's start
    offsets      (clips + 1,)     int64: clip i has the rows [offsets[i], offsets[i + 1])
    clip_ids     (clips,)         UTF-8 of fixed length
    attributes   spec (JSON), fingerprint

Any HDF5 tool reads it. avpipe reads the small datasets through h5py once, closes the file, and from then on reads
bytes at offsets: an HDF5 handle that crosses a fork gives wrong data without a word (pytorch/pytorch#11929).

The bytes depend on the features alone: no time stamps, one format version (HDF5 1.8), one order of writing.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avpipe.pipeline.errors import CorruptShardError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.files import copy_range, write_all
from avpipe.pipeline.store._rows import TIME_DTYPE, CollectedClip, Index, disk_dtype

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

SUFFIX = ".h5"
_PAGE_BYTES = 4096


def compose(path: Path, spec: FeatureSpec, clips: Sequence[CollectedClip], rows: int) -> None:
    """Write a shard file.

    HDF5 lays the file out, but every byte is written by plain writes, the rows block by block: a shard of many GB needs
    no memory, and a full disk is an error like any other. (HDF5 2.0 crashes the process when
    one of its own writes fails.)

    Args:
        path: of the file to make.
        spec: of the features.
        clips: in the order that they shall have.
        rows: descriptor of the temporary file that holds their rows.

    Raises:
        OSError: the disk is full, ...
    """
    dtype = disk_dtype(spec)
    layout = _Layout()
    offset = _lay_out(layout, spec, dtype, clips)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for start, content in layout.writes:
            write_all(descriptor, memoryview(content), start)
        for clip in clips:
            size = len(clip.pts_seconds) * spec.dim * dtype.itemsize
            copy_range(rows, clip.offset, descriptor, offset, size)
            offset += size
        os.ftruncate(descriptor, layout.size)
    finally:
        os.close(descriptor)


def read_index(path: Path) -> Index:
    """Where each clip's bytes lie.

    Raises:
        CorruptShardError: the file is damaged, or is no avpipe shard.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:  # shards never change; some network disks cannot lock
            spec = FeatureSpec.from_json(json.loads(file.attrs["spec"]))
            offsets = file["offsets"][()].astype(np.int64)
            clip_ids = tuple(str(clip_id) for clip_id in file["clip_ids"].asstr()[()])
            data, pts_seconds = file["data"], file["pts_seconds"]
            _expect(data, disk_dtype(spec), (int(offsets[-1]), spec.dim))
            _expect(pts_seconds, TIME_DTYPE, (int(offsets[-1]),))
            _expect(file["clip_ids"], file["clip_ids"].dtype, (len(offsets) - 1,))
            # An empty dataset lies nowhere.
            data_start, pts_start = data.id.get_offset() or 0, pts_seconds.id.get_offset() or 0
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise CorruptShardError(
            f"{path}: not a whole HDF5 shard ({error}). `avpipe verify --deep` names every such shard, "
            f"`avpipe extract` writes them again"
        ) from None
    row_bytes = spec.dim * np.dtype(spec.dtype).itemsize
    return Index(
        spec=spec,
        clip_ids=clip_ids,
        num_rows=np.diff(offsets),
        data_offsets=data_start + offsets[:-1] * row_bytes,
        pts_offsets=pts_start + offsets[:-1] * TIME_DTYPE.itemsize,
    )


def _expect(dataset: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dataset.dtype != dtype or dataset.shape != shape or dataset.chunks is not None:
        got = f"{dataset.dtype}{list(dataset.shape)}{' in chunks' if dataset.chunks else ''}"
        raise ValueError(f"{dataset.name}: expected contiguous {dtype}{list(shape)}, got {got}")


class _Layout(io.RawIOBase):
    """Stands in for the file while HDF5 lays it out: takes down the writes, all but those of the rows.

    Attributes:
        writes: offset and content, in the order in which they are to be made.
        size: of the whole file.
    """

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, content: Buffer) -> int:
        data = bytes(content)
        self.writes.append((self._position, data))
        self._position += len(data)
        self.size = max(self.size, self._position)
        return len(data)

    def readinto(self, target: WriteableBuffer) -> int:
        """HDF5 reads back what it has put aside: later writes lie over earlier ones, and what was not written is 0."""
        view = memoryview(target).cast("B")
        first, last = self._position, self._position + len(view)
        view[:] = bytes(len(view))
        for start, content in self.writes:
            low, high = max(start, first), min(start + len(content), last)
            if low < high:
                view[low - first : high - first] = content[low - start : high - start]
        self._position = last
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size


def _lay_out(file_like: _Layout, spec: FeatureSpec, dtype: np.dtype[Any], clips: Sequence[CollectedClip]) -> int:
    """Write everything but the rows; returns the offset at which these belong."""
    import h5py

    ids = [clip.clip_id.encode() for clip in clips]
    ends = np.cumsum([0, *(len(clip.pts_seconds) for clip in clips)], dtype="<i8")
    times = np.concatenate([np.empty(0, TIME_DTYPE), *(clip.pts_seconds for clip in clips)])
    with h5py.File(
        file_like,
        "w",
        libver=("v108", "v108"),
        track_order=False,
        alignment_threshold=_PAGE_BYTES,
        alignment_interval=_PAGE_BYTES,
    ) as file:
        for name, text in (("fingerprint", spec.fingerprint), ("spec", json.dumps(spec.to_json(), sort_keys=True))):
            content = text.encode("ascii")  # of fixed length: h5py would put a str on a heap of its own
            file.attrs.create(name, np.array(content, h5py.string_dtype("ascii", len(content))))
        file.create_dataset("offsets", data=ends, track_times=False)
        longest = max(map(len, ids), default=1)
        file.create_dataset("clip_ids", data=np.array(ids, h5py.string_dtype("utf-8", longest)), track_times=False)
        file.create_dataset("pts_seconds", data=times, track_times=False)
        # The high-level call cannot ask for space without filling it.
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        space = h5py.h5s.create_simple((int(ends[-1]), spec.dim))
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.py_create(dtype), space, layout)
        return int(data.get_offset() or 0)
