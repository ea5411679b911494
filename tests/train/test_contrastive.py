"""Symmetric InfoNCE: the authors' numbers (deckyal/MI-Cap, a5237ba), and what it makes of clips without a partner."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from avpipe.pipeline.errors import UnknownNameError
from avpipe.train.objectives import REGISTRY
from avpipe.train.objectives.contrastive import LOG_SCALE_MAX, LOG_SCALE_START, clamp_log_scale, info_nce

STORED = Path(__file__).parents[1] / "data" / "micap_coattn_layer.safetensors.gz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
SCALES = {"": 2.6592600345611572, "_scale3p1": 3.0999999046325684}
"""Logarithms, and what the golden tensors' names end with."""


def check(io: dict[str, Tensor], dtype: torch.dtype) -> None:
    """The loss and its gradients at both scales."""
    for suffix, log_scale in SCALES.items():
        video, audio = (io[f"expected64_pooled_{kind}"].to(dtype).requires_grad_() for kind in ("video", "audio"))
        scale = torch.tensor([log_scale], dtype=dtype, requires_grad=True)
        loss = info_nce(video, audio, scale)
        loss.backward()
        found = {"": loss.view(1), "_grad_logits_scale": scale.grad}
        if not suffix:  # of the other scale there are no more
            found |= {"_grad_pooled_video": video.grad, "_grad_pooled_audio": audio.grad}
        for name, tensor in found.items():
            assert tensor is not None
            expected = io[f"expected64_loss_contrast{name}{suffix}"]
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gives_the_authors_numbers(dtype: torch.dtype) -> None:
    io = load(gzip.decompress(STORED.read_bytes()))
    check({key.removeprefix("io/"): tensor for key, tensor in io.items()}, dtype)


@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["coattn_shared", "coattn_unshared"])
def test_both_forms(shared: Path, form: str, dtype: torch.dtype) -> None:
    path = shared / "golden_heads" / "public" / "micap" / f"{form}.io.safetensors"
    if not path.is_file():
        pytest.skip("no golden_heads in ../shared")
    check(load_file(path), dtype)


def some(size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.randn(size, 6, generator=generator)


START = torch.tensor(LOG_SCALE_START)


def test_a_match_costs_less_than_a_mismatch() -> None:
    video, _ = some()
    assert info_nce(video, 3 * video, START) < 0.01
    assert info_nce(video, video.roll(1, dims=0), START) > 3


def test_clips_without_a_partner_are_left_out() -> None:
    video, audio = some()
    paired = torch.tensor([True, False, True, True, False])
    # As a fusion has it: zeros where there is nothing.
    empty = audio.masked_fill(~paired[:, None], 0)
    found = info_nce(video, empty, START, paired)
    torch.testing.assert_close(found, info_nce(video[paired], audio[paired], START))
    assert abs(found - info_nce(video, empty, START)) > 0.1  # the twin: taken for pairs, they count


@pytest.mark.parametrize("pairs", [0, 1])
def test_nothing_to_match_costs_nothing(pairs: int) -> None:
    video, audio = some(4)
    paired = torch.arange(4) < pairs
    video, audio = (data.masked_fill(~paired[:, None], 0).requires_grad_() for data in (video, audio))
    scale = START.clone().requires_grad_()
    loss = info_nce(video, audio, scale, paired)
    loss.backward()
    assert loss == 0
    for parameter in (video, audio, scale):
        assert parameter.grad is not None
        assert (parameter.grad.abs() < 1e-6).all()  # there, finite, and zero


def test_gradients_are_finite_where_a_clip_has_nothing() -> None:
    video, audio = some()
    paired = torch.tensor([True, False, True, True, False])
    audio = audio.masked_fill(~paired[:, None], 0).requires_grad_()
    info_nce(video, audio, START, paired).backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
    assert (audio.grad[~paired] == 0).all()
    assert audio.grad[paired].abs().amax(dim=1).min() > 1e-4


def test_computed_in_single_precision_under_autocast() -> None:
    video, audio = some(64)
    scale = torch.tensor(LOG_SCALE_MAX)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(video, audio, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, info_nce(video, audio, scale))


def test_the_scale_begins_and_ends_where_the_authors_have_it() -> None:
    assert math.exp(-LOG_SCALE_START) == pytest.approx(0.07)
    for value, kept in ((-1.0, 0.0), (3.0, 3.0), (5.0, LOG_SCALE_MAX)):
        scale = torch.nn.Parameter(torch.tensor([value]))
        clamp_log_scale(scale)
        assert scale.item() == pytest.approx(kept)
        assert scale.requires_grad


def test_shapes_that_do_not_fit() -> None:
    video, audio = some()
    with pytest.raises(ValueError, match=r"same shape \(B, W\), got \(5, 6\) and \(4, 6\)"):
        info_nce(video, audio[:4], START)
    with pytest.raises(ValueError, match=r"log_scale: expected one element, got shape \(2,\)"):
        info_nce(video, audio, torch.zeros(2))
    with pytest.raises(ValueError, match=r"paired: expected shape \(5,\), got \(4,\)"):
        info_nce(video, audio, START, torch.ones(4, dtype=torch.bool))


def test_objectives_are_a_registry() -> None:
    assert "contrastive" in REGISTRY.names()
    assert REGISTRY.load("contrastive").info_nce is info_nce
    assert REGISTRY.summary("contrastive").startswith("Symmetric InfoNCE")
    with pytest.raises(UnknownNameError, match=r"unknown objective 'contrast'.*known: contrastive"):
        REGISTRY.load("contrast")
