"""Centred power spectra and Slaney's mel filters in numpy: what Whisper and CLAP were trained on.

Both authors call librosa, whose filters these are: the mel scale of Slaney's Auditory Toolbox, each triangle of unit
area. Written anew because decoding processes, where it runs, do without torch and librosa. Everything is computed in
float64. The other kind of spectrogram, Kaldi's, is in :mod:`avpipe.extract.fbank`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_HERTZ_PER_MEL = 200 / 3  # below 1 kHz the scale is linear
_BREAK_HERTZ, _BREAK_MEL = 1000.0, 15.0
_MELS_PER_E = 27 / np.log(6.4)  # above, logarithmic


def log10_mel(
    samples: npt.NDArray[np.floating],
    *,
    fft_size: int,
    hop: int,
    sample_rate: int,
    mels: int,
    low_hz: float,
    high_hz: float,
) -> npt.NDArray[np.float64]:
    """Decimal logarithm of the power in mel bands, not below 1e-10, one row a frame.

    Frame ``i`` sees ``fft_size`` samples around sample ``i * hop``, under a periodic Hann window; the sound is mirrored
    at its ends.

    Args:
        samples: ``(num_samples,)``, num_samples >= 1.
        fft_size: samples that a frame sees.
        hop: samples from frame to frame.
        sample_rate: that the filters are laid out for, in Hz.
        mels: number of bands.
        low_hz: lower edge of the lowest band.
        high_hz: upper edge of the highest band.

    Returns:
        ``(num_samples // hop + 1, mels)``.
    """
    mirrored = np.pad(np.asarray(samples, dtype=np.float64), fft_size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, fft_size)[::hop]  # (num_frames, fft_size)
    spectrum = np.fft.rfft(frames * _periodic_hann(fft_size), axis=1)  # (num_frames, fft_size / 2 + 1)
    power = spectrum.real**2 + spectrum.imag**2
    energy = power @ mel_filters(sample_rate, fft_size, mels, low_hz, high_hz)  # (num_frames, mels)
    logarithm: npt.NDArray[np.float64] = np.log10(np.maximum(energy, 1e-10))
    return logarithm


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, fft_size: int, mels: int, low_hz: float, high_hz: float) -> npt.NDArray[np.float64]:
    """Triangles, equally spaced in mel, straight in Hz, of unit area: ``(fft_size / 2 + 1, mels)``."""
    edges = _hertz(np.linspace(_mel(low_hz), _mel(high_hz), mels + 2))
    bins = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return triangles


@lru_cache(maxsize=8)
def _periodic_hann(size: int) -> npt.NDArray[np.float64]:
    return np.hanning(size + 1)[:-1]


def _mel(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return hertz / _HERTZ_PER_MEL
    return float(_BREAK_MEL + _MELS_PER_E * np.log(hertz / _BREAK_HERTZ))


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < _BREAK_MEL, mel * _HERTZ_PER_MEL, _BREAK_HERTZ * np.exp((mel - _BREAK_MEL) / _MELS_PER_E))
