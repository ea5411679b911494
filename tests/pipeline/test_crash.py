"""A process may end at any moment: what counts as done is whole, and the next run gives the same bytes.

``test_runner.py`` kills a real program at random moments; here a forked process ends itself before its first call that
changes something on the disk, then before its second, and so on to the last: no state is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avpipe.pipeline.errors import CorruptShardError
from avpipe.pipeline.shards import is_done, plan, write_spec
from avpipe.pipeline.store import FeatureSet

from .toys import CLIP_IDS, contents, features, spec, write_shard

PLAN = plan(CLIP_IDS[5:10], 5)[0]  # two of them have features
CALLS = ("open", "pwrite", "ftruncate", "replace", "unlink", "mkdir")
DIED = 77


def die_before(number: int, work: Callable[[], None]) -> bool:
    """Do ``work`` in a process that ends before its ``number``-th disk call; whether it ended so."""
    pid = os.fork()
    if pid == 0:
        left = number

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(DIED)
                return call(*arguments, **options)

            return instead

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001  never return into pytest
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, DIED)
    return status == DIED


def nothing(folder: Path) -> None:
    """There was no earlier shard."""


def an_old_shard(folder: Path) -> None:
    """An earlier one is whole, but was made for other clips."""
    write_shard(folder, plan(CLIP_IDS[20:25], 5)[0], "webdataset")


def a_cut_shard(folder: Path) -> None:
    """An earlier one lost its end."""
    write_shard(folder, PLAN, "hdf5")
    os.truncate(folder / "00000.h5", 1000)


@pytest.mark.parametrize("before", [nothing, an_old_shard, a_cut_shard])
@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_ending_before_any_call_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, before: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and changes nothing that can be seen here
    write_spec(tmp_path / "unbroken", spec())
    write_shard(tmp_path / "unbroken", PLAN, format)
    expected = contents(tmp_path / "unbroken")
    number, died = 0, True
    while died:
        folder = tmp_path / str(number)
        write_spec(folder, spec())
        before(folder)
        died = die_before(number, lambda folder=folder: write_shard(folder, PLAN, format))
        done = is_done(folder, PLAN, spec().fingerprint)
        try:
            for clip_id, found in FeatureSet(folder).stream():
                assert found.data.tobytes() == features(clip_id).data.tobytes()
        except CorruptShardError:  # of the earlier shard, and said so
            assert before is not nothing
            assert not done
        assert done or died
        if not done:
            write_shard(folder, PLAN, format)
        after = contents(folder)
        if done and died:  # the mark is there; what the next shard of this name would sweep may be, too
            after = {name: after[name] for name in expected}
        assert after == expected
        number += 1
    assert number > 12
