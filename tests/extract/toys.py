"""Hand-made clips, and networks so small that they are made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avpipe.extract.media import Frames, Media, Waveform
from avpipe.pipeline.features import Segment, Segments

SAMPLE_RATE = 16000

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
}
"""An open_clip model: 4 x 4 patches and CLS."""

TINY_TIMM = {
    **TINY_CLIP,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
    },
}
"""A tower from timm: 10 x 10 patches and CLS."""

TINY_CNN = {**TINY_CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
"""A CLIP with a ResNet for a tower."""

TINY_AST = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_mel_bins": 128,
    "max_length": 256,
}
"""Of 2.6 s of sound: 12 x 25 patches."""


def frames(
    count: int, *, height: int = 36, width: int = 48, seconds: float = 4.0, seed: int = 0, views: int = 1
) -> Frames:
    """Noise, at equal distances in time; the same frames in every view."""
    data = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    pts_seconds = np.arange(count) * seconds / count
    return Frames(data=np.concatenate([data] * views), pts_seconds=np.concatenate([pts_seconds] * views))


def text(*sentences: str) -> Segments:
    """Sentences of one second each."""
    return Segments(
        tuple(
            Segment(start_seconds=float(i), stop_seconds=i + 1.0, text=sentence) for i, sentence in enumerate(sentences)
        )
    )


def noise(seconds: float, *, level: float = 0.1, seed: int = 0) -> npt.NDArray[np.float32]:
    """White noise."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return (level * samples).astype(np.float32)


def tone(seconds: float, *, hertz: float = 1000.0, level: float = 0.5) -> npt.NDArray[np.float32]:
    """A sine."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(
        np.float32
    )


def clip(
    name: str,
    *,
    video: Frames | None = None,
    audio: npt.NDArray[np.float32] | None = None,
    text: Segments | None = None,
    sample_rate: int = SAMPLE_RATE,
    start_seconds: float = 0.0,
    duration_seconds: float = 4.0,
) -> Media:
    """A decoded clip for the feature set ``name``. Sound is taken for sound at ``sample_rate``, whatever it was."""
    waveform = None if audio is None else Waveform(data=audio, sample_rate=sample_rate, start_seconds=start_seconds)
    return Media(
        frames={name: video} if video else {},
        waveforms={name: waveform} if waveform else {},
        texts={name: text} if text is not None else {},
        duration_seconds=duration_seconds,
    )


def open_clip_model(folder: Path, name: str, described: dict[str, Any]) -> str:
    """Make a model known to open_clip by ``name``; returns the name."""
    import open_clip

    path = folder / f"{name}.json"
    path.write_text(json.dumps(described), encoding="utf-8")
    open_clip.add_model_config(path)
    return name


def ast_folder(folder: Path, *, leave_out: Sequence[str] = (), seed: int = 0, **network: Any) -> Path:
    """A checkpoint as the public ones: a classifier around the network, under the names of old files."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = ASTForAudioClassification(ASTConfig(**{**TINY_AST, **network}, num_labels=3))
    with torch.no_grad():
        for parameter in model.parameters():  # none at its initial value: no zero hides a mistake
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=model.config.max_length).save_pretrained(folder)
    for name in leave_out:
        (folder / name).unlink()
    return folder
