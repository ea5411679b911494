"""Stage three: what ``avpipe score --dense`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.pipeline.errors import UsageError

if TYPE_CHECKING:
    from avpipe.eval.coverage import Missing
    from avpipe.eval.dense import DenseReport


def score_dense_files(
    predictions: Path | None,
    references: Sequence[Path],
    *,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
) -> DenseReport:
    """Score a file of dense captions of any model; see :mod:`avpipe.eval.dense`.

    Args:
        predictions: ``{"results": {video: [{"sentence": ..., "timestamp": [start, stop]}]}}``.
        references: files of ActivityNet Captions, one an annotator (``val_1.json``, ``val_2.json``).
        metrics: by name; default: those of the original.
        missing: what a video without prediction means.

    Raises:
        UsageError: there are no predictions.
        DataError: a file is not of that form.
        ScoringError: videos are missing or unknown.
    """
    from avpipe.eval.dense import DEFAULT, read_predictions, read_references, score_dense

    if predictions is None:
        raise UsageError("--dense and --predictions go together: got only --dense")
    return score_dense(
        read_predictions(predictions),
        [read_references(path) for path in references],
        metrics=metrics or DEFAULT,
        missing=missing,
    )
