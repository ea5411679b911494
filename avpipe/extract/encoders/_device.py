"""Arithmetic on the device that an encoder runs on."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "float32"]


def mixed_precision(device: str, precision: Precision) -> torch.autocast:
    """Context in which a network runs: bfloat16 where it is asked for and the hardware has it, else float32."""
    kind = torch.device(device).type
    # Older GPUs than compute capability 8 emulate bfloat16, slowly.
    has_bf16 = kind == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16" and has_bf16)
