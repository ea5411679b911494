"""The samples of decoded sound, read without touching what is not there. The one place where avpipe does so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

Samples = npt.NDArray[np.float32]
Channels = Sequence[Samples]
"""The samples of each channel, all equally long; of none at all, where there are none."""

_MOST_PLANES = 7  # that PyAV counts rightly


class Unpacker:
    """Gives the channels of decoded frames of one format, as float32 at one rate.

    Most codecs decode to just that; what they give is not copied. All else goes through a resampler and a packed
    format, even where there are only planes to be read: those of a frame with eight channels or more are not safe to
    touch (PyAV sees one too many).

    Args:
        frame: the first one.
        rate: in Hz, of what comes out.
    """

    def __init__(self, frame: AudioFrame, rate: int) -> None:
        self._format, self._is_delayed = self._of(frame), frame.sample_rate != rate
        is_planar = frame.format.name == "fltp" and frame.layout.nb_channels <= _MOST_PLANES
        is_ready = is_planar or frame.format.name == "flt"
        self._resampler: AudioResampler | None = None
        if self._is_delayed or not is_ready:
            self._resampler = AudioResampler(format="flt", layout=frame.layout, rate=rate)

    @staticmethod
    def _of(frame: AudioFrame) -> tuple[str, str, int]:
        return frame.format.name, frame.layout.name, frame.sample_rate

    def fits(self, frame: AudioFrame) -> bool:
        """Whether a frame is of the same format as the first."""
        return self._of(frame) == self._format

    def unpack(self, frame: AudioFrame | None) -> Channels:
        """The samples of a frame, as far as the resampler gives them already; ``None``: what it still holds."""
        parts = self._resampler.resample(frame) if self._resampler else [frame]
        pieces = [_channels(part) for part in parts if part]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(piece) for piece in zip(*pieces, strict=True)]

    def flush(self) -> Channels:
        """What the resampler still holds after the last frame."""
        return self.unpack(None) if self._is_delayed else []


def _channels(frame: AudioFrame) -> Channels:
    """The channels of a float frame, uncopied."""
    count = 1 if frame.format.is_planar else frame.layout.nb_channels
    planes = (cast(memoryview, plane) for plane in frame.planes)  # what it can do, the stub does not know
    packed = [np.frombuffer(plane, np.float32, frame.samples * count) for plane in planes]
    return packed if count == 1 else list(packed[0].reshape(-1, count).T)
