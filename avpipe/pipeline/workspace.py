"""Where everything lies: one folder with manifests, media, features and runs.

It may be a folder of remote storage (``s3://bucket/folder``). Runs are on this machine nevertheless: a training reads
and writes checkpoints and logs all the time. They are then below the *local* workspace: ``$AVPIPE_HOME`` if that is a
folder, else ``./avpipe-data``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline.files import each, listed
from avpipe.pipeline.places import place
from avpipe.pipeline.remote import is_remote

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
        sweeps/<name>/                          leaderboard.json, leaderboard.csv, leaderboard.md, failed/<run>.txt
    """

    root: Path

    @property
    def local_root(self) -> Path:
        """The root, or that of the local workspace if it is remote."""
        if not is_remote(self.root):
            return self.root
        home = place(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ROOT)
        return Path(DEFAULT_ROOT) if is_remote(home) else home

    @classmethod
    def find(cls, root: str | Path | None = None) -> Workspace:
        """The workspace asked for, or ``$AVPIPE_HOME``, or ``./avpipe-data``.

        Raises:
            UsageError: a URL that nothing here understands.
        """
        return cls(place(root or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ROOT))

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
        """One training run; on this machine even where the workspace is remote."""
        return self.local_root / "runs" / name

    def sweep(self, name: str) -> Path:
        """What is said of the runs of one sweep; beside the runs."""
        return self.local_root / "sweeps" / name

    def prepared(self) -> list[str]:
        """Names of all datasets with a manifest."""
        ending = ".jsonl.gz"
        files = listed(self.root / "manifests")
        return [path.name.removesuffix(ending) for path in files if path.name.endswith(ending)]

    def extracted(self, dataset: str) -> list[str]:
        """Names of all feature sets of a dataset."""
        folders = listed(self.features(dataset))
        is_one = each(lambda folder: (folder / "spec.json").exists(), folders)
        return [folder.name for folder, is_feature_set in zip(folders, is_one, strict=True) if is_feature_set]

    def runs(self) -> list[str]:
        """Names of all runs, newest last."""
        configs = sorted(self.local_root.glob("runs/*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        return [path.parent.name for path in configs]
