"""Checkpoints of transformers and tokenizers of the Hub, as several encoders read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.pretrained import read_network

if TYPE_CHECKING:
    import tokenizers
    import torch


_CHANGES_NOTHING = {
    *("_name_or_path", "_commit_hash", "_attn_implementation_autoset", "architectures", "auto_map", "dtype"),
    *("finetuning_task", "gradient_checkpointing", "id2label", "label2id", "problem_type", "torch_dtype"),
    *("transformers_version", "use_cache"),
}


def network_of(config: Mapping[str, Any]) -> str:
    """sha256 of what a ``config.json`` says of its network, for the spec: the same tensors under another number of
    heads, or another activation, give other features. Names, labels and versions are left out: they change none.
    """
    text = json.dumps(_described(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _described(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in _CHANGES_NOTHING
    }


def pretrained(model_class: Any, path: Path, *, what: str, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """A model of transformers with a checkpoint's weights, every tensor of which must be there and fit; see
    :func:`avpipe.pipeline.pretrained.read_network`. A classifier or a pooler may be left over, as it should be: these
    are features.

    Raises:
        CheckpointError: the file cannot be read, or does not fit its configuration.
    """
    model, _ = read_network(model_class, path, what=what, dtype=dtype, **options)
    return model


@lru_cache(maxsize=8)
def tokenizer_at(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json``, read once: without the cutting and filling up that such a file may ask for
    (those of sentence encoders do), because whoever calls does that himself.

    Raises:
        CheckpointError: the file is none.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more particular
        raise CheckpointError(f"{path}: cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def text_of(ids: Sequence[int], tokenizer_path: Path | None) -> str:
    """Tokens as text, without special ones and without white space around it.

    Args:
        ids: of the tokens.
        tokenizer_path: of ``tokenizer.json``; ``None`` with random weights, which know no words: their tokens are
            written as numbers.
    """
    if tokenizer_path is None:
        return " ".join(map(str, ids))
    return tokenizer_at(tokenizer_path).decode(list(ids), skip_special_tokens=True).strip()


def number_type(device: str, precision: str) -> torch.dtype:
    """The type in which a network that writes text keeps its weights.

    Not mixed precision: that would convert all weights again for every token. bfloat16 where it is asked for and the
    hardware has it, else float32.
    """
    import torch

    from avpipe.extract.encoders._device import arithmetic

    return torch.bfloat16 if arithmetic(device, precision) == "bfloat16" else torch.float32
