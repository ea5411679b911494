"""A name is a module: dropped into the folder, it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpipe.pipeline.errors import UnknownNameError
from avpipe.pipeline.registry import Registry


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A package folder with a module, a folder, a private module, and one that cannot be imported."""
    folder = tmp_path / "toy_pets"
    (folder / "cat").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "dog.py").write_text('"""Barks.\n\nLoudly."""\nVOICE = "woof"\n')
    (folder / "cat" / "__init__.py").write_text('"""Purrs."""\n')
    (folder / "_shared.py").write_text("VOICE = None\n")
    (folder / "dragon.py").write_text('"""Breathes fire."""\nraise RuntimeError("imported")\n')
    (folder / "mute.py").write_text("VOICE = ''\n")
    (folder / "notes.txt").write_text("no module")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("pet", "toy_pets")
    for name in [name for name in sys.modules if name.startswith("toy_pets")]:
        del sys.modules[name]


def test_names_are_the_public_modules_and_none_is_imported(pets: Registry) -> None:
    assert pets.names() == ["cat", "dog", "dragon", "mute"]


def test_load(pets: Registry) -> None:
    assert pets.load("dog").VOICE == "woof"
    with pytest.raises(RuntimeError, match="imported"):  # a fault of the module is not hidden
        pets.load("dragon")


@pytest.mark.parametrize("name", ["dogg", "_shared", "dog.VOICE", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(pets: Registry, name: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown pet '{name}'.*known: cat, dog, dragon, mute"):
        pets.load(name)
    with pytest.raises(UnknownNameError, match="unknown pet"):
        pets.summary(name)


def test_summaries_are_read_without_importing(pets: Registry) -> None:
    summaries = {name: pets.summary(name) for name in pets.names()}
    assert summaries == {"cat": "Purrs.", "dog": "Barks.", "dragon": "Breathes fire.", "mute": ""}
