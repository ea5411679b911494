"""Published lists of ids: every form that they come in gives the same ids, and a list of something else is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests.official import Entry
from avpipe.data_manifests.subset import Subset, ids_in, plain
from avpipe.pipeline.errors import DataError

FORMS = {
    "lines.txt": "G9zN5TTuGO4_10_20\nvideo7.mp4\n",
    "windows.txt": "\ufeffG9zN5TTuGO4_10_20\r\n\r\nvideo7\r\n",
    "quoted.lst": "'G9zN5TTuGO4_10_20',\n\"video7.avi\",\n",
    "labelled.txt": "G9zN5TTuGO4_10_20.mp4 17\nvideo7.mp4 3\n",
    "no_extension": "G9zN5TTuGO4_10_20\nvideo7",
    "list.json": '["G9zN5TTuGO4_10_20", "video7.mp4"]',
    "splits.json": '{"train": ["G9zN5TTuGO4_10_20.webm"], "test": ["video7"]}',
    "captions.json": '{"G9zN5TTuGO4_10_20": ["a dog barks", "barking"], "video7": ["rain falls"]}',
    "one_caption.json": '{"G9zN5TTuGO4_10_20": "barking", "video7": "rain"}',
    "rows.json": '[{"id": "G9zN5TTuGO4_10_20", "caption": "x"}, {"video_id": "video7"}]',
    "vatex.json": '[{"videoID": "G9zN5TTuGO4_10_20", "enCap": []}, {"videoID": "video7", "enCap": []}]',
    "valor.json": '[{"video_id": "G9zN5TTuGO4_10_20", "desc": "x"}, {"video_id": "video7", "desc": "y"}]',
    "coco.json": '{"images": [{"id": "G9zN5TTuGO4_10_20"}, {"id": "video7"}], "annotations": [], "info": {}}',
    "lines.jsonl": '{"clip_id": "G9zN5TTuGO4_10_20"}\n\n{"file": "video7.mp4"}\n',
    "ids.jsonl": '"G9zN5TTuGO4_10_20"\n"video7"\n',
    "one.csv": "video_id\nG9zN5TTuGO4_10_20\nvideo7\n",
    "several.csv": 'split,id,caption\ntrain,G9zN5TTuGO4_10_20,"a dog, barking"\ntest, video7 ,"rain\nfalls"\n',
    "excel.csv": "key;label\r\nG9zN5TTuGO4_10_20;3\r\nvideo7.mp4;4\r\n",
    "tabs.tsv": "file_name\tlabel\nG9zN5TTuGO4_10_20.mp4\t3\nvideo7.mp4\t4\n",
}


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    subset = Subset.read(write(tmp_path, name, FORMS[name]))
    assert subset.ids == {"G9zN5TTuGO4_10_20", "video7"}


@pytest.mark.parametrize("name", [name for name in FORMS if "." in name])
def test_every_form_may_be_gzipped(name: str, tmp_path: Path) -> None:
    subset = Subset.read(write(tmp_path, f"{name}.gz", FORMS[name]))
    assert subset.ids == {"G9zN5TTuGO4_10_20", "video7"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7, "video8"], ["7", "video8"]),
        ([{"id": 7}, "8"], ["7", "8"]),
        ({"train": [7], "test": [8, 9]}, ["7", "8", "9"]),
        ({"7": ["a dog barks", "barking"], "8": ["rain"]}, ["7", "8"]),
        ({"7": ["a dog barks"], "8": []}, ["7", "8"]),
        ({"7": {"caption": "x"}}, ["7"]),
        ({"images": [{"id": 0, "caption": "x"}], "annotations": [{"id": 3, "image_id": 0}]}, ["0"]),
        ([{"path": "sub/a.mp4", "start": 3}], ["sub/a.mp4"]),
        ([], []),
    ],
)
def test_ids_in_json(values: Any, expected: list[str]) -> None:
    assert ids_in("ids.json", json.dumps(values), "ids.json") == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ids.json", '{"train": ["a"], "test": ["b"]}', ["b"]),
        ("ids.json", '{"train": ["a"], "testing": ["b"]}', ["b"]),
        ("ids.json", '{"train": ["a"]}', []),
        ("ids.json", '["a"]', []),
        ("ids.txt", "a\nb", []),
        ("ids.csv", "id\na", []),
    ],
)
def test_the_ids_of_one_split_are_those_under_its_key(name: str, content: str, expected: list[str]) -> None:
    assert ids_in(name, content, name, split="test") == expected


@pytest.mark.parametrize("split", ["val", "valid", "validation", "dev"])
def test_a_split_has_several_spellings(split: str) -> None:
    assert ids_in("ids.json", json.dumps({"train": ["a"], split: ["b"]}), "ids.json", split="val") == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", "", "expected ids: one a line, .*; got none"),
        ("ids.txt", " \n\n", "expected ids: one a line, .*; got none"),
        ("ids.json", "[]", "expected ids: .*; got none"),
        ("ids.json", "17", "expected ids: .*; got int"),
        ("ids.json", '"video7"', "expected ids: .*; got str"),
        ("ids.json", "null", "expected ids: .*; got NoneType"),
        ("ids.json", '["video7"', "got no JSON: .*line 1 column 10"),
        ("ids.json", '["video7", 1.5]', "got 1.5 at row 1"),
        ("ids.json", '["video7", true]', "got True at row 1"),
        ("ids.json", '[["video7"]]', r"got \['video7'\] at row 0"),
        ("ids.json", '[{"name": "video7"}]', "got {'name': 'video7'} at row 0"),
        ("ids.json", '[{"id": null}]', "got {'id': None} at row 0"),
        ("ids.json", '{"images": [{"width": 3}]}', "got {'width': 3} at row 0"),
        ("ids.jsonl", '{"id": "a"}\n{"name": "b"}', "got {'name': 'b'} at row 1"),
        ("ids.jsonl", '{"id": "a"}\nnonsense', "expected ids: .*; got no JSON: .*line 2"),
        ("ids.csv", "name,text\na,x\n", "expected ids: .*; got the columns name, text"),
        ("ids.csv", "video7\nvideo8\n", "expected ids: .*; got the columns video7"),
        ("ids.csv", "", "expected ids: .*; got the columns none"),
        ("ids.csv", "id,split\n", "expected ids: .*; got none"),
        ("ids.txt", "<!DOCTYPE html><html>Sign in</html>", "got a web page"),
    ],
)
def test_a_file_of_no_ids_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        Subset.read(write(tmp_path, name, content))


def test_a_long_row_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x{50,80} at row 0$"):
        Subset.read(write(tmp_path, "ids.json", json.dumps([{"name": "x" * 5000}])))


@pytest.mark.parametrize(
    ("name", "content"),
    [("ids.csv", "id,split\n,train\nvideo7,test\n"), ("ids.json", '["", "video7"]'), ("ids.txt", '""\nvideo7\n'),
     ("ids.csv", "split,id\ntrain\ntest,video7\n")],
)  # fmt: skip
def test_an_empty_id_is_none(name: str, content: str, tmp_path: Path) -> None:
    # It would be that of the video of every clip that has none.
    subset = Subset.read(write(tmp_path, name, content))
    assert subset.ids == {"video7"}
    assert not subset.holds("video8", Entry(source_id="video8", split="train", captions=("x",)))
    assert not subset.holds_id("video8", {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("video7", "video7"), ("video7.mp4", "video7"), ("video7.WEBM", "video7"), ("rain.wav", "rain"),
        ("v_1.2", "v_1.2"), ("a_10.000_20.000", "a_10.000_20.000"), ("sub/video7.mkv", "sub/video7"),
        ("video7.json", "video7.json"),
    ],
)  # fmt: skip
def test_the_extension_of_a_media_file_is_no_part_of_an_id(name: str, expected: str) -> None:
    assert plain(name) == expected


def subset_of(*ids: str) -> Subset:
    return Subset(Path("lab's.test.ids.json"), frozenset(ids))


ENTRY = Entry(
    source_id="G9zN5TTuGO4_10_20.mp4", split="test", captions=("x",), video="G9zN5TTuGO4", span=(10, 20), names=("7",)
)


@pytest.mark.parametrize("listed", ["clip-7", "G9zN5TTuGO4_10_20", "7", "G9zN5TTuGO4"])
def test_a_clip_is_listed_by_any_of_its_names(listed: str) -> None:
    subset = subset_of(listed, "another")
    assert subset.holds("clip-7", ENTRY)
    assert subset.used == {listed}
    assert subset.note == "1 of the 2 ids in lab's.test.ids.json are clips here"
    subset.check()


@pytest.mark.parametrize("listed", ["G9zN5TTuGO4_10", "g9zn5ttugo4", "G9zN5TTuGO", "10", "x"])
def test_what_only_looks_alike_is_not_listed(listed: str) -> None:
    subset = subset_of(listed)
    assert not subset.holds("clip-7", ENTRY)
    assert subset.used == set()


@pytest.mark.parametrize("listed", ["kitchen_a", "kitchen/a", "G9zN5TTuGO4"])
def test_a_clip_of_a_manifest_is_listed_by_its_ids(listed: str) -> None:
    subset = subset_of(listed)
    assert subset.holds_id("kitchen_a", {"id": "kitchen/a.mp4", "video": "G9zN5TTuGO4"})
    assert not subset.holds_id("kitchen_b", {"id": "kitchen/b.mp4", "video": "-sGd3_x-9A_"})
    assert subset.used == {listed}


def test_a_video_that_is_listed_lists_all_its_clips() -> None:
    subset = subset_of("G9zN5TTuGO4")
    clips = [Entry(source_id=f"s{n}", split="train", captions=("x",), video="G9zN5TTuGO4") for n in range(3)]
    assert [subset.holds(each.source_id, each) for each in clips] == [True] * 3


def test_a_list_of_something_else_is_refused(tmp_path: Path) -> None:
    subset = Subset.read(write(tmp_path, "ids.txt", "".join(f"stranger{number:04}\n" for number in range(1200))))
    assert not subset.holds("clip-7", ENTRY)
    with pytest.raises(DataError, match=r"ids.txt: none of its 1,200 ids is one of a clip, for example 'stranger0000'"):
        subset.check()


@given(ids=st.lists(st.sampled_from(["a", "b.mp4", "c", "Käse", "\ud83d"]), min_size=1))
def test_the_hash_knows_the_ids_and_not_how_they_are_written(ids: list[str]) -> None:
    def sha256(values: list[str]) -> str:
        return Subset(Path("x"), frozenset(map(plain, values))).sha256

    assert sha256(ids) == sha256([*reversed(ids), f"{plain(ids[0])}.mkv"])
    assert sha256(ids) != sha256([*ids, "d"])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("latest.json", "test-within-latest"),
        ("our ids.v2.txt", "test-within-our_ids"),
        ("test.txt.gz", "test-within-test"),
    ],
)
def test_a_split_within_a_list_has_a_name_of_its_own(file: str, expected: str) -> None:
    assert Subset(Path("/far/away") / file, frozenset()).name_of("test") == expected
