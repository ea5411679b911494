"""The jars that SPICE needs: found, and fetched."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from avpipe.eval import corenlp
from avpipe.eval.corenlp import JARS, find_corenlp, install
from avpipe.pipeline.errors import MissingPackageError, StoreError, UsageError

FILES = {"code.jar": b"code", "models.jar": b"models" * 500_000}
PINNED = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where nothing is found by chance."""
    monkeypatch.delenv("AVPIPE_SPICE", raising=False)
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corenlp, "_beside_the_jar", lambda: [tmp_path / "lib"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    fill(folder, FILES)
    return folder


@pytest.fixture
def url(source: Path) -> Iterator[str]:
    """The source, served."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_GET(self) -> None:
            if self.path.startswith("/short/"):  # hangs up in the middle
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(source)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fill(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


# Finding


def test_found_in_the_cache_then_beside_the_jar(tmp_path: Path) -> None:
    jars = dict.fromkeys(JARS, b"")
    fill(tmp_path / "lib", jars)
    assert [path.parent for path in find_corenlp()] == [tmp_path / "lib"] * 2
    (tmp_path / "cache").mkdir()
    fill(tmp_path / "cache" / "spice", jars)
    assert [path.parent for path in find_corenlp()] == [tmp_path / "cache" / "spice"] * 2
    assert [path.name for path in find_corenlp()] == list(JARS)


def test_half_of_them_is_not_enough(tmp_path: Path) -> None:
    first, second = JARS
    fill(tmp_path / "lib", {first: b""})
    (tmp_path / "cache").mkdir()
    fill(tmp_path / "cache" / "spice", {second: b""})
    said = rf"needs {first} and {second}; looked in {tmp_path}/cache/spice, {tmp_path}/lib\. Try: .*--install spice"
    with pytest.raises(MissingPackageError, match=said):
        find_corenlp()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_folder_that_is_named_is_used_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    fill(tmp_path / "lib", dict.fromkeys(JARS, b""))
    named = tmp_path / "named"
    if how == "variable":
        monkeypatch.setenv("AVPIPE_SPICE", str(named))
    given = named if how == "argument" else None
    with pytest.raises(MissingPackageError, match=rf"looked in {named}\. "):
        find_corenlp(given)
    fill(named, dict.fromkeys(JARS, b""))
    assert [path.parent for path in find_corenlp(given)] == [named] * 2


def test_pinned_are_the_two_jars_of_version_3_6_0() -> None:
    assert list(JARS) == ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in JARS.values())


# Fetching


def test_copied_from_a_folder(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = install(str(source), jars=PINNED, tell=lines.append)
    assert folder == tmp_path / "cache" / "spice"
    assert contents(folder) == FILES
    assert lines == [f"{folder / name} from {source / name}" for name in FILES]


def test_fetched_from_a_url(url: str) -> None:
    lines: list[str] = []
    folder = install(url + "/", jars=PINNED, tell=lines.append)
    assert contents(folder) == FILES
    assert lines == [f"{folder / name} from {url}/{name}" for name in FILES]


def test_fetched_from_maven_central_where_nothing_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corenlp, "MAVEN", url)
    assert contents(install(jars=PINNED)) == FILES


def test_what_is_there_and_sound_is_kept_what_is_damaged_is_not(source: Path) -> None:
    install(str(source), jars=PINNED)
    (source / "code.jar").unlink()
    folder = corenlp.spice_folder()
    (folder / "models.jar").write_bytes(b"damaged")
    lines: list[str] = []
    install(str(source), jars=PINNED, tell=lines.append)
    assert contents(folder) == FILES
    assert lines[0] == f"{folder / 'code.jar'} is there"


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_other_bytes_are_refused_and_not_kept(source: Path, url: str, kind: str) -> None:
    (source / "models.jar").write_bytes(b"another version")
    with pytest.raises(MissingPackageError, match=rf"models\.jar: expected sha256 {PINNED['models.jar']}, got "):
        install(str(source) if kind == "folder" else url, jars=PINNED)
    assert contents(corenlp.spice_folder()) == {"code.jar": b"code"}


def test_a_download_that_ends_early_is_told_and_not_kept(url: str) -> None:
    with pytest.raises(MissingPackageError, match=r"cannot fetch .*/short/code\.jar: .*4 of 1000 bytes|IncompleteRead"):
        install(f"{url}/short", jars=PINNED)
    assert contents(corenlp.spice_folder()) == {}


def test_what_is_not_served_is_told(url: str) -> None:
    with pytest.raises(MissingPackageError, match=r"cannot fetch .*/nowhere/code\.jar: HTTP Error 404"):
        install(f"{url}/nowhere", jars=PINNED)


def test_nobody_there_is_told() -> None:
    with pytest.raises(MissingPackageError, match=r"cannot fetch http://127\.0\.0\.1:9/code\.jar: .*give the folder"):
        install("http://127.0.0.1:9", jars=PINNED)


def test_a_folder_without_them_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=rf"{tmp_path}/code\.jar is not there"):
        install(str(tmp_path), jars=PINNED)


@pytest.mark.parametrize("source", ["ftp://host/x", "file:///x", "/no/such/folder"])
def test_a_source_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match=r"--from: expected a folder"):
        install(source, jars=PINNED)


def test_no_place_to_write_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError, match=r"expected a folder at .*/cache, got a file.*AVPIPE_CACHE"):
        install(str(source), jars=PINNED)
