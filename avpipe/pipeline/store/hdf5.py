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

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avpipe.pipeline.errors import CorruptShardError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.files import copy_range
from avpipe.pipeline.store._rows import TIME_DTYPE, CollectedClip, Index, disk_dtype

SUFFIX = ".h5"
_PAGE_BYTES = 4096


def compose(path: Path, spec: FeatureSpec, clips: Sequence[CollectedClip], rows: int) -> None:
    """Write a shard file.

    The dataset of rows is laid out by HDF5 but filled by plain writes, block by block, so that a shard of many GB needs
    no memory, and a full disk is told by the operating system in its own words.

    Args:
        path: of the file to make.
        spec: of the features.
        clips: in the order that they shall have.
        rows: descriptor of the temporary file that holds their rows.

    Raises:
        OSError: the disk is full, ...
    """
    dtype = disk_dtype(spec)
    lengths = [len(clip.pts_seconds) for clip in clips]
    with _plain_errors():
        offset = _lay_out(path, spec, dtype, clips)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for clip, length in zip(clips, lengths, strict=True):
            size = length * spec.dim * dtype.itemsize
            copy_range(rows, clip.offset, descriptor, offset, size)
            offset += size
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
            f"{path}: not a whole HDF5 shard ({error}). `avpipe verify` names every such shard, "
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


def _lay_out(path: Path, spec: FeatureSpec, dtype: np.dtype[Any], clips: Sequence[CollectedClip]) -> int:
    """Make the file with everything but the rows; returns the offset at which these belong."""
    import h5py

    ids = [clip.clip_id.encode() for clip in clips]
    ends = np.cumsum([0, *(len(clip.pts_seconds) for clip in clips)], dtype="<i8")
    times = np.concatenate([np.empty(0, TIME_DTYPE), *(clip.pts_seconds for clip in clips)])
    with h5py.File(
        path,
        "w",
        libver=("v108", "v108"),
        locking=False,
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


@contextmanager
def _plain_errors() -> Iterator[None]:
    """HDF5 hides the operating system's error number in its message ("errno = 28"): get it out."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
