"""A sound played as samples: tones, noise and knocks, all synthesised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from avpipe.data_manifests.synthesis.facts import Sound

Array = npt.NDArray[np.float64]
Voice = Callable[[Array, float, Array], Array]
"""What sounds, from ``times (N,)`` in seconds since it began, a factor on its pitch, and noise ``(N,)``."""

AMPLITUDE = 0.3
ATTACK_SECONDS = 0.004
PULSE_SECONDS = 0.15
SWELL_DECIBELS = 30.0
"""How much louder or softer a sound gets over a clip."""


def play_samples(sound: Sound, *, sample_rate: int, seconds: float) -> npt.NDArray[np.float32]:
    """The samples of a clip.

    Args:
        sound: all that is heard.
        sample_rate: in Hz.
        seconds: length of the clip.

    Returns:
        float32 ``(num_samples,)`` within [-1, 1]; zeros for silence.
    """
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = np.random.default_rng(sound.seed).standard_normal(len(times))
    samples = np.zeros(len(times))
    for name, start, stop in parts(sound, seconds):
        part = (times >= start) & (times < stop)
        since = times[part] - start
        samples[part] = VOICES[name](since, sound.pitch, noise[part]) * edges(since, stop - start)
    samples *= swell(sound.dynamics, times / seconds) * AMPLITUDE * sound.volume
    return samples.astype(np.float32)


def parts(sound: Sound, seconds: float) -> list[tuple[str, float, float]]:
    """Which voice is heard from when to when: a pulse on each beat, or one sound after another, each as long."""
    if sound.beats:  # a pulse that would be cut off is left out
        starts = np.arange(sound.beats.first_seconds, seconds - PULSE_SECONDS, sound.beats.period_seconds)
        return [(sound.sounds[0], float(start), float(start) + PULSE_SECONDS) for start in starts]
    length = seconds / max(len(sound.sounds), 1)
    return [(name, place * length, (place + 1) * length) for place, name in enumerate(sound.sounds)]


def edges(times: Array, seconds: float) -> Array:
    """A short fade in and out, so that nothing clicks that does not start with a click."""
    return np.clip(np.minimum(times, seconds - times) / ATTACK_SECONDS, 0.0, 1.0)


def swell(dynamics: str, progress: Array) -> Array:
    """Amplitude over the clip: even, or rising or falling by :data:`SWELL_DECIBELS`."""
    decibels = {"steady": 0.0 * progress, "louder": progress - 1, "softer": -progress}[dynamics] * SWELL_DECIBELS
    return np.power(10.0, decibels / 20)


def _sine(hertz: float, times: Array) -> Array:
    return np.sin(2 * np.pi * hertz * times)


def _low_tone(times: Array, pitch: float, noise: Array) -> Array:
    hertz = 160 * pitch
    return (_sine(hertz, times) + _sine(2 * hertz, times) / 2 + _sine(3 * hertz, times) / 3) / 1.5


def _siren(times: Array, pitch: float, noise: Array) -> Array:
    turns = 700 * times - 300 / (2 * np.pi) * np.cos(2 * np.pi * times)  # 700 +- 300 Hz, up and down once a second
    return np.sin(2 * np.pi * pitch * turns) + 0.3 * np.sin(6 * np.pi * pitch * turns)


def _drum(times: Array, pitch: float, noise: Array) -> Array:
    since = times % 0.3
    return 2.0 * _sine(95 * pitch, since) * np.exp(-since / 0.06) + 0.4 * noise * np.exp(-since / 0.01)


def _bird(times: Array, pitch: float, noise: Array) -> Array:
    since = times % 0.35
    chirp = np.sin(2 * np.pi * pitch * (2500 * since + 6000 * since**2))  # 2.5 kHz rising by 12 kHz a second
    return chirp * np.clip(np.minimum(since, 0.14 - since) / 0.02, 0.0, 1.0)


def _hiss(times: Array, pitch: float, noise: Array) -> Array:
    return np.diff(noise, prepend=0.0) * 0.5  # a difference lets the high frequencies pass


def _clap(times: Array, pitch: float, noise: Array) -> Array:
    return np.convolve(noise, np.full(6, 1 / 3), mode="same") * np.exp(-times / 0.025)


def _bell(times: Array, pitch: float, noise: Array) -> Array:
    partials = _sine(880 * pitch, times) + 0.6 * _sine(880 * 2.76 * pitch, times)
    return partials * np.exp(-times / 0.06)


VOICES: dict[str, Voice] = {
    "low tone": _low_tone,
    "high tone": lambda times, pitch, noise: _sine(1800 * pitch, times),
    "siren": _siren,
    "noise": lambda times, pitch, noise: 0.5 * noise,
    "drum": _drum,
    "bird": _bird,
    "high beeps": lambda times, pitch, noise: _sine(1400 * pitch, times),
    "low beeps": lambda times, pitch, noise: _sine(350 * pitch, times),
    "dull knocks": lambda times, pitch, noise: 2.0 * _sine(110 * pitch, times) * np.exp(-times / 0.04),
    "sharp claps": _clap,
    "clear bells": _bell,
    "short hisses": _hiss,
}
