"""Few frames; the network is small enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"weights": "random:1", "frames": 4}
