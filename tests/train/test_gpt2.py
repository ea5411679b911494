"""The ``gpt2`` decoder's own settings: cross-attention that is new, has other heads, or is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from avpipe.pipeline.errors import UsageError
from avpipe.train.decoders.gpt2 import Config, Decoder
from tests.train import pretrained_toys as toys

WIDTH, LAYERS = toys.WIDTH, 2


def model(**more: Any) -> Any:
    sizes = {"vocab_size": toys.VOCABULARY, "n_embd": WIDTH, "n_head": 2, "n_layer": LAYERS, "n_positions": 24}
    return GPT2LMHeadModel(GPT2Config(**sizes, **more))


def build(folder: Path | str, fused_width: int = WIDTH, **config: Any) -> Decoder:
    torch.manual_seed(1)
    settings = Config(weights=str(folder), **config)
    return Decoder(settings, fused_width=fused_width, vocabulary_size=toys.VOCABULARY).eval()


def language_model(theirs: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = theirs(tokens, attention_mask=mask.long(), use_cache=False).logits
    return logits


def test_a_folder_as_gpt2_is_published(tmp_path: Path) -> None:
    # The names of openai-community/gpt2 have no prefix, and its masks are stored.
    theirs = toys.written(model(), tmp_path)
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 24, 24) for layer in range(LAYERS)}
    toys.rewrite(tmp_path, {"transformer.": ""}, **masks)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    decoder = build(tmp_path)
    assert decoder.report is not None
    assert len(decoder.report.new) == LAYERS * 8
    assert len(decoder.report.matched) == len(list(theirs.parameters()))
    for name, parameter in theirs.named_parameters():
        assert torch.equal(decoder.get_parameter(name), parameter), name


@pytest.mark.parametrize("output", ["normal", "zero"])
@pytest.mark.parametrize("weights", ["folder", "random"])
def test_new_cross_attention_starts_as_asked(tmp_path: Path, output: str, weights: str) -> None:
    toys.written(model(), tmp_path)
    sizes = {"width": WIDTH, "heads": 2, "layers": LAYERS} if weights == "random" else {}
    decoder = build("random" if weights == "random" else tmp_path, cross_attention_output=output, **sizes)
    for name, parameter in decoder.named_parameters():
        if "crossattention" in name:
            is_zero = name.endswith("bias") or (name.endswith("c_proj.weight") and output == "zero")
            assert (parameter.std() == 0) if is_zero else (0.016 < parameter.std() < 0.024), name


def test_with_a_zero_output_it_starts_as_the_language_model(tmp_path: Path) -> None:
    theirs = toys.written(model(), tmp_path)
    tokens, mask = toys.captions()
    expected = language_model(theirs, tokens, mask)
    with torch.inference_mode():
        zero = build(tmp_path, cross_attention_output="zero")(toys.clips_of(), tokens, mask)
        normal = build(tmp_path)(toys.clips_of(), tokens, mask)
    torch.testing.assert_close(zero[mask], expected[mask], rtol=0, atol=1e-5)
    assert (normal - expected)[mask].abs().max() > 1e-3


def test_cross_attention_that_was_trained_keeps_its_weights(tmp_path: Path) -> None:
    theirs = toys.written(model(add_cross_attention=True), tmp_path)
    decoder = build(tmp_path, cross_attention_output="zero")
    name = "transformer.h.1.crossattention.c_proj.weight"
    assert torch.equal(decoder.get_parameter(name), theirs.get_parameter(name))


def test_without_cross_attention(tmp_path: Path) -> None:
    theirs = toys.written(model(), tmp_path).double()
    decoder = build(tmp_path, 12, cross_attention=False).double()
    clips, (tokens, mask) = toys.clips_of(12, torch.float64), toys.captions()
    with torch.inference_mode():
        found = decoder(clips, tokens, mask)
        torch.testing.assert_close(found[mask], language_model(theirs, tokens, mask)[mask], rtol=0, atol=1e-9)
        assert torch.equal(decoder(replace(clips, data=clips.data + 1), tokens, mask), found)
        state = decoder.start(clips)
        for place, token in enumerate(tokens.unbind(1)):
            logits, state = decoder.step(token, state)
            torch.testing.assert_close(logits, found[:, place], rtol=0, atol=1e-9)
    assert not any("cross" in name or "project" in name for name, _ in decoder.named_parameters())


def test_without_cross_attention_that_of_the_folder_is_left_over(tmp_path: Path) -> None:
    toys.written(model(add_cross_attention=True), tmp_path)
    report = build(tmp_path, cross_attention=False).report
    assert report is not None
    assert any("crossattention.c_attn.weight" in name for name in report.left_over)
    assert build(tmp_path, cross_attention=False, trained="none").report is not None


def written_out(decoder: Decoder, clips: Any, layer: int, data: Tensor, heads: int) -> Tensor:
    """Cross-attention of a layer, head by head."""
    part: Any = decoder.transformer.h[layer].crossattention
    query, (key, value) = part.q_attn(data), part.c_attn(clips.data).split(WIDTH, dim=-1)
    out = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        scores = (q @ k.transpose(-2, -1)) / (WIDTH / heads) ** 0.5
        out.append(scores.masked_fill(~clips.mask[:, None], -torch.inf).softmax(-1) @ v)
    whole: Tensor = part.c_proj(torch.cat(out, dim=-1))
    return whole


@pytest.mark.parametrize("heads", [1, 4, None])
def test_heads_of_cross_attention(tmp_path: Path, heads: int | None) -> None:
    toys.written(model(add_cross_attention=True), tmp_path)
    decoder = build(tmp_path, cross_attention_heads=heads).double()
    seen: dict[str, list[Tensor]] = {"in": [], "out": []}
    for block in decoder.transformer.h:
        block.crossattention.register_forward_pre_hook(lambda _, inputs: seen["in"].append(inputs[0]))
        block.crossattention.register_forward_hook(lambda _, inputs, output: seen["out"].append(output[0]))
    clips, (tokens, mask) = toys.clips_of(dtype=torch.float64), toys.captions()
    found = decoder(clips, tokens, mask)
    for layer, (data, out) in enumerate(zip(seen["in"], seen["out"], strict=True)):
        torch.testing.assert_close(out, written_out(decoder, clips, layer, data, heads or 2), rtol=0, atol=1e-9)
        assert (out - written_out(decoder, clips, layer, data, 8)).abs().max() > 1e-3
    state = decoder.start(clips)
    for place, token in enumerate(tokens.unbind(1)):
        logits, state = decoder.step(token, state)
        torch.testing.assert_close(logits, found[:, place], rtol=0, atol=1e-9)
    assert decoder.transformer.h[0].attn.num_heads == 2


def test_heads_must_divide_the_width(tmp_path: Path) -> None:
    toys.written(model(), tmp_path)
    with pytest.raises(UsageError, match=r"cross_attention_heads: expected a divisor of the width 16 .*, got 3"):
        build(tmp_path, cross_attention_heads=3)
    with pytest.raises(ValidationError, match=r"cross_attention_heads must divide width \(16\)"):
        build("random", width=16, heads=2, cross_attention_heads=3)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"trained": "cross_attention"}, "trained: expected all or none without cross_attention"),
        ({"cross_attention_heads": 1}, "cross_attention_heads: there is no cross_attention"),
    ],
    ids=str,
)
def test_settings_without_cross_attention(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Config(cross_attention=False, **settings)
    Config(**settings)
