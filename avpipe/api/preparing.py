"""Manifests: what ``avpipe prepare`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.data_manifests.dataset import Progress
    from avpipe.data_manifests.exchange import Written
    from avpipe.data_manifests.manifest import Header
    from avpipe.pipeline.clip import Clip


def prepare(
    workspace: Workspace,
    dataset: str,
    *,
    media: Path | None = None,
    annotations: Path | None = None,
    overrides: Sequence[str] = (),
    probe: bool = True,
    intersect: Path | None = None,
    clips_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Header:
    """Make the manifest of a dataset; see :func:`avpipe.data_manifests.prepare.prepare`.

    Args:
        workspace: where it goes.
        dataset: name of a dataset module.
        media: folder of the media files.
        annotations: the annotation file or folder.
        overrides: of the module's options: ``clips.train=400``.
        probe: look into the media files that were given: readable, how long, with sound.
        intersect: a list of ids; only these clips.
        clips_per_shard: how the features will be sharded.
        progress: called with (done, total) where making media, or looking into them, takes long.

    Returns:
        The manifest's header: counts, ledger, and what a user should know.
    """
    from avpipe.data_manifests.manifest import CLIPS_PER_SHARD
    from avpipe.data_manifests.prepare import prepare
    from avpipe.pipeline.config import override

    return prepare(
        dataset,
        workspace,
        options=override({}, overrides),
        media=media,
        annotations=annotations,
        probe=probe,
        intersect=intersect,
        clips_per_shard=clips_per_shard or CLIPS_PER_SHARD,
        progress=progress,
    )


def export_manifest(
    workspace: Workspace, dataset: str, to: Path, *, form: str = "coco", split: str | None = None
) -> Written:
    """Write a prepared dataset's manifest as others keep theirs; see :func:`avpipe.data_manifests.exchange.export`."""
    from avpipe.data_manifests import manifest
    from avpipe.data_manifests.exchange import export

    return export(manifest.read(workspace.manifest(dataset)), to, form, split)


def clips_of(workspace: Workspace, dataset: str, split: str) -> tuple[Clip, ...]:
    """The clips of one split of a prepared dataset."""
    from avpipe.data_manifests import manifest

    return manifest.read(workspace.manifest(dataset), splits=[split]).clips
