"""What metrics use of a workspace: the pictures that captions are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.eval.tools import Tools
    from avpipe.pipeline.store import FeatureSet


def tools_for(workspace: Workspace, dataset: str, metrics: Sequence[str]) -> Tools:
    """What these metrics use beyond Python, with the pictures of a dataset if one of them wants pictures.

    Args:
        workspace: where its features lie.
        dataset: whose clips are scored.
        metrics: names of metrics or of their scores.

    Raises:
        UnknownNameError: no metric of that name.
        StoreError: the feature set of the pictures is damaged.
    """
    from avpipe.eval.metric import find_metrics
    from avpipe.eval.tools import Tools

    return Tools(pictures=pictures_of(workspace, dataset) if "clipscore" in find_metrics(metrics) else None)


def pictures_of(workspace: Workspace, dataset: str) -> FeatureSet | None:
    """The feature set of a dataset with embeddings in the space that a CLIP shares with text, or ``None``.

    Of several, the one of ViT-B/32, by which papers report; else the first by name. The score's signature tells which.

    Raises:
        StoreError: it is damaged.
    """
    from avpipe.pipeline.store import FeatureSet

    sets = [FeatureSet(workspace.feature_set(dataset, name)) for name in workspace.extracted(dataset)]
    found = [
        source
        for source in sets
        if source.spec.encoder == "clip_vit" and source.spec.config.get("tokens") == "embedding"
    ]
    found.sort(key=lambda source: source.spec.config.get("model") not in ("ViT-B-32", "ViT-B-32-quickgelu"))
    return found[0] if found else None
