"""Around the stages: ``ls``, ``doctor``, ``demo``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from avpipe.cli._app import (
    JsonOption,
    WorkspaceOption,
    app,
)
from avpipe.pipeline.errors import UnknownNameError
from avpipe.pipeline.workspace import Workspace


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
