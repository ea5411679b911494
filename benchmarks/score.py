"""How fast captions are scored, against pycocoevalcap, in one run; and that both give the same numbers.

    python benchmarks/score.py                                  # 2,990 clips x 20 references, 6,000 x 10; made captions
    python benchmarks/score.py --references captions.json       # of any COCO captions or {id: [captions]} file
    python benchmarks/score.py --meteor --turns 1               # METEOR too: a minute a turn

Several times in turn, each in a process of its own, as two commands would be:

- *pycocoevalcap*: its tokeniser, then ``Bleu(4)``, ``Rouge``, ``Cider`` and, with ``--meteor``, ``Meteor``.
- *avpipe*: :class:`avpipe.eval.Scorer`, references and captions read for the first time.
- *again*: another system's captions, against the references that were read before.

What is scored: of each clip one of its captions with half of another. Seconds are those of the wall clock; CPU seconds
stand beside them, of child processes too. Starting Python and importing is in neither. Ends with exit status 1 if a
corpus or clip score differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SHAPES = ((2990, 20), (6000, 10))
VOCABULARY, TOPIC = 12_000, 40


def made(clips: int, several: int) -> dict[str, list[str]]:
    """Captions of 5 to 16 words of Zipf's frequencies, those of a clip from the same few words, with punctuation."""
    random_ = random.Random(0)
    vocabulary = ["".join(random_.choices("abdefgiklmnoprstu", k=random_.randint(2, 8))) for _ in range(VOCABULARY)]
    frequent = [1 / rank for rank in range(1, VOCABULARY + 1)]
    found = {}
    for clip in range(clips):
        topic = random_.choices(vocabulary, frequent, k=TOPIC)
        sentences = (random_.choices(topic, k=random_.randint(5, 16)) for _ in range(several))
        found[f"video{clip}"] = [
            " ".join(words).capitalize() + random_.choice([".", "", "", " .", "!"]) for words in sentences
        ]
    return found


def captions_for(references: Mapping[str, Sequence[str]], seed: int) -> dict[str, str]:
    """One a clip: half of one caption, half of another."""
    random_ = random.Random(seed)
    found = {}
    for clip_id, several in references.items():
        first, second = (random_.choice(several).split() for _ in range(2))
        found[clip_id] = " ".join([*first[: len(first) // 2], *second[len(second) // 2 :]]) or "a"
    return found


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the wall clock, CPU seconds of this process and its children, and what comes of it."""

    def spent() -> float:
        so_far = os.times()
        return so_far.user + so_far.system + so_far.children_user + so_far.children_system

    wall, cpu = time.perf_counter(), spent()
    found = work()
    return time.perf_counter() - wall, spent() - cpu, found


def theirs(references: Mapping[str, Sequence[str]], captions: Mapping[str, str], *, meteor: bool) -> dict[str, Any]:
    """By pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def score() -> dict[str, tuple[float, Sequence[float]]]:
        tokeniser = PTBTokenizer()
        gts = tokeniser.tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
        res = tokeniser.tokenize({key: [{"caption": text}] for key, text in captions.items()})
        corpus, per_clip = Bleu(4).compute_score(gts, res, verbose=0)
        found = {f"Bleu_{n + 1}": (corpus[n], per_clip[n]) for n in range(4)}
        others = {"ROUGE_L": Rouge(), "CIDEr": Cider(), **({"METEOR": Meteor()} if meteor else {})}
        return found | {name: scorer.compute_score(gts, res) for name, scorer in others.items()}

    with contextlib.redirect_stdout(sys.stderr):
        wall, cpu, found = timed(score)
    rows = {name: [float(corpus), *map(float, per_clip)] for name, (corpus, per_clip) in found.items()}
    return {"pycocoevalcap": [wall, cpu], "scores": rows}


def ours(references: Mapping[str, Sequence[str]], captions: Mapping[str, str], *, meteor: bool) -> dict[str, Any]:
    """By avpipe, twice."""
    import avpipe.eval.ngrams  # noqa: F401
    from avpipe.eval import Scorer
    from avpipe.eval.metric import find_metrics

    metrics = ["bleu", "rouge_l", "cider", *(["meteor"] if meteor else [])]
    find_metrics(metrics)

    def first() -> Any:
        scorer = Scorer(references, metrics=metrics, strict=True)
        return scorer, scorer.score(captions)

    wall, cpu, (scorer, report) = timed(first)
    other = captions_for(references, 1)
    again_wall, again_cpu, _ = timed(lambda: scorer.score(other))
    rows = {name: [score, *(by[name] for by in report.per_clip.values())] for name, score in report.scores.items()}
    return {"avpipe": [wall, cpu], "again": [again_wall, again_cpu], "scores": rows}


def in_a_process(side: str, file: Path, *, meteor: bool) -> dict[str, Any]:
    """One side's seconds and scores."""
    command = [sys.executable, __file__, "--side", side, "--references", str(file), *(["--meteor"] if meteor else [])]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def compare(file: Path, turns: int, *, meteor: bool) -> bool:
    """Print the ratios; whether all numbers were the same."""
    rows: dict[str, list[list[float]]] = {"pycocoevalcap": [], "avpipe": [], "again": []}
    furthest = 0.0
    for _ in range(turns):
        one, other = in_a_process("theirs", file, meteor=meteor), in_a_process("ours", file, meteor=meteor)
        for name, seconds in {**one, **other}.items():
            if name in rows:
                rows[name].append(seconds)
        for name, scores in one["scores"].items():
            pairs = zip(scores, other["scores"][name], strict=True)
            furthest = max(furthest, *(abs(their - our) for their, our in pairs))
    for name, several in rows.items():
        wall, cpu = (statistics.median(column) for column in zip(*several, strict=True))
        print(f"  {name:14} {wall:7.2f} s   {cpu:7.2f} s of a core")
    for slow, fast in (("pycocoevalcap", "avpipe"), ("avpipe", "again")):
        ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(rows[slow], rows[fast], strict=True)]
        wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"  {slow} / {fast}: {wall:.1f} (wall clock), {cpu:.1f} (CPU)")
    print(f"  scores differ by {furthest:.1e} at most")
    return furthest <= 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--meteor", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        from avpipe.eval.coco import read_references

        references = read_references(options.references)
        side = {"ours": ours, "theirs": theirs}[options.side]
        print(json.dumps(side(references, captions_for(references, 0), meteor=options.meteor)))
        return 0
    if options.references:
        return 0 if compare(options.references, options.turns, meteor=options.meteor) else 1
    same = True
    with tempfile.TemporaryDirectory() as folder:
        for clips, several in SHAPES:
            file = Path(folder) / f"{clips}.json"
            file.write_text(json.dumps(made(clips, several)), encoding="utf-8")
            print(f"{clips:,} clips x {several} references")
            same = compare(file, options.turns, meteor=options.meteor) and same
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
