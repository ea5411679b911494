"""Stage three: ``score``, ``caption``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from avpipe.eval.slices import SlicedScores
    from avpipe.eval.tables import Table


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
    idf: Annotated[
        str | None,
        typer.Option(
            "--idf",
            help="Where CIDEr counts words: train, a run's training captions; or a file of captions.",
            show_default="the references",
        ),
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
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw scores with intervals, or with --slices bars: a file .svg, .png or .pdf."),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Score captions: of a run (they are generated if need be), or of a file of predictions from any model."""
    from avpipe import api
    from avpipe.eval.comparison import HOW_INTERVALS, intervals
    from avpipe.eval.scores import footnotes, table
    from avpipe.eval.slices import SlicedScores
    from avpipe.pipeline.senses import Senses

    show = _Show(percent=percent, form=form, as_json=as_json, plot=plot)
    if plot is not None:
        from avpipe.eval.pictures import check_picture

        check_picture(plot)
    if dense:
        others = {
            "--run": run, "--references": references, "--intersect": intersect, "--slices": slices, "--idf": idf,
            "--dataset": dataset, "--drop": drop, "--shuffle": shuffle, "--senses": senses,
            "--intervals": with_intervals, "--plot": plot,
        }  # fmt: skip
        if given := [option for option, value in others.items() if value]:
            raise UsageError(f"--dense goes with --predictions, --metrics and --missing, not with {', '.join(given)}")
        _score_dense(predictions, dense, names(metrics), missing, show)
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
        report = api.score_files(
            predictions, references, metrics=names(metrics), missing=missing, intersect=intersect, idf=idf
        )
        sliced = SlicedScores.of(report, parts) if slices else None
    else:
        if dataset:
            raise UsageError(
                f"--dataset {dataset} says whose clips the file of --references holds; a run knows its own"
            )
        place = api.open_workspace(workspace)
        run = api.choose_run(place, run)
        if senses:
            if drop or shuffle or slices or with_intervals or plot:
                raise UsageError(
                    "--senses makes a table of its own; --drop, --shuffle, --slices, --intervals and --plot go with "
                    "one score"
                )
            side_by_side = api.score_senses(
                place, run, split, metrics=names(metrics), missing=missing, intersect=intersect, idf=idf,
                seed=shuffle_seed,
            )  # fmt: skip
            _show_side_by_side(run, side_by_side, show)
            return
        made = Senses(dropped=tuple(names(drop)), shuffled=tuple(names(shuffle)), seed=shuffle_seed)
        parts = api.partitions_of_run(place, run, split, names(slices)) if slices else ()
        report = api.score_run(
            place, run, split, metrics=names(metrics), missing=missing, intersect=intersect, idf=idf, senses=made
        )
        sliced = api.slice_run(place, run, report, parts, made) if slices else None
    title = str(run or predictions)
    below = [*footnotes(report), *(sliced.notes if sliced else ()), *([HOW_INTERVALS] if with_intervals else [])]
    values = report.to_json()
    if sliced:
        _show_slices(title, sliced, values, below, show, with_intervals=with_intervals)
    else:
        found = intervals(report) if with_intervals or plot else None
        shown = found if with_intervals else None
        show(
            title,
            table(report, percent=percent, intervals=shown, exact=form == "csv"),
            below,
            values | ({"intervals": shown} if shown is not None else {}),
        )
        if plot is not None:
            from avpipe.eval.comparison import Standing
            from avpipe.eval.pictures import interval_plot

            ends = found or {}
            standings = {
                name: Standing(score=value, low=low, high=high, seeds=() if value is None else (value,))
                for name, value in report.scores.items()
                for low, high in [ends.get(name, (value, value))]
            }
            interval_plot({title: standings}, plot, percent=percent)
    if not report.complete:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Show:
    """How scores are shown: ``show(title, table, notes, values)``."""

    percent: bool
    form: Literal["markdown", "latex", "csv"] | None
    as_json: bool
    plot: Path | None

    def __call__(self, title: str, grid: Table, notes: Sequence[str], values: Mapping[str, Any]) -> None:
        """For a program, for a paper, or for the terminal."""
        from avpipe.console import escape, out

        if self.as_json:
            typer.echo(json.dumps(values))
        elif self.form is not None:
            typer.echo(replace(grid, notes=tuple(notes)).render(self.form), nl=False)
        else:
            out.print(f"[bold]{escape(title)}[/]")
            out.print(grid, soft_wrap=False)
            for line in notes:
                out.print(line, markup=False)


def _show_slices(
    title: str,
    sliced: SlicedScores,
    values: Mapping[str, Any],
    notes: Sequence[str],
    show: _Show,
    *,
    with_intervals: bool,
) -> None:
    from avpipe.eval.slices import bars, table

    more = {"slices": sliced.to_json()["slices"], "notes": [*values["notes"], *sliced.notes]}
    show(title, table(sliced, percent=show.percent, with_intervals=with_intervals), notes, {**values, **more})
    if show.plot is not None:
        from avpipe.eval.pictures import slice_bars

        scores = list(sliced.whole.scores)
        metric = "CIDEr" if "CIDEr" in scores else scores[0]
        slice_bars(bars(sliced, metric, title), show.plot, metric=metric, percent=show.percent)


def _show_side_by_side(run: str, rows: SideBySide, show: _Show) -> None:
    from avpipe.eval.side_by_side import notes_below, table

    show(run, table(rows, percent=show.percent), notes_below(rows), rows.to_json())
    if not rows.complete:
        raise typer.Exit(1)


def _score_dense(
    predictions: Path | None,
    references: list[Path],
    metrics: list[str],
    missing: Literal["error", "empty", "drop"],
    show: _Show,
) -> None:
    from avpipe import api
    from avpipe.eval.dense import footnotes, table

    report = api.score_dense_files(predictions, references, metrics=metrics, missing=missing)
    show(str(predictions), table(report, percent=show.percent), footnotes(report), report.to_json())
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
