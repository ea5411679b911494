"""Caption files: every form gives the same annotations, and every fault is named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from avpipe.data_manifests.annotations import Annotation, Faults, read_annotations, tidy
from avpipe.pipeline.errors import DataError

TOYS = [
    Annotation(id="a", captions=("a dog barks", "it barks")),
    Annotation(id="b", captions=('"rain", she said 🌧',)),
]

FORMS = {
    "coco.json": json.dumps(
        {
            "images": [{"id": "a"}, {"id": "b"}],
            "annotations": [
                {"image_id": "a", "caption": "a dog barks"},
                {"image_id": "b", "caption": '"rain", she said 🌧'},
                {"image_id": "a", "caption": "it barks"},
            ],
        }
    ),
    "lists.json": json.dumps({"a": ["a dog barks", "it barks"], "b": ['"rain", she said 🌧']}),
    "rows.json": json.dumps(
        [{"id": "a", "captions": ["a dog barks", "it barks"]}, {"id": "b", "caption": '"rain", she said 🌧'}]
    ),
    "whole.jsonl": '{"clip_id": "a", "captions": ["a dog barks", "it barks"]}\n\n'
    '{"video_id": "b", "caption": "\\"rain\\", she said 🌧"}\n',
    "spread.jsonl": '{"id": "a", "caption": "a dog barks"}\n{"id": "b", "caption": "\\"rain\\", she said 🌧"}\n'
    '{"id": "a", "caption": "it barks"}',
    "quoted.csv": 'id,caption\na,a dog barks\nb,"""rain"", she said 🌧"\na,it barks\n',
    "excel.csv": '\ufeffID;Caption\r\na;a dog barks\r\nb;"""rain"", she said 🌧"\r\na;it barks\r\n',
    "tabs.tsv": 'id\tcaption\na\ta dog barks\nb\t"""rain"", she said 🌧"\na\tit barks\n',
}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_annotations(name: str, tmp_path: Path) -> None:
    assert read_annotations(write(tmp_path, name, FORMS[name])) == TOYS


def test_a_single_caption_need_be_no_list(tmp_path: Path) -> None:
    assert read_annotations(write(tmp_path, "a.json", '{"a": "a dog barks"}'))[0].captions == ("a dog barks",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"file": "long.mp4", "id": 7, "start": "5", "stop": 15.5, "split": "Validation", "caption": "x"}'),
        ("a.csv", "video,clip_id,start_seconds,end,split,caption\nlong.mp4,7,5,15.5,dev,x\n"),
        (
            "a.json",
            '{"images": [{"id": 7, "file_name": "long.mp4", "start": 5, "end_seconds": 15.5, "split": "val"}],'
            '"annotations": [{"image_id": 7, "caption": "x"}]}',
        ),
    ],
)
def test_file_times_and_split_are_read(name: str, content: str, tmp_path: Path) -> None:
    expected = Annotation(id="7", file="long.mp4", captions=("x",), start_seconds=5.0, stop_seconds=15.5, split="val")
    assert read_annotations(write(tmp_path, name, content)) == [expected]


def test_a_row_without_an_id_is_called_by_its_file(tmp_path: Path) -> None:
    (row,) = read_annotations(write(tmp_path, "a.csv", "file,caption\nsub/a.mp4,x\n"))
    assert (row.id, row.file) == ("sub/a.mp4", "sub/a.mp4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a dog", r"expected .json .*got '.txt'"),
        ("a.json", "<!DOCTYPE html><html>Sign in</html>", "expected captions, got a web page"),
        ("a.json", '{"a": "x"', "not JSON: .*line 1 column 10"),
        ("a.json", '{"a": "x"}\n{"b": "y"}', "one object a line: name it .jsonl"),
        ("a.json", "17", "got a single int"),
        ("a.json", "{}", "expected captions, got none"),
        ("a.json", '{"a": "x", "b": "y", "a": "z"}', "1 keys that occur twice: 'a'"),
        ("a.json", '{"a": {"text": "x"}}', r"1 captions that are no text: {'text': 'x'} \(key 'a'\)"),
        ("a.json", '{"a": ["x", 3]}', r"captions that are no text: 3 \(key 'a'\)"),
        ("a.json", r'{"a": "half a dog \ud83d"}', "captions that are no text: .*key 'a'"),
        ("a.json", '["x"]', r"1 rows that are no objects: row 0 \(str\)"),
        (
            "a.json",
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            r"1 captions for unknown ids: '2' \(annotations\[0\]\)",
        ),
        (
            "a.json",
            '{"images": [{"id": 1}, {"id": 1}], "annotations": []}',
            r"ids that occur twice: '1' \(images\[1\]\)",
        ),
        ("a.jsonl", '{"id": "a", "caption": "x"}\nnonsense', "1 lines that are not JSON: line 2"),
        ("a.jsonl", '{"id": "a", "captions": ["x"]}\n{"id": "a", "caption": "y"}', r"'a' \(line 2\)"),
        ("a.jsonl", '{"id": "a", "caption": "x"}\n{"id": "a", "captions": ["y"]}', r"ids that occur twice: 'a'"),
        (
            "a.jsonl",
            '{"id": "a", "caption": "x", "start": 1}\n{"id": "a", "caption": "y", "start": 2}',
            r"contradict an earlier row of the same id: 'a' \(line 2\)",
        ),
        ("a.jsonl", '{"caption": "x"}', "1 rows without any of clip_id, image_id, .*: line 1"),
        ("a.jsonl", '{"id": "a", "caption": "x", "start": "soon"}', r"times that are no seconds: 'soon' \(line 1\)"),
        ("a.jsonl", '{"id": "a", "caption": "x", "start": -1}', "times that are no seconds: -1"),
        ("a.jsonl", '{"id": "a", "caption": "x", "start": 9, "end": 3}', "stop before they start: 9 to 3"),
        (
            "a.jsonl",
            '{"id": "a", "caption": "x", "split": "trian"}',
            r"splits other than train, val, test: 'trian' \(did you mean 'train'\?\) \(line 1\)",
        ),
        ("a.csv", "name,text\na,x\n", "expected a header with 'caption' and one of .*, got name, text"),
        ("a.csv", "", "expected a header with 'caption' .*, got nothing"),
        ("a.csv", "id,caption\na,rain, wind\n", r"1 rows that do not have 2 fields: line 2 \(3; an unquoted comma\?\)"),
        ("a.csv", 'id,caption\na,"rain\n', "line 2: not CSV: unexpected end of data"),
        ("a.csv", "id,caption\na,Caf\xe9\n".encode("latin-1"), "line 2: expected UTF-8, got the byte 0xe9"),
        ("a.csv", "id,caption\na,x\n".encode("utf-16"), "expected UTF-8, got UTF-16"),
    ],
)
def test_a_wrong_file_is_refused(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}.*(\n.*)*{message}"):
        read_annotations(write(tmp_path, name, content))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"caption": "x"} for _ in range(7)]
    rows += [{"id": "a", "caption": "x", "split": "tst"}, {"id": "b", "caption": "x", "start": "?"}]
    with pytest.raises(DataError) as raised:
        read_annotations(write(tmp_path, "a.json", json.dumps(rows)))
    assert str(raised.value).splitlines()[1:] == [
        "  - 7 rows without any of clip_id, image_id, id, video_id, path, file, file_name, video: "
        "row 0, row 1, row 2, row 3, row 4, ...",
        "  - 1 splits other than train, val, test: 'tst' (did you mean 'test'?) (row 7)",
        "  - 1 times that are no seconds: '?' (row 8)",
    ]


def test_no_faults_raise_nothing() -> None:
    Faults(Path("a.json")).check()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", "a dog"),
        (" a\tdog\r\nbarks ", "a dog barks"),
        ("nul\0and\x07bell", "nul and bell"),
        ("narrow\u2028lines\u00a0too", "narrow lines too"),
        ('"it\'s" 🐕, café', '"it\'s" 🐕, café'),
        (" \n ", ""),
    ],
)
def test_a_caption_is_made_one_line(caption: str, expected: str) -> None:
    assert tidy(caption) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '[{"video_id": "a", "desc": "a dog"}]', ("a dog",)),
        ("a.json", '[{"video_id": "a", "desc": ["a dog", "it barks"]}]', ("a dog", "it barks")),
        ("a.jsonl", '{"video_id": "a", "desc": "a dog"}\n{"video_id": "a", "desc": "it barks"}', ("a dog", "it barks")),
        ("a.json", '[{"video_id": "a", "desc": ""}]', ("",)),
        ("a.json", '[{"video_id": "a", "desc": "what it says elsewhere", "caption": "a dog"}]', ("a dog",)),
    ],
)
def test_valors_descriptions_are_captions(name: str, content: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    assert read_annotations(write(tmp_path, name, content)) == [Annotation(id="a", captions=expected)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"video_id": "a", "desc": 3}]', r"captions that are no text: 3 \(row 0\)"),
        ('[{"video_id": "a", "desc": ["x", {}]}]', r"captions that are no text: {} \(row 0\)"),
        (
            '[{"video_id": "a", "desc": ["x"]}, {"video_id": "a", "desc": ["y"]}]',
            r"ids that occur twice: 'a' \(row 1\)",
        ),
        ('[{"video_id": "a", "desc": "x"}, {"video_id": "a", "desc": ["y"]}]', r"ids that occur twice: 'a' \(row 1\)"),
        ('[{"video_id": "a", "desc": ["x"]}, {"video_id": "a", "desc": "y"}]', r"ids that occur twice: 'a' \(row 1\)"),
    ],
)
def test_wrong_descriptions_are_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_annotations(write(tmp_path, "a.json", content))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_may_be_gzipped(name: str, tmp_path: Path) -> None:
    assert read_annotations(write(tmp_path, f"{name}.gz", gzip.compress(FORMS[name].encode(), mtime=0))) == TOYS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json.gz", b'{"a": "x"}', "cannot be read: Not a gzipped file"),
        ("a.json.gz", gzip.compress(b'{"a": "x"}', mtime=0)[:-12], "cannot be read: .*ended before"),
        ("a.json.gz", gzip.compress(b"Sign in" * 99, mtime=0)[:40] + b"nonsense" * 9, "cannot be read: "),
        ("a.json.gz", gzip.compress(b"<html>Sign in", mtime=0), "got a web page"),
        ("a.json", gzip.compress(b'{"a": "x"}', mtime=0), "line 1: expected UTF-8, got the byte 0x8b"),
        ("a.txt.gz", gzip.compress(b"a", mtime=0), "expected .json .*got '.txt'"),
        ("a.gz", gzip.compress(b"a", mtime=0), "got 'a name without an extension'"),
    ],
)
def test_a_damaged_archive_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read_annotations(write(tmp_path, name, content))


def valor_folder(folder: Path, captions: str, **ids: str) -> Path:
    """VALOR's layout: the captions, and files by name with the ids of a split; ``__`` stands for the dot."""
    write(folder, "txt_mapper.json", captions)
    for name, content in ids.items():
        write(folder, name.replace("__", "."), content)
    return folder


VALOR = '{"a": "a dog", "b": ["it barks", "barking"], "c": "rain"}'


@pytest.mark.parametrize(
    "ids",
    [
        {"train_id__json": '["a"]', "val_id__json": '["c"]', "test_id__json": '["b"]'},
        {"train_ids__txt": "a\n", "val_ids__txt": "c", "test_ids__txt": "b\r\n"},
        {"Train_IDs__json": '["a"]', "VAL_IDs__JSON": '["c"]', "id_test__txt": "b"},
        {"valor32k_train_ids__json": '["a"]', "valor32k_val_ids__json": '["c"]', "valor32k_test_ids__json": '["b"]'},
        {"train_id__json": '["a"]', "val_id__json": '["c"]', "test_id__json": '["b"]', "test_videos__txt": "a b c",
         "provided_test__json": '{"license": "x"}', "train_id__csv": "b", "latest_ids__txt": "a"},
    ],
)  # fmt: skip
def test_a_folder_of_valor_is_read(ids: dict[str, str], tmp_path: Path) -> None:
    assert read_annotations(valor_folder(tmp_path, VALOR, **ids)) == [
        Annotation(id="a", captions=("a dog",), split="train"),
        Annotation(id="b", captions=("it barks", "barking"), split="test"),
        Annotation(id="c", captions=("rain",), split="val"),
    ]


def test_a_folder_without_lists_gives_no_splits(tmp_path: Path) -> None:
    assert [row.split for row in read_annotations(valor_folder(tmp_path, VALOR))] == [None] * 3


def test_captions_in_no_list_are_of_no_split(tmp_path: Path) -> None:
    rows = read_annotations(valor_folder(tmp_path, VALOR, test_ids__json='["c", "without captions"]'))
    assert [(row.id, row.split) for row in rows] == [("c", "test")]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"train_id__json": '["a", "b"]', "test_id__json": '["b"]'}, r"1 ids in two splits: 'b' \(test and train\)"),
        ({"test_id__json": '{"a": 1}'}, "test_id.json: expected a list of ids"),
        ({"test_id__json": "[1, 2]"}, "test_id.json: expected a list of ids"),
        ({"test_id__json": '["a"'}, r"test_id.json: .*JSON.*line 1 column 5"),
        ({"test_id__txt": "<!DOCTYPE html>"}, "test_id.txt: .*got a web page"),
    ],
)  # fmt: skip
def test_wrong_lists_of_valor_are_refused(ids: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_annotations(valor_folder(tmp_path, VALOR, **ids))


def test_a_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"txt_mapper.json: cannot be read: No such file"):
        read_annotations(tmp_path)


RECORDING = {"id": "rec", "duration": 9.0, "sources": [{"type": "file", "channels": [0], "source": "/far/dog.wav"}]}
CUT = {"id": "a", "type": "MonoCut", "start": 2, "duration": 3, "channel": 0, "recording": RECORDING,
       "supervisions": [{"text": "a dog"}, {"text": None}, {"text": "it barks"}],
       "custom": {"split": "dev"}}  # fmt: skip


@pytest.mark.parametrize("kind", ["MonoCut", "MultiCut"])
def test_the_cuts_of_lhotse_are_read(kind: str, tmp_path: Path) -> None:
    (row,) = read_annotations(write(tmp_path, "cuts.jsonl", json.dumps({**CUT, "type": kind})))
    assert row == Annotation(id="a", file="/far/dog.wav", captions=("a dog", "it barks"), start_seconds=2.0,
                             stop_seconds=5.0, split="val")  # fmt: skip


@pytest.mark.parametrize(
    "cut",
    [
        {key: value for key, value in CUT.items() if key != "recording"},
        {**CUT, "recording": None},
        {**CUT, "recording": {**RECORDING, "sources": []}},
        {**CUT, "recording": {**RECORDING, "sources": [{"type": "memory"}]}},
        {**CUT, "duration": None},
        {**CUT, "start": "soon"},
        {"id": "a", "type": "MixedCut", "tracks": [{"cut": CUT, "offset": 0.0}]},
        {"id": "a", "type": "PaddingCut", "duration": 3.0, "sampling_rate": 16000, "feat_value": 0.0},
    ],
)
def test_cuts_without_a_recording_are_refused(cut: dict[str, Any], tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in (CUT | {"id": "b"}, cut))
    with pytest.raises(DataError) as raised:
        read_annotations(write(tmp_path, "cuts.jsonl", lines))
    assert str(raised.value).splitlines()[1:] == ["  - 1 cuts without a recording: line 2"]


def test_what_only_sounds_like_a_cut_is_a_row(tmp_path: Path) -> None:
    lines = '{"id": "a", "type": "Haircut", "caption": "snip"}\n{"id": "b", "type": 7, "caption": "snap"}'
    assert [row.captions for row in read_annotations(write(tmp_path, "a.jsonl", lines))] == [("snip",), ("snap",)]
