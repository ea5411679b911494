"""``avpipe prepare``: a dataset module says which clips there are, their files are looked into, the manifest is
written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from avpipe.data_manifests import ledger, manifest, published
from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.dataset import Prepared, Progress
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.data_manifests.official import PublishedConfig
from avpipe.data_manifests.probe import Probe, probe_files
from avpipe.data_manifests.subset import Subset
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.config import Config, parse_component
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.files import atomic_write
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.workspace import Workspace


def prepare(
    dataset: str,
    workspace: Workspace,
    *,
    options: Mapping[str, Any] | None = None,
    media: Path | None = None,
    annotations: Path | None = None,
    probe: bool = True,
    intersect: Path | None = None,
    clips_per_shard: int = manifest.CLIPS_PER_SHARD,
    progress: Progress | None = None,
) -> manifest.Header:
    """Write the manifest of a dataset, and render its media where it is one that renders.

    Beside the manifest lies ``<dataset>.ledger.csv``: every clip that is missing, faulty or unreadable, and why.

    Args:
        dataset: name of a module in ``datasets/``.
        workspace: where the manifest is written.
        options: of the dataset, as its ``Config`` takes them.
        media: folder of the media files.
        annotations: file or folder of the annotations.
        probe: look into each media file: is it one, how long, is there sound to hear. What was seen is kept in the
            workspace, so that only new and changed files are looked into next time. Remote media are not.
        intersect: a list of ids; only these clips, of a published dataset.
        clips_per_shard: how many clips a shard of features will hold.
        progress: told how far rendering, or looking into files, is.

    Returns:
        The header of the manifest: counts, ledger and notes.

    Raises:
        UnknownNameError: no dataset of that name.
        ConfigError: an option is wrong.
        DataError: the annotations or the media are wrong or missing.
        StoreError: the manifest cannot be written.
    """
    name, config = parse_component(REGISTRY, {**(options or {}), "name": dataset}, "prepare")
    module = REGISTRY.load(name)
    look = _Look(workspace, probe=probe and media is not None, progress=progress)
    subset = Subset.read(intersect) if intersect else None
    if is_published(module):
        prepared = _published(
            name, module, config, media=media, annotations=annotations, workspace=workspace, look=look, subset=subset
        )
    else:
        prepared = module.prepare(config, media=media, annotations=annotations, workspace=workspace, progress=progress)
        prepared = _looked_into(_intersected(prepared, subset), look)
    if not prepared.clips:
        raise DataError(f"{name}: expected at least one clip, got none; {_what_became(prepared)}")
    own_name = prepared.clips[0].dataset
    notes = [*prepared.notes, *([subset.note] if subset else []), *look.notes()]
    path = workspace.manifest(own_name)
    searched = media is not None or not is_published(module)
    table = ledger.ledger(
        prepared.clips,
        prepared.left_out,
        prepared.official_clips,
        probed=look.has_looked,
        searched=searched,
        annotated=prepared.annotated or None,
    )
    former, former_cuts = _ids_of_former(path), _cuts_of_former(path)
    with atomic_write(ledger_path(path)) as aside:
        told = ledger.rows(prepared.clips if searched else (), prepared.left_out)
        aside.write_text(ledger.as_csv(told), encoding="utf-8", errors="backslashreplace")
    header = manifest.write(
        path,
        prepared.clips,
        media_root=prepared.media_root,
        clips_per_shard=clips_per_shard,
        notes=notes,
        config=config.model_dump(mode="json"),
        ledger={split: row.to_json() for split, row in table.items()},
    )
    if former not in ("", header.ids_sha256) and (features := workspace.extracted(own_name)):
        return replace(header, notes=(*notes, _invalid(features)))
    moved = sum(former_cuts.get(clip.clip_id, _cut(clip)) != _cut(clip) for clip in prepared.clips)
    if moved and (features := workspace.extracted(own_name)):
        return replace(header, notes=(*notes, _cut_otherwise(moved, features)))
    return header


def _cut(clip: Clip) -> tuple[str, float, float | None]:
    return clip.path, clip.start_seconds, clip.stop_seconds


def _cuts_of_former(path: Path) -> dict[str, tuple[str, float, float | None]]:
    """Which part of which file each clip was that could be read, in the manifest that stands there."""
    try:
        clips = manifest.read(path).clips
    except DataError:
        return {}
    unread = {"missing", "unreadable"}
    return {clip.clip_id: _cut(clip) for clip in clips if unread.isdisjoint(clip.extra.get(ledger.MEDIA, {}))}


def _cut_otherwise(count: int, features: Sequence[str]) -> str:
    return (
        f"NOTE: {count:,} clips are other files or other parts of files than in the former manifest. The features of "
        f"{', '.join(features)} are still those of the former ones where they were made: remove them to make them anew"
    )


def _ids_of_former(path: Path) -> str:
    """The hash of the ids of the manifest that stands there; "" if there is none."""
    try:
        return manifest.read_header(path).ids_sha256
    except DataError:
        return ""


def _invalid(features: Sequence[str]) -> str:
    return (
        f"NOTE: these are other clips than those of the former manifest, so the features of {', '.join(features)} "
        f"belong to no shard of it, and the next extraction makes them anew. Prepare as before to keep them. (Of a "
        f"published dataset, include=all holds the same clips whatever is on disk)"
    )


def is_published(module: ModuleType) -> bool:
    """Whether a dataset module reads official files, and leaves everything else to be done for it."""
    return hasattr(module, "read")


def ledger_path(manifest_path: Path) -> Path:
    """Where the list of missing, faulty and unreadable clips lies."""
    return manifest_path.with_name(manifest_path.name.removesuffix(".jsonl.gz") + ".ledger.csv")


def _published(
    name: str,
    module: ModuleType,
    config: Config,
    *,
    media: Path | None,
    annotations: Path | None,
    workspace: Workspace,
    look: _Look,
    subset: Subset | None,
) -> Prepared:
    assert isinstance(config, PublishedConfig)
    card = module.CARD
    if annotations is None:
        raise DataError(
            f"{name}: expected --annotations FOLDER with its official files, got none. They come from {card.source}"
        )
    if media is None and config.include != "all":
        where = f". {card.media}" if card.media else ""
        raise DataError(
            f"{name}: expected --media FOLDER with its videos or sounds, got none{where}. For a manifest without media "
            f"(references to score against, say): include=all"
        )
    if media is not None and not media.is_dir():
        raise DataError(f"--media: expected a folder, got {media}: {'a file' if media.exists() else 'not there'}")
    official = module.read(config, AnnotationFiles(annotations, name, card, media))
    if not official.entries:
        has_none = card.official_clips and card.official_clips.keys().isdisjoint(config.splits)
        hint = f"; published are {' and '.join(card.official_clips)} alone" if has_none else ""
        raise DataError(f"{name}: its files name no clips of splits=[{','.join(config.splits)}]{hint}")
    return published.draw(
        name,
        official,
        config,
        media=media,
        media_root=media or workspace.media(name),
        look=look,
        subset=subset,
    )


def _intersected(prepared: Prepared, subset: Subset | None) -> Prepared:
    if subset is None:
        return prepared
    clips = tuple(clip for clip in prepared.clips if subset.holds_id(clip.clip_id, clip.extra))
    subset.check()
    kept = {clip.clip_id for clip in clips}
    gone = tuple(
        ledger.LeftOut(clip_id=clip.clip_id, split=clip.split, reason="not_listed")
        for clip in prepared.clips
        if clip.clip_id not in kept
    )
    return replace(prepared, clips=clips, left_out=prepared.left_out + gone)


def _looked_into(prepared: Prepared, look: _Look) -> Prepared:
    """The clips with what looking into their files tells."""
    probes = look(prepared.media_root, sorted({clip.path for clip in prepared.clips}))
    if probes is None:
        return prepared
    clips = []
    for clip in prepared.clips:
        told = published.facts(probes[clip.path], clip.start_seconds, clip.stop_seconds)
        clips.append(replace(clip, extra={**clip.extra, ledger.MEDIA: told}))
    return replace(prepared, clips=tuple(clips))


def _what_became(prepared: Prepared) -> str:
    reasons = Counter(each.reason.replace("_", " ") for each in prepared.left_out)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "the files name none"


class _Look:
    """Looks into media files, each once."""

    def __init__(self, workspace: Workspace, *, probe: bool, progress: Progress | None) -> None:
        self._folder, self._probe, self._progress = workspace.local_root / "probes", probe, progress
        self._is_remote = False
        self.has_looked = False

    def __call__(self, root: Path, paths: Sequence[str]) -> Mapping[str, Probe] | None:
        if not self._probe:
            return None
        if is_remote(root):
            self._is_remote = True
            return None
        self.has_looked = True
        return probe_files(root, paths, cache=self._folder / _cache_name(root), progress=self._progress)

    def notes(self) -> list[str]:
        """What a user should know of it."""
        if self._is_remote:
            return ["the media are remote: nobody looked into them, so it is not known which have sound"]
        return []


def _cache_name(root: Path) -> str:
    """One file for each folder of media, whatever datasets are made of it."""
    return f"{hashlib.sha256(str(root.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jsonl"
