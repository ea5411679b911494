"""Decoders made of transformers' networks against transformers' own models with the same weights, and their files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UsageError
from avpipe.train import checkpoint
from avpipe.train.decoders import _pretrained, bert, gpt2
from avpipe.train.generate import beam_search, caption_clips
from avpipe.train.tokenizer import Special
from tests.train import pretrained_toys as toys
from tests.train.toys import fused

LAYERS = 3


def bert_model(vocabulary: int = toys.VOCABULARY, *, crosses: bool = True) -> Any:
    sizes = {"hidden_size": toys.WIDTH, "num_attention_heads": toys.HEADS, "intermediate_size": toys.HIDDEN}
    more = {"is_decoder": True, "add_cross_attention": crosses, "max_position_embeddings": toys.POSITIONS}
    return BertLMHeadModel(BertConfig(vocab_size=vocabulary, num_hidden_layers=LAYERS, **sizes, **more))


def gpt2_model(vocabulary: int = toys.VOCABULARY, *, crosses: bool = True) -> Any:
    sizes = {"n_embd": toys.WIDTH, "n_head": toys.HEADS, "n_inner": toys.HIDDEN, "n_positions": toys.POSITIONS}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_layer=LAYERS, add_cross_attention=crosses, **sizes))


@dataclass(frozen=True)
class Kind:
    """One of the decoders and what transformers has for it."""

    module: Any
    model: Callable[..., Any]
    words: str  # the matrix of words
    cross: int  # tensors of cross-attention in a layer

    def decoder(self, folder: Path | str, fused_width: int = toys.WIDTH, **config: Any) -> Any:
        torch.manual_seed(1)
        settings = self.module.Config(**{"weights": str(folder), "layers": LAYERS, **config})
        return self.module.Decoder(settings, fused_width=fused_width, vocabulary_size=toys.VOCABULARY).eval()


KINDS = {
    "bert": Kind(bert, bert_model, "bert.embeddings.word_embeddings.weight", 10),
    "gpt2": Kind(gpt2, gpt2_model, "transformer.wte.weight", 8),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache of others: the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(toys.TOLERANCE), ids=str)
@pytest.mark.parametrize("fused_width", [toys.WIDTH, 12], ids=["same", "other width"])
def test_logits_are_those_of_transformers(kind: Kind, tmp_path: Path, dtype: torch.dtype, fused_width: int) -> None:
    model = toys.written(kind.model(), tmp_path).to(dtype)
    decoder = kind.decoder(tmp_path, fused_width).to(dtype)
    clips, (tokens, mask) = toys.clips_of(fused_width, dtype), toys.captions()
    with torch.inference_mode():
        found = decoder(clips, tokens, mask)
        options = {"encoder_hidden_states": decoder.project(clips.data), "attention_mask": mask.long()}
        expected = model(tokens, encoder_attention_mask=clips.mask.long(), use_cache=False, **options).logits
        unmasked = model(tokens, use_cache=False, **options).logits
    assert found.abs().max() > 1
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=toys.TOLERANCE[dtype])
    assert (found - unmasked)[mask].abs().max() > 1e-2  # the fused mask counts


@pytest.mark.parametrize("dtype", list(toys.TOLERANCE), ids=str)
def test_gradients_are_those_of_transformers(kind: Kind, tmp_path: Path, dtype: torch.dtype) -> None:
    model = toys.written(kind.model(), tmp_path).to(dtype)
    decoder = kind.decoder(tmp_path).to(dtype)
    clips, (tokens, mask) = toys.clips_of(dtype=dtype), toys.captions()
    logits = model(
        tokens,
        encoder_hidden_states=clips.data,
        encoder_attention_mask=clips.mask.long(),
        attention_mask=mask.long(),
        use_cache=False,
    ).logits
    for found in (logits, decoder(clips, tokens, mask)):
        found[mask].square().mean().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    assert len(ours) == len(expected)
    for name, gradient in ours.items():
        official = name if name in expected else f"cls.predictions.{name}"
        torch.testing.assert_close(gradient, expected[official], rtol=1e-3, atol=100 * toys.TOLERANCE[dtype], msg=name)


def test_steps_equal_teacher_forcing_to_the_last_digits(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    decoder = kind.decoder(tmp_path).double()
    clips = toys.clips_of(dtype=torch.float64, real=(5, 2, 0))
    tokens, _ = toys.captions()
    state, found = decoder.start(clips), []
    states = [state]
    for token in tokens.unbind(1):
        logits, state = decoder.step(token, state)
        found.append(logits)
        states.append(state)
    expected = decoder(clips, tokens, torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=0, atol=1e-9)
    # A state is not changed by the steps that begin with it.
    again, _ = decoder.step(tokens[:, 3], states[3])
    torch.testing.assert_close(again, found[3], rtol=0, atol=1e-12)


def test_the_clip_is_looked_at_once(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    decoder = kind.decoder(tmp_path, 12)
    calls = []
    decoder.project.register_forward_hook(lambda *_: calls.append("project"))
    for name, module in decoder.named_modules():
        if name.endswith(("crossattention.self.key", "crossattention.c_attn")):
            module.register_forward_hook(lambda *_: calls.append("keys"))
    state = decoder.start(toys.clips_of(12))
    assert calls == ["project"] + ["keys"] * LAYERS
    for token in toys.captions()[0].unbind(1):
        _, state = decoder.step(token, state)
    assert len(calls) == 1 + LAYERS


@pytest.mark.parametrize("length", [1, 5])
def test_a_clip_of_which_nothing_is_present_adds_nothing(kind: Kind, tmp_path: Path, length: int) -> None:
    # With its cross-attention's output projections at zero the network says the same, whatever it looks at.
    toys.written(kind.model(), tmp_path)
    decoder, mute = kind.decoder(tmp_path), kind.decoder(tmp_path)
    for name, parameter in mute.named_parameters():
        if "crossattention.output.dense" in name or "crossattention.c_proj" in name:
            torch.nn.init.zeros_(parameter)
    tokens, mask = toys.captions()
    nothing, something = fused(width=toys.WIDTH, positions=length, real=(0, 0, 0)), toys.clips_of()
    with torch.inference_mode():
        found = decoder(nothing, tokens, mask)
        assert torch.equal(found, mute(something, tokens, mask))
        assert (found - decoder(something, tokens, mask)).abs().max() > 1e-2


def test_no_softmax_is_asked_about_nothing(kind: Kind, tmp_path: Path) -> None:
    # What a kernel makes of a row that is masked everywhere, forward and backward, is not asked for.
    toys.written(kind.model(), tmp_path)
    seen = _pretrained.Seen.of(toys.clips_of(real=(5, 0, 2)), kind.decoder(tmp_path).project)
    assert seen.mask.sum(dim=1).tolist() == [5, 5, 2]
    assert seen.absent.tolist() == [False, True, False]


# -- beam search -------------------------------------------------------------------------------------------------------

SEEDS = range(4)
REPETITION_PENALTIES = (1.0, 1.0, 1.15, 0.6)  # by seed: none, the settings of Multi-modal BLIP-2, and MICap's code


@dataclass(frozen=True)
class Pair:
    """Ours and transformers' with the same weights, and special tokens, ours, GPT-2-like and GPT-2's, with an ``end``
    that some captions come to."""

    decoder: Any
    model: Any
    specials: tuple[Special, ...]
    repetition_penalty: float

    @classmethod
    def of(cls, name: str, seed: int, folder: Path) -> Pair:
        model = toys.written(KINDS[name].model(), folder, seed).eval()
        decoder = KINDS[name].decoder(folder)
        never = Special(pad=0, begin=1, end=2)
        said = beam_search(decoder, toys.clips_of(), never, beams=1, max_tokens=12, min_tokens=12)[seed % 3][0].tokens
        end = said[4]
        specials = (Special(0, 1, end), Special(end, 1, end), Special(end, end, end))
        return cls(decoder, model, specials, REPETITION_PENALTIES[seed])


@pytest.fixture(scope="module", params=[(name, seed) for name in KINDS for seed in SEEDS], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of(*request.param, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("beams", [1, 3, 4])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0])
@pytest.mark.parametrize("least", [0, 3])
def test_beam_search_is_that_of_transformers(pair: Pair, beams: int, length_penalty: float, least: int) -> None:
    for special in pair.specials:
        toys.assert_searches_agree(
            pair.decoder,
            pair.model,
            toys.clips_of(),
            special,
            beams=beams,
            length_penalty=length_penalty,
            min_tokens=least,
            repetition_penalty=pair.repetition_penalty,
        )


@pytest.mark.parametrize("name", KINDS)
def test_captions_of_the_comparison_end_and_differ(name: str, tmp_path: Path) -> None:
    ended, cut = [], []
    for seed in SEEDS:
        pair = Pair.of(name, seed, tmp_path / str(seed))
        for special in pair.specials:
            found = beam_search(pair.decoder, toys.clips_of(), special, beams=4, max_tokens=12)
            for row in found:
                for hypothesis in row:
                    (ended if hypothesis.tokens[-1] == special.end else cut).append(hypothesis.tokens)
    assert len(ended) > 20
    assert len(cut) > 20
    assert len({len(tokens) for tokens in ended}) > 4
    assert len(set(ended)) > 10


def test_the_comparison_notices_another_search(tmp_path: Path) -> None:
    pair = Pair.of("gpt2", 0, tmp_path)
    clips, other = toys.clips_of(), toys.clips_of(real=(5, 5, 5))
    ours = beam_search(pair.decoder, clips, pair.specials[0], beams=3, max_tokens=12)
    for changed in (
        beam_search(pair.decoder, clips, pair.specials[0], beams=3, max_tokens=12, length_penalty=-1.0),
        beam_search(pair.decoder, other, pair.specials[0], beams=3, max_tokens=12),
        beam_search(pair.decoder, clips, pair.specials[0], beams=3, max_tokens=12, repetition_penalty=1.15),
    ):
        assert [[h.tokens for h in row] for row in changed] != [[h.tokens for h in row] for row in ours]


# -- files -------------------------------------------------------------------------------------------------------------


def test_all_of_a_folder_is_read(kind: Kind, tmp_path: Path) -> None:
    model = toys.written(kind.model(), tmp_path)
    report = kind.decoder(tmp_path).report
    assert len(report.matched) == len(list(model.parameters()))
    assert (report.new, report.left_over) == ((), ())


def test_cross_attention_may_be_new(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toys.written(kind.model(crosses=False), tmp_path)
    with caplog.at_level(logging.INFO):
        decoder = kind.decoder(tmp_path)
    assert len(decoder.report.new) == LAYERS * kind.cross
    assert all("crossattention" in name or "ln_cross_attn" in name for name in decoder.report.new)
    assert f"{LAYERS * kind.cross} new (" in caplog.text
    assert f"decoder: {tmp_path.name}: {len(decoder.report.matched)} tensors matched" in caplog.text
    for name, parameter in decoder.named_parameters():
        if "crossattention" in name and name.endswith("weight") and parameter.ndim == 2:
            assert 0.015 < parameter.std() < 0.025, name


def test_layers_beyond_those_asked_for_are_left_over(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    decoder = kind.decoder(tmp_path, layers=2)
    assert decoder.report.left_over
    assert all(f".{LAYERS - 1}." in name for name in decoder.report.left_over)
    assert decoder(toys.clips_of(), *toys.captions()).isfinite().all()


def test_more_layers_than_there_are(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    with pytest.raises(UsageError, match=r"decoder\.layers: expected at most 3 with weights=.*, got 4"):
        kind.decoder(tmp_path, layers=4)


def test_words_must_be_there(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    toys.rewrite(tmp_path, left_out=[kind.words])  # once in the file; the network has it under two names
    with pytest.raises(CheckpointError, match=rf"2 tensors missing or of another shape: .*{kind.words}"):
        kind.decoder(tmp_path)


def test_half_of_cross_attention_is_no_start(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    toys.rewrite(tmp_path, left_out=["1.crossattention"])
    with pytest.raises(CheckpointError, match=r"tensors missing .*\.1\.crossattention\."):
        kind.decoder(tmp_path)


def test_what_is_left_over_is_told(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)
    toys.rewrite(tmp_path, **{"classifier.weight": torch.zeros(2, 2)})
    assert kind.decoder(tmp_path).report.left_over == ("classifier.weight",)


@pytest.mark.parametrize("size", [toys.VOCABULARY - 1, toys.VOCABULARY + 7])
def test_another_vocabulary_is_refused(kind: Kind, tmp_path: Path, size: int) -> None:
    toys.written(kind.model(size), tmp_path)
    expected = rf"has {size} words, the tokenizer has 37: .* Try tokenizer\.name={tmp_path}"
    with pytest.raises(UsageError, match=expected):
        kind.decoder(tmp_path)


def test_another_network_is_refused(kind: Kind, tmp_path: Path) -> None:
    other = next(other for other in KINDS.values() if other is not kind)
    toys.written(other.model(), tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"expected the model_type '{kind.module.KIND}', got '{other.module.KIND}'"
    ):
        kind.decoder(tmp_path)


def test_two_matrices_of_words_are_refused(kind: Kind, tmp_path: Path) -> None:
    model = kind.model()
    model.config.tie_word_embeddings = False
    toys.written(model, tmp_path)
    with pytest.raises(CheckpointError, match="expected one matrix of words for input and output"):
        kind.decoder(tmp_path)


def test_neither_here_nor_to_be_had(kind: Kind, tmp_path: Path) -> None:
    default = kind.module.Config().weights
    with pytest.raises(MissingWeightsError) as caught:
        kind.decoder(default)
    message = str(caught.value)
    assert f"decoder: no weights {default!r}" in message
    assert f"hf download {default}" in message
    assert "decoder.weights=/path/to/folder" in message
    assert "decoder.weights=random" in message
    with pytest.raises(MissingWeightsError, match=r"the folder holds no config\.json"):
        kind.decoder(tmp_path)


# -- random weights, and what is trained -------------------------------------------------------------------------------

SIZES = {"width": 16, "heads": 2, "feed_forward": 24, "positions": 16, "layers": 2}


def test_random_weights_are_shouted_about_and_drawn_anew(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    one = kind.decoder("random", **SIZES)
    assert "RANDOM WEIGHTS, as asked for (decoder.weights=random)" in caplog.text
    assert one.report is None
    assert one.max_tokens == 16
    again = kind.decoder("random", **SIZES)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    torch.manual_seed(2)
    settings = kind.module.Config(weights="random", **SIZES)
    other = kind.module.Decoder(settings, fused_width=toys.WIDTH, vocabulary_size=toys.VOCABULARY)
    words = kind.words
    assert not torch.equal(other.get_parameter(words), one.get_parameter(words))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"weights": "random:3"}, "expected random alone, got 'random:3': train.seed"),
        ({"weights": "random", "trained": "none"}, "trained: expected all with weights=random, got 'none'"),
        (
            {"weights": "random", "trained": "cross_attention"},
            "with weights=random, got 'cross_attention'",
        ),
        ({"weights": "org/name", "width": 16, "positions": 9}, "width, positions: sizes of random weights alone"),
        ({"weights": "random", "width": 16, "heads": 3}, r"heads must divide width \(16\)"),
        ({"weights": "random", "heads": 7}, r"heads must divide width \(768\)"),
        ({"depth": 2}, "depth"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(kind: Kind, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        kind.module.Config(**settings)


def test_what_is_trained(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(), tmp_path)

    def trained(fused_width: int, how: str) -> set[str]:
        decoder = kind.decoder(tmp_path, fused_width, trained=how)
        return {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}

    everything = {name for name, _ in kind.decoder(tmp_path, 12).named_parameters()}
    assert trained(12, "all") == everything
    entrance = trained(12, "cross_attention")
    assert len(entrance) == LAYERS * kind.cross + 2
    assert all(name.startswith("project.") or "cross" in name for name in entrance)
    assert trained(toys.WIDTH, "none") == set()
    with pytest.raises(UsageError, match=r"expected all or cross_attention, got 'none': 2 tensors are new .*project"):
        trained(12, "none")


def test_what_is_new_must_learn(kind: Kind, tmp_path: Path) -> None:
    toys.written(kind.model(crosses=False), tmp_path)
    with pytest.raises(UsageError, match=rf"{LAYERS * kind.cross} tensors are new and would stay at"):
        kind.decoder(tmp_path, trained="none")
    assert kind.decoder(tmp_path, trained="cross_attention").report.new


def test_the_pattern_of_cross_attention_takes_no_more(kind: Kind) -> None:
    names = [name for name, _ in kind.model().named_parameters()]
    found = [name for name in names if re.search(_pretrained.CROSS_ATTENTION, name)]
    assert len(found) == LAYERS * kind.cross == len(names) - len(list(kind.model(crosses=False).parameters()))


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["random", "all", "cross_attention"])
def test_a_run_is_resumed_and_captions(kind: Kind, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(1)
    source = tmp_path / "source"
    toys.written(kind.model(len(toys.WORDS), crosses=how == "all"), source)
    toys.tokenizer_in(source)
    settings: dict[str, Any] = {"name": kind.module.KIND}
    settings |= {"weights": "random", **SIZES} if how == "random" else {"weights": str(source), "trained": how}
    config = toys.run_config({"layers": LAYERS, **settings}, source)
    val, sources = toys.run(config, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        toys.run(config, tmp_path / "broken", stop_at=3)
    toys.run(config, tmp_path / "broken")
    toys.assert_same_runs(tmp_path / "unbroken", tmp_path / "broken")

    assert ("RANDOM WEIGHTS" in caplog.text) == (how == "random")
    caplog.clear()
    loaded = checkpoint.load(tmp_path / "broken" / "checkpoints" / "best")
    assert "RANDOM WEIGHTS" not in caplog.text  # they have learned since
    captions = caption_clips(loaded, val, sources)
    again = caption_clips(checkpoint.load(tmp_path / "unbroken" / "checkpoints" / "best"), val, sources)
    assert [caption.beams for caption in captions] == [caption.beams for caption in again]
    stored = load_file(tmp_path / "broken" / "checkpoints" / "last" / "model.safetensors")
    assert (f"decoder.{kind.words}" in stored) == (how != "cross_attention")  # what is frozen is not stored
    words = loaded.captioner.decoder.get_parameter(kind.words)
    kept = load_file(source / "model.safetensors")[kind.words]
    assert (words.shape == kept.shape and torch.equal(words, kept)) == (how == "cross_attention")
