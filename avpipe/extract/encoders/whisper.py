"""Whisper: speech to timed text, through transformers.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (ICML 2023); authors' code openai/whisper.
Any checkpoint in transformers' layout will do: ``openai/whisper-base`` (default), ``-small``, ``-large-v3``,
``-large-v3-turbo``, the English ones (``-base.en``), distilled and fine-tuned ones.

Preprocessing is the authors': 16 kHz, filled up to 30 s, log-mel spectrogram (25 ms every 10 ms, 80 or 128 bands of
Slaney's), clamped to 8 below its maximum, ``(x + 4) / 4``. Decoding is theirs without fallback to sampling (two runs
would differ) and without the text before as a prompt (mistakes would breed, and every window wait for the last).

- A clip longer than 30 s is cut into windows at quiet places (:func:`avpipe.extract.encoders._speech.windows`). They do
  not depend on each other: windows of all clips of a batch go through the network together. (The authors move the
  window to the last time stamp instead, one window after the other.)
- A gate (:mod:`avpipe.extract.encoders._speech`) keeps windows from the network that certainly hold no speech, silence
  and steady noise, on which Whisper invents text. A clip without any other has no segments.
- Every segment carries what speaks for or against its window, as data; nothing is thrown away for looking like a
  hallucination. ``score``: mean log-probability of the window's tokens (the authors give up below -1);
  ``no_speech_prob``: of the network's own token (they distrust above 0.6); ``compression_ratio``: of the text by zlib
  (above 2.4); ``repetition``: the fraction of token triples that have occurred before; ``activity``: the fraction of
  the window in which something stirs, the gate's reason; ``language``.

transformers' ``WhisperForConditionalGeneration.generate`` is not used: it drops windows that look silent, does not tell
the no-speech probability, and copies scores and caches to the CPU token by token. Below it lies the library's general
``generate``, with beam search and caches; that is what runs here, with the library's rules for time stamps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract import slaney
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders import _speech
from avpipe.extract.encoders._config import DeviceConfig
from avpipe.extract.encoders._media import waveform_of
from avpipe.extract.encoders._pretrained import network_of, number_type, pretrained, text_of
from avpipe.extract.encoders._writing import DIGITS, BestLogProbs, settings, until
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError, UsageError, did_you_mean
from avpipe.pipeline.features import FeatureSpec, Segment, Segments
from avpipe.pipeline.pretrained import json_of, quiet

if TYPE_CHECKING:
    import torch

PARTS = {
    "config": ("config.json",),
    "preprocessor": ("preprocessor_config.json",),
    "generation": ("generation_config.json",),
    "tokenizer": ("tokenizer.json",),
    "weights": ("model.safetensors", "pytorch_model.bin"),
}
BASE: Mapping[str, Any] = {  # whisper-base, for random weights
    "vocab_size": 51865,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
}
BASE_GENERATION: Mapping[str, Any] = {
    "decoder_start_token_id": 50258,
    "eos_token_id": 50257,
    "no_timestamps_token_id": 50363,
    "max_initial_timestamp_index": 50,
    "lang_to_id": {"<|en|>": 50259},
    "task_to_id": {"translate": 50358, "transcribe": 50359},
}


class Config(DeviceConfig):
    """Configuration of Whisper."""

    weights: str = "openai/whisper-base"
    """``org/name`` or ``org/name@revision`` on the Hub, a local folder, or ``random`` (``random:<seed>``) for tests and
    benchmarks."""

    language: str | None = None
    """That is spoken, as Whisper abbreviates it (``en``, ``de``, ``zh`` ...); by default it is detected in the first
    window of each clip that holds sound."""

    task: Literal["transcribe", "translate"] = "transcribe"
    """``transcribe``: in the language that is spoken; ``translate``: into English."""

    beams: int = Field(default=1, ge=1)
    """Of the beam search; 1 takes the best token each time, as the authors do by default."""

    max_new_tokens: int = Field(default=224, ge=1)
    """Of a window, time stamps included."""

    vad: bool = True
    """Leave out windows that certainly hold no speech. ``off``: transcribe everything."""

    vad_threshold: float = Field(default=7.0, ge=0)
    """In dB: a window holds no speech if the level of no band ever rises so much above its background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a checkpoint's three JSON files say.

    Attributes:
        sample_rate: in Hz.
        mels: bands of the spectrogram.
        fft_size: samples that a frame sees.
        hop: samples from frame to frame.
        window_seconds: sound that the network hears at once.
        time_step_seconds: from time stamp to time stamp.
        max_tokens: that the decoder can hold, prompt included.
        start: token that begins every text.
        end: token that ends it; all words come before it, all other special tokens after.
        no_timestamps: token that forbids time stamps; they come right after it, and the one for silence right before.
        languages: tokens by abbreviation; none where a checkpoint knows English only.
        tasks: tokens.
        suppressed: tokens that are never written.
        suppressed_first: tokens that a text does not begin with.
        latest_first: the first time stamp is not later than this many steps.
    """

    sample_rate: int
    mels: int
    fft_size: int
    hop: int
    window_seconds: float
    time_step_seconds: float
    max_tokens: int
    start: int
    end: int
    no_timestamps: int
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    latest_first: int

    @property
    def window_samples(self) -> int:
        """Sound that the network hears at once."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that is written."""
        return 3 if self.languages else 1

    def log_mel(self, samples: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], float]:
        """The official spectrogram of a window as far as it hears the sound, and the value of all that follows.

        Args:
            samples: ``(num_samples,)``, 1 to ``window_samples`` of them.

        Returns:
            ``(mels, num_frames)`` and the value.
        """
        whole = self.window_samples
        heard = min(whole // self.hop, -(-(len(samples) + self.fft_size // 2) // self.hop))
        behind = np.zeros(min(whole, len(samples) + 2 * self.fft_size) - len(samples))
        logarithm = slaney.log10_mel(
            np.concatenate([samples, behind]),
            fft_size=self.fft_size,
            hop=self.hop,
            sample_rate=self.sample_rate,
            mels=self.mels,
            low_hz=0.0,
            high_hz=8000.0,
        )[:heard]
        floor = logarithm.max() - 8.0
        scaled = (np.maximum(logarithm, floor) + 4.0) / 4.0
        return scaled.T.astype(np.float32), float((max(-10.0, floor) + 4.0) / 4.0)


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        seed = weights.random_seed(config.weights, name)
        self.seed = seed or 0
        self.files = weights.resolve(config.weights, PARTS, component=name) if seed is None else None
        self.geometry = _geometry(self.files)
        self._check()
        self.spec = FeatureSpec(
            name=name,
            encoder="whisper",
            modality="text",
            dim=0,
            dtype="text",
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=weights.random_spec(self.seed) if self.files is None else self.files.to_spec(),
            preprocessing={
                "filterbank": "slaney",
                "sample_rate": self.geometry.sample_rate,
                "mels": self.geometry.mels,
                "fft_size": self.geometry.fft_size,
                "hop": self.geometry.hop,
                "window_seconds": self.geometry.window_seconds,
                "tokenizer": weights.sha256_of(self.files.files["tokenizer"]) if self.files else "none",
                "generation": weights.sha256_of(self.files.files["generation"]) if self.files else "none",
                "network": network_of(json_of(self.files.files["config"])) if self.files else "none",
            },
            clock={"segments": "as the network's time stamps say, within the sound of their window"},
        )
        self._model: Any = None
        self._device = "cpu"

    def _check(self) -> None:
        """Raises:
        UsageError: the checkpoint cannot do what is asked for.
        """
        config, known = self.config, self.geometry.languages
        if not known and (config.language not in (None, "en") or config.task == "translate"):
            raise UsageError(
                f"{config.weights} knows English only: expected task transcribe and language en or none, "
                f"got {config.task} and {config.language!r}"
            )
        if known and config.language is not None and config.language not in known:
            raise UsageError(
                f"language: {config.weights} does not know {config.language!r}"
                f"{did_you_mean(config.language, known)}; known: {', '.join(sorted(known))}"
            )
        room = self.geometry.max_tokens - self.geometry.prompt_length
        if config.max_new_tokens > room:
            raise UsageError(
                f"max_new_tokens: expected at most {room} with {config.weights}, got {config.max_new_tokens}"
            )

    @property
    def request(self) -> AudioRequest:
        """The waveform it wants: all of it."""
        return AudioRequest(sample_rate=self.geometry.sample_rate)

    def prepare(self, media: Media) -> Prepared:
        """Of each window that may hold speech:

        - ``log_mel`` float32 ``(W, mels, num_frames)``, as long as the longest needs;
        - ``fill`` float32 ``(W,)``: the value of all frames behind;
        - ``span_seconds`` float64 ``(W, 2)``: its start and stop, from the clip's start;
        - ``activity`` float64 ``(W,)``.

        Raises:
            SkipClip: the clip has no sound.
        """
        waveform = waveform_of(media, self.spec.name)
        rate = waveform.sample_rate
        spectra, fills, spans, activities = [], [], [], []
        for start, stop in _speech.windows(waveform.data, rate, self.geometry.window_seconds):
            samples = waveform.data[start:stop]
            activity = _speech.activity(samples, rate, self.config.vad_threshold)
            if self.config.vad and activity == 0:
                continue
            spectrum, fill = self.geometry.log_mel(samples)
            spectra.append(spectrum)
            fills.append(fill)
            spans.append((waveform.start_seconds + start / rate, waveform.start_seconds + stop / rate))
            activities.append(activity)
        longest = max((spectrum.shape[1] for spectrum in spectra), default=0)
        filled = [_filled_up(spectrum, fill, longest) for spectrum, fill in zip(spectra, fills, strict=True)]
        return {
            "log_mel": np.stack(filled) if filled else np.zeros((0, self.geometry.mels, 0), np.float32),
            "fill": np.array(fills, np.float32),
            "span_seconds": np.maximum(np.array(spans, np.float64).reshape(-1, 2), 0.0),
            "activity": np.array(activities, np.float64),
        }

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the model.
        """
        from avpipe.extract.encoders._device import ready

        if self._model is None:
            self._model = _random(self.seed) if self.files is None else _pretrained(self.files)
            self._model.generation_config = settings()  # empty: whatever is asked for is said at each call
        # Place and type in one go, tensor by tensor: a GPU that hands the network back never holds it in float32.
        self._model = ready(self._model.to(device, number_type(device, self.config.precision)), device)
        if self.config.compile:  # the half whose shapes are always the same
            self._model.get_encoder().compile()
        self._device = device

    def encode(self, batch: Sequence[Prepared]) -> list[Segments]:
        """What is said in each clip."""
        places = [(clip, window) for clip, prepared in enumerate(batch) for window in range(len(prepared["fill"]))]
        languages: dict[int, str] = (
            {} if self.config.language is None else dict.fromkeys(range(len(batch)), self.config.language)
        )
        segments: list[list[Segment]] = [[] for _ in batch]
        frames = self.geometry.window_samples // self.geometry.hop
        for begin in range(0, len(places), self.batch_size):  # a long clip has more windows than fit at once
            group = places[begin : begin + self.batch_size]
            spectra = np.stack(
                [
                    _filled_up(batch[clip]["log_mel"][window], batch[clip]["fill"][window], frames)
                    for clip, window in group
                ]
            )
            for (clip, window), written in zip(group, self._write(spectra, group, languages), strict=True):
                start, stop = batch[clip]["span_seconds"][window]
                flags = {**written.flags, "activity": round(float(batch[clip]["activity"][window]), DIGITS)}
                segments[clip] += self._segments(written, float(start), float(stop), flags)
        return [Segments(tuple(items)) for items in segments]

    def _write(
        self, spectra: npt.NDArray[np.float32], group: Sequence[tuple[int, int]], languages: dict[int, str]
    ) -> Iterator[_Written]:
        """Let the network write about windows ``(W, mels, frames)`` of the clips in ``group``.

        ``languages`` of clips; of those that are not in it yet, the language is detected and put in.
        """
        import torch

        from avpipe.extract.encoders._device import upload

        if self._model is None:
            raise RuntimeError("encode: called before load")
        geometry = self.geometry
        with torch.inference_mode():
            hidden = self._model.get_encoder()(upload(spectra, self._device).to(self._model.dtype)).last_hidden_state
            first = torch.full((len(group), 1), geometry.start, device=hidden.device)
            heard = self._model(encoder_outputs=(hidden,), decoder_input_ids=first).logits[:, -1].float().cpu()
            no_speech = heard.softmax(-1)[:, geometry.no_timestamps - 1].tolist()
            for (clip, _), scores in zip(group, heard, strict=True):
                if clip not in languages and geometry.languages:
                    languages[clip] = max(geometry.languages, key=lambda name: float(scores[geometry.languages[name]]))
            spoken = [languages.get(clip, "en") for clip, _ in group]
            tokens, scores = self._generate(hidden, torch.tensor([self._prompt(language) for language in spoken]))
        for row, score, probability, language in zip(tokens, scores, no_speech, spoken, strict=True):
            yield _Written(
                tokens=row,
                score=round(score, DIGITS),
                no_speech_prob=round(probability, DIGITS),
                language=language,
                text=self._text([token for token in row if token < geometry.end]),
                end=geometry.end,
            )

    def _prompt(self, language: str) -> list[int]:
        geometry = self.geometry
        if not geometry.languages:
            return [geometry.start]
        return [geometry.start, geometry.languages[language], geometry.tasks[self.config.task]]

    def _generate(self, hidden: torch.Tensor, prompt: torch.Tensor) -> tuple[list[list[int]], list[float]]:
        """Tokens that the network writes, without the last that ends them, and their mean log-probability (with it).

        Args:
            hidden: ``(W, positions, width)`` of the encoder.
            prompt: ``(W, prompt_length)``.
        """
        from transformers import GenerationMixin, LogitsProcessorList
        from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
        from transformers.modeling_outputs import BaseModelOutput

        geometry, beams = self.geometry, self.config.beams
        asked = settings(
            num_beams=beams,
            do_sample=False,
            max_new_tokens=self.config.max_new_tokens,
            eos_token_id=geometry.end,
            pad_token_id=geometry.end,
            decoder_start_token_id=geometry.start,
            suppress_tokens=list(geometry.suppressed) or None,
            begin_suppress_tokens=list(geometry.suppressed_first) or None,
            no_timestamps_token_id=geometry.no_timestamps,
            max_initial_timestamp_index=geometry.latest_first,
            return_dict_in_generate=True,
            output_scores=beams > 1,
            renormalize_logits=True,  # after what may not be written is left out, as the authors do
        )
        best = BestLogProbs()
        rules: Any = LogitsProcessorList([WhisperTimeStampLogitsProcessor(asked, begin_index=prompt.shape[1])])
        if beams == 1:
            rules.append(best)
        general: Any = GenerationMixin.generate
        with quiet():
            output = general(
                self._model,
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=hidden.new_ones(hidden.shape[:2]),
                decoder_input_ids=prompt.to(hidden.device),
                generation_config=asked,
                logits_processor=rules,
            )
        rows = [until(row, [geometry.end]) for row in output.sequences[:, prompt.shape[1] :].tolist()]
        return rows, output.sequences_scores.tolist() if beams > 1 else best.means(rows)

    def _segments(
        self, written: _Written, start_seconds: float, stop_seconds: float, flags: Mapping[str, Any]
    ) -> Iterator[Segment]:
        """What was written about a window, cut at its time stamps."""
        geometry = self.geometry
        for begin, end, tokens in stretches(written.tokens, geometry.end, geometry.no_timestamps + 1):
            text = self._text(tokens)
            if not text:
                continue
            begin_seconds = min(start_seconds + begin * geometry.time_step_seconds, stop_seconds)
            end_seconds = stop_seconds if end is None else start_seconds + end * geometry.time_step_seconds
            yield Segment(
                start_seconds=round(begin_seconds, DIGITS),
                stop_seconds=round(max(begin_seconds, min(end_seconds, stop_seconds)), DIGITS),
                text=text,
                score=written.score,
                flags=flags,
            )

    def _text(self, tokens: Sequence[int]) -> str:
        return text_of(tokens, self.files.files["tokenizer"] if self.files else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What the network wrote about one window.

    Attributes:
        tokens: words and time stamps.
        score: mean log-probability of a token.
        no_speech_prob: probability that nobody speaks.
        language: that was spoken.
        text: all words.
        end: token that ends a text: words come before it.
    """

    tokens: list[int]
    score: float
    no_speech_prob: float
    language: str
    text: str
    end: int

    @property
    def flags(self) -> dict[str, Any]:
        """Facts about the window."""
        return {
            "no_speech_prob": self.no_speech_prob,
            "compression_ratio": round(compression_ratio(self.text), DIGITS),
            "repetition": round(repetition([token for token in self.tokens if token < self.end]), DIGITS),
            "language": self.language,
        }


def stretches(tokens: Sequence[int], end: int, first_time: int) -> Iterator[tuple[int, int | None, list[int]]]:
    """Cuts what Whisper wrote at its time stamps.

    Args:
        tokens: words and time stamps.
        end: token that ends a text: words come before it.
        first_time: the time stamp of zero.

    Yields:
        Start and stop in steps, and the words between. The stop is ``None`` where there is no time stamp behind: the
        network was cut short, or someone was still speaking.
    """
    begin, words = 0, []
    for token in tokens:
        if token < end:
            words.append(token)
        elif token >= first_time:
            if words:
                yield begin, token - first_time, words
            begin, words = token - first_time, []
    if words:
        yield begin, None, words


def compression_ratio(text: str) -> float:
    """How many times zlib makes a text shorter, as the authors measure it; 0 for none. Loops compress well."""
    encoded = text.encode("utf-8")
    return len(encoded) / len(zlib.compress(encoded)) if encoded else 0.0


def repetition(tokens: Sequence[int], length: int = 3) -> float:
    """The fraction of a text's n-grams that have occurred before in it; 0 for a text that is shorter than one."""
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _filled_up(spectrum: npt.NDArray[Any], fill: float, frames: int) -> npt.NDArray[np.float32]:
    return np.pad(spectrum, ((0, 0), (0, frames - spectrum.shape[1])), constant_values=fill)


def _geometry(files: weights.WeightFiles | None) -> Geometry:
    """From a checkpoint's three JSON files; what they leave out is as in the authors' first ones."""
    network: Mapping[str, Any] = BASE if files is None else json_of(files.files["config"])
    front = {} if files is None else json_of(files.files["preprocessor"])
    spoken: Mapping[str, Any] = BASE_GENERATION if files is None else json_of(files.files["generation"])
    absent = [key for key in ("no_timestamps_token_id", "eos_token_id", "decoder_start_token_id") if key not in spoken]
    if absent and files:
        raise CheckpointError(
            f"{files.files['generation']}: has no {', '.join(absent)}; a fine-tuned checkpoint can take this file from "
            f"the openai/whisper-... that it was tuned from"
        )
    window_seconds = float(front.get("chunk_length", 30))
    geometry = Geometry(
        sample_rate=front.get("sampling_rate", 16000),
        mels=front.get("feature_size", 80),
        fft_size=front.get("n_fft", 400),
        hop=front.get("hop_length", 160),
        window_seconds=window_seconds,
        time_step_seconds=window_seconds / network.get("max_source_positions", 1500),
        max_tokens=network.get("max_target_positions", 448),
        start=spoken["decoder_start_token_id"],
        end=spoken["eos_token_id"],
        no_timestamps=spoken["no_timestamps_token_id"],
        languages={name.strip("<|>"): token for name, token in (spoken.get("lang_to_id") or {}).items()},
        tasks=spoken.get("task_to_id") or {},
        suppressed=tuple(spoken.get("suppress_tokens") or ()),
        suppressed_first=tuple(spoken.get("begin_suppress_tokens") or ()),
        latest_first=spoken.get("max_initial_timestamp_index") or 50,
    )
    made = geometry.mels, geometry.window_samples // geometry.hop
    expected = network.get("num_mel_bins", 80), 2 * network.get("max_source_positions", 1500)
    if made != expected:
        raise CheckpointError(
            f"{files.id if files else 'random'}: preprocessor_config.json makes spectrograms of {made[0]} bands x "
            f"{made[1]} frames, config.json expects {expected[0]} x {expected[1]}"
        )
    return geometry


def _pretrained(files: weights.WeightFiles) -> Any:
    from transformers import WhisperForConditionalGeneration

    return pretrained(WhisperForConditionalGeneration, files.files["weights"], what="a Whisper")


def _random(seed: int) -> Any:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WhisperForConditionalGeneration(WhisperConfig(**BASE))
