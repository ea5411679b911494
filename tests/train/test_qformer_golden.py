"""The ``qformer`` fusion against numbers of the authors' own code.

``tests/data/mmqformer_aligned_f2.safetensors.gz`` holds random weights under the official names, inputs, and what the
class ``BertLMHeadModel`` of ABrimont/Multi-modal-BLIP-2 (``multimodal_QFormer.py``, transformers 4.33.2), with
``ln_vision``, ``ln_audio`` and the projections around it, makes of them in float64. Of the three clips one has no audio
at all. ``tests/data/mmqformer_alternating_2.safetensors.gz`` holds the first two layers of the same for
``multimodal_QFormer_alternate.py``, in float32. The folder ../shared has more of them, and LAVIS's own Q-Former.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch
from avpipe.train.fusions.qformer import PAPER, Config, Fusion, from_official

STORED = Path(__file__).parents[1] / "data" / "mmqformer_aligned_f2.safetensors.gz"
ALTERNATING = STORED.with_name("mmqformer_alternating_2.safetensors.gz")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
VARIANTS = {  # the sizes of the golden networks
    "aligned_f2": {"cross_attention_every": 2},
    "aligned_f1": {"cross_attention_every": 1},
    "increased": {"cross_attention_every": 2, "queries": {"video": 32, "audio": 32}},
    "alternating": {"streams": "alternating"},
    "separate": {"streams": "separate"},
}
SMALL = {"width": 32, "layers": 4, "heads": 4, "feed_forward": 64, "out_width": 20}

SPECS = {
    "sound": FeatureSpec(name="sound", encoder="toy", modality="audio", dim=24),
    "sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=28),
}


def build(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, **config: Any) -> Fusion:
    fusion = Fusion(Config(**{**PAPER, **SMALL, **config}), SPECS).eval()
    fusion.load_state_dict(from_official(weights))
    return fusion.to(dtype)


def batch_of(inputs: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, *, masked: bool = True) -> Batch:
    sight, sound = inputs["visual_tokens"].to(dtype), inputs["audio_tokens"].to(dtype)
    mask = {
        "sight": torch.ones(sight.shape[:2], dtype=torch.bool),
        "sound": inputs["audio_mask"].bool() if masked else torch.ones(sound.shape[:2], dtype=torch.bool),
    }
    return Batch(
        clip_ids=("a", "b", "c"),
        features={"sound": sound, "sight": sight},
        mask=mask,
        pts_seconds={"sound": torch.zeros(sound.shape[:2]), "sight": torch.zeros(sight.shape[:2])},
        present={name: real.any(dim=1) for name, real in mask.items()},
    )


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "expected": {}}
    for name, tensor in load(gzip.decompress(STORED.read_bytes())).items():
        part, key = name.split("/")
        parts[part][key] = tensor
    return parts


def error(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype = torch.float64, **config: Any) -> Tensor:
    """The largest difference in each of the three clips."""
    weights = stored["weights"]
    with torch.inference_mode():
        fused = build(weights, dtype, **config)(batch_of(stored["inputs"], dtype))
    difference: Tensor = (fused.data.double() - stored["expected"]["expected64_llm_inputs"]).abs().amax(dim=(1, 2))
    return difference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gives_the_authors_numbers(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype) -> None:
    assert error(stored, dtype, **VARIANTS["aligned_f2"]).max() < TOLERANCE[dtype]


def test_one_clip_has_no_audio(stored: dict[str, dict[str, Tensor]]) -> None:
    # ... and in it alone our default differs from the authors' uniform attention over padding.
    present = stored["inputs"]["audio_mask"].bool().any(dim=1)
    assert present.tolist().count(False) == 1
    found = error(stored, absent="zero")
    assert found[present].max() < 1e-9
    assert found[~present].min() > 1e-3


def alternating(dtype: torch.dtype, **config: Any) -> Tensor:
    """The largest difference of the first two layers of Alternating, in each of the three clips; of audio and video."""
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "expected": {}}
    for name, tensor in load(gzip.decompress(ALTERNATING.read_bytes())).items():
        part, key = name.split("/")
        parts[part][key] = tensor
    settings = {**PAPER, **SMALL, "layers": 2, "out_width": None, "streams": "alternating", **config}
    fusion = Fusion(Config(**settings), SPECS).eval()
    missing = fusion.load_state_dict(from_official(parts["weights"]), strict="streams" not in config)
    assert len(missing.unexpected_keys) == (10 if "streams" in config else 0)  # layer 1's attention to audio
    with torch.inference_mode():
        found = fusion.to(dtype)(batch_of(parts["inputs"], dtype)).data.double()
    expected = torch.cat([parts["expected"][f"layer1_{stream}_out"] for stream in ("aud", "vis")], dim=1)
    return (found - expected).abs().amax(dim=(1, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alternating_streams_are_the_authors(dtype: torch.dtype) -> None:
    assert alternating(dtype).max() < 1e-4  # the numbers of single layers are stored in float32


def test_streams_that_do_not_alternate_give_other_numbers() -> None:
    assert alternating(torch.float64, streams="aligned").min() > 1e-2


@pytest.mark.parametrize("other", [{"time_embedding": "sinusoidal"}, {"norm": "pre"}, {"heads": 2}], ids=str)
def test_other_settings_give_other_numbers(stored: dict[str, dict[str, Tensor]], other: dict[str, Any]) -> None:
    weights = stored["weights"]
    fusion = Fusion(Config(**{**PAPER, **SMALL, **other}), SPECS).eval()
    fusion.load_state_dict(from_official(weights), strict=False)
    found = fusion.double()(batch_of(stored["inputs"])).data
    assert (found - stored["expected"]["expected64_llm_inputs"]).abs().max() > 1e-2


def test_a_missing_weight_is_noticed(stored: dict[str, dict[str, Tensor]]) -> None:
    weights = {name: tensor for name, tensor in stored["weights"].items() if name != "ln_audio.bias"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"inputs\.1\.norm\.bias"'):
        build(weights)


# -- the whole set, beside the project ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    folder = shared / "golden_heads" / "public" / "mmqformer"
    if not folder.is_dir():
        pytest.skip("no golden_heads in ../shared")
    return folder


def read(golden: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights, inputs, expected."""
    return (
        load_file(golden / f"{name}.weights.safetensors"),
        load_file(golden / "inputs.io.safetensors"),
        load_file(golden / f"{name}.io.safetensors"),
    )


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(golden: Path, name: str, dtype: torch.dtype) -> None:
    weights, inputs, expected = read(golden, name)
    fusion = build(weights, dtype, **VARIANTS[name])
    with torch.inference_mode():
        found = fusion(batch_of(inputs, dtype)).data.double()
        torch.testing.assert_close(found, expected["expected64_llm_inputs"], rtol=0, atol=TOLERANCE[dtype])
        # Without an audio mask, audio before video, after the same projections.
        found = fusion(batch_of(inputs, dtype, masked=False)).data.double()
        visual, audio = (
            project(expected[f"expected_nomask_{key}"].to(dtype))
            for project, key in zip(fusion.outputs, ("vis", "aud"), strict=True)
        )
        torch.testing.assert_close(found, torch.cat([audio, visual], dim=1).double(), rtol=0, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["aligned_f2", "aligned_f1", "alternating", "separate"])
def test_attention_maps(golden: Path, name: str) -> None:
    weights, inputs, expected = read(golden, name)
    attention = build(weights, **VARIANTS[name])(batch_of(inputs), return_attention=True).attention
    ours = {
        f"expected_layer{found.layer}_attn_cross_{'vis' if found.keys == 'sight' else 'aud'}": found.weights.float()
        for found in attention
        if found.keys != "all"
    }
    assert sorted(ours) == sorted(key for key in expected if "_attn_cross_" in key)
    for key, weight in ours.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["aligned_f2", "aligned_f1", "alternating", "separate"])
def test_gradients(golden: Path, name: str) -> None:
    weights, inputs, expected = read(golden, name)
    facts = json.loads((golden / f"{name}.json").read_text(encoding="utf-8"))
    fusion = build(weights, **VARIANTS[name])
    loss = (fusion(batch_of(inputs)).data * expected["grad_probe"].double()).sum()
    assert loss.item() == pytest.approx(facts["grad_probe_loss_float64"], abs=1e-8)
    loss.backward()
    official = {key: torch.tensor(value).double() for key, value in facts["grad_l2_float64"].items()}
    if name == "separate":  # which has two parameters where we have one
        assert fusion.queries.grad is not None
        for key, rows in (("query_tokens", slice(0, 32)), ("query_tokens_aud", slice(32, 48))):
            assert fusion.queries.grad[:, rows].norm().item() == pytest.approx(official.pop(key).item(), rel=1e-6)
        official["query_tokens"] = fusion.queries.grad.norm()
    norms = from_official(official)
    ours = dict(fusion.named_parameters())
    assert set(norms) == set(ours)
    for key, norm in norms.items():
        gradient = ours[key].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm.item(), rel=1e-6, abs=1e-8), key


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_video_alone_is_blip2(shared: Path, dtype: torch.dtype) -> None:
    # LAVIS's own Q-Former, with its text branch, which no query uses. The golden starts behind ``ln_vision``.
    folder = shared / "golden" / "public" / "qformer"
    if not folder.is_dir():
        pytest.skip("no golden in ../shared")
    inputs = load_file(folder / "qformer_lavis.io.safetensors")
    sizes = {"width": 48, "layers": 4, "heads": 4, "feed_forward": 96, "queries": {"video": 8}}
    specs = {"sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=40)}
    fusion = Fusion(Config(**{**PAPER, **sizes}), specs).eval()
    fusion.inputs[0].norm = torch.nn.Identity()
    fusion.load_state_dict(from_official(load_file(folder / "qformer_lavis.weights.safetensors")))
    sight, seen = inputs["encoder_hidden_states"].to(dtype), inputs["encoder_attention_mask"].bool()
    for mask, key in (
        (seen, "expected64_query_states"),
        (torch.ones_like(seen), "expected_query_states_no_encoder_mask"),
    ):
        batch = Batch(
            clip_ids=("a", "b"),
            features={"sight": sight},
            mask={"sight": mask},
            pts_seconds={"sight": torch.zeros(mask.shape)},
            present={"sight": mask.any(dim=1)},
        )
        with torch.inference_mode():
            found = fusion.to(dtype)(batch).data.double()
        tolerance = TOLERANCE[dtype] if key.startswith("expected64") else 1e-4
        torch.testing.assert_close(found, inputs[key].double(), rtol=0, atol=tolerance)
