"""The ``bert`` decoder against numbers of MICap's own code.

``tests/data/micap_decoder.safetensors.gz`` holds the decoder of a random MICap under the official names (tied tensors
once), two captions, what is fused of their clips, and what ``FullModel`` of deckyal/MI-Cap (a5237ba, on transformers
4.33.2) makes of them: logits in float64, those with a mask over what is fused in float32, rows of a beam search.
The folder ../shared has all clips, losses and gradients.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel

from avpipe.pipeline.errors import CheckpointError
from avpipe.train.batch import Fused
from avpipe.train.decoders.bert import Config, Decoder
from avpipe.train.generate import beam_search
from avpipe.train.tokenizer import Special
from tests.train import pretrained_toys as toys

STORED = Path(__file__).parents[1] / "data" / "micap_decoder.safetensors.gz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
SPECIAL = Special(pad=0, begin=101, end=102)
SMALL = {"weights": "random", "width": 48, "layers": 2, "heads": 4, "feed_forward": 96, "positions": 40}


def our_name(name: str) -> str | None:
    """Of an official tensor; none for the second names of tied ones."""
    name = name.removeprefix("text_decoder.").removeprefix("cls.predictions.")
    return None if name.startswith("decoder.") else name


def build(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Decoder:
    decoder = Decoder(Config(**SMALL), fused_width=48, vocabulary_size=131).eval()
    decoder.load_state_dict({our: value for name, value in weights.items() if (our := our_name(name))})
    return decoder.to(dtype)


def clips_of(data: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Fused:
    """Without a mask, as the authors' decoder: padding is looked at."""
    return Fused(
        data=data.to(dtype),
        mask=torch.ones(data.shape[:2], dtype=torch.bool) if mask is None else mask.bool(),
        pts_seconds=torch.zeros(data.shape[:2]),
        sources=("all",),
        source=torch.zeros(data.shape[1], dtype=torch.int64),
    )


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "expected": {}}
    for name, tensor in load(gzip.decompress(STORED.read_bytes())).items():
        part, key = name.split("/")
        parts[part][key] = tensor
    return parts


def error(decoder: Decoder, parts: Mapping[str, Mapping[str, Tensor]], expected: str, **clips: Any) -> float:
    inputs = parts["inputs"]
    mask = inputs["decoder_attention_mask"].bool()
    with torch.inference_mode():
        found = decoder(clips_of(inputs["combined"], **clips), inputs["decoder_input_ids"], mask)
    return float((found.double() - parts["expected"][expected])[mask].abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gives_the_authors_logits(stored: dict[str, dict[str, Tensor]], dtype: torch.dtype) -> None:
    assert error(build(stored["weights"], dtype), stored, "logits", dtype=dtype) < TOLERANCE[dtype]


def test_with_the_mask_of_what_is_fused(stored: dict[str, dict[str, Tensor]]) -> None:
    decoder, mask = build(stored["weights"]), stored["inputs"]["combined_mask"]
    assert error(decoder, stored, "logits_with_encoder_mask", mask=mask) < 5e-5  # float32 numbers
    assert error(decoder, stored, "logits", mask=mask) > 1


def test_beam_search_gives_the_authors_rows(stored: dict[str, dict[str, Tensor]]) -> None:
    # 4 beams, at least 5 and at most 30 tokens with the begin counted; repetition penalty 1.
    decoder, clip = (
        build(stored["weights"], torch.float32),
        clips_of(stored["inputs"]["combined"][:1], dtype=torch.float32),
    )
    found = beam_search(decoder, clip, SPECIAL, beams=4, min_tokens=4, max_tokens=29)
    assert [list(hypothesis.tokens) for hypothesis in found[0]] == stored["expected"]["beams"][:, 1:].tolist()


def test_a_missing_weight_is_noticed(stored: dict[str, dict[str, Tensor]]) -> None:
    weights = {
        name: value for name, value in stored["weights"].items() if name != "cls.predictions.transform.dense.bias"
    }
    with pytest.raises(RuntimeError, match=r'Missing key.*"transform\.dense\.bias"'):
        build(weights)


# -- files as they are published ---------------------------------------------------------------------------------------

BASE = {"vocab_size": 37, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def test_a_folder_as_bert_base_is_published(tmp_path: Path) -> None:
    # bert-base-uncased: BertForPreTraining, 12 layers, no cross-attention, norms called gamma and beta.
    model = toys.written(BertForPreTraining(BertConfig(num_hidden_layers=12, **BASE)), tmp_path)
    toys.rewrite(tmp_path, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
    assert "bert.embeddings.LayerNorm.gamma" in load_file(tmp_path / "model.safetensors")
    decoder = Decoder(Config(weights=str(tmp_path)), fused_width=16, vocabulary_size=37)
    assert len(decoder.bert.encoder.layer) == 6
    assert decoder.report is not None
    assert len(decoder.report.new) == 6 * 10
    left_over = {name.split(".")[1] if "seq_relationship" not in name else "nsp" for name in decoder.report.left_over}
    assert left_over == {"encoder", "pooler", "nsp"}
    theirs = dict(model.named_parameters())
    for name, parameter in decoder.named_parameters():
        if "crossattention" not in name:
            official = name if name in theirs else f"cls.predictions.{name}"
            assert torch.equal(parameter, theirs[official]), name


def test_a_bert_without_the_head_is_refused(tmp_path: Path) -> None:
    toys.written(BertModel(BertConfig(num_hidden_layers=6, **BASE)), tmp_path)
    with pytest.raises(CheckpointError, match=r"tensors missing .*: cls\.predictions\."):
        Decoder(Config(weights=str(tmp_path)), fused_width=16, vocabulary_size=37)


# -- the whole set, beside the project ---------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_loss_and_gradients(shared: Path, dtype: torch.dtype) -> None:
    golden = shared / "golden_heads" / "public" / "micap"
    if not golden.is_dir():
        pytest.skip("no golden_heads in ../shared")
    weights, io = (load_file(golden / f"full_model.{part}.safetensors") for part in ("weights", "io"))
    facts = json.loads((golden / "full_model.json").read_text(encoding="utf-8"))
    decoder = build({name: value for name, value in weights.items() if name.startswith("text_decoder.")}, dtype)
    ids, mask = io["decoder_input_ids"], io["decoder_attention_mask"].bool()
    logits = decoder(clips_of(io["expected64_combined"], dtype=dtype), ids, mask)
    expected = io["expected64_decoder_logits"]
    assert (logits.double() - expected)[mask].abs().max() < TOLERANCE[dtype]
    targets = ids.masked_fill(~mask, -100)[:, 1:]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(io["expected64_loss_caption"].item(), abs=TOLERANCE[dtype])
    loss.backward()
    ours = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    norms = {
        our_name(name): norm for name, norm in facts["grad_l2_float64"].items() if name.startswith("text_decoder.")
    }
    norms.pop(None, None)
    assert set(norms) == set(ours)
    relative = {torch.float64: 1e-6, torch.float32: 1e-3}[dtype]
    for name, norm in norms.items():
        gradient = ours[str(name)]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=relative, abs=100 * TOLERANCE[dtype]), name
