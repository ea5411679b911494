"""What may be opened and what not, and files that are broken in every way."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from avpipe.extract import media, sampling
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.limits import Limits

from ..rendering import Sound, moving, render, tone

FRAMES = {"x": partial(sampling.uniform, count=8)}
AUDIO = {"y": AudioRequest(sample_rate=16000)}


def read(path: Path | str, **options: object) -> Media:
    return media.read(path, frames=FRAMES, audio=AUDIO, **options)  # type: ignore[arg-type]


def kind(path: Path | str, match: str, **options: object) -> str:
    """The kind of the error that reading raises."""
    with pytest.raises(ClipError, match=match) as caught:
        read(path, **options)
    return caught.value.kind


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return render(tmp_path / "good.mp4", moving(50), sounds=[Sound(samples=tone(2), codec="aac")])


@pytest.fixture
def streamable(tmp_path: Path) -> Path:
    """50 frames; the header comes first, so that a part of the file is something."""
    return render(tmp_path / "streamable.mkv", moving(50), gop=50)


# --- local media files, and nothing else -------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert kind(tmp_path / "nothing.mp4", "nothing.mp4 does not exist") == "missing_file"
    assert kind(tmp_path, "is no regular file") == "missing_file"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n"),
        ("script.ffconcat", "ffconcat version 1.0\nfile good.mp4\n"),
        ("script.mp4", "ffconcat version 1.0\nfile good.mp4\n"),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("words.srt", "1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
    ],
)
def test_playlists_scripts_and_text_are_not_followed(good: Path, name: str, text: str) -> None:
    path = good.with_name(name)
    path.write_text(text)
    assert kind(path, f"{name} .*(not of a format that avpipe reads|Invalid data)") == "open"


def test_a_picture_is_no_clip(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    assert kind(tmp_path / "a.jpg", "not of a format that avpipe reads") == "open"


def test_the_network_is_not_asked(good: Path) -> None:
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/good.mp4"
        assert kind(url, "does not exist") == "missing_file"
        playlist = good.with_name("list.m3u8")
        playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n")
        assert kind(playlist, "list.m3u8") == "open"
        server.shutdown()
    assert asked == []


def test_names_that_look_like_protocols_are_names(good: Path) -> None:
    for name in ("concat:a|b.mp4", "http:x.mp4", "lavfi.mp4", "50% off #1?.mp4", "ünïcode.mp4"):
        path = good.with_name(name)
        path.write_bytes(good.read_bytes())
        assert len(read(path).frames["x"].data) == 8


# --- broken files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"This is not a video.", b"\0" * 5000, bytes(range(256)) * 40])
def test_what_is_no_media_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert kind(tmp_path / "a.mp4", rf"a.mp4 \({len(content)} bytes\): ") == "open"


def test_a_header_without_anything_behind_it(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", moving(50), muxer={"movflags": "faststart"})
    path.write_bytes(path.read_bytes().partition(b"mdat")[0] + b"mdat")
    assert kind(path, "the header is there, but nothing follows it") == "empty"


def test_too_large_a_picture_is_refused_before_it_is_decoded(good: Path) -> None:
    assert kind(good, "a picture of 64x48 pixels; the limit is 1000", limits=Limits(max_pixels=1000)) == "too_large"
    assert read(good, limits=Limits(max_pixels=64 * 48)).frames


def test_neither_video_nor_sound(streamable: Path) -> None:
    data = streamable.read_bytes()
    assert data.count(b"\x83\x81\x01") == 1  # the type of the track: video
    streamable.write_bytes(data.replace(b"\x83\x81\x01", b"\x83\x81\x11"))
    assert kind(streamable, "neither video nor audio that can be decoded; streams: none") == "no_streams"


def test_a_file_that_was_cut_off_is_used_as_far_as_it_goes(streamable: Path) -> None:
    data = streamable.read_bytes()
    streamable.write_bytes(data[: len(data) // 2])
    found = media.read(streamable, frames={"x": lambda seconds: np.arange(len(seconds))}, audio={})
    assert 10 < len(found.frames["x"].data) < 45
    assert found.duration_seconds < 1.8
    assert any(note.startswith("file cut short: it ends at ") for note in found.notes)


def scratch(path: Path, at: float, length: int) -> Path:
    """Overwrite some bytes of a file with noise."""
    data = bytearray(path.read_bytes())
    begin = int(at * len(data))
    data[begin : begin + length] = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def test_a_file_damaged_in_the_middle_is_used_with_a_note(tmp_path: Path) -> None:
    path = scratch(render(tmp_path / "a.mp4", moving(50), gop=50), 0.4, 400)
    found = media.read(path, frames={"x": lambda seconds: np.arange(len(seconds))}, audio={})
    assert 25 < len(found.frames["x"].data) <= 50
    assert found.notes
    assert all(note.startswith(("video damaged: ", "video cut short: ")) for note in found.notes)
    assert " of 50 " in found.notes[0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_frames_of_a_damaged_file_do_not_depend_on_who_else_wants_some(tmp_path: Path, seed: int) -> None:
    path = scratch(render(tmp_path / "a.mp4", moving(50), gop=50), 0.2 + seed / 6, 300)
    samplers = {
        "few": partial(sampling.uniform, count=4),
        "all": lambda seconds: np.arange(len(seconds)),
        "some": partial(sampling.linspace, count=9),
    }
    together = media.read(path, frames=samplers, audio={})
    assert together.notes
    for name, sampler in samplers.items():
        alone = media.read(path, frames={name: sampler}, audio={})
        np.testing.assert_array_equal(together.frames[name].data, alone.frames[name].data)
        np.testing.assert_array_equal(together.frames[name].pts_seconds, alone.frames[name].pts_seconds)


def test_video_of_which_nothing_decodes_leaves_the_sound(good: Path, tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(5), sounds=[Sound(samples=tone(1))])
    data = bytearray(path.read_bytes())
    picture = data.index(b"\x67\x64")  # parameter set of the header; the slices refer to it
    data[picture : picture + 8] = bytes(8)
    path.write_bytes(data)
    found = read(path)
    assert (list(found.frames), list(found.waveforms)) == ([], ["y"])
    assert "no video: no frame decodes" in found.notes
    with pytest.raises(ClipError, match="no video: no frame decodes") as caught:
        media.read(path, frames=FRAMES, audio={})
    assert caught.value.kind == "decode"


# --- the broken clips beside the project -------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("WrongFile.mp4", "open", "48 bytes"),
        ("broken.mp4", "open", "Invalid data"),
        ("empty.flv", "open", "13 bytes"),
        ("ffprobe-big_buck_bunny_720p_1mb.mp4", "open", "not of a format that avpipe reads"),
        ("invalid_userdata.mp4", "empty", "nothing follows"),
        ("invalid_vp9_bitstream-bug_1416.webm", "too_large", "12336x12336"),
        ("result.webm", "open", "0 bytes"),
    ],
)
def test_real_files_that_cannot_be_used(shared: Path, name: str, error: str, match: str) -> None:
    assert kind(shared / "clips" / "bad" / name, match) == error


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("corrupted.mp4", "video cut short: 49 of 50 frames"),
        ("no_timescale.mp4", "video cut short: 170 of 182 frames"),
        ("sample_with_invalid_nalu.mp4", "video cut short: 29 of 30 frames"),
        ("video_desks.3gp", None),
        ("sample_dts_hd_ma.mp4", None),
    ],
)
def test_real_files_that_can_be_used_in_part(shared: Path, name: str, notes: str | None) -> None:
    path = shared / "clips" / "bad" / name
    found = media.read(path, frames={"x": lambda seconds: np.arange(len(seconds))}, audio=AUDIO)
    assert found.frames or found.waveforms
    assert (notes in found.notes) if notes else found.notes == ()
