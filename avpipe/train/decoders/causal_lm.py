"""Any causal language model of the Hub, with the clip's positions before its words: Llama, OPT, Qwen, GPT-2 ...

Source: BLIP-2 (Li et al. 2023, 2301.12597; LAVIS's ``blip2_opt.py``), which puts a picture before OPT's words and
trains the projection (``trained=none``); PIT-VC (2502.13363) compares OPT and Vicuna with Flan-T5. The networks are
transformers' own; with the same weights the logits and the captions are theirs (tests/train/test_language_models.py).
What one reads::

    [positions of the clip; begin; prompt; the caption; end]       audio first, unless ``order`` says otherwise

Positions that are not real take no place: with or without padding, every word has the place that it has in a batch of
one. A clip of which nothing is present leaves the language model alone with the prompt.

The network must give its logits by one matrix of words; one that does more to them (Gemma 2 bounds them) is refused.
The tokenizer must be that of the weights (``tokenizer.name=facebook/opt-2.7b``); of a matrix of words the last rows may
stand for none. With ``weights=random`` any tokenizer will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.pretrained import Report
from avpipe.train.batch import Fused
from avpipe.train.decoders import _language_model as language_model
from avpipe.train.decoders import _pretrained as shared
from avpipe.train.decoders._language_model import Entrance, Settings, real_first
from avpipe.train.layers import rows_of
from avpipe.train.tokenizer import Tokenizer

SPARE_ROWS = 1023  # OPT has 7, Qwen 2 some 270, Phi 900
FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner")  # as one network or another calls it


class Config(Settings):
    """Weights and settings of the ``causal_lm`` decoder."""

    weights: str = "facebook/opt-2.7b"
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder: of a causal language model, or of a BLIP-2
    that has one (Salesforce/blip2-opt-2.7b); or ``random``: from nothing, in the sizes below."""
    kind: Literal["gpt2", "llama", "opt", "qwen2"] | None = None
    """Of random weights: which network; none: llama."""

    @model_validator(mode="after")
    def _kind_is_for_random(self) -> Config:
        if self.kind and self.weights != shared.RANDOM:
            raise ValueError(f"kind: of random weights alone; with weights={self.weights} its config.json has it")
        return self


@dataclass(frozen=True, slots=True)
class State:
    """What decoding one token at a time remembers: a row for each unfinished caption.

    Attributes:
        mask: ``(R, S)``, bool: which of the clip's positions in ``past`` are real; they stand first.
        said: how many words, those of the prompt counted.
        past: for each layer, keys and values of the clip's positions and the words so far, ``(R, H, S + said, D)``.
    """

    mask: Tensor
    said: int
    past: tuple[tuple[Tensor, Tensor], ...]

    def take(self, rows: Tensor) -> State:
        """The rows at ``rows``; see :class:`avpipe.train.captioner.State`."""
        return replace(self.reorder(rows), mask=self.mask[rows])

    def reorder(self, rows: Tensor) -> State:
        """The rows that a beam search kept."""
        return replace(self, past=tuple(rows_of(self.past, rows)))


class Decoder(nn.Module):
    """The decoder.

    Args:
        config: weights and settings.
        fused_width: width of what the fusion gives.
        vocabulary_size: V of the tokenizer. The logits' V is the number of rows of the network's matrix of words, which
            may be larger.
        specs: the feature sets, by name: which projection is whose.
        tokenizer: that reads the prompt.

    Attributes:
        report: what was read of a checkpoint; ``None`` with random weights.
        weight_files: where it was read; ``None`` with random weights.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are not whole, or not of a causal language model.
        UsageError: they have other words than the tokenizer, the widths do not fit, there is no table of adapters for
            such a network, or it does more to its logits than a matrix.
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
        self.network, self.report, source = _network(config, vocabulary_size)
        self.weight_files = source and source.files
        _check_head(self.network)
        language_model.prepare(self.network, config)
        self.project = Entrance(config, specs, fused_width, self.words.embedding_dim)
        prompt = tokenizer.encode(config.prompt)[1:-1] if config.prompt else []
        self.register_buffer("prompt", torch.tensor(prompt, dtype=torch.int64), persistent=False)
        self.places = int(getattr(self.network.config, "max_position_embeddings", None) or 2**31)
        self.max_tokens = min(config.caption_tokens, self.places - len(prompt))

    @property
    def words(self) -> nn.Embedding:
        """The matrix of words that are read."""
        words: nn.Embedding = self.network.get_input_embeddings()
        return words

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so causal attention never sees it.

        Returns:
            ``(N, L, V)``.

        Raises:
            UsageError: clip, prompt and caption have more positions than the network has places.
        """
        words = self._read(tokens, with_prompt=True)
        positions, mask = self.project(fused)
        data = torch.cat([positions.to(words.dtype), words], dim=1)
        data, _ = real_first(data, torch.cat([mask, mask.new_ones(words.shape[:2])], dim=1))
        real = mask.sum(dim=1)
        # What is not real stands behind the captions: causal attention never sees it, and no mask is needed.
        data = data[:, : self._fitting(int(real.max()) + words.shape[1])]
        hidden = self.network.base_model(inputs_embeds=data, use_cache=False).last_hidden_state
        first = real + len(self.prompt)  # where the begin, or the prompt after it, ends: there the first word is said
        where = first[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        return self._logits(hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1])))

    def start(self, fused: Fused) -> State:
        """The state before the first token; keys and values of the clip's positions are computed once."""
        from transformers import DynamicCache

        language_model.check_mode(self, self.config)
        positions, mask = real_first(*self.project(fused))
        longest = int(mask.sum(dim=1).max())
        positions, mask = positions[:, :longest].to(self.words.weight.dtype), mask[:, :longest]
        if not longest:
            return State(mask=mask, said=0, past=())
        cache: Any = DynamicCache()
        self.network.base_model(inputs_embeds=positions, past_key_values=cache, use_cache=True)
        return State(mask=mask, said=0, past=_keys(cache))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further; the prompt follows the first.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.

        Raises:
            UsageError: clip, prompt and caption have more positions than the network has places.
        """
        from transformers import DynamicCache

        words = self._read(tokens[:, None], with_prompt=not state.said)
        said = state.said + words.shape[1]
        self._fitting(state.mask.shape[1] + said)
        cache: Any = DynamicCache(state.past)
        hidden = self.network.base_model(
            inputs_embeds=words,
            past_key_values=cache,
            use_cache=True,
            attention_mask=torch.cat([state.mask, state.mask.new_ones(len(words), said)], dim=1),
            position_ids=state.mask.sum(dim=1, keepdim=True) + torch.arange(state.said, said, device=tokens.device),
        ).last_hidden_state
        return self._logits(hidden[:, -1]), replace(state, said=said, past=_keys(cache))

    def _read(self, tokens: Tensor, *, with_prompt: bool) -> Tensor:
        """``(N, L)`` tokens as vectors, with the prompt behind the first: ``(N, L + P, W)``."""
        if with_prompt:
            prompt = self.prompt.expand(len(tokens), -1)
            tokens = torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], dim=1)
        vectors: Tensor = self.words(tokens)
        return vectors

    def _fitting(self, positions: int) -> int:
        if positions > self.places:
            raise UsageError(
                f"decoder causal_lm: the network has {self.places} places, and a clip's positions with prompt and "
                f"caption need {positions}. Try a fusion that gives fewer (qformer), or a smaller "
                "decoder.caption_tokens"
            )
        return positions

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.network.get_output_embeddings()(hidden)
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def _keys(cache: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def _network(config: Config, vocabulary_size: int) -> tuple[Any, Report | None, shared.Source | None]:
    """A causal language model, random or from a checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = language_model.located(config.weights, "causal_lm")
    if source is None:
        names = {"width": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers"}
        sizes: dict[str, Any] = {names[key]: size for key, size in config.sizes.items() if size and key in names}
        kind = config.kind or "llama"
        fresh = AutoConfig.for_model(kind)
        if config.heads and hasattr(fresh, "num_key_value_heads"):
            sizes["num_key_value_heads"] = config.heads
        if config.feed_forward:
            sizes[next(name for name in FEED_FORWARD if hasattr(fresh, name))] = config.feed_forward
        if kind == "opt" and config.width:
            sizes["word_embed_proj_dim"] = config.width
        # No id of padding: which token that is, the tokenizer says, and it is never asked about here.
        described = AutoConfig.for_model(kind, vocab_size=vocabulary_size, pad_token_id=None, **sizes)
        _set_dropout(described, config.dropout)
        automatic: Any = AutoModelForCausalLM
        return automatic.from_config(described), None, None
    values = dict(source.values)
    kind = values.pop("model_type")
    try:
        there = AutoConfig.for_model(kind, **values)
    except ValueError as error:
        raise CheckpointError(f"{source.files.config}: {' '.join(str(error).split())[:300]}") from None
    if there.is_encoder_decoder:
        raise CheckpointError(f"{source.files.config}: expected a causal language model, got a {kind}; see decoder=t5")
    _set_dropout(there, config.dropout)
    shared.check_vocabulary(there.vocab_size, vocabulary_size, config.weights, spare=SPARE_ROWS)
    network, report = language_model.read(AutoModelForCausalLM, source, there, config, what=f"a causal {kind}")
    return network, report, source


def _set_dropout(described: Any, dropout: float | None) -> None:
    for name in ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if dropout is not None and hasattr(described, name):
            setattr(described, name, dropout)


@torch.no_grad()
def _check_head(network: Any) -> None:
    """Refuse a network whose logits are not what its matrix of words makes of its last hidden states."""
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    training = network.training
    network.eval()
    theirs = network(input_ids=tokens, use_cache=False).logits
    ours = network.get_output_embeddings()(network.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    network.train(training)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        raise UsageError(
            f"decoder.weights: a {network.config.model_type} does more to its logits than one matrix, which decoder "
            "causal_lm would leave out; expected another network (Llama, OPT, Qwen 2, GPT-2 ...)"
        )
