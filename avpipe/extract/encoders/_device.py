"""Arithmetic on the device that an encoder runs on, and the way there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Precision = Literal["bf16", "float32"]


def mixed_precision(device: str, precision: Precision) -> torch.autocast:
    """Context in which a network runs: bfloat16 where it is asked for and the hardware has it, else float32."""
    enabled = arithmetic(device, precision) == "bfloat16"
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def arithmetic(device: str, precision: str) -> str:
    """What a network that shall run in ``precision`` really runs in: ``"bfloat16"`` or ``"float32"``."""
    # Older GPUs than compute capability 8 emulate bfloat16, slowly.
    has_bf16 = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if precision == "bf16" and has_bf16 else "float32"


def upload(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    """An array on the device. To a GPU it goes through pinned memory, while the GPU still works on what came before."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """A tensor as a float32 array; waits for the device.

    From a GPU it comes into pinned memory, which torch keeps and lends out again when the array is gone. On an H200 a
    new array of ordinary memory took it at 1.4 GB/s, pinned memory at 55 GB/s.
    """
    if tensor.device.type == "cuda":
        pinned = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
        pinned.copy_(tensor.float(), non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        tensor = pinned
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def ready(module: torch.nn.Module, device: str, *, compile: bool = False, dynamic: bool = True) -> torch.nn.Module:
    """A network on the device, for evaluation, compiled if asked for: once for inputs of all sizes, or (not
    ``dynamic``) again for each size.
    """
    if torch.device(device).type == "cuda":
        # torch's default lets convolutions in float32 round their factors to ten bits (TF32), matrix products not. Once
        # for the process, because two threads encode: what one of them put back would hold for the other, too.
        torch.backends.cudnn.allow_tf32 = False
    module = module.eval().requires_grad_(False).to(device)
    if compile:
        module.compile(dynamic=dynamic)
    return module


class Applied(torch.nn.Module):
    """A network and what is done with it, as one module: so ``torch.compile`` gets hold of all of it, and not of a
    ``forward`` that nobody calls.
    """

    def __init__(self, network: torch.nn.Module, function: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``function(network, inputs)``."""
        return self.function(self.network, inputs)


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 ``(..., H, W, 3)`` -> float32 ``(..., 3, H, W)``: the operations of torchvision's ``ToTensor`` and
    ``Normalize``, in their order, so that they round alike.
    """
    planes = pixels.movedim(-1, -3)
    scaled = planes.to(torch.float32, memory_format=torch.contiguous_format).div(255)
    middle = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    spread = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return scaled.sub_(middle).div_(spread)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Whatever torch draws inside comes from ``seed``; outside, nobody notices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
