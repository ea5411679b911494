"""Which kind of clip each one is, and that nobody is told what nobody looked at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.data_manifests.probe import AudioFacts, Probe, VideoFacts
from avpipe.data_manifests.published import facts as told_by
from avpipe.eval.kinds import KINDS, SECONDS, WORDS, Facts, Partition, check_names, partition
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, UnknownNameError, UsageError
from avpipe.pipeline.features import Outcome, Segment, Segments

VIDEO = VideoFacts(codec="h264", width=64, height=48, frames_per_second=25.0)
AUDIO = AudioFacts(codec="aac", sample_rate=48000, channels=1)


def clip(clip_id: str, *, stop: float | None = None, **extra: Any) -> Clip:
    return Clip(
        clip_id=clip_id, dataset="toy", path="x", split="test", captions=("a dog",), stop_seconds=stop, extra=extra
    )


def facts(*clips: Clip, **more: Any) -> Facts:
    return Facts(references={c.clip_id: c.captions for c in clips}, clips={c.clip_id: c for c in clips}, **more)


def label_of(name: str, known: Facts) -> dict[str, str]:
    found = partition(name, known)
    return {clip_id: label for label, clip_ids in found.groups.items() for clip_id in clip_ids}


def said(text: str, score: float | None = None, **flags: Any) -> Segments:
    return Segments((Segment(start_seconds=0, stop_seconds=1, text=text, score=score, flags=flags),))


@pytest.mark.parametrize(
    ("media", "label"),
    [
        ({"has_audio": True, "is_silent": False}, "audible"),
        ({"has_audio": True, "is_silent": True}, "silent"),
        ({"has_audio": True}, "audio"),
        ({"has_audio": True, "is_silent": False, "file_seconds": 60.0}, "audio"),  # somewhere in the film
        ({"has_audio": True, "is_silent": True, "file_seconds": 60.0}, "silent"),  # nowhere in the film
        ({"has_audio": False}, "no audio"),
        ({"missing": True}, "unknown"),
        ({"unreadable": "open: no video"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_sound_as_the_probe_saw_it(media: dict[str, Any], label: str) -> None:
    assert label_of("audio", facts(clip("a", media=media))) == {"a": label}


@pytest.mark.parametrize(
    ("probe", "audio", "duration"),
    [
        (Probe(duration_seconds=7.5, video=VIDEO, audio=AUDIO, is_silent=False), "audible", "5 to 10 s"),
        (Probe(duration_seconds=7.5, video=VIDEO, audio=AUDIO, is_silent=True), "silent", "5 to 10 s"),
        (Probe(duration_seconds=7.5, video=VIDEO), "no audio", "5 to 10 s"),
        (Probe(error_type="open", error_message="no video"), "unknown", "unknown"),
    ],
)
def test_kinds_are_read_where_prepare_writes_them(probe: Probe, audio: str, duration: str) -> None:
    known = facts(clip("a", media=told_by(probe, 0.0, None)))
    assert (label_of("audio", known), label_of("duration", known)) == ({"a": audio}, {"a": duration})


def test_sound_as_the_encoders_met_it() -> None:
    outcomes = {
        "mel": {
            "heard": Outcome(clip_id="heard", status="ok"),
            "mute": Outcome(clip_id="mute", status="skipped", error_type="no_audio"),
            "broken": Outcome(clip_id="broken", status="failed", error_type="decode"),
            "probed": Outcome(clip_id="probed", status="ok"),
        }
    }
    probed = clip("probed", media={"has_audio": True, "is_silent": True})
    found = partition("audio", facts(clip("broken"), clip("mute"), clip("heard"), probed, outcomes=outcomes))
    assert found.groups == {"audio": ("heard",), "silent": ("probed",), "no audio": ("mute",), "unknown": ("broken",)}
    assert found.notes == (
        "audio: unknown of 1 of 4 clips; `avpipe prepare` looks into the media files unless --no-probe is given, "
        "and extracted audio features tell as well",
    )


@pytest.mark.parametrize(
    ("segments", "label"),
    [
        (said("hello"), "speech"),
        (said("hello", -0.3, no_speech_prob=0.9), "speech"),  # the network doubts, and is sure of its words
        (said("thank you", -1.5, no_speech_prob=0.9), "no speech"),
        (said("hello", -1.5, no_speech_prob=0.1), "speech"),
        (said(""), "no speech"),
        (Segments(), "no speech"),
    ],
)
def test_speech_as_the_recogniser_wrote_it(segments: Segments, label: str) -> None:
    found = partition("speech", facts(clip("a"), heard={"asr": {"a": segments}}))
    assert found.groups == {label: ("a",)}
    assert found.notes == ("speech: as written in asr",)


def test_where_nothing_is_to_be_heard_nobody_speaks_and_elsewhere_nobody_knows() -> None:
    clips = [
        clip("mute", media={"has_audio": False}),
        clip("silent", media={"has_audio": True, "is_silent": True}),
        clip("loud", media={"has_audio": True, "is_silent": False}),
    ]
    found = partition("speech", facts(*clips))
    assert found.groups == {"no speech": ("mute", "silent"), "unknown": ("loud",)}
    assert found.notes == ("speech: unknown of 1 of 3 clips; a speech recogniser tells: avpipe extract -e whisper",)


def test_duration() -> None:
    clips = [
        clip("probed", media={"duration_seconds": 4.99}, stop=100.0),
        clip("edge", media={"duration_seconds": 5.0}),
        clip("cut", stop=12.5),
        clip("film", media={"duration_seconds": 120.0}),
        clip("whole file"[:5]),
    ]
    assert label_of("duration", facts(*clips)) == {
        "probed": "under 5 s", "edge": "5 to 10 s", "cut": "10 to 15 s", "film": "120 s and more", "whole": "unknown"
    }  # fmt: skip
    assert next(iter(partition("duration", facts(*clips[::-1])).groups)) == "under 5 s"  # bins stand in their order


def test_length_is_the_mean_of_the_references_and_needs_no_manifest() -> None:
    known = Facts(references={"a": ["one two three four", "one two three four five six"], "b": ["one"]})
    found = partition("length", known)
    assert found.groups == {"under 5 words": ("b",), "5 to 8 words": ("a",)}
    assert found.notes == ("length: the mean number of words of a clip's references, counted between blanks",)


@settings(deadline=None)
@given(st.floats(0, 1000))
def test_every_length_of_time_is_in_one_bin(seconds: float) -> None:
    label = next(iter(label_of("duration", facts(clip("a", media={"duration_seconds": seconds}))).values()))
    edges = [0, *SECONDS, float("inf")]
    low = max(edge for edge in edges if edge <= seconds)
    assert label.startswith(f"{low} " if low else "under 5")


def test_category_the_most_frequent_first_and_unknown_last() -> None:
    clips = [clip("a"), clip("b", category="news"), clip("c", category="music"), clip("d", category="music"), clip("e")]
    found = partition("category", facts(*clips))
    assert list(found.groups.items()) == [("music", ("c", "d")), ("news", ("b",)), ("unknown", ("a", "e"))]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("extra:in_time", {"a": "true", "b": "false"}),
        ("extra:sound.loud", {"a": "1", "b": "unknown"}),  # one is not true
        ("extra:dotted.key", {"a": "x", "b": "y"}),
    ],
)
def test_any_field(name: str, labels: dict[str, str]) -> None:
    first = clip("a", in_time=True, sound={"loud": 1}, **{"dotted.key": "x"})
    assert label_of(name, facts(first, clip("b", in_time=False, **{"dotted.key": "y"}))) == labels


def test_a_clip_that_the_manifest_lacks_is_unknown() -> None:
    known = Facts(references={"a": ["x"], "z": ["y"]}, clips={"a": clip("a", category="news")})
    assert label_of("category", known) == {"a": "news", "z": "unknown"}
    assert label_of("audio", known) == {"a": "unknown", "z": "unknown"}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "sound",
            UnknownNameError,
            "unknown slice 'sound'; known: audio, category, duration, length, speech. Or extra:",
        ),
        ("extra:", UnknownNameError, "unknown slice 'extra:'"),
        ("category", UnknownNameError, r"unknown field of the manifest 'category'.*known: kind, n\. No clip"),
        ("extra:words", UsageError, r"extra:words of 'a' is \['x'\]; expected a single value"),
        ("extra:n", UsageError, "extra:n has 61 values in 61 clips; expected at most 60"),
    ],
)
def test_what_is_no_kind_is_told(name: str, error: type[Exception], message: str) -> None:
    clips = [clip("a", kind="x", words=["x"], n=0), *(clip(f"b{n}", kind="x", n=n) for n in range(1, 61))]
    with pytest.raises(error, match=message):
        partition(name, facts(*clips))


@pytest.mark.parametrize("name", ["audio", "length"])
def test_the_manifest_of_another_dataset(name: str) -> None:
    with pytest.raises(DataError, match="the manifest holds none of the 1 clips, for example 'z' is not there"):
        partition(name, Facts(references={"z": ["x"]}, clips={"a": clip("a")}))


@pytest.mark.parametrize("name", [*KINDS, "extra:x"])
def test_references_alone_tell_lengths_alone(name: str) -> None:
    check_names([name])
    if name == "length":
        check_names([name], has_manifest=False)
        return
    with pytest.raises(UsageError, match=f"slices: '{name}' is told by a manifest.*--dataset NAME"):
        check_names([name], has_manifest=False)


def test_a_clip_is_in_one_group() -> None:
    with pytest.raises(ValueError, match="expected each clip in one group, got 'a' in several"):
        Partition(name="x", groups={"one": ("a", "b"), "two": ("a",)})


def test_bins_are_in_order() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))
    assert list(WORDS) == sorted(set(WORDS))
