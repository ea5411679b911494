"""``avpipe demo``: the whole job on rendered clips, and the question that the software exists for: does hearing help?

Renders the ``synthetic`` dataset, extracts it with the two embedded encoders, trains the same fusion three times (with
eyes and ears, with eyes alone, with ears alone), captions the test clips, and scores. Beside the models stand the
oracles: captioners that know everything that there is to see (or to hear) and nothing of the other. No model that is
deaf can pass the one that sees everything; a fused model must.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from avpipe import api
from avpipe.console import Meter, out, show_extraction
from avpipe.data_manifests.manifest import Header
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import AvpipeError
from avpipe.pipeline.workspace import Workspace

Sees = Literal["video", "audio", "both"]

DATASET = "synthetic"
MODELS: Mapping[str, tuple[str, ...]] = {
    "audio + video": ("video", "audio"),
    "video only": ("video",),
    "audio only": ("audio",),
}
ORACLES: Mapping[str, Sees] = {"all-seeing, deaf": "video", "all-hearing, blind": "audio", "all-knowing": "both"}
SIDE_BY_SIDE = 2
SHOWN_CLIPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the demo's table.

    Attributes:
        who: model or oracle.
        scores: by metric.
        synchrony: share of the synchrony clips whose caption says rightly whether sight and sound are in time.
    """

    who: str
    scores: Mapping[str, float | None]
    synchrony: float | None


def run(workspace: Workspace, *, seed: int = 0, fusion: str = "qformer") -> list[Row]:
    """Run the demo, print its table, and write it to ``demo.json`` in the workspace.

    Args:
        workspace: where everything goes; a second run goes on from what is there.
        seed: of the clips and of the training.
        fusion: name of a fusion.

    Raises:
        AvpipeError: a step failed.
    """
    start = time.monotonic()
    with _step("1  render clips with sound (dataset 'synthetic')"):
        header = _prepare(workspace, seed)
    out.print(f"   {'; '.join(header.notes)}", markup=False)
    with _step("2  extract features (encoders 'colour_grid' and 'log_mel')"):
        extraction = api.extraction(workspace, DATASET, recipe="baseline", gpus=0)
        with show_extraction(extraction) as on_event:
            report = extraction.run(on_event=on_event)
    for name, counts in report.counts.items():
        out.print(f"   {name}: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}", markup=False)
    with _step(f"3  train the fusion {fusion!r} three times"):
        runs = _train(workspace, fusion, seed)
    test = api.clips_of(workspace, DATASET, "test")
    with _step("4  caption the test clips; score models and oracles"), ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        models = pool.map(lambda who: _model_row(workspace, who, runs[who], test), MODELS)
        oracles = pool.map(lambda who: _oracle_row(who, ORACLES[who], test), ORACLES)
        rows = [*models, *oracles]
    _print(rows, test, workspace, runs)
    seconds = time.monotonic() - start
    path = workspace.root / "demo.json"
    path.write_text(json.dumps({"seconds": seconds, "rows": [asdict(row) for row in rows]}, indent=2), encoding="utf-8")
    out.print(f"\n{seconds / 60:.1f} minutes in all; everything lies in {workspace.root}", markup=False)
    return rows


def synchrony(clips: Sequence[Clip], captions: Mapping[str, str]) -> float | None:
    """Share of the synchrony clips whose caption says rightly whether sight and sound are in time.

    A caption that says neither, or both, is wrong. ``None`` if there is no such clip.
    """
    from avpipe.data_manifests.datasets.synthetic import synchrony_word

    asked = [clip for clip in clips if "in_time" in clip.extra]
    if not asked:
        return None
    return sum(synchrony_word(captions[clip.clip_id]) is clip.extra["in_time"] for clip in asked) / len(asked)


def _prepare(workspace: Workspace, seed: int) -> Header:
    meter: Meter | None = None

    def progress(done: int, total: int) -> None:
        nonlocal meter
        meter = meter or Meter("render", total, "files").__enter__()
        meter.advance_to(done)

    try:
        return api.prepare(workspace, DATASET, overrides=[f"seed={seed}"], progress=progress)
    finally:
        if meter:
            meter.__exit__(None, None, None)


def _train(workspace: Workspace, fusion: str, seed: int) -> dict[str, str]:
    """Train all models, a process each, two side by side. Returns the name of each one's run."""
    runs = {who: f"demo-{fusion}-{'-'.join(modalities)}-seed{seed}" for who, modalities in MODELS.items()}
    commands = {
        who: ["train", "--dataset", DATASET, "--fusion", fusion, "--modalities", ",".join(modalities),
              "--seed", str(seed), "--name", runs[who]]
        for who, modalities in MODELS.items()
    }  # fmt: skip
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda command: _child(workspace, command), commands.values()))
    return runs


def _child(workspace: Workspace, command: Sequence[str]) -> None:
    """Run one avpipe command in a process of its own, with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE))
    done = subprocess.run(
        [sys.executable, "-m", "avpipe", *command, "--workspace", str(workspace.root)],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    out.print("   " + done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", markup=False)
    if done.returncode:
        raise AvpipeError(f"`avpipe {' '.join(command)}` ended with status {done.returncode}:\n{done.stdout}")


def _model_row(workspace: Workspace, who: str, run: str, test: Sequence[Clip]) -> Row:
    report = api.score_run(workspace, run, "test")
    return Row(who=who, scores=report.scores, synchrony=synchrony(test, report.captions))


def _oracle_row(who: str, sees: Sees, test: Sequence[Clip]) -> Row:
    """The best of an oracle's policies by CIDEr: a generous ceiling, since the policy is chosen on the test clips."""
    from avpipe.data_manifests.datasets.synthetic import oracle_captions
    from avpipe.eval import ValidationScorer, score

    references = {clip.clip_id: clip.captions for clip in test}
    cider = ValidationScorer(references)
    best = max(oracle_captions(test, sees).values(), key=cider)
    return Row(who=who, scores=score(best, references).scores, synchrony=synchrony(test, best))


def _print(rows: Sequence[Row], test: Sequence[Clip], workspace: Workspace, runs: Mapping[str, str]) -> None:
    from rich.table import Table

    table = Table(title=f"{len(test)} held-out clips, 5 references each; scores x 100")
    table.add_column("")
    names = list(rows[0].scores)
    shown = [name for name in names if name in ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")]
    for name in (*shown, "in time or not?"):
        table.add_column(name, justify="right")
    for row in rows:
        if row.who == next(iter(ORACLES)):
            table.add_section()
        cells = ["none" if (score := row.scores[name]) is None else f"{100 * score:.1f}" for name in shown]
        right = "" if row.synchrony is None else f"{100 * row.synchrony:.0f} %"
        table.add_row(row.who, *cells, right, style="bold" if row.who in MODELS else "")
    out.print(table)
    out.print(
        "Below the line stand oracles: captioners that know every fact of what they sense, and guess the rest.\n"
        "'in time or not?': does a ball bounce in time with the beeps or against them? A coin is right in 50 %.\n",
        markup=False,
    )
    captions = {who: api.captions_of(workspace, run, "test") for who, run in runs.items()}
    for clip in test[:SHOWN_CLIPS]:
        out.print(f"{clip.clip_id}  a reference: {clip.captions[0]}", markup=False)
        for who in MODELS:
            out.print(f"            {who:>13}: {captions[who][clip.clip_id]}", markup=False)


@contextmanager
def _step(title: str) -> Iterator[None]:
    start = time.monotonic()
    out.print(f"[bold]{title}[/]")
    yield
    out.print(f"   {time.monotonic() - start:.0f} s", markup=False)
