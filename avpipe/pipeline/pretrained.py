"""Networks of transformers with the weights of a checkpoint, and a report of what came from there."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from avpipe.pipeline.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the tensors of a network and of a checkpoint; names, sorted.

    Attributes:
        matched: in both; read.
        new: in the network alone, and allowed to be: at their start values.
        left_over: in the checkpoint alone: not read.
    """

    matched: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} tensors matched, {_told('new', self.new)}, {_told('left over', self.left_over)}"


def _told(what: str, names: tuple[str, ...], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


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


def read_network(
    network_class: Any,
    path: Path,
    *,
    what: str,
    may_be_new: str = "",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Any, Report]:
    """A network of transformers with a checkpoint's weights; every tensor must be there and fit.

    What the network has no use for (a classifier, a pooler, layers beyond the last) may be left over.

    Args:
        network_class: of transformers.
        path: of the weight file; ``config.json`` lies beside it.
        what: it is, with its article, for messages: ``"a Whisper"``.
        may_be_new: pattern of the names that the checkpoint may lack, all of them or none.
        dtype: of the weights in memory; float32 by default.
        options: of ``from_pretrained``.

    Raises:
        CheckpointError: the file cannot be read, or does not fit its configuration.
    """
    import torch
    from safetensors import SafetensorError

    with quiet():
        try:
            network, info = network_class.from_pretrained(
                str(path.parent),
                local_files_only=True,
                use_safetensors=".safetensors" in path.suffixes,
                dtype=dtype or torch.float32,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: cannot be read as {what}: {' '.join(str(error).split())[:300]}") from None
    names = {name for name, _ in network.named_parameters()}
    missing = set(info["missing_keys"])
    new = {name for name in missing if may_be_new and re.search(may_be_new, name)}
    halved = {name for name in names - new if new and re.search(may_be_new, name)}
    wrong = [*(missing - new), *info["mismatched_keys"], *(new if halved else ())]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit its config.json: {len(wrong)} tensors missing or of another shape: "
            f"{', '.join(map(str, sorted(wrong, key=str)[:5]))}"
        )
    return network, Report(
        matched=tuple(sorted(names - new)), new=tuple(sorted(new)), left_over=tuple(sorted(info["unexpected_keys"]))
    )


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
