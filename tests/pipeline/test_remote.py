"""Remote places behave as local ones do, and say what is wrong where they cannot. In memory; see also test_s3.py."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avpipe.data_manifests import manifest
from avpipe.data_manifests.datasets import folder as folder_dataset
from avpipe.data_manifests.datasets import synthetic
from avpipe.pipeline import files, remote
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import CorruptShardError, DataError, FingerprintError, StoreError, UsageError
from avpipe.pipeline.features import FeatureSpec, Segment, Segments
from avpipe.pipeline.files import atomic_write, leftovers, private_folder, sha256, sweep, temporary, write_json
from avpipe.pipeline.places import place
from avpipe.pipeline.remote import RemotePath, is_remote
from avpipe.pipeline.shards import Mark, ShardPlan, is_done, marks, pending, plan, read_spec, verify, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter, open_reader
from avpipe.pipeline.store._cache import local_copy
from avpipe.pipeline.workspace import Workspace

from .toys import CLIP_IDS, features, spec, write_shard

PLANS = plan(CLIP_IDS[:12], 5)
FINGERPRINT = spec().fingerprint
TEXT = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is kept on this machine, all in one folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


@pytest.fixture
def there() -> Iterator[Path]:
    """A remote folder, empty."""
    import fsspec

    yield place("memory://bucket/data")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(path: Path, content: bytes) -> None:
    with atomic_write(path) as aside:
        aside.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- names ---


def test_a_place_is_a_folder_or_a_url() -> None:
    assert place("data/x") == Path("data/x")
    assert place("file:///data/x") == Path("/data/x")
    assert not is_remote(place(Path("/data")))
    url = place("s3://bucket/data/")
    assert is_remote(url)
    assert str(url) == "s3://bucket/data"
    assert place(url) is url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://", r"expected a folder or a URL like s3://bucket/folder, got 's3://'"),
        ("s4://bucket/x", r"nothing knows the protocol of 's4://bucket/x'"),
        ("simplecache::s3://bucket", "nothing knows the protocol"),
    ],
)
def test_a_url_of_nowhere_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place(text)


def test_names_are_those_of_pathlib() -> None:
    url, path = place("s3://bucket/a b/c.d.h5"), Path("/bucket/a b/c.d.h5")
    for name in ("name", "stem", "suffix"):
        assert getattr(url, name) == getattr(path, name)
    assert str(url.parent / "x" / "y.json") == "s3://bucket/a b/x/y.json"
    assert str(url.with_name("z")) == "s3://bucket/a b/z"
    assert str((url.parent / "../media/./x").resolve()) == "s3://bucket/media/x"
    assert url.is_relative_to(place("s3://bucket/a b"))
    assert not url.is_relative_to(place("s3://bucket/a"))
    assert not url.is_relative_to(Path("/bucket"))
    assert str(url.relative_to(place("s3://bucket"))) == "a b/c.d.h5"


def test_equal_urls_are_one_place() -> None:
    one, other = place("s3://bucket/a"), place("s3://bucket/b")
    assert {one, place("s3://bucket/a/")} == {one}
    assert one != other
    assert one != place("memory://bucket/a")
    assert sorted([other, one]) == [one, other]
    assert pickle.loads(pickle.dumps(one)) == one


# --- looking, reading, writing ---


def test_what_is_there_is_found(there: Path) -> None:
    put(there / "a.json", b"{}")
    put(there / "sub" / "b.h5", b"12345")
    assert (there / "a.json").is_file()
    assert (there / "sub").is_dir()
    assert (there / "sub").exists()
    assert not (there / "a.json").is_dir()
    assert not (there / "sub").is_file()
    assert sorted(path.name for path in there.iterdir()) == ["a.json", "sub"]
    assert (there / "sub" / "b.h5").stat().st_size == 5
    assert (there / "sub" / "b.h5").stat().st_mtime_ns > 1e18
    assert (there / "a.json").read_text() == "{}"
    assert b"".join((there / "a.json").blocks()) == b"{}"  # type: ignore[attr-defined]
    assert sha256(there / "sub" / "b.h5") == hashlib.sha256(b"12345").hexdigest()
    assert there.files_below() == ["a.json", "sub/b.h5"]  # type: ignore[attr-defined]
    (there / "a.json").unlink()
    assert not (there / "a.json").exists()
    (there / "a.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "do",
    [
        lambda path: path.read_bytes(),
        lambda path: path.stat().st_size,
        lambda path: list(path.iterdir()),
        lambda path: path.unlink(),
        lambda path: list(path.blocks()),
        lambda path: path.download(Path("x")),
        lambda path: path.open("rb"),
    ],
)
def test_what_is_not_there_is_called_so(there: Path, do: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError, match="no such object: 'memory://bucket/data/none'"):
        do(there / "none")
    with pytest.raises(StoreError, match="cannot read memory://bucket/data/none: it is not there"):
        sha256(there / "none")


def test_an_object_appears_only_when_it_is_whole(there: Path, here: Path) -> None:
    with atomic_write(there / "file") as aside:
        aside.write_bytes(b"half")
        assert not (there / "file").exists()
        assert aside.is_relative_to(here / "tmp")
    assert (there / "file").read_bytes() == b"half"
    with pytest.raises(TypeError), atomic_write(there / "file") as aside:
        aside.write_text(3 if aside.write_bytes(b"new") else "")  # type: ignore[arg-type]
    assert (there / "file").read_bytes() == b"half"
    assert files_below(here) == []


def test_a_full_temporary_folder_says_so(there: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(
        StoreError,
        match=rf"cannot write memory://.*/a.json: the disk is full \(.* at {here}/tmp.*another disk with TMPDIR",
    ):
        write_json(there / "a.json", {})
    assert not (there / "a.json").exists()


def test_another_users_folder_is_not_trusted(here: Path) -> None:
    own = private_folder()
    assert own.stat().st_mode & 0o777 == 0o700
    own.rmdir()
    (here / "elsewhere").mkdir()
    own.symlink_to(here / "elsewhere")
    with pytest.raises(StoreError, match=rf"{own} is not this user's own folder.*TMPDIR"):
        private_folder()


def test_what_a_killed_process_left_here_is_swept(there: Path, here: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    own = temporary(there / "00000.h5", "rows")
    left = own.with_name(own.name.replace(str(os.getpid()), str(child.pid)))
    left.touch()
    assert sweep(there / "00001.h5") == []
    assert sweep(there.with_name("other") / "00000.h5") == []  # of the same name, but elsewhere
    assert sweep(there / "00000.h5") == [left]
    assert leftovers(there) == []


# --- what goes wrong there ---


class NoCredentialsError(Exception):
    """As botocore has it: no OSError."""

    __module__ = "botocore.exceptions"


class EndpointConnectionError(Exception):
    """Likewise."""

    __module__ = "botocore.exceptions"


def no_such_bucket() -> Exception:
    error = FileNotFoundError("The specified bucket does not exist")
    error.response = {"Error": {"Code": "NoSuchBucket"}}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), r"no permission \(Access Denied\). Check the credentials .*AWS_PROFILE"),
        (NoCredentialsError("Unable to locate credentials"), "no permission .*AWS_ACCESS_KEY_ID"),
        (no_such_bucket(), "there is no such bucket. Check the URL.*AWS_ENDPOINT_URL"),
        (EndpointConnectionError("Could not connect"), "Could not connect. When the storage answers again.*is kept"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "reset by peer"),
        (TimeoutError(), "TimeoutError. When the storage answers"),
        (OSError(errno.EBUSY, "SlowDown"), "SlowDown"),
    ],
)
def test_errors_of_the_storage_say_what_to_try(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., object]:
            def fail(*arguments: object, **options: object) -> object:
                raise error

            return fail

    monkeypatch.setattr(remote, "_filesystem", lambda protocol, pid: Broken())
    for do in (
        lambda: marks(there),
        there.exists,
        (there / "x").read_bytes,
        lambda: put(there / "x", b""),
        lambda: sha256(there / "x"),
        lambda: is_done(there, PLANS[0], FINGERPRINT),  # not "not done"
    ):
        with pytest.raises(StoreError, match=rf"cannot \w+( at)? memory://bucket/data.*{message}"):
            do()  # type: ignore[no-untyped-call]
    assert files_below(here) == []


def test_a_bug_is_no_trouble_of_the_storage(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_filesystem", lambda protocol, pid: None)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
        there.exists()


def test_a_storage_that_keeps_less_than_it_was_sent_is_found_out(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = remote._filesystem("memory", os.getpid())

    def put_half(source: str, target: str) -> None:
        content = Path(source).read_bytes()
        whole.pipe_file(target, content[: len(content) // 2])

    monkeypatch.setattr(whole, "put_file", put_half)
    with pytest.raises(StoreError, match=r"cannot write .*file: sent 10 bytes, the storage says it holds 5"):
        put(there / "file", b"0123456789")


# --- shards ---


FORMATS = pytest.mark.parametrize("format", ["hdf5", "webdataset"])


def fill(folder: Path, format: str = "hdf5") -> None:
    write_spec(folder, spec())
    for planned in PLANS:
        write_shard(folder, planned, format)


@FORMATS
def test_remote_shards_have_the_bytes_of_local_ones(there: Path, here: Path, format: str) -> None:
    assert pending(there, PLANS, FINGERPRINT) == PLANS
    fill(there, format)
    fill(here / "local", format)
    assert contents(there) == contents(here / "local")
    assert pending(there, PLANS, FINGERPRINT) == []
    assert verify(there) == []
    assert files_below(here / "tmp") == []


@FORMATS
def test_remote_features_come_back_exactly(there: Path, format: str) -> None:
    fill(there, format)
    found = FeatureSet(there)
    assert found.counts == {"ok": 10, "failed": 1, "skipped": 1}
    for clip_id, read in [*found.stream(0), *pickle.loads(pickle.dumps(found)).stream()]:
        assert read.data.tobytes() == features(clip_id).data.tobytes()
        assert read.pts_seconds.tobytes() == features(clip_id).pts_seconds.tobytes()
    with pytest.raises(StoreError, match=r"memory://bucket/data has no features of clip 'clip.009': failed"):
        found.read("clip.009")


def test_remote_text_comes_back_exactly(there: Path) -> None:
    write_spec(there, TEXT)
    said = Segments((Segment(start_seconds=0.0, stop_seconds=1.0, text="é"),))
    with ShardWriter(there, ShardPlan(0, ("a",)), TEXT) as shard:
        shard.add("a", said)
    assert FeatureSet(there).segments("a") == said
    assert verify(there) == []


def test_other_features_are_refused_there_too(there: Path) -> None:
    fill(there)
    with pytest.raises(FingerprintError, match=r"memory://bucket/data holds other features"):
        write_spec(there, spec(frames=16))
    assert read_spec(there) == spec()


def cut(folder: Path) -> None:
    put(folder / "00001.h5", (folder / "00001.h5").read_bytes()[:100])


def flip_shard(folder: Path) -> None:
    content = bytearray((folder / "00001.h5").read_bytes())
    content[-1] ^= 1
    put(folder / "00001.h5", bytes(content))


def flip_mark(folder: Path) -> None:
    put(folder / "00001.json", (folder / "00001.json").read_bytes().replace(b"ok", b"OK"))


def lose_shard(folder: Path) -> None:
    (folder / "00001.h5").unlink()


def lose_mark(folder: Path) -> None:
    (folder / "00001.json").unlink()


@pytest.mark.parametrize(
    ("harm", "file", "reason"),
    [
        (cut, "00001.h5", r"is cut short: 100 B \(100 bytes\), its completion mark says \d+ bytes"),
        (flip_shard, "00001.h5", "sha256 differs"),
        (flip_mark, "00001.json", "completion mark"),
        (lose_shard, "00001.h5", "is gone, but its completion mark is there"),
        (lose_mark, "00001.h5", "has no completion mark"),
    ],
)
def test_harm_is_named_and_undone(there: Path, harm: Callable[[Path], None], file: str, reason: str) -> None:
    fill(there)
    whole = (there / "00001.h5").read_bytes()
    harm(there)
    found = {problem.file: problem.reason for problem in verify(there)}
    assert re.search(reason, found[file])
    assert pending(there, PLANS, FINGERPRINT) == [PLANS[1]]
    write_shard(there, PLANS[1], "hdf5")
    assert (there / "00001.h5").read_bytes() == whole
    assert verify(there) == []
    assert pending(there, PLANS, FINGERPRINT) == []


def test_an_upload_that_fails_leaves_no_mark(there: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its own, nor that of the shard that stood there: whoever vouches for a shard has seen it."""
    fill(there)
    former = (there / "00001.h5").read_bytes()

    def fail(source: str, target: str) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr(remote._filesystem("memory", os.getpid()), "put_file", fail)
        with pytest.raises(StoreError, match=r"cannot write memory://.*00001.h5: .*reset by peer"):
            write_shard(there, PLANS[1], "hdf5")
    assert (there / "00001.h5").read_bytes() == former
    assert pending(there, PLANS, FINGERPRINT) == [PLANS[1]]
    assert files_below(here / "tmp") == []
    write_shard(there, PLANS[1], "hdf5")
    assert pending(there, PLANS, FINGERPRINT) == []


def test_marks_are_read_in_order_however_they_come(there: Path) -> None:
    fill(there)
    assert [mark.file for mark in marks(there)] == ["00000.h5", "00001.h5", "00002.h5"]
    assert isinstance(marks(there)[0], Mark)
    assert files.each(lambda path: path.name, [there / "b", there / "a"]) == ["b", "a"]


# --- the cache ---


def count_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    download = RemotePath.download

    def counting(self: RemotePath, target: Path) -> None:
        seen.append(str(self))
        download(self, target)

    monkeypatch.setattr(RemotePath, "download", counting)
    return seen


def test_a_shard_is_fetched_once(there: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(there)
    downloads = count_downloads(monkeypatch)
    for _ in range(2):
        assert len(list(FeatureSet(there).stream())) == 10
    assert sorted(downloads) == [f"memory://bucket/data/0000{i}.h5" for i in range(3)]
    assert len(list((here / "cache" / "shards").glob("*/0000?.h5"))) == 3


def test_a_local_shard_is_not_copied(here: Path) -> None:
    fill(here / "local")
    assert len(list(FeatureSet(here / "local").stream())) == 10
    assert not (here / "cache").exists()


def test_a_cache_that_is_emptied_fills_again(there: Path, here: Path) -> None:
    fill(there)
    found = FeatureSet(there)
    first = found.read(CLIP_IDS[0])
    for path in (here / "cache").rglob("*.h5"):
        path.unlink()
    assert found.read(CLIP_IDS[1]).data.tobytes() == features(CLIP_IDS[1]).data.tobytes()  # its file is still open
    again = pickle.loads(pickle.dumps(found))
    assert again.read(CLIP_IDS[0]).data.tobytes() == first.data.tobytes()


def test_a_shard_that_was_written_anew_is_fetched_anew(there: Path) -> None:
    """Without its sha256, too, as when a reader is opened by hand."""
    fill(there)
    assert open_reader(there / "00000.h5").clip_ids == tuple(CLIP_IDS[:5])
    with ShardWriter(there, ShardPlan(0, tuple(CLIP_IDS[1:3])), spec()) as shard:
        for clip_id in CLIP_IDS[1:3]:
            shard.add(clip_id, features(clip_id))
    assert open_reader(there / "00000.h5").clip_ids == tuple(CLIP_IDS[1:3])
    assert FeatureSet(there).read(CLIP_IDS[1]).data.tobytes() == features(CLIP_IDS[1]).data.tobytes()


def test_a_copy_that_is_not_what_its_mark_promises_is_not_kept(there: Path, here: Path) -> None:
    fill(there)
    flip_shard(there)
    found = FeatureSet(there)  # the size is right
    with pytest.raises(CorruptShardError, match=r"/00001.h5: its bytes are not those .*`avpipe verify --deep`"):
        found.read(CLIP_IDS[5])
    assert not list((here / "cache").rglob("*.h5*"))
    lose_shard(there)
    with pytest.raises(CorruptShardError, match=r"memory://.*/00001.h5 is gone. `avpipe extract`"):
        found.read(CLIP_IDS[5])


def test_threads_that_want_one_shard_fetch_it_once(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(there)
    downloads = count_downloads(monkeypatch)
    digest = marks(there)[0].sha256
    start = threading.Barrier(8)
    found: list[bytes] = []

    def fetch() -> None:
        start.wait()
        found.append(local_copy(there / "00000.h5", digest).read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {(there / "00000.h5").read_bytes()}
    assert len(downloads) == len(found) / 8 == 1


def read_all(folder: Path, answers: multiprocessing.SimpleQueue[str]) -> None:
    digest = hashlib.sha256()
    for _, found in FeatureSet(folder).stream():
        digest.update(found.data.tobytes())
    answers.put(digest.hexdigest())


def test_processes_share_the_cache(there: Path) -> None:
    fill(there)
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    children = [fork.Process(target=read_all, args=(there, answers)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    read_all(there, answers)
    assert len({answers.get() for _ in range(4)}) == 1


def test_a_cache_that_cannot_be_written_says_so(there: Path, here: Path) -> None:
    fill(there)
    (here / "cache").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot keep a copy at .*expected a folder at .*/cache, .*AVPIPE_CACHE"):
        FeatureSet(there).read(CLIP_IDS[0])


# --- workspace, manifest, datasets ---


def test_a_remote_workspace_lists_what_it_holds(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.find(str(there))  # type: ignore[arg-type]
    assert (workspace.prepared(), workspace.extracted("toy"), workspace.runs()) == ([], [], [])
    put(workspace.manifest("toy"), b"")
    fill(workspace.feature_set("toy", "b"))
    fill(workspace.feature_set("toy", "a"))
    put(workspace.features("toy") / "c" / "00000.h5", b"")
    assert (workspace.prepared(), workspace.extracted("toy")) == (["toy"], ["a", "b"])


def test_runs_are_on_this_machine(there: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Workspace(there).run("x") == Path("avpipe-data/runs/x")
    monkeypatch.setenv("AVPIPE_HOME", str(there))
    assert Workspace.find().root == there
    assert Workspace.find().run("x") == Path("avpipe-data/runs/x")
    monkeypatch.setenv("AVPIPE_HOME", str(here))
    assert Workspace(there).run("x") == here / "runs" / "x"
    assert Workspace(here / "other").run("x") == here / "other" / "runs" / "x"


def clips() -> list[Clip]:
    return [Clip(clip_id=f"c{i}", dataset="toy", path=f"{i}.mp4", split="train", captions=("é",)) for i in range(3)]


def test_manifests_lie_there_too(there: Path, here: Path) -> None:
    path = Workspace(there).manifest("toy")
    with pytest.raises(DataError, match=r"no manifest: expected memory://bucket/data/manifests/toy.jsonl.gz"):
        manifest.read(path)
    for root in (place("s3://videos/toy"), here / "videos", there / "media" / "toy"):
        manifest.write(path, clips(), media_root=root)
        assert manifest.read(path).media_root == root
        assert manifest.read(path).clips == tuple(clips())
    assert manifest.read_header(path).media_root == "../media/toy"  # the workspace may be moved
    local = here / "manifests" / "toy.jsonl.gz"
    manifest.write(local, clips(), media_root=place("s3://videos/toy"))
    assert manifest.read(local).media_root == place("s3://videos/toy")


def test_videos_of_ones_own_may_lie_there(there: Path) -> None:
    for name in ("a.mp4", "kitchen/b.webm", ".hidden/c.mp4", "notes.txt"):
        put(there / "videos" / name, b"")
    put(there / "captions.csv", b"id,caption,split\na,one,train\nkitchen/b,two,val\n")
    prepared = folder_dataset.prepare(
        folder_dataset.Config(),
        media=there / "videos",
        annotations=there / "captions.csv",
        workspace=Workspace(there),
    )
    assert [clip.path for clip in prepared.clips] == ["a.mp4", "kitchen/b.webm"]
    with pytest.raises(DataError, match=r"expected a folder of videos, got memory://.*none, which does not exist"):
        folder_dataset.prepare(
            folder_dataset.Config(), media=there / "none", annotations=there / "x", workspace=Workspace(there)
        )


def test_nothing_is_rendered_there(there: Path) -> None:
    with pytest.raises(DataError, match=r"renders its media on this machine, not to memory://.*--media FOLDER"):
        synthetic.prepare(synthetic.Config(), media=None, annotations=None, workspace=Workspace(there))


def test_a_connection_that_broke_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """By the error that is raised, and not by what is left of the connection as well."""
    loop = asyncio.new_event_loop()
    try:
        for error in (ConnectionResetError("Cannot write to closing transport"), ValueError("a bug")):
            remote._on_stray_error(loop, {"message": "Task exception was never retrieved", "exception": error})
    finally:
        loop.close()
    assert "closing transport" not in caplog.text
    assert "a bug" in caplog.text
