"""A tower of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.extract import toys


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    model = toys.open_clip_model(folder, "contract-ViT", toys.TINY_CLIP)
    return {"model": model, "weights": "random:1", "frames": 4}
