"""What an objective is given and what it gives: the ground that every module of ``objectives/`` stands on.

A module of ``objectives/`` exports a ``Config`` (of :class:`ObjectiveConfig`) and an ``Objective`` (of
:class:`BaseObjective`). Once a batch, the loop's :class:`avpipe.train.learner.Learner` gives each objective one
:class:`Step` and takes its :class:`Losses`. What is minimised is, over all objectives::

    sum of objective.weight * (sum of weights[name] * losses[name])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.config import Config
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch, Fused
from avpipe.train.captioner import Captioner
from avpipe.train.tokenizer import Tokenizer


class ObjectiveConfig(Config):
    """What every objective is told."""

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """What its losses are multiplied by; 0: it is left out, and costs no time."""


class CaptionLoss(Protocol):
    """What a caption costs, by the settings of ``objectives.cross_entropy``: others build on the same number."""

    def __call__(self, logits: Tensor, batch: Batch, clips: Tensor | None = None) -> Tensor:
        """The mean over the tokens of the batch, in nats; with captions of next clips, too, of the two means the mean.

        Args:
            logits: ``(N, L - 1, V)`` for the targets ``batch.tokens[:, 1:]``.
            batch: with captions.
            clips: ``(B,)``, bool: the mean over the captions of these clips alone, 0 if there are none; ``None``: all.
        """

    def by_target(self, logits: Tensor, batch: Batch, clips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean over the captions of the clips themselves, and, where such are learned, over those of next clips.

        Returns:
            ``(K,)``: the means, and whether there is any such caption, bool; a mean over none is 0.
        """


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch, and what the captioner made of it.

    Attributes:
        captioner: for further passes, ``captioner.teach(batch)``.
        batch: with captions, on the captioner's device.
        fused: of the B clips; what a fusion has for objectives stands in ``fused.aux``, a row a clip.
        caption_loss: what captions cost.
    """

    captioner: Captioner
    batch: Batch
    fused: Fused
    caption_loss: CaptionLoss

    @cached_property
    def logits(self) -> Tensor:
        """``(N, L - 1, V)`` for the targets ``batch.tokens[:, 1:]``; decoded when they are first asked for."""
        return self.captioner.decode(self.fused, self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What an objective makes of a step.

    Attributes:
        losses: by name, each of one element, with its graph. An objective with one loss calls it by its own name.
        weights: of some of them, constants for the gradient; the others have 1.
        watched: further numbers for ``metrics.jsonl``.
    """

    losses: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    watched: Mapping[str, Tensor] = field(default_factory=dict)


Split = Literal["train", "held_out"]

Steps = Callable[[Split, int], Iterator[Step]]
"""``steps("held_out", 512)``: at most so many clips of a split, spread over it evenly, each with its first caption; the
same ones at every call. Several processes get a share each: sum what comes of it by :func:`sum_over_processes`."""


class BaseObjective(nn.Module):
    """An objective. Parameters are trained with the captioner's; they and buffers are in the checkpoint that a training
    goes on from, so whatever is remembered from step to step is one of the two.

    Args of a subclass, which is built before the training begins:
        config: its ``Config``.
        fusion: of the captioner.
        specs: the feature sets that are trained on, by name.

    Raises (in ``__init__``):
        ConfigError: the fusion or the feature sets are not what it needs.
    """

    needs_held_out = False
    """Whether :meth:`after_epoch` asks for steps of the split ``held_out``."""

    def prepare(self, clips: Sequence[Clip], tokenizer: Tokenizer) -> None:
        """Called once before the first step, also of a training that goes on; whatever is made of it is no state.

        Args:
            clips: that are trained on, each with all its captions.
            tokenizer: the captioner's words.
        """

    def forward(self, step: Step) -> Losses:
        """The losses of one batch. Whatever is drawn at random is drawn from torch's global generators."""
        raise NotImplementedError

    def after_update(self) -> None:
        """Called after each step of the optimizer."""

    def after_epoch(self, epoch: int, steps: Steps) -> None:
        """Called before the first epoch (``epoch`` 0) and after each but the last; in eval mode, without gradients."""


def aux_keys(fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> set[str]:
    """What a fusion gives to objectives: the keys of ``Fused.aux`` for one clip with one row of everything."""
    device = next((parameter.device for parameter in fusion.parameters()), torch.device("cpu"))
    batch = Batch(
        clip_ids=("",),
        features={name: torch.zeros(1, 1, spec.dim) for name, spec in specs.items()},
        mask={name: torch.ones(1, 1, dtype=torch.bool) for name in specs},
        pts_seconds={name: torch.zeros(1, 1) for name in specs},
        present={name: torch.ones(1, dtype=torch.bool) for name in specs},
    ).to(device, next((parameter.dtype for parameter in fusion.parameters()), None))
    training = fusion.training
    fusion.eval()  # draws nothing at random
    try:
        with torch.no_grad():
            fused: Fused = fusion(batch)
    finally:
        fusion.train(training)
    return set(fused.aux)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes of a training; without gradient."""
    values = values.detach().clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
