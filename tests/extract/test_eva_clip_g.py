"""BLIP-2's image tower against transformers' own, and against LAVIS's formulas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from avpipe.extract.encoders import _device, _frames, eva_clip_g
from avpipe.extract.media import Frames
from avpipe.extract.networks import eva_clip_g as networks
from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, UsageError
from avpipe.pipeline.features import Features

from . import toys, toys_vision

DEEP = {**toys_vision.TINY_EVA, "num_hidden_layers": 39}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys_vision.blip2_folder(tmp_path_factory.mktemp("blip2"))


def make(place: Path | str, **config: Any) -> eva_clip_g.Encoder:
    return eva_clip_g.Encoder(parse(eva_clip_g.Config, {"weights": str(place), **config}, "test"), "v")


def encode(encoder: eva_clip_g.Encoder, video: Frames) -> Features:
    encoder.load("cpu")
    (features,) = encoder.encode([encoder.prepare(toys.clip("v", video=video))])
    return features


def preprocessed(video: Frames, side: int = 28) -> torch.Tensor:
    """Squashed with Pillow, then torchvision's ``ToTensor`` and ``Normalize``."""
    from torchvision import transforms

    last = transforms.Compose([transforms.ToTensor(), transforms.Normalize(_frames.CLIP_MEAN, _frames.CLIP_STD)])
    squashed = (Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC) for frame in video.data)
    return torch.stack([last(frame) for frame in squashed])


def test_preprocessing_squashes_bit_for_bit(folder: Path) -> None:
    video = toys.frames(3, height=70, width=45)
    pixels = torch.from_numpy(make(folder).prepare(toys.clip("v", video=video))["pixels"])
    assert torch.equal(_device.normalise(pixels, _frames.CLIP_MEAN, _frames.CLIP_STD), preprocessed(video))


def test_preprocessing_keeps_the_ratio_if_asked_to(folder: Path) -> None:
    from torchvision import transforms

    video = toys.frames(2, height=70, width=45)
    crop = transforms.Compose([transforms.Resize(28, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(28)])
    pixels = make(folder, resize="shortest").prepare(toys.clip("v", video=video))["pixels"]
    np.testing.assert_array_equal(pixels, np.stack([np.asarray(crop(Image.fromarray(f))) for f in video.data]))


def test_augmented_views_are_cut_out_of_the_squashed_square(folder: Path) -> None:
    from avpipe.extract import images

    encoder = make(folder, views=1, frames=2)
    video = toys.frames(2, height=70, width=45, views=2)
    pixels = encoder.prepare(toys.clip("v", video=video))["pixels"]
    random = np.random.default_rng((0, 1, 1))
    np.testing.assert_array_equal(pixels[2:], images.augment(pixels[:2], (28, 28), random))


def test_the_fingerprint_knows_how_many_heads_there_are(folder: Path, tmp_path: Path) -> None:
    """Which no tensor tells."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    described = json.loads((other / "config.json").read_text(encoding="utf-8"))
    described["vision_config"]["num_attention_heads"] = 1
    (other / "config.json").write_text(json.dumps(described), encoding="utf-8")
    assert make(other).spec.differences(make(folder).spec) == ["preprocessing.heads: 1 against 2"]


@pytest.mark.parametrize("sharded", [True, False])
def test_features_equal_transformers(sharded: bool, tmp_path: Path) -> None:
    place, video = toys_vision.blip2_folder(tmp_path / "blip2", sharded=sharded), toys.frames(3)
    with torch.inference_mode():
        official = toys_vision.blip2_vision()
        seen = preprocessed(video)
        inner = official.embeddings(seen)
        for layer in official.encoder.layers:
            inner = layer(inner)
        official.post_layernorm.eps = 1e-5
        outer = official(seen).last_hidden_state
    np.testing.assert_allclose(encode(make(place), video).data, inner.flatten(0, 1).numpy(), atol=1e-5)
    ours = encode(make(place, norm="ln_vision"), video).data
    np.testing.assert_allclose(ours, outer.flatten(0, 1).numpy(), atol=1e-5)


def lavis_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of transformers' tower under LAVIS's names, written down by hand."""
    state = {
        "cls_token": model.embeddings.class_embedding,
        "pos_embed": model.embeddings.position_embedding,
        "patch_embed.proj.weight": model.embeddings.patch_embedding.weight,
        "patch_embed.proj.bias": model.embeddings.patch_embedding.bias,
    }
    for number, layer in enumerate(model.encoder.layers):
        query, _, value = layer.self_attn.qkv.bias.chunk(3)
        own = {
            "norm1": layer.layer_norm1,
            "norm2": layer.layer_norm2,
            "attn.proj": layer.self_attn.projection,
            "mlp.fc1": layer.mlp.fc1,
            "mlp.fc2": layer.mlp.fc2,
        }
        tensors = {f"{name}.{kind}": getattr(part, kind) for name, part in own.items() for kind in ("weight", "bias")}
        tensors |= {"attn.q_bias": query, "attn.v_bias": value, "attn.qkv.weight": layer.self_attn.qkv.weight}
        state |= {f"blocks.{number}.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def lavis_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor, blocks: int, heads: int) -> torch.Tensor:
    """LAVIS's tower, as its formulas say."""
    at = state.__getitem__
    patches = F.conv2d(pixels, at("patch_embed.proj.weight"), at("patch_embed.proj.bias"), stride=7)
    tokens = patches.flatten(2).transpose(1, 2)
    x = torch.cat([at("cls_token").expand(len(tokens), -1, -1), tokens], dim=1) + at("pos_embed")
    for b in (f"blocks.{number}." for number in range(blocks)):
        h = F.layer_norm(x, x.shape[-1:], at(b + "norm1.weight"), at(b + "norm1.bias"), 1e-6)
        bias = torch.cat([at(b + "attn.q_bias"), torch.zeros_like(at(b + "attn.v_bias")), at(b + "attn.v_bias")])
        qkv = F.linear(h, at(b + "attn.qkv.weight"), bias).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] * qkv.shape[-1] ** -0.5) @ qkv[1].transpose(-2, -1)
        h = (scores.softmax(dim=-1) @ qkv[2]).transpose(1, 2).flatten(2)
        x = x + F.linear(h, at(b + "attn.proj.weight"), at(b + "attn.proj.bias"))
        h = F.layer_norm(x, x.shape[-1:], at(b + "norm2.weight"), at(b + "norm2.bias"), 1e-6)
        h = F.gelu(F.linear(h, at(b + "mlp.fc1.weight"), at(b + "mlp.fc1.bias")))
        x = x + F.linear(h, at(b + "mlp.fc2.weight"), at(b + "mlp.fc2.bias"))
    return x


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """All 40 blocks of an EVA-CLIP under LAVIS's names, but narrow; the encoder takes the tower to be so narrow."""
    monkeypatch.setattr(eva_clip_g, "GIANT", DEEP)
    state = lavis_state(toys_vision.blip2_vision(num_hidden_layers=40))
    return {**state, "norm.weight": torch.ones(24), "norm.bias": torch.ones(24), "head.weight": torch.ones(3, 24)}


def test_eva_vit_g_is_used_without_its_last_block(deep: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(deep, tmp_path / "eva_vit_g.pth")
    video = toys.frames(2)
    encoder = make(tmp_path / "eva_vit_g.pth")
    ours = encode(encoder, video).data.reshape(2, 17, 24)
    theirs = lavis_forward(deep, preprocessed(video), blocks=39, heads=2)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)  # values reach 20 after 39 blocks
    assert np.abs(ours - lavis_forward(deep, preprocessed(video), blocks=40, heads=2).numpy()).max() > 0.1
    assert encoder.spec.weights == {"id": "eva_vit_g.pth", "sha256": weights.sha256_of(tmp_path / "eva_vit_g.pth")}


def whole(deep: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A BLIP-2 of LAVIS: the tower has 39 blocks, other parts lie beside it."""
    tower = {
        f"visual_encoder.{name}": value
        for name, value in deep.items()
        if not name.startswith(("blocks.39", "norm", "head"))
    }
    norm = {"ln_vision.weight": torch.linspace(0.5, 1.5, 24), "ln_vision.bias": torch.linspace(-1, 1, 24)}
    return {**tower, **norm, "query_tokens": torch.zeros(1, 2, 8), "Qformer.bert.x": torch.zeros(3)}


def test_a_whole_blip2_of_lavis_is_read(deep: dict[str, torch.Tensor], tmp_path: Path) -> None:
    every = whole(deep)
    torch.save({"model": every, "epoch": 3}, tmp_path / "best.pth")
    video = toys.frames(1)
    theirs = lavis_forward(deep, preprocessed(video), blocks=39, heads=2)
    np.testing.assert_allclose(encode(make(tmp_path / "best.pth"), video).data, theirs[0].numpy(), rtol=1e-4, atol=1e-4)
    normed = F.layer_norm(theirs[0], (24,), every["ln_vision.weight"], every["ln_vision.bias"], 1e-5)
    ours = encode(make(tmp_path / "best.pth", norm="ln_vision"), video).data
    np.testing.assert_allclose(ours, normed.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.38.attn.proj.bias": None}, r"1 missing: encoder\.layers\.38\.self_attn\.projection\.bias"),
        (
            {"blocks.3.attn.v_bias": None},
            r"1 missing: .*3\.self_attn\.qkv\.bias; 1 left over: blocks\.3\.attn\.q_bias",
        ),
        ({"blocks.39.norm1.bias": torch.ones(24)}, r"1 left over: encoder\.layers\.39\.layer_norm1\.bias"),
        ({"rope.freqs": torch.ones(2)}, r"1 left over: rope\.freqs"),
        ({"pos_embed": torch.ones(1, 26, 24)}, r"position_embedding is \(1, 26, 24\), expected \(1, 17, 24\)"),
    ],
)
def test_load_fails_on_a_file_that_does_not_fit(
    change: dict[str, Any], message: str, deep: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = {**whole(deep), **{f"visual_encoder.{name}": value for name, value in change.items()}}
    state = {name: value for name, value in changed.items() if value is not None}
    torch.save({"model": state}, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match=rf"(?s)best\.pth does not fit the network.*{message}"):
        make(tmp_path / "best.pth").load("cpu")


def test_load_fails_where_there_is_no_ln_vision(deep: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(deep, tmp_path / "eva_vit_g.pth")
    with pytest.raises(CheckpointError, match=r"holds no ln_vision.*Write norm=none.*Salesforce/blip2-flan-t5-xl"):
        make(tmp_path / "eva_vit_g.pth", norm="ln_vision").load("cpu")


def test_load_fails_on_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"expected an EVA-CLIP .*got conv1\.weight"):
        make(tmp_path / "resnet.pth").load("cpu")


def test_only_files_with_the_tower_are_wanted(tmp_path: Path) -> None:
    place = toys_vision.blip2_folder(tmp_path / "blip2")
    (place / "model-00003-of-00003.safetensors").unlink()
    encoder = make(place)
    assert [file.name[:11] for file in encoder.source.files] == ["model-00001", "model-00002"]
    before = encoder.spec.fingerprint
    file = place / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes() + b"\n")
    assert make(place).spec.fingerprint != before
    file.unlink()
    with pytest.raises(MissingWeightsError, match=r"holds no model-00002-of-00003\.safetensors"):
        make(place)


def test_shards_of_the_hub_come_from_one_commit(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--blip2" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "model-00003-of-00003.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    encoder = make("org/blip2")
    assert encoder.spec.weights == {**make(folder).spec.weights, "id": "org/blip2"}
    assert {file.parent for file in encoder.source.files} == {snapshot}
    (snapshot / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"(?s)org/blip2@c0ffee'.*hf download org/blip2") as missing:
        make("org/blip2")
    assert "model-00001-of-00003.safetensors is not in the Hub's cache" in str(missing.value)


def test_load_fails_on_a_folder_without_a_tensor(tmp_path: Path) -> None:
    gone = "vision_model.encoder.layers.1.mlp.fc2.bias"
    encoder = make(toys_vision.blip2_folder(tmp_path / "blip2", leave_out=gone))
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.layers\.1\.mlp\.fc2\.bias"):
        encoder.load("cpu")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"text_config": {}}, "no configuration of a BLIP-2 .*vision_config"),
        ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}, "not BLIP-2's ViT-g: hidden_act quick_gelu"),
        ("model.safetensors.index.json", {"metadata": {}}, "no index of weight files .*weight_map"),
        (
            "model.safetensors.index.json",
            {"weight_map": {"a.b": "x"}},
            r"names no tensor vision_model\.\*.*first are a\.b",
        ),
    ],
)
def test_a_folder_that_says_something_else_fails(
    file: str, content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    place = toys_vision.blip2_folder(tmp_path / "blip2")
    (place / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        make(place)


def test_missing_weights_say_how_to_get_them() -> None:
    with pytest.raises(MissingWeightsError, match="hf download Salesforce/blip2-flan-t5-xl"):
        make("Salesforce/blip2-flan-t5-xl")
    with pytest.raises(MissingWeightsError, match=r"there is no file /nowhere/eva_vit_g\.pth"):
        make("/nowhere/eva_vit_g.pth")


@pytest.mark.parametrize(("tokens", "rows"), [("all", 257), ("cls", 1), ("mean", 1), ("grid:4", 16)])
def test_spec_at_full_size(tokens: str, rows: int) -> None:
    spec = make("random", tokens=tokens).spec
    assert (spec.dim, spec.clock["rows_per_frame"], spec.clock["sampling"]) == (1408, rows, "span_starts")
    assert spec.clock["frames"] == 16
    assert spec.preprocessing["resize_mode"] == "squash"


def test_rows_are_those_of_the_policy(folder: Path) -> None:
    video = toys.frames(2)
    every = encode(make(folder), video).data.reshape(2, 17, 24)
    np.testing.assert_allclose(encode(make(folder, tokens="cls"), video).data, every[:, 0], atol=1e-5)
    np.testing.assert_allclose(encode(make(folder, tokens="mean"), video).data, every[:, 1:].mean(axis=1), atol=1e-5)
    quarters = every[:, 1:].reshape(2, 2, 2, 2, 2, 24).mean(axis=(2, 4)).reshape(8, 24)
    np.testing.assert_allclose(encode(make(folder, tokens="grid:2"), video).data, quarters, atol=1e-5)
    with pytest.raises(UsageError, match="expected grid:k with k <= 4 for this model, got grid:5"):
        make(folder, tokens="grid:5")
    with pytest.raises(ConfigError, match=r"tokens: .*got 'embedding'"):
        make(folder, tokens="embedding")


def test_random_weights_tell_frames_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eva_clip_g, "GIANT", toys_vision.TINY_EVA)
    video = toys.frames(2)
    one, same, other = (encode(make(f"random:{seed}"), video).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one[:17] - one[17:]).max() > 0.01


def full_size() -> networks.EvaClipG:
    with torch.device("meta"):
        return networks.EvaClipG(eva_clip_g.GIANT, final_norm=True)


def test_the_full_network_is_that_of_lavis() -> None:
    network = full_size()
    count = sum(tensor.numel() for name, tensor in network.state_dict().items() if "post_layernorm" not in name)
    assert count - 39 * 1408 == 985894528  # without the key biases, which LAVIS does not store
    norms = {name: module.eps for name, module in network.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms.pop("post_layernorm") == 1e-5
    assert len(norms) == 78
    assert set(norms.values()) == {1e-6}


@pytest.mark.shared
def test_the_full_network_has_the_names_and_shapes_of_lavis(shared: Path) -> None:
    path = shared / "golden_heads" / "layouts" / "blip2_lavis_vision_t5_to_hf.json"
    listed = json.loads(path.read_text())["vision"]
    names = {name.removeprefix("visual_encoder."): about for name, about in listed.items()}
    state = {name: torch.empty(about["shape"], device="meta") for name, about in names.items()}
    for about in names.values():
        assert about["hf"].startswith("vision_model.")
    renamed = networks.from_lavis(state)
    assert {f"vision_model.{name}" for name in renamed} == {about["hf"] for about in names.values()}
    one = {name: networks.from_lavis({name: state[name]}) for name in names if not name.endswith("_bias")}
    for name, only in one.items():
        assert [f"vision_model.{other}" for other in only] == [names[name]["hf"]]
    own = {name: value.shape for name, value in full_size().state_dict().items() if "post_layernorm" not in name}
    assert {name: value.shape for name, value in renamed.items()} == own


def test_biases_go_where_lavis_puts_them() -> None:
    state = {"blocks.7.attn.q_bias": torch.ones(2), "blocks.7.attn.v_bias": torch.full((2,), 3.0)}
    ((name, bias),) = networks.from_lavis(state).items()
    assert name == "encoder.layers.7.self_attn.qkv.bias"
    assert bias.tolist() == [1, 1, 0, 0, 3, 3]


def test_reading_a_part_fails_on_what_is_no_weight_file(tmp_path: Path) -> None:
    place = toys_vision.blip2_folder(tmp_path / "blip2", sharded=False)
    (place / "model.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as a weight file"):
        make(place).load("cpu")
    (place / "model.safetensors").unlink()
    torch.save({"vision_model.x": torch.ones(1), "y": torch.ones(1)}, place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin does not fit the network .*1 left over: x"):
        make(place).load("cpu")
    assert set(checkpoints.read(place / "pytorch_model.bin")) == {"vision_model.x", "y"}


def test_compile_takes_hold_of_the_whole_tower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, video = toys_vision.caught_graphs(monkeypatch), toys.frames(2)
    plain = encode(make(folder, tokens="grid:2", norm="ln_vision"), video).data
    compiled = encode(make(folder, tokens="grid:2", norm="ln_vision", compile=True), video).data
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    assert len(graphs) == 1, "nothing breaks it in two"
    assert toys_vision.calls_in(graphs, "adaptive_avg_pool2d") == 1
    assert toys_vision.calls_in(graphs, "attention") >= 2
