"""METEOR's jars, what may befall them, and what is made of their counts."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from avpipe.eval.java import JavaChild, JavaError
from avpipe.eval.metric import load
from avpipe.eval.metrics import meteor
from avpipe.eval.tools import Tools, pycocoevalcap_file

from .toys import FakeJava, evaluation_of, is_gone, link_meteor

TWO = ({"a": ["a dog"], "b": ["a cat"]}, {"a": "a dog", "b": "cats"})

# Speaks as the jar does, and is content with a caption whose every word is in one reference, in order. What it is
# asked is written down.
PRETENDER = """
import json, os, sys
with open(os.path.join({folder!r}, f"{{os.getpid()}}.json"), "w") as asked:
    for line in sys.stdin:
        score, *references, caption = line.rstrip("\\n").split(" ||| ")
        assert score == "SCORE"
        asked.write(json.dumps(references + [caption]) + "\\n")
        asked.flush()
        words, hit = float(len(caption.split())), float(caption in references)
        counts = [words, words, 0.0, 0.0, hit * words, hit * words] + [0.0] * 14 + [hit, hit * words, hit * words]
        print(*counts, flush=True)
"""


def pretender(folder: Path) -> str:
    return PRETENDER.format(folder=str(folder))


def asked(folder: Path) -> list[list[list[str]]]:
    """By child, the fields of each question."""
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.json")]


def test_speaks_the_protocol_of_the_jar(fake_java: FakeJava, tmp_path: Path) -> None:
    result = meteor.compute(evaluation_of(*TWO, Tools(fake_java(pretender(tmp_path)))))
    assert result.corpus == pytest.approx({"METEOR": 2 / 3})  # two words of three, without a gap
    assert result.per_clip == {"METEOR": {"a": 1.0, "b": 0.0}}
    assert asked(tmp_path) == [[["a dog", "a dog"], ["a cat", "cats"]]]


def test_separators_in_captions_become_spaces(fake_java: FakeJava, tmp_path: Path) -> None:
    meteor.compute(evaluation_of({"a": ["x|||y"]}, {"a": "v ||| w"}, Tools(fake_java(pretender(tmp_path)))))
    assert asked(tmp_path) == [[["x y", "v   w"]]]


def test_a_reference_that_is_there_twice_is_sent_once(fake_java: FakeJava, tmp_path: Path) -> None:
    references = {"a": ["y", "x", "y", "z", "x"], "b": ["x"]}
    meteor.compute(evaluation_of(references, {"a": "w", "b": "x"}, Tools(fake_java(pretender(tmp_path)))))
    assert asked(tmp_path) == [[["y", "x", "z", "w"], ["x", "x"]]]


def test_several_at_once_give_the_clips_in_order(fake_java: FakeJava, tmp_path: Path) -> None:
    references = {f"clip{number}": [f"word{number}"] for number in range(20)}
    candidates = {key: captions[0] if int(key[4:]) % 3 else "else" for key, captions in references.items()}
    result = meteor.compute(evaluation_of(references, candidates, Tools(fake_java(pretender(tmp_path)), processes=3)))
    assert result.per_clip["METEOR"] == {key: float(int(key[4:]) % 3 > 0) for key in references}
    assert list(result.per_clip["METEOR"]) == list(references)
    assert sorted(map(len, asked(tmp_path))) == [6, 7, 7]


@pytest.mark.parametrize(
    "answer", ["1,0 " * 23, "NaN " * 23, "-1 " * 23, "inf " * 23, "0 " * 22, "1 " * 23, "Error: no"]
)
def test_what_is_no_count_is_refused(fake_java: FakeJava, answer: str) -> None:
    # Of "1 " * 23, there would be more words matched than words.
    java = fake_java(f"while read line; do echo '{answer}'; done")
    with pytest.raises(JavaError, match=rf"METEOR: expected 23 counts, got '{answer}'"):
        meteor.compute(evaluation_of(*TWO, Tools(java)))


def test_fewer_than_one_process_is_refused() -> None:
    with pytest.raises(ValueError, match=r"processes: expected 1 or more, got 0"):
        Tools(processes=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_child_that_was_killed_is_tried_again(fake_java: FakeJava, tmp_path: Path, processes: int) -> None:
    good = fake_java(pretender(tmp_path)).path
    java = fake_java(f"mkdir {tmp_path}/mark 2>/dev/null && kill -9 $$; exec {good}")
    result = meteor.compute(evaluation_of(*TWO, Tools(java, processes=processes)))
    assert result.per_clip == {"METEOR": {"a": 1.0, "b": 0.0}}


def test_a_child_that_hangs_is_killed_and_tried_once_more(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"sleep 987 & echo $$ $! >> {tmp_path}/pids; wait")
    with pytest.raises(JavaError, match=r"METEOR hangs: no sign of life for 1\.5 s after 0 of 2 answers.*tried twice"):
        meteor.compute(evaluation_of(*TWO, Tools(java, patience_seconds=1.5)))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    assert all(map(is_gone, pids))


def test_a_damaged_paraphrase_table_is_not_believed(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The jar itself prints a stack trace, goes on without paraphrases and answers.
    link_meteor(tmp_path / "damaged", monkeypatch).write_bytes(b"no paraphrases")
    with pytest.raises(JavaError, match=r"not to be trusted: java\.util\.zip\.ZipException: Not in GZIP format"):
        meteor.compute(evaluation_of(*TWO, tools))


# The numbers


def scrambled(seed: int, clips: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions that share much, little or nothing with their references; some are equal to one, some are empty."""
    pick = random.Random(seed)
    nouns, verbs = ("dog", "dogs", "cat", "car", "kids"), ("runs", "running", "sleeps", "cries")
    others = ("the", "a", "of", "quickly", "and")

    def caption() -> str:
        return " ".join(pick.choice(pick.choice((nouns, verbs, others))) for _ in range(pick.randrange(1, 9)))

    references = {str(clip): [caption() for _ in range(pick.randrange(1, 5))] for clip in range(clips)}
    candidates = {key: pick.choice((caption(), caption(), own[0], "")) for key, own in references.items()}
    return references, candidates


def test_aggregate_is_the_evaluation_of_the_jar(tools: Tools, tmp_path: Path) -> None:
    """Over 250 samples of clips, drawn with repetition, and for each clip."""
    references, candidates = scrambled(0, 200)
    (tmp_path / "no.gz").write_bytes(gzip.compress(b""))  # paraphrases would change the counts, but not their meaning
    jar = str(pycocoevalcap_file("meteor", "meteor-1.5.jar"))
    arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(tmp_path / "no.gz")]
    samples = [random.Random(seed).choices(range(200), k=1 + seed % 60) for seed in range(250)]
    with JavaChild(tools.java.path, arguments, name="METEOR", heap_megabytes=512) as child:
        lines = child.ask([" ||| ".join(("SCORE", *references[key], candidates[key])) for key in references])
        *each, _ = child.ask([" ||| ".join(("EVAL", *lines))], answers=201)
        wholes = []
        for sample in samples:
            question = " ||| ".join(("EVAL", *(lines[number] for number in sample)))
            wholes.append(child.ask([question], answers=len(sample) + 1)[-1])
    statistics = meteor.counts(lines)
    assert sum(statistics[:, meteor.CHUNKS] == 0) > sum(caption == "" for caption in candidates.values())
    assert meteor.aggregate(statistics)["METEOR"] == pytest.approx(np.array(each, float), rel=0, abs=1e-15)
    sums = np.array([statistics[sample].sum(axis=0) for sample in samples])
    assert meteor.aggregate(sums)["METEOR"] == pytest.approx(np.array(wholes, float), rel=0, abs=1e-15)


def test_several_jars_give_the_numbers_of_one(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_meteor(tmp_path / "meteor", monkeypatch).write_bytes(gzip.compress(b""))
    references, candidates = scrambled(1, 60)
    doubled = {key: [*own, *own] for key, own in references.items()}
    one = meteor.compute(evaluation_of(references, candidates, Tools(tools.java, processes=1)))
    two = meteor.compute(evaluation_of(doubled, candidates, Tools(tools.java, processes=2)))
    assert (one.corpus, one.per_clip) == (two.corpus, two.per_clip)
    assert one.statistics is not None
    assert two.statistics is not None
    assert (one.statistics == two.statistics).all()
    sums = one.statistics.sum(axis=0, keepdims=True)
    assert {name: score[0] for name, score in meteor.aggregate(sums).items()} == one.corpus
    assert tuple(one.corpus) == load("meteor").NAMES
