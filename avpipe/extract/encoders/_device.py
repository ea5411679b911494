"""Arithmetic on the device that an encoder runs on, and the way there and back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Precision = Literal["bf16", "float32"]


def mixed_precision(device: str, precision: Precision) -> torch.autocast:
    """Context in which a network runs: bfloat16 where it is asked for and the hardware has it, else float32."""
    kind = torch.device(device).type
    # Older GPUs than compute capability 8 emulate bfloat16, slowly.
    has_bf16 = kind == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16" and has_bf16)


def upload(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    """An array on the device. To a GPU it goes through pinned memory, while the GPU still works on what came before."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """A tensor as a float32 array; waits for the device."""
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def ready(module: torch.nn.Module, device: str, *, compile: bool = False) -> torch.nn.Module:
    """A network on the device, for evaluation, compiled if asked for."""
    module = module.eval().requires_grad_(False).to(device)
    if compile:
        module.compile(dynamic=True)
    return module
