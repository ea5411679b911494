"""AST against transformers' own use of it, and against the golden data beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avpipe.extract.encoders import ast
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError
from avpipe.pipeline.features import Features

from . import toys

MEL_STEPS, TIME_STEPS = 12, 25  # of the tiny network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.ast_folder(tmp_path_factory.mktemp("ast"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, **config: Any) -> ast.Encoder:
    return ast.Encoder(parse(ast.Config, {"weights": str(weights), **config}, "test"), "a")


def encode(encoder: ast.Encoder, samples: npt.NDArray[np.float32], start_seconds: float = 0.0) -> Features:
    encoder.load("cpu")
    (features,) = encoder.encode([encoder.prepare(toys.clip("a", audio=samples, start_seconds=start_seconds))])
    return features


def spectrogram(encoder: ast.Encoder, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As the network gets it: filled up."""
    return encoder._filled_up(encoder.prepare(toys.clip("a", audio=samples))["spectrogram"])


def official(folder: Path, samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Any]:
    """What transformers' feature extractor and model make of a waveform."""
    from transformers import ASTFeatureExtractor, ASTModel

    extractor = ASTFeatureExtractor.from_pretrained(folder)
    values = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        return values.numpy()[0], ASTModel.from_pretrained(folder).eval()(values)


@pytest.mark.parametrize("seconds", [0.7, 2.6, 4.0])
def test_features_equal_transformers(folder: Path, seconds: float) -> None:
    samples = toys.noise(seconds)
    encoder = make(folder)
    values, output = official(folder, samples)
    difference = np.abs(spectrogram(encoder, samples) - values)
    assert difference.max() < 1e-3
    assert np.percentile(difference, 99) < 1e-4
    np.testing.assert_allclose(encode(encoder, samples).data, output.last_hidden_state[0].numpy(), atol=1e-3)
    cls = encode(make(folder, tokens="cls"), samples)
    np.testing.assert_allclose(cls.data, output.pooler_output.numpy(), atol=1e-3)


def test_network_equals_transformers_to_the_last_digits(folder: Path) -> None:
    encoder, samples = make(folder), toys.noise(3.0)
    values, output = official(folder, samples)
    encoder.load("cpu")
    np.testing.assert_allclose(encoder._forward(values[None]), output.last_hidden_state.numpy(), atol=2e-6)


def test_extraction_is_not_blind_to_the_constants(folder: Path) -> None:
    encoder, samples = make(folder), toys.noise(1.0)
    assert encoder.geometry.scaled(np.float32(-4.2677393)) == 0
    assert spectrogram(encoder, samples)[-1, 0] == pytest.approx(4.2677393 / (2 * 4.5689974))  # zeros, then normalised
    assert np.abs(spectrogram(encoder, 2 * samples) - spectrogram(encoder, samples)).max() == pytest.approx(
        np.log(4) / (2 * 4.5689974), rel=1e-3
    )


@pytest.fixture(scope="module")
def transparent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without layers: each token knows its own patch only."""
    return toys.ast_folder(tmp_path_factory.mktemp("transparent"), num_hidden_layers=0)


@pytest.mark.parametrize(("band", "frame"), [(0, 0), (3, 200), (64, 87), (125, 255)])
def test_tokens_are_in_the_order_that_the_text_says(transparent: Path, band: int, frame: int) -> None:
    encoder = make(transparent, tokens="patches")
    encoder.load("cpu")
    plain = np.zeros((256, 128), np.float32)
    spot = plain.copy()
    spot[frame, band] = 5.0
    before, after = (encoder.encode([{"spectrogram": one, "start_seconds": np.zeros(1)}])[0] for one in (plain, spot))
    changed = set(np.flatnonzero(np.abs(after.data - before.data).max(axis=1) > 1e-4))
    covering = {
        mel * TIME_STEPS + time
        for mel in range(MEL_STEPS)
        for time in range(TIME_STEPS)
        if 10 * mel <= band < 10 * mel + 16 and 10 * time <= frame < 10 * time + 16
    }
    assert changed == covering
    heard = frame * 0.010 + 0.0125  # the middle of the frame
    assert all(abs(after.pts_seconds[row] - heard) <= 0.0751 for row in covering)


def test_times_of_all_tokens(folder: Path) -> None:
    pts = encode(make(folder), toys.noise(2.0), start_seconds=0.5).pts_seconds
    assert len(pts) == 2 + MEL_STEPS * TIME_STEPS
    np.testing.assert_allclose(pts[:2], 0.5 + (198 - 1) * 0.005 + 0.0125)  # CLS, distillation: the middle of the sound
    # The first patch sees frames 0 to 15: from 0 to 0.175 s.
    np.testing.assert_allclose(pts[2:].reshape(MEL_STEPS, TIME_STEPS)[3, :3], [0.5875, 0.6875, 0.7875])


def test_pooled_tokens_are_averages_of_patches(folder: Path) -> None:
    samples = toys.noise(2.6)
    every = encode(make(folder), samples).data
    patches = every[2:].reshape(MEL_STEPS, TIME_STEPS, -1)
    np.testing.assert_array_equal(encode(make(folder, tokens="patches"), samples).data, every[2:])
    np.testing.assert_allclose(encode(make(folder, tokens="time"), samples).data, patches.mean(axis=0), atol=1e-6)
    mean = encode(make(folder, tokens="mean"), samples)
    np.testing.assert_allclose(mean.data, patches.mean(axis=(0, 1))[None], atol=1e-6)
    cls = encode(make(folder, tokens="cls"), samples)
    np.testing.assert_allclose(cls.data, every[:2].mean(axis=0, keepdims=True), atol=1e-6)
    np.testing.assert_allclose([*mean.pts_seconds, *cls.pts_seconds], 1.3, atol=0.02)


@pytest.mark.parametrize(("seconds", "steps"), [(0.025, 1), (0.11, 1), (0.15, 2), (1.0, 10), (2.6, 25)])
def test_padding_can_be_dropped(folder: Path, seconds: float, steps: int) -> None:
    samples = toys.noise(seconds)
    kept, dropped = (encode(make(folder, tokens="patches", padding=how), samples) for how in ("keep", "drop"))
    assert dropped.data.shape == (MEL_STEPS * steps, 24)
    every = kept.data.reshape(MEL_STEPS, TIME_STEPS, -1)
    np.testing.assert_array_equal(dropped.data, every[:, :steps].reshape(MEL_STEPS * steps, -1))
    np.testing.assert_array_equal(dropped.pts_seconds[:steps], kept.pts_seconds[:steps])


def test_longer_sound_is_cut(folder: Path) -> None:
    samples = toys.noise(6.0)
    encoder = make(folder)
    assert encoder.request.max_seconds == pytest.approx(255 * 0.010 + 0.025)
    np.testing.assert_array_equal(encode(encoder, samples).data, encode(encoder, samples[: 400 + 255 * 160]).data)


def test_public_checkpoint_has_1214_tokens() -> None:
    geometry = make("random").geometry
    assert (geometry.mel_steps, geometry.time_steps) == (12, 101)
    assert ast.SPECIAL_TOKENS + geometry.mel_steps * geometry.time_steps == 1214
    np.testing.assert_allclose(geometry.time_step_seconds()[[0, -1]], [0.0875, 10.0875])
    assert geometry.max_seconds == pytest.approx(10.255)


def test_random_weights_are_seeded_and_shouted_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import ASTConfig

    small = ASTConfig(**{**toys.TINY_AST, "max_length": 1024})
    monkeypatch.setattr("transformers.ASTConfig", lambda: small)  # what is random is as large as the public checkpoint
    samples, state = toys.noise(1.0), torch.get_rng_state()
    one, same, other = (encode(make(f"random:{seed}"), samples).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert "a: RANDOM WEIGHTS, as asked for (weights=random:2)" in caplog.text
    assert make("random:2").spec.weights == {"id": "random", "sha256": "random:2"}
    assert make("random:2").spec.fingerprint != make("random:1").spec.fingerprint


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one, other = (make(toys.ast_folder(tmp_path / str(seed) / "ast", seed=seed)).spec for seed in (1, 2))
    assert one.weights["id"] == other.weights["id"] == "ast"
    assert one.weights["sha256"] != other.weights["sha256"]


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_incomplete_folder_fails(tmp_path: Path, name: str) -> None:
    folder = toys.ast_folder(tmp_path / "ast", leave_out=[name])
    with pytest.raises(MissingWeightsError, match=rf"(?s)the folder holds no {name}.*a\.weights=/path/to/folder"):
        make(folder)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_spectrogram_of_another_size_fails(tmp_path: Path) -> None:
    folder = toys.ast_folder(tmp_path / "ast")
    change(folder / "preprocessor_config.json", max_length=512)
    with pytest.raises(
        CheckpointError, match=r"spectrograms of 512 frames x 128 bands, config\.json expects 256 x 128"
    ):
        make(folder)


def test_preprocessing_of_the_checkpoint_is_used(tmp_path: Path) -> None:
    folder = toys.ast_folder(tmp_path / "ast")
    change(folder / "preprocessor_config.json", mean=-6.8, std=5.5)
    encoder, samples = make(folder), toys.noise(1.0)
    np.testing.assert_allclose(spectrogram(encoder, samples), official(folder, samples)[0], atol=1e-3)
    assert (encoder.spec.preprocessing["mean"], encoder.spec.preprocessing["std"]) == (-6.8, 5.5)
    change(folder / "preprocessor_config.json", do_normalize=False)
    np.testing.assert_allclose(spectrogram(make(folder), samples), official(folder, samples)[0], atol=1e-2)


def test_load_fails_where_tensors_are_missing(tmp_path: Path) -> None:
    folder = toys.ast_folder(tmp_path / "ast")
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit.* 16 tensors missing.*layers\.2\."):
        make(folder).load("cpu")


def test_load_fails_on_a_file_that_is_none(tmp_path: Path) -> None:
    folder = toys.ast_folder(tmp_path / "ast")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as an AST"):
        make(folder).load("cpu")


def test_json_that_is_none_fails(tmp_path: Path) -> None:
    folder = toys.ast_folder(tmp_path / "ast")
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: expected keys and values, got list"):
        make(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        make(folder)


def test_missing_checkpoint_says_how_to_get_it() -> None:
    with pytest.raises(MissingWeightsError) as missing:
        make("MIT/ast-finetuned-audioset-10-10-0.4593")
    assert "hf download MIT/ast-finetuned-audioset-10-10-0.4593" in str(missing.value)


def test_unknown_tokens_fail(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens: .*'all', 'patches', 'time', 'cls' or 'mean', got 'patch'"):
        make(folder, tokens="patch")


def test_encode_fails_before_load(folder: Path) -> None:
    encoder = make(folder)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(toys.clip("a", audio=toys.noise(0.1)))])


def test_loading_is_quiet(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(folder).load("cpu")
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, npt.NDArray[Any]]]:
    """The golden checkpoint as a folder, and its inputs and outputs."""
    from safetensors.numpy import load_file, save_file
    from transformers import ASTFeatureExtractor

    source = Path(__file__).parents[2].parent / "shared" / "golden" / "public" / "hf"
    if not source.is_dir():
        pytest.skip("no ../shared beside the project")
    folder = tmp_path_factory.mktemp("golden")
    described = json.loads((source / "ast.json").read_text(encoding="utf-8"))["config"]
    config = {**described, "model_type": "audio-spectrogram-transformer"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(load_file(source / "ast.weights.safetensors"), folder / "model.safetensors", {"format": "pt"})
    ASTFeatureExtractor(max_length=described["max_length"]).save_pretrained(folder)
    return folder, load_file(source / "ast.io.safetensors")


@pytest.mark.shared
def test_golden_from_the_spectrogram(golden: tuple[Path, dict[str, npt.NDArray[Any]]]) -> None:
    folder, data = golden
    encoder = make(folder)
    encoder.load("cpu")
    hidden = encoder._forward(data["fbank_normalized"])
    np.testing.assert_allclose(hidden, data["expected_last_hidden_state"], atol=2e-5)


@pytest.mark.shared
def test_golden_in_double_precision(golden: tuple[Path, dict[str, npt.NDArray[Any]]]) -> None:
    folder, data = golden
    encoder = make(folder)
    encoder.load("cpu")
    with torch.inference_mode():
        hidden = encoder._model.double()(torch.from_numpy(data["fbank_normalized"]).double()).last_hidden_state
    np.testing.assert_allclose(hidden[:, ::4], data["expected64_last_hidden_state_every4th"], atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("which", [0, 1])
def test_golden_from_the_waveform(golden: tuple[Path, dict[str, npt.NDArray[Any]]], which: int) -> None:
    folder, data = golden
    samples = data[f"waveform_i16.{which}"].astype(np.float32) / 32768
    encoder = make(folder)
    difference = np.abs(spectrogram(encoder, samples) - data["fbank_normalized"][which])
    assert difference.max() < 1e-3
    assert np.percentile(difference, 99) < 1e-4
    np.testing.assert_allclose(encode(encoder, samples).data, data["expected_last_hidden_state"][which], atol=2e-3)
    cls = encode(make(folder, tokens="cls"), samples)
    np.testing.assert_allclose(cls.data[0], data["expected_pooler_output"][which], atol=2e-3)


@pytest.mark.shared
@pytest.mark.parametrize("which", [0, 1])
def test_golden_of_the_default_spectrogram(golden: tuple[Path, dict[str, npt.NDArray[Any]]], which: int) -> None:
    samples = golden[1][f"waveform_i16.{which}"].astype(np.float32) / 32768
    rows = spectrogram(make("random"), samples)[::16]
    np.testing.assert_allclose(rows, golden[1]["fbank_normalized_1024_rows16"][which], atol=1e-3)
