"""Stage one as a whole, on rendered clips: one decode, one row a clip, the same bytes whatever happens."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.extract import demux, recipe
from avpipe.extract.run import DecodeJob, DecodeWork, ExtractReport, extract_file
from avpipe.pipeline import shards
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError, FingerprintError, UnknownNameError, UsageError
from avpipe.pipeline.store import FeatureSet
from avpipe.pipeline.workspace import Workspace

EYES_AND_EARS = ("colour_grid", "log_mel")


def extraction(workspace: Workspace, **options: object) -> api.Extraction:
    return api.extraction(workspace, recipe="baseline", **{"gpus": 0, "decoders": 1, **options})  # type: ignore[arg-type]


def run(workspace: Workspace, **options: object) -> ExtractReport:
    return extraction(workspace, **options).run()


def digests(workspace: Workspace, dataset: str = "synthetic") -> Mapping[str, str]:
    """sha256 of every shard, and of every mark without what may differ: the seconds."""
    found = {}
    for path in sorted(workspace.features(dataset).rglob("0*")):
        if path.suffix == ".json":
            mark = shards.Mark.read(path)
            content = repr([(row.clip_id, row.status, row.error_type, row.notes) for row in mark.outcomes]).encode()
        else:
            content = path.read_bytes()
        found[str(path.relative_to(workspace.root))] = hashlib.sha256(content).hexdigest()
    return found


def add_clips(workspace: Workspace, files: Mapping[str, Path | bytes]) -> None:
    """Put files before the rendered clips of the manifest."""
    old = manifest.read(workspace.manifest("synthetic"))
    media = workspace.root / "own-media"
    media.mkdir()
    (media / "rendered").symlink_to(old.media_root)
    clips = []
    for name, content in files.items():
        if isinstance(content, Path):
            (media / name).symlink_to(content)
        else:
            (media / name).write_bytes(content)
        clips.append(Clip(clip_id=name, dataset="synthetic", path=name, split="train"))
    clips += [Clip.from_row({**clip.to_row(), "path": f"rendered/{clip.path}"}) for clip in old.clips]
    manifest.write(workspace.manifest("synthetic"), clips, media_root=media, clips_per_shard=old.clips_per_shard)


def test_every_clip_has_features_of_both_modalities(workspace: Workspace) -> None:
    report = run(workspace)
    assert report.is_complete
    assert report.worked == 3
    assert report.counts["colour_grid"] == {"ok": 24, "failed": 0, "skipped": 0}
    silent = report.counts["log_mel"]["skipped"]
    assert report.counts["log_mel"] == {"ok": 24 - silent, "failed": 0, "skipped": silent}
    clips = manifest.read(workspace.manifest("synthetic")).clips
    features = FeatureSet(workspace.feature_set("synthetic", "colour_grid"))
    assert features.clip_ids == [clip.clip_id for clip in clips]
    assert features.read(clips[0].clip_id).data.shape == (32, features.spec.dim)


def test_a_second_run_has_nothing_to_do(workspace: Workspace) -> None:
    run(workspace)
    before = digests(workspace)
    again = run(workspace)
    assert again.worked == 0
    assert again.is_complete
    assert digests(workspace) == before


def test_an_encoder_can_be_added_later_and_touches_no_other_file(workspace: Workspace) -> None:
    run(workspace, encoders=["colour_grid"])
    before = digests(workspace)
    run(workspace)
    after = digests(workspace)
    assert before.items() < after.items()


def test_the_number_of_processes_changes_no_byte(workspace: Workspace, rendered: Workspace, tmp_path: Path) -> None:
    run(workspace, decoders=3)
    many = digests(workspace)
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    (other.root / "manifests").symlink_to(workspace.root / "manifests")
    (other.root / "media").symlink_to(rendered.root / "media")
    run(other, decoders=1)
    assert digests(other) == many


def test_both_formats_hold_the_same_features(workspace: Workspace) -> None:
    run(workspace, encoders=["log_mel"])
    folder = workspace.feature_set("synthetic", "log_mel")
    hdf5 = {clip_id: FeatureSet(folder).read(clip_id) for clip_id in FeatureSet(folder).clip_ids}
    for path in folder.glob("0*.json"):
        path.unlink()
    run(workspace, encoders=["log_mel"], format="webdataset")
    tar = FeatureSet(folder)
    assert not list(folder.glob("*.h5"))
    assert tar.clip_ids == list(hdf5)
    for clip_id, features in hdf5.items():
        np.testing.assert_array_equal(tar.read(clip_id).data, features.data)
        np.testing.assert_array_equal(tar.read(clip_id).pts_seconds, features.pts_seconds)


def test_one_open_a_clip_however_many_encoders(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = demux.open_container
    monkeypatch.setattr(demux, "open_container", lambda path: opened.append(path) or real(path))
    chosen = {
        "colour_grid": {},
        "coarse": {"encoder": "colour_grid", "grid": 4, "frames": 5},
        "log_mel": {},
        "slow": {"encoder": "log_mel", "sample_rate": 8000},
    }
    clips = manifest.read(workspace.manifest("synthetic"))
    path = clips.media_root / clips.clips[0].path
    decoded = DecodeWork(recipe.build(chosen))(DecodeJob(path=path))
    assert opened == [path]
    assert set(decoded.prepared) == set(chosen)
    assert decoded.prepared["coarse"]["data"].shape[0] == 5  # type: ignore[index,call-overload]


def test_bad_files_are_rows_and_all_others_are_done(workspace: Workspace) -> None:
    good = next((workspace.root / "media").rglob("*.mp4")).resolve()
    files = {
        "text.mp4": b"this is no video",
        "empty.mp4": b"",
        "cut.mp4": good.read_bytes()[:600],
        "gone.mp4": Path("/nonexistent"),
    }
    add_clips(workspace, files)
    report = run(workspace)
    assert not report.is_complete
    assert report.counts["colour_grid"]["failed"] == report.counts["log_mel"]["failed"] == 4
    assert sum(report.counts["colour_grid"].values()) == 28
    rows = {row.clip_id: row for row in FeatureSet(workspace.feature_set("synthetic", "colour_grid")).outcomes()}
    assert {name: rows[name].error_type for name in files} == {
        "text.mp4": "open", "empty.mp4": "open", "cut.mp4": "open", "gone.mp4": "missing_file",
    }  # fmt: skip
    assert "text.mp4 (16 bytes)" in rows["text.mp4"].error_message
    assert rows["train-00000"].status == "ok"


def test_retry_does_the_failed_again_and_them_alone(workspace: Workspace) -> None:
    good = next((workspace.root / "media").rglob("*.mp4")).resolve()
    add_clips(workspace, {"late.mp4": b"not yet downloaded", "text.mp4": b"never a video"})
    first = extraction(workspace)
    assert first.run().faults["colour_grid"] == {"open": 2}
    (workspace.root / "own-media" / "late.mp4").write_bytes(good.read_bytes())
    assert first.run().worked == 0  # the shard is done, its rows say what happened
    again = api.extraction_again(workspace, gpus=0, decoders=1)
    report = again.run(redo=api.mended(again))
    assert report.worked == 1
    assert report.faults["colour_grid"] == {"open": 1}


def test_retry_of_a_kind_that_never_happened_fails(workspace: Workspace) -> None:
    add_clips(workspace, {"text.mp4": b"never a video"})
    first = extraction(workspace)
    first.run()
    with pytest.raises(UnknownNameError, match=r"unknown kind of failure 'timeout'; known: open"):
        api.mended(first, "timeout")


def test_other_settings_under_the_same_name_fail(workspace: Workspace) -> None:
    run(workspace)
    before = digests(workspace)
    with pytest.raises(FingerprintError, match=r"config\.frames: 32 against 8"):
        run(workspace, overrides=["colour_grid.frames=8"])
    assert digests(workspace) == before


def test_a_missing_media_root_fails(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder here: .* --media"):
        run(workspace, media=tmp_path / "nowhere")


def test_unknown_names_fail(workspace: Workspace) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown encoder 'color_grid' .did you mean 'colour_grid'"):
        extraction(workspace, encoders=["color_grid"])
    with pytest.raises(UnknownNameError, match=r"unknown extraction recipe 'basline' .did you mean 'baseline'"):
        api.extraction(workspace, recipe="basline")
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'vatex'; known: synthetic"):
        extraction(workspace, dataset="vatex")
    with pytest.raises(UnknownNameError, match=r"unknown store format 'zip'; known: hdf5, webdataset"):
        extraction(workspace, format="zip")
    with pytest.raises(UsageError, match="log_mle: no feature set of this run; known: colour_grid, log_mel"):
        extraction(workspace, overrides=["log_mle.mels=32"])
    with pytest.raises(UsageError, match=r"(?s)log_mel.*mells: unknown key .did you mean 'mels'"):
        extraction(workspace, overrides=["log_mel.mells=32"])
    with pytest.raises(UsageError, match="99 GPUs asked for"):
        extraction(workspace, gpus=99)


def test_one_file_gives_the_features_of_the_dataset(workspace: Workspace) -> None:
    run(workspace)
    clips = manifest.read(workspace.manifest("synthetic"))
    stored = {name: FeatureSet(workspace.feature_set("synthetic", name)) for name in EYES_AND_EARS}
    encoders = recipe.rebuild({name: features.spec for name, features in stored.items()})
    clip = next(clip for clip in clips.clips if clip.clip_id in stored["log_mel"])
    found = extract_file(clips.media_root / clip.path, encoders, device="cpu")
    for name, features in stored.items():
        np.testing.assert_array_equal(found[name].data.astype(np.float16), features.read(clip.clip_id).data)


def test_a_cut_or_flipped_shard_is_named_and_done_again(workspace: Workspace) -> None:
    run(workspace)
    before = digests(workspace)
    folder = workspace.feature_set("synthetic", "log_mel")
    cut, flipped = folder / "00000.h5", folder / "00002.h5"
    cut.write_bytes(cut.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    reports = api.verify(workspace, "synthetic", deep=True)
    assert reports["colour_grid"].is_whole
    assert [problem.file for problem in reports["log_mel"].problems] == ["00000.h5", "00002.h5"]
    assert run(workspace).worked == 2
    assert digests(workspace) == before


def test_killed_at_any_moment_the_next_run_gives_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    unbroken = Workspace(tmp_path / "unbroken")
    unbroken.root.mkdir()
    for name in ("manifests", "media"):
        (unbroken.root / name).symlink_to(workspace.root / name)
    command = [sys.executable, "-m", "avpipe", "extract", "--recipe", "baseline", "--gpus", "0", "--decoders", "1"]
    start = time.monotonic()
    subprocess.run([*command, "-w", str(unbroken.root)], check=True, capture_output=True)
    whole_seconds = time.monotonic() - start
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            [*command, "-w", str(workspace.root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.3, 1.0) * whole_seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "-w", str(workspace.root)], check=True, capture_output=True)
    assert digests(workspace) == digests(unbroken)
    reports = api.verify(workspace, "synthetic", deep=True)
    assert {name: report.is_whole for name, report in reports.items()} == {"colour_grid": True, "log_mel": True}


def test_a_forecast_measures_and_writes_nothing(workspace: Workspace) -> None:
    forecast = extraction(workspace).forecast()
    assert (forecast.clips, forecast.sampled, forecast.failed) == (24, 24, 0)
    assert not workspace.features("synthetic").exists()
    run(workspace)
    for name in EYES_AND_EARS:
        written = sum(path.stat().st_size for path in workspace.feature_set("synthetic", name).glob("*.h5"))
        assert forecast.bytes[name] == pytest.approx(written, rel=0.1)
