"""Remote videos are here while they are decoded, and no longer; who is to blame when they cannot be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpipe.extract.decoding import DecodeJob
from avpipe.extract.fetch import Fetcher
from avpipe.pipeline import remote
from avpipe.pipeline.errors import ClipError, StoreError
from avpipe.pipeline.files import atomic_write
from avpipe.pipeline.places import place
from avpipe.pipeline.remote import RemotePath


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is kept on this machine, all in one folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("avpipe.extract.fetch._MEMORY", tmp_path / "no such memory")
    return tmp_path


@pytest.fixture
def there() -> Iterator[Path]:
    """A remote folder, empty."""
    import fsspec

    yield place("memory://bucket/videos")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(path: Path, content: bytes) -> None:
    with atomic_write(path) as aside:
        aside.write_bytes(content)


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    found = Fetcher()
    yield found
    found.close()


def held(here: Path) -> list[str]:
    return sorted(path.name for path in (here / "tmp").rglob("*.mp4"))


def test_a_local_file_stays_where_it_is(fetcher: Fetcher, here: Path) -> None:
    job = DecodeJob(path=here / "a.mp4")
    with fetcher.here(job) as ready:
        assert ready is job


def test_a_file_is_here_while_it_is_needed(fetcher: Fetcher, there: Path, here: Path) -> None:
    put(there / "a.mp4", b"video")
    job = DecodeJob(path=there / "a.mp4", start_seconds=1.0, seed=7)
    with fetcher.here(job) as ready:
        assert ready.path.read_bytes() == b"video"
        assert ready.path.name == "a.mp4"
        assert (ready.start_seconds, ready.seed) == (1.0, 7)
    fetcher.close()
    assert held(here) == []


def test_parts_of_one_video_fetch_it_once(
    fetcher: Fetcher, there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    download = RemotePath.download

    def counting(self: RemotePath, target: Path) -> None:
        downloads.append(str(self))
        download(self, target)

    monkeypatch.setattr(RemotePath, "download", counting)
    for name in "ab":
        put(there / f"{name}.mp4", name.encode())
        for start in range(3):
            with fetcher.here(DecodeJob(path=there / f"{name}.mp4", start_seconds=start)) as ready:
                assert ready.path.read_bytes() == name.encode()
    assert downloads == [f"{there}/a.mp4", f"{there}/b.mp4"]
    assert held(here) == ["b.mp4"]
    with (
        fetcher.here(DecodeJob(path=there / "a.mp4")) as one,
        fetcher.here(DecodeJob(path=there / "b.mp4")),
        fetcher.here(DecodeJob(path=there / "a.mp4")) as other,
    ):
        assert one.path == other.path
        assert held(here) == ["a.mp4", "b.mp4"]


def test_a_file_that_is_not_there_is_the_clips_fault(fetcher: Fetcher, there: Path, here: Path) -> None:
    for name in ("none.mp4", "caf\udce9.mp4"):
        with pytest.raises(ClipError, match="does not exist") as caught, fetcher.here(DecodeJob(path=there / name)):
            pass
        assert caught.value.kind == "missing_file"
    assert held(here) == []
    put(there / "none.mp4", b"now it is")
    with fetcher.here(DecodeJob(path=there / "none.mp4")) as ready:
        assert ready.path.read_bytes() == b"now it is"


def test_a_storage_that_is_silent_is_no_clips_fault(
    fetcher: Fetcher, there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(there / "a.mp4", b"video")

    def fail(self: RemotePath, target: Path) -> None:
        target.write_bytes(b"vi")
        raise StoreError(f"cannot read {self}: it does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(RemotePath, "download", fail)
        with pytest.raises(StoreError, match="does not answer"), fetcher.here(DecodeJob(path=there / "a.mp4")):
            pass
    assert held(here) == []

    def full(self: RemotePath, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(RemotePath, "download", full)
        with (
            pytest.raises(StoreError, match=r"cannot fetch memory://.*a.mp4 to .*the disk is full .*with TMPDIR"),
            fetcher.here(DecodeJob(path=there / "a.mp4")),
        ):
            pass


def test_small_files_lie_in_memory(fetcher: Fetcher, there: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "memory").mkdir()
    monkeypatch.setattr("avpipe.extract.fetch._MEMORY", here / "memory")
    put(there / "small.mp4", b"x" * 10)
    put(there / "large.mp4", b"x" * 1000)
    usage = type("Usage", (), {"free": 800, "total": 1000})
    monkeypatch.setattr("avpipe.extract.fetch.shutil.disk_usage", lambda folder: usage)
    with fetcher.here(DecodeJob(path=there / "small.mp4")) as ready:
        assert ready.path.is_relative_to(here / "memory")
    with fetcher.here(DecodeJob(path=there / "large.mp4")) as ready:
        assert ready.path.is_relative_to(here / "tmp")


def test_what_a_killed_worker_left_is_removed(fetcher: Fetcher, there: Path, here: Path) -> None:
    put(there / "a.mp4", b"video")
    program = (
        "import os, sys; from pathlib import Path; from avpipe.pipeline.files import private_folder, temporary\n"
        "root = temporary(private_folder(Path(sys.argv[1])) / 'media-1'); root.mkdir(); (root / 'x.mp4').touch()\n"
    )
    subprocess.run([sys.executable, "-c", program, here / "tmp"], check=True)
    assert held(here) == ["x.mp4"]
    other = Fetcher()  # of this process, and at work
    with other.here(DecodeJob(path=there / "a.mp4")), fetcher.here(DecodeJob(path=there / "a.mp4")):
        assert held(here) == ["a.mp4", "a.mp4"]
    other.close()


def test_a_name_that_no_disk_takes(fetcher: Fetcher, there: Path) -> None:
    name = "é" * 200 + ".mp4"
    remote._filesystem("memory", os.getpid()).pipe_file(f"{there}/{name}", b"video")
    with fetcher.here(DecodeJob(path=there / name)) as ready:
        assert ready.path.name == "media.mp4"


def test_a_folder_here_that_is_swept_away_is_no_clips_fault(
    fetcher: Fetcher, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(there / "a.mp4", b"video")

    def fail(self: RemotePath, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))

    monkeypatch.setattr(RemotePath, "download", fail)
    with pytest.raises(StoreError, match=r"cannot fetch .*a.mp4"), fetcher.here(DecodeJob(path=there / "a.mp4")):
        pass


def test_memory_that_others_fill_meanwhile_is_no_reason_to_stop(
    fetcher: Fetcher, there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many threads and workers finds an eighth of the same room free."""
    (here / "memory").mkdir()
    monkeypatch.setattr("avpipe.extract.fetch._MEMORY", here / "memory")
    put(there / "a.mp4", b"video")
    download = RemotePath.download

    def full(self: RemotePath, target: Path) -> None:
        if target.is_relative_to(here / "memory"):
            target.write_bytes(b"vi")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        download(self, target)

    monkeypatch.setattr(RemotePath, "download", full)
    with fetcher.here(DecodeJob(path=there / "a.mp4")) as ready:
        assert ready.path.is_relative_to(here / "tmp")
        assert ready.path.read_bytes() == b"video"
        assert list((here / "memory").rglob("*.mp4")) == []
