"""What a process of a sweep does: one run after the other, with everything that they share at hand."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from avpipe.api.leaderboard import failure_file
from avpipe.api.scoring import score_run
from avpipe.api.training import train_run
from avpipe.eval import ValidationScorer
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import AvpipeError
from avpipe.pipeline.features import FeatureSource
from avpipe.pipeline.files import atomic_write
from avpipe.pipeline.runner import Tell
from avpipe.pipeline.workspace import Workspace
from avpipe.train.config import RunConfig
from avpipe.train.dataset import fits_in_memory
from avpipe.train.held import HeldFeatures, OnDisk
from avpipe.train.loop import new_tokenizer
from avpipe.train.tokenizer import Tokenizer

SECONDS_BETWEEN_STEPS_TOLD = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTask:
    """A run to train, to score, or both.

    Attributes:
        name: of the run.
        config: with the dataset and its feature sets.
        is_to_train: whether it is not trained to its end yet.
        split: to score afterwards; "" for none.
    """

    name: str
    config: RunConfig
    is_to_train: bool
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What all runs on a dataset share.

    Attributes:
        train_clips: all of the split.
        val_clips: all of the split.
        sources: feature sets by name, to be read from disk.
        held: the same, in memory as far as they fit there; empty: each process shall hold its own.
        wishes: of each feature set, whether it is to be held even if it does not fit.
        score: of captions of the validation clips; ``None`` if none has a caption.
    """

    train_clips: Sequence[Clip]
    val_clips: Sequence[Clip]
    sources: Mapping[str, FeatureSource]
    held: Mapping[str, FeatureSource] = field(default_factory=dict)
    wishes: Mapping[str, bool]
    score: ValidationScorer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a process is told.

    Attributes:
        workspace: with absolute paths.
        sweep: its name.
        devices: of each process, by rank: ``"cpu"``, ``"cuda:1"``.
        threads: of each process.
        materials: by dataset.
        memory_share: of the free memory: what a process may hold that must hold its own features.
    """

    workspace: Workspace
    sweep: str
    devices: tuple[str, ...]
    threads: int
    materials: Mapping[str, Material]
    memory_share: float


def hold(material: Material, share: float) -> dict[str, FeatureSource]:
    """The feature sets that are wished for, read into memory as far as they fit into a share of what is free."""
    clips = [*material.train_clips, *material.val_clips]
    chosen: dict[str, FeatureSource] = {}
    for name, must in material.wishes.items():
        with_it = {**chosen, name: material.sources[name]}
        if must or fits_in_memory(clips, with_it, share):
            chosen = with_it
    clip_ids = [clip.clip_id for clip in clips]
    return {
        name: HeldFeatures(source, clip_ids) if name in chosen else OnDisk(source)
        for name, source in material.sources.items()
    }


class CellWorker:
    """Trains and scores runs in a process of its own; see :class:`avpipe.pipeline.runner.Worker`.

    A run that fails leaves its reason in ``failed/`` of the sweep, and the next one is begun. After a failure that
    nobody foresaw, the process ends, and a fresh one goes on: who knows what it left behind on the device.

    Args:
        setting: of the sweep.
        rank: of this process.
    """

    def __init__(self, setting: Setting, rank: int) -> None:
        self._setting = setting
        # Everything that is trained here sees one device, its first.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(setting.devices[rank], os.environ.get("CUDA_VISIBLE_DEVICES"))
        torch.set_num_threads(setting.threads)
        self._held: dict[str, Mapping[str, FeatureSource]] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

    def __call__(self, tasks: Iterator[CellTask], tell: Tell) -> None:
        """Do all tasks that come; see :class:`avpipe.pipeline.runner.Worker`."""
        for task in tasks:
            file = failure_file(self._setting.workspace, self._setting.sweep, task.name)
            file.unlink(missing_ok=True)
            try:
                self._do(task, tell)
            except AvpipeError as error:
                self._note(file, str(error))
                tell.done(task.name, {"failed": 1})
            except Exception as error:  # noqa: BLE001  one run must not take the others with it; its folder says all
                said = f"{type(error).__name__}: {error}"
                self._note(file, f"{said}\n\n{traceback.format_exc()}")
                tell.done(task.name, {"failed": 1})
                return
            else:
                tell.done(task.name, {"finished": 1})

    def close(self) -> None:
        """Nothing to clean up: what is held goes with the process."""

    def _do(self, task: CellTask, tell: Tell) -> None:
        told = 0.0

        def on_event(event: Mapping[str, Any]) -> None:
            nonlocal told
            now = time.monotonic()
            if event["event"] != "step" or event["step"] == event["steps"] or now - told >= SECONDS_BETWEEN_STEPS_TOLD:
                told = now
                tell.progress(task.name, event)

        workspace = self._setting.workspace
        if task.is_to_train:
            material = self._setting.materials[task.config.dataset]
            sources = self._sources(task.config)
            mapped = [*(each.held for each in self._setting.materials.values()), *self._held.values()]
            _fresh_start([source for held in mapped for source in held.values()])
            result = train_run(
                workspace,
                task.name,
                task.config,
                sources={name: sources[name] for name in task.config.features},
                train_clips=material.train_clips,
                val_clips=material.val_clips,
                score=material.score,
                make_tokenizer=self._tokenizer,
                on_event=on_event,
            )
            tell.progress(task.name, {"event": "result", "best_score": result.best_score})
        if task.split:
            score_run(workspace, task.name, task.split)

    def _sources(self, config: RunConfig) -> Mapping[str, FeatureSource]:
        material = self._setting.materials[config.dataset]
        if config.train.cache_features == "no":
            return material.sources
        if material.held:
            return material.held
        if config.dataset not in self._held:
            self._held[config.dataset] = hold(material, self._setting.memory_share)
        return self._held[config.dataset]

    def _tokenizer(self, config: RunConfig, clips: Sequence[Clip]) -> Tokenizer:
        """As a training would make it; the same captions and settings give the same one, which is made once."""
        digest = hashlib.sha256(config.tokenizer.model_dump_json().encode())
        for clip in clips:
            digest.update(json.dumps(clip.captions).encode())
        key = digest.hexdigest()
        if key not in self._tokenizers:
            self._tokenizers[key] = new_tokenizer(config, clips)
        return self._tokenizers[key]

    @staticmethod
    def _note(file: Path, reason: str) -> None:
        with atomic_write(file) as aside:
            aside.write_text(f"{reason}\n", encoding="utf-8", errors="backslashreplace")


def visible(device: str, already: str | None) -> str:
    """``CUDA_VISIBLE_DEVICES`` for a process that shall see one device alone.

    Args:
        device: ``"cpu"`` or ``"cuda:1"``.
        already: what the variable says so far: a device is counted among these.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return ""
    return already.split(",")[int(index)] if already else index


def _fresh_start(held: Iterable[FeatureSource]) -> None:
    """Let go of what the former run left, and begin to measure memory anew.

    Args:
        held: what this process has mapped, and runs have read.
    """
    # Precision is a setting of the process to accelerate, which refuses another one; its own tests change it like this.
    AcceleratorState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for source in held:
        if isinstance(source, HeldFeatures):
            source.let_go()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).malloc_trim(0)  # what is free in our heap goes back to the system
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak of resident memory
    except OSError as error:
        log.warning("peak memory will be that of the largest run of this process so far: %s", error)
