"""Stage two: what ``avpipe train`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.api.places import check_extracted, check_folder_name, choose_dataset, open_features
from avpipe.pipeline.errors import UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import FeatureSource
    from avpipe.train.config import RunConfig
    from avpipe.train.loop import MakeTokenizer, OnEvent, Score, TrainResult


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

    asked = {"dataset": dataset, "fusion": fusion, "train.seed": seed}
    settings: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    settings |= {key: list(value) for key, value in (("features", features), ("modalities", modalities)) if value}
    config = read(recipe, overrides, settings)
    dataset = choose_dataset(workspace, config.dataset or None, extracted=True)
    sources = open_features(workspace, dataset, config.features, config.modalities)
    config = config.model_copy(update={"dataset": dataset, "features": tuple(sources)})
    clips = manifest.read_for_training(workspace.manifest(dataset))
    check_extracted(dataset, sources, clips.clip_ids)
    name = _run_name(workspace, config, name)
    starting_checkpoint(workspace, name, config.train.init_from)  # told before anything is prepared
    val = [clip for clip in clips.val if clip.captions]
    score = ValidationScorer({clip.clip_id: clip.captions for clip in val}) if val else None
    result = train_run(
        workspace,
        name,
        config,
        sources=sources,
        train_clips=clips.train,
        val_clips=clips.val,
        score=score,
        on_event=on_event,
    )
    return name, result


def train_run(
    workspace: Workspace,
    name: str,
    config: RunConfig,
    *,
    sources: Mapping[str, FeatureSource],
    train_clips: Sequence[Clip],
    val_clips: Sequence[Clip],
    score: Score | None,
    make_tokenizer: MakeTokenizer | None = None,
    on_event: OnEvent | None = None,
) -> TrainResult:
    """Train one run of which all is known, or go on with it; then caption the validation split with the best.

    Args:
        workspace: where the run lies.
        name: of the run.
        config: with the dataset and its feature sets.
        sources: features by name.
        train_clips: all of the split.
        val_clips: all of the split; those with captions choose the best checkpoint.
        score: of captions of those; ``None`` if there are none.
        make_tokenizer: see :func:`avpipe.train.loop.train`.
        on_event: told of steps and validations.

    Raises:
        AvpipeError: see :func:`avpipe.train.loop.train`.
    """
    from accelerate import PartialState

    from avpipe.api.scoring import captions_of
    from avpipe.train.loop import train

    val = [clip for clip in val_clips if clip.captions]
    result = train(
        config,
        sources=sources,
        train_clips=train_clips,
        val_clips=val,
        run_folder=workspace.run(name),
        init_from=starting_checkpoint(workspace, name, config.train.init_from),
        score=score,
        make_tokenizer=make_tokenizer,
        on_event=on_event or (lambda event: None),
    )
    if val and PartialState().is_main_process:
        captions_of(workspace, name, "val", clips=val_clips, sources=sources)
    return result


def _run_name(workspace: Workspace, config: RunConfig, name: str | None) -> str:
    """The name asked for, or one made of the settings; never that of a run with other settings."""
    if name is not None:
        check_folder_name("name of a run", name)
        differences = run_differences(workspace.run(name), config)
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
    return next(candidate for candidate in names if not run_differences(workspace.run(candidate), config))


def starting_checkpoint(workspace: Workspace, run: str, init_from: str | None) -> Path | None:
    """The checkpoint that a new training starts from; a run that goes on needs none any more.

    Raises:
        UnknownNameError: neither a run nor the folder of a checkpoint.
    """
    from avpipe.train import checkpoint

    if init_from is None or checkpoint.find(workspace.run(run) / "checkpoints" / "last"):
        return None
    for folder in (workspace.run(init_from) / "checkpoints" / "best", Path(init_from)):
        if checkpoint.find(folder):
            return folder
    known = [name for name in workspace.runs() if checkpoint.find(workspace.run(name) / "checkpoints" / "best")]
    raise UnknownNameError("run", init_from, known, "The folder of a checkpoint will do, too.")


def run_differences(folder: Path, config: RunConfig) -> list[str]:
    """How the settings of a run in a folder differ; none if there is no run."""
    from avpipe.pipeline.config import flat, read_yaml
    from avpipe.train.config import check

    path = folder / "config.yaml"
    if not path.exists():
        return []
    values = read_yaml(path)
    with suppress(UsageError):  # an older run lacks what is new since: it was trained with the default of that
        values = check(values, str(path)).model_dump(mode="json")
    there, asked = flat(values), flat(config.model_dump(mode="json"))
    return [
        f"{key}: {there.get(key)!r} against {asked.get(key)!r}"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]
