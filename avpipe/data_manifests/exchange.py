"""Manifests as others keep theirs: COCO captions, VALOR's list, CSV, lhotse's cuts.

::

    coco     {"images": [{"id", "file_name", "split", "start", "stop"}], "annotations": [{"id", "image_id", "caption"}]}
    valor    [{"video_id": "dog", "desc": "a dog barks"}, ...]      a list of captions where there are several
    csv      id,path,start,stop,split,caption                      a row a caption
    lhotse   one cut of sound a line (MonoCut, MultiCut), its captions as supervisions; .jsonl or .jsonl.gz

All are read back by the dataset ``folder``. VALOR's list has neither splits nor times, so it takes one split at a time.
lhotse's cuts need to know the sound of each file, which ``avpipe prepare`` looks up.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpipe.data_manifests.ledger import MEDIA
from avpipe.data_manifests.manifest import Manifest
from avpipe.data_manifests.naming import safe_id
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.errors import DataError, UnknownNameError
from avpipe.pipeline.files import atomic_write


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export wrote.

    Attributes:
        path: of the file.
        clips: how many.
        captions: how many.
        notes: what the form cannot say, or could not be said of some clips.
    """

    path: Path
    clips: int
    captions: int
    notes: tuple[str, ...] = ()


def export(manifest: Manifest, path: Path, form: str, split: str | None = None) -> Written:
    """Write a manifest in another form, whole or not at all.

    Args:
        manifest: with the clips of all splits.
        path: of the file.
        form: ``"coco"``, ``"valor"``, ``"csv"`` or ``"lhotse"``.
        split: of the clips; ``None``: all.

    Raises:
        UnknownNameError: no such form or split.
        DataError: there is no such clip, or the form cannot say what they are.
        StoreError: the file cannot be written.
    """
    if form not in FORMS:
        raise UnknownNameError("form of a manifest", form, FORMS)
    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    clips = [clip for clip in manifest.clips if split in (None, clip.split)]
    if not clips:
        raise DataError(f"{manifest.dataset} has no clips in its {split or 'three'} split{'' if split else 's'}")
    text, written, notes = FORMS[form](manifest, clips)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = text[max(0, error.start - 40) : error.end + 10]
        raise DataError(f"{path}: expected names that are UTF-8, got {got!r}. Rename the file, prepare again") from None
    with atomic_write(path) as aside:
        aside.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return Written(
        path=path,
        clips=len(written),
        captions=sum(len(clip.captions) for clip in written),
        notes=tuple(notes),
    )


Form = Callable[[Manifest, Sequence[Clip]], tuple[str, Sequence[Clip], Sequence[str]]]
"""What makes the file's text of some clips, and says which of them are in it, and what could not be said."""


def _coco(manifest: Manifest, clips: Sequence[Clip]) -> tuple[str, Sequence[Clip], Sequence[str]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for clip in clips:
        images.append({"id": clip.clip_id, "file_name": clip.path, "split": clip.split, **_times(clip)})
        for caption in clip.captions:
            annotations.append({"id": len(annotations), "image_id": clip.clip_id, "caption": caption})
    info = {"description": f"{manifest.dataset}, exported by avpipe", "ids_sha256": manifest.ids_sha256}
    values = {"info": info, "type": "captions", "licenses": [], "images": images, "annotations": annotations}
    return json.dumps(values, ensure_ascii=False) + "\n", clips, ()


def _valor(manifest: Manifest, clips: Sequence[Clip]) -> tuple[str, Sequence[Clip], Sequence[str]]:
    if len({clip.split for clip in clips}) > 1:
        raise DataError("VALOR's list cannot say which split a clip is in: export one at a time, with --split")
    rows = [
        {"video_id": clip.clip_id, "desc": clip.captions[0] if len(clip.captions) == 1 else list(clip.captions)}
        for clip in clips
        if clip.captions
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    cut = sum("start" in _times(clip) or "stop" in _times(clip) for clip in clips)
    notes = [f"clips that are parts of longer files, which this form cannot say: {cut}"] if cut else []
    strangers = sum(safe_id(clip.path) != clip.clip_id for clip in clips)
    notes += [f"clips whose files are called otherwise, which this form cannot say: {strangers}"] if strangers else []
    notes += _left_out(sum(not clip.captions for clip in clips), "without a caption")
    return f"[{lines}]\n", [clip for clip in clips if clip.captions], notes


def _csv(manifest: Manifest, clips: Sequence[Clip]) -> tuple[str, Sequence[Clip], Sequence[str]]:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "path", "start", "stop", "split", "caption"))
    for clip in clips:
        times = _times(clip)
        for caption in clip.captions:
            rows.writerow((clip.clip_id, clip.path, times.get("start", ""), times.get("stop", ""), clip.split, caption))
    silent = sum(not clip.captions for clip in clips)
    return text.getvalue(), [clip for clip in clips if clip.captions], _left_out(silent, "without a caption")


def _lhotse(manifest: Manifest, clips: Sequence[Clip]) -> tuple[str, Sequence[Clip], Sequence[str]]:
    lines, written = [], []
    for clip in clips:
        sound = clip.extra.get(MEDIA, {})
        if not (sound.get("sample_rate") and sound.get("channels") and sound.get("duration_seconds")):
            continue
        lines.append(json.dumps(_cut(manifest, clip, sound), ensure_ascii=False))
        written.append(clip)
    if not lines:
        raise DataError(
            f"{manifest.dataset}: it is not known of any clip what sound it has, which a cut of lhotse must say. "
            f"Prepare it again, and let it look into the files (--probe)"
        )
    notes = _left_out(len(clips) - len(written), "without sound, or that nobody looked into")
    return "\n".join(lines) + "\n", written, notes


def _cut(manifest: Manifest, clip: Clip, sound: dict[str, Any]) -> dict[str, Any]:
    """A row as lhotse writes its own. A cut's times are those of its recording, its supervisions' those of the cut."""
    channels = list(range(sound["channels"]))
    of_file = sound.get("file_seconds", sound["duration_seconds"])
    channel: Any = channels[0] if len(channels) == 1 else channels
    recording = {
        "id": clip.path,
        "sources": [{"type": "file", "channels": channels, "source": str(manifest.media_root / clip.path)}],
        "sampling_rate": sound["sample_rate"],
        "num_samples": round(of_file * sound["sample_rate"]),
        "duration": round(of_file * sound["sample_rate"]) / sound["sample_rate"],
        "channel_ids": channels,
    }
    supervisions = [
        {
            "id": f"{clip.clip_id}-{number}",
            "recording_id": clip.path,
            "start": 0.0,
            "duration": sound["duration_seconds"],
            "channel": channel,
            "text": caption,
        }
        for number, caption in enumerate(clip.captions)
    ]
    return {
        "id": clip.clip_id,
        "start": clip.start_seconds,
        "duration": sound["duration_seconds"],
        "channel": channel,
        "supervisions": supervisions,
        "recording": recording,
        "custom": {"split": clip.split},
        "type": "MonoCut" if len(channels) == 1 else "MultiCut",
    }


def _times(clip: Clip) -> dict[str, float]:
    """Start and stop of a clip that is a part of its file."""
    times = {}
    if clip.start_seconds or clip.stop_seconds is not None:
        times["start"] = clip.start_seconds
    if clip.stop_seconds is not None:
        times["stop"] = clip.stop_seconds
    return times


def _left_out(count: int, why: str) -> list[str]:
    return [f"clips {why}, left out: {count}"] if count else []


FORMS: dict[str, Form] = {"coco": _coco, "valor": _valor, "csv": _csv, "lhotse": _lhotse}


def cut_row(row: dict[str, Any]) -> dict[str, Any]:
    """A cut of lhotse as a row of captions: id, file, times, captions, split.

    Raises:
        KeyError, IndexError, TypeError: it is no whole cut.
    """
    recording = row["recording"]
    start, duration = float(row["start"]), float(row["duration"])
    is_part = start > 0 or duration < float(recording["duration"]) - 0.01
    texts: Iterable[Any] = (each.get("text") for each in row.get("supervisions") or ())
    custom = row.get("custom") or {}
    return {
        "id": row["id"],
        "file": str(recording["sources"][0]["source"]),
        "captions": [text for text in texts if text],
        **({"start": start, "stop": round(start + duration, 6)} if is_part else {}),
        **({"split": custom["split"]} if custom.get("split") else {}),
    }
