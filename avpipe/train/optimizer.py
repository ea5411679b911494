"""What a step of the optimizer is told: which parameters, how large a step, and what is averaged over steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from avpipe.pipeline.errors import ConfigError
from avpipe.train.config import ParameterGroup, RunConfig, TrainConfig

RANDOM = "random"

HELD_SHARE = 0.6
"""Of all steps, the share for which ``schedule: hold`` holds the learning rate."""

Named = Iterable[tuple[str, nn.Parameter]]


def freeze(named: Named, groups: Iterable[ParameterGroup]) -> None:
    """Stop the gradient of parameters that belong to a frozen group.

    Args:
        named: parameters by the names that patterns are searched for in.
        groups: ``train.groups``.

    Raises:
        ConfigError: a group has no parameter, or nothing is left to train.
    """
    named, groups = list(named), list(groups)
    members: list[list[str]] = [[] for _ in groups]
    for name, parameter in named:
        index = _group_of(name, groups)
        if index is not None and (groups[index].frozen or parameter.requires_grad):
            members[index].append(name)
            if groups[index].frozen:
                parameter.requires_grad_(False)
    faults = [
        f"groups.{index}.match: {groups[index].match!r} is in no name of a parameter that is trained"
        + (" and that no group before it has" if index else "")
        + f"; names are such as {', '.join(_sample([name for name, _ in named]))}. A recipe's groups are meant for its "
        "own parts: with others say train.groups=[], or your own"
        for index, names in enumerate(members)
        if not names
    ]
    if not faults and named and not any(parameter.requires_grad for _, parameter in named):
        faults.append("groups: nothing is left to train: every parameter is frozen")
    if faults:
        raise ConfigError("train", faults)


def frozen_at_random(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Patterns that freeze all of a part which starts from no public weights, and the part's name."""
    for part in ("fusion", "decoder"):
        settings = getattr(config, part)
        public = [settings.get(key, "") for key in ("initialise_from", "initialise_from_bert")]
        if any(public) or settings.get("weights", RANDOM) != RANDOM:
            continue
        for group in config.train.groups:
            if group.frozen and re.search(group.match, f"{part}."):
                yield group.match, f"{part} {settings['name']}"


def parameter_groups(named: Named, settings: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups, two for each of ours: with weight decay and without. Frozen parameters are in none.

    The key ``scale`` of each is what the learning rate is multiplied by.

    Args:
        named: parameters by the names that patterns are searched for in.
        settings: the patterns, learning rates and weight decays.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    found: list[dict[str, Any]] = []
    for index, group in [*enumerate(settings.groups), (None, ParameterGroup(match=""))]:
        if group.frozen:
            continue
        members = [parameter for name, parameter in trained if _group_of(name, settings.groups) == index]
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        scale = 1.0 if group.lr is None else group.lr / settings.lr
        decayed = [p for p in members if settings.weight_decay_of == "all" or p.ndim >= 2]
        others = [p for p in members if settings.weight_decay_of == "matrices" and p.ndim < 2]
        found.append({"params": decayed, "weight_decay": decay, "scale": scale})
        found.append({"params": others, "weight_decay": 0.0, "scale": scale})
    return found


def _group_of(name: str, groups: Iterable[ParameterGroup]) -> int | None:
    """The first group whose pattern is in a name; ``None``: none."""
    return next((index for index, group in enumerate(groups) if re.search(group.match, name)), None)


def _sample(names: list[str], most: int = 4) -> list[str]:
    """Some names, spread over all."""
    return [names[index * len(names) // most] for index in range(min(most, len(names)))]


def warmup_length(settings: TrainConfig, steps_per_epoch: int, total_steps: int) -> int:
    """``train.warmup_steps`` in optimizer steps."""
    given = settings.warmup_steps
    if isinstance(given, int):
        return given
    number = float(re.match(r"[\d.]+", given)[0])  # type: ignore[index]  # the configuration saw to it
    return round(number / 100 * total_steps if "%" in given else number * steps_per_epoch)


def learning_rate(step: int, settings: TrainConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """Linear warmup, then the schedule from ``lr`` down to ``final_lr``; a function of the step alone.

    Args:
        step: optimizer steps before this one.
        settings: of the loop.
        steps_per_epoch: optimizer steps.
        total_steps: of the whole training.
    """
    warmup = warmup_length(settings, steps_per_epoch, total_steps)
    by_epoch = settings.schedule == "cosine_epochs"
    if step < warmup and not (by_epoch and step >= steps_per_epoch):
        return settings.warmup_from + (settings.lr - settings.warmup_from) * (step + 1) / warmup
    if by_epoch:
        epochs = math.ceil(total_steps / steps_per_epoch)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, step // steps_per_epoch / epochs)))
    elif settings.schedule == "cosine":
        share = (step - warmup) / max(1, total_steps - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    elif settings.schedule == "linear":
        left = 1 - min(1.0, (step - warmup) / max(1, total_steps - warmup))
    elif settings.schedule == "hold":
        left = min(1.0, (1 - step / total_steps) / (1 - HELD_SHARE))
    else:
        left = 1.0
    return settings.final_lr + (settings.lr - settings.final_lr) * left


class Average:
    """Weights averaged over the steps of a training, each step counting less the longer it is past.

    ::

        d = min(decay, (1 + n) / (10 + n))       n: steps so far
        average = d average + (1 - d) weights

    Args:
        parameters: those that are trained; the average begins with what they are.
        decay: the largest d.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step in."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the parameters are the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"values": [value.cpu() for value in self.values], "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        values: list[Tensor] = state["values"]
        for value, stored in zip(self.values, values, strict=True):
            value.copy_(stored)
        self.count = int(state["count"])
