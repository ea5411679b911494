"""Official files are found wherever they lie, and told apart from what only has their name."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path
from typing import cast

import pytest
from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.dataset import Card
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.places import place

CARD = Card(summary="A toy.", source="https://example.org/toy", licence="none")


class Row(TypedDict):
    id: int
    caption: str


def files(folder: Path) -> AnnotationFiles:
    return AnnotationFiles(folder, "toy", CARD)


def put(path: Path, text: str | bytes = "content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def archive(path: Path, members: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name, text)
    return path


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["train.csv", "sub/train.csv", "a/b/c/train.csv", "TRAIN.CSV"])
def test_a_file_is_found_in_sub_folders_and_any_case(where: str, tmp_path: Path) -> None:
    put(tmp_path / where)
    assert files(tmp_path).need("train.csv").text("text") == "content"


@pytest.mark.parametrize("where", ["a/b/c/d/train.csv", ".hidden/train.csv", "__MACOSX/train.csv", "train.csv.bak"])
def test_what_lies_too_deep_or_hidden_is_not_found(where: str, tmp_path: Path) -> None:
    put(tmp_path / where)
    assert files(tmp_path).find("train.csv") is None


def test_the_file_nearest_to_the_top_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "old" / "train.csv", "old")
    put(tmp_path / "train.csv", "new")
    assert files(tmp_path).need("train.csv").text("text") == "new"


def test_two_files_of_one_name_are_fine_if_they_are_the_same(tmp_path: Path) -> None:
    put(tmp_path / "a" / "train.csv")
    put(tmp_path / "b" / "train.csv")
    assert files(tmp_path).need("train.csv").text("text") == "content"


def test_a_file_and_what_it_was_unpacked_from_are_the_same(tmp_path: Path) -> None:
    put(tmp_path / "train.csv")
    put(tmp_path / "train.csv.gz", gzip.compress(b"content"))
    assert files(tmp_path).need("train.csv").text("text") == "content"


def test_an_archive_that_nobody_needs_may_be_damaged(tmp_path: Path) -> None:
    put(tmp_path / "videos.zip", "half a download")
    put(tmp_path / "train.csv")
    assert files(tmp_path).find("val.csv", "valid.csv") is None
    assert files(tmp_path).need("train.csv").text("text") == "content"


def test_two_files_of_one_name_that_differ_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "dataset" / "train.csv", "1")
    put(tmp_path / "dataset2.0" / "train.csv", "2")
    with pytest.raises(
        DataError, match=r"expected one train.csv, got 2 that differ: dataset/train.csv, dataset2.0/train"
    ):
        files(tmp_path).find("train.csv")


def test_the_first_of_several_names_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "second.json", "2")
    assert files(tmp_path).need("first.json", "second.json").name == "second.json"
    put(tmp_path / "first.json", "1")
    assert files(tmp_path).need("first.json", "second.json").name == "first.json"


def test_a_single_file_may_be_given(tmp_path: Path) -> None:
    path = put(tmp_path / "train.csv")
    put(tmp_path / "val.csv")
    assert files(path).need("train.csv").text("text") == "content"
    assert files(path).find("val.csv") is None


def test_a_single_file_is_the_one_that_is_wanted_whatever_it_is_called(tmp_path: Path) -> None:
    path = put(tmp_path / "vatex_validation.excerpt150.json")
    assert files(path).need("vatex_validation_v1.0.json").text("text") == "content"
    one = {"val": ("vatex_validation_v1.0.json",)}
    assert files(path).by_split(one, ["val"])["val"].name == "vatex_validation.excerpt150.json"
    both = {**one, "test": ("vatex_public_test_english_v1.1.json",)}
    with pytest.raises(DataError, match=r"did not find .*\(val\); .*\(test\)"):
        files(path).by_split(both, ["val", "test"])


def test_a_renamed_file_is_shown_first(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "vatex_validation_v1.0.excerpt150.json", "z.json"):
        put(tmp_path / name)
    with pytest.raises(DataError, match=r"There is vatex_validation_v1.0.excerpt150.json, "):
        files(tmp_path).need("vatex_validation_v1.0.json")


def test_a_file_is_found_in_the_archive_it_came_in(tmp_path: Path) -> None:
    members = {"__MACOSX/._train.csv": "resource fork", "dataset/train.csv": "zipped", "dataset/": ""}
    archive(tmp_path / "zips" / "release.zip", members)
    found = files(tmp_path).need("train.csv")
    assert found.text("text") == "zipped"
    assert found.where == f"{tmp_path / 'zips' / 'release.zip'} (dataset/train.csv)"


def test_a_plain_file_goes_before_one_in_an_archive(tmp_path: Path) -> None:
    archive(tmp_path / "a.zip", {"train.csv": "zipped"})
    put(tmp_path / "sub" / "train.csv", "plain")
    assert files(tmp_path).need("train.csv").text("text") == "plain"


def test_a_gzipped_file_is_unpacked(tmp_path: Path) -> None:
    put(tmp_path / "train.csv.gz", gzip.compress(b"packed"))
    found = files(tmp_path).need("train.csv")
    assert (found.name, found.text("text")) == ("train.csv", "packed")


def test_files_are_found_on_remote_storage() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/annotations-test/sub/train.csv", b"remote")
    try:
        found = files(cast(Path, place("memory://annotations-test")))
        assert found.need("train.csv").text("text") == "remote"
        assert found.find("val.csv") is None
    finally:
        memory.rm("/annotations-test", recursive=True)


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "readme.txt")
    put(tmp_path / "val.csv")
    with pytest.raises(DataError) as raised:
        files(tmp_path).by_split({"train": ("train.csv", "Train.csv"), "val": ("val.csv",)}, ["train", "val"])
    assert str(raised.value) == (
        f"--annotations: looked in {tmp_path} and its sub-folders and zip files for the files of toy, and did not find "
        f"train.csv or Train.csv (train). There is val.csv, readme.txt. They come from https://example.org/toy. "
        f"Or leave it out: splits=[val]"
    )


def test_every_missing_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did not find train.csv \(train\); val.csv \(val\). There is nothing"):
        files(tmp_path).by_split({"train": ("train.csv",), "val": ("val.csv",)}, ["train", "val"], advice="or rest")


def test_a_long_list_of_what_is_there_is_cut(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number:02}.mp4")
    with pytest.raises(DataError, match=r"There is 00.mp4, .*, 07.mp4 and 12 more"):
        files(tmp_path).need("train.csv")


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with the files of toy, got .*nowhere: not there"):
        files(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
        files(tmp_path)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_json_is_checked_and_other_keys_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.json", '\ufeff[{"id": 1, "caption": "x", "more": [1]}]')
    assert files(tmp_path).need("a.json").json(list[Row], "rows") == [{"id": 1, "caption": "x"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1, "cap', "it ends in the middle, after 15 B: its download or unpacking was broken off"),
        ('[{"id": 1, "caption": "x"}] and more', r"it is no JSON \(trailing characters"),
        ('[{"id": "one", "caption": "x"}]', r"\[0\].id: input should be a valid integer"),
        ('[{"id": 1}]', r"\[0\].caption: field required"),
        (
            '[{"id": 1}, {"id": 2}, {"id": 3}, {"id": 4}, {"id": 5}]',
            r"\[0\].caption: field required; .*; \[2\].caption: field required and 2 more",
        ),
        ('{"rows": [], "info": {}}', r"input should be a valid array \(its keys are 'rows', 'info'\)"),
        ('{"taxonomy": []}', "this is a file of labels"),
        ("[]", "it holds nothing"),
    ],
)
def test_other_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=rf"a.json: expected rows of toys, but {message}.*https://example.org/toy"):
        files(tmp_path).need("a.json").json(list[Row], "rows of toys", {"taxonomy": "a file of labels"})


def test_csv_is_read_with_its_line_numbers(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", '\ufeffid, caption,more\r\n1,"a, b",x\r\n\r\n2,"c\r\nd",y\r\n')
    assert list(files(tmp_path).need("a.csv").rows(("id", "caption"), ended=True)) == [
        (2, {"id": "1", "caption": "a, b", "more": "x"}),
        (5, {"id": "2", "caption": "c\r\nd", "more": "y"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id;caption\n1;x\n", "it lacks caption; its first line is 'id;caption'|it lacks id, caption"),
        ("id,caption\n1,x,y\n", "line 2 has 3 fields and not 2"),
        ('id,caption\n1,"x\n', "line 2: unexpected end of data"),
        ('id,caption\n1,"x"y\n', "line 2: ',' expected after '\"'"),
        ("id,caption\n1,x", "it ends in the middle of a line"),
    ],
)
def test_other_csv_is_refused(text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=rf"a.csv: expected CSV with the columns id, caption, but ({message})"):
        list(files(tmp_path).need("a.csv").rows(("id", "caption"), ended=True))


def test_a_gzipped_file_cut_short_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.json.gz", gzip.compress(b"[" + b'"a",' * 1000 + b'"a"]')[:-20])
    with pytest.raises(DataError, match=r"a.json.gz: expected a list, but it cannot be read to its end"):
        files(tmp_path).need("a.json").json(list[str], "a list")


def test_a_member_of_an_archive_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.json": '["' + "a" * 500 + '"]'})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"aaaaaaaa", b"aaaabaaa", 1))
    with pytest.raises(DataError, match=r"a.zip \(a.json\): expected a list, but it cannot be read to its end .*CRC"):
        files(tmp_path).need("a.json").json(list[str], "a list")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.zip", "<html>sign in</html>")
    with pytest.raises(DataError, match=r"did not find a.json. .*a.zip cannot be read .*get it again"):
        files(tmp_path).need("a.json")
