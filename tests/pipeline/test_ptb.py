"""PTB tokenisation without Java: that of the jar, on every text that is called ordinary."""

from __future__ import annotations

import csv
import json
import string
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval import ptb as jar
from avpipe.eval.coverage import clean
from avpipe.eval.java import find_java
from avpipe.eval.metric import Tools
from avpipe.pipeline.ptb import ABBREVIATIONS, DROPPED, is_ordinary, words


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
}


def test_words() -> None:
    assert {text: words(text) for text in ORDINARY} == ORDINARY
    assert all(is_ordinary(text) for text in ORDINARY)


def test_words_are_those_of_the_jar(tools: Tools) -> None:
    assert dict(zip(ORDINARY, jar.tokenise(list(ORDINARY), tools), strict=True)) == ORDINARY


def test_what_is_not_ordinary_is_told(tools: Tools) -> None:
    assert not any(is_ordinary(text) for text in OTHERS)
    assert jar.tokenise(list(OTHERS), tools) == [theirs for theirs, _ in OTHERS.values()]
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
letters = st.text(string.ascii_letters, min_size=1, max_size=6)
word = st.one_of(
    letters,
    st.sampled_from(ODD).flatmap(lambda odd: st.sampled_from([odd, odd.upper(), odd.capitalize()])),
    st.text("éüñçÀÿßabn", min_size=1, max_size=5),
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=6),
)
number = st.one_of(
    st.integers(0, 10**8).map(str),
    st.integers(1000, 10**8).map("{:,}".format),
    st.floats(0, 100).map("{:.1f}".format),
    st.times().map("{:%H:%M}".format),
)
core = st.one_of(
    word,
    st.lists(st.one_of(word, word, number), min_size=2, max_size=4).map("-".join),
    st.tuples(word, st.sampled_from(["n't", "N'T", "n’t", "'t"])).map("".join),
    st.tuples(word, word).map("/".join),
    st.tuples(st.sampled_from(["", "$", "#"]), number, st.sampled_from(["", "%"])).map("".join),
)
clitic = st.sampled_from(["", "", "", "'s", "'m", "'d", "'ll", "'re", "'ve", "'", "’s", "'LL"])
part = st.one_of(
    st.tuples(
        st.text('"(“', max_size=2), core, clitic, st.text('.,!?")”', max_size=3), st.sampled_from(["", ":", ";", '"'])
    ).map("".join),
    st.sampled_from([*'-,;:.!?&"()', "--", "..."]),
).filter(is_ordinary)
text = st.lists(part, max_size=6).map(" ".join)


@settings(max_examples=10, deadline=None)
@given(st.lists(text, min_size=30, max_size=60))
def test_words_of_ordinary_texts_are_those_of_the_jar_whatever_comes_next(texts: Sequence[str]) -> None:
    ordinary = [one for one in texts if is_ordinary(one)]
    assert [words(one) for one in ordinary] == jar.tokenise(ordinary, Tools(find_java()))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_has_words(any_text: str) -> None:
    found = words(any_text)
    assert found == " ".join(found.split())
    assert found == found.lower() or not is_ordinary(any_text)


# -- real captions -----------------------------------------------------------------------------------------------------


def captions_of(annotations: Path) -> Iterator[str]:
    """What the official files hold."""
    for path in sorted(annotations.glob("activitynet/*.json")):
        for video in json.loads(path.read_text()).values():
            yield from video["sentences"]
    for path in sorted([*annotations.glob("audiocaps/*.csv"), *annotations.glob("clotho/*.csv")]):
        with path.open(encoding="utf-8", newline="") as file:
            yield from (value for row in csv.DictReader(file) for key, value in row.items() if "caption" in key)
    for path in sorted(annotations.glob("msrvtt/*.zip")):
        with zipfile.ZipFile(path) as whole:
            for name in whole.namelist():
                if name.endswith(".json") and "__" not in name:
                    yield from (sentence["caption"] for sentence in json.loads(whole.read(name))["sentences"])
    for path in sorted(annotations.glob("valor32k/*.json")):
        yield from (row["desc"] for row in json.loads(path.read_text()))
    for path in sorted(annotations.glob("vatex/vatex_validation*.json")):
        yield from (caption for row in json.loads(path.read_text()) for caption in row["enCap"])


@pytest.mark.shared
def test_real_captions_are_ordinary_and_tokenised_as_by_the_jar(shared: Path, tools: Tools) -> None:
    """Every twentieth of all that are there."""
    annotations = shared / "annotations"
    if not annotations.is_dir():
        pytest.skip("no annotations in ../shared")
    captions = [clean(caption) for caption in captions_of(annotations)][::20]
    assert len(captions) > 3000
    ordinary = [caption for caption in captions if is_ordinary(caption)]
    assert len(ordinary) / len(captions) > 0.98
    assert [words(caption) for caption in ordinary] == jar.tokenise(ordinary, tools)
