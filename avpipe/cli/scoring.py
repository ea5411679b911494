"""Stage three: ``score``, ``caption``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

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
    percent: Annotated[bool, typer.Option("--percent", help="Times 100, as papers print.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Score captions: of a run (they are generated if need be), or of a file of predictions from any model."""
    from avpipe import api
    from avpipe.console import escape, out
    from avpipe.eval.scores import footnotes, table

    if dense:
        if run is not None or references is not None or intersect is not None:
            raise UsageError("--dense goes with --predictions, not with --run, --references or --intersect")
        _score_dense(predictions, dense, names(metrics), missing, percent=percent, as_json=as_json)
        return
    if predictions is not None or references is not None:
        if run is not None:
            raise UsageError(f"score a run or a file: got both --run {run} and --predictions or --references")
        report = api.score_files(predictions, references, metrics=names(metrics), missing=missing, intersect=intersect)
    else:
        place = api.open_workspace(workspace)
        run = api.choose_run(place, run)
        report = api.score_run(place, run, split, metrics=names(metrics), missing=missing, intersect=intersect)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        out.print(f"[bold]{escape(str(run or predictions))}[/]")
        out.print(table(report, percent=percent), soft_wrap=False)
        for line in footnotes(report):
            out.print(line, markup=False)
    if not report.complete:
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
