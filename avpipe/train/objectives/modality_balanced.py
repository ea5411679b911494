"""Modality-balanced pre-training (MBP): the modality that is neglected is trained the more, by itself.

Source: "Exploring the Role of Audio in Video Captioning" (2306.12559). There is no code of the authors; this is the
formulas of their slides, and gives the numbers of stored series of them (tests/train/test_objectives.py).

With L the loss of the captions by all modalities (``objectives.cross_entropy``, which adds it), and L_m by modality m
alone, the others masked out of the batch, step by step::

    G_m = (L_m - L)^2                                   how far m alone is from all together; no gradient
    w_m(t) = beta w_m(t - 1) + (1 - beta) softmax_m(alpha G_m)
    loss = L + sum_m w_m(t) L_m                         w_m is a constant for the gradient

What the paper leaves open, and what is done here:

- alpha, beta and w(0): 10, 0.99, and the same for each modality, so that they sum to 1. Whether weights are those of
  before the step or after it: after.
- A step is a batch: with ``train.accumulate`` above 1 there are several between two updates.
- Where next clips' captions are learned, too, L and L_m are means over both targets, and G_m is the sum of both gaps.
- L_m is over the clips that have m, and G_m compares with L of the same clips; the authors' clips have both. Where no
  clip of a batch has m, no weight changes.
- Several processes: L and L_m in G_m are means over all of them, so that their weights are the same.

Beyond the original: more than two modalities (text).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.objective import BaseObjective, Losses, ObjectiveConfig, Step, sum_over_processes
from avpipe.train.objectives._alone import losses_alone, modalities_of


class Config(ObjectiveConfig):
    """Settings of MBP."""

    alpha: float = Field(10.0, ge=0)
    """How sharply the farther modality is preferred; 0: not at all. The paper gives none."""
    beta: float = Field(0.99, ge=0, lt=1)
    """How slowly the weights follow. The paper gives none."""


def rebalance(weights: Tensor, alone: Tensor, joint: Tensor, *, alpha: float, beta: float) -> Tensor:
    """w(t) from w(t - 1).

    Args:
        weights: ``(M,)``: w(t - 1).
        alone: ``(M, K)``: L_m of K targets.
        joint: ``(M, K)``, or ``(1, 1)``: L.
        alpha: see :class:`Config`.
        beta: see :class:`Config`.
    """
    target = (alpha * ((alone - joint) ** 2).sum(dim=1)).softmax(dim=0)
    return beta * weights + (1 - beta) * target


class Objective(BaseObjective):
    """The losses of each modality alone.

    Raises:
        ConfigError: there are not two modalities.
    """

    weights: Tensor

    def __init__(self, config: Config, *, fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.alpha, self.beta = config.alpha, config.beta
        self.modalities = modalities_of(specs)
        self.register_buffer("weights", torch.full((len(self.modalities),), 1 / len(self.modalities)))

    def forward(self, step: Step) -> Losses:
        """A loss each modality, weighted by what they are now; the weights move in training alone."""
        found = losses_alone(step, self.modalities)
        if self.training:
            self._move(
                torch.stack([m.by_target for m in found.values()]),
                torch.stack([m.joint for m in found.values()]),
                torch.stack([m.clips.any() for m in found.values()]),
            )
        # A copy: the next batch moves the weights, and this one's graph may still be waiting.
        weights = self.weights.clone()
        return Losses(
            losses={kind: m.loss for kind, m in found.items()},
            weights=dict(zip(found, weights.unbind(), strict=True)),
        )

    def _move(self, alone: Tensor, joint: Tensor, there: Tensor) -> None:
        """``(M, K)``, ``(M, K)``, ``(M,)``; ``there``: whether a clip of this process has the modality."""
        here = there.to(self.weights.dtype)[:, None]
        sums = sum_over_processes(torch.stack([alone.to(here) * here, joint.to(here) * here, here.expand_as(alone)]))
        counts = sums[2].clamp(min=1)
        moved = rebalance(self.weights, sums[0] / counts, sums[1] / counts, alpha=self.alpha, beta=self.beta)
        # Chosen on the device: it need not be asked whether a modality is missing.
        self.weights.copy_(torch.where((sums[2] > 0).all(), moved, self.weights))
