"""Caption files: every form gives the same annotations, and every fault is named with its place."""

from __future__ import annotations

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
        ("a.jsonl", '{"caption": "x"}', "1 rows without any of clip_id, id, .*: line 1"),
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
        "  - 7 rows without any of clip_id, id, video_id, image_id, path, file, file_name, video: "
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
