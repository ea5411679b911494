"""Stage two: ``train``."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from avpipe.cli._app import (
    DatasetOption,
    JsonOption,
    WorkspaceOption,
    app,
    names,
    overrides,
)


@app.command()
def train(
    overrides: Annotated[list[str] | None, overrides("Laid over the recipe, e.g. train.lr=1e-4.")] = None,
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
            features=names(features),
            modalities=names(modalities),
            seed=seed,
            name=name,
            overrides=overrides or [],
            on_event=on_event,
        )
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one speaks
        return
    if as_json:
        typer.echo(json.dumps({"run": name, "best_score": result.best_score, "best_step": result.best_step}))
        return
    scored = "not validated" if result.best_score is None else f"best CIDEr {result.best_score:.4f} on val"
    cost = f"{result.parameters:,} parameters, {result.seconds / 60:.1f} min, {result.peak_memory_bytes / 1e6:,.0f} MB"
    out.print(f"[bold]{escape(name)}[/]: {scored} at step {result.best_step} of {result.step} ({cost})")
