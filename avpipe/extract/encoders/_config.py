"""What the configurations of encoders have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from avpipe.extract import sampling
from avpipe.extract.media import FrameRequest
from avpipe.pipeline import config as base

Sampling = Annotated[str, AfterValidator(sampling.check)]
"""The name of a policy of :mod:`avpipe.extract.sampling`."""

TOKENS = r"^(all|cls|mean|grid:[1-9]\d*)$"
"""Token policies of networks that cut a frame into patches."""


class BatchConfig(base.Config):
    """Of every encoder."""

    batch_size: int = Field(default=8, ge=1)
    """Clips at once. Changes no feature."""


class DeviceConfig(BatchConfig):
    """Of encoders with a network."""

    precision: Literal["bf16", "float32"] = "bf16"
    """``bf16``: mixed precision on GPUs that have it; float32 everywhere else."""

    compile: bool = False
    """Have ``torch.compile`` make the network faster. It takes a minute to begin, and may change the last bits."""


class FrameConfig(base.Config):
    """Of encoders that look at frames."""

    frames: int = Field(default=8, ge=1)
    """Frames a clip (at most so many with ``sampling: fps:x``)."""

    sampling: Sampling = "uniform"
    """How frames are chosen: ``uniform``, ``span_starts`` (LAVIS's uniform), ``linspace``, ``headtail``,
    ``consecutive:<interval>``, ``fps:<rate>`` ...; see ``avpipe.extract.sampling``."""

    views: int = Field(default=0, ge=0)
    """Augmented views to store beside the plain one, because augmentation happens upstream of a frozen encoder: half
    to all of the picture, at random, resized, and mirrored at random, as LAVIS augments videos. Training draws one of
    all views each time; validation, test and ``caption`` see the plain one."""

    view_sampling: Sampling = "headtail"
    """How the frames of augmented views are chosen."""

    def request(self) -> FrameRequest:
        """What such an encoder asks for."""
        return FrameRequest(
            sampling=self.sampling, count=self.frames, views=self.views, view_sampling=self.view_sampling
        )
