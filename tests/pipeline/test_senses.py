"""Senses that are taken away or exchanged: each clip reads nothing, its own rows, or those of one other clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.errors import DataError, UnknownNameError, UsageError
from avpipe.pipeline.features import Features, FeatureSource, FeatureSpec
from avpipe.pipeline.senses import WHOLE, Senses, every_sense, partners, sets_of

CLIPS = ["a", "b", "c", "d"]


class Toy:
    """The one row of a clip holds its number."""

    def __init__(self, name: str, modality: Any, clip_ids: list[str]) -> None:
        self.spec = FeatureSpec(name=name, encoder="toy", modality=modality, dim=1, views=2)
        self.clip_ids = clip_ids

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.clip_ids

    def read(self, clip_id: str, view: int = 0) -> Features:
        number = self.clip_ids.index(clip_id) + 100 * view
        return Features(data=np.full((1, 1), number, dtype=np.float32), pts_seconds=np.zeros(1))


def sources(**ears: list[str]) -> dict[str, FeatureSource]:
    """``eyes`` of all clips, and some sets of ears."""
    return {"eyes": Toy("eyes", "video", CLIPS), **{name: Toy(name, "audio", ids) for name, ids in ears.items()}}


def specs(found: Mapping[str, FeatureSource]) -> dict[str, FeatureSpec]:
    return {name: source.spec for name, source in found.items()}


def what(source: FeatureSource, clip_id: str, view: int = 0) -> float:
    return float(source.read(clip_id, view).data[0, 0])


def test_what_is_dropped_is_not_there_and_the_rest_is_as_it_was() -> None:
    whole = sources(ears=CLIPS)
    deaf = Senses(dropped=("audio",)).of(whole, CLIPS)
    assert not any(clip_id in deaf["ears"] for clip_id in CLIPS)
    with pytest.raises(KeyError):
        deaf["ears"].read("a")
    assert deaf["eyes"] is whole["eyes"]
    assert specs(deaf) == specs(whole)


def test_nothing_is_done_by_default() -> None:
    whole = sources(ears=CLIPS)
    assert WHOLE.of(whole, CLIPS) == whole
    assert WHOLE.is_whole
    assert (WHOLE.signature, WHOLE.label, WHOLE.name_of("test")) == ("", "whole", "test")


@pytest.mark.parametrize("view", [0, 1])
def test_what_is_shuffled_is_another_clips(view: int) -> None:
    whole = sources(ears=["a", "b", "d"])
    found = Senses(shuffled=("ears",), seed=3).of(whole, CLIPS)
    assert [clip_id for clip_id in CLIPS if clip_id in found["ears"]] == ["a", "b", "d"]  # c stays deaf
    heard = {clip_id: what(found["ears"], clip_id, view) for clip_id in ("a", "b", "d")}
    own = {clip_id: what(whole["ears"], clip_id, view) for clip_id in heard}
    assert sorted(heard.values()) == sorted(own.values())  # everything is there once
    assert all(heard[clip_id] != own[clip_id] for clip_id in heard)
    assert [what(found["eyes"], clip_id) for clip_id in CLIPS] == [0, 1, 2, 3]


def test_all_that_is_shuffled_comes_from_the_same_clip() -> None:
    whole = sources(near=CLIPS, far=["a", "b"])
    others = partners(CLIPS, 5)
    found = Senses(shuffled=("audio",), seed=5).of(whole, CLIPS)
    assert [what(found["near"], clip_id) for clip_id in CLIPS] == [CLIPS.index(others[clip_id]) for clip_id in CLIPS]
    for clip_id in CLIPS:  # whoever takes from a clip that lacks a set, lacks it too
        assert (clip_id in found["far"]) == (others[clip_id] in ("a", "b"))


def test_a_single_clip_has_nobody_to_exchange_with() -> None:
    with pytest.raises(DataError, match="only b has features, and nobody to exchange them with"):
        Senses(shuffled=("audio",)).of(sources(ears=["b"]), CLIPS)


def test_what_no_clip_has_cannot_be_exchanged() -> None:
    with pytest.raises(DataError, match="none of the 4 clips has ears; there is nothing to exchange"):
        Senses(shuffled=("audio",)).of(sources(ears=[]), CLIPS)
    assert Senses(shuffled=("audio",)).of(sources(ears=[]), []).keys() == {"eyes", "ears"}  # nobody is captioned


@settings(deadline=None)
@given(count=st.integers(2, 30), seed=st.integers(0, 5))
def test_nobody_has_his_own_and_everything_is_there_once(count: int, seed: int) -> None:
    clip_ids = [str(number) for number in range(count)]
    found = partners(clip_ids, seed)
    assert sorted(found) == sorted(found.values()) == sorted(clip_ids)
    assert all(own != other for own, other in found.items())
    assert found == partners(clip_ids, seed)


def test_another_seed_is_another_exchange() -> None:
    clip_ids = [str(number) for number in range(20)]
    assert partners(clip_ids, 0) != partners(clip_ids, 1)


@settings(deadline=None)
@given(kinds=st.lists(st.sampled_from("xyz"), min_size=2, max_size=20))
def test_exchange_among_clips_of_a_kind(kinds: list[str]) -> None:
    kind_of = {str(number): kind for number, kind in enumerate(kinds)}
    found = partners(list(kind_of), 0, kind_of)
    assert sorted(found) == sorted(kind_of)
    for own, other in found.items():
        assert own != other
        assert kind_of[own] == kind_of[other] or kinds.count(kind_of[own]) == 1


@pytest.mark.parametrize(
    ("senses", "signature", "label", "name"),
    [
        (Senses(dropped=("audio",)), "-audio", "without audio", "test.without-audio"),
        (Senses(dropped=("video", "audio")), "-audio,-video", "without audio and video", "test.without-audio+video"),
        (
            Senses(shuffled=("audio",), seed=7),
            "shuffled(audio,seed 7)",
            "another clip's audio",
            "test.shuffled-audio-seed7",
        ),
        (
            Senses(dropped=("text",), shuffled=("log_mel", "audio")),
            "-text,shuffled(audio,log_mel,seed 0)",
            "without text, another clip's audio and log_mel",
            "test.without-text.shuffled-audio+log_mel-seed0",
        ),
    ],
)
def test_what_was_done_can_be_read(senses: Senses, signature: str, label: str, name: str) -> None:
    assert (senses.signature, senses.label, senses.name_of("test")) == (signature, label, name)
    assert not senses.is_whole


def test_order_and_repetition_mean_nothing() -> None:
    assert Senses(dropped=("video", "audio", "video")) == Senses(dropped=("audio", "video"))


def test_modalities_and_sets_are_named_alike() -> None:
    known = specs(sources(near=CLIPS, far=CLIPS))
    assert sets_of(known, ("audio",)) == {"near", "far"}
    assert sets_of(known, ("near", "video")) == {"near", "eyes"}
    Senses(dropped=("near",), shuffled=("far",)).check(known, "run 'x'")


@pytest.mark.parametrize(
    ("senses", "error", "message"),
    [
        (
            Senses(dropped=("text",)),
            UnknownNameError,
            r"unknown modality or feature set 'text' .*known: audio, ears, eyes, video. run 'x' reads eyes \(video\)",
        ),
        (Senses(shuffled=("ear",)), UnknownNameError, r"'ear' \(did you mean 'ears'\?\)"),
        (Senses(dropped=("ears",), shuffled=("audio",)), UsageError, "ears cannot be both taken away and exchanged"),
        (Senses(dropped=("audio", "eyes")), UsageError, r"run 'x' reads nothing but eyes \(video\), ears \(audio\)"),
    ],
)
def test_what_cannot_be_done_is_told(senses: Senses, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace(" .*", ".*")):
        senses.check(specs(sources(ears=CLIPS)), "run 'x'")


def test_text_that_stays_is_mentioned() -> None:
    known = {**specs(sources(ears=CLIPS)), "words": FeatureSpec(name="words", encoder="toy", modality="text", dim=1)}
    (note,) = Senses(dropped=("audio",)).notes(known)
    assert note.startswith("words is as it was")
    assert Senses(dropped=("audio", "text")).notes(known) == ()
    assert Senses(shuffled=("words",)).notes(known) == ()
    assert WHOLE.notes(known) == ()
    assert Senses(dropped=("audio",)).notes(specs(sources(ears=CLIPS))) == ()


def test_every_sense_in_turn() -> None:
    found = every_sense(specs(sources(ears=CLIPS)), "run 'x'", seed=4)
    assert [senses.label for senses in found] == [
        "whole", "without video", "without audio", "another clip's video", "another clip's audio"
    ]  # fmt: skip
    assert {senses.seed for senses in found[3:]} == {4}


def test_one_sense_is_not_taken_in_turn() -> None:
    with pytest.raises(
        UsageError, match=r"run 'x' reads eyes \(video\) alone, and cannot do without it. Try --shuffle"
    ):
        every_sense(specs(sources()), "run 'x'")
