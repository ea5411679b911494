"""Video Swin against torchvision's own network and transforms, and files as its authors write them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.video.swin_transformer import SwinTransformer3d

from avpipe.extract.encoders import _device, video_swin
from avpipe.extract.media import Frames
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, UsageError
from avpipe.pipeline.features import Features

from . import toys, toys_vision

TINY = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": [8, 7, 7]}
OFFICIAL = torchvision.models.video.Swin3D_B_Weights.KINETICS400_IMAGENET22K_V1.transforms()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def tiny() -> Any:
    """torchvision's network, smaller than its smallest."""
    torch.manual_seed(0)
    return SwinTransformer3d(patch_size=[2, 4, 4], stochastic_depth_prob=0.1, **TINY)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network with weights; from now on, every one that torchvision builds is so small."""
    network = toys_vision.shaken(tiny())
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: tiny())
    return network


@pytest.fixture
def file(official: Any, tmp_path: Path) -> Path:
    torch.save(official.state_dict(), tmp_path / "swin.pth")
    return tmp_path / "swin.pth"


def make(weights: Path | str = "random:1", **config: Any) -> video_swin.Encoder:
    config = {"model": "swin3d_t", "weights": str(weights), **config}
    return video_swin.Encoder(parse(video_swin.Config, config, "test"), "v")


def encode(encoder: video_swin.Encoder, *videos: Frames) -> list[Features]:
    encoder.load("cpu")
    return encoder.encode([encoder.prepare(toys.clip("v", video=video)) for video in videos])


def transformed(video: Frames) -> torch.Tensor:
    """By the official transform: ``(3, T, 224, 224)``."""
    clip: torch.Tensor = OFFICIAL(torch.from_numpy(video.data).permute(0, 3, 1, 2))
    return clip


def seen(encoder: video_swin.Encoder, video: Frames) -> torch.Tensor:
    """What the network gets to see: ``(3, T, 224, 224)``."""
    pixels = torch.from_numpy(encoder.prepare(toys.clip("v", video=video))["pixels"])
    return _device.normalise(pixels, encoder.how.mean, encoder.how.std).transpose(0, 1)


def assert_within_a_level(encoder: video_swin.Encoder, video: Frames) -> None:
    """As the official transform, but that a rare value may be rounded the other way."""
    levels = (seen(encoder, video) - transformed(video)).abs() * 255 * torch.tensor(encoder.how.std).view(3, 1, 1, 1)
    assert levels.max() < 1.01
    assert (levels > 0.01).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("height", "width"), [(70, 45), (300, 411), (256, 256), (1080, 720), (37, 500), (1, 1), (3, 200)]
)
def test_preprocessing_equals_torchvision(height: int, width: int) -> None:
    assert_within_a_level(make(), toys.frames(2, height=height, width=width))


@pytest.mark.shared
def test_preprocessing_equals_torchvision_on_real_clips(shared: Path) -> None:
    from avpipe.extract import media

    encoder = make(frames=2)
    for path in sorted((shared / "clips" / "ok").iterdir())[:8]:
        video = media.read(path, frames={"v": partial(encoder.request.choose, seed=0)}, audio={}).frames.get("v")
        if video is not None:
            assert_within_a_level(encoder, video)


def test_antialiasing_would_be_another_picture() -> None:
    from avpipe.extract import images

    frame = toys.frames(1, height=700, width=700).data[0]
    plain, smooth = (
        images.fit(frame, (224, 224), interpolation="bilinear", short_side=256, antialias=antialias).astype(int)
        for antialias in (False, True)
    )
    assert np.abs(plain - smooth).mean() > 10


def theirs(official: Any, clip: torch.Tensor) -> torch.Tensor:
    """What torchvision's network has before its head: ``(T / 2, 7, 7, dim)``."""
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.inference_mode():
        rows: torch.Tensor = create_feature_extractor(official, {"norm": "rows"})(clip[None])["rows"][0]
    return rows


def test_rows_equal_torchvision(official: Any, file: Path) -> None:
    video = toys.frames(4, height=240, width=250)
    clip = seen(make(file), video)
    expected = theirs(official, clip)
    (every,) = encode(make(file), video)
    np.testing.assert_allclose(every.data, expected.flatten(0, 2).numpy(), atol=1e-5)
    np.testing.assert_array_equal(every.pts_seconds, np.repeat([0.5, 2.5], 49))
    (time,) = encode(make(file, tokens="time"), video)
    np.testing.assert_allclose(time.data, expected.mean(dim=(1, 2)).numpy(), atol=1e-5)
    np.testing.assert_array_equal(time.pts_seconds, [0.5, 2.5])
    (mean,) = encode(make(file, tokens="mean"), video)
    np.testing.assert_allclose(mean.data, expected.mean(dim=(0, 1, 2))[None].numpy(), atol=1e-5)
    np.testing.assert_array_equal(mean.pts_seconds, [1.5])
    with torch.inference_mode():
        np.testing.assert_allclose(official.head(torch.from_numpy(mean.data)), official(clip[None]), atol=1e-4)


def test_an_odd_last_frame_counts_twice(official: Any, file: Path) -> None:
    odd = toys.frames(3, height=64, width=64)
    even = Frames(data=odd.data[[0, 1, 2, 2]], pts_seconds=odd.pts_seconds[[0, 1, 2, 2]])
    (one,), (other,) = encode(make(file), odd), encode(make(file), even)
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.pts_seconds, other.pts_seconds)


@pytest.mark.parametrize("at_once", [1, 8])
def test_clips_of_all_lengths_go_through_in_parts(
    at_once: int, official: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_swin, "CLIPS_AT_ONCE", at_once)
    videos = [toys.frames(count, height=40, width=50, seed=i) for i, count in enumerate((4, 2, 1, 4))]
    encoder = make(file)
    for features, video in zip(encode(encoder, *videos), videos, strict=True):
        (alone,) = encode(encoder, video)
        np.testing.assert_allclose(features.data, alone.data, atol=1e-5)
        np.testing.assert_array_equal(features.pts_seconds, alone.pts_seconds)


def as_the_authors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names as mmaction writes them."""
    renamed = {}
    for name, tensor in state.items():
        inner = re.sub(r"^features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.", name)
        inner = re.sub(r"^features\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.", inner)
        inner = inner.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        renamed[f"cls_head.fc_cls.{inner[5:]}" if inner.startswith("head.") else f"backbone.{inner}"] = tensor
    return renamed


def test_the_authors_files_are_read(official: Any, file: Path, tmp_path: Path) -> None:
    state = as_the_authors(official.state_dict())
    assert "backbone.layers.0.blocks.1.mlp.fc2.weight" in state
    assert "backbone.layers.2.downsample.reduction.weight" in state
    torch.save({"meta": {"epoch": 30}, "state_dict": state}, tmp_path / "swin_tiny_patch244_window877.pth")
    video = toys.frames(2)
    (one,) = encode(make(tmp_path / "swin_tiny_patch244_window877.pth"), video)
    (other,) = encode(make(file), video)
    np.testing.assert_array_equal(one.data, other.data)


def test_names_go_to_the_authors_and_back_at_full_size() -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model("swin3d_b").state_dict()
    back = video_swin.from_authors(as_the_authors(state))
    heads = {"head.weight", "head.bias"}
    assert set(back) - set(state) == {"cls_head.fc_cls.weight", "cls_head.fc_cls.bias"}
    assert set(state) - set(back) == heads
    assert all(back[name] is tensor for name, tensor in state.items() if name not in heads)
    assert video_swin.from_authors(state) == state, "torchvision's own names stay"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.layers.2.blocks.1.attn.qkv.bias": None}, r"1 missing: features\.4\.1\.attn\.qkv\.bias"),
        ({"backbone.norm3.weight": torch.ones(8)}, r"1 left over: backbone\.norm3\.weight"),
        (
            {"backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(31 * 169, 1)},
            r"features\.0\.0\.attn\.relative_position_bias_table is \(5239, 1\), expected \(2535, 1\)",
        ),
    ],
)
def test_load_fails_on_a_file_that_does_not_fit(
    change: dict[str, Any], message: str, official: Any, tmp_path: Path
) -> None:
    state = {**as_the_authors(official.state_dict()), **change}
    torch.save({"state_dict": {k: v for k, v in state.items() if v is not None}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth does not fit the network.*{message}"):
        make(tmp_path / "w.pth").load("cpu")


@pytest.mark.parametrize("model", ["swin3d_t", "swin3d_s", "swin3d_b"])
def test_dims_are_those_of_torchvision(model: str) -> None:
    with torch.device("meta"):
        assert torchvision.models.get_model(model).num_features == video_swin.DIMS[model]
    assert make(model=model).spec.dim == video_swin.DIMS[model]


def test_defaults_are_the_authors_test_clip() -> None:
    encoder = video_swin.Encoder(parse(video_swin.Config, {"weights": "random"}, "test"), "v")
    (one,) = np.split(encoder.request.choose(np.arange(100) / 25, 0), 1)
    np.testing.assert_array_equal(one, 18 + 2 * np.arange(32))
    assert encoder.spec.preprocessing == {
        "size": [224, 224],
        "mean": OFFICIAL.mean,
        "std": OFFICIAL.std,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "fill_color": 0,
        "short_side": 256,
        "antialias": False,
    }


def test_unknown_or_missing_weights_fail() -> None:
    with pytest.raises(
        UsageError, match=r"no weights 'KINETICS400_IMAGENET22K_V1' of swin3d_t; it has: KINETICS400_V1"
    ):
        make("KINETICS400_IMAGENET22K_V1")
    with pytest.raises(MissingWeightsError, match=r"(?s)swin3d_b_22k-7c6ae6fa\.pth is not there.*curl -O https://"):
        make("KINETICS400_IMAGENET22K_V1", model="swin3d_b")
    with pytest.raises(ConfigError, match=r"model: .*'swin3d_t', 'swin3d_s' or 'swin3d_b'.*'swin3d_x'"):
        make(model="swin3d_x")
