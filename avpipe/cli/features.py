"""``avpipe features``: compare feature sets, give them away, take others in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avpipe.cli._app import FAILED_CLIPS, PLACE, DatasetOption, JsonOption, WorkspaceOption, app, counted, size

if TYPE_CHECKING:
    from avpipe.pipeline.difference import ClipDifference, Difference

Form = Literal["npy", "h5", "video-features"]
FORM_HELP = "npy: {id}.npy; h5: one dataset an id; video-features: {id}_{key}.npy."
SHOWN_CLIPS = 10
SHOWN_LETTERS = 60

features = typer.Typer(no_args_is_help=True, help="Compare feature sets, export them, import others.")
app.add_typer(features, name="features")

WHICH_HELP = "A feature set: DATASET/NAME, NAME, or its folder."
KeyOption = Annotated[str, typer.Option("--key", help="Of video-features: rgb for {id}_rgb.npy.", show_default=False)]


@features.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="FIRST", help=WHICH_HELP)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help=WHICH_HELP)],
    dataset: DatasetOption = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            "--min-cosine", help="Exit with 1 if two rows are less alike, or clips differ.", show_default="no demand"
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Compare two feature sets clip by clip: other precision, other versions, another machine."""
    from avpipe import api
    from avpipe.console import show_progress

    place = api.open_workspace(workspace)
    a, b = (api.find_features(place, which, dataset) for which in (first, second))
    with show_progress("features diff", "clips") as progress:
        found = api.diff_features(a, b, on_progress=progress)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _print_difference(found)
    if min_cosine is not None and not found.is_within(min_cosine):
        raise typer.Exit(1)


@features.command(name="export")
def export_features(
    which: Annotated[str, typer.Argument(metavar="FEATURES", help=WHICH_HELP)],
    to: Annotated[Path, typer.Option("--to", help="A new or empty folder.", **PLACE)],
    form: Annotated[Form, typer.Option("--as", help=FORM_HELP)] = "npy",
    key: KeyOption = "",
    dataset: DatasetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a feature set in a form that other programs read."""
    from avpipe import api
    from avpipe.console import out, show_progress

    source = api.find_features(api.open_workspace(workspace), which, dataset)
    with show_progress(f"export {source.spec.name}", "clips") as progress:
        count = api.export_features(source, to, form, key=key, on_progress=progress)
    only = f"; of {source.spec.views} views, the plain one" if source.spec.views > 1 else ""
    out.print(f"{source.spec.name}: {counted(count, 'clip')}, {size(source.bytes)}{only}\n  -> {to}", markup=False)


@features.command(name="import")
def import_features(
    path: Annotated[Path, typer.Argument(help="A folder, or an HDF5 file.", **PLACE)],
    name: Annotated[str, typer.Option("--name", "-n", help="Of the feature set to make.")],
    dataset: DatasetOption = None,
    form: Annotated[Form, typer.Option("--from", help=FORM_HELP)] = "npy",
    key: KeyOption = "",
    modality: Annotated[
        Literal["video", "audio", "text"] | None,
        typer.Option(
            "--modality", "-m", help="What the features are of.", show_default="as spec.json beside them says"
        ),
    ] = None,
    dim: Annotated[
        int | None, typer.Option("--dim", min=1, help="Width of a row.", show_default="that of the first")
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option("--dtype", help="On disk.", show_default="float16 if they are kept so, else float32"),
    ] = None,
    hop_seconds: Annotated[
        float | None,
        typer.Option("--hop-seconds", help="From one row to the next.", show_default="read from files of times"),
    ] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Rows lie evenly over their clip.")] = False,
    model: Annotated[str, typer.Option("--id", help="Which model made them.", show_default="unknown")] = "",
    note: Annotated[str, typer.Option("--note", help="How they were made.", show_default="unknown")] = "",
    format: Annotated[str, typer.Option("--format", "-f", help="hdf5 or webdataset.")] = "hdf5",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make a feature set of features that somebody extracted elsewhere, so that `train` can use them."""
    from avpipe import api
    from avpipe.console import out, show_progress

    with show_progress(f"import {name}", "reads") as progress:
        made = api.import_features(
            api.open_workspace(workspace),
            path,
            name,
            dataset=dataset,
            form=form,
            key=key,
            modality=modality,
            dim=dim,
            dtype=dtype,
            hop_seconds=hop_seconds,
            spread=spread,
            id=model,
            note=note,
            format=format,
            on_progress=progress,
        )
    if as_json:
        typer.echo(json.dumps({"counts": made.counts, "bytes": made.bytes, "fingerprint": made.spec.fingerprint}))
    else:
        parts = " + ".join(f"{count} {status}" for status, count in made.counts.items())
        out.print(f"{name}: {sum(made.counts.values())} clips = {parts}; {size(made.bytes)}", markup=False)
        failed = [outcome for outcome in made.outcomes() if outcome.status == "failed"]
        for outcome in failed[:SHOWN_CLIPS]:
            out.print(f"  {outcome.clip_id}: {outcome.error_type}: {outcome.error_message}", markup=False)
        if len(failed) > SHOWN_CLIPS:
            out.print(f"  ... and {len(failed) - SHOWN_CLIPS} more", markup=False)
    if made.counts["failed"]:
        raise typer.Exit(FAILED_CLIPS)


def _print_difference(found: Difference) -> None:
    from avpipe.console import out

    for line in found.spec:
        out.print(f"spec: {line}", markup=False)
    for which, clip_ids in (("first", found.only_first), ("second", found.only_second)):
        if clip_ids:
            more = ", ..." if len(clip_ids) > SHOWN_CLIPS else ""
            names = ", ".join(clip_ids[:SHOWN_CLIPS])
            out.print(f"{counted(len(clip_ids), 'clip')} in the {which} alone: {names}{more}", markup=False)
    unlike = [clip for clip in found.clips if not clip.is_equal]
    for clip in unlike[:SHOWN_CLIPS]:
        if not clip.same_shape:
            here, there = ("x".join(map(str, shape)) for shape in clip.shapes)
            out.print(f"  {clip.clip_id}: shape {here} against {there}", markup=False)
        if clip.texts:
            here, there = (repr(text[:SHOWN_LETTERS]) for text in clip.texts)
            out.print(f"  {clip.clip_id}: {here} against {there}", markup=False)
        if clip.min_cosine is not None:
            facts = f"{_cosines(clip)}; largest difference {clip.max_abs:.3g}"
            out.print(f"  {clip.clip_id}: {facts}{_times(clip.max_seconds)}", markup=False)
        elif clip.same_shape and not clip.texts:
            out.print(f"  {clip.clip_id}: the same text{_times(clip.max_seconds)}", markup=False)
    if len(unlike) > SHOWN_CLIPS:
        out.print(f"  ... and {len(unlike) - SHOWN_CLIPS} more (--json lists all)", markup=False)
    parts = [f"{found.equal} equal"]
    parts += [f"{found.other_shapes} of other shape"] if found.other_shapes else []
    parts += [f"{found.other_texts} of other text"] if found.other_texts else []
    if found.min_cosine is not None:
        parts += [_cosines(found), f"largest difference {found.max_abs:.3g}"]
    out.print(f"{counted(len(found.clips), 'clip')} compared: {', '.join(parts)}", markup=False)


def _cosines(found: Difference | ClipDifference) -> str:
    """Cut, not rounded: what is not quite 1 shall not look like it."""
    mean, least = (math.floor((value or 0.0) * 1e6) / 1e6 for value in (found.mean_cosine, found.min_cosine))
    return f"cosine {mean:.6f}, least {least:.6f}"


def _times(seconds: float | None) -> str:
    return f"; times differ by up to {seconds:.3g} s" if seconds else ""
