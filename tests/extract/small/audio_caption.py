"""A clapcap of the authors' layout, a quarter as wide, with a vocabulary from three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SENTENCES = ("a dog barks while it rains", "a man is speaking", "music plays and people clap <|endoftext|>")
WORDS = 300
VOCABULARY = WORDS + 1  # and the end of a text


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {
        "weights": str(checkpoint(folder / "clapcap.pth")),
        "tokenizer": str(tokenizer(folder / "gpt2")),
        "max_new_tokens": 8,
    }


def sizes() -> Any:
    """Of the network."""
    from avpipe.extract.networks.clapcap import Sizes

    return Sizes(
        patch_width=24,
        depths=(2, 1, 1, 1),
        heads=(1, 2, 4, 8),
        joint=16,
        heard=3,
        prefix=4,
        mapper_layers=1,
        mapper_hidden=32,
        gpt_width=64,
        gpt_layers=1,
        gpt_heads=1,
        gpt_positions=64,
        vocabulary=VOCABULARY,
    )


def checkpoint(path: Path, *, seed: int = 0, without: str = "", **extra: Any) -> Path:
    """A file as the authors' package saves it, with what is in it beside the captioner."""
    import torch

    from avpipe.extract.networks.clapcap import ClapCap

    torch.manual_seed(seed)
    model = ClapCap(sizes())
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # none at its initial value, and sensitive to what it hears
            parameter.add_((0.02 if name.startswith("audio.") else 0.3) * torch.randn_like(parameter))
    state = authors_names(model.state_dict())
    state |= {
        "clap.base.htsat.logmel_extractor.melW": torch.zeros(513, 64),
        "clap.base.htsat.head.bias": torch.zeros(527),
        "gpt.transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        **extra,
    }
    if without:
        del state[without]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, path)
    return path


def authors_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Our names to theirs."""
    import torch

    changes = {
        "audio.audio_encoder.": "clap.base.htsat.",
        ".batch_norm.": ".bn0.",
        ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
        ".attention.output.dense.": ".attn.proj.",
        ".attention.self.": ".attn.",
        ".intermediate.dense.": ".mlp.fc1.",
        ".output.dense.": ".mlp.fc2.",
    }
    renamed = {}
    for name, tensor in state.items():
        renamed_name = f"clap.{name}" if name.startswith("projection.") else name
        if name.startswith("audio."):
            for ours, theirs in changes.items():
                renamed_name = renamed_name.replace(ours, theirs)
        renamed[renamed_name] = tensor
    for name in [name for name in renamed if ".query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return renamed


def tokenizer(folder: Path) -> Path:
    """Byte pairs as GPT-2's, in the layout of the Hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    assert made.get_vocab_size() == VOCABULARY
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder
