"""What every metric gives, and what it may use: the contract of ``avpipe/eval/metrics/``.

A metric is a module with three things::

    NAMES = ("ROUGE_L",)            # of its scores, as papers and pycocoevalcap write them
    VERSION = "beta:1.2"            # what changes its numbers, for the signature; "" if nothing does
    def compute(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str], tools: Tools) -> MetricResult

``references`` and ``candidates`` have the same ids in the same order; the captions are PTB-tokenised words with
single spaces between them, and may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from avpipe.eval.java import PATIENCE_SECONDS, Java, find_java
from avpipe.eval.metrics import REGISTRY
from avpipe.pipeline.errors import MissingPackageError, UnknownNameError

References = Mapping[str, Sequence[str]]
Candidates = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """The scores of one metric.

    Attributes:
        corpus: score by name, on the scale of pycocoevalcap (0 to 1; CIDEr 0 to 10).
        per_clip: score by name, then by clip id.
        notes: what a reader of these numbers should know.
    """

    corpus: Mapping[str, float]
    per_clip: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.corpus.keys() != self.per_clip.keys():
            raise ValueError(f"per_clip: expected the names {list(self.corpus)}, got {list(self.per_clip)}")


class Tools:
    """What metrics and the tokeniser use beyond Python. Looks for Java when it is first wanted.

    Args:
        java: use this one; looked for with :func:`avpipe.eval.java.find_java` where not given.
        patience_seconds: how long a child process may show no sign of life before it is killed.
    """

    def __init__(self, java: Java | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._given = java
        self.patience_seconds = patience_seconds

    @cached_property
    def java(self) -> Java:
        """The Java to use.

        Raises:
            JavaError: there is none.
        """
        return self._given or find_java()

    def __getstate__(self) -> dict[str, Any]:
        # Another machine may have it elsewhere.
        return {key: value for key, value in self.__dict__.items() if key != "java"}


class Metric(Protocol):
    """A module of ``avpipe/eval/metrics/``."""

    NAMES: tuple[str, ...]
    VERSION: str

    def compute(self, references: References, candidates: Candidates, tools: Tools) -> MetricResult:
        """Scores of ``candidates`` against ``references``."""


def load(name: str) -> Metric:
    """A metric's module.

    Raises:
        UnknownNameError: no metric of that name.
    """
    return cast(Metric, REGISTRY.load(name))


def find_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Metrics by module name, for names of modules (``cider``) or of scores (``CIDEr``, ``Bleu_4``), each once.

    Raises:
        UnknownNameError: a name is neither.
    """
    modules = {name: load(name) for name in REGISTRY.names()}
    owner = {score.lower(): name for name, module in modules.items() for score in module.NAMES}
    owner |= {name: name for name in modules}
    found = {}
    for name in names:
        if name.lower() not in owner:
            known = [*modules, *(score for module in modules.values() for score in module.NAMES)]
            raise UnknownNameError("metric", name, known)
        found[owner[name.lower()]] = modules[owner[name.lower()]]
    return found


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


def for_original(references: References, candidates: Candidates) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """``gts`` and ``res`` as pycocoevalcap's scorers take them.

    They pair references and candidates by position, so that ids or an order that differ would give wrong numbers.

    Raises:
        ValueError: the ids or their order differ.
    """
    if list(references) != list(candidates):
        raise ValueError("references and candidates: expected the same ids in the same order")
    return {key: list(captions) for key, captions in references.items()}, {
        key: [text] for key, text in candidates.items()
    }
