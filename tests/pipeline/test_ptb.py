"""PTB tokenisation without Java: that of the jar, on every text that is called ordinary."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval import ptb as jar
from avpipe.eval.coverage import clean
from avpipe.eval.java import find_java
from avpipe.eval.tools import Tools
from avpipe.pipeline.ptb import ABBREVIATIONS, DROPPED, is_ordinary, tokenise, words

from ..annotations import read


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(find_java())


# Each is ordinary, and the jar gives the words on the right.
ORDINARY = {
    "A man, riding  a horse.": "a man riding a horse",
    "He said: \"it's Bob's\"; she didn't!": "he said it 's bob 's she did n't",
    "two dogs (brown) - running...": "two dogs -lrb- brown -rrb- running",
    "What?! Really!! No?": "what ?! really !! no",
    "I cannot, they'll wanna; we're gonna": "i can not they 'll wan na we 're gon na",
    "a white t-shirt, red/white, 5 o'clock": "a white t-shirt red/white 5 o'clock",
    "the dogs' bowl costs $5,000 at 10:30 for 3.5% off, #1": "the dogs bowl costs $ 5,000 at 10:30 for 3.5 % off # 1",
    "rock & roll -- in the 1990s, the 3rd.": "rock & roll in the 1990s the 3rd",
    "“Don’t” says the café's piñata": "do n't says the café 's piñata",
    "": "",
    "   ": "",
    "- . , ;": "",
}

# None is ordinary; what the jar gives is on the right, and ours is too where it is not None.
OTHERS = {
    "the end of no. 5": ("the end of no. 5", None),
    "Dr. Who meets Mr. Smith": ("dr. who meets mr. smith", None),
    "plan B.": ("plan b.", None),
    "1 1/2 cups": ("1\xa01/2 cups", None),
    "in the U.S. today": ("in the u.s. today", None),
    "a man.,": ("a man.", None),
    "sand,two": ("sand two", "sand two"),
    "end.The next": ("end.the next", "end.the next"),
    "c'mon, ol' rock 'n' roll": ("c'mon ol' rock 'n' roll", None),
    "'hello'": ("hello", "hello"),
    "[kids] {two}": ("-lsb- kids -rsb- -lcb- two -rcb-", "-lsb- kids -rsb- -lcb- two -rcb-"),
    "wanna's": ("wanna 's", None),
    "a\xa0b": ("a b", "a b"),
    "a 😀 cat": ("a cat", None),
    "the long ſ and the degree K": ("the long ſ and the degree k", None),
}


def test_words() -> None:
    assert {text: words(text) for text in ORDINARY} == ORDINARY
    assert all(is_ordinary(text) for text in ORDINARY)


def test_words_are_those_of_the_jar(tools: Tools) -> None:
    assert dict(zip(ORDINARY, jar.tokenise_by_jar(list(ORDINARY), tools), strict=True)) == ORDINARY


def test_what_is_not_ordinary_is_told(tools: Tools) -> None:
    assert not any(is_ordinary(text) for text in OTHERS)
    assert jar.tokenise_by_jar(list(OTHERS), tools) == [theirs for theirs, _ in OTHERS.values()]
    assert {text: words(text) for text, (_, ours) in OTHERS.items() if ours is not None} == {
        text: ours for text, (_, ours) in OTHERS.items() if ours is not None
    }


def test_the_list_of_dropped_punctuation_is_that_of_pycocoevalcap() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    # Brackets are there in capitals, and never met; a straight quotation mark is made one of those for them.
    theirs = {mark for mark in PUNCTUATIONS if mark not in {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}}
    assert theirs | {'"'} == DROPPED


# -- texts at random ---------------------------------------------------------------------------------------------------

ODD = [*sorted(ABBREVIATIONS), "cannot", "gonna", "wanna", "http", "www", "com", "em", "til", "tis", "pm", "ol", "jr"]
CLITICS = ["", "", "", "'s", "'m", "'d", "'ll", "'re", "'ve", "'", "’s", "'LL"]


class Writer:
    """Texts at random of all that is in the class, words among them that the jar treats in ways of their own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, letters: str, most: int, least: int = 0) -> str:
        return "".join(self.random.choices(letters, k=self.random.randint(least, most)))

    def word(self) -> str:
        pools = [string.ascii_letters, string.ascii_letters, "éüñçÀÿßabn", string.ascii_letters + string.digits]
        found = self.random.choice([self.random.choice(ODD), *(self.some(pool, 6, 1) for pool in pools)])
        return self.random.choice([str.lower, str.lower, str.upper, str.capitalize, str])(found)

    def number(self) -> str:
        number = self.random.randint(0, 10 ** self.random.randint(1, 8))
        return self.random.choice([f"{number}", f"{number:,}", f"{number / 10}", f"{number % 24}:{number % 60:02d}"])

    def core(self) -> str:
        parts = [self.random.choice([self.word, self.word, self.number])() for _ in range(self.random.randint(2, 4))]
        return self.random.choice(
            [
                self.word(),
                "-".join(parts),
                self.word() + self.random.choice(["n't", "N'T", "n’t", "'t"]),
                f"{self.word()}/{self.word()}",
                self.random.choice(["", "$", "#"]) + self.number() + self.random.choice(["", "%"]),
                self.random.choice(["o'clock", "O'Clock"]),
            ]
        )

    def part(self) -> str:
        if self.random.random() < 0.1:
            return self.random.choice([*'-,;:.!?&"()', "--", "..."])
        before, marks = self.some('"(“', 2), self.some('...,,!?")”', 3)
        return (
            before + self.core() + self.random.choice(CLITICS) + marks + self.random.choice(["", "", "", ":", ";", '"'])
        )

    def text(self) -> str:
        parts = [self.part() for _ in range(self.random.randint(1, 8))]
        return " ".join(filter(is_ordinary, parts))


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32))
def test_words_of_ordinary_texts_are_those_of_the_jar_whatever_comes_next(seed: int) -> None:
    writer = Writer(seed)
    texts = [text for text in (writer.text() for _ in range(1000)) if is_ordinary(text)]
    assert len(texts) > 500
    found = zip(texts, map(words, texts), jar.tokenise_by_jar(texts, Tools(find_java())), strict=True)
    assert [row for row in found if row[1] != row[2]] == []


@pytest.mark.slow
def test_a_hundred_thousand_captions_of_any_kind_are_read_as_by_the_jar(tools: Tools) -> None:
    """Ordinary ones in Python, and the others by the jar among those that come next."""
    writer = Writer(0)
    parts = [writer.part() for _ in range(20_000)]
    texts = [" ".join(writer.random.choices(parts, k=writer.random.randint(0, 6))) for _ in range(100_000)]
    ordinary = sum(map(is_ordinary, texts))
    assert 20_000 < ordinary < 80_000
    found = zip(texts, jar.tokenise(texts, tools), jar.tokenise_by_jar(texts, tools), strict=True)
    assert [row for row in found if row[1] != row[2]] == []


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_has_words(any_text: str) -> None:
    found = words(any_text)
    assert found == " ".join(found.split())
    assert found == found.lower() or not is_ordinary(any_text)


@given(st.lists(st.one_of(st.text(), st.sampled_from([*ORDINARY, *OTHERS, "\n", " a\n\n1 2 ", "1", "2"]))))
def test_many_texts_at_once_are_read_as_each_alone(texts: list[str]) -> None:
    assert tokenise(texts) == ([words(text) for text in texts], [is_ordinary(text) for text in texts])


# -- real captions -----------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_captions_are_ordinary_and_tokenised_as_by_the_jar(shared: Path, tools: Tools) -> None:
    """Every twentieth of all that are there."""
    annotations = shared / "annotations"
    if not annotations.is_dir():
        pytest.skip("no annotations in ../shared")
    found = [text for clips in read(annotations).values() for texts in clips.values() for text in texts]
    captions = list(map(clean, found[::20]))
    assert len(captions) > 3000
    ordinary = [caption for caption in captions if is_ordinary(caption)]
    assert len(ordinary) / len(captions) > 0.98
    assert [words(caption) for caption in ordinary] == jar.tokenise_by_jar(ordinary, tools)
