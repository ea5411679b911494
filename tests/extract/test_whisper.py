"""Whisper: its spectrogram and encoder against the golden data, its text against transformers' own use of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avpipe.extract.encoders import _speech, whisper
from avpipe.extract.encoders._writing import until
from avpipe.extract.media import AudioRequest, Waveform, read
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, SkipClip, UsageError
from avpipe.pipeline.features import Segments

from . import toys
from .small import whisper as small

RATE = toys.SAMPLE_RATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.checkpoint(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, **config: Any) -> whisper.Encoder:
    values = {"weights": str(weights), "max_new_tokens": 16, **config}
    return whisper.Encoder(parse(whisper.Config, values, "test"), "w")


def loaded(weights: Path | str, **config: Any) -> whisper.Encoder:
    encoder = make(weights, **config)
    encoder.load("cpu")
    return encoder


def encode(encoder: whisper.Encoder, *clips: npt.NDArray[np.float32], start_seconds: float = 0.0) -> list[Segments]:
    prepared = [encoder.prepare(toys.clip("w", audio=clip, start_seconds=start_seconds)) for clip in clips]
    return encoder.encode(prepared)


def speech_like(seconds: float, *, level: float = 0.1, seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise with the long-term spectrum of speech, in four syllables a second and a pause after every second."""
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(spectrum / (1 + (hertz / 500) ** 2) * (hertz > 80), count)
    time = np.arange(count) / RATE
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1) * (time % 1.5 < 1)
    return (level * noise / noise.std() * syllables).astype(np.float32)


def near(first: Segments, second: Segments) -> None:
    """Both say the same, but for the last digits."""
    assert [segment.text for segment in first.items] == [segment.text for segment in second.items]
    for one, other in zip(first.items, second.items, strict=True):
        assert (one.start_seconds, one.stop_seconds) == (other.start_seconds, other.stop_seconds)
        assert one.score == pytest.approx(other.score, abs=2e-4)
        assert one.flags == pytest.approx(other.flags, abs=2e-4)


# --- the spectrogram


def whole(encoder: whisper.Encoder, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """A window as the network gets it: filled up."""
    spectrum, fill = encoder.geometry.log_mel(samples)
    return whisper._filled_up(spectrum, fill, encoder.geometry.window_samples // encoder.geometry.hop)


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01, 0.5, 1.97, 1.99, 1.9999, 2.0])
@pytest.mark.parametrize("kind", ["noise", "silence", "click"])
def test_spectrogram_equals_transformers(folder: Path, seconds: float, kind: str) -> None:
    from transformers import WhisperFeatureExtractor

    samples = toys.noise(seconds) if kind == "noise" else np.zeros(round(seconds * RATE), np.float32)
    if kind == "click":
        samples[-1] = 1.0
    official = WhisperFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE)["input_features"][0]
    np.testing.assert_allclose(whole(make(folder), samples), official, atol=1e-4)


def test_spectrogram_is_no_longer_than_it_must_be(folder: Path) -> None:
    spectrum, fill = make(folder).geometry.log_mel(toys.noise(0.5))
    assert spectrum.shape == (80, 52)  # 50 frames in the sound, 2 that reach into it
    assert np.all(spectrum > fill - 1e-6)
    assert make(folder).geometry.log_mel(np.zeros(RATE, np.float32))[1] == -1.5  # (-10 + 4) / 4


# --- what the network writes


def official_tokens(folder: Path, encoder: whisper.Encoder, samples: npt.NDArray[np.float32], beams: int) -> list[int]:
    """What Whisper's own ``generate`` of transformers writes, once, in English."""
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.generation_config = GenerationConfig(
        **small.SPOKEN, pad_token_id=small.END, max_new_tokens=16, num_beams=beams, renormalize_logits=True
    )
    output = model.generate(
        torch.from_numpy(whole(encoder, samples))[None],
        return_timestamps=True,
        language="en",
        task="transcribe",
        force_unique_generate_call=True,
    )
    tokens: list[int] = output[0].tolist()
    return until(tokens[tokens.index(small.TRANSCRIBE) + 1 :] if small.TRANSCRIBE in tokens else tokens, [small.END])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_equal_those_of_transformers(folder: Path, beams: int, seed: int) -> None:
    encoder = loaded(folder, beams=beams, language="en", vad=False)
    samples = toys.noise(2.0, seed=seed)
    (written,) = encoder._write(whole(encoder, samples)[None], [(0, 0)], {0: "en"})
    assert written.tokens == official_tokens(folder, encoder, samples, beams)
    assert len(written.tokens) >= 3


@pytest.mark.parametrize("beams", [1, 2])
def test_score_and_no_speech_are_those_of_the_network(folder: Path, beams: int) -> None:
    encoder = loaded(folder, beams=beams, language="de", vad=False)
    samples = whole(encoder, toys.noise(1.5))[None]
    (written,) = encoder._write(samples, [(0, 0)], {0: "de"})
    prompt = [small.START, small.GERMAN, small.TRANSCRIBE]
    tokens = [*prompt, *written.tokens]
    with torch.inference_mode():
        logits = encoder._model(
            input_features=torch.from_numpy(samples), decoder_input_ids=torch.tensor([tokens])
        ).logits[0]
    assert written.no_speech_prob == pytest.approx(float(logits[0].softmax(-1)[small.NO_SPEECH]), abs=1e-4)
    # Every token was the network's, after what the rules forbid: its probability is at least the unruled one.
    unruled = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(written.tokens)[:, None])
    assert float(unruled.mean()) - 0.5 < written.score < 0


def test_suppressed_tokens_are_not_written(folder: Path, tmp_path: Path) -> None:
    samples = toys.noise(2.0)
    before = loaded(folder, vad=False)
    (written,) = before._write(whole(before, samples)[None], [(0, 0)], {})
    words = sorted({token for token in written.tokens if token < small.END})
    other = small.checkpoint(tmp_path / "other")
    change(other / "generation_config.json", suppress_tokens=words)
    after = loaded(other, vad=False)
    (rewritten,) = after._write(whole(after, samples)[None], [(0, 0)], {})
    assert words
    assert not set(words) & set(rewritten.tokens)


def test_language_is_detected_in_the_first_window_or_given(folder: Path) -> None:
    encoder = loaded(folder, vad=False)
    samples = toys.noise(5.0)
    with torch.inference_mode():
        hidden = encoder._model.get_encoder()(torch.from_numpy(whole(encoder, samples[: 2 * RATE - 1]))[None])
        logits = encoder._model(encoder_outputs=hidden, decoder_input_ids=torch.tensor([[small.START]])).logits[0, -1]
    heard = "en" if logits[small.ENGLISH] > logits[small.GERMAN] else "de"
    first_stop = _speech.windows(samples, RATE, 2.0)[0][1]
    assert first_stop < 2 * RATE
    (segments,) = encode(encoder, samples)
    assert len(segments.items) > 2
    assert len({segment.flags["language"] for segment in segments.items}) == 1
    spectra = [whole(encoder, samples[:first_stop])] * 2
    languages: dict[int, str] = {1: "de" if heard == "en" else "en"}
    found = list(encoder._write(np.stack(spectra), [(0, 0), (1, 3)], languages))
    assert [one.language for one in found] == [languages[0], languages[1]]  # of the second clip it was known
    (given_,) = encode(loaded(folder, vad=False, language="de"), samples)
    assert {segment.flags["language"] for segment in given_.items} == {"de"}


def test_task_changes_the_prompt(folder: Path) -> None:
    assert make(folder)._prompt("de") == [small.START, small.GERMAN, small.TRANSCRIBE]
    assert make(folder, task="translate")._prompt("en") == [small.START, small.ENGLISH, small.TRANSLATE]


def test_checkpoint_that_knows_english_only(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "whisper.en", english_only=True)
    encoder = loaded(folder, vad=False)
    assert encoder._prompt("en") == [small.START]
    (segments,) = encode(encoder, toys.noise(1.0))
    assert {segment.flags["language"] for segment in segments.items} == {"en"}
    with pytest.raises(UsageError, match=r"knows English only: .* got transcribe and 'de'"):
        make(folder, language="de")
    with pytest.raises(UsageError, match=r"knows English only: .* got translate and None"):
        make(folder, task="translate")


# --- time stamps


END, ZERO = small.END, small.ZERO


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([ZERO, ZERO + 50], []),  # nothing said in a second
        ([ZERO, 7, 8, ZERO + 50], [(0, 50, [7, 8])]),
        ([ZERO + 5, 7, ZERO + 20, ZERO + 30, 8, ZERO + 50], [(5, 20, [7]), (30, 50, [8])]),
        ([ZERO + 5, 7, ZERO + 20, ZERO + 20, 8], [(5, 20, [7]), (20, None, [8])]),  # cut short
        ([7, 8], [(0, None, [7, 8])]),  # no time stamps at all
        ([ZERO, small.NO_SPEECH, 7, small.NO_TIMESTAMPS, 8, ZERO + 3], [(0, 3, [7, 8])]),  # special tokens are no words
    ],
)
def test_text_is_cut_at_time_stamps(tokens: list[int], expected: list[Any]) -> None:
    assert list(whisper.stretches(tokens, END, ZERO)) == expected


@given(st.lists(st.one_of(st.integers(0, END - 1), st.integers(ZERO, ZERO + 100))))
def test_no_word_is_lost_at_time_stamps(tokens: list[int]) -> None:
    words = [word for _, _, stretch in whisper.stretches(tokens, END, ZERO) for word in stretch]
    assert words == [token for token in tokens if token < END]


def segments_of(encoder: whisper.Encoder, tokens: Sequence[int], start: float, stop: float) -> list[tuple[Any, ...]]:
    written = whisper._Written(tokens=list(tokens), score=-1.0, no_speech_prob=0.0, language="en", text="", end=END)
    found = encoder._segments(written, start, stop, {})
    return [(segment.start_seconds, segment.stop_seconds, segment.text) for segment in found]


def test_times_are_the_clips_and_stay_in_the_sound(folder: Path) -> None:
    encoder = make(folder)
    dog, cat, space = ([*small.tokenizer().encode(word).ids] for word in ("the dog", " the cat", "  "))
    tokens = [ZERO, *dog, ZERO + 25, ZERO + 40, *cat, ZERO + 80]
    assert segments_of(encoder, tokens, 10.0, 12.0) == [(10.0, 10.5, "the dog"), (10.8, 11.6, "the cat")]
    # Whisper may put words behind the end of the sound: they are kept, at its end.
    assert segments_of(encoder, tokens, 10.0, 10.4) == [(10.0, 10.4, "the dog"), (10.4, 10.4, "the cat")]
    assert segments_of(encoder, [ZERO, *dog], 3.0, 4.5) == [(3.0, 4.5, "the dog")]
    assert segments_of(encoder, [ZERO, *space, ZERO + 3], 3.0, 4.5) == []  # white space is no text


# --- windows


def test_long_sound_is_cut_where_it_is_quiet() -> None:
    samples = toys.noise(5.0)
    samples[round(1.8 * RATE) : round(2.05 * RATE)] = 0  # between 10/6 and 2 s, where a cut may lie
    (first, *_) = _speech.windows(samples, RATE, 2.0)
    assert 1.89 < first[1] / RATE <= 2.0
    (first, *_) = _speech.windows(toys.tone(5.0), RATE, 2.0)
    assert 1.66 < first[1] / RATE <= 2.0


@given(count=st.integers(1, 5000), longest=st.floats(0.5, 20.0), seed=st.integers(0, 3))
def test_windows_cover_the_sound_without_overlap(count: int, longest: float, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    pieces = _speech.windows(samples, 100, longest)
    assert [pieces[0][0], *(stop for _, stop in pieces)] == [*(start for start, _ in pieces), count]
    assert all(0 < stop - start <= round(longest * 100) for start, stop in pieces)
    if count <= round(longest * 100):
        assert pieces == [(0, count)]


def test_windows_of_a_long_clip_are_heard_one_by_one(folder: Path) -> None:
    encoder = loaded(folder, vad=False, language="en")
    samples = toys.noise(7.0)
    pieces = _speech.windows(samples, RATE, 2.0)
    assert len(pieces) >= 4
    (together,) = encode(encoder, samples, start_seconds=1.5)
    alone = []
    for start, stop in pieces:
        (part,) = encode(encoder, samples[start:stop], start_seconds=1.5 + start / RATE)
        alone += part.items
    near(together, Segments(tuple(alone)))
    assert together.items[-1].stop_seconds <= 1.5 + 7.0
    assert together.items[-1].start_seconds > 1.5 + pieces[-1][0] / RATE - 1e-4


def test_a_device_hands_the_network_back_without_widening_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted before it left, a network of seven billion weights would take 28 GB of a GPU instead of 14."""
    encoder, moves = make(folder), []
    move = torch.nn.Module.to

    def seen(module: torch.nn.Module, *args: Any) -> torch.nn.Module:
        moves.append(args)
        return move(module, *args)

    for kind in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(whisper, "number_type", lambda *_, kind=kind: kind)
        encoder.load("cpu")
        assert encoder._model.dtype == kind
        monkeypatch.setattr(torch.nn.Module, "to", seen)
    assert moves[0] == ("cpu", torch.float32)


def test_sound_that_starts_before_the_clip_has_no_negative_times(folder: Path) -> None:
    encoder = make(folder, vad=False)
    spans = encoder.prepare(toys.clip("w", audio=toys.noise(3.0), start_seconds=-0.02))["span_seconds"]
    assert spans[0, 0] == 0
    assert spans[-1, 1] == pytest.approx(2.98)


def test_a_batch_gives_what_its_clips_give_alone(folder: Path) -> None:
    clips = [toys.noise(seconds, seed=round(seconds)) for seconds in (5.0, 0.3, 2.0, 3.1)]
    together = encode(loaded(folder, vad=False), *clips)
    small_groups = encode(loaded(folder, vad=False, batch_size=2), *clips)
    alone = [encode(loaded(folder, vad=False, batch_size=1), clip)[0] for clip in clips]
    for one, two, three in zip(together, small_groups, alone, strict=True):
        near(one, two)
        near(one, three)
    assert len({segments.text for segments in together}) > 1


# --- the gate


STEADY = {
    "silence": np.zeros(4 * RATE, np.float32),
    "digital noise": (toys.noise(4.0) / 0.1 / 32768).astype(np.float32),
    "white noise": toys.noise(4.0, level=0.2),
    "tone": toys.tone(4.0),
    "hum": (toys.tone(4.0, hertz=120) + toys.tone(4.0, hertz=240) + toys.noise(4.0, level=0.02)).astype(np.float32),
    "constant": np.full(4 * RATE, 0.7, np.float32),
    "50 ms": toys.noise(0.05),
    "one sample": np.ones(1, np.float32),
}


@pytest.mark.parametrize("sound", STEADY)
def test_steady_sound_is_not_transcribed(folder: Path, sound: str) -> None:
    encoder = loaded(folder)
    assert encode(encoder, STEADY[sound]) == [Segments()]
    assert _speech.activity(STEADY[sound], RATE, 7.0) == 0


@pytest.mark.parametrize("sound", STEADY)
def test_without_the_gate_everything_is_transcribed(folder: Path, sound: str) -> None:
    (segments,) = encode(loaded(folder, vad=False), STEADY[sound])
    assert segments.items
    assert segments.items[0].flags["activity"] == 0


@given(seed=st.integers(0, 1000), seconds=st.sampled_from([0.5, 2.0, 10.0]))
def test_noise_never_opens_the_gate(seed: int, seconds: float) -> None:
    assert _speech.activity(toys.noise(seconds, seed=seed), RATE, 7.0) == 0


@pytest.mark.parametrize("level", [0.3, 0.01, 0.002])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_speech_opens_the_gate(folder: Path, level: float, noise: float) -> None:
    samples = speech_like(4.0, level=level) + toys.noise(4.0, level=noise * level, seed=9)
    activity = _speech.activity(samples, RATE, 7.0)
    assert 0.1 < activity < 0.9
    (segments,) = encode(loaded(folder), samples)
    assert segments.items
    assert 0 < segments.items[0].flags["activity"] <= 1


def test_one_word_in_half_a_minute_opens_the_gate() -> None:
    samples = toys.noise(30.0, level=0.001)
    samples[20 * RATE : 20 * RATE + 4800] += speech_like(0.3, level=0.05)
    assert 0 < _speech.activity(samples, RATE, 7.0) < 0.05


def test_only_windows_with_speech_are_transcribed(folder: Path) -> None:
    encoder = make(folder)
    samples = np.concatenate([np.zeros(4 * RATE, np.float32), speech_like(1.5), np.zeros(4 * RATE, np.float32)])
    spans = encoder.prepare(toys.clip("w", audio=samples))["span_seconds"]
    assert len(_speech.windows(samples, RATE, 2.0)) == 5
    assert 1 <= len(spans) <= 2
    assert spans[0, 0] <= 4.0 < spans[0, 1] or spans[0, 0] <= 5.5 < spans[-1, 1]
    assert len(make(folder, vad=False).prepare(toys.clip("w", audio=samples))["span_seconds"]) == 5


def test_threshold_of_the_gate_is_an_option(folder: Path) -> None:
    samples = speech_like(1.9)
    assert len(make(folder).prepare(toys.clip("w", audio=samples))["fill"]) == 1
    assert len(make(folder, vad_threshold=60).prepare(toys.clip("w", audio=samples))["fill"]) == 0
    with pytest.raises(ConfigError, match=r"vad_threshold: .* greater than or equal to 0, got -1"):
        make(folder, vad_threshold=-1)


def test_clip_without_sound_is_skipped(folder: Path) -> None:
    with pytest.raises(SkipClip, match="the clip has no sound"):
        make(folder).prepare(toys.clip("w", video=toys.frames(1)))


# --- flags


def test_repetition_is_seen() -> None:
    assert whisper.repetition([1, 2, 3, 4, 5, 6]) == 0
    assert whisper.repetition([1, 2, 1, 2, 1, 2]) == 0.5  # 121, 212, 121, 212
    assert whisper.repetition([7] * 102) == pytest.approx(0.99)
    assert whisper.repetition([7, 7]) == 0
    assert whisper.repetition([]) == 0


def test_compression_ratio_is_that_of_the_authors() -> None:
    assert whisper.compression_ratio("") == 0
    assert whisper.compression_ratio("who are you?") < 1
    assert whisper.compression_ratio("thank you. " * 40) > 10


def test_what_looks_like_a_hallucination_is_kept_and_flagged(folder: Path) -> None:
    (segments,) = encode(loaded(folder, vad=False), np.zeros(2 * RATE, np.float32))
    assert segments.items  # random weights say much about nothing
    for segment in segments.items:
        assert set(segment.flags) == {
            "no_speech_prob", "compression_ratio", "repetition", "language", "activity"
        }  # fmt: skip
        assert segment.score is not None
        assert segment.score < 0
        assert 0 <= segment.flags["no_speech_prob"] <= 1
        assert 0 <= segment.flags["repetition"] < 1
        assert segment.flags["activity"] == 0


# --- checkpoints


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json", "model.safetensors"],
)
def test_incomplete_folder_fails(tmp_path: Path, name: str) -> None:
    folder = small.checkpoint(tmp_path / "whisper", leave_out=[name])
    with pytest.raises(MissingWeightsError, match=rf"(?s)the folder holds no {name}.*w\.weights=/path/to/folder"):
        make(folder)


def test_missing_checkpoint_says_how_to_get_it() -> None:
    with pytest.raises(MissingWeightsError, match="hf download openai/whisper-base"):
        make(whisper.Config.model_fields["weights"].default)


def test_fingerprint_follows_weights_and_tokenizer(tmp_path: Path) -> None:
    one, other = (make(small.checkpoint(tmp_path / str(seed) / "w", seed=seed)).spec for seed in (1, 2))
    assert one.weights["id"] == other.weights["id"] == "w"
    assert one.weights["sha256"] != other.weights["sha256"]
    path = tmp_path / "2" / "w" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert make(path.parent).spec.fingerprint != other.fingerprint


def test_spectrogram_of_another_size_fails(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "whisper")
    change(folder / "preprocessor_config.json", feature_size=128)
    with pytest.raises(CheckpointError, match=r"128 bands x 200 frames, config\.json expects 80 x 200"):
        make(folder)


def test_generation_settings_of_old_checkpoints_fail(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "whisper")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    with pytest.raises(CheckpointError, match="has no no_timestamps_token_id, decoder_start_token_id; a fine-tuned"):
        make(folder)


def test_broken_tokenizer_fails(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "whisper")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        encode(loaded(folder, vad=False), toys.noise(1.0))


def test_load_fails_where_tensors_are_missing(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "whisper")
    change(folder / "config.json", encoder_layers=2)
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json: 15 tensors missing.*layers\.1\."):
        make(folder).load("cpu")


def test_unknown_language_and_too_many_tokens_fail(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"does not know 'dee' \(did you mean 'de'\?\); known: de, en"):
        make(folder, language="dee")
    with pytest.raises(UsageError, match=r"max_new_tokens: expected at most 37 .* got 38"):
        make(folder, max_new_tokens=38)


def test_encode_fails_before_load(folder: Path) -> None:
    encoder = make(folder, vad=False)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(toys.clip("w", audio=toys.noise(0.1)))])


def test_work_is_quiet(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encode(loaded(folder, vad=False, beams=2), toys.noise(3.0))
    assert capfd.readouterr() == ("", "")


def test_random_weights_are_as_large_as_base_and_write_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make("random:3")
    assert encoder.geometry.mels == 80
    assert (encoder.geometry.window_samples, encoder.geometry.time_step_seconds) == (480000, 0.02)
    assert encoder.spec.weights == {"id": "random", "sha256": "random:3"}
    assert "w: RANDOM WEIGHTS, as asked for (weights=random:3)" in caplog.text
    tiny = {**whisper.BASE, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    monkeypatch.setattr(whisper, "BASE", {**tiny, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16})
    (segments,) = encode(loaded("random:3", vad=False, max_new_tokens=4), toys.noise(1.0))
    assert segments.text.replace(" ", "").isdecimal()


# --- against the golden data


GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "public" / "hf"


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load_file

    if not GOLDEN.is_dir():
        pytest.skip("no ../shared beside the project")
    return load_file(GOLDEN / "whisper_encoder.io.safetensors")


def geometry(seconds: float, mels: int) -> whisper.Geometry:
    return whisper.Geometry(
        sample_rate=RATE, mels=mels, fft_size=400, hop=160, window_seconds=seconds, time_step_seconds=0.02,
        max_tokens=8, start=1, end=0, no_timestamps=5, languages={}, tasks={}, suppressed=(), suppressed_first=(),
        latest_first=50,
    )  # fmt: skip


def golden_mel(samples: npt.NDArray[np.int16], seconds: float, mels: int) -> npt.NDArray[np.float32]:
    spectrum, fill = geometry(seconds, mels).log_mel(samples.astype(np.float32) / 32768)
    return whisper._filled_up(spectrum, fill, round(seconds * 100))


@pytest.mark.shared
def test_golden_spectrograms(golden: dict[str, npt.NDArray[Any]]) -> None:
    for which in (0, 1):
        samples = golden[f"waveform_i16.{which}"]
        np.testing.assert_allclose(golden_mel(samples, 2, 80), golden["log_mel"][which], atol=2e-5)
    samples = golden["waveform_i16.0"]
    np.testing.assert_allclose(golden_mel(samples, 2, 128)[:, ::4], golden["log_mel_128_every4th_frame.0"], atol=5e-5)
    np.testing.assert_allclose(golden_mel(samples, 30, 80)[:, ::25], golden["log_mel_30s_every25th_frame.0"], atol=2e-5)


@pytest.mark.shared
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_golden_encoder(golden: dict[str, npt.NDArray[Any]], tmp_path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import load_file

    described = json.loads((GOLDEN / "whisper_encoder.json").read_text(encoding="utf-8"))["config"]
    folder = small.checkpoint(tmp_path / "golden", **described)
    from safetensors.torch import save_file

    state = {**load_file(folder / "model.safetensors"), **load_file(GOLDEN / "whisper_encoder.weights.safetensors")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    encoder = loaded(folder)
    encoder._model.to(kind)
    with torch.inference_mode():
        hidden = encoder._model.get_encoder()(torch.from_numpy(golden["log_mel"]).to(kind)).last_hidden_state.numpy()
    name, tolerance = {
        torch.float32: ("expected_last_hidden_state", 1e-5),
        torch.float64: ("expected64_last_hidden_state", 1e-9),
    }[kind]
    np.testing.assert_allclose(hidden, golden[name], atol=tolerance)
    if kind == torch.float32:  # and all the way from the waveform
        samples = golden["waveform_i16.1"].astype(np.float32) / 32768
        with torch.inference_mode():
            hidden = encoder._model.get_encoder()(torch.from_numpy(whole(encoder, samples))[None]).last_hidden_state
        np.testing.assert_allclose(hidden[0].numpy(), golden[name][1], atol=1e-4)


@pytest.mark.shared
def test_real_clips(shared: Path, folder: Path) -> None:
    encoder = loaded(folder, batch_size=32, max_new_tokens=6)
    prepared, spans = [], []
    for path in sorted((shared / "clips" / "ok").iterdir()):
        media = read(path, frames={}, audio={"w": encoder.request})
        if "w" in media.waveforms:
            prepared.append(encoder.prepare(media))
            waveform = media.waveforms["w"]
            spans.append((waveform.start_seconds, waveform.start_seconds + len(waveform.data) / RATE))
    assert len(prepared) > 10
    found = encoder.encode(prepared)
    for segments, (start, stop) in zip(found, spans, strict=True):
        assert all(start - 1e-4 <= one.start_seconds <= one.stop_seconds <= stop + 1e-4 for one in segments.items)
    # Whisper has nothing to hear in three of them: digital silence, and two below -65 dB.
    assert 2 <= sum(not segments.items for segments in found) <= 4


@pytest.mark.shared
def test_real_speech_opens_the_gate(shared: Path) -> None:
    media = read(shared / "clips" / "ok" / "nasa_13013.mp4", frames={}, audio={"w": AudioRequest(sample_rate=RATE)})
    waveform: Waveform = media.waveforms["w"]
    assert _speech.activity(waveform.data, RATE, 7.0) > 0.5
