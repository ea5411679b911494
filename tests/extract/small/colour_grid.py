"""Few frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"frames": 4}
