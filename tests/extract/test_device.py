"""The way to the device and back, as far as a machine without a GPU can show it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avpipe.extract.encoders._device import download, ready, upload

DEVICES = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)


@pytest.mark.parametrize(("device", "is_rounded"), [("cuda:0", False), ("cpu", True)])
def test_float32_is_float32_in_convolutions_on_a_gpu(
    device: str, is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's default is TF32 there. Which device a network is for tells, so no GPU need be had."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    ready(torch.nn.Identity(), device)
    assert torch.backends.cudnn.allow_tf32 is is_rounded


@DEVICES
def test_there_and_back_nothing_changes(device: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    back = download(upload(rows, device))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, rows)
    half = download(upload(rows, device).to(torch.bfloat16))
    np.testing.assert_array_equal(half, torch.from_numpy(rows).to(torch.bfloat16).float().numpy())


@DEVICES
def test_two_downloads_do_not_share_their_memory(device: str) -> None:
    first = download(upload(np.zeros((64, 64), np.float32), device))
    second = download(upload(np.ones((64, 64), np.float32), device))
    assert (first.sum(), second.sum()) == (0.0, 4096.0)
