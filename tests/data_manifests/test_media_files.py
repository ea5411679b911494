"""Files find their official clips by any naming habit, and a file of another video is never taken for one."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from avpipe.data_manifests.media_files import Holds, Match, is_media, match, paths_below, resolve
from avpipe.data_manifests.official import Entry
from avpipe.pipeline.errors import DataError

VIDEO = "G9zN5TTuGO4"


def entry(
    video: str = VIDEO, start: float = 179, stop: float | None = 189, source_id: str = "", names: Sequence[str] = ()
) -> Entry:
    """A clip of a video, called by id and times with zeros in front, as Kinetics and VATEX do."""
    return Entry(
        source_id=source_id or f"{video}_{int(start):06}_{int(stop or 0):06}",
        split="train",
        captions=("a dog barks",),
        video=video,
        span=(start, stop),
        names=tuple(names),
    )


def paths_of(entries: Sequence[Entry], paths: Sequence[str], bare: Holds = "either") -> list[str | None]:
    return [each.path if each else None for each in match(entries, paths, bare)]


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        ("G9zN5TTuGO4_000179_000189.mp4", "clip"),
        ("G9zN5TTuGO4_179_189.webm", "clip"),
        ("G9zN5TTuGO4_179.000_189.000.mp4", "clip"),
        ("G9zN5TTuGO4_179000_189000.flac", "clip"),
        ("G9zN5TTuGO4-179-189.mp4", "clip"),
        ("G9zN5TTuGO4.179.mp4", "clip"),
        ("G9zN5TTuGO4_179.mkv", "clip"),
        ("G9zN5TTuGO4_179000.mkv", "clip"),
        ("G9zN5TTuGO4.mp4", "either"),
        ("YG9zN5TTuGO4.wav", "either"),
        ("v_G9zN5TTuGO4.mp4", "either"),
        ("YG9zN5TTuGO4_179_189.wav", "clip"),
        ("v_G9zN5TTuGO4_179.000.mp4", "clip"),
        ("train/a.b/G9zN5TTuGO4_179_189.MP4", "clip"),
        ("train/G9zN5TTuGO4/G9zN5TTuGO4.m4a", "either"),
    ],
)
def test_every_habit_of_naming_is_understood(path: str, holds: Holds) -> None:
    assert match([entry()], [path], "either") == [Match(path, holds)]


@pytest.mark.parametrize(
    "path",
    [
        "g9zn5ttugo4_179_189.mp4",  # ids know capitals
        "G9zN5TTuGO_179_189.mp4",
        "G9zN5TTuGO44_179_189.mp4",
        "G9zN5TTuGO4179.mp4",
        "xG9zN5TTuGO4_179_189.mp4",
        "YYG9zN5TTuGO4.mp4",
        "V_G9zN5TTuGO4.mp4",
        "G9zN5TTuGO4_177_187.mp4",
        "G9zN5TTuGO4_179_191.mp4",  # longer than official
        "G9zN5TTuGO4_189_179.mp4",
        "G9zN5TTuGO4_179_179.mp4",
        "G9zN5TTuGO4_17.9_18.9.mp4",
        "G9zN5TTuGO4_1790_1890.mp4",
        "G9zN5TTuGO4__179_189.mp4",
        "G9zN5TTuGO4_179_189_1.mp4",
        "G9zN5TTuGO4_179_189_audio.mp4",
        "G9zN5TTuGO4-trailer.mp4",
        "G9zN5TTuGO4_.mp4",
        "G9zN5TTuGO4 (1).mp4",
        "179_189.mp4",
        "000179.mp4",
        "G9zN5TTuGO4/179_189.mp4",
        "G9zN5TTuGO4_179_189.txt",
        "G9zN5TTuGO4_179_189.mp4.part",
        "G9zN5TTuGO4_179_189",
        "G9zN5TTuGO4",
    ],
)
def test_what_only_looks_alike_is_left_alone(path: str) -> None:
    assert paths_of([entry()], [path]) == [None]


@pytest.mark.parametrize(
    "video", ["-sGd3_x-9A_", "_-_-_-_-_-_", "YabcdefghiJ", "v_abcdefghi", "-_179_189_-", "12345678901", "abc_10_20_3"]
)
@pytest.mark.parametrize("name", ["{}_179_189", "Y{}_179", "v_{}_179000_189000", "{}", "Y{}", "v_{}"])
def test_ids_may_hold_what_names_are_made_of(video: str, name: str) -> None:
    path = f"{name.format(video)}.mp4"
    assert paths_of([entry(video)], [path]) == [path]


def test_an_id_that_begins_with_y_is_not_the_one_without() -> None:
    # Eleven letters each: what is left of "YabcdefghiJ" without its Y is no id.
    entries = [entry("YabcdefghiJ"), entry("abcdefghiJk")]
    assert paths_of(entries, ["YabcdefghiJ.mp4", "YabcdefghiJk.mp4"]) == ["YabcdefghiJ.mp4", "YabcdefghiJk.mp4"]


def test_ids_of_several_lengths_are_told_apart() -> None:
    entries = [entry("video1", 5, 15), entry("video12", 5, 15)]
    assert paths_of(entries, ["video12_5.mp4", "video1_5.mp4"]) == ["video1_5.mp4", "video12_5.mp4"]
    assert paths_of(entries, ["video12.mp4"]) == [None, "video12.mp4"]


@pytest.mark.parametrize(
    ("file", "found"), [("7.mp4", True), ("07.mp4", False), ("17.mp4", False), ("7_179_189.mp4", False)]
)
def test_a_number_may_be_a_name(file: str, found: bool) -> None:
    entries = [entry(names=["7"])]
    assert paths_of(entries, [file]) == [file if found else None]


@pytest.mark.parametrize("file", ["rain 1.wav", "sub/rain 1.mp3", "rain 1.mp4"])
def test_an_official_name_may_have_another_container(file: str) -> None:
    clip = Entry(source_id="rain 1.wav", split="train", captions=("rain",))
    assert match([clip], ["rain 2.wav", file], "either") == [Match(file, "clip")]


def test_an_official_name_may_have_folders() -> None:
    entries = [Entry(source_id=name, split="train", captions=("x",)) for name in ("u/a.mp4", "v/a.mp4")]
    assert paths_of(entries, ["v/a.mkv", "u/a.mkv"]) == ["u/a.mkv", "v/a.mkv"]


def test_a_video_without_times_is_a_clip() -> None:
    clip = Entry(source_id="video7", split="train", captions=("x",), video=VIDEO)
    assert match([clip], [f"{VIDEO}.mp4"], "source") == [Match(f"{VIDEO}.mp4", "clip")]
    assert match([clip], [f"{VIDEO}_179_189.mp4"], "source") == [None]


@pytest.mark.parametrize("bare", ["clip", "source", "either"])
def test_what_a_bare_id_stands_for_is_asked_for(bare: Holds) -> None:
    assert match([entry()], [f"{VIDEO}.mp4"], bare) == [Match(f"{VIDEO}.mp4", bare)]


@pytest.mark.parametrize(("file", "found"), [("178", True), ("180", True), ("177.9", False), ("180.1", False)])
def test_times_may_be_rounded_by_a_second(file: str, found: bool) -> None:
    assert paths_of([entry()], [f"{VIDEO}_{file}.mp4"]) == [f"{VIDEO}_{file}.mp4" if found else None]


def test_a_clip_at_the_end_of_its_video_is_named_by_where_that_ends() -> None:
    assert paths_of([entry()], [f"{VIDEO}_179_184.mp4"]) == [f"{VIDEO}_179_184.mp4"]
    both = [f"{VIDEO}_179_184.mp4", f"{VIDEO}_179_189.mp4"]
    assert match([entry()], both, "either") == [Match(both[1], "clip", others=1)]


def test_a_clip_to_the_end_of_its_video_has_any_end() -> None:
    assert paths_of([entry(stop=None)], [f"{VIDEO}_179_2000.mp4"]) == [f"{VIDEO}_179_2000.mp4"]


def test_two_segments_of_a_video_have_a_file_each() -> None:
    entries = [entry(start=10, stop=20), entry(start=30, stop=40)]
    assert paths_of(entries, [f"{VIDEO}_30_40.mp4", f"{VIDEO}_10.mp4"]) == [f"{VIDEO}_10.mp4", f"{VIDEO}_30_40.mp4"]
    assert paths_of(entries, [f"{VIDEO}_30_40.mp4"]) == [None, f"{VIDEO}_30_40.mp4"]


def test_a_file_of_two_segments_is_the_source_of_both() -> None:
    entries, file = [entry(start=10, stop=20), entry(start=30, stop=40)], f"{VIDEO}.mp4"
    assert match(entries, [file], "either") == [Match(file, "source")] * 2
    assert match(entries[:1], [file], "either") == [Match(file, "either")]
    # The same segment twice, in two splits perhaps, tells nothing.
    assert match(entries[:1] * 2, [file], "either") == [Match(file, "either")] * 2
    assert match(entries, [file], "clip") == [None] * 2  # it is one of them, and nobody knows which


def test_a_file_of_one_segment_is_not_taken_for_another_that_starts_there() -> None:
    # The segment [0, 60) may be there under a name that ends earlier; but this one is the segment [0, 10).
    entries = [entry(start=0, stop=10), entry(start=0, stop=60)]
    assert paths_of(entries, [f"{VIDEO}_0_10.mp4"]) == [f"{VIDEO}_0_10.mp4", None]


def test_a_file_named_by_a_start_is_that_of_the_nearest_segment() -> None:
    entries = [entry(start=10, stop=20), entry(start=10.8, stop=15)]
    assert paths_of(entries, [f"{VIDEO}_10.mp4"]) == [f"{VIDEO}_10.mp4", None]


def test_the_number_of_a_segment_is_no_start() -> None:
    # YouCook2 and BDD-X number their segments: X_5 is the fifth, whatever starts at 5 s.
    entries = [entry(start=5, stop=9, source_id=f"{VIDEO}_0"), entry(start=80, stop=90, source_id=f"{VIDEO}_5")]
    assert paths_of(entries, [f"{VIDEO}_5.mp4"]) == [None, f"{VIDEO}_5.mp4"]


def test_of_segments_a_single_number_says_nothing() -> None:
    # X_0, X_1, ... may be the segments in order, or where they start.
    entries = [entry(start=0.8, stop=20, source_id="a"), entry(start=17, stop=60, source_id="b")]
    assert match(entries, [f"{VIDEO}_0.mp4", f"v_{VIDEO}_1.mp4"], "source") == [None, None]
    assert match(entries, [f"{VIDEO}_17_60.mp4"], "source") == [None, Match(f"{VIDEO}_17_60.mp4", "clip")]


@pytest.mark.parametrize("file", ["700.mp4", "500_620.mp4", "0_600.mp4", "0_2.mp4"])
def test_the_times_of_another_segment_do_not_fit(file: str) -> None:
    assert paths_of([entry(start=0, stop=10)], [f"{VIDEO}_{file}"]) == [None]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (f"{VIDEO}_000179_000189.mp4", f"{VIDEO}_179_189.mp4"),
        (f"z/{VIDEO}_179_189.mp4", f"{VIDEO}_179.mp4"),
        (f"{VIDEO}_179_189.mp4", f"{VIDEO}_000179_000189.wav"),  # a video before a sound
        (f"z/{VIDEO}_179.mp4", f"{VIDEO}_179_189.wav"),
        (f"{VIDEO}_179_189.wav", f"{VIDEO}.mp4"),  # the clip before what may be the whole video
        (f"{VIDEO}_179_189.mp4", f"{VIDEO}_179.5_189.mp4"),
        (f"{VIDEO}_179.mp4", f"{VIDEO}.mp4"),
        (f"z/{VIDEO}.mp4", f"{VIDEO}.wav"),
        (f"z/{VIDEO}.mkv", f"a/b/{VIDEO}.mkv"),
        (f"{VIDEO}.mkv", f"{VIDEO}.mp4"),
        (f"{VIDEO}.mp4", f"Y{VIDEO}.mp4"),
    ],
)
def test_the_file_that_says_most_is_taken(better: str, worse: str) -> None:
    for paths in ([better, worse], [worse, better], [worse, "another.mp4", better]):
        (found,) = match([entry()], paths, "either")
        assert found == Match(better, found.holds, others=1)  # type: ignore[union-attr]


def test_others_counts_files_and_not_the_ways_they_fit() -> None:
    # The clip's own name, and times that fit.
    assert match([entry()], [f"{VIDEO}_000179_000189.mp4"], "either")[0].others == 0  # type: ignore[union-attr]
    paths = [f"{VIDEO}.{container}" for container in ("mp4", "mkv", "wav", "txt")]
    assert match([entry()], paths, "either") == [Match(f"{VIDEO}.mkv", "either", others=2)]


def test_nothing_matches_nothing() -> None:
    assert match([], [f"{VIDEO}.mp4"], "either") == []
    assert match([entry()], [], "either") == [None]


@pytest.mark.parametrize(
    "name",
    [f"17_{VIDEO}", f"0017_{VIDEO}_179_189", f"A title [{VIDEO}]", f"Title - part 2-{VIDEO}", f"日本 [{VIDEO}]"],
)
def test_numbers_and_titles_before_an_id_do_no_harm(name: str) -> None:
    assert paths_of([entry()], [f"sub/{name}.mp4"]) == [f"sub/{name}.mp4"]


@pytest.mark.parametrize(
    "name",
    [f"A title {VIDEO}", f"[{VIDEO}] A title", f"A title [{VIDEO}](1)", f"x{VIDEO}", f"{VIDEO}.f137", f"{VIDEO} (1)"],
)
def test_what_is_left_of_a_download_is_no_video(name: str) -> None:
    assert paths_of([entry()], [f"{name}.mp4"]) == [None]


IDS = st.text(alphabet=string.ascii_letters + string.digits + "-_", min_size=11, max_size=11)
HABITS = [
    "{video}_{start:06}_{stop:06}",
    "{video}_{start}_{stop}",
    "{video}_{start}.000_{stop}.000",
    "{video}_{start}000_{stop}000",
    "{video}-{start}-{stop}",
    "{video}_{start}",
    "{video}",
    "A title [{video}]",
    "A - title (2019)-{video}",
]


@st.composite
def named(draw: Any) -> tuple[Entry, str]:
    """A clip, and a file that holds it."""
    video, start, length = draw(IDS), draw(st.integers(0, 99_000)), draw(st.integers(1, 600))
    name = draw(st.sampled_from(HABITS)).format(video=video, start=start, stop=start + length)
    prefix, folder = draw(st.sampled_from(["", "Y", "v_"])), draw(st.sampled_from(["", "train/", "a/b_c/"]))
    return entry(video, start, start + length), f"{folder}{prefix}{name}{draw(st.sampled_from(['.mp4', '.WAV']))}"


@st.composite
def neighbours(draw: Any, video: str) -> str:
    """Another id, not unlike this one."""
    place = draw(st.integers(0, 10))
    like = [video[:place] + draw(st.sampled_from("aZ0-_Yv")) + video[place + 1 :], video[1:] + video[0],
            video[::-1], video.swapcase(), draw(IDS)]  # fmt: skip
    return str(draw(st.sampled_from(like)))


@given(data=st.data())
def test_a_file_is_found_by_its_clip_and_by_no_clip_of_another_video(data: Any) -> None:
    clip, path = data.draw(named())
    other = data.draw(neighbours(clip.video))
    # Where one id is the other after a prefix, and goes on as times do, a name may mean either.
    assume(other != clip.video and not any(a[2:] == b[:9] for a, b in ((clip.video, other), (other, clip.video))))
    strangers = [entry(other, *clip.span), Entry(source_id=other, split="train", captions=("x",))]
    expected = [path, None, None]
    assert paths_of([clip, *strangers], [path]) == expected
    assert paths_of([clip, *strangers], ["x.mp4", path, f"{path}.txt"]) == expected


@pytest.mark.parametrize(
    ("duration", "span", "expected"),
    [
        (300.0, (179.0, 189.0), "source"),
        (189.0, (179.0, 189.0), "source"),
        (188.6, (179.0, 189.0), "source"),  # its last frame is shorter than its sound
        (10.0, (179.0, 189.0), "clip"),
        (179.0, (179.0, 189.0), "clip"),
        (185.0, (179.0, 189.0), "source"),  # broken off, or shortened since
        (10.0, (2.0, 12.0), "clip"),
        (11.6, (2.0, 12.0), "source"),
        (10.9, (2.0, 12.0), "clip"),
        (11.2, (2.0, 12.0), "source"),
        (10.0, (0.0, 10.0), "clip"),  # which is all of it
        (10.5, (0.0, 10.0), "clip"),
        (10.6, (0.0, 10.0), "source"),
        (0.0, (0.0, 10.0), "clip"),
        (50.0, (40.0, None), "source"),
        (40.0, (40.0, None), "clip"),
        (None, (179.0, 189.0), "either"),
        (300.0, None, "clip"),
        (None, None, "clip"),
    ],
)
def test_the_duration_tells_a_clip_from_its_source(
    duration: float | None, span: tuple[float, float | None] | None, expected: Holds
) -> None:
    assert resolve("either", span, duration) == expected


@pytest.mark.parametrize("holds", ["clip", "source"])
def test_what_a_name_tells_no_duration_changes(holds: Holds) -> None:
    assert {resolve(holds, (179.0, 189.0), duration) for duration in (None, 10.0, 300.0)} == {holds}


@given(start=st.floats(1, 1e5), length=st.floats(1, 600), more=st.floats(0, 1e5))
def test_a_whole_video_is_never_taken_for_its_clip(start: float, length: float, more: float) -> None:
    assert resolve("either", (start, start + length), start + length + more) == "source"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.mp4", True), ("a.MKV", True), ("a.b/c.Opus", True), ("a", False), ("a.txt", False), ("a.mp4/b", False),
     (".mp4", False)],
)  # fmt: skip
def test_media_are_told_by_their_extension(path: str, expected: bool) -> None:
    assert is_media(path) is expected


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_paths_are_those_from_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.txt", "sub/deep er/ü.mp4", ".hidden.mp4", ".git/c.mp4", "sub/.d/e/f.mp4")
    (tmp_path / "empty").mkdir()
    assert sorted(paths_below(tmp_path)) == ["a.mp4", "sub/b.txt", "sub/deep er/ü.mp4"]


def test_a_hidden_folder_may_be_the_one_that_is_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/videos/a.mp4")
    assert paths_below(tmp_path / ".cache" / "videos") == ["a.mp4"]


def test_links_are_followed_and_end(tmp_path: Path) -> None:
    touch(tmp_path, "disk/far/a.mp4", "videos/b.mp4")
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "disk" / "far")
    (tmp_path / "videos" / "c.mp4").symlink_to(tmp_path / "videos" / "b.mp4")
    (tmp_path / "disk" / "far" / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "itself").symlink_to(tmp_path / "videos")
    assert sorted(paths_below(tmp_path / "videos")) == ["b.mp4", "c.mp4", "linked/a.mp4"]


@pytest.mark.parametrize("names", [("a", "m"), ("m", "a"), ("m", "z"), ("z", "m")])
def test_a_folder_with_two_names_is_found_by_the_first(names: tuple[str, str], tmp_path: Path) -> None:
    # The path of a clip must not hang on the order in which a disk lists its folders.
    touch(tmp_path, "elsewhere/x.mp4")
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / "videos" / name).symlink_to(tmp_path / "elsewhere")
    assert paths_below(tmp_path / "videos") == [f"{min(names)}/x.mp4"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root reads every folder, so the refusal is played.
    touch(tmp_path, "a.mp4", "locked/b.mp4")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"--media: .*/locked cannot be read: Permission denied"):
        paths_below(tmp_path)


@pytest.mark.parametrize(("name", "why"), [("nowhere", "No such file or directory"), ("a.mp4", "Not a directory")])
def test_what_is_no_folder_cannot_be_read(name: str, why: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=rf"--media: .*/{name} cannot be read: {why}"):
        paths_below(tmp_path / name)
