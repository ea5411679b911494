"""Whoever runs the workers, and whatever happens to them: the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.data_manifests.manifest import Manifest
from avpipe.extract.encoder import Prepared
from avpipe.extract.run import ExtractReport, Part, extract
from avpipe.extract.worker import Setting, ShardTask
from avpipe.pipeline import runner
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.features import Encoded
from avpipe.pipeline.runner import Died, Engine, Event, Needs, Progress
from avpipe.pipeline.shards import verify
from avpipe.pipeline.workspace import Workspace

from .test_run import digests as digests_of_workspace
from .test_worker import digests
from .toy_encoders import Brightness, Describer

CLIPS_PER_SHARD, SHARDS = 2, 12


class Meeting(Brightness):
    """Slow; and it waits until so many processes have loaded it, and again until so many are at work: all begin
    together, and each has something in hand before any is done.
    """

    def __init__(self, notes: Path, workers: int, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.notes, self.workers = notes, workers

    def load(self, device: str) -> None:
        super().load(device)
        self.meet("worker")

    def encode(self, batch: Sequence[Prepared]) -> Sequence[Encoded]:
        self.meet("at-work")
        return super().encode(batch)

    def meet(self, where: str) -> None:
        (self.notes / f"{where}-{os.getpid()}").touch()
        while len(list(self.notes.glob(f"{where}-*"))) < self.workers:
            time.sleep(0.02)


@pytest.fixture(scope="module")
def clips(rendered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The rendered clips in many small shards."""
    read = manifest.read(rendered.manifest("synthetic"))
    path = tmp_path_factory.mktemp("clips") / "synthetic.jsonl.gz"
    manifest.write(path, read.clips, media_root=read.media_root, clips_per_shard=CLIPS_PER_SHARD)
    return manifest.read(path)


@dataclass
class Job:
    """An extraction by two workers.

    Attributes:
        meeting: how many workers wait for one another before they begin; default: these.
        seconds: that a batch takes, at least.
    """

    clips: Manifest
    folder: Path
    workers: int = 2
    meeting: int = 0
    seconds: float = 0.05
    events: list[Event] = field(default_factory=list)

    def run(
        self,
        engine: Engine[ShardTask] | None = None,
        disturb: Callable[[Event], None] = runner.ignore,
        part: Part | None = None,
    ) -> ExtractReport:
        def on_event(event: Event) -> None:
            self.events.append(event)
            disturb(event)

        self.folder.mkdir(exist_ok=True)
        encoders = {
            "brightness": Meeting(self.folder, self.meeting or self.workers, self.seconds),
            "words": Describer(),
        }
        setting = Setting(
            encoders=encoders,
            folders={name: self.folder / name for name in encoders},
            media_root=self.clips.media_root,
            devices=("cpu",) * self.workers,
            decoders=1,
        )
        report = extract(self.clips, setting, part=part, engine=engine, on_event=on_event)
        assert report.is_complete
        return report

    @property
    def digests(self) -> Mapping[str, str]:
        assert [verify(self.folder / name) for name in ("brightness", "words")] == [[], []]
        return digests(self.folder)

    @property
    def deaths(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, Died)]

    @property
    def processes(self) -> list[psutil.Process]:
        """Of the workers that are there."""
        pids = [int(path.name.split("-")[1]) for path in self.folder.glob("worker-*")]
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture(scope="module")
def unbroken(clips: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What one worker makes, left in peace."""
    job = Job(clips, tmp_path_factory.mktemp("unbroken"), workers=1)
    assert job.run().worked == SHARDS
    assert job.deaths == []
    assert len(job.digests) == 2 * SHARDS  # of two feature sets
    return job.digests


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    for _ in range(600):
        left = [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {left}")


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_local_workers_killed_at_random(
    clips: Manifest, unbroken: Mapping[str, str], tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    moments = iter(sorted(dice.sample(range(2, 14), 2)))  # two deaths: none is enough for a shard to be given up
    moment, seen = next(moments, None), 0

    def kill(event: Event) -> None:
        nonlocal moment, seen
        seen += isinstance(event, Progress)
        if seen == moment:
            dice.choice(job.processes).kill()
            moment = next(moments, None)

    job = Job(clips, tmp_path / "job")
    job.run(disturb=kill)
    assert len(job.deaths) == 2
    assert job.digests == unbroken


# -- parts -------------------------------------------------------------------------------------------------------------

PARTS = [Part(index, 3) for index in (1, 2, 3)]


def test_parts_one_after_the_other(clips: Manifest, unbroken: Mapping[str, str], tmp_path: Path) -> None:
    job = Job(clips, tmp_path / "job", workers=1)
    assert [job.run(part=part).worked for part in PARTS] == [SHARDS / 3] * 3
    assert job.digests == unbroken


def worked_by_part(job: Job, part: Part) -> int:
    """How many shards."""
    return job.run(part=part).worked


def test_parts_at_the_same_time(clips: Manifest, unbroken: Mapping[str, str], tmp_path: Path) -> None:
    job = Job(clips, tmp_path / "job", workers=1, meeting=len(PARTS))
    with ProcessPoolExecutor(len(PARTS), mp_context=get_context("spawn")) as machines:
        assert list(machines.map(worked_by_part, repeat(job), PARTS)) == [SHARDS / 3] * 3
    assert job.digests == unbroken


@pytest.mark.parametrize("part", ["0/3", "4/3"])
def test_parts_that_are_none_are_refused(workspace: Workspace, part: str) -> None:
    with pytest.raises(UsageError, match=f"part: expected i/n with 1 <= i <= n, got {part}"):
        api.extraction(workspace, recipe="baseline", gpus=0, part=part)


# -- Ray ---------------------------------------------------------------------------------------------------------------


@dataclass
class Nodes:
    """A Ray cluster on this machine, with a node for the driver alone and two for workers."""

    cluster: Any
    workers: list[Any]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    # A node that is killed is to be missed within seconds.
    system = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": system, **small})
    try:
        workers = [cluster.add_node(num_cpus=2, **small) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield Nodes(cluster, workers)
    finally:
        ray.shutdown()
        cluster.shutdown()


def ray_engine() -> Engine[ShardTask]:
    from avpipe.pipeline.engines import ray as engine

    return partial(engine.Pool, needs=Needs(cores=2))


def test_a_node_killed_in_mid_run_and_an_actor_too(
    nodes: Nodes, clips: Manifest, unbroken: Mapping[str, str], tmp_path: Path
) -> None:
    from avpipe.pipeline.engines import ray as engine

    assert engine.devices(None) == ("cpu", "cpu")  # one a node that has cores
    victims: list[psutil.Process] = []

    def disturb(event: Event) -> None:
        """When both have something in hand, kill the node of one, and later the actor of the other."""
        if not isinstance(event, Progress):
            return
        if not victims and len({one.rank for one in job.events if isinstance(one, Progress)}) == 2:
            raylet = nodes.workers[0].all_processes["raylet"][0].process
            victims.extend(psutil.Process(raylet.pid).children(recursive=True))
            assert any(process in victims for process in job.processes)  # a worker is among them
            assert any("avpipe.pipeline.sandbox" in " ".join(process.cmdline()) for process in victims)
            nodes.cluster.remove_node(nodes.workers.pop(0), allow_graceful=False)
        elif len(job.deaths) == 1 and len(nodes.workers) == 1 and not killed:
            worker = next(process for process in job.processes if process not in victims)
            victims.extend(family(worker))
            killed.append(worker.parent())
            worker.parent().send_signal(signal.SIGKILL)

    killed: list[Any] = []
    job = Job(clips, tmp_path / "job", seconds=1.0)  # a node takes its time to die
    job.run(ray_engine(), disturb)
    # Where the machine is busy, Ray may learn of the node's end when the other worker has done everything; or it may
    # put the lost worker's successor on the node that it does not know to be gone, and lose that one, too.
    assert 1 + len(killed) <= len(job.deaths) <= 3
    assert all(reason.startswith("was lost with its node or actor") for reason in job.deaths)
    assert job.digests == unbroken
    wait_until_gone(victims)  # no worker, no decoding process outlives what it belongs to


def features(workspace: Workspace) -> dict[str, str]:
    """Digests of all files."""
    return {name: digest for name, digest in digests_of_workspace(workspace).items() if name.startswith("features/")}


def test_ctrl_c_with_a_cluster_of_ones_own_leaves_nothing_and_the_next_run_goes_on(
    workspace: Workspace, rendered: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--recipe", "baseline", "--gpus", "0", "--decoders", "1", "--engine", "ray"]
    command = [sys.executable, "-m", "avpipe", "extract", "-w", str(workspace.root), *options]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert program.stderr is not None
    for _ in range(1200):
        if list(workspace.features("synthetic").glob("*/0*.json")):
            break
        time.sleep(0.05)
    everything = family(psutil.Process(program.pid))
    assert any("raylet" in process.name() for process in everything)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    said = program.stderr.read()
    assert program.wait(60) == 130, said
    assert "interrupted: the same command goes on from here" in said
    assert "Traceback" not in said
    wait_until_gone(everything)
    assert not list(workspace.features("synthetic").glob("*/.*"))  # whatever was begun is swept up
    extraction = api.extraction(workspace, recipe="baseline", gpus=0, decoders=1, engine="ray")
    assert extraction.run().is_complete
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    (other.root / "manifests").symlink_to(workspace.root / "manifests")
    api.extraction(other, recipe="baseline", gpus=0, decoders=1).run()
    assert features(workspace) == features(other)
