"""Which clips there are: ``prepare``, ``manifest``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avpipe.cli._app import (
    IDS,
    PLACE,
    DatasetOption,
    JsonOption,
    MediaOption,
    WorkspaceOption,
    app,
    counted,
    overrides,
)

if TYPE_CHECKING:
    from rich.table import Table

    from avpipe.data_manifests.manifest import Header


@app.command()
def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Name of a dataset; `avpipe ls datasets` lists them.")
    ],
    overrides: Annotated[
        list[str] | None, overrides("Options of the dataset, e.g. splits=[val,test] or clips.train=400.")
    ] = None,
    media: MediaOption = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="Annotation file or folder, or URL.", **PLACE)
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Look into each media file: readable, how long, with sound to hear."),
    ] = True,
    intersect: Annotated[
        Path | None, typer.Option("--intersect", help="Only the clips on this list of ids.", **IDS)
    ] = None,
    clips_per_shard: Annotated[
        int | None, typer.Option("--clips-per-shard", min=1, help="Clips in one file of features.", show_default="256")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the manifest of a dataset: which clips there are, their captions, and what became of the others."""
    from avpipe import api
    from avpipe.console import show_progress

    place = api.open_workspace(workspace)
    with show_progress(f"prepare {dataset}", "files") as progress:
        header = api.prepare(
            place,
            dataset,
            media=media,
            annotations=annotations,
            overrides=overrides or [],
            probe=probe,
            intersect=intersect,
            clips_per_shard=clips_per_shard,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(asdict(header)))
        return
    _print_header(header)
    from avpipe.console import out
    from avpipe.data_manifests.prepare import ledger_path

    manifest = place.manifest(header.dataset)
    out.print(f"  -> {manifest}", markup=False)
    if any(row.get("missing") or row.get("faulty") or row.get("unreadable") for row in header.ledger.values()):
        out.print(f"  -> {ledger_path(manifest)}: which clips are missing, faulty or unreadable", markup=False)


manifests = typer.Typer(help="Manifests for other programs.", no_args_is_help=True)
app.add_typer(manifests, name="manifest")


@manifests.command(name="export")
def export_manifest(
    to: Annotated[Path, typer.Option("--to", help="The file to write.", **{**PLACE, "metavar": "FILE"})],
    form: Annotated[
        Literal["coco", "valor", "csv", "lhotse"], typer.Option("--as", help="coco, valor, csv or lhotse.")
    ] = "coco",
    split: Annotated[str | None, typer.Option("--split", "-s", help="train, val or test.", show_default="all")] = None,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a manifest as others keep theirs; `avpipe prepare folder` reads all of these forms."""
    from avpipe import api
    from avpipe.console import out

    place = api.open_workspace(workspace)
    written = api.export_manifest(place, api.choose_dataset(place, dataset), to, form=form, split=split)
    if as_json:
        typer.echo(json.dumps(asdict(written), default=str))
        return
    out.print(f"{counted(written.clips, 'clip')}, {counted(written.captions, 'caption')} -> {to}", markup=False)
    for note in written.notes:
        out.print(f"  {note}", markup=False)


def _print_header(header: Header) -> None:
    from avpipe.console import escape, out

    counts = ", ".join(
        f"{count} {split} ({counted(header.captions[split], 'caption')})"
        for split, count in header.clips.items()
        if count
    )
    out.print(f"[bold]{escape(header.dataset)}[/]: {counts}")
    if is_worth_showing(header.ledger):
        out.print(ledger_table(header.ledger), soft_wrap=False)
    for note in header.notes:
        out.print(f"  {note}", markup=False)


def is_worth_showing(ledger: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the ledger says more than the counts."""
    return any(
        row.get("official") is not None or row.get("with_audio") is not None or row["annotated"] != row["clips"]
        for row in ledger.values()
    )


def ledger_table(ledger: Mapping[str, Mapping[str, Any]]) -> Table:
    """The ledger for a terminal: a row a count, a column a split; 54 letters wide."""
    from rich.table import Table

    from avpipe.data_manifests.ledger import shown

    heading, *body = zip(*shown(ledger), strict=True)
    table = Table(box=None, header_style="dim", padding=(0, 0, 0, 2))
    for name in heading:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table
