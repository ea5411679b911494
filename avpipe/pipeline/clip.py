"""A clip: one row of a manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "val", "test")

_CLIP_ID = re.compile(r"[A-Za-z0-9_+=,@-][A-Za-z0-9_+=,@.-]{0,199}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip of a dataset: a whole media file, or the part ``[start_seconds, stop_seconds)`` of one.

    Attributes:
        clip_id: unique in its dataset and safe as a file name: letters, digits and ``_ + = , @ - .``, no leading dot,
            at most 200 characters. Never the bare YouTube id where one video gives several clips.
        dataset: name of the dataset.
        path: of the media file, relative to a media root that is given at run time; ``/`` as separator.
        split: ``"train"``, ``"val"`` or ``"test"``.
        captions: reference captions, without leading or trailing space; may be empty (an unannotated clip).
        start_seconds: where the clip starts in its file.
        stop_seconds: where it stops (excluded); ``None`` means the end of the file.
        extra: whatever else the dataset says (category, facts of the synthetic grammar, ...); JSON-like.

    Raises:
        ValueError: a field is not as described; the message says expected and got.
    """

    clip_id: str
    dataset: str
    path: str
    split: str
    captions: tuple[str, ...] = ()
    start_seconds: float = 0.0
    stop_seconds: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("clip_id", "dataset", "path", "split"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key}: expected a string, got {getattr(self, key)!r}")  # noqa: TRY004
        if not _CLIP_ID.fullmatch(self.clip_id):
            raise ValueError(
                f"clip_id: expected letters, digits and '_+=,@-.' (no leading dot, 1 to 200 of them), "
                f"got {self.clip_id!r}"
            )
        if not self.dataset:
            raise ValueError(f"dataset of clip {self.clip_id!r}: expected a name, got an empty string")
        if self.split not in SPLITS:
            raise ValueError(f"split of clip {self.clip_id!r}: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        parts = self.path.split("/")
        if not self.path or self.path.startswith("/") or ".." in parts or "\0" in self.path:
            raise ValueError(f"path of clip {self.clip_id!r}: expected a path below the media root, got {self.path!r}")
        if not (math.isfinite(self.start_seconds) and self.start_seconds >= 0):
            raise ValueError(f"start_seconds of clip {self.clip_id!r}: expected >= 0, got {self.start_seconds}")
        if self.stop_seconds is not None and not (
            math.isfinite(self.stop_seconds) and self.stop_seconds > self.start_seconds
        ):
            raise ValueError(
                f"stop_seconds of clip {self.clip_id!r}: expected more than start_seconds "
                f"({self.start_seconds}), got {self.stop_seconds}"
            )
        for caption in self.captions:
            if not isinstance(caption, str) or not caption or caption != caption.strip():
                raise ValueError(
                    f"captions of clip {self.clip_id!r}: expected non-empty strings without surrounding space, "
                    f"got {caption!r}"
                )

    def to_row(self) -> dict[str, Any]:
        """The clip as a JSON-ready dict; fields at their defaults are left out."""
        row: dict[str, Any] = {
            "clip_id": self.clip_id,
            "dataset": self.dataset,
            "path": self.path,
            "split": self.split,
        }
        if self.start_seconds:
            row["start_seconds"] = self.start_seconds
        if self.stop_seconds is not None:
            row["stop_seconds"] = self.stop_seconds
        if self.captions:
            row["captions"] = list(self.captions)
        if self.extra:
            row["extra"] = dict(self.extra)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Clip:
        """The inverse of :meth:`to_row`.

        Raises:
            ValueError: a key is missing or unknown, or a field is not as described.
        """
        captions = row.get("captions", ())
        if not isinstance(captions, list | tuple):  # a string would become its letters
            raise ValueError(f"captions of {row.get('clip_id')!r}: expected a list, got {captions!r}")  # noqa: TRY004
        try:
            return cls(**{**row, "captions": tuple(captions)})
        except TypeError as error:
            raise ValueError(f"not a clip: {error}; got the keys {sorted(row)}") from None
