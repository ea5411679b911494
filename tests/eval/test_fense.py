"""Sentence-BERT similarity, fluency errors and what is made of them, against a slow reading of the original steps."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from avpipe.eval import Scorer, networks, score
from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metric import MetricResult, load
from avpipe.eval.networks import ECHECKERS, ErrorChecker, Networks, SentenceEncoder
from avpipe.eval.tools import Tools
from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UnknownNameError

from .small_networks import make_echecker, make_sbert
from .toys import TOY_CANDIDATES, TOY_REFERENCES, evaluation_of, stand_in

# What the tokenisers treat in ways of their own: capitals, punctuation, white space around, many words, none.
CANDIDATES = {
    **TOY_CANDIDATES,
    "m0": "  Huge waves, are CRASHING on the beach!  ",
    "Z9": "a violin plays and plays and plays and plays and plays and plays and plays and plays and plays and",
    "12": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    make_sbert(folder / "sbert")
    make_echecker(folder / "echecker")
    return folder


@pytest.fixture
def tools(folder: Path) -> Tools:
    return Tools(weights={"sbert": str(folder / "sbert"), "echecker": str(folder / "echecker" / "echecker.ckpt")})


@pytest.fixture
def evaluation(tools: Tools) -> Evaluation:
    return evaluation_of(TOY_REFERENCES, CANDIDATES, tools)


@pytest.fixture(autouse=True)
def _nothing_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("AVPIPE_SBERT", "AVPIPE_ECHECKER"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "AVPIPE_CACHE", "FENSE_DATA", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


# The numbers


def slow_vector(folder: Path, sentence: str) -> torch.Tensor:
    """Alone, with nothing filled up: the mean over its word pieces, of length 1."""
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        inputs = tokenizer(sentence, truncation=True, max_length=12, return_tensors="pt")
        mean = model(inputs["input_ids"]).last_hidden_state[0].double().mean(dim=0)
    return mean / mean.norm()


def slow_probabilities(folder: Path, sentences: list[str]) -> torch.Tensor:
    """As FENSE's own code goes about it: everything filled up to 64 word pieces."""
    content = torch.load(folder / "echecker.ckpt")
    bert = BertModel(BertConfig.from_pretrained(folder)).eval()
    state = content["state_dict"]
    bert.load_state_dict(
        {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")},
        strict=False,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    texts = [re.sub(r"[^\w\s]", "", sentence).lower() for sentence in sentences]
    inputs = tokenizer(
        texts, truncation=True, padding="max_length", max_length=64, return_tensors="pt", return_token_type_ids=True
    )
    with torch.no_grad():
        first = bert(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]).last_hidden_state[:, 0]
        return torch.sigmoid(first @ state["clf.weight"].T + state["clf.bias"])


def test_similarity_is_the_mean_cosine_to_the_references(folder: Path, evaluation: Evaluation) -> None:
    result = load("sbert_sim").compute(evaluation)
    slow = {
        key: np.mean([float(slow_vector(folder / "sbert", CANDIDATES[key]) @ slow_vector(folder / "sbert", reference))
                      for reference in references])
        for key, references in TOY_REFERENCES.items()
    }  # fmt: skip
    assert result.per_clip["SBERT_sim"] == pytest.approx(slow, abs=1e-5)
    assert result.corpus["SBERT_sim"] == pytest.approx(np.mean(list(slow.values())), abs=1e-5)
    assert len({round(value, 3) for value in slow.values()}) == len(slow)  # they do differ


def test_errors_are_those_of_the_last_output_above_nine_tenths(folder: Path, evaluation: Evaluation) -> None:
    slow = slow_probabilities(folder / "echecker", list(CANDIDATES.values()))
    found = evaluation.tools.networks.error_checker(list(CANDIDATES.values()))
    assert found == pytest.approx(slow.numpy(), abs=1e-5)
    errors = {key: float(row[-1] > 0.9) for key, row in zip(CANDIDATES, slow, strict=True)}
    assert set(errors.values()) == {0, 1}
    result = load("fer").compute(evaluation)
    assert result.per_clip["FER"] == errors
    assert result.corpus["FER"] == pytest.approx(np.mean(list(errors.values())))


@pytest.mark.parametrize(
    ("metric", "name", "of", "of_name"),
    [("fense", "FENSE", "sbert_sim", "SBERT_sim"), ("spider_fl", "SPIDEr-FL", "spider", "SPIDEr")],
)
def test_an_error_costs_nine_tenths(evaluation: Evaluation, metric: str, name: str, of: str, of_name: str) -> None:
    if of == "spider":
        scores = {key: 0.1 * number for number, key in enumerate(CANDIDATES)}
        stand_in(evaluation, "spider", MetricResult.of_means({"SPIDEr": scores}, ("a note",), "stand-in"))
    before, errors = evaluation.result(of).per_clip[of_name], evaluation.result("fer").per_clip["FER"]
    result = load(metric).compute(evaluation)
    assert result.per_clip[name] == pytest.approx(
        {key: value / 10 if errors[key] else value for key, value in before.items()}
    )
    assert result.corpus[name] == pytest.approx(np.mean(list(result.per_clip[name].values())))
    assert result.notes == evaluation.result(of).notes


def test_a_sentence_reads_the_same_in_any_company(tools: Tools) -> None:
    encoder, checker = tools.networks.sentence_encoder, tools.networks.error_checker
    several = [" ".join(["waves"] * number) for number in range(1, 150)]
    one, alone = encoder(several)[37], encoder(several[37:38])[0]
    assert one == pytest.approx(alone, abs=1e-6)
    assert np.linalg.norm(one) == pytest.approx(1)
    assert checker(several)[37] == pytest.approx(checker(several[37:38])[0], abs=1e-6)
    assert (encoder(["a", "b", "a"])[0] == encoder(["a", "b", "a"])[2]).all()


def test_only_so_many_word_pieces_are_read(tools: Tools) -> None:
    encoder = tools.networks.sentence_encoder
    longer = " ".join(["waves"] * 30)
    assert encoder([longer])[0] == pytest.approx(encoder([longer + " and a dog"])[0], abs=1e-6)
    assert encoder(["waves"])[0] != pytest.approx(encoder(["waves and a dog"])[0], abs=1e-3)


def test_references_are_read_once_for_many_systems(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = SentenceEncoder.__call__
    monkeypatch.setattr(
        SentenceEncoder, "__call__", lambda self, sentences: asked.append(len(sentences)) or real(self, sentences)
    )
    scorer = Scorer({"a": ["a dog", "dogs"], "b": ["a cat"]}, metrics=["sbert_sim"], tools=tools)
    for caption in ("a dog", "a cat"):
        scorer.score({"a": caption, "b": caption})
    assert sorted(asked) == [2, 2, 3]


def test_the_signature_tells_the_weights(tools: Tools) -> None:
    report = score({"a": "a dog"}, {"a": ["a dog"]}, metrics=["fense", "bleu"], tools=tools)
    assert report.scores["FENSE"] is not None
    assert re.search(
        r"\|sbert:sbert@[0-9a-f]{8}\+[0-9a-f]{8}\|threshold:0\.9\|echecker:echecker@[0-9a-f]{8}\+[0-9a-f]{8}\|penalty:0\.9\|missing:",
        report.signature("FENSE"),
    )
    assert "|reflen:closest|missing:" in report.signature("Bleu_4")


def test_how_long_a_sentence_may_be_stands_in_the_signature(tmp_path: Path) -> None:
    folder = make_sbert(tmp_path / "sbert")
    lengths = folder / "sentence_bert_config.json"
    before = SentenceEncoder(str(folder)).version
    lengths.write_text(json.dumps({"max_seq_length": None}))  # the network's own
    after = SentenceEncoder(str(folder)).version
    assert before.partition("+")[0] == after.partition("+")[0]
    assert before != after
    lengths.write_text(json.dumps({"max_seq_length": "long"}))
    with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json: expected max_seq_length.*got 'long'"):
        SentenceEncoder(str(folder))


# The files


def test_a_plain_vocabulary_does_for_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    path = make_echecker(tmp_path / "plain", plain_vocabulary=True)
    sentences = list(CANDIDATES.values())
    assert ErrorChecker(str(path))(sentences) == pytest.approx(
        ErrorChecker(str(folder / "echecker" / "echecker.ckpt"))(sentences), abs=1e-6
    )


def test_old_weight_files_are_read_too(folder: Path, tmp_path: Path) -> None:
    make_sbert(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(BertModel.from_pretrained(folder / "sbert").state_dict(), tmp_path / "old" / "pytorch_model.bin")
    old, new = SentenceEncoder(str(tmp_path / "old")), SentenceEncoder(str(folder / "sbert"))
    assert old(["a dog"]) == pytest.approx(new(["a dog"]), abs=1e-6)
    assert old.version != new.version


def test_a_model_is_found_in_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--sentence-transformers--paraphrase-TinyBERT-L6-v2"
    make_sbert(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123", encoding="utf-8")
    found = Tools().networks.sentence_encoder
    assert found.version.startswith("sbert:paraphrase-TinyBERT-L6-v2@")
    assert found(["a dog"]) == pytest.approx(SentenceEncoder(str(folder / "sbert"))(["a dog"]))


def test_what_the_vectors_are_made_by_is_checked(tmp_path: Path) -> None:
    assert SentenceEncoder(str(make_sbert(tmp_path / "length", more_modules=["Normalize"])))(["a dog"]).shape == (1, 24)
    with pytest.raises(CheckpointError, match="expected pooling_mode_mean_tokens alone, got pooling_mode_cls_token"):
        SentenceEncoder(str(make_sbert(tmp_path / "cls", pooling="cls_token")))
    with pytest.raises(CheckpointError, match="perhaps Normalize, got Transformer, Pooling, Dense"):
        SentenceEncoder(str(make_sbert(tmp_path / "dense", more_modules=["Dense"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("model_type"), "expected the keys model_type, num_classes and state_dict"),
        (lambda content: content.update(num_classes=5), r"does not fit the network .*clf\.weight is \(6, 24\)"),
        (lambda content: content["state_dict"].pop("clf.bias"), r"1 missing: clf\.bias"),
    ],
)
def test_another_file_than_a_detector_is_refused(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = make_echecker(tmp_path / "checker")
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        ErrorChecker(str(path))


def test_weights_that_are_not_here_give_no_score_but_the_reason() -> None:
    report = score({"a": "a dog"}, {"a": ["a dog"]}, metrics=["fense", "fer", "bleu"])
    assert (report.scores["FENSE"], report.scores["FER"]) == (None, None)
    assert "hf download sentence-transformers/paraphrase-TinyBERT-L6-v2" in report.reasons["FENSE"]
    assert "curl -LO https://github.com/blmoistawinde/fense" in report.reasons["FER"]
    assert report.scores["Bleu_1"] == pytest.approx(1)


def test_a_public_detector_is_found_where_others_keep_it_and_known_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "echecker_clotho_audiocaps_base"
    public = tmp_path / "fense_data" / f"{name}.ckpt"
    made = make_echecker(public.parent)
    made.rename(public)
    with pytest.raises(CheckpointError, match=r"expected the sha256 1a719f090af70614\.\.\. of the public"):
        ErrorChecker(name)
    monkeypatch.setitem(ECHECKERS, name, networks.weights.sha256_of(public))
    assert ErrorChecker(name).version.startswith(f"echecker:{name}@")
    with pytest.raises(MissingWeightsError, match=r"expected a \.ckpt file or one of echecker_clotho_audiocaps_base"):
        ErrorChecker("echecker")
    with pytest.raises(MissingWeightsError, match=r"there is no file /gone\.ckpt.*AVPIPE_ECHECKER=PATH"):
        ErrorChecker("/gone.ckpt")


def test_a_detector_without_its_bert_beside_it_asks_for_that(tmp_path: Path) -> None:
    path = make_echecker(tmp_path / "alone")
    (path.parent / "tokenizer.json").unlink()
    with pytest.raises(MissingWeightsError, match="hf download prajjwal1/bert-tiny"):
        ErrorChecker(str(path))


def test_the_environment_may_say_where_weights_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPIPE_SBERT", str(folder / "sbert"))
    assert Tools().networks.sentence_encoder.version.startswith("sbert:sbert@")
    assert Networks({"sbert": "elsewhere"}).places["sbert"] == "elsewhere"


def test_networks_are_named_and_read_anew_elsewhere(folder: Path, tools: Tools) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown network 'sbrt' \(did you mean 'sbert'\?\)"):
        Networks({"sbrt": "x"})
    vector = tools.networks.sentence_encoder(["a dog"])
    arrived = pickle.loads(pickle.dumps(tools))
    assert list(vars(arrived.networks)) == ["places"]
    assert arrived.networks.sentence_encoder(["a dog"]) == pytest.approx(vector)
