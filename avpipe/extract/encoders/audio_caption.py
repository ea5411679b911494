"""A sentence about what a clip sounds like: MS-CLAP's captioner clapcap, which MICap reads.

Papers and authors' code: :mod:`avpipe.extract.networks.clapcap`, which holds the network. Of each clip 7 s of sound at
44.1 kHz are heard; shorter sound is repeated until it is so long. What differs from the authors' package, on purpose:

- of longer sound the middle is heard; they draw 7 s at random, another piece in each run (``crop: random`` draws, too,
  but the same piece every time);
- channels are mixed; they put one behind the other, and a stereo clip counts as twice as long;
- a weight file must fit to the last tensor; they load what happens to fit;
- clips are captioned together, by the same beam search (:func:`~avpipe.extract.networks.clapcap.beam_search`).

The caption ends at the first lone space token, because that is what their code takes for the end of a text; it is then
capitalised, and everything after its first letter is put in lower case.

Larger captioners that are asked in words are in :mod:`avpipe.extract.encoders.audio_chat`: they have nothing in common
with this one but that they hear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract import slaney
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig
from avpipe.extract.encoders._media import waveform_of
from avpipe.extract.encoders._pretrained import number_type, text_of, tokenizer_at
from avpipe.extract.encoders._writing import DIGITS
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.features import FeatureSpec, Segment, Segments

if TYPE_CHECKING:
    from torch import nn

    from avpipe.extract.networks.clapcap import Beam, ClapCap

FILE = "clapcap_weights_2023.pth"
STOP_TEXT = " <|endoftext|>"
"""The authors stop at the first token of this text, which is that of the space."""

STOP_TOKEN = 220
"""That token in GPT-2's vocabulary, for random weights, which have none."""

SAMPLE_RATE, CLIP_SECONDS = 44100, 7.0
FFT_SIZE, HOP, MELS = 1024, 320, 64
FILTER_RATE, LOW_HZ, HIGH_HZ = 32000, 50.0, 14000.0
"""The authors lay the mel filters out for 32 kHz and feed them 44.1 kHz: the true band is 69 to 19294 Hz."""


class Config(DeviceConfig):
    """Configuration of clapcap."""

    weights: str = "microsoft/msclap"
    """``org/name`` or ``org/name@revision`` on the Hub or a folder that holds ``clapcap_weights_2023.pth``, a file of
    that layout, or ``random`` (``random:<seed>``) for tests and benchmarks."""

    tokenizer: str = "openai-community/gpt2"
    """GPT-2's ``tokenizer.json``: a repository on the Hub, or a local folder."""

    crop: Literal["centre", "start", "random"] = "centre"
    """Which 7 s of longer sound are heard. ``random``: drawn once for each clip, the same in every run."""

    beams: int = Field(default=5, ge=1)
    """Of the beam search."""

    max_new_tokens: int = Field(default=67, ge=1)
    """Of a caption."""

    temperature: float = Field(default=1.0, gt=0)
    """That logits are divided by. The authors' function has 1, their example 0.01, which is nearly greedy."""


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        seed = weights.random_seed(config.weights, name)
        self.seed = seed or 0
        self.files = weights.find(config.weights, [FILE], component=name) if seed is None else None
        self._tokenizer = _tokenizer(config.tokenizer, name) if seed is None else None
        self.stop_token = _stop_token(self._tokenizer)
        self.spec = FeatureSpec(
            name=name,
            encoder="audio_caption",
            modality="text",
            dim=0,
            dtype="text",
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=weights.random_spec(self.seed) if self.files is None else self.files.to_spec(),
            preprocessing={
                "filterbank": "slaney",
                "sample_rate": SAMPLE_RATE,
                "seconds": CLIP_SECONDS,
                "fft_size": FFT_SIZE,
                "hop": HOP,
                "mels": MELS,
                "filter_rate": FILTER_RATE,
                "low_hz": LOW_HZ,
                "high_hz": HIGH_HZ,
                "downmix": "mean",
                "short": "repeated",
                "stop_token": self.stop_token,
                "tokenizer": weights.sha256_of(self._tokenizer) if self._tokenizer else "none",
            },
            clock={"segments": "one a clip, over the sound that was heard"},
        )
        self._model: ClapCap | None = None
        self._device = "cpu"

    @property
    def request(self) -> AudioRequest:
        """The waveform it wants: only the beginning of it where that is all it hears."""
        return AudioRequest(sample_rate=SAMPLE_RATE, max_seconds=CLIP_SECONDS if self.config.crop == "start" else None)

    def prepare(self, media: Media) -> Prepared:
        """``log_mel`` float32 ``(965, 64)`` in dB; ``span_seconds`` float64 ``(2,)``: from when to when it heard.

        Raises:
            SkipClip: the clip has no sound.
        """
        waveform = waveform_of(media, self.spec.name)
        length = round(CLIP_SECONDS * SAMPLE_RATE)
        start = self._start(len(waveform.data) - length, media.seed)
        heard = waveform.data[start : start + length]
        span = waveform.start_seconds + np.array([start, start + len(heard)]) / SAMPLE_RATE
        return {"log_mel": log_mel(np.resize(heard, length)), "span_seconds": np.maximum(span, 0.0)}

    def _start(self, spare: int, seed: int) -> int:
        """Where the crop of sound starts that has so many samples to spare."""
        if spare <= 0 or self.config.crop == "start":
            return 0
        if self.config.crop == "centre":
            return spare // 2
        return int(np.random.default_rng((seed, 0)).integers(spare + 1))

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit, or the tokenizer does not.
        """
        from avpipe.extract.encoders._device import ready

        if self._model is None:
            self._model = _random(self.seed) if self.files is None else _pretrained(self.files.files["weights"])
        model = self._model
        if self._tokenizer:
            words, vocabulary = tokenizer_at(self._tokenizer).get_vocab_size(), model.gpt.config.vocab_size
            if words != vocabulary:
                raise CheckpointError(
                    f"{self._tokenizer} knows {words} tokens, expected {vocabulary} as {self.config.weights} has; "
                    f"tokenizer={Config.model_fields['tokenizer'].default} is that of the published weights"
                )
        ready(model, device)
        writer: nn.Module = model.gpt
        writer.to(number_type(device, self.config.precision))
        if self.config.compile:  # the part whose shapes are always the same
            model.audio.compile()
        self._device = device

    def encode(self, batch: Sequence[Prepared]) -> list[Segments]:
        """One segment a clip."""
        captions = self._captions(np.stack([clip["log_mel"] for clip in batch]))
        return [
            Segments((self._segment(beam, *map(float, clip["span_seconds"])),))
            for beam, clip in zip(captions, batch, strict=True)
        ]

    def _captions(self, spectrograms: npt.NDArray[np.float32]) -> list[Beam]:
        """The best hypothesis about each of ``(B, frames, mels)``."""
        import torch

        from avpipe.extract.encoders._device import mixed_precision, upload
        from avpipe.extract.networks.clapcap import beam_search

        if self._model is None:
            raise RuntimeError("encode: called before load")
        with torch.inference_mode():
            with mixed_precision(self._device, self.config.precision):
                prefix = self._model(upload(spectrograms, self._device))
            found = beam_search(
                self._model.gpt,
                prefix.to(self._model.gpt.dtype),
                beams=self.config.beams,
                max_tokens=self.config.max_new_tokens,
                stop_token=self.stop_token,
                temperature=self.config.temperature,
            )
        return [beams[0] for beams in found]

    def _segment(self, beam: Beam, start_seconds: float, stop_seconds: float) -> Segment:
        return Segment(
            start_seconds=round(start_seconds, DIGITS),
            stop_seconds=round(stop_seconds, DIGITS),
            text=text_of(beam.tokens, self._tokenizer).capitalize(),
            score=round(beam.score, DIGITS),
        )


def log_mel(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The authors' spectrogram in dB, without a floor below its maximum: ``(num_samples // 320 + 1, 64)``."""
    decibel = 10 * slaney.log10_mel(
        samples, fft_size=FFT_SIZE, hop=HOP, sample_rate=FILTER_RATE, mels=MELS, low_hz=LOW_HZ, high_hz=HIGH_HZ
    )
    return decibel.astype(np.float32)


def _tokenizer(tokenizer: str, name: str) -> Path:
    return weights.resolve(tokenizer, {"tokenizer": ("tokenizer.json",)}, component=name, option="tokenizer").files[
        "tokenizer"
    ]


def _stop_token(tokenizer: Path | None) -> int:
    if tokenizer is None:
        return STOP_TOKEN
    first: int = tokenizer_at(tokenizer).encode(STOP_TEXT, add_special_tokens=False).ids[0]
    return first


def _random(seed: int) -> ClapCap:
    import torch

    from avpipe.extract.networks.clapcap import ClapCap, Sizes

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClapCap(Sizes())


def _pretrained(path: Path) -> ClapCap:
    """The network with the weights of a file in the authors' layout; every tensor must be there and fit."""
    from avpipe.extract.networks.clapcap import ClapCap, Sizes, our_names
    from avpipe.pipeline import checkpoints

    state = our_names(checkpoints.tensors(checkpoints.read(path), path))
    try:
        sizes = Sizes.of(state)
    except KeyError as missing:
        raise CheckpointError(f"{path} is no clapcap: it has no tensor {missing}") from None
    model = ClapCap(sizes)
    checkpoints.fill(model, state, path)
    return model
