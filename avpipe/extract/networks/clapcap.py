"""MS-CLAP's audio captioner, ``clapcap``: what a sound is like, in a sentence.

Deshmukh, Elizalde, Singh, Wang, "Training Audio Captioning Models without Audio" (ICASSP 2024) and Elizalde et al.,
"Natural Language Supervision for General-Purpose Audio Representations" (2023); authors' code microsoft/CLAP, package
msclap. The networks around ours come from transformers: its CLAP audio tower is the same HTSAT, its GPT-2 the same
GPT-2. Their front end is in :mod:`avpipe.extract.encoders.audio_caption`, where no torch is needed.

Legend: B clips, K beams, P prefix rows, W width of GPT-2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import ClapAudioModel, GPT2LMHeadModel

UNUSED = (
    r"clap\.base\.htsat\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\..*"  # front end; AudioSet's classes
    r"|clap\.base\.htsat\.layers\.\d+\.blocks\.\d+\.attn_mask"  # constants of shifted windows
    r"|gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # constants of old versions of transformers
)
"""Names in the authors' file that have no part in a caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the whole network; by default the published one.

    Attributes:
        patch_width: of HTSAT's first stage; each later one is twice as wide.
        depths: layers of HTSAT's stages.
        heads: of HTSAT's stages.
        joint: width of the space that CLAP shares with text.
        heard: rows that the mapper makes of what CLAP says.
        prefix: learned rows that it hands to GPT-2 after they have looked at those.
        mapper_layers: of the mapper.
        mapper_heads: of the mapper.
        mapper_hidden: between its two linear layers.
        gpt_width: of GPT-2.
        gpt_layers: of GPT-2.
        gpt_heads: of GPT-2.
        gpt_positions: that GPT-2 can hold, the prefix included.
        vocabulary: of GPT-2.
    """

    patch_width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    joint: int = 1024
    heard: int = 40
    prefix: int = 40
    mapper_layers: int = 8
    mapper_heads: int = 8
    mapper_hidden: int = 1536
    gpt_width: int = 768
    gpt_layers: int = 12
    gpt_heads: int = 12
    gpt_positions: int = 1024
    vocabulary: int = 50257

    @property
    def latent(self) -> int:
        """Width of what HTSAT says of a clip."""
        return self.patch_width << (len(self.depths) - 1)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Sizes:
        """Read off the tensors of a file, under our names. The width of a head is that of the published network.

        Raises:
            KeyError: a tensor is missing.
        """
        layer = "audio.audio_encoder.layers.{}.blocks.{}.layernorm_before.weight"
        depths: list[int] = []
        while layer.format(len(depths), 0) in state:
            depths.append(_count(state, layer.replace("{}", str(len(depths)), 1)))
        patch_width = len(state["audio.audio_encoder.patch_embed.norm.weight"])
        mapper, gpt = "clap_project.transformer.layers.{}.", "gpt.transformer.h.{}.ln_1.weight"
        vocabulary, gpt_width = state["gpt.transformer.wte.weight"].shape
        return cls(
            patch_width=patch_width,
            depths=tuple(depths),
            heads=tuple((patch_width << stage) // 24 for stage in range(len(depths))),
            joint=len(state["projection.layer_norm.weight"]),
            heard=len(state["clap_project.linear.bias"]) // gpt_width,
            prefix=len(state["clap_project.prefix_const"]),
            mapper_layers=_count(state, mapper + "norm1.weight"),
            mapper_hidden=len(state[mapper.format(0) + "mlp.fc1.weight"]),
            gpt_width=gpt_width,
            gpt_layers=_count(state, gpt),
            gpt_heads=gpt_width // 64,
            gpt_positions=len(state["gpt.transformer.wpe.weight"]),
            vocabulary=vocabulary,
        )


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many layers there are whose tensor has that name, ``{}`` standing for the number."""
    number = 0
    while name.format(number) in state:
        number += 1
    return number


class Projection(nn.Module):
    """What HTSAT says, in the space that CLAP shares with text. ``(B, latent) -> (B, joint)``."""

    def __init__(self, latent: int, joint: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(latent, joint, bias=False)
        self.linear2 = nn.Linear(joint, joint, bias=False)
        self.layer_norm = nn.LayerNorm(joint)

    def forward(self, latent: Tensor) -> Tensor:
        """``(B, latent) -> (B, joint)``."""
        first = self.linear1(latent)
        projected: Tensor = self.layer_norm(first + self.linear2(functional.gelu(first)))
        return projected


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        keys, values = self.to_keys_values(rows).chunk(2, dim=-1)
        split = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_queries(rows), keys, values))
        mixed: Tensor = self.project(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return mixed


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(functional.relu(self.fc1(rows)))
        return mixed


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, hidden)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        mixed: Tensor = rows + self.mlp(self.norm2(rows))
        return mixed


class Mapper(nn.Module):
    """One vector of CLAP as the first rows that GPT-2 reads. ``(B, joint) -> (B, P, W)``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes.joint, sizes.heard * sizes.gpt_width)
        self.prefix_const = nn.Parameter(torch.randn(sizes.prefix, sizes.gpt_width))
        layers = (_Layer(sizes.gpt_width, sizes.mapper_heads, sizes.mapper_hidden) for _ in range(sizes.mapper_layers))
        self.transformer = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, joint: Tensor) -> Tensor:
        """``(B, joint) -> (B, P, W)``: what comes out at the learned rows."""
        heard = self.linear(joint).unflatten(-1, (-1, self.prefix_const.shape[1]))  # (B, heard, W)
        rows = torch.cat([heard, self.prefix_const.expand(len(joint), -1, -1)], dim=1)  # (B, heard + P, W)
        mixed: Tensor = self.transformer["layers"](rows)
        return mixed[:, heard.shape[1] :]


class ClapCap(nn.Module):
    """The whole captioner up to the prefix, and GPT-2 that goes on from there."""

    def __init__(self, sizes: Sizes) -> None:
        from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.audio: ClapAudioModel = ClapAudioModel(
            ClapAudioConfig(
                patch_embeds_hidden_size=sizes.patch_width,
                hidden_size=sizes.latent,
                depths=list(sizes.depths),
                num_attention_heads=list(sizes.heads),
            )
        )
        self.projection = Projection(sizes.latent, sizes.joint)
        self.clap_project = Mapper(sizes)
        self.gpt: GPT2LMHeadModel = GPT2LMHeadModel(
            GPT2Config(
                n_embd=sizes.gpt_width,
                n_layer=sizes.gpt_layers,
                n_head=sizes.gpt_heads,
                n_positions=sizes.gpt_positions,
                vocab_size=sizes.vocabulary,
                bos_token_id=sizes.vocabulary - 1,
                eos_token_id=sizes.vocabulary - 1,
            )
        )

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Spectrograms in dB ``(B, frames, 64)`` -> prefix ``(B, P, W)``."""
        latent = self.audio(input_features=spectrograms[:, None]).pooler_output
        prefix: Tensor = self.clap_project(functional.normalize(self.projection(latent), dim=-1))
        return prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """One hypothesis of the search.

    Attributes:
        tokens: the stop token included, if it came.
        score: mean log-probability of a token, at the temperature of the search.
    """

    tokens: list[int]
    score: float


def beam_search(
    gpt: GPT2LMHeadModel, prefix: Tensor, *, beams: int, max_tokens: int, stop_token: int, temperature: float
) -> list[list[Beam]]:
    """The authors' beam search, for many clips at once and with GPT-2's past kept instead of computed anew.

    Hypotheses are ranked by mean log-probability at every step. One that has stopped stays as it is and keeps its place
    among the beams as long as its mean is good enough.

    Args:
        gpt: the language model.
        prefix: ``(B, P, W)``.
        beams: K.
        max_tokens: of a text.
        stop_token: ends one.
        temperature: that logits are divided by; more than 0.

    Returns:
        For each clip its hypotheses, best first.
    """
    count, vocabulary = len(prefix), gpt.config.vocab_size
    output: Any = gpt(inputs_embeds=prefix, use_cache=True)
    past = output.past_key_values
    past.batch_repeat_interleave(beams)
    scores, tokens = _log_probs(output.logits, temperature).topk(beams)  # (B, K)
    tokens = tokens[..., None]  # (B, K, steps)
    lengths = torch.ones_like(scores)
    stopped = tokens[..., -1] == stop_token
    rest = torch.full((vocabulary,), -torch.inf, device=prefix.device, dtype=scores.dtype)
    rest[0] = 0.0  # a hypothesis that has stopped goes on with token 0, which costs nothing
    while tokens.shape[-1] < max_tokens and not stopped.all():
        output = gpt(input_ids=tokens[..., -1].reshape(-1, 1), past_key_values=past, use_cache=True)
        past = output.past_key_values
        steps = _log_probs(output.logits, temperature).view(count, beams, vocabulary)
        totals = scores[..., None] + torch.where(stopped[..., None], rest, steps)
        lengths = lengths + ~stopped
        means, chosen = (totals / lengths[..., None]).flatten(1).topk(beams)  # (B, K)
        source, token = chosen // vocabulary, chosen % vocabulary
        lengths = lengths.gather(1, source)
        scores = means * lengths
        tokens = tokens.gather(1, source[..., None].expand_as(tokens))
        tokens = torch.cat([tokens, token[..., None]], dim=-1)
        stopped = stopped.gather(1, source) | (token == stop_token)
        clips = torch.arange(count, device=prefix.device)[:, None] * beams
        past.reorder_cache((clips + source).flatten())
    means = scores / lengths
    order = means.argsort(dim=1, descending=True, stable=True).tolist()
    rows, sizes, values = tokens.tolist(), lengths.long().tolist(), means.tolist()
    return [
        [Beam(tokens=rows[clip][k][: sizes[clip][k]], score=values[clip][k]) for k in order[clip]]
        for clip in range(count)
    ]


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Of the last position, at least in float32."""
    last = logits[:, -1]
    return (last.float() if last.dtype in (torch.bfloat16, torch.float16) else last).div(temperature).log_softmax(-1)


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the authors' file under the names of :class:`ClapCap`; what has no part in a caption is left out,
    what is unknown keeps its name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.fullmatch(UNUSED, name):
            continue
        if not name.startswith("clap.base.htsat."):
            renamed[name.removeprefix("clap.") if name.startswith("clap.projection.") else name] = tensor
            continue
        ours = name
        for pattern, replacement in _HTSAT_NAMES:
            ours = re.sub(pattern, replacement, ours)
        if ".qkv." in ours:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[ours.replace(".qkv.", f".{part}.")] = rows
        else:
            renamed[ours] = tensor
    return renamed


_HTSAT_NAMES = (
    (r"^clap\.base\.htsat\.", "audio.audio_encoder."),
    (r"\.bn0\.", ".batch_norm."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
