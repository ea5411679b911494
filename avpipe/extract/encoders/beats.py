"""BEATs, Audio Pre-Training with Acoustic Tokenizers.

Chen et al. (ICML 2023); authors' code microsoft/unilm ``beats/``; the network is our own:
:mod:`avpipe.extract.networks.beats`. Preprocessing is the authors': 16 kHz, samples times 2^15, Kaldi filterbank (Povey
window, 25 ms every 10 ms, 128 mel bands), ``(x - 15.41663) / (2 * 6.55582)``.

As in multi-modal BLIP-2 (ABrimont/Multi-modal-BLIP-2), every clip's *waveform* is cut or filled with zeros to one
length, ``max_seconds``, and a mask tells the network which tokens are padding: what comes out does not hang on the
other clips of a batch. Two deviations from that system: it adds noise of deviation 1e-6 to spectrograms (nothing here
needs it: silence gives finite tokens), and runs this network in float32 (``precision: float32``).

The network cuts the spectrogram into patches of 16 bands and 16 frames. Its tokens are time-major: the 8 patches of the
first 160 ms from low to high, those of the next, and so on; each has the time of the middle of its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract import fbank
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig
from avpipe.extract.encoders._media import waveform_of
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.errors import CheckpointError, MissingWeightsError
from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    from avpipe.extract.networks.beats import Beats, BeatsConfig

SAMPLE_RATE, MELS = 16000, 128
WINDOW, HOP = 400, 160  # samples
GAIN = 2**15
MEAN, STD = 15.41663, 6.55582
FILE_NAMES = ("BEATs_iter3_plus_AS2M.pt",)
LARGEST_PATCH = 16
SHORTEST_SECONDS = 0.2  # has one patch
README = "https://github.com/microsoft/unilm/tree/master/beats"


class Config(DeviceConfig):
    """Configuration of BEATs."""

    weights: str = "BEATs_iter3_plus_AS2M.pt"
    """A file of the authors (pre-trained or fine-tuned, any iteration), a local folder or a Hub repository
    (``org/name`` or ``org/name@revision``) that holds ``BEATs_iter3_plus_AS2M.pt``, or ``random`` (``random:<seed>``)
    for tests and benchmarks. The authors publish no repository on the Hub: their README links the files."""

    max_seconds: float = Field(default=10.0, ge=SHORTEST_SECONDS)
    """The length that sound is cut or filled up to. Multi-modal BLIP-2 takes 160125 samples of AudioCaps and VATEX (496
    tokens, and the same numbers as 10.0 s), and 320250 of MSR-VTT: 20.015625 s, 1000 tokens."""

    tokens: Literal["all", "time", "mean"] = "all"
    """Rows of a clip, of the last layer. ``all``: 8 every 160 ms; ``time``: the mean over the bands of each 160 ms;
    ``mean``: the mean of all."""

    padding: Literal["keep", "drop"] = "drop"
    """What to do with tokens that the network takes for padding. ``drop``: they are left out, also of means; ``keep``:
    every clip has all rows, and those of padding mean nothing."""

    batch_size: int = Field(default=16, ge=1)
    """Clips at once. Changes no feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes of a clip of ``max_seconds``.

    Attributes:
        max_samples: what the waveform is filled up to.
        patch: side of a patch, in bands and frames.
        dim: width of a token.
    """

    max_samples: int
    patch: int
    dim: int

    @property
    def max_frames(self) -> int:
        """Of the spectrogram."""
        return 1 + (self.max_samples - WINDOW) // HOP

    @property
    def mel_steps(self) -> int:
        """Tokens of a time step."""
        return MELS // self.patch

    @property
    def time_steps(self) -> int:
        """Of a whole clip."""
        return self.max_frames // self.patch

    def real_tokens(self, num_samples: int) -> int:
        """How many tokens of a clip are no padding: :func:`~avpipe.extract.networks.beats.token_padding` for a mask
        whose padding is at the end.
        """
        tokens = self.time_steps * self.mel_steps
        real = min(num_samples, self.max_samples)
        for length, count in ((self.max_samples, self.max_frames), (self.max_frames, tokens)):
            real = min(-(-real // (length // count)), count)
        return real

    def step_seconds(self) -> npt.NDArray[np.float64]:
        """``(time_steps,)``: the middle of what the frames of each time step hear."""
        middle_frame = np.arange(self.time_steps, dtype=np.float64) * self.patch + (self.patch - 1) / 2
        seconds: npt.NDArray[np.float64] = (middle_frame * HOP + WINDOW / 2) / SAMPLE_RATE
        return seconds


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        seed = weights.random_seed(config.weights, name)
        self.seed = seed or 0
        self.files = _found(config.weights, name) if seed is None else None
        network = _described(self.files)
        self.geometry = Geometry(
            max_samples=round(config.max_seconds * SAMPLE_RATE),
            patch=network.input_patch_size,
            dim=network.encoder_embed_dim,
        )
        rows = {
            "all": f"{self.geometry.mel_steps} a time step, from low to high, step by step",
            "time": "one a time step",
            "mean": "one a clip",
        }
        self.spec = FeatureSpec(
            name=name,
            encoder="beats",
            modality="audio",
            dim=self.geometry.dim,
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=weights.random_spec(self.seed) if self.files is None else self.files.to_spec(),
            preprocessing={
                "filterbank": "kaldi",
                "window": "povey",
                "sample_rate": SAMPLE_RATE,
                "mels": MELS,
                "gain": GAIN,
                "max_samples": self.geometry.max_samples,
                "mean": MEAN,
                "std": STD,
            },
            clock={
                "rows": rows[config.tokens],
                "hop_seconds": self.geometry.patch * HOP / SAMPLE_RATE,
                "window_seconds": ((self.geometry.patch - 1) * HOP + WINDOW) / SAMPLE_RATE,
                "mel_steps": self.geometry.mel_steps,
                "time_steps": self.geometry.time_steps,
                "max_seconds": config.max_seconds,
            },
        )
        self._model: Beats | None = None
        self._device = "cpu"

    @property
    def request(self) -> AudioRequest:
        """The waveform it wants."""
        return AudioRequest(sample_rate=SAMPLE_RATE, max_seconds=self.config.max_seconds)

    def prepare(self, media: Media) -> Prepared:
        """``spectrogram`` float32 ``(num_frames, mels)``, normalised: the frames that hear anything of the clip; how
        many tokens are no padding, ``num_tokens`` ``(1,)``; ``start_seconds`` ``(1,)``.

        Raises:
            SkipClip: the clip has no sound.
        """
        waveform = waveform_of(media, self.spec.name, self.config.max_seconds)
        samples = waveform.data * np.float32(GAIN)
        frames = min(-(-len(samples) // HOP), self.geometry.max_frames)
        behind = max(0, (frames - 1) * HOP + WINDOW - len(samples))
        energy = fbank.log_mel(np.pad(samples, (0, behind)), sample_rate=SAMPLE_RATE, mels=MELS, window="povey")
        return {
            "spectrogram": normalised(energy[:frames]),
            "num_tokens": np.array([self.geometry.real_tokens(len(samples))]),
            "start_seconds": np.array([waveform.start_seconds]),
        }

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the network.
        """
        from avpipe.extract.encoders._device import ready

        model = self._model or _network(self.files, self.seed)
        ready(model, device, compile=self.config.compile)
        self._model, self._device = model, device

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Tokens of each clip, float32."""
        geometry = self.geometry
        real = np.array([int(clip["num_tokens"][0]) for clip in batch])
        # No token looks at padding. Time steps that are padding in all clips of the batch need not be computed then.
        steps = -(-int(real.max()) // geometry.mel_steps) if self.config.padding == "drop" else geometry.time_steps
        spectrograms = np.full((len(batch), steps * geometry.patch, MELS), silence(), dtype=np.float32)
        for row, clip in zip(spectrograms, batch, strict=True):
            heard = clip["spectrogram"][: len(row)]
            row[: len(heard)] = heard
        padding = np.arange(steps * geometry.mel_steps) >= real[:, None]
        return [
            self._chosen(tokens, int(count), float(clip["start_seconds"][0]))
            for tokens, count, clip in zip(self._forward(spectrograms, padding), real, batch, strict=True)
        ]

    def _forward(
        self, spectrograms: npt.NDArray[np.float32], padding: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """``(B, F, mels)`` and ``(B, T)`` -> ``(B, T, dim)``."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, upload

        if self._model is None:
            raise RuntimeError("encode: called before load")
        mask = upload(padding, self._device) if padding.any() else None
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            return download(self._model(upload(spectrograms, self._device), mask))

    def _chosen(self, tokens: npt.NDArray[np.float32], real: int, start_seconds: float) -> Features:
        """The rows that are wanted of one clip, of its tokens ``(T, dim)``, and their times."""
        if self.config.padding == "drop":
            tokens = tokens[:real]
        step = np.arange(len(tokens)) // self.geometry.mel_steps
        pts = start_seconds + self.geometry.step_seconds()[step]
        if self.config.tokens == "time":
            first = np.arange(0, len(tokens), self.geometry.mel_steps)  # of each step
            counts = np.diff(first, append=len(tokens)).astype(np.float32)
            return Features(data=np.add.reduceat(tokens, first) / counts[:, None], pts_seconds=pts[first])
        if self.config.tokens == "mean":
            middle = start_seconds + (self.geometry.step_seconds()[: step[real - 1] + 1]).mean(keepdims=True)
            return Features(data=tokens.mean(axis=0, keepdims=True), pts_seconds=middle)
        return Features(data=tokens, pts_seconds=pts)


def normalised(energy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log energies as the network wants them."""
    return (energy - np.float32(MEAN)) / np.float32(2 * STD)


def silence() -> np.float32:
    """What a frame of zeros is, everywhere."""
    floor = np.log(np.array([fbank.KALDI_FLOOR])).astype(np.float32)
    return np.float32(normalised(floor)[0])


def _found(wanted: str, encoder: str) -> weights.WeightFiles:
    try:
        return weights.find(wanted, FILE_NAMES, component=encoder)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}\n  - The authors' files: {README}") from None


def _described(files: weights.WeightFiles | None) -> BeatsConfig:
    """What network a file holds."""
    from avpipe.extract.networks.beats import ITER3_PLUS, BeatsConfig

    if files is None:
        return ITER3_PLUS
    path = files.files["weights"]
    network = BeatsConfig.of_file(checkpoints.read(path), path)
    if MELS % network.input_patch_size or network.input_patch_size > LARGEST_PATCH:
        raise CheckpointError(f"{path}: cfg: input_patch_size: expected 8 or 16, got {network.input_patch_size}")
    return network


def _network(files: weights.WeightFiles | None, seed: int) -> Beats:
    """With its weights, or with random ones."""
    from avpipe.extract.encoders._device import seeded
    from avpipe.extract.networks.beats import ITER3_PLUS, Beats, BeatsConfig, fill

    if files is None:
        with seeded(seed):
            return Beats(ITER3_PLUS)
    path = files.files["weights"]
    content = checkpoints.read(path)
    network = Beats(BeatsConfig.of_file(content, path))
    fill(network, checkpoints.tensors(content, path), path)
    return network
