"""The store against a real S3 server on the loopback: forks, lost connections, refused permissions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avpipe import api
from avpipe.pipeline.errors import StoreError, UsageError
from avpipe.pipeline.files import atomic_write, sha256, write_json
from avpipe.pipeline.places import place
from avpipe.pipeline.remote import RemotePath
from avpipe.pipeline.shards import is_done, marks, pending, plan, read_spec, verify, write_spec
from avpipe.pipeline.store import FeatureSet

from ..s3 import Door, serving
from .toys import CLIP_IDS, Clips, features, spec, write_shard

PLANS = plan(CLIP_IDS[:12], 5)
FINGERPRINT = spec().fingerprint
OK = [clip_id for clip_id in CLIP_IDS[:12] if clip_id not in ("clip.006", "clip.009")]


@pytest.fixture(scope="module")
def s3() -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as patch, serving(patch.setenv) as door:
        yield door


@pytest.fixture
def door(s3: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    s3.open()
    s3.seen.clear()
    return s3


@pytest.fixture
def there(door: Door, request: pytest.FixtureRequest) -> Path:
    return place(f"s3://bucket/{request.node.name.partition('[')[0]}/toy")


def fill(folder: Path, format: str = "hdf5") -> None:
    write_spec(folder, spec())
    for planned in PLANS:
        write_shard(folder, planned, format)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_shards_on_s3_have_the_bytes_of_local_ones(there: Path, tmp_path: Path, format: str) -> None:
    there = there / format
    assert not there.exists()
    fill(there, format)
    fill(tmp_path / "local", format)
    assert contents(there) == contents(tmp_path / "local")
    assert verify(there) == []
    assert pending(there, PLANS, FINGERPRINT) == []
    (there / "00001.json").unlink()
    assert pending(there, PLANS, FINGERPRINT) == [PLANS[1]]
    found = FeatureSet(there)
    for clip_id in found.clip_ids:
        assert found.read(clip_id).data.tobytes() == features(clip_id).data.tobytes()


def test_an_object_is_looked_at(there: Path) -> None:
    with atomic_write(there / "a b" / "é.json") as aside:
        aside.write_bytes(b"{}")
    path = there / "a b" / "é.json"
    assert (path.is_file(), path.parent.is_dir(), path.parent.is_file()) == (True, True, False)
    assert path.stat().st_mtime_ns > 1e18
    assert path.stat().etag  # type: ignore[attr-defined]
    assert isinstance(there, RemotePath)
    assert there.files_below() == ["a b/é.json"]
    assert sha256(path) == hashlib.sha256(b"{}").hexdigest()
    with pytest.raises(FileNotFoundError, match="no such object: 's3://bucket/"):
        (there / "none").read_bytes()


def test_a_large_object_goes_up_in_parts(there: Path, tmp_path: Path, door: Door) -> None:
    content = os.urandom(1 << 20) * 110
    door.shuts_at = lambda line: b"partNumber=2" in line
    with pytest.raises(StoreError, match="cannot write s3://"), atomic_write(there / "large") as aside:
        aside.write_bytes(content)
    door.open()
    assert not (there / "large").exists()
    with atomic_write(there / "large") as aside:
        aside.write_bytes(content)
    assert any(b"uploadId" in line for line in door.seen)
    assert isinstance(there / "large", RemotePath)
    assert sha256(there / "large") == hashlib.sha256(content).hexdigest()


def test_loader_workers_read_the_same_bytes(there: Path) -> None:
    """Forked from a process that has connections of its own."""
    from torch.utils.data import DataLoader

    fill(there)
    found = FeatureSet(there)
    found.read(OK[0])  # the other shards are fetched by the children
    loader: DataLoader[Any] = DataLoader(
        Clips(found), batch_size=None, shuffle=True, num_workers=2, multiprocessing_context="fork"
    )
    seen = {clip_id: digest for clip_id, digest, pid in loader if pid != os.getpid()}
    assert set(seen) == set(OK)
    for clip_id, digest in seen.items():
        clip = features(clip_id)
        assert digest == hashlib.sha256(clip.data.tobytes() + clip.pts_seconds.tobytes()).hexdigest()


# --- what goes wrong ---


def test_no_such_bucket(door: Door) -> None:
    wrong = place("s3://buckett/data")
    with pytest.raises(UsageError, match="there is no bucket for s3://buckett/data"):
        api.open_workspace(wrong)
    for do in (lambda: write_json(wrong / "a.json", {}), lambda: marks(wrong), lambda: read_spec(wrong)):
        with pytest.raises(StoreError, match=r"s3://buckett/data.* there is no such bucket. Check the URL"):
            do()


def test_a_server_that_is_gone_is_not_an_empty_folder(there: Path, door: Door) -> None:
    fill(there)
    door.shut()
    for do in (
        lambda: api.open_workspace(there.parent),
        lambda: is_done(there, PLANS[0], FINGERPRINT),
        lambda: pending(there, PLANS, FINGERPRINT),
        lambda: FeatureSet(there),
        (there / "spec.json").exists,
    ):
        with pytest.raises(StoreError, match=r"cannot .*Could not connect to the endpoint.*is kept"):
            do()
    door.open()
    assert pending(there, PLANS, FINGERPRINT) == []


@pytest.mark.parametrize("at", [b"/00001.h5", b"/00001.json"])
def test_a_server_that_goes_in_mid_upload_leaves_nothing_half_written(there: Path, door: Door, at: bytes) -> None:
    there = there / at.decode().strip("/").replace(".", "-")
    write_spec(there, spec())
    write_shard(there, PLANS[0], "hdf5")
    door.shuts_at = lambda line: line.startswith(b"PUT") and at in line
    with pytest.raises(StoreError, match=rf"cannot write s3://bucket/.*{at.decode()}: "):
        write_shard(there, PLANS[1], "hdf5")
    door.open()
    assert "00001.json" not in contents(there)
    assert pending(there, PLANS, FINGERPRINT) == PLANS[1:]
    for planned in PLANS[1:]:
        write_shard(there, planned, "hdf5")
    assert verify(there) == []
    assert len(list(FeatureSet(there).stream())) == 10


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (b"PUT", r"cannot write s3://bucket/.*: no permission \(Access Denied\). Check the credentials"),
        (b"GET", r"cannot [\w ]+ s3://bucket/.*: no permission \(Access Denied\)"),
        (b"HEAD", r"cannot look at s3://bucket/.*: no permission \(Forbidden\)"),
        (b"DELETE", r"cannot remove s3://bucket/.*/00000.json: no permission \(Access Denied\)"),
    ],
)
def test_no_permission(there: Path, door: Door, method: bytes, message: str) -> None:
    there = there / method.decode()
    fill(there)
    door.says_no = lambda line: line.startswith(method)
    with pytest.raises(StoreError, match=message):
        write_shard(there, PLANS[0], "hdf5")


def test_who_may_see_only_ones_own_folder_may_work_there(there: Path, door: Door) -> None:
    door.says_no = lambda line: line.startswith(b"HEAD /bucket ")
    assert api.open_workspace(there).prepared() == []


def test_no_credentials(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avpipe.pipeline import remote

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    remote._filesystem.cache_clear()
    with pytest.raises(StoreError, match=r"no permission \(Unable to locate credentials\). Check .*AWS_ACCESS_KEY_ID"):
        write_json(there / "a.json", {})
    remote._filesystem.cache_clear()
