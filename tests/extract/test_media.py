"""Pictures: exact, in time, upright, one opening a clip. On rendered files, and on the clips beside the project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from avpipe.extract import bitstream, demux, media, sampling, video
from avpipe.extract.media import AudioRequest, Frames, FrameSampler, Waveform
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.limits import Limits

from ..rendering import Sound, full_decode, moving, plain, render, tone, turn

SOUND = AudioRequest(sample_rate=16000)
FORMATS = {
    "h264.mp4": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "h264.flv": ("libx264", {}),
    "h264.avi": ("libx264", {}),
    "h264.h264": ("libx264", {}),
    "baseline.mp4": ("libx264", {"profile": "baseline"}),
    "open_groups.mp4": ("libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "no_entries.mp4": ("libx264", {"x264-params": "intra-refresh=1"}),
    "hevc.mp4": ("libx265", {}),
    "layers.mkv": ("libx265", {"x265-params": "log-level=none:temporal-layers=3:bframes=7:b-adapt=0"}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1.mp4": ("libsvtav1", {"svtav1-params": "keyint=12"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
}
IDENTITY = (1, 0, 0, 1)


def everything(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.arange(len(seconds))


def uniform(count: int) -> FrameSampler:
    return partial(sampling.uniform, count=count)


def picks(*indices: int) -> FrameSampler:
    return lambda seconds: np.array(indices)


def frames_of(path: Path, sampler: FrameSampler = everything, **options: object) -> Frames:
    return media.read(path, frames={"x": sampler}, audio={}, **options).frames["x"]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames in every format; key frames every 12 at most."""
    folder = tmp_path_factory.mktemp("formats")
    for name, (codec, options) in FORMATS.items():
        render(folder / name, moving(60), codec=codec, options=options)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the video packets that are decoded, as they are."""
    numbers: list[int] = []
    real = video.VideoReader._packets

    def watched(reader: video.VideoReader, wanted: Iterable[int]) -> Iterator[Packet]:
        wanted = list(wanted)
        numbers.extend(map(int, wanted))
        return real(reader, wanted)

    monkeypatch.setattr(video.VideoReader, "_packets", watched)
    return numbers


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_sampler_gets_the_frames_of_a_full_decode(rendered: Path, name: str) -> None:
    truth, _, _ = full_decode(rendered / name)
    samplers = {"few": uniform(4), "twice": picks(7, 7, 30), "last": picks(-1 + len(truth)), "many": uniform(20)}
    found = media.read(rendered / name, frames=samplers, audio={})
    for sampler, frames in found.frames.items():
        expected = samplers[sampler](np.arange(len(truth)) / 25)
        np.testing.assert_array_equal(frames.data, truth[expected], err_msg=sampler)
        times = frames.pts_seconds - frames_of(rendered / name).pts_seconds[0]
        np.testing.assert_allclose(times, expected / 25, atol=1e-3)
    assert not [note for note in found.notes if "times" not in note]


@pytest.mark.parametrize("name", FORMATS)
def test_all_frames_are_those_of_a_full_decode(rendered: Path, name: str) -> None:
    np.testing.assert_array_equal(frames_of(rendered / name).data, full_decode(rendered / name)[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["h264.mp4", "open_groups.mp4", "hevc.mp4", "layers.mkv", "vp9.webm", "av1.mp4"]),
    wanted=st.lists(st.integers(0, 59), min_size=1, max_size=4).map(sorted),
)
def test_any_choice_of_frames_is_exact(rendered: Path, name: str, wanted: list[int]) -> None:
    truth, _, _ = full_decode(rendered / name)
    np.testing.assert_array_equal(frames_of(rendered / name, picks(*wanted)).data, truth[wanted])


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "vp9.webm", "av1.mp4"])
def test_only_the_groups_of_wanted_frames_are_decoded(rendered: Path, name: str, decoded: list[int]) -> None:
    frames_of(rendered / name, picks(1, 50))
    assert len(decoded) <= 2 * 12
    assert 0 in decoded


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4"])
def test_frames_that_no_other_needs_are_left_out(rendered: Path, name: str, decoded: list[int]) -> None:
    frames_of(rendered / name, picks(11))
    assert decoded
    assert len(decoded) < 12 - 2


@pytest.mark.parametrize("name", ["mpeg4.avi", "h264.avi", "h264.h264", "vp8.webm", "mpeg2.mpg"])
def test_where_packets_do_not_tell_everything_is_decoded_once(rendered: Path, name: str, decoded: list[int]) -> None:
    frames_of(rendered / name, picks(3))
    assert decoded == list(range(len(decoded)))
    assert len(decoded) >= 60


def test_key_frame_flags_of_the_container_are_not_believed(rendered: Path, decoded: list[int]) -> None:
    # Every 12th frame begins a column of intra blocks and is flagged as a key frame, but refers to what was before.
    frames_of(rendered / "no_entries.mp4", picks(40))
    assert decoded[0] == 0


def test_interlaced_video_is_decoded_whole(tmp_path: Path, decoded: list[int]) -> None:
    # A packet may hold one field of a frame only.
    path = render(tmp_path / "a.mp4", moving(30), options={"x264-params": "tff=1"})
    frames_of(path, picks(3))
    assert decoded == list(range(30))


def test_a_file_that_begins_in_the_middle(tmp_path: Path) -> None:
    # Cut before a key frame whose leading pictures refer to what is gone. A decoder shows none of those.
    path = render(tmp_path / "whole.mkv", moving(60), codec="libx265", gop=20)
    with av.open(str(path)) as whole, av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        entries = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        leading = [packet for packet in packets[entries[1] :] if packet.pts < packets[entries[1]].pts]
        assert leading
        for packet in packets[entries[1] :]:
            packet.stream = stream
            output.mux(packet)
    truth, _, _ = full_decode(tmp_path / "a.mkv")
    assert len(truth) == len(packets) - entries[1] - len(leading)
    np.testing.assert_array_equal(
        frames_of(tmp_path / "a.mkv", uniform(6)).data, truth[uniform(6)(np.arange(len(truth)))]
    )


def test_frames_that_an_edit_list_hides_are_not_frames(tmp_path: Path) -> None:
    # Cut half a second into a group of pictures without coding anew: what is before is there to be decoded, not seen.
    path = render(tmp_path / "whole.mp4", moving(60), gop=20)
    with av.open(str(path)) as whole, av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                offset = round(0.52 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, stream
                output.mux(packet)
    truth, _, _ = full_decode(path)
    for sampler in (everything, uniform(5), picks(0)):
        frames = frames_of(tmp_path / "a.mp4", sampler)
        chosen = sampler(np.arange(47) / 25)
        np.testing.assert_array_equal(frames.data, truth[13:][chosen])
        np.testing.assert_allclose(frames.pts_seconds, chosen / 25, atol=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_a_clip_lasts_as_long_as_its_frames(rendered: Path, name: str) -> None:
    # Raw H.264 has no times at all; then it is the number of frames that counts.
    found = media.read(rendered / name, frames={"x": everything}, audio={})
    assert found.duration_seconds == pytest.approx(60 / 25, abs=0.1)


def test_a_last_frame_that_does_not_say_how_long_it_lasts_does_so_by_the_frame_rate(tmp_path: Path) -> None:
    path = render(tmp_path / "a.flv", moving(4), times=[0, 0.05, 0.1, 1.2])
    with av.open(str(path)) as container:
        rate = container.streams.video[0].guessed_rate
        assert not any(packet.duration for packet in container.demux(video=0))
    found = media.read(path, frames={"x": everything}, audio={})
    assert found.duration_seconds == pytest.approx(1.2 + 1 / rate, abs=1e-3)
    assert rate < 100


def test_runs_of_packets_leave_out_what_nothing_wanted_refers_to() -> None:
    entry, none, droppable, upper = bitstream.ENTRY, 0, bitstream.DROPPABLE, 1 << bitstream.LAYER_SHIFT
    kinds = np.array([entry, none, droppable, none, entry, droppable, none, entry, none, none], np.uint8)
    pts = np.array([0, 2, 1, 3, 6, 5, 7, 8, 9, 10])

    def runs(*wanted: int) -> list[list[int]]:
        return [run.tolist() for run in video._runs(pts, kinds, np.array(wanted))]

    assert runs(3) == [[0, 1, 3]]
    assert runs(2, 6) == [[0, 1, 2], [4, 6]]
    assert runs(5) == [[0, 1, 3, 4, 5]]  # shown before its entry point: it may refer to what is before that
    assert runs(0, 9) == [[0], [7, 8, 9]]
    # In the lower of two layers, what the layer itself does not refer to may be needed by the upper one.
    kinds[9] |= upper
    assert runs(3) == [[0, 1, 2, 3]]
    kinds[2] |= upper
    assert runs(3) == [[0, 1, 3]]


def test_what_does_not_fit_the_bound_is_read_and_decoded_twice_with_the_same_result(rendered: Path) -> None:
    for name in ("h264.mp4", "mpeg4.avi", "h264.h264"):
        expected = frames_of(rendered / name, uniform(6))
        np.testing.assert_array_equal(
            frames_of(rendered / name, uniform(6), limits=Limits(held_bytes=1000)).data, expected.data, err_msg=name
        )


# --- one opening -------------------------------------------------------------------------------------------------


def test_one_opening_and_one_decode_however_many_want_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    path = render(tmp_path / "a.mp4", moving(30), sounds=[Sound(samples=tone(1.2), codec="aac")])
    opened = []
    real = demux.open_container
    monkeypatch.setattr(demux, "open_container", lambda path: opened.append(path) or real(path))
    found = media.read(
        path,
        frames={"a": uniform(3), "b": everything, "c": uniform(7)},
        audio={"d": SOUND, "e": AudioRequest(sample_rate=32000), "f": SOUND},
    )
    assert opened == [path]
    assert decoded == list(range(30))
    assert [len(found.frames[name].data) for name in "abc"] == [3, 30, 7]
    assert found.waveforms["d"] is found.waveforms["f"]


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path: Path, ending: str) -> None:
    times = [0.0, 0.1, 0.5, 0.52, 2.0]
    frames = frames_of(render(tmp_path / f"a.{ending}", moving(5), times=times))
    np.testing.assert_allclose(frames.pts_seconds, times, atol=1e-9)


def test_picture_and_sound_share_one_clock(tmp_path: Path) -> None:
    # It flashes and beeps at 1.0 s. The sound track begins with the beep, the picture at 0.4 s.
    times = [0.4 + number / 10 for number in range(12)]
    shades = [235 if abs(seconds - 1.0) < 0.01 else 20 for seconds in times]
    sounds = [Sound(samples=tone(0.5), codec="pcm_f32le", start_seconds=1.0)]
    path = render(tmp_path / "a.mkv", plain(shades), times=times, sounds=sounds)
    found = media.read(path, frames={"x": everything}, audio={"y": SOUND})
    # The file's clock starts with its first stream: the picture.
    flash = found.frames["x"].pts_seconds[found.frames["x"].data.mean(axis=(1, 2, 3)).argmax()]
    assert flash == pytest.approx(0.6, abs=1e-3)
    assert found.waveforms["y"].start_seconds == pytest.approx(0.6, abs=1e-3)
    assert found.frames["x"].pts_seconds[0] == 0.0
    assert found.duration_seconds == pytest.approx(1.1 + 1 / 25, abs=1e-3)  # the last frame, and how long it lasts


def test_time_stamps_out_of_order_are_replaced_as_few_as_can_be() -> None:
    times, faults = video._ascending([None, 10, 20, 999, 40, 30, 50, None], 10.0)
    np.testing.assert_allclose(times, [0, 10, 20, 70 / 3, 80 / 3, 30, 50, 60])
    assert faults == 4


def test_without_any_time_stamp_frames_are_a_step_apart() -> None:
    times, faults = video._ascending([None, None, None], 40.0)
    np.testing.assert_array_equal(times, [0, 40, 80])
    assert faults == 3


@given(stamps=st.lists(st.none() | st.integers(-1000, 1000), max_size=30))
def test_replaced_time_stamps_ascend_and_the_rest_is_kept(stamps: list[int | None]) -> None:
    times, faults = video._ascending(stamps, 1.0)
    assert len(times) == len(stamps)
    assert (np.diff(times) > 0).all()
    assert sum(time == stamp for time, stamp in zip(times, stamps, strict=True)) >= len(stamps) - faults


# --- cut-outs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s with a key frame every 2 s."""
    folder = tmp_path_factory.mktemp("long")
    for name, codec in [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.ts", "libx264"), ("a.avi", "mpeg4")]:
        options = {"bf": "2"} if codec == "mpeg4" else {}
        coder = "libmp3lame" if name == "a.avi" else "aac"
        sounds = [Sound(samples=tone(12), codec=coder)]
        render(folder / name, moving(300), codec=codec, options=options, gop=50, sounds=sounds)
    return folder


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["a.mp4", "a.mkv", "a.ts", "a.avi"]),
    start=st.integers(0, 1150).map(lambda hundredths: hundredths / 100),
    length=st.none() | st.integers(1, 400).map(lambda hundredths: hundredths / 100),
)
@example(name="a.mp4", start=5.0, length=0.04)
@example(name="a.mp4", start=5.01, length=0.01)
def test_a_cut_out_is_the_cut_of_a_full_decode(long: Path, name: str, start: float, length: float | None) -> None:
    stop = None if length is None else start + length
    whole = frames_of(long / name)
    within = np.flatnonzero(
        (whole.pts_seconds > start - 1e-6) & (whole.pts_seconds < (np.inf if stop is None else stop) - 1e-6)
    )
    on_screen = np.flatnonzero(whole.pts_seconds < start)[-1:]
    expected = within if len(within) else on_screen
    found = media.read(long / name, frames={"x": everything}, audio={}, start_seconds=start, stop_seconds=stop)
    if not len(expected):  # the sound begins before the picture
        assert found.notes == ("no video: none in the clip",)
        return
    np.testing.assert_array_equal(found.frames["x"].data, whole.data[expected])
    np.testing.assert_allclose(
        found.frames["x"].pts_seconds, np.maximum(whole.pts_seconds[expected] - start, 0), atol=1e-6
    )
    assert found.duration_seconds <= (np.inf if length is None else length) + 1e-9


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_cut_out_reads_and_decodes_no_more_than_is_near(long: Path, name: str, decoded: list[int]) -> None:
    found = media.read(long / name, frames={"x": everything}, audio={"y": SOUND}, start_seconds=9.5, stop_seconds=10)
    assert len(found.frames["x"].data) in (12, 13)
    assert len(decoded) < 150
    assert len(found.waveforms["y"].data) == 8000


def test_a_picture_that_has_ended_is_not_on_the_screen(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(25), sounds=[Sound(samples=tone(4))])
    found = media.read(path, frames={"x": everything}, audio={"y": SOUND}, start_seconds=2, stop_seconds=3)
    assert (list(found.frames), list(found.waveforms)) == ([], ["y"])
    assert found.notes == ("no video: none in the clip",)


def test_a_slow_picture_is_on_the_screen_between_its_frames(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(4), times=[0, 1, 2, 3], sounds=[Sound(samples=tone(4))])
    frames = frames_of(path, start_seconds=2.3, stop_seconds=2.6)
    np.testing.assert_array_equal(frames.data, frames_of(path).data[2:3])
    assert frames.pts_seconds.tolist() == [0.0]


def test_a_clip_behind_the_end_is_empty(long: Path) -> None:
    with pytest.raises(ClipError, match=r"starts at 50 s, the file ends at 12\.") as caught:
        frames_of(long / "a.mp4", start_seconds=50, stop_seconds=60)
    assert caught.value.kind == "empty"


def test_start_and_stop_are_checked(long: Path) -> None:
    with pytest.raises(ValueError, match=r"0 <= start_seconds < stop_seconds, got 5 and 5"):
        frames_of(long / "a.mp4", start_seconds=5, stop_seconds=5)
    with pytest.raises(ValueError, match="got -1"):
        frames_of(long / "a.mp4", start_seconds=-1)


# --- streams, sizes, shapes --------------------------------------------------------------------------------------


def test_fewer_frames_than_asked_for_repeat(tmp_path: Path) -> None:
    frames = frames_of(render(tmp_path / "a.mp4", moving(3)), uniform(8))
    assert frames.data.shape == (8, 48, 64, 3)
    assert len(np.unique(frames.pts_seconds)) == 3


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    frames = frames_of(render(tmp_path / "a.mp4", moving(1)), uniform(2))
    np.testing.assert_array_equal(frames.data[0], frames.data[1])


def test_without_video_there_are_no_frames_and_without_sound_no_waveforms(tmp_path: Path) -> None:
    deaf = media.read(render(tmp_path / "a.mp4", moving(5)), frames={"x": everything}, audio={"y": SOUND})
    assert (list(deaf.frames), list(deaf.waveforms)) == (["x"], [])
    blind = media.read(
        render(tmp_path / "b.mkv", sounds=[Sound(samples=tone(1))]), frames={"x": everything}, audio={"y": SOUND}
    )
    assert (list(blind.frames), list(blind.waveforms)) == ([], ["y"])
    assert blind.duration_seconds == pytest.approx(1.0, abs=0.03)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        sound = output.add_stream("aac", rate=48000, layout="mono")
        cover = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        frame.sample_rate = 48000
        output.mux(sound.encode(frame))
        output.mux([*sound.encode(None), *cover.encode(None)])
    found = media.read(tmp_path / "a.mp4", frames={"x": everything}, audio={"y": SOUND})
    assert (list(found.frames), list(found.waveforms)) == ([], ["y"])


def test_the_best_video_is_not_always_the_first(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, width in zip(streams, (32, 128), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
        streams[0].disposition, streams[1].disposition = 0, av.stream.Disposition.default
        for stream, width in zip(streams, (32, 128), strict=True):
            for picture in moving(10, width=width):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))
    assert frames_of(tmp_path / "a.mp4").data.shape == (10, 48, 128, 3)


@pytest.mark.parametrize(("ratio", "width"), [(Fraction(4, 3), 85), (Fraction(1, 2), 32), (Fraction(1024, 1023), 64)])
def test_pixels_become_square_by_their_width(tmp_path: Path, ratio: Fraction, width: int) -> None:
    path = render(tmp_path / "a.mp4", moving(3), pixel_aspect_ratio=ratio)
    frames = frames_of(path)
    assert frames.data.shape == (3, 48, width, 3)
    if width == 64:
        np.testing.assert_array_equal(frames.data, full_decode(path)[0])


def test_a_pixel_aspect_ratio_beyond_reason_is_ignored(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", moving(3), pixel_aspect_ratio=Fraction(10, 1))
    found = media.read(path, frames={"x": everything}, audio={})
    assert found.frames["x"].data.shape == (3, 48, 64, 3)
    assert found.notes == ("pixel aspect ratio ignored: 10",)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (IDENTITY, lambda picture: picture),
        ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),  # a quarter to the right
        ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
        ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),  # a selfie
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    ],
)
@pytest.mark.parametrize("width", [64, 50])  # of 50 pixels, the rows of a converted picture do not touch each other
def test_the_display_matrix_is_applied(  # type: ignore[no-untyped-def]
    tmp_path: Path, width: int, matrix: tuple[int, int, int, int], expected
) -> None:
    path = turn(render(tmp_path / "a.mp4", moving(4, width)), *matrix)
    upright = np.stack([expected(picture) for picture in full_decode(path)[0]])
    np.testing.assert_array_equal(frames_of(path).data, upright)


def test_a_display_matrix_that_makes_no_sense_is_ignored_with_a_note(tmp_path: Path) -> None:
    path = turn(render(tmp_path / "a.mp4", moving(4)), 1, 1, -1, 1)
    found = media.read(path, frames={"x": everything}, audio={})
    np.testing.assert_array_equal(found.frames["x"].data, full_decode(path)[0])
    assert found.notes == (
        "orientation ignored: the display matrix [65536 65536; -65536 65536] is no multiple of 90 degrees",
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, (188, 102, 44)),  # BT.601 where nothing is declared
        ({"colorspace": 1}, (196, 107, 41)),
        ({"color_range": 2}, (179, 103, 53)),
    ],
)
def test_colours_follow_the_declared_matrix_and_range(
    tmp_path: Path, tags: dict[str, int], expected: tuple[int, int, int]
) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, level in zip(frame.planes, (120, 90, 170), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        for name, value in tags.items():
            setattr(frame, name, value)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    np.testing.assert_allclose(frames_of(tmp_path / "a.mp4").data[0, 20, 20], expected, atol=2)


def test_high_dynamic_range_is_told(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", moving(3), tags={"color_trc": 16, "colorspace": 9})
    notes = media.read(path, frames={"x": everything}, audio={}).notes
    assert notes == ("high dynamic range: converted to 8 bits without tone mapping",)


# --- what is checked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [[], [-1], [5], [[0]]])
def test_a_sampler_with_a_wrong_answer_is_a_bug(tmp_path: Path, wrong: list[object]) -> None:
    path = render(tmp_path / "a.mp4", moving(5))
    with pytest.raises(ValueError, match="sampler of 'x': expected indices from 0 to 4"):
        frames_of(path, lambda seconds: np.array(wrong))


def test_the_types_check_themselves() -> None:
    with pytest.raises(ValueError, match="sample_rate: expected at least 1 Hz, got 0"):
        AudioRequest(sample_rate=0)
    with pytest.raises(ValueError, match="downmix: expected 'mean' or 'first', got 'left'"):
        AudioRequest(sample_rate=1, downmix="left")
    with pytest.raises(ValueError, match="max_seconds: expected more than 0, got 0"):
        AudioRequest(sample_rate=1, max_seconds=0)
    with pytest.raises(ValueError, match=r"data: expected uint8 \(N, height, width, 3\), got uint8\(1, 2, 3\)"):
        Frames(data=np.zeros((1, 2, 3), np.uint8), pts_seconds=np.zeros(1))
    with pytest.raises(ValueError, match=r"pts_seconds: expected shape \(1,\), got \(2,\)"):
        Frames(data=np.zeros((1, 2, 2, 3), np.uint8), pts_seconds=np.zeros(2))
    with pytest.raises(ValueError, match=r"data: expected float32 \(num_samples,\), got float64\(4,\)"):
        Waveform(data=np.zeros(4), sample_rate=1)


def test_the_versions_that_change_a_number_are_known() -> None:
    assert set(media.libraries()) == {"av", "libavcodec", "libavformat", "libswscale", "libswresample"}
    assert media.libraries()["av"] == av.__version__


# --- the clips beside the project --------------------------------------------------------------------------------

OK_CLIPS = {
    "00W1lcxW-WU_40.000.mp4": (125, 256, 144),
    "6zlMP_kQ_-w_30000_40000.mp4": (300, 480, 360),
    "MOV00006.3gp": (222, 192, 144),
    "ZYc410CE4Rg_0_10000.mp4": (300, 480, 360),
    "ZYc410CE4Rg_0_10000__25fps_256side_16k.mp4": (250, 340, 256),
    "av1-video.mp4": (375, 960, 540),
    "bbb_480p_vp9_opus_1second.webm": (24, 854, 480),
    "bear-vp9-odd-dimensions.webm": (30, 161, 121),
    "big_buck_bunny_small.mp4": (132, 427, 240),
    "bitmap.mp4": (5, 1, 1),
    "flipping_a_pancake.mkv": (310, 426, 240),
    "h265_video.mp4": (10, 128, 128),
    "input_hdr.mov": (30, 640, 360),
    "nasa_13013.mp4": (390, 480, 270),
    "no_duration.webm": (74, 1280, 720),
    "portrait.MOV": (62, 320, 568),
    "sample_shorter_audio.mp4": (72, 320, 240),
    "test.avi": (164, 320, 240),
    "test2_8000.mkv": None,
    "v_GGSY1Qvo990.mp4": (355, 320, 240),
    "v_ZNVhz7ctTq0.mp4": (420, 480, 360),
    "video_0.mov": (3, 568, 320),
    "video_180.mov": (3, 568, 320),
    "video_270.mov": (3, 320, 568),
    "video_90.mov": (3, 320, 568),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", OK_CLIPS)
def test_frames_of_real_clips_equal_a_full_decode(shared: Path, name: str) -> None:
    path = shared / "clips" / "ok" / name
    found = media.read(path, frames={"x": uniform(16), "y": uniform(5)}, audio={"z": SOUND})
    expected = OK_CLIPS[name]
    if expected is None:
        assert not found.frames
        return
    count, width, height = expected
    truth, _, _ = full_decode(path)
    assert len(truth) == count
    assert found.frames["x"].data.shape == (16, height, width, 3)
    rotations = {"portrait.MOV": -1, "video_90.mov": -1, "video_180.mov": 2, "video_270.mov": 1}
    for wanted, frames in zip((16, 5), found.frames.values(), strict=True):
        full = truth[sampling.uniform(np.arange(count), wanted)]
        if name in ("MOV00006.3gp", "big_buck_bunny_small.mp4"):  # pixels that are not square: scaled
            assert frames.data.shape[1:3] == (height, width)
            np.testing.assert_allclose(frames.data.mean(axis=(1, 2)), full.mean(axis=(1, 2)), atol=1.5)
        else:
            np.testing.assert_array_equal(frames.data, np.rot90(full, rotations.get(name, 0), axes=(1, 2)))


@pytest.mark.shared
def test_every_clip_beside_the_project_is_in_the_list(shared: Path) -> None:
    assert {path.name for path in (shared / "clips" / "ok").iterdir()} == set(OK_CLIPS)
