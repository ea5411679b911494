"""How many steps a training takes, without taking them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from avpipe.train.config import TrainConfig
from avpipe.train.dataset import ClipDataset, epoch_items
from avpipe.train.steps import steps_of
from tests.train.toys import clips, tokenizer

few = st.integers(1, 5)


@given(st.lists(few, min_size=1, max_size=9), st.one_of(few, st.sampled_from(["all", "each"])), few, few, few, few)
def test_an_epoch_has_as_many_steps_as_its_batches_make(
    captions: list[int], a_clip: Any, batch_size: int, accumulate: int, processes: int, epochs: int
) -> None:
    data = ClipDataset(clips([["a"] * count for count in captions]), {}, tokenizer=tokenizer(40))
    settings = TrainConfig(batch_size=batch_size, captions_per_clip=a_clip, accumulate=accumulate, epochs=epochs)
    batches = epoch_items(data, seed=0, epoch=0, batch_size=batch_size * processes, captions_per_clip=a_clip)
    steps = len(range(0, len(batches), accumulate))
    assert steps_of(settings, captions, processes) == (steps, epochs * steps)
    most = settings.model_copy(update={"max_steps": 3})
    assert steps_of(most, captions, processes) == (steps, min(3, epochs * steps))
