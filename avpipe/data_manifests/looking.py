"""One look at one media file: its header, and its sound up to the first sample that can be heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Discard, Stream
from av.video.stream import VideoStream

from avpipe.data_manifests.probe import SILENCE_DBFS, AudioFacts, Probe, VideoFacts
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.media_file import (
    LOOK_ONLY,
    choose_streams,
    codec_name,
    frame_seconds,
    open_container,
    read_packets,
    time_base,
)
from avpipe.pipeline.samples import Unpacker

_LOUD = 10 ** (SILENCE_DBFS / 20)


def look(path: Path, max_pixels: int) -> Probe:
    """Look at one file.

    Raises:
        ClipError: it cannot be used; see :class:`Probe` for the kinds.
    """
    with open_container(path, LOOK_ONLY) as container:
        notes: list[str] = []
        video, audio = choose_streams(container, max_pixels, notes)
        streams: list[Stream] = [stream for stream in (video, audio) if stream]
        duration_seconds = (container.duration or 0) / av.time_base
        end = _End(streams) if duration_seconds <= 0 else None
        ear = _Ear(audio) if audio else None
        is_empty = True
        for packet in read_packets(container, streams, notes):
            is_empty = False
            if end:
                end.add(packet)
            elif video:
                video.discard = Discard.all  # there is something: the rest of it need not even be read
            if ear and packet.stream is audio:
                ear.add(packet)
            if not end and (not ear or ear.is_loud):
                break
        else:
            if ear:
                ear.add(None)
        if is_empty:
            raise ClipError("empty", "the header is there, but nothing follows it")
        if ear and not ear.has_heard and not video:
            raise ClipError("decode", "; ".join(dict.fromkeys(["no sound: no sample decodes", *notes])))
        return Probe(
            duration_seconds=end.seconds if end else duration_seconds,
            video=_video_facts(video) if video else None,
            audio=_audio_facts(audio) if audio else None,
            is_silent=not ear.is_loud if ear and ear.has_heard else None,
        )


def _video_facts(stream: VideoStream) -> VideoFacts:
    context, rate = stream.codec_context, stream.average_rate or stream.guessed_rate
    return VideoFacts(
        codec=codec_name(stream),
        width=max(0, context.width),
        height=max(0, context.height),
        frames_per_second=float(rate) if rate and rate > 0 else None,
    )


def _audio_facts(stream: AudioStream) -> AudioFacts:
    context = stream.codec_context
    return AudioFacts(
        codec=codec_name(stream),
        sample_rate=max(0, context.sample_rate or 0),
        channels=max(0, context.layout.nb_channels),
    )


class _Ear:
    """Listens to a stream until something is heard.

    Attributes:
        is_loud: whether something was louder than silence.
        has_heard: whether anything decoded so far.
    """

    def __init__(self, stream: AudioStream) -> None:
        self._context = stream.codec_context
        self._unpacker: Unpacker | None = None
        self.is_loud = self.has_heard = False

    def add(self, packet: Packet[Stream] | None) -> None:
        """Listen to the next packet; ``None``: to what the decoder still holds.

        Raises:
            ClipError: ``"memory"``.
        """
        if self.is_loud:
            return
        try:
            for frame in self._context.decode(packet):
                self._hear(frame)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise ClipError("memory", f"decoding sound: {error.strerror}") from None

    def _hear(self, frame: AudioFrame) -> None:
        if not frame.samples or not frame.sample_rate:
            return
        if self._unpacker is None or not self._unpacker.fits(frame):
            self._unpacker = Unpacker(frame, frame.sample_rate)
        for samples in self._unpacker.unpack(frame):
            self.has_heard = True
            loudness = np.abs(samples)
            if not loudness.max(initial=0.0) <= _LOUD:
                # A damaged packet may decode to anything: what is no number cannot be heard.
                self.is_loud |= bool((loudness[np.isfinite(loudness)] > _LOUD).any())


class _End:
    """Where the packets of a file end, on the clock of an extraction: zero is where the first stream begins."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._zero = float(min((s.start_time * time_base(s) for s in streams if s.start_time is not None), default=0))
        self._ends: dict[int, float] = {}

    @property
    def seconds(self) -> float | None:
        """Of the last one, from the file's start; ``None`` if there is none."""
        return max(0.0, max(self._ends.values()) - self._zero) if self._ends else None

    def add(self, packet: Packet[Stream]) -> None:
        """Note the next packet. One without a time follows the one before."""
        stream, index = packet.stream, packet.stream_index
        unit = float(time_base(stream))
        ticks = packet.dts if packet.pts is None else packet.pts
        begin = self._ends.get(index, self._zero) if ticks is None else ticks * unit
        length = packet.duration * unit if packet.duration else 0.0
        if not length and isinstance(stream, VideoStream):
            length = frame_seconds(stream)
        self._ends[index] = max(self._ends.get(index, -math.inf), begin + length)
