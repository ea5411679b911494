"""Stage three, with several systems: what ``avpipe compare`` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.judging import tools_for
from avpipe.api.preparing import clips_of
from avpipe.api.scoring import captions_of
from avpipe.api.sealed import note_look
from avpipe.pipeline.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from avpipe.eval.comparison import Comparison, Example, Test
    from avpipe.eval.coverage import Missing
    from avpipe.pipeline.workspace import Workspace

_SEED = re.compile(r"-seed\d+$")
"""How the name of a sweep's run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What :func:`compare` found.

    Attributes:
        comparison: scores, intervals, tests.
        examples: clips where systems differ most, pair by pair.
    """

    comparison: Comparison
    examples: tuple[Example, ...]


def compare(
    workspace: Workspace,
    systems: Sequence[str],
    *,
    split: str = "test",
    references: Path | None = None,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
    baseline: str = "",
    all_pairs: bool = False,
    test: Test = "bootstrap",
    resamples: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
    examples: int = 0,
) -> Compared:
    """Score systems alike, and test their differences. Every look at the test split is noted in the runs.

    Args:
        workspace: where the runs lie.
        systems: see :func:`named_systems`.
        split: which clips of the runs' dataset.
        references: COCO captions or ``{id: [captions]}``; default: those of the split.
        metrics: by name; default: all that ``avpipe score`` calculates by itself.
        missing: what a clip without a caption means.
        baseline: see :func:`avpipe.eval.comparison.compare`, as the rest.
        all_pairs: likewise.
        test: likewise.
        resamples: likewise.
        seed: likewise.
        alpha: likewise.
        examples: how many clips to show where a system does best against another, and how many where worst; by CIDEr
            if it is there, or else by the first metric.

    Raises:
        UsageError: settings that cannot be meant; files without references; runs of datasets with other references.
        DataError: a file is not of that form.
        ScoringError: coverage is not complete, or the systems do not cover the same clips.
    """
    from avpipe.eval import DEFAULT, Scorer
    from avpipe.eval import comparison as compared
    from avpipe.eval.coco import read_references, read_results
    from avpipe.eval.coverage import ReferenceSet, cover
    from avpipe.eval.metric import find_metrics
    from avpipe.pipeline.clip import SPLITS

    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    wanted = [name for module in find_metrics(metrics or DEFAULT).values() for name in module.NAMES]
    found = named_systems(workspace, systems)
    # Before anything is captioned: what is mistyped is no look at the test split.
    compared.check_settings(
        {name: len(sources) for name, sources in found.items()},
        baseline=baseline, all_pairs=all_pairs, test=test, resamples=resamples, seed=seed, alpha=alpha,
    )  # fmt: skip
    runs = [source for sources in found.values() for source in sources if isinstance(source, str)]
    against: Mapping[str, Sequence[str]]
    tools = None
    if references is not None:
        against, name = read_references(references), references.stem
    else:
        dataset, against = _references_of(workspace, runs, split)
        name, tools = split, tools_for(workspace, dataset, metrics or DEFAULT)
    captions: dict[str | Path, dict[str, str]] = {
        source: read_results(source) for sources in found.values() for source in sources if isinstance(source, Path)
    }
    for run in runs:
        said = captions_of(workspace, run, split)
        if split == "test":
            note_look(workspace.run(run), f"compare {split} of {run}")
        # Clips without a reference are captioned, too.
        captions[run] = {key: text for key, text in said.items() if key in against} if references is None else said
    reference_set = ReferenceSet.of(against)
    for several in captions.values():
        cover(several, reference_set, missing)  # all are whole before the first is scored, which may take minutes
    scorer = Scorer(against, metrics=metrics or DEFAULT, missing=missing, split=name, tools=tools)
    reports = {system: [scorer.score(captions[source]) for source in sources] for system, sources in found.items()}
    result = compared.compare(
        reports,
        baseline=baseline, all_pairs=all_pairs, test=test, resamples=resamples, seed=seed, alpha=alpha,
    )  # fmt: skip
    there = [metric for metric in wanted if metric not in result.reasons]
    by = "CIDEr" if "CIDEr" in there else next(iter(there), "")
    shown = [
        example
        for own, other in compared.pairs_of(list(found), baseline=baseline, all_pairs=all_pairs)
        if examples and by
        for example in compared.examples(reports, against, system=own, baseline=other, metric=by, count=examples)
    ]
    return Compared(comparison=result, examples=tuple(shown))


def named_systems(workspace: Workspace, words: Sequence[str]) -> dict[str, list[str | Path]]:
    """Which runs and files a command line means, by the name of the system.

    ``mine``, ``theirs.json``
        a run, or a file of predictions: a system of that name, without the ending.
    ``ours=first,second,theirs.json``
        several seeds of one system.
    ``ours=sweep-qformer-seed*``
        the runs whose names match are seeds of one system.
    ``sweep-*``
        the runs whose names match; those that differ in their seed alone are one system.

    Raises:
        UnknownNameError: neither a run nor a file.
        UsageError: two systems of one name, or one run or file twice.
    """
    runs = workspace.runs()
    systems: dict[str, list[str | Path]] = {}
    for word in words:
        for name, sources in _meant(word, runs).items():
            if name in systems:
                raise UsageError(
                    f"two systems are called {name!r}; expected names that differ. Try: NAME={word}, and for several "
                    f"seeds of one system NAME=RUN1,RUN2"
                )
            systems[name] = sources
    all_sources = [source for sources in systems.values() for source in sources]
    twice = sorted({str(source) for source in all_sources if all_sources.count(source) > 1})
    if twice:
        raise UsageError(f"expected each run and file once, got more of {', '.join(twice)}")
    return systems


def _meant(word: str, runs: Sequence[str]) -> dict[str, list[str | Path]]:
    """The systems of one word. A run's name may hold ``=`` and commas, so the whole word is tried first."""
    if word in runs:
        return {word: [word]}
    if _is_file(word):
        return {Path(word).stem: [Path(word)]}
    if sources := _sources(word, runs):
        groups: dict[str, list[str | Path]] = {}
        for source in sources:
            groups.setdefault(_SEED.sub("", str(source)), []).append(source)
        return groups
    name, equals, rest = word.partition("=")
    if not equals or not name or not rest:
        raise _unknown(word, runs)
    if sources := _sources(rest, runs):
        return {name: sources}
    found = []
    for part in rest.split(","):
        if not (sources := _sources(part, runs)):
            raise _unknown(part, runs)
        found += sources
    return {name: found}


def _sources(word: str, runs: Sequence[str]) -> list[str | Path]:
    """The run or the file of that name, or the runs that match."""
    if word in runs:
        return [word]
    if _is_file(word):
        return [Path(word)]
    return [run for run in sorted(runs) if fnmatchcase(run, word)]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # too long for a file's name, as several runs may be
        return False


def _unknown(word: str, runs: Sequence[str]) -> UnknownNameError:
    return UnknownNameError("run", word, runs, "There is no file of that name either")


def _references_of(workspace: Workspace, runs: Sequence[str], split: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The references that all runs share, and the dataset of the first."""
    from avpipe.train import checkpoint

    if not runs:
        raise UsageError("files of predictions need the references that they are scored against; try: --references")
    datasets = {run: checkpoint.read(workspace.run(run) / "checkpoints" / "best")[0].dataset for run in runs}
    by_dataset = {
        dataset: {clip.clip_id: tuple(clip.captions) for clip in clips_of(workspace, dataset, split) if clip.captions}
        for dataset in dict.fromkeys(datasets.values())
    }
    (first, references), *others = by_dataset.items()
    for dataset, other in others:
        if other != references:
            one, two = (next(run for run, of in datasets.items() if of == each) for each in (first, dataset))
            raise UsageError(
                f"{one} and {two} cannot be compared: the {split} splits of {first!r} and {dataset!r} have other "
                f"references. Try: --references FILE, of clips that both have captioned"
            )
    if not references:
        raise UsageError(f"the {split} split of {first!r} has no captions to score against")
    return first, references
