"""Small media files rendered on the spot, and an independent full decode to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

QUIET = {"libx265": {"x265-params": "log-level=none"}}
TICKS = 1000  # of the video's clock, in a second


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What is to be heard: ``samples`` float32 ``(channels, num_samples)`` in [-1, 1]."""

    samples: npt.NDArray[np.float32]
    rate: int = 48000
    layout: str = "mono"
    codec: str = "pcm_f32le"
    start_seconds: float = 0.0


def tone(seconds: float, *, hertz: float = 440.0, rate: int = 48000) -> npt.NDArray[np.float32]:
    """A sine at half amplitude, mono."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)[None]


def clicks(seconds: float, *, rate: int = 48000, every_seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """One sample of 1.0 every so often, from 0 on."""
    samples = np.zeros((1, round(seconds * rate)), np.float32)
    samples[0, :: round(every_seconds * rate)] = 1.0
    return samples


def moving(count: int, width: int = 64, height: int = 48) -> list[npt.NDArray[np.uint8]]:
    """Noise that wanders and brightens: no frame is like another, and motion prediction finds something to do."""
    noise = np.random.default_rng(0).integers(0, 128, (height, width, 3), dtype=np.uint8)
    return [np.roll(noise, 2 * number, axis=1) + np.uint8(2 * number % 120) for number in range(count)]


def plain(shades: Sequence[int], width: int = 64, height: int = 48) -> list[npt.NDArray[np.uint8]]:
    """Frames of one grey each."""
    return [np.full((height, width, 3), shade, np.uint8) for shade in shades]


def render(
    path: Path,
    frames: Sequence[npt.NDArray[np.uint8]] = (),
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    times: Sequence[float] | None = None,
    rate: int = 25,
    gop: int = 12,
    pixel_aspect_ratio: Fraction | None = None,
    sounds: Sequence[Sound] = (),
    tags: Mapping[str, int] | None = None,
    muxer: Mapping[str, str] | None = None,
) -> Path:
    """Write a media file.

    Args:
        path: its ending says the container.
        frames: RGB pictures.
        codec: of the video.
        options: of its encoder.
        times: of each frame, in seconds; at ``rate`` if not given.
        rate: frames per second, as far as the header says.
        gop: frames between key frames.
        pixel_aspect_ratio: declared.
        sounds: one audio stream each.
        tags: fields of the video's encoder: ``{"colorspace": 1}``.
        muxer: options of the container: ``{"movflags": "faststart"}``.
    """
    with av.open(str(path), "w", options=dict(muxer or {})) as output:
        video = None
        if frames:
            video = output.add_stream(codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})})
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p"
            video.gop_size = gop
            if times is not None:
                video.codec_context.time_base = Fraction(1, TICKS)
            if pixel_aspect_ratio:
                video.codec_context.sample_aspect_ratio = pixel_aspect_ratio
            for name, value in (tags or {}).items():
                setattr(video.codec_context, name, value)
        streams = []
        for sound in sounds:
            stream = output.add_stream(sound.codec, rate=sound.rate)
            stream.layout = sound.layout
            streams.append(stream)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * TICKS), Fraction(1, TICKS)
            output.mux(video.encode(frame))
        if video:
            output.mux(video.encode(None))
        for sound, stream in zip(sounds, streams, strict=True):
            resampler = av.AudioResampler(format=stream.format, layout=sound.layout, rate=sound.rate)
            step = stream.codec_context.frame_size or 1024
            for begin in range(0, sound.samples.shape[1], step):
                part = sound.samples[:, begin : begin + step].T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(part, format="flt", layout=sound.layout)
                frame.sample_rate, frame.time_base = sound.rate, Fraction(1, sound.rate)
                frame.pts = begin + round(sound.start_seconds * sound.rate)
                for converted in resampler.resample(frame):
                    converted.pts, converted.time_base = frame.pts, frame.time_base
                    output.mux(stream.encode(converted))
            output.mux(stream.encode(None))
    return path


def full_decode(path: Path) -> tuple[npt.NDArray[np.uint8], list[int | None], Fraction]:
    """Every frame of the best video stream as it comes out, with its time stamp and their unit. Nothing clever."""
    pictures, stamps = [], []
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                pictures.append(frame.to_ndarray(format="rgb24", threads=1))
                stamps.append(frame.pts)
        return np.stack(pictures), stamps, stream.time_base


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Set the display matrix of an MP4 file's first track to ``[a b; c d]``."""
    data = bytearray(path.read_bytes())
    identity = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    at = data.index(identity, data.index(b"tkhd"))
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)
    return path
