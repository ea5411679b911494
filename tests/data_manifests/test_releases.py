"""What is special about each published dataset: versions, forms, languages, partitions, dirt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.datasets import REGISTRY, howto100m
from avpipe.data_manifests.datasets.howto100m import Line, merge, without_repeats
from avpipe.data_manifests.official import Entry, Official
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import ConfigError, DataError
from tests.data_manifests.releases import (
    AUDIOCAPS_COLUMNS,
    BDDX_COLUMNS,
    RELEASES,
    bddx_row,
    msrvtt_files,
    table,
)


def read(
    name: str, tmp_path: Path, changes: dict[str, str] | None = None, *, remove: Sequence[str] = (), **options: Any
) -> Official:
    """What a module makes of its toy, some files of which are others."""
    release = RELEASES[name]()
    annotations = release.write(tmp_path / "toy")["annotations"]
    for file in remove:
        (annotations / file).unlink()
    for file, text in (changes or {}).items():
        (annotations / file).write_text(text, encoding="utf-8", newline="")
    module = REGISTRY.load(name)
    config = parse(module.Config, {**release.options, **options}, name)
    official: Official = module.read(
        config, AnnotationFiles(annotations, name, module.CARD, tmp_path / "toy" / "media")
    )
    return official


def ids(official: Official, split: str = "") -> list[str]:
    return [entry.source_id for entry in official.entries if split in ("", entry.split)]


def one(official: Official, source_id: str) -> Entry:
    (found,) = [entry for entry in official.entries if entry.source_id == source_id]
    return found


# -- vatex -------------------------------------------------------------------------------------------------------------


def test_vatex_speaks_chinese(tmp_path: Path) -> None:
    official = read("vatex", tmp_path, language="zh", splits=["train", "val"])
    assert {entry.captions for entry in official.entries} == {("一只狗在叫",)}


def test_the_public_test_of_vatex_has_no_chinese(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"vatex_public_test_english_v1.1.json: expected .* English ones alone.* splits=.train,val."
    ):
        read("vatex", tmp_path, language="zh")


def test_the_private_test_of_vatex_is_not_the_public_one(tmp_path: Path) -> None:
    private = json.dumps([{"videoID": "test_clip01_000179_000189"}])
    with pytest.raises(DataError, match="it may be the file of the private test, which has no captions"):
        read("vatex", tmp_path, {"vatex_public_test_english_v1.1.json": private})


def test_an_id_of_vatex_is_read_from_the_right(tmp_path: Path) -> None:
    entry = one(read("vatex", tmp_path), "cafe_chair__000005_000015")
    assert (entry.video, entry.span) == ("cafe_chair_", (5.0, 15.0))


def test_a_strange_id_of_vatex_is_named(tmp_path: Path) -> None:
    rows = json.dumps([{"videoID": "video7010", "enCap": ["x"], "chCap": ["y"]}])
    with pytest.raises(DataError, match="row 0 has the videoID 'video7010'"):
        read("vatex", tmp_path, {"vatex_training_v1.0.json": rows})


# -- latest_vatex ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("train_ids.txt", "rain_falls-_000030_000040\n"),
        ("train_clean__.json", json.dumps([{"image_id": "rain_falls-_000030_000040", "caption": ["x"], "id": 0}])),
        ("my_train_list.csv", "video_id\nrain_falls-_000030_000040.mp4\n"),
    ],
)
def test_lists_of_latest_vatex_have_many_forms(file: str, text: str, tmp_path: Path) -> None:
    official = read("latest_vatex", tmp_path, {file: text}, remove=["train_ids.txt"], splits=["train"])
    assert ids(official) == ["rain_falls-_000030_000040"]


def test_one_file_may_list_all_splits_of_latest_vatex(tmp_path: Path) -> None:
    lists = {"train": ["-dog_barks1"], "validation": ["cafe_chair_"], "test": ["test_clip01"]}
    removed = ["train_ids.txt", "val_ids.json", "latest/test_clean.json"]
    official = read("latest_vatex", tmp_path, {"vatex_ids.json": json.dumps(lists)}, remove=removed)
    assert ids(official) == ["-dog_barks1_000010_000020", "cafe_chair__000005_000015", "test_clip01_000179_000189"]


def test_what_a_list_of_latest_vatex_does_not_tell_is_told(tmp_path: Path) -> None:
    assert read("latest_vatex", tmp_path).notes == [
        "ids of train_ids.txt that are not in that split of VATEX: 1 (not_in_vate)",
        "bare ids of train_ids.txt that mean several clips, all taken: rain_falls-",
    ]


def test_a_list_of_something_else_is_no_list_of_vatex(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_ids.txt: expected ids of VATEX, but none of its 2 ids is one"):
        read("latest_vatex", tmp_path, {"train_ids.txt": "video1\nvideo2\n"})


def test_latest_is_no_test(tmp_path: Path) -> None:
    """A list whose name has "test" in "latest" is not that of the test split."""
    lists = json.dumps({"train": ["CBL6uetTPHg"], "val": ["CBL6uetTPHg"], "test": ["CBL6uetTPHg"]})
    removed = ["train_ids.txt", "val_ids.json", "latest/test_clean.json"]
    with pytest.raises(DataError, match=r"latest_train.txt: .*none of its 1 ids is one"):
        read("latest_vatex", tmp_path, {"latest_train.txt": "nobody", "latest_ids.json": lists}, remove=removed)


def test_latest_vatex_needs_lists(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"did not find a list of ids with 'val' as a word of its name .* take all of it: prepare vatex"
    ):
        read("latest_vatex", tmp_path, remove=["val_ids.json"])


# -- msrvtt ------------------------------------------------------------------------------------------------------------


def test_both_files_of_msrvtt_may_be_one(tmp_path: Path) -> None:
    apart = read("msrvtt", tmp_path / "a")
    both = msrvtt_files({9999: "test", 0: "train", 1: "train", 7010: "test", 6513: "validate"})
    removed = ["train_val_videodatainfo.json", "test_videodatainfo.json"]
    together = read("msrvtt", tmp_path / "b", {"MSRVTT_data.json": json.dumps(both)}, remove=removed)
    assert ids(together, "train") == ids(apart, "train")
    assert ids(together, "val") == ids(apart, "val")
    assert sorted(ids(together, "test")) == sorted(ids(apart, "test"))
    assert one(together, "video0").captions == one(apart, "video0").captions == ("caption 0 of 0", "caption 1 of 0")


def test_a_split_of_msrvtt_needs_only_its_own_file(tmp_path: Path) -> None:
    assert ids(read("msrvtt", tmp_path, remove=["test_videodatainfo.json"], splits=["val"])) == ["video6513"]


def test_the_challenge_of_2017_does_not_give_the_test_videos_away(tmp_path: Path) -> None:
    told = msrvtt_files({0: "train", 6513: "validate", 7010: "train", 9999: "validate"})
    removed = ["train_val_videodatainfo.json", "test_videodatainfo.json"]
    official = read("msrvtt", tmp_path, {"videodatainfo_2017.json": json.dumps(told)}, remove=removed)
    assert ids(official, "test") == ["video7010", "video9999"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (msrvtt_files({10001: "test"}), "it has 'video10001': it is the test file of the challenge of 2017"),
        ({**msrvtt_files({7010: "test"}), "sentences": []}, "it has no sentences: it is the file that participants"),
        (msrvtt_files({7010: "testing"}), "video7010 has the split 'testing', expected one of train, validate, test"),
        (
            {**msrvtt_files({7010: "test"}), "videos": msrvtt_files({7011: "test"})["videos"]},
            r"it has sentences for 1 videos that it does not list \(video7010\)",
        ),
        ({"annotations": [], "images": []}, "this is captions in COCO's form"),
        ({"videos": [{"video_id": 3, "split": "test"}], "sentences": []}, r"videos\[0\].video_id: input should be"),
    ],
)
def test_a_wrong_file_of_msrvtt_is_refused(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"test_videodatainfo.json: expected .* but {message}"):
        read("msrvtt", tmp_path, {"test_videodatainfo.json": json.dumps(told)})


JSFUSION = "key,vid_key,video_id,sentence\nret0,msr9999,video9999,a person's sentence\n"


@pytest.mark.parametrize(
    ("partition", "train"),
    [("1k-A-9k", ["video0", "video1", "video6513", "video7010"]), ("1k-A-7k", ["video0", "video1", "video6513"])],
)
def test_the_splits_of_retrieval(partition: str, train: list[str], tmp_path: Path) -> None:
    official = read("msrvtt", tmp_path, {"MSRVTT_JSFUSION_test.csv": JSFUSION}, partition=partition)
    assert (ids(official, "train"), ids(official, "val"), ids(official, "test")) == (train, [], ["video9999"])
    assert one(official, "video9999").captions == ("caption 0 of 9999", "caption 1 of 9999")
    assert one(official, "video9999").extra["sentence"] == "a person's sentence"
    assert official.counts == {"train": 9000 if partition == "1k-A-9k" else 7010, "test": 1000}


def test_retrieval_needs_its_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did not find MSRVTT_JSFUSION_test.csv"):
        read("msrvtt", tmp_path, partition="1k-A-9k")


def test_categories_of_msrvtt_have_names(tmp_path: Path) -> None:
    assert one(read("msrvtt", tmp_path), "video1").extra["category"] == "vehicles/autos"


# -- msvd --------------------------------------------------------------------------------------------------------------


CORPUS = table(
    ("VideoID", "Start", "End", "WorkerID", "Source", "AnnotationTime", "Language", "Description"),
    ("-dog_barks1", 5, 15, 588702, "unverified", 55, "English", "A dog barks."),
    ("-dog_barks1", 5.0, 15.0, 588703, "clean", 50, "English", "The dog is barking."),
    ("-dog_barks1", 5, 15, 588704, "clean", 50, "German", "Ein Hund bellt."),
    ("rain_falls-", 0, 9, 1, "unverified", 9, "English", "It rains."),
    ("rain_falls-", 0, 9, 1, "unverified", 9, "English", ""),
    ("cafe_chair_", 3, 7, 1, "clean", 9, "English", 'A cat says "meow", twice'),
    ("test_clip01", 1, 4, 1, "clean", 9, "English", "A man cooks."),
    ("stranger__1", 1, 4, 1, "clean", 9, "English", "Nobody has this clip."),
).replace("\nrain", "\n\nrain", 1)
SENTENCES = [f"sents_{split}_lc_nopunc.txt" for split in ("train", "val", "test")]


def test_the_corpus_of_msvd(tmp_path: Path) -> None:
    official = read("msvd", tmp_path, {"video_corpus.csv": CORPUS}, remove=SENTENCES)
    assert {entry.source_id: entry.captions for entry in official.entries} == {
        "-dog_barks1_5_15": ("A dog barks.", "The dog is barking."),
        "rain_falls-_0_9": ("It rains.",),
        "cafe_chair__3_7": ('A cat says "meow", twice',),
        "test_clip01_1_4": ("A man cooks.",),
    }
    assert official.notes == ["clips of the corpus that are not among the 1,970 of the splits: 1"]


def test_only_verified_captions_of_msvd(tmp_path: Path) -> None:
    official = read("msvd", tmp_path, {"video_corpus.csv": CORPUS}, remove=SENTENCES, verified_only=True)
    assert one(official, "-dog_barks1_5_15").captions == ("The dog is barking.",)
    assert one(official, "rain_falls-_0_9").fault == "no caption"


def test_msvd_in_another_language(tmp_path: Path) -> None:
    changes = {"video_corpus.csv": CORPUS}
    assert one(
        read("msvd", tmp_path / "a", changes, form="corpus", language="German"), "-dog_barks1_5_15"
    ).captions == ("Ein Hund bellt.",)
    with pytest.raises(
        DataError, match=r"captions in 'Latin' \(language=...\), but there are captions in English, German"
    ):
        read("msvd", tmp_path / "b", changes, form="corpus", language="Latin")


def test_the_descriptions_of_msvd(tmp_path: Path) -> None:
    text = "# comment\n\n-dog_barks1_5_15 a dog barks\n-dog_barks1_5_15 the dog barks\ncafe_chair__3_7 a cat\n"
    official = read("msvd", tmp_path, {"AllVideoDescriptions.txt": text}, remove=SENTENCES)
    assert one(official, "-dog_barks1_5_15").captions == ("a dog barks", "the dog barks")
    assert one(official, "rain_falls-_0_9").fault == "no caption"


def test_without_the_mapping_clips_of_msvd_are_numbers(tmp_path: Path) -> None:
    official = read("msvd", tmp_path, remove=["youtube_mapping.txt"])
    assert ids(official) == ["vid1", "vid2", "vid1201", "vid1301"]
    assert official.notes == [
        "there is no youtube_mapping.txt: clips are called vid1, vid2, ... and not by YouTube id and times"
    ]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sents_val_lc_nopunc.txt", "vid3\ta cat\n", "clips of the val split, but vid3 is one of train"),
        ("sents_val_lc_nopunc.txt", "vid1201 a cat\n", "a line is 'vid1201 a cat'"),
        ("youtube_mapping.txt", "vid1 -dog_barks1_5_15\n", "a line is 'vid1 -dog_barks1_5_15'"),
    ],
)
def test_a_wrong_file_of_msvd_is_refused(file: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{file}: expected .*{message}"):
        read("msvd", tmp_path, {file: text})


def test_a_pickle_of_msvd_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a pickle, which could run anything; take one of the three other forms"):
        read("msvd", tmp_path, {"raw-captions.pkl": "x"}, remove=SENTENCES)


# -- audiocaps ---------------------------------------------------------------------------------------------------------


def test_the_second_version_of_audiocaps_has_several_captions_a_clip(tmp_path: Path) -> None:
    rows = table(AUDIOCAPS_COLUMNS, (1, "-dog_barks1", 30, "a dog"), (2, "-dog_barks1", 30, "it barks"))
    official = read("audiocaps", tmp_path / "a", {"dataset/train.csv": rows}, version="2", splits=["train"])
    assert one(official, "-dog_barks1_30").captions == ("a dog", "it barks")
    assert official.counts == {}
    with pytest.raises(DataError, match=r"-dog_barks1_30 has 2: this is version 2.0's file; say version=2"):
        read("audiocaps", tmp_path / "b", {"dataset/train.csv": rows}, splits=["train"])


def test_the_first_version_of_audiocaps_is_not_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = REGISTRY.load("audiocaps")
    monkeypatch.setattr(module, "COUNTS", {**module.COUNTS, "1": {"train": 3, "val": 1, "test": 1}})
    with pytest.raises(DataError, match="each of its 3 clips has one: this is version 1's file; say version=1"):
        read("audiocaps", tmp_path, version="2")


@pytest.mark.parametrize("row", [(1, "short", 30, "x"), (1, "-dog_barks1", "1:30", "x"), (1, "-dog_barks1", -5, "x")])
def test_a_row_of_audiocaps_that_is_no_clip_is_refused(row: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"train.csv: expected .* a row has youtube_id '{row[1]}' and start_time '{row[2]}'"
    ):
        read("audiocaps", tmp_path, {"dataset/train.csv": table(AUDIOCAPS_COLUMNS, row)})


def avcap(**image: str) -> str:
    images = [{"id": "test_clip01", "labels": "x", "audio_path": "wav/test_clip01_40000_48000.wav", **image}]
    annotations = [{"id": n, "image_id": "test_clip01", "caption": text} for n, text in enumerate(("speech", "a man"))]
    return json.dumps({"images": images, "annotations": annotations})


def test_avcap_has_its_own_files_of_audiocaps(tmp_path: Path) -> None:
    train = [{"youtube_id": "-dog_barks1", "start_time": "30", "caption": "a dog", "torch_id": 0}]
    changes = {"dataset/train.json": json.dumps(train), "dataset/test_coco.json": avcap()}
    official = read("audiocaps", tmp_path, changes, version="avcap")
    assert ids(official) == ["-dog_barks1_30", "cafe_chair__7", "test_clip01_40"]
    assert one(official, "test_clip01_40").captions == ("speech", "a man")
    assert official.counts == {"train": 48595, "val": 495, "test": 944}


def test_avcap_must_say_when_a_clip_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'test_clip01' has the audio_path 'wav/test_clip01.wav'"):
        read(
            "audiocaps",
            tmp_path,
            {"dataset/test_coco.json": avcap(audio_path="wav/test_clip01.wav")},
            version="avcap",
            splits=["test"],
        )


# -- youcook2, activitynet ---------------------------------------------------------------------------------------------


def test_the_test_sentences_of_youcook2_are_not_published(tmp_path: Path) -> None:
    database = {"-dog_barks1": {"duration": 9.0, "subset": "testing", "recipe_type": "1", "annotations": []}}
    with pytest.raises(DataError, match=r"-dog_barks1.subset: input should be 'training' or 'validation'"):
        read("youcook2", tmp_path, {"youcookii_annotations_trainval.json": json.dumps({"database": database})})


def test_segments_of_activitynet_are_repaired_and_counted(tmp_path: Path) -> None:
    official = read("activitynet_captions", tmp_path)
    assert one(official, "v_-dog_barks1_train_0").span == (0.28, 95.04)
    assert one(official, "v_-dog_barks1_train_1").span == (50.0, 60.0)
    assert one(official, "v_-dog_barks1_train_2").fault == "no length: 7 to 7 s"
    assert one(official, "v_-dog_barks1_train_3").span == (80.0, 95.03999999999999)
    assert official.notes == [
        "segments that end before they start, taken the other way round: 1",
        "segments that end beyond their video, cut there: 1",
    ]


def test_only_one_v_is_no_part_of_the_youtube_id(tmp_path: Path) -> None:
    assert one(read("activitynet_captions", tmp_path), "v_v_cafe_chai_val_1_0").video == "v_cafe_chai"


@pytest.mark.parametrize("chosen", [["val_1"], ["val_2"], ["val_1", "val_2"]])
def test_reference_sets_of_activitynet(chosen: list[str], tmp_path: Path) -> None:
    official = read("activitynet_captions", tmp_path, reference_sets=chosen, splits=["val"])
    assert {entry.extra["reference_set"] for entry in official.entries} == set(chosen)
    assert official.counts == {"val": sum({"val_1": 17505, "val_2": 17031}[name] for name in chosen)}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"database": {}, "taxonomy": [], "version": "1.3"}, "this is a file of ActivityNet itself"),
        ({"v_x": {"duration": 9, "timestamps": [[0, 1]], "sentences": []}}, "v_x has 1 segments and 0 sentences"),
        (
            {"v_x": {"duration": 9, "timestamps": [[0]], "sentences": ["a"]}},
            r"v_x.timestamps\[0\]\[1\]: field required",
        ),
        (["v_x"], "input should be an object"),
    ],
)
def test_a_wrong_file_of_activitynet_is_refused(told: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"train.json: expected .* but {message}"):
        read("activitynet_captions", tmp_path, {"captions/train.json": json.dumps(told)})


def test_there_is_no_test_split_of_activitynet(tmp_path: Path) -> None:
    assert read("activitynet_captions", tmp_path, splits=["test", "val"]).counts == {"val": 34536}


# -- bddx --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "captions", "faults"),
    [
        ({"caption": "action"}, ("The car accelerates",), {}),
        ({"caption": "justification"}, ("because the light has turned green.",), {2: "no justification"}),
        ({}, ("The car accelerates because the light has turned green.",), {2: "no justification"}),
        (
            {"joiner": " <SEP> "},
            ("The car accelerates <SEP> because the light has turned green.",),
            {2: "no justification"},
        ),
    ],
)
def test_what_is_said_of_an_action(
    options: dict[str, Any], captions: tuple[str, ...], faults: dict[int, str], tmp_path: Path
) -> None:
    official = read("bddx", tmp_path, **options)
    assert one(official, "06d501fd-a9ffc960_1").captions == captions
    found = {int(entry.source_id[-1]): entry.fault for entry in official.entries if entry.fault}
    assert found == {**faults, 3: "no length: 20 to 20 s"}
    assert one(official, "06d501fd-a9ffc960_4").span == (22.0, 30.0)


def test_videos_that_lists_and_annotations_do_not_share_are_told(tmp_path: Path) -> None:
    official = read(
        "bddx", tmp_path, {"val.txt": "9_99999999-99999999\n2_01b0505f-5f564e84\n", "train.txt": "06d501fd-a9ffc960\n"}
    )
    assert official.notes[1:] == [
        "videos that are in no split, passed over: 1",
        "videos of the lists that have no annotations: 1",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val.txt": "second video\n"}, "val.txt: expected lines like .* a line is 'second video'"),
        (
            {"BDD-X-Annotations_v1.csv": table(BDDX_COLUMNS, bddx_row("01b0505f-5f564e84", ("0:05", 9, "a", "b")))},
            "BDD-X-Annotations_v1.csv: expected times in seconds, but 01b0505f-5f564e84 has '0:05' to '9'",
        ),
        (
            {"BDD-X-Annotations_v1.csv": table(BDDX_COLUMNS, bddx_row("99999999-99999999", (0, 9, "a", "b")))},
            "expected videos that the lists of splits name, but none of its 1 videos is listed",
        ),
    ],
)
def test_a_wrong_file_of_bddx_is_refused(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read("bddx", tmp_path, changes)


# -- howto100m ---------------------------------------------------------------------------------------------------------


def test_a_clip_of_howto100m_knows_what_is_said_next(tmp_path: Path) -> None:
    official = read("howto100m", tmp_path)
    first = one(official, "-dog_barks1_500_8500")
    assert (first.captions, first.extra["next_clip"]) == (("so today we take the dog",), "-dog_barks1_8500_12000")
    following = one(official, "-dog_barks1_8500_12000")
    assert following.captions == ("and go",)  # "the dog" was said before
    assert "next_clip" not in following.extra  # half a minute of silence lies between
    assert "next_clip" not in one(official, "-dog_barks1_40000_52000").extra  # the last one


def test_videos_of_howto100m_without_a_file_are_not_read(tmp_path: Path) -> None:
    official = read("howto100m", tmp_path / "a")
    assert "videos of raw_caption.json without a file here, passed over and not counted: 1" in official.notes
    assert "vanished_11_0_9000" in ids(read("howto100m", tmp_path / "b", include="all"))


def test_a_video_of_howto100m_is_in_one_split(tmp_path: Path) -> None:
    halves = {"train": 0.5, "val": 0.5, "test": 0}
    splits = {(entry.video, entry.split) for entry in read("howto100m", tmp_path, split_ratios=halves).entries}
    assert len({video for video, _ in splits}) == len(splits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"start": [1], "end": [2]}}', "'a' has {'start': .1.* 'end'"),
        ('{"a": {"start": [1], "end": [2], "text": []}}', "'a' has lists of different lengths"),
        ('{"a": {"start": [1], "end": [2], "te', "it ends in the middle or is damaged"),
        ('["a"]', "it holds no videos|no JSON|damaged"),
    ],
)
def test_a_wrong_file_of_howto100m_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"raw_caption.json: expected (.|\n)*({message})"):
        read("howto100m", tmp_path, {"raw_caption.json": text}, include="all")


SETTING = howto100m.Config()
times = st.floats(0, 500, allow_nan=False).map(lambda x: round(x, 2))
speech = st.lists(
    st.tuples(times, st.floats(0.1, 30).map(lambda x: round(x, 2)), st.text("ab ", min_size=1)), max_size=12
)


@given(speech)
def test_merged_lines_lose_no_word_and_no_time(said: list[tuple[float, float, str]]) -> None:
    lines = sorted(
        (Line(start, start + length, text) for start, length, text in said), key=lambda line: (line.start, line.stop)
    )
    merged = merge(lines, SETTING)
    assert " ".join(line.text for line in merged).split() == " ".join(line.text for line in lines).split()
    assert [line.start for line in merged] == sorted(line.start for line in merged)
    assert len({(line.start, line.stop) for line in merged}) == len(merged)
    for line in merged:
        parts = [part for part in lines if line.start <= part.start and part.stop <= line.stop]
        assert line.stop - line.start <= SETTING.max_seconds or len(parts) >= 1
    if lines:
        assert max(line.stop for line in merged) == max(line.stop for line in lines)


@given(speech)
def test_what_comes_next_is_not_what_is_said_already(said: list[tuple[float, float, str]]) -> None:
    lines = sorted((Line(start, start + length, text) for start, length, text in said), key=lambda x: (x.start, x.stop))
    apart = howto100m.without_overlap(lines)
    assert [(line.start, line.text) for line in apart] == [(line.start, line.text) for line in lines]
    entries = howto100m.clips_of("-dog_barks1", "train", apart, SETTING)
    spans = {entry.source_id: entry.span for entry in entries}
    for entry in entries:
        if following := entry.extra.get("next_clip"):
            assert spans[following][0] >= entry.span[1]  # type: ignore[index, operator]


def test_a_line_ends_where_the_next_begins() -> None:
    times = [(0.0, 9.0), (1.0, 3.0), (2.0, 20.0), (2.0, 21.0), (30.0, 31.0)]
    lines = [Line(start, stop, "x") for start, stop in times]
    spans = [(line.start, line.stop) for line in howto100m.without_overlap(lines)]
    assert spans == [(0.0, 1.0), (1.0, 2.0), (2.0, 20.0), (2.0, 21.0), (30.0, 31.0)]
    assert howto100m.without_overlap([]) == []


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (["take the dog", "the dog and go"], ["take the dog", "and go"]),
        (["one two", "two three"], ["one two", "two three"]),  # a single word is no repeat
        (["a b c", "a b c"], ["a b c"]),
        (["a b", "c d"], ["a b", "c d"]),
    ],
)
def test_repeated_words_are_dropped(said: list[str], left: list[str]) -> None:
    lines = [Line(float(n), n + 1.5, text) for n, text in enumerate(said)]
    kept = without_repeats(lines)
    assert [line.text for line in kept] == left
    assert kept[-1].stop == lines[-1].stop


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vatex", {"splits": []}, "splits: tuple should have at least 1 item"),
        ("vatex", {"splits": ["training"]}, "splits.0: input should be 'train', 'val' or 'test', got 'training'"),
        ("vatex", {"langauge": "en"}, r"langauge: unknown key .did you mean 'language'"),
        ("msrvtt", {"partition": "1ka"}, "partition: input should be 'full', '1k-A-9k' or '1k-A-7k', got '1ka'"),
        ("bddx", {"include": "some"}, "include: input should be 'on_disk', 'readable' or 'all'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(REGISTRY.load(name).Config, options, "prepare")


def test_splits_stand_in_their_order_once() -> None:
    assert parse(REGISTRY.load("vatex").Config, {"splits": ["test", "train", "test"]}, "x").splits == ("train", "test")  # type: ignore[attr-defined]
