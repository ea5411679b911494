"""What every dataset module must do: the contract, over all registered names."""

from __future__ import annotations

import gzip
import inspect
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from avpipe.data_manifests import manifest
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.data_manifests.official import PublishedConfig
from avpipe.data_manifests.prepare import is_published, ledger_path, prepare
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.config import Config
from avpipe.pipeline.errors import ConfigError, DataError, UnknownNameError
from avpipe.pipeline.workspace import Workspace
from tests.data_manifests.releases import RELEASES, Release

Inputs = dict[str, Any]


def folder_toy(path: Path) -> Inputs:
    (path / "videos").mkdir()
    for name in ("a", "b"):
        (path / "videos" / f"{name}.mp4").touch()
    (path / "captions.json").write_text('{"a": "a dog barks", "b": ["it rains", "rain\\nfalls"]}')
    return {"media": path / "videos", "annotations": path / "captions.json"}


def synthetic_toy(path: Path) -> Inputs:
    return {"options": {"clips": {"train": 2, "val": 1, "test": 1}, "size": 32, "fps": 8, "seconds": 3.0}}


# A dataset module comes with a toy: what a user would give it, small and made on the spot.
TOYS: dict[str, Callable[[Path], Inputs]] = {
    "folder": folder_toy,
    "synthetic": synthetic_toy,
    **{name: lambda path, made=made: made().write(path) for name, made in RELEASES.items()},  # type: ignore[misc]
}

PUBLISHED = [name for name in REGISTRY.names() if is_published(REGISTRY.load(name))]


@pytest.fixture(params=REGISTRY.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(name: str) -> ModuleType:
    return REGISTRY.load(name)


def toy(name: str, path: Path) -> Inputs:
    assert name in TOYS, f"dataset {name!r} has no toy: add it to releases.py, or to {__file__}"
    path.mkdir()
    return TOYS[name](path)


def prepared(name: str, inputs: Inputs, place: Path) -> tuple[Clip, ...]:
    """The clips of a manifest just made; its header is checked on the way."""
    workspace = Workspace(place)
    header = prepare(name, workspace, probe=False, **inputs)
    clips = manifest.read(workspace.manifest(name)).clips
    assert {split: count for split, count in header.clips.items() if count} == Counter(clip.split for clip in clips)
    return clips


# -- every dataset -----------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(name: str, module: ModuleType) -> None:
    assert isinstance(module.CARD, Card)
    assert REGISTRY.summary(name).endswith(".")
    assert "Source:" in (module.__doc__ or ""), "a dataset module opens with where its data come from"


def test_its_options_have_defaults_and_words(module: ModuleType) -> None:
    assert issubclass(module.Config, Config)
    module.Config()
    undocumented = [key for key, field in module.Config.model_fields.items() if not field.description]
    assert not undocumented


def test_it_reads_or_prepares(module: ModuleType) -> None:
    if is_published(module):
        assert issubclass(module.Config, PublishedConfig)
        assert list(inspect.signature(module.read).parameters) == ["config", "files"]
        assert not hasattr(module, "prepare")
    else:
        signature = ["config", "media", "annotations", "workspace", "progress"]
        assert list(inspect.signature(module.prepare).parameters) == signature


def test_its_clips_are_whole(name: str, tmp_path: Path) -> None:
    inputs = toy(name, tmp_path / "toy")
    clips = prepared(name, inputs, tmp_path / "workspace")
    root = manifest.read(Workspace(tmp_path / "workspace").manifest(name)).media_root
    assert {clip.dataset for clip in clips} == {name}
    assert len({clip.clip_id for clip in clips}) == len(clips)
    if name in PUBLISHED:  # split after split
        assert [clip.split for clip in clips] == sorted((clip.split for clip in clips), key=SPLITS.index)
    for clip in clips:
        assert (root / clip.path).is_file()
        assert clip.captions
        assert all(" ".join(caption.split()) == caption for caption in clip.captions)
        assert clip.stop_seconds is None or 0 <= clip.start_seconds < clip.stop_seconds


def test_it_gives_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    inputs = toy(name, tmp_path / "toy")
    workspace = tmp_path / "workspace"
    prepared(name, inputs, workspace)
    first = {path.name: path.read_bytes() for path in workspace.glob("manifests/*")}
    prepared(name, inputs, workspace)
    assert {path.name: path.read_bytes() for path in workspace.glob("manifests/*")} == first
    assert set(first) == {f"{name}.jsonl.gz", f"{name}.json", f"{name}.ledger.csv"}


def test_a_round_trip_loses_nothing(name: str, tmp_path: Path) -> None:
    clips = prepared(name, toy(name, tmp_path / "toy"), tmp_path / "workspace")
    again = tmp_path / f"{name}.jsonl.gz"
    manifest.write(again, clips, media_root=tmp_path)
    assert manifest.read(again).clips == clips


def test_it_needs_no_more_than_it_says(name: str, tmp_path: Path) -> None:
    """Given a path that does not exist, it says so with the path in the message."""
    nowhere = tmp_path / "nowhere.json"
    with pytest.raises(DataError, match=r"nowhere.json"):
        prepare(name, Workspace(tmp_path), media=tmp_path, annotations=nowhere)


def test_prepare_writes_a_manifest(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    header = prepare(name, workspace, clips_per_shard=3, probe=False, **toy(name, tmp_path / "toy"))
    read = manifest.read(workspace.manifest(name))
    assert (read.clips_per_shard, sum(header.clips.values())) == (3, len(read.clips))
    assert header.config == REGISTRY.load(name).Config(**toy(name, tmp_path / "again").get("options", {})).model_dump(
        mode="json"
    )
    assert workspace.prepared() == [name]


# -- published ones ----------------------------------------------------------------------------------------------------


def test_the_toy_comes_out_clip_by_clip(published: str, tmp_path: Path) -> None:
    release = RELEASES[published]()
    clips = prepared(published, release.write(tmp_path / "toy"), tmp_path / "workspace")
    found = {split: [clip.clip_id for clip in clips if clip.split == split] for split in SPLITS}
    assert {split: ids for split, ids in found.items() if ids} == release.clips


def test_the_ledger_tells_of_every_clip(published: str, tmp_path: Path) -> None:
    release = RELEASES[published]()
    workspace = Workspace(tmp_path / "workspace")
    header = prepare(published, workspace, probe=False, **release.write(tmp_path / "toy"))
    for split, row in header.ledger.items():
        counts = {"on_disk": release.clips, "missing": release.missing, "faulty": release.faulty}
        assert {what: row[what] for what in counts} == {what: len(ids.get(split, ())) for what, ids in counts.items()}
        assert row["with_audio"] is None, "nobody looked"
        assert row["official"] == REGISTRY.load(published).CARD.official_clips.get(split)
    told = ledger_path(workspace.manifest(published)).read_text(encoding="utf-8").splitlines()[1:]
    expected = [
        f"{clip_id},{split},{reason},no"
        for reason, ids in (("missing", release.missing), ("faulty", release.faulty))
        for split, several in ids.items()
        for clip_id in several
    ]
    assert sorted(line.rpartition(",")[0] for line in told) == sorted(expected)


def test_no_clip_is_in_two_splits(published: str, tmp_path: Path) -> None:
    clips = prepared(published, RELEASES[published]().write(tmp_path / "toy"), tmp_path / "workspace")
    places = [(clip.path, clip.start_seconds, clip.stop_seconds) for clip in clips]
    assert len(set(places)) == len(places)


def test_all_clips_are_there_where_missing_ones_are_wanted(published: str, tmp_path: Path) -> None:
    release = RELEASES[published]()
    inputs = release.write(tmp_path / "toy")
    inputs["options"]["include"] = "all"
    clips = prepared(published, inputs, tmp_path / "workspace")
    missing = [clip_id for ids in release.missing.values() for clip_id in ids]
    here = {clip.clip_id for clip in clips if not clip.extra.get("media", {}).get("missing")}
    assert here == {clip_id for ids in release.clips.values() for clip_id in ids}
    assert {clip.clip_id for clip in clips} >= here | set(missing)


def test_references_need_no_media(published: str, tmp_path: Path) -> None:
    inputs = RELEASES[published]().write(tmp_path / "toy")
    inputs |= {"media": None, "options": {**inputs["options"], "include": "all"}}
    clips = prepared(published, inputs, tmp_path / "workspace")
    assert all(clip.captions and clip.extra["media"] == {"missing": True} for clip in clips)


def test_without_media_it_says_what_to_do(published: str, tmp_path: Path) -> None:
    inputs = RELEASES[published]().write(tmp_path / "toy")
    with pytest.raises(DataError, match=rf"{published}: expected --media FOLDER .*include=all"):
        prepare(published, Workspace(tmp_path), **{**inputs, "media": None})


def test_without_annotations_it_says_where_they_come_from(published: str, tmp_path: Path) -> None:
    inputs = RELEASES[published]().write(tmp_path / "toy")
    with pytest.raises(DataError) as raised:
        prepare(published, Workspace(tmp_path), **{**inputs, "annotations": None})
    assert REGISTRY.load(published).CARD.source in str(raised.value)


def test_media_of_something_else_are_refused_with_examples(published: str, tmp_path: Path) -> None:
    inputs = RELEASES[published]().write(tmp_path / "toy")
    shutil.rmtree(inputs["media"])
    inputs["media"].mkdir()
    (inputs["media"] / "holiday.mp4").touch()
    expected = "holiday.mp4" if published != "howto100m" else "none of the 3 videos of raw_caption.json has a file"
    with pytest.raises(DataError, match=expected):
        prepare(published, Workspace(tmp_path), probe=False, **inputs)


def test_splits_may_be_left_out(published: str, tmp_path: Path) -> None:
    release = RELEASES[published]()
    last = list(release.clips)[-1]
    inputs = release.write(tmp_path / "toy")
    inputs["options"]["splits"] = [last]
    clips = prepared(published, inputs, tmp_path / "workspace")
    assert [clip.clip_id for clip in clips] == list(release.clips[last])


def test_a_zipped_release_is_the_same(published: str, tmp_path: Path) -> None:
    """All files in one archive, whose folders are its own business; lists that are found by pattern must lie open."""
    if published == "latest_vatex":
        pytest.skip("its lists have no official names, so archives are not searched for them")
    inputs = RELEASES[published]().write(tmp_path / "toy")
    plain = prepared(published, inputs, tmp_path / "plain")
    zipped = tmp_path / "zipped"
    (zipped / "downloads").mkdir(parents=True)
    with zipfile.ZipFile(zipped / "downloads" / "release.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(inputs["annotations"].rglob("*")):
            archive.write(path, f"release/{path.relative_to(inputs['annotations'])}")
        archive.writestr("__MACOSX/._" + next(iter(RELEASES[published]().files)).rpartition("/")[2], b"\0")
    assert prepared(published, {**inputs, "annotations": zipped}, tmp_path / "again") == plain


def test_a_gzipped_release_is_the_same(published: str, tmp_path: Path) -> None:
    release = RELEASES[published]()
    inputs = release.write(tmp_path / "toy")
    plain = prepared(published, inputs, tmp_path / "plain")
    for name in release.files:
        if name.rpartition("/")[2] in own_names(published, release):
            path = inputs["annotations"] / name
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert prepared(published, inputs, tmp_path / "again") == plain


def own_names(published: str, release: Release) -> list[str]:
    """The files of a toy that are read, and have official names."""
    unread = {
        "activitynet_captions": ["train_ids.json"],
        "latest_vatex": ["train_ids.txt", "val_ids.json", "test_clean.json"],
    }
    names = [name.rpartition("/")[2] for name in release.files]
    return [name for name in names if name not in unread.get(published, [])]


OFFICIAL = [(name, file) for name in PUBLISHED for file in own_names(name, RELEASES[name]())]


@pytest.mark.parametrize(("name", "file"), OFFICIAL)
def test_a_missing_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    if file == "youtube_mapping.txt":
        pytest.skip("clips are called vid1, vid2, ... then: test_releases.py")
    inputs = RELEASES[name]().write(tmp_path / "toy")
    (found,) = inputs["annotations"].rglob(file)
    found.unlink()
    with pytest.raises(DataError) as raised:
        prepare(name, Workspace(tmp_path), probe=False, **inputs)
    message = str(raised.value)
    assert file in message
    assert str(inputs["annotations"]) in message
    assert REGISTRY.load(name).CARD.source in message


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a web page": (lambda data: b"<!DOCTYPE html>\n<html>Sign in to continue</html>", "it is a web page"),
    "nothing": (lambda data: b"", "it is empty"),
    "a pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "an archive": (lambda data: b"PK\x03\x04\0\0\0\0", r"give it the ending \.zip"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "UTF-16"),
    "Latin-1": (lambda data: b"\xe9\xe8" + data, "UTF-8|no JSON|damaged"),
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize(("name", "file"), OFFICIAL)
def test_a_file_that_is_something_else_is_refused(name: str, file: str, damage: str, tmp_path: Path) -> None:
    inputs = RELEASES[name]().write(tmp_path / "toy")
    (found,) = inputs["annotations"].rglob(file)
    change, expected = BROKEN[damage]
    found.write_bytes(change(found.read_bytes()))
    with pytest.raises(DataError, match=rf"{file}: expected (.|\n)*{expected}"):
        prepare(name, Workspace(tmp_path), probe=False, **inputs)


@pytest.mark.parametrize(("name", "file"), [pair for pair in OFFICIAL if pair[1].endswith((".json", ".csv"))])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(name: str, file: str, share: float, tmp_path: Path) -> None:
    inputs = RELEASES[name]().write(tmp_path / "toy")
    (found,) = inputs["annotations"].rglob(file)
    data = found.read_bytes()
    found.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"{file}: expected (.|\n)*(in the middle|fields|quote|it lacks)"):
        prepare(name, Workspace(tmp_path), probe=False, **inputs)


def test_an_archive_cut_short_is_refused(published: str, tmp_path: Path) -> None:
    if published == "latest_vatex":
        pytest.skip("archives are not searched for its lists")
    inputs = RELEASES[published]().write(tmp_path / "toy")
    archive = tmp_path / "cut" / "release.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in inputs["annotations"].rglob("*"):
            zipped.write(path, path.name)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"release.zip cannot be read .* get it again"):
        prepare(published, Workspace(tmp_path), probe=False, **{**inputs, "annotations": archive.parent})


@pytest.mark.parametrize("other", PUBLISHED)
def test_the_files_of_another_dataset_are_refused(published: str, other: str, tmp_path: Path) -> None:
    if published == other or (published, other) == ("vatex", "latest_vatex"):
        return
    inputs = RELEASES[published]().write(tmp_path / "toy")
    wrong = RELEASES[other]().write(tmp_path / "wrong")["annotations"]
    with pytest.raises(DataError, match=rf"{wrong}"):
        prepare(published, Workspace(tmp_path), probe=False, **{**inputs, "annotations": wrong})


def test_numbers_where_words_should_be_are_refused(published: str, tmp_path: Path) -> None:
    """JSON of the right shape and the wrong kind: the message says where."""
    inputs = RELEASES[published]().write(tmp_path / "toy")
    changed = 0
    for path in inputs["annotations"].rglob("*.json"):
        if path.name in own_names(published, RELEASES[published]()):
            path.write_text(json.dumps(_spoilt(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
            changed += 1
    if not changed:
        return
    with pytest.raises(DataError, match=r"\.json: expected .* but "):
        prepare(published, Workspace(tmp_path), probe=False, **inputs)


def _spoilt(values: Any) -> Any:
    """Every text and list of texts a number."""
    if isinstance(values, dict):
        return {key: _spoilt(value) for key, value in values.items()}
    if isinstance(values, list) and not all(isinstance(value, str) for value in values):
        return [_spoilt(value) for value in values]
    return 7 if isinstance(values, str | list) else values


# -- and beside them ---------------------------------------------------------------------------------------------------


def test_a_dataset_of_ones_own_gets_its_own_manifest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    prepare("folder", workspace, options={"dataset": "mine"}, **folder_toy(tmp_path))
    assert workspace.prepared() == ["mine"]
    assert manifest.read(workspace.manifest("mine")).dataset == "mine"


def test_an_unknown_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'sinthetic' .did you mean 'synthetic'"):
        prepare("sinthetic", Workspace(tmp_path))


def test_a_wrong_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clips.trian: unknown key .did you mean 'train'"):
        prepare("synthetic", Workspace(tmp_path), options={"clips": {"trian": 8}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": " "}, "licence of a dataset card: expected some text, got ' '"),
        ({"official_clips": {"training": 3}}, "official_clips: expected counts by train, val, test, got 'training': 3"),
        ({"official_clips": {"train": -1}}, "got 'train': -1"),
        ({"official_captions": {"dev": 1}}, "official_captions: expected counts by train, val, test, got 'dev': 1"),
    ],
)
def test_a_wrong_card_is_refused(change: Inputs, message: str) -> None:
    card = {"summary": "s", "source": "s", "licence": "l", "official_clips": {"train": 3}}
    Card(**card)
    with pytest.raises(ValueError, match=message):
        Card(**{**card, **change})
