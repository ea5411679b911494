"""What decoders made of transformers' own networks share: their weights, what of them is trained, one token at a time.

Two things stand between such a network and a captioner. Its cross-attention knows no clip of which nothing is present:
masked everywhere, it would attend to padding; :class:`Gates` drops what it then says. And its cache remembers the
encoder's keys and values only in an ``EncoderDecoderCache`` (BERT fails with transformers' default): :func:`advance`
makes one for each token of what a :class:`State` holds, so that a state never changes once it is made.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from avpipe.pipeline import weight_shards
from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.pretrained import Report, json_of, read_network
from avpipe.train.batch import Fused
from avpipe.train.layers import initialise, rows_of

log = logging.getLogger(__name__)

RANDOM = "random"
CROSS_ATTENTION = r"(^|\.)(crossattention|ln_cross_attn)\."
"""Names of what BERT and GPT-2 have for cross-attention alone, in transformers."""

Trained = Literal["all", "cross_attention", "none"]


def check_settings(chosen: str, trained: str, sizes: Mapping[str, int | None]) -> None:
    """What of the settings goes together.

    Args:
        chosen: the setting ``weights``.
        trained: the setting of that name.
        sizes: settings that count with random weights alone.

    Raises:
        ValueError: something does not; the message is for pydantic.
    """
    if chosen.partition(":")[0] == RANDOM:
        if chosen != RANDOM:
            raise ValueError(f"weights: expected {RANDOM} alone, got {chosen!r}: train.seed says which they are")
        if trained != "all":
            raise ValueError(
                f"trained: expected all with weights={RANDOM}, got {trained!r}: what is frozen is read from its "
                "checkpoint again, and random weights have none"
            )
        return
    given = [name for name, size in sizes.items() if size is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: sizes of random weights alone; with weights={chosen} its config.json has them"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from, and what ``config.json`` says of them."""

    files: weight_shards.Shards
    values: Mapping[str, Any]


_is_replaced: ContextVar[bool] = ContextVar("_is_replaced", default=False)


@contextmanager
def replaced_later() -> Iterator[None]:
    """Within, networks are built whose weights a checkpoint then replaces: nobody need be warned of random ones."""
    token = _is_replaced.set(True)
    try:
        yield
    finally:
        _is_replaced.reset(token)


def located(chosen: str, what: str) -> Source | None:
    """The files of a checkpoint, of whatever network; ``None`` for random weights, with a loud warning.

    Args:
        chosen: the setting ``weights``.
        what: decoder asks, for the warning.

    Raises:
        MissingWeightsError: they are neither here nor to be had.
        CheckpointError: ``config.json``, or the index of several weight files, cannot be read.
    """
    if chosen == RANDOM:
        level = logging.DEBUG if _is_replaced.get() else logging.WARNING
        log.log(level, "decoder %s: starts from RANDOM WEIGHTS, as asked for (decoder.weights=random)", what)
        return None
    files = weight_shards.find(chosen, "", component="decoder")
    return Source(files, json_of(files.config))


def find(chosen: str, kind: str) -> Source | None:
    """The files of a checkpoint; ``None`` for random weights, with a loud warning.

    Args:
        chosen: the setting ``weights``.
        kind: of network, as ``config.json`` calls it: ``"bert"``.

    Raises:
        MissingWeightsError: they are neither here nor to be had.
        CheckpointError: they are of another kind of network.
    """
    source = located(chosen, kind)
    if source is None:
        return None
    if source.values.get("model_type") != kind:
        raise CheckpointError(
            f"{source.files.config}: expected the model_type {kind!r}, got {source.values.get('model_type')!r}; "
            "the decoder's name must be that of the network"
        )
    if not source.values.get("tie_word_embeddings", True):
        raise CheckpointError(
            f"{source.files.config}: expected one matrix of words for input and output, got tie_word_embeddings=false"
        )
    return source


def check_vocabulary(found: int, vocabulary_size: int, chosen: str, *, spare: int = 0) -> None:
    """Refuse a checkpoint that counts other words than the tokenizer.

    Args:
        found: rows of the checkpoint's matrix of words.
        vocabulary_size: of the tokenizer.
        chosen: the setting ``weights``.
        spare: so many rows may stand for no word: some matrices are longer than their tokenizers, for speed.

    Raises:
        UsageError: it does; the message says which tokenizer would fit.
    """
    if not vocabulary_size <= found <= vocabulary_size + spare:
        raise UsageError(
            f"decoder.weights={chosen} has {found} words, the tokenizer has {vocabulary_size}: its numbers mean "
            f"others. Try tokenizer.name={chosen}, or decoder.weights={RANDOM}, which takes any tokenizer"
        )


def read(network_class: Any, source: Source, config: Any, *, what: str, **options: Any) -> tuple[Any, Report]:
    """A network with the weights of a checkpoint; cross-attention may be new, whole.

    Args:
        network_class: of transformers.
        source: of the weights.
        config: of the network.
        what: it is, with its article, for messages.
        options: of :func:`avpipe.pipeline.pretrained.read_network`.

    Raises:
        CheckpointError: the file cannot be read, or lacks anything else.
    """
    network, report = read_network(
        network_class, source.files.files[0], what=what, **{"may_be_new": CROSS_ATTENTION, "config": config, **options}
    )
    log.info("decoder: %s: %s", source.files.id, report)
    return network, report


def entrance(fused_width: int, width: int) -> nn.Module:
    """From the fusion's width to the decoder's: a Linear where they differ."""
    if fused_width == width:
        return nn.Identity()
    linear = nn.Linear(fused_width, width)
    initialise(linear, None)
    return linear


def freeze(decoder: nn.Module, trained: Trained, report: Report | None) -> None:
    """Say which parameters are trained: all, or cross-attention with the entrance to it, or none.

    A checkpoint of a run holds what is trained and nothing else, so what is frozen must come from a file.

    Args:
        decoder: its network's names hold :data:`CROSS_ATTENTION`'s; the entrance is ``project``.
        trained: the setting.
        report: of the weights that were read.

    Raises:
        UsageError: nothing would be trained though something is new.
    """
    if trained == "none":
        fresh = [name for name, _ in decoder.named_parameters() if name.startswith("project.")]
        fresh += report.new if report else ()
        if fresh:
            shown = ", ".join(fresh[:3]) + (", ..." if len(fresh) > 3 else "")
            raise UsageError(
                f"decoder.trained: expected all or cross_attention, got 'none': {len(fresh)} tensors are new and would "
                f"stay at their start values ({shown})"
            )
    for name, parameter in decoder.named_parameters():
        is_entrance = name.startswith("project.") or re.search(CROSS_ATTENTION, name) is not None
        parameter.requires_grad_(trained == "all" or (trained == "cross_attention" and is_entrance))


# -- running the network -----------------------------------------------------------------------------------------------


class Gates:
    """Closes cross-attention to clips of which nothing is present: what it says to them is dropped.

    The networks are transformers' own and have no such switch, so a hook stands behind each output projection.

    Args:
        outputs: the modules whose output is what cross-attention adds.
    """

    def __init__(self, outputs: Iterable[nn.Module]) -> None:
        self._absent: Tensor | None = None
        for module in outputs:
            module.register_forward_hook(self._drop)

    @contextmanager
    def closed(self, absent: Tensor) -> Iterator[None]:
        """While the network runs: ``absent`` ``(R,)``, bool."""
        self._absent = absent[:, None, None]
        try:
            yield
        finally:
            self._absent = None

    def _drop(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output if self._absent is None else output.masked_fill(self._absent, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the decoder attends to.

    Attributes:
        data: ``(R, S, W)``, in the decoder's width.
        mask: ``(R, S)``, bool: True = attend. All True for a clip of which nothing is present: a softmax over nothing
            is none, and the gate drops what comes of it.
        absent: ``(R,)``, bool: such clips.
    """

    data: Tensor
    mask: Tensor
    absent: Tensor

    @classmethod
    def of(cls, fused: Fused, project: nn.Module) -> Seen:
        """The fused positions through the entrance."""
        absent = ~fused.mask.any(dim=1)
        return cls(data=project(fused.data), mask=fused.mask | absent[:, None], absent=absent)


@dataclass(frozen=True, slots=True)
class State:
    """What decoding one token at a time remembers: a row for each unfinished caption.

    Attributes:
        seen: the fused positions; ``None`` for a decoder without cross-attention.
        cross: transformers' cache with their keys and values, ``(R, H, S, D)`` a layer.
        past: for each layer, keys and values of the tokens so far, ``(R, H, L, D)``; empty before the first.
    """

    seen: Seen | None
    cross: Any
    past: tuple[tuple[Tensor, Tensor], ...] = ()

    def take(self, rows: Tensor) -> State:
        """The rows at ``rows``; see :class:`avpipe.train.captioner.State`."""
        seen = self.seen
        if seen is not None:
            seen = Seen(data=seen.data[rows], mask=seen.mask[rows], absent=seen.absent[rows])
        begun = begin(seen, rows_of(((layer.keys, layer.values) for layer in self.cross.layers), rows))
        return replace(begun, past=tuple(rows_of(self.past, rows)))

    def reorder(self, rows: Tensor) -> State:
        """The rows that a beam search kept; what was computed from the clip stays where it is."""
        return replace(self, past=tuple(rows_of(self.past, rows)))


def begin(seen: Seen | None, keys: Iterable[Sequence[Tensor]]) -> State:
    """The state before the first token.

    Args:
        seen: the fused positions.
        keys: for each layer, keys and values of them.
    """
    from transformers import DynamicCache

    cross = DynamicCache()
    for layer, (key, value) in enumerate(keys):
        cross.update(key, value, layer)
    return State(seen=seen, cross=cross)


def hidden_states(network: Any, tokens: Tensor, seen: Seen | None, gates: Gates, cache: Any = None) -> Tensor:
    """``(R, L)`` tokens to the last hidden states ``(R, L, W)``, each seeing the former tokens alone.

    Args:
        network: ``BertModel`` or ``GPT2Model``.
        tokens: all of a caption, or, with a cache, those that are not in it.
        seen: what cross-attention attends to; ``None``: there is none.
        gates: of the network.
        cache: of the former tokens.
    """
    options: dict[str, Any] = {"input_ids": tokens, "past_key_values": cache, "use_cache": cache is not None}
    if seen is None:
        alone: Tensor = network(**options).last_hidden_state
        return alone
    with gates.closed(seen.absent):
        found: Tensor = network(
            **options, encoder_hidden_states=seen.data, encoder_attention_mask=seen.mask
        ).last_hidden_state
    return found


def advance(network: Any, tokens: Tensor, state: State, gates: Gates) -> tuple[Tensor, State]:
    """One token further: ``(R,)`` tokens to the last hidden states ``(R, W)``, and the new state."""
    from transformers import DynamicCache, EncoderDecoderCache

    past: Any = DynamicCache(state.past)
    cache = EncoderDecoderCache(past, state.cross)  # finds the clip's keys computed, and leaves them alone
    hidden = hidden_states(network, tokens[:, None], state.seen, gates, cache)
    new = replace(state, past=tuple((layer.keys, layer.values) for layer in past.layers))
    return hidden[:, 0], new
