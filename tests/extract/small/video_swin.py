"""The smallest of the three, and few frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"model": "swin3d_t", "weights": "random:1", "frames": 4}
