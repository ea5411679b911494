"""A transformer layer written from its formulas, for one clip, row by row and head by head: slow, and without padding.

What a fusion is checked against where its authors published no code. Nothing of ``avpipe`` is used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Any  # a vector of float64
Weights = Mapping[str, Any]


def part(weights: Weights, prefix: str) -> dict[str, Any]:
    """The weights below ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def linear(weights: Weights, name: str, row: Row) -> Row:
    return np.array([float(line @ row) for line in weights[f"{name}.weight"]]) + weights.get(f"{name}.bias", 0.0)


def norm(weights: Weights, name: str, row: Row) -> Row:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return (row - mean) / math.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(row: Row) -> Row:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in row])


def multi_head(
    queries: Sequence[Row], keys: Sequence[Row], values: Sequence[Row], heads: int
) -> tuple[list[Row], list[list[list[float]]]]:
    """For each query softmax(q K^T / sqrt(d)) V of each head, side by side; and the weights, ``[head][query][key]``."""
    size = len(queries[0]) // heads
    seen = [np.zeros(heads * size) for _ in queries]
    weights: list[list[list[float]]] = []
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        lines = []
        for place, query in enumerate(queries):
            scores = [float(query[channels] @ key[channels]) / math.sqrt(size) for key in keys]
            powers = [math.exp(score - max(scores)) for score in scores]
            line = [power / sum(powers) for power in powers]
            for weight, value in zip(line, values, strict=True):
                seen[place][channels] += weight * value[channels]
            lines.append(line)
        weights.append(lines)
    return seen, weights


def layer(
    weights: Weights, rows: Sequence[Row], context: Sequence[Row], heads: int
) -> tuple[list[Row], list[list[list[float]]]]:
    """Pre-norm attention of ``rows`` to ``context`` and feed-forward. Without context there is nothing to add.

    Names: ``attention_norm``, ``query``, ``key``, ``value``, ``attention_out``, ``feed_forward_norm``,
    ``feed_forward_in``, ``feed_forward_out``.
    """
    looked: list[list[list[float]]] = []
    if rows and context:
        asking = [norm(weights, "attention_norm", row) for row in rows]
        asked = [norm(weights, "attention_norm", row) for row in context]
        seen, looked = multi_head(
            [linear(weights, "query", row) for row in asking],
            [linear(weights, "key", row) for row in asked],
            [linear(weights, "value", row) for row in asked],
            heads,
        )
        rows = [row + linear(weights, "attention_out", more) for row, more in zip(rows, seen, strict=True)]
    out = []
    for row in rows:
        hidden = gelu(linear(weights, "feed_forward_in", norm(weights, "feed_forward_norm", row)))
        out.append(row + linear(weights, "feed_forward_out", hidden))
    return out, looked
