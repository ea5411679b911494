"""The whole of stage one, and a training, with everything on an S3 server: media, manifest and features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from avpipe import api
from avpipe.cli._app import FAILED_CLIPS
from avpipe.data_manifests import manifest
from avpipe.data_manifests.datasets.folder import safe_id
from avpipe.pipeline import shards
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.files import atomic_write
from avpipe.pipeline.places import place
from avpipe.pipeline.store import FeatureSet
from avpipe.pipeline.workspace import Workspace

from ..s3 import Door, serving
from .conftest import Avpipe

TINY = ("train.epochs=1", "train.tensorboard=false", "fusion.width=16", "decoder.width=16", "generate.max_tokens=4")
SHARDS = 3
FEATURE_SETS = ("colour_grid", "log_mel")
BASELINE = ("--recipe", "baseline", "--gpus", "0", "--decoders", "1")


@dataclass(frozen=True, slots=True)
class Setup:
    """The same videos on this machine and on the server, but for one that was lost after ``prepare``."""

    door: Door
    local: Workspace
    captions: Path
    media: Path
    clips: tuple[Clip, ...]
    missing: str


def options(setup: Setup) -> tuple[object, ...]:
    return ("folder", "--media", setup.media, "--annotations", setup.captions, "--clips-per-shard", 4)


@pytest.fixture(scope="module")
def setup(rendered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Extracted on this machine; the server has the videos."""
    folder = tmp_path_factory.mktemp("s3")
    source = manifest.read(rendered.manifest("synthetic"))
    clips = (*source.clips[:8], *source.split("val")[:4])
    rows = [
        {"id": clip.path, "captions": list(clip.captions), "split": clip.split, "file": clip.path} for clip in clips
    ]
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    media, lost = folder / "videos", clips[2]
    for clip in clips:
        (media / clip.path).parent.mkdir(parents=True, exist_ok=True)
        (media / clip.path).symlink_to(source.media_root / clip.path)
    local = Workspace(folder / "local")
    header = api.prepare(local, "folder", media=media, annotations=folder / "captions.jsonl", clips_per_shard=4)
    assert sum(header.clips.values()) == len(clips)
    (media / lost.path).unlink()
    report = api.extraction(local, recipe="baseline", gpus=0, decoders=2).run()
    assert report.worked == SHARDS
    with pytest.MonkeyPatch.context() as patch, serving(patch.setenv) as door:
        remote = place("s3://bucket/videos")
        for clip in clips:
            with atomic_write(remote / clip.path) as aside:
                aside.write_bytes(b"" if clip is lost else (media / clip.path).read_bytes())
        yield Setup(door, local, folder / "captions.jsonl", remote, clips, safe_id(lost.path))


@pytest.fixture
def there(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Workspace:
    """A workspace on the server."""
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    setup.door.open()
    return Workspace(place(f"s3://bucket/{request.node.name}"))


def publish(setup: Setup, there: Workspace) -> None:
    """Put the manifest there as it is here."""
    manifest.write(
        there.manifest("folder"), manifest.read(setup.local.manifest("folder")).clips, media_root=setup.media
    )


def two_workers(workspace: Workspace) -> api.Extraction:
    extraction = api.extraction(workspace, recipe="baseline", gpus=0, decoders=1)
    return replace(extraction, setting=replace(extraction.setting, devices=("cpu", "cpu")))


def check_equal(there: Workspace, local: Workspace) -> None:
    for name in FEATURE_SETS:
        one, other = there.feature_set("folder", name), local.feature_set("folder", name)
        assert [(mark.file, mark.sha256) for mark in shards.marks(one)] == [
            (mark.file, mark.sha256) for mark in shards.marks(other)
        ]
        for mark in shards.marks(one):
            assert (one / mark.file).read_bytes() == (other / mark.file).read_bytes()
        remote, here = FeatureSet(one), FeatureSet(other)
        assert remote.clip_ids == here.clip_ids
        for clip_id in here.clip_ids:
            assert remote.read(clip_id).data.tobytes() == here.read(clip_id).data.tobytes()


def failed(workspace: Workspace) -> set[str]:
    """Clips that some finished shard calls failed."""
    found = [mark for name in FEATURE_SETS for mark in shards.marks(workspace.feature_set("folder", name))]
    return {row.clip_id for mark in found for row in mark.outcomes if row.status == "failed"}


def test_everything_may_lie_on_s3_and_the_server_may_go_in_mid_run(
    avpipe: Avpipe, setup: Setup, there: Workspace, tmp_path: Path
) -> None:
    said = avpipe("prepare", *options(setup), "-w", there.root)
    assert said.status == 0, said.err
    assert f"-> {there.root}/manifests/folder.jsonl.gz" in said.out
    (setup.media / setup.clips[2].path).unlink()
    finished = 0
    for at in (
        f"GET /bucket/videos/{setup.clips[5].path}",  # while videos are read
        f"PUT /bucket/{there.root.name}/features/folder/log_mel/00002.h5",  # while shards are written
    ):
        setup.door.shuts_at = lambda line, at=at: line.startswith(at.encode())  # type: ignore[misc]
        said = avpipe("extract", *BASELINE, "-w", there.root)
        assert said.status == 1
        assert "error: cannot" in said.err
        assert "s3://bucket/" in said.err
        assert "When the storage answers again, run the same command again" in said.err
        setup.door.open()
        done = [len(shards.marks(there.feature_set("folder", name))) for name in FEATURE_SETS]
        assert finished <= min(done) < SHARDS
        assert failed(there) <= {setup.missing}
        finished = min(done)
    assert two_workers(there).run().worked == SHARDS - finished
    check_equal(there, setup.local)
    assert failed(there) == {setup.missing}
    assert avpipe("verify", "--deep", "-w", there.root).status == 0
    said = avpipe("extract", *BASELINE, "--json", "-w", there.root)
    assert (said.status, json.loads(said.out)["worked"]) == (FAILED_CLIPS, 0)
    assert "folder/colour_grid" in avpipe("ls", "features", "-w", there.root).out
    said = avpipe("train", "--name", "tiny", *TINY, "-w", there.root)
    assert said.status == 0, said.err
    assert Workspace(tmp_path / "avpipe-data").runs() == ["tiny"]  # runs are on this machine
    assert there.run("tiny").resolve() == tmp_path / "avpipe-data" / "runs" / "tiny"


def test_the_forecast_decodes_remote_videos(setup: Setup, there: Workspace) -> None:
    publish(setup, there)
    (setup.media / setup.clips[2].path).unlink(missing_ok=True)
    forecast = api.extraction(there, recipe="baseline", encoders=["colour_grid"], gpus=0, decoders=1).forecast()
    assert (forecast.sampled, forecast.failed, forecast.free_bytes, forecast.fits) == (12, 1, None, True)


def test_what_is_wrong_is_said_before_anything_runs(avpipe: Avpipe, setup: Setup, there: Workspace) -> None:
    said = avpipe("ls", "-w", "s3://buckett/data")
    assert (said.status, "there is no bucket for s3://buckett/data" in said.err) == (2, True)
    said = avpipe("ls", "-w", "s4://bucket/data")
    assert (said.status, "nothing knows the protocol of 's4://bucket/data'" in said.err) == (2, True)
    publish(setup, there)
    said = avpipe("extract", *BASELINE, "--media", "s3://bucket/vidoes", "-w", there.root)
    assert said.status == 1
    assert "the media root s3://bucket/vidoes is no folder here" in said.err
    setup.door.says_no = lambda line: line.startswith(b"PUT")
    said = avpipe("extract", *BASELINE, "-w", there.root)
    assert said.status == 1
    assert "spec.json: no permission (Access Denied). Check the credentials of this machine" in said.err
    assert len(said.err.splitlines()) == 1


def test_the_doctor_asks_the_server(avpipe: Avpipe, setup: Setup, there: Workspace) -> None:
    def finding(check: str) -> dict[str, str]:
        findings = json.loads(avpipe("doctor", "--json", "-w", there.root).out)
        return {found["check"]: found for found in findings}[check]

    assert finding("workspace")["status"] == "ok"
    assert "may be deleted" in finding("cache")["detail"]
    setup.door.shut()
    assert finding("workspace")["status"] == "fault"
    with pytest.raises(StoreError, match="Could not connect"):
        there.prepared()
