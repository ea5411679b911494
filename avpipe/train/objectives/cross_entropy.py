"""What a caption costs, token by token, with label smoothing.

With p the probabilities of the V tokens, t the right one and e the smoothing, in nats, mean over the tokens of a batch
(every caption's but the first)::

    standard    -sum_c q_c ln p_c               q_t = 1 - e + e / V,  else e / V       torch's label_smoothing
    kl           sum_c q_c (ln q_c - ln p_c)    q_t = 1 - e,          else e / (V - 1)

``kl`` is that of AVCap (2407.07801; JongSuk1/AVCap, ``models/decoder.py``), with e = 0.1. Its least value is 0 for any
e, and its gradient that of the cross-entropy with the same q. Without smoothing both are the cross-entropy. This module
gives the authors' numbers (tests/train/test_objectives.py).

Where a clip is also to say what is said in the next one (``train.targets``), the loss is the mean of two such means:
over the captions of the clips themselves, and over those of next clips.

Deviation: the authors also leave out every target that is token 0, which is their padding; here the mask tells padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch
from avpipe.train.objective import BaseObjective, Losses, ObjectiveConfig, Step

IGNORED = -100


class Config(ObjectiveConfig):
    """Settings of the cross-entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """e. AVCap's: 0.1."""
    form: Literal["standard", "kl"] = "standard"
    """Over which tokens e is spread, and whether the entropy of q is subtracted."""


class CaptionLoss:
    """The loss as a function; see :class:`avpipe.train.objective.CaptionLoss`."""

    def __init__(self, config: Config) -> None:
        self.smoothing = config.label_smoothing
        self.form = config.form

    def __call__(self, logits: Tensor, batch: Batch, clips: Tensor | None = None) -> Tensor:
        """The mean over the tokens of the batch, or of the captions of some clips; of none, 0."""
        return mean_of(*self.by_target(logits, batch, clips))

    def by_target(self, logits: Tensor, batch: Batch, clips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(K,)``: the same for the captions of the clips themselves and, where such are learned, of next clips."""
        # In float32 at least; flattened to (N * (L - 1), V).
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        kinds = [None] if batch.of_next is None else [~batch.of_next, batch.of_next]
        targets = [_targets(batch, clips, rows) for rows in kinds]
        is_whole = clips is None and batch.of_next is None
        means = torch.stack([self._mean(logits, ids, is_whole) for ids in targets])
        return means, torch.stack([(ids != IGNORED).any() for ids in targets])

    def _mean(self, logits: Tensor, targets: Tensor, is_whole: bool) -> Tensor:
        if self.form == "kl":
            return smoothed_kl(logits, targets, self.smoothing)
        if is_whole:
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=self.smoothing)
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)


def mean_of(means: Tensor, there: Tensor) -> Tensor:
    """The mean of those that are there; 0 if none is. For what :meth:`CaptionLoss.by_target` gives."""
    return means.sum() / there.sum().clamp(min=1)


def smoothed_kl(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """AVCap's form.

    Args:
        logits: ``(K, V)``.
        targets: ``(K,)``, int64; :data:`IGNORED` where a row does not count.
        smoothing: e.

    Returns:
        The mean over the rows that count; 0 if there are none.
    """
    log_probs = logits.log_softmax(-1)
    counts = targets != IGNORED
    right = log_probs.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    share = smoothing / (logits.shape[-1] - 1)
    # sum_c q_c ln q_c, the same for every row
    least = (1 - smoothing) * math.log(1 - smoothing) + (smoothing * math.log(share) if smoothing else 0.0)
    rows = least - (1 - smoothing - share) * right - (share * log_probs.sum(-1) if smoothing else 0.0)
    return rows.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


def token_count(batch: Batch, clips: Tensor | None = None) -> Tensor:
    """How many tokens the mean of :class:`CaptionLoss` is over."""
    return (_targets(batch, clips) != IGNORED).sum()


class Objective(BaseObjective):
    """The cross-entropy of the batch."""

    def __init__(self, config: Config, *, fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()

    def forward(self, step: Step) -> Losses:
        """One loss."""
        return Losses(losses={"cross_entropy": step.caption_loss(step.logits, step.batch)})


def _targets(batch: Batch, clips: Tensor | None, rows: Tensor | None = None) -> Tensor:
    """``(N * (L - 1),)``: every caption's tokens but the first; of some clips, and of some captions ``(N,)``, bool."""
    if batch.tokens is None or batch.token_mask is None or batch.caption_clip is None:
        raise ValueError("batch: expected captions, got none")
    real = batch.token_mask[:, 1:]
    if clips is not None:
        real = real & clips[batch.caption_clip][:, None]
    if rows is not None:
        real = real & rows[:, None]
    return batch.tokens[:, 1:].masked_fill(~real, IGNORED).flatten()
