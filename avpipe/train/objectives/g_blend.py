"""Gradient blending (G-Blend): branches are weighed by what they still learn against how much they overfit.

Source: Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?" (CVPR 2020, 1905.12681); a
baseline of "Exploring the Role of Audio in Video Captioning" (2306.12559), which gives no settings. After the formula;
there are no numbers of the authors. It gives those of a stored series (tests/train/test_objectives.py).

Branches k are all modalities together (``joint``) and each alone, the others masked out of the batch. Every ``every``
epochs, with n the former measurement and N this one::

    gain         G_k  = held_out_k(n) - held_out_k(N)
    overfitting  O_k  = held_out_k - train_k,   dO_k = O_k(N) - O_k(n)
    w_k  proportional to  G_k / dO_k^2,  summing to 1
    loss = sum_k w_k L_k

The joint loss is in that sum already: ``objectives.cross_entropy.weight=0`` is asked for, and its other settings hold.

What the papers leave open, and what is done here:

- A gain below 0 counts as 0, and dO_k as at least 1e-4: the formula rewards neither. Where no branch gains, the weights
  stay; before the second measurement they are all the same.
- Held out are clips of the validation split, which also chooses the best checkpoint; the authors hold out some of the
  training clips.
- The losses of both splits are measured in eval mode, on the first caption of ``clips`` clips each.
- The branches are those of one network; the authors train a copy of each branch to measure it.
- L_k of a modality is over the clips that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.objective import BaseObjective, Losses, ObjectiveConfig, Split, Step, Steps, sum_over_processes
from avpipe.train.objectives._alone import losses_alone, modalities_of
from avpipe.train.objectives.cross_entropy import token_count

REPLACES = ("cross_entropy",)
"""Objectives whose loss is in this one's sum: their own weight must be 0."""

LEAST_OVERFITTING = 1e-4


class Config(ObjectiveConfig):
    """Settings of G-Blend."""

    every: int = Field(2, ge=1)
    """Epochs between measurements."""
    since: Literal["former", "start"] = "former"
    """What a measurement is compared with: the one before it (online), or the first (offline)."""
    clips: int = Field(512, ge=1)
    """At most so many clips of each split are measured."""


def blend(former: Tensor, now: Tensor) -> Tensor | None:
    """The weights of the branches.

    Args:
        former: ``(2, K)``: losses on training clips and on held-out ones, by branch.
        now: the same, later.

    Returns:
        ``(K,)``; ``None`` where no branch gains.
    """
    gain = (former[1] - now[1]).clamp(min=0)
    overfitting = ((now[1] - now[0]) - (former[1] - former[0])).abs().clamp(min=LEAST_OVERFITTING)
    raw = gain / overfitting**2
    return raw / raw.sum() if raw.sum() > 0 else None


class Objective(BaseObjective):
    """The weighted losses of all branches.

    Raises:
        ConfigError: there are not two modalities.
    """

    needs_held_out = True
    weights: Tensor
    measured: Tensor
    count: Tensor

    def __init__(self, config: Config, *, fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.every, self.since, self.clips = config.every, config.since, config.clips
        self.modalities = modalities_of(specs)
        branches = 1 + len(self.modalities)
        self.register_buffer("weights", torch.full((branches,), 1 / branches))
        self.register_buffer("measured", torch.zeros(2, branches))  # what the next measurement is compared with
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # of measurements

    def forward(self, step: Step) -> Losses:
        """A loss each branch."""
        losses = {"joint": step.caption_loss(step.logits, step.batch)}
        losses |= {kind: m.loss for kind, m in losses_alone(step, self.modalities).items()}
        return Losses(losses=losses, weights=dict(zip(losses, self.weights.clone().unbind(), strict=True)))

    def after_epoch(self, epoch: int, steps: Steps) -> None:
        """Measure, every ``every`` epochs, and weigh anew."""
        if epoch % self.every == 0:
            self.weigh(torch.stack([self._measure(steps, "train"), self._measure(steps, "held_out")]))

    def weigh(self, now: Tensor) -> None:
        """Take a measurement ``(2, K)`` in."""
        if self.count > 0:
            weights = blend(self.measured, now)
            if weights is not None:
                self.weights.copy_(weights)
        if self.count == 0 or self.since == "former":
            self.measured.copy_(now)
        self.count += 1

    def _measure(self, steps: Steps, split: Split) -> Tensor:
        """``(K,)``: the mean over the tokens of a split, by branch."""
        sums = torch.zeros(2, len(self.weights), dtype=torch.float64)
        for step in steps(split, self.clips):
            alone = losses_alone(step, self.modalities)
            losses = [step.caption_loss(step.logits, step.batch), *(m.loss for m in alone.values())]
            counts = [token_count(step.batch), *(token_count(step.batch, m.clips) for m in alone.values())]
            both = torch.stack([torch.stack(losses), torch.stack(counts)]).to("cpu", torch.float64)
            sums += torch.stack([both[0] * both[1], both[1]])
        sums = sum_over_processes(sums.to(self.weights))
        return sums[0] / sums[1].clamp(min=1)
