"""What the tests of decoders from transformers share: small models of transformers beside ours, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from avpipe.pipeline.clip import Clip
from avpipe.train.batch import Fused
from avpipe.train.config import RunConfig, check
from avpipe.train.generate import Hypothesis, beam_search
from avpipe.train.loop import train
from avpipe.train.tokenizer import Special
from tests.train import loop_toys
from tests.train.toys import alive, fused

VOCABULARY, POSITIONS, WIDTH, HEADS, HIDDEN = 37, 24, 16, 2, 24
APART = Special(pad=0, begin=1, end=2)
REAL = (5, 3, 1)
Rows = list[list[tuple[tuple[int, ...], float | None]]]
"""Of each clip, its captions and their scores, best first."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def clips_of(width: int = WIDTH, dtype: torch.dtype = torch.float32, real: Sequence[int] = REAL) -> Fused:
    """Three clips, two of them padded."""
    clips = fused(width=width, real=real)
    return replace(clips, data=clips.data.to(dtype))


def captions(length: int = 8) -> tuple[Tensor, Tensor]:
    """Three captions, two of them padded."""
    tokens = torch.randint(3, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = APART.begin
    mask = torch.arange(length) < torch.tensor([length, length - 3, 2])[:, None]
    return tokens.masked_fill(~mask, APART.pad), mask


def written(model: Any, folder: Path, seed: int = 0) -> Any:
    """A model of transformers with every weight moved from its start, and its folder."""
    torch.manual_seed(seed)
    alive(model, seed)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def rewrite(folder: Path, renamed: dict[str, str] | None = None, left_out: Sequence[str] = (), **more: Tensor) -> None:
    """Change the weights of a folder: parts of names, and tensors that go or come."""
    path = folder / "model.safetensors"
    state = {}
    for name, value in load_file(path).items():
        if any(part in name for part in left_out):
            continue
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)  # noqa: PLW2901
        state[name] = value
    save_file({**state, **more}, path, metadata={"format": "pt"})


def search_options(
    special: Special,
    *,
    beams: int,
    max_tokens: int,
    min_tokens: int = 0,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
) -> dict[str, Any]:
    """What ``generate`` is told for it to search as ours does.

    Ours stops when nothing unfinished can still win; transformers does so with ``early_stopping="never"``, while its
    default bounds the score by the present length and may stop earlier.
    """
    options: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "max_new_tokens": max_tokens,
        "do_sample": False,
        "suppress_tokens": sorted({special.pad, special.begin} - {special.end}) or None,
        "eos_token_id": special.end,
        "pad_token_id": special.pad,
        "bos_token_id": special.begin,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    if min_tokens:
        options["min_new_tokens"] = min_tokens
    if beams > 1:
        options |= {"length_penalty": length_penalty, "early_stopping": "never"}
    if repetition_penalty != 1:
        options["repetition_penalty"] = repetition_penalty
    return options


def generated(
    model: Any, states: Tensor, mask: Tensor, special: Special, *, beams: int, max_tokens: int, **more: Any
) -> Rows:
    """All beams of transformers' ``generate``, as ours are: without begin, cut after the end; with their scores."""
    size = len(states)
    found = model.generate(
        torch.full((size, 1), special.begin),
        encoder_hidden_states=states,
        encoder_attention_mask=mask.long(),
        attention_mask=torch.ones(size, 1, dtype=torch.int64),
        # With its default cache BERT fails: 'DynamicCache' object has no attribute 'is_updated'.
        past_key_values=EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)),
        **search_options(special, beams=beams, max_tokens=max_tokens, **more),
    )
    return rows_of(found, special, beams)


def rows_of(found: Any, special: Special, beams: int, begins: int = 1) -> Rows:
    """What ``generate`` gave, as ours are: by clip, without the first ``begins`` tokens, cut after the end."""
    rows: Rows = [[] for _ in range(len(found.sequences) // beams)]
    for index, row in enumerate(found.sequences[:, begins:].tolist()):
        cut = row[: row.index(special.end) + 1] if special.end in row else row
        score = found.sequences_scores[index].item() if beams > 1 else None  # greedy decoding has none
        rows[index // beams].append((tuple(cut), score))
    return rows


def assert_searches_agree(
    decoder: Any, model: Any, clips: Fused, special: Special, *, beams: int, length_penalty: float, **more: Any
) -> list[list[Hypothesis]]:
    """Our beam search over our decoder, against ``generate`` over transformers' model: all beams, and their scores."""
    options = {"beams": beams, "max_tokens": 12, "length_penalty": length_penalty, **more}
    ours = beam_search(decoder, clips, special, **options)
    with torch.inference_mode():
        states = decoder.project(clips.data)
    assert_same_captions(ours, generated(model, states, clips.mask, special, **options))
    return ours


def assert_same_captions(ours: list[list[Hypothesis]], theirs: Rows) -> None:
    """All beams of all clips, and their scores."""
    for our_rows, their_rows in zip(ours, theirs, strict=True):
        assert [hypothesis.tokens for hypothesis in our_rows] == [tokens for tokens, _ in their_rows]
        for hypothesis, (_, score) in zip(our_rows, their_rows, strict=True):
            assert score is None or abs(score - hypothesis.score) < 1e-4


# -- runs --------------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "thing", "and", "from", *loop_toys.COLOURS, *loop_toys.SOUNDS]


def tokenizer_in(folder: Path) -> None:
    """A tokenizer of the toy's words, as the Hub has them."""
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def run_config(decoder: dict[str, Any], tokenizer: Path) -> RunConfig:
    """The toy of the loop with another decoder, and words from a folder."""
    values = loop_toys.config(save_every=2, epochs=2).model_dump(mode="json")
    return check({**values, "decoder": decoder, "tokenizer": {"name": str(tokenizer)}}, "toy")


def run(config: RunConfig, folder: Path, stop_at: int = 0) -> tuple[list[Clip], dict[str, Any]]:
    """Train the toy; stop after so many steps by an exception."""

    def on_event(event: Any) -> None:
        if stop_at and event.get("event") == "step" and event["step"] >= stop_at:
            raise KeyboardInterrupt

    train_clips, val_clips = loop_toys.clips(20), loop_toys.clips(6, "val")
    sources = loop_toys.sources(train_clips, val_clips)
    train(
        config,
        sources=sources,
        train_clips=train_clips,
        val_clips=val_clips,
        run_folder=folder,
        score=loop_toys.score,
        on_event=on_event,
    )
    return val_clips, sources


def assert_same_runs(one: Path, other: Path) -> None:
    """Two runs that learned the same, to the bit."""
    for which in ("last", "best"):
        left, right = (load_file(folder / "checkpoints" / which / "model.safetensors") for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())
