"""Score captions: :func:`score` once, :class:`Scorer` again and again, :class:`ValidationScorer` for one number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from avpipe import __version__
from avpipe.eval import ptb
from avpipe.eval.coverage import Covered, Missing, Predictions, References, ReferenceSet, cover
from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.java import JavaError
from avpipe.eval.metric import MetricResult, find_metrics, version_of
from avpipe.eval.scores import ScoreReport
from avpipe.eval.tools import Tools, pycocoevalcap_version
from avpipe.pipeline.errors import AvpipeError, ScoringError

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
    idf: References | None = None,
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
        idf: captions of another corpus by clip id, in which CIDEr counts document frequencies; where not given it
            counts them in the references. The signature names it.
        tools: Java and time limits; found where not given.

    Raises:
        ScoringError: coverage is not complete; or ``strict``, and a metric cannot run.
        DataError: something is no caption, or an id is given twice.
        UnknownNameError: no metric of that name.
    """
    scorer = Scorer(references, metrics=metrics, missing=missing, split=split, strict=strict, idf=idf, tools=tools)
    return scorer.score(predictions)


class Scorer:
    """Many systems against the same references, which are tokenised and counted once.

    ::

        scorer = Scorer(references, metrics=["cider", "bleu"])
        reports = {name: scorer.score(captions) for name, captions in systems.items()}

    Args and errors: those of :func:`score`.
    """

    def __init__(
        self,
        references: References,
        *,
        metrics: Sequence[str] = DEFAULT,
        missing: Missing = "error",
        split: str = "",
        strict: bool = False,
        idf: References | None = None,
        tools: Tools | None = None,
    ) -> None:
        self._wanted = find_metrics(metrics)
        self._references = ReferenceSet.of(references)
        self._missing, self._split, self._strict = missing, split, strict
        self._tools = tools or Tools()
        self._idf = None if idf is None else ReferenceSet.of(idf)
        self._tokenised: TokenisedReferences | None = None
        self._tokenised_idf: TokenisedReferences | None = None
        self._told: set[str] = set()  # reasons that were logged: once, however many systems are scored

    def score(self, predictions: Predictions) -> ScoreReport:
        """Score one system's captions; see :func:`score`.

        Raises:
            ScoringError: see :func:`score`.
            DataError: see :func:`score`.
        """
        covered = self.cover(predictions)
        ran = self._run(covered)
        untold = {name: reason for name, reason in ran.reasons.items() if self._strict or reason not in self._told}
        _complain(untold, strict=self._strict)
        self._told |= set(untold.values())
        corpus = {name: value for result in ran.results.values() for name, value in result.corpus.items()}
        by_clip = {name: values for result in ran.results.values() for name, values in result.per_clip.items()}
        versions = {key: result.version for key, result in ran.results.items()}
        counts = [len(captions) for captions in covered.references.values()]
        java = self._tools.java_used
        return ScoreReport(
            split=self._split,
            scores={name: corpus.get(name) for module in self._wanted.values() for name in module.NAMES},
            reasons=ran.reasons,
            per_clip={key: {name: values[key] for name, values in by_clip.items()} for key in covered.candidates},
            statistics={name: found.statistics for name, found in ran.results.items() if found.statistics is not None},
            captions=covered.candidates,
            references_per_clip=(min(counts), max(counts)),
            references_sha256=self._references.sha256,
            scored=len(covered.candidates),
            expected=len(self._references.captions),
            missing_policy=self._missing,
            missing=covered.missing,
            altered_candidates=covered.altered,
            altered_references=self._references.altered,
            tokeniser=ptb.NAME,
            metric_versions={
                name: self._versioned(version_of(metric, java, versions.get(metric, "")))
                for metric, module in self._wanted.items()
                for name in module.NAMES
            },
            java=java.version if java else "",
            versions={"pycocoevalcap": pycocoevalcap_version(), "avpipe": __version__},
            notes=(*_notes(covered, self._references), *ran.notes),
        )

    def cover(self, predictions: Predictions) -> Covered:
        """What :meth:`score` would score: whether captions can be scored is known before any is.

        Raises:
            ScoringError: coverage is not complete.
            DataError: something is no caption, or an id is given twice.
        """
        return cover(predictions, self._references, self._missing)

    def _run(self, covered: Covered) -> _Ran:
        """Tokenise, then run every metric; what cannot run has a reason instead of a result."""
        try:
            words = self._tokenise(covered)
            evaluation = Evaluation(covered.candidates, words, self._of(covered), self._tools, idf=self._tokenised_idf)
        except JavaError as error:
            reason = f"the tokeniser cannot run: {error}"
            return _Ran(reasons={name: reason for module in self._wanted.values() for name in module.NAMES})
        results: dict[str, MetricResult] = {}
        reasons: dict[str, str] = {}
        # Those that wait for Java leave the processor to the others.
        with ThreadPoolExecutor(max_workers=max(len(self._wanted), 1)) as pool, evaluation.stop:
            futures = {name: pool.submit(evaluation.result, name) for name in self._wanted}
            wait(futures.values())
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except AvpipeError as error:
                reasons |= dict.fromkeys(self._wanted[name].NAMES, str(error))
        wordless = [key for key, words in evaluation.words.items() if not words and key not in covered.missing]
        partly = [key for key, several in evaluation.references.words.items() if not all(several)]
        java = self._tools.java_used
        notes = [*_wordless("captions", wordless), *_wordless("clips have a reference", partly)]
        notes += [note for result in results.values() for note in result.notes]
        notes += [f"Java passed over: {reason}" for reason in (java.passed_over if java else ())]
        return _Ran(results=results, reasons=reasons, notes=list(dict.fromkeys(notes)))  # SPIDEr says what CIDEr says

    def _versioned(self, version: str) -> str:
        return version.replace("idf:refs", f"idf:{self._idf.sha256[:8]}") if self._idf else version

    def _tokenise(self, covered: Covered) -> dict[str, str]:
        """Words of the candidates; the first time, of the references and of what document frequencies are from, too."""
        whole = self._references.captions, self._idf.captions if self._idf else {}
        corpora = [list(covered.candidates.values())]
        if self._tokenised is None:
            corpora += map(ptb.in_a_row, whole)
        words, *others = ptb.tokenise_several(corpora, self._tools)
        if others:
            references, idf = (
                TokenisedReferences(captions, ptb.by_clip(captions, read))
                for captions, read in zip(whole, others, strict=True)
            )
            self._tokenised, self._tokenised_idf = references, idf if self._idf else None
        return dict(zip(covered.candidates, words, strict=True))

    def _of(self, covered: Covered) -> TokenisedReferences:
        """Of the clips that are scored. A clip has the words that it has in the whole set, whatever is left out."""
        assert self._tokenised is not None
        if len(covered.references) == len(self._references.captions):
            return self._tokenised
        return TokenisedReferences(covered.references, {key: self._tokenised.words[key] for key in covered.references})


class ValidationScorer:
    """One score of many sets of captions against the same references, which are tokenised and counted once.

    For choosing the best checkpoint while training: an empty caption is scored as one, because a model that has
    learnt little writes them. May be pickled; where it arrives, Java is looked for anew.

    Args:
        references: one or more captions a clip id.
        metric: name of the score, e.g. ``"CIDEr"`` or ``"Bleu_4"``.
        tools: Java and time limits; found where not given.

    Raises:
        JavaError: there is no Java: captions that are generated may need the tokeniser's jar.
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
        ((self._module, module),) = find_metrics([metric]).items()
        named = [name for name in module.NAMES if name.lower() == metric.lower()]
        self.metric = named[0] if named else module.NAMES[-1]
        self._tools = tools or Tools()
        self._tools.java  # noqa: B018  # what is generated may need it at any time: better to know before the training
        self._references = ReferenceSet.of(references)
        self._tokenised = TokenisedReferences.of(self._references.captions, self._tools)

    def __call__(self, captions: Mapping[str, str]) -> float:
        """The corpus score.

        Raises:
            ScoringError: a clip has no caption, or a caption no clip.
            JavaError: a child process failed.
        """
        wanted = self._references.captions
        absent = [clip_id for clip_id in wanted if clip_id not in captions]
        if absent:
            raise ScoringError(f"{len(absent)} of {len(wanted)} clips have no caption: {', '.join(absent[:10])}")
        covered = cover(captions, self._references, "empty")
        words = ptb.tokenise(list(covered.candidates.values()), self._tools)
        by_id = dict(zip(covered.candidates, words, strict=True))
        evaluation = Evaluation(covered.candidates, by_id, self._tokenised, self._tools)
        return evaluation.result(self._module).corpus[self.metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What came out of the metrics, by module, or why nothing did, by score."""

    reasons: Mapping[str, str]
    results: Mapping[str, MetricResult] = field(default_factory=dict)
    notes: Sequence[str] = ()


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
