"""What decoders made of whole language models share: the clip's positions as if they were words, and what of it learns.

Such a network reads words as vectors. The positions that a fusion gives are mapped to the same width, put in an order
of modalities, and stand before the words (:class:`Entrance`). Positions that are not real are moved behind all that is
(:func:`real_first`): whatever a network makes of places, padding and a modality that a clip lacks then change nothing.

A language model is trained whole, or by adapters of low rank beside some of its matrices (LoRA: Hu et al., ICLR 2022,
2106.09685), or not at all, while the entrance always learns. A checkpoint of a run holds what learns and nothing else.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.features import MODALITIES, FeatureSpec, Modality
from avpipe.train.batch import Fused
from avpipe.train.decoders import _pretrained as shared
from avpipe.train.decoders._pretrained import Source
from avpipe.train.layers import initialise

log = logging.getLogger(__name__)

ADAPTER = "lora_"
BLIP2, BLIP2_PREFIX = "blip-2", "language_model."


class Lora(BaseConfig):
    """Adapters. The defaults are those of Multi-modal BLIP-2."""

    rank: int = Field(8, ge=1)
    """Rank of what is added to a matrix."""
    alpha: float = Field(16, gt=0)
    """What is added is multiplied by this over ``rank``."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what an adapter reads. (PIT-VC: 0.05.)"""
    targets: Literal["usual", "all-linear"] = "usual"
    """Which matrices get one: those that peft's table has for such a network (T5, Llama, OPT: queries and values), or
    all but those of words."""


class Settings(BaseConfig):
    """What the configurations of these decoders share."""

    weights: str = ""
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder: of the language model, or of a BLIP-2 that
    has such a one; or ``random``: from nothing, in the sizes below."""
    trained: Literal["all", "lora", "none"] = "lora"
    """What learns beside the projections: all of the language model; adapters; or nothing."""
    lora: Lora = Lora()
    """Adapters, with ``trained=lora``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the language model's weights in memory. What learns is float32: bfloat16 is for what is frozen."""
    projection: Literal["modality", "shared", "none"] = "modality"
    """To the language model's width: a Linear for each modality; one for all; or none, where the fusion has that width
    already."""
    order: tuple[Modality, ...] = ("audio", "video", "text")
    """In which order the positions of each modality stand, whatever the fusion's."""
    prompt: str = ""
    """Words that are always there before the caption: ``a video of``."""
    caption_tokens: int = Field(64, ge=4)
    """The longest caption in tokens, begin and end included."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Of the language model, where it is frozen, too; none: as its ``config.json`` says."""
    gradient_checkpointing: bool = False
    """Compute the language model's inner values twice instead of keeping them: slower, in less memory."""
    width: int | None = Field(None, ge=8)
    """Of random weights: channels of a token."""
    heads: int | None = Field(None, ge=1)
    """Of random weights: attention heads, which divide ``width``."""
    feed_forward: int | None = Field(None, ge=8)
    """Of random weights: hidden channels of the feed-forward part."""
    layers: int | None = Field(None, ge=1)
    """Of random weights: how many layers."""

    @field_validator("order")
    @classmethod
    def _names_each_once(cls, order: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if sorted(order) != sorted(MODALITIES):
            raise ValueError(f"expected each of {', '.join(MODALITIES)} once, got {', '.join(order) or 'none'}")
        return order

    @model_validator(mode="after")
    def _goes_together(self) -> Settings:
        shared.check_settings(self.weights, self.trained, self.sizes)
        if self.dtype != "float32" and self.trained == "all":
            raise ValueError(
                f"dtype: expected float32 with trained=all, got {self.dtype}: its steps would be lost in rounding. "
                "train.precision=bf16 computes in bfloat16 all the same"
            )
        if self.lora != Lora() and self.trained != "lora":
            raise ValueError(f"lora: expected trained=lora with it, got trained={self.trained}")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width})")
        return self

    @property
    def sizes(self) -> dict[str, int | None]:
        """The settings that count with random weights alone."""
        return {key: getattr(self, key) for key in ("width", "heads", "feed_forward", "layers")}


class Entrance(nn.Module):
    """Fused positions as a language model reads them: in its width, and in an order of modalities.

    Args:
        config: the decoder's.
        specs: the feature sets, by name.
        fused_width: width of what the fusion gives.
        width: of the language model.

    Raises:
        UsageError: the widths differ, and there is to be no projection.
    """

    def __init__(self, config: Settings, specs: Mapping[str, FeatureSpec], fused_width: int, width: int) -> None:
        super().__init__()
        if config.projection == "none" and fused_width != width:
            raise UsageError(
                f"decoder.projection: expected modality or shared, got none: the fusion gives {fused_width} channels, "
                f"the language model reads {width} (a Q-Former gives as many with fusion.out_width={width})"
            )
        self.rank = {name: config.order.index(spec.modality) for name, spec in specs.items()}
        self.modality = {name: spec.modality for name, spec in specs.items()}
        of_each: list[str] = sorted(set(self.modality.values()))
        names = {"modality": of_each, "shared": ["shared"], "none": []}[config.projection]
        self.projections = nn.ModuleDict({name: nn.Linear(fused_width, width) for name in names})
        initialise(self, None)

    def forward(self, fused: Fused) -> tuple[Tensor, Tensor]:
        """``(B, S, width)`` and the mask ``(B, S)``, bool: True = real."""
        of_place = [fused.sources[index] for index in fused.source.tolist()]
        places: dict[str, list[int]] = {}  # by modality, which come one after the other; within one, as they stood
        for place in sorted(range(len(of_place)), key=lambda place: self.rank[of_place[place]]):
            places.setdefault(self.modality[of_place[place]], []).append(place)
        order = torch.tensor([place for group in places.values() for place in group], device=fused.data.device)
        data = fused.data.index_select(1, order)
        if self.projections:
            groups = data.split_with_sizes([len(group) for group in places.values()], dim=1)
            parts = [self.of(modality)(group) for modality, group in zip(places, groups, strict=True)]
            data = torch.cat(parts, dim=1)
        return data, fused.mask.index_select(1, order)

    def of(self, modality: str) -> nn.Module:
        """The projection of a modality."""
        return self.projections["shared" if "shared" in self.projections else modality]


def real_first(data: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's real positions first, in their order, and its padding behind.

    Args:
        data: ``(B, S, W)``.
        mask: ``(B, S)``, bool: True = real.
    """
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    return data.gather(1, order[..., None].expand_as(data)), mask.gather(1, order)


# -- the network -------------------------------------------------------------------------------------------------------


def located(chosen: str, what: str) -> Source | None:
    """The files of a language model, or of the BLIP-2 that it is part of; ``None`` for random weights.

    ``values`` of what is found are the language model's own.

    Raises:
        MissingWeightsError: they are neither here nor to be had.
        CheckpointError: they do not say which language model it is.
    """
    source = shared.located(chosen, what)
    if source is None:
        return None
    values = source.values
    if values.get("model_type") == BLIP2:
        values = values.get("text_config") or {}
    if not values.get("model_type"):
        raise CheckpointError(f"{source.files.config}: expected the model_type of a language model, got none")
    return Source(source.files, values)


def read(network_class: Any, source: Source, network_config: Any, config: Settings, *, what: str) -> tuple[Any, Any]:
    """A language model with the weights of a checkpoint, whole.

    Raises:
        CheckpointError: the file cannot be read, or is not complete.
    """
    return shared.read(
        network_class,
        source,
        network_config,
        what=what,
        may_be_new="",
        dtype=getattr(torch, config.dtype),
        # Names of a language model alone have no such prefix: they stay.
        key_mapping={rf"^{re.escape(BLIP2_PREFIX)}": ""},
    )


def check_mode(decoder: nn.Module, config: Settings) -> None:
    """Refuse to go token by token where transformers would forget the former ones, and say so in a warning alone.

    Raises:
        ValueError: in training mode, with gradient checkpointing.
    """
    if decoder.training and config.gradient_checkpointing:
        raise ValueError(
            "decoder: one token at a time with gradient_checkpointing goes in eval mode alone: call eval()"
        )


def prepare(network: Any, config: Settings) -> None:
    """Say what of a language model learns, and put adapters in, where asked for.

    Raises:
        UsageError: peft has no table for such a network.
    """
    if config.trained == "lora":
        import peft

        settings = peft.LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=config.lora.dropout,
            target_modules=None if config.lora.targets == "usual" else config.lora.targets,
        )
        try:
            with warnings.catch_warnings():
                # GPT-2's matrices lie the other way round, which peft sees for itself, and tells each time.
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
                peft.inject_adapter_in_model(settings, network)
        except ValueError as error:
            raise UsageError(
                f"decoder.lora.targets: expected all-linear for a {network.config.model_type}, got "
                f"{config.lora.targets}: {error}"
            ) from None
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(config.trained == "all" or ADAPTER in name)
        if ADAPTER in name:
            parameter.data = parameter.data.float()  # beside frozen weights of half the size
    if config.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name, the older transformers do not know
            network.gradient_checkpointing_enable({"use_reentrant": False})
