"""A transformer of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.extract import toys_audio_visual


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    path = toys_audio_visual.beats_file(folder / "beats" / "BEATs_iter3_plus_AS2M.pt")
    return {"weights": str(path.parent), "max_seconds": 5.0}
