"""BEATs against numbers of the authors' own code, and what the encoder makes of it.

``tests/data/beats_pretrained_layer.safetensors.gz`` holds one layer with random weights (rounded to 18 bits of
mantissa, which keeps the file small), the real tokens of a padded clip that go into it, and every third of those that
come out of it in microsoft/unilm ``beats/``. The folder ../shared has whole networks.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file
from torch import Tensor, nn

from avpipe.extract.encoders import beats
from avpipe.extract.networks import beats as networks
from avpipe.extract.networks.beats import Attention, Beats, BeatsConfig, Layer, PositionConv
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError
from avpipe.pipeline.features import Features

from . import toys, toys_audio_visual

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "data" / "beats_pretrained_layer.safetensors.gz"
GOLDEN = ROOT.parent / "shared" / "golden"
TOLERANCE = {"beats_pretrained": 2e-5, "beats_finetuned": 2e-6, "beats_alt": 1e-6}
"""In float32: what the makers of the golden data say can be reached. In float64: 1e-9."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, **config: Any) -> beats.Encoder:
    return beats.Encoder(parse(beats.Config, {"weights": str(weights), **config}, "test"), "b")


def encode(encoder: beats.Encoder, *clips: npt.NDArray[np.float32], start_seconds: float = 0.0) -> list[Features]:
    encoder.load("cpu")
    return encoder.encode(
        [encoder.prepare(toys.clip("b", audio=samples, start_seconds=start_seconds)) for samples in clips]
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys_audio_visual.beats_file(tmp_path_factory.mktemp("beats") / "tiny.pt")


def tiny(**changed: Any) -> Beats:
    content = toys_audio_visual.beats_content(**changed)
    network = Beats(BeatsConfig.of_file(content, Path("toy"))).eval()
    networks.fill(network, content["model"], Path("toy"))
    return network


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).detach().abs().max())


# -- the network, against the authors' numbers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "expected": {}}
    for name, tensor in load(gzip.decompress(STORED.read_bytes())).items():
        part, key = name.split("/")
        parts[part][key] = tensor
    return parts


STORED_CONFIG = BeatsConfig(
    encoder_layers=3,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=160,
    encoder_attention_heads=4,
    deep_norm=True,
    relative_position_embedding=True,
    max_distance=800,
    gru_rel_pos=True,
)


def error_of_layer(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype = torch.float64) -> float:
    """With 33 padded tokens behind the real ones."""
    layers = networks.Layers(STORED_CONFIG).to(dtype)
    layer = layers.layers[0]
    assert isinstance(layer, Layer)
    layer.load_state_dict(stored["weights"])
    tokens = stored["inputs"]["tokens"].to(dtype)
    real = len(tokens)
    tokens = torch.cat([tokens, torch.full((96 - real, 64), 3.0, dtype=dtype)])[None]
    hidden = networks.hide(torch.arange(96)[None] >= real, dtype)
    with torch.inference_mode():
        after = layer(tokens, layers.position_bias(96), hidden)[0, :real:3]
    return distance(after, stored["expected"]["tokens"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layer_equals_the_authors(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype) -> None:
    assert error_of_layer(stored, dtype) < 5e-5


def test_a_residual_that_is_not_scaled_shows(
    stored: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "STORED_CONFIG", replace(STORED_CONFIG, deep_norm=False))
    assert error_of_layer(stored) > 1e-2


def test_a_gate_of_the_wrong_query_shows(stored: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    right = Attention._gate
    monkeypatch.setattr(Attention, "_gate", lambda self, query: right(self, query / 4))
    assert error_of_layer(stored) > 1e-3


def test_buckets_by_hand() -> None:
    near = networks.buckets(torch.tensor([-3, -1, 0, 1, 3]), 320, 800)
    assert near.tolist() == [3, 1, 0, 161, 163]
    far = networks.buckets(torch.tensor([-79, -80, -253, -799, -5000, 5000]), 320, 800)
    # 80 + 80 * ln(253 / 80) / ln(10) = 120.0003
    assert far.tolist() == [79, 80, 120, 159, 159, 319]
    assert networks.buckets(torch.tensor([-253]), 320, 1280).tolist() == [113]


def test_position_convolution_is_torch_s_with_normalised_taps() -> None:
    for kernel in (8, 5):
        ours = PositionConv(12, kernel, 3)
        theirs = nn.utils.parametrizations.weight_norm(nn.Conv1d(12, 12, kernel, padding=kernel // 2, groups=3), dim=2)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(torch.randn_like(parameter))
        theirs.load_state_dict(
            {
                "bias": ours.bias,
                "parametrizations.weight.original0": ours.weight_g,
                "parametrizations.weight.original1": ours.weight_v,
            }
        )
        channels = torch.randn(2, 12, 20)
        torch.testing.assert_close(ours(channels), theirs(channels)[..., :20])


@pytest.mark.parametrize(("frame", "band"), [(0, 0), (17, 40), (95, 127)])
def test_tokens_are_time_major(frame: int, band: int) -> None:
    network = tiny()
    plain = torch.zeros(1, 96, 128)
    spot = plain.clone()
    spot[0, frame, band] = 5.0
    with torch.inference_mode():
        changed = (network.embed(spot) - network.embed(plain)).abs().amax(dim=2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [frame // 16 * 8 + band // 16]


def test_real_tokens_do_not_see_padding() -> None:
    for changed in ({}, {"gru_rel_pos": False}, {"relative_position_embedding": False}):
        network, spectrogram = tiny(**changed), torch.randn(2, 64, 128)
        padding = torch.arange(32)[None] >= torch.tensor([[32], [21]])
        other = spectrogram.clone()
        other[1, 48:] = 7.0  # tokens 24 to 31
        with torch.inference_mode():
            before, after = network(spectrogram, padding), network(other, padding)
            torch.testing.assert_close(after[~padding], before[~padding], atol=1e-6, rtol=0)
            assert distance(network(other)[1, :21], network(spectrogram)[1, :21]) > 1e-3


def test_no_padding_is_a_mask_of_nothing() -> None:
    for changed in ({}, {"gru_rel_pos": False}, {"relative_position_embedding": False}, {"deep_norm": False}):
        network, spectrogram = tiny(**changed), torch.randn(2, 64, 128)
        with torch.inference_mode():
            masked = network(spectrogram, torch.zeros(2, 32, dtype=torch.bool))
            torch.testing.assert_close(masked, network(spectrogram), atol=1e-6, rtol=0)


def test_masks_are_reduced_twice_by_hand() -> None:
    samples = torch.arange(23)[None] >= 13  # of 23 in 5 groups of 4: 13 lies in the fourth
    assert networks.token_padding(samples, 5, 5).tolist() == [[False] * 4 + [True]]
    assert networks.token_padding(samples, 5, 2).tolist() == [[False, False]]
    assert networks.token_padding(samples, 5, 1).tolist() == [[False]]


def test_classifier_leaves_padding_out_of_its_mean() -> None:
    network = tiny(finetuned_model=True, predictor_class=3)
    tokens = torch.randn(1, 8, 16)
    padding = torch.arange(8)[None] >= 5
    torch.testing.assert_close(network.classify(tokens, padding), network.classify(tokens[:, :5]))
    assert distance(network.classify(tokens, padding), network.classify(tokens)) > 1e-3


def test_classifier_that_is_not_there_fails() -> None:
    with pytest.raises(ValueError, match="expected a fine-tuned network"):
        tiny().classify(torch.zeros(1, 8, 16))


def test_the_table_of_biases_is_one_parameter() -> None:
    network = tiny(encoder_layers=3)
    names = [name for name in network.state_dict() if name.endswith("relative_attention_bias.weight")]
    assert len(names) == 3
    assert len([name for name, _ in network.named_parameters() if name in names]) == 1


# -- whole networks of the golden data ---------------------------------------------------------------------------------

Golden = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]


def golden(name: str) -> Golden:
    """Described, weights, inputs and outputs."""
    folder = GOLDEN / "public" / "beats"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project")
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return described, load_file(folder / f"{name}.weights.safetensors"), load_file(folder / f"{name}.io.safetensors")


def golden_network(name: str, dtype: torch.dtype) -> tuple[Beats, dict[str, Tensor]]:
    described, weights, data = golden(name)
    network = Beats(BeatsConfig.of_file(described, Path(name))).eval()
    networks.fill(network, weights, Path(name))
    return network.to(dtype), data


@pytest.mark.shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_golden_features(name: str, dtype: torch.dtype) -> None:
    network, data = golden_network(name, dtype)
    spectrogram, mask = data["fbank"].to(dtype), data["token_padding_mask"]
    tolerance = TOLERANCE[name] if dtype == torch.float32 else 1e-9
    kind = "logits" if network.predictor else "features"
    expected = "expected64" if dtype == torch.float64 else "expected"
    with torch.inference_mode():
        for how, padding in (("masked", mask), ("nomask", None)):
            out = network(spectrogram, padding)
            out = network.classify(out, padding) if network.predictor else out
            assert distance(out, data[f"{expected}_{kind}_{how}"]) < tolerance
            if network.predictor and dtype == torch.float32:
                assert distance(out.sigmoid(), data[f"expected_probs_{how}"]) < tolerance


@pytest.mark.shared
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_golden_hidden_states(name: str) -> None:
    network, data = golden_network(name, torch.float32)
    states: list[Tensor] = []
    network.encoder.layers[0].register_forward_pre_hook(lambda _, given_: states.append(given_[0]))
    for layer in network.encoder.layers:
        layer.register_forward_hook(lambda _, __, after: states.append(after))
    with torch.inference_mode():
        assert distance(network.embed(data["fbank"]), data["tokens_before_encoder"]) < 1e-6
        bias = network.encoder.position_bias(data["position_bias"].shape[1])
        assert bias is not None
        assert torch.equal(bias, data["position_bias"])
        network(data["fbank"], data["token_padding_mask"])
    assert len(states) == 1 + len(network.encoder.layers)
    for number, state in enumerate(states):
        assert distance(state, data[f"hidden_masked.{number}"]) < 2e-5, number


@pytest.mark.shared
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_golden_masks_and_buckets(name: str) -> None:
    described, _, data = golden(name)
    frames, tokens = data["fbank"].shape[1], data["token_padding_mask"].shape[1]
    mask = networks.token_padding(data["padding_mask"], frames, tokens)
    assert torch.equal(mask, data["token_padding_mask"])
    assert torch.equal(networks.token_padding(data["padding_mask"], frames, frames), data["frame_padding_mask"])
    cfg = described["cfg"]
    ids = networks.buckets(data["bucket_distance"], cfg["num_buckets"], cfg["max_distance"])
    assert torch.equal(ids, data["bucket_id"])


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_public_files_have_these_names_and_shapes(kind: str) -> None:
    path = GOLDEN / "layouts" / f"beats_iter3_plus_AS2M.{kind}.json"
    if not path.is_file():
        pytest.skip("no ../shared beside the project")
    layout = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        network = Beats(BeatsConfig.of_file(layout, path))
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == {name: entry["shape"] for name, entry in layout["keys"].items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == layout["n_parameters_unique"]
    if kind == "pretrained":
        assert network.config == networks.ITER3_PLUS


# -- the encoder -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_golden_spectrogram(name: str) -> None:
    _, _, data = golden(name)
    samples, lengths = data["waveform"].numpy(), data["lengths"].tolist()
    encoder = make("random", max_seconds=samples.shape[1] / 16000)
    for clip, length, expected in zip(samples, lengths, data["fbank"].numpy(), strict=True):
        found = encoder.prepare(toys.clip("b", audio=clip[:length]))["spectrogram"]
        filled = np.full_like(expected, beats.silence())
        filled[: len(found)] = found
        difference = np.abs(filled - expected)
        assert difference.max() < 1e-3
        assert np.percentile(difference, 99) < 1e-4


@pytest.mark.shared
@pytest.mark.parametrize("name", ["beats_pretrained", "beats_alt"])
def test_golden_from_the_waveform(name: str, tmp_path: Path) -> None:
    described, weights, data = golden(name)
    path = tmp_path / "BEATs_iter3_plus_AS2M.pt"
    torch.save({"cfg": described["cfg"], "model": weights}, path)
    samples, lengths = data["waveform"].numpy(), data["lengths"].tolist()
    settings = {"max_seconds": samples.shape[1] / 16000}
    clips = [clip[:length] for clip, length in zip(samples, lengths, strict=True)]
    expected, padding = data["expected_features_masked"].numpy(), data["token_padding_mask"].numpy()
    for kept, wanted in zip(encode(make(path, padding="keep", **settings), *clips), expected, strict=True):
        np.testing.assert_allclose(kept.data, wanted, atol=1e-4)
    for number, dropped in enumerate(encode(make(path, **settings), *clips)):
        np.testing.assert_allclose(dropped.data, expected[number][~padding[number]], atol=1e-4)
    if "expected_long_features" in data:
        long = data["long_waveform_i16"][0].numpy().astype(np.float32) / 32768
        (features,) = encode(make(tmp_path), long)
        np.testing.assert_allclose(features.data, data["expected_long_features"][0].numpy(), atol=1e-4)


def test_constants_are_the_authors() -> None:
    # ln(1.1920929e-07) = -15.942385, of a frame without sound
    assert beats.silence() == pytest.approx((-15.942385 - 15.41663) / (2 * 6.55582), abs=1e-5)
    encoder = make("random")
    quiet, loud = (encoder.prepare(toys.clip("b", audio=toys.tone(1.0, level=level))) for level in (0.05, 0.1))
    difference = loud["spectrogram"] - quiet["spectrogram"]
    assert np.median(difference) == pytest.approx(math.log(4) / (2 * 6.55582), rel=1e-3)


def test_a_real_file_s_numbers_of_tokens() -> None:
    audiocaps, msrvtt, default = (make("random", max_seconds=s).geometry for s in (160125 / 16000, 20.015625, 10.0))
    assert [g.time_steps * g.mel_steps for g in (audiocaps, msrvtt, default)] == [496, 1000, 496]
    assert msrvtt.max_samples == 320250
    np.testing.assert_allclose(default.step_seconds()[[0, 1, -1]], [0.0875, 0.2475, 9.8475])


@pytest.mark.parametrize("seconds", [0.3, 8.999, 9.9999, 12.0])
def test_ten_seconds_are_as_good_as_160125_samples(file: Path, seconds: float) -> None:
    (ours,), (theirs,) = (encode(make(file, max_seconds=s), toys.noise(seconds)) for s in (10.0, 160125 / 16000))
    np.testing.assert_array_equal(ours.pts_seconds, theirs.pts_seconds)
    np.testing.assert_allclose(ours.data, theirs.data, atol=1e-5)


@given(num_samples=st.integers(1, 70000), max_samples=st.integers(3200, 64000))
def test_tokens_that_are_real_are_those_of_the_mask(num_samples: int, max_samples: int) -> None:
    geometry = beats.Geometry(max_samples=max_samples, patch=16, dim=8)
    tokens = geometry.time_steps * geometry.mel_steps
    mask = networks.token_padding(torch.arange(max_samples)[None] >= num_samples, geometry.max_frames, tokens)[0]
    real = geometry.real_tokens(num_samples)
    assert real >= 1
    assert mask.tolist() == [False] * real + [True] * (tokens - real)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.17, 1.234, 3.0, 5.0])
def test_dropping_padding_gives_the_first_rows_of_keeping_it(file: Path, seconds: float) -> None:
    (kept,), (dropped,) = (
        encode(make(file, padding=how, max_seconds=5.0), toys.noise(seconds)) for how in ("keep", "drop")
    )
    assert len(kept.data) == 248
    assert len(dropped.data) == min(248, math.ceil(seconds * 50))  # one for 20 ms of sound begun
    np.testing.assert_allclose(dropped.data, kept.data[: len(dropped.data)], atol=1e-5)
    np.testing.assert_array_equal(dropped.pts_seconds, kept.pts_seconds[: len(dropped.data)])


def test_times_of_tokens(file: Path) -> None:
    (features,) = encode(make(file), toys.noise(1.0), start_seconds=0.5)
    assert features.pts_seconds[:16].tolist() == [pytest.approx(0.5875)] * 8 + [pytest.approx(0.7475)] * 8
    assert len(features.pts_seconds) == 50


@pytest.mark.parametrize("padding", ["keep", "drop"])
def test_pooled_tokens_are_averages(file: Path, padding: str) -> None:
    samples = toys.noise(0.5)  # 25 tokens: 3 time steps and the lowest band of a fourth
    settings = {"max_seconds": 2.0, "padding": padding}
    every, time, mean = (
        encode(make(file, tokens=tokens, **settings), samples)[0] for tokens in ("all", "time", "mean")
    )
    assert len(every.data) == {"keep": 96, "drop": 25}[padding]
    for step, row in enumerate(time.data):
        np.testing.assert_allclose(row, every.data[8 * step : 8 * step + 8].mean(axis=0), atol=1e-5)
    assert len(time.data) == {"keep": 12, "drop": 4}[padding]
    np.testing.assert_array_equal(time.pts_seconds, every.pts_seconds[::8])
    np.testing.assert_allclose(mean.data, every.data.mean(axis=0, keepdims=True), atol=1e-5)
    assert mean.pts_seconds == pytest.approx((0.0875 + 0.5675) / 2)


def test_longer_sound_is_cut(file: Path) -> None:
    samples = toys.noise(3.0)
    encoder = make(file, max_seconds=2.0)
    assert encoder.request.max_seconds == 2.0
    (whole,), (cut,) = encode(encoder, samples), encode(encoder, samples[:32000])
    np.testing.assert_array_equal(whole.data, cut.data)


def test_random_weights_are_seeded_and_shouted_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = BeatsConfig(**{key: value for key, value in toys_audio_visual.TINY_BEATS.items() if key != "dropout"})
    monkeypatch.setattr(networks, "ITER3_PLUS", small)
    state = torch.get_rng_state()
    one, same, other = (encode(make(f"random:{seed}"), toys.noise(1.0))[0].data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert "b: RANDOM WEIGHTS, as asked for (weights=random:2)" in caplog.text
    assert make("random:2").spec.weights == {"id": "random", "sha256": "random:2"}


def test_random_weights_are_of_full_size() -> None:
    assert make("random").spec.dim == 768
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Beats(networks.ITER3_PLUS).parameters()) == 90_311_792


def test_fine_tuned_files_give_tokens_too(tmp_path: Path) -> None:
    path = toys_audio_visual.beats_file(tmp_path / "tuned.pt", finetuned_model=True, predictor_class=3)
    content = torch.load(path)
    torch.save({**content, "label_dict": {0: "/m/09x0r"}}, path)
    (features,) = encode(make(path), toys.noise(1.0))
    assert features.data.shape == (50, 16)


# -- files that do not fit ---------------------------------------------------------------------------------------------


def broken(tmp_path: Path, **changes: Any) -> Path:
    """A file with tensors changed: ``None`` leaves one out."""
    content = toys_audio_visual.beats_content()
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del content["model"][key]
        else:
            content["model"][key] = value
    torch.save(content, tmp_path / "broken.pt")
    return tmp_path / "broken.pt"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder__layers__1__fc1__bias": None}, r"1 missing: encoder\.layers\.1\.fc1\.bias"),
        ({"encoder__layers__2__fc1__bias": torch.zeros(24)}, r"1 left over: encoder\.layers\.2\.fc1\.bias"),
        ({"layer_norm__weight": torch.zeros(13)}, r"layer_norm\.weight is \(13,\), expected \(12,\)"),
        ({"patch_embedding__weight": torch.zeros(3072)}, r"patch_embedding\.weight is \(3072,\), expected \(12, 1, 16"),
        ({"encoder__layers__0__self_attn__relative_attention_bias__weight": None}, "1 missing: encoder.layers.0.self"),
        (
            {"encoder__layers__1__self_attn__relative_attention_bias__weight": torch.zeros(32, 2)},
            r"should share one table .*: encoder\.layers\.1\..* is not encoder\.layers\.0",
        ),
    ],
)
def test_tensors_that_do_not_fit_fail(tmp_path: Path, changes: Mapping[str, Any], says: str) -> None:
    path = broken(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"broken\.pt.*{says}"):
        make(path).load("cpu")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {"a": torch.zeros(1)}}, "expected the keys 'cfg' and 'model', got model"),
        ({"cfg": {}, "model": {}}, "cfg: no input_patch_size"),
        ({"cfg": {"input_patch_size": "16"}}, "cfg: input_patch_size: expected int, got '16'"),
        ({"cfg": {"input_patch_size": 16, "conv_pos": 0}}, "conv_pos: expected at least 1, got 0"),
        ({"cfg": {"input_patch_size": 16, "activation_fn": "glu"}}, "activation_fn: expected 'gelu', got 'glu'"),
        ({"cfg": {"input_patch_size": 16, "deep_norm": True, "layer_norm_first": True}}, "exclude each other"),
        ({"cfg": {"input_patch_size": 16, "encoder_attention_heads": 7}}, "expected a multiple of 7 heads, got 768"),
        ({"cfg": {"input_patch_size": 32}}, "input_patch_size: expected 8 or 16, got 32"),
    ],
)
def test_descriptions_that_fit_no_network_fail(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt: .*{says}"):
        make(tmp_path / "other.pt")


def test_missing_file_says_where_the_authors_have_it() -> None:
    with pytest.raises(
        MissingWeightsError, match=r"(?s)no weights 'BEATs_iter3_plus_AS2M\.pt'.*github\.com/microsoft/unilm/tree"
    ):
        make("BEATs_iter3_plus_AS2M.pt")


def test_too_short_a_length_fails(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_seconds: .*0\.2.*got 0\.1"):
        make(file, max_seconds=0.1)
    assert make(file, max_seconds=0.2).geometry.time_steps == 1


def test_encode_fails_before_load(file: Path) -> None:
    encoder = make(file)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(toys.clip("b", audio=toys.noise(0.1)))])
