"""A feature set gives each clip's features, from any process, and says why it cannot."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpipe.pipeline.errors import ClipError, CorruptShardError, FingerprintError, StoreError
from avpipe.pipeline.shards import Mark, ShardPlan, plan, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter, _feature_set

from .toys import CLIP_IDS, Clips, features, spec, write_shard

OK = [clip_id for clip_id in CLIP_IDS if int(clip_id[-3:]) % 10 != 9 and int(clip_id[-3:]) % 7 != 6]


@pytest.fixture(params=["hdf5", "webdataset", "both"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Twelve shards; a user may change the format in between."""
    write_spec(tmp_path / "toy", spec())
    for planned in plan(CLIP_IDS, 5):
        format = ("hdf5", "webdataset")[planned.index % 2] if request.param == "both" else request.param
        write_shard(tmp_path / "toy", planned, format)
    return tmp_path / "toy"


def test_every_clip_is_there_or_says_why_not(folder: Path) -> None:
    found = FeatureSet(folder)
    assert found.spec == spec()
    assert found.clip_ids == OK
    assert len(found) == len(OK) == found.counts["ok"]
    assert found.counts == {"ok": 46, "failed": 6, "skipped": 8}
    assert [outcome.clip_id for outcome in found.outcomes()] == CLIP_IDS
    for clip_id in OK:
        assert clip_id in found
        assert found.read(clip_id).data.tobytes() == features(clip_id).data.tobytes()
        assert found.num_rows(clip_id) == len(features(clip_id).data)
    assert "clip.009" not in found
    with pytest.raises(StoreError, match=r"no features of clip 'clip.009': failed \(decode\): moov atom not found"):
        found.read("clip.009")
    with pytest.raises(StoreError, match=r"'clip.006': skipped \(no_audio\): no audio stream"):
        found.num_rows("clip.006")
    with pytest.raises(StoreError, match=r"'clip.999': no finished shard holds it \(46 clips do"):
        found.read("clip.999")


def test_missing_clips_are_those_nothing_is_said_about(folder: Path) -> None:
    (folder / "00003.json").unlink()
    found = FeatureSet(folder)  # a shard without a mark is not there
    assert found.missing(CLIP_IDS) == CLIP_IDS[15:20]
    assert "clip.015" not in found


def test_streaming_goes_shard_by_shard(folder: Path) -> None:
    found = FeatureSet(folder)
    assert [clip_id for clip_id, _ in found.stream()] == OK
    one, again, two = ([clip_id for clip_id, _ in found.stream(seed)] for seed in (1, 1, 2))
    assert one == again != two
    assert sorted(one) == sorted(two) == OK
    shards_of = [CLIP_IDS.index(clip_id) // 5 for clip_id in one]
    assert len([i for i in range(1, len(one)) if shards_of[i] != shards_of[i - 1]]) == 11  # each shard once
    assert one != sorted(
        one, key=lambda clip_id: (shards_of.index(CLIP_IDS.index(clip_id) // 5), clip_id)
    )  # and shuffled within
    for clip_id, clip in found.stream(1):
        assert clip.data.tobytes() == features(clip_id).data.tobytes()


def open_in(folder: Path) -> list[Path]:
    """Files of a folder that this process holds open."""
    targets = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]  # noqa: PTH115
    return [Path(target) for target in targets if Path(target).parent == folder]


def test_few_files_are_open_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feature_set, "MAX_OPEN_FILES", 3)
    found = FeatureSet(folder)
    rng = np.random.default_rng(0)
    for clip_id in rng.permutation(OK):
        assert found.read(clip_id).data.tobytes() == features(clip_id).data.tobytes()
        assert len(open_in(folder)) <= 3
    del found
    assert open_in(folder) == []


def test_threads_may_share_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feature_set, "MAX_OPEN_FILES", 2)
    found = FeatureSet(folder)
    wrong: list[str] = []

    def read_all(seed: int) -> None:
        for clip_id in np.random.default_rng(seed).permutation(OK * 5):
            clip = found.read(clip_id)
            wrong.extend([clip_id] if clip.data.tobytes() != features(clip_id).data.tobytes() else [])

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_pickles_after_it_was_read_from(folder: Path) -> None:
    found = FeatureSet(folder)
    found.read(OK[0])
    copy = pickle.loads(pickle.dumps(found))
    assert copy.clip_ids == OK
    assert copy.read(OK[0]).data.tobytes() == features(OK[0]).data.tobytes()


@pytest.mark.parametrize("folder", ["both"], indirect=True)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_the_same_bytes(folder: Path, start: str) -> None:
    """HDF5 handles that cross a fork give wrong data without a word (pytorch/pytorch#11929). Ours read in the parent
    first, so that everything that could be shared is.
    """
    from torch.utils.data import DataLoader

    found = FeatureSet(folder)
    for clip_id in OK[::3]:
        found.read(clip_id)
    workers = 2 if start == "fork" else 1  # a spawned one imports torch
    loader: DataLoader[Any] = DataLoader(
        Clips(found), batch_size=None, shuffle=True, num_workers=workers, multiprocessing_context=start
    )
    seen = {}
    processes = set()
    for epoch in range(workers):
        for clip_id, digest, pid in loader:
            seen[epoch, clip_id] = digest
            processes.add(pid)
    assert os.getpid() not in processes
    assert len(processes) >= workers
    assert {clip_id for _, clip_id in seen} == set(OK)
    for (_, clip_id), digest in seen.items():
        clip = features(clip_id)
        assert digest == hashlib.sha256(clip.data.tobytes() + clip.pts_seconds.tobytes()).hexdigest()


def shard_file(folder: Path, number: int) -> Path:
    return next(path for path in folder.glob(f"{number:05d}.*") if path.suffix != ".json")


def test_broken_shards_are_all_named(folder: Path) -> None:
    os.truncate(shard_file(folder, 2), 50)
    shard_file(folder, 4).unlink()
    with pytest.raises(CorruptShardError) as caught:
        FeatureSet(folder)
    message = str(caught.value)
    assert "2 of 12 shards are broken" in message
    assert "00002" in message
    assert "is cut short: 50 B" in message
    assert "00004" in message
    assert "is gone" in message
    assert "avpipe verify" in message
    assert "avpipe extract" in message


def test_a_shard_that_breaks_later_is_named_when_read(folder: Path) -> None:
    found = FeatureSet(folder)
    os.truncate(shard_file(folder, 2), 50)
    with pytest.raises(CorruptShardError, match=r"00002\.(h5|tar).*avpipe extract"):
        found.read(CLIP_IDS[10])


def test_a_shard_of_other_features_is_refused_with_what_differs(folder: Path) -> None:
    with ShardWriter(folder, ShardPlan(12, ("new",)), spec(frames=16)) as shard:
        shard.add("new", features("new"))
    with pytest.raises(
        FingerprintError, match=r"00012.h5 holds other features .*\n  - config.frames: \(absent\) against 16"
    ):
        FeatureSet(folder)


def test_a_mark_that_belongs_to_another_file_is_not_believed(tmp_path: Path) -> None:
    """The right size and the right mark, but the shard inside says that it holds other features."""
    write_spec(tmp_path, spec(frames=8))
    with ShardWriter(tmp_path, ShardPlan(0, ("a",)), spec(frames=9)) as shard:
        shard.add("a", features("a"))
    there = shard.mark
    Mark(
        file=there.file,
        bytes=there.bytes,
        sha256=there.sha256,
        fingerprint=spec(frames=8).fingerprint,
        outcomes=there.outcomes,
    ).write(tmp_path)
    with pytest.raises(CorruptShardError, match=r"00000.h5 holds features \w+, its mark says"):
        FeatureSet(tmp_path).read("a")


def test_a_clip_in_two_shards_is_refused(folder: Path) -> None:
    with ShardWriter(folder, ShardPlan(12, ("clip.000",)), spec()) as shard:
        shard.fail("clip.000", ClipError("decode", "broken"))
    with pytest.raises(StoreError, match=r"clip 'clip.000' is in two shards .*two manifests"):
        FeatureSet(folder)


def test_a_folder_without_features(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature set at"):
        FeatureSet(tmp_path / "none")
    write_spec(tmp_path, spec())
    empty = FeatureSet(tmp_path)
    assert (len(empty), list(empty.stream()), empty.missing(["a"])) == (0, [], ["a"])
