"""Decoding the sound of one clip once, for everybody who wants it at some rate.

Samples are placed by their time stamps: what comes late starts late, a gap inside is filled with zeros, an overlap is
dropped, and nothing drifts. The resampler is libswresample's, through its filter; it neither delays nor loses samples.

Frames of sound are short and many, so what is done to each of them is little: their samples are looked at where the
decoder left them, and everything else happens to a stretch of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Stream

from avpipe.extract.demux import Source
from avpipe.extract.media import AudioRequest, Waveform
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.samples import Channels, Samples, Unpacker

_TOLERANCE_SECONDS = 0.02  # below a frame of any codec, above the jitter of any container
_GAP_SECONDS = -1.0, 60.0  # beyond these, back or forth, it is the clock that jumped
_STRETCH_SAMPLES = 1 << 15  # how much is downmixed and resampled at once


class SoundReader:
    """Decodes the sound packets of one clip as they come.

    Args:
        source: the open file.
        stream: its sound.
        requests: what is wanted.
        start_seconds: of the clip, from the file's start.
        stop_seconds: excluded; ``None``: the end of the file.

    Attributes:
        errors: how many packets did not decode so far.
    """

    def __init__(
        self,
        source: Source,
        stream: AudioStream,
        requests: Iterable[AudioRequest],
        start_seconds: float,
        stop_seconds: float | None,
    ) -> None:
        self._source, self._stream, self._context = source, stream, stream.codec_context
        self._start = start_seconds
        length = math.inf if stop_seconds is None else stop_seconds - start_seconds
        self._lines = [_Line(request, min(length, request.max_seconds or math.inf)) for request in set(requests)]
        self._limit_seconds = max((line.limit_seconds for line in self._lines), default=0.0)
        self._rate = 0  # of the first frame; all that follows is brought to it
        self._unpacker: Unpacker | None = None
        self._next: int | None = None  # where the next sample belongs, counted from the clip's start
        self._shift = 0  # by which the clock jumped
        self._waiting: list[Channels] = []  # equally many channels each, without a gap between them ...
        self._waiting_count = 0  # ... and as many samples, up to the next one
        self._packets = 0
        self._is_done = False
        self.errors = 0

    def add(self, packet: Packet[Stream]) -> None:
        """Decode the next packet of the stream."""
        self._packets += 1
        if not self._is_done:
            self._decode(packet)

    def finish(self) -> dict[AudioRequest, Waveform]:
        """The waveforms, by what was asked for; none where there is no sound in the clip."""
        if not self._is_done:
            self._decode(None)
            if self._unpacker:
                self._place(self._unpacker.flush(), None)
        self._hand_on()
        if self.errors:
            self._source.notes.append(f"sound damaged: {self.errors} of {self._packets} packets do not decode")
        waveforms = ((line.request, line.finish()) for line in self._lines)
        return {request: waveform for request, waveform in waveforms if waveform is not None}

    def _decode(self, packet: Packet[Stream] | None) -> None:
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise ClipError("memory", f"decoding sound: {error.strerror}") from None
            self.errors += 1
            return
        for frame in frames:
            if self._next is None and self._start:
                self.errors = 0  # cut off from what came before, and not part of the clip
            self._take(frame)

    def _take(self, frame: AudioFrame) -> None:
        if not frame.samples or not frame.sample_rate:
            return
        self._rate = self._rate or frame.sample_rate
        if self._unpacker is None or not self._unpacker.fits(frame):
            if self._unpacker:
                self._place(self._unpacker.flush(), None)
            self._unpacker = Unpacker(frame, self._rate)
        self._place(self._unpacker.unpack(frame), self._source.seconds(frame.pts, self._stream))

    def _place(self, channels: Channels, seconds: float | None) -> None:
        """Take samples that belong at ``seconds`` of the file, or right after those before."""
        if seconds is not None:
            position = round((seconds - self._start) * self._rate)
            if self._next is None:
                self._next = position
            gap = position - self._shift - self._next
            if not _GAP_SECONDS[0] * self._rate <= gap <= _GAP_SECONDS[1] * self._rate:
                self._source.notes.append(f"sound: the clock jumps by {gap / self._rate:.1f} s; ignored")
                self._shift += gap
            elif gap > _TOLERANCE_SECONDS * self._rate:
                self._append([np.zeros(gap, np.float32)])
            elif gap < -_TOLERANCE_SECONDS * self._rate:
                channels = [samples[-gap:] for samples in channels]
        self._append(channels)

    def _append(self, channels: Channels) -> None:
        if not channels:
            return
        if self._waiting and len(channels) != len(self._waiting[0]):
            self._hand_on()
        self._waiting.append(channels)
        self._waiting_count += len(channels[0])
        self._next = (self._next or 0) + len(channels[0])
        self._is_done = self._next >= self._limit_seconds * self._rate
        if self._waiting_count >= _STRETCH_SAMPLES:
            self._hand_on()

    def _hand_on(self) -> None:
        """Give what waits to the lines."""
        if not self._waiting_count:
            return
        samples: Samples = np.stack([np.concatenate(parts) for parts in zip(*self._waiting, strict=True)])
        if not np.isfinite(samples).all():  # a damaged packet may decode to anything
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        position = (self._next or 0) - self._waiting_count
        self._waiting, self._waiting_count = [], 0
        before = max(0, -position)
        if samples.shape[1] > before:
            for line in self._lines:
                line.add(samples[:, before:], position + before, self._rate)


class _Line:
    """The waveform for one request, as it grows."""

    def __init__(self, request: AudioRequest, limit_seconds: float) -> None:
        self.request, self.limit_seconds = request, limit_seconds
        self._rate = self._begin = self._count = 0
        self._parts: list[Samples] = []
        self._resampler: AudioResampler | None = None

    def add(self, samples: Samples, position: int, rate: int) -> None:
        """Take samples ``(channels, n)`` that belong at ``position``."""
        if not self._count:
            self._rate, self._begin = rate, position
            if rate != self.request.sample_rate:
                self._resampler = AudioResampler(format="flt", layout="mono", rate=self.request.sample_rate)
        if math.isfinite(self.limit_seconds):
            samples = samples[:, : max(0, math.ceil(self.limit_seconds * rate) - position)]
        mono = samples[0] if self.request.downmix == "first" else samples.mean(axis=0, dtype=np.float32)
        self._count += len(mono)
        if not self._resampler:
            self._parts.append(mono)
        elif len(mono):
            frame = AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            self._parts += [part.to_ndarray()[0] for part in self._resampler.resample(frame)]

    def finish(self) -> Waveform | None:
        if not self._count:
            return None
        if self._resampler:
            self._parts += [part.to_ndarray()[0] for part in self._resampler.resample(None)]
        if not self._parts:  # shorter than the resampler's filter
            return None
        # The resampler rounds the number of samples up.
        data = np.concatenate(self._parts)[: round(self._count * self.request.sample_rate / self._rate)]
        if not len(data):
            return None
        return Waveform(data=data, sample_rate=self.request.sample_rate, start_seconds=self._begin / self._rate)
