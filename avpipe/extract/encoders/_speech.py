"""What can be said about a waveform before anybody tries to understand it: where something stirs, where it is quiet.

The gate is a modest one. Speech comes in syllables: in some band of the telephone's range its level rises and falls by
far more than that of a hum, a hiss, a fan or a steady tone. What never does so is certainly no speech; what does may be
speech, or music, or a door. The gate therefore keeps a recogniser from the sounds on which it is known to invent text
(silence and steady noise), and lets everything else pass; telling music from words is the recogniser's own business.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

EDGES_HERTZ = (100.0, 500.0, 1000.0, 2000.0, 4000.0)
FLOOR_DECIBEL = -70.0  # of full scale: what is quieter counts as silence
FRAME_SECONDS, HOP_SECONDS, SMOOTH_FRAMES = 0.032, 0.016, 5  # a level is the mean power of about a tenth of a second
QUIET_PERCENTILE = 10


def activity(samples: Samples, sample_rate: int, threshold_decibel: float) -> float:
    """The fraction of time in which the level of some band is so much above its own background.

    The level of a band is its mean power over a tenth of a second; its background, the tenth percentile of its levels,
    but not less than the floor. The highest level of steady white noise in half a minute is 2 to 4 dB above the
    background, that of speech in quiet surroundings 20 to 50 dB.

    Args:
        samples: ``(num_samples,)``.
        sample_rate: in Hz, at least 8000.
        threshold_decibel: above the background.

    Returns:
        In [0, 1]; 0 for sound shorter than a tenth of a second, in which there is no word.
    """
    levels = _levels(samples, sample_rate)
    if len(levels) == 0:
        return 0.0
    background = np.percentile(levels, QUIET_PERCENTILE, axis=0)
    return float(np.mean(np.any(levels - background > threshold_decibel, axis=1)))


def windows(samples: Samples, sample_rate: int, longest_seconds: float) -> list[tuple[int, int]]:
    """Cuts sound into pieces that a network can hear, each at the quietest place near its end.

    A piece ends where the fifth of a second around is the quietest of the last sixth of what it could hold (with 30 s:
    between 25 and 30 s), so that few words are cut. Pieces do not overlap.

    Args:
        samples: ``(num_samples,)``, num_samples >= 1.
        sample_rate: in Hz.
        longest_seconds: of a piece.

    Returns:
        ``(start, stop)`` of each, in samples; the first starts at 0, the last stops at the end.
    """
    longest = round(longest_seconds * sample_rate)
    pieces, start = [], 0
    while len(samples) - start > longest:
        begin = start + longest - longest // 6
        stop = begin + _quietest(samples[begin : start + longest], max(1, sample_rate // 5))
        pieces.append((start, stop))
        start = stop
    return [*pieces, (start, len(samples))]


def _quietest(samples: Samples, width: int) -> int:
    """The middle of the quietest stretch of that width; of several, the last."""
    width = min(width, len(samples))
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    energy = total[width:] - total[:-width]
    last = len(energy) - 1 - int(np.argmin(energy[::-1]))
    return last + width // 2


def _levels(samples: Samples, sample_rate: int) -> npt.NDArray[np.float64]:
    """``(num_levels, bands)`` in dB of full scale."""
    size, hop = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(samples) < size + (SMOOTH_FRAMES - 1) * hop:
        return np.zeros((0, len(EDGES_HERTZ) - 1))
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    window = np.hanning(size)
    spectrum = np.fft.rfft(frames * window, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2) * 2 / (size * np.sum(window**2))  # sums to the mean square
    bins = np.searchsorted(np.fft.rfftfreq(size, 1 / sample_rate), EDGES_HERTZ)
    bands = np.stack([power[:, low:high].sum(axis=1) for low, high in pairwise(bins)], axis=1)
    total = np.concatenate([np.zeros((1, bands.shape[1])), np.cumsum(bands, axis=0)])
    smooth = (total[SMOOTH_FRAMES:] - total[:-SMOOTH_FRAMES]) / SMOOTH_FRAMES
    decibel: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(smooth, 10 ** (FLOOR_DECIBEL / 10)))
    return decibel
