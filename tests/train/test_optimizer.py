"""Which parameters the optimizer steps, how far, and what is averaged over its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from avpipe.pipeline.errors import ConfigError
from avpipe.train.config import TrainConfig, read
from avpipe.train.optimizer import Average, freeze, frozen_at_random, learning_rate, parameter_groups


def model() -> nn.Module:
    """Parameters fusion.weight, fusion.bias, decoder.old.weight, decoder.old.bias, decoder.new.weight, ..."""
    decoder = nn.ModuleDict({"old": nn.Linear(2, 2), "new": nn.Linear(2, 2)})
    return nn.ModuleDict({"fusion": nn.Linear(2, 2), "decoder": decoder})


def settings(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate(values)


def told(groups: Sequence[Mapping[str, Any]], whole: nn.Module) -> dict[str, tuple[float, float]]:
    """Of each parameter: what its learning rate is multiplied by, and its weight decay."""
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    found = [(names[id(p)], (g["scale"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(dict(found)) == len(found)  # nobody is stepped twice
    return dict(found)


def test_the_first_pattern_that_is_in_a_name_decides() -> None:
    """MICap's: what is pretrained slowly and without weight decay, what is new fast."""
    whole = model()
    chosen = settings(
        lr=6e-4,
        weight_decay=0.01,
        groups=[{"match": r"^decoder\.new"}, {"match": "^decoder", "lr": 2e-6, "weight_decay": 0.0}],
    )
    slow = pytest.approx(2e-6 / 6e-4)
    assert told(parameter_groups(whole.named_parameters(), chosen), whole) == {
        "fusion.weight": (1.0, 0.01),
        "fusion.bias": (1.0, 0.0),
        "decoder.new.weight": (1.0, 0.01),
        "decoder.new.bias": (1.0, 0.0),
        "decoder.old.weight": (slow, 0.0),
        "decoder.old.bias": (slow, 0.0),
    }


def test_weight_decay_of_all_is_of_vectors_too() -> None:
    whole = model()
    found = told(parameter_groups(whole.named_parameters(), settings(weight_decay=5e-7, weight_decay_of="all")), whole)
    assert set(found.values()) == {(1.0, 5e-7)}


def test_what_is_frozen_is_in_no_group_and_stays() -> None:
    whole = model()
    chosen = settings(groups=[{"match": r"decoder\.old", "frozen": True}])
    freeze(whole.named_parameters(), chosen.groups)
    assert {name for name, p in whole.named_parameters() if not p.requires_grad} == {
        "decoder.old.weight",
        "decoder.old.bias",
    }
    found = told(parameter_groups(whole.named_parameters(), chosen), whole)
    assert not any(name.startswith("decoder.old") for name in found)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (
            [{"match": "crossattention"}],
            r"groups.0.match: 'crossattention' is in no name of .*train.groups=\[\]",
        ),
        ([{"match": "fusion"}, {"match": "fusion.bias"}], "groups.1.match: .* that no group before it has"),
        ([{"match": "", "frozen": True}], "nothing is left to train"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(groups: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        freeze(model().named_parameters(), settings(groups=groups).groups)


def test_a_group_of_what_a_part_has_frozen_itself_is_refused() -> None:
    """LoRA's base, say: a learning rate for it would do nothing."""
    whole = model()
    whole.get_submodule("decoder.old").requires_grad_(False)
    with pytest.raises(ConfigError, match="is in no name of a parameter that is trained"):
        freeze(whole.named_parameters(), settings(groups=[{"match": "old", "lr": 1e-5}]).groups)
    freeze(whole.named_parameters(), settings(groups=[{"match": "old", "frozen": True}]).groups)


def test_a_part_that_is_frozen_at_random_is_told() -> None:
    """AVCap's recipe freezes its decoder, which is GIT's: another in its place would stay as it was drawn."""
    exchanged = read("avcap", ["decoder=transformer"])
    assert list(frozen_at_random(exchanged)) == [("^decoder", "decoder transformer")]
    assert list(frozen_at_random(read("avcap"))) == []
    assert list(frozen_at_random(read("avcap", ["decoder=transformer", "train.groups=[]"]))) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"groups": [{"match": "("}]}, "not a regular expression"),
        ({"groups": [{"match": "x", "frozen": True, "lr": 1.0}]}, "neither lr nor weight_decay"),
        ({"warmup_steps": "5 percent"}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"lr": 1e-4, "final_lr": 1e-3}, "expected at most lr"),
        ({"modality_dropout": {"video": 1.5}}, "modality_dropout"),
        ({"modality_dropout": {"smell": 0.5}}, "modality_dropout"),
        ({"targets": ["next"]}, r"expected \[current\] or \[current, next\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings(**wrong)


# -- the learning rate -------------------------------------------------------------------------------------------------


def rates(total: int, per_epoch: int, **values: Any) -> list[float]:
    chosen = settings(lr=1.0, **values)
    return [learning_rate(step, chosen, steps_per_epoch=per_epoch, total_steps=total) for step in range(total)]


def test_warmup_may_be_a_share_or_epochs() -> None:
    plain = rates(40, 10, warmup_steps=4, schedule="linear")
    assert rates(40, 10, warmup_steps="10%", schedule="linear") == plain
    assert rates(40, 10, warmup_steps="0.4 epochs", schedule="linear") == plain
    assert rates(40, 10, warmup_steps="1 epoch", schedule="linear") != plain
    assert plain[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert plain[22] == pytest.approx(0.5)
    assert plain[4:] == sorted(plain[4:], reverse=True)


def test_warmup_may_begin_above_zero() -> None:
    """AVCap's: from 2e-7; here from a half."""
    assert rates(8, 8, warmup_steps=4, warmup_from=0.5, schedule="constant")[:5] == [0.625, 0.75, 0.875, 1.0, 1.0]


def test_laviss_cosine_steps_with_epochs() -> None:
    found = rates(40, 10, warmup_steps=5, schedule="cosine_epochs", final_lr=0.2)
    assert found[:10] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    for epoch in range(1, 4):
        level = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * epoch / 4))
        assert found[10 * epoch : 10 * epoch + 10] == [pytest.approx(level)] * 10


def test_laviss_warmup_ends_with_the_first_epoch() -> None:
    """A trap of LAVIS: an epoch shorter than the warmup never gets to the peak."""
    found = rates(40, 10, warmup_steps=1000, schedule="cosine_epochs")
    assert max(found[:10]) == pytest.approx(0.01)
    assert found[10] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


# -- the average -------------------------------------------------------------------------------------------------------


def test_the_average_is_the_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([parameter], 0.5)
    expected = parameter.detach().clone()
    for step, value in enumerate([3.0, -1.0, 4.0, 0.0, 7.0, 9.0, 2.0, 1.0, 5.0, 8.0, 6.0], start=1):
        parameter.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.values[0], expected)
    with average.in_place():
        torch.testing.assert_close(parameter.detach(), expected)
    assert parameter.tolist() == [6.0, 6.0]  # and back


def test_the_average_comes_back_when_something_fails_inside() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = Average([parameter], 0.9)
    parameter.data.fill_(5.0)
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert parameter.item() == 5.0


def test_the_average_goes_on_from_its_state() -> None:
    def run(breaks: bool) -> torch.Tensor:
        parameter = nn.Parameter(torch.zeros(3))
        average = Average([parameter], 0.99)
        for step in range(6):
            parameter.data.fill_(float(step))
            average.update()
            if breaks and step == 2:
                state = average.state_dict()
                average = Average([parameter], 0.99)
                average.load_state_dict(state)
        return average.values[0]

    assert torch.equal(run(breaks=True), run(breaks=False))
