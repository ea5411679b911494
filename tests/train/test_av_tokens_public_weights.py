"""AVCap from public files: CAV-MAE's joint layers, GIT's projection and decoder, in every layout; made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.decoders import git
from avpipe.train.fusions import av_tokens

WIDTH, WORDS = 16, 29
SPECS = {
    "sound": FeatureSpec(name="sound", encoder="toy", modality="audio", dim=WIDTH),
    "sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=WIDTH),
}


def fusion(**config: Any) -> av_tokens.Fusion:
    torch.manual_seed(1)
    return av_tokens.Fusion(av_tokens.Config(width=WIDTH, heads=2, layers=2, out_width=WIDTH, **config), SPECS)


def decoder(fused_width: int = WIDTH, words: int = WORDS, **config: Any) -> git.Decoder:
    torch.manual_seed(2)
    sizes = {"width": WIDTH, "layers": 2, "heads": 2, "feed_forward": 24, "positions": 12}
    return git.Decoder(git.Config(**{**sizes, **config}), fused_width=fused_width, vocabulary_size=words)


def cav_mae() -> dict[str, Tensor]:
    """Of another seed, with what the pre-trained file has beside."""
    torch.manual_seed(7)
    other = av_tokens.Fusion(av_tokens.Config(width=WIDTH, heads=2, layers=2, out_width=WIDTH), SPECS).state_dict()
    joint = {name.removeprefix("joint."): torch.randn_like(t) for name, t in other.items() if name.startswith("joint.")}
    return {**joint, "decoder_embed.weight": torch.zeros(2), "patch_embed_a.proj.bias": torch.zeros(2)}


def git_official(projection_width: int = WIDTH) -> dict[str, Tensor]:
    """As ``model_git_base.pt`` names them, below ``textual.``."""
    torch.manual_seed(8)

    def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(out, into), f"{name}.bias": torch.randn(out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(WIDTH), f"{name}.bias": torch.randn(WIDTH)}

    words = torch.randn(WORDS, WIDTH)
    found = {
        "embedding.words.weight": words,
        "embedding.positions.weight": torch.randn(12, WIDTH),
        **norm("embedding.layer_norm"),
        "output.weight": words.clone(),
        "output.bias": torch.randn(WORDS),
        **linear("visual_projection.0", WIDTH, projection_width),
        **norm("visual_projection.1"),
    }
    for index in range(2):
        layer = f"transformer.encoder.layer.{index}"
        for part in ("query", "key", "value"):
            found |= linear(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        found |= linear(f"{layer}.attention.output.dense", WIDTH, WIDTH) | norm(f"{layer}.attention.output.LayerNorm")
        found |= linear(f"{layer}.intermediate.dense", 24, WIDTH) | linear(f"{layer}.output.dense", WIDTH, 24)
        found |= norm(f"{layer}.output.LayerNorm")
    return found


def as_original(folder: Path) -> str:
    """``model_git_base.pt``: below ``model``, everything called ``module.``, with an image encoder."""
    state = {f"module.textual.{name}": tensor for name, tensor in git_official().items()}
    path = folder / "model_git_base.pt"
    torch.save({"model": {**state, "module.image_encoder.proj": torch.zeros(3)}}, path)
    return str(path)


def as_on_the_hub(folder: Path) -> str:
    """A folder as ``microsoft/git-base``."""
    names = {
        "embedding.words.": "git.embeddings.word_embeddings.",
        "embedding.positions.": "git.embeddings.position_embeddings.",
        "embedding.layer_norm.": "git.embeddings.LayerNorm.",
        "transformer.encoder.": "git.encoder.",
        "visual_projection.": "git.visual_projection.visual_projection.",
    }
    state = {"git.image_encoder.vision_model.x": torch.zeros(2)}
    for name, tensor in git_official().items():
        start = next((official for official in names if name.startswith(official)), None)
        state[name.replace(start, names[start]) if start else name] = tensor
    place = folder / "git-base"
    place.mkdir()
    save_file(state, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "git"}))
    return str(place)


LAYOUTS = {"original": as_original, "hub": as_on_the_hub}


def cav_mae_file(folder: Path) -> str:
    path = folder / "cav-mae-scale++.pth"
    torch.save({f"module.{name}": tensor for name, tensor in cav_mae().items()}, path)
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joint_layers_of_cav_mae_and_projection_and_decoder_of_git(tmp_path: Path, layout: str) -> None:
    place = LAYOUTS[layout](tmp_path)
    made = fusion(initialise_from=cav_mae_file(tmp_path), initialise_projection_from=place)
    made.read_start_values()
    for name, tensor in cav_mae().items():
        if f"joint.{name}" in made.state_dict():
            assert torch.equal(made.state_dict()[f"joint.{name}"], tensor), name
    assert torch.equal(made.projection[0].weight, git_official()["visual_projection.0.weight"])
    speaks = decoder(initialise_from=place)
    speaks.read_start_values()
    assert torch.equal(speaks.tokens.weight, git_official()["embedding.words.weight"])
    three = [
        git_official()[f"transformer.encoder.layer.1.attention.self.{part}.bias"] for part in ("query", "key", "value")
    ]
    assert torch.equal(speaks.layers[1].query_key_value.bias, torch.cat(three))


def test_without_gits_projection_it_is_new_as_by_the_authors_mistake(tmp_path: Path) -> None:
    made = fusion(initialise_from=cav_mae_file(tmp_path))
    before = made.projection[0].weight.clone()
    made.read_start_values()
    assert torch.equal(made.projection[0].weight, before)
    assert torch.equal(made.joint.blocks_u[0].attn.qkv.weight, cav_mae()["blocks_u.0.attn.qkv.weight"])


def test_avcaps_file_has_both(tmp_path: Path) -> None:
    state = {f"av_encoder.{name}": tensor for name, tensor in cav_mae().items()}
    state |= {f"textual.{name}".replace("visual_", "av_"): tensor for name, tensor in git_official().items()}
    path = tmp_path / "avcap.pth"
    torch.save(state, path)
    made, speaks = fusion(initialise_from=str(path)), decoder(initialise_from=str(path))
    made.read_start_values()
    speaks.read_start_values()
    assert torch.equal(made.projection[1].bias, git_official()["visual_projection.1.bias"])
    assert torch.equal(speaks.out_bias, git_official()["output.bias"])


def test_a_decoder_with_a_projection_reads_it_where_it_fits(tmp_path: Path) -> None:
    """GIT-large's is 1024 wide: it is left out, the decoder is read."""
    place = as_original(tmp_path)
    fits, wide = decoder(projection="always", initialise_from=place), decoder(fused_width=20, initialise_from=place)
    fits.read_start_values()
    assert torch.equal(fits.projection[0].weight, git_official()["visual_projection.0.weight"])
    before = wide.projection[0].weight.clone()
    wide.read_start_values()
    assert torch.equal(wide.projection[0].weight, before)
    assert torch.equal(wide.tokens.weight, git_official()["embedding.words.weight"])


def test_a_report_tells_what_came_from_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="avpipe"):
        decoder(initialise_from=as_original(tmp_path)).read_start_values()
        fusion(initialise_from=cav_mae_file(tmp_path)).read_start_values()
    assert "git: model_git_base.pt: 29 tensors matched, 0 new, 1 left over (image_encoder.proj)" in caplog.text
    assert "4 new (projection.0.bias, projection.0.weight, projection.1.bias, ...)" in caplog.text


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    place, joint = as_original(tmp_path), cav_mae_file(tmp_path)
    with pytest.raises(UsageError, match=r"has 29 words, the tokenizer has 31: .* Try tokenizer.name=google-bert/"):
        decoder(words=31, initialise_from=place).read_start_values()
    with pytest.raises(CheckpointError, match=r"missing: layers\.2"):
        decoder(layers=3, initialise_from=place).read_start_values()
    with pytest.raises(CheckpointError, match=r"expected joint layers \(blocks_u"):
        fusion(initialise_from=place).read_start_values()
    with pytest.raises(CheckpointError, match="expected GIT's text decoder"):
        decoder(initialise_from=joint).read_start_values()
    with pytest.raises(MissingWeightsError, match="initialise_from"):
        fusion(initialise_from=str(tmp_path / "nothing.pth")).read_start_values()
