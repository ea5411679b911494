"""What metrics and the tokeniser use beyond Python."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avpipe.eval.java import PATIENCE_SECONDS, Java, find_java
from avpipe.pipeline.errors import MissingPackageError


class Tools:
    """Java and its limits. Looks for Java when it is first wanted.

    Args:
        java: use this one; looked for with :func:`avpipe.eval.java.find_java` where not given.
        patience_seconds: how long a child process may show no sign of life before it is killed.
        processes: how many children a metric may have at once; where not given, as many as cores, memory and the
            number of captions make worth it.
        spice: folder of the CoreNLP jars that SPICE needs; looked for with :func:`avpipe.eval.corenlp.find_corenlp`
            where not given.

    Raises:
        ValueError: fewer than one process.
    """

    def __init__(
        self,
        java: Java | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        processes: int | None = None,
        spice: Path | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes: expected 1 or more, got {processes}")
        self._given = java
        self.patience_seconds, self.processes, self.spice = patience_seconds, processes, spice

    @cached_property
    def java(self) -> Java:
        """The Java to use.

        Raises:
            JavaError: there is none.
        """
        return self._given or find_java()

    @property
    def java_used(self) -> Java | None:
        """The Java that was asked for so far, or ``None``: nothing needed one."""
        return self.__dict__.get("java")

    def __getstate__(self) -> dict[str, Any]:
        # Another machine may have it elsewhere.
        return {key: value for key, value in self.__dict__.items() if key != "java"}


def pycocoevalcap_file(*parts: str) -> Path:
    """A file of the installed pycocoevalcap.

    Raises:
        MissingPackageError: it is not there.
    """
    spec = find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, *parts)).is_file():
            return path
    name = "/".join(("pycocoevalcap", *parts))
    raise MissingPackageError(f"{name} is not there. Try: pip install --force-reinstall pycocoevalcap==1.2")


def pycocoevalcap_version() -> str:
    """The installed version, which defines the numbers."""
    return version("pycocoevalcap")
