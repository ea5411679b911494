"""Manifests: what is written comes back, in order; what is damaged is refused with file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avpipe.data_manifests import manifest
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.errors import DataError, StoreError


def toy(clip_id: str, split: str = "train", captions: tuple[str, ...] = ("a dog barks",), **fields: Any) -> Clip:
    return Clip(clip_id=clip_id, dataset="toy", path=f"{clip_id}.mp4", split=split, captions=captions, **fields)


TOYS = (
    toy("b", "train"),
    toy("a", "test", ("a secret", 'ein Geheimnis 🐕 "so" it\'s said')),
    toy("c", "val", (), start_seconds=1.5, stop_seconds=4.0, extra={"category": 3}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "manifests" / "toy.jsonl.gz"


@pytest.fixture
def written(path: Path, tmp_path: Path) -> Path:
    manifest.write(path, TOYS, media_root=tmp_path / "videos", clips_per_shard=2, notes=["one note"])
    return path


def rewrite(path: Path, change: Callable[[list[str]], Sequence[str]]) -> None:
    """Change the lines of a manifest behind its header's back."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in change(lines)).encode()))


def test_clips_come_back_in_order(written: Path, tmp_path: Path) -> None:
    read = manifest.read(written)
    assert read.clips == TOYS
    assert (read.dataset, read.clips_per_shard) == ("toy", 2)
    assert read.media_root == (tmp_path / "videos").resolve()
    assert [clip.clip_id for clip in read.split("test")] == ["a"]


captions = st.lists(st.text(min_size=1).map(str.strip).filter(bool), max_size=3).map(tuple)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.tuples(st.sampled_from(SPLITS), captions), min_size=1, max_size=5))
def test_any_clips_come_back(rows: list[tuple[str, tuple[str, ...]]], path: Path) -> None:
    clips = tuple(toy(str(number), split, texts) for number, (split, texts) in enumerate(rows))
    manifest.write(path, clips, media_root=Path("/videos"))
    assert manifest.read(path).clips == clips


def test_the_same_clips_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    first = [written.read_bytes(), manifest.header_path(written).read_bytes()]
    manifest.write(written, TOYS, media_root=tmp_path / "videos", clips_per_shard=2, notes=["one note"])
    assert [written.read_bytes(), manifest.header_path(written).read_bytes()] == first


def test_the_header_counts(written: Path) -> None:
    header = manifest.read_header(written)
    assert header.clips == {"train": 1, "val": 1, "test": 1}
    assert header.captions == {"train": 1, "val": 0, "test": 2}
    assert header.notes == ["one note"]


def test_order_is_part_of_the_identity(written: Path, tmp_path: Path) -> None:
    before = manifest.read(written).ids_sha256
    manifest.write(written, TOYS[::-1], media_root=tmp_path)
    assert manifest.read(written).ids_sha256 != before


def test_the_test_split_stays_sealed(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    from_row = Clip.from_row
    monkeypatch.setattr(Clip, "from_row", lambda row: made.append(row) or from_row(row))
    read = manifest.read(written, splits=("train", "val"))
    assert [clip.clip_id for clip in read.clips] == ["b", "c"]
    assert "secret" not in str(made)
    assert read.ids_sha256 == manifest.read(written).ids_sha256
    assert "secret" in str(made)  # the second read was of all splits: the spy does see captions


def test_a_training_is_given_no_clip_of_test(written: Path) -> None:
    clips = manifest.read_for_training(written)
    assert [clip.clip_id for clip in clips.train] == ["b"]
    assert [clip.clip_id for clip in clips.val] == ["c"]
    assert clips.clip_ids == ["b", "c"]
    of_test = manifest.read(written).split("test")
    with pytest.raises(ValueError, match="expected none of the test split, which is sealed, got 'a'"):
        manifest.TrainingClips(train=clips.train, val=(*clips.val, *of_test))


def test_a_workspace_can_be_moved(path: Path, tmp_path: Path) -> None:
    manifest.write(path, TOYS, media_root=tmp_path / "workspace" / "media" / "toy")
    (tmp_path / "workspace").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "manifests" / path.name
    assert manifest.read(moved).media_root.resolve() == tmp_path / "moved" / "media" / "toy"


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ((), "expected at least one clip, got none"),
        ((toy("a"), toy("b"), toy("a")), "expected every clip_id once, got 1 several times: a"),
        ((toy("a"), Clip(clip_id="b", dataset="other", path="b", split="val")), "got those of other, toy"),
    ],
)
def test_what_is_no_dataset_is_not_written(path: Path, clips: tuple[Clip, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        manifest.write(path, clips, media_root=Path("/videos"))
    assert not path.exists()


def test_shards_of_no_clips_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="clips_per_shard: expected at least 1, got 0"):
        manifest.write(path, TOYS, media_root=Path("/videos"), clips_per_shard=0)


def test_what_cannot_be_written_leaves_the_old_manifest(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="disk is full"):
        manifest.write(written, TOYS[:1], media_root=Path("/videos"))
    monkeypatch.undo()
    assert manifest.read(written).clips == TOYS


def _row(number: int, **changes: Any) -> Callable[[list[str]], Sequence[str]]:
    def change(lines: list[str]) -> Sequence[str]:
        lines[number] = json.dumps({**json.loads(lines[number]), **changes})
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_row(1, path="/etc/passwd"), "toy.jsonl.gz, line 2: path .*got '/etc/passwd'"),
        (_row(1, split="testing"), "line 2: split .*expected one of train, val, test, got 'testing'"),
        (_row(2, colour="red"), "line 3: not a clip: .*colour"),
        (_row(0, clip_id="z"), "its ids, or their order.*Run: avpipe prepare toy"),
        (_row(0, split="val"), "expected 1 train, 1 val, 1 test, as its header says, got 2 val, 1 test"),
        (lambda lines: lines[::-1], "its ids, or their order"),
        (lambda lines: lines[:2], "got 1 train, 1 test"),
        (lambda lines: [lines[0], "[1, 2]"], r"line 2: expected an object, got '\[1, 2\]'"),
        (lambda lines: [lines[0], "{clip"], "line 2: expected a clip as JSON"),
    ],
)
def test_a_changed_manifest_is_refused(
    written: Path, change: Callable[[list[str]], Sequence[str]], message: str
) -> None:
    rewrite(written, change)
    with pytest.raises(DataError, match=message):
        manifest.read(written)


def test_a_corrected_caption_is_not_refused(written: Path) -> None:
    rewrite(written, _row(0, captions=["a dog barks loudly"]))
    assert manifest.read(written).clips[0].captions == ("a dog barks loudly",)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"<html>" + data, lambda data: b""])
def test_a_damaged_file_is_refused(written: Path, damage: Callable[[bytes], bytes]) -> None:
    written.write_bytes(damage(written.read_bytes()))
    with pytest.raises(DataError, match=r"toy.jsonl.gz: (damaged after line \d|expected 1 train)"):
        manifest.read(written)


@pytest.mark.parametrize("which", ["toy.jsonl.gz", "toy.json"])
def test_a_missing_file_says_what_to_run(written: Path, which: str) -> None:
    (written.parent / which).unlink()
    with pytest.raises(DataError, match=f"no manifest: expected .*{which}. Run: avpipe prepare toy"):
        manifest.read(written)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "toy.json: not the header of a manifest"),
        ('{"dataset": "toy"}', "not the header of a manifest: .*media_root"),
        ("[]", "not the header of a manifest"),
    ],
)
def test_a_damaged_header_is_refused(written: Path, header: str, message: str) -> None:
    manifest.header_path(written).write_text(header)
    with pytest.raises(DataError, match=message):
        manifest.read(written)


def test_a_manifest_of_another_format_is_refused(written: Path) -> None:
    header = manifest.header_path(written)
    header.write_text(header.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="expected format 1, got 7"):
        manifest.read(written)


def test_an_unknown_split_is_refused(written: Path) -> None:
    with pytest.raises(ValueError, match="expected some of train, val, test, got training"):
        manifest.read(written, splits=("training",))
