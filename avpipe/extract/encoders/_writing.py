"""What encoders that write text ask of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

DIGITS = 4
"""Decimals of times, scores and flags: what lies behind differs from machine to machine."""


def settings(**values: Any) -> Any:
    """A ``GenerationConfig``, whose constructor has no types."""
    import transformers

    made: Any = transformers.GenerationConfig
    return made(**values)


class BestLogProbs:
    """Notes, as the last of the processors of a greedy search, how sure the network was of the best token.

    The library would keep the scores of all tokens at all steps instead: hundreds of megabytes.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def means(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Mean log-probability of a token of each text, that which ended it included, where there was one."""
        import torch

        steps = torch.stack(self._steps, dim=1).cpu().numpy()  # (B, steps)
        return [float(np.mean(steps[i, : len(row) + 1])) for i, row in enumerate(rows)]


def until(row: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return list(row[:stop])
