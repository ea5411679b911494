"""Weights that torchvision publishes: by their names, as files, or as timm has them on the Hub.

Importing this module loads neither torchvision nor torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UsageError

log = logging.getLogger(__name__)

HUB_NAMES = ("model.safetensors", "pytorch_model.bin")


def official(model: str) -> Mapping[str, str]:
    """Names and addresses of the weights that torchvision has of a model."""
    import torchvision

    return {entry.name: entry.url for entry in torchvision.models.get_model_weights(model)}


def find(wanted: str, model: str, *, encoder: str) -> weights.WeightFiles:
    """The weight file: of a name of torchvision's from its cache or the network; else a local file, a folder or a
    repository on the Hub.

    Args:
        wanted: as configured.
        model: torchvision's name of the network.
        encoder: name for messages.

    Raises:
        UsageError: torchvision has no weights of that name.
        MissingWeightsError: they are neither here nor to be had; the message says how to get them.
        CheckpointError: the file in torchvision's cache is damaged.
    """
    known = official(model)
    if wanted in known:
        path = _cached_or_fetched(wanted, known[wanted], encoder)
        return weights.WeightFiles(id=f"torchvision/{model}/{wanted}", files={"weights": path})
    if "/" not in wanted and not weights.looks_local(wanted):
        raise UsageError(
            f"{encoder}: torchvision has no weights {wanted!r} of {model}; it has: {', '.join(known)}. Or give a path, "
            "org/name on the Hub, or random"
        )
    return weights.find(wanted, HUB_NAMES, component=encoder)


def name_of(path: Path, model: str) -> str | None:
    """Under which name torchvision publishes this very file; ``None``: it does not."""
    digest = weights.sha256_of(path)
    return next((name for name, url in official(model).items() if digest.startswith(_hash_in(url))), None)


def _cached_or_fetched(wanted: str, url: str, encoder: str) -> Path:
    import torch

    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        obstacle = weights.obstacle_to(url) or _fetch(url, path, encoder)
        if obstacle:
            raise MissingWeightsError(
                f"{encoder}: no weights {wanted!r}: {path} is not there, and {obstacle.rstrip('.')}.\n"
                f"  - On a machine with a network: curl -O {url}\n"
                f"    Copy {file} to {path.parent}, or run with {encoder}.weights=/path/to/{file}\n"
                f"  - {encoder}.weights=random gives random weights: for tests and benchmarks only."
            )
    digest = weights.sha256_of(path)
    if not digest.startswith(_hash_in(url)):
        raise CheckpointError(
            f"{path}: expected sha256 {_hash_in(url)}..., got {digest[:8]}...: the file is damaged. Delete it"
        )
    return path


def _fetch(url: str, path: Path, encoder: str) -> str:
    """Bring a file here, whole or not at all. Returns why it did not work, or nothing."""
    import torch

    log.info("%s: fetching %s", encoder, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in(url), progress=False)
    except (OSError, RuntimeError) as error:  # no such file, no room; another hash
        return f"{url} cannot be fetched ({error})"
    return ""


def _hash_in(url: str) -> str:
    """The start of the sha256 that torchvision writes into file names: ``resnet50-11ad3fa6.pth``."""
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    if match is None:
        raise ValueError(f"url: expected name-<sha256>.pth at its end, got {url!r}")
    return match[1]
