"""What every registered encoder must do, whoever wrote it."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from avpipe.extract import sampling
from avpipe.extract.encoder import Encoder
from avpipe.extract.encoders import REGISTRY
from avpipe.extract.media import AudioRequest, FrameRequest, Frames, Media, TextRequest
from avpipe.pipeline.errors import SkipClip
from avpipe.pipeline.features import Encoded, Features, FeatureSpec, Segments

from . import toys

NAME = "the_set"


def small(name: str, folder: Path) -> dict[str, Any]:
    """Settings that make an encoder small and free of downloads. One that is so by default needs none."""
    try:
        module = importlib.import_module(f"tests.extract.small.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"tests.extract.small.{name}":
            raise
        return {}
    settings: dict[str, Any] = module.settings(folder)
    return settings


Build = Callable[..., Encoder]

SAME_NUMBERS = ("batch_size",)
"""Settings that change no feature."""


@pytest.fixture(scope="module", params=REGISTRY.names())
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the encoder under test, small; keywords change its configuration."""
    module = REGISTRY.load(request.param)
    values = small(request.param, tmp_path_factory.mktemp(request.param))

    def make(**changed: Any) -> Encoder:
        return module.Encoder(module.Config(**{**values, **changed}), NAME)

    return make


@pytest.fixture(scope="module")
def encoder(build: Build) -> Encoder:
    """The encoder under test, loaded."""
    encoder = build()
    encoder.load("cpu")
    return encoder


def kind_of(encoder: Encoder) -> str:
    """What it takes in: ``"video"``, ``"audio"`` or ``"text"``. A speech recogniser takes in audio and gives text."""
    return {FrameRequest: "video", AudioRequest: "audio", TextRequest: "text"}[type(encoder.request)]


def media_for(encoder: Encoder, **changed: Any) -> Media:
    """A clip of 4 seconds: four frames of noise, or noise to hear, or something to read."""
    kind = kind_of(encoder)
    if kind == "video":
        assert isinstance(encoder.request, FrameRequest)
        default = toys.frames(4, views=1 + encoder.request.views)
    elif kind == "audio":
        assert isinstance(encoder.request, AudioRequest)
        return toys.clip(NAME, **{"audio": toys.noise(4.0), "sample_rate": encoder.request.sample_rate, **changed})
    else:
        return toys.clip(NAME, **{"text": toys.text("a dog barks", "then it is quiet"), **changed})
    return toys.clip(NAME, **{"video": default, **changed})


def assert_same(first: Encoded, second: Encoded, atol: float = 0.0) -> None:
    """Both say the same: of texts, the words and times to the letter, what is measured about them within ``atol``."""
    if isinstance(first, Segments) or isinstance(second, Segments):
        assert isinstance(first, Segments)
        assert isinstance(second, Segments)
        assert [(one.text, one.start_seconds, one.stop_seconds) for one in first.items] == [
            (one.text, one.start_seconds, one.stop_seconds) for one in second.items
        ]
        for one, other in zip(first.items, second.items, strict=True):
            assert one.score == pytest.approx(other.score, abs=20 * atol)  # rounded to four digits
            assert dict(one.flags) == pytest.approx(dict(other.flags), abs=20 * atol)
        return
    np.testing.assert_allclose(first.data, second.data, atol=atol, rtol=0)
    np.testing.assert_array_equal(first.pts_seconds, second.pts_seconds)


def test_spec_is_stable_and_survives_json(build: Build) -> None:
    spec = build().spec
    assert spec.name == NAME
    assert spec.encoder in REGISTRY.names()
    assert build().spec == spec
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.fingerprint == spec.fingerprint


def test_encoder_is_built_again_from_its_spec(build: Build) -> None:
    spec = build().spec
    module = REGISTRY.load(spec.encoder)
    assert module.Encoder(module.Config(**spec.config), NAME).spec.fingerprint == spec.fingerprint


def test_fingerprint_follows_every_number_and_choice(build: Build) -> None:
    encoder = build()
    module = REGISTRY.load(encoder.spec.encoder)
    changed = []
    for key, field in module.Config.model_fields.items():
        value = getattr(encoder.config, key)  # type: ignore[attr-defined]
        for other in others(field.annotation, value):
            try:
                fingerprint = build(**{key: other}).spec.fingerprint
            except ValidationError:  # a bound of the field: try the next value
                continue
            assert (fingerprint != encoder.spec.fingerprint) == (key not in SAME_NUMBERS), key
            changed.append(key)
            break
    assert "batch_size" in changed
    assert len(changed) > 2


def others(annotation: Any, value: Any) -> list[Any]:
    """Values near a number, the other choices of a Literal, another sampling policy; nothing for free text."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value + 2, value * 2, value + 16]
    if isinstance(value, str) and sampling.is_policy(value):
        return ["linspace", "uniform"]
    return [choice for choice in getattr(annotation, "__args__", ()) if isinstance(choice, str) and choice != value]


def test_encoder_pickles_after_construction(build: Build) -> None:
    encoder = build()
    copy = pickle.loads(pickle.dumps(encoder))
    media = media_for(encoder)
    for key, array in encoder.prepare(media).items():
        np.testing.assert_array_equal(copy.prepare(media)[key], array)


def test_clip_without_the_modality_is_skipped(encoder: Encoder) -> None:
    kind = kind_of(encoder)
    other = toys.clip(NAME, video=toys.frames(2)) if kind != "video" else toys.clip(NAME, audio=toys.noise(1.0))
    with pytest.raises(SkipClip) as skipped:
        encoder.prepare(other)
    assert skipped.value.kind == f"no_{kind}"


def test_modality_says_what_comes_out(encoder: Encoder) -> None:
    assert encoder.spec.modality in ("text", kind_of(encoder))
    if isinstance(encoder.request, AudioRequest):
        assert encoder.request.sample_rate >= 8000


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 100), seed=st.integers(0, 2**64 - 1))
def test_frames_that_are_asked_for_exist(encoder: Encoder, count: int, seed: int) -> None:
    if not isinstance(encoder.request, FrameRequest):
        return
    chosen = encoder.request.choose(np.arange(count) / 25, seed)
    assert chosen.dtype == np.int64
    assert np.all((chosen >= 0) & (chosen < count))
    for view in np.split(chosen, 1 + encoder.request.views):
        assert len(view) >= 1
        assert np.all(np.diff(view) >= 0)


def test_features_are_what_the_spec_says(encoder: Encoder) -> None:
    media = media_for(encoder)
    (features,) = encoder.encode([encoder.prepare(media)])
    assert isinstance(features, Segments) == encoder.spec.is_text
    if isinstance(features, Segments):
        assert all(segment.stop_seconds <= media.duration_seconds + 0.1 for segment in features.items)
        return
    assert features.data.dtype == np.float32
    assert features.data.shape[1] == encoder.spec.dim
    assert features.pts_seconds.dtype == np.float64
    assert features.pts_seconds[0] >= 0
    assert features.pts_seconds.max() <= media.duration_seconds


def test_views_follow_the_plain_one(build: Build) -> None:
    plain = build()
    if not hasattr(plain.config, "views"):  # type: ignore[attr-defined]
        return
    viewed = build(views=2)
    assert (plain.spec.views, viewed.spec.views) == (1, 3)
    for encoder in (plain, viewed):
        encoder.load("cpu")
    media = media_for(viewed)
    (alone,) = plain.encode([plain.prepare(media_for(plain))])
    (features,) = viewed.encode([viewed.prepare(media)])
    assert isinstance(alone, Features)
    assert isinstance(features, Features)
    views = np.split(features.data, 3)
    np.testing.assert_allclose(views[0], alone.data, atol=1e-5)
    assert not np.allclose(views[1], views[2], atol=1e-3)
    assert_same(features, viewed.encode([viewed.prepare(media)])[0])
    (other,) = viewed.encode([viewed.prepare(replace(media, seed=1))])
    assert isinstance(other, Features)
    assert not np.allclose(np.split(other.data, 3)[1], views[1], atol=1e-3)


def test_encode_is_deterministic(build: Build, encoder: Encoder) -> None:
    again = build()
    again.load("cpu")
    media = media_for(encoder)
    (first,), (second,) = encoder.encode([encoder.prepare(media)]), again.encode([again.prepare(media)])
    assert_same(first, second)


def test_loading_again_changes_nothing(build: Build, encoder: Encoder) -> None:
    again = build()
    again.load("cpu")
    again.load("cpu")
    media = media_for(encoder)
    assert_same(encoder.encode([encoder.prepare(media)])[0], again.encode([again.prepare(media)])[0])


def test_a_batch_gives_what_its_clips_give_alone(encoder: Encoder) -> None:
    kind = kind_of(encoder)
    if isinstance(encoder.request, FrameRequest):
        views = 1 + encoder.request.views
        medias = [media_for(encoder, video=toys.frames(count, seed=count, views=views)) for count in (4, 1, 3)]
    elif kind == "audio":
        medias = [media_for(encoder, audio=toys.noise(seconds, seed=1)) for seconds in (4.0, 0.5, 2.0)]
    else:
        medias = [media_for(encoder, text=toys.text(*texts)) for texts in (("a dog barks",), (), ("rain", "a car"))]
    prepared = [encoder.prepare(media) for media in medias]
    for together, alone in zip(encoder.encode(prepared), map(encoder.encode, ([one] for one in prepared)), strict=True):
        assert_same(together, alone[0], atol=1e-5)


ONE_PIXEL = Frames(data=np.full((1, 1, 1, 3), 200, np.uint8), pts_seconds=np.zeros(1))
HARD: Mapping[str, Mapping[str, Any]] = {
    "video": {
        "one frame": toys.frames(1),
        "one pixel": ONE_PIXEL,
        "narrow": toys.frames(2, height=3, width=200),
        "black": Frames(data=np.zeros((3, 40, 30, 3), np.uint8), pts_seconds=np.arange(3.0)),
    },
    "audio": {
        "50 ms": toys.noise(0.05),
        "one sample": np.ones(1, np.float32),
        "silence": np.zeros(2 * toys.SAMPLE_RATE, np.float32),
        "constant": np.ones(toys.SAMPLE_RATE, np.float32),
        "overshoot": toys.tone(1.0, level=1.6),
    },
    "text": {
        "nothing": toys.text(),
        "an empty line": toys.text(""),
        "no word": toys.text("?!"),
        "another script": toys.text("\u4e00\u53ea\u72d7"),
        "a book": toys.text("word " * 5000 + "end"),
    },
}


def test_hard_input_gives_finite_rows(encoder: Encoder) -> None:
    kind = kind_of(encoder)
    for what, given_ in HARD[kind].items():
        (features,) = encoder.encode([encoder.prepare(media_for(encoder, **{kind: given_}))])
        if isinstance(features, Segments):
            continue
        assert features.data.shape[0] >= 1, what
        assert np.all(np.isfinite(features.data.astype(np.float16))), what  # as they lie on disk
        assert np.all(np.isfinite(features.pts_seconds)), what


def test_what_comes_later_has_later_times(encoder: Encoder) -> None:
    kind = kind_of(encoder)
    if kind == "text":
        return
    video = toys.frames(4)
    if kind == "video":
        shifted = media_for(encoder, video=Frames(data=video.data, pts_seconds=video.pts_seconds + 0.25))
    else:
        shifted = media_for(encoder, start_seconds=0.25)
    (late,), (early,) = (encoder.encode([encoder.prepare(media)]) for media in (shifted, media_for(encoder)))
    if isinstance(late, Segments) or isinstance(early, Segments):
        assert isinstance(late, Segments)
        assert isinstance(early, Segments)
        for segment, before in zip(late.items, early.items, strict=True):
            assert segment.start_seconds - before.start_seconds == pytest.approx(0.25)
        return
    np.testing.assert_allclose(late.pts_seconds - early.pts_seconds, 0.25)
    np.testing.assert_array_equal(late.data, early.data)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every encoder with a clip of its modality, pickled."""
    pairs = []
    for name in REGISTRY.names():
        module = REGISTRY.load(name)
        values = small(name, tmp_path_factory.mktemp(name))
        encoder = module.Encoder(module.Config(**values), NAME)
        if kind_of(encoder) != "text":  # who reads is not decoded for
            pairs.append((encoder, media_for(encoder)))
    path = tmp_path_factory.mktemp("pickled") / "encoders.pickle"
    path.write_bytes(pickle.dumps(pairs))
    return path


def test_decoding_processes_do_without_torch(pickled: Path) -> None:
    code = (
        "import pickle, sys\n"
        "import numpy as np\n"
        f"for encoder, media in pickle.loads(open({str(pickled)!r}, 'rb').read()):\n"
        "    encoder.request, encoder.prepare(media)\n"
        "    print(encoder.spec.encoder, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert set(found) <= set(REGISTRY.names())
    assert len(found) > 3
    assert set(found.values()) == {"False"}


def test_names_are_those_of_the_modules() -> None:
    assert {"ast", "clip_vit", "colour_grid", "log_mel"} <= set(REGISTRY.names())
    for name in REGISTRY.names():
        assert REGISTRY.summary(name).endswith("."), "the first line of the docstring says what it is"
