"""Stage three, with several systems: what ``avpipe compare`` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.judging import tools_for
from avpipe.api.preparing import clips_of
from avpipe.api.scoring import captions_of, corpus_of
from avpipe.api.sealed import LOG, note_look
from avpipe.pipeline.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from avpipe.data_manifests.subset import Subset
    from avpipe.eval import ScoreReport
    from avpipe.eval.comparison import Comparison, Example, Test
    from avpipe.eval.coverage import Missing
    from avpipe.pipeline.workspace import Workspace
    from avpipe.train.config import RunConfig

_SEED = re.compile(r"-seed\d+$")
"""How the name of a sweep's run ends."""
_OF_ONE_RUN = {"seed", "init_from", "wandb", "tensorboard", "log_every", "save_every", "num_workers", "cache_features"}
"""Settings under ``train`` that may differ between seeds of one system: the seed, what it starts from, and what changes
no weight."""


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
    split: str | None = None,
    references: Path | None = None,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
    intersect: Path | None = None,
    idf: str | None = None,
    baseline: str = "",
    all_pairs: bool = False,
    test: Test = "bootstrap",
    resamples: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
    examples: int = 0,
) -> Compared:
    """Score systems alike, and test their differences. Every look at the test split is noted in the runs.

    A run captions its whole split; what of it the references do not hold is left out. A file must fit them.

    Args:
        workspace: where the runs lie.
        systems: see :func:`named_systems`.
        split: which clips of the runs' dataset, val or test; default: test.
        references: COCO captions or ``{id: [captions]}``; default: those of the split.
        metrics: by name; default: all that ``avpipe score`` calculates by itself.
        missing: what a clip without a caption means.
        intersect: a list of ids: score these clips alone, whatever else files hold.
        idf: what CIDEr counts document frequencies in, as for :func:`avpipe.api.score_run`.
        baseline: see :func:`avpipe.eval.comparison.compare`, as the rest.
        all_pairs: likewise.
        test: likewise.
        resamples: likewise.
        seed: likewise.
        alpha: likewise.
        examples: how many clips to show where a system does best against another, and how many where worst; by CIDEr
            if it is tested, or else by the first score that is.

    Raises:
        UsageError: settings that cannot be meant; files without references; runs of datasets with other references;
            several seeds of one system that are none.
        CheckpointError: a run has no whole checkpoint.
        DataError: a file is not of that form, or no clip is on the list.
        ScoringError: coverage is not complete, or the systems do not cover the same clips.
    """
    from avpipe.data_manifests.subset import Subset
    from avpipe.eval import DEFAULT, Scorer
    from avpipe.eval import comparison as compared
    from avpipe.eval.coco import read_results
    from avpipe.eval.metric import find_metrics

    # What can be found wrong before the last note is no look at the test split.
    find_metrics(metrics or DEFAULT)
    found = named_systems(workspace, systems)
    compared.check_settings(
        {name: len(sources) for name, sources in found.items()},
        baseline=baseline, all_pairs=all_pairs, test=test, resamples=resamples, seed=seed, alpha=alpha,
    )  # fmt: skip
    configs = _configs(workspace, found)
    split = _check_split(split, has_runs=bool(configs))
    subset = Subset.read(intersect) if intersect else None
    against, name = _references(workspace, configs, split, references, subset)
    corpus = corpus_of(idf, workspace if configs else None, _dataset_of(configs) if idf == "train" else "")
    tools = tools_for(workspace, _first_dataset(configs), metrics or DEFAULT) if references is None else None
    captions: dict[str | Path, dict[str, str]] = {}
    for source in chain.from_iterable(found.values()):
        said = read_results(source) if isinstance(source, Path) else captions_of(workspace, source, split)
        is_part = isinstance(source, str) or subset is not None
        captions[source] = {key: text for key, text in said.items() if key in against} if is_part else said
    scorer = Scorer(against, metrics=metrics or DEFAULT, missing=missing, split=name, idf=corpus, tools=tools)
    compared.check_clips({str(source): scorer.cover(texts).candidates for source, texts in captions.items()})
    looks = _note_looks(workspace, configs) if split == "test" else {}
    reports: dict[str, list[ScoreReport]] = {system: [] for system in found}
    for system, sources in found.items():
        for source in sources:
            report = scorer.score(captions[source])
            reports[system].append(replace(report, notes=(*report.notes, *looks.get(source, ()))))
    result = compared.compare(
        reports,
        baseline=baseline, all_pairs=all_pairs, test=test, resamples=resamples, seed=seed, alpha=alpha,
    )  # fmt: skip
    if subset is not None:
        result = replace(result, notes=(subset.note, *result.notes))
    tested = list(dict.fromkeys(each.metric for each in result.differences))
    by = "CIDEr" if "CIDEr" in tested else next(iter(tested), "")
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


def _check_split(split: str | None, *, has_runs: bool) -> str:
    """The split that is meant."""
    from avpipe.pipeline.clip import SPLITS

    if split is None:
        return "test"
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if split == "train":
        raise UsageError("split: expected val or test, got train: what was learned by heart says nothing")
    if not has_runs:
        raise UsageError(f"split: {split} says which clips runs caption; got files of predictions only")
    return split


def _configs(workspace: Workspace, systems: Mapping[str, Sequence[str | Path]]) -> dict[str, RunConfig]:
    """The configuration of each run, by its name.

    Raises:
        CheckpointError: a run has no whole checkpoint.
        UsageError: runs of one system differ in more than their seed, or have the same.
    """
    from avpipe.train import checkpoint

    configs: dict[str, RunConfig] = {}
    for system, sources in systems.items():
        own: dict[str, RunConfig] = {}
        for source in sources:
            if isinstance(source, str):
                own[source] = checkpoint.read(workspace.run(source) / "checkpoints" / "best")[0]
        _check_seeds(system, own)
        configs |= own
    return configs


def _check_seeds(system: str, configs: Mapping[str, RunConfig]) -> None:
    """Runs that are taken to be seeds of one system were trained alike, but for the seed."""
    designs = {run: dict(_flat(config.model_dump(mode="json"))) for run, config in configs.items()}
    seen: dict[tuple[object, object], str] = {}
    for run, design in designs.items():
        first = next(iter(designs))
        keys = [key for key in {**designs[first], **design} if designs[first].get(key) != design.get(key)]
        if apart := [key for key in keys if key not in {f"train.{name}" for name in _OF_ONE_RUN}]:
            said = ", ".join(f"{key}: {designs[first].get(key)!r} and {design.get(key)!r}" for key in apart[:3])
            more = f" and {len(apart) - 3} more settings" if len(apart) > 3 else ""
            raise UsageError(
                f"{system}: expected runs that differ in their seed alone; {first} and {run} differ in {said}{more}. "
                f"Try: each run as a system of its own"
            )
        start = design["train.seed"], design["train.init_from"]
        if start in seen:
            raise UsageError(
                f"{system}: expected runs of different seeds; {seen[start]} and {run} both have train.seed={start[0]}, "
                f"and say no more than one of them. Try: one of the two"
            )
        seen[start] = run


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """``{"train": {"seed": 0}}`` as ``("train.seed", 0)``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _first_dataset(configs: Mapping[str, RunConfig]) -> str:
    return next(config.dataset for config in configs.values())


def _dataset_of(configs: Mapping[str, RunConfig]) -> str:
    """The dataset whose training captions ``idf=train`` means; empty where there is no run."""
    datasets = list(dict.fromkeys(config.dataset for config in configs.values()))
    if len(datasets) > 1:
        raise UsageError(
            f"idf=train: expected runs of one dataset, got {', '.join(datasets)}; try: --idf FILE, of training captions"
        )
    return next(iter(datasets), "")


def _note_looks(workspace: Workspace, runs: Iterable[str]) -> dict[str | Path, tuple[str, ...]]:
    """Note a look at the test split in each run; what to say of it."""
    return {
        run: (f"look number {note_look(workspace.run(run), f'compare test of {run}')} at test of run {run!r} ({LOG})",)
        for run in runs
    }


def _references(
    workspace: Workspace,
    configs: Mapping[str, RunConfig],
    split: str,
    references: Path | None,
    subset: Subset | None,
) -> tuple[dict[str, Sequence[str]], str]:
    """The references that all are scored against, and what to call them."""
    from avpipe.eval.coco import read_references

    wanted: dict[str, Sequence[str]]
    if references is None:
        name, wanted = split, _references_of(workspace, configs, split, subset)
    else:
        name, wanted = references.stem, dict(read_references(references))
        if subset is not None:
            wanted = {clip_id: captions for clip_id, captions in wanted.items() if subset.holds_id(clip_id, {})}
    if subset is None:
        return wanted, name
    subset.check()
    return wanted, subset.name_of(name)


def _references_of(
    workspace: Workspace, configs: Mapping[str, RunConfig], split: str, subset: Subset | None
) -> dict[str, Sequence[str]]:
    """The references of a split that the datasets of all runs share; only of the clips on the list, if there is one."""
    if not configs:
        raise UsageError("files of predictions need the references that they are scored against; try: --references")
    by_dataset = {
        dataset: {clip.clip_id: clip for clip in clips_of(workspace, dataset, split) if clip.captions}
        for dataset in dict.fromkeys(config.dataset for config in configs.values())
    }
    references: dict[str, dict[str, Sequence[str]]] = {
        dataset: {clip_id: tuple(clip.captions) for clip_id, clip in clips.items()}
        for dataset, clips in by_dataset.items()
    }
    (first, wanted), *others = references.items()
    for dataset, other in others:
        if other != wanted:
            one, two = (next(run for run, of in configs.items() if of.dataset == each) for each in (first, dataset))
            raise UsageError(
                f"{one} and {two} cannot be compared: the {split} splits of {first!r} and {dataset!r} have other "
                f"references. Try: --references FILE, of clips that both have captioned"
            )
    if not wanted:
        raise UsageError(f"the {split} split of {first!r} has no captions to score against")
    if subset is None:
        return wanted
    clips = by_dataset[first]
    return {key: captions for key, captions in wanted.items() if subset.holds_id(key, clips[key].extra)}
