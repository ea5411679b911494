"""Work in processes that can die.

Hostile files crash and hang decoders, and take all memory there is. So clips are decoded in child processes, and what
happens to one of those costs exactly the clip that it was working on: the process is replaced, and the rest goes on.

Each child is a fresh Python (nothing is forked, so no library meets a copied thread), talks to its parent through one
socket, and is watched by one thread of the parent. It dies with its parent, whatever kills that.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import psutil

from avpipe.pipeline.engines.local import die_with_parent
from avpipe.pipeline.errors import AvpipeError, ClipError
from avpipe.pipeline.limits import Limits

Job = TypeVar("Job")
Result = TypeVar("Result")

_START_SECONDS = 300.0  # importing torch from a cold network disk takes its time
_WATCH_SECONDS = 0.05
_CHILD = "import sys; from avpipe.pipeline.sandbox import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
_OK, _CLIP_ERROR, _USER_ERROR, _BUG = range(4)


class WorkBugError(RuntimeError):
    """A work function raised what it must not. The message is the child's traceback."""


class DecodePool(Generic[Job, Result]):
    """Runs a function over jobs in child processes, within limits.

    ::

        with DecodePool(work, processes=8) as pool:
            for job, result in zip(jobs, pool.map(jobs), strict=True):
                if isinstance(result, ClipError):
                    ...

    Args:
        work: importable from a module (it is pickled by name) and free to raise :class:`ClipError`. Imports happen in
            the child, when ``work`` is unpickled; if that loads no torch, the child has none.
        processes: how many.
        limits: ``max_seconds`` a job and ``max_bytes`` of resident memory a process are held here.
        look_ahead: how many jobs may be unfinished or wait for the consumer at a time.
        bring: makes a job ready in this process, in the ``with`` block of which it is then done in a child: fetches a
            file, say. Runs ahead of the children, in any thread, outside of the limits; may raise as ``work`` may.
    """

    def __init__(
        self,
        work: Callable[[Job], Result],
        processes: int,
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
        *,
        look_ahead: int | None = None,
        bring: Callable[[Job], AbstractContextManager[Job]] = contextlib.nullcontext,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes: expected at least 1, got {processes}")
        self._work, self._limits = pickle.dumps(work), limits
        self._look_ahead = look_ahead or 3 * processes
        self._bring = bring
        is_ready = bring is contextlib.nullcontext
        threads = processes if is_ready else 2 * processes  # each child's next job is brought while it works
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._children: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._children.put(None)
        self._lock = threading.Lock()
        self._living: set[_Child] = set()
        self._is_closed = False

    def map(self, jobs: Iterable[Job]) -> Iterator[Result | ClipError]:
        """The result of each job, in the order of the jobs.

        In place of a result stands the :class:`ClipError` that says why there is none: raised by the work function, or
        ``"crashed"``, ``"timeout"`` or ``"memory"`` for what happened to the process. Jobs are taken from ``jobs`` as
        results are taken from here, ``look_ahead`` at most in advance.

        Raises:
            AvpipeError: the work function raised one: the user can act on it.
            WorkBugError: it raised anything else. Both stop the run.
        """
        pending = iter(jobs)
        waiting: deque[Future[Result | ClipError]] = deque()
        try:
            while True:
                while len(waiting) < self._look_ahead:
                    try:
                        job = next(pending)
                    except StopIteration:
                        break
                    waiting.append(self._threads.submit(self._run, job))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def submit(self, job: Job) -> Future[Result | ClipError]:
        """Have one job done as soon as a process is free; the future gives what :meth:`map` would."""
        return self._threads.submit(self._run, job)

    def close(self) -> None:
        """Kill the children. Safe to call twice."""
        with self._lock:
            self._is_closed = True
        for child in self._living:
            child.kill()  # a thread that waits for it wakes up
        self._threads.shutdown(cancel_futures=True)
        for child in self._living:
            child.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, job: Job) -> Result | ClipError:
        """In a thread of the pool: have a job done."""
        try:
            with self._bring(job) as ready:
                return self._do(ready)
        except ClipError as error:
            return error

    def _do(self, job: Job) -> Result | ClipError:
        """Have one of the children do a job.

        Raises:
            ClipError: of what happened to the child.
        """
        child = self._children.get()
        try:
            if child is None or not child.is_alive:
                child = self._replace(child)
            status, value = child.do(job)
        finally:
            self._children.put(child)
        if status == _USER_ERROR:
            raise AvpipeError(value)
        if status == _BUG:
            raise WorkBugError(f"while working on {job!r:.500}:\n{value}")
        outcome: Result | ClipError = value
        return outcome

    def _replace(self, dead: _Child | None) -> _Child:
        if dead:
            dead.disconnect()
        with self._lock:
            if self._is_closed:
                raise CancelledError
            child = _Child(self._limits)
            self._living = self._living - {dead} | {child}
        child.prepare(self._work)
        return child


class _Child:
    """A child process, from the parent's side. Used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._deadline = self._max_seconds = math.inf
        self._socket, theirs = socket.socketpair()
        # A session of its own: an interrupt from the keyboard is the parent's business. One core: the clips are what
        # runs in parallel.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        self._watched = psutil.Process(self._process.pid)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def prepare(self, work: bytes) -> None:
        """Hand it the pickled work function.

        Raises:
            WorkBugError: the function cannot be imported there.
        """
        try:
            status, value = self._ask((sys.path, work), _START_SECONDS)
        except ClipError as error:
            raise WorkBugError(f"a decoding process did not start: {error.message}") from None
        if status != _OK:
            self.kill()
            raise WorkBugError(f"a decoding process did not start:\n{value}")

    def do(self, job: object) -> tuple[int, Any]:
        """Have it do one job.

        Raises:
            ClipError: ``"crashed"``, ``"timeout"``, ``"memory"``. The child is dead then.
        """
        return self._ask(job, self._limits.max_seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def disconnect(self) -> None:
        """Let go of the dead."""
        self._socket.close()

    def _ask(self, message: object, max_seconds: float) -> tuple[int, Any]:
        self._deadline, self._max_seconds = time.monotonic() + max_seconds, max_seconds
        try:
            self._socket.settimeout(None)
            _send(self._socket, _pack(message))
            self._socket.settimeout(_WATCH_SECONDS)
            answer: tuple[int, Any] = _receive(self._socket, self._watch)
        except (EOFError, ConnectionError):
            raise ClipError("crashed", f"the decoding process {self._end()}") from None
        except ClipError:
            self.kill()
            raise
        return answer

    def _watch(self) -> None:
        if time.monotonic() > self._deadline:
            raise ClipError("timeout", f"not done after {self._max_seconds:g} s")
        with contextlib.suppress(psutil.NoSuchProcess):  # it died: the socket will say so
            resident = self._watched.memory_info().rss
            if resident > self._limits.max_bytes:
                limit = f"the limit is {self._limits.max_bytes / 2**20:.0f} MiB"
                raise ClipError("memory", f"the decoding process takes {resident / 2**20:.0f} MiB; {limit}")

    def _end(self) -> str:
        """How it ended."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its connection"
        return f"exited with status {status}" if status >= 0 else f"died of {signal.Signals(-status).name}"


def serve(descriptor: int, parent: int) -> None:
    """The life of a child process.

    Args:
        descriptor: of the socket to the parent.
        parent: process id of the parent.
    """
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as connection:
        try:
            sys.path[:], pickled = _receive(connection)
            work = pickle.loads(pickled)
        except Exception:  # noqa: BLE001 (the parent raises it)
            _send(connection, _pack((_BUG, traceback.format_exc())))
            return
        _send(connection, _pack((_OK, None)))
        with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone, or needs us no more
            while True:
                _send(connection, _answer(work, _receive(connection)))


def _answer(work: Callable[[Any], Any], job: object) -> list[memoryview]:
    """What comes of a job, ready to be sent."""
    try:
        return _pack((_OK, work(job)))
    except ClipError as error:
        return _pack((_OK, error))
    except MemoryError as error:
        return _pack((_OK, ClipError("memory", str(error) or "out of memory")))
    except AvpipeError as error:
        return _pack((_USER_ERROR, str(error)))
    except Exception:  # noqa: BLE001 (the parent raises it)
        return _pack((_BUG, traceback.format_exc()))


def _pack(message: object) -> list[memoryview]:
    """A pickle; the arrays in it follow as they are, uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return [memoryview(body), *(buffer.raw() for buffer in buffers)]


def _send(connection: socket.socket, parts: list[memoryview]) -> None:
    connection.sendall(struct.pack(f"<I{len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket, watch: Callable[[], None] | None = None) -> Any:
    """What was packed and sent. ``watch`` is called now and then while nothing comes.

    Raises:
        EOFError: the other side is gone.
    """

    def take(size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = connection.recv_into(view)
            except TimeoutError:
                if watch:
                    watch()
                continue
            if not count:
                raise EOFError("the other process is gone")
            view = view[count:]
        return data

    (count,) = struct.unpack("<I", take(4))
    body, *buffers = [take(size) for size in struct.unpack(f"<{count}Q", take(8 * count))]
    return pickle.loads(body, buffers=buffers)
