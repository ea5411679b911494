"""Opening one local media file safely, choosing its streams, and reading its packets from a given second on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from avpipe.extract import bitstream
from avpipe.extract.media import Limits
from avpipe.pipeline.errors import ClipError

FORMATS = (
    "3g2", "3gp", "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "av1", "avi", "caf", "dts", "dtshd",
    "dv", "eac3", "flac", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "m4a", "m4v", "matroska", "mj2",
    "mjpeg", "mlp", "mov", "mp3", "mp4", "mpc", "mpc8", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm",
    "swf", "tak", "truehd", "tta", "vc1", "voc", "w64", "wav", "webm", "wtv", "wv", "yuv4mpegpipe",
)  # fmt: skip
"""The demuxers that may read a clip: single local media files. Not among them: playlists and scripts that open other
files (hls, dash, concat, sdp), devices, pictures and text."""

SOUND_LEAD_SECONDS = 1.0
"""How long before a cut-out's start its sound is decoded: lossy codecs need what came before to settle."""

_SEEK_BACK_SECONDS = (0.0, 4.0, 16.0, 64.0, 256.0)
_READ_ON_SECONDS = 10.0
_MOST_READ_ERRORS = 16


def open_container(path: str | os.PathLike[str], limits: Limits) -> InputContainer:
    """Open a media file. The one place where avpipe does so.

    Raises:
        ClipError: ``"missing_file"``, ``"open"``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ClipError("missing_file", f"{path.name} {what}")
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(FORMATS),
        "max_pixels": str(limits.max_pixels),
    }
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="ignore")
    except av.FFmpegError as error:
        size = path.stat().st_size
        raise ClipError(
            "open", f"{path.name} ({size} bytes) is no media file that can be read: {error.strerror}"
        ) from None


@dataclass(slots=True)
class Source:
    """An open file, and the streams of it that count.

    Attributes:
        container: the open file.
        video: the best video stream by FFmpeg's rule; cover pictures are none. ``None``: there is none.
        audio: the best audio stream.
        zero_seconds: time stamp of the file's start: the earliest of the two streams, as FFmpeg's command line has it.
        notes: what a user should know.
    """

    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    zero_seconds: float
    notes: list[str] = field(default_factory=list)

    def packets(self, start_seconds: float = 0.0, stop_seconds: float | None = None) -> Iterator[Packet[Stream]]:
        """Packets of both streams in file order.

        Begins where everything from ``start_seconds`` on can be decoded: at an entry point of the video, and well
        before in the sound. Ends when no later packet can hold anything before ``stop_seconds``.
        """
        packets = self._seek(start_seconds) if start_seconds > 0 else self._read()
        if stop_seconds is None:
            yield from packets
            return
        running = {stream.index for stream in (self.video, self.audio) if stream}
        for packet in packets:
            seconds = self.seconds(packet.dts if packet.dts is not None else packet.pts, packet.stream)
            # A time to decode is never after the time to show; without one, allow for reordering.
            if seconds is not None and seconds >= stop_seconds + (0.0 if packet.dts is not None else 1.0):
                running.discard(packet.stream_index)
                if not running or seconds >= stop_seconds + _READ_ON_SECONDS:
                    return
                continue
            yield packet

    def again(self, first: Packet[Stream] | tuple[int | None, int | None]) -> Iterator[Packet[Stream]]:
        """The video packets once more, from at or before the one with these ``(pts, dts)`` on."""
        raise NotImplementedError

    def seconds(self, ticks: int | None, stream: Stream) -> float | None:
        """A time stamp as seconds from the file's start."""
        if ticks is None or stream.time_base is None:
            return None
        return ticks * stream.time_base.numerator / stream.time_base.denominator - self.zero_seconds
