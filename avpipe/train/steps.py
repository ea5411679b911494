"""How many steps a training takes: for the loop, and for those who want to know before it begins."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avpipe.train.config import TrainConfig


def steps_of(settings: TrainConfig, captions: Sequence[int], processes: int = 1) -> tuple[int, int]:
    """Optimizer steps of one epoch, and of the whole training, unless its patience ends.

    Args:
        settings: of the run.
        captions: how many each clip has that is learned from; where those of the clip that follows are targets, too,
            with these.
        processes: that share a batch.
    """
    items = sum(captions) if settings.captions_per_clip == "each" else len(captions)
    batches = math.ceil(items / (settings.batch_size * processes))
    an_epoch = math.ceil(batches / settings.accumulate)
    return an_epoch, min(settings.epochs * an_epoch, settings.max_steps or sys.maxsize)
