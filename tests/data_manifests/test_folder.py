"""A folder of one's own: ids find their files, splits stay put, and every fault is told at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests.dataset import Prepared
from avpipe.data_manifests.datasets import folder
from avpipe.data_manifests.datasets.folder import Config, Ratios, draw_split, safe_id
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import ConfigError, DataError
from avpipe.pipeline.workspace import Workspace

Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepare a folder of (empty) files and a caption file."""

    def call(files: list[str], captions: Any, source: str = "captions.json", **options: Any) -> Prepared:
        media = tmp_path / "videos"
        for file in files:
            (media / file).parent.mkdir(parents=True, exist_ok=True)
            (media / file).touch()
        annotations = tmp_path / source
        annotations.write_text(captions if isinstance(captions, str) else json.dumps(captions), encoding="utf-8")
        return folder.prepare(
            Config(**options), media=media, annotations=annotations, workspace=Workspace(tmp_path / "workspace")
        )

    return call


def test_the_example_of_the_docstring(prepare: Prepare) -> None:
    text = 'id,caption,split\nkitchen/a,a woman chops an onion,train\nkitchen/a,"chopping, with music",train\n'
    (clip,) = prepare(["kitchen/a.mp4"], text, "captions.csv").clips
    assert clip.to_row() == {
        "clip_id": "kitchen_a", "dataset": "folder", "path": "kitchen/a.mp4", "split": "train",
        "captions": ["a woman chops an onion", "chopping, with music"], "extra": {"id": "kitchen/a"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.mp4", "a", "sub/a.mp4", "sub/a", "./sub/a"])
def test_a_file_is_found_by_any_of_its_names(name: str, prepare: Prepare) -> None:
    prepared = prepare(["sub/a.mp4", "sub/ab.mkv", "a.txt", ".a.mp4"], {name: "x"})
    assert [clip.path for clip in prepared.clips] == ["sub/a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".MKV", ".webm", ".avi", ".mov", ".3gp", ".wav"])
def test_any_container_will_do(suffix: str, prepare: Prepare) -> None:
    assert prepare([f"a{suffix}"], {"a": "x"}).clips[0].path == f"a{suffix}"


def test_a_file_of_unknown_kind_is_found_by_its_full_name(prepare: Prepare) -> None:
    rows = [{"id": "a", "file": "a.y4m", "caption": "x"}]
    assert [clip.path for clip in prepare(["a.y4m", "b.mp4"], rows).clips] == ["a.y4m"]


def test_a_path_from_the_top_is_not_ambiguous(prepare: Prepare) -> None:
    prepared = prepare(["a.mp4", "sub/a.mp4"], {"a": "x", "sub/a": "y"})
    assert [clip.path for clip in prepared.clips] == ["a.mp4", "sub/a.mp4"]


def test_a_link_that_leads_back_up_ends(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    (tmp_path / "videos" / "sub" / "up").symlink_to(tmp_path / "videos")
    assert prepare(["sub/a.mp4"], {"a": "x"}).clips[0].path == "sub/a.mp4"


def test_parts_of_a_file_are_clips_and_stay_together(prepare: Prepare) -> None:
    rows = [{"id": f"p{i}", "file": "long.mp4", "start": i, "stop": i + 1, "caption": "x"} for i in range(20)]
    clips = prepare(["long.mp4"], rows).clips
    assert (clips[3].start_seconds, clips[3].stop_seconds) == (3.0, 4.0)
    assert len({clip.split for clip in clips}) == 1


def test_two_people_may_tell_of_the_same_part_of_a_video(prepare: Prepare) -> None:
    rows = [{"id": f"p{i}", "file": "long.mp4", "start": 1, "stop": 2, "caption": "x"} for i in range(2)]
    assert [clip.clip_id for clip in prepare(["long.mp4"], rows).clips] == ["p0", "p1"]


def test_whitespace_is_tidied_and_counted(prepare: Prepare) -> None:
    prepared = prepare(["a.mp4"], {"a": ["one\ntwo", ' "three"\t🐕', "four"]})
    assert prepared.clips[0].captions == ("one two", '"three" 🐕', "four")
    assert "2 captions held line breaks, tabs or several blanks, made single blanks" in prepared.notes


def test_the_ledger_tells_of_files_without_captions(prepare: Prepare) -> None:
    prepared = prepare(["a.mp4", "b.mp4", "c.mp4"], {"a": "x"})
    assert "2 of 3 files below the media folder have no captions" in prepared.notes


@pytest.mark.parametrize(
    ("files", "captions", "message"),
    [
        (["a.mp4"], {"a": "x", "b": "y", "c": "z"}, r"2 ids without a file \(allow_missing=true .*\): 'b', 'c'"),
        (["a.mp4"], {"a": ["x", " \n "]}, r"1 empty captions \(allow_missing=true .*: 'a'"),
        (["a.mp4"], {"a": None}, "1 empty captions .*: 'a'"),
        (["a.mp4"], {"a": []}, "1 ids without captions .*: 'a'"),
        (["u/a.mp4", "v/a.mp4"], {"a": "x"}, r"files may be meant by: 'a' \(u/a.mp4 or v/a.mp4\)"),
        (["a.mp4", "a.mkv"], {"a": "x"}, r"files may be meant by: 'a' \(a.mkv or a.mp4\)"),
        (["a.mp4"], {"a": "x", "a.mp4": "y"}, "1 ids of one and the same clip: 'a' and 'a.mp4'"),
        (["u v.mp4", "u_v.mp4"], {"u v": "x", "u_v": "y"}, "1 ids that become one clip id: 'u v' and 'u_v'"),
        (
            ["a.mp4", "b.mp4"],
            [{"id": "a", "caption": "x", "split": "val"}, {"id": "b", "caption": "x"}],
            "1 of 2 ids without a split, where the others have one: 'b'",
        ),
    ],
)
def test_faults_are_refused(files: list[str], captions: Any, message: str, prepare: Prepare) -> None:
    with pytest.raises(DataError, match=f"captions.json: cannot be used as it is\n(.*\n)*.*{message}"):
        prepare(files, captions)


def test_all_faults_are_told_at_once(prepare: Prepare) -> None:
    with pytest.raises(DataError) as raised:
        prepare(["a.mp4", "u/b.mp4", "v/b.mp4"], {"a": "", "b": "x", **{f"n{i}": "x" for i in range(9)}})
    assert str(raised.value).splitlines()[1:] == [
        "  - 1 empty captions (allow_missing=true leaves them out): 'a'",
        "  - 1 ids that several files may be meant by: 'b' (u/b.mp4 or v/b.mp4)",
        "  - 9 ids without a file (allow_missing=true leaves them out): 'n0', 'n1', 'n2', 'n3', 'n4', ...",
    ]


def test_what_is_missing_may_be_left_out_and_is_counted(prepare: Prepare) -> None:
    captions = {"a": ["x", ""], "b": "y", "c": "", "d": []}
    prepared = prepare(["a.mp4", "c.mp4", "d.mp4"], captions, allow_missing=True)
    assert [(clip.clip_id, clip.captions) for clip in prepared.clips] == [("a", ("x",))]
    assert prepared.notes[:3] == ("2 empty captions left out", "1 ids without a file left out",
                                  "1 ids without captions left out")  # fmt: skip


def test_nothing_left_is_refused(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="none of its ids has a file"):
        prepare(["a.mp4"], {"b": "x"}, allow_missing=True)


@pytest.mark.parametrize(
    ("media", "annotations", "message"),
    [
        (None, "c.json", "needs --media FOLDER .* got --media None --annotations c.json"),
        ("videos", None, "got --media videos --annotations None"),
        ("nowhere", "c.json", "expected a folder of videos, got nowhere, which does not exist"),
        ("c.json", "c.json", "expected a folder of videos, got c.json, a file"),
        ("videos", "videos", "expected a file of captions, got videos, a folder"),
        ("videos", "c.csv", "expected a file of captions, got c.csv, which does not exist"),
        ("empty", "c.json", "expected videos below empty, got none"),
    ],
)
def test_media_and_annotations_must_be_there(
    media: str | None, annotations: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.json").write_text('{"a": "x"}')
    with pytest.raises(DataError, match=message):
        folder.prepare(
            Config(),
            media=Path(media) if media else None,
            annotations=Path(annotations) if annotations else None,
            workspace=Workspace(tmp_path),
        )


def test_given_splits_are_kept(prepare: Prepare) -> None:
    rows = [{"id": name, "caption": "x", "split": split} for name, split in (("a", "test"), ("b", "training"))]
    prepared = prepare(["a.mp4", "b.mp4"], rows)
    assert [clip.split for clip in prepared.clips] == ["test", "train"]
    assert "no clips in val" in prepared.notes
    assert not any("drawn" in note for note in prepared.notes)


def test_drawn_splits_stay_when_clips_are_added(prepare: Prepare) -> None:
    names = [f"v{number}" for number in range(100)]
    before = prepare([f"{name}.mp4" for name in names[:60]], dict.fromkeys(names[:60], "x"))
    after = prepare([f"{name}.mp4" for name in names], dict.fromkeys(reversed(names), "x"))
    splits = {clip.clip_id: clip.split for clip in after.clips}
    assert all(splits[clip.clip_id] == clip.split for clip in before.clips)
    assert "splits drawn with seed 0" in after.notes


def test_drawn_splits_have_the_sizes_asked_for() -> None:
    drawn = [draw_split(f"v{number}", Ratios(train=2, val=1, test=1), seed=3) for number in range(4000)]
    assert [drawn.count(split) / 4000 for split in ("train", "val", "test")] == pytest.approx(
        [0.5, 0.25, 0.25], abs=0.03
    )


def test_another_seed_draws_other_splits() -> None:
    half = Ratios(train=1, val=0, test=1)
    first, second = ([draw_split(f"v{n}", half, seed) for n in range(100)] for seed in (0, 1))
    assert first != second
    assert "val" not in first


@given(name=st.text(min_size=1))
def test_any_id_becomes_a_safe_one(name: str) -> None:
    from avpipe.pipeline.clip import Clip

    Clip(clip_id=safe_id(name), dataset="folder", path="a", split="train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("video7010", "video7010"),
        ("-sGd3_x-9A_30.5", "-sGd3_x-9A_30.5"),
        ("sub/a b.MP4", "sub_a_b"),
        ("v1.2", "v1.2"),
    ],
)
def test_ids_stay_readable(name: str, expected: str) -> None:
    assert safe_id(name) == expected


def test_ids_in_another_script_stay_apart() -> None:
    assert safe_id("Käse") != safe_id("Kése")


def test_a_dataset_gets_a_name_of_its_own(prepare: Prepare) -> None:
    assert prepare(["a.mp4"], {"a": "x"}, dataset="kitchens").clips[0].dataset == "kitchens"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "synthetic"}, "dataset: 'synthetic' is a dataset that avpipe knows"),
        ({"dataset": "a/b"}, "dataset: string should match"),
        ({"split_ratios": {"train": 0, "val": 0, "test": 0}}, "split_ratios: expected at least one ratio above 0"),
        ({"allow_mising": True}, "allow_mising: unknown key .did you mean 'allow_missing'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, options, "prepare")
