"""Stage one: the clips of a manifest through decoding and frozen encoders into feature shards.

Per clip: opened once, decoded once, in a process that may die -> each encoder's own preprocessing, there too ->
batches across clips -> the encoders, in the process that owns the device -> one shard file per feature set, committed
when its completion mark is written. A bad clip becomes an outcome row.

What comes out depends on the manifest and the encoders alone, not on the number of processes nor on interruptions:
batches are cut in manifest order within a shard, and a shard that was interrupted is done again from its beginning.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from avpipe.data_manifests.manifest import Manifest
from avpipe.extract import media
from avpipe.extract.encoder import Encoder, Prepared
from avpipe.extract.media import Limits
from avpipe.extract.sandbox import DecodePool
from avpipe.pipeline import runner, shards
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import ClipError, DataError, UsageError
from avpipe.pipeline.features import Features
from avpipe.pipeline.runner import Event, Report
from avpipe.pipeline.shards import Mark, ShardPlan
from avpipe.pipeline.store import ShardWriter, write_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeJob:
    """One clip to decode: where its file lies, and which part of it is the clip."""

    path: Path
    start_seconds: float = 0.0
    stop_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What decoding gave for one clip.

    Attributes:
        prepared: for each feature set, the preprocessed arrays, or why there are none.
        notes: facts about the file that did not stop it.
        seconds: time it took.
    """

    prepared: Mapping[str, Prepared | ClipError]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Decode one clip for several encoders at once. Runs in a decoding process; pickles."""

    encoders: Mapping[str, Encoder]
    limits: Limits = field(default_factory=Limits)

    def __call__(self, job: DecodeJob) -> Decoded:
        """Open and decode the file once; then each encoder's own preprocessing.

        Raises:
            ClipError: the file cannot be used by any encoder.
        """
        start = time.perf_counter()
        audio = {name: encoder.audio for name, encoder in self.encoders.items()}
        clip = media.read(
            job.path,
            frames={name: encoder.sample for name, encoder in self.encoders.items() if audio[name] is None},
            audio={name: request for name, request in audio.items() if request is not None},
            start_seconds=job.start_seconds,
            stop_seconds=job.stop_seconds,
            limits=self.limits,
        )
        prepared: dict[str, Prepared | ClipError] = {}
        for name, encoder in self.encoders.items():
            try:
                prepared[name] = encoder.prepare(clip)
            except ClipError as error:
                prepared[name] = error
        return Decoded(prepared=prepared, notes=clip.notes, seconds=time.perf_counter() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything that a worker process must know besides its shards. Pickles.

    Attributes:
        encoders: by feature-set name; not loaded.
        folders: of each feature set.
        media_root: folder that the clips' paths are relative to.
        format: ``"hdf5"`` or ``"webdataset"``.
        devices: one a worker: ``("cuda:0", "cuda:1")`` or ``("cpu",)``.
        decoders: decoding processes of each worker.
        limits: on each clip's decoding.
    """

    encoders: Mapping[str, Encoder]
    folders: Mapping[str, Path]
    media_root: Path
    format: str = "hdf5"
    devices: tuple[str, ...] = ("cpu",)
    decoders: int = 2
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to work on.

    Attributes:
        plan: which clips the shard holds.
        clips: the same clips, in the plan's order.
        feature_sets: which feature sets still lack it.
    """

    plan: ShardPlan
    clips: tuple[Clip, ...]
    feature_sets: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the shard."""
        return self.plan.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What became of an extraction.

    Attributes:
        counts: for each feature set, clips by status over all finished shards: ``{"ok": 250, "failed": 4, ...}``.
        faults: for each feature set, failed and skipped clips by kind: ``{"decode": 3, "no_audio": 12}``.
        lost_shards: shards that were given up, with the reason: their worker died again and again.
        worked: how many shards this run wrote.
        bytes: for each feature set, its size on disk.
    """

    counts: Mapping[str, Mapping[str, int]]
    faults: Mapping[str, Mapping[str, int]]
    lost_shards: Mapping[str, str]
    worked: int
    bytes: Mapping[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether every clip is either ok or without the modality."""
        return not self.lost_shards and not any(counts["failed"] for counts in self.counts.values())


def extract(
    manifest: Manifest,
    setting: Setting,
    *,
    redo: Callable[[Mark], bool] | None = None,
    on_event: Callable[[Event], None] = runner.ignore,
) -> ExtractReport:
    """Extract every feature set of every clip that is not there yet.

    Args:
        manifest: the clips.
        setting: encoders and where their features go.
        redo: says of a finished shard whether to do it again (``retry``).
        on_event: called with every event of the run; its ``Progress`` data has ``clips`` (how many feature rows sets
            of clips are done) and ``statuses``.

    Raises:
        DataError: the media root is missing.
        FingerprintError: a feature set of that name holds other features.
        StoreError: the disk is full, a folder cannot be written, the manifest changed, ...
    """
    if not setting.media_root.is_dir():
        raise DataError(
            f"the media root {setting.media_root} does not exist: mount it, or say where the files are with --media"
        )
    tasks = plan_tasks(manifest, setting, redo=redo)
    report = runner.run(tasks, partial(ShardWorker, setting), processes=len(setting.devices), on_event=on_event)
    return summarise(setting.folders, worked=len(report.done), lost_shards=report.failed)


def plan_tasks(manifest: Manifest, setting: Setting, *, redo: Callable[[Mark], bool] | None = None) -> list[ShardTask]:
    """The shards that remain to be done, each with the feature sets that lack it."""
    plans = shards.plan([clip.clip_id for clip in manifest.clips], manifest.clips_per_shard)
    lacking: dict[int, list[str]] = {plan.index: [] for plan in plans}
    for name, folder in setting.folders.items():
        spec = setting.encoders[name].spec
        write_spec(folder, spec)
        again = {mark.path_name.removesuffix(".json") for mark in shards.marks(folder) if redo(mark)} if redo else set()
        pending = {plan.name for plan in shards.pending(folder, plans, spec.fingerprint)}
        for plan in plans:
            if plan.name in again | pending:
                lacking[plan.index].append(name)
    clips = {clip.clip_id: clip for clip in manifest.clips}
    return [
        ShardTask(plan=plan, clips=tuple(clips[i] for i in plan.clip_ids), feature_sets=tuple(lacking[plan.index]))
        for plan in plans
        if lacking[plan.index]
    ]


def summarise(
    folders: Mapping[str, Path], *, worked: int = 0, lost_shards: Mapping[str, str] | None = None
) -> ExtractReport:
    """Add up the marks of some feature sets."""
    counts: dict[str, Counter[str]] = {}
    faults: dict[str, Counter[str]] = {}
    sizes: dict[str, int] = {}
    for name, folder in folders.items():
        marks = shards.marks(folder)
        outcomes = [outcome for mark in marks for outcome in mark.outcomes]
        counts[name] = Counter({"ok": 0, "failed": 0, "skipped": 0})
        counts[name].update(outcome.status for outcome in outcomes)
        faults[name] = Counter(outcome.error_type for outcome in outcomes if outcome.error_type)
        sizes[name] = sum(mark.bytes for mark in marks)
    return ExtractReport(
        counts={name: dict(found) for name, found in counts.items()},
        faults={name: dict(found) for name, found in faults.items()},
        lost_shards=dict(lost_shards or {}),
        worked=worked,
        bytes=sizes,
    )


class ShardWorker:
    """Works off shards on one device, one after the other. Built once in each worker process.

    Args:
        setting: what to do; its encoders are loaded here.
        rank: of the process: says which device is its own.
    """

    def __init__(self, setting: Setting, rank: int) -> None:
        self.setting = setting
        # Decoding processes get encoders that are never loaded: no weights, no torch there, also when one is replaced.
        work = DecodeWork(copy.deepcopy(dict(setting.encoders)), setting.limits)
        for encoder in setting.encoders.values():
            encoder.load(setting.devices[rank])
        self.pool: DecodePool[DecodeJob, Decoded] = DecodePool(work, setting.decoders, setting.limits)

    def close(self) -> None:
        """End the decoding processes."""
        self.pool.close()

    def __call__(self, task: ShardTask, report: Report) -> Mapping[str, int]:
        """Extract one shard for every feature set that lacks it. Returns counts of clips by status."""
        counts: Counter[str] = Counter()
        with ExitStack() as stack:
            outputs = [
                _Output(name, self.setting.encoders[name], stack.enter_context(self._writer(name, task.plan)))
                for name in task.feature_sets
            ]
            jobs = [
                DecodeJob(
                    path=self.setting.media_root / clip.path,
                    start_seconds=clip.start_seconds,
                    stop_seconds=clip.stop_seconds,
                )
                for clip in task.clips
            ]
            for clip, decoded in zip(task.clips, self.pool.map(jobs), strict=True):
                statuses = Counter(output.add(clip.clip_id, decoded) for output in outputs)
                report({"clips": 1, "statuses": dict(statuses)})
                counts += statuses
            for output in outputs:
                output.flush()
        return counts

    def _writer(self, name: str, plan: ShardPlan) -> ShardWriter:
        return ShardWriter(self.setting.folders[name], plan, self.setting.encoders[name].spec, self.setting.format)


class _Output:
    """One feature set of one shard while it is made: a batch that fills up, and a writer."""

    def __init__(self, name: str, encoder: Encoder, writer: ShardWriter) -> None:
        self.name, self.encoder, self.writer = name, encoder, writer
        self.batch: list[tuple[str, Prepared, Decoded]] = []

    def add(self, clip_id: str, decoded: Decoded | ClipError) -> str:
        """Take one clip and say its status so far; encode as soon as a batch is full."""
        if isinstance(decoded, ClipError):
            return self.writer.fail(clip_id, decoded).status
        prepared = decoded.prepared[self.name]
        if isinstance(prepared, ClipError):
            return self.writer.fail(clip_id, prepared, notes=decoded.notes, seconds=decoded.seconds).status
        self.batch.append((clip_id, prepared, decoded))
        if len(self.batch) >= self.encoder.batch_size:
            self.flush()
        return "ok"

    def flush(self) -> None:
        """Encode and write what has gathered."""
        if not self.batch:
            return
        features = self.encoder.encode([prepared for _, prepared, _ in self.batch])
        for (clip_id, _, decoded), feature in zip(self.batch, features, strict=True):
            self.writer.add(clip_id, feature, notes=decoded.notes, seconds=decoded.seconds)
        self.batch.clear()


def extract_file(
    path: Path, encoders: Mapping[str, Encoder], *, device: str = "cpu", limits: Limits | None = None
) -> dict[str, Features]:
    """The features of one media file, by feature-set name; a modality that it lacks is left out.

    Raises:
        ClipError: the file cannot be used.
    """
    limits = limits or Limits()
    work = DecodeWork(copy.deepcopy(dict(encoders)), limits)
    for encoder in encoders.values():
        encoder.load(device)
    with DecodePool(work, processes=1, limits=limits) as pool:
        (decoded,) = pool.map([DecodeJob(path=path)])
    if isinstance(decoded, ClipError):
        raise decoded
    found = {}
    for name, prepared in decoded.prepared.items():
        if not isinstance(prepared, ClipError):
            found[name] = encoders[name].encode([prepared])[0]
        elif prepared.status == "failed":
            raise prepared
    return found


def devices(gpus: int | None) -> tuple[str, ...]:
    """One device a worker process.

    Args:
        gpus: how many GPUs to use; 0 = the CPU; ``None`` = all there are, or the CPU.

    Raises:
        UsageError: more are asked for than there are.
    """
    import torch

    there = torch.cuda.device_count()
    if gpus is not None and not 0 <= gpus <= there:
        what = "no GPU" if there == 0 else f"{there} GPUs"
        raise UsageError(f"{gpus} GPUs asked for, {what} found here; try --gpus {there}" + " (the CPU)" * (not there))
    count = there if gpus is None else gpus
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)
