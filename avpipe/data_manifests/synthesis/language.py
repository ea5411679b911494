"""Facts put into words: captions of synthetic clips, and the synchrony word read back from a caption.

A caption joins a clause on the picture and a clause on the sound. Every caption says every fact; how it is said is
drawn from a few paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from avpipe.data_manifests.synthesis.facts import Draw, Facts, Picture, Sound

IN_TIME = ("in time", "in step")
"""What only a caption of a clip in time says."""

OUT_OF_TIME = ("out of time", "out of step")
"""What only a caption of a clip out of time says."""

REFERENCES = 5
"""Captions of a clip."""

Pick = Callable[[Sequence[str]], str]
"""Chooses one of several paraphrases."""

MOTION = {
    "left": ("moves left", "slides left"),
    "right": ("moves right", "slides right"),
    "up": ("moves up", "rises"),
    "down": ("moves down", "sinks"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "still": ("stays still", "does not move"),
}
SOURCE = {
    "low tone": "a low tone",
    "high tone": "a high tone",
    "siren": "a siren",
    "noise": "static",
    "drum": "a drum",
    "bird": "a bird",
}
VERB = {
    "low tone": "hums",
    "high tone": "rings",
    "siren": "wails",
    "noise": "hisses",
    "drum": "beats",
    "bird": "chirps",
}
DYNAMIC = {"louder": ("gets louder", "comes closer"), "softer": ("fades away", "gets softer")}

# In scenes, where there is nothing to be in time with, a caption names the bit of the one modality that has one.
BOUNCE = {False: ("jumps and bounces", "jumps then bounces"), True: ("drops and bounces", "drops then bounces")}
PULSE = {False: ("start at once", "begin at once"), True: ("start late", "begin late")}
SCENE = (
    "{picture} while {sound}",
    "{picture} as {sound}",
    "{sound} while {picture}",
    "{sound} as {picture}",
)
SILENCE = ("{picture} in silence", "{picture} without a sound", "there is no sound while {picture}")
SYNCHRONY = (
    "{picture} {time} with {sound}",
    "{picture} {time} with the {sound}",
    "{sound} sound while {picture} {time}",
)


def references(facts: Facts, key: str) -> tuple[str, ...]:
    """Five different captions of one clip, all of them true and complete.

    Args:
        facts: what happens in the clip.
        key: of the random draws.
    """
    draw = Draw(f"captions/{key}")
    found: dict[str, None] = {}
    while len(found) < REFERENCES:
        found[say(facts, draw.pick)] = None
    return tuple(found)


def say(facts: Facts, pick: Pick) -> str:
    """One caption; ``pick`` chooses the paraphrases."""
    if facts.in_time is not None:
        time = pick(IN_TIME if facts.in_time else OUT_OF_TIME)
        thing, pulses = say_object(facts.picture), facts.sound.sounds[0]
        return pick(SYNCHRONY).format(picture=f"{thing} bounces", time=time, sound=pulses)
    picture = say_picture(facts.picture, pick)
    if not facts.sound.sounds:
        return pick(SILENCE).format(picture=picture)
    return pick(SCENE).format(picture=picture, sound=say_sound(facts.sound, pick))


def say_object(picture: Picture) -> str:
    """What is seen, without what it does."""
    return f"a {picture.colour} {picture.shape}"


def say_picture(picture: Picture, pick: Pick) -> str:
    """The clause on what is seen."""
    if picture.beats:
        return f"{say_object(picture)} {pick(BOUNCE[picture.beats.late])}"
    return f"{say_object(picture)} {' then '.join(pick(MOTION[motion]) for motion in picture.motions)}"


def say_sound(sound: Sound, pick: Pick) -> str:
    """The clause on what is heard; "" for silence."""
    if sound.beats:
        return f"{sound.sounds[0]} {pick(PULSE[sound.beats.late])}"
    if sound.dynamics != "steady":
        return f"{SOURCE[sound.sounds[0]]} {pick(DYNAMIC[sound.dynamics])}"
    return " then ".join(f"{SOURCE[name]} {VERB[name]}" for name in sound.sounds)


def synchrony_word(caption: str) -> bool | None:
    """Whether a caption says in time (``True``) or out of time (``False``); ``None`` if neither or both."""
    words = f" {' '.join(re.findall('[a-z]+', caption.lower()))} "
    in_time, out_of_time = (any(f" {phrase} " in words for phrase in phrases) for phrases in (IN_TIME, OUT_OF_TIME))
    return in_time if in_time != out_of_time else None
