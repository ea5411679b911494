"""Names: ids that are safe as file names, and splits that a name alone decides."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from pydantic import Field, model_validator

from avpipe.data_manifests.media_files import is_media
from avpipe.pipeline.config import Config

LONGEST_ID = 200


class Ratios(Config):
    """Sizes of the splits to one another, where nobody gives the splits themselves."""

    train: float = Field(0.8, ge=0)
    """Clips to learn from."""
    val: float = Field(0.1, ge=0)
    """Clips to choose a model by."""
    test: float = Field(0.1, ge=0)
    """Clips to score."""

    @model_validator(mode="after")
    def _not_all_zero(self) -> Ratios:
        if self.train + self.val + self.test <= 0:
            raise ValueError("expected at least one ratio above 0")
        return self


def draw_split(key: str, ratios: Ratios, seed: int) -> str:
    """A split drawn for a key; it depends on nothing else, so clips that are added later move no others."""
    digest = hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * (ratios.train + ratios.val + ratios.test)
    if place < ratios.train:
        return "train"
    return "val" if place < ratios.train + ratios.val else "test"


def safe_id(name: str) -> str:
    """A clip id made of an id: folders, blanks and everything else that is unsafe in a file name become ``_``.

    What loses more than folders, blanks and a media file's extension gets a hash of the whole, so that names in
    another script stay apart.
    """
    stem = str(PurePosixPath(name).with_suffix("")) if is_media(name) else name
    plain = re.sub(r"[/ ]", "_", stem)
    safe = re.sub(r"^\.|[^A-Za-z0-9_+=,@.-]", "_", plain)
    return safe if safe == plain and len(safe) <= LONGEST_ID else hashed_id(safe, stem)


def hashed_id(safe: str, name: str) -> str:
    """A safe id that no other name has: with a hash of the name behind it."""
    return f"{safe[:180]}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
