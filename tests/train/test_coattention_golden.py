"""The ``coattention`` fusion against numbers of the authors' own code.

``tests/data/micap_coattn_layer.safetensors.gz`` holds the first of two layers of a random network under the official
names, with its embeddings (the rows in use), poolers and combiners, and what ``CoModalModule`` and ``AggModule`` of
deckyal/MI-Cap (a5237ba) make of two clips, one with a padded sentence; of the first also the states after both layers,
in float64, and what is pooled and given out from there. The folder ../shared has the whole network, the form without
sharing, and the model around it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file
from torch import Tensor, nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch, Fused
from avpipe.train.fusions.coattention import PAPER, Config, Fusion
from avpipe.train.objectives.contrastive import info_nce

STORED = Path(__file__).parents[1] / "data" / "micap_coattn_layer.safetensors.gz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
WIDTH = 48
SMALL = {"width": WIDTH, "layers": 2, "heads": 4, "feed_forward": 192, "frame_embedding": False, "project": "none"}
TYPE_ROW = {"audio": 0, "video": 1}
"""The rows that the authors use of their tables of types."""

OFFICIAL_NAMES = (
    (r"^cross_module\.(audio|video)_emebdding\.position_embeddings\.", r"streams.\1.positions."),
    (r"^cross_module\.(audio|video)_emebdding\.token_embeddings\.", r"streams.\1.types."),
    (r"^cross_module\.(audio|video)_emebdding\.LayerNorm\.", r"streams.\1.norm."),
    (r"^cross_module\.cross_pooler_(audio|video)\.dense\.", r"poolers.\1."),
    (r"^cross_module\.co_cross\.", "layers."),
    (r"\.co_cross_attn_audio\.", ".cross_attentions.0."),
    (r"\.co_cross_attn_video\.", ".cross_attentions.1."),
    (r"\.sa_audio\.", ".self_attentions.0."),
    (r"\.sa_video\.", ".self_attentions.1."),
    (r"\.audio_(inter|output)\.", r".feed_forwards.0.\1."),
    (r"\.video_(inter|output)\.", r".feed_forwards.1.\1."),
    (r"\.inter\.dense\.", ".wide."),
    (r"\.output\.dense\.", ".out."),
    (r"\.output\.(LayerNorm|layer_norm)\.", ".norm."),
    (r"\.self\.q\.", ".query."),
    (r"\.self\.k\.", ".key."),
    (r"\.self\.v\.", ".value."),
    (r"^agg_module\.post_ln\.", "norm."),
    (r"^agg_module\.mlp\.0\.", "gate."),
    (r"^agg_module\.mlp\.2\.", "norm."),
    (r"^video_encoder\.visual_projection\.", "streams.video.inputs.0.project."),
)


def our_name(name: str) -> str:
    for pattern, replacement in OFFICIAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state: Mapping[str, Tensor], *, gate: bool = False, share: str = "shared") -> dict[str, Tensor]:
    """The authors' weights under our names; what their forward pass never calls is left out."""
    picked = {
        name: tensor for name, tensor in state.items() if re.match(r"cross_module|agg_module|video_encoder", name)
    }
    kept = "agg_module_gated.mlp" if gate else "agg_module.post_ln"
    picked = {name: tensor for name, tensor in picked.items() if not name.startswith("agg") or name.startswith(kept)}
    if share == "shared":
        picked = {name: tensor for name, tensor in picked.items() if ".sa_video." not in name}
    frames = [picked.pop(name) for name in sorted(picked) if "img_temperal_embedding" in name]
    renamed = {our_name(name.replace("agg_module_gated", "agg_module")): tensor for name, tensor in picked.items()}
    for kind, row in TYPE_ROW.items():
        renamed[f"streams.{kind}.types.weight"] = renamed[f"streams.{kind}.types.weight"][row : row + 1]
    if frames:  # as many as there are positions; those beyond the authors' are as they start
        table = torch.zeros_like(renamed["streams.video.positions.weight"])
        table[: len(frames)] = torch.cat(frames)[:, 0]
        renamed["streams.video.inputs.0.frames.weight"] = table
    return renamed


def build(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, **config: Any) -> Fusion:
    specs = {
        "sight": FeatureSpec(name="sight", encoder="toy", modality="video", dim=WIDTH),
        "sentence": FeatureSpec(name="sentence", encoder="toy", modality="text", dim=WIDTH),
    }
    settings = Config(**{**PAPER, **SMALL, **config})
    ours = from_official(weights, gate=settings.gate, share=settings.share)
    settings = settings.model_copy(update={"positions": len(ours["streams.video.positions.weight"])})
    fusion = Fusion(settings, specs).eval()
    fusion.load_state_dict(ours)
    return fusion.to(dtype)


def batch_of(
    video: Tensor, audio: Tensor, masks: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, frames: int = 1
) -> Batch:
    """The masks are those of the authors, by stream; without one, all is real. Rows of a frame have one time."""
    features = {"sight": video.to(dtype), "sentence": audio.to(dtype)}
    whole = {name: torch.ones(data.shape[:2], dtype=torch.bool) for name, data in features.items()}
    mask = {
        "sight": masks["video"].bool() if "video" in masks else whole["sight"],
        "sentence": masks["audio"].bool() if "audio" in masks else whole["sentence"],
    }
    times = torch.arange(frames).repeat_interleave(video.shape[1] // frames).expand(video.shape[:2]).float()
    return Batch(
        clip_ids=tuple(f"clip{i}" for i in range(len(video))),
        features=features,
        mask=mask,
        pts_seconds={"sight": times, "sentence": torch.zeros(audio.shape[:2])},
        present={name: real.any(dim=1) for name, real in mask.items()},
    )


def steps_of(fusion: Fusion, clips: Batch) -> tuple[Fused, dict[str, Tensor]]:
    """What is fused, and every step on the way under the names of the golden files."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    hooks = [fusion.streams[kind].register_forward_hook(keep(f"embed_{kind}")) for kind in TYPE_ROW]
    for index, layer in enumerate(fusion.layers):
        parts = [(part, "after_cross") for part in layer.cross_attentions]
        parts += [(part, "after_self") for part in layer.self_attentions]
        parts += [(part, "out") for part in layer.feed_forwards]
        parts += [(part.wide, "ffn_hidden") for part in layer.feed_forwards]
        hooks += [part.register_forward_hook(keep(f"layer{index}_*_{step}")) for part, step in parts]
    fused = fusion(clips, return_attention=True)
    for hook in hooks:
        hook.remove()
    found: dict[str, Tensor] = {}
    for name, tensors in seen.items():
        for kind, tensor in zip(TYPE_ROW if "*" in name else [""], tensors, strict=True):  # audio, then video
            found[name.replace("*", kind)] = F.gelu(tensor) if name.endswith("ffn_hidden") else tensor
    streams = {"sentence": "audio", "sight": "video"}
    for seen_map in fused.attention:
        to = "self" if seen_map.queries == seen_map.keys else "cross"
        suffix = "" if to == "self" else "_queries"
        found[f"layer{seen_map.layer}_attn_{to}_{streams[seen_map.queries]}{suffix}"] = seen_map.weights
    last = len(fusion.layers) - 1
    found.update({kind: found[f"layer{last}_{kind}_out"] for kind in TYPE_ROW})
    found.update({"combined": fused.data, **{key: fused.aux[key] for key in ("pooled_audio", "pooled_video")}})
    return fused, found


def largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str) -> float:
    """The largest difference from the golden tensors of this prefix that there are; at least one."""
    pairs = [(tensor, expected[prefix + key]) for key, tensor in found.items() if prefix + key in expected]
    assert pairs
    return max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)


# -- what is stored here: one layer ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "io": {}}
    for name, tensor in load(gzip.decompress(STORED.read_bytes())).items():
        part, key = name.split("/")
        parts[part][key] = tensor
    return parts


def stored_error(stored: dict[str, dict[str, Tensor]], fusion: Fusion, *, masked: bool = True) -> float:
    io = stored["io"]
    masks = {"audio": io["audio_mask"]} if masked else {}
    with torch.inference_mode():
        dtype = fusion.norm.weight.dtype
        _, found = steps_of(fusion, batch_of(io["video_feat"], io["audio_feat"], masks, dtype))
    return largest({key: found[key] for key in ("layer0_audio_out", "layer0_video_out")}, io, "expected_")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gives_the_authors_numbers(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype) -> None:
    assert stored_error(stored, build(stored["weights"], dtype, layers=1)) < 1e-5


def test_slips_are_noticed(stored: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = stored["weights"]
    assert stored_error(stored, build(weights, layers=1), masked=False) > 1
    assert stored_error(stored, build(weights, layers=1, heads=2)) > 0.1
    other = build(weights, layers=1)
    types = weights["cross_module.video_emebdding.token_embeddings.weight"].double()
    other.streams["video"].types.weight.data.copy_(types[:1])  # type: ignore[union-attr,operator]
    assert stored_error(stored, other) > 1
    with monkeypatch.context() as patch:
        gelu = F.gelu
        patch.setattr(F, "gelu", lambda data: gelu(data, approximate="tanh"))
        assert stored_error(stored, build(weights, layers=1)) > 1e-4


class Given(nn.Module):
    """Stands for all layers: what they made of the first clip."""

    def __init__(self, io: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.states = [io[f"expected64_{kind}"] for kind in TYPE_ROW]

    def forward(self, *_: Any) -> tuple[list[Tensor], dict[tuple[int, int], Tensor]]:
        return self.states, {}


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_poolers_and_combiner(stored: dict[str, dict[str, Tensor]], gate: bool) -> None:
    io = stored["io"]
    fusion = build(stored["weights"], layers=1, gate=gate)
    fusion.layers = nn.ModuleList([Given(io)])
    clips = batch_of(io["video_feat"][:1], io["audio_feat"][:1], {})
    with torch.inference_mode():
        fused = fusion(clips)
        expected = io["expected64_combined_gated" if gate else "expected64_combined"]
        torch.testing.assert_close(fused.data, expected, rtol=0, atol=1e-9)
        for kind in TYPE_ROW:
            pooled = io[f"expected64_pooled_{kind}"][:1]
            torch.testing.assert_close(fused.aux[f"pooled_{kind}"], pooled, rtol=0, atol=1e-9)
        fusion.norm.eps = 1e-5 if gate else 1e-12  # the other one's
        assert (fusion(clips).data - expected).abs().max() > 1e-6


def test_a_missing_weight_is_noticed(stored: dict[str, dict[str, Tensor]]) -> None:
    name = "cross_module.co_cross.0.video_output.layer_norm.bias"
    weights = {key: tensor for key, tensor in stored["weights"].items() if key != name}
    with pytest.raises(RuntimeError, match=r'Missing key.*"layers\.0\.feed_forwards\.1\.norm\.bias"'):
        build(weights, layers=1)


# -- the whole set, beside the project ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    folder = shared / "golden_heads" / "public" / "micap"
    if not folder.is_dir():
        pytest.skip("no golden_heads in ../shared")
    return folder


class Files:
    """Weights and numbers of one form."""

    def __init__(self, golden: Path, share: str) -> None:
        self.share = share
        self.weights = load_file(golden / "coattn_shared.weights.safetensors")
        self.io = load_file(golden / "coattn_shared.io.safetensors")
        self.expected = self.io
        if share == "separate":
            self.weights |= load_file(golden / "coattn_unshared.weights.safetensors")
            self.expected = load_file(golden / "coattn_unshared.io.safetensors")

    def found(
        self, dtype: torch.dtype, masks: Mapping[str, Tensor], **config: Any
    ) -> tuple[Fusion, Fused, dict[str, Tensor]]:
        fusion = build(self.weights, dtype, **{"share": self.share, **config})
        with torch.inference_mode():
            clips = batch_of(self.io["video_feat"], self.io["audio_feat"], masks, dtype)
            fused, found = steps_of(fusion, clips)
        return fusion, fused, found

    def masks(self, which: str) -> dict[str, Tensor]:
        """As the golden runs have them: the audio's alone is the authors' use."""
        audio, video = self.io["audio_mask"], self.io["video_mask"]
        emptied = audio.clone()
        emptied[-1] = 0
        known = {"": {"audio": audio}, "nomask_": {}, "bothmasks_": {"audio": audio, "video": video}}
        return {**known, "rowallmasked_": {"audio": emptied}}[which]


@pytest.fixture(scope="module", params=["shared", "separate"])
def files(golden: Path, request: pytest.FixtureRequest) -> Files:
    return Files(golden, request.param)


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_step(files: Files, dtype: torch.dtype) -> None:
    _, fused, found = files.found(dtype, files.masks(""))
    named = {key.removeprefix("expected_") for key in files.expected if "layer" in key or "embed" in key}
    assert named <= set(found)  # all maps, and every step of every layer
    assert len(named) == {"shared": 26, "separate": 20}[files.share]
    assert largest(found, files.expected, "expected_") < 3e-5
    assert largest(found, files.expected, "expected64_") < TOLERANCE[dtype]
    assert fused.sources == ("sentence", "sight")
    assert fused.source.tolist() == [0] * 9 + [1] * 15  # audio first
    assert torch.equal(fused.mask[:, :9], files.io["audio_mask"].bool())


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_combiner(files: Files, dtype: torch.dtype) -> None:
    _, _, found = files.found(dtype, files.masks(""), gate=True)
    expected = files.expected["expected64_combined_gated"]
    torch.testing.assert_close(found["combined"].double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["nomask_", "bothmasks_"])
def test_other_masks(files: Files, which: str, dtype: torch.dtype) -> None:
    _, _, found = files.found(dtype, files.masks(which))
    wanted = {key: found[key] for key in ("audio", "video", "pooled_audio", "pooled_video")}
    assert largest(wanted, files.expected, f"expected_{which}") < 3e-5
    assert largest(wanted, files.expected, "expected_") > 1e-2  # the masks matter


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_clip_without_sound(files: Files, dtype: torch.dtype) -> None:
    # In the authors' code its padding counts; by default, and in this clip alone, ours does not look at it.
    wanted = ("audio", "video", "pooled_audio", "pooled_video")
    _, _, found = files.found(dtype, files.masks("rowallmasked_"))
    picked = {key: found[key] for key in wanted}
    assert largest(picked, files.expected, "expected64_rowallmasked_") < TOLERANCE[dtype]
    _, fused, found = files.found(dtype, files.masks("rowallmasked_"), absent="zero")
    for key in ("video", "pooled_video"):
        error = (found[key].double() - files.expected[f"expected64_rowallmasked_{key}"]).abs().flatten(1).amax(dim=1)
        assert error[:-1].max() < TOLERANCE[dtype]
        assert error[-1] > 1e-2
    assert (fused.aux["pooled_audio"][-1] == 0).all()
    assert fused.aux["paired"].tolist() == [True, True, True, False]


@pytest.mark.shared
def test_combiner_of_small_numbers(golden: Path) -> None:
    files = Files(golden, "shared")
    fusion = build(files.weights)
    small = torch.cat([0.01 * files.io["audio_feat"].double(), 0.01 * files.io["video_feat"].double()], dim=1)
    torch.testing.assert_close(fusion.norm(small), files.io["expected64_agg_probe"], rtol=0, atol=1e-9)


@pytest.mark.shared
def test_the_other_self_attention_gives_other_numbers(golden: Path) -> None:
    # `sa_video` is stored in the released form and never called.
    files = Files(golden, "shared")
    fusion = build(files.weights)
    swapped = {key.replace("sa_video", "sa_audio"): value for key, value in files.weights.items() if "sa_video" in key}
    other = build({**files.weights, **swapped})
    clips = batch_of(files.io["video_feat"], files.io["audio_feat"], files.masks(""))
    assert (fusion(clips).data - other(clips).data).abs().max() > 1


# -- the model around it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(golden: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = load_file(golden / "coattn_shared.weights.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("cross_module")}
    return weights | load_file(golden / "full_model.weights.safetensors"), load_file(
        golden / "full_model.io.safetensors"
    )


def full_fusion(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Fusion:
    return build(weights, dtype, frame_embedding=True, project="video")


def full_batch(io: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Batch:
    """Image tokens, frame by frame, and the states of a sentence."""
    tokens = io["frame_tokens"]
    return batch_of(tokens.flatten(1, 2), io["audio_text_states"], {"audio": io["audio_mask"]}, dtype, tokens.shape[1])


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_image_tokens_and_text_states_to_fused_states(
    full: tuple[dict[str, Tensor], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    weights, io = full
    fusion = full_fusion(weights, dtype)
    clips = full_batch(io, dtype)
    with torch.inference_mode():
        tokens = fusion.streams["video"].inputs[0](clips.features["sight"], clips.pts_seconds["sight"])  # type: ignore[union-attr,operator,index]
        fused = fusion(clips)
        loss = info_nce(fused.aux["pooled_video"], fused.aux["pooled_audio"], weights["logits_scale"])
    found = {"video_tokens": tokens, "combined": fused.data, "loss_contrast": loss.view(1), **fused.aux}
    assert largest(found, io, "expected64_") < TOLERANCE[dtype]
    assert {f"expected64_{key}" for key in found if key != "paired"} <= set(io)


@pytest.mark.shared
def test_gradients(golden: Path, full: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    # Through the authors' decoder (BERT's, of transformers), which sees padding, and the contrastive loss.
    from transformers import BertConfig, BertLMHeadModel

    weights, io = full
    facts = json.loads((golden / "full_model.json").read_text(encoding="utf-8"))
    sizes = {key: value for key, value in facts["config"]["decoder"].items() if key != "dropout"}
    more = {"hidden_size": WIDTH, "is_decoder": True, "add_cross_attention": True}
    decoder = BertLMHeadModel(BertConfig(**sizes, **more)).eval().double()
    prefix = "text_decoder."
    decoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    fusion = full_fusion(weights)
    fused = fusion(full_batch(io))
    ids, mask = io["decoder_input_ids"], io["decoder_attention_mask"]
    logits = decoder(ids, attention_mask=mask, encoder_hidden_states=fused.data).logits
    assert (logits - io["expected64_decoder_logits"]).abs().max() < 1e-9
    targets = ids.masked_fill(ids == facts["config"]["pad"], -100)[:, 1:]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    loss = loss + info_nce(fused.aux["pooled_video"], fused.aux["pooled_audio"], weights["logits_scale"])
    assert loss.item() == pytest.approx(io["expected64_loss"].item(), abs=1e-9)
    loss.backward()

    ours = {name: parameter.grad for name, parameter in fusion.named_parameters()}
    frames = ours.pop("streams.video.inputs.0.frames.weight")
    assert frames is not None
    assert (frames[3:] == 0).all()  # there are three
    compared = set()
    for name, norm in facts["grad_l2_float64"].items():
        if "img_temperal_embedding" in name:
            gradient = frames[int(name.rsplit(".", 1)[1])]
        elif our_name(name) in ours:
            gradient = ours[our_name(name)]
            compared.add(our_name(name))
        else:  # the decoder's, the loss's, and what the authors never call
            assert re.match(r"text_decoder|logits_scale|(audio|video)_proj|.*\.sa_video\.", name), name
            continue
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-7), name
    assert compared == set(ours)
