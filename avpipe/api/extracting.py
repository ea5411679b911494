"""Stage one: what ``avpipe extract`` and ``retry`` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.places import check_folder_name, choose_dataset
from avpipe.pipeline.errors import DataError, UnknownNameError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.data_manifests.manifest import Manifest
    from avpipe.extract.encoder import Encoder
    from avpipe.extract.forecast import Forecast
    from avpipe.extract.mend import Mended
    from avpipe.extract.run import ExtractReport, Part
    from avpipe.extract.worker import Residency, Setting, ShardTask
    from avpipe.pipeline.features import FeatureSpec
    from avpipe.pipeline.runner import Event
    from avpipe.pipeline.shards import Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """An extraction that is set up and can be run, forecast, or redone in part."""

    manifest: Manifest
    setting: Setting
    part: Part | None = None
    engine: str = "local"
    gpu_share: float = 1.0

    def run(
        self, *, redo: Callable[[Mark], bool] | None = None, on_event: Callable[[Event], None] | None = None
    ) -> ExtractReport:
        """Extract what is not there yet; see :func:`avpipe.extract.run.extract`."""
        from avpipe.extract.run import extract
        from avpipe.pipeline.engines import ENGINES
        from avpipe.pipeline.runner import Needs, ignore

        gpus = 0.0 if self.setting.devices[0] == "cpu" else self.gpu_share
        needs = Needs(cores=self.setting.decoders + 1, gpus=gpus)
        engine = partial(ENGINES.load(self.engine).Pool, needs=needs)
        return extract(
            self.manifest, self.setting, redo=redo, part=self.part, engine=engine, on_event=on_event or ignore
        )

    def tasks(self, redo: Callable[[Mark], bool] | None = None) -> list[ShardTask]:
        """What :meth:`run` would do."""
        from avpipe.extract.run import plan_tasks

        return plan_tasks(self.manifest, self.setting, redo=redo, part=self.part)

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
    gpu_share: float = 1.0,
    decoders: int | None = None,
    residency: Residency = "together",
    part: str | None = None,
    engine: str = "local",
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
        gpu_share: what part of a GPU a worker takes: with 0.5, two workers share each.
        decoders: decoding processes a worker; default: the cores, shared by the workers.
        residency: ``"together"`` or ``"turns"``: whether all encoders stay on a GPU.
        part: ``"i/n"``: this run's share of the shards, where several machines divide them.
        engine: what runs the worker processes: ``"local"`` or ``"ray"``.

    Raises:
        UsageError, DataError, MissingWeightsError: something is wrong or missing.
    """
    from avpipe.extract.recipe import build, choose
    from avpipe.pipeline.store import FORMATS

    FORMATS.load(format)
    dataset = choose_dataset(workspace, dataset)
    built = build(choose(recipe, encoders, overrides), _texts(workspace, dataset))
    return _set_up(
        workspace,
        dataset,
        built,
        media=media,
        format=format,
        gpus=gpus,
        gpu_share=gpu_share,
        decoders=decoders,
        residency=residency,
        part=part,
        engine=engine,
    )


def extraction_again(
    workspace: Workspace,
    dataset: str | None = None,
    *,
    encoders: Sequence[str] = (),
    media: Path | None = None,
    gpus: int | None = None,
    decoders: int | None = None,
    residency: Residency = "together",
) -> Extraction:
    """The extraction that made the feature sets of a dataset, set up once more from what they say of themselves.

    Args:
        workspace: where everything lies.
        dataset: which; default: the only one with features.
        encoders: feature sets; default: all there are that were not imported.
        media: root of the media files; default: what ``prepare`` was told.
        gpus: as in :func:`extraction`.
        decoders: as in :func:`extraction`.
        residency: as in :func:`extraction`.

    Raises:
        UnknownNameError: no feature set of that name.
        UsageError: all of them, or one that was asked for, were imported.
        FingerprintError: the encoders of today would give other features.
    """
    from avpipe.extract.recipe import rebuild
    from avpipe.pipeline import shards
    from avpipe.pipeline.features import IMPORTED

    dataset = choose_dataset(workspace, dataset, extracted=True)
    known = workspace.extracted(dataset)
    for name in encoders:
        if name not in known:
            raise UnknownNameError("feature set", name, known)
    specs = {name: shards.read_spec(workspace.feature_set(dataset, name)) for name in encoders or known}
    own = {name: spec for name, spec in specs.items() if spec.encoder != IMPORTED}
    rebuilt = rebuild(specs if encoders or not own else own)
    folders = {name: workspace.feature_set(dataset, name) for name in (specs if encoders else own)}
    built = {name: rebuilt[name] for name in folders}
    files = [mark.file for folder in folders.values() for mark in shards.marks(folder)]
    format = "webdataset" if any(file.endswith(".tar") for file in files) else "hdf5"
    return _set_up(
        workspace, dataset, built, media=media, format=format, gpus=gpus, decoders=decoders, residency=residency
    )


def _set_up(
    workspace: Workspace,
    dataset: str,
    encoders: Mapping[str, Encoder],
    *,
    media: Path | None,
    format: str,
    gpus: int | None,
    gpu_share: float = 1.0,
    decoders: int | None,
    residency: Residency = "together",
    part: str | None = None,
    engine: str = "local",
) -> Extraction:
    from avpipe.data_manifests import manifest
    from avpipe.extract.media import TextRequest
    from avpipe.extract.run import Part
    from avpipe.extract.worker import Setting
    from avpipe.pipeline.engines import ENGINES
    from avpipe.pipeline.remote import is_remote

    def absolute(path: Path) -> Path:
        """A worker may run in another folder."""
        return path if is_remote(path) else path.absolute()

    for name in encoders:
        check_folder_name("name of a feature set", name)
    read = manifest.read(workspace.manifest(dataset))
    root = media or read.media_root
    if not root.is_dir():
        raise DataError(f"the media root {root} is no folder here: mount it, or say where the files are with --media")
    place = ENGINES.load(engine)
    workers = place.devices(gpus, gpu_share)
    setting = Setting(
        encoders=encoders,
        folders={name: absolute(workspace.feature_set(dataset, name)) for name in encoders},
        media_root=absolute(root),
        format=format,
        devices=workers,
        decoders=decoders or place.cores(len(workers)),
        residency=residency,
        texts={
            encoder.request.of: absolute(workspace.feature_set(dataset, encoder.request.of))
            for encoder in encoders.values()
            if isinstance(encoder.request, TextRequest)
        },
    )
    return Extraction(
        manifest=read,
        setting=setting,
        part=Part.parse(part) if part else None,
        engine=engine,
        gpu_share=gpu_share,
    )


def _texts(workspace: Workspace, dataset: str) -> dict[str, FeatureSpec]:
    """The feature sets of a dataset that hold text."""
    from avpipe.pipeline import shards

    specs = {name: shards.read_spec(workspace.feature_set(dataset, name)) for name in workspace.extracted(dataset)}
    return {name: spec for name, spec in specs.items() if spec.is_text}


def mended(
    extraction: Extraction, only: str | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Mended:
    """Says of a finished shard whether clips of it failed that would go well today: what ``retry`` does again.

    Args:
        extraction: whose clips.
        only: one kind of failure; default: any.
        on_progress: told how many clips were tried, and of how many.

    Raises:
        UnknownNameError: no clip failed that way.
    """
    from avpipe.extract.mend import mended

    return mended(extraction.manifest, extraction.setting, only, on_progress)
