"""A transformer of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.extract import toys


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder."""
    return {"weights": str(toys.ast_folder(folder / "ast")), "tokens": "time", "padding": "drop"}
