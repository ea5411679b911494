"""What an extraction will cost, measured on a sample of its clips before anything is written."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avpipe.data_manifests.manifest import Manifest
from avpipe.extract.decoding import DecodeJob, DecodeWork
from avpipe.extract.encoder import Encoder, Prepared
from avpipe.extract.fetch import Fetcher
from avpipe.extract.worker import Setting, prepare_text
from avpipe.pipeline.errors import ClipError, DataError
from avpipe.pipeline.features import Encoded, FeatureSpec, Outcome, Segments
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.sandbox import DecodePool

SAMPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What an extraction will cost.

    Attributes:
        clips: in the manifest.
        sampled: clips that were measured.
        failed: of those, how many could not be decoded.
        workers: processes with a device each.
        decoders: decoding processes of each.
        decode_seconds: per clip, in one decoding process.
        encode_seconds: per clip, for each feature set, on one device.
        bytes: for each feature set, of the whole dataset.
        free_bytes: on the disk that the features go to; ``None`` for remote storage.
    """

    clips: int
    sampled: int
    failed: int
    workers: int
    decoders: int
    decode_seconds: float
    encode_seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    free_bytes: int | None

    @property
    def device_hours(self) -> float:
        """Of all devices together, were they never to wait: GPU-hours on GPUs."""
        return sum(self.encode_seconds.values()) * self.clips / 3600

    @property
    def decode_hours(self) -> float:
        """Of all cores together."""
        return self.decode_seconds * self.clips / 3600

    @property
    def hours(self) -> float:
        """Wall time: decoding runs beside encoding, and the slower of the two decides."""
        return max(self.device_hours, self.decode_hours / self.decoders) / self.workers

    @property
    def bound_by(self) -> str:
        """``"decoding"``, or the feature set whose encoder takes longest."""
        if self.decode_hours / self.decoders > self.device_hours:
            return "decoding"
        return max(self.encode_seconds, key=lambda name: self.encode_seconds[name])

    @property
    def decoders_wanted(self) -> int | None:
        """Decoding processes a device that would let it never wait; ``None`` where the encoders cost nothing."""
        seconds = sum(self.encode_seconds.values())
        return math.ceil(self.decode_seconds / seconds) if seconds else None

    @property
    def clips_per_second(self) -> float:
        """Of the whole run."""
        return self.clips / (self.hours * 3600)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.free_bytes is None or sum(self.bytes.values()) < self.free_bytes


def forecast(manifest: Manifest, setting: Setting, sample: int = SAMPLE) -> Forecast:
    """Decode and encode clips spread evenly over the manifest, and scale up. Writes nothing.

    An encoder that reads is measured on the text that its source makes of the same clips; where that is not part of
    this run, it counts as nothing.

    Raises:
        DataError: the manifest is empty, or not one of the sampled clips can be decoded.
    """
    count = min(sample, len(manifest.clips))
    if not count:
        raise DataError(f"the manifest of {manifest.dataset!r} has no clips")
    chosen = [manifest.clips[i] for i in np.linspace(0, len(manifest.clips) - 1, count).astype(int)]
    jobs = [DecodeJob.of(clip, setting.media_root) for clip in chosen]
    work = DecodeWork(dict(setting.encoders), setting.limits)
    with (
        closing(Fetcher()) as fetcher,
        DecodePool(work, processes=1, limits=setting.limits, bring=fetcher.here) as pool,
    ):
        results = list(pool.map(jobs))
    decoded = [result for result in results if not isinstance(result, ClipError)]
    if not decoded:
        raise DataError(f"none of {count} sampled clips can be decoded; the first: {results[0]}")
    readers = setting.readers
    seconds: dict[str, float] = {}
    sizes: dict[str, float] = {}
    texts: dict[str, list[Segments]] = {}
    for name in sorted(setting.encoders, key=lambda name: name in readers):  # who reads comes last
        encoder = setting.encoders[name]
        if name in readers:
            prepared = _readable(encoder, readers[name], texts.get(readers[name], []))
        else:
            prepared = [arrays for clip in decoded if not isinstance(arrays := clip.prepared[name], ClipError)]
        encoded, spent = _encode(encoder, prepared, setting.devices[0])
        texts[name] = [found for found in encoded if isinstance(found, Segments)]
        seconds[name] = spent / len(decoded)
        sizes[name] = sum(_stored_bytes(found, encoder.spec) for found in encoded) / len(decoded)
    return Forecast(
        clips=len(manifest.clips),
        sampled=count,
        failed=count - len(decoded),
        workers=len(setting.devices),
        decoders=setting.decoders,
        decode_seconds=float(np.median([clip.seconds for clip in decoded])),
        encode_seconds={name: seconds[name] for name in setting.encoders},
        bytes={name: int(sizes[name] * len(manifest.clips)) for name in setting.encoders},
        free_bytes=_free_bytes(next(iter(setting.folders.values()))),
    )


def _readable(encoder: Encoder, source: str, texts: Sequence[Segments]) -> list[Prepared]:
    outcome = Outcome(clip_id="sample", status="ok")
    return [prepare_text(encoder, source, outcome, segments) for segments in texts]


def _encode(encoder: Encoder, prepared: Sequence[Prepared], device: str) -> tuple[list[Encoded], float]:
    """What an encoder makes of the sample, and the seconds that it takes."""
    if not prepared:
        return [], 0.0
    size = encoder.batch_size
    encoder.load(device)
    encoder.encode(prepared[:size])  # the first call pays for what the later ones find ready
    start = time.perf_counter()
    encoded = [
        found for first in range(0, len(prepared), size) for found in encoder.encode(prepared[first : first + size])
    ]
    return encoded, time.perf_counter() - start


def _stored_bytes(encoded: Encoded, spec: FeatureSpec) -> int:
    """Of one clip on the disk."""
    if isinstance(encoded, Segments):
        return len(json.dumps([segment.to_json() for segment in encoded.items]))
    return encoded.data.size * np.dtype(spec.dtype).itemsize + encoded.pts_seconds.nbytes


def _free_bytes(folder: Path) -> int | None:
    if is_remote(folder):
        return None
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
