"""Chat models that hear, against transformers' own way of asking them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from avpipe.extract.encoders import audio_chat
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, SkipClip, UsageError
from avpipe.pipeline.features import Segment

from . import toys
from .small import audio_chat as small

MODELS = ["qwen2_audio", "audio_flamingo3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {model: small.checkpoint(tmp_path_factory.mktemp(model), model) for model in MODELS}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, model: str = "qwen2_audio", **config: Any) -> audio_chat.Encoder:
    values = {"weights": str(weights), "model": model, "max_new_tokens": 5, **config}
    return audio_chat.Encoder(parse(audio_chat.Config, values, "test"), "c")


def loaded(weights: Path | str, model: str = "qwen2_audio", **config: Any) -> audio_chat.Encoder:
    encoder = make(weights, model, **config)
    encoder.load("cpu")
    return encoder


def ask(encoder: audio_chat.Encoder, *clips: npt.NDArray[np.float32], start_seconds: float = 0.0) -> list[Segment]:
    medias = [toys.clip("c", audio=samples, start_seconds=start_seconds) for samples in clips]
    return [segments.items[0] for segments in encoder.encode([encoder.prepare(media) for media in medias])]


def official(folder: Path, samples: npt.NDArray[np.float32], prompt: str, beams: int) -> tuple[str, float]:
    """One clip, asked as the documentation of transformers has it; answer, and mean log-probability of its tokens."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = getattr(transformers, described["architectures"][0]).from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    content = [{"type": "audio", "audio": samples}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert prompt in text
    inputs = processor(text=text, audio=samples, sampling_rate=16000, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=5, num_beams=beams, do_sample=False)
        written = tokens[0, length:]
        # One pass over prompt and answer: the processor's other inputs are as long as the prompt.
        assert len(written) == 5
        scores = []
        for i in range(len(written)):
            ids = tokens[:, : length + i]
            step = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            scores.append(float(model(**step).logits[0, -1].log_softmax(-1)[written[i]]))
    return processor.tokenizer.decode(written, skip_special_tokens=True).strip(), float(np.mean(scores))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("beams", [1, 2])
def test_answer_equals_that_of_transformers(folders: dict[str, Path], model: str, beams: int) -> None:
    samples = toys.noise(2.0)
    text, score = official(folders[model], samples, "What is heard?", beams)
    (segment,) = ask(loaded(folders[model], model, prompt="What is heard?", beams=beams), samples)
    assert segment.text == text
    assert segment.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_gives_what_its_clips_give_alone(folders: dict[str, Path], model: str) -> None:
    encoder = loaded(folders[model], model)
    clips = [toys.noise(3.0), toys.tone(0.5), np.zeros(8000, np.float32)]
    together = ask(encoder, *clips)
    for one, samples in zip(together, clips, strict=True):
        (alone,) = ask(encoder, samples)
        assert one.text == alone.text
        assert one.score == pytest.approx(alone.score, abs=2e-4)
    assert len({segment.score for segment in together}) == 3  # it hears something


def test_segment_covers_the_sound_that_was_heard(folders: dict[str, Path]) -> None:
    encoder = loaded(folders["qwen2_audio"], max_seconds=2.0)
    assert encoder.request.max_seconds == 2.0
    long, short = ask(encoder, toys.noise(5.0), toys.noise(0.5), start_seconds=0.25)
    assert (long.start_seconds, long.stop_seconds) == (0.25, 2.25)
    assert (short.start_seconds, short.stop_seconds) == (0.25, 0.75)
    cut, whole = ask(encoder, toys.noise(5.0), toys.noise(5.0)[:32000])
    assert cut.score == whole.score


def test_prompt_counts(folders: dict[str, Path]) -> None:
    one, other = (loaded(folders["qwen2_audio"], prompt=prompt) for prompt in ("Who speaks?", "What is heard?"))
    assert one.spec.fingerprint != other.spec.fingerprint
    assert ask(one, toys.noise(1.0)) != ask(other, toys.noise(1.0))


def test_checkpoints_own_wish_to_sample_is_not_heeded(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "qwen")
    wishes = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0}
    (before,) = ask(loaded(folder), toys.noise(1.0))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **wishes}), encoding="utf-8")
    (after,) = ask(loaded(folder), toys.noise(1.0))
    assert before == after


def test_clip_without_sound_is_skipped(folders: dict[str, Path]) -> None:
    with pytest.raises(SkipClip, match="the clip has no sound"):
        make(folders["qwen2_audio"]).prepare(toys.clip("c", video=toys.frames(1)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_incomplete_folder_fails(tmp_path: Path, name: str) -> None:
    folder = small.checkpoint(tmp_path / "qwen", leave_out=[name])
    with pytest.raises(MissingWeightsError, match=rf"(?s)the folder holds no .*{name}.*c\.weights=/path/to/folder"):
        make(folder)


@pytest.mark.parametrize(("model", "place"), audio_chat.REPOSITORIES.items())
def test_missing_checkpoint_says_how_to_get_it(model: str, place: str) -> None:
    with pytest.raises(MissingWeightsError, match=f"hf download {place}"):
        make("", model)


def test_what_cannot_be_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"c\.max_seconds: expected at most 30 with qwen2_audio, got 60\.0"):
        make(folders["qwen2_audio"], max_seconds=60)
    assert make(folders["audio_flamingo3"], "audio_flamingo3", max_seconds=60).request.max_seconds == 60
    with pytest.raises(UsageError, match=r"c\.weights: .* got 'random:1': random weights have no processor"):
        make("random:1")
    with pytest.raises(ConfigError, match=r"model: .*'qwen2_audio' or 'audio_flamingo3', got 'gpt'"):
        make(folders["qwen2_audio"], "gpt")


def test_checkpoint_of_another_model_fails(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"(does not fit its config\.json|cannot be read as a audio_flamingo3)"):
        make(folders["qwen2_audio"], "audio_flamingo3").load("cpu")


def test_encode_fails_before_load(folders: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="encode: called before load"):
        ask(make(folders["qwen2_audio"]), toys.noise(0.1))
