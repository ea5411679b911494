"""BERT as a text decoder: causal self-attention and cross-attention in every layer, from bert-base (MICap's decoder).

Source: MICap (Hanna-Asaad, Aspandi, Zaharia 2024, 2411.06872) through the released code, deckyal/MI-Cap: BERT (Devlin
et al., NAACL 2019) with ``is_decoder`` and ``add_cross_attention``, the first 6 layers of bert-base-uncased, its masked
language model's head, words of input and output in one matrix. Network and head are transformers' own modules; with the
same weights the logits are those of ``BertLMHeadModel`` and of the authors' decoder (tests/train/test_bert.py).

bert-base has no cross-attention: it starts from N(0, 0.02), as transformers draws it.

Deviations, each on its line:

- The authors' decoder is given no mask of what is fused, so a caption depends on how long the padding is. Ours gets it.
- A clip of which nothing is present adds nothing through cross-attention.
- Where the fusion's width is another, a Linear stands between (theirs never is).
- ``dropout`` is one setting for channels and attention weights (bert-base: 0.1 both).

The tokenizer must be that of the weights (``tokenizer.name=google-bert/bert-base-uncased``): sizes are compared. With
``weights=random`` any tokenizer will do.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.pretrained import Report
from avpipe.train.batch import Fused
from avpipe.train.decoders import _pretrained as shared
from avpipe.train.decoders._pretrained import Gates, Seen, State
from avpipe.train.layers import split_heads

KIND = "bert"


class Config(BaseConfig):
    """Weights and sizes of the ``bert`` decoder. The defaults are MICap's released code's."""

    weights: str = "google-bert/bert-base-uncased"
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder; or ``random``: from nothing, in the sizes
    below."""
    trained: shared.Trained = "all"
    """What learns: everything; cross-attention with the Linear before it; or nothing."""
    layers: int = Field(6, ge=1)
    """How many layers: of a checkpoint, the first so many."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights."""
    width: int | None = Field(None, ge=8)
    """Of random weights: channels of a token; none: 768."""
    heads: int | None = Field(None, ge=1)
    """Of random weights: attention heads, which divide ``width``; none: 12."""
    feed_forward: int | None = Field(None, ge=8)
    """Of random weights: hidden channels of the feed-forward part; none: 3072."""
    positions: int | None = Field(None, ge=4)
    """Of random weights: the longest caption in tokens, begin and end included; none: 512."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        shared.check_settings(self.weights, self.trained, self.sizes)
        width, heads = self.width or 768, self.heads or 12
        if width % heads:
            raise ValueError(f"heads must divide width ({width})")
        return self

    @property
    def sizes(self) -> dict[str, int | None]:
        """The settings that count with random weights alone."""
        return {key: getattr(self, key) for key in ("width", "heads", "feed_forward", "positions")}


class Decoder(nn.Module):
    """The decoder.

    Args:
        config: weights and sizes.
        fused_width: width of what the fusion gives.
        vocabulary_size: V.

    Attributes:
        report: what was read of a checkpoint; ``None`` with random weights.
        weight_files: where it was read; ``None`` with random weights.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are not whole, or not of a BERT.
        UsageError: they have other words than the tokenizer, or fewer layers than asked for.
    """

    def __init__(self, config: Config, *, fused_width: int, vocabulary_size: int) -> None:
        super().__init__()
        whole, self.report, source = _network(config, vocabulary_size)
        self.weight_files = source and source.files
        self.bert = whole.bert
        self.transform = whole.cls.predictions.transform
        self.bias = whole.cls.predictions.bias
        self.max_tokens = int(whole.config.max_position_embeddings)
        self.project = shared.entrance(fused_width, whole.config.hidden_size)
        self._gates = Gates(layer.crossattention.output.dense for layer in self.bert.encoder.layer)
        shared.freeze(self, config.trained, self.report)

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so causal attention never sees it.

        Returns:
            ``(N, L, V)``.
        """
        seen = Seen.of(fused, self.project)
        return self._logits(shared.hidden_states(self.bert, tokens, seen, self._gates))

    def start(self, fused: Fused) -> State:
        """The state before the first token; keys and values of the fused positions are computed once."""
        seen = Seen.of(fused, self.project)
        attentions = [layer.crossattention.self for layer in self.bert.encoder.layer]
        return shared.begin(seen, [_keys(attention, seen.data) for attention in attentions])

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.
        """
        hidden, state = shared.advance(self.bert, tokens, state, self._gates)
        return self._logits(hidden), state

    def _logits(self, hidden: Tensor) -> Tensor:
        # The head's own Linear is this matrix under a second name, which a checkpoint would hold twice.
        return F.linear(self.transform(hidden), self.bert.embeddings.word_embeddings.weight, self.bias)


def _keys(attention: Any, seen: Tensor) -> list[Tensor]:
    """Keys and values of ``seen`` ``(R, S, W)``, ``(R, H, S, D)`` each."""
    return [split_heads(part(seen), attention.num_attention_heads) for part in (attention.key, attention.value)]


def _network(config: Config, vocabulary_size: int) -> tuple[Any, Report | None, shared.Source | None]:
    """``BertLMHeadModel``, random or from a checkpoint."""
    from transformers import BertConfig, BertLMHeadModel

    ours: dict[str, Any] = {
        "is_decoder": True,
        "add_cross_attention": True,
        "num_hidden_layers": config.layers,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }
    source = shared.find(config.weights, KIND)
    if source is None:
        names = {"width": "hidden_size", "heads": "num_attention_heads", "feed_forward": "intermediate_size"}
        names["positions"] = "max_position_embeddings"
        sizes: dict[str, Any] = {names[key]: size for key, size in config.sizes.items() if size is not None}
        # No id of padding: which token that is, the tokenizer says, and it is never asked about here.
        return BertLMHeadModel(BertConfig(vocab_size=vocabulary_size, pad_token_id=None, **sizes, **ours)), None, None
    there = BertConfig.from_dict({**source.values, **ours})
    shared.check_vocabulary(there.vocab_size, vocabulary_size, config.weights)
    if config.layers > (layers := source.values.get("num_hidden_layers", 12)):
        raise UsageError(
            f"decoder.layers: expected at most {layers} with weights={config.weights}, got {config.layers}"
        )
    network, report = shared.read(BertLMHeadModel, source, there, what="a BERT with a language model's head")
    return network, report, source
