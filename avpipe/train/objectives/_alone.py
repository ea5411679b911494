"""What each modality says alone: the others are masked out of the batch, and the same captioner looks again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch
from avpipe.train.objective import Step
from avpipe.train.objectives.cross_entropy import mean_of

Modalities = dict[str, tuple[str, ...]]
"""The feature sets of each modality, by name."""


def modalities_of(specs: Mapping[str, FeatureSpec]) -> Modalities:
    """The modalities that are trained on, in the alphabet's order.

    Raises:
        ConfigError: there are fewer than two.
    """
    kinds = sorted({spec.modality for spec in specs.values()})
    if len(kinds) < 2:
        got = ", ".join(f"{name} ({spec.modality})" for name, spec in specs.items()) or "none"
        fault = (
            f"weighs modalities against one another, expected feature sets of two or more, got {got}; add another by "
            "--features, or leave out --modalities"
        )
        raise ConfigError("objectives", [fault])
    return {kind: tuple(name for name, spec in specs.items() if spec.modality == kind) for kind in kinds}


def only(batch: Batch, names: tuple[str, ...]) -> Batch:
    """The batch as if there were these feature sets alone: of the others no clip has anything."""

    def emptied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # One row of padding is enough, and costs less than many.
        return {
            name: tensor if name in names else torch.zeros_like(tensor[:, :1] if tensor.ndim > 1 else tensor)
            for name, tensor in tensors.items()
        }

    return replace(
        batch,
        features=emptied(batch.features),
        mask=emptied(batch.mask),
        pts_seconds=emptied(batch.pts_seconds),
        present=emptied(batch.present),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A modality alone.

    Attributes:
        loss: of the captions of the clips that have the modality, by it alone; with its graph; 0 where no clip has it.
        by_target: ``(K,)``: the same for each kind of target, without graph; see
            :class:`avpipe.train.objective.CaptionLoss`.
        joint: ``(K,)``: of the same captions, by everything; without graph.
        clips: ``(B,)``, bool: which clips have it.
    """

    loss: Tensor
    by_target: Tensor
    joint: Tensor
    clips: Tensor


def losses_alone(step: Step, modalities: Modalities) -> dict[str, Alone]:
    """One more pass of the captioner for each modality."""
    found = {}
    for kind, names in modalities.items():
        clips = torch.stack([step.batch.present[name] for name in names]).any(dim=0)
        _, logits = step.captioner.teach(only(step.batch, names))
        means, there = step.caption_loss.by_target(logits, step.batch, clips)
        joint, _ = step.caption_loss.by_target(step.logits.detach(), step.batch, clips)
        found[kind] = Alone(loss=mean_of(means, there), by_target=means.detach(), joint=joint, clips=clips)
    return found
