"""Reading the packets of one media file from a given second on."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from avpipe.extract import bitstream
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.media_file import (
    choose_streams,
    codec_name,
    frame_seconds,
    open_container,
    read_packets,
    time_base,
)

SOUND_LEAD_SECONDS = 1.0
"""How long before a cut-out's start its sound is decoded: lossy codecs need what came before to settle."""

Key = tuple[int | None, int | None, int]
"""``(pts, dts, size)``: what tells a packet from the others of its stream."""

_SEEK_BACK_SECONDS = (0.0, 4.0, 16.0, 64.0, 256.0)
_READ_ON_SECONDS = 10.0


@contextmanager
def open_source(path: str | os.PathLike[str], limits: Limits) -> Iterator[Source]:
    """Open a media file and choose its streams.

    Raises:
        ClipError: ``"missing_file"``, ``"open"``, ``"no_streams"``, ``"too_large"``.
    """
    with open_container(path) as container:
        notes: list[str] = []
        video, audio = choose_streams(container, limits.max_pixels, notes)
        source = Source(container, video, audio, notes=notes)
        starts = [source.seconds(stream.start_time, stream) for stream in source.streams]
        source.zero_seconds = min((start for start in starts if start is not None), default=0.0)
        if video:
            source.inspect = bitstream.inspector(codec_name(video), video.codec_context.extradata or b"")
        yield source


def _frame_ticks(stream: Stream) -> float:
    """How long a packet of a stream lasts that does not say so, in units of its time stamps."""
    return frame_seconds(stream) / float(time_base(stream)) if isinstance(stream, VideoStream) else 0.0


def key(packet: Packet[Stream]) -> Key:
    """What tells a packet from the others of its stream."""
    return packet.pts, packet.dts, packet.size


@dataclass(slots=True)
class Source:
    """An open file, and the streams of it that count.

    Attributes:
        container: the open file.
        video: the best video stream by FFmpeg's rule; cover pictures are none. ``None``: there is none.
        audio: the best audio stream.
        zero_seconds: time stamp of the file's start: the earliest of the two streams, as FFmpeg's command line has it.
        inspect: reads a video packet's own headers; ``None`` where only the container's flags are known.
        notes: what a user should know.
    """

    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    zero_seconds: float = 0.0
    inspect: bitstream.Inspect | None = None
    notes: list[str] = field(default_factory=list)
    _time_bases: dict[int, tuple[int, int]] = field(init=False)
    _frame_ticks: dict[int, float] = field(init=False)
    _ends: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # As integers, once: fractions are slow, and packets are many.
        self._time_bases = {stream.index: time_base(stream).as_integer_ratio() for stream in self.streams}
        self._frame_ticks = {stream.index: _frame_ticks(stream) for stream in self.streams}

    def packets(self, start_seconds: float = 0.0, stop_seconds: float | None = None) -> Iterator[Packet[Stream]]:
        """Packets of both streams in file order.

        Begins where everything from ``start_seconds`` on can be decoded: at an entry point of the video, and well
        before in the sound. Ends when no later packet can hold anything before ``stop_seconds``.
        """
        packets = self._noting_ends(self._read_from(start_seconds) if start_seconds > 0 else self._read(self.streams))
        return packets if stop_seconds is None else self._before(packets, stop_seconds)

    def video_again(self, first: Key) -> Iterator[Packet[Stream]]:
        """The video packets once more, from the one with this key on; nothing if it is not found again."""
        video = self._main
        for rewind in (first[1] is None and first[0] is None, True):
            if rewind:
                self._rewind()
            elif not self._seek(cast(int, first[0] if first[1] is None else first[1])):
                continue
            packets = self._read([video])
            for packet in packets:
                if key(packet) == first:
                    yield packet
                    yield from packets
                    return

    def is_entry(self, packet: Packet[Stream]) -> bool:
        """Whether this is a packet of the video (of the sound, if there is no video) where decoding may start."""
        if packet.stream is not self._main:
            return False
        if self.inspect is None:
            return packet.is_keyframe
        return bool(self.inspect(bytes(packet)) & bitstream.ENTRY)

    def seconds(self, ticks: int | None, stream: Stream) -> float | None:
        """A time stamp as seconds from the file's start."""
        if ticks is None:
            return None
        numerator, denominator = self._time_bases[stream.index]
        return ticks * numerator / denominator - self.zero_seconds

    def ends_early(self) -> str:
        """A note where a file that was read to its end is much shorter than its header says; empty if it is not."""
        duration = (self.container.duration or 0) / av.time_base
        if self.end_seconds >= 0.9 * duration - 0.5:
            return ""
        return f"file cut short: it ends at {self.end_seconds:.1f} s of {duration:.1f} s"

    @property
    def ends_seconds(self) -> dict[int, float]:
        """By stream index: where the packets that :meth:`packets` met so far end, from the file's start."""
        ends = {}
        for index, ticks in self._ends.items():
            numerator, denominator = self._time_bases[index]
            ends[index] = max(0.0, ticks * numerator / denominator - self.zero_seconds)
        return ends

    @property
    def end_seconds(self) -> float:
        """Where the latest of the packets so far ends; 0.0 if there was none."""
        return max(self.ends_seconds.values(), default=0.0)

    @property
    def streams(self) -> list[Stream]:
        """The streams that count: one or two."""
        return [stream for stream in (self.video, self.audio) if stream]

    @property
    def _main(self) -> Stream:
        return self.streams[0]

    def _noting_ends(self, packets: Iterator[Packet[Stream]]) -> Iterator[Packet[Stream]]:
        """The same packets. What is done to each is little: it is done to every packet of every clip."""
        ends, frame_ticks = self._ends, self._frame_ticks
        for packet in packets:
            index = packet.stream_index
            begin: float | None = packet.dts if packet.pts is None else packet.pts
            if begin is None:
                numerator, denominator = self._time_bases[index]
                begin = ends.get(index, self.zero_seconds * denominator / numerator)
            end = begin + (packet.duration or frame_ticks[index])
            if index not in ends or end > ends[index]:
                ends[index] = end
            yield packet

    def _before(self, packets: Iterator[Packet[Stream]], stop_seconds: float) -> Iterator[Packet[Stream]]:
        """Those of the packets that can hold anything before ``stop_seconds``."""
        running = {stream.index for stream in self.streams}
        for packet in packets:
            # A time to decode is never after the time to show; without one, allow for reordering.
            margin = 1.0 if packet.dts is None else 0.0
            seconds = self.seconds(packet.pts if packet.dts is None else packet.dts, packet.stream)
            if seconds is not None and seconds >= stop_seconds + margin:
                running.discard(packet.stream_index)
                if not running or seconds >= stop_seconds + _READ_ON_SECONDS:
                    return
                continue
            yield packet

    def _read(self, streams: Sequence[Stream]) -> Iterator[Packet[Stream]]:
        """Packets from the present position on."""
        return read_packets(self.container, streams, self.notes)

    def _read_from(self, start_seconds: float) -> Iterator[Packet[Stream]]:
        """Packets from an entry point well before ``start_seconds`` on; from the file's start if there is none."""
        latest = start_seconds - SOUND_LEAD_SECONDS
        for back in _SEEK_BACK_SECONDS:
            ticks = math.floor((latest - back + self.zero_seconds) / time_base(self._main))
            if latest - back <= 0 or not self._seek(ticks):
                break
            packets = self._read(self.streams)
            head = list(_until(packets, self.is_entry))
            seconds = self.seconds(head[-1].pts, self._main) if head else None
            if head and self.is_entry(head[-1]) and seconds is not None and seconds <= latest:
                # What comes before an entry point was cut off from what it refers to.
                sound = (packet for packet in head[:-1] if packet.stream is self.audio)
                return itertools.chain(sound, head[-1:], packets)
        self._rewind()
        return self._read(self.streams)

    def _seek(self, ticks: int) -> bool:
        try:
            self.container.seek(ticks, stream=self._main)
        except av.FFmpegError:
            return False
        return True

    def _rewind(self) -> None:
        """Back to the first packet: some demuxers want a time before it, some exactly it, raw streams a byte."""
        start = self._main.start_time or 0
        before = start - math.ceil(10 / time_base(self._main))
        if not (self._seek(before) or self._seek(start)):
            with suppress(av.FFmpegError):  # where that fails as well, the reader finds nothing and says so
                self.container.seek(0, unsupported_byte_offset=True)


def _until(packets: Iterator[Packet[Stream]], is_last: Callable[[Packet[Stream]], bool]) -> Iterator[Packet[Stream]]:
    """Packets up to and including the first for which this holds."""
    for packet in packets:
        yield packet
        if is_last(packet):
            return
