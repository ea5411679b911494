"""Image towers against open_clip's own use of them, on models so small that they are made on the spot."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avpipe.extract.encoders import _device, _frames, _open_clip, clip_vit
from avpipe.extract.media import FrameRequest, Frames
from avpipe.pipeline import weights
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import (
    CheckpointError,
    ConfigError,
    MissingWeightsError,
    UnknownNameError,
    UsageError,
)
from avpipe.pipeline.features import Features

from . import toys, toys_vision

TINY, TIMM, CNN, COCA = "tiny-ViT", "tiny-timm", "tiny-RN", "tiny-coca"


@pytest.fixture(scope="module", autouse=True)
def _models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    toys.open_clip_model(folder, TINY, toys.TINY_CLIP)
    toys.open_clip_model(folder, TIMM, toys.TINY_TIMM)
    toys.open_clip_model(folder, CNN, toys.TINY_CNN)
    vision = {**toys.TINY_CLIP["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    toys.open_clip_model(folder, COCA, {**toys.TINY_CLIP, "vision_cfg": vision})


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(**config: Any) -> clip_vit.Encoder:
    return clip_vit.Encoder(parse(clip_vit.Config, {"model": TINY, "weights": "random:1", **config}, "test"), "v")


def encode(encoder: clip_vit.Encoder, video: Frames) -> Features:
    encoder.load("cpu")
    (features,) = encoder.encode([encoder.prepare(toys.clip("v", video=video))])
    return features


def official(model: str) -> tuple[Any, Any]:
    """A whole CLIP of open_clip's with weights away from their initial values, and its preprocessing."""
    import open_clip

    torch.manual_seed(5)
    network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=None, load_weights=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval(), preprocess


def preprocessed(preprocess: Any, video: Frames) -> torch.Tensor:
    from PIL import Image

    return torch.stack([preprocess(Image.fromarray(frame)) for frame in video.data])


def saved(network: Any, path: Path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


def test_preprocessing_equals_open_clip_bit_for_bit() -> None:
    _, preprocess = official(TINY)
    encoder, video = make(), toys.frames(3, height=70, width=45)
    how = encoder.tower.preprocessing
    pixels = torch.from_numpy(encoder.prepare(toys.clip("v", video=video))["pixels"])
    assert torch.equal(_device.normalise(pixels, how.mean, how.std), preprocessed(preprocess, video))


@pytest.mark.parametrize("model", [TINY, TIMM, CNN])
def test_embedding_equals_open_clip(model: str, tmp_path: Path) -> None:
    network, preprocess = official(model)
    video = toys.frames(3)
    ours = encode(make(model=model, weights=saved(network, tmp_path / "model.pt"), tokens="embedding"), video)
    with torch.inference_mode():
        theirs = network.encode_image(preprocessed(preprocess, video))
    np.testing.assert_allclose(ours.data, theirs.numpy(), atol=2e-6)


def test_tokens_equal_open_clip(tmp_path: Path) -> None:
    network, preprocess = official(TINY)
    path, video = saved(network, tmp_path / "model.pt"), toys.frames(2)
    network.visual.output_tokens = True
    with torch.inference_mode():
        embedding, patches = network.visual(preprocessed(preprocess, video))  # (2, 24), (2, 16, 48)
    every = encode(make(weights=path), video).data.reshape(2, 17, 48)
    np.testing.assert_allclose(every[:, 1:], patches.numpy(), atol=2e-6)
    cls = encode(make(weights=path, tokens="cls"), video).data
    np.testing.assert_allclose(cls, every[:, 0], atol=2e-6)
    np.testing.assert_allclose(cls @ network.visual.proj.detach().numpy(), embedding.numpy(), atol=2e-6)


def test_tokens_of_a_timm_tower_equal_timm(tmp_path: Path) -> None:
    network, preprocess = official(TIMM)
    path, video = saved(network, tmp_path / "model.pt"), toys.frames(2)
    with torch.inference_mode():
        theirs = network.visual.trunk.forward_features(preprocessed(preprocess, video))
    every = encode(make(model=TIMM, weights=path), video).data
    np.testing.assert_allclose(every, theirs.flatten(0, 1).numpy(), atol=2e-6)
    cls = encode(make(model=TIMM, weights=path, tokens="cls"), video).data
    np.testing.assert_allclose(cls, theirs[:, 0].numpy(), atol=2e-6)


def test_rows_are_frame_major_and_keep_their_time() -> None:
    features = encode(make(frames=3), toys.frames(3))
    assert features.data.shape == (3 * 17, 48)
    np.testing.assert_array_equal(features.pts_seconds, np.repeat([0.0, 4 / 3, 8 / 3], 17))
    second = Frames(data=toys.frames(3).data[1:2], pts_seconds=np.zeros(1))
    np.testing.assert_allclose(features.data[17:34], encode(make(), second).data, atol=2e-6)


def test_pooled_tokens_are_averages_of_patches() -> None:
    video = toys.frames(2)
    patches = encode(make(), video).data.reshape(2, 17, 48)[:, 1:].reshape(2, 4, 4, 48)
    np.testing.assert_allclose(encode(make(tokens="mean"), video).data, patches.mean(axis=(1, 2)), atol=2e-6)
    quarters = patches.reshape(2, 2, 2, 2, 2, 48).mean(axis=(2, 4)).reshape(8, 48)
    np.testing.assert_allclose(encode(make(tokens="grid:2"), video).data, quarters, atol=2e-6)
    np.testing.assert_allclose(encode(make(tokens="grid:4"), video).data, patches.reshape(32, 48), atol=2e-6)


@pytest.mark.parametrize(
    ("model", "tokens", "rows", "dim"),
    [
        (TINY, "all", 17, 48),
        (TINY, "cls", 1, 48),
        (TINY, "embedding", 1, 24),
        (TIMM, "all", 101, 64),
        (TIMM, "grid:3", 9, 64),
        (CNN, "embedding", 1, 24),
        (CNN, "all", 4, 512),
        (COCA, "embedding", 1, 24),
        (COCA, "cls", 1, 24),
        ("PE-Core-bigG-14-448", "all", 1024, 1536),
        ("convnext_base", "all", 49, 1024),
        ("convnext_base", "cls", 1, 1024),
        ("ViT-B-16", "all", 197, 768),
        ("ViT-B-16", "embedding", 1, 512),
        ("ViT-B-16-SigLIP2", "all", 196, 768),
        ("EVA02-B-16", "all", 197, 768),
        ("EVA02-B-16", "cls", 1, 768),
    ],
)
def test_spec_knows_rows_and_dim_before_any_weight_is_read(model: str, tokens: str, rows: int, dim: int) -> None:
    spec = make(model=model, tokens=tokens).spec
    assert (spec.clock["rows_per_frame"], spec.dim) == (rows, dim)


@pytest.mark.parametrize(
    ("model", "tokens", "message"),
    [
        (COCA, "all", "pools with queries of its own .* all is not to be had. Use tokens=embedding"),
        (COCA, "mean", "pools with queries of its own .* mean is not to be had"),
        (CNN, "cls", "tiny-RN pools and projects in one layer: it has no 'cls'"),
        (TINY, "grid:5", "expected grid:k with k <= 4 for this model, got grid:5"),
    ],
)
def test_spec_fails_on_tokens_that_the_model_does_not_have(model: str, tokens: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(model=model, tokens=tokens)


@pytest.mark.parametrize("tokens", ["grid:0", "grid", "patches"])
def test_config_fails_on_unknown_tokens(tokens: str) -> None:
    with pytest.raises(ConfigError, match=f"tokens: .*got '{tokens}'"):
        make(tokens=tokens)


def test_fingerprint_follows_model_tokens_and_seed() -> None:
    specs = [make(), make(model=TIMM), make(tokens="mean"), make(weights="random:2")]
    assert len({spec.spec.fingerprint for spec in specs}) == 4
    assert make(batch_size=3).spec.fingerprint == specs[0].spec.fingerprint


def test_random_weights_are_seeded_and_shouted_about(caplog: pytest.LogCaptureFixture) -> None:
    video, state = toys.frames(1), torch.get_rng_state()
    one, same, other = (encode(make(weights=f"random:{seed}"), video).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert "v: RANDOM WEIGHTS, as asked for (weights=random:2)" in caplog.text
    assert make(weights="random").spec.weights == {"id": "random", "sha256": "random:0"}


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every repository has every file; the list says which were asked for."""
    asked = []
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")

    def resolve(repository: str, parts: dict[str, Any], *, component: str) -> weights.WeightFiles:
        asked.append(repository)
        return weights.WeightFiles(id=repository, files=dict.fromkeys(parts, file))

    monkeypatch.setattr(weights, "resolve", resolve)
    return asked


@pytest.mark.parametrize(
    ("model", "tag", "repository", "quick_gelu", "mean", "mode"),
    [
        ("ViT-B-16", "openai", "timm/vit_base_patch16_clip_224.openai", True, 0.48145466, "shortest"),
        ("ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", False, 0.48145466, "shortest"),
        ("ViT-L-14", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", False, 0.5, "shortest"),
        ("ViT-H-14", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14", True, 0.48145466, "squash"),
        ("ViT-B-16-SigLIP2", "webli", "timm/ViT-B-16-SigLIP2", False, 0.5, "squash"),
    ],
)
def test_tag_brings_its_activation_and_preprocessing(
    model: str, tag: str, repository: str, quick_gelu: bool, mean: float, mode: str, on_the_hub: list[str]
) -> None:
    tower = _open_clip.find(model, tag, "v")
    assert on_the_hub == [repository]
    assert tower.quick_gelu is quick_gelu
    assert (tower.preprocessing.mean[0], tower.preprocessing.resize_mode) == (mean, mode)
    assert tower.weights["id"] == f"{model}/{tag}"


def test_activation_is_built_as_the_tower_says() -> None:
    from dataclasses import replace

    tower = make().tower
    video = torch.zeros(1, 3, 32, 32)
    plain, quick = (_open_clip.load(replace(tower, quick_gelu=quick), "all") for quick in (False, True))
    with torch.inference_mode():
        difference = plain(video) - quick(video)
    assert difference.abs().max() > 1e-3


def folder_of(tmp_path: Path, described: dict[str, Any]) -> Path:
    """A repository as open_clip writes them, on disk."""
    from safetensors.torch import save_file

    network, _ = official(TINY)
    folder = tmp_path / "described"
    folder.mkdir()
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def test_the_fingerprint_knows_what_no_tensor_tells(tmp_path: Path) -> None:
    vision = toys.TINY_CLIP["vision_cfg"]
    specs = []
    for name, changed in (("one", {}), ("other", {"head_width": vision.get("head_width", 64) // 2})):
        (tmp_path / name).mkdir()
        folder = folder_of(tmp_path / name, {"model_cfg": {**toys.TINY_CLIP, "vision_cfg": {**vision, **changed}}})
        specs.append(make(model=None, weights=str(folder), tokens="embedding").spec)
    (difference,) = specs[0].differences(specs[1])
    assert difference.startswith("preprocessing.network: ")


def test_a_folder_says_itself_what_it_is(tmp_path: Path) -> None:
    facts = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash", "interpolation": "bilinear"}
    model = {**toys.TINY_CLIP, "quick_gelu": True}
    folder = folder_of(tmp_path, {"model_cfg": model, "preprocess_cfg": facts})
    encoder = make(model=None, weights=str(folder), tokens="embedding")
    assert encoder.spec.config["model"] is None
    assert encoder.spec.weights["id"] == "described"
    network = encoder.spec.preprocessing["network"]
    constants = {**facts, "size": [32, 32], "fill_color": 0, "quick_gelu": True}
    assert encoder.spec.preprocessing == {**constants, "network": network}

    import open_clip

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    video = toys.frames(2)
    with torch.inference_mode():
        theirs = network.eval().encode_image(preprocessed(preprocess, video))
    np.testing.assert_allclose(encode(encoder, video).data, theirs.numpy(), atol=2e-6)
    assert make(weights=str(folder)).spec.dim == 48  # the same model by its name


def test_a_folder_fails_beside_the_name_of_another_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"model_cfg": toys.TINY_CLIP})
    with pytest.raises(UsageError, match=rf"holds another model than {TIMM}: .*Write v\.model=null"):
        make(model=TIMM, weights=str(folder))


def test_a_folder_fails_without_a_model_in_its_configuration(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"preprocess_cfg": {}})
    with pytest.raises(CheckpointError, match=r"no configuration of an open_clip model.*model_cfg"):
        make(weights=str(folder))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_openai_archive_is_read_and_means_quick_gelu(tmp_path: Path) -> None:
    network, _ = official(TINY)
    path = tmp_path / "ViT-tiny.pt"
    torch.jit.script(network).save(str(path))
    encoder = make(weights=str(path), tokens="embedding")
    assert encoder.spec.preprocessing["quick_gelu"] is True
    assert encoder.spec.weights == {"id": "ViT-tiny.pt", "sha256": weights.sha256_of(path)}
    encoder.load("cpu")
    plain = make(weights=saved(network, tmp_path / "plain.pt"), tokens="embedding")
    assert plain.spec.preprocessing["quick_gelu"] is False
    plain.load("cpu")
    for (name, one), other in zip(
        encoder._network.state_dict().items(), plain._network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_file_of_a_model_with_both_activations_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    with caplog.at_level(logging.WARNING):
        make(model="ViT-B-16", weights=str(path))
    assert "write v.model=ViT-B-16-quickgelu" in caplog.text
    caplog.clear()
    assert make(model="ViT-B-16-quickgelu", weights=str(path)).spec.preprocessing["quick_gelu"] is True
    assert caplog.text == ""


def test_a_file_fails_where_preprocessing_cannot_be_known(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"weights of ViT-H-14 come with different preprocessing, and w\.pt"):
        make(model="ViT-H-14", weights=str(path))


def test_load_fails_on_a_file_that_does_not_fit(tmp_path: Path) -> None:
    network, _ = official(TINY)
    state = network.state_dict()
    del state["visual.ln_post.weight"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"(?s)short\.pt does not fit tiny-ViT.*ln_post\.weight"):
        make(weights=str(tmp_path / "short.pt")).load("cpu")


def test_load_fails_on_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: holds no tensor visual\."):
        make(weights=str(tmp_path / "other.pt")).load("cpu")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read as weights"):
            make(weights=str(tmp_path / name)).load("cpu")


def test_unknown_names_fail() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown open_clip model 'ViT-B-61' \(did you mean 'ViT-B-16'\?\)"):
        make(model="ViT-B-61")
    with pytest.raises(UnknownNameError, match="unknown open_clip model 'hf-hub:org/name'"):
        make(model="hf-hub:org/name")
    with pytest.raises(UsageError, match="ViT-B-16 has no pretrained tag 'open_ai'; it has: openai, laion400m_e31"):
        make(model="ViT-B-16", weights="open_ai")
    with pytest.raises(MissingWeightsError, match=r"there is no file /nowhere/w\.pt"):
        make(weights="/nowhere/w.pt")


def test_a_tag_is_a_tag_though_a_folder_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingWeightsError, match=r"timm/vit_base_patch16_clip_224\.openai"):
        make(model="ViT-B-16", weights="openai")
    with pytest.raises(MissingWeightsError, match=r"the folder holds no open_clip_config\.json"):
        make(model="ViT-B-16", weights="./openai")


def test_missing_tag_says_how_to_get_it() -> None:
    with pytest.raises(MissingWeightsError) as missing:
        make(model="ViT-B-16", weights="openai")
    message = str(missing.value)
    assert "hf download timm/vit_base_patch16_clip_224.openai" in message
    assert "v.weights=/path/to/folder" in message


def test_encode_fails_before_load() -> None:
    encoder = make()
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(toys.clip("v", video=toys.frames(1)))])


def test_many_frames_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, video = make(tokens="cls"), toys.frames(7)
    whole = encode(encoder, video).data
    monkeypatch.setattr(_frames, "FRAMES_AT_ONCE", 3)
    np.testing.assert_allclose(encode(encoder, video).data, whole, atol=2e-6)


def test_the_cpu_computes_in_float32() -> None:
    with _device.mixed_precision("cpu", "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("float32", 5e-3)])
def test_a_gpu_gives_what_the_cpu_gives(precision: str, tolerance: float) -> None:
    encoder, video = make(precision=precision), toys.frames(3)
    on_cpu = encode(encoder, video).data
    encoder.load("cuda:0")
    (on_gpu,) = encoder.encode([encoder.prepare(toys.clip("v", video=video))])
    np.testing.assert_allclose(on_gpu.data, on_cpu, atol=tolerance)


def test_frames_are_asked_for_as_configured() -> None:
    request = make(frames=5, sampling="linspace", views=2, view_sampling="headtail").request
    assert request == FrameRequest(sampling="linspace", count=5, views=2, view_sampling="headtail")
    with pytest.raises(ConfigError, match=r"sampling: .*expected one of uniform, .*got 'uniformly'"):
        make(sampling="uniformly")
    with pytest.raises(ConfigError, match=r"views: .*greater than or equal to 0.*-1"):
        make(views=-1)


@pytest.mark.parametrize("tokens", ["all", "cls"])
def test_compile_takes_hold_of_what_is_computed(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = toys_vision.caught_graphs(monkeypatch)
    video = toys.frames(2)
    plain = encode(make(tokens=tokens), video).data
    assert graphs == []
    np.testing.assert_allclose(encode(make(tokens=tokens, compile=True), video).data, plain, atol=2e-6)
    assert toys_vision.calls_in(graphs, "layer_norm") >= 5, "two blocks with two norms each, and the last one"
    assert toys_vision.calls_in(graphs, "attention") >= 2


def test_siglip2_is_one_of_the_models(on_the_hub: list[str]) -> None:
    spec = make(model="ViT-B-16-SigLIP2-256", weights="webli", tokens="mean").spec
    assert on_the_hub == ["timm/ViT-B-16-SigLIP2-256"]
    assert (spec.dim, spec.preprocessing["size"], spec.preprocessing["resize_mode"]) == (768, [256, 256], "squash")
