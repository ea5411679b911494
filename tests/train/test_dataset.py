"""Batches: what is in them, and in which order they come."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, UsageError
from avpipe.pipeline.features import Features
from avpipe.train import dataset
from avpipe.train.batch import Batch, drop_modalities
from avpipe.train.dataset import ClipDataset, Items, captions_of_next, epoch_items, fits_in_memory, loader
from avpipe.train.tokenizer import Tokenizer
from tests.train.toys import HOP_SECONDS, LENGTHS, SPECS, Source, clips, sources

CAPTIONS = [
    ["a man sings", "someone sings a song"],
    ["a dog barks"],
    ["a red ball bounces and a beep is heard", "a ball", "it beeps"],
    ["nothing at all"],
    ["one"],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained([text for texts in CAPTIONS for text in texts], vocabulary_size=300, lower_case=True)


def build(tokenizer: Tokenizer | None = None, **options: Any) -> ClipDataset:
    return ClipDataset(clips(CAPTIONS), sources(), tokenizer=tokenizer, **options)


def whole(batch: Batch) -> dict[str, Any]:
    """Everything in a batch, to be compared."""
    found: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, dict):
            found |= {f"{field.name}.{name}": tensor for name, tensor in value.items()}
        else:
            found[field.name] = value
    return found


def assert_equal(one: Batch, other: Batch) -> None:
    left, right = whole(one), whole(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]) if isinstance(value, Tensor) else value == right[key], key


# -- what is in a batch ------------------------------------------------------------------------------------------------


def test_rows_masks_and_times() -> None:
    data = build()
    batch = data.batch([(clip, ()) for clip in (1, 0, 2)])
    assert batch.clip_ids == ("clip1", "clip0", "clip2")
    assert batch.tokens is None
    assert batch.token_mask is None
    assert batch.caption_clip is None
    for name, spec in SPECS.items():
        counts = [LENGTHS[name][clip] for clip in (1, 0, 2)]
        assert batch.features[name].shape == (3, max(counts), spec.dim)
        assert batch.features[name].dtype == torch.float32
        assert batch.mask[name].sum(dim=1).tolist() == counts
        assert batch.present[name].tolist() == [count > 0 for count in counts]
        for row, count in enumerate(counts):
            assert batch.mask[name][row].tolist() == [True] * count + [False] * (max(counts) - count)
            assert (batch.features[name][row, count:] == 0).all()
            assert (batch.pts_seconds[name][row, count:] == 0).all()
            if count:
                there = data.sources[name].read(batch.clip_ids[row])
                assert np.array_equal(batch.features[name][row, :count].numpy(), there.data)
                times = torch.arange(count, dtype=torch.float64) * HOP_SECONDS[name]
                torch.testing.assert_close(batch.pts_seconds[name][row, :count], times.float())


def test_a_modality_that_all_clips_lack() -> None:
    batch = build().batch([(3, ())])
    for name, spec in SPECS.items():
        assert batch.features[name].shape == (1, 1, spec.dim)
        assert not batch.mask[name].any()
        assert batch.present[name].tolist() == [False]


def test_half_precision_on_disk_is_single_in_a_batch() -> None:
    there = sources()
    halves = {
        name: Source(source.spec, {key: _half(value) for key, value in source.features.items()})
        for name, source in there.items()
    }
    batch = ClipDataset(clips(CAPTIONS), halves).batch([(0, ())])
    assert batch.features["see"].dtype == torch.float32
    assert np.array_equal(batch.features["see"][0].numpy(), halves["see"].read("clip0").data.astype(np.float32))


def _half(features: Any) -> Any:
    return type(features)(data=features.data.astype(np.float16), pts_seconds=features.pts_seconds)


def test_captions_and_their_clips(tokenizer: Tokenizer) -> None:
    batch = build(tokenizer).batch([(2, (0, 2)), (0, (1,)), (4, ())])
    assert batch.tokens is not None
    assert batch.token_mask is not None
    assert batch.caption_clip is not None
    assert batch.caption_clip.tolist() == [0, 0, 1]
    assert batch.caption_clip.dtype == torch.int64
    for ids, real, text in zip(
        batch.tokens, batch.token_mask, (CAPTIONS[2][0], CAPTIONS[2][2], CAPTIONS[0][1]), strict=True
    ):
        expected = tokenizer.encode(text)
        assert ids[: len(expected)].tolist() == expected
        assert real[: len(expected)].all()
        assert (ids[len(expected) :] == tokenizer.special.pad).all()
        assert not real[len(expected) :].any()


def test_long_captions_are_cut_and_keep_their_end(tokenizer: Tokenizer) -> None:
    long = tokenizer.encode(CAPTIONS[2][0])
    limit = len(tokenizer.encode(CAPTIONS[0][0]))
    assert limit < len(long)
    captions = build(tokenizer, max_tokens=limit).captions
    assert captions[2][0] == [*long[: limit - 1], tokenizer.special.end]
    assert captions[0][0] == tokenizer.encode(CAPTIONS[0][0])  # just fits
    assert max(len(ids) for texts in captions for ids in texts) == limit


def test_cached_features_are_the_same_and_read_once(tokenizer: Tokenizer) -> None:
    plain, cached = build(tokenizer), build(tokenizer, cache=True)
    reads = [source.reads for source in cached.sources.values()]
    items: Items = [(clip, (0,)) for clip in range(5)]
    for _ in range(2):
        assert_equal(cached.batch(items), plain.batch(items))
    assert [source.reads for source in cached.sources.values()] == reads == [3, 3]
    assert [source.reads for source in plain.sources.values()] == [6, 6]


def viewed(tokenizer: Tokenizer | None, views: int, **options: Any) -> ClipDataset:
    """Feature sets that hold several views of each clip; the last set holds one."""
    made = sources()
    made["see"].spec = replace(made["see"].spec, views=views)
    return ClipDataset(clips(CAPTIONS), made, tokenizer=tokenizer, **options)


def shift(data: ClipDataset, clip: int, draw: tuple[int, ...] | None) -> int:
    """Which view of a clip a batch holds: toys shift their rows by its number."""
    plain, drawn = (data.batch([(clip, (0,))], which).features for which in (None, draw))
    assert torch.equal(plain["hear"], drawn["hear"])
    difference = (drawn["see"] - plain["see"]).unique()
    assert len(difference.round(decimals=4).unique()) == 1
    return round(float(difference[0]))


@pytest.mark.parametrize("cache", [False, True])
def test_training_draws_one_view_of_each_clip(tokenizer: Tokenizer, cache: bool) -> None:
    data = viewed(tokenizer, 4, cache=cache)
    seen = {
        draw: [shift(data, clip, draw) for clip in (0, 1, 4)]
        for draw in [(seed, e) for seed in (0, 1) for e in range(20)]
    }
    assert {view for views in seen.values() for view in views} == {0, 1, 2, 3}
    assert len({tuple(views) for views in seen.values()}) > 10  # neither the same in all epochs nor for all clips
    assert seen[0, 3] == [shift(data, clip, (0, 3)) for clip in (0, 1, 4)]
    batch = data.batch([(4, (0,)), (0, (0,))], (0, 3)).features["see"]  # neither order nor company matters
    assert torch.equal(batch[1], data.batch([(0, (0,))], (0, 3)).features["see"][0])


def test_each_caption_of_a_clip_draws_a_view_of_its_own(tokenizer: Tokenizer) -> None:
    """With ``captions_per_clip: each`` a clip comes several times an epoch, as in the authors' loaders."""
    data = viewed(tokenizer, 4)
    first, second = (
        [data.batch([(0, (caption,))], (0, epoch)).features["see"] for epoch in range(10)] for caption in (0, 1)
    )
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_whoever_does_not_train_sees_the_plain_view(tokenizer: Tokenizer) -> None:
    without, plain = viewed(None, 4, cache=True), build()
    assert_equal(without.batch([(0, ()), (4, ())]), plain.batch([(0, ()), (4, ())]))
    assert without.sources["see"].reads == 3  # type: ignore[attr-defined]  # the other views were not even read


def test_the_loader_passes_the_draw_on(tokenizer: Tokenizer) -> None:
    data = viewed(tokenizer, 4)
    items: list[Items] = [[(0, (0,)), (4, (0,))]]
    (drawn,), (plain,) = loader(data, items, 0, (0, 3)), loader(data, items, 0)
    assert torch.equal(drawn.features["see"], data.batch(items[0], (0, 3)).features["see"])
    assert not torch.equal(drawn.features["see"], plain.features["see"])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_give_the_same_batches(tokenizer: Tokenizer, num_workers: int) -> None:
    data = build(tokenizer)
    batches = epoch_items(data, seed=0, epoch=0, batch_size=2, captions_per_clip="each")
    alone, helped = list(loader(data, batches, 0)), list(loader(data, batches, num_workers))
    assert len(alone) == len(helped) == len(batches) == 4
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)


def test_loading_draws_no_random_number(tokenizer: Tokenizer) -> None:
    data = build(tokenizer)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    list(loader(data, epoch_items(data, seed=0, epoch=0, batch_size=2, captions_per_clip=1), 0))
    assert torch.equal(torch.rand(1), expected)


def test_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    there = sources({"see": (4,) * 5, "hear": (5,) * 5})
    size = 5 * (4 * 6 + 5 * 5) * 4  # clips * (rows * dim) * bytes

    def free(amount: float) -> None:
        memory = type("Memory", (), {"available": amount})
        monkeypatch.setattr(dataset.psutil, "virtual_memory", lambda: memory)

    free(4 * size)
    assert fits_in_memory(clips(CAPTIONS), there)
    free(4 * size - 1)
    assert not fits_in_memory(clips(CAPTIONS), there)


# -- the order of an epoch ---------------------------------------------------------------------------------------------


class Counted(ClipDataset):
    """So many captions a clip, and nothing else."""

    def __init__(self, counts: list[int], of_next: list[int] | None = None) -> None:
        self.own = counts
        self.captions = [[[0]] * (own + of) for own, of in zip(counts, of_next or [0] * len(counts), strict=True)]


counts = st.lists(st.integers(1, 5), min_size=1, max_size=30)


@given(counts, st.integers(0, 9), st.integers(0, 9), st.integers(1, 7), st.sampled_from([1, 2, 3, "all", "each"]))
def test_an_epoch_covers_everything_once(
    captions: list[int], seed: int, epoch: int, batch_size: int, captions_per_clip: int | str
) -> None:
    data = Counted(captions)
    options: dict[str, Any] = {"batch_size": batch_size, "captions_per_clip": captions_per_clip}
    batches = epoch_items(data, seed=seed, epoch=epoch, **options)
    assert batches == epoch_items(Counted(captions), seed=seed, epoch=epoch, **options)
    items = [item for batch in batches for item in batch]
    # Every batch is full but the last, which is kept.
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    if captions_per_clip == "each":
        every = [(clip, (caption,)) for clip, count in enumerate(captions) for caption in range(count)]
        assert sorted(items) == every
        return
    assert sorted(clip for clip, _ in items) == list(range(len(captions)))
    for clip, chosen in items:
        wanted = captions[clip] if captions_per_clip == "all" else min(captions[clip], int(captions_per_clip))
        assert len(set(chosen)) == len(chosen) == wanted
        assert set(chosen) <= set(range(captions[clip]))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=20),
    st.sampled_from([1, 2, "all", "each"]),
)
def test_of_the_next_clip_as_many_are_drawn(counts: list[tuple[int, int]], captions_per_clip: int | str) -> None:
    own, of_next = [one for one, _ in counts], [other for _, other in counts]
    batches = epoch_items(Counted(own, of_next), seed=0, epoch=0, batch_size=3, captions_per_clip=captions_per_clip)
    items = sorted(item for batch in batches for item in batch)
    if captions_per_clip == "each":
        assert items == [(clip, (c,)) for clip, both in enumerate(counts) for c in range(sum(both))]
        return
    assert [clip for clip, _ in items] == list(range(len(counts)))
    for clip, chosen in items:
        most = max(own[clip], of_next[clip]) if captions_per_clip == "all" else int(captions_per_clip)
        assert sum(c < own[clip] for c in chosen) == min(own[clip], most)
        assert sum(c >= own[clip] for c in chosen) == min(of_next[clip], most)


def followed(count: int = 3) -> list[Clip]:
    """Clips of one video, each saying its number, each with the next one's name."""
    return [
        Clip(
            clip_id=f"v{i}", dataset="toy", path="x", split="train", captions=(f"number {'abc'[i]}",),
            extra={"next_clip": f"v{i + 1}"},
        )
        for i in range(count)
    ]  # fmt: skip


def test_captions_of_the_next_clip_have_their_own_begin() -> None:
    """PNC: a clip's rows, and which of them are of the clip that follows; the last clip has none."""
    words = Tokenizer.trained(["number a b c"], vocabulary_size=300, lower_case=True).with_next_begin("<next>")
    clips = followed()
    rows = Features(data=np.zeros((2, SPECS["see"].dim), np.float32), pts_seconds=np.arange(2.0))
    made = {"see": Source(SPECS["see"], {clip.clip_id: rows for clip in clips})}
    data = ClipDataset(clips, made, tokenizer=words, following=captions_of_next(clips))
    batch = data.batch([(0, (0, 1)), (2, (0,))])
    assert batch.tokens is not None and batch.caption_clip is not None and batch.of_next is not None
    assert batch.of_next.tolist() == [False, True, False]
    assert batch.caption_clip.tolist() == [0, 0, 1]
    assert batch.tokens[:, 0].tolist() == [words.special.begin, words.special.begin_next, words.special.begin]
    said = [words.decode(row.tolist()) for row in batch.tokens]
    assert said == ["number a", "number b", "number c"]
    assert batch.to("cpu").of_next is not None
    # Where no row is of a next clip, it is said, too: processes must agree on what there is.
    alone = data.batch([(2, (0,))])
    assert alone.of_next is not None and not alone.of_next.any()


def test_clips_that_nothing_follows_have_no_next_captions() -> None:
    with pytest.raises(DataError, match="of 1 training clips none is followed by another: 1 name one"):
        captions_of_next(followed(1))


def test_a_begin_that_stands_for_something_else_is_refused() -> None:
    words = Tokenizer.trained(["a"], vocabulary_size=300, lower_case=True)
    with pytest.raises(UsageError, match="'</s>' is padding, begin or end of a caption already"):
        words.with_next_begin("</s>")
    with pytest.raises(ValueError, match="with_next_begin"):
        words.encode("a", of_next=True)
    more = words.with_next_begin("<next>")
    assert more.vocabulary_size == words.vocabulary_size + 1
    assert words.special.begin_next is None  # the other one is as it was


def test_seed_and_epoch_decide() -> None:
    data = Counted([3] * 40)
    drawn = {
        (seed, epoch): str(epoch_items(data, seed=seed, epoch=epoch, batch_size=8, captions_per_clip=1))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(drawn.values())) == 9
    # Nothing else does: not the generators of numpy or torch.
    np.random.seed(1)
    torch.manual_seed(1)
    again = str(epoch_items(data, seed=2, epoch=1, batch_size=8, captions_per_clip=1))
    assert again == drawn[2, 1]


def test_in_time_every_caption_is_drawn_about_as_often() -> None:
    data, drawn = Counted([4] * 5), Counter[tuple[int, int]]()
    for epoch in range(400):
        for batch in epoch_items(data, seed=0, epoch=epoch, batch_size=5, captions_per_clip=1):
            drawn.update((clip, chosen[0]) for clip, chosen in batch)
    assert len(drawn) == 20
    assert min(drawn.values()) > 60
    assert max(drawn.values()) < 140


# -- modality dropout --------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_what_modality_dropout_takes_is_as_if_it_had_never_been(video: float, audio: float, seed: int) -> None:
    torch.manual_seed(seed)
    before = build().batch([(index, ()) for index in range(len(CAPTIONS))])
    after = drop_modalities(before, {"video": video, "audio": audio}, SPECS)
    something = torch.stack(list(before.present.values())).any(dim=0)
    assert torch.equal(torch.stack(list(after.present.values())).any(dim=0), something)  # one is always left
    for name in SPECS:
        there = after.present[name]
        assert not (there & ~before.present[name]).any()
        for one, other in ((after.features, before.features), (after.mask, before.mask),
                           (after.pts_seconds, before.pts_seconds)):  # fmt: skip
            assert torch.equal(one[name][there], other[name][there])
            assert not one[name][~there].any()


def test_modality_dropout_takes_as_often_as_it_says() -> None:
    """Both, with 0.5 and 0.2: the 1 in 10 that would lose both keep both."""
    batch = build().batch([(0, ())] * 4000)
    assert all(there.all() for there in batch.present.values())
    torch.manual_seed(0)
    after = drop_modalities(batch, {"video": 0.5, "audio": 0.2}, SPECS)
    lost = {name: (~after.present[name]) for name in SPECS}
    both = 0.0 if any(spec.modality == "text" for spec in SPECS.values()) else 0.5 * 0.2
    for name, spec in SPECS.items():
        wanted = {"video": 0.5 - both, "audio": 0.2 - both}.get(spec.modality, 0.0)
        assert lost[name].float().mean().item() == pytest.approx(wanted, abs=0.03)
        # all feature sets of a modality go together
        assert all(torch.equal(lost[name], lost[k]) for k, other in SPECS.items() if other.modality == spec.modality)


def test_without_modality_dropout_nothing_is_drawn() -> None:
    batch = build().batch([(0, ())])
    state = torch.get_rng_state()
    assert drop_modalities(batch, {"video": 0.0}, SPECS) is batch
    assert torch.equal(torch.get_rng_state(), state)
