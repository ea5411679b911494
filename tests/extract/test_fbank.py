"""Kaldi's filterbank against torchaudio's, which the authors of the networks call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.extract.fbank import KALDI_FLOOR, log_mel

from . import toys


def varied(seconds: float, seed: int = 0) -> toys.npt.NDArray[np.float32]:
    """Noise, a tone, exact zeros, an offset: what hides mistakes from one another."""
    samples = toys.noise(seconds, seed=seed)
    quarter = len(samples) // 4
    samples[:quarter] += toys.tone(seconds, hertz=700)[:quarter]
    samples[quarter : 2 * quarter] = 0
    samples[2 * quarter : 3 * quarter] += 0.25
    return samples


@pytest.mark.parametrize("window", ["hanning", "povey"])
@pytest.mark.parametrize("mels", [64, 128])
@pytest.mark.parametrize("sample_rate", [16000, 22050])
def test_log_mel_equals_torchaudio(window: str, mels: int, sample_rate: int) -> None:
    import torch
    from torchaudio.compliance import kaldi

    samples = varied(1.5)
    ours = log_mel(samples, sample_rate=sample_rate, mels=mels, window=window)
    theirs = kaldi.fbank(
        torch.from_numpy(samples)[None], sample_frequency=sample_rate, num_mel_bins=mels, window_type=window
    ).numpy()
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    # Natural logarithms of energies down to 1e-7: float32 leaves this much open in the quietest bins.
    assert difference.max() < 5e-3
    assert np.percentile(difference, 99) < 5e-4


def test_log_mel_tells_windows_apart() -> None:
    hanning, povey = (log_mel(varied(1.0), sample_rate=16000, mels=64, window=name) for name in ("hanning", "povey"))
    assert np.abs(hanning - povey).max() > 0.05


def test_log_mel_fails_on_unknown_window() -> None:
    with pytest.raises(ValueError, match="expected 'hanning' or 'povey', got 'hamming'"):
        log_mel(toys.noise(0.1), sample_rate=16000, mels=64, window="hamming")


def test_silence_is_the_floor() -> None:
    energy = log_mel(np.zeros(1600, np.float32), sample_rate=16000, mels=64)
    np.testing.assert_allclose(energy, np.log(KALDI_FLOOR), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(num_samples=st.integers(0, 3000))
def test_only_whole_frames_are_taken_but_always_one(num_samples: int) -> None:
    energy = log_mel(np.ones(num_samples, np.float32), sample_rate=16000, mels=32)
    assert energy.shape == (1 + max(0, num_samples - 400) // 160, 32)
