"""Audio Spectrogram Transformer, through transformers.

Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021); authors' code YuanGongND/ast. Preprocessing
is that of transformers' ``ASTFeatureExtractor`` (which, unlike the authors, does not subtract the waveform's mean):
16 kHz, Kaldi filterbank (Hanning window, 25 ms every 10 ms, 128 mel bands), cut or filled with zeros to 1024 frames,
``(x + 4.2677393) / (2 * 4.5689974)``. A checkpoint's own ``preprocessor_config.json`` may say otherwise.

The network cuts this picture into patches of 16 x 16, one every 10 bands and every 10 frames: 12 x 101 for 1024 frames.
Its tokens are, in this order: CLS, distillation, then the patches of the lowest bands from the first to the last time
step, the next bands, and so on: 1214 tokens. Times therefore run from start to end once for each of the 12 bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract import fbank
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig
from avpipe.extract.encoders._media import waveform_of
from avpipe.extract.encoders._pretrained import network_of, pretrained
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.pipeline.pretrained import json_of

if TYPE_CHECKING:
    import torch

HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
SPECIAL_TOKENS = 2  # CLS and distillation
PARTS = {
    "config": ("config.json",),
    "preprocessor": ("preprocessor_config.json",),
    "weights": ("model.safetensors", "pytorch_model.bin"),
}


class Config(DeviceConfig):
    """Configuration of AST."""

    weights: str = "MIT/ast-finetuned-audioset-10-10-0.4593"
    """``org/name`` or ``org/name@revision`` on the Hub, a local folder, or ``random`` (``random:<seed>``) for tests and
    benchmarks."""

    tokens: Literal["all", "patches", "time", "cls", "mean"] = "all"
    """Rows of a clip, of the last hidden state. ``all``: CLS, distillation, patches; ``patches``: those alone;
    ``time``: the mean over the bands of each time step; ``cls``: the mean of CLS and distillation, which the authors
    classify; ``mean``: the mean patch."""

    padding: Literal["keep", "drop"] = "keep"
    """What to do with the time steps behind the end of the sound. ``keep``: every clip has all rows, as the authors'
    network gives them; ``drop``: they are left out (the network has seen the zeros all the same)."""

    batch_size: int = Field(default=16, ge=1)
    """Clips at once. Changes no feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A checkpoint's spectrogram and patches.

    Attributes:
        sample_rate: in Hz.
        mels: bands of the spectrogram.
        max_frames: its length.
        normalise: whether ``mean`` and ``std`` are used.
        mean: subtracted.
        std: half of what is divided by.
        patch: side of a patch, in bands and frames.
        mel_stride: from patch to patch, in bands.
        time_stride: from patch to patch, in frames.
        dim: width of a token.
    """

    sample_rate: int
    mels: int
    max_frames: int
    normalise: bool
    mean: float
    std: float
    patch: int
    mel_stride: int
    time_stride: int
    dim: int

    @property
    def mel_steps(self) -> int:
        """Patches over the bands."""
        return (self.mels - self.patch) // self.mel_stride + 1

    @property
    def time_steps(self) -> int:
        """Patches over time."""
        return (self.max_frames - self.patch) // self.time_stride + 1

    @property
    def max_seconds(self) -> float:
        """Sound that the spectrogram sees."""
        return (self.max_frames - 1) * HOP_SECONDS + WINDOW_SECONDS

    def scaled(self, energy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised log energies."""
        return (energy - np.float32(self.mean)) / np.float32(2 * self.std) if self.normalise else energy

    def time_step_seconds(self) -> npt.NDArray[np.float64]:
        """``(time_steps,)``: the middle of what the frames of each time step hear."""
        first = np.arange(self.time_steps, dtype=np.float64) * self.time_stride
        seconds: npt.NDArray[np.float64] = (first + (self.patch - 1) / 2) * HOP_SECONDS + WINDOW_SECONDS / 2
        return seconds


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        seed = weights.random_seed(config.weights, name)
        self.seed = seed or 0
        self.files = weights.resolve(config.weights, PARTS, component=name) if seed is None else None
        self.geometry = _geometry(self.files)
        rows = {
            "all": "CLS, distillation, then patches, band by band from low to high",
            "patches": "patches, band by band from low to high",
            "time": "one a time step",
            "cls": "one a clip",
            "mean": "one a clip",
        }
        self.spec = FeatureSpec(
            name=name,
            encoder="ast",
            modality="audio",
            dim=self.geometry.dim,
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=weights.random_spec(self.seed) if self.files is None else self.files.to_spec(),
            preprocessing={
                "filterbank": "kaldi",
                "window": "hanning",
                "sample_rate": self.geometry.sample_rate,
                "mels": self.geometry.mels,
                "max_frames": self.geometry.max_frames,
                "normalise": self.geometry.normalise,
                "mean": self.geometry.mean,
                "std": self.geometry.std,
                "network": network_of(json_of(self.files.files["config"])) if self.files else "none",
            },
            clock={
                "rows": rows[config.tokens],
                "hop_seconds": self.geometry.time_stride * HOP_SECONDS,
                "window_seconds": (self.geometry.patch - 1) * HOP_SECONDS + WINDOW_SECONDS,
                "mel_steps": self.geometry.mel_steps,
                "time_steps": self.geometry.time_steps,
                "max_seconds": self.geometry.max_seconds,
            },
        )
        self._model: torch.nn.Module | None = None
        self._device = "cpu"

    @property
    def request(self) -> AudioRequest:
        """The waveform it wants."""
        return AudioRequest(sample_rate=self.geometry.sample_rate, max_seconds=self.geometry.max_seconds)

    def prepare(self, media: Media) -> Prepared:
        """``spectrogram`` float32 ``(num_frames, mels)``, normalised, not yet filled up; ``start_seconds`` ``(1,)``.

        Raises:
            SkipClip: the clip has no sound.
        """
        waveform = waveform_of(media, self.spec.name, self.geometry.max_seconds)
        energy = fbank.log_mel(waveform.data, sample_rate=self.geometry.sample_rate, mels=self.geometry.mels)
        return {
            "spectrogram": self.geometry.scaled(energy[: self.geometry.max_frames]),
            "start_seconds": np.array([waveform.start_seconds]),
        }

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the model.
        """
        from avpipe.extract.encoders._device import ready

        model = self._model or (_random(self.seed) if self.files is None else _pretrained(self.files))
        self._model, self._device = ready(model, device, compile=self.config.compile), device

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Tokens of each clip, float32."""
        hidden = self._forward(np.stack([self._filled_up(clip["spectrogram"]) for clip in batch]))
        return [
            self._chosen(tokens, len(clip["spectrogram"]), float(clip["start_seconds"][0]))
            for tokens, clip in zip(hidden, batch, strict=True)
        ]

    def _filled_up(self, spectrogram: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Zeros before normalisation, behind the end of the sound."""
        zero = self.geometry.scaled(np.zeros(1, dtype=np.float32))[0]
        behind = self.geometry.max_frames - len(spectrogram)
        return np.pad(spectrogram, ((0, behind), (0, 0)), constant_values=zero)

    def _forward(self, spectrograms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``(B, max_frames, mels)`` -> last hidden state ``(B, 2 + mel_steps * time_steps, dim)``."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, upload

        if self._model is None:
            raise RuntimeError("encode: called before load")
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            hidden = self._model(upload(spectrograms, self._device)).last_hidden_state
            return download(hidden)

    def _chosen(self, tokens: npt.NDArray[np.float32], num_frames: int, start_seconds: float) -> Features:
        """The rows that are wanted of one clip, ``(tokens, dim)``, and their times."""
        geometry = self.geometry
        special, patches = tokens[:SPECIAL_TOKENS], tokens[SPECIAL_TOKENS:]
        patches = patches.reshape(geometry.mel_steps, geometry.time_steps, -1)
        seconds = geometry.time_step_seconds()
        if self.config.padding == "drop":
            heard = -(-num_frames // geometry.time_stride)  # steps whose first frame has sound
            patches, seconds = patches[:, :heard], seconds[:heard]
        middle = np.array([((num_frames - 1) * HOP_SECONDS + WINDOW_SECONDS) / 2])
        every = np.tile(seconds, geometry.mel_steps)
        flat = patches.reshape(-1, patches.shape[-1])
        data, pts = {
            "all": (np.concatenate([special, flat]), np.concatenate([middle, middle, every])),
            "patches": (flat, every),
            "time": (patches.mean(axis=0), seconds),
            "cls": (special.mean(axis=0, keepdims=True), middle),
            "mean": (flat.mean(axis=0, keepdims=True), middle),
        }[self.config.tokens]
        return Features(data=data, pts_seconds=start_seconds + pts)


def _geometry(files: weights.WeightFiles | None) -> Geometry:
    """From a checkpoint's two JSON files; AudioSet's (the classes' defaults) for what they leave out."""
    from transformers import ASTConfig

    network = ASTConfig() if files is None else ASTConfig(**json_of(files.files["config"]))
    front = {} if files is None else json_of(files.files["preprocessor"])
    geometry = Geometry(
        sample_rate=front.get("sampling_rate", 16000),
        mels=front.get("num_mel_bins", 128),
        max_frames=front.get("max_length", 1024),
        normalise=front.get("do_normalize", True),
        mean=front.get("mean", -4.2677393),
        std=front.get("std", 4.5689974),
        patch=cast(int, network.patch_size),
        mel_stride=network.frequency_stride,
        time_stride=network.time_stride,
        dim=network.hidden_size,
    )
    if (network.num_mel_bins, network.max_length) != (geometry.mels, geometry.max_frames):
        raise CheckpointError(
            f"{files.id if files else 'random'}: preprocessor_config.json makes spectrograms of {geometry.max_frames} "
            f"frames x {geometry.mels} bands, config.json expects {network.max_length} x {network.num_mel_bins}"
        )
    return geometry


def _random(seed: int) -> torch.nn.Module:
    from transformers import ASTConfig, ASTModel

    from avpipe.extract.encoders._device import seeded

    with seeded(seed):
        model: torch.nn.Module = ASTModel(ASTConfig())
    return model


def _pretrained(files: weights.WeightFiles) -> torch.nn.Module:
    """The network with a checkpoint's weights."""
    from transformers import ASTModel

    model: torch.nn.Module = pretrained(ASTModel, files.files["weights"], what="an AST")
    return model
