"""The command line. With ``demo.py``, the only place that knows every stage; imports stand inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import click
import typer

from avpipe import __version__
from avpipe.pipeline.errors import AvpipeError, DataError, UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

app = typer.Typer(
    name="avpipe",
    help="Audio-visual video captioning: encode every clip once, train fusion designs cheaply, score them honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WorkspaceOption = Annotated[
    Optional[Path],
    typer.Option("--workspace", "-w", help="Where everything lies. [default: $AVPIPE_HOME or ./avpipe-data]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Overrides = Annotated[
    Optional[list[str]],
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides of the recipe, e.g. train.lr=1e-4."),
]
DatasetOption = Annotated[
    Optional[str], typer.Option("--dataset", "-d", help="Which dataset. [default: the only one there is]")
]

FAILED_CLIPS = 3
INTERRUPTED = 130


def main() -> None:
    """Run the command line; exit 0 all well, 1 an error, 2 wrong usage, 3 done with failed clips, 130 interrupted."""
    try:
        status = app(standalone_mode=False)
    except AvpipeError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        status = error.exit_status
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        typer.secho("interrupted: run the same command again to go on", fg="yellow", err=True)
        status = INTERRUPTED
    sys.exit(status or 0)
