"""Score captions: :func:`score` for a report, :class:`ValidationScorer` for one number again and again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avpipe import __version__
from avpipe.eval import ptb
from avpipe.eval.coverage import Covered, Missing, Predictions, References, ReferenceSet, cover
from avpipe.eval.java import JavaError
from avpipe.eval.metric import Metric, MetricResult, Tools, find_metrics, pycocoevalcap_version
from avpipe.eval.scores import ScoreReport
from avpipe.pipeline.errors import ScoringError

DEFAULT = ("bleu", "meteor", "rouge_l", "cider")

_log = logging.getLogger(__name__)


def score(
    predictions: Predictions,
    references: References,
    *,
    metrics: Sequence[str] = DEFAULT,
    missing: Missing = "error",
    split: str = "",
    strict: bool = False,
    tools: Tools | None = None,
) -> ScoreReport:
    """Score one caption a clip against its references.

    Args:
        predictions: one caption a clip id. Ids may be strings or integers, and are compared as strings.
        references: one or more captions a clip id.
        metrics: names of metrics (``"cider"``) or of their scores (``"CIDEr"``).
        missing: what a clip without a caption, or with an empty one, means: ``"error"`` stops with a list, ``"empty"``
            scores an empty caption, ``"drop"`` leaves the clip out.
        split: name of the reference set, for the signature.
        strict: raise where a metric cannot run, instead of giving ``None`` with the reason and a logged warning.
        tools: Java and time limits; found where not given.

    Raises:
        ScoringError: coverage is not complete; or ``strict``, and a metric cannot run.
        DataError: something is no caption, or an id is given twice.
        UnknownNameError: no metric of that name.
    """
    wanted = find_metrics(metrics)
    reference_set = ReferenceSet.of(references)
    covered = cover(predictions, reference_set, missing)
    ran = _run(wanted, covered, tools or Tools())
    _complain(ran.reasons, strict=strict)
    corpus = {name: value for result in ran.results for name, value in result.corpus.items()}
    by_clip = {name: values for result in ran.results for name, values in result.per_clip.items()}
    counts = [len(captions) for captions in covered.references.values()]
    notes = [*_notes(covered, reference_set), *ran.notes]
    return ScoreReport(
        split=split,
        scores={name: corpus.get(name) for module in wanted.values() for name in module.NAMES},
        reasons=ran.reasons,
        per_clip={key: {name: values[key] for name, values in by_clip.items()} for key in covered.candidates},
        captions=covered.candidates,
        references_per_clip=(min(counts), max(counts)),
        references_sha256=reference_set.sha256,
        scored=len(covered.candidates),
        expected=len(reference_set.captions),
        missing_policy=missing,
        missing=covered.missing,
        altered_candidates=covered.altered,
        altered_references=reference_set.altered,
        tokeniser=ptb.NAME,
        metric_versions={name: module.VERSION for module in wanted.values() for name in module.NAMES},
        java=ran.java,
        versions={"pycocoevalcap": pycocoevalcap_version(), "avpipe": __version__},
        notes=tuple(notes),
    )


class ValidationScorer:
    """One score of many sets of captions against the same references, which are tokenised once.

    For choosing the best checkpoint while training: an empty caption is scored as one, because a model that has
    learnt little writes them. May be pickled; where it arrives, Java is looked for anew.

    Args:
        references: one or more captions a clip id.
        metric: name of the score, e.g. ``"CIDEr"`` or ``"Bleu_4"``.
        tools: Java and time limits; found where not given.

    Raises:
        JavaError: there is no Java, or the tokeniser failed.
        ScoringError: a clip has no reference or an empty one.
        UnknownNameError: no score of that name.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        metric: str = "CIDEr",
        *,
        tools: Tools | None = None,
    ) -> None:
        (module,) = find_metrics([metric]).values()
        named = [name for name in module.NAMES if name.lower() == metric.lower()]
        self.metric = named[0] if named else module.NAMES[-1]
        self._tools = tools or Tools()
        self._references = ReferenceSet.of(references)
        self._tokens = ptb.tokenise_by_clip(self._references.captions, self._tools)

    def __call__(self, captions: Mapping[str, str]) -> float:
        """The corpus score.

        Raises:
            ScoringError: a clip has no caption, or a caption no clip.
            JavaError: a child process failed.
        """
        absent = [clip_id for clip_id in self._tokens if clip_id not in captions]
        if absent:
            raise ScoringError(f"{len(absent)} of {len(self._tokens)} clips have no caption: {', '.join(absent[:10])}")
        covered = cover(captions, self._references, "empty")
        candidates = _tokenise_candidates(covered.candidates, self._tools)
        (module,) = find_metrics([self.metric]).values()  # not kept: a scorer may be sent to another process
        return module.compute(self._tokens, candidates, self._tools).corpus[self.metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What came out of the metrics, or why nothing did."""

    results: Sequence[MetricResult]
    reasons: Mapping[str, str]
    java: str
    notes: Sequence[str]


def _run(wanted: Mapping[str, Metric], covered: Covered, tools: Tools) -> _Ran:
    """Tokenise, then run every metric; what cannot run has a reason instead of a result."""
    try:
        references = ptb.tokenise_by_clip(covered.references, tools)
        candidates = _tokenise_candidates(covered.candidates, tools)
    except JavaError as error:
        reason = f"the tokeniser cannot run: {error}"
        return _Ran(
            results=(), reasons={name: reason for module in wanted.values() for name in module.NAMES}, java="", notes=()
        )
    results: list[MetricResult] = []
    reasons: dict[str, str] = {}
    for module in wanted.values():
        try:
            results.append(module.compute(references, candidates, tools))
        except JavaError as error:
            reasons |= dict.fromkeys(module.NAMES, str(error))
    notes = [
        *_wordless("captions", [key for key, words in candidates.items() if not words and key not in covered.missing]),
        *_wordless("clips have a reference", [key for key, several in references.items() if not all(several)]),
    ]
    notes += [note for result in results for note in result.notes]
    notes += [f"Java passed over: {reason}" for reason in tools.java.passed_over]
    return _Ran(results=results, reasons=reasons, java=tools.java.version, notes=notes)


def _tokenise_candidates(candidates: Mapping[str, str], tools: Tools) -> dict[str, str]:
    return dict(zip(candidates, ptb.tokenise(list(candidates.values()), tools), strict=True))


def _notes(covered: Covered, references: ReferenceSet) -> list[str]:
    notes = []
    if covered.missing:
        ids = ", ".join(covered.missing[:10])
        notes.append(f"{len(covered.missing)} clips have no caption or an empty one: {ids}")
    for what, count in (("captions", covered.altered), ("references", references.altered)):
        if count:
            notes.append(f"{count} {what} held line breaks, control characters or '|||', which became spaces")
    return notes


def _wordless(what: str, clip_ids: Sequence[str]) -> list[str]:
    """Nothing but punctuation leaves no words; it is scored as it is, and mentioned."""
    return [f"{len(clip_ids)} {what} without a word: {', '.join(clip_ids[:10])}"] if clip_ids else []


def _complain(reasons: Mapping[str, str], *, strict: bool) -> None:
    """Say loudly which scores are missing; a score that is not there must not go unnoticed."""
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name, its in reasons.items() if its == reason)
        if strict:
            raise ScoringError(f"{names}: no score, {reason}")
        _log.warning("%s: no score, %s", names, reason)
