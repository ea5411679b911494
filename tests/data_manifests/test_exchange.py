"""Manifests in the forms of others: what is written is what they read, and reading it back loses nothing."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from avpipe.data_manifests import manifest as manifests
from avpipe.data_manifests.datasets import folder
from avpipe.data_manifests.exchange import FORMS, Written, cut_row, export
from avpipe.data_manifests.manifest import Manifest
from avpipe.data_manifests.prepare import prepare
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, UnknownNameError
from avpipe.pipeline.workspace import Workspace

MONO = {"duration_seconds": 4.0, "has_audio": True, "sample_rate": 16_000, "channels": 1}
STEREO = {"duration_seconds": 10.01, "has_audio": True, "sample_rate": 44_100, "channels": 2}


def clip(clip_id: str, split: str, *captions: str, path: str = "", media: dict[str, Any] = MONO, **times: Any) -> Clip:
    return Clip(
        clip_id=clip_id,
        dataset="toys",
        path=path or f"{clip_id}.mp4",
        split=split,
        captions=captions,
        extra={"media": media},
        **times,
    )


CLIPS = (
    clip("dog", "train", "a dog barks", 'it "barks", twice', "犬が吠える 🐕"),
    clip("long-1", "train", "chopping; a\\b", path="sub/long.mp4", start_seconds=0.0, stop_seconds=10.0,
         media={**STEREO, "duration_seconds": 10.0, "file_seconds": 300.0}),
    clip("long-2", "train", "a bell", "a bell", path="sub/long.mp4", start_seconds=179.25, stop_seconds=189.5,
         media={**STEREO, "duration_seconds": 10.25, "file_seconds": 300.0}),
    clip("007", "val", "café, 'yes'", "[null]", path="sub/ü d.mkv", media=STEREO),
    clip("-sGd3_x-9A_", "test", '"'),
)  # fmt: skip


@pytest.fixture
def toys(tmp_path: Path) -> Manifest:
    """A small manifest, and its (empty) files."""
    return of(tmp_path, CLIPS)


def of(root: Path, clips: Sequence[Clip]) -> Manifest:
    for each in clips:
        (root / "videos" / each.path).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / each.path).touch()
    return Manifest("toys", tuple(clips), root / "videos", 256, "1dea5")


def read_back(path: Path, media: Path) -> list[Clip]:
    config = folder.Config(dataset="toys")
    return list(folder.prepare(config, media=media, annotations=path, workspace=Workspace(path.parent)).clips)


def plain(clips: Sequence[Clip]) -> list[Clip]:
    """What a form must keep: all but what looking into the files told."""
    return [replace(each, extra={}) for each in clips]


def test_coco(toys: Manifest, tmp_path: Path) -> None:
    written = export(toys, tmp_path / "coco.json", "coco")
    assert written == Written(path=tmp_path / "coco.json", clips=5, captions=9)
    values = json.loads(written.path.read_text(encoding="utf-8"))
    assert values["info"] == {"description": "toys, exported by avpipe", "ids_sha256": "1dea5"}
    assert values["images"][:2] == [
        {"id": "dog", "file_name": "dog.mp4", "split": "train"},
        {"id": "long-1", "file_name": "sub/long.mp4", "split": "train", "start": 0.0, "stop": 10.0},
    ]
    assert values["annotations"][2:4] == [
        {"id": 2, "image_id": "dog", "caption": "犬が吠える 🐕"},
        {"id": 3, "image_id": "long-1", "caption": "chopping; a\\b"},
    ]
    assert [each["id"] for each in values["annotations"]] == list(range(9))


def test_valor(toys: Manifest, tmp_path: Path) -> None:
    written = export(toys, tmp_path / "desc_train.json", "valor", "train")
    assert written.notes == (
        "clips that are parts of longer files, which this form cannot say: 2",
        "clips whose files are called otherwise, which this form cannot say: 2",
    )
    assert (written.clips, written.captions) == (3, 6)
    assert json.loads(written.path.read_text(encoding="utf-8")) == [
        {"video_id": "dog", "desc": ["a dog barks", 'it "barks", twice', "犬が吠える 🐕"]},
        {"video_id": "long-1", "desc": "chopping; a\\b"},
        {"video_id": "long-2", "desc": ["a bell", "a bell"]},
    ]


def test_csv(toys: Manifest, tmp_path: Path) -> None:
    written = export(toys, tmp_path / "toys.csv", "csv")
    assert (written.clips, written.captions, written.notes) == (5, 9, ())
    assert written.path.read_text(encoding="utf-8").split("\n")[:4] == [
        "id,path,start,stop,split,caption",
        "dog,dog.mp4,,,train,a dog barks",
        'dog,dog.mp4,,,train,"it ""barks"", twice"',
        "dog,dog.mp4,,,train,犬が吠える 🐕",
    ]
    with written.path.open(encoding="utf-8", newline="") as file:
        assert [row["start"] for row in csv.DictReader(file)] == ["", "", "", "0.0", "179.25", "179.25", "", "", ""]


def test_lhotse(toys: Manifest, tmp_path: Path) -> None:
    written = export(toys, tmp_path / "cuts.jsonl", "lhotse")
    assert (written.clips, written.captions, written.notes) == (5, 9, ())
    cuts = [json.loads(line) for line in written.path.read_text(encoding="utf-8").splitlines()]
    assert cuts[2] == {
        "id": "long-2", "start": 179.25, "duration": 10.25, "channel": [0, 1], "type": "MultiCut",
        "custom": {"split": "train"},
        "supervisions": [
            {"id": f"long-2-{n}", "recording_id": "sub/long.mp4", "start": 0.0, "duration": 10.25, "channel": [0, 1],
             "text": "a bell"} for n in range(2)
        ],
        "recording": {
            "id": "sub/long.mp4", "sampling_rate": 44_100, "num_samples": 13_230_000, "duration": 300.0,
            "channel_ids": [0, 1],
            "sources": [{"type": "file", "channels": [0, 1], "source": str(tmp_path / "videos" / "sub" / "long.mp4")}],
        },
    }  # fmt: skip
    assert (cuts[0]["type"], cuts[0]["channel"]) == ("MonoCut", 0)
    assert [each["text"] for each in cuts[0]["supervisions"]] == list(CLIPS[0].captions)


# What lhotse's dataclasses cannot do without (lhotse 1.33, `MonoCut`, `Recording`, `SupervisionSegment`).
CUT = {"id", "start", "duration", "channel", "supervisions", "recording", "type"}
RECORDING = {"id", "sources", "sampling_rate", "num_samples", "duration"}
SUPERVISION = {"id", "recording_id", "start", "duration"}


def test_every_cut_is_one_that_lhotse_accepts(toys: Manifest, tmp_path: Path) -> None:
    lines = export(toys, tmp_path / "cuts.jsonl", "lhotse").path.read_text(encoding="utf-8").splitlines()
    for cut in map(json.loads, lines):
        recording, channels = cut["recording"], cut["recording"]["channel_ids"]
        assert cut.keys() >= CUT and recording.keys() >= RECORDING
        # These are the checks of lhotse.qa.validate_cut and validate_recording.
        assert cut["start"] >= 0 and cut["duration"] > 0
        assert abs(recording["num_samples"] / recording["sampling_rate"] - recording["duration"]) < 1e-9
        assert cut["start"] + cut["duration"] <= recording["duration"] + 1e-3
        assert cut["channel"] == (channels if cut["type"] == "MultiCut" else 0)
        assert [source["channels"] for source in recording["sources"]] == [channels]
        for each in cut["supervisions"]:
            assert each.keys() >= SUPERVISION
            assert (each["recording_id"], each["channel"]) == (recording["id"], cut["channel"])
            assert 0 < each["duration"] <= cut["duration"]
    supervisions = [each["id"] for line in lines for each in json.loads(line)["supervisions"]]
    assert len(set(supervisions)) == len(supervisions) == 9


@pytest.mark.parametrize("file", ["toys", "toys.gz"])
@pytest.mark.parametrize("form", ["coco.json", "csv.csv", "lhotse.jsonl"])
def test_what_is_read_back_is_what_was_written(form: str, file: str, toys: Manifest, tmp_path: Path) -> None:
    name, ending = form.split(".")
    path = tmp_path / file.replace("toys", f"toys.{ending}")
    export(toys, path, name)
    assert read_back(path, toys.media_root) == plain(CLIPS)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("form", FORMS)
def test_one_split_is_read_back(form: str, split: str, tmp_path: Path) -> None:
    # VALOR's list says neither files nor times nor splits: a file has its clip's name.
    toys = of(tmp_path, [replace(each, path=f"{each.clip_id}.mp4", start_seconds=0.0, stop_seconds=None,
                                 extra={"media": MONO}) for each in CLIPS])  # fmt: skip
    path = tmp_path / ("toys.jsonl" if form == "lhotse" else "toys.csv" if form == "csv" else "toys.json")
    written = export(toys, path, form, split)
    expected = plain(toys.split(split))
    assert (written.clips, written.notes) == (len(expected), ())
    found = read_back(path, toys.media_root)
    assert found == expected if form != "valor" else [replace(each, split=split) for each in found] == expected


def test_an_export_can_be_prepared(toys: Manifest, tmp_path: Path) -> None:
    path = export(toys, tmp_path / "toys.json.gz", "coco").path
    workspace = Workspace(tmp_path / "workspace")
    options = {"dataset": "toys"}
    header = prepare("folder", workspace, options=options, media=toys.media_root, annotations=path, probe=False)
    assert header.captions == {"train": 6, "val": 2, "test": 1}
    assert list(manifests.read(workspace.manifest("toys")).clips) == plain(CLIPS)


@pytest.mark.parametrize("form", ["coco", "csv", "lhotse"])
def test_files_of_one_name_stay_apart(form: str, tmp_path: Path) -> None:
    clips = [clip(f"{place}_a", "train", place, path=f"{place}/a.mp4") for place in ("kitchen", "garden")]
    toys = of(tmp_path, clips)
    path = tmp_path / {"coco": "toys.json", "csv": "toys.csv", "lhotse": "toys.jsonl"}[form]
    export(toys, path, form)
    assert read_back(path, toys.media_root) == plain(clips)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@pytest.mark.parametrize("form", ["coco", "csv", "lhotse"])
@example(captions=["x"], start=48_022, length=355, rate=16_000)  # 48.022 + 0.355 is not 48.377
@given(
    captions=st.lists(st.lists(TEXT, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=4),
    start=st.integers(0, 100_000),
    length=st.integers(20, 60_000),
    rate=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]),
)
def test_any_text_and_any_times_come_back(
    form: str, captions: list[str], start: int, length: int, rate: int, tmp_path: Path
) -> None:
    times = {"start_seconds": start / 1000, "stop_seconds": (start + length) / 1000}
    media = {**STEREO, "sample_rate": rate, "duration_seconds": length / 1000, "file_seconds": 161.0}
    toys = of(tmp_path, [clip("a", "train", *captions, media=media, **times)])
    path = tmp_path / {"coco": "toys.json", "csv": "toys.csv", "lhotse": "toys.jsonl"}[form]
    export(toys, path, form)
    assert read_back(path, toys.media_root) == plain(toys.clips)


@pytest.mark.parametrize("seconds", [10.001, 9.9995, 0.05, 3599.999])
@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_a_whole_file_of_any_length_is_read_back_as_one(seconds: float, rate: int, tmp_path: Path) -> None:
    toys = of(tmp_path, [clip("a", "train", "x", media={**MONO, "duration_seconds": seconds, "sample_rate": rate})])
    export(toys, tmp_path / "cuts.jsonl", "lhotse")
    (found,) = read_back(tmp_path / "cuts.jsonl", toys.media_root)
    assert (found.start_seconds, found.stop_seconds) == (0.0, None)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_manifest_gives_the_same_bytes(form: str, toys: Manifest, tmp_path: Path) -> None:
    one, two, packed, again = (tmp_path / name for name in ("1.json", "2.json", "1.json.gz", "sub/2.json.gz"))
    (tmp_path / "sub").mkdir()
    for path in (one, two, packed, again):
        export(toys, path, form, "train")
    assert one.read_bytes() == two.read_bytes() == gzip.decompress(packed.read_bytes())
    assert packed.read_bytes() == again.read_bytes()


SOME_SILENT = (
    clip("a", "train", "a dog barks"),
    clip("b", "train"),
    clip("c", "train", "rain", media={"duration_seconds": 4.0, "has_audio": False}),
)


@pytest.mark.parametrize(
    ("form", "clips", "notes"),
    [
        ("coco", 3, ()),
        ("valor", 2, ("clips without a caption, left out: 1",)),
        ("csv", 2, ("clips without a caption, left out: 1",)),
        ("lhotse", 2, ("clips without sound, or that nobody looked into, left out: 1",)),
    ],
)
def test_what_cannot_be_said_is_told(form: str, clips: int, notes: tuple[str, ...], tmp_path: Path) -> None:
    written = export(of(tmp_path, SOME_SILENT), tmp_path / "toys.json", form)
    assert (written.clips, written.captions, written.notes) == (clips, 1 if form == "lhotse" else 2, notes)


def test_a_cut_without_captions_is_one(tmp_path: Path) -> None:
    export(of(tmp_path, SOME_SILENT), tmp_path / "cuts.jsonl", "lhotse")
    cuts = [json.loads(line) for line in (tmp_path / "cuts.jsonl").read_text().splitlines()]
    assert [(cut["id"], len(cut["supervisions"])) for cut in cuts] == [("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    "media", [{}, {"missing": True}, {"unreadable": "open: x"}, {**MONO, "sample_rate": 0}, {**MONO, "channels": 0}]
)
def test_cuts_of_unknown_sound_are_refused(media: dict[str, Any], tmp_path: Path) -> None:
    toys = of(tmp_path, [clip("a", "train", "x", media=media)])
    with pytest.raises(DataError, match=r"toys: it is not known of any clip what sound it has, .*--probe"):
        export(toys, tmp_path / "cuts.jsonl", "lhotse")
    assert not (tmp_path / "cuts.jsonl").exists()


@pytest.mark.parametrize(
    ("form", "split", "error", "message"),
    [
        ("coc", None, UnknownNameError, "unknown form of a manifest 'coc' .did you mean 'coco'.*known: coco, csv, lho"),
        ("coco", "trian", UnknownNameError, "unknown split 'trian' .did you mean 'train'.*known: test, train, val"),
        ("valor", None, DataError, "VALOR's list cannot say which split .*--split"),
    ],
)
def test_what_is_no_form_or_split_is_refused(
    form: str, split: str | None, error: type[Exception], message: str, toys: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export(toys, tmp_path / "toys.json", form, split)
    assert not (tmp_path / "toys.json").exists()


@pytest.mark.parametrize(
    ("clips", "split", "message"),
    [(CLIPS[:3], "val", "toys has no clips in its val split$"), ((), None, "toys has no clips in its three splits$")],
)
def test_nothing_is_not_written(clips: tuple[Clip, ...], split: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        export(of(tmp_path, clips), tmp_path / "toys.json", "coco", split)


@pytest.mark.parametrize("form", FORMS)
def test_a_name_that_is_no_text_is_refused(form: str, tmp_path: Path) -> None:
    # A file of old times, with Latin-1 in its name: manifests hold it, JSON and CSV for others cannot.
    name = "caf\udce9.mp4"
    toys = Manifest("toys", (clip("a", "train", "x", path=name),), tmp_path, 256, "1dea5")
    if form == "valor":  # which names no files
        assert export(toys, tmp_path / "toys.json", form).clips == 1
        return
    with pytest.raises(DataError, match=r"toys.json: .*UTF-8.*caf"):
        export(toys, tmp_path / "toys.json", form)
    assert not (tmp_path / "toys.json").exists()


# As lhotse 1.33 writes a cut of its own, with what avpipe has no use for.
OF_LHOTSE: dict[str, Any] = {
    "id": "cut-7", "start": 0.0, "duration": 4.0, "channel": 0, "type": "MonoCut",
    "supervisions": [
        {"id": "s0", "recording_id": "rec", "start": 0.5, "duration": 1.5, "channel": 0, "text": "a dog barks",
         "language": "English", "speaker": "dog"},
        {"id": "s1", "recording_id": "rec", "start": 2.0, "duration": 2.0, "channel": 0},
        {"id": "s2", "recording_id": "rec", "start": 2.0, "duration": 2.0, "channel": 0, "text": "rain"},
    ],
    "features": {"type": "kaldi-fbank", "num_frames": 400, "storage_path": "x"},
    "recording": {
        "id": "rec", "sampling_rate": 16000, "num_samples": 64000, "duration": 4.0, "channel_ids": [0],
        "sources": [{"type": "file", "channels": [0], "source": "/far/away/dog.wav"}],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"start": 1, "duration": 2}, {"start": 1.0, "stop": 3.0}),
        ({"duration": 3.5}, {"start": 0.0, "stop": 3.5}),
        ({"duration": 3.995}, {}),
        ({"start": 1.0, "duration": 3.0}, {"start": 1.0, "stop": 4.0}),
        ({"start": 0.83, "duration": 2.65}, {"start": 0.83, "stop": 3.48}),
        ({"custom": {"split": "dev", "other": 3}}, {"split": "dev"}),
        ({"custom": None}, {}),
        ({"custom": {}}, {}),
    ],
)
def test_a_cut_is_a_row_of_captions(change: dict[str, Any], expected: dict[str, Any]) -> None:
    assert cut_row({**OF_LHOTSE, **change}) == {
        "id": "cut-7", "file": "/far/away/dog.wav", "captions": ["a dog barks", "rain"], **expected
    }  # fmt: skip


@pytest.mark.parametrize("supervisions", [[], None, [{"id": "s1", "start": 0.0, "duration": 1.0}]])
def test_a_cut_may_say_nothing(supervisions: Any) -> None:
    assert cut_row({**OF_LHOTSE, "supervisions": supervisions})["captions"] == []


@pytest.mark.parametrize("key", ["id", "start", "duration", "recording"])
def test_half_a_cut_is_none(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        cut_row({name: value for name, value in OF_LHOTSE.items() if name != key})


def test_the_cuts_of_others_are_prepared(tmp_path: Path) -> None:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    (tmp_path / "videos" / "sub" / "dog.wav").touch()
    second = {**OF_LHOTSE, "id": "cut-8", "start": 1.0, "duration": 2.5}
    lines = "\n".join(json.dumps({**cut, "custom": {"split": "dev"}}) for cut in (OF_LHOTSE, second))
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    whole, part = read_back(tmp_path / "cuts.jsonl.gz", tmp_path / "videos")
    assert (whole.clip_id, whole.path, whole.split, whole.stop_seconds) == ("cut-7", "sub/dog.wav", "val", None)
    assert (part.start_seconds, part.stop_seconds, part.captions) == (1.0, 3.5, ("a dog barks", "rain"))


def test_a_folder_in_valors_layout_is_prepared(tmp_path: Path) -> None:
    for name in ("a_0.000_10.000", "b_5.000_15.000", "c"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").touch()
    valor = tmp_path / "annotations"
    valor.mkdir()
    (valor / "txt_mapper.json").write_text('{"a_0.000_10.000": "a dog", "b_5.000_15.000": ["x", "y"], "c": "rain"}')
    (valor / "train_id.json").write_text('["a_0.000_10.000"]')
    (valor / "test_id.json").write_text('["b_5.000_15.000", "c"]')
    clips = read_back(valor, tmp_path / "videos")
    assert [(each.clip_id, each.split, each.captions) for each in clips] == [
        ("a_0.000_10.000", "train", ("a dog",)), ("b_5.000_15.000", "test", ("x", "y")), ("c", "test", ("rain",)),
    ]  # fmt: skip
