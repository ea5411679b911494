"""Clips check themselves and survive a manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.pipeline.clip import SPLITS, Clip

ROW: dict[str, Any] = {"clip_id": "v.1_0-10", "dataset": "vatex", "path": "videos/v.mp4", "split": "val"}

clip_ids = st.from_regex(r"[A-Za-z0-9_+=,@-][A-Za-z0-9_+=,@.-]{0,199}", fullmatch=True)
captions = st.text(min_size=1).map(str.strip).filter(bool)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)
clips = st.builds(
    Clip,
    clip_id=clip_ids,
    dataset=st.sampled_from(["vatex", "msrvtt"]),
    path=st.sampled_from(["a.mp4", "a/b c/ü.mkv"]),
    split=st.sampled_from(SPLITS),
    captions=st.lists(captions, max_size=3).map(tuple),
    start_seconds=st.floats(0, 1e6),
    stop_seconds=st.none() | st.floats(1e6, 1e9, exclude_min=True),
    extra=st.dictionaries(st.text(), json_values, max_size=3),
)


@given(clip=clips)
def test_a_clip_comes_back_from_its_row(clip: Clip) -> None:
    assert Clip.from_row(json.loads(json.dumps(clip.to_row()))) == clip


def test_a_row_leaves_out_what_is_at_its_default() -> None:
    assert Clip.from_row(ROW).to_row() == ROW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_id": ""}, "clip_id: expected .*got ''"),
        ({"clip_id": ".hidden"}, "no leading dot.*got '.hidden'"),
        ({"clip_id": "a/b"}, "got 'a/b'"),
        ({"clip_id": "a\n"}, r"got 'a\\n'"),
        ({"clip_id": "ü"}, "got 'ü'"),
        ({"clip_id": "a" * 201}, "1 to 200"),
        ({"clip_id": 17}, "clip_id: expected a string, got 17"),
        ({"dataset": ""}, "dataset of clip 'v.1_0-10': expected a name"),
        ({"split": "validation"}, "expected one of train, val, test, got 'validation'"),
        ({"path": "/etc/passwd"}, "expected a path below the media root, got '/etc/passwd'"),
        ({"path": "a/../../b"}, "below the media root"),
        ({"path": ""}, "below the media root"),
        ({"path": None}, "path: expected a string, got None"),
        ({"start_seconds": -1}, "start_seconds .*expected >= 0, got -1"),
        ({"start_seconds": float("nan")}, "got nan"),
        ({"start_seconds": "3"}, "must be real number"),
        ({"start_seconds": 5, "stop_seconds": 5}, r"expected more than start_seconds \(5\), got 5"),
        ({"stop_seconds": float("inf")}, "got inf"),
        ({"captions": ["a dog", ""]}, "expected non-empty strings"),
        ({"captions": [" a dog"]}, "got ' a dog'"),
        ({"captions": [3]}, "got 3"),
        ({"captions": "a dog"}, "captions of 'v.1_0-10': expected a list, got 'a dog'"),
        ({"captions": None}, "expected a list, got None"),
        ({"caption": "a dog"}, "not a clip: .*'caption'"),
    ],
)
def test_a_bad_row_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clip.from_row({**ROW, **change})


@pytest.mark.parametrize("key", ROW)
def test_a_row_without_a_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"not a clip: .*{key}"):
        Clip.from_row({k: v for k, v in ROW.items() if k != key})
