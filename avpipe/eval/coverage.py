"""Which captions are scored against which references, and in what spelling.

Scores lie most easily by what is left out: a model that drops its hardest clips looks better. So every clip needs a
caption and every caption a clip, by id, or scoring stops with a list; what may be waived shows in the signature.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from avpipe.pipeline.errors import DataError, ScoringError, UsageError, did_you_mean

Missing = Literal["error", "empty", "drop"]
MISSING: tuple[Missing, ...] = ("error", "empty", "drop")
Predictions = Mapping[str, str] | Mapping[int, str]
References = Mapping[str, Sequence[str]] | Mapping[int, Sequence[str]]

_LISTED = 10
_ADVICE = (
    "\nGive every clip a caption, or say what a missing one means: missing='empty' scores an empty caption, "
    "missing='drop' leaves the clip out; either shows in the signature"
)

# What ends a line for Java or could not be encoded. The other controls carry no meaning; U+0080 to U+009F stay, because
# the tokeniser reads them as the quotes and dashes of Windows-1252.
_CONTROL = re.compile("[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]")


def clean(caption: str) -> str:
    """The caption on one line: control characters, line separators and ``|||`` become spaces.

    A line break would shift every later caption by one; ``|||`` separates fields in METEOR's protocol.
    """
    return _CONTROL.sub(" ", caption).replace("|||", " ")


def clean_all(captions: Sequence[str]) -> Sequence[str]:
    """:func:`clean` of each; the same captions where there is nothing to clean, as mostly."""
    whole = "".join(captions)
    return list(map(clean, captions)) if _CONTROL.search(whole) or "|||" in whole else captions


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSet:
    """Reference captions, checked and cleaned.

    Attributes:
        captions: one or more a clip id, in the order given.
        altered: how many of them :func:`clean` changed.
        sha256: of the captions as given; the same in whatever order the clips come.
    """

    captions: Mapping[str, tuple[str, ...]]
    altered: int
    sha256: str

    @classmethod
    def of(cls, references: References) -> ReferenceSet:
        """Check and clean.

        Raises:
            DataError: something is no list of captions, or two ids are the same as strings.
            ScoringError: there is no clip, or clips have no reference or an empty one.
        """
        given = {_id(key, "references"): _captions(key, value) for key, value in _items(references, "references")}
        if not given:
            raise ScoringError("references: expected at least one clip, got none")
        cleaned = {key: tuple(clean_all(captions)) for key, captions in given.items()}
        _stop_if(
            _fault([key for key in given if not given[key]], "clip", "has no reference"),
            _fault([key for key in given if not all(map(str.strip, cleaned[key]))], "clip", "has an empty reference"),
        )
        return cls(
            captions=cleaned,
            altered=sum(old != new for key in given for old, new in zip(given[key], cleaned[key], strict=True)),
            sha256=_hash(given),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """What is scored: the same ids in the same order on both sides, captions cleaned.

    Attributes:
        references: captions by clip id.
        candidates: one caption a clip id.
        missing: ids without a caption, or with an empty one, that ``missing="empty"`` or ``"drop"`` let pass.
        altered: how many candidates :func:`clean` changed.
    """

    references: Mapping[str, tuple[str, ...]]
    candidates: Mapping[str, str]
    missing: tuple[str, ...]
    altered: int

    def __post_init__(self) -> None:
        if list(self.references) != list(self.candidates):
            raise ValueError("references and candidates: expected the same ids in the same order")


def cover(predictions: Predictions, references: ReferenceSet, missing: Missing = "error") -> Covered:
    """Pair captions with references, by id, in the order of the references.

    Args:
        predictions: one caption a clip id. Ids may be strings or integers, and are compared as strings.
        references: of every clip.
        missing: what a clip without a caption, or with an empty one, means: ``"error"`` stops; ``"empty"`` scores it
            as an empty caption; ``"drop"`` leaves the clip out, references and all.

    Raises:
        UsageError: ``missing`` is none of these.
        DataError: something is no caption, or two ids are the same as strings.
        ScoringError: ids are missing or unknown, or captions are empty; all at once, the first ten of each with
            their number.
    """
    if missing not in MISSING:
        raise UsageError(
            f"missing: expected one of {', '.join(MISSING)}, got {missing!r}{did_you_mean(missing, MISSING)}"
        )
    given = {_id(key, "predictions"): _caption(key, value) for key, value in _items(predictions, "predictions")}
    cleaned = {key: clean(text) for key, text in given.items()}
    wanted = references.captions
    absent = [key for key in wanted if key not in given]
    empty = [key for key in wanted if key in given and not cleaned[key].strip()]
    strict = missing == "error"
    _stop_if(
        _fault([key for key in given if key not in wanted], "caption", "belongs to no clip of the references"),
        _fault(absent if strict else [], "clip", "has no caption"),
        _fault(empty if strict else [], "clip", "has an empty caption"),
        advice=_ADVICE if strict and (absent or empty) else "",
    )
    let_pass = frozenset((*absent, *empty))
    scored = [key for key in wanted if missing != "drop" or key not in let_pass]
    if not scored:
        raise ScoringError(f"missing='drop' leaves nothing to score: none of {len(wanted)} clips has a caption")
    return Covered(
        references={key: wanted[key] for key in scored},
        candidates={key: cleaned.get(key, "") for key in scored},
        missing=tuple(key for key in wanted if key in let_pass),
        altered=sum(given[key] != cleaned[key] for key in scored if key in given),
    )


def share(scored: Iterable[str], expected: int) -> str:
    """``"240/240"``, or ``"239/240@3f2a01bc"``: how many clips are scored, and which ones if not all."""
    ids = sorted(scored)
    which = f"@{hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]}" if len(ids) < expected else ""
    return f"{len(ids)}/{expected}{which}"


def _items(values: object, what: str) -> list[tuple[object, object]]:
    """The items of a mapping whose ids differ as strings."""
    if not isinstance(values, Mapping):
        raise DataError(f"{what}: expected a mapping from clip id to captions, got {type(values).__name__}")
    seen: dict[str, object] = {}
    for key in values:
        if str(key) in seen:
            raise DataError(f"{what}: the ids {seen[str(key)]!r} and {key!r} are the same clip; expected each id once")
        seen[str(key)] = key
    return list(values.items())


def _id(key: object, what: str) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise DataError(f"{what}: expected clip ids that are strings or integers, got {key!r}")
    return str(key)


def _caption(key: object, value: object) -> str:
    if not isinstance(value, str):
        hint = "; are predictions and references swapped?" if isinstance(value, Sequence) else ""
        raise DataError(f"predictions: expected one caption for clip {key!r}, got {value!r:.80}{hint}")
    return value


def _captions(key: object, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        hint = "; are predictions and references swapped?" if isinstance(value, str) else ""
        raise DataError(f"references: expected a list of captions for clip {key!r}, got {value!r:.80}{hint}")
    return tuple(value)


def _fault(ids: Sequence[str], noun: str, what: str) -> str:
    """``"3 clips have no caption: a, b, c"``, or nothing."""
    if not ids:
        return ""
    if len(ids) > 1:
        noun, what = f"{noun}s", what.replace("has ", "have ").replace("belongs ", "belong ")
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return f"{len(ids)} {noun} {what}: {', '.join(ids[:_LISTED])}{more}"


def _stop_if(*faults: str, advice: str = "") -> None:
    """Raise with all faults that are not empty, if there is one."""
    if any(faults):
        listed = "\n".join(f"  - {fault}" for fault in faults if fault)
        raise ScoringError(f"captions and references do not fit:\n{listed}{advice}")


def _hash(references: Mapping[str, Sequence[str]]) -> str:
    text = json.dumps({key: list(captions) for key, captions in references.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
