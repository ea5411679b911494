"""What is left of a captioner when a sense is taken away: scored whole, deaf, blind, and with other clips' sounds.

    python benchmarks/senses.py --workspace demo RUN [RUN ...]

Each run's best checkpoint captions the test clips of its dataset four times, which is noted once in the run's
`test_access.log`. On `synthetic`, "in time" is the share of the synchrony clips whose caption says rightly whether
sight and sound are in time: a coin is right in 50 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from avpipe import api
from avpipe.api.places import open_features
from avpipe.api.scoring import note_look
from avpipe.demo import synchrony
from avpipe.eval import ValidationScorer
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.features import Features, FeatureSource
from avpipe.pipeline.workspace import Workspace
from avpipe.train import checkpoint
from avpipe.train.generate import caption_clips


class Absent:
    """A feature set of which no clip has anything."""

    def __init__(self, source: FeatureSource) -> None:
        self.spec = source.spec

    def __contains__(self, clip_id: object) -> bool:
        return False

    def read(self, clip_id: str, view: int = 0) -> Features:
        raise KeyError(clip_id)


class Exchanged:
    """A feature set in which each clip has the rows of another of its kind (``extra["kind"]``), drawn from a seed; the
    only one of its kind has those of a clip of another kind.

    Raises:
        DataError: there is one clip alone.
    """

    def __init__(self, source: FeatureSource, clips: Sequence[Clip]) -> None:
        self.spec, self.source = source.spec, source
        self.of: dict[str, str] = {}
        there = [clip for clip in clips if clip.clip_id in source]
        if len(there) == 1:
            raise DataError(
                f"{source.spec.name}: only {there[0].clip_id} has features, and nobody to exchange them with"
            )
        alone: list[str] = []
        for kind in sorted({str(clip.extra.get("kind")) for clip in clips}):
            of_kind = [clip.clip_id for clip in there if str(clip.extra.get("kind")) == kind]
            circle = [of_kind[index] for index in np.random.default_rng(0).permutation(len(of_kind))]
            if len(circle) > 1:  # nobody gets his own
                self.of |= dict(zip(circle, [*circle[1:], *circle[:1]], strict=True))
            else:
                alone += circle
        for clip_id in alone:
            self.of[clip_id] = next(other.clip_id for other in there if other.clip_id != clip_id)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.of

    def read(self, clip_id: str, view: int = 0) -> Features:
        return self.source.read(self.of[clip_id], view)


def changed(sources: Mapping[str, FeatureSource], how: str, clips: Sequence[Clip]) -> dict[str, FeatureSource]:
    """The feature sets, as a captioner that is ``whole``, ``deaf``, ``blind`` or ``with other sounds`` gets them."""
    taken = {"deaf": ("audio", "text"), "blind": ("video",)}.get(how, ())
    found: dict[str, FeatureSource] = {}
    for name, source in sources.items():
        if source.spec.modality in taken:
            found[name] = Absent(source)
        elif how == "with other sounds" and source.spec.modality != "video":
            found[name] = Exchanged(source, clips)
        else:
            found[name] = source
    return found


HOW = ("whole", "deaf", "blind", "with other sounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    told: dict[str, dict[str, tuple[float, float | None]]] = {}
    print(f"{'':40}" + "".join(f"{how:>22}" for how in HOW))
    for run in options.runs:
        loaded = checkpoint.load(workspace.run(run) / "checkpoints" / "best")
        clips = api.clips_of(workspace, loaded.config.dataset, "test")
        note_look(workspace.run(run), f"senses: caption test of {run}")
        sources = open_features(workspace, loaded.config.dataset, tuple(loaded.specs))
        score = ValidationScorer({clip.clip_id: clip.captions for clip in clips})
        told[run] = {}
        cells = []
        for how in HOW:
            given = changed(sources, how, clips)
            with torch.inference_mode():
                captions = {c.clip_id: c.text for c in caption_clips(loaded, clips, given)}
            in_time = synchrony(clips, captions)
            told[run][how] = (100 * score(captions), in_time)
            cells.append(f"{told[run][how][0]:.1f}" + ("" if in_time is None else f", {100 * in_time:.0f} %"))
        print(f"{run:40}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
