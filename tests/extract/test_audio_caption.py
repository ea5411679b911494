"""clapcap: its parts against the golden data, its file against the published layout, and what becomes of a clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

from avpipe.extract.encoders import audio_caption
from avpipe.extract.media import Media, read
from avpipe.extract.networks import clapcap
from avpipe.pipeline import checkpoints
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, SkipClip
from avpipe.pipeline.features import Segment

from . import toys
from .small import audio_caption as small

RATE = audio_caption.SAMPLE_RATE
LENGTH = 7 * RATE


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small.settings(tmp_path_factory.mktemp("clapcap"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(values: dict[str, Any], **config: Any) -> audio_caption.Encoder:
    return audio_caption.Encoder(parse(audio_caption.Config, {**values, **config}, "test"), "c")


def loaded(values: dict[str, Any], **config: Any) -> audio_caption.Encoder:
    encoder = make(values, **config)
    encoder.load("cpu")
    return encoder


def clip(samples: npt.NDArray[np.float32], *, seed: int = 0, start_seconds: float = 0.0) -> Media:
    plain = toys.clip("c", audio=samples, sample_rate=RATE, start_seconds=start_seconds)
    return Media(waveforms=plain.waveforms, duration_seconds=plain.duration_seconds, seed=seed)


def noise(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    return toys.noise(seconds * RATE / toys.SAMPLE_RATE, seed=seed)


def caption(encoder: audio_caption.Encoder, *clips: Media) -> list[Segment]:
    return [segments.items[0] for segments in encoder.encode([encoder.prepare(one) for one in clips])]


# --- what is heard


def test_short_sound_is_repeated(values: dict[str, Any]) -> None:
    encoder, samples = make(values), noise(3.0)
    repeated = np.concatenate([samples, samples, samples[: LENGTH - 2 * len(samples)]])
    prepared = encoder.prepare(clip(samples, start_seconds=0.5))
    assert prepared["log_mel"].shape == (965, 64)
    np.testing.assert_array_equal(prepared["log_mel"], audio_caption.log_mel(repeated))
    np.testing.assert_allclose(prepared["span_seconds"], [0.5, 3.5])


@pytest.mark.parametrize(("crop", "start"), [("centre", 1.5), ("start", 0.0)])
def test_longer_sound_is_cropped(values: dict[str, Any], crop: str, start: float) -> None:
    encoder, samples = make(values, crop=crop), noise(10.0)
    first = round(start * RATE)
    prepared = encoder.prepare(clip(samples, start_seconds=0.25))
    np.testing.assert_array_equal(prepared["log_mel"], audio_caption.log_mel(samples[first : first + LENGTH]))
    np.testing.assert_allclose(prepared["span_seconds"], [0.25 + start, 7.25 + start])


def test_random_crop_belongs_to_the_clip(values: dict[str, Any]) -> None:
    encoder, samples = make(values, crop="random"), noise(20.0)
    starts = [encoder.prepare(clip(samples, seed=seed))["span_seconds"][0] for seed in range(20)]
    again = [encoder.prepare(clip(samples, seed=seed))["span_seconds"][0] for seed in range(20)]
    assert starts == again
    assert len(set(starts)) == 20
    assert 0 <= min(starts) < 4
    assert 9 < max(starts) <= 13
    first = round(starts[0] * RATE)
    heard = encoder.prepare(clip(samples, seed=0))["log_mel"]
    np.testing.assert_array_equal(heard, audio_caption.log_mel(samples[first : first + LENGTH]))


def test_no_more_is_decoded_than_is_heard(values: dict[str, Any]) -> None:
    assert make(values, crop="start").request.max_seconds == 7
    assert make(values).request.max_seconds is None
    assert make(values).request.sample_rate == 44100


def test_spectrogram_is_in_decibel_and_has_no_relative_floor() -> None:
    assert np.all(audio_caption.log_mel(np.zeros(5000)) == -100)
    loud, quiet = audio_caption.log_mel(noise(0.5)), audio_caption.log_mel(noise(0.5) / 10)
    np.testing.assert_allclose(loud - quiet, 20, atol=1e-4)


@pytest.mark.parametrize("hertz", [100.0, 1000.0, 8000.0])
def test_spectrogram_equals_torchaudio(hertz: float) -> None:
    from torchaudio.transforms import MelSpectrogram

    samples = (0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)).astype(np.float32) + noise(1.0)
    official = MelSpectrogram(
        sample_rate=32000, n_fft=1024, hop_length=320, f_min=50, f_max=14000, n_mels=64, norm="slaney",
        mel_scale="slaney",
    )  # fmt: skip
    power = official(torch.from_numpy(samples)).T.numpy()
    np.testing.assert_allclose(audio_caption.log_mel(samples), 10 * np.log10(np.maximum(power, 1e-10)), atol=1e-3)


# --- what is written


def test_caption_covers_what_was_heard(values: dict[str, Any]) -> None:
    (segment,) = caption(loaded(values), clip(noise(10.0), start_seconds=0.5))
    assert (segment.start_seconds, segment.stop_seconds) == (2.0, 9.0)
    assert segment.text == segment.text.capitalize() != ""
    assert segment.score is not None
    assert segment.score < 0


def test_a_batch_gives_what_its_clips_give_alone(values: dict[str, Any]) -> None:
    clips = [clip(noise(3.0)), clip(np.zeros(RATE, np.float32)), clip(toys.tone(2.0)), clip(noise(9.0, seed=2))]
    encoder = loaded(values)
    together = caption(encoder, *clips)
    for one, alone in zip(together, clips, strict=True):
        (other,) = caption(encoder, alone)
        assert (one.text, one.start_seconds, one.stop_seconds) == (other.text, other.start_seconds, other.stop_seconds)
        assert one.score == pytest.approx(other.score, abs=2e-4)
    assert len({segment.text for segment in together}) > 1  # the network hears something


def test_text_stops_at_the_space_token(values: dict[str, Any]) -> None:
    encoder = make(values)
    space = audio_caption.tokenizer_at(Path(values["tokenizer"]) / "tokenizer.json").encode(" ").ids
    assert [encoder.stop_token] == space
    ids = audio_caption.tokenizer_at(Path(values["tokenizer"]) / "tokenizer.json").encode("a DOG barks").ids
    beam = clapcap.Beam(tokens=[*ids, encoder.stop_token], score=-1.23456)
    segment = encoder._segment(beam, 0.0, 7.0)
    assert (segment.text, segment.score) == ("A dog barks", -1.2346)


def test_options_of_the_search_change_the_caption(values: dict[str, Any]) -> None:
    media = clip(noise(3.0))
    (plain,) = caption(loaded(values), media)
    (cold,) = caption(loaded(values, temperature=0.01), media)
    (short,) = caption(loaded(values, max_new_tokens=1), media)
    assert plain.score != cold.score
    assert len(short.text) < len(plain.text)
    with pytest.raises(ConfigError, match=r"temperature: .* greater than 0, got 0"):
        make(values, temperature=0)


class Scripted(nn.Module):
    """A language model whose next token depends on the last one alone, with a cache that must follow the beams."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        from transformers import GPT2Config

        self.config = GPT2Config(vocab_size=len(table))
        self.table = table

    def forward(
        self, inputs_embeds: Any = None, input_ids: Any = None, past_key_values: Any = None, use_cache: bool = True
    ) -> Any:
        from types import SimpleNamespace

        past = past_key_values or Past()
        if inputs_embeds is not None:
            logits = inputs_embeds  # of the first token
        else:
            past.rows = torch.cat([past.rows, input_ids], dim=1) if past.rows is not None else input_ids
            logits = self.table[past.rows[:, -1]][:, None]
        return SimpleNamespace(logits=logits, past_key_values=past)


class Past:
    """Remembers every token of each row."""

    def __init__(self) -> None:
        self.rows: Any = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        assert repeats > 0

    def reorder_cache(self, order: torch.Tensor) -> None:
        self.rows = self.rows[order]


def search(table: list[list[float]], first: list[float], **options: Any) -> list[tuple[list[int], float]]:
    """The beams of one clip; probabilities in, tokens and mean log-probabilities out."""
    model: Any = Scripted(torch.tensor(table).log())
    options = {"beams": 2, "max_tokens": 4, "stop_token": 1, "temperature": 1.0, **options}
    (beams,) = clapcap.beam_search(model, torch.tensor([[first]]).log(), **options)
    return [(beam.tokens, beam.score) for beam in beams]


CHAIN = [[0.2, 0.4, 0.4], [0.98, 0.01, 0.01], [0.1, 0.8, 0.1]]
"""After 0, anything; after the stop token 1, whatever; after 2, nearly always the stop token."""


def test_search_ranks_by_mean_and_lets_what_has_stopped_be() -> None:
    # 2 1: (ln 0.6 + ln 0.8) / 2; 0 2 1: (ln 0.3 + ln 0.4 + ln 0.8) / 3, which 0 1 beats not: (ln 0.3 + ln 0.4) / 2.
    (best, score), (other, other_score) = search(CHAIN, [0.3, 0.1, 0.6])
    assert (best, other) == ([2, 1], [0, 2, 1])
    assert score == pytest.approx((np.log(0.6) + np.log(0.8)) / 2)
    assert other_score == pytest.approx((np.log(0.3) + np.log(0.4) + np.log(0.8)) / 3)


def test_search_is_cut_short() -> None:
    assert [tokens for tokens, _ in search(CHAIN, [0.3, 0.1, 0.6], max_tokens=1)] == [[2], [0]]
    assert len(search(CHAIN, [0.3, 0.1, 0.6], beams=3)) == 3


def test_one_beam_is_greedy() -> None:
    assert search(CHAIN, [0.3, 0.1, 0.6], beams=1)[0][0] == [2, 1]


def uncached(gpt: Any, prefix: torch.Tensor, beams: int, steps: int, stop: int) -> list[list[int]]:
    """The same search for one clip, without a cache, hypothesis by hypothesis."""
    with torch.inference_mode():
        found = [([], 0.0)]
        for _ in range(steps):
            candidates = []
            for tokens, total in found:
                if stop in tokens:
                    candidates.append((tokens, total))
                    continue
                rows = torch.cat([prefix, gpt.transformer.wte(torch.tensor([tokens], dtype=torch.long))], dim=1)
                scores = gpt(inputs_embeds=rows).logits[0, -1].log_softmax(-1)
                candidates += [([*tokens, token], total + float(score)) for token, score in enumerate(scores)]
            found = sorted(candidates, key=lambda one: one[1] / len(one[0]), reverse=True)[:beams]
    return [tokens for tokens, _ in found]


def test_search_with_a_cache_equals_search_without(values: dict[str, Any]) -> None:
    model = loaded(values)._model
    assert model is not None
    torch.manual_seed(5)
    prefix = torch.randn(3, 4, 64)
    with torch.inference_mode():
        greedy = clapcap.beam_search(model.gpt, prefix, beams=1, max_tokens=6, stop_token=-1, temperature=1.0)
        stop = greedy[0][0].tokens[3]  # a token that comes
        found = clapcap.beam_search(model.gpt, prefix, beams=3, max_tokens=6, stop_token=stop, temperature=1.0)
    for row, beams in zip(prefix, found, strict=True):
        assert [beam.tokens for beam in beams] == uncached(model.gpt, row[None], 3, 6, stop)


# --- files


def test_random_weights_are_full_size_and_write_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert clapcap.Sizes().latent == 768
    tiny = small.sizes()
    monkeypatch.setattr(clapcap, "Sizes", lambda: tiny)
    encoder = loaded({"weights": "random:4", "max_new_tokens": 3})
    assert encoder.stop_token == 220
    assert encoder.spec.weights == {"id": "random", "sha256": "random:4"}
    assert "c: RANDOM WEIGHTS, as asked for (weights=random:4)" in caplog.text
    (segment,) = caption(encoder, clip(noise(1.0)))
    assert segment.text.replace(" ", "").isdecimal()


def test_sizes_are_read_off_the_file(tmp_path: Path) -> None:
    state = checkpoints.tensors(checkpoints.read(small.checkpoint(tmp_path / "c.pth")), tmp_path)
    sizes = clapcap.Sizes.of(clapcap.our_names(state))
    assert sizes == small.sizes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clap_project.prefix_const", r"c\.pth is no clapcap: it has no tensor 'clap_project\.prefix_const'"),
        ("clap.base.htsat.bn0.bias", r"c\.pth does not fit .* 1 missing: audio\.audio_encoder\.batch_norm\.bias"),
        ("gpt.lm_head.weight", r"c\.pth does not fit .* 1 missing: gpt\.lm_head\.weight"),
    ],
)
def test_missing_tensor_fails(values: dict[str, Any], tmp_path: Path, name: str, message: str) -> None:
    path = small.checkpoint(tmp_path / "c.pth", without=name)
    with pytest.raises(CheckpointError, match=message):
        loaded(values, weights=str(path))


def test_unknown_tensor_fails(values: dict[str, Any], tmp_path: Path) -> None:
    path = small.checkpoint(tmp_path / "c.pth", **{"clap.base.htsat.surprise": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"1 left over: audio\.audio_encoder\.surprise"):
        loaded(values, weights=str(path))


def test_weights_are_found_in_a_folder_too(values: dict[str, Any], tmp_path: Path) -> None:
    small.checkpoint(tmp_path / "msclap" / "clapcap_weights_2023.pth")
    encoder = loaded(values, weights=str(tmp_path / "msclap"))
    assert encoder.spec.weights["id"] == "msclap"
    with pytest.raises(MissingWeightsError, match=r"holds no clapcap_weights_2023\.pth"):
        make(values, weights=values["tokenizer"])


def test_missing_files_say_how_to_get_them(values: dict[str, Any]) -> None:
    with pytest.raises(MissingWeightsError, match="hf download microsoft/msclap"):
        make({}, tokenizer=values["tokenizer"])
    with pytest.raises(MissingWeightsError, match="hf download openai-community/gpt2"):
        make({}, weights=values["weights"])


def test_tokenizer_of_another_model_fails(values: dict[str, Any], tmp_path: Path) -> None:
    folder = small.tokenizer(tmp_path / "other")
    changed = audio_caption.tokenizer_at(folder / "tokenizer.json")
    changed.add_tokens(["[NEW]"])
    changed.save(str(folder / "tokenizer.json"))
    audio_caption.tokenizer_at.cache_clear()
    with pytest.raises(CheckpointError, match="knows 302 tokens, expected 301"):
        loaded(values, tokenizer=str(folder))


def test_fingerprint_follows_weights_and_tokenizer(values: dict[str, Any], tmp_path: Path) -> None:
    plain = make(values).spec
    other = make(values, weights=str(small.checkpoint(tmp_path / "clapcap.pth", seed=1))).spec
    assert plain.weights["id"] == other.weights["id"] == "clapcap.pth"
    assert plain.weights["sha256"] != other.weights["sha256"]
    folder = small.tokenizer(tmp_path / "gpt2")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text(encoding="utf-8") + "\n")
    assert make(values, tokenizer=str(folder)).spec.preprocessing != plain.preprocessing


def test_clip_without_sound_is_skipped(values: dict[str, Any]) -> None:
    with pytest.raises(SkipClip, match="the clip has no sound"):
        make(values).prepare(toys.clip("c", video=toys.frames(1)))


def test_encode_fails_before_load(values: dict[str, Any]) -> None:
    encoder = make(values)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([encoder.prepare(clip(noise(0.1)))])


# --- against the golden data and the published layout


HEADS = Path(__file__).parents[2].parent / "shared" / "golden_heads"


@pytest.mark.shared
def test_published_file_fits_to_the_last_tensor(shared: Path) -> None:
    described = json.loads((shared / "golden_heads" / "layouts" / "clapcap_2023.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = clapcap.ClapCap(clapcap.Sizes())
        state = {
            name: torch.empty(entry["shape"], dtype=getattr(torch, entry.get("dtype", "float32")))
            for name, entry in described["keys"].items()
        }
    renamed = clapcap.our_names(state)
    own = model.state_dict()
    assert set(renamed) == set(own)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {name: own[name].shape for name in renamed}
    assert clapcap.Sizes.of(renamed) == clapcap.Sizes()
    # Every name goes where the layout says, and only what it calls unused is left out.
    for name, entry in described["keys"].items():
        target = entry.get("hf_clap_audio_model")
        targets = target["split_rows_in_3"] if isinstance(target, dict) else target or []
        assert set(clapcap.our_names({name: state[name]})) >= {f"audio.{one}" for one in targets}
        if "attn_mask" not in name:
            assert bool(clapcap.our_names({name: state[name]})) == ("unused" not in entry)
    checkpoints.fill(model, renamed, Path("clapcap_weights_2023.pth"))
    del renamed["clap_project.linear.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: clap_project\.linear\.bias"):
        checkpoints.fill(model, renamed, Path("clapcap_weights_2023.pth"))


class Head(nn.Module):
    """The captioner behind HTSAT, as small as in the golden data."""

    def __init__(self) -> None:
        super().__init__()
        whole = clapcap.ClapCap(
            clapcap.Sizes(
                patch_width=20, depths=(1,), heads=(1,), joint=24, heard=4, prefix=5, mapper_layers=2, mapper_heads=8,
                mapper_hidden=64, gpt_width=32, gpt_layers=2, gpt_heads=4, gpt_positions=64, vocabulary=61,
            )
        )  # fmt: skip
        self.projection, self.clap_project, self.gpt = whole.projection, whole.clap_project, whole.gpt


@pytest.fixture(scope="module")
def golden() -> tuple[Head, dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    source = HEADS / "public" / "clapcap"
    if not source.is_dir():
        pytest.skip("no ../shared beside the project")
    head = Head()
    checkpoints.fill(head, load_file(source / "clapcap_head.weights.safetensors"), source)
    described = json.loads((source / "clapcap_head.json").read_text(encoding="utf-8"))
    return head.eval(), load_file(source / "clapcap_head.io.safetensors"), described


@pytest.mark.shared
@pytest.mark.parametrize(("kind", "prefix", "atol"), [("float32", "expected_", 3e-5), ("float64", "expected64_", 1e-9)])
def test_golden_head(golden: Any, kind: str, prefix: str, atol: float) -> None:
    head, data, _ = golden
    head.to(getattr(torch, kind))
    with torch.inference_mode():
        projected = head.projection(data["latent"].to(getattr(torch, kind)))
        rows = head.clap_project(functional.normalize(projected, dim=-1))
        logits = head.gpt(inputs_embeds=rows).logits
    for name, value in (("projected", projected), ("prefix_embeds", rows), ("gpt_logits_on_prefix", logits)):
        np.testing.assert_allclose(value.numpy(), data[prefix + name].numpy(), atol=atol, rtol=0)


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_golden_beams(golden: Any, kind: str, temperature: float) -> None:
    head, data, described = golden
    head.to(getattr(torch, kind))
    expected = described["beams"][f"beams_temperature_{temperature}"]["sequences"]
    rows = data["expected64_prefix_embeds"].to(getattr(torch, kind))
    with torch.inference_mode():
        options = {"beams": 5, "max_tokens": 14, "stop_token": 53, "temperature": temperature}
        together = clapcap.beam_search(head.gpt, rows, **options)
        alone = [clapcap.beam_search(head.gpt, row[None], **options)[0] for row in rows]
    assert [[beam.tokens for beam in beams] for beams in together] == expected
    assert [[beam.tokens for beam in beams] for beams in alone] == expected


@pytest.mark.shared
def test_golden_spectrogram(golden: Any) -> None:
    data = golden[1]
    found = audio_caption.log_mel(data["waveform"][0].numpy())
    np.testing.assert_allclose(found, data["expected_log_mel"][0, 0].numpy(), atol=1e-4)


@pytest.mark.shared
def test_real_clips(shared: Path, values: dict[str, Any]) -> None:
    encoder = loaded(values)
    names = ("nasa_13013.mp4", "no_duration.webm", "bbb_480p_vp9_opus_1second.webm", "sample_shorter_audio.mp4")
    medias = [read(shared / "clips" / "ok" / name, frames={}, audio={"c": encoder.request}) for name in names]
    found = caption(encoder, *medias)
    assert all(
        0 <= one.start_seconds < one.stop_seconds <= media.duration_seconds + 0.1
        for one, media in zip(found, medias, strict=True)
    )
    assert found[0].stop_seconds - found[0].start_seconds == pytest.approx(7, abs=1e-3)
