"""AVCap's audio-visual tokens: CAV-MAE's joint layers over all rows of sound and sight, then GIT's visual projection.

Kim et al., "AVCap: Leveraging Audio-Visual Features as Text Tokens for Captioning" (Interspeech 2024), authors' code
JongSuk1/AVCap; the layers are those of Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023). It is
made for two feature sets of the encoder ``cav_mae``, cut where each modality's own layers end (``cut: 11``): their rows
already hold the patches' positions and modalities. With the rows a of audio and v of video, audio first::

    x = [a; v]
    x = x + Attention(LN1(x));  x = x + FFN(LN2(x))          each joint layer, pre-norm
    tokens = LN(Linear(LN(x)))                               final norm, then GIT's ``visual_projection``

Each joint layer, and the end, has three sets of norms: for both modalities together, for audio alone, for video alone;
attention and feed-forward are shared. The captioner uses the first, and the authors' ``audio_captioning`` and
``video_captioning`` modes the others. Here it is settled clip by clip: a clip without sound goes through the norms of
video alone and its missing rows are seen by nobody, so its tokens are those of ``video_captioning``, to the digit; and
likewise without pictures.

Deviations from the authors' system, of which the first comes with features that are stored:

- The layers below the cut are frozen; the authors train them.
- A clip without sound: their loader puts a spectrogram of 0.01 everywhere and goes on with the norms for both.
  ``alone: both`` takes these norms, too, but nothing takes the place of what is missing.
- ``time_embedding`` and ``modality_embedding``, for rows of encoders that hold neither; the authors add nothing.
- ``dropout``: theirs is 0.

Beyond the original: a feature set of another width is brought to ``width`` by a Linear; text, and several feature sets
of a modality, stand in the same sequence (audio, video, text), where text has no norms of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.features import FeatureSpec, Modality
from avpipe.pipeline.networks.cav_mae import NORMS, JointLayers
from avpipe.train import start_values
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import HeadsDivideWidth, initialise, key_bias, time_code

ORDER: tuple[Modality, ...] = ("audio", "video", "text")
PROJECTION_STD = 0.02  # GIT's; a LayerNorm follows


class Config(HeadsDivideWidth):
    """Sizes of the ``av_tokens`` fusion. The defaults are the paper's."""

    width: int = Field(768, ge=8)
    """Channels of the joint layers: CAV-MAE's."""
    layers: int = Field(1, ge=0)
    """Joint layers. 1 in every public file; all layers of a modality are 12."""
    heads: int = Field(12, ge=1)
    """Attention heads; divides ``width``. The feed-forward part has ``4 * width`` hidden channels."""
    out_width: int = Field(768, ge=8)
    """Width of the tokens: the text decoder's."""
    alone: Literal["own", "both"] = "own"
    """Norms of a clip that has one modality only: its own ones, or those for both."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a channel of a sub-layer's result. The paper: 0."""
    time_embedding: Literal["none", "sinusoidal"] = "none"
    """Whether a row is told its time in seconds. CAV-MAE's rows hold their place already."""
    modality_embedding: bool = False
    """Whether a row is told its feature set. CAV-MAE's rows hold their modality."""
    initialise_from: str = ""
    """CAV-MAE's file, for the joint layers (``cav-mae-scale++.pth``), or AVCap's, for the projection, too; empty: new.
    What neither has stays new: Linears before the layers, ``modality_embedding``."""
    initialise_projection_from: str = ""
    """GIT's file (``model_git_base.pt``), folder or repository (``microsoft/git-base``), for the projection; empty:
    that of ``initialise_from`` if it has one, else new, with which AVCap's authors begin, by a mistake in a name."""


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name.
    """

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.config = config
        self.width = config.out_width
        self.inner_width = config.width
        self.alone = config.alone
        self.has_times = config.time_embedding == "sinusoidal"
        self.names = tuple(sorted(specs, key=lambda name: ORDER.index(specs[name].modality)))
        self.modalities = [specs[name].modality for name in self.names]
        dims = [specs[name].dim for name in self.names]
        self.inputs = nn.ModuleList(
            nn.Identity() if dim == config.width else nn.Linear(dim, config.width) for dim in dims
        )
        self.modality = nn.Embedding(len(specs), config.width) if config.modality_embedding else None
        self.projection = nn.Sequential(nn.Linear(config.width, config.out_width), nn.LayerNorm(config.out_width))
        initialise(self.inputs, None)
        for part in (self.modality, self.projection):
            if part is not None:
                initialise(part, PROJECTION_STD)
        self.joint = JointLayers(config.width, config.heads, config.layers, dropout=config.dropout)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, the same rows out, audio before video: S is the sum of all T."""
        rows = []
        for index, (name, enter) in enumerate(zip(self.names, self.inputs, strict=True)):
            row = enter(batch.features[name])  # (B, T, width)
            if self.modality is not None:
                row = row + self.modality.weight[index]
            if self.has_times:
                row = row + time_code(batch.pts_seconds[name], self.inner_width).to(row.dtype)
            rows.append(row)
        data = torch.cat(rows, dim=1)  # (B, S, width)
        mask = torch.cat([batch.mask[name] for name in self.names], dim=1)  # (B, S)
        weights: list[Tensor] | None = [] if return_attention else None
        data = self.joint(data, self._norms(batch), bias=key_bias(mask, data.dtype), weights=weights)
        # A clip of which nothing is present looked at padding, and none of it is used.
        something = mask.any(dim=1)[:, None, None, None]
        attention = (
            AttentionMap(layer=index, queries="all", keys="all", weights=weight * something)
            for index, weight in enumerate(weights or ())
        )
        return Fused.end_to_end(batch, self.names, self.projection(data), attention)

    def read_start_values(self) -> None:
        """Read the public weights that the configuration names; the rest keeps its start values.

        Raises:
            MissingWeightsError: they are neither here nor to be had.
            CheckpointError: they are not complete, or do not fit.
        """
        given: dict[str, Tensor] = {}
        held = None
        for option in ("initialise_from", "initialise_projection_from"):
            place = getattr(self.config, option)
            if not place:
                continue
            held = start_values.read(place, component="fusion av_tokens", option=option)
            joint, projection = _joint(held.tensors), _projection(held.tensors)
            if option == "initialise_from":
                given |= _there(joint, "joint layers (blocks_u.*)", "of CAV-MAE or AVCap", held.tensors)
                if not self.config.initialise_projection_from:
                    given |= projection
            else:
                given |= _there(projection, "projection (visual_projection.*)", "of GIT or AVCap", held.tensors)
        if held:
            new = r"(inputs\..+|modality\..+" + (r"|joint\..+" if not self.config.initialise_from else "")
            has_projection = any(name.startswith("projection.") for name in given)
            start_values.fill(self, given, held, may_be_new=new + ("" if has_projection else r"|projection\..+") + ")")

    def _norms(self, batch: Batch) -> Tensor:
        """Which norms each clip goes through: ``(B,)``, an index into :data:`NORMS`."""
        there = dict.fromkeys(ORDER, torch.zeros_like(batch.present[self.names[0]]))  # (B,), each
        for name, modality in zip(self.names, self.modalities, strict=True):
            there[modality] = there[modality] | batch.present[name]
        audio, video, text = there.values()
        chosen = torch.zeros_like(audio, dtype=torch.int64)  # for both
        if self.alone == "own":
            chosen = chosen.masked_fill(audio & ~video & ~text, NORMS.index("a"))
            chosen = chosen.masked_fill(video & ~audio & ~text, NORMS.index("v"))
        return chosen


_JOINT = re.compile(r"(?:module\.)?(?:av_encoder\.)?((?:blocks_u\.\d+|norm|norm_a|norm_v)\..+)")
_PROJECTION = re.compile(
    r"(?:module\.)?(?:textual\.(?:av|visual)_projection|git\.visual_projection\.visual_projection)\.([01]\..+)"
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public weights under this module's names: ``fusion.load_state_dict(from_official(state))``.

    The joint layers and final norms are CAV-MAE's (a pre-trained or fine-tuned file) or those in AVCap's
    ``av_encoder``; the projection is AVCap's or GIT's (``model_git_base.pt``, or ``microsoft/git-base`` of the Hub). A
    file of CAV-MAE and one of GIT may be given as one: ``{**cav_mae, **git}``. (AVCap's authors, by a mistake in a
    name, begin with a random projection instead of GIT's.)

    Args:
        state: tensors by name, without a dictionary around them (GIT's file has them under ``model``).

    Raises:
        CheckpointError: there are no joint layers or no projection, or two projections.
    """
    joint = _there(_joint(state), "joint layers (blocks_u.*)", "of CAV-MAE or AVCap", state)
    projection = _projection(state)
    return joint | _there(projection, "projection (av_projection.* or visual_projection.*)", "of AVCap or GIT", state)


def _joint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The joint layers and final norms of a file, under this module's names."""
    matches = {name: _JOINT.fullmatch(name) for name in state}
    return {f"joint.{found[1]}": state[name] for name, found in matches.items() if found}


def _projection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projection of a file, under this module's names."""
    projection: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if found := _PROJECTION.fullmatch(name):
            if f"projection.{found[1]}" in projection:
                raise CheckpointError(f"expected one projection, got two; the second: {name}. Leave one of them out")
            projection[f"projection.{found[1]}"] = tensor
    return projection


def _there(part: dict[str, Tensor], kind: str, where: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not part:
        some = ", ".join(list(state)[:5])
        raise CheckpointError(f"expected {kind}, got {some or 'nothing'} ...; give the tensors of a file {where}")
    return part
