"""What the best possible captioners with one sense could say of synthetic clips.

Because the grammar is known, so is the ceiling of a captioner that sees all and hears nothing, or hears all and sees
nothing: it says everything that its modality tells, in the wording of the references, and guesses or leaves out the
rest. What pays best depends on the metric, so there are several *policies*; score each, and take the best one as the
ceiling. The policies are generous: some leave a sentence hanging where that scores better than a wrong guess. Captions
found word by word to maximise the expected CIDEr, given one modality, scored no better than the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Literal

from avpipe.data_manifests.synthesis.facts import COLOURS, Facts
from avpipe.data_manifests.synthesis.language import (
    SCENE,
    SILENCE,
    SYNCHRONY,
    say,
    say_object,
    say_picture,
    say_sound,
)
from avpipe.pipeline.clip import Clip

Sees = Literal["video", "audio", "both"]
Policy = Callable[[Facts], str]

# Sight alone: {mine} is "a red circle moves left" of a moving object, "a red ball" of a bouncing one, which in four
# of five clips is one of synchrony.
_MOVING = {
    "alone": "{mine}",
    "siren": "a siren wails while {mine}",
    "hanging": "while {mine} as a",
}
_BOUNCING = {
    "alone": "{mine} bounces",
    "in time": "high beeps sound while {mine} bounces in time",
    "out of time": "high beeps sound while {mine} bounces out of time",
    "in step, hanging": "sound while {mine} bounces in step with the",
    "out of step, hanging": "sound while {mine} bounces out of step with",
}
# Hearing alone: {mine} is "a siren wails" of a sound, "high beeps" of pulses, again four in five of synchrony.
_SOUNDING = {
    "alone": "{mine}",
    "ball": "{mine} while a red ball bounces",
    "hanging": "while {mine} as a red ball",
}
_PULSING = {
    "alone": "{mine} sound",
    "in time": "{mine} sound while a red ball bounces in time",
    # One colour for all: with few clips, one is a luckier guess than the others.
    **{f"{colour}, out of step": f"{{mine}} sound while a {colour} ball bounces out of step" for colour in COLOURS},
}
_SILENT = "there is no sound while a red ball"


def oracle_captions(clips: Sequence[Clip], sees: Sees) -> Mapping[str, Mapping[str, str]]:
    """Captions by captioners that know all facts of one modality and none of the other, or all facts of both.

    Args:
        clips: synthetic clips.
        sees: ``"video"`` or ``"audio"``; ``"both"`` gives perfect captioners that differ in their wording.

    Returns:
        By policy: a caption for every clip id.

    Raises:
        ValueError: ``sees`` is none of the three, or a clip is no synthetic one.
    """
    policies: dict[str, Policy] = {}
    if sees == "video":
        for moving, bouncing in product(_MOVING, _BOUNCING):
            policies[f"{moving}; {bouncing}"] = partial(_seen, _MOVING[moving], _BOUNCING[bouncing])
    elif sees == "audio":
        for sounding, pulsing in product(_SOUNDING, _PULSING):
            policies[f"{sounding}; {pulsing}"] = partial(_heard, _SOUNDING[sounding], _PULSING[pulsing])
    elif sees == "both":
        for form, words in product(range(3), range(2)):
            policies[f"form {form}; words {words}"] = partial(say, pick=partial(_pick, form, words))
    else:
        raise ValueError(f"sees: expected video, audio or both, got {sees!r}")
    facts = {clip.clip_id: Facts.from_json(clip.extra) for clip in clips}
    return {name: {key: policy(value) for key, value in facts.items()} for name, policy in policies.items()}


def _pick(form: int, words: int, options: Sequence[str]) -> str:
    """The same sentence form and the same choice of words throughout."""
    return options[form if options in (SCENE, SILENCE, SYNCHRONY) else words]


_plainly = partial(_pick, 0, 0)


def _seen(moving: str, bouncing: str, facts: Facts) -> str:
    if facts.picture.beats:
        return bouncing.format(mine=say_object(facts.picture))
    return moving.format(mine=say_picture(facts.picture, _plainly))


def _heard(sounding: str, pulsing: str, facts: Facts) -> str:
    if facts.sound.beats:
        return pulsing.format(mine=facts.sound.sounds[0])
    return sounding.format(mine=say_sound(facts.sound, _plainly)) if facts.sound.sounds else _SILENT
