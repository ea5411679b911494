"""Weights: found here, fetched from a Hub that these tests play themselves, or asked for in words that help."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpipe.pipeline import weights
from avpipe.pipeline.errors import MissingWeightsError, UsageError

COMMIT = "c" * 40
PARTS = {"config": ("config.json",), "weights": ("model.safetensors", "pytorch_model.bin")}
FILES = {"config.json": b"{}", "pytorch_model.bin": b"weights"}


@pytest.fixture(autouse=True)
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "hub"


def fill(cache: Path, *names: str, commit: str = COMMIT) -> Path:
    """Put files of ``org/name`` into the Hub's cache; returns the folder that they seem to lie in."""
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in names:
        (snapshot / name).write_bytes(FILES[name])
    return snapshot


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


def test_folder_gives_the_first_name_of_each_part(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "ast", *FILES)
    found = weights.resolve(str(folder), PARTS, component="ast")
    assert found.files == {"config": folder / "config.json", "weights": folder / "pytorch_model.bin"}
    assert found.to_spec() == {"id": "ast", "sha256": hashlib.sha256(b"weights").hexdigest()}
    (folder / "model.safetensors").write_bytes(b"better")
    assert weights.resolve(str(folder), PARTS, component="ast").files["weights"] == folder / "model.safetensors"


def test_folder_fails_where_a_part_is_missing(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "ast", "config.json")
    with pytest.raises(
        MissingWeightsError, match=r"no model.safetensors or pytorch_model.bin \(weights\); it holds config.json"
    ):
        weights.resolve(str(folder), PARTS, component="ast")


def test_folder_fails_where_there_is_none() -> None:
    with pytest.raises(MissingWeightsError, match=r"ast: no weights '\./gone': there is no folder gone"):
        weights.resolve("./gone", PARTS, component="ast")


def test_hub_cache_is_used_without_a_network(hub_cache: Path) -> None:
    snapshot = fill(hub_cache, *FILES)
    found = weights.resolve("org/name", PARTS, component="ast")
    assert found.id == "org/name"
    assert found.files == {"config": snapshot / "config.json", "weights": snapshot / "pytorch_model.bin"}


def test_revision_is_part_of_the_name(hub_cache: Path) -> None:
    old = fill(hub_cache, *FILES, commit="a" * 40)
    fill(hub_cache, *FILES)
    found = weights.resolve(f"org/name@{'a' * 40}", PARTS, component="ast")
    assert found.files["weights"].parent == old
    assert found.id == f"org/name@{'a' * 40}"


def test_parts_come_from_one_commit(hub_cache: Path) -> None:
    fill(hub_cache, "pytorch_model.bin", commit="a" * 40)
    fill(hub_cache, "config.json")
    with pytest.raises(MissingWeightsError, match=f"no weights 'org/name@{COMMIT}': model.safetensors or pytorch"):
        weights.resolve("org/name", PARTS, component="ast")


def test_missing_weights_say_what_where_and_how(hub_cache: Path) -> None:
    with pytest.raises(MissingWeightsError) as missing:
        weights.resolve("org/name", PARTS, component="my_ast")
    message = str(missing.value)
    assert f"my_ast: no weights 'org/name': config.json is not in the Hub's cache ({hub_cache})" in message
    assert "HF_HUB_OFFLINE=1 forbids to ask the Hub" in message
    assert "hf download org/name --local-dir weights/name" in message
    assert "my_ast.weights=/path/to/folder" in message
    assert "my_ast.weights=random gives random weights: for tests and benchmarks only" in message


def test_hub_out_of_reach_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append(a))
    with pytest.raises(MissingWeightsError, match=r"http://127\.0\.0\.1:9 does not answer .*refused"):
        weights.resolve("org/name", PARTS, component="ast")
    assert asked == []  # it would try again for half a minute


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "-x"])
def test_no_name_of_a_repository_fails(name: str) -> None:
    with pytest.raises(UsageError, match=f"expected a path, org/name or org/name@revision on the Hub, got '{name}'"):
        weights.resolve(name, PARTS, component="ast")


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download needs."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        repository, _, rest = self.path.partition("/resolve/")
        name = rest.partition("/")[2]
        body = FILES.get(name, b"") if repository == "/org/name" else b""
        self.send_response(200 if body or not rest else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        if body:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        elif rest:
            self.send_header("X-Error-Code", "EntryNotFound" if repository == "/org/name" else "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(hub: str, tmp_path: Path, repository: str) -> str:
    """In a process of its own: the library reads its address when it is imported."""
    code = (
        "from avpipe.pipeline import weights\n"
        "from avpipe.pipeline.errors import MissingWeightsError\n"
        "try:\n"
        f"    found = weights.resolve({repository!r}, {PARTS!r}, component='ast')\n"
        "    print(found.files['weights'].read_bytes(), found.files['weights'])\n"
        "except MissingWeightsError as error:\n"
        "    print(error)\n"
    )
    own = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, **own}
    )
    return done.stdout


def test_hub_is_asked_for_what_is_not_here(hub: str, tmp_path: Path) -> None:
    said = ask(hub, tmp_path, "org/name")
    assert said.startswith("b'weights' ")
    assert f"models--org--name/snapshots/{COMMIT}/pytorch_model.bin" in said


def test_repository_that_does_not_exist_fails(hub: str, tmp_path: Path) -> None:
    said = ask(hub, tmp_path, "org/other")
    assert said.startswith("ast: no weights 'org/other': 404 Client Error")
    assert "hf download org/other" in said


@pytest.mark.parametrize(("text", "seed"), [("random", 0), ("random:7", 7), ("openai", None), ("randomly/named", None)])
def test_random_seed_reads(text: str, seed: int | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert weights.random_seed(text, "clip_vit") == seed
    assert ("clip_vit: RANDOM WEIGHTS" in caplog.text) == (seed is not None)


@pytest.mark.parametrize("text", ["random:x", "random:-1", "random:1.5"])
def test_random_seed_fails_on_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError, match=f"expected random or random:<seed> with a whole number, got '{text}'"):
        weights.random_seed(text, "clip_vit")


def test_sha256_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    first = weights.sha256_of(path)
    assert first == hashlib.sha256(b"one").hexdigest()

    computed = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: computed.append(a) or real(*a))
    link = tmp_path / "link.bin"
    link.symlink_to(path)
    assert weights.sha256_of(path) == weights.sha256_of(link) == first
    assert computed == []

    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert weights.sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    assert len(computed) == 1


def test_sha256_does_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no folder").write_text("a file is in the way")
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "no folder"))
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    assert weights.sha256_of(path) == hashlib.sha256(b"one").hexdigest()


def test_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPIPE_CACHE", "~/somewhere")
    assert weights.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("AVPIPE_CACHE")
    assert weights.cache_folder() == Path.home() / ".cache" / "avpipe"


@pytest.mark.parametrize("text", ["/x/w", "./w", "../w", "~/w", "w.pt", "runs/w.safetensors"])
def test_paths_are_told_from_repositories(text: str) -> None:
    assert weights.looks_local(text)


def test_repositories_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not weights.looks_local("MIT/ast-finetuned-audioset-10-10-0.4593")
    (tmp_path / "MIT").mkdir()
    assert weights.looks_local("MIT")


def test_the_message_names_the_option_and_random_only_where_it_may_be(tmp_path: Path) -> None:
    parts = {"weights": ("model.safetensors",)}
    with pytest.raises(MissingWeightsError, match=r"toy: no weights .*\n.*\n.*toy\.weights=/path/.*\n.*\n.*=random"):
        weights.resolve(str(tmp_path / "no"), parts, component="toy")
    with pytest.raises(MissingWeightsError) as unrandom:
        weights.resolve(str(tmp_path / "no"), parts, component="toy", has_random=False)
    with pytest.raises(MissingWeightsError, match=r"toy: no tokenizer .*\n.*\n.*toy\.tokenizer=/path/") as other:
        weights.resolve(str(tmp_path / "no"), parts, component="toy", option="tokenizer")
    assert "random" not in f"{unrandom.value}{other.value}"
