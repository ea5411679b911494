"""BEATs: a transformer over patches of a log-mel spectrogram, with a gated relative position bias.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (ICML 2023); authors' code microsoft/unilm ``beats/``,
whose networks are those of WavLM. Names of parameters are those of the authors' files, which load by name.

Left out, because they change no feature: dropout, layer drop, gradient scaling, the scaling of attention scores by 32
that keeps float16 from overflowing. The activation ``"glu"``, which no public file uses, is refused.

Shapes: B clips, F spectrogram frames, M mel bands, p side of a patch, T = (F // p) * (M // p) tokens, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avpipe.pipeline import checkpoints
from avpipe.pipeline.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatsConfig:
    """What a checkpoint's ``cfg`` says of its network, under the names and with the defaults of the authors' class.

    Attributes:
        input_patch_size: side of a patch.
        embed_dim: width of a patch's embedding.
        conv_bias: whether the patch embedding has a bias.
        encoder_layers: number of layers.
        encoder_embed_dim: D.
        encoder_ffn_embed_dim: width inside the feed-forward.
        encoder_attention_heads: H.
        activation_fn: of the feed-forward.
        layer_norm_first: whether norms come before attention and feed-forward, or after.
        deep_norm: whether residuals are scaled by ``(2 * encoder_layers) ** 0.25``.
        conv_pos: kernel of the convolution over positions.
        conv_pos_groups: its groups.
        relative_position_embedding: whether attention has a bias by distance.
        num_buckets: of distances.
        max_distance: beyond which all are in one bucket. 800 in the public files, not the default.
        gru_rel_pos: whether that bias is gated by the query.
        finetuned_model: whether there is a classifier.
        predictor_class: its classes.
    """

    input_patch_size: int = 16
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False
    finetuned_model: bool = False
    predictor_class: int = 527

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                expected = type(field.default).__name__
                raise ValueError(f"{field.name}: expected {expected}, got {value!r}")
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {value}")
        if self.activation_fn != "gelu":
            raise ValueError(f"activation_fn: expected 'gelu', got {self.activation_fn!r}")
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other, both are True")
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim: expected a multiple of {self.encoder_attention_heads} heads, "
                f"got {self.encoder_embed_dim}"
            )

    @classmethod
    def of_file(cls, content: Mapping[str, Any], path: Path) -> BeatsConfig:
        """From the ``cfg`` of a checkpoint. Fields that only training knows are passed over.

        Args:
            content: of the file.
            path: for messages.

        Raises:
            CheckpointError: there is no such thing, or it describes no network that can be built.
        """
        found = content.get("cfg")
        if not isinstance(found, Mapping):
            keys = ", ".join(map(str, list(content)[:5]))
            raise CheckpointError(
                f"{path}: no BEATs file: expected the keys 'cfg' and 'model', got {keys}. The authors' README "
                "(microsoft/unilm, beats/) links the files"
            )
        known = {field.name for field in fields(cls)}
        if "input_patch_size" not in found:
            raise CheckpointError(f"{path}: cfg: no input_patch_size; it has no default")
        try:
            return cls(**{key: value for key, value in found.items() if key in known})
        except ValueError as error:
            raise CheckpointError(f"{path}: cfg: {error}") from None


ITER3_PLUS = BeatsConfig(deep_norm=True, relative_position_embedding=True, max_distance=800, gru_rel_pos=True)
"""The public ``BEATs_iter3_plus_AS2M.pt``: 90 million parameters."""


class Beats(nn.Module):
    """Spectrograms in, tokens out.

    Args:
        config: its sizes and branches.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        patch, embed_dim, width = config.input_patch_size, config.embed_dim, config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, embed_dim, patch, patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.post_extract_proj = nn.Linear(embed_dim, width) if embed_dim != width else None
        self.encoder = Layers(config)
        self.predictor = nn.Linear(width, config.predictor_class) if config.finetuned_model else None

    def forward(self, spectrogram: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens of the last layer; those of padding hold numbers without meaning.

        Args:
            spectrogram: ``(B, F, M)``, normalised.
            padding: ``(B, T)``, True where a token is padding; see :func:`token_padding`.

        Returns:
            ``(B, T, D)``, time-major: token ``t * (M // p) + m`` is patch ``m`` of time step ``t``.
        """
        tokens: Tensor = self.encoder(self.embed(spectrogram), padding)
        return tokens

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Tokens before the first layer, without positions: ``(B, F, M)`` -> ``(B, T, D)``."""
        patches = self.patch_embedding(spectrogram[:, None])  # (B, E, F // p, M // p)
        tokens: Tensor = self.layer_norm(patches.flatten(2).transpose(1, 2))
        return tokens if self.post_extract_proj is None else self.post_extract_proj(tokens)

    def classify(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits of the classes, of a fine-tuned network: of each token, then their mean over what is no padding.

        Args:
            tokens: as :meth:`forward` gives them.
            padding: as it takes it.

        Returns:
            ``(B, classes)``. The authors' call gives their sigmoid.
        """
        if self.predictor is None:
            raise ValueError("classify: expected a fine-tuned network, this one has no classifier")
        logits: Tensor = self.predictor(tokens)
        if padding is None:
            return logits.mean(dim=1)
        real = ~padding[..., None]
        return (logits * real).sum(dim=1) / real.sum(dim=1)


class Layers(nn.Module):
    """A convolution that tells positions apart, and the transformer's layers."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        table = (
            nn.Embedding(config.num_buckets, config.encoder_attention_heads)
            if config.relative_position_embedding
            else None
        )
        self.pos_conv = nn.Sequential(PositionConv(width, config.conv_pos, config.conv_pos_groups), nn.GELU())
        self.layers = nn.ModuleList(Layer(config, table) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        if padding is not None:
            tokens = tokens.masked_fill(padding[..., None], 0)
        tokens = tokens + self.pos_conv(tokens.transpose(1, 2)).transpose(1, 2)
        if not self.config.layer_norm_first:
            tokens = self.layer_norm(tokens)
        bias = self.position_bias(tokens.shape[1])
        hidden = None if padding is None else hide(padding, tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, bias, hidden)
        return self.layer_norm(tokens) if self.config.layer_norm_first else tokens

    def position_bias(self, count: int) -> Tensor | None:
        """What is added to the scores of attention, before gates: ``(H, T, T)`` by query and key, for T = ``count``."""
        first = self.layers[0]
        assert isinstance(first, Layer)
        table = first.self_attn.relative_attention_bias
        if table is None:
            return None
        distances = torch.arange(1 - count, count)  # key minus query
        ids = buckets(distances, self.config.num_buckets, self.config.max_distance)
        by_distance = table(ids.to(table.weight.device)).T  # (H, 2T - 1)
        positions = torch.arange(count, device=by_distance.device)
        bias: Tensor = by_distance[:, positions - positions[:, None] + count - 1]
        return bias


class PositionConv(nn.Module):
    """A convolution along tokens, its weight normalised for each tap of the kernel.

    With an even kernel the output has one position too many: the last is cut off.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        weight = torch.empty(width, width // groups, kernel).normal_(std=math.sqrt(4 / (kernel * width)))
        self.weight_v = nn.Parameter(weight)
        self.weight_g = nn.Parameter(_length_of_taps(weight))  # (1, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, channels: Tensor) -> Tensor:
        """``(B, D, T)`` -> ``(B, D, T)``."""
        weight = self.weight_v * (self.weight_g / _length_of_taps(self.weight_v))
        mixed = functional.conv1d(channels, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return mixed[..., : channels.shape[-1]]


class Layer(nn.Module):
    """Attention and feed-forward; norms after them, or before (``layer_norm_first``)."""

    def __init__(self, config: BeatsConfig, table: nn.Embedding | None) -> None:
        super().__init__()
        width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.norm_first = config.layer_norm_first
        self.residual_scale = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = Attention(config, table)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, bias: Tensor | None, hidden: Tensor | None) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        if self.norm_first:
            tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens), bias, hidden)
            return tokens + self._feed_forward(self.final_layer_norm(tokens))
        scale = self.residual_scale
        tokens = self.self_attn_layer_norm(scale * tokens + self.self_attn(tokens, bias, hidden))
        after: Tensor = self.final_layer_norm(scale * tokens + self._feed_forward(tokens))
        return after

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        after: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return after


class Attention(nn.Module):
    """Multi-head self-attention with a bias by distance, which each query may turn up or down.

    The table of biases is one for all layers, and each layer's state dict holds it: so do the authors' files.
    """

    def __init__(self, config: BeatsConfig, table: nn.Embedding | None) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.relative_attention_bias = table
        self.is_gated = config.gru_rel_pos
        if config.gru_rel_pos:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, tokens: Tensor, bias: Tensor | None, hidden: Tensor | None) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``.

        Args:
            tokens: to attend among.
            bias: ``(H, T, T)``.
            hidden: ``(B, 1, 1, T)``, minus infinity at the keys that are padding, else 0.
        """
        query, key, value = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        added = hidden
        if bias is not None and not self.is_gated:
            added = bias[None] if hidden is None else bias + hidden
        elif bias is not None:
            gate, bias = self._gate(query), bias.to(query.dtype)
            added = gate * bias if hidden is None else torch.addcmul(hidden.to(query.dtype), gate, bias)
        if added is not None:
            added = added.to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=added)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _gate(self, query: Tensor) -> Tensor:
        """What the bias of each query is multiplied with: ``(B, H, T, D / H)`` -> ``(B, H, T, 1)``."""
        halves = self.grep_linear(query).unflatten(-1, (2, -1)).sum(dim=-1)  # (B, H, T, 2)
        update, reset = torch.sigmoid(halves).chunk(2, dim=-1)
        gate: Tensor = update * (reset * self.grep_a - 1) + 2
        return gate.to(query.dtype)


def buckets(distances: Tensor, count: int, max_distance: int) -> Tensor:
    """The bucket of each distance from query to key: half of them for keys that come later.

    Near distances have a bucket each, farther ones share them by their logarithm. Computed in float32 as the authors
    do: where a logarithm falls on the edge of two buckets, rounding decides.

    Args:
        distances: key minus query, whole numbers.
        count: of buckets.
        max_distance: beyond which all are in the last bucket.
    """
    half = count // 2
    exact = half // 2
    far = distances.abs()
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, logarithmic) + half * (distances > 0)


def hide(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """A padding mask ``(B, T)`` as what is added to scores, ``(B, 1, 1, T)``."""
    return torch.zeros_like(padding, dtype=dtype).masked_fill(padding, -math.inf)[:, None, None]


def token_padding(padding: Tensor, num_frames: int, num_tokens: int) -> Tensor:
    """Which tokens are padding, from which samples are: the authors' two reductions.

    Samples are put into F groups of equal size, these into T: a group is padding if all of it is. The groups of the
    second kind are in general not the tokens' own 16 x 16 patches: the end of the sound may lie within a time step,
    whose higher bands alone are then padding.

    Args:
        padding: ``(B, S)``, True where a sample is padding.
        num_frames: F.
        num_tokens: T.

    Returns:
        ``(B, T)``.
    """
    for count in (num_frames, num_tokens):
        size = padding.shape[1] // count
        padding = padding[:, : size * count].reshape(-1, count, size).all(dim=2)
    return padding


def fill(network: Beats, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a file's tensors into the network.

    Raises:
        CheckpointError: they do not fit; or the table of position biases, which the file repeats for every layer, is
            not the same in all of them.
    """
    tables = {name: tensor for name, tensor in state.items() if name.endswith(".relative_attention_bias.weight")}
    for name, table in tables.items():
        first = next(iter(tables))
        if not torch.equal(table, tables[first]):
            raise CheckpointError(f"{path}: layers should share one table of position biases: {name} is not {first}")
    checkpoints.fill(network, state, path)


def _length_of_taps(weight: Tensor) -> Tensor:
    """``(D, D / groups, kernel)`` -> ``(1, 1, kernel)``."""
    length: Tensor = torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)
    return length
