"""Made-up releases of every published dataset, in the official forms: a handful of clips each, all written here.

A toy is a folder of official files, the names of the media that are "on disk", and what must come of it, clip by clip.
Names of media follow different habits on purpose; one clip of each split has no file where there are several.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Official files and media of a toy dataset, and what must come of them.

    Attributes:
        files: content by name.
        media: files below the media folder.
        clips: by split, the ids that the manifest must hold, in order.
        missing: by split, the ids that have no file.
        faulty: by split, the ids that make no clip.
        options: of the dataset.
    """

    files: Mapping[str, str]
    media: Sequence[str]
    clips: Mapping[str, Sequence[str]]
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    faulty: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """Put it on disk; returns what ``prepare`` wants."""
        annotations, media = folder / "annotations", folder / "media"
        for root, names in ((annotations, self.files), (media, self.media)):
            root.mkdir(parents=True)
            for name in names:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(self.files.get(name, ""), encoding="utf-8", newline="")
        return {"annotations": annotations, "media": media, "options": dict(self.options)}


def table(columns: Sequence[str], *rows: Sequence[object], end: str = "\n") -> str:
    """CSV as programs write it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end)
    writer.writerows([columns, *rows])
    return text.getvalue()


def vatex() -> Release:
    def row(video: str, *english: str, chinese: bool = True) -> dict[str, Any]:
        return {"videoID": video, "enCap": list(english), **({"chCap": ["一只狗在叫"]} if chinese else {})}

    train = [
        row("-dog_barks1_000010_000020", "a dog  barks", "a dog barks\nloudly"),
        row("rain_falls-_000000_000010", "it rains", "it rains", "it pours"),
        row("rain_falls-_000030_000040", "it still rains"),
        row("vanished_11_000001_000011", "nobody has this video"),
    ]
    return Release(
        files={
            "vatex_training_v1.0.json": json.dumps(train),
            "vatex_validation_v1.0.json": json.dumps([row("cafe_chair__000005_000015", "a naïve cat")]),
            "vatex_public_test_english_v1.1.json": json.dumps([row("test_clip01_000179_000189", "x", chinese=False)]),
        },
        media=[
            "train/-dog_barks1_000010_000020.mp4",
            "train/rain_falls-_0_10.webm",
            "train/rain_falls-_30000_40000.mkv",
            "cafe_chair__000005_000015.MP4",
            "test_clip01_000179_000189.mp4",
            "stranger__1_000000_000010.mp4",
        ],
        clips={
            "train": ["-dog_barks1_000010_000020", "rain_falls-_000000_000010", "rain_falls-_000030_000040"],
            "val": ["cafe_chair__000005_000015"],
            "test": ["test_clip01_000179_000189"],
        },
        missing={"train": ["vanished_11_000001_000011"]},
    )


def latest_vatex() -> Release:
    whole = vatex()
    return Release(
        files={
            **whole.files,
            "train_ids.txt": "rain_falls-\nvanished_11\nnot_in_vate\n",
            "val_ids.json": json.dumps(["cafe_chair__000005_000015"]),
            "latest/test_clean.json": json.dumps([{"image_id": "test_clip01", "video": "test_clip01.mp4", "id": 1}]),
        },
        media=whole.media,
        clips={
            "train": ["rain_falls-_000000_000010", "rain_falls-_000030_000040"],
            "val": ["cafe_chair__000005_000015"],
            "test": ["test_clip01_000179_000189"],
        },
        missing={"train": ["vanished_11_000001_000011"]},
    )


def msrvtt_files(numbers: Mapping[int, str]) -> dict[str, Any]:
    """The content of a file with these videos; each has two sentences."""
    videos = [
        {
            "category": 9 if number % 2 else 13,
            "url": "https://www.youtube.com/watch?v=AbCdEfGhIj_",
            "video_id": f"video{number}",
            "start time": float(number % 100),
            "end time": number % 100 + 12.5,
            "split": split,
            "id": number,
        }
        for number, split in numbers.items()
    ]
    sentences = [
        {"caption": f"caption {take} of {number}", "video_id": f"video{number}", "sen_id": 20 * number + take}
        for take in range(2)
        for number in reversed(numbers)
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}


def msrvtt() -> Release:
    return Release(
        files={
            "train_val_videodatainfo.json": json.dumps(msrvtt_files({0: "train", 1: "train", 6513: "validate"})),
            "test_videodatainfo.json": json.dumps(msrvtt_files({7010: "test", 9999: "test"})),
        },
        media=[
            "TrainValVideo/video0.mp4",
            "TrainValVideo/6513.mp4",
            "TestVideo/video7010.webm",
            "TestVideo/video9999.mp4",
        ],
        clips={"train": ["video0"], "val": ["video6513"], "test": ["video7010", "video9999"]},
        missing={"train": ["video1"]},
    )


def msvd() -> Release:
    return Release(
        files={
            "youtube_mapping.txt": "-dog_barks1_5_15 vid1\nrain_falls-_0_9 vid2\ncafe_chair__3_7 vid1201\n"
            "test_clip01_1_4 vid1301\n",
            "sents_train_lc_nopunc.txt": "vid1\ta dog barks\nvid1\tthe dog is barking\nvid2\tit rains\n",
            "sents_val_lc_nopunc.txt": "vid1201\ta cat sleeps\n",
            "sents_test_lc_nopunc.txt": "vid1301\ta man cooks\nvid1301\ta man is cooking\n",
        },
        media=["YouTubeClips/-dog_barks1_5_15.avi", "vid1201.avi", "YouTubeClips/test_clip01_1_4.avi"],
        clips={"train": ["-dog_barks1_5_15"], "val": ["cafe_chair__3_7"], "test": ["test_clip01_1_4"]},
        missing={"train": ["rain_falls-_0_9"]},
    )


AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def audiocaps() -> Release:
    return Release(
        files={
            "dataset/train.csv": table(
                AUDIOCAPS_COLUMNS,
                (1, "-dog_barks1", 30, "A dog barks, then howls"),
                (2, "rain_falls-", 0, "Rain falls"),
                (3, "Yes_it_is_1", 20, "A train passes"),
                end="\r\n",
            ),
            "dataset/val.csv": table(
                AUDIOCAPS_COLUMNS,
                (4, "cafe_chair_", 7, "A chair scrapes"),
                (5, "cafe_chair_", 7, "Scraping"),
                end="\r\n",
            ),
            "dataset/test.csv": table(
                AUDIOCAPS_COLUMNS, (6, "test_clip01", 40, "Speech"), (7, "test_clip01", 40, "A man speaks"), end="\r\n"
            ),
        },
        media=["-dog_barks1_30.flac", "YYes_it_is_1_20.wav", "cafe_chair__7000_13000.wav", "7.wav"],
        clips={
            "train": ["-dog_barks1_30", "Yes_it_is_1_20"],
            "val": ["cafe_chair__7"],
            "test": ["test_clip01_40"],
        },
        missing={"train": ["rain_falls-_0"]},
    )


def youcook2() -> Release:
    def video(subset: str, *steps: tuple[list[float], str]) -> dict[str, Any]:
        return {
            "duration": 100.5,
            "subset": subset,
            "recipe_type": "113",
            "annotations": [{"segment": s, "id": n, "sentence": text} for n, (s, text) in enumerate(steps)],
            "video_url": "https://www.youtube.com/watch?v=x",
        }

    database = {
        "cafe_chair_": video("validation", ([1, 9], "chop the onion")),
        "-dog_barks1": video("training", ([90, 102], " boil water"), ([10, 20], "salt it"), ([30, 30], "stir")),
        "vanished_11": video("training", ([0, 5], "serve")),
    }
    return Release(
        files={"youcookii_annotations_trainval.json": json.dumps({"database": database})},
        media=["raw_videos/training/113/-dog_barks1.mkv", "raw_videos/validation/113/cafe_chair_.webm"],
        clips={"train": ["-dog_barks1_0", "-dog_barks1_1"], "val": ["cafe_chair__0"]},
        missing={"train": ["vanished_11_0"]},
        faulty={"train": ["-dog_barks1_2"]},
    )


def activitynet_captions() -> Release:
    def video(duration: float, *segments: tuple[list[float], str]) -> dict[str, Any]:
        return {
            "duration": duration,
            "timestamps": [times for times, _ in segments],
            "sentences": [text for _, text in segments],
        }

    train = {
        "v_-dog_barks1": video(
            95.03999999999999,
            ([0.28, 95.04], "A dog barks."),
            ([60.0, 50.0], " It turns\naround."),
            ([7.0, 7.0], " It blinks."),
            ([80.0, 120.5], " It goes home."),
        ),
        "v_vanished_11": video(10.0, ([0, 5], "Nobody saw it.")),
    }
    val_1 = {"v_v_cafe_chai": video(50.0, ([10, 20], "A chair is moved."), ([0, 5], " Naïve."))}
    val_2 = {"v_v_cafe_chai": video(50.0, ([1.5, 45], "Somebody moves a chair."))}
    return Release(
        files={
            "captions/train.json": json.dumps(train),
            "captions/val_1.json": json.dumps(val_1),
            "captions/val_2.json": json.dumps(val_2),
            "captions/train_ids.json": json.dumps(["v_-dog_barks1"]),
        },
        media=["v_-dog_barks1.mp4", "v_v_cafe_chai.mkv"],
        clips={
            "train": ["v_-dog_barks1_train_0", "v_-dog_barks1_train_1", "v_-dog_barks1_train_3"],
            "val": ["v_v_cafe_chai_val_1_0", "v_v_cafe_chai_val_1_1", "v_v_cafe_chai_val_2_0"],
        },
        missing={"train": ["v_vanished_11_train_0"]},
        faulty={"train": ["v_-dog_barks1_train_2"]},
    )


BDDX_COLUMNS = (
    "Input.Video",
    *(f"Answer.{slot}{part}" for slot in range(1, 16) for part in ("start", "end", "action", "justification")),
)


def bddx_row(video: str, *actions: tuple[object, ...]) -> list[object]:
    row: list[object] = [f"https://s3.example.org/samples/{video}.mov" if video else ""]
    for action in actions:
        row += action
    return row + [""] * (len(BDDX_COLUMNS) - len(row))


def bddx() -> Release:
    return Release(
        files={
            "BDD-X-Annotations_v1.csv": table(
                BDDX_COLUMNS,
                bddx_row(
                    "06d501fd-a9ffc960",
                    (0, 11, "The car accelerates", "because the light has turned green."),
                    (12, 19, "The car slows down", ""),
                    (20, 20, "The car stops", "since there is a sign"),
                    (30, 22, "The car turns left", "to park"),
                ),
                bddx_row(""),
                bddx_row("01b0505f-5f564e84", (0, 16, "The car is stopped.", "The light is red.")),
                bddx_row(""),
                bddx_row("0a0a0a0a-1b1b1b1b", (1, 5, "The car drives", "as the road is clear")),
                bddx_row("0c0c0c0c-1d1d1d1d", (1, 5, "The car waits", "nobody knows why")),
            ),
            "train.txt": "1_06d501fd-a9ffc960\n4_0c0c0c0c-1d1d1d1d\n",
            "val.txt": "2_01b0505f-5f564e84\n",
            "test.txt": "3_0a0a0a0a-1b1b1b1b",
        },
        media=["videos/06d501fd-a9ffc960.mov", "videos/01b0505f-5f564e84.mov", "videos/0a0a0a0a-1b1b1b1b.mp4"],
        clips={
            "train": ["06d501fd-a9ffc960_1", "06d501fd-a9ffc960_4"],
            "val": ["01b0505f-5f564e84_1"],
            "test": ["0a0a0a0a-1b1b1b1b_1"],
        },
        missing={"train": ["0c0c0c0c-1d1d1d1d_1"]},
        faulty={"train": ["06d501fd-a9ffc960_2", "06d501fd-a9ffc960_3"]},
    )


def howto100m() -> Release:
    def speech(*lines: tuple[float, float, object]) -> dict[str, list[Any]]:
        return {key: [line[n] for line in lines] for n, key in enumerate(("start", "end", "text"))}

    captions = {
        "-dog_barks1": speech(
            (4.0, 9.0, "take the dog"),
            (0.5, 4.5, "so today we"),
            (8.5, 12.0, "the dog and go"),
            (40.0, 52.0, "that was all"),
            (60.0, 60.0, "nothing"),
            (61.0, 62.0, None),
        ),
        "vanished_11": speech((0.0, 9.0, "gone")),
        "rain_falls-": speech((1.0, 10.0, "it"), (10.0, 19.0, "rains")),
    }
    return Release(
        files={"raw_caption.json": json.dumps(captions)},
        media=["-dog_barks1.mp4", "videos/rain_falls-.webm"],
        clips={
            "train": [
                "-dog_barks1_500_8500",
                "-dog_barks1_8500_12000",
                "-dog_barks1_40000_52000",
                "rain_falls-_1000_10000",
                "rain_falls-_10000_19000",
            ]
        },
        options={"split_ratios": {"train": 1, "val": 0, "test": 0}},
    )


def valor32k() -> Release:
    def rows(*ids: str) -> str:
        return json.dumps([{"video_id": name, "desc": f"With a sound, {name} is seen."} for name in ids])

    return Release(
        files={
            "valor-32k-annotations/desc_train.json": rows("-dog_barks1_30.000_40.000", "rain_falls-_0.000_10.000"),
            "valor-32k-annotations/desc_val.json": rows("cafe_chair__7.000_13.000"),
            "valor-32k-annotations/desc_test.json": rows("test_clip01_240.000_250.000"),
        },
        media=["-dog_barks1_30.000_40.000.mp4", "cafe_chair__7.mp4", "test_clip01_240000_250000.mp4"],
        clips={
            "train": ["-dog_barks1_30.000_40.000"],
            "val": ["cafe_chair__7.000_13.000"],
            "test": ["test_clip01_240.000_250.000"],
        },
        missing={"train": ["rain_falls-_0.000_10.000"]},
    )


CLOTHO_COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))


def clotho() -> Release:
    five = [f"Someone, somewhere, walks ({n})" for n in range(5)]
    return Release(
        files={
            "clotho_captions_development.csv": table(
                CLOTHO_COLUMNS, ("steps, slow (take 2).wav", *five), ("swords .wav", *five), ("gone.wav", *five)
            ),
            "clotho_captions_validation.csv": table(CLOTHO_COLUMNS, (" e ieio.wav", *five)),
            "clotho_captions_evaluation.csv": table(CLOTHO_COLUMNS, ("a;b#c.wav", *five)),
        },
        media=[
            "development/steps, slow (take 2).wav",
            "development/swords .wav",
            "validation/ e ieio.flac",
            "a;b#c.wav",
        ],
        clips={
            "train": ["steps,_slow__take_2_-9f3b7dd47dda", "swords_"],
            "val": ["_e_ieio"],
            "test": ["a_b_c-29c71952b5d5"],
        },
        missing={"train": ["gone"]},
    )


RELEASES: Mapping[str, Callable[[], Release]] = {
    "activitynet_captions": activitynet_captions,
    "audiocaps": audiocaps,
    "bddx": bddx,
    "clotho": clotho,
    "howto100m": howto100m,
    "latest_vatex": latest_vatex,
    "msrvtt": msrvtt,
    "msvd": msvd,
    "valor32k": valor32k,
    "vatex": vatex,
    "youcook2": youcook2,
}
