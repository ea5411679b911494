"""``avpipe prepare``: a dataset module makes the clips, and the manifest is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avpipe.data_manifests import manifest
from avpipe.data_manifests.dataset import Prepared, Progress
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.pipeline.config import parse_component
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.workspace import Workspace


def prepare(
    dataset: str,
    workspace: Workspace,
    *,
    options: Mapping[str, Any] | None = None,
    media: Path | None = None,
    annotations: Path | None = None,
    clips_per_shard: int = manifest.CLIPS_PER_SHARD,
    progress: Progress | None = None,
) -> manifest.Header:
    """Write the manifest of a dataset, and render its media where it is one that renders.

    Args:
        dataset: name of a module in ``datasets/``.
        workspace: where the manifest is written.
        options: of the dataset, as its ``Config`` takes them.
        media: folder of the media files.
        annotations: file or folder of the annotations.
        clips_per_shard: how many clips a shard of features will hold.
        progress: told how far rendering is.

    Returns:
        The header of the manifest: counts and notes.

    Raises:
        UnknownNameError: no dataset of that name.
        ConfigError: an option is wrong.
        DataError: the annotations or the media are wrong or missing.
        StoreError: the manifest cannot be written.
    """
    name, config = parse_component(REGISTRY, {**(options or {}), "name": dataset}, "prepare")
    prepared: Prepared = REGISTRY.load(name).prepare(
        config, media=media, annotations=annotations, workspace=workspace, progress=progress
    )
    if not prepared.clips:
        raise DataError(f"{name}: expected at least one clip, got none")
    return manifest.write(
        workspace.manifest(prepared.clips[0].dataset),
        prepared.clips,
        media_root=prepared.media_root,
        clips_per_shard=clips_per_shard,
        notes=prepared.notes,
        config=config.model_dump(mode="json"),
    )
