"""Stage one: ``extract``, ``retry``, ``verify``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avpipe.cli._app import (
    FAILED_CLIPS,
    DatasetOption,
    DecodersOption,
    EncodersOption,
    ExtractRecipeOption,
    GpusOption,
    JsonOption,
    MediaOption,
    WorkspaceOption,
    app,
    complain,
    counted,
    duration,
    names,
    overrides,
    size,
)

if TYPE_CHECKING:
    from avpipe.api import Extraction
    from avpipe.extract.forecast import Forecast
    from avpipe.extract.run import ExtractReport
    from avpipe.pipeline.check import Report
    from avpipe.pipeline.shards import Mark

SHOWN_WARNINGS = 20
MOST_DECODERS = 256
"""A device: where so many would not do, decoding is all there is to do, and to advise more is no advice."""


ResidencyOption = Annotated[
    Literal["together", "turns"],
    typer.Option("--residency", help="All encoders on the device together, or one after the other, in turns."),
]


@app.command()
def extract(
    overrides: Annotated[list[str] | None, overrides("Options of the encoders, e.g. clip_vit.frames=8.")] = None,
    dataset: DatasetOption = None,
    recipe: ExtractRecipeOption = "default",
    encoders: EncodersOption = None,
    gpus: GpusOption = None,
    gpu_share: Annotated[
        float, typer.Option("--gpu-share", help="Part of a GPU that a worker takes; with 0.5, two share each.")
    ] = 1.0,
    decoders: DecodersOption = None,
    format: Annotated[str, typer.Option("--format", "-f", help="hdf5 or webdataset.")] = "hdf5",
    media: MediaOption = None,
    residency: ResidencyOption = "together",
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
        encoders=names(encoders),
        overrides=overrides or [],
        media=media,
        format=format,
        gpus=gpus,
        gpu_share=gpu_share,
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
    residency: ResidencyOption = "together",
    media: MediaOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Try the failed clips again, and extract the shards anew in which some would go well today."""
    from avpipe import api
    from avpipe.console import err, show_progress

    extraction = api.extraction_again(
        api.open_workspace(workspace),
        dataset,
        encoders=names(encoders),
        media=media,
        gpus=gpus,
        decoders=decoders,
        residency=residency,
    )
    with show_progress("try again", "failed clips") as progress:
        redo = api.mended(extraction, only, progress)
    for kind, count in sorted(redo.failing.items()):
        err.print(f"  {count} still failing: {kind}", markup=False)
    _run_extraction(extraction, as_json, redo=redo)


@app.command()
def verify(
    dataset: DatasetOption = None,
    encoders: Annotated[
        str | None, typer.Option("--encoders", "-e", help="Feature sets, by comma.", show_default="all there are")
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep/--quick",
            help="Read every shard (hashes, shapes, NaN, unusual clips), or look at marks and sizes alone.",
        ),
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Check that the feature sets are whole: each clip of the manifest accounted for, each shard as it was written."""
    from avpipe import api
    from avpipe.console import show_progress

    place = api.open_workspace(workspace)
    dataset = api.choose_dataset(place, dataset, extracted=True)
    with show_progress(f"verify {dataset}", "shards") as progress:
        reports = api.verify(place, dataset, names=names(encoders), deep=deep, on_progress=progress)
    if as_json:
        typer.echo(json.dumps({name: report.to_json() for name, report in reports.items()}))
    else:
        for name, report in reports.items():
            _print_report(name, report)
    if not all(report.is_whole for report in reports.values()):
        raise typer.Exit(1)


def _print_report(name: str, report: Report) -> None:
    from avpipe.console import out

    parts = [f"{report.counts[status]} {status}" for status in ("ok", "failed", "skipped")]
    parts += [f"{report.missing} missing"] if report.missing else []
    state = counted(len(report.problems), "problem") if report.problems else "whole"
    out.print(f"{name}: {state}; {report.expected} clips = {' + '.join(parts)}", markup=False)
    for problem in report.problems:
        out.print(f"  {problem}", markup=False)
    if report.facts:
        out.print(f"  {', '.join(_fact(what, value) for what, value in report.facts.items())}", markup=False)
    if report.oddities:
        out.print(f"  {counted(len(report.oddities), 'warning')}", markup=False)
    for oddity in report.oddities[:SHOWN_WARNINGS]:
        out.print(f"    {oddity}", markup=False)
    if len(report.oddities) > SHOWN_WARNINGS:
        out.print(f"    ... and {len(report.oddities) - SHOWN_WARNINGS} more (--json lists all)", markup=False)


def _fact(what: str, value: float) -> str:
    if what.endswith("_share"):
        return f"{100 * value:.1f} % of the texts {what.removesuffix('_share')}"
    return f"{value:.0f} rows" if what == "rows" else f"{what.replace('_', ' ')} {value:.4g}"


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
        out.print(f"[bold]{escape(name)}[/]: {total} clips = {' + '.join(parts)}; {size(report.bytes[name])}")
        for kind, count in sorted(report.faults[name].items()):
            out.print(f"  {count} {kind}", markup=False)
    for shard, reason in report.lost_shards.items():
        complain(f"shard {shard} was given up: {reason}")


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
    time = duration(3600 * forecast.hours)
    wanted = forecast.decoders_wanted
    is_advice = wanted is not None and forecast.decoders < wanted <= MOST_DECODERS
    advice = f", {wanted} a device would let it never wait" if is_advice else ""
    out.print(
        f"{forecast.clips} clips, measured on {forecast.sampled} of them ({forecast.failed} could not be decoded)\n"
        f"  {time} at {forecast.clips_per_second:.1f} clips/s, bound by {forecast.bound_by}\n"
        f"  devices: {forecast.workers}, {duration(3600 * forecast.device_hours)} of work in all\n"
        f"  decoding: {duration(forecast.decode_seconds)} a clip, {duration(3600 * forecast.decode_hours)} in all; "
        f"{counted(forecast.decoders, 'process', 'processes')} a device{advice}",
        markup=False,
    )
    for name, seconds in forecast.encode_seconds.items():
        out.print(f"  {name}: {duration(seconds)} a clip, {size(forecast.bytes[name])}", markup=False)
    needed = sum(forecast.bytes.values())
    if forecast.free_bytes is None:
        out.print(f"  storage: {size(needed)} needed")
        return
    enough = "enough" if forecast.fits else "[red]NOT enough[/]"
    out.print(f"  disk: {size(needed)} needed, {size(forecast.free_bytes)} free: {enough}")
