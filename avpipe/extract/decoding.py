"""One clip from its file to what each encoder's network takes in: the work of a decoding process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from avpipe.extract import media
from avpipe.extract.encoder import Encoder, Prepared
from avpipe.extract.media import AudioRequest, FrameRequest, TextRequest
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeJob:
    """One clip to decode: where its file lies, which part of it is the clip, and the clip's own seed."""

    path: Path
    start_seconds: float = 0.0
    stop_seconds: float | None = None
    seed: int = 0

    @classmethod
    def of(cls, clip: Clip, media_root: Path) -> DecodeJob:
        """For a clip of a manifest."""
        return cls(
            path=media_root / clip.path,
            start_seconds=clip.start_seconds,
            stop_seconds=clip.stop_seconds,
            seed=seed_of(clip.clip_id),
        )


def seed_of(clip_id: str) -> int:
    """The seed of a clip, the same in every run and on every machine."""
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What decoding gave for one clip.

    Attributes:
        prepared: for each feature set, the preprocessed arrays, or why there are none.
        notes: facts about the file that did not stop it.
        seconds: time it took.
    """

    prepared: Mapping[str, Prepared | ClipError]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Decode one clip for several encoders at once. Runs in a decoding process; pickles.

    Attributes:
        encoders: by feature-set name; those that read text are left alone.
        limits: on decoding.
    """

    encoders: Mapping[str, Encoder]
    limits: Limits = field(default_factory=Limits)

    def __call__(self, job: DecodeJob) -> Decoded:
        """Open and decode the file once; then each encoder's own preprocessing.

        Raises:
            ClipError: the file cannot be used by any encoder.
        """
        start = time.perf_counter()
        requests = {name: encoder.request for name, encoder in self.encoders.items()}
        clip = media.read(
            job.path,
            frames={
                name: partial(request.choose, seed=job.seed)
                for name, request in requests.items()
                if isinstance(request, FrameRequest)
            },
            audio={name: request for name, request in requests.items() if isinstance(request, AudioRequest)},
            start_seconds=job.start_seconds,
            stop_seconds=job.stop_seconds,
            limits=self.limits,
        )
        clip = replace(clip, seed=job.seed)
        prepared: dict[str, Prepared | ClipError] = {}
        for name, encoder in self.encoders.items():
            if isinstance(requests[name], TextRequest):
                continue
            try:
                prepared[name] = encoder.prepare(clip)
            except ClipError as error:
                prepared[name] = error
        return Decoded(prepared=prepared, notes=clip.notes, seconds=time.perf_counter() - start)
