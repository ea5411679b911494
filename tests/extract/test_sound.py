"""Sound: in its place, of the right length, undistorted, whatever the rate, the channels and the gaps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from avpipe.extract import media
from avpipe.extract.media import AudioRequest, Waveform
from avpipe.pipeline.errors import ClipError

from ..rendering import Sound, clicks, moving, render, tone


def listen(path: Path, rate: int = 16000, downmix: str = "mean", **options: float) -> Waveform:
    """The waveform of a file."""
    max_seconds = options.pop("max_seconds", None)
    request = AudioRequest(sample_rate=rate, downmix=downmix, max_seconds=max_seconds)
    return media.read(path, frames={}, audio={"x": request}, **options).waveforms["x"]  # type: ignore[arg-type]


def write_packets(
    path: Path, starts: list[float], seconds: float = 0.1, rate: int = 16000, layout: str = "mono", channels: int = 1
) -> Path:
    """A Matroska file with a packet of sound, all ones, at each of some times."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=rate, layout=layout)
        for start in starts:
            frame = av.AudioFrame.from_ndarray(
                np.ones((1, channels * round(seconds * rate)), np.float32), format="flt", layout=layout
            )
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("wanted", [16000, 32000])
def test_neither_delay_nor_drift_at_any_rate(tmp_path: Path, rate: int, wanted: int) -> None:
    path = render(tmp_path / "a.mkv", sounds=[Sound(samples=clicks(20.5, rate=rate), rate=rate)])
    wave = listen(path, wanted)
    assert (wave.sample_rate, wave.start_seconds) == (wanted, 0.0)
    assert abs(len(wave.data) - 20.5 * wanted) <= 1
    for second in range(1, 20):
        around = wave.data[second * wanted - 40 : second * wanted + 40]
        assert np.abs(around).argmax() == 40


def test_a_tone_keeps_its_pitch_and_height(tmp_path: Path) -> None:
    wave = listen(render(tmp_path / "a.mkv", sounds=[Sound(samples=tone(2, hertz=1000, rate=44100), rate=44100)]))
    np.testing.assert_allclose(wave.data[500:-500], tone(2, hertz=1000, rate=16000)[0, 500:-500], atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    wave = listen(render(tmp_path / "a.mkv", sounds=[Sound(samples=tone(1, hertz=15000))]))
    assert np.abs(wave.data[500:-500]).max() < 1e-2


@pytest.mark.parametrize(
    ("codec", "ending"), [("aac", "mp4"), ("libopus", "mkv"), ("libmp3lame", "avi"), ("ac3", "ts"), ("flac", "mkv")]
)
def test_compressed_sound(tmp_path: Path, codec: str, ending: str) -> None:
    path = render(tmp_path / f"a.{ending}", moving(50), sounds=[Sound(samples=tone(2), codec=codec)])
    wave = listen(path)
    assert len(wave.data) / 16000 == pytest.approx(2.0, abs=0.1)
    middle = wave.data[8000:24000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert middle.std() == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


def full_decode(path: Path) -> npt.NDArray[np.float32]:
    """Every sample of the sound ``(num_samples, channels)``, frame by frame through FFmpeg's own packing."""
    with av.open(str(path)) as container:
        packer = av.AudioResampler(format="flt", layout=container.streams.audio[0].layout, rate=48000)
        frames = [packed for frame in container.decode(audio=0) for packed in packer.resample(frame)]
        return np.concatenate([frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in frames])


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6), ("7.1", 8)])
@pytest.mark.parametrize("codec", ["libopus", "pcm_f32le", "flac"])
def test_samples_are_those_of_a_full_decode(tmp_path: Path, layout: str, channels: int, codec: str) -> None:
    # Opus decodes to planes of floats, PCM to packed floats, FLAC to integers; 2 s are several stretches.
    samples = np.stack([tone(2, hertz=200 * (channel + 1))[0] for channel in range(channels)])
    path = render(tmp_path / "a.mkv", sounds=[Sound(samples=samples, layout=layout, codec=codec)])
    truth = full_decode(path)
    assert truth.shape[1] == channels
    assert len(truth) > 90000
    np.testing.assert_array_equal(listen(path, 48000, "first").data, truth[:, 0])
    np.testing.assert_allclose(listen(path, 48000).data, truth.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("layout", "channels"), [("stereo", 2), ("5.1", 6), ("7.1", 8)])
@pytest.mark.parametrize("codec", ["pcm_f32le", "flac"])
def test_downmix_is_the_mean_or_the_first_channel(tmp_path: Path, layout: str, channels: int, codec: str) -> None:
    levels = np.linspace(-0.9, 0.5, channels, dtype=np.float32)
    samples = np.repeat(levels[:, None], 16000, axis=1)
    path = render(tmp_path / "a.mkv", sounds=[Sound(samples=samples, rate=16000, layout=layout, codec=codec)])
    np.testing.assert_allclose(listen(path).data, levels.mean(), atol=1e-4)
    np.testing.assert_allclose(listen(path, downmix="first").data, levels[0], atol=1e-4)


def test_samples_above_one_are_not_clipped(tmp_path: Path) -> None:
    wave = listen(render(tmp_path / "a.mkv", sounds=[Sound(samples=3 * tone(1), rate=48000)]), 48000)
    assert np.abs(wave.data).max() == pytest.approx(1.5, abs=1e-3)


def test_sound_that_is_no_number_becomes_silence(tmp_path: Path) -> None:
    samples = tone(1)
    samples[0, 1000:1100] = [np.nan, np.inf] * 50
    wave = listen(render(tmp_path / "a.mkv", sounds=[Sound(samples=samples)]), 48000)
    np.testing.assert_array_equal(wave.data[1000:1100], 0)
    np.testing.assert_allclose(wave.data[1100:], samples[0, 1100:], atol=1e-6)


def test_sound_that_starts_late_says_so(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", moving(75), sounds=[Sound(samples=tone(1), codec="aac", start_seconds=1.5)])
    found = media.read(path, frames={"x": lambda seconds: np.array([0])}, audio={"y": AudioRequest(sample_rate=16000)})
    wave = found.waveforms["y"]
    assert wave.start_seconds == pytest.approx(1.5, abs=0.025)
    assert len(wave.data) == pytest.approx(16000, abs=800)
    assert found.duration_seconds == pytest.approx(3.0, abs=0.05)


def test_sound_shorter_than_the_picture_is_not_filled_up(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(75), sounds=[Sound(samples=tone(1))])
    assert len(listen(path).data) == 16000


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2)])
def test_a_gap_inside_is_silence_and_what_follows_is_in_its_place(tmp_path: Path, layout: str, channels: int) -> None:
    wave = listen(write_packets(tmp_path / "a.mkv", [0, 0.1, 0.5, 0.6], layout=layout, channels=channels))
    assert len(wave.data) == 11200
    np.testing.assert_array_equal(wave.data[:3200], 1)
    np.testing.assert_array_equal(wave.data[3200:8000], 0)
    np.testing.assert_array_equal(wave.data[8000:], 1)


def test_an_overlap_is_dropped(tmp_path: Path) -> None:
    wave = listen(write_packets(tmp_path / "a.mkv", [0, 0.1, 0.15, 0.3]))
    assert len(wave.data) == 6400
    np.testing.assert_array_equal(wave.data[:4000], 1)
    np.testing.assert_array_equal(wave.data[4000:4800], 0)


def test_jitter_of_the_time_stamps_is_no_gap(tmp_path: Path) -> None:
    wave = listen(write_packets(tmp_path / "a.mkv", [0, 0.103, 0.198, 0.305]))
    np.testing.assert_array_equal(wave.data, np.ones(6400))


def test_a_jump_of_the_clock_is_ignored_with_a_note(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "a.mkv", [0, 0.1, 5000.2, 5000.3])
    found = media.read(path, frames={}, audio={"x": AudioRequest(sample_rate=16000)})
    np.testing.assert_array_equal(found.waveforms["x"].data, np.ones(6400))
    assert found.notes == ("sound: the clock jumps by 5000.0 s; ignored",)


def test_the_rate_may_change_on_the_way(tmp_path: Path) -> None:
    # Two transport streams, joined as they may be: the second goes on where the first ends.
    joined = tmp_path / "c.ts"
    for rate, start in ((44100, 0.0), (22050, 2.0)):
        sound = Sound(samples=tone(2, rate=rate), rate=rate, codec="aac", start_seconds=start)
        with joined.open("ab") as file:
            file.write(render(tmp_path / "a.ts", sounds=[sound]).read_bytes())
    wave = listen(joined)
    assert len(wave.data) / 16000 == pytest.approx(4.0, abs=0.1)
    for second in (0.5, 2.8):
        begin = round(second * 16000)
        assert np.abs(np.fft.rfft(wave.data[begin : begin + 16000])).argmax() == 440


def test_only_so_much_as_is_wanted(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", sounds=[Sound(samples=clicks(5), start_seconds=0)])
    requests = {
        "short": AudioRequest(sample_rate=16000, max_seconds=1.5),
        "shorter": AudioRequest(sample_rate=32000, max_seconds=0.25),
        "all": AudioRequest(sample_rate=16000),
    }
    waves = media.read(path, frames={}, audio=requests).waveforms
    assert [len(waves[name].data) for name in requests] == [24000, 8000, 80000]
    np.testing.assert_allclose(waves["short"].data[:23000], waves["all"].data[:23000], atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "ending", "atol"), [("pcm_f32le", "mkv", 1e-6), ("flac", "mkv", 1e-6), ("aac", "mp4", 1e-3)]
)
@pytest.mark.parametrize(("start", "stop"), [(2.0, 3.5), (4.25, None), (0.5, 0.75)])
def test_a_cut_out_is_the_cut_of_all_the_sound(
    tmp_path: Path, codec: str, ending: str, atol: float, start: float, stop: float | None
) -> None:
    sweep = np.cumsum(np.linspace(200, 2000, 6 * 16000)) / 16000 * 2 * np.pi
    samples = (0.5 * np.sin(sweep)).astype(np.float32)[None]
    path = render(tmp_path / f"a.{ending}", sounds=[Sound(samples=samples, rate=16000, codec=codec)])
    whole = listen(path)
    part = listen(path, start_seconds=start, stop_seconds=stop)
    expected = whole.data[round(start * 16000) : None if stop is None else round(stop * 16000)]
    assert part.start_seconds == 0.0
    assert len(part.data) == len(expected)
    np.testing.assert_allclose(part.data, expected, atol=atol)


def test_a_cut_out_behind_the_sound_has_none(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", moving(100), sounds=[Sound(samples=tone(1))])
    found = media.read(path, frames={}, audio={"x": AudioRequest(sample_rate=16000)}, start_seconds=2.5)
    assert not found.waveforms
    assert found.notes == ("no sound: none in the clip",)


def test_damaged_sound_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", sounds=[Sound(samples=tone(5), codec="aac")])
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 15000
    data[begin : begin + 3000] = bytes(np.random.default_rng(1).integers(0, 256, 3000, dtype=np.uint8))
    path.write_bytes(data)
    found = media.read(path, frames={}, audio={"x": AudioRequest(sample_rate=16000)})
    assert len(found.waveforms["x"].data) == pytest.approx(80000, abs=1600)
    (note,) = found.notes
    assert note.startswith("sound damaged: ")
    assert note.endswith("of 236 packets do not decode")


def test_what_lies_behind_the_wanted_is_not_decoded(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", sounds=[Sound(samples=tone(5), codec="aac")])
    data = bytearray(path.read_bytes())
    end = data.index(b"moov") - 4
    data[end - 5000 : end] = bytes(np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8))
    path.write_bytes(data)
    parts = {seconds: AudioRequest(sample_rate=16000, max_seconds=seconds) for seconds in (0.3, 5.0)}
    notes = {seconds: media.read(path, frames={}, audio={"x": request}).notes for seconds, request in parts.items()}
    assert notes[0.3] == ()
    assert notes[5.0][0].startswith("sound damaged: ")


def test_sound_of_which_nothing_decodes_fails_the_clip(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", sounds=[Sound(samples=tone(1), codec="aac")])
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    with pytest.raises(ClipError, match="no sound: no sample decodes") as caught:
        listen(path)
    assert caught.value.kind == "decode"


def level(samples: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(samples**2)))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "seconds", "start", "rms"),
    [
        ("v_GGSY1Qvo990.mp4", 18.158, 0.0, 0.11688),
        ("00W1lcxW-WU_40.000.mp4", 10.008, 0.0, 0.19325),
        ("ZYc410CE4Rg_0_10000__25fps_256side_16k.mp4", 10.048, 0.0, 0.02995),
        ("flipping_a_pancake.mkv", 10.368, 0.0, 0.04089),
        ("test.avi", 6.557, 0.0, 0.09176),
        ("av1-video.mp4", 15.008, 0.032, 0.11201),
        ("bbb_480p_vp9_opus_1second.webm", 1.0, 0.0, None),
        ("no_duration.webm", 4.86, 0.015, 0.0),
        ("portrait.MOV", 2.043, 0.0, 0.00268),
        ("nasa_13013.mp4", 13.056, 0.0, 0.07678),
        ("MOV00006.3gp", 15.2, 0.0, 0.10404),
        ("sample_shorter_audio.mp4", 0.743, 0.0232, 0.00058),
        ("test2_8000.mkv", 30.208, 0.032, 0.06335),
    ],
)
def test_sound_of_real_clips(shared: Path, name: str, seconds: float, start: float, rms: float | None) -> None:
    wave = listen(shared / "clips" / "ok" / name, 48000)
    assert len(wave.data) / 48000 == pytest.approx(seconds, abs=1e-3)
    assert wave.start_seconds == pytest.approx(start, abs=1e-3)
    if rms is not None:  # of all channels together; the mean of two that differ is lower
        assert level(wave.data) == pytest.approx(rms, rel=0.25, abs=1e-4)


@pytest.mark.shared
def test_sound_with_eight_channels_that_crash_a_naive_reader(shared: Path) -> None:
    wave = listen(shared / "clips" / "bad" / "sample_dts_hd_ma.mp4")
    assert len(wave.data) == pytest.approx(16043, abs=2)
