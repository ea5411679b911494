"""Symmetric InfoNCE: of all clips in a batch, what is seen finds what is heard with it, and the other way round.

Source: MICap (2411.06872), whose form is CLIP's (Radford et al. 2021, 2103.00020); the authors' code is deckyal/MI-Cap,
``src/modeling.py``. This module gives its numbers (tests/train/test_contrastive.py).

With v and a the two vectors of each clip over their lengths, and s the scale, which is learned::

    loss = (CE(s v a^T, diagonal) + CE(s a v^T, diagonal)) / 2

As in the authors' code the other clips are those of this process; nothing is gathered from other ones. Where a row of a
batch is a caption (``train.captions_per_clip=each``, as the authors train), a clip may meet itself as another.

The vectors are what the fusion pools of each clip: ``pooled_video``, ``pooled_audio`` and ``paired`` of ``Fused.aux``
(``coattention`` with ``pool``, see there for what post and pre mean).

Deviations:

- Clips that lack one of the two (``paired`` False) neither ask nor are found. The authors' clips have both.
- Computed in float32 at least, under autocast too: in bfloat16 a score near 100 is rounded to the next half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.objective import BaseObjective, Losses, ObjectiveConfig, Step, aux_keys

LOG_SCALE_START = math.log(1 / 0.07)
"""Of the logarithm of the scale, the parameter that is trained."""
LOG_SCALE_MAX = 4.6052
"""Its largest value, ln 100; its smallest is 0."""

AUX = ("pooled_video", "pooled_audio", "paired")
"""What a fusion must give."""


class Config(ObjectiveConfig):
    """Settings of the contrastive loss. The weight is the authors', 1."""

    temperature: float = Field(0.07, ge=0.01, le=1)
    """1 / s at the start."""


class Objective(BaseObjective):
    """The loss of what the fusion pools. The logarithm of the scale is trained, as any vector is.

    Raises:
        ConfigError: the fusion pools nothing.
    """

    def __init__(self, config: Config, *, fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        if not set(AUX) <= aux_keys(fusion, specs):
            name = type(fusion).__module__.rpartition(".")[2]
            there = ", ".join(f"{key} ({spec.modality})" for key, spec in specs.items())
            raise ConfigError(
                "objectives",
                [
                    f"needs a vector of what is seen and one of what is heard, but the fusion {name} gives no pooled "
                    f"vectors of {there or 'nothing'}; try fusion=coattention fusion.pool=post, on feature sets of "
                    "video and of audio or text"
                ],
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def forward(self, step: Step) -> Losses:
        """One loss; the temperature is watched."""
        video, audio, paired = (step.fused.aux[key] for key in AUX)
        return Losses(
            losses={"contrastive": info_nce(video, audio, self.log_scale, paired)},
            watched={"temperature": (-self.log_scale).exp()},
        )

    def after_update(self) -> None:
        """Keep the scale where the authors keep it."""
        clamp_log_scale(self.log_scale)


def info_nce(video: Tensor, audio: Tensor, log_scale: Tensor, paired: Tensor | None = None) -> Tensor:
    """The loss, in nats.

    Args:
        video: ``(B, W)``, of any length but 0 where ``paired``.
        audio: ``(B, W)``, the same.
        log_scale: of one element: the logarithm of s. See :func:`clamp_log_scale`.
        paired: ``(B,)``, bool: which clips have both; ``None``: all.

    Returns:
        One number: the mean over the clips that have both, 0 where none has (and where only one has: it cannot err).

    Raises:
        ValueError: shapes do not fit one another.
    """
    if video.ndim != 2 or video.shape != audio.shape:
        got = f"{tuple(video.shape)} and {tuple(audio.shape)}"
        raise ValueError(f"video and audio: expected the same shape (B, W), got {got}")
    if log_scale.numel() != 1:
        raise ValueError(f"log_scale: expected one element, got shape {tuple(log_scale.shape)}")
    if paired is None:
        paired = torch.ones(len(video), dtype=torch.bool, device=video.device)
    if paired.shape != video.shape[:1]:
        raise ValueError(f"paired: expected shape ({len(video)},), got {tuple(paired.shape)}")
    with torch.autocast(video.device.type, enabled=False):
        dtype = torch.promote_types(video.dtype, torch.float32)
        scores = log_scale.to(dtype).exp() * (F.normalize(video.to(dtype)) @ F.normalize(audio.to(dtype)).T)  # (B, B)
        # Masked and summed instead of picked out: the device need not say how many clips there are.
        scores = scores.masked_fill(~(paired[:, None] & paired), torch.finfo(dtype).min)
        targets = torch.arange(len(video), device=video.device).masked_fill(~paired, -100)
        found = [F.cross_entropy(side, targets, ignore_index=-100, reduction="sum") for side in (scores, scores.T)]
        return (found[0] + found[1]) / (2 * paired.sum().clamp(min=1))


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep the scale between 1 and 100, in place; to be called after each step of the optimizer, as the authors do."""
    log_scale.clamp_(0, LOG_SCALE_MAX)
