"""One part of a large model on the Hub (the vision tower of a captioner), whose weights may lie in several files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.pretrained import json_of

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".index.json"
WEIGHT_NAMES = (
    "model.safetensors" + INDEX,
    "model.safetensors",
    "pytorch_model.bin" + INDEX,
    "pytorch_model.bin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """A model's description, and those of its weight files that hold a part of it.

    Attributes:
        id: as in :class:`~avpipe.pipeline.weights.WeightFiles`.
        config: the model's ``config.json``.
        files: that hold the part, one or more.
    """

    id: str
    config: Path
    files: tuple[Path, ...]

    def to_spec(self) -> dict[str, Any]:
        """What a feature spec says of weights. Of several files, the sha256 of their hashes one behind the other."""
        hashes = [weights.sha256_of(file) for file in self.files]
        joined = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return {"id": self.id, "sha256": joined}


def find(place: str, *prefixes: str, component: str, option: str = "weights", has_random: bool = True) -> Shards:
    """The files of a repository on the Hub, or of a local folder, that hold the tensors ``prefix*``, and no others.

    Args:
        place: ``org/name``, ``org/name@revision`` or a folder.
        prefixes: of the part's names.
        component: which encoder, fusion or decoder asks, for messages.
        option: by which the user said ``place``, for messages.
        has_random: whether he may say ``random`` instead.

    Raises:
        MissingWeightsError: a file is neither here nor to be had.
        CheckpointError: the index cannot be read, or names no such tensor.
    """

    def resolve(place: str, parts: Mapping[str, Sequence[str]]) -> weights.WeightFiles:
        return weights.resolve(place, parts, component=component, option=option, has_random=has_random)

    found = resolve(place, {"config": ("config.json",), "weights": WEIGHT_NAMES})
    first = found.files["weights"]
    files: tuple[Path, ...] = (first,)
    if first.name.endswith(INDEX):
        names = _named_in(first, prefixes)
        if not weights.looks_local(place):  # the Hub's cache has a folder a commit: all files must come from one
            place = f"{place.partition('@')[0]}@{first.parent.name}"
        files = tuple(resolve(place, {name: (name,) for name in names}).files.values())
    return Shards(id=found.id, config=found.files["config"], files=files)


def read(files: tuple[Path, ...], *prefixes: str) -> dict[str, Tensor]:
    """The tensors ``prefix*``. Of a ``.safetensors`` file, nothing else is read.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        held = _read_safe(file, prefixes) if file.suffix == ".safetensors" else checkpoints.read(file)
        found |= {name: value for name, value in held.items() if name.startswith(prefixes)}
    return found


def _named_in(index: Path, prefixes: tuple[str, ...]) -> list[str]:
    """The files that an index names for ``prefix*``."""
    try:
        places = json_of(index)["weight_map"]
        names = sorted({file for name, file in places.items() if name.startswith(prefixes)})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of weight files ({error!r})") from None
    if not names:
        wanted, first = "*, ".join(prefixes), ", ".join(list(places)[:5])
        raise CheckpointError(f"{index}: names no tensor {wanted}*; the first are {first}")
    return names


def _read_safe(file: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as a weight file: {error}") from None
