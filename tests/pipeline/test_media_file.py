"""Opening a media file, and the choice of its streams. What must not be opened: ``tests/extract/test_demux.py``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.container import InputContainer

from avpipe.pipeline import media_file
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.media_file import codec_name, time_base

from ..rendering import Sound, moving, render, tone


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4"])
def test_looking_what_is_in_a_file_finds_what_a_plain_look_finds(tmp_path: Path, codec: str) -> None:
    """The pictures that are decoded for that are not filtered; nothing that is said about the stream depends on it."""

    def facts(container: InputContainer) -> list[object]:
        stream, sound = container.streams.video[0], container.streams.audio[0]
        context = stream.codec_context
        return [
            (stream.start_time, stream.duration, stream.guessed_rate, stream.average_rate, stream.sample_aspect_ratio),
            (context.width, context.height, context.pix_fmt, context.reorder_depth, context.field_order),
            (context.profile, context.level, context.colorspace, context.color_range, context.extradata),
            (sound.start_time, sound.duration, sound.rate, sound.layout.name),
        ]

    sounds = [Sound(samples=tone(2), codec="libopus")]
    path = render(tmp_path / "a.mkv", moving(50), codec=codec, sounds=sounds, pixel_aspect_ratio=Fraction(4, 3))
    with media_file.open_container(path) as ours, av.open(str(path)) as plain:
        assert facts(ours) == facts(plain)


@pytest.mark.parametrize(
    ("suffix", "codec", "sound"),
    [
        (".mp4", "libx264", "aac"),
        (".mp4", "libx265", "alac"),
        (".mkv", "ffv1", "flac"),
        (".webm", "libvpx", "libopus"),
        (".webm", "libvpx-vp9", "libopus"),
        (".avi", "mpeg4", "mp3"),
        (".flv", "flv", "mp3"),
        (".ts", "libx264", "aac"),
        (".ts", "mpeg2video", "mp2"),
        (".mpg", "mpeg2video", "mp2"),
        (".mxf", "mpeg2video", "pcm_s16le"),
    ],
)
def test_a_mere_look_finds_what_a_look_with_pictures_finds(tmp_path: Path, suffix: str, codec: str, sound: str) -> None:
    def facts(container: InputContainer) -> list[object]:
        video, audio = media_file.choose_streams(container, 64 * 48, [])
        assert video is not None and audio is not None
        context, heard = video.codec_context, audio.codec_context
        return [
            (container.duration, video.start_time, audio.start_time, time_base(video), time_base(audio)),
            (codec_name(video), context.width, context.height, video.average_rate, video.guessed_rate),
            (codec_name(audio), heard.sample_rate, heard.layout.name),
        ]

    path = render(tmp_path / f"a{suffix}", moving(50), codec=codec, sounds=[Sound(samples=tone(2), codec=sound)])
    with (
        media_file.open_container(path) as full,
        media_file.open_container(path, media_file.LOOK_ONLY) as mere,
    ):
        assert facts(full) == facts(mere)


def test_of_several_streams_the_best_are_chosen_and_the_others_not_read(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(10), sounds=[Sound(samples=tone(1)), Sound(samples=tone(1))])
    notes: list[str] = []
    with media_file.open_container(path) as container:
        video, audio = media_file.choose_streams(container, 64 * 48, notes)
        assert video is not None and audio is not None
        assert (video.type, audio.type) == ("video", "audio")
        read = {packet.stream_index for packet in media_file.read_packets(container, [video, audio], notes)}
        assert read == {video.index, audio.index}
    assert notes == []


def test_of_several_streams_the_best_are_chosen_fails(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(10))
    with (
        media_file.open_container(path) as container,
        pytest.raises(ClipError, match="a picture of 64x48 pixels; the limit is 3071 in all") as caught,
    ):
        media_file.choose_streams(container, 64 * 48 - 1, [])
    assert caught.value.kind == "too_large"
