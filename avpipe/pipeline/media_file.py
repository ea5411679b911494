"""Opening one local media file safely, choosing the streams of it that count, and reading their packets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from avpipe.pipeline.errors import ClipError

FORMATS = (
    "3g2", "3gp", "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "av1", "avi", "caf", "dts",
    "dtshd", "dv", "eac3", "flac", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "m4a", "m4v",
    "matroska", "mj2", "mjpeg", "mlp", "mov", "mp3", "mp4", "mpc", "mpc8", "mpeg", "mpegts", "mpegvideo", "mxf",
    "nut", "obu", "ogg", "rm", "swf", "tak", "truehd", "tta", "vc1", "voc", "w64", "wav", "webm", "wtv", "wv",
    "yuv4mpegpipe",
)  # fmt: skip
"""The demuxers that may read a clip: single local media files. Not among them: playlists and scripts that open other
files (hls, dash, concat, sdp), devices, pictures and text."""

_MOST_READ_ERRORS = 16


LOOK_ONLY: Mapping[str, str] = {"skip_frame": "all"}
"""Options of :func:`open_container` where no picture is wanted: none is decoded to look what is in the file, which
takes a third off the time. Sizes, rates and durations stay the same."""


def open_container(path: str | os.PathLike[str], options: Mapping[str, str] | None = None) -> InputContainer:
    """Open a media file. The one place where avpipe does so.

    Args:
        path: of the file.
        options: more of FFmpeg's, for example :data:`LOOK_ONLY`.

    Raises:
        ClipError: ``"missing_file"``, ``"open"``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ClipError("missing_file", f"{path.name} {what}")
    # The last is for the decoders that look what is in a file: nobody sees those pictures.
    safe = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), "skip_loop_filter": "all"}
    try:
        return av.open(f"file:{path}", options={**(options or {}), **safe}, metadata_errors="ignore")
    except av.FFmpegError as error:
        why = "not of a format that avpipe reads" if isinstance(error, av.ArgumentError) else error.strerror
        raise ClipError("open", f"{path.name} ({path.stat().st_size} bytes): {why}") from None


def choose_streams(
    container: InputContainer, max_pixels: int, notes: list[str]
) -> tuple[VideoStream | None, AudioStream | None]:
    """The best video and the best audio stream by FFmpeg's rule; the others are not read. Cover pictures are none.

    Args:
        container: the open file.
        max_pixels: of one picture.
        notes: what a user should know is added here.

    Raises:
        ClipError: ``"no_streams"``, ``"too_large"``.
    """
    video, audio = _best_video(container, notes), _best_audio(container, notes)
    if not (video or audio):
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        why = "".join(f"; {note}" for note in notes)
        raise ClipError("no_streams", f"neither video nor audio that can be decoded; streams: {kinds}{why}")
    for stream in container.streams:
        if stream in (video, audio):
            stream.codec_context.thread_count = 1  # the clips are what runs in parallel
        else:
            stream.discard = Discard.all
    if video:
        context = video.codec_context
        if context.width * context.height > max_pixels:
            size = f"{context.width}x{context.height}"
            raise ClipError("too_large", f"a picture of {size} pixels; the limit is {max_pixels} in all")
        context.options = {"max_pixels": str(max_pixels)}
    return video, audio


def read_packets(container: InputContainer, streams: Sequence[Stream], notes: list[str]) -> Iterator[Packet[Stream]]:
    """Packets from the present position on. Reading goes on after an error, as long as there is something.

    Args:
        container: the open file.
        streams: those to read.
        notes: what a user should know is added here.
    """
    errors = 0
    while errors < _MOST_READ_ERRORS:
        try:
            for packet in container.demux(streams):
                if packet.size:  # the empty ones would flush a decoder
                    errors = 0
                    yield packet
        except av.FFmpegError as error:
            if not errors:
                notes.append(f"file damaged: {error.strerror}")
            errors += 1
        except IndexError:  # PyAV's, at the file's end, where streams came up that the header does not name
            return
        else:
            return


def codec_name(stream: Stream) -> str:
    """Canonical name of a stream's codec, whichever decoder there is for it: ``"av1"``, not ``"libdav1d"``."""
    return stream.codec_context.codec.canonical_name


def time_base(stream: Stream) -> Fraction:
    """The unit of a stream's time stamps, in seconds."""
    return stream.time_base or Fraction(1, av.time_base)


def frame_seconds(stream: VideoStream) -> float:
    """How long a frame lasts, as far as the header says; 1/25 s where it does not."""
    return float(1 / stream.guessed_rate) if stream.guessed_rate else 0.04


def _best_video(container: InputContainer, notes: list[str]) -> VideoStream | None:
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    best = container.streams.best("video")
    for stream in dict.fromkeys((best, *container.streams.video)):
        if isinstance(stream, VideoStream) and not stream.disposition & pictures:
            if stream.codec_context is not None:
                return stream
            notes.append(f"no decoder for video stream #{stream.index}")
    return None


def _best_audio(container: InputContainer, notes: list[str]) -> AudioStream | None:
    best = container.streams.best("audio")
    for stream in dict.fromkeys((best, *container.streams.audio)):
        if isinstance(stream, AudioStream):
            if stream.codec_context is not None:
                return stream
            notes.append(f"no decoder for audio stream #{stream.index}")
    return None
