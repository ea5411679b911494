"""Processes that can die: each death costs one job, and nothing outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from avpipe.pipeline.errors import AvpipeError, ClipError, SkipClip
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.sandbox import DecodePool, WorkBugError

from . import pool_work

MIB = 1 << 20


def outcome(result: object) -> object:
    """An error as its kind."""
    return f"<{result.kind}>" if isinstance(result, ClipError) else result


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "sandbox" in " ".join(child.cmdline())]


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    yield
    assert children() == []


def run(work: Callable[[Any], Any], jobs: Any, processes: int = 2, limits: Limits | None = None, **options: int) -> Any:
    with DecodePool(work, processes, limits or Limits(), **options) as pool:
        return list(pool.map(jobs))


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert run(pool_work.work, ["sleep:0.3", "a", "sleep:0.1", "b", "c"]) == ["sleep:0.3", "a", "sleep:0.1", "b", "c"]


def test_no_job_is_no_process() -> None:
    assert run(pool_work.work, []) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_each_death_costs_one_job(processes: int) -> None:
    jobs = ["a", "segfault", "b", "killed", "exit", "c", "eat", "d", "eat:honestly", "bad", "skip", "e"]
    found = run(pool_work.work, jobs, processes, Limits(max_bytes=200 * MIB))
    died, full = "<crashed>", "<memory>"
    expected = ["a", died, "b", died, died, "c", full, "d", full, "<decode>", "<no_audio>", "e"]
    assert [outcome(result) for result in found] == expected
    messages = {job: result.message for job, result in zip(jobs, found, strict=True) if isinstance(result, ClipError)}
    assert messages["segfault"] == "the decoding process died of SIGSEGV"
    assert messages["killed"] == "the decoding process died of SIGKILL"
    assert messages["exit"] == "the decoding process exited with status 7"
    assert "the limit is 200 MiB" in messages["eat"]
    assert messages["eat:honestly"] == "no room for 900 frames"
    assert isinstance(found[jobs.index("skip")], SkipClip)


def test_a_hang_costs_one_job() -> None:
    found = run(pool_work.work, ["a", "hang", "b"], 1, Limits(max_seconds=2))
    assert [outcome(result) for result in found] == ["a", "<timeout>", "b"]
    assert found[1].message == "not done after 2 s"


def test_a_process_serves_many_jobs_and_is_replaced_when_it_dies() -> None:
    with DecodePool(pool_work.process, 1) as pool:
        first, second = pool.map(["0", "0"])
        assert first == second
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait(5)
        (third,) = pool.map(["0"])
    assert third not in (first, os.getpid())


def test_jobs_run_side_by_side() -> None:
    assert len(set(run(pool_work.process, ["0.5", "0.5", "0.5"], processes=3))) == 3


def test_a_bug_stops_the_run_with_its_traceback() -> None:
    with DecodePool(pool_work.work, 1) as pool:
        results = pool.map(["a", "bug", "b"])
        assert next(results) == "a"
        with pytest.raises(WorkBugError, match=r"(?s)while working on 'bug'.*in work.*KeyError: 'no such thing'"):
            next(results)
        assert list(pool.map(["c"])) == ["c"]


def test_a_result_that_cannot_be_sent_is_a_bug() -> None:
    with pytest.raises(WorkBugError, match=r"(?s)unpicklable.*pickle"):
        run(pool_work.work, ["unpicklable"])


def test_what_the_user_can_act_on_comes_as_it_is() -> None:
    with pytest.raises(AvpipeError, match=r"^mount the disk$"):
        run(pool_work.work, ["a", "user"])


def test_work_that_cannot_be_imported_is_a_bug() -> None:
    with pytest.raises(WorkBugError, match=r"(?s)did not start.*no number"):
        run(pool_work.Unimportable(), ["a"])


def test_arrays_arrive_as_they_were_and_can_be_written_to() -> None:
    (found,) = run(pool_work.arrays, [[0, 3, 1_000_000]])
    assert {key: array.shape for key, array in found.items()} == {"0": (0,), "3": (3,), "1000000": (1_000_000,)}
    np.testing.assert_array_equal(found["1000000"], np.arange(1_000_000, dtype=np.float32))
    found["3"][0] = 7


def test_work_and_jobs_may_carry_arrays() -> None:
    job = np.arange(300_000, dtype=np.float32)
    (found,) = run(pool_work.Scaled(np.float32(2)), [job])
    np.testing.assert_array_equal(found, 2 * job)


def test_no_more_is_begun_than_the_consumer_allows(tmp_path: Path) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(100):
            taken.append(job)
            yield job

    with DecodePool(pool_work.Counting(tmp_path), 2, look_ahead=5) as pool:
        results = pool.map(jobs())
        assert next(results) == 0
        assert len(taken) == 5
        assert [next(results) for _ in range(10)] == list(range(1, 11))
        assert len(taken) == 15
        results.close()
    assert len(list(tmp_path.iterdir())) <= 15


def test_torch_is_not_loaded_unless_the_work_does_and_a_process_has_one_core() -> None:
    assert run(pool_work.torch_is_loaded, ["torch"]) == [(False, "1")]


def test_what_is_printed_does_not_mix_with_the_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(pool_work.work, ["print"]) == ["print"]
    assert capfd.readouterr().out == ""


def test_leaving_early_kills_what_still_runs() -> None:
    begin = time.monotonic()
    with DecodePool(pool_work.work, 2) as pool:
        results = pool.map(["a", "hang", "hang"])
        assert next(results) == "a"
    assert time.monotonic() - begin < 60
    pool.close()


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nobody_outlives_a_parent_that_is_killed(tmp_path: Path, end: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    program = f"from tests.pipeline.pool_work import outlive; outlive({str(tmp_path)!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 3)
    ids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert all(psutil.pid_exists(number) for number in ids)
    parent.send_signal(end)
    assert parent.wait(20) == -end
    assert wait_until(lambda: not any(psutil.pid_exists(number) for number in ids))


def test_a_pool_needs_a_process() -> None:
    with pytest.raises(ValueError, match="processes: expected at least 1, got 0"):
        DecodePool(pool_work.work, 0)


def test_a_job_is_brought_before_it_is_done_and_put_away_after_it() -> None:
    """Outside of the limits, whatever becomes of it; what goes wrong then counts as if the work had said it."""
    here: set[str] = set()
    put_away: list[str] = []

    @contextlib.contextmanager
    def bring(job: str) -> Iterator[str]:
        if job == "late":
            time.sleep(1.5)
        if job == "gone":
            raise ClipError("missing_file", "it is not there")
        here.add(job)
        try:
            yield "killed" if job == "deadly" else job.upper()
        finally:
            here.remove(job)
            put_away.append(job)

    with DecodePool(pool_work.work, 1, Limits(max_seconds=1.0), bring=bring) as pool:
        pool.submit("warm").result()
        found = [outcome(result) for result in pool.map(["late", "gone", "deadly", "b"])]
    assert found == ["LATE", "<missing_file>", "<crashed>", "B"]
    assert here == set()
    assert sorted(put_away) == ["b", "deadly", "late", "warm"]


def test_what_cannot_be_brought_through_no_fault_of_its_own_stops_the_run() -> None:
    def bring(job: str) -> contextlib.AbstractContextManager[str]:
        raise AvpipeError("the storage does not answer")

    with (
        DecodePool(pool_work.work, 1, bring=bring) as pool,
        pytest.raises(AvpipeError, match="the storage does not answer"),
    ):
        list(pool.map(["a"]))
