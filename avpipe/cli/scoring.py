"""Stage three: ``score``, ``caption``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avpipe.cli._app import (
    FAILED_CLIPS,
    IDS,
    JsonOption,
    WorkspaceOption,
    app,
    complain,
    names,
)
from avpipe.pipeline.errors import ClipError, UsageError

if TYPE_CHECKING:
    from avpipe.eval.side_by_side import SideBySide


@app.command()
def score(
    run: Annotated[str | None, typer.Option("--run", help="Which run.", show_default="the newest")] = None,
    split: Annotated[str, typer.Option("--split", "-s", help="val or test; each look at test is logged.")] = "test",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", "-p", help="COCO results of any model, instead of a run.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--references", help="COCO captions or {id: captions}, with --predictions.")
    ] = None,
    dense: Annotated[
        list[Path] | None,
        typer.Option("--dense", help="Dense captions: references of ActivityNet Captions; again for each annotator."),
    ] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="By comma.", show_default="all")] = None,
    missing: Annotated[
        Literal["error", "empty", "drop"],
        typer.Option("--missing", help="A clip without caption: error, empty (scored as one), drop."),
    ] = "error",
    intersect: Annotated[
        Path | None, typer.Option("--intersect", help="Only the clips on this list of ids.", **IDS)
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option("--slices", help="Also by kind of clip: audio, speech, duration, category, length, extra:FIELD."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Whose clips --references are, for --slices.")
    ] = None,
    drop: Annotated[
        str | None, typer.Option("--drop", help="Caption without these: audio, video, text or feature sets, by comma.")
    ] = None,
    shuffle: Annotated[
        str | None, typer.Option("--shuffle", help="Caption with these of another clip; drawn by --shuffle-seed.")
    ] = None,
    senses: Annotated[
        bool, typer.Option("--senses", help="Whole, and without each modality, and with each of another clip.")
    ] = False,
    shuffle_seed: Annotated[int, typer.Option("--shuffle-seed", min=0, help="Of --shuffle and --senses.")] = 0,
    percent: Annotated[bool, typer.Option("--percent", help="Times 100, as papers print.")] = False,
    with_intervals: Annotated[
        bool, typer.Option("--intervals", help="The 95 % bootstrap interval of each score.")
    ] = False,
    form: Annotated[
        Literal["markdown", "latex", "csv"] | None,
        typer.Option("--format", help="For a paper or a program.", show_default="for the terminal"),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Score captions: of a run (they are generated if need be), or of a file of predictions from any model."""
    from avpipe import api
    from avpipe.console import escape, out
    from avpipe.eval.comparison import HOW_INTERVALS, intervals
    from avpipe.eval.scores import footnotes, table
    from avpipe.eval.slices import SlicedScores
    from avpipe.eval.slices import table as sliced_table
    from avpipe.pipeline.senses import Senses

    of_plain = [option for option, value in (("--format", form), ("--intervals", with_intervals)) if value]
    tables = [option for option, value in (("--dense", dense), ("--slices", slices), ("--senses", senses)) if value]
    if of_plain and tables:
        raise UsageError(f"{tables[0]} makes a table of its own, which {of_plain[0]} does not know; try: --json")
    if dense:
        others = {
            "--run": run, "--references": references, "--intersect": intersect, "--slices": slices,
            "--dataset": dataset, "--drop": drop, "--shuffle": shuffle, "--senses": senses,
        }  # fmt: skip
        if given := [option for option, value in others.items() if value]:
            raise UsageError(f"--dense goes with --predictions, --metrics and --missing, not with {', '.join(given)}")
        _score_dense(predictions, dense, names(metrics), missing, percent=percent, as_json=as_json)
        return
    for option, text in (("--slices", slices), ("--drop", drop), ("--shuffle", shuffle)):
        if text is not None and not names(text):
            raise UsageError(f"{option}: expected names, several by comma, got {text!r}")
    sliced: SlicedScores | None = None
    if predictions is not None or references is not None:
        if run is not None:
            raise UsageError(f"score a run or a file: got both --run {run} and --predictions or --references")
        if senses or drop or shuffle:
            raise UsageError(
                "--drop, --shuffle and --senses caption anew, which takes a run: got a file of predictions"
            )
        if dataset and not slices:
            raise UsageError(f"--dataset {dataset} says whose clips they are for --slices, which was not given")
        place = api.open_workspace(workspace) if dataset else None
        parts = api.partitions_of_files(references, names(slices), place, dataset) if slices and references else ()
        report = api.score_files(predictions, references, metrics=names(metrics), missing=missing, intersect=intersect)
        sliced = SlicedScores.of(report, parts) if slices else None
    else:
        if dataset:
            raise UsageError(
                f"--dataset {dataset} says whose clips the file of --references holds; a run knows its own"
            )
        place = api.open_workspace(workspace)
        run = api.choose_run(place, run)
        if senses:
            if drop or shuffle or slices:
                raise UsageError("--senses makes a table of its own; --drop, --shuffle and --slices go with one score")
            side_by_side = api.score_senses(
                place, run, split, metrics=names(metrics), missing=missing, intersect=intersect, seed=shuffle_seed
            )
            _show_side_by_side(run, side_by_side, percent=percent, as_json=as_json)
            return
        made = Senses(dropped=tuple(names(drop)), shuffled=tuple(names(shuffle)), seed=shuffle_seed)
        parts = api.partitions_of_run(place, run, split, names(slices)) if slices else ()
        report = api.score_run(
            place, run, split, metrics=names(metrics), missing=missing, intersect=intersect, senses=made
        )
        sliced = api.slice_run(place, run, report, parts, made) if slices else None
    found = intervals(report) if with_intervals else None
    below = [*footnotes(report), *([HOW_INTERVALS] if with_intervals else [])]
    if as_json:
        values = report.to_json() | ({"intervals": found} if found is not None else {})
        if sliced:
            values |= {"slices": sliced.to_json()["slices"], "notes": [*report.notes, *sliced.notes]}
        typer.echo(json.dumps(values))
    elif form is not None:
        shown = table(report, percent=percent, intervals=found, exact=form == "csv", notes=below)
        typer.echo(shown.render(form), nl=False)
    else:
        plain = table(report, percent=percent, intervals=found)
        out.print(f"[bold]{escape(str(run or predictions))}[/]")
        out.print(sliced_table(sliced, percent=percent) if sliced else plain, soft_wrap=False)
        for line in (*below, *(sliced.notes if sliced else ())):
            out.print(line, markup=False)
    if not report.complete:
        raise typer.Exit(1)


def _show_side_by_side(run: str, rows: SideBySide, *, percent: bool, as_json: bool) -> None:
    from avpipe.console import escape, out
    from avpipe.eval.side_by_side import notes_below, table

    if as_json:
        typer.echo(json.dumps(rows.to_json()))
    else:
        out.print(f"[bold]{escape(run)}[/]")
        out.print(table(rows, percent=percent), soft_wrap=False)
        for line in notes_below(rows):
            out.print(line, markup=False)
    if not rows.complete:
        raise typer.Exit(1)


def _score_dense(
    predictions: Path | None,
    references: list[Path],
    metrics: list[str],
    missing: Literal["error", "empty", "drop"],
    *,
    percent: bool,
    as_json: bool,
) -> None:
    from avpipe import api
    from avpipe.console import escape, out
    from avpipe.eval.dense import footnotes, table

    report = api.score_dense_files(predictions, references, metrics=metrics, missing=missing)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        out.print(f"[bold]{escape(str(predictions))}[/]")
        out.print(table(report, percent=percent), soft_wrap=False)
        for line in footnotes(report):
            out.print(line, markup=False)
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def caption(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video or sound file.")],
    run: Annotated[str | None, typer.Option("--run", help="Which run.", show_default="the newest")] = None,
    beams: Annotated[int | None, typer.Option("--beams", min=1, help="Print this many hypotheses.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Caption one file; how to extract its features is read from the run's checkpoint."""
    from avpipe import api

    place = api.open_workspace(workspace)
    try:
        found = api.caption(place, file, api.choose_run(place, run), beams=beams)
    except ClipError as error:
        complain(f"error: {file}: {error.message} ({error.kind})")
        raise typer.Exit(FAILED_CLIPS) from None
    if as_json:
        lines = [{"text": beam.text, "log_prob": beam.log_prob} for beam in found.beams]
        typer.echo(json.dumps({"text": found.text, "log_prob": found.log_prob, "beams": lines}))
        return
    typer.echo(found.text)
    for beam in found.beams if beams else ():
        typer.echo(f"  {beam.log_prob:8.3f}  {beam.text}")
