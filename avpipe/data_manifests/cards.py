"""The cards of all datasets: for ``avpipe ls datasets``, and for the README's table, which is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from avpipe.data_manifests import manifest
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.pipeline.clip import SPLITS
from avpipe.pipeline.errors import DataError, StoreError
from avpipe.pipeline.workspace import Workspace

OWN = "folder"
"""What a dataset is made by whose name is no module's."""


def cards() -> dict[str, Card]:
    """Every dataset's card, by name."""
    return {name: REGISTRY.load(name).CARD for name in REGISTRY.names()}


def described(workspace: Workspace, name: str = "") -> dict[str, dict[str, Any]]:
    """Cards with what the workspace holds of each; JSON-ready.

    Args:
        workspace: where to look for prepared manifests.
        name: of one dataset, of avpipe's or one's own; all where it is empty.

    Raises:
        UnknownNameError: no dataset of that name.
    """
    own = [each for each in workspace.prepared() if each not in REGISTRY.names()]
    if name and name not in own:
        REGISTRY.load(name)
    told = {}
    for each in [name] if name else [*REGISTRY.names(), *own]:
        card: Card = REGISTRY.load(OWN if each in own else each).CARD
        told[each] = {**asdict(card), "prepared": _prepared(workspace, each)}
    return told


def _prepared(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """What the manifest of a dataset says of itself; ``None``: there is none."""
    if name not in workspace.prepared():
        return None
    try:
        header = manifest.read_header(workspace.manifest(name))
    except (DataError, StoreError) as error:
        return {"damaged": str(error)}
    return {"clips": dict(header.clips), "ledger": dict(header.ledger), "notes": list(header.notes)}


def official(clips: Mapping[str, int]) -> str:
    """The official counts on one line: ``25,991 / 3,000 / 6,000``; "" if there are none."""
    return " / ".join(f"{clips[split]:,}" if split in clips else "-" for split in SPLITS) if clips else ""


def markdown() -> str:
    """The table of the README."""
    lines = [
        "| dataset | what | official clips: train / val / test | captions a clip | licence |",
        "|---|---|---|---|---|",
    ]
    for name, card in cards().items():
        reference = f" ({card.citation})" if card.citation else ""
        counts = official(card.official_clips) or "-"
        captions = card.captions_per_clip or "-"
        lines.append(f"| `{name}` | {card.summary}{reference} | {counts} | {captions} | {card.licence} |")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- datasets: made by `make docs` -->\n", "<!-- /datasets -->\n"


def filled_in(text: str) -> str:
    """A document with the table of today between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the marks {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}{markdown()}{end}{after}"


def main() -> None:
    """Bring the README's table up to date."""
    from pathlib import Path

    readme = Path("README.md")
    readme.write_text(filled_in(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
