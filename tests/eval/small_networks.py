"""Networks that judge captions, small and of random weights, in files laid out as the public ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
