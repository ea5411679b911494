"""CAV-MAE against numbers of the authors' own code, and what the encoder makes of it.

``tests/data/cav_mae_joint_layers.safetensors.gz`` holds the three joint layers of a network with random weights, the
tokens of one clip that go into them, and what comes out of them in YuanGongND/cav-mae: of audio alone, of video alone,
of both. The folder ../shared has whole networks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from avpipe.extract.encoders import cav_mae
from avpipe.extract.media import AudioRequest, Frames
from avpipe.extract.networks import cav_mae as networks
from avpipe.extract.networks.cav_mae import AudioStream, CavMaeConfig, Trunk, VisualStream
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, SkipClip, UsageError
from avpipe.pipeline.features import Features
from avpipe.pipeline.networks.cav_mae import NORMS, JointLayers

from . import toys, toys_audio_visual

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "data" / "cav_mae_joint_layers.safetensors.gz"
GOLDEN = ROOT.parent / "shared" / "golden"
TOLERANCE = {"cavmae_ft": 2e-5, "cavmae_joint": 1e-6, "cavmae_pretrain": 3e-5}
"""In float32: what the makers of the golden data say can be reached. In float64: 1e-9."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, **config: Any) -> cav_mae.Encoder:
    return cav_mae.Encoder(parse(cav_mae.Config, {"weights": str(weights), "cut": 2, **config}, "test"), "c")


def encode(encoder: cav_mae.Encoder, **media: Any) -> Features:
    encoder.load("cpu")
    (features,) = encoder.encode([encoder.prepare(toys.clip("c", **media))])
    return features


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys_audio_visual.cav_mae_file(tmp_path_factory.mktemp("cav_mae") / "tiny.pth")


def joint_layers(config: CavMaeConfig) -> JointLayers:
    return JointLayers(config.dim, config.heads, config.joint_layers)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).detach().abs().max())


# -- the network, against the authors' numbers -----------------------------------------------------------------------


def joint_error(wanted: str, modality: Any, dtype: torch.dtype = torch.float32) -> float:
    """Of the stored joint layers: what goes in is known in float32."""
    data = load(gzip.decompress(STORED.read_bytes()))
    layers = JointLayers(24, 2, 3)
    layers.load_state_dict({name.removeprefix("weights/"): value for name, value in data.items() if "weights/" in name})
    audio, visual = data["inputs/audio"], data["inputs/visual"]
    tokens = {"audio": audio, "visual": visual, "joint": torch.cat([audio, visual])}[wanted]
    with torch.inference_mode():
        return distance(layers.to(dtype)(tokens[None].to(dtype), modality)[0], data[f"expected/{wanted}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("wanted", "modality"), [("audio", "a"), ("visual", "v"), ("joint", None)])
def test_joint_layers_equal_the_authors(wanted: str, modality: str | None, dtype: torch.dtype) -> None:
    assert joint_error(wanted, modality, dtype) < 1e-6


@pytest.mark.parametrize(("wanted", "modality"), [("audio", "v"), ("audio", None), ("visual", "a"), ("joint", "a")])
def test_norms_of_another_modality_show(wanted: str, modality: str | None) -> None:
    assert joint_error(wanted, modality) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_clip_may_have_its_own_norms(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = JointLayers(8, 2, 2).to(dtype)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    tokens = torch.randn(3, 5, 8, dtype=dtype)
    with torch.inference_mode():
        together = layers(tokens, torch.tensor([2, 0, 1]))
        for row, modality in enumerate([NORMS[2], NORMS[0], NORMS[1]]):
            alone = layers(tokens[row : row + 1], modality)[0]
            assert distance(together[row], alone) < (1e-5 if dtype == torch.float32 else 1e-12)
            assert distance(together[row - 1], alone) > 1e-2


def test_a_bias_hides_tokens_and_weights_tell_what_was_seen() -> None:
    torch.manual_seed(0)
    layers, tokens = JointLayers(8, 2, 2).double(), torch.randn(1, 5, 8, dtype=torch.float64)
    bias = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    bias[..., 3:] = torch.finfo(torch.float64).min
    weights: list[Tensor] = []
    with torch.inference_mode():
        found = layers(tokens, bias=bias, weights=weights)
        assert distance(found[:, :3], layers(tokens[:, :3])) < 1e-12
        assert distance(found[:, :3], layers(tokens)[:, :3]) > 1e-3
    assert [tuple(weight.shape) for weight in weights] == [(1, 2, 5, 5)] * 2
    assert all((weight[..., 3:] == 0).all() for weight in weights)
    assert all(distance(weight.sum(-1), torch.ones(())) < 1e-12 for weight in weights)


def test_another_epsilon_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.nn, "LayerNorm", lambda dim: torch.nn.modules.normalization.LayerNorm(dim, eps=1e-6))
    assert joint_error("joint", None) > 1e-5


def test_sines_by_hand() -> None:
    table = networks.sine_positions(2, 3, 8)[0]
    assert table.shape == (6, 8)
    row, column, slow = 1.0, 2.0, 0.01  # the last token; the frequencies are 1 and 1 / 100
    by_hand = [
        *np.sin([column, column * slow]),
        *np.cos([column, column * slow]),
        *np.sin([row, row * slow]),
        *np.cos([row, row * slow]),
    ]
    np.testing.assert_allclose(table[5], by_hand, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 8, 18])
def test_positions_of_frames_are_sines_on_one_square(frames: int) -> None:
    config = CavMaeConfig(dim=8, frames=frames)
    side = {1: 14, 2: 14, 8: 28, 18: 42}[frames]
    assert torch.equal(networks.visual_positions(config), networks.sine_positions(side, side, 8))


def test_positions_of_four_frames_are_random() -> None:
    table = networks.visual_positions(CavMaeConfig(dim=64, frames=4))
    assert table.shape == (1, 392, 64)
    assert float(table.std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("frames", [3, 6, 9, 16, 20])
def test_other_numbers_of_frames_fail(frames: int) -> None:
    with pytest.raises(UsageError, match=rf"expected 1, 4 or twice a square number \(2, 8, 18, 32\).*got {frames}"):
        VisualStream(CavMaeConfig(dim=8, heads=1, layers=0, frames=frames))


@pytest.mark.parametrize(("frame", "band"), [(0, 0), (700, 16), (1023, 127)])
def test_audio_tokens_go_band_by_band(frame: int, band: int) -> None:
    stream = AudioStream(CavMaeConfig(dim=8, heads=1, layers=0))
    spot = torch.zeros(1, 1024, 128)
    spot[0, frame, band] = 5.0
    with torch.inference_mode():
        changed = (stream(spot) - stream(torch.zeros(1, 1024, 128))).abs().amax(dim=2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [band // 16 * 64 + frame // 16]


@pytest.mark.parametrize(("frame", "y", "x"), [(0, 0, 0), (1, 100, 17), (3, 223, 223)])
def test_visual_tokens_go_tube_by_tube_and_row_by_row(frame: int, y: int, x: int) -> None:
    stream = VisualStream(CavMaeConfig(dim=8, heads=1, layers=0, frames=4))
    spot = torch.zeros(1, 3, 4, 224, 224)
    spot[0, :, frame, y, x] = 5.0
    with torch.inference_mode():
        changed = (stream(spot) - stream(torch.zeros_like(spot))).abs().amax(dim=2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [frame // 2 * 196 + y // 16 * 14 + x // 16]


# -- whole networks of the golden data -------------------------------------------------------------------------------

Golden = tuple[CavMaeConfig, dict[str, Tensor], dict[str, Tensor]]


def golden(name: str, folder: str = "cavmae") -> Golden:
    """Sizes, weights, inputs and outputs."""
    path = GOLDEN / "public" / folder
    if not path.is_dir():
        pytest.skip("no ../shared beside the project")
    described = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
    sizes = described.get("config") or described["encoder_config"]
    layers = sizes["modality_specific_depth"]
    config = CavMaeConfig(
        dim=sizes["embed_dim"],
        heads=sizes["num_heads"],
        layers=layers,
        joint_layers=12 - layers,
        audio_frames=sizes["audio_length"],
        image_size=sizes["img_size"],
        frames=sizes.get("num_frames", 1),
    )
    state = networks.state_of(load_file(path / f"{name}.weights.safetensors"), Path(name))
    data = load_file(path / f"{name}.io.safetensors")
    if name == "cavmae_ft":
        inputs = load_file(path / "cavmae_preprocess.io.safetensors")
        data["spectrogram"] = torch.stack([inputs["fbank_normalized.0"], inputs["fbank_normalized.1"]])
        data["frames"] = torch.stack([inputs["frame.0"], inputs["frame.1"]])
    return config, state, data


def filled(config: CavMaeConfig, state: Mapping[str, Tensor], modality: Any, depth: int = 12) -> Trunk:
    trunk = Trunk(config, modality, depth).eval()
    networks.fill(trunk, state, Path("golden"))
    return trunk


def compare(found: Tensor, data: Mapping[str, Tensor], name: str, tolerance: float) -> int:
    """With whatever is stored of it: all tokens, or every fourth, or every eighth."""
    key = f"expected64_{name}" if found.dtype == torch.float64 else f"expected_{name}"
    tables = [value for stored, value in data.items() if stored in (key, f"{key}_every8th")]
    for table in tables:
        step = round(found.shape[1] / table.shape[1])
        assert distance(found[:, ::step], table) < tolerance, name
    return len(tables)


@pytest.mark.shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_golden_tokens_and_logits(name: str, dtype: torch.dtype) -> None:
    config, state, data = golden(name)
    tolerance = TOLERANCE[name] if dtype == torch.float32 else 1e-9
    compared, own, means = 0, {}, {}
    joint = joint_layers(config).eval()
    joint.load_state_dict({key: value for key, value in state.items() if key in joint.state_dict()})
    joint = joint.to(dtype)
    with torch.inference_mode():
        for modality, called, inputs in (("a", "audio", "spectrogram"), ("v", "visual", "frames")):
            trunk = filled(config, state, modality).to(dtype)
            own[modality] = trunk.stream(data[inputs].to(dtype))
            after = trunk(data[inputs].to(dtype))
            assert torch.equal(after, joint(own[modality], modality))
            compared += compare(own[modality], data, f"{called}_tokens_before_joint", tolerance)
            compared += compare(after, data, f"{called}_tokens", tolerance)
            means[f"{'video' if modality == 'v' else called}only"] = after.mean(dim=1)
            alone = joint(own[modality]).mean(dim=1)
            missing = "video" if modality == "v" else called
            means[f"missing{missing}only"] = (after.mean(dim=1) + alone) / 2
        both = joint(torch.cat([own["a"], own["v"]], dim=1))
        compared += compare(both, data, "joint_tokens", tolerance)
        means["multimodal"] = both.mean(dim=1)
        if "mlp_head.0.weight" in state:
            head = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, len(state["mlp_head.1.bias"])))
            head.load_state_dict({key[9:]: value for key, value in state.items() if key.startswith("mlp_head")})
            for mode, mean in means.items():
                logits = head.to(dtype)(mean)
                compared += compare(logits[None], {k: v[None] for k, v in data.items()}, f"logits_{mode}", 1e-5)
    expected = {"cavmae_ft": (10, 8), "cavmae_joint": (10, 8), "cavmae_pretrain": (2, 0)}[name]
    assert compared == expected[dtype == torch.float64]


@pytest.mark.shared
def test_golden_tubes_of_avcap() -> None:
    config, state, data = golden("avcap_full", "avcap")
    assert config.frames == 4
    with torch.inference_mode():
        audio, visual = (filled(config, state, modality) for modality in ("a", "v"))
        assert compare(audio(data["audio"]), data, "av_tokens_audio_captioning", 3e-5)
        assert compare(visual(data["visual"]), data, "av_tokens_video_captioning", 3e-5)
        assert audio.joint is not None
        both = torch.cat([audio.stream(data["audio"]), visual.stream(data["visual"])], dim=1)
        joint = joint_layers(config)
        joint.load_state_dict({key: value for key, value in state.items() if key in joint.state_dict()})
        assert compare(joint(both), data, "av_tokens_captioning", 3e-5)


@pytest.mark.shared
def test_golden_sines() -> None:
    _, _, data = golden("cavmae_ft")
    assert distance(networks.sine_positions(8, 64, 32), data["initial_pos_embed_a"]) < 1e-7
    assert distance(networks.sine_positions(14, 14, 32), data["initial_pos_embed_v"]) < 1e-7


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "frames", "parts"),
    [
        ("cavmae_scale++_pretrain", 1, (AudioStream, VisualStream, joint_layers)),
        ("cavmae_finetuned_audioset527", 1, (AudioStream, VisualStream, joint_layers)),
        ("cavmae_finetuned_audio_only_class", 1, (AudioStream, joint_layers)),
        ("avcap_8frames", 8, (AudioStream, VisualStream, joint_layers)),
    ],
)
def test_public_files_have_these_names_and_shapes(name: str, frames: int, parts: Any) -> None:
    path = GOLDEN / "layouts" / f"{name}.json"
    if not path.is_file():
        pytest.skip("no ../shared beside the project")
    layout = json.loads(path.read_text(encoding="utf-8"))["keys"]
    with torch.device("meta"):
        content = {key: torch.empty(entry["shape"]) for key, entry in layout.items()}
        state = networks.state_of(content, path)
        config = networks.describe(state, "a", path, frames=frames)
        assert config == CavMaeConfig(frames=frames)
        ours = {key: value.shape for part in parts for key, value in part(config).state_dict().items()}
        for modality in ("a", "v")[: len(parts) - 1]:
            networks.fill(Trunk(config, modality, 12), state, path)
    other = ("decoder", "mask_token", "mlp_head") if "audio_only" not in name else ("mlp_head", "norm_v")
    assert {key: value.shape for key, value in state.items() if not key.startswith(other)} == {
        key: shape for key, shape in ours.items() if not key.startswith(other)
    }


# -- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("which", [0, 1, 2])
def test_golden_spectrogram(file: Path, which: int) -> None:
    path = GOLDEN / "public" / "cavmae" / "cavmae_preprocess.io.safetensors"
    if not path.is_file():
        pytest.skip("no ../shared beside the project")
    data = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    samples = data[f"waveform_i16.{which}"].astype(np.float32) / 32768

    def difference(stats: str, expected: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = spectrogram(make(file, stats=stats), samples)
        return np.abs(found[:: 1024 // len(expected)] - expected)

    key = "fbank_normalized_rows8.2" if which == 2 else f"fbank_normalized.{which}"
    audioset = difference("audioset", data[key])
    assert audioset.max() < 1e-3
    assert np.percentile(audioset, 99) < 1e-4
    if which == 1:
        assert difference("audiocaps", data["fbank_normalized_avcap_stats_rows.1"]).max() < 1e-3


@pytest.mark.shared
@pytest.mark.parametrize("which", [0, 1])
def test_golden_frame(file: Path, which: int) -> None:
    path = GOLDEN / "public" / "cavmae" / "cavmae_preprocess.io.safetensors"
    if not path.is_file():
        pytest.skip("no ../shared beside the project")
    from avpipe.extract.encoders._device import normalise

    data = load_file(path)
    frames = Frames(data=data[f"image_u8.{which}"].numpy()[None], pts_seconds=np.zeros(1))
    pixels = make(file, stream="video", frames=1).prepare(toys.clip("c", video=frames))["pixels"]
    found = normalise(torch.from_numpy(pixels), cav_mae.PICTURE.mean, cav_mae.PICTURE.std)
    assert distance(found[0], data[f"frame.{which}"]) < 1e-6


@pytest.mark.shared
def test_golden_from_the_waveform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state, data = golden("cavmae_ft")
    monkeypatch.setattr(networks, "HEAD_WIDTH", config.dim // config.heads)
    path = toys_audio_visual.cav_mae_file(tmp_path / "golden.pth", state)
    inputs = load_file(GOLDEN / "public" / "cavmae" / "cavmae_preprocess.io.safetensors")
    for cut, key, step in ((11, "_before_joint", 4), (12, "", 1)):
        listener = make(path, cut=cut, stats="audioset")
        watcher = make(path, cut=cut, stream="video", frames=1)
        for which in (0, 1):
            samples = inputs[f"waveform_i16.{which}"].numpy().astype(np.float32) / 32768
            heard = encode(listener, audio=samples).data
            wanted = data[f"expected_audio_tokens{key}"][which].numpy()
            np.testing.assert_allclose(heard[::step], wanted, atol=1e-3)  # the spectrogram's own accuracy
            picture = Frames(data=inputs[f"image_u8.{which}"].numpy()[None], pts_seconds=np.zeros(1))
            seen = encode(watcher, video=picture).data
            wanted = data[f"expected_visual_tokens{key}"][which].numpy()
            np.testing.assert_allclose(seen[::step], wanted, atol=2e-5)


def spectrogram(encoder: cav_mae.Encoder, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As the network gets it."""
    prepared = encoder.prepare(toys.clip("c", audio=samples))
    seen: list[Any] = []

    def spy(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen.append(values)
        return np.zeros((1, 512, 64), np.float32)

    encoder._forward = spy  # type: ignore[assignment, method-assign]
    encoder.encode([prepared])
    whole: npt.NDArray[np.float32] = seen[0][0]
    return whole


@pytest.mark.parametrize(("stats", "zero"), [("audioset", 1.13291), ("audiocaps", 4.346 / 4.332)])
def test_silence_behind_the_end_is_normalised(file: Path, stats: str, zero: float) -> None:
    found = spectrogram(make(file, stats=stats), toys.noise(1.0))
    assert found.shape == (1024, 128)
    np.testing.assert_allclose(found[98:], zero, rtol=1e-5)
    assert np.abs(found[:98] - zero).max() > 0.5


def test_a_constant_in_the_waveform_changes_nothing(file: Path) -> None:
    samples = toys.noise(1.0)
    encoder = make(file)
    one, other = (encoder.prepare(toys.clip("c", audio=x))["spectrogram"] for x in (samples, samples + 0.25))
    np.testing.assert_allclose(one, other, atol=1e-3)


# -- the encoder -----------------------------------------------------------------------------------------------------


def test_audio_is_a_feature_set_of_its_own(file: Path) -> None:
    encoder = make(file)
    assert encoder.request == AudioRequest(sample_rate=16000, downmix="first", max_seconds=10.255)
    assert (encoder.spec.modality, encoder.spec.dim, encoder.spec.views) == ("audio", 64, 1)
    features = encode(encoder, audio=toys.noise(2.0), start_seconds=0.5)
    assert features.data.shape == (512, 64)
    times = features.pts_seconds.reshape(8, 64)
    np.testing.assert_allclose(times[3, [0, 1, -1]], [0.5875, 0.7475, 10.6675])
    with pytest.raises(SkipClip) as skipped:
        encoder.prepare(toys.clip("c", video=toys.frames(1)))
    assert skipped.value.kind == "no_audio"


def test_sounds_of_a_batch_are_what_they_are_alone(file: Path) -> None:
    encoder = make(file)
    encoder.load("cpu")
    prepared = [encoder.prepare(toys.clip("c", audio=toys.noise(s))) for s in (0.0001, 3.0, 12.0)]
    for together, one in zip(encoder.encode(prepared), prepared, strict=True):
        np.testing.assert_allclose(together.data, encoder.encode([one])[0].data, atol=1e-5)


def test_mean_of_sound(file: Path) -> None:
    samples = toys.noise(2.0)
    every, mean = (encode(make(file, tokens=tokens), audio=samples) for tokens in ("all", "mean"))
    np.testing.assert_allclose(mean.data, every.data.mean(axis=0, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(mean.pts_seconds, [1.0], atol=0.02)


@pytest.mark.parametrize("views", [0, 2])
def test_tokens_of_frames(file: Path, views: int) -> None:
    encoder = make(file, stream="video", views=views)
    features = encode(encoder, video=toys.frames(4, views=1 + views))
    assert features.data.shape == ((1 + views) * 392, 64)
    assert features.pts_seconds[:392].tolist() == [0.5] * 196 + [2.5] * 196  # frames at 0, 1, 2, 3 s
    mean = encode(make(file, stream="video", views=views, tokens="mean"), video=toys.frames(4, views=1 + views))
    rows = features.data.reshape(1 + views, 392, 64).mean(axis=1)
    np.testing.assert_allclose(mean.data, rows, atol=1e-5)
    assert mean.pts_seconds.tolist() == [1.5] * (1 + views)


def test_one_frame_has_its_own_time(file: Path) -> None:
    features = encode(
        make(file, stream="video", frames=1), video=Frames(data=toys.frames(1).data, pts_seconds=np.ones(1))
    )
    assert features.data.shape == (196, 64)
    assert set(features.pts_seconds) == {1.0}


def test_cuts_follow_one_another(file: Path) -> None:
    state = toys_audio_visual.cav_mae_state()
    whole = Trunk(CavMaeConfig(dim=64, heads=1, layers=2), "a", 3).eval()
    networks.fill(whole, state, file)
    samples = toys.noise(3.0)
    encoder = make(file)
    tokens = torch.from_numpy(spectrogram(encoder, samples))[None]
    assert isinstance(whole.stream, AudioStream)
    with torch.inference_mode():
        tokens = whole.stream.patch_embed_a(tokens.transpose(1, 2)[:, None]) + whole.stream.pos_embed_a
        tokens = tokens + whole.stream.modality_a
        for cut in range(4):
            np.testing.assert_allclose(encode(make(file, cut=cut), audio=samples).data, tokens[0], atol=1e-5)
            if cut < 2:
                tokens = whole.stream.blocks_a[cut](tokens)
            elif cut == 2:
                assert whole.joint is not None
                tokens = whole.joint.norm_a(whole.joint.blocks_u[0](tokens, "a"))


def test_only_layers_that_run_are_read(tmp_path: Path) -> None:
    own = ("pos_embed_a", "patch_embed_a", "modality_a", "blocks_a")
    state = {name: value for name, value in toys_audio_visual.cav_mae_state().items() if name.startswith(own)}
    path = toys_audio_visual.cav_mae_file(tmp_path / "audio.pth", state)
    encode(make(path), audio=toys.noise(0.5))
    with pytest.raises(CheckpointError, match="no CAV-MAE with this modality: no modality_v among"):
        make(path, stream="video")


def test_files_of_avcap_and_of_audio_alone(tmp_path: Path, file: Path) -> None:
    state = toys_audio_visual.cav_mae_state()
    wrapped = {f"av_encoder.{name}": value for name, value in state.items()}
    avcap = toys_audio_visual.cav_mae_file(
        tmp_path / "avcap.pth", {**wrapped, "textual.output.bias": torch.zeros(3)}, prefix=""
    )
    of_video = ("norm_v", "blocks_v", "patch_embed_v", "pos_embed_v", "modality_v")
    alone = {name: value for name, value in state.items() if not name.startswith(of_video)}
    audio_only = toys_audio_visual.cav_mae_file(tmp_path / "audio_only.pth", alone)
    samples = toys.noise(1.0)
    expected = encode(make(file, cut=3), audio=samples).data
    for path in (avcap, audio_only):
        np.testing.assert_allclose(encode(make(path, cut=3), audio=samples).data, expected, atol=1e-5)


def still(count: int) -> Frames:
    return Frames(data=np.repeat(toys.frames(1).data, count, axis=0), pts_seconds=np.arange(float(count)))


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_a_still_picture_looks_the_same_to_an_inflated_network(file: Path, frames: int) -> None:
    for cut in (0, 2):  # attention among copies is attention among the originals
        one = encode(make(file, stream="video", frames=1, cut=cut), video=still(1))
        several = encode(make(file, stream="video", frames=frames, cut=cut), video=still(frames))
        for step in several.data.reshape(frames // 2, 196, 64):
            np.testing.assert_allclose(step, one.data, atol=1e-4)


def test_random_tubes_are_avcap_s_initial_values(file: Path) -> None:
    encoder = make(file, stream="video", video_init="random")
    encoder.load("cpu")
    assert encoder._model is not None
    stream = encoder._model.stream
    assert isinstance(stream, VisualStream)
    assert float(stream.pos_embed_v.std()) == pytest.approx(0.02, rel=0.05)
    bound = (6 / (64 + 3 * 2 * 256)) ** 0.5  # Xavier over what is flattened
    weight = stream.patch_embed_v.proj.weight.abs().max()
    assert 0.99 * bound < float(weight) <= bound
    state = toys_audio_visual.cav_mae_state()
    assert torch.equal(stream.blocks_v[1].state_dict()["norm1.weight"], state["blocks_v.1.norm1.weight"])
    again = make(file, stream="video", video_init="random")
    np.testing.assert_array_equal(encode(again, video=still(4)).data, encode(encoder, video=still(4)).data)
    inflated = make(file, stream="video")
    assert inflated.spec.fingerprint != encoder.spec.fingerprint
    assert not np.allclose(encode(inflated, video=still(4)).data, encode(encoder, video=still(4)).data, atol=0.1)


def test_trained_tubes_are_read_as_they_are(tmp_path: Path) -> None:
    state = toys_audio_visual.cav_mae_state(frames=4)
    path = toys_audio_visual.cav_mae_file(tmp_path / "tubes.pth", state)
    one, other = (
        encode(make(path, stream="video", video_init=how), video=toys.frames(4)).data for how in ("inflate", "random")
    )
    np.testing.assert_array_equal(one, other)
    with pytest.raises(CheckpointError, match=r"pos_embed_v is \(1, 392, 64\), expected \(1, 784, 64\)"):
        make(path, stream="video", frames=8).load("cpu")
    with pytest.raises(CheckpointError, match=r"proj\.weight is \(64, 3, 2, 16, 16\), expected \(64, 3, 16, 16\)"):
        make(path, stream="video", frames=1).load("cpu")


@pytest.mark.parametrize(("frames", "first"), [(1, 10), (2, 9), (4, 8), (8, 6)])
def test_frames_are_avcap_s(file: Path, frames: int, first: int) -> None:
    request = make(file, stream="video", frames=frames, views=1).request
    chosen = request.choose(np.arange(400) / 25, 3)  # type: ignore[union-attr]
    # 10 s are 250 frames; 20 of them lie 12.5 apart
    assert chosen[:frames].tolist() == [int(12.5 * i) for i in range(first, first + frames)]
    view = chosen[frames:].tolist()
    assert view in [[int(12.5 * i) for i in range(start, start + frames)] for start in range(21 - frames)]


def test_fewer_frames_than_asked_for_repeat(file: Path) -> None:
    encoder = make(file, stream="video")
    prepared = encoder.prepare(toys.clip("c", video=toys.frames(3)))
    assert prepared["pts_seconds"].tolist() == [0, 0, 4 / 3, 8 / 3]
    assert prepared["pixels"].shape == (4, 224, 224, 3)


def test_random_weights_are_seeded_and_shouted_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = CavMaeConfig(dim=64, heads=1, layers=1)
    monkeypatch.setattr(networks, "CavMaeConfig", lambda **_: small)
    state = torch.get_rng_state()
    one, same, other = (encode(make(f"random:{seed}", cut=1), audio=toys.noise(1.0)).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert "c: RANDOM WEIGHTS, as asked for (weights=random:2)" in caplog.text


def test_random_weights_are_of_full_size() -> None:
    assert make("random").spec.dim == 768
    with torch.device("meta"):
        assert len(Trunk(CavMaeConfig(frames=4), "v", 11).stream.state_dict()) == 11 * 20 + 4


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 3, 6])
def test_frames_without_positions_fail(file: Path, frames: int) -> None:
    with pytest.raises(ConfigError, match=rf"frames: .*1, 2, 4, 8, 18 or 32.*got {frames}"):
        make(file, stream="video", frames=frames)


def test_cuts_behind_the_last_layer_fail(file: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.cut: expected at most 3 \(2 layers of its own and 1 joint ones\), got 4"):
        make(file, cut=4)
    with pytest.raises(ConfigError, match=r"cut: .*got -1"):
        make(file, cut=-1)


def test_views_of_sound_fail(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"views: expected 0 with stream: audio.*got 2"):
        make(file, views=2)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("blocks_a.1.mlp.fc1.bias", None, r"1 missing: blocks_a\.1\.mlp\.fc1\.bias"),
        ("blocks_a.0.norm1_v.bias", None, r"1 missing: blocks_a\.0\.norm1_v\.bias"),
        ("blocks_a.1.mlp.fc3.bias", torch.zeros(3), r"1 left over: blocks_a\.1\.mlp\.fc3\.bias"),
        ("head.weight", torch.zeros(3), r"1 left over: head\.weight"),
        ("pos_embed_a", torch.zeros(1, 256, 64), r"pos_embed_a is \(1, 256, 64\), expected \(1, 512, 64\)"),
        ("patch_embed_a.proj.weight", torch.zeros(64 * 256), r"is \(16384,\), expected \(64, 1, 16, 16\)"),
    ],
)
def test_tensors_that_do_not_fit_fail(tmp_path: Path, name: str, value: Any, says: str) -> None:
    state = {key: tensor for key, tensor in toys_audio_visual.cav_mae_state().items() if key != name}
    path = toys_audio_visual.cav_mae_file(
        tmp_path / "broken.pth", {**state, **({} if value is None else {name: value})}
    )
    with pytest.raises(CheckpointError, match=rf"broken\.pth does not fit.*{says}"):
        make(path).load("cpu")


@pytest.mark.parametrize(
    ("shape", "got"), [((64,), r"\(64,\)"), ((1, 1, 65), r"\(1, 1, 65\)"), ((64, 1, 1), r"\(64, 1, 1\)")]
)
def test_files_of_other_shapes_fail(tmp_path: Path, shape: tuple[int, ...], got: str) -> None:
    path = toys_audio_visual.cav_mae_file(tmp_path / "flat.pth", {"modality_a": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=rf"modality_a: expected .*\(1, 1, a multiple of 64\), got {got}"):
        make(path)


def test_missing_file_says_where_the_authors_have_it() -> None:
    with pytest.raises(MissingWeightsError, match=r"(?s)no weights 'cav-mae-scale\+\+\.pth'.*github\.com/YuanGongND"):
        make("cav-mae-scale++.pth")


def test_encode_fails_before_load(file: Path) -> None:
    encoder = make(file)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(toys.clip("c", audio=toys.noise(0.1)))])
