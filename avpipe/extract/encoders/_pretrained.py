"""Checkpoints of transformers and tokenizers of the Hub, as several encoders read them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from avpipe.pipeline.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers
    import torch


def json_of(path: Path) -> Mapping[str, Any]:
    """Keys and values of a JSON file.

    Raises:
        CheckpointError: it is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


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
    """A model of transformers with a checkpoint's weights; every tensor must be there and fit.

    What the model has no use for (a classifier, a pooler) may be left over, as it should be: these are features.

    Args:
        model_class: of transformers.
        path: of the weight file; ``config.json`` lies beside it.
        what: it is, with its article, for messages: ``"a Whisper"``.
        dtype: of the weights in memory; float32 by default.
        options: of ``from_pretrained``.

    Raises:
        CheckpointError: the file cannot be read, or does not fit its configuration.
    """
    import torch
    from safetensors import SafetensorError

    with quiet():
        try:
            model, report = model_class.from_pretrained(
                str(path.parent),
                local_files_only=True,
                use_safetensors=".safetensors" in path.suffixes,
                dtype=dtype or torch.float32,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: cannot be read as {what}: {' '.join(str(error).split())[:300]}") from None
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit its config.json: {len(wrong)} tensors missing or of another shape: "
            f"{', '.join(map(str, sorted(wrong, key=str)[:5]))}"
        )
    return model


class _Quiet:
    """How many threads want transformers to be quiet, and how loud it was before the first of them."""

    lock = threading.Lock()
    inside = 0
    verbosity = 0
    bar = False


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar, its advice and its table of leftover tensors.

    Loudness is one for the whole process: the last of several threads to leave restores what the first one found.
    """
    from transformers.utils import logging

    library: Any = logging
    with _Quiet.lock:
        if not _Quiet.inside:
            _Quiet.verbosity, _Quiet.bar = library.get_verbosity(), library.is_progress_bar_enabled()
            library.set_verbosity_error()
            library.disable_progress_bar()
        _Quiet.inside += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.inside -= 1
            if not _Quiet.inside:
                library.set_verbosity(_Quiet.verbosity)
                if _Quiet.bar:
                    library.enable_progress_bar()


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
