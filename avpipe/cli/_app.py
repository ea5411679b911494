"""The frame of the command line: the program itself, the options that several commands share, and how it speaks."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avpipe import __version__
from avpipe.pipeline.errors import AvpipeError
from avpipe.pipeline.places import place

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

PLACE: Any = {"parser": place, "metavar": "PLACE"}
"""For options that take a folder of this machine or a URL."""
IDS: Any = {**PLACE, "metavar": "IDS"}
"""For options that take a list of ids."""

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="Where everything lies: a folder, or s3://bucket/folder.",
        show_default="$AVPIPE_HOME, or ./avpipe-data",
        **PLACE,
    ),
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
MediaOption = Annotated[Path | None, typer.Option("--media", help="Folder or URL of the media files.", **PLACE)]
GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=0, help="GPUs to use; 0 = the CPU.", show_default="all there are, or the CPU"),
]
DecodersOption = Annotated[
    int | None, typer.Option("--decoders", min=1, help="Decoding processes a GPU.", show_default="the cores, shared")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def overrides(help: str) -> Any:
    return typer.Argument(metavar="KEY=VALUE", help=help, show_default=False)


def _break_off(number: int, frame: FrameType | None) -> None:
    """A batch system wants its machine back: the same as Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line. Exit status: 0 all well, 1 an error, 2 wrong usage, 3 done with failed clips, 130 broken
    off and can go on.
    """
    signal.signal(signal.SIGTERM, _break_off)
    try:
        app()  # exits by itself, and with 2 where the command line is wrong
    except Interrupted as error:
        complain(str(error))
        sys.exit(error.exit_status)
    except AvpipeError as error:
        complain(f"error: {error}")
        sys.exit(error.exit_status)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of avpipe itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def names(text: str | None) -> list[str]:
    """``"a, b"`` as a list; nothing as an empty one."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def complain(message: str) -> None:
    typer.secho(message, fg="red", err=True)


def duration(seconds: float) -> str:
    """For people: ``"27 ms"``, ``"3.1 min"``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "under 1 ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def size(count: float) -> str:
    from avpipe.pipeline.files import bytes_text

    return bytes_text(int(count))
