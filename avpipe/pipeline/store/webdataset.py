"""WebDataset shards: a tar file that the plain ``webdataset`` package streams, with an index for random access.

::

    __avpipe__         JSON: the spec, its fingerprint, and for each clip where its bytes lie
    <key>.json         {"clip_id": ..., "fingerprint": ...}
    <key>.npy          (T, dim) float16 or float32
    <key>.pts.npy      (T,) float64: the middle of what each row saw, in seconds from the clip's start
    ...

The key is the clip id with everything but letters, digits and ``_ + = , @ -`` written as ``%XX``: WebDataset takes all
behind a name's first dot for the extension, so that ids with dots would be mixed up. The escape is reversible, hence
no two ids share a key; the id itself stands in the JSON member. Readers of WebDataset skip the first member, which has
no extension. It stands in front, so that the index is found without reading the file.

The bytes depend on the features alone: every member has the same owner, mode and time.

::

    for sample in webdataset.WebDataset("00000.tar", shardshuffle=False).decode():
        sample["json"]["clip_id"], sample["npy"], sample["pts.npy"]
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from avpipe.pipeline.errors import CorruptShardError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.files import copy_range, write_all
from avpipe.pipeline.store._rows import TIME_DTYPE, CollectedClip, Index, disk_dtype

SUFFIX = ".tar"
INDEX_MEMBER = "__avpipe__"


def key_of(clip_id: str) -> str:
    """The WebDataset key of a clip: its id, escaped so that it has no dot. Undone by :func:`clip_id_of`."""
    return quote(clip_id, safe="+=,@").replace(".", "%2E").replace("~", "%7E")


def clip_id_of(key: str) -> str:
    """The clip id of a WebDataset key."""
    return unquote(key)


def compose(path: Path, spec: FeatureSpec, clips: Sequence[CollectedClip], rows: int) -> None:
    """Write a shard file.

    Args:
        path: of the file to make.
        spec: of the features.
        clips: in the order that they shall have.
        rows: descriptor of the temporary file that holds their rows.

    Raises:
        OSError: the disk is full, ...
    """
    samples = [_Sample(clip, spec) for clip in clips]
    offset, places = 0, []
    for sample in samples:
        places.append(sample.places(offset))
        offset += sample.size
    head = json.dumps({"spec": spec.to_json(), "fingerprint": spec.fingerprint, "clips": places}, sort_keys=True)
    first = _member(INDEX_MEMBER, head.encode("ascii"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, memoryview(first), 0)
        offset = len(first)
        for sample in samples:
            sample.write(descriptor, offset, rows)
            offset += sample.size
        end = -(-(offset + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        write_all(descriptor, memoryview(bytes(end - offset)), offset)
    finally:
        os.close(descriptor)


def read_index(path: Path) -> Index:
    """Where each clip's bytes lie.

    Raises:
        CorruptShardError: the file is damaged, or is no avpipe shard.
    """
    try:
        with path.open("rb") as file:
            member = _index_member(file.read(tarfile.BLOCKSIZE))
            head = json.loads(file.read(member.size))
        spec = FeatureSpec.from_json(head["spec"])
        # (clips, 3): rows, offset of the data, offset of the times; from the end of the index
        places = np.array([place[1:] for place in head["clips"]], np.int64).reshape(-1, 3)
        clip_ids = tuple(str(place[0]) for place in head["clips"])
    except (OSError, tarfile.TarError, KeyError, ValueError, TypeError, IndexError) as error:
        raise CorruptShardError(
            f"{path}: not a whole WebDataset shard of avpipe ({error}). `avpipe verify --deep` names every such shard, "
            f"`avpipe extract` writes them again"
        ) from None
    start = tarfile.BLOCKSIZE + _padded(member.size)
    return Index(
        spec=spec,
        clip_ids=clip_ids,
        num_rows=places[:, 0],
        data_offsets=start + places[:, 1],
        pts_offsets=start + places[:, 2],
    )


def _index_member(header: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    if member.name != INDEX_MEMBER:
        raise ValueError(f"its first member is {member.name!r}, expected {INDEX_MEMBER!r}")
    return member


class _Sample:
    """The three members of one clip."""

    def __init__(self, clip: CollectedClip, spec: FeatureSpec) -> None:
        self.clip = clip
        key, num_rows, dtype = key_of(clip.clip_id), len(clip.pts_seconds), disk_dtype(spec)
        self.data_size = num_rows * spec.dim * dtype.itemsize
        about = json.dumps({"clip_id": clip.clip_id, "fingerprint": spec.fingerprint}).encode("ascii")
        npy_head = _npy_head(dtype, (num_rows, spec.dim))
        # What stands before the rows, and what behind them.
        self.before = _member(f"{key}.json", about) + _header(f"{key}.npy", len(npy_head) + self.data_size) + npy_head
        padding = bytes(_padded(len(npy_head) + self.data_size) - len(npy_head) - self.data_size)
        times_head, times = _npy_head(TIME_DTYPE, (num_rows,)), clip.pts_seconds.tobytes()
        header = _header(f"{key}.pts.npy", len(times_head) + len(times))
        self.times_start = len(self.before) + self.data_size + len(padding) + len(header) + len(times_head)
        self.after = padding + _member(f"{key}.pts.npy", times_head + times)
        self.size = len(self.before) + self.data_size + len(self.after)

    def places(self, offset: int) -> list[str | int]:
        """The clip's row of the index, if its first member starts at ``offset``."""
        rows = len(self.clip.pts_seconds)
        return [self.clip.clip_id, rows, offset + len(self.before), offset + self.times_start]

    def write(self, descriptor: int, offset: int, rows: int) -> None:
        write_all(descriptor, memoryview(self.before), offset)
        copy_range(rows, self.clip.offset, descriptor, offset + len(self.before), self.data_size)
        write_all(descriptor, memoryview(self.after), offset + len(self.before) + self.data_size)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)  # uid, gid and mtime are 0, mode is 0644
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def _member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(_padded(len(content)) - len(content))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return head.getvalue()
