"""What is trained: a captioner and its objectives, as one module, so that several processes share all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import objectives
from avpipe.train.batch import Batch
from avpipe.train.captioner import Captioner
from avpipe.train.objective import BaseObjective, Losses, Split, Step
from avpipe.train.objectives import cross_entropy
from avpipe.train.tokenizer import Tokenizer

Batches = Callable[[Split, int], Iterator[Batch]]
"""See :data:`avpipe.train.objective.Steps`."""


class Learner(nn.Module):
    """A captioner under its objectives.

    Args:
        captioner: is trained.
        settings: ``RunConfig.objectives``: of each objective, by name. Those of weight 0 are left out.
        specs: the feature sets that are trained on, by name.

    Raises:
        ConfigError: objectives lack something; all faults at once.
    """

    def __init__(
        self, captioner: Captioner, settings: Mapping[str, Mapping[str, Any]], specs: Mapping[str, FeatureSpec]
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.weights: dict[str, float] = {}
        built: dict[str, BaseObjective] = {}
        faults: list[str] = []
        for name, values in settings.items():
            module = objectives.REGISTRY.load(name)
            config = module.Config(**values)
            if not config.weight:
                continue
            self.weights[name] = config.weight
            try:
                built[name] = module.Objective(config, fusion=captioner.fusion, specs=specs)
            except ConfigError as error:
                faults += [f"objectives.{name}: {fault}" for fault in error.faults]
        if faults:
            raise ConfigError("objectives", faults)
        self.objectives = nn.ModuleDict(built)
        # With weight 0, too, its settings say what a caption costs.
        self.caption_loss = cross_entropy.CaptionLoss(cross_entropy.Config(**settings.get("cross_entropy", {})))

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with the names that ``train.groups`` knows them by: ``fusion...``, ``decoder...``,
        ``objectives...``.
        """
        for name, parameter in self.named_parameters():
            yield name.removeprefix("captioner."), parameter

    @property
    def needs_held_out(self) -> bool:
        """Whether an objective asks for clips that are not trained on."""
        return any(objective.needs_held_out for objective in self._active())

    def prepare(self, clips: Sequence[Clip], tokenizer: Tokenizer) -> None:
        """To be called once before the first step; see :meth:`avpipe.train.objective.BaseObjective.prepare`."""
        for objective in self._active():
            objective.prepare(clips, tokenizer)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, of one element, and its parts for the log: losses, their weights, what is watched."""
        step = self._step(batch)
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for (name, weight), objective in zip(self.weights.items(), self._active(), strict=True):
            found: Losses = objective(step)
            for key, loss in found.losses.items():
                told = name if key == name else f"{name}.{key}"
                parts[told] = loss.detach()
                term = weight * loss
                if key in found.weights:
                    parts[f"{name}.w_{key}"] = found.weights[key].detach()
                    term = term * found.weights[key].detach()
                total = term if total is None else total + term
            parts |= {f"{name}.{key}": value.detach() for key, value in found.watched.items()}
        if total is None:
            raise ValueError("objectives: expected at least one of a weight above 0, got none")
        return total, parts

    def after_update(self) -> None:
        """To be called after each step of the optimizer."""
        for objective in self._active():
            objective.after_update()

    def after_epoch(self, epoch: int, batches: Batches) -> None:
        """To be called before the first epoch, with 0, and after each but the last."""

        def steps(split: Split, most: int) -> Iterator[Step]:
            for batch in batches(split, most):
                yield self._step(batch)

        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for objective in self._active():
                    objective.after_epoch(epoch, steps)
        finally:
            self.train(training)

    def _active(self) -> list[BaseObjective]:
        return list(self.objectives.values())  # type: ignore[arg-type]  # a ModuleDict of these

    def _step(self, batch: Batch) -> Step:
        fused = self.captioner.fusion(batch)
        return Step(captioner=self.captioner, batch=batch, fused=fused, caption_loss=self.caption_loss)
