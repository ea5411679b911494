"""Stage two, many times: ``sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from avpipe.cli._app import FAILED_CLIPS, GpusOption, JsonOption, WorkspaceOption, app, counted


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML file with the choices.", metavar="GRID", show_default=False)],
    leaderboard: Annotated[bool, typer.Option("--leaderboard", help="Train nothing, show how far it is.")] = False,
    split: Annotated[
        str, typer.Option("--split", "-s", help="Which clips the scores are of; test: every look is noted in the run.")
    ] = "val",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs side by side.", show_default="one a GPU, or by the cores"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of each run.", show_default="1; with GPUs the cores, shared"),
    ] = None,
    gpus: GpusOption = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the processes: local, or ray on the machines of a cluster.")
    ] = "local",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train every combination of the choices in a grid file, many at once, and rank them.

    What is finished is skipped, and what was broken off goes on. A run that fails stops no other.
    """
    from avpipe import api
    from avpipe.console import err, out, show_sweep

    found = api.sweep(api.open_workspace(workspace), grid)
    failed: dict[str, str] = {}
    if not leaderboard or split != "val":
        with show_sweep(found.grid.name) as (on_plan, on_event):
            report = found.run(
                split=split,
                is_to_train=not leaderboard,
                jobs=jobs,
                threads=threads,
                gpus=gpus,
                engine=engine,
                on_plan=on_plan,
                on_event=on_event,
            )
        failed = dict(report.failed)
    board = found.leaderboard(split)
    paths = board.write(found.folder)
    if as_json:
        typer.echo(json.dumps(board.to_json()))
    else:
        if out.is_terminal:
            out.print(board.rich(), soft_wrap=False)
            out.print(board.footnote(), markup=False)
        else:  # a log has no width to fit into
            out.print(board.markdown(), markup=False)
        out.print(f"-> {paths[0]}", markup=False)
    for run, reason in failed.items():
        err.print(f"{run} failed: {reason}", markup=False)
    if failed:
        err.print(f"{counted(len(failed), 'run')} failed; the same command tries again", markup=False)
        raise typer.Exit(FAILED_CLIPS)
