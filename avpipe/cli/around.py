"""Around the stages: ``ls``, ``doctor``, ``demo``."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from avpipe.cli._app import (
    JsonOption,
    WorkspaceOption,
    app,
)
from avpipe.pipeline.errors import UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace


@app.command(name="ls")
def list_parts(
    what: Annotated[str | None, typer.Argument(help="One kind of part.", show_default="all", metavar="KIND")] = None,
    name: Annotated[
        str | None, typer.Argument(help="Of datasets: one of them.", show_default="all", metavar="NAME")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List encoders, datasets, fusions, decoders, objectives, metrics, recipes, and what the workspace holds.

    `avpipe ls datasets` shows their cards, and the ledger of those that are prepared.
    """
    from avpipe import api
    from avpipe.console import out
    from avpipe.listing import listing

    place = api.open_workspace(workspace)
    if what == "datasets":
        _list_datasets(place, name or "", as_json)
        return
    if name is not None:
        raise UsageError(f"ls: only datasets are shown by name, got {what} {name}")
    there = listing(place)
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


def _list_datasets(workspace: Workspace, name: str, as_json: bool) -> None:
    """Each dataset's card, and what the workspace holds of it."""
    from avpipe.cli.preparing import is_worth_showing, ledger_table
    from avpipe.console import escape, out
    from avpipe.data_manifests.cards import described, official

    told = described(workspace, name)
    if as_json:
        typer.echo(json.dumps({"datasets": told}))
        return
    out.print("[bold]datasets[/]")
    for each, card in told.items():
        out.print(f"  [bold]{escape(each)}[/]  {escape(card['summary'])}")
        counts = official(card["official_clips"])
        per_clip = card["captions_per_clip"] or "any number"
        facts = {
            "official": counts and f"{counts} clips (train / val / test), captions each: {per_clip}",
            "from": card["source"],
            "media": card["media"],
            "licence": card["licence"],
            "paper": card["citation"],
            "checked": card["checked"] and f"counts, against {card['checked']}",
        }
        for what, fact in facts.items():
            if fact:
                out.print(f"    {what:9} {fact}", markup=False)
        prepared = card["prepared"]
        if prepared is None:
            out.print(f"    {'prepared':9} no", markup=False)
        elif "damaged" in prepared:
            out.print(f"    {'prepared':9} damaged: {prepared['damaged']}", markup=False)
        else:
            clips = ", ".join(f"{count:,} {split}" for split, count in prepared["clips"].items() if count)
            out.print(f"    {'prepared':9} {clips}", markup=False)
            if is_worth_showing(prepared["ledger"]):
                out.print(ledger_table(prepared["ledger"]), soft_wrap=False)


@app.command()
def doctor(
    install: Annotated[
        Literal["spice"] | None,
        typer.Option("--install", help="Fetch what avpipe does not bring along: spice, 385 MB from Maven Central."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="With --install: a folder, or its URL, that has the files.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Look whether everything is here that the stages need; or fetch what is missing."""
    from dataclasses import asdict

    from avpipe.console import out
    from avpipe.doctor import examine

    if install is not None:
        from avpipe.eval import corenlp

        folder = corenlp.install(source, tell=lambda line: None if as_json else out.print(line, markup=False))
        if as_json:
            typer.echo(json.dumps({install: str(folder)}))
        return
    if source is not None:
        raise UsageError(f"--from {source} goes with --install")
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
