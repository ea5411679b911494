"""The ``t5`` decoder's own: what its encoder reads, and public weights in the layouts that they are published in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError, MissingWeightsError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.checkpoint import build_decoder
from avpipe.train.decoders import t5
from avpipe.train.fusions import qformer
from tests.train import pretrained_toys as toys
from tests.train.test_language_models import FUSED_WIDTH, SPECS, WIDTH, clips_of, t5_model
from tests.train.toys import tokenizer

TEXT = FeatureSpec(name="read", encoder="toy", modality="text", dim=3)


def build(folder: Path | str, specs: Any = SPECS, **config: Any) -> Any:
    torch.manual_seed(1)
    settings = t5.Config(**{"weights": str(folder), "trained": "lora", **config})
    words = tokenizer(toys.VOCABULARY)
    return build_decoder(t5, settings, fused_width=FUSED_WIDTH, specs=specs, tokenizer=words).eval()


@pytest.fixture
def flan(tmp_path: Path) -> Path:
    """A small Flan-T5."""
    folder = tmp_path / "flan"
    folder.mkdir()
    t5_model(folder, seed=1)
    return folder


def projection(width: int = WIDTH, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(width, FUSED_WIDTH, generator=generator),
        "bias": torch.randn(width, generator=generator),
    }


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


# -- the network -------------------------------------------------------------------------------------------------------


def test_the_activation(flan: Path) -> None:
    # Flan-T5's gate is the GELU by tanh; LAVIS puts the exact one there, whatever the configuration says.
    clips, (tokens, mask) = clips_of(), toys.captions()
    public, exact = build(flan), build(flan, dense_act_fn="gelu")
    x = torch.linspace(-4, 4, 100)
    for decoder, approximate in ((public, "tanh"), (exact, "none")):
        for block in (*decoder.t5.encoder.block, *decoder.t5.decoder.block):
            torch.testing.assert_close(
                block.layer[-1].DenseReluDense.act(x), nn.functional.gelu(x, approximate=approximate)
            )
    exact.project.load_state_dict(public.project.state_dict())
    assert (public(clips, tokens, mask) - exact(clips, tokens, mask)).abs().max() > 1e-6


def test_dropout(flan: Path) -> None:
    def rates(decoder: Any) -> set[float]:
        modules = [*decoder.t5.encoder.modules(), *decoder.t5.decoder.modules()]
        return {module.p for module in modules if isinstance(module, nn.Dropout)}

    assert rates(build(flan, trained="none")) == {0.1}  # as config.json says
    assert rates(build(flan, trained="none", dropout=0.3)) == {0.3}
    assert rates(build(flan, dropout=0.0, lora={"dropout": 0.4})) == {0.0, 0.4}


def test_the_papers_settings() -> None:
    one, two = t5.Config(**t5.STAGE_ONE), t5.Config(**t5.STAGE_TWO)
    assert (one.trained, two.trained) == ("none", "lora")
    assert (two.lora.rank, two.lora.alpha, two.lora.dropout, two.lora.targets) == (8, 16, 0.2, "usual")
    assert one.order[:2] == ("audio", "video")


def test_audio_stands_first_whatever_the_order_of_the_fusion(flan: Path) -> None:
    decoder = build(flan, prompt="w5 w9")
    read: list[Tensor] = []
    decoder.t5.encoder.register_forward_pre_hook(
        lambda _, __, options: read.append(options["inputs_embeds"]), with_kwargs=True
    )
    pictures_first = clips_of()
    turned = torch.cat([(pictures_first.source == index).nonzero().flatten() for index in (1, 0)])
    sound_first = replace(
        pictures_first,
        data=pictures_first.data[:, turned],
        mask=pictures_first.mask[:, turned],
        source=pictures_first.source[turned],
    )
    assert not torch.equal(sound_first.data, pictures_first.data)
    tokens, mask = toys.captions()
    one, other = (decoder(clips, tokens, mask) for clips in (pictures_first, sound_first))
    assert torch.equal(one, other)
    assert torch.equal(*read)
    # The first clip is whole: two positions of sound, three of pictures, the prompt, the end.
    data, heard = pictures_first.data[0], pictures_first.source == 1
    sound, pictures = decoder.project.of("audio")(data[heard]), decoder.project.of("video")(data[~heard])
    torch.testing.assert_close(read[0][0], torch.cat([sound, pictures, decoder.t5.shared(torch.tensor([5, 9, 2]))]))
    turned_about = build(flan, prompt="w5 w9", order=("video", "audio", "text"))
    turned_about.project.load_state_dict(decoder.project.state_dict())
    assert (turned_about(pictures_first, tokens, mask) - one)[0].abs().max() > 1e-3


# -- BLIP-2 ------------------------------------------------------------------------------------------------------------


def as_blip2(flan: Path, folder: Path) -> Path:
    """A folder as Salesforce/blip2-flan-t5-xl is laid out: T5 and the projection beside a vision tower."""
    folder.mkdir()
    inner = json.loads((flan / "config.json").read_text(encoding="utf-8"))
    # There, too, the activation is a key of its own beside feed_forward_proj, which says another.
    inner |= {"dense_act_fn": "gelu"}
    described = {"model_type": "blip-2", "text_config": inner, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    state = below("language_model", load_file(flan / "model.safetensors")) | below("language_projection", projection())
    state |= {"query_tokens": torch.zeros(1, 4, 8), "vision_model.post_layernorm.weight": torch.zeros(4)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_t5_of_a_blip2(flan: Path, tmp_path: Path) -> None:
    place = as_blip2(flan, tmp_path / "blip2")
    decoder, plain = build(place, trained="none"), build(flan, trained="none", dense_act_fn="gelu")
    assert decoder.report.left_over == (
        "language_projection.bias", "language_projection.weight", "query_tokens", "vision_model.post_layernorm.weight",
    )  # fmt: skip
    assert not decoder.report.new
    plain.project.load_state_dict(decoder.project.state_dict())
    clips, (tokens, mask) = clips_of(), toys.captions()
    assert torch.equal(decoder(clips, tokens, mask), plain(clips, tokens, mask))
    toys.rewrite(place, left_out=["language_model.decoder.block.1.layer.0"])
    with pytest.raises(CheckpointError, match=r"tensors missing .*decoder\.block\.1\.layer\.0"):
        build(place)


def test_sound_alone_has_nothing_of_a_blip2(flan: Path, tmp_path: Path) -> None:
    """The recipe's setting must not stop a run on the features of audio."""
    place = as_blip2(flan, tmp_path / "blip2")
    heard = {name: spec for name, spec in SPECS.items() if spec.modality == "audio"}
    decoder = build(flan, specs=heard, initialise_from=str(place))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    decoder.read_start_values()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


@pytest.mark.parametrize("layout", ["the Hub's", "LAVIS's"])
def test_the_projection_of_a_blip2(flan: Path, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    place = as_blip2(flan, tmp_path / "blip2")
    if layout == "LAVIS's":
        place = tmp_path / "blip2_pretrained_flant5xl.pth"
        held = below("t5_proj", projection()) | {"query_tokens": torch.zeros(1), "Qformer.x": torch.zeros(1)}
        torch.save({"model": held}, place)
    decoder = build(flan, initialise_from=str(place))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    caplog.set_level("INFO")
    decoder.read_start_values()
    changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"project.projections.video.weight", "project.projections.video.bias"}
    for name, value in projection().items():
        assert torch.equal(getattr(decoder.project.of("video"), name), value)
    assert "2 tensors matched" in caplog.text  # all others are new


def test_a_projection_that_does_not_fit(flan: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def refused(held: dict[str, Tensor], fault: str, **config: Any) -> None:
        torch.save({"model": held}, path)
        with pytest.raises(CheckpointError, match=fault):
            build(flan, initialise_from=str(path), **config).read_start_values()

    refused(below("t5_proj", projection(8)), r"2 of another shape: .*video\.weight is \(8, 12\), expected \(16, 12\)")
    refused({"t5_proj.weight": projection()["weight"]}, r"1 missing: project\.projections\.video\.bias")
    refused({"Qformer.x": torch.zeros(1)}, "expected a BLIP-2 .*and found none")
    half = below("t5_proj", projection()) | {"t5_proj_aud.bias": projection()["bias"]}
    refused(half, r"1 missing: project\.projections\.audio\.weight")
    with pytest.raises(MissingWeightsError, match="decoder"):
        build(flan, initialise_from=str(tmp_path / "nowhere.pth")).read_start_values()


# -- the authors' ------------------------------------------------------------------------------------------------------


def release(path: Path, flan: Path, *, rank: int = 8, with_base: bool, **more: Any) -> dict[str, Tensor]:
    """A file as LAVIS's runner writes it for a T5 in peft's wrapper: what learns, or everything, in bfloat16."""
    torch.manual_seed(5)
    whole = build(flan, trained="none").t5
    settings = peft.LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.2, target_modules=["q", "v"])
    wrapped = nn.Module()
    wrapped.t5_model = peft.get_peft_model(whole, settings)
    wrapped.t5_proj, wrapped.t5_proj_aud = nn.Linear(FUSED_WIDTH, WIDTH), nn.Linear(FUSED_WIDTH, WIDTH)
    wrapped.ln_audio = nn.LayerNorm(5)
    toys.alive(nn.ModuleList([wrapped.t5_proj, wrapped.t5_proj_aud]))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    learns = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    state = {
        name: value if name in learns else value.bfloat16()
        for name, value in wrapped.state_dict().items()
        if with_base or name in learns
    }
    torch.save({"model": {**state, **more}, "config": {}, "epoch": 3}, path)
    return state


@pytest.mark.parametrize("with_base", [False, True], ids=["what learns", "everything"])
def test_a_release_gives_the_authors_logits(flan: Path, tmp_path: Path, with_base: bool) -> None:
    path = tmp_path / "MSRVTT_best.pth"
    state = release(path, flan, with_base=with_base)
    assert "t5_model.base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight" in state
    decoder = build(flan, initialise_from=str(path))
    clips, (tokens, mask) = clips_of(), toys.captions()
    before = decoder(clips, tokens, mask)
    decoder.read_start_values()
    found = decoder.double()(replace(clips, data=clips.data.double()), tokens, mask)
    # The matrices with what is added to them, put together by hand.
    merged = build(flan, trained="none").double()
    for name, module in merged.t5.named_modules():
        key = f"t5_model.base_model.model.{name}"
        if f"{key}.lora_A.default.weight" in state:
            up, down = (state[f"{key}.lora_{part}.default.weight"].double() for part in "BA")
            module.weight.data += 2 * up @ down
    for modality, name in (("video", "t5_proj"), ("audio", "t5_proj_aud")):
        merged.project.of(modality).load_state_dict({part: state[f"{name}.{part}"] for part in ("weight", "bias")})
    expected = merged(replace(clips, data=clips.data.double()), tokens, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found - before).abs().max() > 1e-2


def test_what_is_told_of_a_release(flan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "MSRVTT_best.pth"
    release(path, flan, with_base=False)
    decoder = build(flan, {**SPECS, "read": TEXT}, initialise_from=str(path))
    caplog.set_level("INFO")
    decoder.read_start_values()
    assert "decoder: MSRVTT_best.pth: 28 tensors matched, 2 new (project.projections.text.bias" in caplog.text


def test_a_release_that_does_not_fit(flan: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "x.pth", tmp_path / "other"
    release(path, flan, with_base=True)
    other.mkdir()
    t5_model(other, seed=3)

    def refused(fault: str, folder: Path = flan, **config: Any) -> None:
        with pytest.raises(CheckpointError, match=fault):
            build(folder, initialise_from=str(path), **config).read_start_values()

    refused(r"has adapters \(24 tensors\).*expected decoder\.trained=lora, got none", trained="none")
    refused("24 of another shape", lora={"rank": 4})
    refused(r"missing: t5\..*\.k\.lora_A", lora={"targets": "all-linear"})
    refused("belongs to another T5 than decoder.weights", other)
    state = release(path, flan, with_base=False)
    del state["t5_model.base_model.model.decoder.block.1.layer.0.SelfAttention.v.lora_B.default.weight"]
    torch.save({"model": state}, path)
    refused(r"1 missing: t5\.decoder\.block\.1\.layer\.0\.SelfAttention\.v\.lora_B")


def test_the_whole_of_the_authors_head_from_one_file(flan: Path, tmp_path: Path) -> None:
    # Projections may stand in the fusion or in the decoder: the language model reads the same.
    path = tmp_path / "x.pth"
    state = release(path, flan, with_base=False)
    inside = build(flan, initialise_from=str(path), trained="lora")
    inside.read_start_values()
    sizes = {**qformer.PAPER, "width": FUSED_WIDTH, "heads": 2, "feed_forward": 16, "layers": 2}
    torch.manual_seed(0)
    fusion = qformer.Fusion(qformer.Config(**sizes, out_width=WIDTH), SPECS)
    renamed = qformer.from_official({key: value for key, value in state.items() if key.startswith("t5_proj")})
    assert len(renamed) == 4
    fusion.load_state_dict(renamed, strict=False)
    for stream, modality in enumerate(("video", "audio")):
        assert torch.equal(fusion.outputs[stream].weight, inside.project.of(modality).weight)
