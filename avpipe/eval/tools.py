"""What metrics and the tokeniser use beyond Python."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.eval.java import PATIENCE_SECONDS, Java, find_java
from avpipe.eval.networks import Networks
from avpipe.pipeline.errors import MissingPackageError

if TYPE_CHECKING:
    from avpipe.pipeline.features import FeatureSource


class Tools:
    """Java and its limits, networks and their weights. Looks for either when it is first wanted.

    Args:
        java: use this one; looked for with :func:`avpipe.eval.java.find_java` where not given.
        patience_seconds: how long a child process may show no sign of life before it is killed.
        weights: where to find those of networks that judge captions, by :data:`avpipe.eval.networks.DEFAULTS`' names.
        pictures: features of what is to be seen, in the space that a CLIP shares with text; ``None``: there are none.
        processes: how many children a metric may have at once, or threads in its one child (METEOR); where not given,
            as many as cores, memory and the number of captions make worth it.
        spice: folder of the CoreNLP jars that SPICE needs; looked for with :func:`avpipe.eval.corenlp.find_corenlp`
            where not given.

    Attributes:
        patience_seconds: as given.
        pictures: as given.
        processes: as given.
        spice: as given.
        java_used: the Java that was asked for so far, or ``None``: nothing needed one.
        networks: the networks that metrics ask for; read when first wanted.

    Raises:
        UnknownNameError: ``weights`` names no such network.
        ValueError: fewer than one process.
    """

    def __init__(
        self,
        java: Java | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        weights: Mapping[str, str] | None = None,
        pictures: FeatureSource | None = None,
        processes: int | None = None,
        spice: Path | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes: expected 1 or more, got {processes}")
        self._given = java
        self.networks = Networks(weights or {})
        self.pictures = pictures
        self.patience_seconds, self.processes, self.spice = patience_seconds, processes, spice
        self.java_used: Java | None = None
        self._lock = threading.Lock()

    @property
    def java(self) -> Java:
        """The Java to use.

        Raises:
            JavaError: there is none.
        """
        with self._lock:  # metrics ask from several threads
            self.java_used = self.java_used or self._given or find_java()
            return self.java_used

    def __getstate__(self) -> dict[str, Any]:
        # Another machine may have it elsewhere.
        return {key: value for key, value in self.__dict__.items() if key not in ("java_used", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "java_used": None, "_lock": threading.Lock()}


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
