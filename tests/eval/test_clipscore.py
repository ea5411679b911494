"""CLIPScore against open_clip's own use of a small CLIP, and what it asks of features and weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from avpipe.api.judging import tools_for
from avpipe.eval import score
from avpipe.eval.evaluation import Evaluation
from avpipe.eval.metrics import clipscore
from avpipe.eval.networks import TextTower
from avpipe.eval.tools import Tools
from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, ScoringError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.shards import ShardPlan, write_spec
from avpipe.pipeline.store import ShardWriter
from avpipe.pipeline.workspace import Workspace

from .small_networks import Pictures, make_clip
from .toys import TOY_CANDIDATES, TOY_REFERENCES, evaluation_of

CANDIDATES = {**TOY_CANDIDATES, "12": "", "Z9": "waves " * 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Pictures:
    return make_clip(folder, list(CANDIDATES))


@pytest.fixture
def evaluation(pictures: Pictures) -> Evaluation:
    return evaluation_of(TOY_REFERENCES, CANDIDATES, Tools(pictures=pictures))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of others."""
    monkeypatch.delenv("AVPIPE_CLIP", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def slow_text(folder: Path, text: str) -> np.ndarray:
    """One sentence alone, by a model that open_clip reads from the folder."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"A photo depicts {text}"])
    with torch.no_grad():
        vector = model.encode_text(tokens)[0].double().numpy()
    return vector / np.linalg.norm(vector)


def test_scores_are_those_of_the_formula(folder: Path, pictures: Pictures, evaluation: Evaluation) -> None:
    result = clipscore.compute(evaluation)
    signs = set()
    for clip_id, references in TOY_REFERENCES.items():
        frames = [row / np.linalg.norm(row) for row in pictures.read(clip_id).data.astype(float)]
        mean = sum(frames) / len(frames)
        own = slow_text(folder, CANDIDATES[clip_id])
        cosine = float(own @ mean) / float(np.linalg.norm(mean))
        signs.add(cosine > 0)
        seen = 2.5 * max(cosine, 0)
        text = max(float(own @ slow_text(folder, reference)) for reference in references)
        both = 2 / (1 / seen + 1 / text) if seen > 0 and text > 0 else 0
        assert result.per_clip["CLIPScore"][clip_id] == pytest.approx(seen, abs=1e-5)
        assert result.per_clip["RefCLIPScore"][clip_id] == pytest.approx(both, abs=1e-5)
    assert signs == {True, False}
    for name, by_clip in result.per_clip.items():
        assert result.corpus[name] == pytest.approx(np.mean(list(by_clip.values())))


def test_what_is_like_the_pictures_scores_highest(pictures: Pictures) -> None:
    class Looks(Pictures):
        def read(self, clip_id: str, view: int = 0):  # type: ignore[no-untyped-def]
            vector = TextTower(self.spec)(["A photo depicts a dog"])
            return replace(super().read(clip_id), data=np.repeat(7 * vector, 3, axis=0))

    tools = Tools(pictures=Looks(pictures.spec, ["a", "b"]))
    result = clipscore.compute(evaluation_of({"a": ["a dog"], "b": ["a dog"]}, {"a": "a dog", "b": "waves"}, tools))
    assert result.per_clip["CLIPScore"]["a"] == pytest.approx(2.5, abs=1e-5)
    assert result.per_clip["RefCLIPScore"]["a"] == pytest.approx(2 / (1 / 2.5 + 1), abs=1e-5)
    assert result.per_clip["CLIPScore"]["b"] < 2.5


def test_the_signature_tells_weights_and_features(pictures: Pictures) -> None:
    report = score({"m0": "waves"}, {"m0": ["waves"]}, metrics=["clipscore"], tools=Tools(pictures=pictures))
    digest = pictures.spec.weights["sha256"][:8]
    assert (
        f"|w:2.5|clip:{pictures.spec.weights['id']}@{digest}|features:{pictures.spec.fingerprint}|"
        in report.signature("CLIPScore")
    )


def test_weights_may_lie_elsewhere_but_must_be_the_same(
    folder: Path, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = replace(pictures.spec, config={**pictures.spec.config, "weights": str(tmp_path / "gone")})
    with pytest.raises(MissingWeightsError, match="AVPIPE_CLIP=PLACE"):
        TextTower(moved)
    monkeypatch.setenv("AVPIPE_CLIP", str(folder))
    found = Tools().networks.text_tower(moved)(["a dog"])
    assert found == pytest.approx(TextTower(pictures.spec)(["a dog"]), abs=1e-6)
    others = replace(pictures.spec, weights={"id": "clip", "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"expected the weights that made feature set 'clip', with sha256 0000"):
        TextTower(others)


def test_a_model_with_a_name_is_read_from_its_file(folder: Path, pictures: Pictures) -> None:
    path = str(folder / "open_clip_model.safetensors")
    spec = replace(pictures.spec, config={**pictures.spec.config, "model": "small-CLIP", "weights": path})
    assert TextTower(spec)(["a dog"]) == pytest.approx(TextTower(pictures.spec)(["a dog"]), abs=1e-6)
    quick = replace(spec, preprocessing={**spec.preprocessing, "quick_gelu": True})
    assert TextTower(quick)(["a dog"]) != pytest.approx(TextTower(spec)(["a dog"]), abs=1e-4)


def test_a_tag_is_looked_for_on_the_hub(pictures: Pictures) -> None:
    spec = replace(pictures.spec, config={**pictures.spec.config, "model": "ViT-B-32", "weights": "openai"})
    with pytest.raises(MissingWeightsError, match="hf download timm/vit_base_patch32_clip_224"):
        TextTower(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnet50"}, "expected embeddings that clip_vit made with tokens=embedding, got resnet50"),
        ({"config": {"tokens": "cls"}}, "got clip_vit with tokens=cls"),
        ({"weights": {"id": "random", "sha256": "random:1"}}, "was made with random weights"),
    ],
)
def test_other_features_are_refused(pictures: Pictures, change: dict[str, object], message: str) -> None:
    spec = FeatureSpec.from_json({**pictures.spec.to_json(), **change})
    with pytest.raises(ScoringError, match=message):
        TextTower(spec)


def test_weights_that_do_not_fit_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    made = make_clip(tmp_path / "other", ["a"])
    config = json.loads((tmp_path / "other" / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    (tmp_path / "other" / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be read as local-dir:"):
        TextTower(made.spec)


def test_without_pictures_there_is_no_score_but_the_reason(pictures: Pictures) -> None:
    report = score({"m0": "waves"}, {"m0": ["waves"]}, metrics=["clipscore"])
    assert report.scores == {"CLIPScore": None, "RefCLIPScore": None}
    assert "avpipe extract -d DATASET -e clip_vit clip_vit.tokens=embedding" in report.reasons["CLIPScore"]
    report = score({"new": "waves"}, {"new": ["waves"]}, metrics=["clipscore"], tools=Tools(pictures=pictures))
    assert report.reasons["CLIPScore"] == "feature set 'clip' has no pictures of 1 of 1 clips: new"


def test_pictures_of_a_dataset_are_found_in_the_workspace(pictures: Pictures, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert tools_for(workspace, "toys", ["clipscore"]).pictures is None
    tokens = replace(pictures.spec, name="tokens", config={**pictures.spec.config, "tokens": "all"})
    small = replace(pictures.spec, name="a-small-one", config={**pictures.spec.config, "model": "small-CLIP"})
    paper = replace(pictures.spec, name="clip", config={**pictures.spec.config, "model": "ViT-B-32"})
    for spec in (tokens, small, paper):
        folder = workspace.feature_set("toys", spec.name)
        write_spec(folder, spec)
        with ShardWriter(folder, ShardPlan(0, tuple(pictures.clip_ids)), spec) as shard:
            for clip_id in pictures.clip_ids:
                shard.add(clip_id, pictures.read(clip_id))
    found = tools_for(workspace, "toys", ["RefCLIPScore", "cider"]).pictures
    assert found is not None and found.spec.name == "clip"
    assert found.read("m0").data == pytest.approx(pictures.read("m0").data)
    assert tools_for(workspace, "toys", ["cider"]).pictures is None
