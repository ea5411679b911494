"""Tokenizers: trained on captions, saved and loaded, and those of the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UsageError
from avpipe.train.tokenizer import SPECIAL_FILE, TOKENIZER_FILE, Special, Tokenizer

CAPTIONS = [
    "A man plays a guitar.",
    "a dog barks twice, then a man laughs",
    "A woman sings while a man plays a guitar",
    "two dogs bark at a man",
    "a red ball bounces and a beep is heard",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.trained(CAPTIONS, vocabulary_size=400, lower_case=True)


def test_special_tokens_stand_around_a_caption(trained: Tokenizer) -> None:
    ids = trained.encode("a dog barks")
    assert ids[0] == trained.special.begin
    assert ids[-1] == trained.special.end
    assert len({*vars_of(trained.special)}) == 3
    assert not {*vars_of(trained.special)} & {*ids[1:-1]}
    assert max(ids) < trained.vocabulary_size <= 400
    assert trained.decode(ids) == "a dog barks"


def vars_of(special: Special) -> tuple[int, int, int]:
    return special.pad, special.begin, special.end


def test_frequent_words_are_one_token_at_the_start_and_in_the_middle(trained: Tokenizer) -> None:
    man = trained.encode("man")[1:-1]
    assert len(man) == 1
    assert trained.encode("a man")[2:-1] == man


@settings(deadline=None)
@given(st.text())
@example("A 'quoted' \"word\" – “curly”, naïve café ½ №")
@example("ein Straßenmusiker spielt Σίσυφος İstanbul")
@example("😀👩‍👩‍👧‍👦 🇨🇭 e\u0301 \u200b \x00 \ufeff")
@example("一个男人在弹吉他 ひとりの男 한 남자 رجل")
@example("an end </s> in <s> the <pad> midst")
@example("  tabs\tand\nlines \u3000 ")
@example("")
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    lower = normalizers.Lowercase().normalize_str(text)
    ids = trained.encode(text)
    assert trained.decode(ids) == " ".join(lower.split())
    assert ids[-1] == trained.special.end
    assert not {*vars_of(trained.special)} & {*ids[1:-1]}


def test_case_is_kept_where_asked() -> None:
    tokenizer = Tokenizer.trained(CAPTIONS, vocabulary_size=300, lower_case=False)
    assert tokenizer.decode(tokenizer.encode("Anna  sings")) == "Anna sings"


def test_decoding_stops_at_the_first_end_and_skips_padding(trained: Tokenizer) -> None:
    special = trained.special
    dog, man = trained.encode("dog")[1:-1], trained.encode("man")[1:-1]
    assert trained.decode([special.begin, *dog, special.pad, *man, special.end, *dog, special.pad]) == "dog man"
    assert trained.decode([special.end]) == ""
    assert trained.decode([]) == ""


@settings(deadline=None, max_examples=10)
@given(st.permutations(CAPTIONS * 2))
def test_order_of_captions_is_irrelevant(captions: list[str]) -> None:
    expected = Tokenizer.trained(CAPTIONS * 2, vocabulary_size=350, lower_case=True)
    found = Tokenizer.trained(iter(captions), vocabulary_size=350, lower_case=True)
    assert [found.encode(caption) for caption in CAPTIONS] == [expected.encode(caption) for caption in CAPTIONS]
    assert found._backend.to_str() == expected._backend.to_str()


def test_other_captions_give_another_tokenizer(trained: Tokenizer) -> None:
    other = Tokenizer.trained(["zebra quagga"] * 5, vocabulary_size=400, lower_case=True)
    assert len(other.encode("zebra")) < len(trained.encode("zebra"))


def test_saved_and_loaded(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special == trained.special
    assert loaded.vocabulary_size == trained.vocabulary_size
    for text in (*CAPTIONS, "Größe 😀 </s> of it"):
        assert loaded.encode(text) == trained.encode(text)
        assert loaded.decode(loaded.encode(text)) == trained.decode(trained.encode(text))
    assert sorted(path.name for path in tmp_path.iterdir()) == [SPECIAL_FILE, TOKENIZER_FILE]


@pytest.mark.parametrize("name", [TOKENIZER_FILE, SPECIAL_FILE])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other"])
def test_damaged_files(trained: Tokenizer, tmp_path: Path, name: str, damage: str) -> None:
    trained.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "other":
            path.write_text(json.dumps({"pad": 0, "begin": 1}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: the tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


# -- the Hub's ---------------------------------------------------------------------------------------------------------

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "<bos>", "<eos>", "a", "man", "sings"]


def folder_of(tmp_path: Path, **special: str) -> Path:
    """A local tokenizer of whole words, as a Hub repository has it."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "words"
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special).save_pretrained(folder)
    return folder


def named(special: Special) -> list[str]:
    return [WORDS[i] for i in vars_of(special)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"pad_token": "[PAD]", "bos_token": "<bos>", "eos_token": "<eos>", "cls_token": "[CLS]"},
            ["[PAD]", "<bos>", "<eos>"],
        ),
        ({"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}, ["[PAD]", "[CLS]", "[SEP]"]),  # BERT
        ({"bos_token": "<eos>", "eos_token": "<eos>"}, ["<eos>", "<eos>", "<eos>"]),  # GPT-2
        ({"pad_token": "[PAD]", "eos_token": "<eos>"}, ["[PAD]", "[PAD]", "<eos>"]),  # T5 begins with padding
    ],
    ids=["all", "bert", "gpt2", "t5"],
)
def test_from_a_local_folder(tmp_path: Path, given: dict[str, str], expected: list[str]) -> None:
    tokenizer = Tokenizer.from_hub(str(folder_of(tmp_path, **given)))
    assert named(tokenizer.special) == expected
    ids = tokenizer.encode("a man sings")
    assert [WORDS[i] for i in ids] == [expected[1], "a", "man", "sings", expected[2]]
    assert tokenizer.decode(ids[1:]) == "a man sings"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a man sings") == ids


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, pad_token="[PAD]")
    with pytest.raises(UsageError, match=r"words' has no token that ends a sentence"):
        Tokenizer.from_hub(str(folder))


def test_unknown_id_without_internet() -> None:
    with pytest.raises(MissingWeightsError) as caught:
        Tokenizer.from_hub("nobody/no-such-tokenizer")
    message = str(caught.value)
    assert "'nobody/no-such-tokenizer'" in message
    assert "hf download nobody/no-such-tokenizer" in message
    assert "tokenizer.name=trained" in message


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=tmp_path.name):
        Tokenizer.from_hub(str(tmp_path))
