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
    from avpipe.eval.coverage import Missing
    from avpipe.eval.scores import ScoreReport
    from avpipe.eval.slices import Intervals, SlicedScores
    from avpipe.eval.tables import Table
    from avpipe.pipeline.senses import Senses


@app.command()
def score(
    run: Annotated[str | None, typer.Option("--run", help="Which run.", show_default="the newest")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", "-s", help="Of a run: val or test; each look at test is logged.", show_default="test"),
    ] = None,
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
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Metrics or scores, by comma.", show_default="bleu,meteor,rouge_l,cider"),
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
            help="What CIDEr weighs words by: train, the captions a run was trained on; or a file of captions.",
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
        str | None, typer.Option("--shuffle", help="Caption with these of another clip, drawn at random.")
    ] = None,
    senses: Annotated[
        bool, typer.Option("--senses", help="Whole, and without each modality, and with each of another clip.")
    ] = False,
    shuffle_seed: Annotated[
        int | None,
        typer.Option("--shuffle-seed", min=0, help="Another draw of other clips.", show_default="0"),
    ] = None,
    percent: Annotated[bool, typer.Option("--percent", help="Times 100, as papers print.")] = False,
    with_intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % bootstrap intervals of scores; with --senses, of differences.")
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
    from avpipe.pipeline.senses import Senses

    by_comma = {"--metrics": metrics, "--slices": slices, "--drop": drop, "--shuffle": shuffle}
    for option, text in by_comma.items():
        if text is not None and not names(text):
            raise UsageError(f"{option}: expected names, several by comma, got {text!r}")
    show = _Show(percent=percent, form=form, as_json=as_json, plot=plot, with_intervals=with_intervals)
    show.check()
    how = _How(metrics=names(metrics), missing=missing, intersect=intersect, idf=idf)
    of_a_run = {"--run": run, "--split": split}
    captioned = {"--drop": drop, "--shuffle": shuffle, "--senses": senses, "--shuffle-seed": shuffle_seed}
    if dense:
        _refuse(
            "--dense goes with --predictions, --metrics and --missing, not with",
            {
                **of_a_run, **captioned, "--references": references, "--intersect": intersect, "--slices": slices,
                "--idf": idf, "--dataset": dataset, "--intervals": with_intervals, "--plot": plot,
            },
        )  # fmt: skip
        is_whole = _score_dense(predictions, dense, how, show)
    elif predictions is not None or references is not None:
        if run is not None:
            raise UsageError(f"score a run or a file: got both --run {run} and --predictions or --references")
        _refuse(
            "--drop, --shuffle and --senses caption anew, which takes a run: got a file of predictions and", captioned
        )
        _refuse(
            "a file of predictions holds what was captioned, and is no split of a run; it does not go with", of_a_run
        )
        if dataset and not slices:
            raise UsageError(f"--dataset {dataset} says whose clips they are for --slices, which was not given")
        is_whole = _score_files(predictions, references, how, show, names(slices), dataset, workspace)
    else:
        if dataset:
            raise UsageError(
                f"--dataset {dataset} says whose clips the file of --references holds; a run knows its own"
            )
        if shuffle_seed is not None and not (shuffle or senses):
            raise UsageError("--shuffle-seed draws the other clips of --shuffle and --senses, of which none was given")
        others = {"--drop": drop, "--shuffle": shuffle, "--slices": slices, "--plot": plot}
        if senses:
            _refuse("--senses makes a table of its own; it does not go with", others)
            is_whole = _score_senses(run, split or "test", how, show, shuffle_seed or 0, workspace)
        else:
            made = Senses(dropped=tuple(names(drop)), shuffled=tuple(names(shuffle)), seed=shuffle_seed or 0)
            is_whole = _score_run(run, split or "test", how, show, names(slices), made, workspace)
    if not is_whole:
        raise typer.Exit(1)


def _refuse(why: str, options: Mapping[str, object]) -> None:
    """What would change nothing must not be given."""
    if given := [option for option, value in options.items() if value is not None and value is not False]:
        raise UsageError(f"{why} {', '.join(given)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """How captions are scored."""

    metrics: list[str]
    missing: Missing
    intersect: Path | None
    idf: str | None

    def options(self) -> dict[str, Any]:
        """As arguments of :func:`avpipe.api.score_run` and others."""
        return {"metrics": self.metrics, "missing": self.missing, "intersect": self.intersect, "idf": self.idf}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Show:
    """How scores are shown: ``show(title, notes, values, for_people, for_programs)``."""

    percent: bool
    form: Literal["markdown", "latex", "csv"] | None
    as_json: bool
    plot: Path | None
    with_intervals: bool

    def check(self) -> None:
        """Whether all of it can be done at once, and a picture be drawn.

        Raises:
            UsageError: it cannot.
            MissingPackageError: a picture needs a package that is not here.
        """
        if self.as_json and self.form is not None:
            raise UsageError(f"--json and --format {self.form} are two forms of the same; choose one")
        if self.percent and (self.as_json or self.form == "csv"):
            raise UsageError(
                "--percent is for people; --json and --format csv are for programs, and hold scores as they are"
            )
        if self.plot is not None:
            from avpipe.eval.pictures import check_picture

            check_picture(self.plot)

    @property
    def needs_intervals(self) -> bool:
        """A picture has them, too."""
        return self.with_intervals or self.plot is not None

    def __call__(
        self,
        title: str,
        notes: Sequence[str],
        values: Mapping[str, Any],
        for_people: Table,
        for_programs: Table | None = None,
    ) -> None:
        """For a program, for a paper, or for the terminal."""
        from avpipe.console import escape, out

        if self.as_json:
            typer.echo(json.dumps(values))
        elif self.form == "csv":
            typer.echo((for_programs or for_people).csv(), nl=False)
        elif self.form is not None:
            typer.echo(replace(for_people, notes=tuple(notes)).render(self.form), nl=False)
        else:
            out.print(f"[bold]{escape(title)}[/]")
            out.print(for_people, soft_wrap=False)
            for line in notes:
                out.print(line, markup=False)

    def report(self, system: str | Path, report: ScoreReport, sliced: SlicedScores | None) -> None:
        """Scores of a run or of a file, as a whole or by kind of clip too, and their picture."""
        from avpipe.eval import slices
        from avpipe.eval.comparison import FEW_CLIPS, HOW_INTERVALS, Standing, intervals
        from avpipe.eval.pictures import interval_plot, slice_bars
        from avpipe.eval.scores import footnotes, long_table, table

        title = str(system)
        notes = [*footnotes(report), *(sliced.notes if sliced else ())]
        found: Intervals = {}
        drawn = [name for name, score in report.scores.items() if score is not None]
        if self.needs_intervals and report.scored < 2:
            notes.append("no intervals: of one clip nothing can be said of others")
        elif self.needs_intervals:
            found = sliced.intervals.get(("", "all"), {}) if sliced else intervals(report)
            if report.scored < FEW_CLIPS:
                notes.append(f"{report.scored} clips are few: intervals are too narrow")
            notes.append(HOW_INTERVALS)
        if self.plot is not None and not drawn:
            notes.append(f"{self.plot} is not drawn: there is no score")
        shown = found if self.with_intervals else None
        values = {**report.to_json(), **({} if shown is None else {"intervals": shown})}
        if sliced:
            values |= {"slices": sliced.to_json()["slices"], "notes": [*report.notes, *sliced.notes]}
            for_people = slices.table(sliced, percent=self.percent, with_intervals=self.with_intervals)
            self(title, notes, values, for_people, slices.rows(sliced))
        else:
            self(title, notes, values, table(report, percent=self.percent, intervals=shown), long_table(report, shown))
        if self.plot is not None and drawn and sliced:
            metric = "CIDEr" if "CIDEr" in drawn else drawn[0]
            slice_bars(slices.bars(sliced, metric), self.plot, metric=metric, percent=self.percent, few=FEW_CLIPS)
        elif self.plot is not None and drawn:
            standings = {
                name: Standing(score=score, low=low, high=high, seeds=() if score is None else (score,))
                for name, score in report.scores.items()
                for low, high in [found.get(name, (None, None))]
            }
            name = system.stem if isinstance(system, Path) else system
            interval_plot({name: standings}, self.plot, percent=self.percent)


def _score_run(
    run: str | None, split: str, how: _How, show: _Show, kinds: list[str], made: Senses, workspace: Path | None
) -> bool:
    """Whether every score could be computed, as of the functions below."""
    from avpipe import api

    place = api.open_workspace(workspace)
    run = api.choose_run(place, run)
    parts = api.partitions_of_run(place, run, split, kinds) if kinds else ()
    report = api.score_run(place, run, split, senses=made, **how.options())
    sliced = api.slice_run(place, run, report, parts, made, with_intervals=show.needs_intervals) if kinds else None
    show.report(run, report, sliced)
    return report.complete


def _score_files(
    predictions: Path | None,
    references: Path | None,
    how: _How,
    show: _Show,
    kinds: list[str],
    dataset: str | None,
    workspace: Path | None,
) -> bool:
    from avpipe import api
    from avpipe.eval.slices import SlicedScores

    place = api.open_workspace(workspace) if dataset else None
    parts = api.partitions_of_files(references, kinds, place, dataset) if kinds and references else ()
    report = api.score_files(predictions, references, **how.options())
    sliced = SlicedScores.of(report, parts, with_intervals=show.needs_intervals) if kinds else None
    show.report(predictions or "", report, sliced)
    return report.complete


def _score_senses(run: str | None, split: str, how: _How, show: _Show, seed: int, workspace: Path | None) -> bool:
    from avpipe import api
    from avpipe.eval.side_by_side import notes_below, rows, table

    place = api.open_workspace(workspace)
    run = api.choose_run(place, run)
    found = api.score_senses(place, run, split, seed=seed, with_intervals=show.with_intervals, **how.options())
    show(run, notes_below(found), found.to_json(), table(found, percent=show.percent), rows(found))
    return found.complete


def _score_dense(predictions: Path | None, references: list[Path], how: _How, show: _Show) -> bool:
    from avpipe import api
    from avpipe.eval.dense import footnotes, table

    report = api.score_dense_files(predictions, references, metrics=how.metrics, missing=how.missing)
    grid = table(report, percent=show.percent)
    show(str(predictions), footnotes(report), report.to_json(), grid)
    return report.complete


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
