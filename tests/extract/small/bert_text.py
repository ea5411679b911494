"""A BERT of two layers with a vocabulary from three sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SENTENCES = (
    "a dog barks then it is quiet",
    "rain falls on a car and a word is said",
    "who are you ? nobody ! the end .",
)
VOCABULARY = 120

NETWORK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder; the contract suite calls both feature sets ``the_set``."""
    return {"of": "the_set", "weights": str(checkpoint(folder / "bert")), "max_tokens": 12}


def checkpoint(folder: Path, *, seed: int = 0, leave_out: Sequence[str] = (), **network: Any) -> Path:
    """A checkpoint as the public ones: with the heads of the pre-training."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = BertForPreTraining(BertConfig(**{**NETWORK, **network}))
    with torch.no_grad():
        for parameter in model.parameters():  # none at its initial value: no zero hides a mistake
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    for name in leave_out:
        (folder / name).unlink()
    return folder


def tokenizer() -> Any:
    """Lower-case word pieces as BERT's."""
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(SENTENCES, vocab_size=VOCABULARY, min_frequency=1, show_progress=False)
    return made
