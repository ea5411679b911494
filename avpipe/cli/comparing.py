"""Stage three, with several systems: ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from avpipe.cli._app import IDS, JsonOption, WorkspaceOption, app, names
from avpipe.pipeline.errors import UsageError


@app.command()
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="A run, a file of COCO results, NAME=RUN1,RUN2 for several seeds of one system, or a pattern of runs.",
            metavar="SYSTEM...",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", "-s", help="Of runs: val or test; each look at test is logged.", show_default="test"),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            "--references", help="COCO captions or {id: captions}.", show_default="the split of the runs' dataset"
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="By comma.", show_default="bleu, meteor, rouge_l, cider")
    ] = None,
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
            help="Captions in which CIDEr counts how rare words are: a file, or train: those of the runs' dataset.",
            show_default="the references",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="System that the others differ from.", show_default="the first")
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare every system with every other.")] = False,
    test: Annotated[
        Literal["bootstrap", "randomisation"],
        typer.Option("--test", help="Paired bootstrap, of seeds too, or approximate randomisation."),
    ] = "bootstrap",
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="How often clips are drawn.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random numbers.")] = 0,
    alpha: Annotated[float, typer.Option("--alpha", help="Level of the tests; intervals hold 1 - alpha.")] = 0.05,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Clips to show where a system does best and where worst.")
    ] = 0,
    percent: Annotated[bool, typer.Option("--percent", help="Times 100, as papers print.")] = False,
    form: Annotated[
        Literal["markdown", "latex", "csv"] | None,
        typer.Option("--format", help="For a paper or a program.", show_default="for the terminal"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw scores and intervals: a file .svg, .png or .pdf.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Is the difference real? Intervals of scores and tests of differences, of runs and of predictions of any model.

    `avpipe compare base 'ours=sweep-qformer-seed*'` compares one run with several seeds of another system.
    """
    from avpipe import api
    from avpipe.console import out
    from avpipe.eval.comparison_tables import (
        differences_table,
        example_lines,
        footnotes,
        long_table,
        scores_notes,
        scores_table,
    )
    from avpipe.eval.pictures import check_picture, interval_plot

    if as_json and form is not None:
        raise UsageError(f"--json is a form of its own: got --format {form}, too")
    if form == "csv" and examples:
        raise UsageError("--examples are lines for people; --format csv is a table for programs. Try: --json")
    if percent and (as_json or form == "csv"):
        raise UsageError(
            "--percent is for people; --json and --format csv are for programs, and hold scores as they are"
        )
    if metrics is not None and not names(metrics):
        raise UsageError(f"--metrics: expected names, several by comma, got {metrics!r}")
    if plot is not None:
        check_picture(plot)
    found = api.compare(
        api.open_workspace(workspace),
        systems,
        split=split,
        references=references,
        metrics=names(metrics),
        missing=missing,
        intersect=intersect,
        idf=idf,
        baseline=baseline or "",
        all_pairs=all_pairs,
        test=test,
        resamples=resamples,
        seed=seed,
        alpha=alpha,
        examples=examples,
    )
    comparison = found.comparison
    lines = example_lines(found.examples, percent=percent)
    if as_json:
        typer.echo(json.dumps({**comparison.to_json(), "examples": [example.to_json() for example in found.examples]}))
    elif form == "csv":
        typer.echo(long_table(comparison).csv(), nl=False)
    elif form is not None:
        scores = scores_table(comparison, percent=percent, notes=scores_notes(comparison))
        differences = differences_table(comparison, percent=percent, notes=footnotes(comparison))
        typer.echo(f"{scores.render(form)}\n{differences.render(form)}", nl=False)
        if lines:
            typer.echo("\n".join(["", *(f"{'% ' if form == 'latex' else '    '}{line}" for line in lines)]))
    else:
        out.print(scores_table(comparison, percent=percent, for_terminal=True), soft_wrap=False)
        out.print(differences_table(comparison, percent=percent), soft_wrap=False)
        for line in (*footnotes(comparison), *lines):
            out.print(line, markup=False)
    if plot is not None:
        interval_plot(comparison.standings, plot, percent=percent, alpha=alpha)
    if not comparison.complete:
        raise typer.Exit(1)
