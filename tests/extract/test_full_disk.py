"""A real disk that is really full, and a folder that may not be written: nothing half-done passes for whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpipe.pipeline import shards
from avpipe.pipeline.workspace import Workspace

from .test_run import digests


def extract(workspace: Workspace) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "avpipe", "extract", "--recipe", "baseline", "--gpus", "0", "--decoders", "1"]
    return subprocess.run([*command, "-w", str(workspace.root)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing_and_can_go_on(workspace: Workspace, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "avpipe", "extract", "--recipe", "baseline", "--gpus", "0", "--decoders", "1"]
    running = subprocess.Popen([*command, "-w", str(workspace.root)], stderr=subprocess.PIPE, text=True)
    features = workspace.features("synthetic")
    while not list(features.rglob("*.tmp")) and not list(features.rglob("0*")) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(end)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) in ((130, False), (0, False))  # it may just have been done
    assert running.returncode == 0 or "interrupted: the same command goes on from here" in said
    assert not list(features.rglob("*.tmp"))
    assert extract(workspace).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of one megabyte, where the system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(workspace: Workspace, small_disk: Path) -> None:
    unbroken = extract(workspace)
    assert unbroken.returncode == 0, unbroken.stderr
    expected = digests(workspace)
    features = workspace.features("synthetic")
    shutil.rmtree(features)
    features.symlink_to(small_disk)
    stopped = extract(workspace)
    assert stopped.returncode == 1
    assert "the disk is full" in stopped.stderr
    assert "then run the same command again: what is finished is kept" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    whole = {name: digest for name, digest in digests(workspace).items() if name.endswith(".h5")}
    assert 0 < len(whole) < sum(name.endswith(".h5") for name in expected)
    assert whole.items() <= expected.items()
    for name in ("colour_grid", "log_mel"):
        assert shards.verify(features / name) == []  # not even a temporary file
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = extract(workspace)
    assert again.returncode == 0, again.stderr
    assert digests(workspace) == expected


def test_a_folder_that_may_not_be_written_is_named(workspace: Workspace) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = workspace.features("synthetic")
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    stopped = extract(workspace)
    folder.chmod(0o700)
    assert stopped.returncode == 1
    assert f"no permission in {folder}" in stopped.stderr


def test_a_file_in_place_of_a_folder_is_named(workspace: Workspace) -> None:
    folder = workspace.features("synthetic")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way", encoding="utf-8")
    stopped = extract(workspace)
    assert stopped.returncode == 1
    assert "expected a folder at" in stopped.stderr
    assert "Traceback" not in stopped.stderr
