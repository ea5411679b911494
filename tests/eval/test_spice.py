"""SPICE's program and what may befall it; SPIDEr; and SPICE itself where its jars are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from avpipe.eval import score
from avpipe.eval.corenlp import find_corenlp
from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.java import Java, JavaError
from avpipe.eval.metric import load
from avpipe.eval.metrics import spice
from avpipe.eval.parses import Parses
from avpipe.eval.tools import Tools
from avpipe.pipeline.errors import MissingPackageError, ScoringError

from .toys import SPICE_PRETENDER, evaluation_of, is_gone, pretended_spice

TWO = ({"b": ["a dog", "a brown dog"], "a": ["a cat"]}, {"b": "a dog", "a": "dogs"})

# Writes down what it is asked, by process, and then answers.
NOTING = """
import json, os, sys
asked = open(os.path.join({folder!r}, f"{{os.getpid()}}.asked"), "w")
class Noted:
    def __iter__(self):
        for line in sys.__stdin__:
            asked.write(line)
            asked.flush()
            yield line
sys.stdin = Noted()
"""


def noting(folder: Path) -> str:
    return NOTING.format(folder=str(folder)) + SPICE_PRETENDER.replace("import json, sys\n", "")


def asked(folder: Path) -> list[list[object]]:
    """By process, in which order they began; what is there is taken away."""
    paths = sorted(folder.glob("*.asked"), key=lambda path: path.stat().st_ctime_ns)
    found = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    for path in paths:
        path.unlink()
    return found


def test_speaks_the_protocol_of_the_program(tmp_path: Path) -> None:
    result = spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, noting(tmp_path))))
    assert result.per_clip == {"SPICE": {"b": pytest.approx(0.8), "a": 0.0}}
    assert result.corpus == {"SPICE": pytest.approx(0.4)}
    parses, scores = asked(tmp_path)
    assert parses == ["a dog", "dogs", "a brown dog", "a cat"]  # each once
    # Tuples of all references of a clip, in order, whatever they have in common.
    assert scores == [
        [[["a"], ["dog"]], [["a"], ["dog"], ["a"], ["brown"], ["dog"]]],
        [[["dogs"]], [["a"], ["cat"]]],
    ]


def test_any_caption_is_one_line_and_comes_back_whole(tmp_path: Path) -> None:
    words = ["", 'a "quoted" word', "café 😀", "back\\slash", "lone \ud800"]
    references = {str(number): [caption] for number, caption in enumerate(words)}
    candidates = {key: captions[0] for key, captions in references.items()}
    result = spice.compute(evaluation_of(references, candidates, pretended_spice(tmp_path, noting(tmp_path))))
    assert list(result.per_clip["SPICE"].values()) == [0, 1, 1, 1, 1]
    assert asked(tmp_path)[0] == words


def test_references_are_parsed_once_for_all_that_is_scored_against_them(tmp_path: Path) -> None:
    tools = pretended_spice(tmp_path, noting(tmp_path))
    references = TokenisedReferences(TWO[0], TWO[0])
    first, second = {"b": "x", "a": "a cat"}, {"b": "y", "a": "x"}
    for candidates in (first, second):
        spice.compute(Evaluation(candidates, candidates, references, tools))
    parses = [questions for questions in asked(tmp_path) if isinstance(questions[0], str)]
    assert parses == [["x", "a cat", "a dog", "a brown dog"], ["y"]]


def test_captions_are_parsed_once_for_all_times(tmp_path: Path) -> None:
    def compute(captions: dict[str, str], size: int) -> dict[str, float]:
        tools = pretended_spice(tmp_path, noting(tmp_path))
        (tmp_path / "CoreNLP with späces" / "stanford-corenlp-3.6.0.jar").write_bytes(b"x" * size)
        return dict(spice.compute(evaluation_of(TWO[0], captions, tools)).per_clip["SPICE"])

    first = compute(TWO[1], 1)
    assert len(asked(tmp_path)) == 2
    assert compute(TWO[1], 1) == first
    (scores,) = asked(tmp_path)
    assert [question for question in scores if isinstance(question, str)] == []
    compute({"b": "a dog", "a": "new"}, 1)
    assert asked(tmp_path)[0] == ["new"]
    compute(TWO[1], 2)  # another CoreNLP
    assert asked(tmp_path)[0] == ["a dog", "dogs", "a brown dog", "a cat"]


def test_what_was_parsed_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "_CAPTIONS_A_NOTE", 2)
    failing = "for line in sys.stdin:", "for line in sys.stdin:\n    if 'cat' in line: sys.exit(3)"
    with pytest.raises(JavaError, match=r"exit status 3 after 1 of 2 answers"):
        spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, SPICE_PRETENDER.replace(*failing))))
    spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, noting(tmp_path))))
    assert asked(tmp_path)[0] == ["a brown dog", "a cat"]


def test_several_processes_parse_and_the_clips_keep_their_order(tmp_path: Path) -> None:
    references = {f"clip{9 - number}": [f"word{number}"] for number in range(10)}
    candidates = {key: captions[0] if key < "clip5" else "else" for key, captions in references.items()}
    result = spice.compute(
        evaluation_of(references, candidates, pretended_spice(tmp_path, noting(tmp_path), processes=3))
    )
    assert result.per_clip["SPICE"] == {key: float(key < "clip5") for key in references}
    assert sorted(map(len, asked(tmp_path))) == [3, 4, 4, 10]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("0,5", "SPICE: expected JSON, got something else"),
        ("[[]]", r"SPICE: expected tuples of 1 to 3 words, got \[\[\]\]"),
        ('[["a", "b", "c", "d"]]', "SPICE: expected tuples of 1 to 3 words"),
        ("[[1]]", "SPICE: expected tuples of 1 to 3 words"),
        ("null", "SPICE: expected tuples of 1 to 3 words, got None"),
    ],
)
def test_what_are_no_tuples_is_refused(tmp_path: Path, answer: str, said: str) -> None:
    with pytest.raises(JavaError, match=said):
        spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, f"while read line; do echo '{answer}'; done")))


@pytest.mark.parametrize(
    "scores", ["{}", "[]", "null", '{"All": {"f": null}}', '{"All": {"f": 1.5}}', '{"All": {"f": NaN}}']
)
def test_what_is_no_score_is_refused(tmp_path: Path, scores: str) -> None:
    program = f"""while read line; do case "$line" in '[[['*) echo '{scores}';; *) echo '[["a"]]';; esac; done"""
    with pytest.raises(JavaError, match=r"SPICE: expected scores from 0 to 1, got"):
        spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, program)))


def test_a_sentence_too_long_for_the_memory_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    # The parser itself warns, and goes on without the sentence's tuples.
    program = """
    echo 'WARNING: Parsing of sentence ran out of memory (length=400).  Will ignore and continue.' >&2
    while read line; do echo '[]'; done
    """
    with pytest.raises(JavaError, match=r"4096 MB of memory do not suffice for a sentence: WARNING: .*length=400"):
        spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, program)))


def test_of_two_one_is_killed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    good = pretended_spice(tmp_path / "good").java.path
    program = f"mkdir {tmp_path}/mark 2>/dev/null && kill -9 $$; exec '{good}'"
    result = spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, program, processes=2)))
    assert result.corpus == {"SPICE": pytest.approx(0.4)}


def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    tools = pretended_spice(tmp_path, f"echo $$ >> {tmp_path}/pids; exec sleep 987", processes=2)
    tools.patience_seconds = 1.0
    with pytest.raises(JavaError, match=r"SPICE hangs: no sign of life for 1 s after 0 of 2 answers.*tried twice"):
        spice.compute(evaluation_of(*TWO, tools))
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_paths_are_there_and_name_no_cache(tmp_path: Path) -> None:
    program = f"""printf '%s\\n' "$@" > {tmp_path}/arguments; exit 7"""
    with pytest.raises(JavaError, match="exit status 7"):
        spice.compute(evaluation_of(*TWO, pretended_spice(tmp_path, program)))
    *_, option, path, main = (tmp_path / "arguments").read_text().splitlines()
    assert (option, main) == ("-cp", "SpiceLines")
    parts = path.split(os.pathsep)
    assert all(Path(part).exists() for part in parts)
    assert [part for part in parts if "lmdb" in part] == []  # the library that does not load
    assert parts[-1].endswith("CoreNLP with späces/stanford-corenlp-3.6.0-models.jar")


def test_without_its_jars_there_is_no_score_but_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPIPE_SPICE", str(tmp_path))
    report = score(TWO[1], TWO[0], metrics=["spice", "spider", "cider"])
    assert report.scores["SPICE"] is None
    assert report.scores["SPIDEr"] is None
    assert report.scores["CIDEr"] is not None
    for name in ("SPICE", "SPIDEr"):
        assert "SPICE needs stanford-corenlp-3.6.0.jar and" in report.reasons[name]
        assert f"looked in {tmp_path}. Try: avpipe doctor --install spice" in report.reasons[name]
    with pytest.raises(ScoringError, match=r"SPICE, SPIDEr: no score, SPICE needs"):
        score(TWO[1], TWO[0], metrics=["spice", "spider"], strict=True)


def test_spider_is_the_mean_of_cider_and_spice_each_computed_once(tmp_path: Path) -> None:
    evaluation = evaluation_of(*TWO, pretended_spice(tmp_path, noting(tmp_path)))
    result = load("spider").compute(evaluation)
    parts = evaluation.result("cider"), evaluation.result("spice")
    assert len(asked(tmp_path)) == 2
    assert result.per_clip["SPIDEr"] == {
        key: (parts[0].per_clip["CIDEr"][key] + parts[1].per_clip["SPICE"][key]) / 2 for key in TWO[1]
    }
    assert result.corpus["SPIDEr"] == pytest.approx((parts[0].corpus["CIDEr"] + parts[1].corpus["SPICE"]) / 2)
    assert load("spider").VERSION == "idf:refs|spice:1.0|corenlp:3.6.0"


# The numbers

SCORING = Path(__file__).parents[3] / "shared" / "scoring"


@pytest.mark.shared
@pytest.mark.slow
def test_scores_are_those_that_its_authors_stored(packaged_java: Java) -> None:
    """Of coco-caption's own example, the first of its 1,000 images: parses, categories and all."""
    # Where it may be: $AVPIPE_SPICE, or pycocoevalcap's folder.
    try:
        find_corenlp()
    except MissingPackageError as error:
        pytest.skip(str(error))
    folder = SCORING / "coco_fakecap"
    if not folder.is_dir():
        pytest.skip("third-party captions are not beside the project")
    items = json.loads((folder / "spice_input_ptb_tokenized.json").read_text())[:25]
    stored = {
        item["image_id"]: item["scores"] for item in json.loads((folder / "spice_output_per_image.json").read_text())
    }
    references = {str(item["image_id"]): item["refs"] for item in reversed(items)}
    candidates = {str(item["image_id"]): item["test"] for item in reversed(items)}
    result = spice.compute(evaluation_of(references, candidates, Tools(packaged_java)))
    assert result.per_clip["SPICE"] == {key: stored[int(key)]["All"]["f"] for key in references}


def test_a_memory_that_holds_nonsense_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    words = {"a": ["a dog"]}, {"a": "a dog"}
    before = spice.compute(evaluation_of(*words, pretended_spice(tmp_path)))
    (path,) = (tmp_path / "cache" / "spice").glob("parses-*.sqlite")
    Parses(path).put({"a dog": [[1]]})
    assert spice.compute(evaluation_of(*words, pretended_spice(tmp_path))).corpus == before.corpus == {"SPICE": 1.0}
