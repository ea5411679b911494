"""Features and what they are: :class:`FeatureSpec` (an identity), :class:`Features` (arrays with their clock),
:class:`Segments` (timed text), :class:`Outcome` (what became of one clip).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

Modality = Literal["video", "audio", "text"]
MODALITIES: tuple[Modality, ...] = ("video", "audio", "text")
DISK_DTYPES = ("float16", "float32", "text")
STATUSES = ("ok", "failed", "skipped")
IMPORTED = "imported"
"""The ``encoder`` of features that avpipe did not make, and cannot make again."""

_MAPPINGS = ("config", "weights", "preprocessing", "clock", "libraries", "source")
_NAME = re.compile(r"[A-Za-z0-9_+=,@-][A-Za-z0-9_+=,@.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """The identity of a feature set: everything that changes a number in it.

    Two specs with the same :attr:`fingerprint` promise the same features for the same clip; features of two
    fingerprints are never mixed. Where the features lie (``name``), and where the weights lay, are no part of it.

    Attributes:
        name: of the feature set: its folder, and its key in configurations and batches.
        encoder: name of the encoder's module.
        modality: ``"video"``, ``"audio"`` or ``"text"``.
        dim: width of a feature row; 0 for text.
        dtype: on disk: ``"float16"`` or ``"float32"``; ``"text"`` for a set of :class:`Segments`, which has no rows.
        config: the encoder's complete configuration (sampling, token policy, weights asked for ...), as JSON-ready
            values; enough to build the encoder again.
        weights: where the numbers came from: ``id``, and ``sha256`` of the file or ``random:<seed>``; empty for an
            encoder without weights.
        preprocessing: constants that are not in ``config`` but change a number (mean, std, filter, crop, fbank).
        clock: how rows lie in time: ``hop_seconds`` and ``window_seconds`` where they are constant, or how times are
            chosen; for people and plots. The exact time of each row is stored beside it.
        libraries: versions that change a number: decoder library, resampler.
        source: of an encoder that reads another feature set's text: the spec of that set and its ``fingerprint``, as
            ``spec.json`` has them.
        views: how many views of each clip are stored: the plain one, and as many augmented ones as were asked for. The
            rows of a clip are those of the plain view, then those of the first augmented one, and so on.

    The mappings are copied and made plain JSON values (a tuple becomes a list): a spec read back from disk equals the
    one that was written.

    Raises:
        ValueError: a field is not as described; the message says expected and got.
    """

    name: str
    encoder: str
    modality: Modality
    dim: int
    dtype: str = "float16"
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    clock: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    views: int = 1

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name of a feature set: expected letters, digits and '_+=,@-.' (no leading dot), got {self.name!r}"
            )
        if self.modality not in MODALITIES:
            raise ValueError(
                f"modality of {self.name!r}: expected one of {', '.join(MODALITIES)}, got {self.modality!r}"
            )
        if self.dtype not in DISK_DTYPES:
            raise ValueError(f"dtype of {self.name!r}: expected one of {', '.join(DISK_DTYPES)}, got {self.dtype!r}")
        if self.is_text and (self.dim, self.modality, self.views) != (0, "text", 1):
            raise ValueError(
                f"{self.name!r}: expected dim 0, modality 'text' and one view with dtype 'text', "
                f"got {self.dim}, {self.modality!r} and {self.views}"
            )
        if not self.is_text and self.dim < 1:
            raise ValueError(f"dim of {self.name!r}: expected at least 1, got {self.dim}")
        if self.views < 1:
            raise ValueError(f"views of {self.name!r}: expected at least 1, got {self.views}")
        for key in _MAPPINGS:
            object.__setattr__(self, key, _plain(getattr(self, key), f"{key} of {self.name!r}"))

    @property
    def is_text(self) -> bool:
        """Whether the set holds :class:`Segments` instead of rows of numbers."""
        return self.dtype == "text"

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 over everything that changes a number. The one function that makes it."""
        text = json.dumps(self._identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _identity(self) -> dict[str, Any]:
        """Every field but names: of the set, of weights and a tokenizer whose hashes are known (the same file
        elsewhere, or under another name, gives the same numbers), and of the text that is read, whose own fingerprint
        says it all.
        """
        values = {key: value for key, value in self.to_json().items() if key != "name"}
        if "sha256" in values["weights"]:
            values["weights"] = {key: value for key, value in values["weights"].items() if key != "id"}
            places = {"weights", *({"tokenizer"} & values["preprocessing"].keys())}  # known by their hashes
            values["config"] = {key: value for key, value in values["config"].items() if key not in places}
        if "fingerprint" in values.get("source", {}):
            values["source"] = {"fingerprint": values["source"]["fingerprint"]}
        return values

    def differences(self, other: FeatureSpec) -> list[str]:
        """What keeps two specs from being the same features, one line a field: ``"config.frames: 8 against 16"``."""
        mine, theirs = _flat(self._identity()), _flat(other._identity())
        absent = "(absent)"
        # Compared as JSON text, as the fingerprint is: in Python, 1 == 1.0 == True.
        return [
            f"{key}: {mine.get(key, absent)} against {theirs.get(key, absent)}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields that say something, as JSON-ready values. ``source`` and ``views`` say nothing where they are
        empty and 1, so that the identity of most features does not depend on there being such fields.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.source:
            del values["source"]
        if self.views == 1:
            del values["views"]
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; a ``fingerprint`` beside the fields is ignored.

        Raises:
            ValueError: a field is missing, unknown or not as described.
        """
        try:
            return cls(**{key: value for key, value in values.items() if key != "fingerprint"})
        except TypeError as error:
            raise ValueError(f"not a feature spec: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What one encoder said about one clip.

    Attributes:
        data: float array ``(T, dim)``, T >= 1, all finite.
        pts_seconds: float64 array ``(T,)``: the middle of what each row saw, in seconds from the clip's start.
    """

    data: npt.NDArray[Any]
    pts_seconds: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or self.data.shape[0] < 1:
            raise ValueError(f"data: expected shape (T, dim) with T >= 1, got {self.data.shape}")
        if self.pts_seconds.shape != self.data.shape[:1]:
            raise ValueError(f"pts_seconds: expected shape {self.data.shape[:1]}, got {self.pts_seconds.shape}")

    def __repr__(self) -> str:
        return f"Features(data={self.data.dtype}{list(self.data.shape)})"


class FeatureSource(Protocol):
    """Where features come from; :class:`avpipe.pipeline.store.FeatureSet` is one."""

    spec: FeatureSpec

    def __contains__(self, clip_id: object) -> bool:
        """Whether a clip has features."""

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of a clip: of the plain view, or of one of ``spec.views``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a clip and its text: what somebody says there, or what it sounds like.

    Attributes:
        start_seconds: from the clip's start.
        stop_seconds: excluded; not before the start.
        text: without white space around it; may be empty.
        score: mean log-probability of a token (nats), where the model gives one.
        flags: facts about the text, as JSON-ready values: ``no_speech_prob``, ``repetition``, ``language`` ... They
            are kept as data: nothing is thrown away for looking like a hallucination.
    """

    start_seconds: float
    stop_seconds: float
    text: str
    score: float | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds <= self.stop_seconds < float("inf"):
            raise ValueError(
                f"segment: expected 0 <= start_seconds <= stop_seconds, got {self.start_seconds}, {self.stop_seconds}"
            )
        if self.text != self.text.strip():
            raise ValueError(f"text: expected no white space around it, got {self.text!r}")
        object.__setattr__(self, "flags", _plain(self.flags, "flags"))

    def to_json(self) -> dict[str, Any]:
        """All fields that say something, as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value for key, value in values.items() if value is not None and value != {}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: a field is missing, unknown or not as described.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a segment: {error}") from None


@dataclass(frozen=True, slots=True)
class Segments:
    """What one encoder wrote about one clip: timed text. None at all if it had nothing to say.

    Attributes:
        items: by start time.
    """

    items: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        starts = [segment.start_seconds for segment in self.items]
        if starts != sorted(starts):
            raise ValueError(f"segments: expected ascending start_seconds, got {starts}")

    @property
    def text(self) -> str:
        """All texts, one space between them."""
        return " ".join(segment.text for segment in self.items if segment.text)


Encoded = Features | Segments
"""What an encoder gives for one clip: rows of numbers, or text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one clip in one feature set. One row a clip, whatever happens.

    Attributes:
        clip_id: of the clip.
        status: ``"ok"``, ``"failed"`` or ``"skipped"`` (it has no such modality: no failure).
        error_type: a short stable word if not ok (``"decode"``, ``"timeout"``, ``"no_audio"``); "" if ok.
        error_message: for a person; "" if ok.
        notes: facts that did not stop the clip, e.g. ``"video cut short: 28 of 50 packets decoded"``.
        seconds: time spent on the clip. The only field that differs between two runs of the same work.
    """

    clip_id: str
    status: str
    error_type: str = ""
    error_message: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status of {self.clip_id!r}: expected one of {', '.join(STATUSES)}, got {self.status!r}")
        if (self.status == "ok") == bool(self.error_type):
            raise ValueError(f"error_type of {self.clip_id!r}: got {self.error_type!r} with status {self.status!r}")

    def to_json(self) -> dict[str, Any]:
        """All fields that say something, as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["notes"] = list(self.notes)
        return {key: value for key, value in values.items() if value not in ("", [], 0.0)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: a field is missing, unknown or not as described.
        """
        try:
            return cls(**{**values, "notes": tuple(values.get("notes", ()))})
        except TypeError as error:
            raise ValueError(f"not an outcome: {error}") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of dotted keys, each value as JSON text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and (value or not prefix):  # a nested empty mapping is a value
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True)
    return flat


def _plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy as JSON gives it back.

    Raises:
        ValueError: there is something in it that JSON does not know.
    """
    try:
        plain = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected JSON-ready values, {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{what}: expected a mapping, got {values!r}")  # noqa: TRY004
    return plain
