"""A name is a module.

An encoder, dataset, fusion, decoder, objective or metric is one file in its folder, and the file's name is its name on
the command line. Nothing is edited to add one, and nothing is imported that is not used: listing the names reads the
folder. The mechanism is big_vision's (``evaluators/common.py``).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from avpipe.pipeline.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Registry:
    """The modules of one package folder, by name.

    Attributes:
        kind: what its members are, in the singular ("encoder"): used in messages.
        package: the dotted name of the folder. Each folder's ``__init__`` makes its own:
            ``REGISTRY = Registry("encoder", __name__)``.
    """

    kind: str
    package: str

    def names(self) -> list[str]:
        """All registered names, sorted. Imports none of the members."""
        folder = importlib.import_module(self.package)
        found = pkgutil.iter_modules(folder.__path__)
        return sorted(module.name for module in found if not module.name.startswith("_"))

    def load(self, name: str) -> ModuleType:
        """Import one member.

        Raises:
            UnknownNameError: no module of that name; the message lists the known ones and the nearest.
        """
        if name not in self.names():
            raise UnknownNameError(self.kind, name, self.names())
        return importlib.import_module(f"{self.package}.{name}")

    def summary(self, name: str) -> str:
        """The first line of the member's docstring, read from its file without importing it."""
        import ast

        if name not in self.names():
            raise UnknownNameError(self.kind, name, self.names())
        spec = importlib.util.find_spec(f"{self.package}.{name}")  # also of a member that is a folder
        if spec is None or spec.origin is None:
            raise ImportError(f"{self.kind} {name!r} has no source file")
        doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        return doc.splitlines()[0] if doc else ""
