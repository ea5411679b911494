"""A caption that was generated for a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """One finished hypothesis of a beam search: its text and the sum of its tokens' log-probabilities in nats."""

    text: str
    log_prob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The caption of one clip.

    Attributes:
        clip_id: of the clip.
        text: the best hypothesis.
        log_prob: sum of its tokens' log-probabilities, in nats, the end token included; never above 0.
        beams: every finished hypothesis, best first; empty where none were asked for.
        checkpoint: what generated it: ``<run name>@<step>``, or "" where unknown.

    Raises:
        ValueError: ``clip_id`` is empty or ``log_prob`` is not a number <= 0.
    """

    clip_id: str
    text: str
    log_prob: float
    beams: tuple[Beam, ...] = ()
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if not self.clip_id:
            raise ValueError("clip_id: expected a clip's id, got an empty string")
        if math.isnan(self.log_prob) or self.log_prob > 1e-6:
            raise ValueError(f"log_prob of {self.clip_id!r}: expected nats <= 0, got {self.log_prob}")
