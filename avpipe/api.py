"""The commands as Python functions: what ``avpipe prepare``, ``extract``, ``train``, ``score`` and ``caption`` do.

The three stages meet on disk and never import one another; this module is where a job needs two of them at once, as
training does, which scores its own captions on the validation split. ``cli.py`` only reads options and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.pipeline.errors import UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.data_manifests.dataset import Progress
    from avpipe.data_manifests.manifest import Header, Manifest
    from avpipe.extract.encoder import Encoder
    from avpipe.extract.forecast import Forecast
    from avpipe.extract.run import ExtractReport, Setting
    from avpipe.pipeline.runner import Event
    from avpipe.pipeline.shards import Mark, Problem


# -- which dataset, which run ------------------------------------------------------------------------------------------


def choose_dataset(workspace: Workspace, dataset: str | None, *, extracted: bool = False) -> str:
    """The dataset asked for, or the only one there is.

    Args:
        workspace: where to look.
        dataset: a name, or ``None``.
        extracted: whether it must have features.

    Raises:
        UnknownNameError: it is not prepared (or has no features).
        UsageError: none was asked for, and there is none or more than one.
    """
    known = [name for name in workspace.prepared() if not extracted or workspace.extracted(name)]
    what = "extracted" if extracted else "prepared"
    advice = "avpipe extract --dataset NAME" if extracted else "avpipe prepare NAME"
    if dataset is not None:
        if dataset not in known:
            raise UnknownNameError(f"{what} dataset", dataset, known, f"Try: {advice.replace('NAME', dataset)}")
        return dataset
    if len(known) != 1:
        found = f"there are {', '.join(known)}: say which with --dataset" if known else f"there is none; try {advice}"
        raise UsageError(f"which dataset? In {workspace.root} {found}")
    return known[0]


def choose_run(workspace: Workspace, run: str | None) -> str:
    """The run asked for, or the newest.

    Raises:
        UnknownNameError: no run of that name.
        UsageError: none was asked for, and there is none.
    """
    known = workspace.runs()
    if run is not None and run not in known:
        raise UnknownNameError("run", run, known)
    if not known:
        raise UsageError(f"which run? There is none in {workspace.root}; try avpipe train")
    return run or known[-1]


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(
    workspace: Workspace,
    dataset: str,
    *,
    media: Path | None = None,
    annotations: Path | None = None,
    overrides: Sequence[str] = (),
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
        clips_per_shard: how the features will be sharded.
        progress: called with (done, total) where making media takes long.

    Returns:
        The manifest's header: counts, and what a user should know.
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
        clips_per_shard=clips_per_shard or CLIPS_PER_SHARD,
        progress=progress,
    )


# -- extract -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """An extraction that is set up and can be run, forecast, or redone in part."""

    manifest: Manifest
    setting: Setting

    def run(
        self, *, redo: Callable[[Mark], bool] | None = None, on_event: Callable[[Event], None] | None = None
    ) -> ExtractReport:
        """Extract what is not there yet; see :func:`avpipe.extract.run.extract`."""
        from avpipe.extract.run import extract
        from avpipe.pipeline.runner import ignore

        return extract(self.manifest, self.setting, redo=redo, on_event=on_event or ignore)

    def forecast(self) -> Forecast:
        """What it will cost; see :func:`avpipe.extract.forecast.forecast`."""
        from avpipe.extract.forecast import forecast

        return forecast(self.manifest, self.setting)


def extraction(
    workspace: Workspace,
    dataset: str | None = None,
    *,
    recipe: str = "default",
    encoders: Sequence[str] = (),
    overrides: Sequence[str] = (),
    media: Path | None = None,
    format: str = "hdf5",
    gpus: int | None = None,
    decoders: int | None = None,
) -> Extraction:
    """Set up an extraction: every name, setting and weight file is checked before anything runs.

    Args:
        workspace: where everything lies.
        dataset: which; default: the only one that is prepared.
        recipe: name of an extraction recipe, or a YAML file.
        encoders: feature sets to extract; default: all of the recipe.
        overrides: ``clip_vit.frames=8``.
        media: root of the media files; default: what ``prepare`` was told.
        format: ``"hdf5"`` or ``"webdataset"``.
        gpus: how many; 0 = the CPU; default: all there are, or the CPU.
        decoders: decoding processes a worker; default: the cores, shared by the workers.

    Raises:
        UsageError, DataError, MissingWeightsError: something is wrong or missing.
    """
    from avpipe.extract.recipe import build, choose
    from avpipe.pipeline.store import FORMATS

    FORMATS.load(format)
    dataset = choose_dataset(workspace, dataset)
    built = build(choose(recipe, encoders, overrides))
    return _set_up(workspace, dataset, built, media=media, format=format, gpus=gpus, decoders=decoders)


def extraction_again(
    workspace: Workspace,
    dataset: str | None = None,
    *,
    encoders: Sequence[str] = (),
    media: Path | None = None,
    gpus: int | None = None,
    decoders: int | None = None,
) -> Extraction:
    """The extraction that made the feature sets of a dataset, set up once more from what they say of themselves.

    Args:
        workspace: where everything lies.
        dataset: which; default: the only one with features.
        encoders: feature sets; default: all there are.
        media: root of the media files; default: what ``prepare`` was told.
        gpus: as in :func:`extraction`.
        decoders: as in :func:`extraction`.

    Raises:
        UnknownNameError: no feature set of that name.
        FingerprintError: the encoders of today would give other features.
    """
    from avpipe.extract.recipe import rebuild
    from avpipe.pipeline import shards

    dataset = choose_dataset(workspace, dataset, extracted=True)
    known = workspace.extracted(dataset)
    for name in encoders:
        if name not in known:
            raise UnknownNameError("feature set", name, known)
    folders = {name: workspace.feature_set(dataset, name) for name in encoders or known}
    built = rebuild({name: shards.read_spec(folder) for name, folder in folders.items()})
    files = [mark.file for folder in folders.values() for mark in shards.marks(folder)]
    format = "webdataset" if files and files[0].endswith(".tar") else "hdf5"
    return _set_up(workspace, dataset, built, media=media, format=format, gpus=gpus, decoders=decoders)


def _set_up(
    workspace: Workspace,
    dataset: str,
    encoders: Mapping[str, Encoder],
    *,
    media: Path | None,
    format: str,
    gpus: int | None,
    decoders: int | None,
) -> Extraction:
    from avpipe.data_manifests import manifest
    from avpipe.extract.run import Setting, devices

    read = manifest.read(workspace.manifest(dataset))
    workers = devices(gpus)
    setting = Setting(
        encoders=encoders,
        folders={name: workspace.feature_set(dataset, name) for name in encoders},
        media_root=media or read.media_root,
        format=format,
        devices=workers,
        decoders=decoders or max(1, (os.cpu_count() or 1) // len(workers)),
    )
    return Extraction(manifest=read, setting=setting)


def failed(extraction: Extraction, only: str | None = None) -> Callable[[Mark], bool]:
    """Says of a finished shard whether it has failed clips: what ``retry`` does again.

    Args:
        extraction: whose clips.
        only: one kind of failure; default: any.

    Raises:
        UnknownNameError: no clip failed that way.
    """
    from avpipe.pipeline import shards

    if only is not None:
        marks = [mark for folder in extraction.setting.folders.values() for mark in shards.marks(folder)]
        kinds = {row.error_type for mark in marks for row in mark.outcomes if row.status == "failed"}
        if only not in kinds:
            raise UnknownNameError("kind of failure", only, kinds)
    return lambda mark: any(
        row.status == "failed" and (only is None or row.error_type == only) for row in mark.outcomes
    )


def verify(workspace: Workspace, dataset: str, *, deep: bool = True) -> dict[str, list[Problem]]:
    """What is wrong with the feature sets of a dataset, by feature set; see :func:`avpipe.pipeline.shards.verify`."""
    from avpipe.pipeline import shards

    names = workspace.extracted(dataset)
    return {name: shards.verify(workspace.feature_set(dataset, name), deep=deep) for name in names}


# -- train -------------------------------------------------------------------------------------------------------------


def clips_of(workspace: Workspace, dataset: str, split: str) -> tuple[Clip, ...]:
    """The clips of one split of a prepared dataset."""
    from avpipe.data_manifests import manifest

    return manifest.read(workspace.manifest(dataset), splits=[split]).clips
