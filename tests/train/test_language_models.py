"""Decoders made of whole language models, T5 and causal ones, against transformers' own with the same weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config, T5Config
from transformers import T5ForConditionalGeneration as T5Model

from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import checkpoint
from avpipe.train.batch import Fused
from avpipe.train.decoders import causal_lm, t5
from avpipe.train.decoders._language_model import Entrance, Settings, real_first
from avpipe.train.generate import beam_search, caption_clips
from avpipe.train.tokenizer import Special, Tokenizer
from tests.train import pretrained_toys as toys
from tests.train.toys import tokenizer

ROWS, LAYERS, WIDTH, FUSED_WIDTH = 40, 2, 16, 12  # three rows of the matrix of words stand for none
SPECS = {
    "see": FeatureSpec(name="see", encoder="toy", modality="video", dim=6),
    "hear": FeatureSpec(name="hear", encoder="toy", modality="audio", dim=5),
}
REAL = {"see": (3, 1, 0), "hear": (2, 0, 2)}  # clips whole, mute, and without pictures


def t5_config(**more: Any) -> T5Config:
    sizes = {
        "d_model": WIDTH,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": 2,
    }
    return T5Config.from_dict({"vocab_size": ROWS, "decoder_start_token_id": 0, **sizes, **more})


def causal_config(kind: str) -> Any:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": 32}
    common: dict[str, Any] = {"vocab_size": ROWS, **sizes, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2Config(**common)
    if kind == "opt":
        return OPTConfig(**common, word_embed_proj_dim=WIDTH, ffn_dim=24)
    grouped = {"intermediate_size": 24, "num_key_value_heads": 1}
    return (LlamaConfig if kind == "llama" else Qwen2Config)(**common, **grouped)


def t5_model(folder: Path, seed: int = 0, prefix: str = "") -> Any:
    """As T5 (even seeds: one matrix of words, ReLU) or Flan-T5 (two, gated GELU) are published."""
    flan = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    torch.manual_seed(seed)
    model = T5Model(t5_config(**(flan if seed % 2 else {})))
    if seed % 2:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(ROWS, WIDTH))
    toys.alive(model, seed)
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    toys.save_file(
        {prefix + name: value for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    described = {**model.config.to_dict(), "tie_word_embeddings": not seed % 2}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return model.eval()


def causal_model(folder: Path, seed: int = 0) -> Any:
    """A kind by seed."""
    torch.manual_seed(seed)
    return toys.written(AutoModelForCausalLM.from_config(causal_config(CAUSAL[seed])), folder, seed).eval()


CAUSAL = ("gpt2", "llama", "opt", "qwen2")
Models = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """One of the decoders, and what transformers has for it."""

    module: Any
    model: Models
    words: str  # the matrix of words

    def decoder(self, folder: Path | str, **config: Any) -> Any:
        torch.manual_seed(1)
        settings = self.module.Config(**{"weights": str(folder), "trained": "none", **config})
        words = tokenizer(toys.VOCABULARY)
        built: Any = checkpoint.build_decoder(
            self.module, settings, fused_width=FUSED_WIDTH, specs=SPECS, tokenizer=words
        )
        return built.eval()


KINDS = {
    "t5": Kind(t5, t5_model, "t5.shared.weight"),
    "causal_lm": Kind(causal_lm, causal_model, "network.transformer.wte.weight"),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache of others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def clips_of(more: int = 0, junk: float = 1.0) -> Fused:
    """Three clips of what is seen and then heard, each feature set padded to its longest, and by ``more``."""
    data, mask, source = [], [], []
    for index, counts in enumerate(REAL.values()):
        generator = torch.Generator().manual_seed(index)
        real = torch.randn(3, max(counts), FUSED_WIDTH, generator=generator)
        padding = junk * torch.randn(3, more, FUSED_WIDTH, generator=torch.Generator().manual_seed(99))
        part = torch.arange(max(counts) + more) < torch.tensor(counts)[:, None]
        whole = torch.cat([real, padding], dim=1)
        data.append(torch.where(part[..., None], whole, junk * whole))
        mask.append(part)
        source += [index] * part.shape[1]
    return Fused(
        data=torch.cat(data, dim=1), mask=torch.cat(mask, dim=1), pts_seconds=torch.zeros(3, len(source)),
        sources=tuple(REAL), source=torch.tensor(source),
    )  # fmt: skip


def positions_of(decoder: Any, clips: Fused, clip: int) -> Tensor:
    """What a clip has for the language model: what is heard, then what is seen, nothing else."""
    projections = decoder.project.projections
    parts = []
    for name, modality in (("hear", "audio"), ("see", "video")):
        here = (clips.source == clips.sources.index(name)) & clips.mask[clip]
        parts.append(projections[modality](clips.data[clip, here]))
    return torch.cat(parts)


PROMPT = "w5 w9 w7"
PROMPT_IDS = [5, 9, 7]
Logits = Callable[[Any, Any, Fused, Tensor, list[int]], Tensor]


def t5_logits(decoder: Any, model: Any, clips: Fused, tokens: Tensor, prompt: list[int]) -> Tensor:
    """Clip by clip, without padding."""
    rows = []
    for clip, caption in enumerate(tokens):
        words = model.shared(torch.tensor([*prompt, 2]))
        read = torch.cat([positions_of(decoder, clips, clip), words])[None]
        rows.append(model(inputs_embeds=read, decoder_input_ids=caption[None], use_cache=False).logits[0])
    return torch.stack(rows)


def causal_logits(decoder: Any, model: Any, clips: Fused, tokens: Tensor, prompt: list[int]) -> Tensor:
    """Clip by clip, without padding."""
    rows, words = [], model.get_input_embeddings()
    for clip, caption in enumerate(tokens):
        said = torch.cat([caption[:1], torch.tensor(prompt, dtype=torch.int64), caption[1:]])
        read = torch.cat([positions_of(decoder, clips, clip), words(said)])[None]
        rows.append(model(inputs_embeds=read, use_cache=False).logits[0, -len(caption) :])
    return torch.stack(rows)


LOGITS: dict[str, Logits] = {"t5": t5_logits, "causal_lm": causal_logits}


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in KINDS for seed in range(4)][1:])
@pytest.mark.parametrize("prompt", ["", PROMPT], ids=["no prompt", "prompt"])
def test_logits_are_those_of_transformers(name: str, seed: int, prompt: str, tmp_path: Path) -> None:
    model = KINDS[name].model(tmp_path, seed).double()
    decoder = KINDS[name].decoder(tmp_path, prompt=prompt).double()
    clips, (tokens, mask) = clips_of(), toys.captions()
    clips = replace(clips, data=clips.data.double())
    with torch.inference_mode():
        found = decoder(clips, tokens, mask)
        expected = LOGITS[name](decoder, model, clips, tokens, PROMPT_IDS if prompt else [])
        # However the batch is padded, and whatever stands there.
        padded = clips_of(more=3, junk=50.0)
        other = decoder(replace(padded, data=padded.data.double()), tokens, mask)
        state, steps = decoder.start(clips), []
        for token in tokens.unbind(1):
            logits, state = decoder.step(token, state)
            steps.append(logits)
    assert found.abs().max() > 1
    assert found.shape[-1] == ROWS
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(other, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=0, atol=1e-9)


def test_a_prompt_and_the_order_count(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    clips, (tokens, mask) = clips_of(), toys.captions()
    settings: list[dict[str, Any]] = [{}, {"prompt": PROMPT}, {"order": ("video", "audio", "text")}]
    with torch.inference_mode():
        plain, prompted, turned = (kind.decoder(tmp_path, **more)(clips, tokens, mask) for more in settings)
    assert (plain - prompted).abs().amax(dim=(1, 2)).min() > 1e-2
    difference = (plain - turned).abs().amax(dim=(1, 2))
    assert difference[0] > 1e-2
    assert difference[1:].max() < 1e-4  # with one modality there is no order


def test_a_clip_of_which_nothing_is_present(kind: Kind, tmp_path: Path) -> None:
    model = kind.model(tmp_path)
    decoder = kind.decoder(tmp_path, prompt=PROMPT)
    clips, (tokens, mask) = clips_of(), toys.captions()
    nothing = replace(clips, mask=torch.zeros_like(clips.mask))
    with torch.inference_mode():
        found = decoder(nothing, tokens, mask)
        name = next(name for name, each in KINDS.items() if each is kind)
        torch.testing.assert_close(found, LOGITS[name](decoder, model, nothing, tokens, PROMPT_IDS))
        state = decoder.start(nothing)
        first, _ = decoder.step(tokens[:, 0], state)
    torch.testing.assert_close(first, found[:, 0], rtol=0, atol=1e-5)


def test_the_clip_is_read_once(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    decoder = kind.decoder(tmp_path)
    widths: list[int] = []
    inner = decoder.t5.encoder if kind.module is t5 else decoder.network.base_model
    inner.register_forward_hook(lambda *given: widths.append(given[2].last_hidden_state.shape[1]))
    state = decoder.start(clips_of())
    for token in toys.captions()[0].unbind(1):
        _, state = decoder.step(token, state)
    assert widths == ([6] if kind.module is t5 else [5, *[1] * 8])  # T5's reads an end, too


def test_the_clip_is_read_once_for_all_beams(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    decoder = kind.decoder(tmp_path)
    rows: list[int] = []
    inner = decoder.t5.encoder if kind.module is t5 else decoder.network.base_model
    inner.register_forward_hook(lambda *given: rows.append(given[2].last_hidden_state.shape[0]))
    beam_search(decoder, clips_of(), toys.APART, beams=4, max_tokens=3, min_tokens=3)
    assert rows == ([3] if kind.module is t5 else [3, 12, 12, 12])


# -- beam search -------------------------------------------------------------------------------------------------------


def t5_generated(decoder: Any, model: Any, clips: Fused, special: Special, options: dict[str, Any]) -> toys.Rows:
    rows: toys.Rows = []
    for clip in range(3):
        words = model.shared(torch.tensor([*PROMPT_IDS, 2]))
        found = model.generate(
            inputs_embeds=torch.cat([positions_of(decoder, clips, clip), words])[None],
            decoder_start_token_id=special.begin,
            **toys.search_options(special, **options),
        )
        rows += toys.rows_of(found, special, options["beams"])
    return rows


def causal_generated(decoder: Any, model: Any, clips: Fused, special: Special, options: dict[str, Any]) -> toys.Rows:
    """Clip by clip: of a batch that is padded in front, transformers 5.23 takes the padding of what is embedded for
    padding of the caption, and spares as many of its words the penalty of repetition.
    """
    rows: toys.Rows = []
    said = torch.tensor([special.begin, *PROMPT_IDS])
    for clip in range(3):
        read = torch.cat([positions_of(decoder, clips, clip), model.get_input_embeddings()(said)])
        found = model.generate(
            said[None, :1],  # what the penalty counts as said
            inputs_embeds=read[None],
            attention_mask=torch.ones(1, len(read), dtype=torch.int64),
            **toys.search_options(special, **options),
        )
        rows += toys.rows_of(found, special, options["beams"])
    return rows


GENERATED = {"t5": t5_generated, "causal_lm": causal_generated}
REPETITION_PENALTIES = (1.0, 1.15, 0.6, 1.0)  # by seed


@dataclass(frozen=True)
class Pair:
    """Ours and transformers' with the same weights, and special tokens with an ``end`` that some captions come to."""

    name: str
    decoder: Any
    model: Any
    specials: tuple[Special, ...]
    repetition_penalty: float


@pytest.fixture(scope="module", params=[(name, seed) for name in KINDS for seed in range(4)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, seed = request.param
    folder = tmp_path_factory.mktemp("pair")
    model = KINDS[name].model(folder, seed)
    decoder = KINDS[name].decoder(folder, prompt=PROMPT)
    never = Special(pad=0, begin=1, end=39)
    said = beam_search(decoder, clips_of(), never, beams=1, max_tokens=8, min_tokens=8)[seed % 3][0].tokens
    end = said[3]
    # Ours; T5's, where padding is the begin; GPT-2's.
    return Pair(name, decoder, model, (Special(0, 1, end), Special(0, 0, end), Special(end, end, end)),
                REPETITION_PENALTIES[seed])  # fmt: skip


@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (3, 0.6), (4, 1.0)])
@pytest.mark.parametrize("least", [0, 3])
def test_beam_search_is_that_of_transformers(pair: Pair, beams: int, length_penalty: float, least: int) -> None:
    for special in pair.specials:
        options: dict[str, Any] = {
            "beams": beams,
            "max_tokens": 8,
            "min_tokens": least,
            "length_penalty": length_penalty,
            "repetition_penalty": pair.repetition_penalty,
        }
        ours = beam_search(pair.decoder, clips_of(), special, **options)
        with torch.inference_mode():
            theirs = GENERATED[pair.name](pair.decoder, pair.model, clips_of(), special, options)
        toys.assert_same_captions(ours, theirs)


# -- the entrance ------------------------------------------------------------------------------------------------------


def test_order_and_projections_by_hand() -> None:
    modalities: dict[str, Any] = {"far": "video", "near": "video", "hear": "audio", "read": "text"}
    specs = {
        name: FeatureSpec(name=name, encoder="toy", modality=modality, dim=1) for name, modality in modalities.items()
    }
    entrance = Entrance(Settings(weights="x/y", order=("text", "audio", "video")), specs, 1, 1)
    for factor, modality in enumerate(("video", "audio", "text"), 1):
        entrance.of(modality).load_state_dict({"weight": torch.tensor([[10.0**factor]]), "bias": torch.zeros(1)})
    fused = Fused(
        data=torch.tensor([[[1.0], [2], [3], [4], [5]]]),
        mask=torch.tensor([[True, False, True, True, True]]),
        pts_seconds=torch.zeros(1, 5),
        sources=tuple(specs),
        source=torch.tensor([1, 2, 0, 3, 2]),  # near, hear, far, read, hear
    )
    data, mask = entrance(fused)
    assert data.flatten().tolist() == [4000, 200, 500, 10, 30]  # text; sound; pictures as they stood
    assert mask.tolist() == [[True, False, True, True, True]]
    shared = Entrance(Settings(weights="x/y", projection="shared"), specs, 1, 1)
    assert [name for name, _ in shared.named_parameters()] == ["projections.shared.weight", "projections.shared.bias"]
    plain = Entrance(Settings(weights="x/y", projection="none"), specs, 1, 1)
    assert plain(fused)[0].flatten().tolist() == [2, 5, 1, 3, 4]


def test_real_first_by_hand() -> None:
    data = torch.arange(10.0).view(2, 5, 1)
    found, mask = real_first(data, torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool())
    assert found.flatten(1).tolist() == [[1, 3, 4, 0, 2], [5, 9, 6, 7, 8]]
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_no_projection_where_the_widths_differ(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    with pytest.raises(UsageError, match=r"expected modality or shared, got none: .* 12 .* 16 .*out_width=16"):
        kind.decoder(tmp_path, projection="none")


# -- settings, and what is trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"weights": "random"}, "trained: expected all with weights=random, got 'lora'"),
        ({"dtype": "bfloat16", "trained": "all"}, "dtype: expected float32 with trained=all, got bfloat16"),
        ({"trained": "none", "lora": {"rank": 4}}, "lora: expected trained=lora with it, got trained=none"),
        ({"order": ("audio", "video")}, "expected each of video, audio, text once, got audio, video"),
        ({"order": ("audio", "video", "video")}, "expected each of video, audio, text once"),
        ({"width": 16}, "width: sizes of random weights alone"),
        ({"weights": "random", "trained": "all", "width": 16, "heads": 3}, r"heads must divide width \(16\)"),
        ({"lora": {"alpha": 0}}, "lora.alpha"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(kind: Kind, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        kind.module.Config(**settings)


def test_settings_of_one_kind_alone() -> None:
    with pytest.raises(ValidationError, match="initialise_from: expected projection=modality, got none"):
        t5.Config(initialise_from="x/y", projection="none")
    with pytest.raises(ValidationError, match="kind: of random weights alone"):
        causal_lm.Config(kind="opt")


def trained(decoder: Any) -> set[str]:
    return {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}


def test_what_is_trained(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    parts = ("audio.weight", "audio.bias", "video.weight", "video.bias")
    projections = {f"project.projections.{part}" for part in parts}
    assert trained(kind.decoder(tmp_path)) == projections
    whole = kind.decoder(tmp_path, trained="all")
    assert trained(whole) == {name for name, _ in whole.named_parameters()}
    adapted = kind.decoder(tmp_path, trained="lora", lora={"rank": 3})
    adapters = trained(adapted) - projections
    per_layer = 6 if kind.module is t5 else 1  # T5: queries and values of three attentions; GPT-2: one matrix for both
    assert len(adapters) == 2 * per_layer * LAYERS
    assert all(3 in adapted.get_parameter(name).shape for name in adapters)
    everywhere = kind.decoder(tmp_path, trained="lora", lora={"targets": "all-linear"})
    assert len(trained(everywhere)) > len(trained(adapted))
    assert not any("lm_head" in name for name in trained(everywhere))


def test_adapters_start_at_nothing_and_learn(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    clips, (tokens, mask) = clips_of(), toys.captions()
    adapted = kind.decoder(tmp_path, trained="lora")
    plain = kind.decoder(tmp_path)
    plain.project.load_state_dict(adapted.project.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(adapted(clips, tokens, mask), plain(clips, tokens, mask))
    toys.alive(adapted)  # no gradient reaches one factor of a product where the other is zero
    adapted(clips, tokens, mask).square().sum().backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 1e-6) == (name in trained(adapted)), name


def test_frozen_weights_in_half_the_memory(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    clips, (tokens, mask) = clips_of(), toys.captions()
    halved, whole = (kind.decoder(tmp_path, trained="lora", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert {p.dtype for p in halved.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in halved.parameters() if p.requires_grad} == {torch.float32}
    found, expected = halved(clips, tokens, mask), whole(clips, tokens, mask)
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    found.sum().backward()
    assert halved.project.of("audio").weight.grad.isfinite().all()
    with torch.inference_mode():
        assert all(row for row in beam_search(halved, clips, toys.APART, beams=2, max_tokens=4))


@pytest.mark.parametrize("how", ["lora", "none"])
def test_gradient_checkpointing_changes_no_number(kind: Kind, tmp_path: Path, how: str) -> None:
    kind.model(tmp_path)
    clips, (tokens, mask) = clips_of(), toys.captions()
    gradients, calls = [], []
    for checkpointing in (False, True):
        decoder = kind.decoder(tmp_path, trained=how, dropout=0.0, gradient_checkpointing=checkpointing).train()
        for module in decoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        toys.alive(decoder).train()
        seen: list[int] = []
        layer = decoder.t5.encoder.block[0].layer[0] if kind.module is t5 else decoder.network.base_model.h[0].ln_1
        layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        decoder(clips, tokens, mask).square().mean().backward()
        gradients.append({name: p.grad for name, p in decoder.named_parameters() if p.requires_grad})
        calls.append(len(seen))
    assert calls == [1, 2]
    with pytest.raises(ValueError, match="goes in eval mode alone"):
        decoder.start(clips)
    decoder.eval().start(clips)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# -- files -------------------------------------------------------------------------------------------------------------


def test_all_of_a_folder_is_read(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = kind.model(tmp_path)
    with caplog.at_level(logging.INFO):
        report = kind.decoder(tmp_path).report
    assert len(report.matched) == len(list(model.parameters()))
    assert (report.new, report.left_over) == ((), ())
    assert f"decoder: {tmp_path.name}: {len(report.matched)} tensors matched" in caplog.text


@pytest.mark.parametrize("layer", ["0", "1"])
def test_nothing_may_be_missing(kind: Kind, tmp_path: Path, layer: str) -> None:
    kind.model(tmp_path)
    toys.rewrite(tmp_path, left_out=[f"block.{layer}.", f"h.{layer}."])
    with pytest.raises(CheckpointError, match=rf"tensors missing or of another shape: .*\.{layer}\."):
        kind.decoder(tmp_path)


@pytest.mark.parametrize(("size", "fits"), [(ROWS, True), (toys.VOCABULARY - 1, False), (5000, False)])
def test_rows_for_no_word(kind: Kind, tmp_path: Path, size: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.train.test_language_models.ROWS", size)
    kind.model(tmp_path)
    if fits:
        assert kind.decoder(tmp_path).report
        return
    with pytest.raises(UsageError, match=rf"has {size} words, the tokenizer has 37: .* Try tokenizer\.name={tmp_path}"):
        kind.decoder(tmp_path)


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    causal_model(tmp_path)
    with pytest.raises(CheckpointError, match="expected a T5, or a BLIP-2 with one, got the model_type 'gpt2'"):
        KINDS["t5"].decoder(tmp_path)
    t5_model(tmp_path)
    with pytest.raises(CheckpointError, match="expected a causal language model, got a t5; see decoder=t5"):
        KINDS["causal_lm"].decoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="nothing_known"):
        KINDS["causal_lm"].decoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected the model_type of a language model, got none"):
        KINDS["t5"].decoder(tmp_path)


def test_several_files(kind: Kind, tmp_path: Path) -> None:
    model = kind.model(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, held in shards.items():
        toys.save_file({name: state[name] for name in held}, tmp_path / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}), encoding="utf-8")
    decoder = kind.decoder(tmp_path)
    assert len(decoder.report.matched) == len(list(model.parameters()))
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(Exception, match=r"model-2-of-2\.safetensors"):
        kind.decoder(tmp_path)


def test_the_language_model_of_a_blip2(tmp_path: Path) -> None:
    opt = tmp_path / "opt"
    opt.mkdir()
    model = causal_model(opt, CAUSAL.index("opt"))
    inner = json.loads((opt / "config.json").read_text(encoding="utf-8"))
    described = {"model_type": "blip-2", "text_config": inner}
    (opt / "config.json").write_text(json.dumps(described), encoding="utf-8")
    toys.rewrite(opt, {"model.": "language_model.model."}, **{"qformer.layernorm.bias": torch.zeros(4)})
    assert all(name.startswith(("language_model.", "qformer.")) for name in load_file(opt / "model.safetensors"))
    decoder = KINDS["causal_lm"].decoder(opt)
    assert decoder.report.left_over == ("qformer.layernorm.bias",)
    clips, (tokens, mask) = clips_of(), toys.captions()
    with torch.inference_mode():
        expected = causal_logits(decoder, model, clips, tokens, [])
        torch.testing.assert_close(decoder(clips, tokens, mask), expected, rtol=0, atol=1e-4)


def test_a_head_that_does_more_than_multiply_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    more = {"num_key_value_heads": 1, "intermediate_size": 24, "vocab_size": ROWS}
    for bound, fits in ((None, True), (0.5, False)):
        described = Gemma2Config(**sizes, **more, final_logit_softcapping=bound)
        toys.written(AutoModelForCausalLM.from_config(described), tmp_path)
        if fits:
            assert KINDS["causal_lm"].decoder(tmp_path).report
            continue
        with pytest.raises(UsageError, match="a gemma2 does more to its logits than one matrix"):
            KINDS["causal_lm"].decoder(tmp_path)


def test_more_positions_than_places(tmp_path: Path) -> None:
    causal_model(tmp_path)  # a GPT-2 with 32 places
    decoder, clips = KINDS["causal_lm"].decoder(tmp_path), clips_of()
    assert decoder.max_tokens == 32
    assert KINDS["causal_lm"].decoder(tmp_path, caption_tokens=20).max_tokens == 20
    assert KINDS["causal_lm"].decoder(tmp_path, prompt=PROMPT).max_tokens == 29
    tokens, mask = toys.captions(27)
    assert decoder(clips, tokens, mask).shape == (3, 27, ROWS)  # beside 5 positions of the first clip
    tokens, mask = toys.captions(28)
    with pytest.raises(UsageError, match=r"has 32 places, and .* need 33\. Try a fusion that gives fewer"):
        decoder(clips, tokens, mask)
    state = decoder.start(clips)
    with torch.inference_mode():
        for token in tokens[:, :-1].unbind(1):
            _, state = decoder.step(token, state)
        with pytest.raises(UsageError, match="need 33"):
            decoder.step(tokens[:, -1], state)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["random", "all", "lora", "none"])
def test_a_run_is_resumed_and_captions(kind: Kind, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("tests.train.test_language_models.ROWS", len(toys.WORDS))
    source = tmp_path / "source"
    source.mkdir()
    kind.model(source)
    toys.tokenizer_in(source)
    settings: dict[str, Any] = {"name": kind.module.__name__.rpartition(".")[2], "prompt": "a thing"}
    if how == "random":
        settings |= {"weights": "random", "trained": "all", "width": 16, "heads": 2, "feed_forward": 24, "layers": 2}
    else:
        settings |= {"weights": str(source), "trained": how}
    config = toys.run_config(settings, source)
    val, sources = toys.run(config, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        toys.run(config, tmp_path / "broken", stop_at=3)
    toys.run(config, tmp_path / "broken")
    toys.assert_same_runs(tmp_path / "unbroken", tmp_path / "broken")

    loaded = checkpoint.load(tmp_path / "broken" / "checkpoints" / "best")
    captions = caption_clips(loaded, val, sources)
    again = caption_clips(checkpoint.load(tmp_path / "unbroken" / "checkpoints" / "best"), val, sources)
    assert [caption.beams for caption in captions] == [caption.beams for caption in again]
    stored = load_file(tmp_path / "broken" / "checkpoints" / "last" / "model.safetensors")
    learned = {f"decoder.{name}" for name in trained(loaded.captioner.decoder)}
    assert {name for name in stored if name.startswith("decoder.")} == learned
    # What is frozen is not stored, and must be what it was.
    if how in {"lora", "none"}:
        name, value = next(iter(load_file(source / "model.safetensors").items()))
        toys.rewrite(source, **{name: value + 1})
        with pytest.raises(CheckpointError, match="other weights"):
            checkpoint.load(tmp_path / "broken" / "checkpoints" / "best")


def test_a_prompt_in_the_tokenizers_words(kind: Kind, tmp_path: Path) -> None:
    kind.model(tmp_path)
    found = kind.decoder(tmp_path, prompt=PROMPT).prompt.tolist()
    assert found == ([*PROMPT_IDS, 2] if kind.module is t5 else PROMPT_IDS)  # T5 reads an end
    assert kind.decoder(tmp_path).prompt.tolist() == ([2] if kind.module is t5 else [])
    assert isinstance(tokenizer(9), Tokenizer)
