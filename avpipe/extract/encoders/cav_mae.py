"""CAV-MAE's audio or video stream, up to any layer: what AVCap and others train on top of.

Gong et al. (ICLR 2023), authors' code YuanGongND/cav-mae; Kim et al., "AVCap" (Interspeech 2024), authors' code
JongSuk1/AVCap; the network is our own: :mod:`avpipe.extract.networks.cav_mae`. One feature set holds one stream; AVCap
wants two.

Audio is preprocessed as the authors do: 16 kHz, first channel, mean subtracted, Kaldi filterbank (Hanning window, 25 ms
every 10 ms, 128 mel bands), cut or filled with zeros to 1024 frames, and then normalised. 512 tokens, band by band from
low to high: times run from start to end once for each of the 8 bands.

Frames are resized to 224 pixels (bicubic, Pillow), the middle is cut out, ImageNet's mean and deviation; with several
frames, patches are tubes of 2 frames x 16 x 16 pixels. 196 tokens a tube, row by row, tube by tube; each has the time
between its two frames.

Deviations: the authors' frames come out of JPEG files of 224 pixels that an earlier, bilinear resize made, and lie
one frame before the one that is meant (they set OpenCV's position to the number before it). AVCap's augmentation of
frames is a random start alone (``stretch:20``); augmented views here are cropped and mirrored as well, as all of this
package's. Where sound cannot be loaded, AVCap takes a spectrogram of 0.01 everywhere; here the clip is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from avpipe.extract import fbank
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig, FrameConfig, Sampling
from avpipe.extract.encoders._frames import FRAMES_AT_ONCE, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from avpipe.extract.encoders._media import pictures_of, waveform_of
from avpipe.extract.media import AudioRequest, FrameRequest, Media
from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.errors import MissingWeightsError, UsageError
from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    from avpipe.extract.networks.cav_mae import CavMaeConfig, Trunk

SAMPLE_RATE, MELS, AUDIO_FRAMES = 16000, 128, 1024
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
MAX_SECONDS = (AUDIO_FRAMES - 1) * HOP_SECONDS + WINDOW_SECONDS
PATCH, TUBE = 16, 2
STATISTICS = {"audiocaps": (-4.346, 4.332), "audioset": (-5.081, 4.4849)}
PICTURE = Preprocessing(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
FILE_NAMES = ("cav-mae-scale++.pth", "audio_model.21.pth")
README = "https://github.com/YuanGongND/cav-mae"


class Config(FrameConfig, DeviceConfig):
    """Configuration of a stream."""

    stream: Literal["audio", "video"] = "audio"
    """Which stream."""

    weights: str = "cav-mae-scale++.pth"
    """A file of the authors (pre-trained, fine-tuned, audio only) or of AVCap (whose encoder is taken), a local folder
    or a Hub repository (``org/name`` or ``org/name@revision``) that holds ``cav-mae-scale++.pth`` or, as the authors
    call it, ``audio_model.21.pth``; or ``random`` (``random:<seed>``) for tests and benchmarks."""

    cut: int = Field(default=11, ge=0)
    """Layers to run: the features are what goes into layer ``cut``. 11 are all of the stream's own: what AVCap's joint
    layer takes in. 12 are all layers, the joint one with the stream's own norms: CAV-MAE's own features, as its authors
    use them for retrieval and probes. 0: patches and positions alone."""

    tokens: Literal["all", "mean"] = "all"
    """Rows of a clip (and view): ``all``, or the ``mean`` of all, which the authors classify. There is no CLS."""

    stats: Literal["audiocaps", "audioset"] = "audiocaps"
    """Mean and deviation of log energies: ``audiocaps`` is AVCap's, ``audioset`` CAV-MAE's."""

    frames: Literal[1, 2, 4, 8, 18, 32] = 4
    """Frames a clip. 1: a picture, as CAV-MAE was trained; else tubes, as AVCap has them: 4 in its README, 8 in its
    released file. Other numbers AVCap has no positions for."""

    sampling: Sampling = "middle:20"
    """How frames are chosen. ``middle:20``: neighbours in the middle of 20 frames that lie evenly in the first 10
    seconds (AVCap; CAV-MAE takes 1 of 10); or any policy of ``avpipe.extract.sampling``."""

    view_sampling: Sampling = "stretch:20"
    """How the frames of augmented views are chosen: ``stretch:20`` begins at a random one of the 20 (AVCap in
    training)."""

    video_init: Literal["inflate", "random"] = "inflate"
    """Where the patches and positions of several frames come from if the file was trained on one. ``inflate``: the
    file's, so that a still picture is seen as before; ``random``: AVCap's initial values, made to be trained further
    (patches at random; positions of 4 frames at random, else sines)."""

    batch_size: int = Field(default=16, ge=1)
    """Clips at once. Changes no feature."""

    @model_validator(mode="after")
    def _sound_has_no_views(self) -> Config:
        if self.stream == "audio" and self.views:
            raise ValueError(f"views: expected 0 with stream: audio, because sound is not augmented; got {self.views}")
        return self


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        self.is_audio = config.stream == "audio"
        self.mean, self.std = STATISTICS[config.stats]
        seed = weights.random_seed(config.weights, name)
        self.seed = seed or 0
        self.files = _found(config.weights, name) if seed is None else None
        network = _described(self.files, config)
        depth = network.layers + network.joint_layers
        if config.cut > depth:
            raise UsageError(
                f"{name}.cut: expected at most {depth} ({network.layers} layers of its own and {network.joint_layers} "
                f"joint ones), got {config.cut}"
            )
        steps = max(1, config.frames // TUBE)
        self.spec = FeatureSpec(
            name=name,
            encoder="cav_mae",
            modality=config.stream,
            dim=network.dim,
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=weights.random_spec(self.seed) if self.files is None else self.files.to_spec(),
            preprocessing=self._sound() if self.is_audio else PICTURE.to_json(),
            clock=self._audio_clock() if self.is_audio else self._video_clock(steps),
            views=1 + config.views,
        )
        self._model: Trunk | None = None
        self._device = "cpu"

    def _sound(self) -> dict[str, object]:
        return {
            "filterbank": "kaldi",
            "window": "hanning",
            "sample_rate": SAMPLE_RATE,
            "mels": MELS,
            "max_frames": AUDIO_FRAMES,
            "mean": self.mean,
            "std": self.std,
        }

    def _audio_clock(self) -> dict[str, object]:
        return {
            "rows": "patches, band by band from low to high" if self.config.tokens == "all" else "one a clip",
            "hop_seconds": PATCH * HOP_SECONDS,
            "window_seconds": (PATCH - 1) * HOP_SECONDS + WINDOW_SECONDS,
            "mel_steps": MELS // PATCH,
            "time_steps": AUDIO_FRAMES // PATCH,
            "max_seconds": MAX_SECONDS,
        }

    def _video_clock(self, steps: int) -> dict[str, object]:
        return {
            "rows": "patches row by row, time step by time step" if self.config.tokens == "all" else "one a clip",
            "sampling": self.config.sampling,
            "frames": self.config.frames,
            "time_steps": steps,
        }

    @property
    def request(self) -> AudioRequest | FrameRequest:
        """The waveform or the frames it wants."""
        if self.is_audio:
            return AudioRequest(sample_rate=SAMPLE_RATE, downmix="first", max_seconds=MAX_SECONDS)
        return self.config.request()

    def prepare(self, media: Media) -> Prepared:
        """Of sound, ``spectrogram`` float32 ``(num_frames, mels)``, normalised, not yet filled up, and
        ``start_seconds`` ``(1,)``. Of video, ``pixels`` uint8 ``(views * frames, height, width, 3)`` and
        ``pts_seconds``.

        Raises:
            SkipClip: the clip lacks the modality.
            ClipError: a frame is too narrow to be resized.
        """
        if self.is_audio:
            waveform = waveform_of(media, self.spec.name, MAX_SECONDS)
            samples = waveform.data - waveform.data.mean(dtype=np.float64)
            energy = fbank.log_mel(samples, sample_rate=SAMPLE_RATE, mels=MELS)
            return {
                "spectrogram": self._normalised(energy[:AUDIO_FRAMES]),
                "start_seconds": np.array([waveform.start_seconds]),
            }
        found = pictures_of(media, self.spec.name, self.config.request(), PICTURE.fit, PICTURE.size)
        per_view = len(found.pixels) // self.spec.views
        chosen = np.arange(self.config.frames) * per_view // self.config.frames  # fewer frames than asked for repeat
        every = (np.arange(self.spec.views)[:, None] * per_view + chosen).ravel()
        return {"pixels": found.pixels[every], "pts_seconds": found.pts_seconds[every]}

    def _normalised(self, energy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (energy - np.float32(self.mean)) / np.float32(self.std)

    def load(self, device: str) -> None:
        """Build the layers that run and read their weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the network.
        """
        from avpipe.extract.encoders._device import ready

        model = self._model or _network(self.files, self.seed, self.config)
        ready(model, device, compile=self.config.compile)
        self._model, self._device = model, device

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Tokens of each clip, float32."""
        return self._encode_audio(batch) if self.is_audio else self._encode_video(batch)

    def _encode_audio(self, batch: Sequence[Prepared]) -> list[Features]:
        zero = self._normalised(np.zeros(1, dtype=np.float32))[0]  # filled up before it is normalised
        spectrograms = np.full((len(batch), AUDIO_FRAMES, MELS), zero, dtype=np.float32)
        for row, clip in zip(spectrograms, batch, strict=True):
            row[: len(clip["spectrogram"])] = clip["spectrogram"]
        features = []
        for tokens, clip in zip(self._forward(spectrograms), batch, strict=True):
            start = float(clip["start_seconds"][0])
            if self.config.tokens == "mean":
                heard = (len(clip["spectrogram"]) - 1) * HOP_SECONDS + WINDOW_SECONDS
                features.append(_mean(tokens, start + heard / 2))
            else:
                pts = start + np.tile(audio_step_seconds(), MELS // PATCH)
                features.append(Features(data=tokens, pts_seconds=pts))
        return features

    def _encode_video(self, batch: Sequence[Prepared]) -> list[Features]:
        frames, views = self.config.frames, self.spec.views
        pixels = np.concatenate([clip["pixels"] for clip in batch])
        pixels = pixels.reshape(-1, frames, *pixels.shape[1:])  # (clips * views, T, height, width, 3)
        at_once = max(1, FRAMES_AT_ONCE // frames)
        tokens = np.concatenate([self._forward(pixels[i : i + at_once]) for i in range(0, len(pixels), at_once)])
        features = []
        for clip, own in zip(batch, np.split(tokens, len(batch)), strict=True):  # (views, N, dim)
            frame_pts: npt.NDArray[np.float64] = clip["pts_seconds"].astype(np.float64)
            pts = frame_pts.reshape(views, -1, min(TUBE, frames)).mean(axis=2)  # (views, time steps)
            if self.config.tokens == "mean":
                features.append(Features(data=own.mean(axis=1), pts_seconds=pts.mean(axis=1)))
            else:
                rows = own.shape[1] // pts.shape[1]
                features.append(Features(data=own.reshape(-1, own.shape[-1]), pts_seconds=np.repeat(pts.ravel(), rows)))
        return features

    def _forward(self, inputs: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Spectrograms ``(B, frames, mels)``, or pixels ``(B, T, height, width, 3)`` -> ``(B, N, dim)``."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, normalise, upload

        if self._model is None:
            raise RuntimeError("encode: called before load")
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            values = upload(inputs, self._device)
            if not self.is_audio:
                pictures = normalise(values.flatten(0, 1), PICTURE.mean, PICTURE.std)  # (B * T, 3, height, width)
                clips = pictures.reshape(*values.shape[:2], *pictures.shape[1:]).transpose(1, 2)
                values = pictures if self.config.frames == 1 else clips.contiguous()  # (B, 3, T, height, width)
            return download(self._model(values))


def audio_step_seconds() -> npt.NDArray[np.float64]:
    """``(64,)``: the middle of what the frames of each time step hear."""
    middle_frame = np.arange(AUDIO_FRAMES // PATCH, dtype=np.float64) * PATCH + (PATCH - 1) / 2
    seconds: npt.NDArray[np.float64] = middle_frame * HOP_SECONDS + WINDOW_SECONDS / 2
    return seconds


def _mean(tokens: npt.NDArray[np.float32], pts_seconds: float) -> Features:
    return Features(data=tokens.mean(axis=0, keepdims=True), pts_seconds=np.array([pts_seconds]))


def _found(wanted: str, encoder: str) -> weights.WeightFiles:
    try:
        return weights.find(wanted, FILE_NAMES, component=encoder)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}\n  - The authors' files: {README}") from None


def _described(files: weights.WeightFiles | None, config: Config) -> CavMaeConfig:
    """What network a file holds."""
    from avpipe.extract.networks.cav_mae import CavMaeConfig, describe, state_of

    if files is None:
        return CavMaeConfig(frames=config.frames)
    path = files.files["weights"]
    state = state_of(checkpoints.read(path), path)
    return describe(state, "a" if config.stream == "audio" else "v", path, frames=config.frames)


def _network(files: weights.WeightFiles | None, seed: int, config: Config) -> Trunk:
    """The layers that run, with their weights or with random ones."""
    from avpipe.extract.encoders._device import seeded
    from avpipe.extract.networks import cav_mae

    described = _described(files, config)
    with seeded(seed):
        trunk = cav_mae.Trunk(described, "a" if config.stream == "audio" else "v", config.cut)
    if files is None:
        return trunk
    path = files.files["weights"]
    state, made = cav_mae.state_of(checkpoints.read(path), path), ""
    if config.stream == "video" and config.frames > 1 and cav_mae.is_flat(state):
        if config.video_init == "inflate":
            state = cav_mae.inflated(state, config.frames)
        else:
            state, made = cav_mae.without_patches(state), cav_mae.VISUAL_INPUT
    cav_mae.fill(trunk, state, path, made=made)
    return trunk
