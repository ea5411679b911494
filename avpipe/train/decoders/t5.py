"""T5, or Flan-T5, whose encoder reads the clip's positions as if they were words: the decoder of Multi-modal BLIP-2.

Source: Multi-modal BLIP-2 (A. Brimont et al., poster), ABrimont/Multi-modal-BLIP-2, built on BLIP-2 (Li et al. 2023,
2301.12597; LAVIS's ``blip2_t5.py``): Flan-T5-XL (Chung et al. 2022, 2210.11416), frozen, or with LoRA. The network is
transformers' own; with the same weights its logits and its captions are those of ``T5ForConditionalGeneration``
(tests/train/test_language_models.py). What it reads::

    encoder     [W_a h_a; W_v h_v; prompt; </s>]      audio first, whatever the fusion's order
    decoder     <pad>, the caption, </s>              T5 begins with its padding

The paper's settings: :data:`STAGE_ONE` (the Q-Former and the projections learn) and :data:`STAGE_TWO` (adapters, too).
Its projections start as BLIP-2's ``t5_proj`` for video, and anew for audio (``t5_proj_aud``): ``initialise_from``.
Where the fusion has them (``qformer`` with ``out_width``): ``projection=none``.

Deviations:

- Positions of a clip that are not real are not attended to, and stand behind the prompt, so that they take no place.
  The authors attend to all; with their Q-Former all are real.
- Projections start after Glorot and Bengio (2010), where nothing is read; theirs from torch's uniform numbers.

The tokenizer must be that of the weights (``tokenizer.name=google/flan-t5-xl``); of T5's matrix of words the last rows
stand for none. With ``weights=random`` any tokenizer will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from avpipe.pipeline import checkpoints
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.pretrained import Report
from avpipe.train import start_values
from avpipe.train.batch import Fused
from avpipe.train.decoders import _language_model as language_model
from avpipe.train.decoders import _pretrained as shared
from avpipe.train.decoders._language_model import ADAPTER, Entrance, Settings, log, real_first
from avpipe.train.decoders._pretrained import Gates, Seen, State
from avpipe.train.layers import split_heads
from avpipe.train.tokenizer import Tokenizer

KIND = "t5"
SPARE_ROWS = 127  # T5's 32,100 words have 32,128 rows: a multiple of 128

STAGE_ONE: Mapping[str, Any] = {
    "weights": "google/flan-t5-xl",
    "trained": "none",
    "dtype": "bfloat16",
    "initialise_from": "Salesforce/blip2-flan-t5-xl",
    "prompt": "a video of",
    "dense_act_fn": "gelu",
}
"""The authors' settings for MSR-VTT and VATEX; their prompt for AudioCaps is "An audio of"."""
STAGE_TWO: Mapping[str, Any] = {
    **STAGE_ONE,
    "trained": "lora",
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.2},
    "initialise_from": "",
}
"""It goes on from a run of the first stage."""


class Config(Settings):
    """Weights and settings of the ``t5`` decoder."""

    weights: str = "google/flan-t5-xl"
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder: of a T5 (google/flan-t5-base), or of a
    BLIP-2 that has one (Salesforce/blip2-flan-t5-xl); or ``random``: from nothing, in the sizes below."""
    initialise_from: str = ""
    """Public weights that a new training starts from: a BLIP-2 (Salesforce/blip2-flan-t5-xl, a folder, or LAVIS's file
    blip2_pretrained_flant5xl.pth) for the projection of video, or a file of Multi-modal BLIP-2's authors
    (``*_best.pth`` of AntBri/MSRVTT_weights) for all projections and the adapters; empty: none."""
    dense_act_fn: str | None = None
    """Activation in the feed-forward parts; none: as ``config.json`` says (Flan-T5: gelu_new). The paper: gelu, which
    LAVIS puts there for every T5, and the Hub's BLIP-2 has in its configuration."""

    @model_validator(mode="after")
    def _something_to_fill(self) -> Config:
        if self.initialise_from and self.projection != "modality":
            raise ValueError(
                f"initialise_from: expected projection=modality, got {self.projection}; where the fusion has the "
                "projections, fusion.initialise_from fills them"
            )
        return self


class Decoder(nn.Module):
    """The decoder.

    Args:
        config: weights and settings.
        fused_width: width of what the fusion gives.
        vocabulary_size: V of the tokenizer. The logits' V is the number of rows of T5's matrix of words, which may be
            larger.
        specs: the feature sets, by name: which projection is whose.
        tokenizer: that reads the prompt.

    Attributes:
        report: what was read of a checkpoint; ``None`` with random weights.
        weight_files: where it was read; ``None`` with random weights.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are not whole, or not of a T5.
        UsageError: they have other words than the tokenizer, or the widths do not fit.
    """

    prompt: Tensor

    def __init__(
        self,
        config: Config,
        *,
        fused_width: int,
        vocabulary_size: int,
        specs: Mapping[str, FeatureSpec],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__()
        self.config = config
        self.max_tokens = config.caption_tokens
        self.t5, self.report, source = _network(config, vocabulary_size)
        self.weight_files = source and source.files
        language_model.prepare(self.t5, config)
        self.project = Entrance(config, specs, fused_width, self.t5.config.d_model)
        self.scale = self.t5.config.d_model**-0.5 if self.t5.config.scale_decoder_outputs else 1.0
        # What T5 reads ends with an end, be it empty: so there always is something to attend to.
        words = tokenizer.encode(config.prompt)[1:] if config.prompt else [tokenizer.special.end]
        self.register_buffer("prompt", torch.tensor(words), persistent=False)
        self._gates = Gates(())

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so causal attention never sees it.

        Returns:
            ``(N, L, V)``.
        """
        return self._logits(shared.hidden_states(self.t5.decoder, tokens, self._read(fused), self._gates))

    def start(self, fused: Fused) -> State:
        """The state before the first token; what the encoder makes of the clip, and keys and values of it, are computed
        once.
        """
        language_model.check_mode(self, self.config)
        seen = self._read(fused)
        attentions = [block.layer[1].EncDecAttention for block in self.t5.decoder.block]
        keys = [[split_heads(part(seen.data), each.n_heads) for part in (each.k, each.v)] for each in attentions]
        return shared.begin(seen, keys)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.
        """
        hidden, state = shared.advance(self.t5.decoder, tokens, state, self._gates)
        return self._logits(hidden), state

    def read_start_values(self) -> None:
        """Read the public weights that the configuration names; the rest keeps its start values.

        Raises:
            MissingWeightsError: they are neither here nor to be had.
            CheckpointError: they are not complete, do not fit, or belong to another T5.
        """
        if not self.config.initialise_from:
            return
        place = self.config.initialise_from
        held = start_values.read(place, component="decoder", option="initialise_from", prefixes=PUBLIC)
        log.info("decoder: %s: %s", held.id, _fill(self, held))

    def _read(self, fused: Fused) -> Seen:
        """What T5's encoder makes of the positions and the prompt: ``(B, S + P, W)``."""
        words = self.t5.shared(self.prompt).expand(len(fused.data), -1, -1)
        positions, mask = self.project(fused)
        data = torch.cat([positions.to(words.dtype), words], dim=1)
        data, mask = real_first(data, torch.cat([mask, mask.new_ones(words.shape[:2])], dim=1))
        encoded = self.t5.encoder(inputs_embeds=data, attention_mask=mask).last_hidden_state
        return Seen(data=encoded, mask=mask, absent=~mask.any(dim=1))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.t5.lm_head(hidden * self.scale)
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def _network(config: Config, vocabulary_size: int) -> tuple[Any, Report | None, shared.Source | None]:
    """``T5ForConditionalGeneration``, random or from a checkpoint."""
    from transformers import T5Config, T5ForConditionalGeneration

    ours: dict[str, Any] = {} if config.dropout is None else {"dropout_rate": config.dropout}
    source = language_model.located(config.weights, KIND)
    if source is None:
        names = {"width": "d_model", "heads": "num_heads", "feed_forward": "d_ff", "layers": "num_layers"}
        sizes: dict[str, Any] = {names[key]: size for key, size in config.sizes.items() if size is not None}
        if config.width:
            sizes["d_kv"] = config.width // (config.heads or T5Config().num_heads)
        fresh = T5Config(vocab_size=vocabulary_size, **sizes, **ours)
        fresh.dense_act_fn = config.dense_act_fn or fresh.dense_act_fn
        return T5ForConditionalGeneration(fresh), None, None
    if source.values["model_type"] != KIND:
        raise CheckpointError(
            f"{source.files.config}: expected a T5, or a BLIP-2 with one, got the model_type "
            f"{source.values['model_type']!r}; decoders of other language models: causal_lm"
        )
    there = T5Config.from_dict({**source.values, **ours})
    there.dense_act_fn = config.dense_act_fn or there.dense_act_fn
    shared.check_vocabulary(there.vocab_size, vocabulary_size, config.weights, spare=SPARE_ROWS)
    network, report = language_model.read(T5ForConditionalGeneration, source, there, config, what="a T5")
    return network, report, source


# -- public start values -----------------------------------------------------------------------------------------------

PUBLIC = ("t5_proj.", "t5_proj_aud.", "t5_model.", "language_projection.")
_PROJECTIONS = {
    "t5_proj.": "project.projections.video.",
    "language_projection.": "project.projections.video.",
    "t5_proj_aud.": "project.projections.audio.",
}


def our_name(name: str) -> str:
    """A name of LAVIS's, of the Hub's BLIP-2 or of the authors', as the decoder has it; others as they are."""
    for prefix, ours in _PROJECTIONS.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    # peft's wrapper adds ``base_model.model.``; it is not there where a T5 has no adapters.
    return re.sub(r"^t5_model\.(base_model\.model\.)?", "t5.", name)


def _fill(decoder: Decoder, held: start_values.Held) -> Report:
    """Copy projections and adapters; what the file has of T5 itself must be what was read from ``weights``."""
    named = {our_name(name): tensor for name, tensor in held.tensors.items()}
    own = {name for name in decoder.state_dict() if name.startswith("project.") or ADAPTER in name}
    place = f"{held.path}: decoder.initialise_from"
    if not any(name.startswith("project.") or ADAPTER in name for name in named):
        raise CheckpointError(
            f"{place}: expected a BLIP-2 (t5_proj.*, language_projection.*) or a file of Multi-modal BLIP-2's authors, "
            f"with something for {', '.join(sorted(own)[:2])}, and found none"
        )
    adapters = [name for name in named if ADAPTER in name]
    if adapters and decoder.config.trained != "lora":
        raise CheckpointError(
            f"{place}: has adapters ({len(adapters)} tensors), which T5 was trained with; expected "
            f"decoder.trained=lora, got {decoder.config.trained}"
        )
    # Of a modality that the run lacks, a projection is left over (with sound alone, all that a BLIP-2 has); whether T5
    # itself is right is seen below.
    given = {name: tensor for name, tensor in named.items() if name in own or ADAPTER in name}
    # What only some files have: the projection of audio, and adapters. Of text, none knows.
    optional = ["project.projections.text.", "project.projections.audio.", ADAPTER]
    may_be_new = [re.escape(part) for part in optional if not any(part in name for name in named)]
    pattern = rf".*({'|'.join(may_be_new)}).*|t5\.(?!.*{ADAPTER}).*"
    checkpoints.fill(decoder, given, held.path, optional=pattern)
    _check_base(decoder, named, place)
    return Report(
        matched=tuple(sorted(given)),
        new=tuple(sorted(own - given.keys())),
        left_over=tuple(sorted(name for name in held.tensors if our_name(name) not in given)),
    )


def _check_base(decoder: Decoder, named: Mapping[str, Tensor], place: str) -> None:
    """Refuse a file whose T5 is another than the decoder's: what was learned with the one does not fit the other."""
    own = decoder.state_dict()
    other = []
    for name, tensor in named.items():
        if not name.startswith("t5.") or ADAPTER in name:
            continue
        plain = name.replace(".base_layer.", ".")
        wrapped = re.sub(r"\.(weight|bias)$", r".base_layer.\1", plain)
        ours = own.get(wrapped, own.get(plain))
        rounded = None if ours is None else ours.bfloat16()  # as such files hold it
        if rounded is None or rounded.shape != tensor.shape or not torch.equal(rounded, tensor.bfloat16()):
            other.append(name)
    if other:
        raise CheckpointError(
            f"{place}: belongs to another T5 than decoder.weights={decoder.config.weights}: {len(other)} tensors of it "
            f"differ: {', '.join(other[:3])}"
        )
