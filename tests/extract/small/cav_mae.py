"""Video through two layers of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.extract import toys_audio_visual


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"stream": "video", "weights": str(toys_audio_visual.cav_mae_file(folder / "cav_mae.pth")), "cut": 1}
