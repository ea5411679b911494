"""Decoding the frames of one clip that somebody wants, and as few of the others as that takes.

Read first, choose, then decode: all packets of the clip are collected, their time stamps say which frames there are,
the samplers choose among those, and only then is anything decoded. Groups of pictures without a wanted frame are left
out, and so are the frames that no other refers to. The result is exact: each picture is, bit for bit, that of a full
decode.

That holds where the packets tell the truth. Whether they do is decided before (:meth:`VideoReader._packets_tell`), and
each wanted frame must then come out under its own time stamp. Otherwise everything is decoded, and the frames that come
out are the clip's frames.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from avpipe.extract import bitstream
from avpipe.extract.demux import Source, key
from avpipe.extract.media import Frames, FrameSampler
from avpipe.extract.picture import PictureMaker
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.media_file import codec_name, frame_seconds, time_base

Indices = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]
Chosen = Mapping[str, Indices]

_SELECTIVE = ("h264", "hevc", "vp9", "av1")
_IN_ORDER = ("vp9", "av1")
_PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive
_DISCARD = 8  # beside the flags of bitstream: decoded but not shown, an edit list hides it
_NO_TIME = -(1 << 63)
_EPSILON_SECONDS = 1e-6  # time stamps are rational, their differences as floats are not


class VideoReader:
    """Collects the video packets of one clip, then decodes what the samplers choose.

    Args:
        source: the open file.
        stream: its video.
        start_seconds: of the clip, from the file's start.
        stop_seconds: excluded; ``None``: the end of the file.
        limits: ``held_bytes`` is how much is kept, of packets and of frames, rather than read or decoded twice.

    Attributes:
        has_decoded: whether any frame came out so far.
    """

    def __init__(
        self, source: Source, stream: VideoStream, start_seconds: float, stop_seconds: float | None, limits: Limits
    ) -> None:
        self._source, self._stream, self._context = source, stream, stream.codec_context
        self._start, self._stop, self._limits = start_seconds, stop_seconds, limits
        self._codec = codec_name(stream)
        self._pictures = PictureMaker(
            self._context.width, self._context.height, stream.sample_aspect_ratio, source.notes
        )
        self._pts, self._dts, self._sizes, self._kinds = array("q"), array("q"), array("q"), array("B")
        self._held: list[Packet[Stream]] | None = []
        self._held_bytes = 0
        self._has_corrupt = False
        self._errors, self._is_damaged = 0, False  # in the last pass
        self._most_errors = 0
        self.has_decoded = False

    def add(self, packet: Packet[Stream]) -> None:
        """Take the next packet of the stream."""
        inspect = self._source.inspect
        kind = inspect(bytes(packet)) if inspect else bitstream.ENTRY * packet.is_keyframe
        self._kinds.append(kind | _DISCARD * packet.is_discard)
        self._pts.append(_NO_TIME if packet.pts is None else packet.pts)
        self._dts.append(_NO_TIME if packet.dts is None else packet.dts)
        self._sizes.append(packet.size)
        self._has_corrupt |= packet.is_corrupt
        if self._held is not None:
            self._held.append(packet)
            self._held_bytes += packet.size
            if self._held_bytes > self._limits.held_bytes:
                self._held = None

    def frames(self, samplers: Mapping[str, FrameSampler]) -> dict[str, Frames]:
        """Decode.

        Args:
            samplers: each is asked which of the clip's frames it wants.

        Returns:
            the frames of each sampler under its name; empty if no frame comes out.
        """
        found: dict[str, Frames] = {}
        if self._packets_tell():
            found = self._decode_chosen(samplers)
            if self._is_damaged and len(samplers) > 1:
                # What comes after a damaged packet depends on which packets went before. The frames of a feature set
                # must not depend on which other feature sets are extracted beside it: each by itself, then.
                found = {}
                for name, sampler in samplers.items():
                    found |= self._decode_chosen({name: sampler})
        rest = {name: sampler for name, sampler in samplers.items() if name not in found}
        if rest and self._kinds:
            found |= self._decode_all(rest)
        if self._most_errors:
            self._source.notes.append(f"video damaged: {self._most_errors} of {len(self._kinds)} packets do not decode")
        return {name: found[name] for name in samplers if name in found}

    def _packets_tell(self) -> bool:
        """Whether the time stamps of the packets are those of the frames: each packet one frame, at its time."""
        pts, kinds = np.asarray(self._pts), np.asarray(self._kinds)
        if self._codec not in _SELECTIVE or not len(pts) or self._has_corrupt:
            return False
        if self._source.container.format.name == "avi":  # stores no presentation times: those are guesses
            return False
        if self._context.field_order not in _PROGRESSIVE:  # two packets may make one frame
            return False
        if (pts == _NO_TIME).any() or (kinds & bitstream.ODD).any() or not kinds[0] & bitstream.ENTRY:
            return False
        if self._codec in _IN_ORDER and (np.diff(pts) <= 0).any():
            return False
        shown = np.sort(pts[kinds & _DISCARD == 0])
        in_clip = shown[self._in_clip(self._seconds(shown))]
        # What is shown before the first entry point refers to what is not there: a decoder shows some of it, or none.
        return bool((np.diff(shown) > 0).all()) and (not len(in_clip) or bool(in_clip[0] >= pts[0]))

    def _decode_chosen(self, samplers: Mapping[str, FrameSampler]) -> dict[str, Frames]:
        """Decode what the samplers choose by the packets' time stamps. Leaves out whoever misses a frame."""
        pts, kinds = np.asarray(self._pts), np.asarray(self._kinds)
        order = np.argsort(pts, kind="stable")
        order = order[kinds[order] & _DISCARD == 0]
        clip = self._in_clip(self._seconds(pts[order]))
        order, seconds = order[clip], self._since_start(self._seconds(pts[order]))[clip]
        if not len(order):
            return {}
        chosen = _choose(samplers, seconds)
        union = np.unique(np.concatenate([*chosen.values()]))
        runs = _runs(pts, kinds, order[union])
        entries = {int(pts[run[0]]) for run in runs}
        slots = {int(pts[packet]): slot for slot, packet in enumerate(order[union])}
        stack = _Stack(len(union))
        for frame in self._decode(runs):
            if frame.pts in entries and not frame.key_frame and not self._source.inspect:
                return {}  # the container's word was all there was, and it was wrong
            if frame.pts in slots:
                stack.put(slots[frame.pts], self._pictures.rgb(frame))
        complete = {name: indices for name, indices in chosen.items() if stack.has(np.searchsorted(union, indices))}
        return stack.share(complete, union, seconds)

    def _decode_all(self, samplers: Mapping[str, FrameSampler]) -> dict[str, Frames]:
        """Decode everything, and let the samplers choose among the frames that come out."""
        everything = [np.arange(len(self._kinds))]
        kept: dict[int, VideoFrame] | None = {}
        kept_bytes = damaged = 0
        pts: list[int | None] = []
        dts: list[int | None] = []
        for number, frame in enumerate(self._decode(everything)):
            pts.append(frame.pts)
            dts.append(frame.dts)
            damaged += frame.is_corrupt
            kept_bytes += sum(plane.buffer_size for plane in frame.planes)
            if kept_bytes > self._limits.held_bytes:
                kept = None
            if kept is not None:
                kept[number] = frame
        self._note_losses(len(pts), damaged)
        seconds = self._times(pts, dts)
        clip = self._in_clip(seconds)
        seconds = self._since_start(seconds)[clip]
        if not len(seconds):
            return {}
        chosen = _choose(samplers, seconds)
        union = np.unique(np.concatenate([*chosen.values()]))
        slots = {int(index) + clip.start: slot for slot, index in enumerate(union)}
        stack = _Stack(len(union))
        for number, frame in kept.items() if kept is not None else enumerate(self._decode(everything)):
            if number in slots:
                stack.put(slots[number], self._pictures.rgb(frame))
        return stack.share(chosen, union, seconds)

    def _decode(self, runs: Sequence[Indices]) -> Iterator[VideoFrame]:
        """Decode runs of packets, each from an entry point on. What does not decode is counted and left out."""
        self._errors, self._is_damaged = 0, False
        packets = self._packets(itertools.chain.from_iterable(runs))
        for run in runs:
            self._context.flush_buffers()
            for packet in itertools.chain(itertools.islice(packets, len(run)), [None]):
                try:
                    frames = self._context.decode(packet)
                except av.FFmpegError as error:
                    if isinstance(error, MemoryError):
                        raise ClipError("memory", f"decoding video: {error.strerror}") from None
                    self._errors += 1
                    self._most_errors = max(self._most_errors, self._errors)
                    self._is_damaged = True
                    continue
                for frame in frames:
                    self.has_decoded = True
                    self._is_damaged |= frame.is_corrupt
                    yield frame

    def _packets(self, numbers: Iterable[int]) -> Iterator[Packet[Stream]]:
        """The packets with these numbers, ascending: those held, or read once more."""
        if self._held is not None:
            for number in numbers:
                yield self._held[number]
            return
        again = self._source.video_again(self._key(0))
        position = -1
        for number in numbers:
            packet = None
            while position < number:
                packet, position = next(again, None), position + 1
            if packet is None or key(packet) != self._key(int(number)):
                raise ClipError("decode", f"packet {number} of the video is another when the file is read once more")
            yield packet

    def _key(self, number: int) -> tuple[int | None, int | None, int]:
        pts, dts = (None if stamps[number] == _NO_TIME else stamps[number] for stamps in (self._pts, self._dts))
        return pts, dts, self._sizes[number]

    def _seconds(self, pts: npt.NDArray[np.integer] | Seconds) -> Seconds:
        """Time stamps in seconds from the file's start."""
        unit = time_base(self._stream)
        return pts.astype(np.float64) * unit.numerator / unit.denominator - self._source.zero_seconds

    def _since_start(self, seconds: Seconds) -> Seconds:
        """From the clip's start instead of the file's. A frame that is on screen before is so from 0 on."""
        return np.maximum(seconds - self._start, 0.0) if self._start else seconds

    def _in_clip(self, seconds: Seconds) -> slice:
        """Which of some ascending times are in the clip; if none, the frame that is on screen as it starts."""
        begin, end = 0, len(seconds)
        if self._start:
            begin = int(np.searchsorted(seconds, self._start - _EPSILON_SECONDS))
        if self._stop is not None:
            end = int(np.searchsorted(seconds, self._stop - _EPSILON_SECONDS))
        video_ends_seconds = self._source.ends_seconds.get(self._stream.index, 0.0)
        is_still = begin == end and begin > 0 and self._start < video_ends_seconds
        return slice(begin - is_still, end)

    def _times(self, pts: Sequence[int | None], dts: Sequence[int | None]) -> Seconds:
        """Ascending times for frames in the order in which they are shown, from the file's start.

        By presentation time, or by decoding time where that has fewer faults (AVI stores nothing else).
        """
        step = frame_seconds(self._stream) / float(time_base(self._stream))
        (stamps, faults), (others, other_faults) = _ascending(pts, step), _ascending(dts, step)
        if other_faults < faults:
            stamps, faults = others, other_faults
        if faults > self._context.reorder_depth:  # that many, at the end, have none in AVI
            self._source.notes.append(
                f"video times: {faults} of {len(stamps)} are missing or out of order, and replaced"
            )
        return self._seconds(stamps)

    def _note_losses(self, count: int, damaged: int) -> None:
        expected = sum(not kind & _DISCARD for kind in self._kinds)
        # One packet is one frame in these codecs. A cut-out may begin with some that lack what they refer to.
        if count < expected and (self._errors or (self._codec in _SELECTIVE and not self._start)):
            self._source.notes.append(f"video cut short: {count} of {expected} frames")
        if damaged:
            self._source.notes.append(f"video damaged: {damaged} of {count} frames are incomplete")


class _Stack:
    """The pictures that were asked for, side by side in one array."""

    def __init__(self, count: int) -> None:
        self._filled = np.zeros(count, bool)
        self._data: npt.NDArray[np.uint8] | None = None

    def put(self, slot: int, picture: npt.NDArray[np.uint8]) -> None:
        if self._data is None:
            self._data = np.empty((len(self._filled), *picture.shape), np.uint8)
        if picture.strides[1:] == (3, 1):
            self._data[slot] = picture
        else:  # turned or mirrored: four times faster channel by channel
            for channel in range(picture.shape[-1]):
                self._data[slot, ..., channel] = picture[..., channel]
        self._filled[slot] = True

    def has(self, slots: Indices) -> bool:
        return bool(self._filled[slots].all())

    def share(self, chosen: Chosen, union: Indices, seconds: Seconds) -> dict[str, Frames]:
        """Each its own frames."""
        found = {}
        for name, indices in chosen.items():
            if self._data is not None:
                slots = np.searchsorted(union, indices)
                is_alone = len(chosen) == 1 and len(slots) == len(union)
                data = self._data if is_alone else self._data[slots]
                found[name] = Frames(data=data, pts_seconds=seconds[indices])
        return found


def _choose(samplers: Mapping[str, FrameSampler], seconds: Seconds) -> dict[str, Indices]:
    """Ask the samplers. A wrong answer is a bug in an encoder."""
    chosen = {}
    for name, sampler in samplers.items():
        indices = np.asarray(sampler(seconds))
        if indices.ndim != 1 or not len(indices) or indices.min() < 0 or indices.max() >= len(seconds):
            raise ValueError(f"sampler of {name!r}: expected indices from 0 to {len(seconds) - 1}, got {indices}")
        chosen[name] = indices.astype(np.int64)
    return chosen


def _runs(pts: Indices, kinds: npt.NDArray[np.uint8], wanted: Indices) -> list[Indices]:
    """Which packets to decode so that the wanted ones come out: runs that begin at an entry point each."""
    entries = np.flatnonzero(kinds & bitstream.ENTRY).tolist()
    starts = []
    for packet in wanted.tolist():
        number = bisect.bisect(entries, packet) - 1
        while pts[entries[number]] > pts[packet]:
            number -= 1  # a frame shown before its nearest entry point may refer to what is before that one
        starts.append(entries[number])
    spans: list[list[int]] = []
    for start, packet in sorted(zip(starts, wanted.tolist(), strict=True)):
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], packet)
        else:
            spans.append([start, packet])
    layers = kinds >> bitstream.LAYER_SHIFT
    needed = (kinds & bitstream.DROPPABLE == 0) | (layers < layers.max())
    needed[wanted] = True
    return [start + np.flatnonzero(needed[start : stop + 1]) for start, stop in spans]


def _ascending(stamps: Sequence[int | None], step: float) -> tuple[Seconds, int]:
    """Time stamps made ascending, and how many had to be replaced: as few as can be.

    The longest ascending subsequence is kept (Schensted 1961), what is between is interpolated, and what is before or
    behind it lies ``step`` apart.
    """
    tails: list[int] = []  # tails[k]: the smallest stamp that ends an ascending subsequence of length k + 1 ...
    ends: list[int] = []  # ... where it is ...
    before: dict[int, int | None] = {}  # ... and the one before it there
    for position, stamp in enumerate(stamps):
        if stamp is not None:
            length = bisect.bisect_left(tails, stamp)
            before[position] = ends[length - 1] if length else None
            tails[length : length + 1] = [stamp]
            ends[length : length + 1] = [position]
    kept: list[int] = []
    last = ends[-1] if ends else None
    while last is not None:
        kept.append(last)
        last = before[last]
    kept.reverse()
    numbers = np.arange(len(stamps), dtype=np.float64)
    if not kept:
        return numbers * step, len(stamps)
    times = np.interp(numbers, kept, [float(stamps[number] or 0) for number in kept])
    times += step * (np.minimum(numbers - kept[0], 0) + np.maximum(numbers - kept[-1], 0))
    return times, len(stamps) - len(kept)
