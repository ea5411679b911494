"""METEOR's program, what may befall it, and what is made of its counts."""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from avpipe.eval.children import Stop
from avpipe.eval.java import JavaChild, JavaError
from avpipe.eval.metric import load
from avpipe.eval.metrics import meteor
from avpipe.eval.tools import Tools, pycocoevalcap_file

from .toys import FakeJava, evaluation_of, is_gone, link_meteor

TWO = ({"a": ["a dog"], "b": ["a cat"]}, {"a": "a dog", "b": "cats"})

# Speaks as the program does, and is content with a caption whose every word is in one reference, in order. What it is
# asked is written down.
PRETENDER = """
import json, os, sys
with open(os.path.join({folder!r}, "started"), "a") as started:
    started.write(" ".join(sys.argv[-2:]) + "\\n")
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


def test_speaks_the_protocol_of_the_program(fake_java: FakeJava, tmp_path: Path) -> None:
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


def test_one_child_has_as_many_threads_as_cores_or_as_given(
    fake_java: FakeJava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    java = fake_java(pretender(tmp_path))
    meteor.compute(evaluation_of(*TWO, Tools(java)))
    meteor.compute(evaluation_of(*TWO, Tools(java, processes=3)))
    assert (tmp_path / "started").read_text() == "5 2\n3 2\n"


def test_many_clips_come_back_in_order(fake_java: FakeJava, tmp_path: Path) -> None:
    references = {f"clip{number}": [f"word{number}"] for number in range(20)}
    candidates = {key: captions[0] if int(key[4:]) % 3 else "else" for key, captions in references.items()}
    result = meteor.compute(evaluation_of(references, candidates, Tools(fake_java(pretender(tmp_path)))))
    assert result.per_clip["METEOR"] == {key: float(int(key[4:]) % 3 > 0) for key in references}
    assert list(result.per_clip["METEOR"]) == list(references)


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


def test_a_child_that_was_killed_is_tried_again(fake_java: FakeJava, tmp_path: Path) -> None:
    good = fake_java(pretender(tmp_path)).path
    java = fake_java(f"mkdir {tmp_path}/mark 2>/dev/null && kill -9 $$; exec {good} 1 2")
    result = meteor.compute(evaluation_of(*TWO, Tools(java)))
    assert result.per_clip == {"METEOR": {"a": 1.0, "b": 0.0}}


def test_a_child_that_hangs_is_killed_and_tried_once_more(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"sleep 987 & echo $$ $! >> {tmp_path}/pids; wait")
    with pytest.raises(JavaError, match=r"METEOR hangs: no sign of life for 1\.5 s after 0 of 2 answers.*tried twice"):
        meteor.compute(evaluation_of(*TWO, Tools(java, patience_seconds=1.5)))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    assert all(map(is_gone, pids))


TABLE = gzip.compress(b"".join(b"0.5\nthe dog%d\na dog%d\n" % (number, number) for number in range(9999)))
LATE = len(TABLE) - 8  # where the checksum is


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (b"no paraphrases", "ZipException: Not in GZIP format"),
        (b"", "EOFException"),
        (TABLE[: len(TABLE) // 2], "EOFException: Unexpected end of ZLIB input stream"),
        (TABLE[:LATE] + zlib.crc32(b"else").to_bytes(4, "little") + TABLE[LATE + 4 :], "ZipException: Corrupt GZIP"),
        (gzip.compress(b"0.5\na dog\nthe dog\n0.5\na cat\n"), "EOFException: the last pair of phrases is not whole"),
        (gzip.compress(b"x" * 200_000), "ZipException: expected lines, got 131072 bytes without an end"),
    ],
)
def test_a_damaged_paraphrase_table_is_not_believed(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bytes, complaint: str
) -> None:
    # The jar itself prints a stack trace, goes on without paraphrases and answers.
    link_meteor(tmp_path / "damaged", monkeypatch).write_bytes(table)
    said = rf"not to be trusted: cannot read .*paraphrase-en\.gz: java\.[a-z.]+\.{complaint}.*Try: pip install"
    with pytest.raises(JavaError, match=said):
        meteor.compute(evaluation_of(*TWO, tools))


def test_what_goes_on_after_an_exception_is_not_believed(fake_java: FakeJava, tmp_path: Path) -> None:
    complain = "print('java.io.IOException: no', file=sys.stderr, flush=True)"
    text = pretender(tmp_path).replace("print(*counts", f"{complain}; print(*counts")
    with pytest.raises(JavaError, match=r"not to be trusted: java\.io\.IOException: no\. Try"):
        meteor.compute(evaluation_of(*TWO, Tools(fake_java(text))))


# The numbers

NOUNS, VERBS = ("dog", "dogs", "cat", "car", "kids"), ("runs", "running", "sleeps", "cries")
OTHERS = ("the", "a", "of", "quickly", "and")


def scrambled(seed: int, clips: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions that share much, little or nothing with their references; some are equal to one, some are empty."""
    pick = random.Random(seed)

    def caption() -> str:
        return " ".join(pick.choice(pick.choice((NOUNS, VERBS, OTHERS))) for _ in range(pick.randrange(1, 9)))

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


def paraphrases(pick: random.Random) -> bytes:
    """A table of pairs that match, of pairs that nearly do, and of so many others that it is read in pieces."""
    words = (*NOUNS, *VERBS, *OTHERS, "n't", "né", "3.5", "elsewhere", "nowhere")

    def phrase() -> str:
        return " ".join(pick.choices(words, k=pick.randrange(1, 4)))

    pairs = [(phrase(), phrase()) for _ in range(6000)] + [(f"not {number}", "here") for number in range(9000)]
    pick.shuffle(pairs)
    return gzip.compress("".join(f"0.5\n{one}\n{other}\n" for one, other in pairs).encode())


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_says_what_the_main_program_of_the_jar_says(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Byte for byte; also of what it normalises, and of words that are no ASCII."""
    table = link_meteor(tmp_path / "meteor", monkeypatch)
    table.write_bytes(paraphrases(random.Random(2)))
    references, candidates = scrambled(3, 150)
    pick = random.Random(4)
    odd = [
        "it's 3.5 dogs",
        "don't, né!",
        "a--b ... the U.S. dog's",
        "Né 2,000 kids' «a»",
        "\u2028 x\ty",
        "|| the |",
        "&amp;",
    ]
    questions = []
    for key, own in references.items():
        fields = [" ".join((field, pick.choice([*odd, "", ""]))) for field in (*own, candidates[key])]
        questions.append(" ||| ".join(("SCORE", *fields)))
    jar = str(pycocoevalcap_file("meteor", "meteor-1.5.jar"))
    answers = []
    (tmp_path / "no.gz").write_bytes(gzip.compress(b""))
    for at in (table, tmp_path / "no.gz"):
        arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(at)]
        with JavaChild(tools.java.path, arguments, name="METEOR", heap_megabytes=512) as child:
            answers.append(child.ask(questions))
    assert meteor._converse(questions, Tools(tools.java, processes=threads), Stop()) == answers[0]
    assert sum(one != other for one, other in zip(*answers, strict=True)) > 50  # paraphrases matter


def test_two_threads_give_the_numbers_of_one(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
