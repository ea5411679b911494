"""Facts put into words: captions of synthetic clips, and the synchrony word read back from a caption.

A caption joins a clause about the picture and a clause about the sound. Every fact is said in every caption; how it is
said is drawn from a few paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from avpipe.data_manifests.synthesis.facts import Draw, Facts, Picture, Sound

IN_TIME = ("in time", "in step")
OUT_OF_TIME = ("out of time", "out of step")

REFERENCES = 5

Pick = Callable[[Sequence[str]], str]
"""Chooses a paraphrase: at random for references, the first for the plainest wording."""

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
DYNAMIC = {
    "louder": ("gets louder", "comes closer"),
    "softer": ("fades away", "gets softer"),
}
PICTURE_FIRST = ("{picture} while {sound}", "{picture} as {sound}")
SOUND_FIRST = ("{sound} while {picture}", "{sound} as {picture}")
SILENT = ("{picture} in silence", "{picture} without a sound", "there is no sound while {picture}")
SYNCHRONY = (
    "{picture} {time} with {pulses}",
    "{picture} {time} with the {pulses}",
    "{pulses} sound while {picture} {time}",
)


def references(facts: Facts, rng: Draw) -> tuple[str, ...]:
    """Different captions of one clip, :data:`REFERENCES` of them, all true and complete."""
    found: dict[str, None] = {}
    while len(found) < REFERENCES:
        found[say(facts, rng.pick)] = None
    return tuple(found)


def say(facts: Facts, pick: Pick) -> str:
    if facts.in_time is not None:
        time = pick(IN_TIME if facts.in_time else OUT_OF_TIME)
        return pick(SYNCHRONY).format(picture=picture_clause(facts.picture, pick), time=time, pulses=facts.sound.sounds[0])
    if not facts.sound.sounds:
        return pick(SILENT).format(picture=picture_clause(facts.picture, pick))
    return pick(PICTURE_FIRST + SOUND_FIRST).format(
        picture=picture_clause(facts.picture, pick), sound=sound_clause(facts.sound, pick)
    )


def picture_clause(picture: Picture, pick: Pick) -> str:
    thing = f"a {picture.colour} {picture.shape}"
    if picture.beats:
        return f"{thing} bounces"
    return f"{thing} {' then '.join(pick(MOTION[motion]) for motion in picture.motions)}"


def sound_clause(sound: Sound, pick: Pick) -> str:
    if sound.dynamics != "steady":
        return f"{SOURCE[sound.sounds[0]]} {pick(DYNAMIC[sound.dynamics])}"
    return " then ".join(f"{SOURCE[name]} {VERB[name]}" for name in sound.sounds)


def synchrony_word(caption: str) -> bool | None:
    words = f" {' '.join(re.findall('[a-z]+', caption.lower()))} "
    yes, no = (any(f" {phrase} " in words for phrase in phrases) for phrases in (IN_TIME, OUT_OF_TIME))
    return yes if yes != no else None
