"""The machine room: what one worker process does with its device, its decoding processes and its disk.

Everything runs at once, and what waits, waits for what is slowest::

    decoding processes  ->  encoding  ->  writing rows  ->  committing shards
    (ahead of the rest)     (the device)  (a thread)        (a thread)

- Decoding runs ahead of the device, also across the border between two shards: the next shard is asked for as soon as
  the last clip of this one is under way.
- Encoding takes whole batches. They are cut in manifest order within a shard and never across its border, so that what
  comes out depends on the manifest alone, not on the number of workers.
- Rows are written while the device goes on. Closing a shard (laying it out, flushing it to the disk, its checksum)
  takes as long as encoding does where features are large; it runs beside the next shard.
- Encoders that read text come last: when the text of the shard is safe on the disk.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from avpipe.extract.decoding import Decoded, DecodeJob, DecodeWork
from avpipe.extract.encoder import Encoder, Prepared
from avpipe.extract.fetch import Fetcher
from avpipe.extract.media import Media, TextRequest
from avpipe.pipeline import shards
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import AvpipeError, ClipError, SkipClip, StoreError
from avpipe.pipeline.features import Encoded, Outcome, Segments
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.runner import Tell
from avpipe.pipeline.sandbox import DecodePool
from avpipe.pipeline.shards import Mark, ShardPlan
from avpipe.pipeline.store import ShardWriter, TextReader, open_reader

Residency = Literal["together", "turns"]

TURN_CLIPS = 128
"""With ``residency="turns"``: how many decoded clips wait in memory until an encoder has its turn."""

UNWRITTEN_BATCHES, UNCOMMITTED_SHARDS = 4, 2
_LOOK_SECONDS = 0.5


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
        residency: ``"together"``: all encoders stay on the device; ``"turns"``: one after the other is brought there,
            where the device has no room for all of them.
        texts: folders of the feature sets whose text is read, by name.
    """

    encoders: Mapping[str, Encoder]
    folders: Mapping[str, Path]
    media_root: Path
    format: str = "hdf5"
    devices: tuple[str, ...] = ("cpu",)
    decoders: int = 2
    limits: Limits = field(default_factory=Limits)
    residency: Residency = "together"
    texts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def readers(self) -> dict[str, str]:
        """Feature sets whose encoders read text, and whose text that is."""
        requests = {name: encoder.request for name, encoder in self.encoders.items()}
        return {name: request.of for name, request in requests.items() if isinstance(request, TextRequest)}


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


class ShardWorker:
    """Works off shards on one device. Built once in each worker process.

    Args:
        setting: what to do; its encoders are loaded here.
        rank: of the process: says which device is its own.
    """

    def __init__(self, setting: Setting, rank: int) -> None:
        self.setting, self.device = setting, setting.devices[rank]
        decoded_for = {name: encoder for name, encoder in setting.encoders.items() if name not in setting.readers}
        # Decoding processes get encoders that are never loaded: no weights, no torch there, also when one is replaced.
        work = DecodeWork(copy.deepcopy(decoded_for), setting.limits)
        if setting.residency == "together":
            for name, encoder in setting.encoders.items():
                with _memory_hint(name, encoder, self.device):
                    encoder.load(self.device)
        self.fetcher = Fetcher()
        bring = self.fetcher.here if is_remote(setting.media_root) else nullcontext
        self.pool: DecodePool[DecodeJob, Decoded] = DecodePool(work, setting.decoders, setting.limits, bring=bring)
        largest_batch = max((encoder.batch_size for encoder in decoded_for.values()), default=1)
        self.look_ahead = 2 * setting.decoders + largest_batch

    def close(self) -> None:
        """End the decoding processes."""
        self.pool.close()
        self.fetcher.close()

    def __call__(self, tasks: Iterator[ShardTask], tell: Tell) -> None:
        """Extract every shard that comes, for every feature set that lacks it; counts are clips by status."""
        with _Room(self.setting, self.device, tell) as room:
            clips = _Clips(tasks, room)
            under_way: deque[tuple[_Shard, Clip, Future[Decoded | ClipError]]] = deque()
            while True:
                while len(under_way) < self.look_ahead and (found := clips.next(wait=not under_way)):
                    shard, clip = found
                    under_way.append((shard, clip, self.pool.submit(DecodeJob.of(clip, self.setting.media_root))))
                if not under_way:
                    return
                shard, clip, future = under_way.popleft()
                with room.waiting("decoding"):
                    decoded = future.result()
                room.raise_errors()
                shard.take(clip.clip_id, decoded)


class _Clips:
    """The clips of all tasks, one by one; a thread waits for the next task, so that nobody else must."""

    def __init__(self, tasks: Iterator[ShardTask], room: _Room) -> None:
        self._tasks, self._room = tasks, room
        self._come: queue.SimpleQueue[ShardTask | BaseException | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._current: Iterator[tuple[_Shard, Clip]] = iter(())
        self._is_asked = self._is_over = False
        threading.Thread(target=self._take, daemon=True, name="tasks").start()

    def next(self, *, wait: bool) -> tuple[_Shard, Clip] | None:
        """The next clip to decode and its shard; ``None`` if there is none now (without ``wait``), or none at all."""
        while (found := next(self._current, None)) is None and not self._is_over:
            if not self._is_asked:
                self._wanted.release()
                self._is_asked = True
            task = self._coming(wait=wait)
            if isinstance(task, queue.Empty):
                return None
            self._is_asked = False
            if isinstance(task, BaseException):
                raise task
            if task is None:
                self._is_over = True
            else:
                self._current = self._room.open(task)
        return found

    def _coming(self, *, wait: bool) -> ShardTask | BaseException | None:
        """What the thread was given; ``queue.Empty`` if nothing is there yet (without ``wait``).

        The parent may hold the next task back until the last one is done, which never happens if a lane has failed.
        """
        while True:
            self._room.raise_errors()
            try:
                return self._come.get(block=wait, timeout=_LOOK_SECONDS)
            except queue.Empty as nothing:
                if not wait:
                    return nothing

    def _take(self) -> None:
        try:
            while True:
                self._wanted.acquire()
                task = next(self._tasks, None)
                self._come.put(task)
                if task is None:
                    return
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self._come.put(error)


class _Room:
    """The stages behind decoding, each a lane of its own, and the shards that are under way in them."""

    def __init__(self, setting: Setting, device: str, tell: Tell) -> None:
        self.setting, self.device, self.tell = setting, device, tell
        self._seconds = {"decoding": 0.0, "encoding": 0.0, "writing": 0.0}  # that something waited for what this names
        # Two threads on a GPU: one gathers its batch while the other's is computed.
        threads = 2 if device.startswith("cuda") and setting.residency == "together" else 1
        self.encoding = _Lane("encode", threads, threads + 1)
        self.writing = _Lane("write", 1, UNWRITTEN_BATCHES)
        self.committing = _Lane("commit", 1, UNCOMMITTED_SHARDS)
        self._writers: set[ShardWriter] = set()

    def open(self, task: ShardTask) -> Iterator[tuple[_Shard, Clip]]:
        """Begin a shard; its clips, if they need be decoded."""
        shard = _Shard(task, self)
        if not shard.outputs:  # only who reads lacks it
            shard.close()
            return iter(())
        return ((shard, clip) for clip in task.clips)

    def writer(self, name: str, plan: ShardPlan) -> ShardWriter:
        """For a shard of a feature set; abandoned in the end, if nobody commits it."""
        setting, spec = self.setting, self.setting.encoders[name].spec
        kind = _arithmetic(self.device, spec.config.get("precision"))
        writer = ShardWriter(setting.folders[name], plan, spec, setting.format, arithmetic=kind)
        self._writers.add(writer)
        return writer

    def commit(self, writer: ShardWriter) -> Mark:
        """Have a shard reach the disk."""
        writer.commit()
        self._writers.discard(writer)
        return writer.mark

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the seconds that something waits inside."""
        start = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """What was waited for so far, and how long."""
        return dict(self._seconds)

    def encode(self, batches: Sequence[_Batch]) -> None:
        """Hand batches to the device. Waits while it has enough to do."""
        with self.waiting("encoding"):
            self.encoding.put(partial(self._encode, batches))

    def _encode(self, batches: Sequence[_Batch]) -> None:
        loaded: Encoder | None = None
        for batch in batches:
            encoder = batch.output.encoder
            with _memory_hint(batch.output.name, encoder, self.device):
                if self.setting.residency == "turns" and encoder is not loaded:
                    if loaded:
                        loaded.load("cpu")
                    encoder.load(self.device)
                    loaded = encoder
                features = encoder.encode([prepared for _, prepared, _ in batch.clips])
            with self.waiting("writing"):
                self.writing.put(partial(batch.write, features))
        if loaded:
            loaded.load("cpu")

    def raise_errors(self) -> None:
        """Raise what went wrong in a lane, if anything did."""
        for lane in (self.encoding, self.writing, self.committing):
            if lane.error:
                raise lane.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        lanes = (self.encoding, self.writing, self.committing)
        for lane in lanes:  # each hands on to the next
            lane.close(abort=kind is not None or any(other.error for other in lanes))
        for writer in self._writers:
            writer.abandon()
        if kind is None:
            self.raise_errors()


class _Lane:
    """Threads that work off what they are handed; who hands on waits when too much has gathered.

    The first error stops the lane: what comes after it is dropped.
    """

    def __init__(self, name: str, threads: int, depth: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threading.Semaphore(depth)
        self._is_aborted = False
        self.error: Exception | None = None

    def put(self, work: Callable[[], None]) -> None:
        self._free.acquire()
        self._threads.submit(self._do, work)

    def close(self, *, abort: bool) -> None:
        """Wait until all is done, or, with ``abort``, until what is under way is."""
        self._is_aborted |= abort
        self._threads.shutdown()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            if not self._is_aborted and self.error is None:
                work()
        except Exception as error:  # noqa: BLE001 (the main thread raises it)
            self.error = error
        finally:
            self._free.release()


class _Shard:
    """One shard under way, for all feature sets that lack it. ``take`` and ``close`` belong to the main thread, what
    has to do with ``_written`` to the writing thread.
    """

    def __init__(self, task: ShardTask, room: _Room) -> None:
        self.task, self.room = task, room
        readers = room.setting.readers
        self.outputs = [_Output(name, self) for name in task.feature_sets if name not in readers]
        self.readers = [name for name in task.feature_sets if name in readers]
        self._left = len(task.clips)
        self._gathered = self._batches = 0
        self._expected: int | None = None
        self._written = 0

    def take(self, clip_id: str, decoded: Decoded | ClipError) -> None:
        """Take one decoded clip, and encode what makes whole batches."""
        faults = [output.take(clip_id, decoded) for output in self.outputs]
        statuses = Counter(fault.status if fault else "ok" for fault in faults)
        failures = Counter(fault.kind for fault in faults if fault and fault.status == "failed")
        waits = self.room.seconds()
        progress = {"clips": 1, "statuses": dict(statuses), "failures": dict(failures), "waits": waits}
        self.room.tell.progress(self.task.name, progress)
        self._left -= 1
        self._gathered += 1
        is_turn = self.room.setting.residency == "together" or self._gathered >= TURN_CLIPS
        if is_turn or not self._left:
            self._gathered = 0
            self._encode(to_the_end=not self._left)
        if not self._left:
            self.close()

    def close(self) -> None:
        """Say that no more batches will come."""
        self.room.writing.put(partial(self._all_sent, self._batches))

    def written(self) -> None:
        """Say that a batch is written."""
        self._written += 1
        self._finish_if_whole()

    def _encode(self, *, to_the_end: bool) -> None:
        batches = [batch for output in self.outputs for batch in output.batches(to_the_end=to_the_end)]
        self._batches += len(batches)
        if self.room.setting.residency == "turns":
            if batches:
                self.room.encode(batches)
            return
        for batch in batches:
            self.room.encode([batch])

    def _all_sent(self, batches: int) -> None:
        self._expected = batches
        self._finish_if_whole()

    def _finish_if_whole(self) -> None:
        if self._written == self._expected:
            self.room.committing.put(self._finish)

    def _finish(self) -> None:
        """In the committing thread: close the files, let those who read have their turn, and tell."""
        counts: Counter[str] = Counter()
        for output in self.outputs:
            output.note_failures()
            counts.update(self.room.commit(output.writer).counts)
        for name in self.readers:
            counts.update(_read_text(name, self.task, self.room).counts)
        if not self.outputs:
            waits = self.room.seconds()
            progress = {"clips": len(self.task.clips), "statuses": dict(counts), "failures": {}, "waits": waits}
            self.room.tell.progress(self.task.name, progress)
        self.room.tell.done(self.task.name, counts)


class _Output:
    """One feature set of one shard while it is made."""

    def __init__(self, name: str, shard: _Shard) -> None:
        self.name, self.shard = name, shard
        self.encoder = shard.room.setting.encoders[name]
        self.writer = shard.room.writer(name, shard.task.plan)
        self._gathered: list[tuple[str, Prepared, Decoded]] = []
        self._failures: list[tuple[str, ClipError, tuple[str, ...], float]] = []

    def take(self, clip_id: str, decoded: Decoded | ClipError) -> ClipError | None:
        """Take one clip, and say why it has no features, if it has none."""
        if isinstance(decoded, ClipError):
            self._failures.append((clip_id, decoded, (), 0.0))
            return decoded
        prepared = decoded.prepared[self.name]
        if isinstance(prepared, ClipError):
            self._failures.append((clip_id, prepared, decoded.notes, decoded.seconds))
            return prepared
        # Not the arrays of the other encoders, which are let go of batch by batch, too.
        self._gathered.append((clip_id, prepared, replace(decoded, prepared={})))
        return None

    def batches(self, *, to_the_end: bool) -> list[_Batch]:
        """The whole batches among what has gathered; at the end, also the last, smaller one."""
        size = self.encoder.batch_size
        count = len(self._gathered) if to_the_end else len(self._gathered) // size * size
        batches = [_Batch(self, self._gathered[start : min(start + size, count)]) for start in range(0, count, size)]
        del self._gathered[:count]
        return batches

    def note_failures(self) -> None:
        """A row for each clip that has no features."""
        for clip_id, error, notes, seconds in self._failures:
            self.writer.fail(clip_id, error, notes=notes, seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Clips that are encoded at once."""

    output: _Output
    clips: Sequence[tuple[str, Prepared, Decoded]]

    def write(self, features: Sequence[Encoded]) -> None:
        """In the writing thread."""
        for (clip_id, _, decoded), feature in zip(self.clips, features, strict=True):
            self.output.writer.add(clip_id, feature, notes=decoded.notes, seconds=decoded.seconds)
        self.output.shard.written()


def _read_text(name: str, task: ShardTask, room: _Room) -> Mark:
    """Encode the text of one shard that is on the disk. In the committing thread."""
    encoder = room.setting.encoders[name]
    source = room.setting.readers[name]
    outcomes, segments = _text_of(
        source, room.setting.texts[source], task.plan, str(encoder.spec.source["fingerprint"])
    )
    writer = room.writer(name, task.plan)
    gathered: list[tuple[str, Prepared]] = []
    for outcome in outcomes:
        try:
            prepared = prepare_text(encoder, source, outcome, segments.get(outcome.clip_id))
        except ClipError as error:
            writer.fail(outcome.clip_id, error)
        else:
            gathered.append((outcome.clip_id, prepared))
    with _memory_hint(name, encoder, room.device):
        if room.setting.residency == "turns":
            encoder.load(room.device)
        for start in range(0, len(gathered), encoder.batch_size):
            batch = gathered[start : start + encoder.batch_size]
            features = encoder.encode([prepared for _, prepared in batch])
            for (clip_id, _), feature in zip(batch, features, strict=True):
                writer.add(clip_id, feature)
        if room.setting.residency == "turns":
            encoder.load("cpu")
    return room.commit(writer)


def prepare_text(encoder: Encoder, source: str, outcome: Outcome, segments: Segments | None) -> Prepared:
    """What an encoder that reads makes of a clip's text.

    Raises:
        ClipError: the clip has no text because its source failed; ``SkipClip`` if that was no failure.
    """
    if segments is None:
        kind = SkipClip if outcome.status == "skipped" else ClipError
        raise kind(outcome.error_type, f"{source} has no text of it: {outcome.error_message}")
    return encoder.prepare(Media(texts={encoder.spec.name: segments}))


def _text_of(
    source: str, folder: Path, plan: ShardPlan, fingerprint: str
) -> tuple[tuple[Outcome, ...], dict[str, Segments]]:
    """Outcomes and texts of one finished shard."""
    if not shards.is_done(folder, plan, fingerprint):
        raise StoreError(f"{folder} lacks shard {plan.name}: extract {source!r} first, or beside what reads it")
    mark = Mark.read(folder / f"{plan.name}.json")
    reader = open_reader(folder / mark.file, mark.sha256)
    if not isinstance(reader, TextReader):
        raise StoreError(f"{folder / mark.file} holds no text")
    found = {outcome.clip_id: reader.segments(outcome.clip_id) for outcome in mark.outcomes if outcome.status == "ok"}
    return mark.outcomes, found


def _arithmetic(device: str, precision: str | None) -> str:
    """What an encoder that shall run in ``precision`` really runs in; "" if it has no network."""
    if precision is None:
        return ""
    from avpipe.extract.encoders._device import arithmetic

    return arithmetic(device, precision)


@contextmanager
def _memory_hint(name: str, encoder: Encoder, device: str) -> Iterator[None]:
    """Say what to try when the device has too little memory.

    Raises:
        AvpipeError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # an encoder without a network needs none, and shall not pay for it
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).split(". ")[0]
        raise AvpipeError(
            f"{name}: {device} has too little memory ({reason}). Try a smaller batch "
            f"({name}.batch_size={max(1, encoder.batch_size // 2)}, now {encoder.batch_size}), or --residency turns, "
            f"which keeps one encoder at a time on the device"
        ) from None


def waiting_for(waits: Iterable[Mapping[str, float]]) -> str:
    """What several workers mostly wait for, in a word: ``"decoding"``, ``"encoding"`` or ``"writing"``; "" if nothing.

    Args:
        waits: of each worker, the seconds that it waited so far, by what for.
    """
    sums: Counter[str] = Counter()
    for seconds in waits:
        for what, spent in seconds.items():
            sums[what] += spent  # type: ignore[assignment]  # seconds, not counts
    # Who waits for the disk makes others wait for him: what is last in the chain is to blame.
    if sums["writing"] > 0.5 * sums["encoding"]:
        sums["encoding"] = 0
    return max(sums, key=lambda what: sums[what]) if sum(sums.values()) > 1 else ""
