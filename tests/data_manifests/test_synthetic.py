"""The synthetic grammar: deterministic, without leaks between the modalities, and with oracles that are ceilings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests.datasets import synthetic
from avpipe.data_manifests.datasets.synthetic import IN_TIME, OUT_OF_TIME, Config, oracle_captions, synchrony_word
from avpipe.data_manifests.synthesis import facts as grammar
from avpipe.data_manifests.synthesis.facts import BLOCK, Beats, Draw, Facts, Picture, Sound, draw
from avpipe.data_manifests.synthesis.language import MOTION, SOURCE, references, say
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import ConfigError, DataError
from avpipe.pipeline.workspace import Workspace

BLOCKS = 60
DRAWN = [draw(0, "train", index) for index in range(BLOCKS * BLOCK)]
SYNCHRONY = [each for each in DRAWN if each.in_time is not None]


def clips(count: int, split: str = "test") -> list[Clip]:
    drawn = [draw(0, split, index) for index in range(count)]
    return [synthetic.make_clip(0, split, index, each) for index, each in enumerate(drawn)]


def test_grammar_and_version_go_together() -> None:
    """If this fails, facts or captions have changed: raise VERSION, and then the digest here."""
    rows = [clip.to_row() for split in ("train", "val", "test") for clip in clips(24, split)]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    assert (synthetic.VERSION, digest) == (1, "d7b092994c58ca04")


def test_more_clips_change_none_before_them() -> None:
    assert [draw(0, "train", index) for index in (17, 3, 17)] == [DRAWN[17], DRAWN[3], DRAWN[17]]
    assert draw(1, "train", 3) != DRAWN[3]
    assert draw(0, "val", 3) != DRAWN[3]


def test_facts_survive_json() -> None:
    for each in DRAWN[:40]:
        assert Facts.from_json(json.loads(json.dumps(each.to_json()))) == each


@pytest.mark.parametrize("values", [{}, {"picture": {}, "sound": {}}, {"category": 3}])
def test_what_are_no_facts_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected the facts of a synthetic clip, got the keys"):
        Facts.from_json(values)


def test_half_of_all_clips_are_about_synchrony() -> None:
    for start in range(0, len(DRAWN), BLOCK):
        kinds = Counter(each.kind for each in DRAWN[start : start + BLOCK])
        assert kinds == {"scene": 4, "synchrony": 4}


# -- no modality alone knows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["picture", "sound"])
def test_one_modality_alone_says_nothing_of_synchrony(modality: str) -> None:
    """All that one modality holds, to the last nuisance, stands as often with in time as with out of time."""
    seen: dict[Picture | Sound, Counter[bool | None]] = defaultdict(Counter)
    for each in SYNCHRONY:
        seen[getattr(each, modality)][each.in_time] += 1
    assert all(counts[True] == counts[False] > 0 for counts in seen.values())
    assert len(seen) == 2 * BLOCKS


def test_both_modalities_together_tell() -> None:
    for each in SYNCHRONY:
        assert each.picture.beats is not None
        assert each.sound.beats is not None
        assert replace(each.picture.beats, late=each.sound.beats.late) == each.sound.beats
        assert each.in_time == (each.picture.beats == each.sound.beats)


def test_a_scene_asks_nothing_of_synchrony() -> None:
    scenes = [each for each in DRAWN if each.kind == "scene"]
    assert not any(each.picture.beats and each.sound.beats for each in scenes)
    assert not any("in_time" in each.to_json() for each in scenes)
    assert all(synchrony_word(caption) is None for each in scenes for caption in references(each, "key"))


def test_what_is_seen_in_a_scene_is_independent_of_what_is_heard() -> None:
    """Over many scenes, the share of sirens is the same for red objects as for all."""
    sirens = [
        (each.picture.colour == "red", "siren" in each.sound.sounds)
        for each in (draw(0, "train", index) for index in range(8000))
        if each.kind == "scene"
    ]
    among_red = [heard for red, heard in sirens if red]
    assert sum(among_red) / len(among_red) == pytest.approx(sum(heard for _, heard in sirens) / len(sirens), abs=0.03)


def test_everything_the_grammar_has_is_drawn() -> None:
    assert {each.picture.colour for each in DRAWN} == set(grammar.COLOURS)
    assert {each.picture.shape for each in DRAWN} == {*grammar.SHAPES, grammar.BALL}
    assert {motion for each in DRAWN for motion in each.picture.motions} == set(grammar.MOTIONS)
    assert {sound for each in DRAWN for sound in each.sound.sounds} == {*grammar.SOUNDS, *grammar.PULSES}
    assert {each.sound.dynamics for each in DRAWN} == set(grammar.DYNAMICS)
    assert {each.sound.has_track for each in DRAWN if not each.sound.sounds} == {True, False}
    assert all(each.sound.has_track for each in DRAWN if each.sound.sounds)


# -- words -------------------------------------------------------------------------------------------------------------


def every_facts() -> Iterator[Facts]:
    """One clip for every combination of what captions name, as far as their number of wordings goes."""
    beats = [Beats(1.0, 0.0, late) for late in (False, True)]
    still = Picture("red", "circle", (), None, 0.0, 0.0, 1.0, 0.0)
    pictures = [replace(still, motions=(motion,)) for motion in grammar.MOTIONS]
    pictures += [
        replace(still, motions=("left", "grow")),
        *(replace(still, shape="ball", beats=each) for each in beats),
    ]
    quiet = Sound((), "steady", None, True, 1.0, 1.0, 0)
    sounds = [quiet, replace(quiet, sounds=("siren", "drum"))]
    sounds += [replace(quiet, sounds=("bird",), dynamics=dynamics) for dynamics in grammar.DYNAMICS]
    sounds += [replace(quiet, sounds=("clear bells",), beats=each) for each in beats]
    for picture, sound in product(pictures, sounds):
        yield Facts(picture, sound)


def test_every_clip_has_five_different_captions() -> None:
    for number, each in enumerate(every_facts()):
        captions = references(each, str(number))
        assert len(set(captions)) == len(captions) == 5


def test_every_caption_says_every_fact() -> None:
    for number, each in enumerate(DRAWN[:200]):
        for caption in references(each, str(number)):
            assert f"a {each.picture.colour} {each.picture.shape} " in caption
            for motion in each.picture.motions:
                assert any(words in caption for words in MOTION[motion])
            for sound in each.sound.sounds:
                assert SOURCE.get(sound, sound) in caption
            assert synchrony_word(caption) is each.in_time


def test_order_in_time_is_order_in_words() -> None:
    ordered = [each for each in DRAWN if len(each.sound.sounds) == 2]
    assert ordered
    for each in ordered:
        caption = say(each, lambda options: options[0])
        first, second = (caption.index(SOURCE[sound]) for sound in each.sound.sounds)
        assert first < second


def test_the_vocabulary_is_small() -> None:
    words = {
        word for number, each in enumerate(DRAWN) for text in references(each, str(number)) for word in text.split()
    }
    assert 60 < len(words) <= 80
    assert all(word.isalpha() and word == word.lower() for word in words)


def test_the_phrases_of_synchrony_are_disjoint() -> None:
    assert not set(IN_TIME) & set(OUT_OF_TIME)
    assert all(synchrony_word(phrase) is True for phrase in IN_TIME)
    assert all(synchrony_word(phrase) is False for phrase in OUT_OF_TIME)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red ball bounces in time with high beeps", True),
        ("A red ball bounces, out of step.", False),
        ("a red ball bounces", None),
        ("in time and out of time", None),
        ("a ball in timely fashion", None),
        ("", None),
    ],
)
def test_the_synchrony_word_is_read_back(caption: str, expected: bool | None) -> None:
    assert synchrony_word(caption) is expected


# -- oracles -----------------------------------------------------------------------------------------------------------


def cider(clips: Sequence[Clip], captions: dict[str, str]) -> float:
    from pycocoevalcap.cider.cider import Cider

    references = {clip.clip_id: list(clip.captions) for clip in clips}
    return float(Cider().compute_score(references, {key: [text] for key, text in captions.items()})[0])


def test_oracles_with_one_sense_stay_far_below_the_perfect_captioner() -> None:
    test = clips(160)
    best = {
        sees: max(cider(test, dict(captions)) for captions in oracle_captions(test, sees).values())
        for sees in ("both", "video", "audio")
    }
    assert best["both"] > 6
    assert 0.4 * best["both"] < best["video"] < 0.65 * best["both"]
    assert 0.4 * best["both"] < best["audio"] < 0.65 * best["both"]


@pytest.mark.parametrize(("sees", "right"), [("both", 1.0), ("video", 0.5), ("audio", 0.5)])
def test_oracles_that_speak_of_synchrony_are_right_as_often_as_they_can(sees: Any, right: float) -> None:
    asked = [clip for clip in clips(80) if clip.extra["kind"] == "synchrony"]
    rates = set()
    for captions in oracle_captions(asked, sees).values():
        words = [synchrony_word(captions[clip.clip_id]) for clip in asked]
        if None not in words:
            rates.add(sum(word is clip.extra["in_time"] for word, clip in zip(words, asked, strict=True)) / len(asked))
    assert rates == {right}


@pytest.mark.parametrize(("sees", "hidden"), [("video", "sound"), ("audio", "picture")])
def test_an_oracle_does_not_look_at_what_it_does_not_know(sees: Any, hidden: str) -> None:
    """Two clips that differ in the hidden modality alone get the same captions."""
    first, other = (synthetic.make_clip(0, "test", 0, each) for each in (DRAWN[0], DRAWN[9]))
    mixed = replace(first, extra={**first.extra, hidden: other.extra[hidden]})
    assert mixed.extra != first.extra
    assert oracle_captions([first], sees) == oracle_captions([mixed], sees)


def test_oracles_caption_every_clip_under_every_policy() -> None:
    test = clips(16)
    for sees in ("video", "audio", "both"):
        policies = oracle_captions(test, sees)
        assert len(policies) >= 4
        assert all(list(captions) == [clip.clip_id for clip in test] for captions in policies.values())


def test_an_oracle_of_another_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected video, audio or both, got 'touch'"):
        oracle_captions(clips(1), "touch")  # type: ignore[arg-type]


# -- draws and options -------------------------------------------------------------------------------------------------


@given(key=st.text(), count=st.integers(0, 7))
def test_draws_are_fair_to_their_bounds(key: str, count: int) -> None:
    rng = Draw(key)
    assert sorted(rng.shuffled(grammar.MOTIONS)) == sorted(grammar.MOTIONS)
    assert len(set(rng.distinct(grammar.MOTIONS, count))) == count
    assert 0 <= rng.below(3) < 3
    assert 0.9 <= rng.between(0.9, 1.1) <= 1.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": {"train": 0, "val": 0, "test": 0}}, "clips: expected at least one clip"),
        ({"size": 63}, "size: input should be a multiple of 2, got 63"),
        ({"seconds": 1}, "seconds: input should be greater than or equal to 3"),
        ({"clips": {"train": -1}}, "clips.train: .*got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, options, "prepare")


def test_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"makes its own annotations: expected none, got --annotations a.json"):
        synthetic.prepare(Config(), media=None, annotations=Path("a.json"), workspace=Workspace(tmp_path))
