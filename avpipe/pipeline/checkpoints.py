"""Weight files of any layout into networks of ours, with nothing missing and nothing left over unseen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from avpipe.pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 5


def read(path: Path) -> dict[str, Any]:
    """What a ``.safetensors`` file, or a file that ``torch.save`` wrote, holds: its keys and values.

    Pickled files are read with ``weights_only``: they run no code.

    Raises:
        CheckpointError: it cannot be read so.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: cannot be read as a weight file: {reason}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    return dict(content)


def tensors(
    content: Mapping[str, Any], path: Path, *, wrappers: Iterable[str] = ("model", "state_dict")
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without the prefix ``module.`` of a network trained on several GPUs.

    Args:
        content: as :func:`read` gives it.
        path: for messages.
        wrappers: keys that may hold the tensors, where they do not lie at the top.

    Raises:
        CheckpointError: there are none.
    """
    import torch

    for wrapper in wrappers:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
            break
    found = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not found:
        raise CheckpointError(f"{path}: holds no tensors; its keys are {', '.join(map(str, list(content)[:_SHOWN]))}")
    return found


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, ignored: str = "", optional: str = "") -> None:
    """Copy tensors into a network: every one of its own must be there and fit, and none may be left over.

    Args:
        module: the network; its type and device stay.
        state: names as the network has them.
        path: for messages.
        ignored: regular expression for names of ``state`` that the network has no use for (a classifier, a decoder).
        optional: regular expression for names of the network that need not be there, because they are made, not
            learned.

    Raises:
        CheckpointError: the file does not fit; names what is missing, left over and of another shape.
    """
    own = module.state_dict()
    given = {name: tensor for name, tensor in state.items() if not (ignored and re.fullmatch(ignored, name))}
    missing = [name for name in own if name not in given and not (optional and re.fullmatch(optional, name))]
    strange = [name for name in given if name not in own]
    shapes = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"
        for what, names in (("missing", missing), ("left over", strange), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise CheckpointError(f"{path} does not fit the network ({len(own)} tensors): {'; '.join(faults)}")
    module.load_state_dict(given, strict=False)


def _is_zip(path: Path) -> bool:
    """Whether ``torch.save`` wrote it since version 1.6: such a file can be mapped instead of read."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
