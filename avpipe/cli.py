"""The command line: reads options, calls :mod:`avpipe.api`, prints. Imports stand inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from avpipe import __version__
from avpipe.pipeline.errors import AvpipeError, ClipError, UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.api import Extraction
    from avpipe.extract.forecast import Forecast
    from avpipe.extract.run import ExtractReport
    from avpipe.pipeline.shards import Mark

FAILED_CLIPS = 3
INTERRUPTED = 130


class Interrupted(AvpipeError):
    """The user broke it off; what is finished is kept."""

    exit_status = INTERRUPTED


class _Commands(TyperGroup):
    """Catches Ctrl-C before typer does, which would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted: the same command goes on from here") from None


app = typer.Typer(
    name="avpipe",
    cls=_Commands,
    help="Audio-visual video captioning: encode every clip once, train fusion designs cheaply, score them honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Where everything lies.", show_default="$AVPIPE_HOME, or ./avpipe-data"),
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Which dataset.", show_default="the only one there is")
]
EncodersOption = Annotated[
    str | None, typer.Option("--encoders", "-e", help="Feature sets, by comma.", show_default="all of the recipe")
]
ExtractRecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="Which encoders: a recipe's name, or a YAML file.")
]
MediaOption = Annotated[Path | None, typer.Option("--media", help="Folder of the media files.")]
GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=0, help="GPUs to use; 0 = the CPU.", show_default="all there are, or the CPU"),
]
DecodersOption = Annotated[
    int | None, typer.Option("--decoders", min=1, help="Decoding processes a GPU.", show_default="the cores, shared")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _overrides(help: str) -> Any:
    return typer.Argument(metavar="KEY=VALUE", help=help, show_default=False)


def main() -> None:
    """Run the command line. Exit status: 0 all well, 1 an error, 2 wrong usage, 3 done with failed clips, 130 broken
    off and can go on.
    """
    try:
        app()  # exits by itself, and with 2 where the command line is wrong
    except Interrupted as error:
        _complain(str(error))
        sys.exit(error.exit_status)
    except AvpipeError as error:
        _complain(f"error: {error}")
        sys.exit(error.exit_status)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of avpipe itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


# -- stage one ---------------------------------------------------------------------------------------------------------


@app.command()
def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Name of a dataset; `avpipe ls datasets` lists them.")
    ],
    overrides: Annotated[list[str] | None, _overrides("Options of the dataset, e.g. clips.train=400.")] = None,
    media: MediaOption = None,
    annotations: Annotated[Path | None, typer.Option("--annotations", help="Annotation file or folder.")] = None,
    clips_per_shard: Annotated[
        int | None, typer.Option("--clips-per-shard", min=1, help="Clips in one file of features.", show_default="256")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the manifest of a dataset: which clips there are, and their captions."""
    from avpipe import api
    from avpipe.console import Meter, escape, out

    place = api.open_workspace(workspace)
    meter: Meter | None = None

    def progress(done: int, total: int) -> None:
        nonlocal meter
        if meter is None:
            meter = Meter(f"prepare {dataset}", total, "files").__enter__()
        meter.advance_to(done)

    try:
        header = api.prepare(
            place,
            dataset,
            media=media,
            annotations=annotations,
            overrides=overrides or [],
            clips_per_shard=clips_per_shard,
            progress=progress,
        )
    finally:
        if meter:
            meter.__exit__(None, None, None)
    counts = ", ".join(
        f"{count} {split} ({header.captions[split]} captions)" for split, count in header.clips.items() if count
    )
    out.print(f"[bold]{escape(header.dataset)}[/]: {counts}")
    for note in header.notes:
        out.print(f"  {note}", markup=False)
    out.print(f"  -> {place.manifest(header.dataset)}", markup=False)


@app.command()
def extract(
    overrides: Annotated[list[str] | None, _overrides("Options of the encoders, e.g. clip_vit.frames=8.")] = None,
    dataset: DatasetOption = None,
    recipe: ExtractRecipeOption = "default",
    encoders: EncodersOption = None,
    gpus: GpusOption = None,
    decoders: DecodersOption = None,
    format: Annotated[str, typer.Option("--format", "-f", help="hdf5 or webdataset.")] = "hdf5",
    media: MediaOption = None,
    residency: Annotated[
        Literal["together", "turns"],
        typer.Option("--residency", help="All encoders on the device together, or one after the other, in turns."),
    ] = "together",
    engine: Annotated[str, typer.Option("--engine", help="What runs the workers: local or ray.")] = "local",
    part: Annotated[
        str | None,
        typer.Option("--part", help="Only this share of the shards, e.g. 3/16 in a SLURM array.", show_default="all"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only forecast time and size.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run the frozen encoders over a dataset, once. Goes on where a former run was broken off."""
    from avpipe import api

    extraction = api.extraction(
        api.open_workspace(workspace),
        dataset,
        recipe=recipe,
        encoders=_names(encoders),
        overrides=overrides or [],
        media=media,
        format=format,
        gpus=gpus,
        decoders=decoders,
        residency=residency,
        part=part,
        engine=engine,
    )
    if dry_run:
        _print_forecast(extraction.forecast(), as_json)
        return
    _run_extraction(extraction, as_json)


@app.command()
def retry(
    only: Annotated[str | None, typer.Option("--only", help="One kind of failure.", show_default="all")] = None,
    dataset: DatasetOption = None,
    encoders: EncodersOption = None,
    gpus: GpusOption = None,
    decoders: DecodersOption = None,
    media: MediaOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Extract the shards with failed clips again, after their files were mended."""
    from avpipe import api

    extraction = api.extraction_again(
        api.open_workspace(workspace), dataset, encoders=_names(encoders), media=media, gpus=gpus, decoders=decoders
    )
    _run_extraction(extraction, as_json, redo=api.failed(extraction, only))


@app.command()
def verify(
    dataset: DatasetOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and marks only; do not read every byte.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Check every byte of the feature sets against their completion marks."""
    from avpipe import api
    from avpipe.console import out

    place = api.open_workspace(workspace)
    dataset = api.choose_dataset(place, dataset, extracted=True)
    problems = api.verify(place, dataset, deep=not quick)
    if as_json:
        typer.echo(json.dumps({name: [str(problem) for problem in found] for name, found in problems.items()}))
    else:
        for name, found in problems.items():
            out.print(f"{name}: {_counted(len(found), 'problem') if found else 'whole'}", markup=False)
            for problem in found:
                out.print(f"  {problem}", markup=False)
    if any(problems.values()):
        raise typer.Exit(1)


# -- stage two ---------------------------------------------------------------------------------------------------------


@app.command()
def train(
    overrides: Annotated[list[str] | None, _overrides("Laid over the recipe, e.g. train.lr=1e-4.")] = None,
    fusion: Annotated[str | None, typer.Option("--fusion", "-f", help="Instead of the recipe's fusion.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name, or a YAML file.")] = "default",
    dataset: DatasetOption = None,
    features: Annotated[
        str | None, typer.Option("--features", help="Feature sets, by comma.", show_default="all there are")
    ] = None,
    modalities: Annotated[
        str | None, typer.Option("--modalities", "-m", help="video, audio, text, by comma.", show_default="all")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of weights, order and dropout.", show_default="the recipe's")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Of the run.", show_default="made of the settings")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a fusion and a decoder on extracted features. Goes on where a former run was broken off."""
    from avpipe import api
    from avpipe.console import escape, out, show_training

    with show_training() as on_event:
        name, result = api.train(
            api.open_workspace(workspace),
            recipe=recipe,
            dataset=dataset,
            fusion=fusion,
            features=_names(features),
            modalities=_names(modalities),
            seed=seed,
            name=name,
            overrides=overrides or [],
            on_event=on_event,
        )
    if as_json:
        typer.echo(json.dumps({"run": name, "best_score": result.best_score, "best_step": result.best_step}))
        return
    scored = "not validated" if result.best_score is None else f"best CIDEr {result.best_score:.4f} on val"
    out.print(f"[bold]{escape(name)}[/]: {scored} at step {result.best_step} of {result.step}")


# -- stage three -------------------------------------------------------------------------------------------------------


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
    metrics: Annotated[str | None, typer.Option("--metrics", help="By comma.", show_default="all")] = None,
    missing: Annotated[
        Literal["error", "empty", "drop"],
        typer.Option("--missing", help="A clip without caption: error, empty (scored as one), drop."),
    ] = "error",
    percent: Annotated[bool, typer.Option("--percent", help="Times 100, as papers print.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Score captions: of a run (they are generated if need be), or of a file of predictions from any model."""
    from avpipe import api
    from avpipe.console import escape, out
    from avpipe.eval.scores import footnotes, table

    if predictions is not None or references is not None:
        if run is not None:
            raise UsageError(f"score a run or a file: got both --run {run} and --predictions or --references")
        report = api.score_files(predictions, references, metrics=_names(metrics), missing=missing)
    else:
        place = api.open_workspace(workspace)
        run = api.choose_run(place, run)
        report = api.score_run(place, run, split, metrics=_names(metrics), missing=missing)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        out.print(f"[bold]{escape(str(run or predictions))}[/]")
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
        _complain(f"error: {file}: {error.message} ({error.kind})")
        raise typer.Exit(FAILED_CLIPS) from None
    if as_json:
        lines = [{"text": beam.text, "log_prob": beam.log_prob} for beam in found.beams]
        typer.echo(json.dumps({"text": found.text, "log_prob": found.log_prob, "beams": lines}))
        return
    typer.echo(found.text)
    for beam in found.beams if beams else ():
        typer.echo(f"  {beam.log_prob:8.3f}  {beam.text}")


# -- around them -------------------------------------------------------------------------------------------------------


@app.command(name="ls")
def list_parts(
    what: Annotated[str | None, typer.Argument(help="One kind of part.", show_default="all", metavar="KIND")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List encoders, datasets, fusions, decoders, metrics, recipes, and what the workspace holds."""
    from avpipe import api
    from avpipe.console import out
    from avpipe.listing import listing

    there = listing(api.open_workspace(workspace))
    if what is not None and what not in there:
        raise UnknownNameError("kind of part", what, there)
    shown = {what: there[what]} if what else there
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for kind, parts in shown.items():
        out.print(f"[bold]{kind}[/]{'' if parts else '  none'}")
        width = max(map(len, parts), default=0)
        for part, summary in parts.items():
            out.print(f"  {part:{width}}  {summary}", markup=False)


@app.command()
def doctor(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Look whether everything is here that the stages need."""
    from dataclasses import asdict

    from avpipe.console import out
    from avpipe.doctor import examine

    findings = list(examine(Workspace.find(workspace)))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        colours = {"ok": "green", "note": "yellow", "fault": "red"}
        for finding in findings:
            colour = colours[finding.status]
            out.print(f"[{colour}]{finding.status:5}[/] [bold]{finding.check}[/]  ", end="")
            out.print(finding.detail, markup=False)
            if finding.advice:
                out.print(f"      {finding.advice}", markup=False)
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    seed: Annotated[int, typer.Option("--seed", help="Of the clips and of the training.")] = 0,
    fusion: Annotated[str, typer.Option("--fusion", help="Which fusion to show.")] = "qformer",
    workspace: WorkspaceOption = None,
) -> None:
    """The whole job on rendered clips: does hearing help, and does it take both to know?"""
    from avpipe import api
    from avpipe.demo import run

    run(api.open_workspace(workspace), seed=seed, fusion=fusion)


# -- printing ----------------------------------------------------------------------------------------------------------


def _names(text: str | None) -> list[str]:
    """``"a, b"`` as a list; nothing as an empty one."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _complain(message: str) -> None:
    typer.secho(message, fg="red", err=True)


def _run_extraction(extraction: Extraction, as_json: bool, redo: Callable[[Mark], bool] | None = None) -> None:
    from dataclasses import fields

    from avpipe.console import show_extraction

    with show_extraction(extraction, redo) as on_event:
        report = extraction.run(redo=redo, on_event=on_event)
    if as_json:
        typer.echo(json.dumps({field.name: getattr(report, field.name) for field in fields(report)}))
    else:
        _print_extraction(report)
    if report.lost_shards:
        raise typer.Exit(1)
    if not report.is_complete:
        raise typer.Exit(FAILED_CLIPS)


def _print_extraction(report: ExtractReport) -> None:
    from avpipe.console import escape, out

    for name, counts in report.counts.items():
        total = sum(counts.values())
        parts = [f"{counts[status]} {status}" for status in ("ok", "failed", "skipped")]
        out.print(f"[bold]{escape(name)}[/]: {total} clips = {' + '.join(parts)}; {_size(report.bytes[name])}")
        for kind, count in sorted(report.faults[name].items()):
            out.print(f"  {count} {kind}", markup=False)
    for shard, reason in report.lost_shards.items():
        _complain(f"shard {shard} was given up: {reason}")


def _print_forecast(forecast: Forecast, as_json: bool) -> None:
    from dataclasses import asdict

    from avpipe.console import out

    if as_json:
        made_of_it = (
            "hours",
            "device_hours",
            "decode_hours",
            "clips_per_second",
            "bound_by",
            "decoders_wanted",
            "fits",
        )
        typer.echo(json.dumps({**asdict(forecast), **{key: getattr(forecast, key) for key in made_of_it}}))
        return
    time = _duration(3600 * forecast.hours)
    wanted = forecast.decoders_wanted
    advice = f", {wanted} a device would let it never wait" if wanted and wanted > forecast.decoders else ""
    out.print(
        f"{forecast.clips} clips, measured on {forecast.sampled} of them ({forecast.failed} could not be decoded)\n"
        f"  {time} at {forecast.clips_per_second:.1f} clips/s, bound by {forecast.bound_by}\n"
        f"  devices: {forecast.workers}, {_duration(3600 * forecast.device_hours)} of work in all\n"
        f"  decoding: {_duration(forecast.decode_seconds)} a clip, {_duration(3600 * forecast.decode_hours)} in all; "
        f"{_counted(forecast.decoders, 'process', 'processes')} a device{advice}",
        markup=False,
    )
    for name, seconds in forecast.encode_seconds.items():
        out.print(f"  {name}: {_duration(seconds)} a clip, {_size(forecast.bytes[name])}", markup=False)
    needed = sum(forecast.bytes.values())
    enough = "enough" if forecast.fits else "[red]NOT enough[/]"
    out.print(f"  disk: {_size(needed)} needed, {_size(forecast.free_bytes)} free: {enough}")


def _duration(seconds: float) -> str:
    """For people: ``"27 ms"``, ``"3.1 min"``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "under 1 ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def _size(count: float) -> str:
    from avpipe.pipeline.files import bytes_text

    return bytes_text(int(count))
