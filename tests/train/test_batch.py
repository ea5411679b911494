"""What stands in :class:`avpipe.train.batch.Fused` beside its positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.toys import fused


def test_aux_is_empty_unless_a_fusion_says_something() -> None:
    assert fused().aux == {}


def test_take_carries_aux_along() -> None:
    clips = replace(fused(size=3), aux={"pooled": torch.tensor([[0.0], [1.0], [2.0]]), "paired": torch.arange(3) > 0})
    taken = clips.take(torch.tensor([2, 0, 2, 1]))
    assert taken.aux["pooled"].tolist() == [[2], [0], [2], [1]]
    assert taken.aux["paired"].tolist() == [True, False, True, True]
    assert torch.equal(taken.data, clips.data[[2, 0, 2, 1]])


@pytest.mark.parametrize("shape", [(2, 4), (4,), ()])
def test_aux_has_a_row_for_each_clip(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"aux\['pooled'\]: expected shape \(3, \.\.\.\), got \({', '.join(map(str, shape))}"
    ):
        replace(fused(size=3), aux={"pooled": torch.zeros(shape)})
