"""The ledger: what became of every clip that the official files name, split by split.

Two groups that train "on VATEX" hold different clips: videos vanish, downloads break, sound is lost on the way. So a
manifest says how many clips there are officially, how many of them the annotation files hold, how many are here, and
in which state; and a hash tells whether two manifests hold the same ones. The sums are checked::

    annotated = not listed + faulty + missing + on disk
    on disk   = unreadable + with audio + without
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from avpipe.pipeline.clip import SPLITS, Clip

Reason = Literal["not_listed", "faulty", "missing", "unreadable"]

MEDIA = "media"
"""Key of ``Clip.extra`` under which stands what looking into the clip's file told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A clip of the official files that the manifest does not hold.

    Attributes:
        clip_id: what it would be called.
        split: which it belongs to.
        reason: ``"not_listed"``: not among the ids asked for; ``"faulty"``: the official files make no clip of it;
            ``"missing"``: there is no media file; ``"unreadable"``: there is one, and it cannot be read.
        detail: for a person.
    """

    clip_id: str
    split: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLedger:
    """The counts of one split, in clips.

    Attributes:
        official: of the complete release; ``None``: nobody knows.
        annotated: that the annotation files name.
        not_listed: of these, not among the ids asked for (``--intersect``).
        faulty: of these, that the files make no clip of: no caption, no length ...
        missing: of these, without a media file; ``None``: nobody looked.
        on_disk: of these, with one.
        unreadable: of those on disk, whose file cannot be read, or ends before the clip starts; ``None``, as in the
            following: nobody looked into the files.
        with_audio: of those on disk, whose file has sound.
        silent: of those with sound, in whose file there is nothing to hear.
        clips: in the manifest.
        ids_sha256: of the sorted ids of the clips in the manifest: the same here and there, the same clips.
    """

    official: int | None
    annotated: int
    not_listed: int = 0
    faulty: int = 0
    missing: int | None = None
    on_disk: int | None = None
    unreadable: int | None = None
    with_audio: int | None = None
    silent: int | None = None
    clips: int
    ids_sha256: str

    def __post_init__(self) -> None:
        files = self.clips if self.missing is None or self.on_disk is None else self.missing + self.on_disk
        if (parts := self.not_listed + self.faulty + files) != self.annotated:
            raise ValueError(f"expected not_listed + faulty + missing + on_disk = {self.annotated}, got {parts}")
        if None not in (self.on_disk, self.unreadable, self.with_audio, self.silent) and not (
            self.silent <= self.with_audio <= self.on_disk - self.unreadable  # type: ignore[operator]
        ):
            raise ValueError(f"expected silent <= with_audio <= on_disk - unreadable, got {self.to_json()}")

    def to_json(self) -> dict[str, Any]:
        """Everything, as it stands in the header of a manifest."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def ledger(
    clips: Sequence[Clip],
    left_out: Sequence[LeftOut],
    official: Mapping[str, int],
    *,
    probed: bool,
    searched: bool = True,
    annotated: Mapping[str, int] | None = None,
) -> dict[str, SplitLedger]:
    """Count.

    Args:
        clips: of the manifest, with what is known of their files under ``extra["media"]``.
        left_out: of the official files, and not in the manifest.
        official: how many the complete release has, by split.
        probed: whether files were looked into.
        searched: whether there was a media folder to look for files in.
        annotated: how many clips the annotation files name, by split, counted before anything was sorted out; the sums
            are held against it. ``None``: nobody counted.

    Raises:
        ValueError: a clip was lost, or counted twice.

    Returns:
        The splits of which there is any clip, or which the release has.
    """
    table = {}
    for split in SPLITS:
        here = [clip for clip in clips if clip.split == split]
        gone = Counter(each.reason for each in left_out if each.split == split)
        if not here and not gone and split not in official:
            continue
        files = [clip.extra.get(MEDIA, {}) for clip in here]
        absent = sum(bool(file.get("missing")) for file in files)
        unreadable = gone["unreadable"] + sum("unreadable" in file for file in files)
        table[split] = SplitLedger(
            official=official.get(split),
            annotated=(annotated or {}).get(split, len(here) + gone.total()),
            not_listed=gone["not_listed"],
            faulty=gone["faulty"],
            missing=gone["missing"] + absent if searched else None,
            on_disk=len(here) - absent + gone["unreadable"] if searched else None,
            unreadable=unreadable if probed else None,
            with_audio=sum(bool(file.get("has_audio")) for file in files) if probed else None,
            silent=sum(bool(file.get("is_silent")) for file in files) if probed else None,
            clips=len(here),
            ids_sha256=hashlib.sha256("\n".join(sorted(clip.clip_id for clip in here)).encode("ascii")).hexdigest(),
        )
    return table


def rows(clips: Iterable[Clip], left_out: Iterable[LeftOut]) -> list[tuple[str, str, str, str, str]]:
    """What is wrong, clip by clip: id, split, reason, whether the manifest holds it, detail.

    Clips that were not asked for are left out of this as well.
    """
    found: list[tuple[str, str, str, str, str]] = [
        (each.clip_id, each.split, each.reason, "no", each.detail) for each in left_out if each.reason != "not_listed"
    ]
    for clip in clips:
        file = clip.extra.get(MEDIA, {})
        if file.get("missing"):
            found.append((clip.clip_id, clip.split, "missing", "yes", ""))
        elif "unreadable" in file:
            found.append((clip.clip_id, clip.split, "unreadable", "yes", str(file["unreadable"])))
    return found


def as_csv(found: Iterable[tuple[str, str, str, str, str]]) -> str:
    """The rows as a file that a person sorts and a script greps."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("clip_id", "split", "reason", "in_manifest", "detail"))
    lines.writerows(found)
    return text.getvalue()


COLUMNS = ("official", "annotated", "not_listed", "faulty", "missing", "on_disk", "unreadable", "with_audio", "silent")


def shown(table: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The ledger as a table of texts, its heading first. Columns in which nothing stands are left out; ``-`` is
    "nobody knows".
    """
    wanted = [
        name for name in COLUMNS if name in ("annotated", "on_disk") or any(row.get(name) for row in table.values())
    ]
    # Where files were looked into, nothing found is worth a 0.
    if any(row.get("with_audio") is not None for row in table.values()):
        wanted = [
            name for name in COLUMNS if name in wanted or name in ("missing", "unreadable", "with_audio", "silent")
        ]
    heading = ["", *(name.replace("_", " ") for name in wanted), "in manifest", "ids"]
    body = [
        [
            split,
            *("-" if row.get(name) is None else f"{row[name]:,}" for name in wanted),
            f"{row['clips']:,}",
            str(row["ids_sha256"])[:12],
        ]
        for split, row in table.items()
    ]
    return [heading, *body]
