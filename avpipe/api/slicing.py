"""What is known of the clips that are scored, to slice their scores by: see :mod:`avpipe.eval.kinds`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.places import choose_dataset
from avpipe.api.scoring import check_scored_split, stem_of
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.eval.kinds import Facts, Partition
    from avpipe.eval.scores import ScoreReport
    from avpipe.eval.slices import SlicedScores
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import Outcome, Segments
    from avpipe.pipeline.senses import Senses


def partitions_of_run(workspace: Workspace, run: str, split: str, names: Sequence[str]) -> tuple[Partition, ...]:
    """Tell the clips of one split of a run's dataset apart.

    Args:
        workspace: where the run lies.
        run: its name.
        split: which clips; those with captions.
        names: what to tell them apart by; see :data:`avpipe.eval.kinds.KINDS`.

    Raises:
        UsageError: clips cannot be told apart by that.
        StoreError: a feature set is damaged.
    """
    from avpipe.data_manifests import manifest
    from avpipe.eval.kinds import check_names, partition
    from avpipe.train import checkpoint

    check_names(names)
    check_scored_split(split)
    dataset = checkpoint.read(workspace.run(run) / "checkpoints" / "best")[0].dataset
    clips = [clip for clip in manifest.read(workspace.manifest(dataset), splits=[split]).clips if clip.captions]
    facts = _facts(workspace, dataset, {clip.clip_id: clip.captions for clip in clips}, clips, names)
    return tuple(partition(name, facts) for name in dict.fromkeys(names))


def partitions_of_files(
    references: Path, names: Sequence[str], workspace: Workspace | None = None, dataset: str | None = None
) -> tuple[Partition, ...]:
    """Tell the clips of a file of references apart.

    Args:
        references: COCO captions, or ``{id: [captions]}``.
        names: what to tell them apart by; without a dataset ``"length"`` alone.
        workspace: with ``dataset``.
        dataset: a prepared one, whose clips they are, by their ids.

    Raises:
        UsageError: clips cannot be told apart by that; no such dataset.
        DataError: the file is not of that form, or the dataset holds none of its clips.
        StoreError: a feature set is damaged.
    """
    from avpipe.data_manifests import manifest
    from avpipe.eval.coco import read_references
    from avpipe.eval.kinds import Facts, check_holds, check_names, partition

    check_names(names, has_manifest=dataset is not None)
    given = read_references(references)
    if workspace is None or dataset is None:
        return tuple(partition(name, Facts(references=given)) for name in dict.fromkeys(names))
    choose_dataset(workspace, dataset)
    whole = manifest.read(workspace.manifest(dataset)).clips
    check_holds([clip.clip_id for clip in whole], given)
    clips = [clip for clip in whole if clip.clip_id in given]
    facts = _facts(workspace, dataset, given, clips, names)
    return tuple(partition(name, facts) for name in dict.fromkeys(names))


def slice_run(
    workspace: Workspace,
    run: str,
    report: ScoreReport,
    partitions: Sequence[Partition],
    senses: Senses | None = None,
    *,
    with_intervals: bool = False,
) -> SlicedScores:
    """Slice the report on a run; written to ``scores/<split>.slices.json`` and ``.csv`` of the run, beside the report.

    Args:
        workspace: where the run lies.
        run: its name.
        report: by :func:`avpipe.api.score_run`.
        partitions: by :func:`partitions_of_run`.
        senses: that the report was made with.
        with_intervals: see :meth:`avpipe.eval.slices.SlicedScores.of`.

    Raises:
        StoreError: they cannot be written.
    """
    from avpipe.eval.slices import SlicedScores

    sliced = SlicedScores.of(report, partitions, with_intervals=with_intervals)
    sliced.write(workspace.run(run) / "scores", f"{stem_of(report, senses)}.slices")
    return sliced


def _facts(
    workspace: Workspace,
    dataset: str,
    references: Mapping[str, Sequence[str]],
    clips: Sequence[Clip],
    names: Sequence[str],
) -> Facts:
    """What the manifest and the feature sets of a dataset know; the sets are looked into where it matters."""
    from avpipe.eval.kinds import RECOGNISERS, Facts
    from avpipe.pipeline.shards import read_spec
    from avpipe.pipeline.store import FeatureSet

    outcomes: dict[str, dict[str, Outcome]] = {}
    heard: dict[str, dict[str, Segments]] = {}
    for name in workspace.extracted(dataset) if {"audio", "speech"} & set(names) else ():
        folder = workspace.feature_set(dataset, name)
        spec = read_spec(folder)
        recognises = spec.is_text and spec.encoder in RECOGNISERS
        if spec.modality != "audio" and not recognises:
            continue
        found = FeatureSet(folder)
        outcomes[name] = {outcome.clip_id: outcome for outcome in found.outcomes()}
        if recognises and "speech" in names:
            heard[name] = {clip.clip_id: found.segments(clip.clip_id) for clip in clips if clip.clip_id in found}
    by_id = {clip.clip_id: clip for clip in clips}
    return Facts(references=references, clips=by_id, outcomes=outcomes, heard=heard)
