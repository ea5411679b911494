"""The command line: reads options, calls :mod:`avpipe.api`, prints. Imports stand inside the commands.

One module a stage; a command is registered when its module is imported.
"""

from avpipe.cli._app import app, main

# The order in which --help lists the commands.
# isort: off
from avpipe.cli import preparing, extracting, features, training, sweeping, scoring, comparing, around

# isort: on

__all__ = [
    "app",
    "around",
    "comparing",
    "extracting",
    "features",
    "main",
    "preparing",
    "scoring",
    "sweeping",
    "training",
]
