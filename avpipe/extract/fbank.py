"""Kaldi's log-mel filterbank in numpy: what AST, CAV-MAE and BEATs were trained on.

After Kaldi's ``feature-fbank`` as ``torchaudio.compliance.kaldi.fbank`` computes it, which the authors of these
networks call. Written anew because decoding processes, where it runs, do without torch (start-up time, 300 MB of memory
each), and because torchaudio's float32 result depends on the number of threads. Here everything is computed in
float64; the results agree to about 1e-4, the rounding error of float32 in near-silent bins (tests hold it).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

KALDI_FLOOR = float(np.finfo(np.float32).eps)
"""Smallest energy before the logarithm: Kaldi's."""

PREEMPHASIS = 0.97


def log_mel(
    waveform: npt.NDArray[np.floating],
    *,
    sample_rate: int,
    mels: int,
    window: str = "hanning",
    window_seconds: float = 0.025,
    hop_seconds: float = 0.010,
    low_hz: float = 20.0,
    floor: float = KALDI_FLOOR,
) -> npt.NDArray[np.float32]:
    """Natural logarithm of the energy in mel bands, one row a frame.

    Each frame: its mean is subtracted, pre-emphasis 0.97, window, power spectrum, triangular mel filters from
    ``low_hz`` to half the sample rate, floor, logarithm. Frame ``i`` sees
    ``[i * hop_seconds, i * hop_seconds + window_seconds)``; only whole frames are taken (Kaldi's ``snip_edges``),
    except that a waveform shorter than one frame is filled up with zeros to one.

    Args:
        waveform: ``(num_samples,)``.
        sample_rate: in Hz.
        mels: number of bands.
        window: ``"hanning"`` (AST, CAV-MAE) or ``"povey"`` (BEATs, Kaldi's default).
        window_seconds: length of a frame.
        hop_seconds: from frame to frame.
        low_hz: lower edge of the lowest band.
        floor: smallest energy; what is quieter counts as this.

    Returns:
        ``(num_frames, mels)``, num_frames >= 1.
    """
    size, hop = (int(sample_rate * seconds + 1e-9) for seconds in (window_seconds, hop_seconds))  # rounded down
    samples = np.asarray(waveform, dtype=np.float64)
    samples = np.pad(samples, (0, max(0, size - len(samples))))
    fft_size = 1 << (size - 1).bit_length()

    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]  # (num_frames, size)
    frames = frames - frames.mean(axis=1, keepdims=True)
    emphasised = np.empty_like(frames)
    emphasised[:, 1:] = frames[:, 1:] - PREEMPHASIS * frames[:, :-1]
    emphasised[:, 0] = frames[:, 0] * (1 - PREEMPHASIS)  # the first sample is its own predecessor
    emphasised *= _window(window, size)
    spectrum = np.fft.rfft(emphasised, fft_size, axis=1)  # (num_frames, fft_size / 2 + 1)
    power = spectrum.real**2 + spectrum.imag**2
    energy = power @ _filters(sample_rate, fft_size, mels, low_hz)  # (num_frames, mels)
    return np.log(np.maximum(energy, floor)).astype(np.float32)


@lru_cache(maxsize=8)
def _window(name: str, size: int) -> npt.NDArray[np.float64]:
    hann = np.hanning(size)  # symmetric: zero at both ends
    if name == "hanning":
        return hann
    if name == "povey":
        return hann**0.85
    raise ValueError(f"window: expected 'hanning' or 'povey', got {name!r}")


@lru_cache(maxsize=8)
def _filters(sample_rate: int, fft_size: int, mels: int, low_hz: float) -> npt.NDArray[np.float64]:
    """Triangles of equal width in mel, ``(fft_size / 2 + 1, mels)``; the bin at half the sample rate has no weight."""
    edges = np.linspace(_mel(low_hz), _mel(sample_rate / 2), mels + 2)
    bins = _mel(np.arange(fft_size // 2) * sample_rate / fft_size)[:, None]  # (fft_size / 2, 1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.concatenate([triangles, np.zeros((1, mels))])


def _mel(hz: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hz, dtype=np.float64) / 700.0)
