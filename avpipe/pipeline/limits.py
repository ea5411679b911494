"""What looking at one media file may cost at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one clip may cost at most.

    Attributes:
        max_pixels: of one picture; a file that declares more is refused before it is decoded.
        max_seconds: of wall clock, held by :class:`~avpipe.pipeline.sandbox.DecodePool`.
        max_bytes: of resident memory of a decoding process, held by the pool as well.
        held_bytes: of compressed packets, and of decoded pictures, that are kept while a clip is read; beyond that
            the file is read, or decoded, twice.
    """

    max_pixels: int = 8192 * 8192
    max_seconds: float = 300.0
    max_bytes: int = 4 << 30
    held_bytes: int = 128 << 20
