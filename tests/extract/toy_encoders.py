"""Encoders that one can see through; worker and decoding processes import this file."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from avpipe.extract.encoder import Prepared, Request
from avpipe.extract.encoders._media import frames_of, segments_of, waveform_of
from avpipe.extract.media import AudioRequest, FrameRequest, Media, TextRequest
from avpipe.pipeline.features import Encoded, Features, FeatureSpec, Segment, Segments


class Toy:
    """Common to all: what was loaded where, and how often it was asked."""

    request: Request
    spec: FeatureSpec
    batch_size = 3

    def __init__(self) -> None:
        self.device = ""
        self.loads: list[str] = []

    def load(self, device: str) -> None:
        self.device = device
        self.loads.append(device)


class Brightness(Toy):
    """Mean brightness of four frames. Its rows also tell the size of their batch, so that another cut is seen."""

    def __init__(self, name: str = "brightness", seconds: float = 0.0, fault: str = "") -> None:
        super().__init__()
        self.seconds, self.fault = seconds, fault
        self.request = FrameRequest(sampling="uniform", count=4)
        self.spec = FeatureSpec(name=name, encoder="toy_brightness", modality="video", dim=2, dtype="float32")

    def prepare(self, media: Media) -> Prepared:
        frames = frames_of(media, self.spec.name)
        return {"data": frames.data.mean(axis=(1, 2, 3), dtype=np.float64), "pts_seconds": frames.pts_seconds}

    def encode(self, batch: Sequence[Prepared]) -> Sequence[Encoded]:
        time.sleep(self.seconds)
        if self.fault:
            import torch  # not in decoding processes

            kind = torch.OutOfMemoryError if "memory" in self.fault else RuntimeError
            raise kind(self.fault)
        rows = [np.stack([clip["data"], np.full(len(clip["data"]), len(batch))], axis=1) for clip in batch]
        return [
            Features(data=row.astype(np.float32), pts_seconds=clip["pts_seconds"].astype(np.float64))
            for row, clip in zip(rows, batch, strict=True)
        ]


class Describer(Toy):
    """Says how loud a clip is, in words."""

    def __init__(self, name: str = "words") -> None:
        super().__init__()
        self.request = AudioRequest(sample_rate=16000)
        self.spec = FeatureSpec(name=name, encoder="toy_describer", modality="text", dim=0, dtype="text")

    def prepare(self, media: Media) -> Prepared:
        waveform = waveform_of(media, self.spec.name)
        return {"level": np.array([np.abs(waveform.data).max()]), "seconds": np.array([len(waveform.data) / 16000])}

    def encode(self, batch: Sequence[Prepared]) -> Sequence[Encoded]:
        return [
            Segments(
                (
                    Segment(
                        start_seconds=0.0,
                        stop_seconds=float(clip["seconds"][0]),
                        text=f"a sound of {float(clip['level'][0]):.2f}",
                        flags={"batch": len(batch)},
                    ),
                )
            )
            for clip in batch
        ]


class Speller(Toy):
    """One row a letter of another set's text. Its spec must be told what it reads, as ``recipe.build`` tells it."""

    def __init__(self, of: FeatureSpec, name: str = "letters") -> None:
        super().__init__()
        self.request = TextRequest(of=of.name)
        self.spec = FeatureSpec(
            name=name,
            encoder="toy_speller",
            modality="text",
            dim=1,
            source={**of.to_json(), "fingerprint": of.fingerprint},
        )

    def prepare(self, media: Media) -> Prepared:
        return {"letters": np.frombuffer(segments_of(media, self.spec.name).text.encode(), np.uint8)}

    def encode(self, batch: Sequence[Prepared]) -> Sequence[Encoded]:
        return [
            Features(data=clip["letters"].astype(np.float32)[:, None], pts_seconds=np.zeros(len(clip["letters"])))
            for clip in batch
        ]
