"""Rendered files: what is drawn and played is what the facts say, and it survives H.264 and AAC on time."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from avpipe.data_manifests.datasets import synthetic
from avpipe.data_manifests.datasets.synthetic import Config, Counts
from avpipe.data_manifests.synthesis import render as rendering
from avpipe.data_manifests.synthesis.facts import (
    BLOCK,
    COLOURS,
    PULSES,
    SHAPES,
    SOUNDS,
    Beats,
    Facts,
    Picture,
    Sound,
    draw,
)
from avpipe.data_manifests.synthesis.pictures import draw_frames
from avpipe.data_manifests.synthesis.render import SAMPLE_RATE, Format, encode, render
from avpipe.data_manifests.synthesis.sounds import VOICES, play_samples
from avpipe.pipeline.workspace import Workspace

FORM = Format(size=64, fps=16, seconds=4.0)
SMALL = Format(size=32, fps=8, seconds=3.0)
STILL = Picture("red", "circle", ("still",), None, 0.0, 0.0, 1.0, 0.0)
QUIET = Sound((), "steady", None, True, 1.0, 1.0, 0)
SPECTRUM_HERTZ = np.fft.rfftfreq(SAMPLE_RATE, 1 / SAMPLE_RATE)

Floats = npt.NDArray[np.float64]


def frames(picture: Picture) -> npt.NDArray[np.uint8]:
    return draw_frames(picture, size=FORM.size, fps=FORM.fps, seconds=FORM.seconds)


def samples(sound: Sound) -> npt.NDArray[np.float32]:
    return play_samples(sound, sample_rate=SAMPLE_RATE, seconds=FORM.seconds)


def places(data: npt.NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Column, row and area of the object in each frame, in pixels: the object is what is coloured."""
    coloured = (data.max(axis=-1).astype(int) - data.min(axis=-1)) > 60
    area = coloured.sum(axis=(1, 2))
    grid = np.arange(data.shape[1])
    return (coloured.sum(axis=1) * grid).sum(axis=1) / area, (coloured.sum(axis=2) * grid).sum(axis=1) / area, area


def loudest_hertz(second: npt.NDArray[np.float32]) -> float:
    return float(SPECTRUM_HERTZ[np.abs(np.fft.rfft(second)).argmax()])


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("motion", "across", "down", "growth"),
    [
        ("left", -24, 0, 1), ("right", 24, 0, 1), ("up", 0, -24, 1), ("down", 0, 24, 1), ("still", 0, 0, 1),
        ("grow", 0, 0, 3.8), ("shrink", 0, 0, 1 / 3.8),
    ],
)  # fmt: skip
def test_an_object_does_what_it_is_said_to_do(motion: str, across: int, down: int, growth: float) -> None:
    x, y, area = places(frames(replace(STILL, motions=(motion,))))
    assert x[-1] - x[0] == pytest.approx(across, abs=2)
    assert y[-1] - y[0] == pytest.approx(down, abs=2)
    assert area[-1] / area[0] == pytest.approx(growth, rel=0.1)


def test_two_motions_follow_one_another() -> None:
    x, y, _ = places(frames(replace(STILL, motions=("left", "down"))))
    assert x[32] - x[0] < -20
    assert abs(y[32] - y[0]) < 2
    assert abs(x[63] - x[32]) < 2
    assert y[63] - y[32] > 20


def test_a_ball_is_lowest_on_its_beats() -> None:
    beats = Beats(period_seconds=1.0, offset_seconds=0.0625, late=True)
    _, y, _ = places(frames(replace(STILL, shape="ball", motions=(), beats=beats)))
    assert [frame for frame in range(1, 63) if y[frame] > y[frame - 1] and y[frame] > y[frame + 1]] == [9, 25, 41, 57]


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_look_as_they_are_called(colour: str) -> None:
    red, green, blue = frames(replace(STILL, colour=colour))[0, 32, 32].astype(int)
    assert {
        "red": red > 2 * max(green, blue),
        "green": green > 2 * max(red, blue),
        "blue": blue > 2 * max(red, green),
        "yellow": min(red, green) > 2 * blue,
    }[colour]


def test_shapes_differ() -> None:
    looks = {shape: frames(replace(STILL, shape=shape))[0].tobytes() for shape in (*SHAPES, "ball")}
    assert len(set(looks.values())) == len(SHAPES)
    assert looks["ball"] == looks["circle"]
    with pytest.raises(ValueError, match="expected circle, ball, square, triangle or cross, got 'blob'"):
        frames(replace(STILL, shape="blob"))


@pytest.mark.parametrize("index", range(12))
def test_nothing_leaves_the_frame(index: int) -> None:
    data = frames(draw(0, "train", index).picture).astype(int)
    border = np.concatenate([data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]])
    assert (border.max(axis=-1) - border.min(axis=-1) > 60).mean() < 0.05


# -- sounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SOUNDS, *PULSES])
def test_every_sound_is_heard_and_not_too_loud(name: str) -> None:
    beats = Beats(0.75, 0.0, late=False) if name in PULSES else None
    heard = samples(replace(QUIET, sounds=(name,), beats=beats))
    assert 0.1 < np.abs(heard).max() <= 1
    assert set(VOICES) == {*SOUNDS, *PULSES}


def test_silence_is_silent() -> None:
    assert not samples(QUIET).any()


@pytest.mark.parametrize(("name", "hertz"), [("low tone", 160), ("high tone", 1800)])
def test_tones_are_low_and_high(name: str, hertz: float) -> None:
    assert loudest_hertz(samples(replace(QUIET, sounds=(name,)))[:SAMPLE_RATE]) == pytest.approx(hertz, abs=3)


def test_two_sounds_follow_one_another() -> None:
    heard = samples(replace(QUIET, sounds=("high tone", "low tone")))
    assert (
        loudest_hertz(heard[SAMPLE_RATE : 2 * SAMPLE_RATE])
        > 1000
        > loudest_hertz(heard[2 * SAMPLE_RATE : 3 * SAMPLE_RATE])
    )


@pytest.mark.parametrize(("dynamics", "ratio"), [("steady", 1.0), ("louder", 17.8), ("softer", 1 / 17.8)])
def test_dynamics(dynamics: str, ratio: float) -> None:
    heard = np.abs(samples(replace(QUIET, sounds=("siren",), dynamics=dynamics)))
    assert heard[-8000:].mean() / heard[:8000].mean() == pytest.approx(ratio, rel=0.25)


@pytest.mark.parametrize("name", PULSES)
@pytest.mark.parametrize("late", [False, True])
def test_pulses_start_on_their_beats(name: str, late: bool) -> None:
    beats = Beats(period_seconds=0.75, offset_seconds=0.0625, late=late)
    assert onsets(samples(replace(QUIET, sounds=(name,), beats=beats))) == pytest.approx(
        np.arange(beats.first_seconds, 3.85, 0.75), abs=0.01
    )


@pytest.mark.parametrize("seconds", [3.0, 3.8126, 4.0, 7.3])
def test_a_clip_may_have_any_length(seconds: float) -> None:
    for each in (draw(0, "train", index) for index in range(BLOCK)):
        assert len(play_samples(each.sound, sample_rate=8000, seconds=seconds)) == round(seconds * 8000)
        assert len(draw_frames(each.picture, size=32, fps=12, seconds=seconds)) == round(seconds * 12)


# -- files -------------------------------------------------------------------------------------------------------------


def onsets(heard: npt.NDArray[np.float32]) -> list[float]:
    """When sounds start after silence, in seconds."""
    level = np.sqrt(np.convolve(heard.astype(float) ** 2, np.ones(80) / 80, mode="same"))
    loud = level > 0.2 * np.percentile(level, 99.5)
    starts = np.flatnonzero(loud[1:] & ~loud[:-1]) + 1
    starts = starts if not loud[0] else np.concatenate([[0], starts])
    return [
        start / SAMPLE_RATE for number, start in enumerate(starts) if number == 0 or start - starts[number - 1] > 4000
    ]


def decode(data: bytes) -> tuple[Floats, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Times of the frames, frames, samples (the first one at time 0)."""
    with av.open(io.BytesIO(data)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        parts = list(container.decode(audio=0))
    assert parts[0].time == 0
    return (
        np.array([time for time, _ in pictures]),
        np.stack([picture for _, picture in pictures]),
        np.concatenate([part.to_ndarray()[0] for part in parts]),
    )


def packets(data: bytes, kind: str) -> list[bytes]:
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def synchrony_clips(blocks: int) -> list[Facts]:
    drawn = (draw(3, "train", index) for index in range(blocks * BLOCK))
    return [each for each in drawn if each.in_time is not None]


def test_the_same_facts_give_the_same_bytes_whatever_was_encoded_before() -> None:
    """Guards the choice of x264's options: with macroblock trees, about one clip in ten differed."""
    drawn = [draw(0, "train", index) for index in range(40)]
    forward = [encode(facts, SMALL) for facts in drawn]
    backward = [encode(facts, SMALL) for facts in reversed(drawn)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 40


def test_rendering_and_version_go_together() -> None:
    """If this fails, pixels or samples have changed: raise VERSION, and then the numbers here."""
    drawn = [draw(0, "train", index) for index in range(16)]
    brightness = [float(frames(facts.picture).mean()) for facts in drawn]
    loudness = [float(np.abs(samples(facts.sound)).mean()) for facts in drawn]
    assert synthetic.VERSION == 1
    assert sum(brightness) == pytest.approx(665.246, abs=0.01)
    assert sum(loudness) == pytest.approx(0.61961, abs=1e-4)


@pytest.mark.parametrize("facts", synchrony_clips(2))
def test_landings_and_pulses_are_on_time_after_decoding(facts: Facts) -> None:
    """In time: within a few milliseconds. Out of time: half a period apart. The delays of both codecs are undone."""
    assert facts.picture.beats
    times, pictures, heard = decode(encode(facts, FORM))
    _, y, _ = places(pictures)
    inner = range(1, len(y) - 1)
    landings = times[[n for n in inner if y[n] > y[n - 1] and y[n] >= y[n + 1] and y[n] > y.max() - 2]]
    period = facts.picture.beats.period_seconds
    starts = [start for start in onsets(heard) if period / 2 < start < FORM.seconds - period / 2]
    assert len(starts) >= 2
    apart = [np.abs(landings - start).min() for start in starts]
    assert apart == pytest.approx([0.0 if facts.in_time else period / 2] * len(starts), abs=0.01)


def test_no_stream_of_a_file_knows_of_the_other() -> None:
    """The four files of a quad share two video streams and two audio streams, byte for byte."""
    files = {(each.picture, each.sound): encode(each, FORM) for each in synchrony_clips(1)}
    assert len(files) == 4
    for modality, kind in ((0, "video"), (1, "audio")):
        streams = {(facts[modality], tuple(packets(data, kind))) for facts, data in files.items()}
        assert len(streams) == 2


def test_silence_may_come_without_a_stream() -> None:
    with av.open(io.BytesIO(encode(Facts(STILL, replace(QUIET, has_track=False)), FORM))) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 0)
    _, _, heard = decode(encode(Facts(STILL, QUIET), FORM))
    assert not heard.any()


# -- rendering ---------------------------------------------------------------------------------------------------------


def jobs(folder: Path, count: int) -> dict[Path, Facts]:
    return {folder / f"{index}.mp4": draw(0, "train", index) for index in range(count)}


def test_what_is_there_is_not_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert render(jobs(tmp_path, 3), SMALL, processes=1) == 3
    calls: list[Facts] = []
    monkeypatch.setattr(rendering, "encode", lambda facts, form: calls.append(facts) or b"new")
    told: list[tuple[int, int]] = []
    assert render(jobs(tmp_path, 5), SMALL, 1, lambda done, total: told.append((done, total))) == 2
    assert calls == [draw(0, "train", 3), draw(0, "train", 4)]
    assert told == [(3, 5), (5, 5)]


def test_many_processes_give_the_same_files_as_one(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        assert render(jobs(folder, 40), SMALL, processes, lambda done, total: told.append((done, total))) == 40
    assert told.count((0, 40)) == told.count((40, 40)) == 2
    for path in jobs(tmp_path / "1", 40):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_another_size_or_seed_is_another_folder(tmp_path: Path) -> None:
    roots = set()
    for change in ({}, {"size": 34}, {"fps": 9}, {"seconds": 3.5}, {"seed": 1}):
        options = {"clips": Counts(train=1, val=0, test=0), "size": 32, "fps": 8, "seconds": 3.0, **change}
        prepared = synthetic.prepare(Config(**options), media=None, annotations=None, workspace=Workspace(tmp_path))
        assert (prepared.media_root / prepared.clips[0].path).is_file()
        roots.add(prepared.media_root)
    assert len(roots) == 5


def test_media_may_be_rendered_elsewhere(tmp_path: Path) -> None:
    config = Config(clips=Counts(train=1, val=0, test=0), size=32, fps=8, seconds=3.0)
    prepared = synthetic.prepare(
        config, media=tmp_path / "disk", annotations=None, workspace=Workspace(tmp_path / "workspace")
    )
    assert prepared.media_root.parent == tmp_path / "disk"
    assert not (tmp_path / "workspace").exists()


PROGRAM = """
import sys
from pathlib import Path
from avpipe.data_manifests.synthesis.facts import draw
from avpipe.data_manifests.synthesis.render import Format, render
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    clips = {folder / f"{index}.mp4": draw(0, "train", index) for index in range(96)}
    render(clips, Format(size=32, fps=8, seconds=3.0), processes=2)
"""


def test_a_killed_run_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, program, out])
    while len(list(out.glob("[0-9]*.mp4"))) < 8:
        assert child.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(child.pid).children()
    child.kill()
    child.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert 8 <= len(list(out.glob("[0-9]*.mp4"))) < 96
    (out / ".7.mp4.elsewhere.1.tmp").touch()  # another machine's, and young: left alone
    subprocess.run([sys.executable, program, out], check=True)
    assert len(list(out.iterdir())) == 97
    for index in (0, 7, 95):
        assert (out / f"{index}.mp4").read_bytes() == encode(draw(0, "train", index), SMALL)
