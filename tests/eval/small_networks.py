"""Networks that judge captions, small and of random weights, in files laid out as the public ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avpipe.pipeline.features import Features, FeatureSpec

from .toys import TOY_CANDIDATES, TOY_REFERENCES

NETWORK = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 70,
}
KINDS = 6


def make_sbert(folder: Path, *, pooling: str = "mean_tokens", more_modules: Iterable[str] = ()) -> Path:
    """As sentence-transformers writes them: paraphrase-TinyBERT-L6-v2 has these files."""
    folder.mkdir(parents=True, exist_ok=True)
    _bert(seed=0).save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    (folder / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": [
            {"idx": number, "name": str(number), "path": "", "type": f"sentence_transformers.models.{kind}"}
            for number, kind in enumerate(("Transformer", "Pooling", *more_modules))
        ],
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": NETWORK["hidden_size"],
            **{f"pooling_mode_{mode}": mode == pooling for mode in modes},
        },
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_echecker(folder: Path, *, plain_vocabulary: bool = False) -> Path:
    """FENSE's ``.ckpt``, as old transformers filled it, with what the Hub has of its BERT beside it."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    encoder = _bert(seed=1)
    torch.manual_seed(2)
    classifier = torch.nn.Linear(NETWORK["hidden_size"], KINDS)
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state["encoder.embeddings.position_ids"] = torch.arange(NETWORK["max_position_embeddings"])[None]
    # Large, so that some captions are errors and some are not.
    state |= {f"clf.{name}": 30 * tensor for name, tensor in classifier.state_dict().items()}
    path = folder / "echecker.ckpt"
    torch.save({"model_type": "prajjwal1/bert-tiny", "num_classes": KINDS, "state_dict": state}, path)
    encoder.config.save_pretrained(folder)
    if plain_vocabulary:
        _tokenizer().save_model(str(folder))
    else:
        _tokenizer().save(str(folder / "tokenizer.json"))
    return path


@dataclass(slots=True)
class Pictures:
    """A feature set of a CLIP: noise, of some frames a clip."""

    spec: FeatureSpec
    clip_ids: Sequence[str]

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.clip_ids

    def read(self, clip_id: str, view: int = 0) -> Features:
        """Three frames, not of length 1, in the type that is on disk."""
        noise = np.random.default_rng(self.clip_ids.index(clip_id)).normal(size=(3, self.spec.dim))
        return Features(data=(3 * noise).astype(np.float16), pts_seconds=np.arange(3.0))


def make_clip(folder: Path, clip_ids: Sequence[str], *, quick_gelu: bool = False) -> Pictures:
    """What ``clip_vit`` says of features that it makes with the weights of a small CLIP, and such features.

    Its tokenizer is the real one, which open_clip brings along.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    from avpipe.extract.encoders import clip_vit
    from avpipe.pipeline.config import parse

    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
    described = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    (folder / "small-CLIP.json").write_text(json.dumps(described), encoding="utf-8")
    open_clip.add_model_config(folder / "small-CLIP.json")
    torch.manual_seed(3)
    network = open_clip.create_model("small-CLIP")
    save_file(
        {key: value.clone() for key, value in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    facts = {"model_cfg": described, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(facts), encoding="utf-8")
    config = parse(clip_vit.Config, {"weights": str(folder), "tokens": "embedding"}, "test")
    return Pictures(clip_vit.Encoder(config, "clip").spec, list(clip_ids))


def _bert(seed: int) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    model = BertModel(BertConfig(**NETWORK)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # none at its initial value: no zero hides a mistake
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _tokenizer() -> Any:
    """Lower-case word pieces as BERT's: words of the toy corpus, and letters for the others."""
    from tokenizers import BertWordPieceTokenizer

    sentences = [*TOY_CANDIDATES.values(), *(text for several in TOY_REFERENCES.values() for text in several)]
    letters = [chr(number) for number in range(33, 127)]
    words = sorted({word for sentence in sentences for word in re.findall(r"\w{2,}", sentence.lower())})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)
