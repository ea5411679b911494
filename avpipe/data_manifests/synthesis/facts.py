"""What happens in a synthetic clip, drawn from a seed.

A clip is a :class:`Picture` and a :class:`Sound`. Pictures are drawn from the first alone and sounds played from the
second alone, so neither stream of a file can hold a trace of the other.

Clips come in blocks of eight: four *scenes*, and one *quad* of *synchrony* clips.

**Scenes.** An object does one or two things while one or two sounds are heard, or none; in one scene of a block the
object is a ball that bounces, and in another the sound is a row of pulses. Picture and sound are drawn independently.

**The quad.** A ball bounces and pulses are heard, both on one grid of beats. The picture has a bit that says whether
the ball lands on the beats or half a period later, the sound has another that says the same of the pulses, and the two
are in time with one another if the bits are equal. The quad holds all four pairs of bits and is equal in all else. So
each picture of it stands once beside a sound in time and once beside one out of time, and so does each sound: whatever
a captioner makes of one modality alone, it is right about synchrony in exactly half of every quad.

That is an exclusive or, and it has a price: to a network that attends to frames and sounds as separate tokens, neither
bit is worth anything before it knows the other, so that nothing in the synchrony clips makes it find either. The
bouncing and pulsing scenes are there for that: their captions name the picture's bit (the ball "jumps" or "drops") and
the sound's bit (the pulses start "at once" or "late"), each of which can be learned by itself.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeVar

Item = TypeVar("Item")

SHAPES = ("circle", "square", "triangle", "cross")
BALL = "ball"
COLOURS = ("red", "green", "blue", "yellow")
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "still")
SOUNDS = ("low tone", "high tone", "siren", "noise", "drum", "bird")
DYNAMICS = ("steady", "louder", "softer")
PULSES = ("high beeps", "low beeps", "dull knocks", "sharp claps", "clear bells", "short hisses")

BLOCK = 8
"""Clips in a block. A split of whole blocks is balanced in all that matters; the last block may be cut short."""

PERIODS_SECONDS = (0.75, 1.0)
OFFSETS_SECONDS = (0.0, 0.0625)
"""Where the first beat lies. Multiples of 1/16 s as the periods and their halves are, so that at 16 frames a second
(the default) a ball lands in a frame and not between two."""


@dataclass(frozen=True, slots=True)
class Beats:
    """When a ball lands or pulses start: ``offset + k * period`` for k = 0, 1, ...; half a period later if ``late``."""

    period_seconds: float
    offset_seconds: float
    late: bool

    @property
    def first_seconds(self) -> float:
        """The first of them."""
        return self.offset_seconds + (self.period_seconds / 2 if self.late else 0.0)


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is seen.

    Attributes:
        colour: of the object, one of :data:`COLOURS`.
        shape: of the object, one of :data:`SHAPES`; :data:`BALL` if it bounces.
        motions: one or two different ones of :data:`MOTIONS`, in the order in which they happen; empty if it bounces.
        beats: when it lands, if it bounces.
        x: of the middle of its path, in [-1, 1]; a small shift, never named in a caption.
        y: likewise.
        scale: of its size, near 1; never named.
        shade: of the background, 0 to 1; never named.
    """

    colour: str
    shape: str
    motions: tuple[str, ...]
    beats: Beats | None
    x: float
    y: float
    scale: float
    shade: float


@dataclass(frozen=True, slots=True)
class Sound:
    """All that is heard.

    Attributes:
        sounds: one or two different ones of :data:`SOUNDS` in the order in which they are heard, or one of
            :data:`PULSES`; empty for silence.
        dynamics: one of :data:`DYNAMICS`; ``"steady"`` unless it is a single one of :data:`SOUNDS`.
        beats: when the pulses are heard, if these are pulses.
        has_track: whether the file has an audio stream at all; only silence can do without.
        pitch: factor on every frequency, near 1; never named in a caption.
        volume: factor on the amplitude, near 1; never named.
        seed: of the noise in it.
    """

    sounds: tuple[str, ...]
    dynamics: str
    beats: Beats | None
    has_track: bool
    pitch: float
    volume: float
    seed: int


@dataclass(frozen=True, slots=True)
class Facts:
    """One clip: what is seen and what is heard."""

    picture: Picture
    sound: Sound

    @property
    def in_time(self) -> bool | None:
        """Whether the object lands with the pulses; ``None`` for a scene."""
        if self.picture.beats is None or self.sound.beats is None:
            return None
        return self.picture.beats.late == self.sound.beats.late

    @property
    def kind(self) -> str:
        """``"synchrony"`` or ``"scene"``."""
        return "scene" if self.in_time is None else "synchrony"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values, for a clip's ``extra``."""
        picture = {**asdict(self.picture), "motions": list(self.picture.motions)}
        sound = {**asdict(self.sound), "sounds": list(self.sound.sounds)}
        values: dict[str, Any] = {"kind": self.kind, "picture": picture, "sound": sound}
        if self.in_time is not None:
            values["in_time"] = self.in_time
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: these are no facts of a synthetic clip.
        """
        try:
            picture, sound = dict(values["picture"]), dict(values["sound"])
            for part, names in ((picture, "motions"), (sound, "sounds")):
                part[names] = tuple(part[names])
                part["beats"] = Beats(**part["beats"]) if part["beats"] else None
            return cls(Picture(**picture), Sound(**sound))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected the facts of a synthetic clip, got the keys {sorted(values)} ({error!r})"
            ) from None


def draw(seed: int, split: str, index: int) -> Facts:
    """The facts of one clip. They depend on nothing but the arguments: more clips never change those before them."""
    block, place = divmod(index, BLOCK)
    rng = Draw(f"{seed}/{split}/{block}")
    scenes = [
        Facts(_moving(rng), _sounding(rng)),
        Facts(_moving(rng), _sounding(rng)),
        Facts(_bouncing(rng, _beats(rng)), _sounding(rng)),  # pulses here, or a ball below, would ask for synchrony
        Facts(_moving(rng), _pulsing(rng, _beats(rng))),
    ]
    return rng.shuffled(scenes + _quad(rng))[place]


def _quad(rng: Draw) -> list[Facts]:
    beats = _beats(rng)
    picture, sound = _bouncing(rng, beats), _pulsing(rng, beats)
    both = [replace(beats, late=late) for late in (False, True)]
    return [Facts(replace(picture, beats=seen), replace(sound, beats=heard)) for seen in both for heard in both]


def _beats(rng: Draw) -> Beats:
    return Beats(rng.pick(PERIODS_SECONDS), rng.pick(OFFSETS_SECONDS), late=rng.chance(0.5))


def _moving(rng: Draw) -> Picture:
    motions = rng.distinct(MOTIONS, 2) if rng.chance(0.4) else (rng.pick(MOTIONS),)
    return _picture(rng, rng.pick(SHAPES), motions=motions)


def _bouncing(rng: Draw, beats: Beats) -> Picture:
    return _picture(rng, BALL, beats=beats)


def _sounding(rng: Draw) -> Sound:
    if rng.chance(0.1):
        return _sound(rng, (), has_track=rng.chance(0.5))
    if rng.chance(0.4):
        return _sound(rng, rng.distinct(SOUNDS, 2))
    return _sound(rng, (rng.pick(SOUNDS),), dynamics=rng.pick(DYNAMICS))


def _pulsing(rng: Draw, beats: Beats) -> Sound:
    return _sound(rng, (rng.pick(PULSES),), beats=beats)


def _picture(rng: Draw, shape: str, motions: tuple[str, ...] = (), beats: Beats | None = None) -> Picture:
    return Picture(
        colour=rng.pick(COLOURS),
        shape=shape,
        motions=motions,
        beats=beats,
        x=rng.between(-1, 1),
        y=rng.between(-1, 1),
        scale=rng.between(0.9, 1.1),
        shade=rng.between(0, 1),
    )


def _sound(
    rng: Draw, sounds: tuple[str, ...], dynamics: str = "steady", beats: Beats | None = None, has_track: bool = True
) -> Sound:
    return Sound(
        sounds=sounds,
        dynamics=dynamics,
        beats=beats,
        has_track=has_track,
        pitch=rng.between(0.9, 1.1),
        volume=rng.between(0.7, 1.0),
        seed=rng.below(2**31),
    )


class Draw:
    """Random draws that are the same on every machine and Python.

    Of :class:`random.Random` only ``random()`` is promised to stay the same for a seed; all else is made of it here.
    """

    def __init__(self, key: str) -> None:
        self._random = random.Random(key).random

    def below(self, stop: int) -> int:
        """A whole number in [0, stop)."""
        return int(self._random() * stop)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high), to three digits: facts are read by people."""
        return round(low + (high - low) * self._random(), 3)

    def chance(self, probability: float) -> bool:
        """Yes with this probability."""
        return self._random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in a random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in items]

    def distinct(self, items: Sequence[Item], count: int) -> tuple[Item, ...]:
        """Several different ones of the items."""
        return tuple(self.shuffled(items)[:count])
