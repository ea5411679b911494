"""``avpipe features`` and ``avpipe verify`` as a user meets them, and the same through the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import ClipError, UsageError
from avpipe.pipeline.features import Features, FeatureSpec, Segment, Segments
from avpipe.pipeline.shards import plan, write_spec
from avpipe.pipeline.store import ShardWriter
from avpipe.pipeline.workspace import Workspace

from .conftest import Avpipe


def plans(workspace: Workspace) -> Any:
    read = manifest.read(workspace.manifest("synthetic"))
    return plan([clip.clip_id for clip in read.clips], read.clips_per_shard)


def write_toy(workspace: Workspace, name: str, *, noise: float = 0.0, shards: int = 3, **config: Any) -> Path:
    """A feature set of the 24 rendered clips; the last one failed. Noise is added to the rows."""
    folder = workspace.feature_set("synthetic", name)
    own = FeatureSpec(name=name, encoder="toy", modality="video", dim=4, dtype="float32", config=config)
    write_spec(folder, own)
    for planned in plans(workspace)[:shards]:
        with ShardWriter(folder, planned, own) as shard:
            for number, clip_id in enumerate(planned.clip_ids, start=8 * planned.index):
                rng = np.random.default_rng(number)
                data = rng.standard_normal((5, 4)) + noise * np.random.default_rng(99).standard_normal((5, 4))
                if number == 23:
                    shard.fail(clip_id, ClipError("decode", "broken"))
                else:
                    shard.add(clip_id, Features(data=data, pts_seconds=np.arange(5) + 0.5))
    return folder


@pytest.fixture
def toys(workspace: Workspace) -> Workspace:
    """A workspace with a feature set, and another that differs a little."""
    write_toy(workspace, "exact")
    write_toy(workspace, "near", noise=1e-3, precision="bf16")
    return workspace


# -- verify ------------------------------------------------------------------------------------------------------------


def test_half_a_feature_set_is_not_whole(avpipe: Avpipe, toys: Workspace) -> None:
    write_toy(toys, "half", shards=1)
    said = avpipe("verify", "-w", toys.root)
    assert said.status == 1
    assert "exact: whole; 24 clips = 23 ok + 1 failed + 0 skipped\n" in said.out
    assert "half: 1 problem; 24 clips = 8 ok + 0 failed + 0 skipped + 16 missing\n" in said.out
    assert "  00001 to 00002: 2 of 3 shards, with 16 clips: not extracted yet; `avpipe extract` goes on\n" in said.out
    assert avpipe("verify", "-e", "exact,near", "-w", toys.root).status == 0
    said = avpipe("verify", "-e", "exat", "-w", toys.root)
    assert said.status == 2
    assert "unknown feature set 'exat' (did you mean 'exact'?)" in said.err


def test_warnings_are_no_problems(avpipe: Avpipe, workspace: Workspace) -> None:
    folder = workspace.feature_set("synthetic", "zeros")
    own = FeatureSpec(name="zeros", encoder="toy", modality="video", dim=4)
    write_spec(folder, own)
    for planned in plans(workspace):
        with ShardWriter(folder, planned, own) as shard:
            for clip_id in planned.clip_ids:
                shard.add(clip_id, Features(data=np.zeros((2, 4)), pts_seconds=np.arange(2.0)))
    said = avpipe("verify", "--deep", "-w", workspace.root)
    assert said.status == 0
    assert "  24 warnings\n" in said.out
    assert ": 2 of 2 rows are all zero\n" in said.out
    assert "    ... and 4 more (--json lists all)\n" in said.out
    assert "zeros: whole" in avpipe("verify", "-w", workspace.root).out
    report = json.loads(avpipe("verify", "--deep", "--json", "-w", workspace.root).out)["zeros"]
    assert report["whole"]
    assert [warning["kind"] for warning in report["warnings"]] == ["zero"] * 24
    assert report["facts"]["rows"] == 48


def test_lengths_of_clips_come_from_the_manifest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    clips = [Clip(clip_id=name, dataset="own", path="long.mp4", split="train", start_seconds=5, stop_seconds=stop)
             for name, stop in (("a", 10), ("b", 7))]  # fmt: skip
    manifest.write(workspace.manifest("own"), clips, media_root=tmp_path)
    own = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")
    write_spec(workspace.feature_set("own", "words"), own)
    with ShardWriter(workspace.feature_set("own", "words"), plan(["a", "b"], 256)[0], own) as shard:
        for clip_id in "ab":
            shard.add(clip_id, Segments((Segment(start_seconds=0, stop_seconds=4.5, text="hello"),)))
    report = api.verify(workspace, "own", deep=True)["words"]
    assert [str(odd) for odd in report.oddities] == ["b: reaches to 4.500 s, the clip only to 2.000 s"]


# -- diff --------------------------------------------------------------------------------------------------------------


def test_two_feature_sets_are_compared(avpipe: Avpipe, toys: Workspace) -> None:
    said = avpipe("features", "diff", "exact", "synthetic/near", "-w", toys.root)
    assert said.status == 0
    assert 'spec: config.precision: (absent) against "bf16"\n' in said.out
    assert "23 clips compared: 0 equal, cosine 0.999999, least 0.99" in said.out  # not 1.000000
    assert "  ... and 13 more (--json lists all)\n" in said.out
    found = json.loads(avpipe("features", "diff", "exact", "near", "--json", "-w", toys.root).out)
    assert len(found["clips"]) == 23
    least = [clip["min_cosine"] for clip in found["clips"]]
    assert least == sorted(least)
    assert found["min_cosine"] == least[0] < 1
    assert f"  {found['clips'][0]['clip_id']}: cosine 0.999" in said.out


def test_a_demand_is_answered_by_the_exit_status(avpipe: Avpipe, toys: Workspace) -> None:
    pair = "features", "diff", "exact", toys.feature_set("synthetic", "near")
    assert avpipe(*pair, "--min-cosine", 0.9, "-w", toys.root).status == 0
    assert avpipe(*pair, "--min-cosine", 0.999999999, "-w", toys.root).status == 1
    write_toy(toys, "half", shards=1)
    said = avpipe("features", "diff", "exact", "half", "--min-cosine", 0.1, "-w", toys.root)
    assert said.status == 1
    assert "15 clips in the first alone: " in said.out
    assert "8 clips compared: 8 equal, cosine 1.000000" in said.out


def test_texts_are_compared(avpipe: Avpipe, workspace: Workspace) -> None:
    for name, word in (("heard", "dog"), ("understood", "god")):
        folder = workspace.feature_set("synthetic", name)
        own = FeatureSpec(name=name, encoder="toy", modality="text", dim=0, dtype="text")
        write_spec(folder, own)
        (first, *_) = plans(workspace)
        with ShardWriter(folder, first, own) as shard:
            for number, clip_id in enumerate(first.clip_ids):
                text = word if number == 2 else "rain"
                shard.add(clip_id, Segments((Segment(start_seconds=0, stop_seconds=1, text=text),)))
    said = avpipe("features", "diff", "heard", "understood", "-w", workspace.root)
    assert said.status == 0
    assert f"  {first.clip_ids[2]}: 'dog' against 'god'\n" in said.out
    assert said.out.endswith("8 clips compared: 7 equal, 1 of other text\n")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["exact", "nera"], "unknown feature set 'nera' (did you mean 'near'?)"),
        (["exact", "sintetic/near"], "unknown dataset 'sintetic' (did you mean 'synthetic'?)"),
        (["exact", "a/b/c"], "unknown feature set 'a/b/c'"),
        (["exact"], "Missing argument 'SECOND'"),
    ],
)
def test_feature_sets_that_are_not_there(avpipe: Avpipe, toys: Workspace, pair: list[str], message: str) -> None:
    said = avpipe("features", "diff", *pair, "-w", toys.root)
    assert (said.status, said.out) == (2, "")
    assert message in said.err


# -- export, import ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npy", "h5", "video-features"])
def test_out_and_in_again(avpipe: Avpipe, toys: Workspace, tmp_path: Path, form: str) -> None:
    said = avpipe("features", "export", "exact", "--to", tmp_path / "out", "--as", form, "-w", toys.root)
    assert said.status == 0
    assert said.out.startswith("exact: 23 clips, ")
    options = ("--name", "back", "--from", form, "--id", "mine/toy", "-w", toys.root)
    said = avpipe("features", "import", tmp_path / "out", *options)
    assert said.status == 3  # the clip that had failed is not there
    assert "back: 24 clips = 23 ok + 1 failed + 0 skipped; " in said.out
    assert "  test-00003: missing_file: no test-00003 (" in said.out
    assert "23 clips compared: 23 equal" in avpipe("features", "diff", "exact", "back", "-w", toys.root).out
    assert avpipe("verify", "--deep", "-e", "back", "-w", toys.root).status == 0
    listed = json.loads(avpipe("ls", "features", "--json", "-w", toys.root).out)["features"]
    assert listed["synthetic/back"].startswith("video, 4 wide, float32, ")
    assert listed["synthetic/back"].endswith(": 23 ok, 1 failed")


def test_an_import_is_trained_on_but_not_retried(avpipe: Avpipe, toys: Workspace, tmp_path: Path) -> None:
    avpipe("features", "export", "exact", "--to", tmp_path / "out", "-w", toys.root)
    avpipe("features", "import", tmp_path / "out", "--name", "back", "-w", toys.root)
    for name in ("exact", "near"):
        for path in toys.feature_set("synthetic", name).iterdir():
            path.unlink()
    for words in (["retry"], ["retry", "-e", "back"]):
        said = avpipe(*words, "-w", toys.root)
        assert said.status == 2
        assert "feature set 'back' was imported: avpipe has no encoder that makes such features" in said.err
    tiny = ("train.epochs=1", "train.tensorboard=false", "fusion.width=16", "decoder.width=16", "generate.max_tokens=4")
    said = avpipe("train", "--fusion", "concat", "--name", "tiny", "--json", *tiny, "-w", toys.root)
    assert json.loads(said.out)["run"] == "tiny"
    clip = sorted(toys.media("synthetic").rglob("*.mp4"))[0]
    said = avpipe("caption", clip, "-w", toys.root)
    assert said.status == 2
    assert "feature set 'back' was imported" in said.err


def test_what_can_be_made_again_is_retried_beside_an_import(workspace: Workspace, tmp_path: Path) -> None:
    setup = api.extraction(workspace, recipe="baseline", encoders=["colour_grid"], gpus=0, decoders=1)
    write_spec(workspace.feature_set("synthetic", "colour_grid"), setup.setting.encoders["colour_grid"].spec)
    write_toy(workspace, "exact")
    api.export_features(api.find_features(workspace, "exact"), tmp_path / "out", "npy")
    api.import_features(workspace, tmp_path / "out", "back")
    for path in workspace.feature_set("synthetic", "exact").iterdir():
        path.unlink()
    assert list(api.extraction_again(workspace, gpus=0).setting.folders) == ["colour_grid"]
    with pytest.raises(UsageError, match="'back' was imported"):
        api.extraction_again(workspace, encoders=["colour_grid", "back"], gpus=0)


def test_files_named_as_the_media_are_found(avpipe: Avpipe, workspace: Workspace, tmp_path: Path) -> None:
    """``train/00001.mp4`` and ``test/00001.mp4`` have the same name: it says nothing. ``train-00001`` does."""
    (tmp_path / "out").mkdir()
    for name in ("00001", "00010", "train-00002"):
        np.save(tmp_path / "out" / f"{name}.npy", np.ones((2, 3), np.float16))
    options = ("--name", "found", "--modality", "audio", "--hop-seconds", 0.5, "--json", "-w", workspace.root)
    said = avpipe("features", "import", tmp_path / "out", *options)
    assert said.status == 3
    assert json.loads(said.out)["counts"] == {"ok": 2, "failed": 22, "skipped": 0}
    found = api.find_features(workspace, "found")
    assert found.clip_ids == ["train-00002", "train-00010"]
    assert (found.spec.modality, found.spec.dtype) == ("audio", "float16")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("export exact", 2, "Missing option '--to'"),
        ("export exact --to out --as npz", 2, "'npz' is not one of"),
        ("export exact --to .", 2, "expected a new or empty folder, it holds something"),
        ("export exact --to s3://bucket/x", 2, "work on folders of this machine"),
        ("import nowhere --name x", 2, "import from nowhere: expected a folder, there is none"),
        ("import full --name ../x --modality video", 2, "name of a feature set: expected letters"),
        ("import full --name x", 2, "nothing says what the features are of; say --modality video, audio or text"),
        ("import full --name x --modality smell", 2, "'smell' is not one of"),
        ("import full --name x --modality video", 2, "nothing says at what time the rows are"),
        ("import full --name x --modality video --spread", 2, "--spread: the manifest does not say how long 24 of 24"),
        ("import full --name x --modality video --hop-seconds 1 --spread", 2, "got together with --spread"),
        ("import full --name x --modality video --hop-seconds 1 -f hdf", 2, "unknown store format 'hdf'"),
        ("import full --name x -d nope", 2, "unknown dataset 'nope'"),
        ("import full --name exact --modality video --hop-seconds 1", 1, 'encoder: "toy" against "imported"'),
        ("import . --name x --modality video --hop-seconds 1", 1, "no clip has features there"),
    ],
)
def test_wrong_words_change_nothing(
    avpipe: Avpipe, toys: Workspace, tmp_path: Path, words: str, status: int, message: str
) -> None:
    (tmp_path / "full").mkdir()
    np.save(tmp_path / "full" / "train-00002.npy", np.ones((2, 3)))
    before = {path for path in toys.root.rglob("*") if path.is_file()}
    said = avpipe("features", *words.split(), "-w", toys.root)
    assert (said.status, said.out) == (status, "")
    assert message in " ".join(said.err.split())
    assert {path for path in toys.root.rglob("*") if path.is_file()} == before
