"""Which kind of clip each one is: with sound, with speech, how long, of which category, with how long captions.

Only what somebody looked at counts: the facts of ``prepare``'s look into the media files (``extra["media"]`` of the
manifest), what became of the clips in the feature sets, and the text of a speech recogniser. Where nobody looked, a
clip is of kind ``unknown``, and the notes say how to find out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from avpipe.data_manifests.ledger import MEDIA
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, UnknownNameError, UsageError
from avpipe.pipeline.features import Outcome, Segments

KINDS = ("audio", "speech", "duration", "category", "length")
EXTRA = "extra:"
UNKNOWN = "unknown"

NO_AUDIO, SILENT, AUDIBLE, AUDIO = "no audio", "silent", "audible", "audio"
SPEECH, NO_SPEECH = "speech", "no speech"

RECOGNISERS = ("whisper",)
"""Encoders whose text is what somebody says."""

SECONDS = (5, 10, 15, 20, 30, 60, 120)
WORDS = (5, 8, 10, 12, 15, 20, 30)
"""Where bins begin and end, the upper edge excluded."""

MOST = 60
"""Values of a field: what takes more of them is no kind but a name or a measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of clips.

    Attributes:
        references: captions by clip id; of all clips that are to be told apart.
        clips: rows of the manifest by id, of those that it holds; empty: there is no manifest.
        outcomes: what became of clips in feature sets of sound, and what a recogniser skipped, by set and id.
        heard: by set of a speech recogniser and id: what it wrote.
    """

    references: Mapping[str, Sequence[str]]
    clips: Mapping[str, Clip] = field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)
    heard: Mapping[str, Mapping[str, Segments]] = field(default_factory=dict)

    def media(self, clip_id: str) -> Mapping[str, Any]:
        """What looking into a clip's file told."""
        found: Mapping[str, Any] = self.clips[clip_id].extra.get(MEDIA, {}) if clip_id in self.clips else {}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Clips told apart by one thing; each is in one group.

    Attributes:
        name: of the thing: one of :data:`KINDS`, or ``"extra:FIELD"``.
        groups: ids by slice, none of them empty, in the order to be shown.
        notes: what a reader should know.

    Raises:
        ValueError: a clip is in two groups.
    """

    name: str
    groups: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        twice = [clip_id for clip_id, count in Counter(_chain(self.groups.values())).items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: expected each clip in one group, got {twice[0]!r} in several")


def check_names(names: Iterable[str], *, has_manifest: bool = True) -> None:
    """Whether clips can be told apart by these.

    Args:
        names: of :data:`KINDS`, or ``extra:FIELD``.
        has_manifest: whether there is one, or references alone.

    Raises:
        UnknownNameError: there is no such kind.
        UsageError: it stands in a manifest, and there is none.
    """
    for name in names:
        is_field = name.startswith(EXTRA) and name != EXTRA
        if name not in KINDS and not is_field:
            raise UnknownNameError("slice", name, KINDS, "Or extra:FIELD, of any field that the manifest has beside.")
        if name != "length" and not has_manifest:
            raise UsageError(
                f"slices: {name!r} is told by a manifest; of a file of references only 'length' is known. "
                f"Say whose clips they are with --dataset NAME"
            )


def check_holds(clip_ids: Collection[str], references: Collection[str]) -> None:
    """Whether a manifest is that of the references' dataset.

    Args:
        clip_ids: that it holds.
        references: ids of the clips that have any.

    Raises:
        DataError: it holds none of them.
    """
    if frozenset(clip_ids).isdisjoint(references):
        raise DataError(
            f"slices: the manifest holds none of the {len(references)} clips, for example "
            f"{next(iter(references), None)!r} is not there; is it that of another dataset, or are ids others?"
        )


def partition(name: str, facts: Facts) -> Partition:
    """Tell the clips apart by one thing.

    Raises:
        UnknownNameError: there is no such kind, or no clip has that field.
        UsageError: a field holds lists, or too many values to tell clips apart by.
        DataError: the manifest holds none of the clips.
    """
    check_names([name], has_manifest=bool(facts.clips))
    if facts.clips:
        check_holds(facts.clips, facts.references)
    if name in _LABELS:
        label, order, advice = _LABELS[name]
        labels = {clip_id: label(facts, clip_id) for clip_id in facts.references}
        shown: Sequence[str] = order
    else:
        labels = _fields(facts, name)
        shown, advice = [label for label, _ in Counter(labels.values()).most_common()], "the manifest does not say it"
    in_order = [*(label for label in shown if label != UNKNOWN), UNKNOWN]
    found = {label: tuple(clip_id for clip_id, own in labels.items() if own == label) for label in in_order}
    groups = {label: clip_ids for label, clip_ids in found.items() if clip_ids}
    notes = []
    if name == "length":
        notes.append("length: the mean number of words of a clip's references, counted between blanks")
    if name == "speech" and facts.heard:
        notes.append(f"speech: as written in {', '.join(facts.heard)}")
    if UNKNOWN in groups:
        notes.append(f"{name}: unknown of {len(groups[UNKNOWN])} of {len(labels)} clips; {advice}")
    return Partition(name=name, groups=groups, notes=tuple(notes))


def _audio(facts: Facts, clip_id: str) -> str:
    """``audible`` and ``silent`` where somebody listened, ``audio`` where it is only known that there is a track."""
    media = facts.media(clip_id)
    if "has_audio" in media:
        if not media["has_audio"]:
            return NO_AUDIO
        if media.get("is_silent"):
            return SILENT
        # Of a part of a longer file, that something can be heard in the file says nothing.
        return AUDIBLE if media.get("is_silent") is False and "file_seconds" not in media else AUDIO
    outcomes = [by_clip[clip_id] for by_clip in facts.outcomes.values() if clip_id in by_clip]
    if any(outcome.status == "ok" for outcome in outcomes):
        return AUDIO
    return NO_AUDIO if any(outcome.error_type == "no_audio" for outcome in outcomes) else UNKNOWN


def _speech(facts: Facts, clip_id: str) -> str:
    """Where there is nothing to be heard nobody speaks; else a recogniser must have listened."""
    written = [by_clip[clip_id] for by_clip in facts.heard.values() if clip_id in by_clip]
    if any(_is_speech(segments) for segments in written):
        return SPEECH
    return NO_SPEECH if written or _audio(facts, clip_id) in (NO_AUDIO, SILENT) else UNKNOWN


def _is_speech(segments: Segments) -> bool:
    """Whether there is text, other than what Whisper's authors would take for silence: a probability of no speech
    above 0.6 and a mean log-probability of a token below -1.
    """
    return any(
        segment.text
        and not (segment.flags.get("no_speech_prob", 0.0) > 0.6 and segment.score is not None and segment.score < -1)
        for segment in segments.items
    )


def _duration(facts: Facts, clip_id: str) -> str:
    seconds = facts.media(clip_id).get("duration_seconds")
    clip = facts.clips.get(clip_id)
    if seconds is None and clip is not None and clip.stop_seconds is not None:
        seconds = clip.stop_seconds - clip.start_seconds
    return UNKNOWN if seconds is None else _bin(seconds, SECONDS, "s")


def _length(facts: Facts, clip_id: str) -> str:
    captions = facts.references[clip_id]
    return _bin(sum(len(caption.split()) for caption in captions) / len(captions), WORDS, "words")


def _bin(value: float, edges: Sequence[int], unit: str) -> str:
    return _bins(edges, unit)[sum(value >= edge for edge in edges)]


def _bins(edges: Sequence[int], unit: str) -> list[str]:
    between = [f"{low} to {high} {unit}" for low, high in pairwise(edges)]
    return [f"under {edges[0]} {unit}", *between, f"{edges[-1]} {unit} and more"]


def _fields(facts: Facts, name: str) -> dict[str, str]:
    """The value of a field by clip id: of ``category``, or of any that is named, with dots into what is nested."""
    path = name.removeprefix(EXTRA)
    found = {
        clip_id: _at(facts.clips[clip_id].extra, path) if clip_id in facts.clips else None
        for clip_id in facts.references
    }
    if all(value is None for value in found.values()):
        known = sorted(
            {key for clip_id in found if clip_id in facts.clips for key in _paths(facts.clips[clip_id].extra)}
        )
        raise UnknownNameError("field of the manifest", path, known, "No clip that is scored has it.")
    for clip_id, value in found.items():
        if isinstance(value, list | dict):
            raise UsageError(
                f"slices: {name} of {clip_id!r} is {value!r:.60}; expected a single value to tell clips by"
            )
    labels = {clip_id: UNKNOWN if value is None else _text(value) for clip_id, value in found.items()}
    if (values := len(set(labels.values()))) > MOST:
        raise UsageError(
            f"slices: {name} has {values} values in {len(labels)} clips; expected at most {MOST}, "
            f"or it is no kind of clip"
        )
    return labels


def _at(extra: Mapping[str, Any], path: str) -> Any:
    if path in extra:
        return extra[path]
    first, _, rest = path.partition(".")
    inner = extra.get(first)
    return _at(inner, rest) if rest and isinstance(inner, Mapping) else None


def _paths(extra: Mapping[str, Any]) -> Iterable[str]:
    for key, value in extra.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{path}" for path in _paths(value))
        elif value is not None and not isinstance(value, list):
            yield key


def _text(value: Any) -> str:
    """As JSON writes it, but for strings."""
    return value if isinstance(value, str) else json.dumps(value)


def _chain(groups: Iterable[Iterable[str]]) -> Iterable[str]:
    return (clip_id for group in groups for clip_id in group)


_ASK_PROBE = "`avpipe prepare` looks into the media files unless --no-probe is given"
_LABELS: Mapping[str, tuple[Callable[[Facts, str], str], Sequence[str], str]] = {
    "audio": (_audio, (AUDIBLE, AUDIO, SILENT, NO_AUDIO), f"{_ASK_PROBE}, and extracted audio features tell as well"),
    "speech": (_speech, (SPEECH, NO_SPEECH), f"a speech recogniser tells: avpipe extract -e {RECOGNISERS[0]}"),
    "duration": (_duration, _bins(SECONDS, "s"), _ASK_PROBE),
    "length": (_length, _bins(WORDS, "words"), ""),
}
