"""Features that processes share: what is read is what the source has, and nobody holds it twice."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from avpipe.pipeline.features import Features
from avpipe.train.dataset import ClipDataset, fits_in_memory
from avpipe.train.held import HeldFeatures, OnDisk
from tests.train.toys import Source, clips, sources

CAPTIONS = [["one"], ["two"], ["three"], ["four"], ["five"]]
IDS = [clip.clip_id for clip in clips(CAPTIONS)]


class Counted:
    """A source that counts how often it is read."""

    def __init__(self, source: Source) -> None:
        self.spec, self.source, self.reads = source.spec, source, Counter[tuple[str, int]]()

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.source

    def read(self, clip_id: str, view: int = 0) -> Features:
        self.reads[clip_id, view] += 1
        return self.source.read(clip_id, view)


def assert_same(one: Features, other: Features) -> None:
    assert one.data.dtype == other.data.dtype
    assert np.array_equal(one.data, other.data)
    assert np.array_equal(one.pts_seconds, other.pts_seconds)


@pytest.mark.parametrize("name", sources())
def test_what_is_held_is_what_the_source_has(name: str) -> None:
    source = Counted(sources()[name])
    held = HeldFeatures(source, [*IDS, IDS[0], "stranger"])
    assert all(count == 1 for count in source.reads.values())  # read once
    assert held.spec == source.spec
    for clip_id in [*IDS, "stranger"]:
        assert (clip_id in held) == (clip_id in source)
        if clip_id in source:
            for view in range(source.spec.views):
                assert_same(held.read(clip_id, view), source.source.read(clip_id, view))
    with pytest.raises(KeyError):
        held.read("stranger")


def test_of_nothing_nothing_is_held() -> None:
    held = HeldFeatures(next(iter(sources().values())), [])
    assert IDS[0] not in held
    assert held.bytes == 0
    held.let_go()


def _child(held: HeldFeatures, pipe: Any) -> None:
    """Tell what is seen, write to it, and wait for the end."""
    found = {clip_id: held.read(clip_id) for clip_id in IDS if clip_id in held}
    pipe.send({clip_id: np.array(features.data) for clip_id, features in found.items()})
    for features in found.values():
        features.data[:] = 0
    pipe.send("written")


def test_another_process_sees_it_and_what_it_writes_is_its_own() -> None:
    (name, source), *_ = sources().items()
    held = HeldFeatures(source, IDS)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_child, args=(held, there))
    process.start()
    try:
        assert here.poll(60)
        seen = here.recv()
        assert here.poll(60)
        assert here.recv() == "written"
    finally:
        process.join(60)
    assert seen.keys() == {clip_id for clip_id in IDS if clip_id in source}, name
    for clip_id, data in seen.items():
        assert np.array_equal(data, source.read(clip_id).data)
        assert_same(held.read(clip_id), source.read(clip_id))


class Large:
    """A source of one clip of 64 MB."""

    spec = replace(sources()["see"].spec, dim=1024)
    data = np.random.default_rng(0).random((2**14, 1024), np.float32)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id == "large"

    def read(self, clip_id: str, view: int = 0) -> Features:
        return Features(data=self.data, pts_seconds=np.arange(float(len(self.data))))


def test_what_a_process_lets_go_is_no_part_of_its_memory_and_still_there() -> None:
    held, process = HeldFeatures(Large(), ["large"]), psutil.Process()
    before = process.memory_info().rss
    assert np.array_equal(held.read("large").data, Large.data)
    assert process.memory_info().rss > before + 50e6
    held.let_go()
    assert process.memory_info().rss < before + 10e6
    assert np.array_equal(held.read("large").data, Large.data)


def test_batches_are_the_same_and_nothing_is_copied() -> None:
    plain = ClipDataset(clips(CAPTIONS), sources(), cache=True)
    held = {name: HeldFeatures(source, IDS) for name, source in sources().items()}
    shared = ClipDataset(clips(CAPTIONS), held, cache=True)
    items = [(index, ()) for index in range(len(CAPTIONS))]
    one, other = plain.batch(items), shared.batch(items)
    for name, source in held.items():
        assert torch.equal(one.features[name], other.features[name])
        assert torch.equal(one.pts_seconds[name], other.pts_seconds[name])
        assert torch.equal(one.present[name], other.present[name])
        clip_id = next(clip_id for clip_id in IDS if clip_id in source)
        rows = shared._rows(IDS.index(clip_id), name, 0)
        assert rows is not None
        assert rows.data.data_ptr() == source.read(clip_id).data.ctypes.data


def test_what_is_on_disk_is_read_each_time_also_where_the_rest_is_kept() -> None:
    counted = {name: Counted(source) for name, source in sources().items()}
    first, *others = counted
    data = ClipDataset(clips(CAPTIONS), {**counted, first: OnDisk(counted[first])}, cache=True)
    assert not counted[first].reads
    for _ in range(2):
        data.batch([(index, ()) for index in range(len(CAPTIONS))])
    assert set(counted[first].reads.values()) == {2}
    assert all(set(counted[name].reads.values()) == {1} for name in others)


def test_only_what_a_training_would_hold_itself_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sources()
    size = sum(
        np.mean([source.read(clip_id).data.nbytes for clip_id in IDS if clip_id in source]) * len(IDS)
        for source in found.values()
    )
    free = psutil.virtual_memory()._replace(available=int(2 * size) + 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert fits_in_memory(clips(CAPTIONS), found, share=0.5)
    assert not fits_in_memory(clips(CAPTIONS), found, share=0.4)
    elsewhere = {name: HeldFeatures(source, IDS) for name, source in found.items()}
    assert fits_in_memory(clips(CAPTIONS), elsewhere, share=0.0)
    assert fits_in_memory(clips(CAPTIONS), {name: OnDisk(source) for name, source in found.items()}, share=0.0)
