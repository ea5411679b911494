"""What one look at a media file tells, and that each file gets its look whatever happens on the way."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests import probe as probing
from avpipe.data_manifests.probe import AudioFacts, Probe, VideoFacts, probe, probe_files
from avpipe.extract import media
from avpipe.pipeline.errors import StoreError, UsageError
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.remote import RemotePath

from ..rendering import Sound, moving, render, tone
from .probe_work import Clumsy

VIDEO = VideoFacts(codec="h264", width=64, height=48, frames_per_second=25.0)
PCM = AudioFacts(codec="pcm_f32le", sample_rate=48000, channels=1)


def sound(gain: float, seconds: float = 2.0) -> Sound:
    return Sound(samples=np.float32(gain) * tone(seconds) / np.float32(0.5))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds, with a tone."""
    return render(tmp_path / "clip.mkv", moving(50), sounds=[sound(0.5)])


def linked(path: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """The same file under other names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        os.link(path, folder / name)
    return list(names)


def kinds(found: dict[str, Probe]) -> dict[str, str]:
    return {file: each.error_type for file, each in found.items()}


def asked(root: Path, files: Sequence[str], cache: Path | None, **options: Any) -> tuple[dict[str, Probe], int]:
    """Probes, and how many of them the cache did not know."""
    told: list[tuple[int, int]] = []
    found = probe_files(
        root, files, cache=cache, processes=1, progress=lambda done, total: told.append((done, total)), **options
    )
    assert told[-1] == (len(set(files)),) * 2
    return found, len(set(files)) - told[0][0]


def sandboxes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "sandbox" in " ".join(child.cmdline())]


# --- one look ----------------------------------------------------------------------------------------------------


def test_a_clip_with_sound(clip: Path) -> None:
    assert probe(clip) == Probe(duration_seconds=2.0, video=VIDEO, audio=PCM, is_silent=False)


def test_a_clip_without_an_audio_stream(tmp_path: Path) -> None:
    found = probe(render(tmp_path / "a.mp4", moving(25)))
    assert found == Probe(duration_seconds=1.0, video=VIDEO)
    assert found.is_readable and found.has_video and not found.has_audio and not found.has_broken_audio


def test_sound_without_a_picture(tmp_path: Path) -> None:
    found = probe(render(tmp_path / "a.wav", sounds=[sound(0.5)]))
    assert found == Probe(duration_seconds=2.0, audio=PCM, is_silent=False)
    assert found.is_readable and found.has_audio and not found.has_video


@pytest.mark.parametrize(("gain", "is_silent"), [(0.0, True), (0.00099, True), (0.00101, False), (1.0, False)])
@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_s16le", "flac"])
def test_silence_is_what_stays_below_minus_60_dbfs(tmp_path: Path, gain: float, is_silent: bool, codec: str) -> None:
    heard = Sound(samples=sound(gain).samples, codec=codec)
    assert probe(render(tmp_path / "a.mkv", moving(5), sounds=[heard])).is_silent is is_silent


@pytest.mark.parametrize("codec", ["aac", "libopus", "ac3", "pcm_f32le"])
def test_one_click_at_the_very_end_is_no_silence(tmp_path: Path, codec: str) -> None:
    samples = np.zeros((1, 3 * 48000), np.float32)
    silent = render(tmp_path / "silent.mkv", moving(5), sounds=[Sound(samples=samples.copy(), codec=codec)])
    samples[0, -2000:-1900] = 0.5
    click = render(tmp_path / "click.mkv", moving(5), sounds=[Sound(samples=samples, codec=codec)])
    assert (probe(silent).is_silent, probe(click).is_silent) == (True, False)


def test_a_channel_that_is_silent_does_not_make_silence(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros_like(tone(1)), tone(1)])
    path = render(tmp_path / "a.mkv", sounds=[Sound(samples=samples, layout="stereo")])
    assert probe(path).is_silent is False


def test_samples_that_are_no_numbers_are_not_heard(tmp_path: Path) -> None:
    samples = np.full((1, 48000), np.nan, np.float32)
    samples[0, ::2] = np.inf
    assert probe(render(tmp_path / "a.mkv", sounds=[Sound(samples=samples)])).is_silent is True
    samples[0, 24000] = 0.5
    assert probe(render(tmp_path / "a.mkv", sounds=[Sound(samples=samples)])).is_silent is False


def test_listening_ends_with_the_first_thing_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avpipe.data_manifests import looking

    read: list[int] = []
    real = looking.read_packets

    def counted(*arguments: Any) -> Any:
        for packet in real(*arguments):
            read.append(packet.stream_index)
            yield packet

    monkeypatch.setattr(looking, "read_packets", counted)
    loud = render(tmp_path / "loud.mp4", moving(500), sounds=[sound(0.5, 20.0)])
    silent = render(tmp_path / "silent.mp4", moving(500), sounds=[sound(0.0, 20.0)])
    assert probe(loud).is_silent is False
    assert len(read) < 50
    read.clear()
    assert probe(silent).is_silent is True
    assert read.count(1) == 20 * 48000 // 1024 + 1  # all of the sound ...
    assert read.count(0) < 250  # ... and of the pictures what the look at the header had read already


def test_no_duration_in_the_header(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(50), sounds=[sound(0.0, 2.5)], muxer={"live": "1"})
    found = probe(path)
    assert found.duration_seconds == pytest.approx(2.5, abs=0.01)
    assert found.is_silent is True
    assert probe(render(tmp_path / "b.mkv", moving(75), muxer={"live": "1"})).duration_seconds == pytest.approx(3.0)


def test_no_time_stamps_at_all(tmp_path: Path) -> None:
    found = probe(render(tmp_path / "a.h264", moving(50)))
    assert found.duration_seconds == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("content", [b"", b"This is not a video.", b"\0" * 5000, bytes(range(256)) * 40])
def test_what_is_no_media_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    found = probe(tmp_path / "a.mp4")
    assert (found.error_type, found.is_readable) == ("open", False)
    assert found.error_message.startswith(f"a.mp4 ({len(content)} bytes): ")


def test_a_header_without_anything_behind_it(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", moving(50), sounds=[Sound(samples=tone(2), codec="aac")])
    render(path, moving(50), sounds=[Sound(samples=tone(2), codec="aac")], muxer={"movflags": "faststart"})
    path.write_bytes(path.read_bytes().partition(b"mdat")[0] + b"mdat")
    assert probe(path) == Probe(error_type="empty", error_message="the header is there, but nothing follows it")


def test_a_picture_that_is_too_large(clip: Path) -> None:
    assert probe(clip, Limits(max_pixels=64 * 48)).is_readable
    found = probe(clip, Limits(max_pixels=64 * 48 - 1))
    assert found.error_type == "too_large"
    assert "64x48 pixels; the limit is 3071" in found.error_message


def test_sound_of_which_nothing_decodes_is_told(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (1, 48000)).astype(np.float32)
    for name, frames in (("both.mkv", moving(25)), ("alone.mka", [])):
        path = render(tmp_path / name, frames, sounds=[Sound(samples=samples, codec="flac")])
        data = path.read_bytes()
        assert data.count(b"\xff\xf8") >= 10  # where each packet of FLAC begins
        path.write_bytes(data.replace(b"\xff\xf8", b"\0\0"))
    found = probe(tmp_path / "both.mkv")
    assert found.is_readable and found.has_broken_audio and not found.has_audio
    assert (found.audio, found.is_silent) == (AudioFacts(codec="flac", sample_rate=48000, channels=1), None)
    assert kinds({"alone": probe(tmp_path / "alone.mka")}) == {"alone": "decode"}


# --- the row -----------------------------------------------------------------------------------------------------

counts = st.integers(0, 1 << 40)
names = st.text(min_size=1)
seconds = st.floats(0, allow_infinity=False, allow_nan=False)
videos = st.builds(
    VideoFacts,
    codec=names,
    width=counts,
    height=counts,
    frames_per_second=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
)
audios = st.builds(AudioFacts, codec=names, sample_rate=counts, channels=counts)
probes = st.one_of(
    st.builds(Probe, duration_seconds=st.none() | seconds, video=videos),
    st.builds(
        Probe,
        duration_seconds=st.none() | seconds,
        video=st.none() | videos,
        audio=audios,
        is_silent=st.none() | st.booleans(),
    ),
    st.builds(Probe, error_type=names, error_message=names),
)


@given(probes)
def test_a_probe_is_its_row(found: Probe) -> None:
    assert Probe.from_row(json.loads(json.dumps(found.to_row(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected video or audio, got neither"),
        ({"video": {"codec": "h264"}}, "not a probe: .*height"),
        ({"video": 7}, "not a probe"),
        ({"video": {"codec": "", "width": 1, "height": 1}}, "codec of a video: expected a name, got ''"),
        ({"video": {"codec": "x", "width": -1, "height": 1}}, "width: expected a whole number, at least 0, got -1"),
        ({"video": {"codec": "x", "width": 1, "height": 1, "frames_per_second": 0}}, "expected more than 0, got 0"),
        ({"audio": {"codec": "x", "sample_rate": 1.5, "channels": 1}}, "sample_rate: .*got 1.5"),
        (
            {"audio": {"codec": "x", "sample_rate": 1, "channels": 1}, "is_silent": 0},
            "is_silent: expected bool .*got 0",
        ),
        ({"video": VIDEO.__class__, "is_silent": True}, "not a probe"),
        ({"colour": "red"}, "not a probe: .*'colour'"),
        ({"error_type": "open"}, "expected a kind and a message, got 'open', ''"),
        ({"error_type": 7, "error_message": "x"}, "expected two strings, got 7 and 'x'"),
        (
            {"error_type": "open", "error_message": "x", "duration_seconds": 1.0},
            r"\(open\): expected no facts, got \(1",
        ),
    ],
)
def test_a_probe_is_its_row_fails(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Probe.from_row(row)


@pytest.mark.parametrize("duration", [-1.0, math.nan, math.inf, "3"])
def test_a_duration_is_a_number_of_seconds(duration: Any) -> None:
    with pytest.raises(ValueError, match=f"duration_seconds: expected at least 0, got {duration!r}"):
        Probe(video=VIDEO, duration_seconds=duration)


def test_silence_without_a_stream_fails() -> None:
    with pytest.raises(ValueError, match="is_silent: expected None where there is no audio, got True"):
        Probe(video=VIDEO, is_silent=True)


# --- many files --------------------------------------------------------------------------------------------------


def test_each_file_once_in_the_order_asked_for(clip: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    linked(clip, root, ["b.mkv", "a.mkv"])
    (root / "sub").mkdir()
    linked(clip, root / "sub", ["c.mkv"])
    (root / "broken.mp4").write_bytes(b"no video")
    files = ["b.mkv", "nothing.mkv", "a.mkv", "b.mkv", "sub/c.mkv", "broken.mp4", "sub", "b.mkv/x"]
    told: list[tuple[int, int]] = []
    found = probe_files(root, files, cache=None, processes=2, progress=lambda *done: told.append(done))
    assert list(found) == list(dict.fromkeys(files))
    assert kinds(found) == {
        **dict.fromkeys(files, ""),
        "broken.mp4": "open",
        "nothing.mkv": "missing_file",
        "sub": "missing_file",
        "b.mkv/x": "missing_file",
    }
    assert found["sub/c.mkv"] == probe(clip)
    assert found["nothing.mkv"].error_message == "nothing.mkv does not exist"
    assert found["sub"].error_message == "sub is no regular file"
    assert told[0] == (3, 7) and told[-1] == (7, 7) and told == sorted(told)
    assert sandboxes() == []


def test_names_that_are_hard_to_write(clip: Path, tmp_path: Path) -> None:
    files = linked(clip, tmp_path / "root", ["a b\n.mkv", "-x.mkv", "ünï.mkv", "http:x.mkv", "caf\udce9.mkv"])
    found, _ = asked(tmp_path / "root", [*files, "a\0b", "x" * 300], tmp_path / "cache")
    assert kinds(found) == {**dict.fromkeys(files, ""), "a\0b": "missing_file", "x" * 300: "missing_file"}
    assert asked(tmp_path / "root", files, tmp_path / "cache")[1] == 0


def test_nothing_to_do_is_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "DecodePool", None)
    assert probe_files(tmp_path, [], cache=tmp_path / "cache") == {}
    assert kinds(probe_files(tmp_path, ["x"], cache=None)) == {"x": "missing_file"}


def test_remote_places_fail(tmp_path: Path) -> None:
    remote: Any = RemotePath("s3", "bucket/media")
    for root, cache in ((remote, None), (tmp_path, remote)):
        with pytest.raises(UsageError, match="expected a local folder, got s3://bucket/media"):
            probe_files(root, ["a.mp4"], cache=cache)


def test_no_processes_at_all_fail(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="processes: expected at least 0, got -1"):
        probe_files(tmp_path, [], cache=None, processes=-1)


def test_each_death_costs_one_file(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "Looking", Clumsy)
    root, cache = tmp_path / "root", tmp_path / "cache"
    good = [f"{number}.mkv" for number in range(20)]
    bad = {"segfault.mkv": "crashed", "hang.mkv": "timeout", "eat.mkv": "memory"}
    files = linked(clip, root, [*good[:9], "segfault.mkv", *good[9:14], "hang.mkv", "eat.mkv", *good[14:]])
    limits = Limits(max_seconds=3.0, max_bytes=300 << 20)
    found, _ = asked(root, files, cache, limits=limits)
    assert kinds(found) == {**dict.fromkeys(good, ""), **bad}
    assert found["segfault.mkv"].error_message == "the decoding process died of SIGSEGV"
    (root / "looked").unlink()
    monkeypatch.undo()  # the machine is well again
    assert asked(root, files, cache, limits=limits) == (dict.fromkeys(files, probe(clip)), 3)


def test_a_chunk_that_takes_long_is_done_in_parts(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = linked(clip, tmp_path / "root", [f"{number}.mkv" for number in range(5)])
    monkeypatch.setattr(probing, "_CHUNK_SECONDS", 0.0)
    assert probing.Looking(tmp_path / "root", Limits())(files) == [probe(clip)]
    monkeypatch.setattr(probing, "Looking", OneByOne)
    assert asked(tmp_path / "root", files * 3, None)[0] == dict.fromkeys(files, probe(clip))


class OneByOne(probing.Looking):
    def __call__(self, files: Sequence[str]) -> list[Probe]:
        return probing.Looking(self.root, self.limits)(files[:1])


def test_no_process_is_left_where_the_caller_stops(clip: Path, tmp_path: Path) -> None:
    files = linked(clip, tmp_path / "root", [f"{number}.mkv" for number in range(50)])

    def stop(done: int, total: int) -> None:
        if done:
            assert sandboxes() != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        probe_files(tmp_path / "root", files, cache=tmp_path / "cache", progress=stop)
    assert sandboxes() == []  # although the error still holds all that it came through
    assert caught.value is not None
    assert asked(tmp_path / "root", files, tmp_path / "cache")[1] < 50


# --- the cache ---------------------------------------------------------------------------------------------------


def test_what_is_known_is_not_looked_at_again(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tmp_path / "root", tmp_path / "new" / "cache.jsonl"
    files = linked(clip, root, ["a.mkv", "b.mkv"])
    (root / "broken.mp4").write_bytes(b"no video")
    files.append("broken.mp4")
    first, count = asked(root, files, cache)
    assert count == 3
    monkeypatch.setattr(probing, "DecodePool", None)
    assert asked(root, files, cache) == (first, 0)


def test_a_file_that_was_replaced_is_looked_at_again(clip: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    files = linked(clip, root, ["a.mkv", "b.mkv"])
    asked(root, files, cache)
    status = (root / "a.mkv").stat()
    (root / "a.mkv").unlink()
    (root / "a.mkv").write_bytes(b"x" * status.st_size)  # of the same size, and another time
    found, count = asked(root, files, cache)
    assert (kinds(found), count) == ({"a.mkv": "open", "b.mkv": ""}, 1)
    (root / "a.mkv").write_bytes(b"short")
    os.utime(root / "a.mkv", ns=(status.st_mtime_ns, status.st_mtime_ns))  # of the first time, and another size
    assert asked(root, files, cache)[1] == 1
    (root / "a.mkv").unlink()
    found, count = asked(root, files, cache)
    assert (kinds(found), count) == ({"a.mkv": "missing_file", "b.mkv": ""}, 0)


def test_another_library_or_limit_is_another_look(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = linked(clip, tmp_path / "root", ["a.mkv"])
    cache = tmp_path / "cache"
    assert asked(tmp_path / "root", files, cache)[1] == 1
    found, count = asked(tmp_path / "root", files, cache, limits=Limits(max_pixels=100))
    assert (kinds(found), count) == ({"a.mkv": "too_large"}, 1)
    assert asked(tmp_path / "root", files, cache, limits=Limits(max_pixels=100))[1] == 0
    monkeypatch.setattr(probing, "_FORMAT", 0)
    assert asked(tmp_path / "root", files, cache)[1] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-20],
        lambda data: b"\0\xff" * 100,
        lambda data: data.replace(b'"h264"', b'""'),
        lambda data: data.replace(b'"probe"', b'"prob"'),
        lambda data: data.replace(b'"video"', b'"radio"'),
        lambda data: data.replace(b'"probe":{', b'"probe":7,"x":{'),
        lambda data: b"",
    ],
)
def test_a_spoilt_cache_costs_a_second_look(clip: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    files, cache = linked(clip, tmp_path / "root", ["a.mkv"]), tmp_path / "cache"
    expected, _ = asked(tmp_path / "root", files, cache)
    cache.write_bytes(spoil(cache.read_bytes()))
    assert asked(tmp_path / "root", files, cache) == (expected, 1)
    assert asked(tmp_path / "root", files, cache) == (expected, 0)


def test_a_cache_that_cannot_be_written_fails(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a file at .*, got a folder"):
        asked(tmp_path, ["clip.mkv"], tmp_path)


def test_a_file_that_the_system_does_not_let_us_read_is_tried_again(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.mkv").write_bytes(b"no video")
    files, cache = ["a.mkv"], tmp_path / "cache"
    asked(tmp_path / "root", files, cache)
    assert asked(tmp_path / "root", files, cache)[1] == 0  # it is the file: that is known
    cache.unlink()

    def forbidden(self: Path, mode: str = "r", **options: Any) -> Any:
        if self.name == "a.mkv":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, mode, **options)

    real = Path.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        assert kinds(asked(tmp_path / "root", files, cache)[0]) == {"a.mkv": "open"}
    assert asked(tmp_path / "root", files, cache)[1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_keeps_what_was_done(clip: Path, tmp_path: Path, end: signal.Signals) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    files = linked(clip, root, [f"{number:04d}.mkv" for number in range(1000)])
    program = [sys.executable, "-m", "tests.data_manifests.probe_work", str(root), str(cache)]
    running = subprocess.Popen(program, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)

    def kept() -> int:
        return cache.read_bytes().count(b"\n") if cache.exists() else 0

    deadline = time.monotonic() + 60
    while kept() < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(running.pid).children()
    assert len(children) == 2
    running.send_signal(end)
    assert running.wait(20) == -end
    assert psutil.wait_procs(children, timeout=10)[1] == []
    done = kept()
    assert 200 <= done < 1000
    found, count = asked(root, files, cache)
    assert count == 1000 - done
    assert found == dict.fromkeys(files, probe(clip))
    assert asked(root, files, cache) == (found, 0)


def test_two_runs_at_once_do_no_harm(clip: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    files = linked(clip, root, [f"{number:04d}.mkv" for number in range(150)])
    program = [sys.executable, "-m", "tests.data_manifests.probe_work", str(root), str(cache)]
    running = [subprocess.Popen(program, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert asked(root, files, cache) == (dict.fromkeys(files, probe(clip)), 0)


# --- the clips beside the project --------------------------------------------------------------------------------

SECONDS = {
    "00W1lcxW-WU_40.000.mp4": 10.0,
    "6zlMP_kQ_-w_30000_40000.mp4": 10.0,
    "MOV00006.3gp": 15.2,
    "ZYc410CE4Rg_0_10000.mp4": 10.0,
    "ZYc410CE4Rg_0_10000__25fps_256side_16k.mp4": 10.008,
    "av1-video.mp4": 15.04,
    "bbb_480p_vp9_opus_1second.webm": 1.008,
    "bear-vp9-odd-dimensions.webm": 1.001,
    "big_buck_bunny_small.mp4": 5.312,
    "bitmap.mp4": 5.0,
    "flipping_a_pancake.mkv": 10.381,
    "h265_video.mp4": 1.0,
    "input_hdr.mov": 1.0,
    "nasa_13013.mp4": 13.056,
    "no_duration.webm": 4.938,
    "portrait.MOV": 2.068,
    "sample_shorter_audio.mp4": 1.2,
    "test.avi": 6.56,
    "test2_8000.mkv": 30.23,
    "v_GGSY1Qvo990.mp4": 18.158,
    "v_ZNVhz7ctTq0.mp4": 14.048,
    "video_0.mov": 0.1,
    "video_180.mov": 0.1,
    "video_270.mov": 0.1,
    "video_90.mov": 0.1,
    "corrupted.mp4": 5.0,
    "no_timescale.mp4": 6.042,
    "sample_dts_hd_ma.mp4": 1.003,
    "sample_with_invalid_nalu.mp4": 1.001,
    "video_desks.3gp": 5.148,
}
WITHOUT_SOUND = {
    "bear-vp9-odd-dimensions.webm",
    "bitmap.mp4",
    "corrupted.mp4",
    "h265_video.mp4",
    "no_timescale.mp4",
    "sample_with_invalid_nalu.mp4",
    "video_0.mov",
    "video_180.mov",
    "video_270.mov",
    "video_90.mov",
}
WITHOUT_PICTURES = {"test2_8000.mkv", "sample_dts_hd_ma.mp4"}
SILENT = {"no_duration.webm", "sample_dts_hd_ma.mp4"}
UNREADABLE = {
    "WrongFile.mp4": "open",
    "broken.mp4": "open",
    "empty.flv": "open",
    "ffprobe-big_buck_bunny_720p_1mb.mp4": "open",
    "invalid_userdata.mp4": "empty",
    "invalid_vp9_bitstream-bug_1416.webm": "too_large",
    "result.webm": "open",
}


@pytest.mark.shared
def test_real_clips_good_and_bad(shared: Path, tmp_path: Path) -> None:
    clips = shared / "clips"
    files = [f"{path.parent.name}/{path.name}" for path in sorted([*clips.glob("ok/*"), *clips.glob("bad/*")])]
    by_file, _ = asked(clips, files, tmp_path / "cache")
    assert asked(clips, files, tmp_path / "cache") == (by_file, 0)
    found = {Path(file).name: each for file, each in by_file.items()}
    assert {name: each.error_type for name, each in found.items() if each.error_type} == UNREADABLE
    good = {name: each for name, each in found.items() if each.is_readable}
    assert {name: each.duration_seconds for name, each in good.items()} == pytest.approx(SECONDS, abs=0.001)
    assert {name for name, each in good.items() if not each.has_audio} == WITHOUT_SOUND
    assert {name for name, each in good.items() if not each.has_video} == WITHOUT_PICTURES
    assert {name for name, each in good.items() if each.is_silent} == SILENT
    assert not any(each.has_broken_audio for each in good.values())
    assert found["nasa_13013.mp4"].video == VideoFacts(
        codec="h264", width=480, height=270, frames_per_second=30000 / 1001
    )
    assert found["nasa_13013.mp4"].audio == AudioFacts(codec="aac", sample_rate=16000, channels=2)
    assert found["sample_dts_hd_ma.mp4"].audio == AudioFacts(codec="dts", sample_rate=48000, channels=8)
    assert found["av1-video.mp4"].video == VideoFacts(codec="av1", width=960, height=540, frames_per_second=25.0)


@pytest.mark.shared
def test_a_duration_from_packets_is_that_of_an_extraction(shared: Path) -> None:
    path = shared / "clips" / "ok" / "no_duration.webm"
    extracted = media.read(path, frames={}, audio={"x": media.AudioRequest(sample_rate=16000)})
    assert probe(path).duration_seconds == pytest.approx(extracted.duration_seconds, abs=1e-6)
