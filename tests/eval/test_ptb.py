from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval import ptb
from avpipe.eval.coverage import clean
from avpipe.eval.java import Java, JavaError, find_java
from avpipe.eval.tools import Tools, pycocoevalcap_file
from avpipe.pipeline.errors import MissingPackageError, ScoringError

from .toys import TOY_REFERENCES, FakeJava

# From captions to words: what the jar does, as seen in pycocoevalcap.
EXAMPLES = {
    "A man, riding  a horse.": "a man riding a horse",
    "He said: \"it's Bob's\"; she didn't!": "he said it 's bob 's she did n't",
    "two dogs (brown) - running...": "two dogs -lrb- brown -rrb- running",  # as it has always been
    "café naïve 中文": "café naïve 中文",
    "a 😀 cat": "a cat",
    "...": "",
    "": "",
    "the end": "the end",
}


def test_words(tools: Tools) -> None:
    assert dict(zip(EXAMPLES, ptb.tokenise(list(EXAMPLES), tools), strict=True)) == EXAMPLES


def test_words_are_the_same_on_the_packaged_java(packaged_java: Java, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")  # an ASCII machine
    assert ptb.tokenise(list(EXAMPLES), Tools(packaged_java)) == list(EXAMPLES.values())


def test_words_by_clip(tools: Tools) -> None:
    words = ptb.tokenise_by_clip({"b": ["Two.", "Words here"], "a": ["Yes!"]}, tools)
    assert words == {"b": ["two", "words here"], "a": ["yes"]}
    assert list(words) == ["b", "a"]


def test_nothing_needs_no_java(no_java: None) -> None:
    assert ptb.tokenise([], Tools()) == []


def test_without_java_ordinary_captions_have_their_words(no_java: None) -> None:
    assert ptb.tokenise(["A man, riding.", "Two dogs"], Tools()) == ["a man riding", "two dogs"]


def test_without_java_others_are_told_of(no_java: None) -> None:
    with pytest.raises(JavaError, match=r"1 of 2 captions need its jar, as 'a 😀 cat' does: no usable Java"):
        ptb.tokenise(["a", "a 😀 cat"], Tools())


line = st.sampled_from(["a dog", "", " ", "by J.", "The dog", "he meets Dr.", "Who", "x 😀", "no.", "5 men", "etc."])


@given(st.lists(st.lists(line, max_size=5)))
@settings(max_examples=8, deadline=None)
def test_several_corpora_are_read_as_each_by_itself(corpora: list[list[str]]) -> None:
    tools = Tools(find_java())
    assert ptb.tokenise_several(corpora, tools) == [ptb.tokenise_by_jar(captions, tools) for captions in corpora]


def test_what_stands_behind_a_corpus_is_not_read_with_it(tools: Tools) -> None:
    first, second = ["a dog", "by J.", ""], ["The dog is by N.", "x"]
    assert ptb.tokenise_several([first, second], tools)[0] == ptb.tokenise(first, tools) == ["a dog", "by j.", ""]


# What the jar makes of a line may depend on how the next one begins; None of these is ordinary.
FOLLOWED = ["he meets Dr.", "Who is there", "no.", "", " ", "5 men", "plan B.", "The end", "1 1/2 cups of etc."]


@given(st.lists(st.sampled_from([*FOLLOWED, "a dog", "😀", "Mr.", "...", "x. Y"]), max_size=12))
@settings(max_examples=12, deadline=None)
def test_what_is_sent_alone_is_read_as_among_all(captions: list[str]) -> None:
    tools = Tools(find_java())
    assert ptb.tokenise(captions, tools) == ptb.tokenise_by_jar(captions, tools)


def test_words_equal_those_of_pycocoevalcap(tools: Tools, original_java: None) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {key: [clean(text) for text in several] for key, several in TOY_REFERENCES.items()}
    theirs = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in captions.items()})
    assert ptb.tokenise_by_clip(captions, tools) == theirs


@settings(max_examples=6, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=100))
def test_any_text_is_survived_one_line_a_caption(captions: list[str]) -> None:
    assert len(ptb.tokenise([clean(caption) for caption in captions], Tools(find_java()))) == len(captions)


def test_each_control_character_and_separator_is_survived(tools: Tools) -> None:
    code_points = [*range(0xA0), 0x2028, 0x2029, 0x200B, 0xFEFF, 0xD800, 0xDFFF]
    captions = [clean(f"number {number} a{chr(number)}b end") for number in code_points]
    lines = ptb.tokenise(captions, tools)
    assert [line.split()[1] for line in lines] == list(map(str, code_points))


def test_a_caption_that_is_not_cleaned_stops_with_both_numbers(tools: Tools) -> None:
    with pytest.raises(ScoringError, match=r"3 captions in, 4 lines out"):
        ptb.tokenise_by_jar(["one", "two\rtwo", "three"], tools)


def test_a_line_short_stops_with_both_numbers(fake_java: FakeJava) -> None:
    java = fake_java("read first; exec cat")
    with pytest.raises(ScoringError, match=r"3 captions in, 2 lines out"):
        ptb.tokenise_by_jar(["one", "two", "three"], Tools(java))


def test_a_hanging_tokeniser_is_tried_twice(fake_java: FakeJava) -> None:
    with pytest.raises(JavaError, match=r"PTB tokeniser hangs: no sign of life for 0\.3 s.*tried twice"):
        ptb.tokenise(["a 😀"], Tools(fake_java("exec sleep 987"), patience_seconds=0.3))


def test_paths_with_spaces(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a path with späces"
    folder.mkdir()
    (folder / "jar").symlink_to(pycocoevalcap_file("tokenizer", "stanford-corenlp-3.4.1.jar"))
    monkeypatch.setattr(ptb, "pycocoevalcap_file", lambda *_: folder / "jar")
    assert ptb.tokenise(["A man, riding 😀"], tools) == ["a man riding"]


def test_missing_jar() -> None:
    with pytest.raises(MissingPackageError, match=r"pycocoevalcap/meteor/none\.jar is not there\. Try: pip install"):
        pycocoevalcap_file("meteor", "none.jar")
