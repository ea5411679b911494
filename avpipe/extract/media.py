"""Decoding: one media file in; frames and samples with their times out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avpipe.extract import sampling
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.features import Segments
from avpipe.pipeline.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRequest:
    """The frames that an encoder wants, once plain and ``views`` times as training augments them.

    Attributes:
        sampling: a policy of :mod:`avpipe.extract.sampling`: ``"uniform"``, ``"headtail"``, ``"fps:2"`` ...
        count: how many frames a view has; with ``fps:x``, how many at most.
        views: augmented views beside the plain one.
        view_sampling: policy for those; by default that of the plain view.
    """

    sampling: str
    count: int
    views: int = 0
    view_sampling: str = ""

    def __post_init__(self) -> None:
        sampling.check(self.sampling)
        sampling.check(self.view_sampling or self.sampling)
        if self.count < 1:
            raise ValueError(f"count: expected at least 1, got {self.count}")
        if self.views < 0:
            raise ValueError(f"views: expected at least 0, got {self.views}")

    def choose(self, frame_pts_seconds: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.int64]:
        """Which frames of a clip: those of the plain view, then those of each augmented one, equally many.

        Args:
            frame_pts_seconds: ``(N,)``, N >= 1: the time of every frame of the clip from the clip's start, ascending.
            seed: of the clip: says what a policy that draws at random draws.

        Returns:
            Indices into them, ascending within a view; they repeat where the clip is short.
        """
        random = np.random.default_rng((seed, 0))
        plain = sampling.choose(self.sampling, frame_pts_seconds, self.count, random)
        policy = self.view_sampling or self.sampling
        views = [plain]
        for view in range(1, self.views + 1):
            random = np.random.default_rng((seed, view))
            drawn = sampling.choose(policy, frame_pts_seconds, len(plain), random)
            views.append(drawn[np.arange(len(plain)) * len(drawn) // len(plain)])  # ``fps:x`` may find fewer
        return np.concatenate(views)


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioRequest:
    """The waveform that an encoder wants.

    Attributes:
        sample_rate: in Hz.
        downmix: ``"mean"`` of the channels, or the ``"first"`` one (CAV-MAE).
        max_seconds: from the clip's start; what lies behind it is not decoded. ``None``: everything.
    """

    sample_rate: int
    downmix: str = "mean"
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate: expected at least 1 Hz, got {self.sample_rate}")
        if self.downmix not in ("mean", "first"):
            raise ValueError(f"downmix: expected 'mean' or 'first', got {self.downmix!r}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds: expected more than 0, got {self.max_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """The text that an encoder wants to read.

    Attributes:
        of: name of the feature set that holds it.
    """

    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Frames of one clip.

    Attributes:
        data: uint8 RGB ``(N, height, width, 3)``, upright (rotation applied), square pixels.
        pts_seconds: ``(N,)``, from the clip's start.
    """

    data: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.data.dtype != np.uint8 or self.data.ndim != 4 or self.data.shape[-1] != 3:
            raise ValueError(f"data: expected uint8 (N, height, width, 3), got {self.data.dtype}{self.data.shape}")
        if self.pts_seconds.shape != self.data.shape[:1]:
            raise ValueError(f"pts_seconds: expected shape {self.data.shape[:1]}, got {self.pts_seconds.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waveform:
    """Sound of one clip.

    Attributes:
        data: float32 mono ``(num_samples,)``, nominally in [-1, 1] (decoders may overshoot; nothing is clipped).
        sample_rate: in Hz.
        start_seconds: of the first sample, from the clip's start.
    """

    data: npt.NDArray[np.float32]
    sample_rate: int
    start_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.data.dtype != np.float32 or self.data.ndim != 1:
            raise ValueError(f"data: expected float32 (num_samples,), got {self.data.dtype}{self.data.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One decoded clip.

    Attributes:
        frames: what each visual encoder asked for, by feature-set name; empty if there is no video.
        waveforms: what each audio encoder asked for, by feature-set name; empty if there is no audio.
        texts: what another feature set says about the clip, by the name of that set, for encoders that read.
        duration_seconds: of the clip; 0 where only text was asked for.
        seed: the clip's own, for whatever is drawn at random about it: the same in every run.
        notes: facts a user should know ("video cut short: ...").
    """

    frames: Mapping[str, Frames] = field(default_factory=dict)
    waveforms: Mapping[str, Waveform] = field(default_factory=dict)
    texts: Mapping[str, Segments] = field(default_factory=dict)
    duration_seconds: float = 0.0
    seed: int = 0
    notes: tuple[str, ...] = ()


FrameSampler = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.int64]]
"""``(frame_pts_seconds (N,)) -> indices``: which frames of a clip are wanted. See ``FrameRequest``."""


def read(
    path: str | os.PathLike[str],
    *,
    frames: Mapping[str, FrameSampler],
    audio: Mapping[str, AudioRequest],
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
) -> Media:
    """Decode what several encoders want of one clip: one opening, one pass over the file, each stream decoded once.

    Time zero of a file is the earliest of its two streams' start times, as FFmpeg's command line has it; frames and
    sound share that clock, and ``start_seconds`` is on it. A clip's frames are those with ``start_seconds <= time <
    stop_seconds``; where that is none, the one on the screen. Pictures are bit for bit those of a full decode; sound
    that is cut out is decoded from a second before, and may differ from a full decode in the last bits.

    Of several streams, the best by FFmpeg's rule is read (``av_find_best_stream``: resolution and bit rate, not the
    order in the file). A file that is damaged is used as far as it decodes, and a note says how far that is.

    Args:
        path: of a local media file. Network addresses, playlists and scripts are refused.
        frames: who wants frames, and which.
        audio: who wants a waveform, and which.
        start_seconds: where the clip starts in the file.
        stop_seconds: where it stops (excluded); ``None``: at the end of the file.
        limits: ``max_pixels`` and ``held_bytes`` are held here.

    Raises:
        ClipError: ``"missing_file"``; ``"open"``: no media file; ``"no_streams"``: neither video nor audio;
            ``"too_large"``: a picture above the limit; ``"empty"``: there is nothing where the clip should be;
            ``"decode"``: nothing decodes of what was asked for; ``"memory"``.
    """
    from avpipe.extract import demux, sound, video

    if not 0 <= start_seconds < (math.inf if stop_seconds is None else stop_seconds):
        raise ValueError(f"expected 0 <= start_seconds < stop_seconds, got {start_seconds} and {stop_seconds}")
    span = start_seconds, stop_seconds
    with demux.open_source(path, limits) as source:
        pictures = video.VideoReader(source, source.video, *span, limits) if source.video and frames else None
        sounds = sound.SoundReader(source, source.audio, audio.values(), *span) if source.audio and audio else None
        reader: video.VideoReader | sound.SoundReader | None
        for packet in source.packets(*span):
            reader = pictures if packet.stream is source.video else sounds
            if reader:
                reader.add(packet)
        if not source.ends_seconds:
            raise ClipError("empty", "the header is there, but nothing follows it")
        if start_seconds and source.end_seconds <= start_seconds:
            raise ClipError(
                "empty", f"the clip starts at {start_seconds} s, the file ends at {source.end_seconds:.3f} s"
            )
        waveforms = sounds.finish() if sounds else {}
        found = pictures.frames(frames) if pictures else {}
        if pictures and not found:
            source.notes.append("no video: " + ("none in the clip" if pictures.has_decoded else "no frame decodes"))
        if sounds and not waveforms:
            source.notes.append("no sound: " + ("no sample decodes" if sounds.errors else "none in the clip"))
        is_broken = (pictures and not pictures.has_decoded) or (sounds and sounds.errors)
        if is_broken and not (found or waveforms):
            raise ClipError("decode", "; ".join(dict.fromkeys(source.notes)))
        if stop_seconds is None and (ends_early := source.ends_early()):
            source.notes.append(ends_early)
        return Media(
            frames=found,
            waveforms={name: waveforms[request] for name, request in audio.items() if request in waveforms},
            duration_seconds=min(source.end_seconds, stop_seconds or math.inf) - start_seconds,
            notes=tuple(dict.fromkeys(source.notes)),
        )


def libraries() -> dict[str, str]:
    """Versions of the libraries whose code changes a pixel or a sample."""
    import av

    names = ("libavcodec", "libavformat", "libswscale", "libswresample")
    versions = {name: ".".join(map(str, av.library_versions[name])) for name in names}
    return {"av": av.__version__, **versions}
