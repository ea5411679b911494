"""Many runs at once: what ``avpipe sweep`` does."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.places import check_extracted, check_folder_name, choose_dataset, open_features
from avpipe.api.training import run_differences, starting_checkpoint
from avpipe.pipeline.errors import AvpipeError, ConfigError, UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.api.leaderboard import Leaderboard
    from avpipe.api.sweep_worker import CellTask, Material
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import FeatureSource
    from avpipe.pipeline.runner import Event, RunReport
    from avpipe.pipeline.store import FeatureSet
    from avpipe.train.config import RunConfig
    from avpipe.train.grid import Cell, Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one call did.

    Attributes:
        worked: runs that it trained or scored, in the order in which they were finished.
        failed: by run, why.
        skipped: how many were finished before.
    """

    worked: tuple[str, ...]
    failed: Mapping[str, str]
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The runs of a grid file, in a workspace."""

    workspace: Workspace
    grid: Grid

    @property
    def folder(self) -> Path:
        """Where the leaderboard goes."""
        return self.workspace.sweep(self.grid.name)

    def leaderboard(self, split: str = "val") -> Leaderboard:
        """What became of the runs so far, also while they are trained; see :func:`avpipe.api.leaderboard.leaderboard`.

        Raises:
            UnknownNameError: no such split.
        """
        from avpipe.api.leaderboard import leaderboard

        _check_split(split)
        return leaderboard(self.workspace, self.grid, split)

    def run(
        self,
        *,
        split: str = "val",
        is_to_train: bool = True,
        jobs: int | None = None,
        threads: int | None = None,
        gpus: int | None = None,
        engine: str = "local",
        on_plan: Callable[[Mapping[str, int]], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> SweepReport:
        """Train every run that is not finished, and score it.

        Everything is checked before anything starts. A run that was broken off goes on; one that failed is tried
        again; one that fails now leaves its reason in ``failed/`` of :attr:`folder` and stops no other.

        Args:
            split: to score with the best checkpoint, beside ``val``.
            is_to_train: ``False``: score the runs that are finished, no more.
            jobs: runs side by side; default: one a GPU, or on the CPU one for each ``threads`` cores.
            threads: of each run; default: 1 on the CPU, so that a run has the same losses wherever it is trained;
                beside a GPU the cores, shared.
            gpus: how many; 0 = the CPU; default: all there are, or the CPU. Several jobs may share one.
            engine: what runs the processes: ``"local"`` or ``"ray"``.
            on_plan: told of the steps of every run that is to be trained.
            on_event: told of everything; the data of a ``Progress`` are what a training tells (of its steps four times
                a second), and at its end ``event: "result"`` with its ``best_score``.

        Raises:
            ConfigError: cells cannot be trained, or runs of their names have other settings; all faults at once.
            AvpipeError: another process is at it; no process can be started.
        """
        from avpipe.api.sweep_worker import CellWorker, Setting, hold
        from avpipe.pipeline import runner
        from avpipe.pipeline.engines import ENGINES
        from avpipe.train.dataset import CACHED_SHARE

        _check_split(split)
        place = ENGINES.load(engine)
        with _alone(self.folder) if is_to_train else nullcontext():
            configs, datasets = self._resolved(is_to_train=is_to_train)
            tasks = self._tasks(configs, split, is_to_train=is_to_train)
            if not tasks:
                return SweepReport(worked=(), failed={}, skipped=len(configs))
            # The longest first, by the look of it: at the end, no process waits for another's long one.
            tasks.sort(
                key=lambda task: datasets[task.config.dataset].bytes_to_read(task.config) if task.is_to_train else 0.0,
                reverse=True,
            )
            devices, gpu_share = _devices(place.devices(gpus), jobs, lambda: place.cores(1) // (threads or 1))
            devices = devices[: len(tasks)]
            threads = threads or (1 if devices[0] == "cpu" else place.cores(len(devices)))
            trained = [task for task in tasks if task.is_to_train]
            if on_plan and trained:
                on_plan({task.name: datasets[task.config.dataset].steps(task.config) for task in trained})
            materials = {name: datasets[name].material(trained) for name in {task.config.dataset for task in trained}}
            share = CACHED_SHARE / max(1, len(materials))
            if engine == "local":  # on other machines, each process holds its own
                materials = {
                    name: replace(material, held=hold(material, share)) if material.wishes else material
                    for name, material in materials.items()
                }
            setting = Setting(
                workspace=_absolute(self.workspace),
                sweep=self.grid.name,
                devices=devices,
                threads=threads,
                materials=materials,
                memory_share=share / len(devices),
            )
            report = runner.run(
                tasks,
                partial(CellWorker, setting),
                processes=len(devices),
                engine=partial(place.Pool, needs=runner.Needs(cores=threads, gpus=gpu_share)),
                on_event=on_event or runner.ignore,
            )
        failed = self._failures(tasks, report)
        worked = tuple(name for name in report.done if name not in failed)
        return SweepReport(worked=worked, failed=failed, skipped=len(configs) - len(tasks))

    def _tasks(self, configs: Mapping[str, RunConfig], split: str, *, is_to_train: bool) -> list[CellTask]:
        """What remains to be done, in the order of the grid."""
        from avpipe.api.leaderboard import is_scored, is_trained
        from avpipe.api.sweep_worker import CellTask

        tasks = []
        for name, config in configs.items():
            folder = self.workspace.run(name)
            is_done = is_trained(folder)
            if (is_done and not is_scored(folder, split)) or (is_to_train and not is_done):
                scored = split if split != "val" else ""
                tasks.append(CellTask(name=name, config=config, is_to_train=not is_done, split=scored))
        return tasks

    def _failures(self, tasks: Iterable[CellTask], report: RunReport) -> dict[str, str]:
        """Why some runs failed."""
        from avpipe.api.leaderboard import failure_file
        from avpipe.pipeline.files import atomic_write

        failed = {}
        for task in tasks:
            file = failure_file(self.workspace, self.grid.name, task.name)
            if task.name in report.failed:  # its processes died, and could not say so themselves
                with atomic_write(file) as aside:
                    aside.write_text(f"{report.failed[task.name]}\n", encoding="utf-8")
            if file.exists():
                failed[task.name] = file.read_text(encoding="utf-8").partition("\n\n")[0].strip()
        return failed

    def _resolved(self, *, is_to_train: bool) -> tuple[dict[str, RunConfig], dict[str, _Dataset]]:
        """The configuration of every run, with its dataset and feature sets, and what is known of these.

        Raises:
            ConfigError: all faults at once.
        """
        from avpipe.api.leaderboard import is_trained
        from avpipe.train.grid import check_parts, listed, twice

        datasets: dict[str, _Dataset] = {}
        configs: dict[str, RunConfig] = {}
        wrong: dict[str, list[str]] = {}
        parts: dict[str, list[str]] = {}

        def checked(config: RunConfig, sources: Mapping[str, FeatureSet]) -> list[str]:
            """What its parts lack; the same parts on the same features are built once."""
            key = json.dumps([config.fusion, config.objectives, config.dataset, config.features], sort_keys=True)
            if key not in parts:
                parts[key] = _faults(partial(check_parts, config, {name: s.spec for name, s in sources.items()}))
            return parts[key]

        for cell in self.grid.cells:
            folder = self.workspace.run(cell.run)
            if not is_to_train and not is_trained(folder):
                configs[cell.run] = cell.config
                continue
            try:
                name = choose_dataset(self.workspace, cell.config.dataset or None, extracted=True)
                if name not in datasets:
                    datasets[name] = _Dataset(_absolute(self.workspace), name)
                sources = datasets[name].open(cell.config)
            except AvpipeError as error:
                wrong.setdefault(str(error), []).append(cell.label)
                continue
            config = cell.config.model_copy(update={"dataset": name, "features": tuple(sources)})
            configs[cell.run] = config
            found: list[str] = []
            if not is_trained(folder):
                found += checked(config, sources)
                found += _faults(partial(datasets[name].steps, config))
                found += _faults(partial(starting_checkpoint, self.workspace, cell.run, config.train.init_from))
            if differences := run_differences(folder, config):
                advice = f"give the sweep another name, or delete {folder}"
                found.append(f"run {cell.run!r} has other settings, {', '.join(differences)}; {advice}")
            for fault in found:
                wrong.setdefault(fault, []).append(cell.label)
        labels = [(cell.label, identity(configs[cell.run])) for cell in self.grid.cells if cell.run in configs]
        for fault, alike in (twice(labels, "cells are one and the same training") if is_to_train else {}).items():
            wrong.setdefault(fault, []).extend(alike)
        if wrong:
            faults = listed(wrong, len(self.grid.cells))
            raise ConfigError(self.grid.source, [*faults, *_advice(wrong, self.grid.cells)])
        return configs, datasets


def sweep(workspace: Workspace, grid: Path) -> Sweep:
    """Read a grid file; see :mod:`avpipe.train.grid`.

    Raises:
        ConfigError: it is wrong; all faults at once, each with the cells that have it.
    """
    from avpipe.train.grid import read_grid

    read = read_grid(grid)
    check_folder_name("name of a sweep", read.name)
    return Sweep(workspace=workspace, grid=read)


def identity(config: RunConfig) -> str:
    """What makes two configurations the same training. The modalities say no more than the feature sets do."""
    values = config.model_dump(mode="json", exclude={"modalities"})
    of_no_weight = [name for name, settings in values["objectives"].items() if not settings["weight"]]
    for name in of_no_weight:
        if name != "cross_entropy":  # it says what a caption costs, with weight 0 too
            del values["objectives"][name]
    return json.dumps(values, sort_keys=True)


class _Dataset:
    """What the runs on one dataset share."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        from avpipe.data_manifests import manifest

        self.workspace, self.name = workspace, name
        clips = manifest.read_for_training(workspace.manifest(name))
        self.train_clips: Sequence[Clip] = clips.train
        self.val_clips: Sequence[Clip] = clips.val
        self.opened: dict[str, FeatureSet] = {}
        self._chosen: dict[tuple[tuple[str, ...], ...], tuple[str, ...]] = {}
        self._captions: dict[tuple[tuple[str, ...], bool], list[int]] = {}

    def open(self, config: RunConfig) -> dict[str, FeatureSet]:
        """The feature sets of a run; each is opened and looked through once.

        Raises:
            AvpipeError: see :func:`avpipe.api.places.open_features`, :func:`avpipe.api.places.check_extracted`.
        """
        key = (config.features, tuple(config.modalities))
        if key not in self._chosen:
            found = open_features(self.workspace, self.name, *key)
            new = {name: source for name, source in found.items() if name not in self.opened}
            check_extracted(self.name, new, [clip.clip_id for clip in (*self.train_clips, *self.val_clips)])
            self.opened |= new
            self._chosen[key] = tuple(found)
        return {name: self.opened[name] for name in self._chosen[key]}

    def steps(self, config: RunConfig) -> int:
        """How many steps a run takes, unless its patience ends.

        Raises:
            DataError: captions of the clip that follows are targets, and there are none.
        """
        from avpipe.train.dataset import captions_of_next, learnable
        from avpipe.train.steps import steps_of

        key = (config.features, "next" in config.train.targets)
        if key not in self._captions:
            sources = [self.opened[name] for name in config.features]
            usable = learnable(self.train_clips, sources)
            following = captions_of_next(usable) if key[1] else {}
            self._captions[key] = [len(clip.captions) + len(following.get(clip.clip_id, ())) for clip in usable]
        return steps_of(config.train, self._captions[key])[1]

    def bytes_to_read(self, config: RunConfig) -> float:
        """Of the features, by all steps of a run, about: by this, runs on several datasets can be compared."""
        clips = self.steps(config) * config.train.batch_size * config.train.accumulate
        held = sum(self.opened[name].bytes for name in config.features)
        return clips * held / max(1, len(self.train_clips) + len(self.val_clips))

    def material(self, tasks: Iterable[CellTask]) -> Material:
        """What the processes are given, for those of the tasks that are on this dataset."""
        from avpipe.api.sweep_worker import Material
        from avpipe.eval import ValidationScorer

        configs = [task.config for task in tasks if task.config.dataset == self.name]
        wishes: dict[str, bool] = {}
        for config in configs:
            for feature_set in config.features if config.train.cache_features != "no" else ():
                wishes[feature_set] = wishes.get(feature_set, False) or config.train.cache_features == "yes"
        references = {clip.clip_id: clip.captions for clip in self.val_clips if clip.captions}
        sources: Mapping[str, FeatureSource] = self.opened
        return Material(
            train_clips=self.train_clips,
            val_clips=self.val_clips,
            sources=sources,
            wishes=wishes,
            score=ValidationScorer(references) if references else None,
        )


def _devices(
    there: tuple[str, ...], jobs: int | None, jobs_of_the_cores: Callable[[], int]
) -> tuple[tuple[str, ...], float]:
    """The device of each process, and what share of a GPU each takes."""
    if there[0] == "cpu":  # an engine may name one a machine: what counts is how many cores there are
        return ("cpu",) * (jobs or max(1, jobs_of_the_cores())), 0.0
    count = jobs or len(there)
    return tuple(there[index % len(there)] for index in range(count)), 1 / math.ceil(count / len(there))


def _faults(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.faults
    except AvpipeError as error:
        return [str(error)]
    return []


def _advice(wrong: Mapping[str, Sequence[str]], cells: Sequence[Cell]) -> list[str]:
    """How to leave the faulty cells out, if others remain."""
    labels = {label for found in wrong.values() for label in found}
    faulty = [cell for cell in cells if cell.label in labels]
    if len(faulty) == len(cells):
        return []
    example = json.dumps(dict(faulty[0].choices), ensure_ascii=False)
    return [
        f"{len(faulty)} of {len(cells)} cells are wrong; to go on with the others, put what they have in common under "
        f"exclude, for example {example} or less of it"
    ]


def _check_split(split: str) -> None:
    from avpipe.pipeline.clip import SPLITS

    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if split == "train":
        raise UsageError("split: expected val or test, got train: what was learned by heart says nothing")


def _absolute(workspace: Workspace) -> Workspace:
    """A process may run in another folder."""
    from avpipe.pipeline.remote import is_remote

    return workspace if is_remote(workspace.root) else Workspace(workspace.root.absolute())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sweeps of this name away: two processes would write one run.

    Raises:
        AvpipeError: another process is inside.
        StoreError: the folder cannot be written.
    """
    from avpipe.pipeline.files import storage_errors

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AvpipeError(
                f"sweep {folder.name!r} is being run by another process. --leaderboard shows how far it is"
            ) from None
        yield
