"""The commands as Python functions: what ``avpipe prepare``, ``extract``, ``train``, ``score`` and ``caption`` do.

The three stages meet on disk and never import one another; this module is where a job needs two of them at once, as
training does, which scores its own captions on the validation split. ``cli.py`` only reads options and prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.pipeline.errors import ClipError, DataError, UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.data_manifests.dataset import Progress
    from avpipe.data_manifests.manifest import Header, Manifest
    from avpipe.eval import ScoreReport
    from avpipe.eval.coverage import Missing
    from avpipe.extract.encoder import Encoder
    from avpipe.extract.forecast import Forecast
    from avpipe.extract.run import ExtractReport, Setting
    from avpipe.pipeline.captions import Caption
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import Features, FeatureSpec
    from avpipe.pipeline.runner import Event
    from avpipe.pipeline.shards import Mark, Problem
    from avpipe.pipeline.store import FeatureSet
    from avpipe.train.checkpoint import LoadedCaptioner
    from avpipe.train.config import RunConfig
    from avpipe.train.dataset import FeatureSource
    from avpipe.train.loop import OnEvent, TrainResult


# -- which workspace, which dataset, which run -------------------------------------------------------------------------

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]{0,199}")


def open_workspace(root: Path | None = None) -> Workspace:
    """The workspace asked for, or the default one; it need not exist yet.

    Raises:
        UsageError: something that is no readable folder stands in its place.
    """
    workspace = Workspace.find(root)
    if workspace.root.exists() and not workspace.root.is_dir():
        raise UsageError(f"workspace: expected a folder at {workspace.root}, got a file; try another --workspace")
    if workspace.root.exists() and not os.access(workspace.root, os.R_OK | os.X_OK):
        raise UsageError(f"workspace: {workspace.root} cannot be read; change its mode, or try another --workspace")
    return workspace


def _check_folder_name(what: str, name: str) -> None:
    """A name that becomes a folder leads to no other place."""
    if not _FOLDER_NAME.fullmatch(name):
        raise UsageError(f"{what}: expected letters, digits and _ . + = , @ -, a letter or digit first, got {name!r}")


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
    prepared = workspace.prepared()
    known = [name for name in prepared if not extracted or workspace.extracted(name)]
    if dataset is not None and dataset not in prepared:
        raise UnknownNameError("dataset", dataset, prepared, f"Prepared are these. Try: avpipe prepare {dataset}")
    if dataset is not None and dataset not in known:
        raise UsageError(f"no features of {dataset!r} yet in {workspace.root}; try: avpipe extract --dataset {dataset}")
    if dataset is not None:
        return dataset
    if not prepared:
        raise UsageError(f"no dataset is prepared yet in {workspace.root}; try: avpipe prepare NAME")
    if not known:
        raise UsageError(f"nothing is extracted yet in {workspace.root}; try: avpipe extract --dataset {prepared[0]}")
    if len(known) > 1:
        raise UsageError(f"which dataset? In {workspace.root} there are {', '.join(known)}: say which with --dataset")
    return known[0]


def choose_run(workspace: Workspace, run: str | None) -> str:
    """The run asked for, or the newest.

    Raises:
        UnknownNameError: no run of that name.
        UsageError: none was asked for, and there is none.
    """
    known = workspace.runs()
    if run is not None and run not in known:
        raise UnknownNameError("run", run, known, "" if known else "Try: avpipe train")
    if not known:
        raise UsageError(f"no run yet in {workspace.root}; try: avpipe train")
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

    for name in encoders:
        _check_folder_name("name of a feature set", name)
    read = manifest.read(workspace.manifest(dataset))
    root = media or read.media_root
    if not root.is_dir():
        raise DataError(f"the media root {root} is no folder here: mount it, or say where the files are with --media")
    workers = devices(gpus)
    setting = Setting(
        encoders=encoders,
        folders={name: workspace.feature_set(dataset, name) for name in encoders},
        media_root=root,
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


def train(
    workspace: Workspace,
    *,
    recipe: str = "default",
    dataset: str | None = None,
    fusion: str | None = None,
    features: Sequence[str] = (),
    modalities: Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> tuple[str, TrainResult]:
    """Train a captioner on extracted features; validate by CIDEr; caption the validation split with the best.

    Args:
        workspace: where everything lies.
        recipe: name of a training recipe, or a YAML file.
        dataset: which; default: the recipe's, or the only one with features.
        fusion: instead of the recipe's.
        features: feature sets to train on; default: the recipe's, or all there are.
        modalities: use feature sets of these alone.
        seed: instead of the recipe's.
        name: of the run; default: made of the settings, with a number behind it if that run has other ones.
        overrides: dotted: ``train.lr=1e-4``.
        on_event: told of steps and validations.

    Returns:
        The run's name, and what became of the training.

    Raises:
        UsageError: a name or a setting is wrong; a run of that name has other settings.
        StoreError: features are missing or damaged.
    """
    from avpipe.data_manifests import manifest
    from avpipe.eval import ValidationScorer
    from avpipe.train.config import read
    from avpipe.train.loop import train

    asked = {"dataset": dataset, "fusion": fusion, "train.seed": seed}
    settings: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    settings |= {key: list(value) for key, value in (("features", features), ("modalities", modalities)) if value}
    config = read(recipe, overrides, settings)
    dataset = choose_dataset(workspace, config.dataset or None, extracted=True)
    sources = open_features(workspace, dataset, config.features, config.modalities)
    config = config.model_copy(update={"dataset": dataset, "features": tuple(sources)})
    # The test split is sealed: its captions never become clips here.
    clips = manifest.read(workspace.manifest(dataset), splits=("train", "val"))
    _check_extracted(dataset, sources, [clip.clip_id for clip in clips.clips])
    name = _run_name(workspace, config, name)
    val = [clip for clip in clips.split("val") if clip.captions]
    score = ValidationScorer({clip.clip_id: clip.captions for clip in val}) if val else None
    result = train(
        config,
        sources=sources,
        train_clips=clips.split("train"),
        val_clips=val,
        run_folder=workspace.run(name),
        score=score,
        on_event=on_event or (lambda event: None),
    )
    if val:
        captions_of(workspace, name, "val")
    return name, result


def open_features(
    workspace: Workspace, dataset: str, names: Sequence[str] = (), modalities: Sequence[str] = ()
) -> dict[str, FeatureSet]:
    """Feature sets of a dataset by name, to read from.

    Args:
        workspace: where everything lies.
        dataset: which.
        names: which feature sets; default: all there are.
        modalities: of those, the ones of these modalities; default: all.

    Raises:
        UnknownNameError: no feature set of that name.
        UsageError: none is left.
        StoreError: one is damaged.
    """
    from avpipe.pipeline.store import FeatureSet

    known = workspace.extracted(dataset)
    for name in names:
        if name not in known:
            raise UnknownNameError("feature set", name, known, f"Try: avpipe extract -d {dataset} -e {name}")
    found = {name: FeatureSet(workspace.feature_set(dataset, name)) for name in names or known}
    chosen = {name: source for name, source in found.items() if not modalities or source.spec.modality in modalities}
    if not chosen:
        there = ", ".join(f"{name} ({source.spec.modality})" for name, source in found.items())
        raise UsageError(f"no feature set of {dataset!r} is of modality {', '.join(modalities)}; there are: {there}")
    return chosen


def _check_extracted(dataset: str, sources: Mapping[str, FeatureSet], clip_ids: Sequence[str]) -> None:
    for name, source in sources.items():
        missing = source.missing(clip_ids)
        if missing:
            raise DataError(
                f"feature set {name!r} of {dataset!r} says nothing about {len(missing)} of {len(clip_ids)} clips "
                f"(first: {missing[0]}): its extraction was broken off, or the manifest has grown. Run avpipe extract"
            )


def _run_name(workspace: Workspace, config: RunConfig, name: str | None) -> str:
    """The name asked for, or one made of the settings; never that of a run with other settings."""
    if name is not None:
        _check_folder_name("name of a run", name)
        differences = _differences(workspace.run(name), config)
        if differences:
            listed = "\n".join(f"  - {line}" for line in differences)
            raise UsageError(
                f"run {name!r} has other settings (there against asked for):\n{listed}\n"
                f"Choose another --name, or delete {workspace.run(name)}"
            )
        return name
    parts = [config.dataset, config.fusion["name"], *config.modalities, f"seed{config.train.seed}"]
    base = "-".join(parts)
    names = [base, *(f"{base}-{number}" for number in range(2, 10_000))]
    return next(candidate for candidate in names if not _differences(workspace.run(candidate), config))


def _differences(folder: Path, config: RunConfig) -> list[str]:
    """How the settings of a run in a folder differ; none if there is no run."""
    from avpipe.pipeline.config import flat, read_yaml

    if not (folder / "config.yaml").exists():
        return []
    there, asked = flat(read_yaml(folder / "config.yaml")), flat(config.model_dump(mode="json"))
    return [
        f"{key}: {there.get(key)!r} against {asked.get(key)!r}"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]


# -- captions and scores -----------------------------------------------------------------------------------------------


def captions_of(workspace: Workspace, run: str, split: str) -> dict[str, str]:
    """The captions of one split by a run's best checkpoint; made if they are not there, or older than it.

    Written to ``captions/<split>.json`` of the run in the COCO results form.

    Raises:
        CheckpointError: the run has no whole checkpoint.
        FingerprintError: the dataset's features are not those that the run was trained on.
    """
    from avpipe.data_manifests import manifest
    from avpipe.eval.coco import read_results, write_results
    from avpipe.train.generate import caption_clips

    folder = workspace.run(run)
    path = folder / "captions" / f"{split}.json"
    loaded = _load_best(folder)
    made_by = path.with_suffix(".checkpoint")
    if path.exists() and made_by.exists() and made_by.read_text(encoding="utf-8") == loaded.name:
        return dict(read_results(path))
    dataset = loaded.config.dataset
    clips = manifest.read(workspace.manifest(dataset), splits=[split]).clips
    sources = open_features(workspace, dataset, list(loaded.specs))
    _check_extracted(dataset, sources, [clip.clip_id for clip in clips])
    captions = {caption.clip_id: caption.text for caption in caption_clips(loaded, clips, sources, device=device())}
    made_by.unlink(missing_ok=True)
    write_results(path, captions)
    made_by.write_text(loaded.name, encoding="utf-8")
    return captions


def score_run(
    workspace: Workspace, run: str, split: str = "test", *, metrics: Sequence[str] = (), missing: Missing = "error"
) -> ScoreReport:
    """Caption one split with a run's best checkpoint and score it; written to ``scores/`` of the run.

    Every look at the test split is noted in the run's ``test_access.log``.

    Raises:
        UsageError: no such split, or none of its clips has a reference.
        ScoringError: captions cannot be scored.
    """
    from avpipe.eval import DEFAULT, score
    from avpipe.eval.metric import find_metrics
    from avpipe.pipeline.clip import SPLITS
    from avpipe.pipeline.files import storage_errors
    from avpipe.train import checkpoint

    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    find_metrics(metrics or DEFAULT)  # a misspelt metric is no look at the test split
    folder = workspace.run(run)
    captions = captions_of(workspace, run, split)
    log = folder / "test_access.log"
    if split == "test":
        with storage_errors(log), log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} score {split} of {run}\n")
    dataset = checkpoint.read(folder / "checkpoints" / "best")[0].dataset
    references = {clip.clip_id: clip.captions for clip in clips_of(workspace, dataset, split) if clip.captions}
    if not references:
        raise UsageError(f"the {split} split of {dataset!r} has no captions to score against")
    candidates = {clip_id: text for clip_id, text in captions.items() if clip_id in references}
    report = score(candidates, references, metrics=metrics or DEFAULT, missing=missing, split=split)
    report.write(folder / "scores")
    return report


def score_files(
    predictions: Path | None, references: Path | None, *, metrics: Sequence[str] = (), missing: Missing = "error"
) -> ScoreReport:
    """Score a file of predictions of any model against a file of references.

    Args:
        predictions: COCO results, or ``{id: caption}``.
        references: COCO captions, or ``{id: [captions]}``.
        metrics: by name; default: all.
        missing: what a clip without a caption means.

    Raises:
        UsageError: one of the files was not given.
        DataError: a file is not of that form.
        ScoringError: coverage is not complete.
    """
    from avpipe.eval import DEFAULT, score
    from avpipe.eval.coco import read_references, read_results

    if predictions is None or references is None:
        raise UsageError("--predictions and --references go together: got only one of them")
    found, wanted = read_results(predictions), read_references(references)
    return score(found, wanted, metrics=metrics or DEFAULT, missing=missing, split=references.stem)


def caption(workspace: Workspace, file: Path, run: str, *, beams: int | None = None) -> Caption:
    """Caption one media file with a run's best checkpoint. How to extract its features stands in the checkpoint.

    Raises:
        ClipError: the file cannot be used.
        FingerprintError: the encoders of today would give other features than those it was trained on.
    """
    from avpipe.extract.recipe import rebuild
    from avpipe.extract.run import extract_file
    from avpipe.pipeline.clip import Clip
    from avpipe.train.generate import caption_clips

    loaded = _load_best(workspace.run(run))
    found = extract_file(file, rebuild(loaded.specs), device=device())
    if not found:
        raise ClipError("empty", f"it has none of what run {run!r} was trained on: {', '.join(loaded.specs)}")
    if beams is not None:
        generate = loaded.config.generate.model_copy(update={"beams": beams})
        loaded = replace(loaded, config=loaded.config.model_copy(update={"generate": generate}))
    clip = Clip(clip_id="file", dataset="file", path="file", split="test")
    sources: dict[str, FeatureSource] = {name: _OneClip(spec, found.get(name)) for name, spec in loaded.specs.items()}
    return caption_clips(loaded, [clip], sources, device=device())[0]


@dataclass(slots=True)
class _OneClip:
    """The features of a single clip, where a feature set is expected."""

    spec: FeatureSpec
    features: Features | None

    def __contains__(self, clip_id: object) -> bool:
        return self.features is not None

    def read(self, clip_id: str) -> Features:
        """In the type that a feature set would have on disk: a captioner sees what it was trained on."""
        if self.features is None:
            raise KeyError(clip_id)
        return replace(self.features, data=self.features.data.astype(self.spec.dtype))


def clips_of(workspace: Workspace, dataset: str, split: str) -> tuple[Clip, ...]:
    """The clips of one split of a prepared dataset."""
    from avpipe.data_manifests import manifest

    return manifest.read(workspace.manifest(dataset), splits=[split]).clips


def device() -> str:
    """Where captions are generated: the first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _load_best(folder: Path) -> LoadedCaptioner:
    from avpipe.train import checkpoint

    return checkpoint.load(folder / "checkpoints" / "best")
