"""Stage three: what ``avpipe score`` and ``avpipe caption`` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.judging import tools_for
from avpipe.api.places import check_extracted, open_features
from avpipe.api.preparing import clips_of
from avpipe.api.sealed import LOG, note_look
from avpipe.pipeline.errors import ClipError, UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.data_manifests.subset import Subset
    from avpipe.eval import ScoreReport
    from avpipe.eval.coverage import Missing
    from avpipe.eval.side_by_side import SideBySide
    from avpipe.pipeline.captions import Caption
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import Features, FeatureSource, FeatureSpec
    from avpipe.pipeline.senses import Senses
    from avpipe.train.checkpoint import LoadedCaptioner


SCORED = ("val", "test")
"""Splits that a run is scored on."""


def captions_of(
    workspace: Workspace,
    run: str,
    split: str,
    *,
    clips: Sequence[Clip] | None = None,
    sources: Mapping[str, FeatureSource] | None = None,
    senses: Senses | None = None,
    loaded: LoadedCaptioner | None = None,
) -> dict[str, str]:
    """The captions of one split by a run's best checkpoint; made if they are not there, or older than it.

    Written to ``captions/<split>.json`` of the run in the COCO results form; to ``captions/<split>.without-audio.json``
    and the like where something is done to the captioner's senses.

    Args:
        workspace: where the run lies.
        run: its name.
        split: which clips.
        clips: all of the split, where they are at hand; default: read from the manifest.
        sources: the run's feature sets, where they are at hand, with all of these clips; default: opened.
        senses: what is done to its senses; default: nothing.
        loaded: the run's best checkpoint, where it is at hand; default: read.

    Raises:
        CheckpointError: the run has no whole checkpoint.
        UsageError: that cannot be done to the senses of this run.
        FingerprintError: the dataset's features are not those that the run was trained on.
    """
    from avpipe.data_manifests import manifest
    from avpipe.eval.coco import read_results, write_results
    from avpipe.pipeline.senses import WHOLE
    from avpipe.train.generate import caption_clips

    folder, senses = workspace.run(run), senses or WHOLE
    path = folder / "captions" / f"{senses.name_of(split)}.json"
    loaded = loaded or _load_best(folder)
    senses.check(loaded.specs, f"run {run!r}")
    made_by = path.with_suffix(".checkpoint")
    if path.exists() and made_by.exists() and made_by.read_text(encoding="utf-8") == loaded.name:
        return dict(read_results(path))
    dataset = loaded.config.dataset
    if clips is None:
        clips = manifest.read(workspace.manifest(dataset), splits=[split]).clips
    if sources is None:
        opened = open_features(workspace, dataset, list(loaded.specs))
        check_extracted(dataset, opened, [clip.clip_id for clip in clips])
        sources = opened
    sources = senses.of(sources, [clip.clip_id for clip in clips])
    captions = {caption.clip_id: caption.text for caption in caption_clips(loaded, clips, sources, device=device())}
    made_by.unlink(missing_ok=True)
    write_results(path, captions)
    made_by.write_text(loaded.name, encoding="utf-8")
    return captions


def score_run(
    workspace: Workspace,
    run: str,
    split: str = "test",
    *,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
    intersect: Path | None = None,
    idf: str | None = None,
    senses: Senses | None = None,
) -> ScoreReport:
    """Caption one split with a run's best checkpoint and score it; written to ``scores/`` of the run.

    Every look at the test split is noted in the run's ``test_access.log``, and counted in the report's notes.

    Args:
        workspace: where the run lies.
        run: its name.
        split: which clips: those of ``val`` or ``test``.
        metrics: by name; default: :data:`avpipe.eval.DEFAULT`.
        missing: what a clip without a caption means.
        intersect: a list of ids: score these clips alone. The signature then names the list beside the split.
        idf: what CIDEr counts document frequencies in: ``"train"``, the captions of the dataset's training split, or
            the path of a file of captions; default: the references. It stands in the signature, and another corpus in
            the names of the files.
        senses: what is done to the captioner's senses before; default: nothing. It stands in the signature and in the
            names of the files.

    Raises:
        UsageError: no such split, none of its clips has a reference, or that cannot be done to the run's senses.
        DataError: no clip is on the list.
        ScoringError: captions cannot be scored.
    """
    from avpipe.pipeline.senses import WHOLE

    plan = _Plan(split=split, metrics=metrics, missing=missing, intersect=intersect, idf=idf)
    (report,) = _score_each(workspace, run, plan, lambda loaded: [senses or WHOLE])
    return report


def score_senses(
    workspace: Workspace,
    run: str,
    split: str = "test",
    *,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
    intersect: Path | None = None,
    idf: str | None = None,
    seed: int = 0,
    with_intervals: bool = False,
) -> SideBySide:
    """Score a run as it is, without each of its modalities, and with each of them of another clip.

    All of it is one look at the split. The table is written to ``scores/<split>.senses.json`` and ``.csv``, each report
    as by :func:`score_run`.

    Args:
        workspace: see :func:`score_run`, as for all but the last two.
        run: its name.
        split: which clips.
        metrics: by name; default: all.
        missing: what a clip without a caption means.
        intersect: a list of ids.
        idf: what CIDEr counts in.
        seed: of the exchanges.
        with_intervals: intervals and tests of the differences, too, where there are two clips or more.

    Raises:
        UsageError: the run has one modality only; and see :func:`score_run`.
        DataError: see :func:`score_run`.
        ScoringError: see :func:`score_run`.
    """
    from avpipe.eval.side_by_side import SideBySide
    from avpipe.pipeline.senses import every_sense

    tried: list[Senses] = []

    def all_of(loaded: LoadedCaptioner) -> list[Senses]:
        tried.extend(every_sense(loaded.specs, f"run {run!r}", seed))
        return tried

    plan = _Plan(split=split, metrics=metrics, missing=missing, intersect=intersect, idf=idf)
    reports = _score_each(workspace, run, plan, all_of)
    table = SideBySide.of(
        {senses.label: report for senses, report in zip(tried, reports, strict=True)}, with_intervals=with_intervals
    )
    table.write(workspace.run(run) / "scores", f"{stem_of(reports[0])}.senses")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What of a run is scored, and how; see :func:`score_run`."""

    split: str
    metrics: Sequence[str]
    missing: Missing
    intersect: Path | None
    idf: str | None


def _score_each(
    workspace: Workspace, run: str, plan: _Plan, wanted: Callable[[LoadedCaptioner], Sequence[Senses]]
) -> list[ScoreReport]:
    """Caption with some senses each, look at the references once, and score all.

    A look is noted when nothing that can be known before could still stop the scoring.
    """
    from avpipe.data_manifests.subset import Subset
    from avpipe.eval import DEFAULT, Scorer
    from avpipe.eval.metric import find_metrics

    check_scored_split(plan.split)
    find_metrics(plan.metrics or DEFAULT)
    name, subset = plan.split, Subset.read(plan.intersect) if plan.intersect else None
    folder = workspace.run(run)
    loaded = _load_best(folder)
    several = wanted(loaded)
    dataset = loaded.config.dataset
    corpus = corpus_of(plan.idf, workspace, dataset)
    clips = [clip for clip in clips_of(workspace, dataset, plan.split) if clip.captions]
    if not clips:
        raise UsageError(f"the {plan.split} split of {dataset!r} has no captions to score against")
    if subset is not None:
        clips = [clip for clip in clips if subset.holds_id(clip.clip_id, clip.extra)]
        subset.check()
        name = subset.name_of(plan.split)
    references = {clip.clip_id: clip.captions for clip in clips}
    scorer = Scorer(
        references,
        metrics=plan.metrics or DEFAULT,
        missing=plan.missing,
        split=name,
        idf=corpus,
        tools=tools_for(workspace, dataset, plan.metrics or DEFAULT),
    )
    captions = []
    for senses in several:
        said = captions_of(workspace, run, plan.split, senses=senses, loaded=loaded)
        captions.append({clip_id: text for clip_id, text in said.items() if clip_id in references})
    for said in captions:
        scorer.cover(said)
    looks = 0
    if plan.split == "test":
        is_plain = len(several) == 1 and several[0].is_whole
        done = "" if is_plain else f": {', '.join(senses.label for senses in several)}"
        looks = note_look(folder, f"score test of {run}{done}")
    reports = []
    for senses, said in zip(several, captions, strict=True):
        report = _noting(scorer.score(said), subset)
        counted = (f"look number {looks} at test of run {run!r} ({LOG})",) if looks else ()
        notes = (*report.notes, *senses.notes(loaded.specs), *counted)
        report = replace(report, senses=senses.signature, notes=notes)
        report.write(folder / "scores", stem_of(report, senses))
        reports.append(report)
    return reports


def check_scored_split(split: str) -> None:
    """Whether a run is scored on this split: what it was trained on says nothing.

    Raises:
        UnknownNameError: it is not val or test.
    """
    if split not in SCORED:
        raise UnknownNameError("split", split, SCORED, "Of the training clips a run has learned the captions.")


def stem_of(report: ScoreReport, senses: Senses | None = None) -> str:
    """What files about a report on a run are called: ``test``, ``test.without-audio``, ``test.idf-3f2a01bc``.

    So scores that were made otherwise lie beside one another.
    """
    from avpipe.pipeline.senses import WHOLE

    idf = "" if report.idf in ("", "refs") else f".idf-{report.idf}"
    return f"{(senses or WHOLE).name_of(report.split)}{idf}"


def score_files(
    predictions: Path | None,
    references: Path | None,
    *,
    metrics: Sequence[str] = (),
    missing: Missing = "error",
    intersect: Path | None = None,
    idf: str | None = None,
) -> ScoreReport:
    """Score a file of predictions of any model against a file of references.

    Args:
        predictions: COCO results, or ``{id: caption}``.
        references: COCO captions, or ``{id: [captions]}``.
        metrics: by name; default: all.
        missing: what a clip without a caption means.
        intersect: a list of ids: score these clips alone, whatever else the files hold.
        idf: a file of captions, in which CIDEr counts document frequencies; default: the references.

    Raises:
        UsageError: one of the files was not given.
        DataError: a file is not of that form.
        ScoringError: coverage is not complete.
    """
    from avpipe.data_manifests.subset import Subset
    from avpipe.eval import DEFAULT, score
    from avpipe.eval.coco import read_references, read_results

    if predictions is None or references is None:
        raise UsageError("--predictions and --references go together: got only one of them")
    found, wanted, name = read_results(predictions), read_references(references), references.stem
    subset = Subset.read(intersect) if intersect else None
    if subset is not None:
        wanted = {clip_id: captions for clip_id, captions in wanted.items() if subset.holds_id(clip_id, {})}
        found = {clip_id: text for clip_id, text in found.items() if clip_id in wanted}
        subset.check()
        name = subset.name_of(name)
    corpus = corpus_of(idf)
    return _noting(score(found, wanted, metrics=metrics or DEFAULT, missing=missing, split=name, idf=corpus), subset)


def corpus_of(
    idf: str | None, workspace: Workspace | None = None, dataset: str = ""
) -> Mapping[str, Sequence[str]] | None:
    """What ``idf`` names: the captions of the training split, or of a file."""
    from avpipe.eval.coco import read_references

    if idf is None:
        return None
    if idf != "train":
        return {clip_id: texts for clip_id, texts in read_references(Path(idf)).items() if texts}
    if workspace is None:
        raise UsageError("idf=train: expected a run, whose dataset has training captions; with a file, name another")
    found = {clip.clip_id: clip.captions for clip in clips_of(workspace, dataset, "train") if clip.captions}
    if not found:
        raise UsageError(f"idf=train: no clip of the training split of {dataset!r} has a caption")
    return found


def _noting(report: ScoreReport, subset: Subset | None) -> ScoreReport:
    """The report with how much of a list of ids was found."""
    return replace(report, notes=(*report.notes, subset.note)) if subset else report


def caption(workspace: Workspace, file: Path, run: str, *, beams: int | None = None) -> Caption:
    """Caption one media file with a run's best checkpoint. How to extract its features stands in the checkpoint.

    Raises:
        ClipError: the file cannot be used.
        FingerprintError: the encoders of today would give other features than those it was trained on.
    """
    from avpipe.extract.recipe import rebuild
    from avpipe.extract.run import extract_file
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.features import Segments
    from avpipe.train.generate import caption_clips

    loaded = _load_best(workspace.run(run))
    found = extract_file(file, rebuild(loaded.specs), device=device())
    if not any(name in found for name in loaded.specs):
        raise ClipError("empty", f"it has none of what run {run!r} was trained on: {', '.join(loaded.specs)}")
    if beams is not None:
        generate = loaded.config.generate.model_copy(update={"beams": beams})
        loaded = replace(loaded, config=loaded.config.model_copy(update={"generate": generate}))
    clip = Clip(clip_id="file", dataset="file", path="file", split="test")
    rows = {name: features for name, features in found.items() if not isinstance(features, Segments)}
    sources: dict[str, FeatureSource] = {name: _OneClip(spec, rows.get(name)) for name, spec in loaded.specs.items()}
    return caption_clips(loaded, [clip], sources, device=device())[0]


@dataclass(slots=True)
class _OneClip:
    """The features of a single clip, where a feature set is expected."""

    spec: FeatureSpec
    features: Features | None

    def __contains__(self, clip_id: object) -> bool:
        return self.features is not None

    def read(self, clip_id: str, view: int = 0) -> Features:
        """In the type that a feature set would have on disk: a captioner sees what it was trained on."""
        if self.features is None or view:
            raise KeyError((clip_id, view))
        return replace(self.features, data=self.features.data.astype(self.spec.dtype))


def device() -> str:
    """Where captions are generated: the first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _load_best(folder: Path) -> LoadedCaptioner:
    from avpipe.train import checkpoint

    return checkpoint.load(folder / "checkpoints" / "best")
