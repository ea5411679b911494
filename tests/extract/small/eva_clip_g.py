"""A BLIP-2 whose image tower has two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.extract import toys_vision


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"weights": str(toys_vision.blip2_folder(folder / "blip2")), "frames": 4}
