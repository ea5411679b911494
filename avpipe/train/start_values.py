"""Public weights that a fusion or a decoder starts from: found, read and fitted, and a report of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from avpipe.pipeline import checkpoints, weight_shards, weights
from avpipe.pipeline.pretrained import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a weight file, or the files of a model, hold.

    Attributes:
        id: short name, for reports.
        path: of the file, or of the first.
        tensors: by their official names, without ``module.`` in front.
    """

    id: str
    path: Path
    tensors: Mapping[str, Tensor]


def read(place: str, *, component: str, option: str, prefixes: Sequence[str] = ("",)) -> Held:
    """Tensors of a local file, a folder, or a repository on the Hub.

    Args:
        place: ``x.pth`` or ``x.safetensors``; a folder; ``org/name`` or ``org/name@revision``.
        component: who asks, for messages: ``"fusion av_tokens"``.
        option: the setting, for messages: ``"initialise_from"``.
        prefixes: of the names that are wanted.

    Raises:
        MissingWeightsError: it is neither here nor to be had.
        CheckpointError: it cannot be read.
    """
    wanted = tuple(prefixes)
    if Path(place).suffix in weights.FILE_SUFFIXES:
        path = weights.local_file(place, component=component, option=option, has_random=False)
        if path.suffix == ".safetensors":  # nothing else of it is read
            return Held(id=path.name, path=path, tensors=weight_shards.read((path,), *wanted))
        every = checkpoints.tensors(checkpoints.read(path), path)
        return Held(id=path.name, path=path, tensors={n: t for n, t in every.items() if n.startswith(wanted)})
    shards = weight_shards.find(place, *wanted, component=component, option=option, has_random=False)
    return Held(id=shards.id, path=shards.files[0], tensors=weight_shards.read(shards.files, *wanted))


def fill(
    module: nn.Module, given: Mapping[str, Tensor], held: Held, *, may_be_new: str = "", left_over: Iterable[str] = ()
) -> Report:
    """Copy tensors into a module; every one of its own must be there and fit but those that may be new.

    Args:
        module: a fusion or decoder.
        given: by the module's names.
        held: where they come from.
        may_be_new: pattern of names that may keep their start values.
        left_over: official names that were not wanted, for the report.

    Raises:
        CheckpointError: something is missing, left over, or of another shape.
    """
    checkpoints.fill(module, given, held.path, optional=may_be_new)
    own = module.state_dict().keys()
    report = Report(
        matched=tuple(sorted(own & given.keys())),
        new=tuple(sorted(own - given.keys())),
        left_over=tuple(sorted(left_over)),
    )
    log.info("%s: %s: %s", type(module).__module__.rpartition(".")[2], held.id, report)
    return report
