from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.eval.coco import read_references, read_results, references_of, write_results
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, StoreError


def put(folder: Path, values: Any) -> Path:
    """A JSON file; a string is written as it is."""
    path = folder / "file.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


COCO = {
    "info": {},
    "images": [{"id": "video7010"}, {"id": 12}],
    "annotations": [
        {"image_id": 12, "id": 1, "caption": "a dog"},
        {"image_id": "video7010", "id": 2, "caption": "a cat"},
        {"image_id": 12, "id": 3, "caption": "dogs"},
    ],
}


@pytest.mark.parametrize(
    "values",
    [
        [{"image_id": "video7010", "caption": "a cat"}, {"image_id": 12, "caption": "a\ndog", "log_prob": -1.5}],
        {"video7010": "a cat", "12": "a\ndog"},
        {"video7010": ["a cat"], "12": ["a\ndog"]},
    ],
)
def test_results(tmp_path: Path, values: Any) -> None:
    assert read_results(put(tmp_path, values)) == {"video7010": "a cat", "12": "a\ndog"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("<!DOCTYPE html><html>404</html>", r"expected JSON, got an HTML or XML page \('<!DOCTYPE html>"),
        ("version https://git-lfs.github.com/spec/v1\noid", r"got a Git LFS pointer\. Try: git lfs pull"),
        ("[{", r"expected JSON: Expecting property name"),
        ("", r"expected JSON: Expecting value"),
        ('{"a": "x", "b": "y", "a": "z"}', r"expected each id once, got 'a' twice"),
        ("3", r'expected \[\{"image_id": \.\.\., .*, got 3$'),
        (["a cat"], r"got 'a cat' at row 0"),
        ([{"id": 1, "text": "a cat"}], r"got an object with the keys 'id', 'text' at row 0"),
        ([{"image_id": 1.5, "caption": "a"}], r"got an object with the keys 'image_id', 'caption' at row 0"),
        ([{"image_id": 1, "caption": None}], r"expected a caption for '1', got None"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], r"several for 1$"),
        ({"a": ["x", "y"]}, r"got a list of 2 for 'a'"),
        (COCO, r"for 'info'"),
    ],
)
def test_results_fail(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"file\.json.*{message}"):
        read_results(put(tmp_path, values))


def test_results_fail_where_no_file_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read: .*No such file"):
        read_results(tmp_path / "none.json")


def test_results_fail_on_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot be read: 'utf-8' codec"):
        read_results(tmp_path / "file.json")


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_results(put(tmp_path, '\ufeff{"a": "x"}')) == {"a": "x"}


def test_references_in_coco_form_follow_the_order_of_the_images(tmp_path: Path) -> None:
    references = read_references(put(tmp_path, COCO))
    assert references == {"video7010": ["a cat"], "12": ["a dog", "dogs"]}
    assert list(references) == ["video7010", "12"]


def test_references_without_images(tmp_path: Path) -> None:
    assert read_references(put(tmp_path, {"annotations": COCO["annotations"]})) == {
        "12": ["a dog", "dogs"],
        "video7010": ["a cat"],
    }


def test_an_image_without_annotation_has_no_reference(tmp_path: Path) -> None:
    assert read_references(put(tmp_path, {**COCO, "images": [*COCO["images"], {"id": 13}]}))["13"] == []  # type: ignore[misc]


@pytest.mark.parametrize("values", [{"a": ["x", "y"], "b": ["z"]}, {"a": ["x", "y"], "b": "z"}])
def test_references_by_id(tmp_path: Path, values: Any) -> None:
    assert read_references(put(tmp_path, values)) == {"a": ["x", "y"], "b": ["z"]}


def test_a_clip_may_be_called_annotations(tmp_path: Path) -> None:
    assert read_references(put(tmp_path, {"annotations": ["x", "y"]})) == {"annotations": ["x", "y"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], r"got a list of 1; this looks like results, not references"),
        ({"a": 3}, r"got 3 for 'a'"),
        ({"a": ["x", None]}, r"expected a caption for 'a', got None"),
        ({"annotations": [{"caption": "x"}]}, r"got an object with the keys 'caption' at row 0"),
        ({**COCO, "images": [{"id": 12}]}, r"annotations of clips that 'images' does not list: video7010"),
        ({**COCO, "images": [{"name": 12}]}, r"images\[0\]: expected an object with an 'id', got an object with"),
        ({**COCO, "images": {}}, r"got an empty object under 'images'"),
    ],
)
def test_references_fail(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"file\.json.*{message}"):
        read_references(put(tmp_path, values))


def test_references_of_a_manifest() -> None:
    clips = [
        Clip(clip_id="b", dataset="toy", path="b.mp4", split="test", captions=("x", "y")),
        Clip(clip_id="a", dataset="toy", path="a.mp4", split="test"),
        Clip(clip_id="c", dataset="toy", path="c.mp4", split="train", captions=("z",)),
    ]
    assert references_of(clips, "test") == {"b": ["x", "y"], "a": []}


def test_results_are_written_as_coco_has_them(tmp_path: Path) -> None:
    path = tmp_path / "captions" / "test.json"
    write_results(path, {"video7010": "a “cat”\n😀"})
    assert json.loads(path.read_text()) == [{"image_id": "video7010", "caption": "a “cat”\n😀"}]
    write_results(path, {12: "a dog"})
    assert json.loads(path.read_text()) == [{"image_id": 12, "caption": "a dog"}]
    assert [other.name for other in path.parent.iterdir()] == ["test.json"]


def test_results_are_not_written_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "captions").write_text("a file")
    with pytest.raises(StoreError, match="expected a folder"):
        write_results(tmp_path / "captions" / "test.json", {})


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=()))))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, captions: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "again.json"
    write_results(path, captions)
    assert read_results(path) == captions
