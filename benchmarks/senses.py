"""What is left of a captioner when a sense is taken away: scored whole, deaf, blind, and with other clips' sounds.

    python benchmarks/senses.py --workspace demo RUN [RUN ...]

Each run's best checkpoint captions the test clips of its dataset four times, which is noted once in the run's
`test_access.log`. On `synthetic`, "in time" is the share of the synchrony clips whose caption says rightly whether
sight and sound are in time: a coin is right in 50 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from avpipe import api
from avpipe.api.places import open_features
from avpipe.api.sealed import note_look
from avpipe.demo import synchrony
from avpipe.eval import ValidationScorer
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.senses import Senses
from avpipe.pipeline.workspace import Workspace
from avpipe.train import checkpoint
from avpipe.train.generate import caption_clips


def senses_of(how: str, specs: Mapping[str, FeatureSpec]) -> Senses:
    """What is done to a captioner that is ``whole``, ``deaf``, ``blind`` or ``with other sounds``."""
    heard = tuple({spec.modality for spec in specs.values()} - {"video"})
    return {
        "whole": Senses(),
        "deaf": Senses(dropped=heard),
        "blind": Senses(dropped=("video",)),
        "with other sounds": Senses(shuffled=heard),
    }[how]


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
        clip_ids = [clip.clip_id for clip in clips]
        kinds = {clip.clip_id: str(clip.extra.get("kind")) for clip in clips}  # sounds are exchanged among their like
        score = ValidationScorer({clip.clip_id: clip.captions for clip in clips})
        told[run] = {}
        cells = []
        for how in HOW:
            given = senses_of(how, loaded.specs).of(sources, clip_ids, kinds)
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
