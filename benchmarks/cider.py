"""How fast rewards are: CIDEr-D and PTB tokenisation, against what scoring runs.

    python benchmarks/cider.py --clips 300 --beams 5 --references 20

Makes captions of words of Zipf's frequencies, those of a clip from the same few words. Then, in turn, several times:

- *pycocoevalcap*: ``Cider().compute_score`` on every caption, as an item with the references of its clip: what a reward
  costs that calls it.
- *ours*: :class:`avpipe.pipeline.cider_d.References` of every clip, which are counted once a training, score the same
  captions with the same document frequencies.
- *counting*: what is done once: document frequencies, and the references of every clip.
- *jar*: one call of the PTB tokeniser's jar with as many captions; *words*: the same by
  :func:`avpipe.pipeline.ptb.words`.

Seconds are of the CPU, of child processes too. What is printed are medians, of ratios within a turn. Ends with exit
status 1 if a score or a caption's words differ.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pycocoevalcap.cider.cider import Cider

from avpipe.eval import ptb as jar
from avpipe.eval.tools import Tools
from avpipe.pipeline.cider_d import DocumentFrequencies, References
from avpipe.pipeline.ptb import is_ordinary, words

T = TypeVar("T")
VOCABULARY, TOPIC = 5000, 30


def captions(random_: random.Random, clips: int, several: int) -> list[list[str]]:
    """For each clip so many captions of 6 to 14 words."""
    vocabulary = ["".join(random_.choices("abdefgiklmnoprstu", k=random_.randint(3, 8))) for _ in range(VOCABULARY)]
    frequent = [1 / rank for rank in range(1, VOCABULARY + 1)]
    found = []
    for _ in range(clips):
        topic = random_.choices(vocabulary, frequent, k=TOPIC)
        found.append([" ".join(random_.choices(topic, k=random_.randint(6, 14))) for _ in range(several)])
    return found


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process and its children, and what comes of it."""

    def spent() -> float:
        of_children = os.times()
        return time.process_time() + of_children.children_user + of_children.children_system

    before = spent()
    found = work()
    return spent() - before, found


def count(references: Sequence[Sequence[str]]) -> list[References]:
    """What a training does once."""
    frequencies = DocumentFrequencies(references)
    return [References(several, frequencies) for several in references]


def score(counted: Sequence[References], beams: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """All captions of all clips."""
    return np.concatenate([theirs.score(own) for theirs, own in zip(counted, beams, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    made = captions(random.Random(0), options.clips, options.references + options.beams)
    references = [several[: options.references] for several in made]
    beams = [several[options.references :] for several in made]
    keys = [(clip, beam) for clip in range(options.clips) for beam in range(options.beams)]
    gts = {key: references[key[0]] for key in keys}
    res = {key: [beams[key[0]][key[1]]] for key in keys}
    said = [one for several in beams for one in several]
    tools = Tools()
    rows: dict[str, list[float]] = {"pycocoevalcap": [], "ours": [], "counting": [], "jar": [], "words": []}
    same = True
    for _ in range(options.turns):
        seconds, (_, expected) = timed(lambda: Cider().compute_score(gts, res))
        rows["pycocoevalcap"].append(seconds)
        # As many documents as items, so that the numbers are the same; in training a document is a clip.
        frequencies = DocumentFrequencies(gts.values())
        counted = [References(several, frequencies) for several in references]
        seconds, scored = timed(partial(score, counted, beams))
        rows["ours"].append(seconds)
        same = same and bool(np.abs(scored - expected).max() < 1e-9)
        rows["counting"].append(timed(lambda: count(references))[0])
        seconds, theirs = timed(lambda: jar.tokenise_by_jar(said, tools))
        rows["jar"].append(seconds)
        seconds, ours = timed(lambda: [words(one) for one in said])
        rows["words"].append(seconds)
        same = same and ours == theirs and all(map(is_ordinary, said))
    for name, several in rows.items():
        seconds = statistics.median(several)
        texts = options.clips * options.references if name == "counting" else len(said)
        print(f"{name:14} {seconds:8.3f} s  {1e6 * seconds / texts:9.1f} us a caption")
    for slow, fast in (("pycocoevalcap", "ours"), ("jar", "words")):
        ratios = [one / other for one, other in zip(rows[slow], rows[fast], strict=True)]
        print(f"{slow} / {fast}: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print("the same numbers and words" if same else "NUMBERS OR WORDS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
