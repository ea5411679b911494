"""AVCap, the fusion ``av_tokens`` and the decoder ``git``, against numbers of the authors' own code.

``tests/data/avcap_decoder.safetensors.gz`` holds a text decoder with random weights under the official names, inputs,
and what ``TransformerDecoderTextualHead`` of JongSuk1/AVCap makes of them in float64, with and without padded tokens of
sight and sound; and its loss. ``tests/data/cav_mae_joint_layers.safetensors.gz`` holds CAV-MAE's joint layers; see
``tests/extract/test_cav_mae.py``. The folder ../shared has the whole captioner, and its beam search.

Hugging Face's GIT, which transformers brings, is a second witness that is there everywhere.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file
from torch import Tensor, nn

from avpipe.extract.networks import cav_mae
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import checkpoint, loop
from avpipe.train.batch import Batch, Fused
from avpipe.train.captioner import Captioner
from avpipe.train.config import check
from avpipe.train.decoders import git
from avpipe.train.fusions import av_tokens
from avpipe.train.generate import Hypothesis, beam_search, caption_clips
from avpipe.train.objectives import cross_entropy
from avpipe.train.tokenizer import Special
from tests.train import loop_toys

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
Parts = dict[str, dict[str, Tensor]]


def parts_of(name: str) -> Parts:
    parts: Parts = {}
    for key, tensor in load(gzip.decompress((DATA / name).read_bytes())).items():
        part, _, rest = key.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


@cache
def stored() -> Parts:
    return parts_of("avcap_decoder.safetensors.gz")


@cache
def joint() -> Parts:
    return parts_of("cav_mae_joint_layers.safetensors.gz")


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).detach().abs().max())


# -- the decoder -------------------------------------------------------------------------------------------------------


def decoder_of(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, **config: Any) -> git.Decoder:
    sizes = {"width": 64, "layers": 2, "heads": 4, "feed_forward": 128, "positions": 40}
    decoder = git.Decoder(git.Config(**{**sizes, **config}), fused_width=48, vocabulary_size=97).eval()
    decoder.load_state_dict(git.from_official(weights, projection=True))
    return decoder.to(dtype)


def fused_of(data: Tensor, mask: Tensor | None = None) -> Fused:
    return Fused(
        data=data,
        mask=torch.ones(data.shape[:2], dtype=torch.bool) if mask is None else mask,
        pts_seconds=torch.zeros(data.shape[:2]),
        sources=("both",),
        source=torch.zeros(data.shape[1], dtype=torch.int64),
    )


def fused_stored(dtype: torch.dtype = torch.float64, *, padded: bool = False) -> Fused:
    inputs = stored()["inputs"]
    return fused_of(inputs["av_features"].to(dtype), inputs["av_valid_mask"] if padded else None)


def logits_of(decoder: git.Decoder, fused: Fused) -> Tensor:
    tokens = stored()["inputs"]["caption_tokens"]
    with torch.inference_mode():
        found: Tensor = decoder(fused, tokens, torch.ones_like(tokens, dtype=torch.bool))
    return found


def expected(*, padded: bool = False) -> Tensor:
    return stored()["expected"]["expected64_logits_av_padding" if padded else "expected64_logits"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decoder_gives_the_authors_numbers(dtype: torch.dtype, padded: bool) -> None:
    found = logits_of(decoder_of(stored()["weights"], dtype), fused_stored(dtype, padded=padded))
    assert distance(found, expected(padded=padded)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("WORD_NORM_EPS", 1e-5, 1e-4), ("LAYER_NORM_EPS", 1e-5, 1e-6)],
)
def test_another_epsilon_shows(monkeypatch: pytest.MonkeyPatch, name: str, value: float, least: float) -> None:
    monkeypatch.setattr(git, name, value)
    assert distance(logits_of(decoder_of(stored()["weights"]), fused_stored()), expected()) > least


def test_other_heads_and_unmasked_padding_show() -> None:
    assert distance(logits_of(decoder_of(stored()["weights"], heads=2), fused_stored()), expected()) > 1e-2
    assert distance(logits_of(decoder_of(stored()["weights"]), fused_stored()), expected(padded=True)) > 1e-2


def recomputed(decoder: git.Decoder, fused: Fused, tokens: Tensor, allowed: Tensor) -> Tensor:
    """Positions and text as one sequence, as the authors compute it: ``allowed (S + L, S + L)``, rows look at columns.

    Nothing here knows that positions never see text, so it can be told another mask.
    """
    seen = decoder.projection(fused.data)
    words = decoder.norm(decoder.tokens(tokens) + decoder.positions.weight[: tokens.shape[1]])
    data = torch.cat([seen, words], dim=1)
    visible = (allowed & torch.cat([fused.mask, torch.ones_like(tokens, dtype=torch.bool)], dim=1)[:, None])[:, None]
    for layer in decoder.layers:
        assert isinstance(layer, git._Layer)
        query, key, value = layer.projections(data)
        scores = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        data = layer._feed(data, (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2))
    return F.linear(data[:, seen.shape[1] :], decoder.tokens.weight, decoder.out_bias)


def allowed_of(positions: int, length: int) -> Tensor:
    allowed = torch.ones(positions + length, positions + length, dtype=torch.bool)
    allowed[:positions, positions:] = False
    allowed[positions:, positions:] = allowed[positions:, positions:].tril()
    return allowed


def test_the_mask_is_the_authors() -> None:
    inputs = stored()["inputs"]
    assert torch.equal(inputs["allowed_full"][0], allowed_of(13, 9))
    masked = allowed_of(13, 9) & F.pad(inputs["av_valid_mask"], (0, 9), value=True)[:, None]
    assert torch.equal(inputs["allowed_av_padding"], masked)


def test_the_mask_has_the_right_direction() -> None:
    decoder, fused, tokens = decoder_of(stored()["weights"]), fused_stored(), stored()["inputs"]["caption_tokens"]
    right = allowed_of(13, 9)
    with torch.inference_mode():
        assert distance(recomputed(decoder, fused, tokens, right), expected()) < 1e-9
        all_visible = right.clone()
        all_visible[:13] = True
        causal = right.tril()
        for wrong in (right.T, all_visible, causal):  # turned round; positions see text; positions see earlier ones
            assert distance(recomputed(decoder, fused, tokens, wrong), expected()) > 1e-3


def reached(outputs: list[Tensor], inputs: Tensor) -> Tensor:
    """Which rows of an input (last but one dimension) each output depends on."""
    found = []
    for output in outputs:
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True, allow_unused=True)
        changed = torch.zeros(inputs.shape[-2]) if gradient is None else gradient.abs().sum(-1).flatten(0, -2).sum(0)
        found.append(changed > 0)
    return torch.stack(found)


def test_what_depends_on_what() -> None:
    # The same by its effects: with two layers, a position that saw text would hand it on to earlier words.
    decoder = decoder_of(stored()["weights"])
    tokens = stored()["inputs"]["caption_tokens"][:1]
    data = fused_stored().data[:1].requires_grad_()
    words: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        words.append(output)

    handle = decoder.tokens.register_forward_hook(keep)
    logits = decoder(fused_of(data), tokens, torch.ones_like(tokens, dtype=torch.bool))
    handle.remove()
    each = list(logits[0].unbind(0))
    assert torch.equal(reached(each, words[0]), torch.ones(9, 9, dtype=torch.bool).tril())
    assert reached(each, data).all()
    key, _ = decoder.start(fused_of(data)).seen[1]  # of the second layer
    of_positions = list(key[0].transpose(0, 1).unbind(0))
    assert reached(of_positions, data).all()
    assert not reached(of_positions, words[0]).any()


def test_gradients_are_those_of_one_sequence() -> None:
    # Teacher forcing computes positions and words apart; where they are one sequence, every gradient is the same.
    decoder, tokens = decoder_of(stored()["weights"]), stored()["inputs"]["caption_tokens"]
    probe = torch.randn(2, 9, 97, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = fused_stored(padded=True)
    fused.data.requires_grad_()
    inputs = [fused.data, *decoder.parameters()]
    apart = decoder(fused, tokens, torch.ones_like(tokens, dtype=torch.bool))
    together = recomputed(decoder, fused, tokens, allowed_of(13, 9))
    ours, theirs = (torch.autograd.grad((found * probe).sum(), inputs) for found in (apart, together))
    assert min(float(gradient.abs().max()) for gradient in theirs) > 1e-3
    assert max(distance(one, other) for one, other in zip(ours, theirs, strict=True)) < 1e-9


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_steps_equal_full_recomputation(padded: bool, beams: int) -> None:
    decoder, fused, tokens = decoder_of(stored()["weights"]), fused_stored(padded=padded), stored()["inputs"]
    rows = torch.arange(2).repeat_interleave(beams)
    said = tokens["caption_tokens"][rows]
    said = (said + torch.arange(len(rows))[:, None] * torch.arange(9)) % 97  # each beam says something else
    with torch.inference_mode():
        state = decoder.start(fused).take(rows)
        assert state.beams == beams
        assert state.seen[0][0].shape[0] == 2  # once a clip
        for length in range(1, 10):
            logits, state = decoder.step(said[:, length - 1], state)
            whole = recomputed(decoder, fused.take(rows), said[:, :length], allowed_of(13, length))
            assert distance(logits, whole[:, -1]) < 1e-9


def test_keys_of_positions_are_computed_once() -> None:
    decoder, fused = decoder_of(stored()["weights"]), fused_stored()
    rows: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        rows.append(inputs[0].shape[0] * inputs[0].shape[1])

    for layer in decoder.layers:
        assert isinstance(layer, git._Layer)
        layer.query_key_value.register_forward_hook(count)
    with torch.inference_mode():
        state = decoder.start(fused).take(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
        assert rows == [2 * 13] * 2
        for _ in range(5):
            before = len(rows)
            _, state = decoder.step(torch.full((8,), 7), state)
            assert rows[before:] == [8] * 2


def test_rows_of_a_clip_that_follow_one_another_share() -> None:
    state = decoder_of(stored()["weights"]).start(fused_stored())
    assert state.take(torch.tensor([0] * 6 + [1] * 3)).beams == 3
    assert state.take(torch.tensor([0, 0, 1])).beams == 1
    shared = state.take(torch.tensor([0, 0, 1, 1]))
    assert (shared.beams, shared.take(torch.tensor([2, 3, 2, 0, 1, 1])).beams) == (2, 3)


def smoothed(classes: int, epsilon: float) -> tuple[float, float]:
    """What torch calls AVCap's smoothing, and the entropy by which its divergence is less than a cross-entropy."""
    target, other = torch.tensor([1 - epsilon, epsilon / (classes - 1)], dtype=torch.float64)
    return epsilon * classes / (classes - 1), -float(target * target.log() + epsilon * other.log())


@pytest.mark.parametrize(
    ("name", "epsilon", "ignored"),
    [("ls_loss_ignore0", 0.1, 0), ("ls_loss_no_ignore", 0.1, -100), ("ls_loss_eps02_no_ignore", 0.2, -100)],
)
def test_the_authors_loss_is_ours_less_a_constant(name: str, epsilon: float, ignored: int) -> None:
    inputs, loss = stored()["inputs"], stored()["expected"][f"expected_{name}"].item()
    smoothing, entropy = smoothed(97, epsilon)

    def ours(smoothing: float) -> float:
        return F.cross_entropy(
            inputs["ls_logits"], inputs["ls_targets"], ignore_index=ignored, label_smoothing=smoothing
        ).item()

    assert ours(smoothing) - entropy == pytest.approx(loss, abs=1e-5)
    assert ours(epsilon) - entropy != pytest.approx(loss, abs=1e-4)  # torch spreads over the target, too
    assert ours(smoothing) != pytest.approx(loss, abs=1e-1)


def test_wrong_weights_are_told() -> None:
    weights = dict(stored()["weights"])
    with pytest.raises(CheckpointError, match=r"expected GIT's text decoder .*got model \.\.\."):
        git.from_official({"model": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"output\.weight: expected the word embedding"):
        git.from_official({**weights, "output.weight": weights["embedding.words.weight"] + 1})
    without = {name: tensor for name, tensor in weights.items() if "layer.1.attention.self.key.w" not in name}
    with pytest.raises(CheckpointError, match=r"layers\.1\.weight: expected query, key and value"):
        decoder_of(without)
    with pytest.raises(RuntimeError, match=r'Missing key.*"norm\.bias"'):
        decoder_of({name: tensor for name, tensor in weights.items() if name != "embedding.layer_norm.bias"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"something"'):
        decoder_of({**weights, "something": torch.zeros(1)})


def test_a_decoder_of_the_fusions_width_has_no_projection() -> None:
    config = git.Config(width=16, heads=2, layers=1, feed_forward=24)
    names = {name.split(".")[0] for name in git.Decoder(config, fused_width=16, vocabulary_size=9).state_dict()}
    assert "projection" not in names
    always = config.model_copy(update={"projection": "always"})
    for decoder in (
        git.Decoder(config, fused_width=12, vocabulary_size=9),
        git.Decoder(always, fused_width=16, vocabulary_size=9),
    ):
        assert {name.split(".")[0] for name in decoder.state_dict()} == names | {"projection"}


@pytest.mark.parametrize("part", [git, av_tokens])
def test_heads_must_divide_width(part: Any) -> None:
    with pytest.raises(ValueError, match=r"heads must divide width \(16\)"):
        part.Config(width=16, heads=3)


# -- Hugging Face's GIT ------------------------------------------------------------------------------------------------


@cache
def hugging_face() -> tuple[Any, Any, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """A small GIT of transformers with random weights, what its projection takes in, and its logits."""
    from transformers import GitConfig, GitForCausalLM

    vision = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(
        vision_config={**vision, "image_size": 8, "patch_size": 4},
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = GitForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model.output.weight.copy_(model.git.embeddings.word_embeddings.weight)
    entered: list[Tensor] = []
    model.git.visual_projection.register_forward_hook(lambda module, inputs, output: entered.append(inputs[0]))
    tokens = torch.randint(0, 31, (2, 7))
    with torch.inference_mode():
        logits = model(input_ids=tokens, pixel_values=torch.randn(2, 3, 8, 8).double()).logits
    return model, config, model.state_dict(), entered[0], tokens, logits[:, -7:]


@pytest.mark.parametrize("has_projection", [True, False])
def test_hugging_faces_git_gives_the_same(monkeypatch: pytest.MonkeyPatch, has_projection: bool) -> None:
    model, config, weights, entered, tokens, expected_logits = hugging_face()

    def error() -> float:
        sizes = git.Config(width=16, layers=3, heads=2, feed_forward=24, positions=20)
        decoder = git.Decoder(sizes, fused_width=24 if has_projection else 16, vocabulary_size=31).double().eval()
        decoder.load_state_dict(git.from_official(weights, projection=has_projection))
        with torch.inference_mode():
            fused = fused_of(entered if has_projection else model.git.visual_projection(entered))
            found = decoder(fused, tokens, torch.ones_like(tokens, dtype=torch.bool))
        return distance(found, expected_logits)

    assert 1e-9 < error() < 1e-6  # the norm of the words: 1e-8 in the authors' code
    monkeypatch.setattr(git, "WORD_NORM_EPS", config.layer_norm_eps)  # and 1e-12 in transformers
    assert error() < 1e-9


def test_hugging_faces_projection_behind_cav_maes_layers() -> None:
    model, _, weights, _, _, _ = hugging_face()
    cav_mae_file = {f"module.{name}": tensor for name, tensor in joint()["weights"].items()}
    fusion = fusion_of({**cav_mae_file, "module.mask_token": torch.zeros(1), **weights}, out_width=16)
    rows = joint()["inputs"]["audio"].double()
    assert distance(fusion.projection(rows), model.git.visual_projection(rows)) < 1e-9


# -- the fusion --------------------------------------------------------------------------------------------------------

SPECS = {  # not in the order in which they are given out
    "sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=24),
    "sound": FeatureSpec(name="sound", encoder="toy", modality="audio", dim=24),
}


def fusion_of(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, **config: Any) -> av_tokens.Fusion:
    sizes = {"width": 24, "layers": 3, "heads": 2, "out_width": 20}
    fusion = av_tokens.Fusion(av_tokens.Config(**{**sizes, **config}), SPECS).to(dtype).eval()
    fusion.load_state_dict(av_tokens.from_official(weights))
    return fusion


def batch_of(sound: Tensor, sight: Tensor, present: list[str]) -> Batch:
    """Of every clip some: ``both``, ``sound``, ``sight``. What is absent is junk that nobody may see."""
    heard, seen = (torch.tensor([who in ("both", name) for who in present]) for name in ("sound", "sight"))
    rows = {"sound": (sound, heard), "sight": (sight, seen)}
    features = {name: torch.where(there[:, None, None], data, 7.0) for name, (data, there) in rows.items()}
    return Batch(
        clip_ids=tuple(str(i) for i in range(len(present))),
        features=features,
        mask={name: there[:, None].expand(-1, data.shape[1]) for name, (data, there) in rows.items()},
        pts_seconds={name: torch.zeros(data.shape[:2]) for name, (data, _) in rows.items()},
        present={name: there for name, (_, there) in rows.items()},
    )


def projection_weights(inner: int, outer: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(inner, outer)
    return {
        "textual.av_projection.0.weight": linear.weight.detach(),
        "textual.av_projection.0.bias": linear.bias.detach(),
        "textual.av_projection.1.weight": torch.randn(outer),
        "textual.av_projection.1.bias": torch.randn(outer),
    }


def joint_errors(dtype: torch.dtype = torch.float64, **config: Any) -> dict[str, float]:
    """Of one clip with both, without sight, and without sound, in one batch: before the projection."""
    inputs, wanted = joint()["inputs"], joint()["expected"]
    fusion = fusion_of({**joint()["weights"], **projection_weights(24, 20)}, dtype, **config)
    fusion.projection = nn.Identity()  # type: ignore[assignment]
    sound, sight = (inputs[name].to(dtype).expand(3, -1, -1) for name in ("audio", "visual"))
    with torch.inference_mode():
        fused = fusion(batch_of(sound, sight, ["both", "sound", "sight"]))
    assert fused.sources == ("sound", "sight")
    assert fused.source.tolist() == [0] * sound.shape[1] + [1] * sight.shape[1]  # audio first
    expected = {"both": wanted["joint"], "sound": wanted["audio"], "sight": wanted["visual"]}
    return {
        name: distance(fused.data[row][fused.mask[row]], expected[name])
        for row, name in enumerate(("both", "sound", "sight"))
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fusion_gives_the_authors_numbers(dtype: torch.dtype) -> None:
    assert max(joint_errors(dtype).values()) < 1e-6  # what goes in is known in float32


def test_other_norms_show() -> None:
    found = joint_errors(alone="both")
    assert found["both"] < 1e-6
    assert min(found["sound"], found["sight"]) > 1e-2


@pytest.mark.parametrize(
    ("other", "least"),
    [({"time_embedding": "sinusoidal"}, 1e-2), ({"heads": 3}, 5e-6)],  # the stored gains are tiny, attention near level
    ids=str,
)
def test_other_settings_show(other: dict[str, Any], least: float) -> None:
    assert min(joint_errors(**other).values()) > least


def test_projection_is_linear_then_norm() -> None:
    inputs, weights = joint()["inputs"], projection_weights(24, 20)
    fusion = fusion_of({**joint()["weights"], **weights})
    sound, sight = (inputs[name].double()[None] for name in ("audio", "visual"))
    with torch.inference_mode():
        found = fusion(batch_of(sound, sight, ["both"])).data[0]
        part = {name.removeprefix("textual.av_projection."): weights[name].double() for name in weights}
        tokens = F.linear(joint()["expected"]["joint"].double(), part["0.weight"], part["0.bias"])
        assert distance(found, F.layer_norm(tokens, (20,), part["1.weight"], part["1.bias"])) < 1e-5


def test_rows_of_cav_mae_enter_as_they_are_and_others_through_a_linear() -> None:
    names = set(av_tokens.Fusion(av_tokens.Config(width=24, heads=2), SPECS).state_dict())
    assert not any(name.startswith("inputs.") for name in names)
    wide = {**SPECS, "sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=7)}
    more = set(av_tokens.Fusion(av_tokens.Config(width=24, heads=2), wide).state_dict())
    assert more - names == {"inputs.1.weight", "inputs.1.bias"}


def test_modality_embedding_is_one_of_each_feature_set() -> None:
    weights = {**joint()["weights"], **projection_weights(24, 20)}
    rows = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch, turned = batch_of(rows, rows, ["both"]), torch.tensor([3, 4, 5, 0, 1, 2])
    plain = fusion_of(weights)
    told = av_tokens.Fusion(av_tokens.Config(width=24, layers=3, heads=2, out_width=20, modality_embedding=True), SPECS)
    told = told.double().eval()
    assert told.load_state_dict(av_tokens.from_official(weights), strict=False).missing_keys == ["modality.weight"]
    with torch.inference_mode():
        # The same rows twice: without it nobody can tell which are heard and which are seen.
        assert distance(plain(batch).data, plain(batch).data[:, turned]) < 1e-9
        assert distance(told(batch).data, told(batch).data[:, turned]) > 1e-3


def test_text_stands_behind_and_makes_a_clip_one_of_several_modalities() -> None:
    said = FeatureSpec(name="a_speech", encoder="toy", modality="text", dim=24)
    torch.manual_seed(0)
    fusion = av_tokens.Fusion(av_tokens.Config(width=24, heads=2), {"a_speech": said, **SPECS})
    with torch.no_grad():
        for parameter in fusion.joint.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    assert fusion.names == ("sound", "sight", "a_speech")
    silent = batch_of(torch.randn(2, 3, 24), torch.randn(2, 4, 24), ["sight", "sight"])
    there = torch.tensor([True, False])
    batch = replace(
        silent,
        features={**silent.features, "a_speech": torch.zeros(2, 2, 24)},
        mask={**silent.mask, "a_speech": there[:, None].expand(-1, 2)},
        pts_seconds={**silent.pts_seconds, "a_speech": torch.zeros(2, 2)},
        present={**silent.present, "a_speech": there},
    )
    assert fusion._norms(batch).tolist() == [0, 2]


def test_weights_without_a_part_or_with_two_are_told() -> None:
    projection, git_file = (
        projection_weights(24, 20),
        {"module.textual.visual_projection.0.weight": torch.zeros(20, 24)},
    )
    with pytest.raises(CheckpointError, match=r"expected joint layers .*of CAV-MAE or AVCap"):
        av_tokens.from_official(projection)
    with pytest.raises(CheckpointError, match=r"expected projection .*of AVCap or GIT"):
        av_tokens.from_official(joint()["weights"])
    with pytest.raises(CheckpointError, match=r"expected one projection, got two"):
        av_tokens.from_official({**joint()["weights"], **projection, **git_file})
    with pytest.raises(RuntimeError, match=r'Missing key.*"joint\.norm_v\.bias"'):
        fusion_of({name: t for name, t in joint()["weights"].items() if name != "norm_v.bias"} | projection)


def test_the_two_learn_what_is_seen_and_heard(tmp_path: Path) -> None:
    # From nothing, at a small width.
    train_clips, val_clips = loop_toys.clips(20), loop_toys.clips(6, "val")
    base = loop_toys.config(epochs=60, lr=0.005, validate_every=10).model_dump()
    base["fusion"] = {"name": "av_tokens", "width": 32, "heads": 2, "out_width": 32}
    small = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 64, "positions": 32}
    base["decoder"] = {"name": "git", **small, "initializer_std": None}
    result = loop.train(
        check(base, "toy"),
        sources=loop_toys.sources(train_clips, val_clips),
        train_clips=train_clips,
        val_clips=val_clips,
        run_folder=tmp_path,
        score=loop_toys.score,
    )
    assert result.best_score == 1.0
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best")
    mute = caption_clips(loaded, val_clips, loop_toys.sources(val_clips, absent=(val_clips[0].clip_id,)))
    assert [caption.text for caption in mute[1:]] == [
        caption.text for caption in caption_clips(loaded, val_clips, loop_toys.sources(val_clips))[1:]
    ]


# -- the whole captioner, beside the project ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip("no golden in ../shared")
    return folder


MODES = {"captioning": "both", "audio_captioning": "sound", "video_captioning": "sight"}


class Whole:
    """AVCap of ../shared: the streams of stage one, then the captioner."""

    def __init__(self, golden: Path, dtype: torch.dtype) -> None:
        folder = golden / "public" / "avcap"
        self.facts = json.loads((folder / "avcap_full.json").read_text(encoding="utf-8"))
        self.data = load_file(folder / "avcap_full.io.safetensors")
        weights = load_file(folder / "avcap_full.weights.safetensors")
        encoder = cav_mae.CavMaeConfig(dim=24, heads=2, audio_frames=256, image_size=48, frames=4)
        state = cav_mae.state_of(weights, folder)
        with torch.inference_mode():
            for name, modality in (("audio", "a"), ("visual", "v")):
                trunk = cav_mae.Trunk(encoder, modality, 11).eval()  # type: ignore[arg-type]
                cav_mae.fill(trunk, state, folder)
                self.data[f"{name}_rows"] = trunk.to(dtype)(self.data[name].to(dtype))
        fusion = fusion_of(weights, dtype, layers=1, out_width=48)
        config = git.Config(width=48, layers=3, heads=3, feed_forward=96, positions=24)
        decoder = git.Decoder(config, fused_width=48, vocabulary_size=61).eval()
        decoder.load_state_dict(git.from_official(weights))
        self.captioner = Captioner(fusion, decoder.to(dtype))

    def batch(self, mode: str = "captioning") -> Batch:
        tokens = self.data["caption_tokens"]
        return replace(
            batch_of(self.data["audio_rows"].clone(), self.data["visual_rows"].clone(), [MODES[mode]] * 3),
            tokens=tokens,
            token_mask=tokens != 0,
            caption_clip=torch.arange(3),
        )


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_the_whole_captioner(golden: Path, dtype: torch.dtype) -> None:
    whole = Whole(golden, dtype)
    batch = whole.batch()
    with torch.inference_mode():
        fused = whole.captioner.fusion(batch)
        found = whole.captioner.decoder(fused, whole.data["caption_tokens"], batch.token_mask)
    assert distance(found, whole.data["expected64_logits"]) < TOLERANCE[dtype]


@pytest.mark.shared
@pytest.mark.parametrize("mode", MODES)
def test_tokens_of_every_mode(golden: Path, mode: str) -> None:
    whole = Whole(golden, torch.float64)
    whole.captioner.fusion.projection = nn.Identity()
    with torch.inference_mode():
        fused = whole.captioner.fusion(whole.batch(mode))
    found = torch.stack([data[mask] for data, mask in zip(fused.data, fused.mask, strict=True)])
    assert distance(found, whole.data[f"expected_av_tokens_{mode}"]) < 3e-5  # known in float32


@pytest.mark.shared
def test_gradient_of_the_authors_loss(golden: Path) -> None:
    data = load_file(golden / "public" / "avcap" / "avcap_decoder.io.safetensors")
    logits = data["ls_logits"].requires_grad_()
    F.cross_entropy(logits, data["ls_targets"], ignore_index=0, label_smoothing=smoothed(97, 0.1)[0]).backward()
    assert logits.grad is not None
    assert distance(logits.grad, data["expected_ls_grad_ignore0"]) < 1e-7
    assert data["expected_ls_grad_ignore0"].abs().max() > 1e-2


@pytest.mark.shared
def test_loss_of_the_whole_captioner(golden: Path) -> None:
    whole = Whole(golden, torch.float32)
    batch = whole.batch()
    form = cross_entropy.CaptionLoss(cross_entropy.Config(label_smoothing=0.1, form="kl"))
    with torch.inference_mode():
        loss = form(whole.captioner(batch), batch).item()
    assert loss == pytest.approx(whole.data["expected_train_loss"].item(), abs=1e-5)


def search(whole: Whole, mode: str, **options: Any) -> list[Hypothesis]:
    with torch.inference_mode():
        fused = whole.captioner.fusion(whole.batch(mode))
    special = Special(pad=whole.facts["eos_index"], begin=whole.facts["sos_index"], end=whole.facts["eos_index"])
    beam = whole.facts["beam"]
    found = beam_search(
        whole.captioner.decoder,  # type: ignore[arg-type]
        fused,
        special,
        **{
            "beams": beam["beam_size"],
            "max_tokens": beam["max_steps"] - 1,  # they count the begin
            "length_penalty": beam["length_penalty"],
            "length_penalty_form": "gnmt",
            **options,
        },
    )
    return [hypotheses[0] for hypotheses in found]


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_beams_of_the_whole_captioner(golden: Path, mode: str, dtype: torch.dtype) -> None:
    whole = Whole(golden, dtype)
    end, steps = whole.facts["eos_index"], whole.facts["beam"]["max_steps"]
    for found, tokens, score in zip(
        search(whole, mode),
        whole.data[f"expected_beam_tokens_{mode}"].tolist(),
        whole.data[f"expected_beam_logprobs_{mode}"].flatten().tolist(),
        strict=True,
    ):
        said = list(found.tokens[:-1])  # the end; where there is no room for it, they leave out the last word as well
        assert [whole.facts["sos_index"], *said, *[end] * (steps - 1 - len(said))] == tokens
        assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.shared
def test_another_form_of_the_length_penalty_shows(golden: Path) -> None:
    whole = Whole(golden, torch.float64)
    expected = whole.data["expected_beam_logprobs_captioning"].flatten().tolist()
    for options in ({"length_penalty_form": "hf"}, {"length_penalty": 1.0}):
        found = [hypothesis.score for hypothesis in search(whole, "captioning", **options)]
        assert found != pytest.approx(expected, abs=1e-2)


@pytest.mark.shared
def test_the_released_file_has_these_names_and_shapes(golden: Path) -> None:
    layout = json.loads((golden / "layouts" / "avcap_8frames.json").read_text(encoding="utf-8"))["keys"]
    weights = {key: torch.zeros(1).expand(entry["shape"]) for key, entry in layout.items()}
    specs = {name: replace(spec, dim=768) for name, spec in SPECS.items()}
    with torch.device("meta"):
        fusion = av_tokens.Fusion(av_tokens.Config(), specs)
        decoder = git.Decoder(git.Config(), fused_width=fusion.width, vocabulary_size=30522)
    fusion.load_state_dict(av_tokens.from_official(weights), assign=True)
    decoder.load_state_dict(git.from_official(weights), assign=True)
