"""From official clips to a manifest: what is kept, what is left out, what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from avpipe.data_manifests.dataset import Prepared
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, span_faults
from avpipe.data_manifests.probe import AudioFacts, Probe, VideoFacts
from avpipe.data_manifests.published import draw, facts
from avpipe.data_manifests.subset import Subset
from avpipe.pipeline.errors import DataError

DOG, RAIN = "-dog_barks1", "rain_falls-"
VIDEO = VideoFacts(codec="h264", width=320, height=240, frames_per_second=25.0)
AUDIO = AudioFacts(codec="aac", sample_rate=44100, channels=2)


def seen(seconds: float | None = 10.0, **facts: Any) -> Probe:
    return Probe(**{"duration_seconds": seconds, "video": VIDEO, "audio": AUDIO, "is_silent": False, **facts})


BROKEN = Probe(error_type="open", error_message="x.mp4 (5 bytes): Invalid data found when processing input")


def entry(video: str = DOG, start: float = 30.0, split: str = "train", *captions: str, **more: Any) -> Entry:
    source_id = more.pop("source_id", f"{video}_{start:g}")
    return Entry(
        source_id=source_id,
        split=split,
        captions=captions or ("a dog barks",),
        video=video,
        span=(start, start + 10),
        **more,
    )


def clips_of(
    entries: Sequence[Entry],
    files: Mapping[str, Probe] | Sequence[str],
    tmp_path: Path,
    *,
    segments: bool = False,
    ids: str = "",
    **options: Any,
) -> Prepared:
    """Draw clips; ``files`` with a probe each are looked into, a list of names is not."""
    for name in files:
        (tmp_path / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / name).touch()
    subset = None
    if ids:
        (tmp_path / "ids.txt").write_text(ids)
        subset = Subset.read(tmp_path / "ids.txt")
    media = tmp_path / "media" if files else None

    def look(root: Path, paths: Sequence[str]) -> Mapping[str, Probe] | None:
        return {path: files[path] for path in paths} if isinstance(files, Mapping) else None

    return draw(
        "toy",
        Official(entries=entries, segments=segments, counts={"train": 9}),
        PublishedConfig(**options),
        media=media,
        media_root=media or tmp_path / "nowhere",
        look=look,
        subset=subset,
    )


# -- what a bare id stands for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "span"),
    [
        (10.0, (0.0, None)),  # the clip
        (7.5, (0.0, None)),  # the clip, cut short
        (300.0, (30.0, 40.0)),  # the source video
        (40.0, (30.0, 40.0)),
        (39.0, (30.0, 40.0)),  # the source video, a second short
    ],
)
def test_a_bare_id_is_what_its_duration_says(seconds: float, span: tuple[float, float | None], tmp_path: Path) -> None:
    (clip,) = clips_of([entry()], {f"{DOG}.mp4": seen(seconds)}, tmp_path).clips
    assert (clip.start_seconds, clip.stop_seconds) == span


def test_two_clips_of_one_bare_file_are_cut_out_of_it(tmp_path: Path) -> None:
    """However short it is: it cannot be both of them."""
    both = [entry(start=0.0), entry(start=20.0)]
    clips = clips_of(both, [f"{DOG}.mp4"], tmp_path).clips
    assert [(clip.start_seconds, clip.stop_seconds) for clip in clips] == [(0.0, 10.0), (20.0, 30.0)]


def test_without_looking_a_bare_id_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"named by a YouTube id alone, 1 of them \({DOG}.mp4, .*bare_names=source"):
        clips_of([entry()], [f"{DOG}.mp4"], tmp_path)


@pytest.mark.parametrize(("bare_names", "start"), [("source", 30.0), ("clip", 0.0)])
def test_a_user_may_say_what_bare_ids_stand_for(bare_names: str, start: float, tmp_path: Path) -> None:
    (clip,) = clips_of([entry()], [f"{DOG}.mp4"], tmp_path, bare_names=bare_names).clips
    assert clip.start_seconds == start


def test_a_shared_file_too_short_for_all_is_nobody_s(tmp_path: Path) -> None:
    """Ten seconds cannot be the video that [2, 12) and [30, 40) are cut from."""
    both = [entry(start=2.0), entry(start=30.0)]
    clips = clips_of(both, {f"{DOG}.mp4": seen(10.0)}, tmp_path).clips
    assert [clip.path for clip in clips] == [f"{DOG}_2.mp4", f"{DOG}_30.mp4"]
    why = f"unknown: several clips would be in {DOG}.mp4, and it ends before the last of them does"
    assert [clip.extra["media"] for clip in clips] == [{"unreadable": why}] * 2


def test_a_clip_named_file_of_two_clips_is_nobody_s(tmp_path: Path) -> None:
    both = [entry(start=0.0), entry(start=0.0, source_id=f"{DOG}_again")]
    both[1] = Entry(source_id=f"{DOG}_again", split="train", captions=("x",), video=DOG, span=(0.0, 60.0))
    found = clips_of([*both, entry(RAIN)], [f"{DOG}-0.mp4", f"{RAIN}_30.mp4"], tmp_path)
    assert [clip.clip_id for clip in found.clips] == [f"{RAIN}_30"]
    assert "clips whose file another clip has as much claim to, given to none: 2" in found.notes


def test_of_several_files_one_that_can_be_read_is_taken(tmp_path: Path) -> None:
    files = {f"a/{DOG}_30.gif": BROKEN, f"b/{DOG}_30.mp4": seen()}
    (clip,) = clips_of([entry()], files, tmp_path).clips
    assert clip.path == f"b/{DOG}_30.mp4"
    (broken,) = clips_of([entry()], {f"a/{DOG}_30.gif": BROKEN, f"b/{DOG}_30.mp4": BROKEN}, tmp_path).clips
    assert broken.path == f"a/{DOG}_30.gif"


def test_a_link_to_a_clip_that_is_not_here_is_dropped(tmp_path: Path) -> None:
    rows = [entry(extra={"next_clip": f"{DOG}_50"}), entry(start=50.0, extra={"next_clip": f"{DOG}_70"})]
    clips = clips_of(rows, [f"{DOG}_30.mp4", f"{DOG}_50.mp4"], tmp_path).clips
    assert [clip.extra.get("next_clip") for clip in clips] == [f"{DOG}_50", None]


def test_accents_are_the_same_taken_apart_or_not(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    (clip,) = clips_of([entry(source_id=composed)], [f"{apart}.mp4"], tmp_path).clips
    assert clip.path == f"{apart}.mp4"


def test_segments_are_always_cut_out_of_their_video(tmp_path: Path) -> None:
    (clip,) = clips_of([entry()], [f"v_{DOG}.mkv"], tmp_path, segments=True).clips
    assert (clip.path, clip.start_seconds, clip.stop_seconds) == (f"v_{DOG}.mkv", 30.0, 40.0)


def test_where_a_clip_comes_from_is_kept(tmp_path: Path) -> None:
    (clip,) = clips_of([entry()], [f"{DOG}_30.mp4"], tmp_path).clips
    assert clip.extra == {"video": DOG, "source_seconds": [30.0, 40.0]}


def test_what_cannot_be_opened_is_not_cut_by_a_guess(tmp_path: Path) -> None:
    """A good file that takes its place later is the whole video, perhaps."""
    found = clips_of([entry(), entry(RAIN)], {f"{DOG}.mp4": BROKEN, f"{RAIN}.mp4": seen(None)}, tmp_path)
    assert [clip.path for clip in found.clips] == [f"{DOG}_30.mp4", f"{RAIN}_30.mp4"]
    assert ["unreadable" in clip.extra["media"] for clip in found.clips] == [True, True]


@pytest.mark.parametrize(("seconds", "is_odd"), [(10.0, False), (7.0, False), (13.0, False), (5.0, True), (60.0, True)])
def test_files_of_another_length_are_told(seconds: float, is_odd: bool, tmp_path: Path) -> None:
    notes = clips_of([entry()], {f"{DOG}_30.mp4": seen(seconds)}, tmp_path).notes
    assert any("much shorter or longer" in note and f"1 ({DOG}_30)" in note for note in notes) is is_odd


def test_only_captions_of_the_manifest_are_counted(tmp_path: Path) -> None:
    rows = [entry(DOG, 30.0, "train", "a  b"), entry(DOG, 50.0, "train", "a  b", "a b")]
    assert clips_of(rows, [f"{DOG}_30.mp4"], tmp_path).notes == (
        "captions with line breaks, surplus or surrounding blanks, made single blanks: 1",
    )


# -- what is in the manifest -------------------------------------------------------------------------------------------


FILES = {f"{DOG}_30.mp4": seen(), f"{DOG}_50.mp4": BROKEN}
ENTRIES = [entry(), entry(start=50.0), entry(start=70.0), entry(start=90.0, fault="no length")]


@pytest.mark.parametrize(
    ("include", "held", "left"),
    [
        ("on_disk", ["30", "50"], {"70": "missing", "90": "faulty"}),
        ("readable", ["30"], {"50": "unreadable", "70": "missing", "90": "faulty"}),
        ("all", ["30", "50", "70"], {"90": "faulty"}),
    ],
)
def test_a_user_says_which_clips_a_manifest_holds(
    include: str, held: list[str], left: dict[str, str], tmp_path: Path
) -> None:
    found = clips_of(ENTRIES, FILES, tmp_path, include=include)
    assert [clip.clip_id for clip in found.clips] == [f"{DOG}_{start}" for start in held]
    assert {each.clip_id: each.reason for each in found.left_out} == {f"{DOG}_{k}": why for k, why in left.items()}


def test_what_was_seen_of_a_file_is_in_the_row(tmp_path: Path) -> None:
    found = clips_of(ENTRIES, FILES, tmp_path, include="all")
    assert [clip.extra["media"] for clip in found.clips] == [
        {
            "duration_seconds": 10.0,
            "has_video": True,
            "has_audio": True,
            "sample_rate": 44100,
            "channels": 2,
            "is_silent": False,
        },
        {"unreadable": "open: x.mp4 (5 bytes): Invalid data found when processing input"},
        {"missing": True},
    ]


def test_a_clip_that_is_not_there_yet_has_the_name_to_come(tmp_path: Path) -> None:
    waiting = clips_of([entry()], [], tmp_path, include="all").clips[0]
    assert (waiting.path, waiting.start_seconds, waiting.stop_seconds) == (f"{DOG}_30.mp4", 0.0, None)
    part = clips_of([entry()], [], tmp_path, include="all", segments=True).clips[0]
    assert (part.path, part.start_seconds, part.stop_seconds) == (f"{DOG}.mp4", 30.0, 40.0)


def test_ids_stay_the_same_whatever_is_on_disk(tmp_path: Path) -> None:
    before = clips_of(ENTRIES, FILES, tmp_path / "a", include="all")
    after = clips_of(ENTRIES, {**FILES, f"{DOG}_70.mp4": seen()}, tmp_path / "b", include="all")
    assert [clip.clip_id for clip in before.clips] == [clip.clip_id for clip in after.clips]


@pytest.mark.parametrize(
    ("probe", "span", "expected"),
    [
        (seen(10.04), (0.0, None), {"duration_seconds": 10.04}),
        (seen(60.0), (50.0, 70.0), {"duration_seconds": 10.0, "file_seconds": 60.0}),
        (seen(None), (0.0, None), {}),
        (seen(5.0), (5.0, 9.0), {"unreadable": "empty: the clip starts at 5 s, the file ends at 5.000 s"}),
        (seen(audio=None, is_silent=None), (0.0, None), {"has_audio": False}),
        (seen(is_silent=True), (0.0, None), {"has_audio": True, "is_silent": True}),
        (seen(is_silent=None), (0.0, None), {"has_audio": False}),  # there is a stream, of which nothing decodes
        (seen(video=None), (0.0, None), {"has_video": False}),
    ],
)
def test_facts_of_a_clip(probe: Probe, span: tuple[float, float | None], expected: dict[str, Any]) -> None:
    told = facts(probe, *span)
    assert told.items() >= expected.items()
    assert ("duration_seconds" in told) == ("duration_seconds" in expected or probe.duration_seconds == 10.0)
    assert ("is_silent" in told) == (told.get("has_audio") is True)


# -- captions ----------------------------------------------------------------------------------------------------------


def test_captions_are_tidied_and_counted(tmp_path: Path) -> None:
    rows = [
        entry(DOG, 30.0, "train", " a dog\nbarks", "a  cat", "a cat", "", "naïve", "a cat"),
        entry(DOG, 50.0, "train", " ", "\n"),
    ]
    found = clips_of(rows, [f"{DOG}_30.mp4", f"{DOG}_50.mp4"], tmp_path)
    assert [clip.captions for clip in found.clips] == [("a dog barks", "a cat", "a cat", "naïve", "a cat")]
    assert [(each.reason, each.detail) for each in found.left_out] == [("faulty", "no caption")]
    assert found.notes[:4] == (
        "captions with line breaks, surplus or surrounding blanks, made single blanks: 2",
        "empty captions, left out: 1",
        "captions that say word for word what another one of their clip says, kept: 2",
        "captions with letters beyond ASCII, kept: 1",
    )


def test_nothing_is_said_of_tidy_captions(tmp_path: Path) -> None:
    assert clips_of([entry()], [f"{DOG}_30.mp4"], tmp_path).notes == ()


# -- splits and ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "kept"), [(("train", "test"), "test"), (("val", "train"), "val"), (("test", "val"), "test")]
)
def test_a_clip_of_two_splits_is_not_learnt_from(splits: tuple[str, str], kept: str, tmp_path: Path) -> None:
    found = clips_of([entry(split=split) for split in splits], [f"{DOG}_30.mp4"], tmp_path)
    assert [clip.split for clip in found.clips] == [kept]
    (other,) = found.left_out
    assert (other.reason, other.detail) == ("faulty", f"it is in the {kept} split")


def test_a_clip_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    found = clips_of([entry(), entry()], [f"{DOG}_30.mp4"], tmp_path)
    assert len(found.clips) == 1
    assert found.left_out[0].detail == "it is there already"


def test_videos_with_clips_in_two_splits_are_named(tmp_path: Path) -> None:
    rows = [entry(start=30.0), entry(start=50.0, split="test"), entry(RAIN, 0.0, "val")]
    files = [f"{DOG}_30.mp4", f"{DOG}_50.mp4", f"{RAIN}_0.mp4"]
    assert f"source videos with clips in more than one split: 1 ({DOG})" in clips_of(rows, files, tmp_path).notes


def test_official_ids_that_become_one_stay_apart(tmp_path: Path) -> None:
    rows = [entry(source_id="u v"), entry(start=50.0, source_id="u_v")]
    clips = clips_of(rows, ["u v.mp4", "u_v.mp4"], tmp_path).clips
    assert len({clip.clip_id for clip in clips}) == 2
    assert clips[0].extra["id"] == "u v"


# -- a published subset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [f"{DOG}_30", f"{DOG}_30.mp4", f"{DOG}\n{RAIN}", "other\n-dog_barks1_30\n"])
def test_only_listed_clips_are_kept(ids: str, tmp_path: Path) -> None:
    rows = [entry(), entry("cafe_chair_", 0.0)]
    found = clips_of(rows, [f"{DOG}_30.mp4", "cafe_chair__0.mp4"], tmp_path, ids=ids)
    assert [clip.clip_id for clip in found.clips] == [f"{DOG}_30"]
    assert [(each.clip_id, each.reason) for each in found.left_out] == [("cafe_chair__0", "not_listed")]


def test_a_list_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ids.txt: none of its 2 ids is one of a clip, for example 'video1'"):
        clips_of([entry()], [f"{DOG}_30.mp4"], tmp_path, ids="video1\nvideo2")


# -- media -------------------------------------------------------------------------------------------------------------


def test_no_file_that_fits_is_refused_with_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        clips_of([entry(names=("77",))], ["holiday.mp4"], tmp_path)
    assert f"like {DOG}_30.mp4, 77.mp4, {DOG}.mp4, in any sub-folder" in str(raised.value)
    assert "there is holiday.mp4" in str(raised.value)


def test_several_files_of_a_clip_are_told(tmp_path: Path) -> None:
    found = clips_of([entry()], [f"wav/{DOG}_30.wav", f"video/{DOG}_30.webm"], tmp_path)
    assert found.clips[0].path == f"video/{DOG}_30.webm"
    assert "clips with several files, of which the likeliest that can be read was taken: 1" in found.notes


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "span", "repaired", "fault"),
    [
        ((1.0, 5.0, None), (1.0, 5.0), "", ""),
        ((0.28, 95.04, 95.03999999999999), (0.28, 95.04), "", ""),
        ((80.0, 120.5, 95.0), (80.0, 95.0), "beyond", ""),
        ((60.0, 50.0, 95.0), (50.0, 60.0), "before", ""),
        ((7.0, 7.0, 95.0), None, "", "no length: 7 to 7 s"),
        ((96.0, 99.0, 95.0), None, "", "no length: 96 to 95 s"),
        ((-1.0, 5.0, 95.0), None, "", "no times: -1 to 5 s"),
        ((0.0, float("nan"), 95.0), None, "", "no times: 0 to nan s"),
    ],
)
def test_times_are_repaired_or_refused(
    times: tuple[float, float, float | None], span: tuple[float, float] | None, repaired: str, fault: str
) -> None:
    got, what, why = span_faults(*times)
    assert why == fault
    assert repaired in what
    assert bool(what) == bool(repaired)
    if span:
        assert got == span


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_id": ""}, "source_id: expected some text, got ''"),
        ({"split": "training"}, "split of 'x': expected one of train, val, test, got 'training'"),
        ({"span": (5.0, 5.0)}, r"span of 'x': expected 0 <= start < stop, got \(5.0, 5.0\)"),
        ({"span": (-1.0, None)}, "span of 'x': expected 0 <= start"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Entry(**{"source_id": "x", "split": "train", "captions": (), **change})
