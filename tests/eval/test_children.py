"""Several children at once: answers in order, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.eval.children import Stop, how_many, spread
from avpipe.eval.java import Java, JavaChild, JavaDiedError, JavaError

from .toys import FakeJava, is_gone, pretended_spice

Work = Callable[[Sequence[str], Stop], list[str]]


def asking(java: Java, patience_seconds: float = 20.0) -> Work:
    def work(share: Sequence[str], stop: Stop) -> list[str]:
        with JavaChild(java.path, [], name="toy", patience_seconds=patience_seconds, stop=stop) as child:
            return child.ask(share)

    return work


def pids_of(folder: Path) -> list[int]:
    return [int(pid) for path in folder.glob("*.pids") for pid in path.read_text().split()]


@given(questions=st.integers(0, 40), processes=st.integers(1, 9))
def test_answers_come_in_the_order_of_the_questions(questions: int, processes: int) -> None:
    shares: list[Sequence[int]] = []

    def work(share: Sequence[int], stop: Stop) -> list[int]:
        shares.append(share)
        return [-number for number in share]

    assert spread(work, range(questions), processes, Stop()) == [-number for number in range(questions)]
    assert len(shares) == max(1, min(processes, questions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_children_run_at_once(fake_java: FakeJava, tmp_path: Path) -> None:
    # Each waits for the other to have begun.
    java = fake_java(
        f"""
        read line; touch "{tmp_path}/$line"
        while ! test -e {tmp_path}/a || ! test -e {tmp_path}/b; do sleep 0.02; done
        echo "$line"
        """
    )
    assert spread(asking(java), ["a", "b"], 2, Stop()) == ["a", "b"]


def test_of_two_one_is_killed_and_its_share_alone_is_tried_again(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"echo x >> {tmp_path}/starts; mkdir {tmp_path}/mark 2>/dev/null && kill -9 $$; exec cat")
    lines = [str(number) for number in range(50)]
    assert spread(asking(java), lines, 2, Stop()) == lines
    assert (tmp_path / "starts").read_text() == "x\n" * 3


def test_of_two_one_hangs_and_both_are_gone(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(
        f"""
        read line
        sleep 987 & echo $$ $! > {tmp_path}/$$.pids
        test "$line" = b && wait
        echo "$line"; wait
        """
    )
    said = r"toy hangs: no sign of life for 1\.5 s after 0 of 1 answers; killed.*tried twice"
    with pytest.raises(JavaDiedError, match=said):
        spread(asking(java, patience_seconds=1.5), ["a", "b"], 2, Stop())
    pids = pids_of(tmp_path)
    assert len(pids) == 6  # the one that answered, and the other twice, each with a child of its own
    assert all(map(is_gone, pids))


def test_of_two_one_is_wrong_and_the_other_is_not_waited_for(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(
        f"""
        read line; echo $$ > {tmp_path}/$$.pids
        test "$line" = a && exec sleep 987
        while test $(ls {tmp_path}/*.pids | wc -l) -lt 2; do sleep 0.02; done
        exec yes 0,5
        """
    )
    with pytest.raises(JavaError, match=r"expected 1 lines, got more; the next is '0,5'"):
        spread(asking(java, patience_seconds=900), ["a", "b"], 2, Stop())
    pids = pids_of(tmp_path)
    assert len(pids) == 2
    assert all(map(is_gone, pids))


def test_a_stop_from_outside_ends_them(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"echo $$ > {tmp_path}/$$.pids; exec sleep 987")
    stop = Stop()

    def stop_when_both_are_there() -> None:
        while len(pids_of(tmp_path)) < 2:
            pass
        stop.set()

    threading.Thread(target=stop_when_both_are_there).start()
    with pytest.raises(JavaError, match="toy: stopped before it was done"):
        spread(asking(java, patience_seconds=900), ["a", "b"], 2, stop)
    assert all(map(is_gone, pids_of(tmp_path)))


def test_a_stop_within_another_does_not_reach_out() -> None:
    outer = Stop()
    inner, beside = Stop(outer), Stop(outer)
    inner.set()
    assert (inner.is_set(), beside.is_set(), outer.is_set()) == (True, False, False)
    outer.set()
    assert beside.is_set()


def test_a_block_that_is_left_by_an_exception_stops() -> None:
    left, ended = Stop(), Stop()
    with ended:
        pass
    with pytest.raises(KeyboardInterrupt), left:
        raise KeyboardInterrupt
    assert (ended.is_set(), left.is_set()) == (False, True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("metric", "children"), [("meteor", 1), ("spice", 2)])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
def test_no_orphans_of_a_scoring_that_is_interrupted_or_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, children: int, how: signal.Signals
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed parent cannot remove its temp folders
    tools = pretended_spice(tmp_path, f"echo $$ > {tmp_path}/$$.pids; exec sleep 987")
    program = (
        "import sys; from pathlib import Path; from avpipe.eval import score; from avpipe.eval.java import Java\n"
        "from avpipe.eval.tools import Tools\n"
        "java = Java(path=Path(sys.argv[1]), version='17', source='test')\n"
        "tools = Tools(java, processes=2, spice=Path(sys.argv[2]))\n"
        "score({'a': 'a dog', 'b': 'a cat'}, {'a': ['a dog'], 'b': ['a cat']}, metrics=[sys.argv[3]], tools=tools)\n"
    )
    command = [sys.executable, "-c", program, str(tools.java.path), str(tools.spice), metric]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while len(pids := pids_of(tmp_path)) < children:
            assert parent.poll() is None
        assert all(map(psutil.pid_exists, pids))
    finally:
        parent.send_signal(how)
    _, said = parent.communicate(timeout=60)
    assert all(map(is_gone, pids))
    assert parent.returncode == -how
    if how == signal.SIGINT:
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert list(tmp_path.glob("avpipe-*")) == []


@pytest.mark.parametrize(
    ("cores", "gigabytes", "work", "expected"),
    [(4, 100, 1000, 4), (4, 100, 25, 2), (4, 100, 3, 1), (4, 3.5, 1000, 3), (4, 0.5, 1000, 1), (1, 100, 1000, 1)],
)
def test_as_many_as_cores_memory_and_work_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, gigabytes: float, work: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1024**3))
    assert how_many(work, least=10, megabytes=1024) == expected
