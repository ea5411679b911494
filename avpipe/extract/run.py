"""Stage one: the clips of a manifest through decoding and frozen encoders into feature shards.

Per clip: opened once, decoded once, in a process that may die -> each encoder's own preprocessing, there too
(``decoding``) -> batches across clips -> the encoders, in the process that owns the device -> one shard file per
feature set, committed when its completion mark is written (``worker``). A bad clip becomes an outcome row.

What comes out depends on the manifest and the encoders alone, not on the number of processes or machines nor on
interruptions: batches are cut in manifest order within a shard, and a shard that was interrupted is done again from its
beginning.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avpipe.data_manifests.manifest import Manifest
from avpipe.extract.decoding import DecodeJob, DecodeWork
from avpipe.extract.encoder import Encoder
from avpipe.extract.media import TextRequest
from avpipe.extract.worker import Setting, ShardTask, ShardWorker, prepare_text
from avpipe.pipeline import runner, shards
from avpipe.pipeline.errors import ClipError, DataError, StoreError, UsageError
from avpipe.pipeline.features import Encoded, Features, Outcome, Segments
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.runner import Event
from avpipe.pipeline.sandbox import DecodePool
from avpipe.pipeline.shards import Mark
from avpipe.pipeline.store import write_spec


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
    part: Part | None = None,
    engine: runner.Engine[ShardTask] | None = None,
    on_event: Callable[[Event], None] = runner.ignore,
) -> ExtractReport:
    """Extract every feature set of every clip that is not there yet.

    Args:
        manifest: the clips.
        setting: encoders and where their features go.
        redo: says of a finished shard whether to do it again (``retry``).
        part: which shards are this run's business, where several machines share the work.
        engine: what runs the worker processes; by default this machine.
        on_event: called with every event of the run; its ``Progress`` data has ``clips`` (how many are decoded since
            the last), their ``statuses``, ``failures`` (how many, by kind), and ``waits`` (seconds that the worker
            waited so far, by what for).

    Raises:
        DataError: the media root is missing.
        FingerprintError: a feature set of that name holds other features.
        StoreError: the disk is full, a folder cannot be written, the manifest changed, ...
    """
    if not setting.media_root.is_dir():
        raise DataError(
            f"the media root {setting.media_root} does not exist: mount it, or say where the files are with --media"
        )
    tasks = plan_tasks(manifest, setting, redo=redo, part=part)
    worker = partial(ShardWorker, setting)
    report = runner.run(tasks, worker, processes=len(setting.devices), on_event=on_event, engine=engine)
    return summarise(setting.folders, worked=len(report.done), lost_shards=report.failed, part=part)


@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal parts of the work: every ``count``-th shard, whatever is done already.

    Attributes:
        index: of this part, from 1.
        count: how many there are.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(f"part: expected i/n with 1 <= i <= n, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Part:
        """``"3/16"``.

        Raises:
            UsageError: it is not of that form.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise UsageError(f"part: expected i/n, for example 3/16, got {text!r}")
        return cls(int(index), int(count))

    def has(self, shard: int) -> bool:
        """Whether a shard of that number is one of this part's."""
        return shard % self.count == self.index - 1


def plan_tasks(
    manifest: Manifest,
    setting: Setting,
    *,
    redo: Callable[[Mark], bool] | None = None,
    part: Part | None = None,
) -> list[ShardTask]:
    """The shards that remain to be done, each with the feature sets that lack it.

    Raises:
        FingerprintError: a feature set of that name holds other features.
        StoreError: the manifest changed; a text that is to be read is neither extracted nor about to be.
    """
    plans = shards.plan([clip.clip_id for clip in manifest.clips], manifest.clips_per_shard)
    lacking: dict[str, set[str]] = {}
    for name, folder in setting.folders.items():
        spec = setting.encoders[name].spec
        write_spec(folder, spec)
        lacking[name] = {plan.name for plan in shards.pending(folder, plans, spec.fingerprint)}
        if redo:
            lacking[name] |= {mark.path_name.removesuffix(".json") for mark in shards.marks(folder) if redo(mark)}
    for name, source in setting.readers.items():  # what is written anew is read anew
        lacking[name] |= lacking.get(source, set())
    clips = {clip.clip_id: clip for clip in manifest.clips}
    mine = [plan for plan in plans if part is None or part.has(plan.index)]
    for name, source in setting.readers.items():
        if source not in setting.folders:
            fingerprint = str(setting.encoders[name].spec.source["fingerprint"])
            unread = {plan.name for plan in shards.pending(setting.texts[source], plans, fingerprint)} & lacking[name]
            if gone := next((plan.name for plan in mine if plan.name in unread), ""):
                raise StoreError(
                    f"{setting.texts[source]} lacks shard {gone}: extract {source!r} first, or beside what reads it "
                    f"({name!r})"
                )
    wanted = {plan.name: tuple(name for name in setting.folders if plan.name in lacking[name]) for plan in mine}
    return [
        ShardTask(plan=plan, clips=tuple(clips[clip_id] for clip_id in plan.clip_ids), feature_sets=wanted[plan.name])
        for plan in mine
        if wanted[plan.name]
    ]


def summarise(
    folders: Mapping[str, Path],
    *,
    worked: int = 0,
    lost_shards: Mapping[str, str] | None = None,
    part: Part | None = None,
) -> ExtractReport:
    """Add up the marks of some feature sets, of one part of the shards or of all."""
    counts: dict[str, Counter[str]] = {}
    faults: dict[str, Counter[str]] = {}
    sizes: dict[str, int] = {}
    for name, folder in folders.items():
        marks = [mark for mark in shards.marks(folder) if part is None or part.has(int(Path(mark.file).stem))]
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


def extract_file(
    path: Path, encoders: Mapping[str, Encoder], *, device: str = "cpu", limits: Limits | None = None
) -> dict[str, Encoded]:
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
    found: dict[str, Encoded] = {}
    for name, prepared in decoded.prepared.items():
        if not isinstance(prepared, ClipError):
            found[name] = encoders[name].encode([prepared])[0]
        elif prepared.status == "failed":
            raise prepared
    found = {name: _plain(encoded, encoders[name].spec.views) for name, encoded in found.items()}
    for name, encoder in encoders.items():
        if isinstance(encoder.request, TextRequest) and isinstance(text := found.get(encoder.request.of), Segments):
            outcome = Outcome(clip_id=path.name, status="ok")
            found[name] = encoder.encode([prepare_text(encoder, encoder.request.of, outcome, text)])[0]
    return found


def _plain(encoded: Encoded, views: int) -> Encoded:
    """The plain view alone."""
    if isinstance(encoded, Segments) or views == 1:
        return encoded
    rows = len(encoded.data) // views
    return Features(data=encoded.data[:rows], pts_seconds=encoded.pts_seconds[:rows])
