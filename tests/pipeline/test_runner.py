"""The runner does every task once, survives workers that die, and stops for bugs and for the user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from avpipe.pipeline.engines import ENGINES, local
from avpipe.pipeline.errors import AvpipeError, MissingPackageError, StoreError, UsageError
from avpipe.pipeline.runner import Died, Done, Engine, Event, Progress, Ready, RunReport, Started, run
from avpipe.pipeline.shards import pending, plan, verify
from avpipe.pipeline.store import FeatureSet

from . import toys
from .toys import AheadWorker, BrokenAtRankOne, Deed, DeedWorker, ray_cluster


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine[Deed]]:
    """The Ray engine on a cluster of two cores, for all tests here."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with ray_cluster():
        from avpipe.pipeline.engines import ray as engine

        yield engine.Pool


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine[Deed]:
    """Each engine; Ray's are slow, so that what is the runner's own is tested with the local one alone."""
    return local.Pool if request.param == "local" else request.getfixturevalue("ray_engine")


def do(
    notes: Path,
    *deeds: Deed,
    processes: int = 2,
    retries: int = 2,
    start: str = "",
    engine: Engine[Deed] | None = None,
) -> tuple[RunReport, list[Event]]:
    events: list[Event] = []
    make_worker = partial(DeedWorker, notes, start=start)
    report = run(deeds, make_worker, processes=processes, retries=retries, on_event=events.append, engine=engine)
    return report, events


def noted(notes: Path, pattern: str) -> list[list[str]]:
    return [path.name.split("-")[1:] for path in sorted(notes.glob(pattern))]


def children() -> list[psutil.Process]:
    """Workers of this process, wherever in its family."""
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in command(child)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone
        return ""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"never {what}")


def are_gone(processes: list[psutil.Process]) -> bool:
    """A zombie is gone: where nobody collects orphans, it stays in the table."""
    return all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in processes)


def test_every_task_is_done_once(tmp_path: Path, engine: Engine[Deed]) -> None:
    deeds = [Deed(f"d{i}") for i in range(9)]
    report, events = do(tmp_path, *deeds, engine=engine)
    assert sorted(report.done) == sorted(deed.name for deed in deeds)
    assert (report.failed, report.deaths, report.counts["deeds"]) == ({}, 0, 9)
    tries = noted(tmp_path, "try-*")
    assert sorted(name for name, *_ in tries) == sorted(report.done)
    assert len(noted(tmp_path, "born-*")) == 2  # each builds its worker once
    assert sorted(noted(tmp_path, "closed-*")) == sorted(noted(tmp_path, "born-*"))
    assert {int(pid) for *_, pid in tries} <= {int(pid) for _, pid in noted(tmp_path, "born-*")} - {os.getpid()}
    assert children() == []
    for name in report.done:
        of_task = [type(event) for event in events if getattr(event, "task", None) == name]
        assert of_task == [Started, Progress, Done]
    assert {event.rank for event in events} == {0, 1}
    assert isinstance(events[0], Ready)


def test_no_more_processes_than_tasks(tmp_path: Path) -> None:
    report, _ = do(tmp_path, Deed("only"), processes=5)
    assert report.done == ("only",)
    assert len(noted(tmp_path, "born-*")) == 1
    report, events = do(tmp_path)
    assert (report, events) == (RunReport(), [])


@pytest.mark.parametrize("way", ["die", "exit", "segfault"])
def test_a_death_costs_a_retry_in_a_fresh_process(tmp_path: Path, way: str) -> None:
    a_death_costs_a_retry_in_a_fresh_process(tmp_path, way)


def test_a_death_costs_a_retry_in_a_fresh_process_of_ray(tmp_path: Path, ray_engine: Engine[Deed]) -> None:
    a_death_costs_a_retry_in_a_fresh_process(tmp_path, "segfault", ray_engine)


def a_death_costs_a_retry_in_a_fresh_process(notes: Path, way: str, engine: Engine[Deed] | None = None) -> None:
    report, events = do(notes, Deed("a"), Deed("b", way), Deed("c"), processes=1, engine=engine)
    assert sorted(report.done) == ["a", "b", "c"]
    assert (report.failed, report.deaths, report.counts["deeds"]) == ({}, 1, 3)
    tries = noted(notes, "try-b-*")
    assert [number for _, number, *_ in tries] == ["0", "1"]
    assert tries[0][3] != tries[1][3]  # pid
    assert tries[0][2] == tries[1][2]  # rank: the same GPU
    (death,) = [event for event in events if isinstance(event, Died)]
    assert death.reason in {
        "was killed (SIGKILL; often by the system, when memory is short)",
        "ended with exit status 7",
        "crashed (SIGSEGV)",
    }


def test_a_death_between_two_tasks_is_survived(tmp_path: Path) -> None:
    """The parent learns in one go that the first task is done, that the worker wants another, and that it is dead."""

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            time.sleep(0.5)

    deeds = [Deed("a", "die soon"), Deed("b")]
    report = run(deeds, partial(DeedWorker, tmp_path), processes=1, on_event=on_event)
    assert (report.done, report.failed, report.deaths) == (("a", "b"), {}, 1)


def test_a_task_that_kills_every_process_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    deadly = Deed("deadly", "segfault", times=99)
    report, _ = do(tmp_path, deadly, *(Deed(f"d{i}") for i in range(4)))
    assert sorted(report.done) == ["d0", "d1", "d2", "d3"]
    assert report.failed == {"deadly": "tried 3 times, its process crashed (SIGSEGV)"}
    assert report.deaths == 3
    assert len(noted(tmp_path, "try-deadly-*")) == 3
    report, _ = do(tmp_path, Deed("deadly", "die", times=99), processes=1, retries=0)
    assert report.failed["deadly"].startswith("tried 1 times, its process was killed (SIGKILL")


def ahead(notes: Path, *deeds: Deed, engine: Engine[Deed] | None = None) -> tuple[RunReport, list[Event]]:
    events: list[Event] = []
    report = run(deeds, partial(AheadWorker, notes), processes=1, on_event=events.append, engine=engine)
    return report, events


def most_at_once(events: list[Event]) -> list[int]:
    """How many tasks were under way after each event."""
    counts, under_way = [0], 0
    for event in events:
        under_way += isinstance(event, Started) - isinstance(event, Done)
        under_way = 0 if isinstance(event, Died) else under_way
        counts.append(under_way)
    return counts


def test_a_worker_may_take_a_task_before_it_is_done_with_the_last(tmp_path: Path, engine: Engine[Deed]) -> None:
    deeds = [Deed(f"d{i}") for i in range(4)]
    report, events = ahead(tmp_path, *deeds, engine=engine)
    assert report.done == ("d0", "d1", "d2", "d3")
    assert (report.failed, report.deaths, report.counts["deeds"]) == ({}, 0, 4)
    assert max(most_at_once(events)) > 1
    assert len(noted(tmp_path, "closed-*")) == 1


def test_of_two_tasks_under_way_the_innocent_one_is_done(tmp_path: Path) -> None:
    report, events = ahead(tmp_path, Deed("a"), Deed("deadly", "die", times=99), Deed("b"), Deed("c"))
    assert sorted(report.done) == ["a", "b", "c"]
    assert report.failed == {
        "deadly": "tried 3 times, its process was killed (SIGKILL; often by the system, when memory is short)"
    }
    assert report.deaths == 3
    first_death = next(i for i, event in enumerate(events) if isinstance(event, Died))
    last_death = max(i for i, event in enumerate(events) if isinstance(event, Died))
    assert max(most_at_once(events[: first_death + 1])) > 1
    assert max(most_at_once(events[first_death:last_death])) == 1  # under suspicion: one at a time


def test_a_process_that_dies_over_its_last_tasks_is_replaced_though_it_was_dismissed(tmp_path: Path) -> None:
    report, _ = ahead(tmp_path, Deed("a"), Deed("b", "die"))
    assert (sorted(report.done), report.failed, report.deaths) == (["a", "b"], {}, 1)


def test_the_others_go_on_without_one_that_never_takes_up_work(tmp_path: Path) -> None:
    events: list[Event] = []
    deeds = [Deed(f"d{i}") for i in range(6)]
    report = run(deeds, partial(BrokenAtRankOne, tmp_path), processes=3, on_event=events.append)
    assert sorted(report.done) == [deed.name for deed in deeds]
    assert report.failed == {}
    died = [event.rank for event in events if isinstance(event, Died)]
    assert died == [1] * len(died)
    assert 1 <= len(died) <= 3  # the work may be done before the third


def test_a_bug_stops_the_run_and_brings_its_traceback(tmp_path: Path, engine: Engine[Deed]) -> None:
    with pytest.raises(KeyError, match="no such key") as caught:
        do(tmp_path, Deed("a", "bug"), *(Deed(f"d{i}") for i in range(20)), processes=1, engine=engine)
    (note,) = caught.value.__notes__
    assert note.startswith("in worker 0, task a:\nTraceback")
    assert 'in act\n    {}["no such key"]' in note
    assert noted(tmp_path, "try-*") == [["a", "0", "0", noted(tmp_path, "born-*")[0][1]]]  # nothing more was begun
    assert len(noted(tmp_path, "closed-*")) == 1  # it cleaned up
    assert children() == []


def test_errors_for_the_user_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the disk is full") as caught:
        do(tmp_path, Deed("a", "disk full"), Deed("b"))
    assert str(caught.value) == "cannot write /data/00000.h5: the disk is full"


def test_a_broken_pipe_of_the_workers_own_is_a_bug_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError, match="of the worker's own"):
        do(tmp_path, Deed("a", "broken pipe"))


def test_an_exception_that_cannot_cross_the_border_is_told_in_words(tmp_path: Path, engine: Engine[Deed]) -> None:
    with pytest.raises(RuntimeError, match="this") as caught:
        do(tmp_path, Deed("a", "unpicklable"), engine=engine)
    assert str(caught.value) == "UnpicklableError: this and that"


def test_a_worker_that_cannot_be_built_stops_the_run(tmp_path: Path, engine: Engine[Deed]) -> None:
    with pytest.raises(StoreError, match="the disk is full") as caught:
        do(tmp_path, Deed("a"), start="disk full", engine=engine)
    assert caught.value.__notes__[0].startswith("in worker 0, outside of a task:")


def test_processes_that_die_while_starting_do_not_do_so_for_ever(tmp_path: Path) -> None:
    with pytest.raises(
        AvpipeError,
        match=r"dies before it takes up work \(3 times in a row; the last process was killed .*fewer processes",
    ):
        do(tmp_path, Deed("a"), Deed("b"), start="die")
    assert 3 <= len(noted(tmp_path, "born-*")) <= 6
    assert children() == []


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected distinct names, got 'a' more than once"):
        do(tmp_path, Deed("a"), Deed("a"))
    with pytest.raises(ValueError, match="processes: expected at least 1, got 0"):
        do(tmp_path, Deed("a"), processes=0)


def test_a_fault_of_the_listener_leaves_no_processes(tmp_path: Path, engine: Engine[Deed]) -> None:
    def on_event(event: Event) -> None:
        raise ZeroDivisionError(type(event).__name__)

    with pytest.raises(ZeroDivisionError, match="Ready"):
        run([Deed("a"), Deed("b")], partial(DeedWorker, tmp_path), processes=2, on_event=on_event, engine=engine)
    wait_until(lambda: children() == [], "all gone")  # of Ray's, the last are killed behind our back
    born = {rank for rank, _ in noted(tmp_path, "closed-*")}
    assert born  # whoever had spoken, cleaned up


@pytest.mark.parametrize(
    ("gpus", "share", "devices"),
    [
        (None, 1.0, ("cuda:0", "cuda:1")),
        (1, 1.0, ("cuda:0",)),
        (2, 0.5, ("cuda:0", "cuda:0", "cuda:1", "cuda:1")),
        (1, 1 / 3, ("cuda:0",) * 3),
        (0, 1.0, ("cpu",)),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, gpus: int | None, share: float, devices: tuple[str, ...]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local.devices(gpus, share) == devices


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"3 GPUs asked for, 2 GPUs found here; try --gpus 2$"):
        local.devices(3)
    with pytest.raises(UsageError, match=r"share of a GPU: expected more than 0 and at most 1, got 1\.5"):
        local.devices(1, 1.5)


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)), raising=False)
    assert [local.cores(workers) for workers in (1, 2, 4, 20)] == [9, 4, 2, 1]


def test_ray_counts_the_whole_cluster(monkeypatch: pytest.MonkeyPatch, ray_engine: Engine[Deed]) -> None:
    from avpipe.pipeline.engines import ray as engine
    from avpipe.pipeline.runner import Needs

    assert engine.devices(None) == engine.devices(0) == ("cpu",)
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"memory": 1.0}]
    monkeypatch.setattr(engine, "_nodes", lambda: nodes)
    assert engine.devices(None) == ("cuda:0",) * 5  # each worker sees its own GPU alone
    assert engine.devices(2, 0.5) == ("cuda:0",) * 4
    assert engine.devices(0) == ("cpu", "cpu")
    assert engine.cores(5) == 4
    with pytest.raises(UsageError, match="6 GPUs asked for, 5 GPUs found in the Ray cluster; try --gpus 5"):
        engine.devices(6)
    # As many cores as are wanted, but every GPU finds a worker that fits beside the others.
    assert engine.cores_of_a_worker(Needs(cores=3, gpus=1)) == 3
    assert engine.cores_of_a_worker(Needs(cores=9, gpus=1)) == 4
    assert engine.cores_of_a_worker(Needs(cores=9, gpus=0.1)) == 0.4
    assert engine.cores_of_a_worker(Needs(cores=99)) == 8


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "avpipe.pipeline.engines.ray", raising=False)
    with pytest.raises(MissingPackageError, match=r"the engine 'ray' needs .*: pip install 'avpipe\[ray\]'"):
        ENGINES.load("ray")


def test_a_ray_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from avpipe.pipeline.engines import ray as engine

    def init(**options: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(AvpipeError, match=r"no Ray cluster answers at RAY_ADDRESS=10\.0\.0\.1:6379: nobody there"):
        engine.devices(None)


# --- a whole program, and the ways to stop it ---


def start_program(folder: Path, format: str, processes: int, seconds: float = 0.03) -> subprocess.Popen[str]:
    """Extracts toy features; returned when it has begun to work."""
    command = [sys.executable, toys.__file__, str(folder), format, str(processes), str(seconds)]
    root = str(Path(__file__).parents[2])
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith(("working", "finished"))
    return program


def test_ctrl_c_ends_every_process_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    program = start_program(folder, "hdf5", 2, seconds=0.08)
    wait_until(lambda: len(list(tmp_path.glob("built-*"))) == 2, "both at work")
    wait_until(lambda: len(list(folder.glob("0*.json"))) >= 2, "some shards were finished")
    time.sleep(0.2)  # a worker notes that it is built a moment before it is one
    workers = psutil.Process(program.pid).children(recursive=True)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all processes at once
    assert program.wait(60) == 130
    wait_until(lambda: are_gone(workers), "gone")
    assert list(folder.glob(".*")) == []  # whatever was begun is swept up
    assert len(list(tmp_path.glob("closed-*"))) == 2
    assert verify(folder) == []
    before = set(folder.glob("*.h5"))
    times = {path: path.stat().st_mtime_ns for path in before}
    program = start_program(folder, "hdf5", 2)
    assert program.wait(60) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == times  # done is done
    assert FeatureSet(folder).missing(toys.CLIP_IDS) == []


def test_ctrl_c_never_reaches_a_worker(tmp_path: Path) -> None:
    """A terminal sends it to all processes. The parent alone decides, or a worker's clean-up would be interrupted."""
    program = start_program(tmp_path / "toy", "hdf5", 2)
    wait_until(lambda: len(list(tmp_path.glob("built-*"))) == 2, "both at work")
    workers = [child for child in psutil.Process(program.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    built = {path: path.stat().st_mtime_ns for path in tmp_path.glob("built-*")}
    for child in workers:
        child.send_signal(signal.SIGINT)
    assert program.wait(60) == 0
    assert {path: path.stat().st_mtime_ns for path in built} == built  # no process had to be replaced


@pytest.mark.parametrize(("format", "times"), [("hdf5", 5), ("webdataset", 2)])
def test_killed_again_and_again_the_bytes_are_those_of_an_unbroken_run(tmp_path: Path, format: str, times: int) -> None:
    """``kill -9`` of the parent at random moments. Its workers must not outlive it, nor anything half-written count."""
    unbroken, folder = tmp_path / "unbroken", tmp_path / "toy"
    toys.write_spec(unbroken, toys.spec())
    plans = plan(toys.CLIP_IDS, 5)
    for planned in plans:
        toys.write_shard(unbroken, planned, format)
    expected = toys.contents(unbroken)
    rng = toys.np.random.default_rng(len(format))
    kills = 0
    while kills < times:
        program = start_program(folder, format, 2)
        workers = psutil.Process(program.pid).children(recursive=True)
        time.sleep(rng.uniform(0, 0.4))
        program.kill()
        if program.wait() == 0:
            break
        kills += 1
        wait_until(lambda workers=workers: are_gone(workers), "gone")
        present = {name: content for name, content in toys.contents(folder).items() if not name.startswith(".")}
        marked = {Path(name).stem for name in present if name.endswith(".json")}
        for name, content in present.items():
            if Path(name).stem in marked:
                assert content == expected[name]
        assert {problem.reason for problem in verify(folder)} <= {
            "left by a run that was killed",
            "has no completion mark: its run was killed, or the mark is damaged",
        }
        for clip_id, found in FeatureSet(folder).stream():
            assert found.data.tobytes() == toys.features(clip_id).data.tobytes()
    assert kills >= min(times, 3)
    assert start_program(folder, format, 2).wait(60) == 0
    assert toys.contents(folder) == expected
    assert pending(folder, plans, toys.spec().fingerprint) == []
