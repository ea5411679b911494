"""What is remembered of captions, and that nothing which befalls the memory befalls the scoring."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval.parses import Parses


def test_what_is_put_is_got_by_others_too(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "parses.sqlite"
    Parses(path).put({"a dog": [["dog"]], "": [], 'it\'s "x" 😀': [["x", "y"]]})
    Parses(path).put({"a dog": [["hound"]], "a cat": [["cat"]]})
    wanted = ["a dog", "a cat", "", 'it\'s "x" 😀', "a fish"]
    assert Parses(path).get(wanted) == {
        "a dog": [["hound"]],
        "a cat": [["cat"]],
        "": [],
        'it\'s "x" 😀': [["x", "y"]],
    }


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    assert Parses(tmp_path / "folder" / "parses.sqlite").get(["a dog"]) == {}
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30)
@given(captions=st.sets(st.text(st.characters(codec=None)), max_size=20))
def test_any_caption_is_survived(tmp_path_factory: pytest.TempPathFactory, captions: set[str]) -> None:
    parses = Parses(tmp_path_factory.mktemp("any") / "parses.sqlite")
    parses.put({caption: [caption.split()] for caption in captions})
    found = parses.get(captions)
    assert found == {caption: [caption.split()] for caption in captions if caption in found}
    # Half a character is no text, and not remembered.
    assert set(found) == {caption for caption in captions if not any("\ud800" <= mark <= "\udfff" for mark in caption)}


def test_more_captions_than_one_query_takes(tmp_path: Path) -> None:
    parses = Parses(tmp_path / "parses.sqlite")
    many = {f"caption {number}": [[str(number)]] for number in range(3000)}
    parses.put(many)
    assert parses.get(many) == many


def test_several_threads_write_at_once(tmp_path: Path) -> None:
    parses = Parses(tmp_path / "parses.sqlite")

    def write(first: int) -> None:
        for number in range(first, first + 5):
            parses.put({str(number): number})

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 20, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parses.get(map(str, range(20))) == {str(number): number for number in range(20)}


def test_damaged_file_is_told_once_and_otherwise_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "parses.sqlite"
    path.write_bytes(b"no database at all, and longer than the header of one would be" * 100)
    parses = Parses(path)
    assert parses.get(["a dog"]) == {}
    parses.put({"a dog": []})
    assert parses.get(["a dog"]) == {}
    (message,) = caplog.messages
    assert f"cannot read {path}: file is not a database. Captions are parsed anew; it may be deleted" in message


def test_folder_that_cannot_be_made_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    Parses(tmp_path / "file" / "parses.sqlite").put({"a dog": []})
    assert "cannot write" in caplog.messages[0]
