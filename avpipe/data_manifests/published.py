"""From the official files of a published dataset to clips: find their media, look into them, tidy, keep the ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avpipe.data_manifests.annotations import tidy
from avpipe.data_manifests.dataset import Prepared
from avpipe.data_manifests.ledger import MEDIA, LeftOut
from avpipe.data_manifests.media_files import (
    Holds,
    Match,
    candidates,
    is_media,
    paths_below,
    resolve,
    settle_shared,
)
from avpipe.data_manifests.naming import hashed_id, safe_id
from avpipe.data_manifests.official import NEXT_CLIP, Entry, Official, PublishedConfig
from avpipe.data_manifests.probe import Probe
from avpipe.data_manifests.subset import Subset
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.errors import DataError

Look = Callable[[Path, Sequence[str]], Mapping[str, Probe] | None]
"""``(media root, paths) -> what is in each``; ``None``: nobody looks."""

_SHOWN = 5
_UNKNOWN = {
    "either": "unknown: {path} has no length, which tells the whole video from the clip: say bare_names=source or clip",
    "nobody": "unknown: several clips would be in {path}, and it ends before the last of them does",
}


def draw(
    dataset: str,
    official: Official,
    config: PublishedConfig,
    *,
    media: Path | None,
    media_root: Path,
    look: Look,
    subset: Subset | None = None,
) -> Prepared:
    """Make the clips.

    Args:
        dataset: its name.
        official: what its files say.
        config: the options that every published dataset has.
        media: folder of the media; ``None``: there is none (yet).
        media_root: what paths are relative to.
        look: looks into media files.
        subset: the clips that are wanted; ``None``: all.

    Raises:
        DataError: no media folder was given or nothing in it fits, or what bare YouTube ids stand for cannot be told.
    """
    entries, left = _once_each(official.entries)
    ids = _ids(entries)
    wanted = _wanted(entries, ids, subset, left)
    bare: Holds = "source" if official.segments else "either"
    if config.bare_names != "auto":
        bare = "source" if config.bare_names == "source" else "clip"
    files = candidates(wanted, paths_below(media), bare) if media else [()] * len(wanted)
    if media and wanted and not any(files):
        raise DataError(_nothing_fits(dataset, media, wanted))
    probes = look(media_root, sorted({found.path for several in files for found in several})) if media else {}
    seconds = {path: probe.duration_seconds for path, probe in (probes or {}).items() if probe.duration_seconds}
    matches = settle_shared(wanted, [_first_readable(several, probes) for several in files], seconds)
    _check_told(dataset, matches, probes)
    words = _Words()
    clips = []
    for entry, found in zip(wanted, matches, strict=True):
        out = LeftOut(clip_id=ids[entry.source_id], split=entry.split, reason="missing")
        captions = tuple(filter(None, map(tidy, entry.captions)))
        if not captions:
            left.append(replace(out, reason="faulty", detail="no caption"))
        elif found is None and config.include != "all":
            left.append(out)
        else:
            file = found or _to_come(entry, segments=official.segments)
            clip = _clip(dataset, out.clip_id, entry, file, probes, captions, is_here=found is not None)
            unreadable = clip.extra.get(MEDIA, {}).get("unreadable", "")
            if unreadable and config.include == "readable":
                left.append(replace(out, reason="unreadable", detail=unreadable))
            else:
                clips.append(clip)
                words.count(entry.captions, captions)
    _unlink(clips)
    notes = [*official.notes, *words.notes(), *(_media_notes(clips, files, matches) if media else ()), *_leaks(clips)]
    return Prepared(
        clips=tuple(clips),
        media_root=media_root,
        notes=tuple(notes),
        left_out=tuple(left),
        official_clips=dict(official.counts),
        annotated=Counter(entry.split for entry in official.entries),
    )


def _first_readable(several: Sequence[Match], probes: Mapping[str, Probe] | None) -> Match | None:
    """The likeliest file of a clip that can be read; the likeliest, where none can, or nobody looked."""
    readable = (found for found in several if probes and probes[found.path].is_readable)
    return next(readable, several[0] if several else None)


def _unlink(clips: list[Clip]) -> None:
    """Drop links to a next clip that the manifest does not hold."""
    held = {clip.clip_id for clip in clips}
    for index, clip in enumerate(clips):
        if clip.extra.get(NEXT_CLIP, clip.clip_id) not in held:
            extra = {key: value for key, value in clip.extra.items() if key != NEXT_CLIP}
            clips[index] = replace(clip, extra=extra)


def _wanted(
    entries: Sequence[Entry], ids: Mapping[str, str], subset: Subset | None, left: list[LeftOut]
) -> list[Entry]:
    """The official clips to look for; the others are added to ``left``.

    Raises:
        DataError: the subset names none of them.
    """
    wanted: list[Entry] = []
    for entry in entries:
        out = LeftOut(clip_id=ids[entry.source_id], split=entry.split, reason="not_listed")
        if subset is not None and not subset.holds(out.clip_id, entry):
            left.append(out)
        elif entry.fault:
            left.append(replace(out, reason="faulty", detail=entry.fault))
        else:
            wanted.append(entry)
    if subset is not None:
        subset.check()
    return wanted


def _clip(
    dataset: str,
    clip_id: str,
    entry: Entry,
    found: Match,
    probes: Mapping[str, Probe] | None,
    captions: tuple[str, ...],
    *,
    is_here: bool,
) -> Clip:
    probe = (probes or {}).get(found.path) if is_here else None
    holds = resolve(found.holds, entry.span, probe.duration_seconds if probe else None)
    unknown = ""
    if is_here and holds in ("either", "nobody"):  # a file that takes its place is not to be cut wrongly
        unknown = _UNKNOWN[holds].format(path=found.path)
        found = _to_come(entry, segments=False)
    start, stop = entry.span if entry.span and holds == "source" else (0.0, None)
    extra: dict[str, Any] = {} if clip_id == entry.source_id else {"id": entry.source_id}
    if entry.video:
        extra["video"] = entry.video
    if entry.span and holds != "source":
        extra["source_seconds"] = list(entry.span)
    extra |= entry.extra
    if unknown and (probe is None or probe.is_readable):
        extra[MEDIA] = {"unreadable": unknown}
    elif probe:
        extra[MEDIA] = facts(probe, start, stop)
    elif not is_here:
        extra[MEDIA] = {"missing": True}
    return Clip(
        clip_id=clip_id,
        dataset=dataset,
        path=found.path,
        split=entry.split,
        captions=captions,
        start_seconds=start,
        stop_seconds=stop,
        extra=extra,
    )


def facts(probe: Probe, start_seconds: float, stop_seconds: float | None) -> dict[str, Any]:
    """What looking into a file tells of a clip in it, as it stands in the manifest.

    ``duration_seconds`` is the clip's, ``file_seconds`` that of the file which it is a part of. Everything else is of
    the whole file: of a part of a longer video, ``has_audio`` and ``is_silent`` say less.
    """
    if not probe.is_readable:
        return {"unreadable": f"{probe.error_type}: {probe.error_message}"}
    told: dict[str, Any] = {}
    if probe.duration_seconds is not None:
        if probe.duration_seconds <= start_seconds:
            return {"unreadable": f"empty: the clip starts at {start_seconds:g} s, the file ends at "
                                  f"{probe.duration_seconds:.3f} s"}  # fmt: skip
        end = probe.duration_seconds if stop_seconds is None else min(stop_seconds, probe.duration_seconds)
        told["duration_seconds"] = round(end - start_seconds, 3)
        if start_seconds or stop_seconds is not None:
            told["file_seconds"] = round(probe.duration_seconds, 3)
    told["has_video"], told["has_audio"] = probe.has_video, probe.has_audio
    if probe.audio is not None and probe.has_audio:
        told |= {"sample_rate": probe.audio.sample_rate, "channels": probe.audio.channels}
    if probe.is_silent is not None:
        told["is_silent"] = probe.is_silent
    return told


def _to_come(entry: Entry, *, segments: bool) -> Match:
    """The file that a clip is looked for in that is not there yet."""
    if segments:
        return Match(f"{entry.video}.mp4", "source")
    return Match(entry.source_id if is_media(entry.source_id) else f"{entry.source_id}.mp4", "clip")


def _once_each(entries: Sequence[Entry]) -> tuple[list[Entry], list[LeftOut]]:
    """The entries, of which none is in two splits: what is in the test split must not be learnt from."""
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        splits[entry.source_id].add(entry.split)
    kept: list[Entry] = []
    left: list[LeftOut] = []
    seen: set[str] = set()
    for entry in entries:
        own = max(splits[entry.source_id], key=SPLITS.index)
        if own == entry.split and entry.source_id not in seen:
            kept.append(entry)
            seen.add(entry.source_id)
        else:
            why = f"it is in the {own} split" if own != entry.split else "it is there already"
            left.append(LeftOut(clip_id=safe_id(entry.source_id), split=entry.split, reason="faulty", detail=why))
    return kept, left


def _ids(entries: Sequence[Entry]) -> dict[str, str]:
    """A clip id for each official id; official ids that differ only in what is unsafe in file names stay apart."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for entry in entries:
        safe = safe_id(entry.source_id)
        if safe in taken:
            safe = hashed_id(safe, entry.source_id)
        taken.add(safe)
        ids[entry.source_id] = safe
    return ids


class _Words:
    """Counts what was not tidy in the captions of the manifest."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def count(self, official: Sequence[str], kept: Sequence[str]) -> None:
        """Note the captions of a clip, as they are in the files and in the manifest."""
        self._seen["tidied"] += sum(tidy(caption) not in ("", caption) for caption in official)
        self._seen["empty"] += len(official) - len(kept)
        self._seen["twice"] += len(kept) - len(set(kept))
        self._seen["foreign"] += sum(not caption.isascii() for caption in kept)

    def notes(self) -> list[str]:
        said = {
            "tidied": "captions with line breaks, surplus or surrounding blanks, made single blanks",
            "empty": "empty captions, left out",
            "twice": "captions that say word for word what another one of their clip says, kept",
            "foreign": "captions with letters beyond ASCII, kept",
        }
        return [f"{words}: {self._seen[what]:,}" for what, words in said.items() if self._seen[what]]


def _media_notes(clips: Sequence[Clip], files: Sequence[Sequence[Match]], matches: Sequence[Match | None]) -> list[str]:
    notes = []
    several = sum(len(each) > 1 for each in files)
    if several:
        notes.append(f"clips with several files, of which the likeliest that can be read was taken: {several:,}")
    if disputed := sum(bool(each) and found is None for each, found in zip(files, matches, strict=True)):
        notes.append(f"clips whose file another clip has as much claim to, given to none: {disputed:,}")
    if cut := [clip.path for clip in clips if clip.stop_seconds is not None]:
        notes.append(f"clips that are cut out of longer files: {len(cut):,}, of {len(set(cut)):,} files")
    if odd := [clip.clip_id for clip in clips if _is_odd(clip)]:
        shown = ", ".join(odd[:_SHOWN]) + (", ..." if len(odd) > _SHOWN else "")
        notes.append(f"clips whose file is much shorter or longer than they should be: {len(odd):,} ({shown})")
    return notes


def _is_odd(clip: Clip) -> bool:
    """Whether what is on disk of a clip is far from its official length: another clip's file, or a whole video."""
    start, stop = clip.extra.get("source_seconds", (clip.start_seconds, clip.stop_seconds))
    seconds = clip.extra.get(MEDIA, {}).get("duration_seconds")
    return stop is not None and seconds is not None and abs(seconds - (stop - start)) > max(2.0, (stop - start) / 3)


def _leaks(clips: Sequence[Clip]) -> list[str]:
    """Source videos of which parts are in different splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if video := clip.extra.get("video"):
            splits[video].add(clip.split)
    across = sorted(video for video, its in splits.items() if len(its) > 1)
    if not across:
        return []
    shown = ", ".join(across[:_SHOWN]) + (", ..." if len(across) > _SHOWN else "")
    return [f"source videos with clips in more than one split: {len(across):,} ({shown})"]


def _check_told(dataset: str, matches: Sequence[Match | None], probes: Mapping[str, Probe] | None) -> None:
    """Raise where it cannot be told what a file named by a bare id holds."""
    open_ones = [each.path for each in matches if each and each.holds == "either"]
    if probes is None and open_ones:
        raise DataError(
            f"{dataset}: there are files that are named by a YouTube id alone, {len(open_ones):,} of them "
            f"({', '.join(open_ones[:3])}, ...); only their duration tells whether they hold whole videos or clips. "
            f"Leave --no-probe away (where media are remote nobody looks into them), or say it: bare_names=source or "
            f"bare_names=clip"
        )


def _nothing_fits(dataset: str, media: Path, entries: Sequence[Entry]) -> str:
    names = [f"{name}.mp4" if not is_media(name) else name for name in _examples(entries)]
    there = [path for path in sorted(paths_below(media)) if is_media(path)][:3]
    return (
        f"--media: none of the {len(entries):,} clips of {dataset} has a file below {media}. Looked for names like "
        f"{', '.join(names)}, in any sub-folder and container; there is {', '.join(there) or 'no video or sound'}"
    )


def _examples(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    first = entries[0]
    return list(dict.fromkeys(name for name in (first.source_id, *first.names, first.video) if name))[:4]
