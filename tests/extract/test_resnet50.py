"""ResNet-50 against torchvision's own network and transforms."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from avpipe.extract.encoders import _device, _torchvision, resnet50
from avpipe.extract.media import Frames
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, UsageError
from avpipe.pipeline.features import Features

from . import toys, toys_vision

WEIGHTS = torchvision.models.ResNet50_Weights


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def official() -> Any:
    """torchvision's network."""
    torch.manual_seed(3)
    return toys_vision.shaken(torchvision.models.resnet50(weights=None))


@pytest.fixture(scope="module")
def file(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save(official.state_dict(), path)
    return path


def make(weights: Path | str = "random:1", **config: Any) -> resnet50.Encoder:
    return resnet50.Encoder(parse(resnet50.Config, {"weights": str(weights), **config}, "test"), "v")


def encode(encoder: resnet50.Encoder, video: Frames) -> Features:
    encoder.load("cpu")
    (features,) = encoder.encode([encoder.prepare(toys.clip("v", video=video))])
    return features


def transformed(weights: Any, video: Frames) -> torch.Tensor:
    """By the official transform of those weights, on PIL images."""
    transform = weights.transforms()
    return torch.stack([transform(Image.fromarray(frame)) for frame in video.data])


def normalised(encoder: resnet50.Encoder, video: Frames) -> torch.Tensor:
    pixels = torch.from_numpy(encoder.prepare(toys.clip("v", video=video))["pixels"])
    return _device.normalise(pixels, encoder.how.mean, encoder.how.std)


@pytest.mark.parametrize(("name", "resize"), [("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232)])
@pytest.mark.parametrize(("height", "width"), [(70, 45), (300, 411), (240, 240)])
def test_preprocessing_equals_torchvision_bit_for_bit(name: str, resize: int, height: int, width: int) -> None:
    video = toys.frames(2, height=height, width=width)
    assert torch.equal(normalised(make(resize=resize), video), transformed(WEIGHTS[name], video))


@pytest.mark.shared
def test_preprocessing_equals_torchvision_on_real_clips(shared: Path) -> None:
    from avpipe.extract import media

    encoder = make(frames=2)
    for path in sorted((shared / "clips" / "ok").iterdir())[:8]:
        video = media.read(path, frames={"v": partial(encoder.request.choose, seed=0)}, audio={}).frames.get("v")
        if video is not None:
            assert torch.equal(normalised(encoder, video), transformed(WEIGHTS.IMAGENET1K_V2, video)), path.name


def test_rows_equal_torchvision(official: Any, file: Path) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    video = toys.frames(2)
    extractor = create_feature_extractor(official, {"layer4": "map", "flatten": "pooled"})
    with torch.inference_mode():
        theirs = extractor(transformed(WEIGHTS.IMAGENET1K_V2, video))
    pooled = encode(make(file, resize=232), video)
    np.testing.assert_allclose(pooled.data, theirs["pooled"].numpy(), rtol=1e-4, atol=1e-5)
    rows = encode(make(file, resize=232, tokens="map"), video)
    np.testing.assert_allclose(rows.data, theirs["map"].permute(0, 2, 3, 1).flatten(0, 2).numpy(), rtol=1e-4, atol=1e-4)
    assert (pooled.data.shape, rows.data.shape) == ((2, 2048), (98, 2048))
    np.testing.assert_array_equal(rows.pts_seconds, np.repeat([0.0, 2.0], 49))


def test_spec_knows_rows_and_dim() -> None:
    assert (make().spec.dim, make().spec.clock["rows_per_frame"]) == (2048, 1)
    assert make(tokens="map").spec.clock["rows_per_frame"] == 49
    assert make().spec.preprocessing["short_side"] == 232
    assert make(resize=256).spec.fingerprint != make().spec.fingerprint
    with pytest.raises(ConfigError, match=r"tokens: .*'pooled' or 'map'.*'cls'"):
        make(tokens="cls")
    with pytest.raises(ConfigError, match=r"resize: .*224.*100"):
        make(resize=100)


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("gone", "more", "message"),
    [
        ("layer4.2.bn3.running_var", {}, r"1 missing: layer4\.2\.bn3\.running_var"),
        ("", {"layer5.weight": torch.ones(1)}, r"1 left over: layer5\.weight"),
        ("", {"conv1.weight": torch.ones(64, 3, 3, 3)}, r"conv1\.weight is \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"),
    ],
)
def test_load_fails_on_a_file_that_does_not_fit(
    gone: str, more: dict[str, torch.Tensor], message: str, official: Any, tmp_path: Path
) -> None:
    torch.save({**without(official.state_dict(), gone), **more}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth does not fit the network.*{message}"):
        make(tmp_path / "w.pth", resize=232).load("cpu")


def test_a_file_without_classifier_and_counters_is_read(official: Any, tmp_path: Path) -> None:
    state = {name: value for name, value in official.state_dict().items() if "num_batches" not in name}
    torch.save(without(state, "fc.weight", "fc.bias"), tmp_path / "w.pth")
    make(tmp_path / "w.pth", resize=256).load("cpu")


def test_a_folder_as_timm_has_it_is_read(official: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(official.state_dict(), tmp_path / "model.safetensors")
    encoder = make(tmp_path, resize=232)
    encoder.load("cpu")
    assert encoder.spec.weights["id"] == tmp_path.name


def test_a_file_of_others_must_be_told_its_size(file: Path) -> None:
    with pytest.raises(UsageError, match=r"resnet50\.pth is none of torchvision's files.*Write v\.resize=232"):
        make(file)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> Iterator[Path]:
    """torchvision's server, on this machine, with one file of the network under the name of the first weights; the
    second ones are announced, but not there.
    """
    folder = tmp_path / "server"
    folder.mkdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    (folder / f"resnet50-{digest}.pth").write_bytes(file.read_bytes())

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        urls = {"IMAGENET1K_V1": f"{root}/resnet50-{digest}.pth", "IMAGENET1K_V2": f"{root}/resnet50-00000000.pth"}
        monkeypatch.setattr(_torchvision, "official", lambda _: urls)
        yield folder / f"resnet50-{digest}.pth"
        server.shutdown()


def test_published_weights_are_fetched_once_and_then_found(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = tmp_path / "torch" / "hub" / "checkpoints" / published.name
    with pytest.raises(MissingWeightsError) as missing:
        make("IMAGENET1K_V1")
    message = str(missing.value)
    assert f"no weights 'IMAGENET1K_V1': {cached} is not there, and HF_HUB_OFFLINE=1 forbids to ask http" in message
    assert f"Copy {published.name} to {cached.parent}, or run with v.weights=/path/to/{published.name}" in message

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    encoder = make("IMAGENET1K_V1")
    assert encoder.path == cached
    assert encoder.config.resize == 256
    assert encoder.spec.weights["id"] == "torchvision/resnet50/IMAGENET1K_V1"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert make("IMAGENET1K_V1").spec == encoder.spec
    assert make(cached).config.resize == 256  # a file is known by its hash, whatever its name
    cached.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"expected sha256 [0-9a-f]{8}\.\.\., got .*: the file is damaged"):
        make("IMAGENET1K_V1")


def test_weights_that_the_server_does_not_give_are_missing(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(MissingWeightsError, match=r"resnet50-00000000\.pth cannot be fetched \(.*404"):
        make("IMAGENET1K_V2")
    (published.parent / "resnet50-00000000.pth").write_bytes(b"something else")
    with pytest.raises(MissingWeightsError, match=r"cannot be fetched .*invalid hash"):
        make("IMAGENET1K_V2")
    monkeypatch.setattr(
        _torchvision, "official", lambda _: {"IMAGENET1K_V1": "http://127.0.0.1:9/resnet50-11ad3fa6.pth"}
    )
    with pytest.raises(MissingWeightsError, match=r"http://127\.0\.0\.1:9/resnet50-11ad3fa6\.pth does not answer"):
        make("IMAGENET1K_V1")
    assert list((tmp_path / "torch").rglob("*.*")) == []


def test_unknown_weights_fail() -> None:
    with pytest.raises(UsageError, match=r"no weights 'IMAGENET' of resnet50; it has: IMAGENET1K_V1, IMAGENET1K_V2"):
        make("IMAGENET")
    with pytest.raises(MissingWeightsError, match=r"there is no file /nowhere/w\.pth"):
        make("/nowhere/w.pth")
    with pytest.raises(MissingWeightsError, match=r"hf download timm/resnet50\.tv_in1k"):
        make("timm/resnet50.tv_in1k", resize=256)


def test_constants_are_those_of_torchvision() -> None:
    assert {entry.name: entry.transforms().resize_size[0] for entry in WEIGHTS} == resnet50.SHORT_SIDES
    assert {entry.name: entry.url for entry in WEIGHTS} == dict(_torchvision.official("resnet50"))
