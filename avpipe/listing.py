"""``avpipe ls``: every part by kind and name, each with one line. Loads no part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from avpipe.pipeline.errors import DataError, StoreError
from avpipe.pipeline.workspace import Workspace


def listing(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Every part by kind and name, each with one line; ``{kind: {name: line}}``."""
    from avpipe.data_manifests import datasets
    from avpipe.eval import metrics
    from avpipe.extract import encoders
    from avpipe.train import decoders, fusions, objectives

    registries = (encoders, datasets, fusions, decoders, objectives, metrics)
    parts = {
        f"{folder.REGISTRY.kind}s": {name: folder.REGISTRY.summary(name) for name in folder.REGISTRY.names()}
        for folder in registries
    }
    parts["extract-recipes"] = _recipes("avpipe.extract")
    parts["train-recipes"] = _recipes("avpipe.train")
    parts["prepared"] = {name: _describe_manifest(workspace.manifest(name)) for name in workspace.prepared()}
    parts["features"] = {
        f"{dataset}/{name}": _describe_features(workspace.feature_set(dataset, name))
        for dataset in workspace.prepared()
        for name in workspace.extracted(dataset)
    }
    parts["runs"] = {name: _describe_run(workspace.run(name)) for name in workspace.runs()}
    return parts


def _recipes(package: str) -> dict[str, str]:
    """The recipes of a stage with the first line of their comment."""
    from importlib import resources

    found = {}
    for entry in (resources.files(package) / "recipes").iterdir():
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ")
    return dict(sorted(found.items()))


def _describe_manifest(path: Path) -> str:
    from avpipe.data_manifests import manifest

    try:
        header = manifest.read_header(path)
    except (DataError, StoreError) as error:
        return f"damaged: {error}"
    counts = ", ".join(f"{count} {split}" for split, count in header.clips.items() if count)
    return f"{sum(header.clips.values())} clips ({counts}), {header.clips_per_shard} a shard"


def _describe_features(folder: Path) -> str:
    from avpipe.pipeline import shards

    counts: Counter[str] = Counter()
    try:
        spec = shards.read_spec(folder)
        for mark in shards.marks(folder):
            counts += Counter(mark.counts)
    except StoreError as error:
        return f"damaged: {error}"
    done = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "nothing yet"
    return f"{spec.modality}, {spec.dim} wide, {spec.dtype}, {spec.fingerprint}: {done}"


def _describe_run(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    rows = _rows(path.read_text(encoding="utf-8")) if path.exists() else []
    scores = [row["val_score"] for row in rows if "val_score" in row]
    steps = rows[-1]["step"] if rows else 0
    return f"{steps} {'step' if steps == 1 else 'steps'}" + (f", best CIDEr {max(scores):.3f} on val" if scores else "")


def _rows(text: str) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; the last one may have been cut when its run was killed."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
