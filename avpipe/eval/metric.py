"""What every metric gives, and what it may use: the contract of ``avpipe/eval/metrics/``.

A metric is a module with three things::

    NAMES = ("ROUGE_L",)            # of its scores, as papers and pycocoevalcap write them
    VERSION = "beta:1.2"            # what changes its numbers, for the signature; "" if nothing does
    def compute(evaluation: Evaluation) -> MetricResult

and, where a corpus score is not the mean of the clips' scores, with a fourth. Either it is a function of sums over the
clips, as BLEU's is (``MetricResult.statistics`` holds what is summed)::

    def aggregate(sums: NDArray) -> dict[str, NDArray]     # (samples, k) -> score by name, (samples,)

or it belongs to the set of captions as a whole, as the size of a vocabulary does, and cannot be resampled::

    OF_THE_SET = True

One whose scores are not the better the higher they are says so, for tables and for who wins a clip::

    BETTER = "lower"        # or "neither"

One with scores that are no shares, and that papers do not print times 100, names them::

    COUNTS = ("Length",)

A metric that runs in Java says ``JAVA = True``; the version of Java then stands in its signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from avpipe.eval.metrics import REGISTRY
from avpipe.pipeline.errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avpipe.eval.evaluation import Evaluation
    from avpipe.eval.java import Java


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetricResult:
    """The scores of one metric.

    Attributes:
        corpus: score by name, on the scale of pycocoevalcap (0 to 1; CIDEr 0 to 10).
        per_clip: score by name, then by clip id.
        statistics: ``(clips, k)``: the sums of these over clips make the corpus score, by the module's ``aggregate``.
            ``None``: the corpus score is the mean of the clips' scores.
        notes: what a reader of these numbers should know.
        version: in the place of the module's, where weights or the like change the numbers too; "": the module's.
    """

    corpus: Mapping[str, float]
    per_clip: Mapping[str, Mapping[str, float]]
    statistics: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        if self.corpus.keys() != self.per_clip.keys():
            raise ValueError(f"per_clip: expected the names {list(self.corpus)}, got {list(self.per_clip)}")

    @classmethod
    def of_means(
        cls, per_clip: Mapping[str, Mapping[str, float]], notes: tuple[str, ...] = (), version: str = ""
    ) -> MetricResult:
        """Of a metric whose corpus scores are means over the clips."""
        corpus = {name: sum(scores.values()) / len(scores) for name, scores in per_clip.items()}
        return cls(corpus=corpus, per_clip=per_clip, notes=notes, version=version)

    @classmethod
    def of_sums(
        cls,
        clip_ids: Iterable[str],
        statistics: npt.NDArray[np.float64],
        aggregate: Callable[[npt.NDArray[np.float64]], Mapping[str, npt.NDArray[np.float64]]],
    ) -> MetricResult:
        """Of a metric whose corpus scores are made of sums over the clips.

        Args:
            clip_ids: in the order of the rows.
            statistics: ``(clips, k)``.
            aggregate: the module's own.
        """
        ids = list(clip_ids)
        whole, each = aggregate(statistics.sum(axis=0, keepdims=True)), aggregate(statistics)
        return cls(
            corpus={name: float(score[0]) for name, score in whole.items()},
            per_clip={name: dict(zip(ids, scores.tolist(), strict=True)) for name, scores in each.items()},
            statistics=statistics,
        )


class Metric(Protocol):
    """A module of ``avpipe/eval/metrics/``."""

    NAMES: tuple[str, ...]
    VERSION: str

    def compute(self, evaluation: Evaluation) -> MetricResult:
        """Scores of one caption a clip against its references.

        Raises:
            AvpipeError: it cannot run here (Java, jars, weights); what is missing is named, and where to get it.
        """


def load(name: str) -> Metric:
    """A metric's module.

    Raises:
        UnknownNameError: no metric of that name.
    """
    return cast(Metric, REGISTRY.load(name))


def aggregate(name: str, sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Corpus scores of a metric that gives ``statistics``, from their sums.

    Args:
        name: of the module.
        sums: ``(samples, k)``.

    Returns:
        By score name, ``(samples,)``.
    """
    module: Any = load(name)
    scores: dict[str, npt.NDArray[np.float64]] = module.aggregate(sums)
    return scores


def is_of_the_set(name: str) -> bool:
    """Whether a metric's corpus scores belong to the set of captions as a whole, and cannot be resampled."""
    return bool(getattr(load(name), "OF_THE_SET", False))


def direction(name: str) -> int:
    """1 where a higher score of a metric is better, -1 where a lower one is, 0 where neither is."""
    return {"higher": 1, "lower": -1, "neither": 0}[getattr(load(name), "BETTER", "higher")]


def is_share(score: str) -> bool:
    """Whether a score is printed times 100 where that is asked for: it is no count."""
    return score not in _counts()


@cache
def _counts() -> frozenset[str]:
    return frozenset(score for name in REGISTRY.names() for score in getattr(load(name), "COUNTS", ()))


def version_of(name: str, java: Java | None, told: str = "") -> str:
    """What changes a metric's numbers, for the signature.

    Args:
        name: of the module.
        java: that ran.
        told: by the metric's result, in the place of the module's own; may be empty.
    """
    module = load(name)
    version = told or module.VERSION
    if not getattr(module, "JAVA", False):
        return version
    return "|".join(part for part in (version, f"java:{java.major if java else 'none'}") if part)


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
