"""Dense captions: events found in a video, each with a sentence, scored as ActivityNet Captions has it.

Paper: Krishna, Hata, Ren, Fei-Fei and Niebles, "Dense-Captioning Events in Videos", ICCV 2017.
Author's code: ranjaykrishna/densevid_eval ``evaluate.py`` at 9d4045a, its newest form that we know (PDVC has it as
``evaluate2021.py``). Its steps, for each tIoU of 0.3, 0.5, 0.7 and 0.9:

1. Each predicted event is paired with *every* reference event that it overlaps by that tIoU or more, of all reference
   files; one that overlaps none is paired with a word that nobody says.
2. The pairs of a video are a corpus of their own, whose clips have one reference each: BLEU and METEOR are summed over
   it, and CIDEr counts its document frequencies in it alone. That is why the CIDEr of a video with one pair is 0.
3. A video without a prediction scores 0. A score is the mean over the videos, and then over the four tIoU.

Precision is the share of predicted events that overlap a reference by *more* than the tIoU, recall the share of the
reference events that are overlapped: of the file where it is best, averaged over the videos.

::

    predictions   {"results": {"v_uqiMw7tQ1Cc": [{"sentence": "a man lifts a bar", "timestamp": [0.3, 55.1]}, ...]}}
    references    {"v_uqiMw7tQ1Cc": {"timestamps": [[0.28, 55.15], ...], "sentences": ["A weight ...", ...]}}

Deviations: of speed, and
 - the word that nobody says is the same each time, not random letters: no number depends on which letters they are;
 - a video that no reference file has stops the scoring, as does one without prediction, unless ``missing`` says
   otherwise; there, the first is left out and the second scores 0 (``missing="empty"``), without a word;
 - a video whose list of predictions is empty has precision 0; there, it gets that of the video before it;
 - each sentence is tokenised once, not once a pair: the few whose tokens depend on how the next line begins
   (:mod:`avpipe.eval.ptb`) may be read otherwise.

What other code does differently: densevid_eval at deba7d7 (PDVC's ``evaluate2018.py``) pairs what overlaps nothing with
``abc123!@#``, which is several tokens instead of one, so that BLEU comes out otherwise; at 5759c13 it makes such a pair
after each reference file while nothing has matched; at 1f0951c there is no corpus per video, and all matches of an
event are the references of one clip. Numbers of these versions must not stand in one table. SODA, which matches events
one to one, is another score, and is not here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe import __version__
from avpipe.eval import ptb, tables
from avpipe.eval.coco import read_json
from avpipe.eval.coverage import MISSING, Missing, clean, share
from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.metric import Metric, aggregate, find_metrics, version_of
from avpipe.eval.tools import Tools, pycocoevalcap_version
from avpipe.pipeline.errors import AvpipeError, DataError, ScoringError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

DEFAULT = ("bleu", "meteor", "rouge_l", "cider")
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
MOST_EVENTS = 1000
"""Of a video; what a prediction lists after them is not scored."""

_MEANS = {"rouge_l", "spice", "sbert_sim", "fer", "fense"}
"""A clip's score depends on the clip alone, and that of a corpus is the mean."""
_BY_DOCUMENTS = {"cider": True, "cider_plain": False}
"""A clip's score depends on how many clips a word is in; whether counts are clipped."""
_NOBODY_SAYS = "qzxvkjwpfh"
_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Event:
    """A stretch of a video and what is said of it.

    Attributes:
        start_seconds: from the video's start.
        stop_seconds: excluded.
        sentence: as written.
    """

    start_seconds: float
    stop_seconds: float
    sentence: str


Events = Mapping[str, Sequence[Event]]
"""By video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseReport:
    """Scores of dense captions.

    Attributes:
        thresholds: of tIoU.
        scores: by name, one a threshold; ``None``: could not be computed, and ``reasons`` says why.
        reasons: why a score is ``None``, by name.
        versions: what changes a metric's numbers, by score name.
        protocol: how all scores were made: their signatures, without what tells one metric from another.
        notes: what a reader of the numbers should know.
    """

    thresholds: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...] | None]
    reasons: Mapping[str, str]
    versions: Mapping[str, str]
    protocol: str
    notes: tuple[str, ...] = ()

    def signature(self, name: str) -> str:
        """One line that tells how a score was made: two scores may be compared if their lines agree."""
        return "|".join(filter(None, (name, self.protocol, self.versions.get(name, ""))))

    @property
    def complete(self) -> bool:
        """Every score asked for could be computed."""
        return not self.reasons

    @property
    def means(self) -> dict[str, float | None]:
        """By name, the mean over the thresholds: what papers report."""
        return {name: sum(values) / len(values) if values is not None else None for name, values in self.scores.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return {
            "thresholds": list(self.thresholds),
            "scores": self.means,
            "by_threshold": {name: values and list(values) for name, values in self.scores.items()},
            "reasons": dict(self.reasons),
            "signatures": {name: self.signature(name) for name in self.scores},
            "notes": list(self.notes),
        }


def score_dense(
    predictions: Events,
    references: Sequence[Events],
    *,
    metrics: Sequence[str] = DEFAULT,
    missing: Missing = "error",
    thresholds: Sequence[float] = THRESHOLDS,
    tools: Tools | None = None,
) -> DenseReport:
    """Score dense captions; see the module's text.

    Args:
        predictions: by video.
        references: by video, one mapping an annotator; a video need not be in all of them.
        metrics: names of metrics or of their scores.
        missing: what a video without prediction means: ``"error"`` stops with a list, ``"empty"`` scores 0, ``"drop"``
            leaves it out.
        thresholds: of tIoU.
        tools: Java, networks and limits; found where not given.

    Raises:
        ScoringError: videos are missing or unknown.
        UsageError: a metric is not scored video by video, ``missing`` is none of these, or a threshold is no share.
        UnknownNameError: no metric of that name.
    """
    modules = find_metrics(metrics)
    _check_metrics(modules)
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise UsageError(f"thresholds: expected numbers above 0 and up to 1, at least one, got {list(thresholds)}")
    tools = tools or Tools()
    videos, absent = _cover(predictions, references, missing)
    pairs = _Pairs.of(videos, predictions, references, thresholds)
    precision, recall = _proposals(videos, predictions, references, thresholds)
    scores: dict[str, tuple[float, ...] | None] = {}
    reasons: dict[str, str] = {}
    versions: dict[str, str] = {}
    evaluation: Evaluation | None = None
    for key, module in modules.items():
        try:
            evaluation = evaluation or pairs.evaluation(tools)
            scores |= _score(key, module, pairs, evaluation)
            told = "idf:video" if key in _BY_DOCUMENTS else evaluation.result(key).version if pairs.sentences else ""
            versions |= dict.fromkeys(module.NAMES, version_of(key, tools.java_used, told))
        except AvpipeError as error:
            scores |= dict.fromkeys(module.NAMES)
            reasons |= dict.fromkeys(module.NAMES, str(error))
    scores |= {"Precision": tuple(precision), "Recall": tuple(recall)}
    return DenseReport(
        thresholds=tuple(thresholds),
        scores=scores,
        reasons=reasons,
        versions=versions,
        protocol=_protocol(videos, absent, thresholds, references, missing),
        notes=tuple(_notes(absent, predictions)),
    )


def read_predictions(path: Path) -> dict[str, list[Event]]:
    """Predicted events by video.

    Raises:
        DataError: the file cannot be read, or is no such file.
    """
    values = read_json(path)
    found = values.get("results") if isinstance(values, Mapping) else None
    if not isinstance(found, Mapping):
        raise DataError(f'{path}: expected {{"results": {{video: [{{"sentence": ..., "timestamp": [start, stop]}}]}}}}')
    events = {}
    for video, rows in found.items():
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise DataError(f"{path}: {video!r}: expected a list of events, got {rows!r:.60}")
        events[video] = [_event(path, video, row.get("timestamp"), row.get("sentence")) for row in rows]
    return events


def read_references(path: Path) -> dict[str, list[Event]]:
    """Reference events by video, of one annotator.

    Raises:
        DataError: the file cannot be read, or is no such file; or a video has no event.
    """
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise DataError(f'{path}: expected {{video: {{"timestamps": [...], "sentences": [...]}}}}, got {values!r:.60}')
    events = {}
    for video, row in values.items():
        times, sentences = (row.get(key) if isinstance(row, Mapping) else None for key in ("timestamps", "sentences"))
        if not isinstance(times, list) or not isinstance(sentences, list) or not 0 < len(times) == len(sentences):
            raise DataError(
                f"{path}: {video!r}: expected timestamps and as many sentences, at least one, got {row!r:.60}"
            )
        events[video] = [_event(path, video, time, text) for time, text in zip(times, sentences, strict=True)]
    return events


def table(report: DenseReport, *, percent: bool = False) -> tables.Table:
    """A row a score, a column a tIoU, and their mean.

    Args:
        report: what to show.
        percent: times 100, as papers print.
    """
    rows = []
    for name, values in report.scores.items():
        none = [None] * (len(report.thresholds) + 1)
        cells = none if values is None else [*values, sum(values) / len(values)]
        rows.append([name, *(tables.number(cell, percent=percent) for cell in cells)])
    columns = [f"tIoU {threshold:g}" for threshold in report.thresholds]
    return tables.Table(header=["x 100" if percent else "score", *columns, "mean"], rows=rows)


def footnotes(report: DenseReport) -> list[str]:
    """Lines to print below the table: the protocol, why a score is missing, and what else a reader should know."""
    reasons: dict[str, list[str]] = {}
    for name, reason in report.reasons.items():
        reasons.setdefault(reason, []).append(name)
    return [
        report.protocol,
        *(f"no {', '.join(names)}: {reason}" for reason, names in reasons.items()),
        *report.notes,
    ]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Predicted events beside reference events.

    A pair occurs at every threshold at which its events overlap enough, and belongs there to the corpus of its video.

    Attributes:
        sentences: predicted and reference sentence of each pair; each pair once.
        pair: of each occurrence.
        corpus: of each occurrence: ``threshold * videos + video``.
        thresholds: how many.
        videos: how many.
    """

    sentences: Sequence[tuple[str, str]]
    pair: Ints
    corpus: Ints
    thresholds: int
    videos: int

    @classmethod
    def of(
        cls, videos: Sequence[str], predictions: Events, references: Sequence[Events], thresholds: Sequence[float]
    ) -> _Pairs:
        import numpy as np

        sentences: list[tuple[str, str]] = []
        pairs: list[int] = []
        corpora: list[int] = []
        for number, video in enumerate(videos):
            predicted = predictions.get(video, ())[:MOST_EVENTS]
            wanted = [event for several in references for event in several.get(video, ())]
            overlaps = overlap(predicted, wanted)
            texts = [_plain(event.sentence) for event in wanted]
            for event, row in zip(predicted, overlaps, strict=True):
                own = _plain(event.sentence)
                first, best = len(sentences), float(row.max(initial=0))
                near = np.flatnonzero(row >= min(thresholds))
                sentences += [(own, texts[place]) for place in near]
                if best < max(thresholds):
                    sentences.append((own, _NOBODY_SAYS))
                for place, threshold in enumerate(thresholds):
                    there = first + np.flatnonzero(row[near] >= threshold) if best >= threshold else [first + len(near)]
                    pairs.extend(there)
                    corpora.extend([place * len(videos) + number] * len(there))
        return cls(sentences, np.array(pairs, np.int64), np.array(corpora, np.int64), len(thresholds), len(videos))

    def evaluation(self, tools: Tools) -> Evaluation:
        """Each pair as a clip; each sentence is read once.

        Raises:
            JavaError: the tokeniser's jar is needed and cannot run.
        """
        read = {sentence: "" for pair in self.sentences for sentence in pair}
        read = dict(zip(read, ptb.tokenise(list(read), tools), strict=True))
        ids = [str(number) for number in range(len(self.sentences))]
        own = {key: pair[0] for key, pair in zip(ids, self.sentences, strict=True)}
        theirs = {key: [pair[1]] for key, pair in zip(ids, self.sentences, strict=True)}
        return Evaluation(
            own,
            {key: read[sentence] for key, sentence in own.items()},
            TokenisedReferences(theirs, {key: [read[several[0]]] for key, several in theirs.items()}),
            tools,
        )

    def sums(self, values: Floats) -> Floats:
        """Of each corpus: ``(pairs, k)`` -> ``(corpora, k)``."""
        import numpy as np

        several = self.thresholds * self.videos
        return np.column_stack([np.bincount(self.corpus, column[self.pair], several) for column in values.T])

    @property
    def sizes(self) -> Ints:
        """Of each corpus, how many pairs."""
        import numpy as np

        return np.bincount(self.corpus, minlength=self.thresholds * self.videos)

    def mean(self, scores: Floats) -> tuple[float, ...]:
        """Of each threshold, over the videos: scores of the corpora; that of a video without a pair is 0."""
        import numpy as np

        there = np.where(self.sizes > 0, scores, 0).reshape(self.thresholds, self.videos)
        return tuple(there.mean(axis=1).tolist())


def overlap(some: Sequence[Event], others: Sequence[Event]) -> Floats:
    """Temporal intersection over union of events.

    Returns:
        ``(some, others)``. With the constant that keeps densevid_eval from dividing by zero, so an event overlaps
        itself by a little less than 1.
    """
    import numpy as np

    start, stop = np.array([(event.start_seconds, event.stop_seconds) for event in some]).reshape(-1, 1, 2).T
    other_start, other_stop = np.array([(event.start_seconds, event.stop_seconds) for event in others]).reshape(-1, 2).T
    start, stop = start.T, stop.T  # (some, 1)
    common = np.maximum(0, np.minimum(stop, other_stop) - np.maximum(start, other_start))
    hull = np.maximum(stop, other_stop) - np.minimum(start, other_start)
    union = np.minimum(hull, other_stop - other_start + stop - start)
    found: Floats = common / (union + _TINY)
    return found


def _check_metrics(modules: Mapping[str, Metric]) -> None:
    for name, module in modules.items():
        if not (hasattr(module, "aggregate") or name in _MEANS or name in _BY_DOCUMENTS):
            known = ", ".join(sorted({*DEFAULT, *_MEANS, *_BY_DOCUMENTS}))
            raise UsageError(f"{name}: is not scored video by video, as dense captions are; these are: {known}")


def _score(name: str, module: Metric, pairs: _Pairs, evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """Of each threshold, by score name."""
    import numpy as np

    if not pairs.sentences:  # no video has an event
        return dict.fromkeys(module.NAMES, (0.0,) * pairs.thresholds)
    if name in _BY_DOCUMENTS:
        (score,) = module.NAMES
        return {score: _score_by_documents(score, pairs, evaluation, clipped=_BY_DOCUMENTS[name])}
    result = evaluation.result(name)
    if result.statistics is not None:
        sums = pairs.sums(result.statistics)
        there = pairs.sizes > 0
        found = {score: np.zeros(len(sums)) for score in module.NAMES}
        for score, values in aggregate(name, sums[there]).items():
            found[score][there] = values
    else:
        values = np.array([list(by_clip.values()) for by_clip in result.per_clip.values()]).T
        found = dict(zip(result.per_clip, (pairs.sums(values) / np.maximum(pairs.sizes, 1)[:, None]).T, strict=True))
    return {score: pairs.mean(values) for score, values in found.items()}


def _score_by_documents(name: str, pairs: _Pairs, evaluation: Evaluation, *, clipped: bool) -> tuple[float, ...]:
    """CIDEr of each threshold. Each word is marked with its video, so that every video is a corpus of its own."""
    import numpy as np

    from avpipe.eval.metrics.cider import similarity

    own, theirs = evaluation.words, evaluation.references.words
    scores = np.zeros(pairs.thresholds * pairs.videos)
    sizes = pairs.sizes
    for threshold in range(pairs.thresholds):
        here = np.flatnonzero(pairs.corpus // pairs.videos == threshold)
        words, references = {}, {}
        for occurrence, pair, corpus in zip(
            here.tolist(), pairs.pair[here].tolist(), pairs.corpus[here].tolist(), strict=True
        ):
            words[str(occurrence)] = _marked(own[str(pair)], corpus)
            references[str(occurrence)] = [_marked(text, corpus) for text in theirs[str(pair)]]
        if not words:
            continue
        corpora = pairs.corpus[here]
        marked = Evaluation(words, words, TokenisedReferences(references, references), evaluation.tools)
        result = similarity(marked, name, clipped=clipped, corpora=sizes[corpora].tolist())
        scores += np.bincount(corpora, list(result.per_clip[name].values()), len(scores))
    return pairs.mean(scores / np.maximum(sizes, 1))


def _marked(words: str, corpus: int) -> str:
    return " ".join(f"{corpus}:{word}" for word in words.split())


def _proposals(
    videos: Sequence[str], predictions: Events, references: Sequence[Events], thresholds: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Precision and recall of each threshold."""
    import numpy as np

    precision, recall = np.zeros((2, len(videos), len(thresholds)))
    for number, video in enumerate(videos):
        predicted = predictions.get(video, ())[:MOST_EVENTS]
        for several in references:
            if video not in several or not predicted:
                continue
            near = overlap(predicted, several[video])[..., None] > np.array(thresholds)  # (predicted, wanted, t)
            precision[number] = np.maximum(precision[number], near.any(axis=1).mean(axis=0))
            recall[number] = np.maximum(recall[number], near.any(axis=0).mean(axis=0))
    return precision.mean(axis=0).tolist(), recall.mean(axis=0).tolist()


def _cover(predictions: Events, references: Sequence[Events], missing: Missing) -> tuple[list[str], list[str]]:
    """Which videos are scored, and which have no prediction."""
    if missing not in MISSING:
        raise UsageError(
            f"missing: expected one of {', '.join(MISSING)}, got {missing!r}{did_you_mean(missing, MISSING)}"
        )
    wanted = list(dict.fromkeys(video for several in references for video in several))
    known = frozenset(wanted)
    strange = [video for video in predictions if video not in known]
    absent = [video for video in wanted if video not in predictions]
    faults = [("are in no reference file", strange), ("have no prediction", absent if missing == "error" else [])]
    told = [f"  - {len(several)} videos {what}: {_some(several)}" for what, several in faults if several]
    if told:
        advice = "missing='empty' scores 0 for a video without prediction, missing='drop' leaves it out"
        raise ScoringError("\n".join(["predictions and references do not fit:", *told, advice]))
    videos = wanted if missing != "drop" else [video for video in wanted if video in predictions]
    if not videos:
        raise ScoringError(f"nothing to score: none of {len(wanted)} videos of the references has a prediction")
    return videos, absent


def _protocol(
    videos: Sequence[str],
    absent: Sequence[str],
    thresholds: Sequence[float],
    references: Sequence[Events],
    missing: Missing,
) -> str:
    text = json.dumps(
        [
            {video: [(event.start_seconds, event.stop_seconds, event.sentence) for event in events]}
            for several in references
            for video, events in sorted(several.items())
        ]
    )
    return "|".join(
        [
            "dense:densevid_eval-9d4045a",
            f"videos:{share(videos, len({*videos, *absent}))}",
            f"tiou:{','.join(f'{threshold:g}' for threshold in thresholds)}",
            f"refs:{len(references)}@{hashlib.sha256(text.encode()).hexdigest()[:8]}",
            f"most:{MOST_EVENTS}",
            f"tok:{ptb.NAME}",
            f"missing:{missing}",
            f"pycocoevalcap:{pycocoevalcap_version()}",
            f"avpipe:{__version__}",
        ]
    )


def _notes(absent: Sequence[str], predictions: Events) -> Iterable[str]:
    yield f"{sum(map(len, predictions.values()))} events were predicted"
    if absent:
        yield f"{len(absent)} videos have no prediction: {_some(absent)}"
    several = list(predictions.items())
    backwards = [
        video for video, events in several if any(event.stop_seconds < event.start_seconds for event in events)
    ]
    if backwards:
        yield f"{len(backwards)} videos have predictions that stop before they start: {_some(backwards)}"
    wordless = [video for video, events in several if not all(event.sentence.strip() for event in events)]
    if wordless:
        yield f"{len(wordless)} videos have predictions without a sentence: {_some(wordless)}"
    more = [video for video, events in predictions.items() if len(events) > MOST_EVENTS]
    if more:
        yield f"{len(more)} videos have more than {MOST_EVENTS} predictions; the first were scored: {_some(more)}"


def _plain(sentence: str) -> str:
    """On one line, and without what is not ASCII, as densevid_eval has it."""
    return re.sub(r"[^\x00-\x7f]", " ", clean(sentence))


def _event(path: Path, video: str, times: object, sentence: object) -> Event:
    match times, sentence:
        case [int() | float() as start, int() | float() as stop], str() if isfinite(start) and isfinite(stop):
            return Event(float(start), float(stop), sentence)
    raise DataError(
        f"{path}: {video!r}: expected a timestamp [start, stop] in seconds and a sentence, got {times!r:.40} and "
        f"{sentence!r:.40}"
    )


def _some(videos: Sequence[str]) -> str:
    return ", ".join(videos[:10]) + (f" and {len(videos) - 10} more" if len(videos) > 10 else "")
