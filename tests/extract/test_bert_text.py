"""BERT against transformers' own use of it, and the times of its rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from avpipe.extract.encoders import bert_text
from avpipe.extract.media import TextRequest
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, SkipClip, UsageError
from avpipe.pipeline.features import Features, Segment, Segments

from . import toys
from .small import bert_text as small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others; the environment variables were read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))


def make(weights: Path | str, **config: Any) -> bert_text.Encoder:
    return bert_text.Encoder(parse(bert_text.Config, {"of": "asr", "weights": str(weights), **config}, "test"), "b")


def said(*segments: tuple[float, float, str]) -> Segments:
    return Segments(tuple(Segment(start_seconds=start, stop_seconds=stop, text=text) for start, stop, text in segments))


def prepare(encoder: bert_text.Encoder, text: Segments) -> dict[str, npt.NDArray[Any]]:
    return dict(encoder.prepare(toys.clip("b", text=text)))


def encode(encoder: bert_text.Encoder, *texts: Segments) -> list[Features]:
    encoder.load("cpu")
    return encoder.encode([prepare(encoder, text) for text in texts])


def pieces(folder: Path, prepared: dict[str, npt.NDArray[Any]]) -> list[str]:
    tokenizer = bert_text.tokenizer_at(folder / "tokenizer.json")
    return [str(tokenizer.id_to_token(int(number))) for number in prepared["ids"]]


def official(folder: Path, text: str, max_tokens: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """What transformers' tokenizer and model make of a text, as MICap calls them."""
    from transformers import BertModel, BertTokenizerFast

    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    inputs = tokenizer(text, max_length=max_tokens, truncation=True, padding="max_length", return_tensors="pt")
    length = int(inputs["attention_mask"].sum())
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0, :length]
    return inputs["input_ids"][0, :length].tolist(), hidden.numpy()


def test_what_a_tokenizer_file_asks_for_is_not_done(folder: Path, tmp_path: Path) -> None:
    """Files of sentence encoders cut and fill up by themselves: padding would be read as words."""
    other = Path(shutil.copytree(folder, tmp_path / "filling"))
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(other / "tokenizer.json"))
    text = said((0, 4, "a dog barks then it is quiet"))
    assert prepare(make(other), text)["ids"].tolist() == prepare(make(folder), text)["ids"].tolist()


def test_the_fingerprint_knows_what_no_tensor_tells(folder: Path, tmp_path: Path) -> None:
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = said((0, 4, "a dog barks"))
    (rows,) = encode(make(folder), text)

    def changed(name: str, **values: Any) -> bert_text.Encoder:
        other = Path(shutil.copytree(folder, tmp_path / name))
        (other / "config.json").write_text(json.dumps({**described, **values}), encoding="utf-8")
        return make(other)

    fewer_heads, renamed = changed("heads", num_attention_heads=1), changed("version", transformers_version="4.0.1")
    assert np.abs(encode(fewer_heads, text)[0].data - rows.data).max() > 1e-4
    assert fewer_heads.spec.fingerprint != make(folder).spec.fingerprint
    assert renamed.spec.fingerprint == make(folder).spec.fingerprint


@pytest.mark.parametrize(
    "text", ["A dog barks, then it is quiet!", "", "rain " * 40, "\u4e00\u53ea\u72d7 car", "RAIN?!"]
)
def test_features_equal_transformers(folder: Path, text: str) -> None:
    encoder = make(folder)
    ids, hidden = official(folder, text, 30)
    segments = said((0, 4, text.strip()))
    assert prepare(encoder, segments)["ids"].tolist() == ids
    (features,) = encode(encoder, segments)
    np.testing.assert_allclose(features.data, hidden, atol=1e-5)
    assert features.data.shape == (len(ids), encoder.spec.dim)


def test_rows_are_where_their_word_was_said(folder: Path) -> None:
    encoder = make(folder)
    prepared = prepare(encoder, said((1.0, 2.0, "a dog"), (2.0, 2.5, ""), (4.0, 8.0, "barks quiet")))
    names = pieces(folder, prepared)
    assert names[:3] == ["[CLS]", "a", "dog"]
    assert names[-1] == "[SEP]"
    second = prepared["pts_seconds"][3:-1]
    assert len(second) >= 2
    np.testing.assert_array_equal(prepared["pts_seconds"], [4.5, 1.5, 1.5, *([6.0] * len(second)), 4.5])


def test_word_pieces_of_one_word_have_one_time(folder: Path) -> None:
    prepared = prepare(make(folder), said((0.0, 1.0, "dograin"), (1.0, 3.0, "a")))
    names = pieces(folder, prepared)
    assert sum(name.startswith("##") for name in names) >= 1
    np.testing.assert_array_equal(prepared["pts_seconds"][1:-2], 0.5)
    assert prepared["pts_seconds"][-2] == 2.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a dog", "rain!", "?", "", "\u72d7 car", "\u0130 it", "e\u0301 is"]), st.integers(1, 9)
        ),
        max_size=8,
    )
)
def test_every_piece_finds_its_segment(folder: Path, parts: list[tuple[str, int]]) -> None:
    encoder = make(folder, max_tokens=40)
    starts = np.concatenate([[0], np.cumsum([length for _, length in parts])])
    segments = said(*((float(starts[i]), float(starts[i + 1]), text) for i, (text, _) in enumerate(parts)))
    together = prepare(encoder, segments)
    expected: list[float] = []
    for segment in segments.items:  # one by one
        alone = prepare(encoder, Segments((segment,)))
        expected += [(segment.start_seconds + segment.stop_seconds) / 2] * (len(alone["ids"]) - 2)
    np.testing.assert_array_equal(together["pts_seconds"][1:-1], expected[:38])


@pytest.mark.parametrize("text", [said(), said((1, 2, "")), said((1, 2, ""), (5, 6, ""))])
def test_nothing_said_has_two_rows_at_zero(folder: Path, text: Segments) -> None:
    encoder = make(folder)
    assert pieces(folder, prepare(encoder, text)) == ["[CLS]", "[SEP]"]
    (features,) = encode(encoder, text)
    np.testing.assert_array_equal(features.pts_seconds, [0, 0])
    assert len(encode(make(folder, tokens="mean"), text)[0].data) == 1


def test_text_is_cut_at_the_most_tokens(folder: Path) -> None:
    text = toys.text(*["a dog"] * 50)
    assert len(prepare(make(folder), text)["ids"]) == 30
    prepared = prepare(make(folder, max_tokens=5), text)
    assert pieces(folder, prepared) == ["[CLS]", "a", "dog", "a", "[SEP]"]
    with pytest.raises(UsageError, match=r"max_tokens: expected at most 40 .* got 41"):
        make(folder, max_tokens=41)
    with pytest.raises(ConfigError, match=r"max_tokens: .* greater than or equal to 2, got 1"):
        make(folder, max_tokens=1)


def test_pooled_rows_are_those_of_all(folder: Path) -> None:
    text = said((1.0, 3.0, "a dog barks"), (3.0, 5.0, "rain"))
    (every,) = encode(make(folder), text)
    (cls,) = encode(make(folder, tokens="cls"), text)
    (mean,) = encode(make(folder, tokens="mean"), text)
    np.testing.assert_array_equal(cls.data, every.data[:1])
    np.testing.assert_allclose(mean.data, every.data.mean(axis=0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal([*cls.pts_seconds, *mean.pts_seconds], [3.0, 3.0])


def test_a_batch_gives_what_its_clips_give_alone(folder: Path) -> None:
    texts = [toys.text("a dog barks"), toys.text(), toys.text("rain falls on a car", "who are you?")]
    encoder = make(folder)
    for together, text in zip(encode(encoder, *texts), texts, strict=True):
        (alone,) = encode(encoder, text)
        np.testing.assert_allclose(together.data, alone.data, atol=1e-5)


def test_request_and_spec(folder: Path) -> None:
    encoder = make(folder)
    assert encoder.request == TextRequest(of="asr")
    assert (encoder.spec.modality, encoder.spec.dtype, encoder.spec.dim) == ("text", "float16", 24)
    assert encoder.spec.source == {}  # whoever knows the other set's fingerprint puts it in
    assert make(folder, of="captions").spec.fingerprint != encoder.spec.fingerprint


def test_fingerprint_follows_weights_and_tokenizer(tmp_path: Path) -> None:
    one, other = (make(small.checkpoint(tmp_path / str(seed) / "bert", seed=seed)).spec for seed in (1, 2))
    assert one.weights["id"] == other.weights["id"] == "bert"
    assert one.weights["sha256"] != other.weights["sha256"]
    path = tmp_path / "2" / "bert" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert make(path.parent).spec.preprocessing != other.preprocessing


def test_clip_without_text_is_skipped(folder: Path) -> None:
    with pytest.raises(SkipClip, match="the clip has no text"):
        make(folder).prepare(toys.clip("b", audio=toys.noise(1.0)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_folder_fails(tmp_path: Path, name: str) -> None:
    folder = small.checkpoint(tmp_path / "bert", leave_out=[name])
    with pytest.raises(MissingWeightsError, match=rf"(?s)the folder holds no {name}.*b\.weights=/path/to/folder"):
        make(folder)


def test_missing_checkpoint_says_how_to_get_it() -> None:
    with pytest.raises(MissingWeightsError, match="hf download google-bert/bert-base-uncased"):
        make(bert_text.Config.model_fields["weights"].default)


def test_random_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"b\.weights: .* got 'random:1': random weights have no vocabulary"):
        make("random:1")


def test_tokenizer_of_another_kind_fails(tmp_path: Path) -> None:
    from .small import audio_caption

    folder = small.checkpoint(tmp_path / "bert")
    audio_caption.tokenizer(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected the tokens \[CLS\] and \[SEP\]"):
        prepare(make(folder), toys.text("a dog"))


def test_load_fails_where_tensors_are_missing(tmp_path: Path) -> None:
    folder = small.checkpoint(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit.* 16 tensors missing.*layer\.2\."):
        make(folder).load("cpu")


def test_set_that_is_read_must_be_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="of: missing"):
        parse(bert_text.Config, {"weights": str(folder)}, "test")


def test_encode_fails_before_load(folder: Path) -> None:
    encoder = make(folder)
    with pytest.raises(RuntimeError, match="encode: called before load"):
        encoder.encode([prepare(encoder, toys.text("a"))])


def test_loading_is_quiet(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(folder).load("cpu")
    assert capfd.readouterr() == ("", "")
