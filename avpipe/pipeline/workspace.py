"""Where everything lies: one folder with manifests, media, features and runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "AVPIPE_HOME"
DEFAULT_ROOT = "avpipe-data"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths below one root folder. Makes none of them.

    ::

        manifests/<dataset>.jsonl.gz            the clips, one a line
        manifests/<dataset>.json                header: media root, clips per shard, counts, sha256 of the ids
        media/<dataset>/                        only media that avpipe renders itself
        features/<dataset>/<feature set>/       spec.json, 00000.h5 | 00000.tar, 00000.json
        runs/<name>/                            config.yaml, metrics.jsonl, checkpoints/, captions/, scores/
    """

    root: Path

    @classmethod
    def find(cls, root: str | Path | None = None) -> Workspace:
        """The workspace asked for, or ``$AVPIPE_HOME``, or ``./avpipe-data``."""
        return cls(Path(root or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ROOT))

    def manifest(self, dataset: str) -> Path:
        """The manifest of a dataset."""
        return self.root / "manifests" / f"{dataset}.jsonl.gz"

    def media(self, dataset: str) -> Path:
        """Media that avpipe renders itself."""
        return self.root / "media" / dataset

    def features(self, dataset: str) -> Path:
        """All feature sets of a dataset."""
        return self.root / "features" / dataset

    def feature_set(self, dataset: str, name: str) -> Path:
        """One feature set."""
        return self.features(dataset) / name

    def run(self, name: str) -> Path:
        """One training run."""
        return self.root / "runs" / name

    def prepared(self) -> list[str]:
        """Names of all datasets with a manifest."""
        return sorted(path.name.removesuffix(".jsonl.gz") for path in self.root.glob("manifests/*.jsonl.gz"))

    def extracted(self, dataset: str) -> list[str]:
        """Names of all feature sets of a dataset."""
        return sorted(path.parent.name for path in self.features(dataset).glob("*/spec.json"))

    def runs(self) -> list[str]:
        """Names of all runs, newest last."""
        configs = sorted(self.root.glob("runs/*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        return [path.parent.name for path in configs]
