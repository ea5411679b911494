"""Shards of text: one JSON object a line, for people, ``grep`` and ``jq`` as much as for programs.

::

    {"avpipe": {"spec": {...}, "fingerprint": "..."}}
    {"clip_id": "a", "segments": [{"start_seconds": 0.0, "stop_seconds": 2.1, "text": "hello"}]}
    ...

The lines are pure ASCII (``\\u00e9`` for what is not), so that nothing depends on a locale, and no character within a
text can be taken for the end of a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from avpipe.pipeline.errors import CorruptShardError, StoreError
from avpipe.pipeline.features import FeatureSpec, Segment, Segments
from avpipe.pipeline.files import atomic_write, flush, sha256, storage_errors, sweep
from avpipe.pipeline.store._cache import local_copy

SUFFIX = ".jsonl"


class TextWriter:
    """Writes one shard file of text: whole when the ``with`` block ends well, absent when it raises.

    Args:
        path: of the shard file.
        spec: of the features.
        order: the clip ids that may come, in the order that they shall have in the file. By default the order in
            which they come.
    """

    def __init__(self, path: Path, spec: FeatureSpec, order: Sequence[str] | None = None) -> None:
        self.path, self.spec, self._order = path, spec, order
        self._clips: dict[str, Segments] = {}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)

    def add(self, clip_id: str, segments: Segments) -> None:
        """Take the text of one clip.

        Raises:
            ValueError: a bug of the caller: the id was not planned, or came already.
        """
        if clip_id in self._clips or (self._order is not None and clip_id not in self._order):
            raise ValueError(f"clip id: expected one that is planned for {self.path} and new, got {clip_id!r}")
        self._clips[clip_id] = segments

    def commit(self, former_mark: Path | None = None) -> tuple[int, str]:
        """Write the shard file and flush it to the disk.

        Args:
            former_mark: of the shard that stands there; removed before the new one takes its place.

        Returns:
            The size of the file in bytes and its sha256, in hex.

        Raises:
            StoreError: the disk is full, ...
        """
        head = {"avpipe": {"spec": self.spec.to_json(), "fingerprint": self.spec.fingerprint}}
        ids = self._clips if self._order is None else [clip_id for clip_id in self._order if clip_id in self._clips]
        lines = [json.dumps(head, sort_keys=True)]
        for clip_id in ids:
            segments = [segment.to_json() for segment in self._clips[clip_id].items]
            lines.append(json.dumps({"clip_id": clip_id, "segments": segments}, allow_nan=False))
        with atomic_write(self.path) as aside:
            aside.write_text("\n".join(lines) + "\n", encoding="ascii")
            size, digest = aside.stat().st_size, sha256(aside)
            if former_mark is not None:
                flush(aside)  # only a shard that is safe may replace the former
                former_mark.unlink(missing_ok=True)
        return size, digest

    def abandon(self) -> None:
        """Forget what was collected; a shard file that stood there before still stands."""
        self._clips.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abandon()


class TextReader:
    """The text of the clips of one shard file. Reads all of it when it is made.

    Args:
        path: of the shard file.
        sha256: of the file, in hex, if it is known; see :func:`local_copy`.

    Raises:
        CorruptShardError: the file is damaged.
        StoreError: the file cannot be read.
    """

    def __init__(self, path: Path, sha256: str = "") -> None:
        self.path = path
        with storage_errors(path, "read"):
            content = local_copy(path, sha256).read_bytes()
        try:
            head, *lines = (json.loads(line) for line in content.decode("ascii").splitlines())
            self.spec = FeatureSpec.from_json(head["avpipe"]["spec"])
            self._segments = {
                str(line["clip_id"]): Segments(tuple(Segment.from_json(row) for row in line["segments"]))
                for line in lines
            }
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptShardError(
                f"{path}: not a whole shard of text ({error}). `avpipe verify --deep` names every such shard, "
                f"`avpipe extract` writes them again"
            ) from None

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._segments)

    def segments(self, clip_id: str) -> Segments:
        """The text of one clip.

        Raises:
            StoreError: no such clip.
        """
        try:
            return self._segments[clip_id]
        except KeyError:
            raise StoreError(f"{self.path} has no clip {clip_id!r}; it holds {len(self._segments)} clips") from None
