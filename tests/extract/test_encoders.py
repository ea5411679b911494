"""What every registered encoder must do, whoever wrote it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from avpipe.extract.encoder import Encoder
from avpipe.extract.encoders import REGISTRY
from avpipe.extract.media import Frames, Media
from avpipe.pipeline.errors import SkipClip
from avpipe.pipeline.features import FeatureSpec

from . import toys

NAME = "the_set"

SMALL: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "colour_grid": lambda folder: {"frames": 4},
    "clip_vit": lambda folder: {
        "model": toys.open_clip_model(folder, "contract-ViT", toys.TINY_CLIP),
        "weights": "random:1",
        "frames": 4,
    },
    "ast": lambda folder: {"weights": str(toys.ast_folder(folder / "ast")), "tokens": "time", "padding": "drop"},
}
"""Settings that make an encoder small and free of downloads. One that is so by default needs none."""

Build = Callable[..., Encoder]


@pytest.fixture(scope="module", params=REGISTRY.names())
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the encoder under test, small; keywords change its configuration."""
    module = REGISTRY.load(request.param)
    values = SMALL.get(request.param, lambda folder: {})(tmp_path_factory.mktemp(request.param))

    def make(**changed: Any) -> Encoder:
        return module.Encoder(module.Config(**{**values, **changed}), NAME)

    return make


@pytest.fixture(scope="module")
def encoder(build: Build) -> Encoder:
    """The encoder under test, loaded."""
    encoder = build()
    encoder.load("cpu")
    return encoder


def media_for(encoder: Encoder, **changed: Any) -> Media:
    """A clip of 4 seconds: four frames of noise, or noise to hear."""
    if encoder.spec.modality == "video":
        return toys.clip(NAME, **{"video": toys.frames(4), **changed})
    return toys.clip(NAME, **{"audio": toys.noise(4.0), **changed})


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
            assert (fingerprint != encoder.spec.fingerprint) == (key != "batch_size"), key
            changed.append(key)
            break
    assert "batch_size" in changed
    assert len(changed) > 2


def others(annotation: Any, value: Any) -> list[Any]:
    """Values near a number, or the other choices of a Literal; nothing for free text."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value + 2, value * 2, value + 16]
    return [choice for choice in getattr(annotation, "__args__", ()) if isinstance(choice, str) and choice != value]


def test_encoder_pickles_after_construction(build: Build) -> None:
    encoder = build()
    copy = pickle.loads(pickle.dumps(encoder))
    media = media_for(encoder)
    for key, array in encoder.prepare(media).items():
        np.testing.assert_array_equal(copy.prepare(media)[key], array)


def test_clip_without_the_modality_is_skipped(encoder: Encoder) -> None:
    other = toys.clip(NAME, audio=toys.noise(1.0)) if encoder.audio is None else toys.clip(NAME, video=toys.frames(2))
    with pytest.raises(SkipClip) as skipped:
        encoder.prepare(other)
    assert skipped.value.kind == f"no_{encoder.spec.modality}"


def test_modality_says_what_is_asked_for(encoder: Encoder) -> None:
    assert (encoder.audio is None) == (encoder.spec.modality == "video")
    if encoder.audio is not None:
        assert len(encoder.sample(np.arange(10.0))) == 0
        assert encoder.audio.sample_rate >= 8000


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 100))
def test_sample_gives_ascending_indices(encoder: Encoder, count: int) -> None:
    chosen = encoder.sample(np.arange(count) / 25)
    assert chosen.dtype == np.int64
    assert np.all(np.diff(chosen) >= 0)
    assert np.all((chosen >= 0) & (chosen < count))
    assert (len(chosen) > 0) == (encoder.spec.modality == "video")


def test_features_are_what_the_spec_says(encoder: Encoder) -> None:
    media = media_for(encoder)
    (features,) = encoder.encode([encoder.prepare(media)])
    assert features.data.dtype == np.float32
    assert features.data.shape[1] == encoder.spec.dim
    assert features.pts_seconds.dtype == np.float64
    assert np.all(np.diff(features.pts_seconds) >= 0)
    assert features.pts_seconds[0] >= 0
    assert features.pts_seconds[-1] <= media.duration_seconds


def test_encode_is_deterministic(build: Build, encoder: Encoder) -> None:
    again = build()
    again.load("cpu")
    media = media_for(encoder)
    (first,), (second,) = encoder.encode([encoder.prepare(media)]), again.encode([again.prepare(media)])
    np.testing.assert_array_equal(first.data, second.data)


def test_a_batch_gives_what_its_clips_give_alone(encoder: Encoder) -> None:
    if encoder.spec.modality == "video":
        medias = [media_for(encoder, video=toys.frames(count, seed=count)) for count in (4, 1, 3)]
    else:
        medias = [media_for(encoder, audio=toys.noise(seconds, seed=1)) for seconds in (4.0, 0.5, 2.0)]
    prepared = [encoder.prepare(media) for media in medias]
    for together, alone in zip(encoder.encode(prepared), map(encoder.encode, ([one] for one in prepared)), strict=True):
        np.testing.assert_allclose(together.data, alone[0].data, atol=1e-5)
        np.testing.assert_array_equal(together.pts_seconds, alone[0].pts_seconds)


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
}


def test_hard_input_gives_finite_rows(encoder: Encoder) -> None:
    modality = encoder.spec.modality
    for what, given_ in HARD[modality].items():
        (features,) = encoder.encode([encoder.prepare(media_for(encoder, **{modality: given_}))])
        assert features.data.shape[0] >= 1, what
        assert np.all(np.isfinite(features.data.astype(np.float16))), what  # as they lie on disk
        assert np.all(np.isfinite(features.pts_seconds)), what


def test_what_comes_later_has_later_times(encoder: Encoder) -> None:
    video = toys.frames(4)
    if encoder.audio is None:
        shifted = media_for(encoder, video=Frames(data=video.data, pts_seconds=video.pts_seconds + 0.25))
    else:
        shifted = media_for(encoder, start_seconds=0.25)
    (late,), (early,) = (encoder.encode([encoder.prepare(media)]) for media in (shifted, media_for(encoder)))
    np.testing.assert_allclose(late.pts_seconds - early.pts_seconds, 0.25)
    np.testing.assert_array_equal(late.data, early.data)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every encoder with a clip of its modality, pickled."""
    pairs = []
    for name in REGISTRY.names():
        module = REGISTRY.load(name)
        values = SMALL.get(name, lambda folder: {})(tmp_path_factory.mktemp(name))
        encoder = module.Encoder(module.Config(**values), NAME)
        pairs.append((encoder, media_for(encoder)))
    path = tmp_path_factory.mktemp("pickled") / "encoders.pickle"
    path.write_bytes(pickle.dumps(pairs))
    return path


def test_decoding_processes_do_without_torch(pickled: Path) -> None:
    code = (
        "import pickle, sys\n"
        "import numpy as np\n"
        f"for encoder, media in pickle.loads(open({str(pickled)!r}, 'rb').read()):\n"
        "    encoder.sample(np.arange(9.0)), encoder.prepare(media)\n"
        "    print(encoder.spec.encoder, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{name} False" for name in REGISTRY.names()]


def test_names_are_those_of_the_modules() -> None:
    assert {"ast", "clip_vit", "colour_grid", "log_mel"} <= set(REGISTRY.names())
    for name in REGISTRY.names():
        assert REGISTRY.summary(name).endswith("."), "the first line of the docstring says what it is"
