"""What an extraction will cost, measured on a sample of its clips before anything is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avpipe.data_manifests.manifest import Manifest
from avpipe.extract.run import Decoded, DecodeJob, DecodeWork, Setting
from avpipe.extract.sandbox import DecodePool
from avpipe.pipeline.errors import ClipError, DataError

SAMPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What an extraction will cost.

    Attributes:
        clips: in the manifest.
        sampled: clips that were measured.
        failed: of those, how many could not be decoded.
        decode_seconds: per clip, in one decoding process.
        encode_seconds: per clip, for each feature set, on one device.
        bytes: for each feature set, of the whole dataset.
        free_bytes: on the disk that the features go to.
        hours: wall time, with the workers and decoding processes asked for.
        bound_by: ``"decoding"`` or the slowest encoder's feature set.
    """

    clips: int
    sampled: int
    failed: int
    decode_seconds: float
    encode_seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    free_bytes: int
    hours: float
    bound_by: str

    @property
    def clips_per_second(self) -> float:
        """Of the whole run."""
        return self.clips / (self.hours * 3600)


def forecast(manifest: Manifest, setting: Setting, sample: int = SAMPLE) -> Forecast:
    """Decode and encode clips spread evenly over the manifest, and scale up. Writes nothing.

    Raises:
        DataError: the manifest is empty, or not one of the sampled clips can be decoded.
    """
    count = min(sample, len(manifest.clips))
    if not count:
        raise DataError(f"the manifest of {manifest.dataset!r} has no clips")
    chosen = [manifest.clips[i] for i in np.linspace(0, len(manifest.clips) - 1, count).astype(int)]
    jobs = [
        DecodeJob(path=setting.media_root / clip.path, start_seconds=clip.start_seconds, stop_seconds=clip.stop_seconds)
        for clip in chosen
    ]
    with DecodePool(DecodeWork(dict(setting.encoders), setting.limits), processes=1, limits=setting.limits) as pool:
        results = list(pool.map(jobs))
    decoded = [result for result in results if not isinstance(result, ClipError)]
    if not decoded:
        raise DataError(f"none of {count} sampled clips can be decoded; the first: {results[0]}")
    costs = {name: _cost(name, setting, decoded) for name in setting.encoders}
    encode_seconds = {name: seconds for name, (seconds, _) in costs.items()}
    decode_seconds = float(np.median([clip.seconds for clip in decoded]))
    workers = len(setting.devices)
    # Decoding runs beside encoding: the slower of the two decides.
    rates = {
        "decoding": decode_seconds / setting.decoders / workers,
        "encoding": sum(encode_seconds.values()) / workers,
    }
    slower = max(rates, key=lambda what: rates[what])
    return Forecast(
        clips=len(manifest.clips),
        sampled=count,
        failed=count - len(decoded),
        decode_seconds=decode_seconds,
        encode_seconds=encode_seconds,
        bytes={name: int(size * len(manifest.clips)) for name, (_, size) in costs.items()},
        free_bytes=_free_bytes(next(iter(setting.folders.values()))),
        hours=rates[slower] * len(manifest.clips) / 3600,
        bound_by=slower if slower == "decoding" else max(encode_seconds, key=lambda name: encode_seconds[name]),
    )


def _cost(name: str, setting: Setting, decoded: list[Decoded]) -> tuple[float, float]:
    """Seconds and stored bytes per clip of one encoder; clips without its modality count as nothing."""
    encoder = setting.encoders[name]
    prepared = [arrays for clip in decoded if not isinstance(arrays := clip.prepared[name], ClipError)]
    if not prepared:
        return 0.0, 0.0
    encoder.load(setting.devices[0])
    encoder.encode(prepared[: encoder.batch_size])  # the first call pays for what the later ones find ready
    start, rows = time.perf_counter(), 0
    for first in range(0, len(prepared), encoder.batch_size):
        rows += sum(len(features.data) for features in encoder.encode(prepared[first : first + encoder.batch_size]))
    seconds = time.perf_counter() - start
    row_bytes = encoder.spec.dim * np.dtype(encoder.spec.dtype).itemsize + 8  # 8: the row's time
    return seconds / len(decoded), rows * row_bytes / len(decoded)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
