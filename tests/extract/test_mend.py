"""Retry does those shards again in which something changed, and they come out as if nothing had ever failed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.pipeline import shards
from avpipe.pipeline.errors import ClipError, StoreError
from avpipe.pipeline.features import Features
from avpipe.pipeline.store import ShardWriter
from avpipe.pipeline.workspace import Workspace


@pytest.fixture
def media(workspace: Workspace, tmp_path: Path) -> Path:
    """A copy of the rendered media, to break."""
    shutil.copytree(manifest.read(workspace.manifest("synthetic")).media_root, tmp_path / "media")
    return tmp_path / "media"


def path_of(workspace: Workspace, media: Path, number: int) -> Path:
    """The file of one of the 24 clips; there are 8 in a shard."""
    return media / manifest.read(workspace.manifest("synthetic")).clips[number].path


def extraction(workspace: Workspace, media: Path, *encoders: str) -> api.Extraction:
    chosen = encoders or ("colour_grid",)
    return api.extraction(workspace, recipe="baseline", encoders=chosen, media=media, gpus=0, decoders=1)


def as_if_extracted(setup: api.Extraction, failures: Mapping[int, str]) -> None:
    """Shards in which these clips failed; those of one row stand for the others."""
    read = setup.manifest
    for name, folder in setup.setting.folders.items():
        spec = setup.setting.encoders[name].spec
        shards.write_spec(folder, spec)
        for planned in shards.plan([clip.clip_id for clip in read.clips], read.clips_per_shard):
            with ShardWriter(folder, planned, spec) as shard:
                for number, clip_id in enumerate(planned.clip_ids, start=8 * planned.index):
                    if number in failures:
                        shard.fail(clip_id, ClipError(failures[number], "as it was then"))
                    else:
                        shard.add(clip_id, Features(data=np.ones((1, spec.dim)), pts_seconds=np.zeros(1)))


def test_only_shards_in_which_something_changed_are_done_again(workspace: Workspace, media: Path) -> None:
    setup = extraction(workspace, media)
    as_if_extracted(setup, dict.fromkeys((1, 9, 10, 17), "open"))
    mended = path_of(workspace, media, 9)
    whole = mended.read_bytes()
    for number in (1, 9, 10, 17):
        path_of(workspace, media, number).write_bytes(b"not yet downloaded")
    redo = api.mended(setup)
    assert (redo.clips, redo.failing) == (set(), {"open": 4})
    assert setup.tasks(redo) == []  # nothing changed: nothing is done
    mended.write_bytes(whole)
    seen: list[tuple[int, int]] = []
    redo = api.mended(setup, on_progress=lambda done, total: seen.append((done, total)))
    assert redo.failing == {"open": 3}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]  # the failed ones alone are decoded
    assert [task.name for task in setup.tasks(redo)] == ["00001"]


def test_one_kind_of_failure(workspace: Workspace, media: Path) -> None:
    setup = extraction(workspace, media)
    as_if_extracted(setup, {1: "open", 9: "missing_file"})
    assert [task.name for task in setup.tasks(api.mended(setup, "missing_file"))] == ["00001"]
    assert [task.name for task in setup.tasks(api.mended(setup))] == ["00000", "00001"]


def test_a_clip_that_fails_otherwise_still_fails(workspace: Workspace, media: Path) -> None:
    setup = extraction(workspace, media)
    as_if_extracted(setup, {1: "missing_file"})
    path_of(workspace, media, 1).write_bytes(b"not yet whole")
    redo = api.mended(setup)
    assert (redo.failing, setup.tasks(redo)) == ({"open": 1}, [])


def test_each_feature_set_that_lacks_a_clip_is_asked_for_itself(workspace: Workspace, media: Path) -> None:
    setup = extraction(workspace, media, "colour_grid", "log_mel")
    as_if_extracted(setup, {})
    as_if_extracted(extraction(workspace, media, "log_mel"), {1: "decode", 9: "decode"})
    path_of(workspace, media, 9).write_bytes(b"broken since")
    redo = api.mended(setup)
    assert (len(redo.clips), redo.failing) == (1, {"open": 1})
    assert [(task.name, task.feature_sets) for task in setup.tasks(redo)] == [("00000", ("log_mel",))]


def test_what_was_mended_has_the_bytes_of_an_unbroken_run(workspace: Workspace, media: Path) -> None:
    """The second failure is the network's: decoding cannot tell whether it is over."""
    setup = extraction(workspace, media)
    assert setup.run().is_complete
    (folder,) = setup.setting.folders.values()
    whole = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*.h5")}
    as_if_extracted(setup, {3: "open", 9: "not_finite", 17: "timeout"})
    again = api.extraction_again(workspace, media=media, gpus=0, decoders=1)
    report = again.run(redo=api.mended(again))
    assert (report.worked, report.is_complete) == (3, True)
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*.h5")} == whole


def test_a_manifest_that_lost_failed_clips_is_told(workspace: Workspace, media: Path) -> None:
    setup = extraction(workspace, media)
    as_if_extracted(setup, {23: "open"})
    fewer = replace(setup, manifest=replace(setup.manifest, clips=setup.manifest.clips[:20]))
    with pytest.raises(StoreError, match=r"00002.* was made for other clips \(8; the manifest now has 4 clips"):
        api.mended(fewer)


def test_what_has_no_room_together_is_done_again_in_turns(workspace: Workspace, media: Path) -> None:
    """The message of a device with too little memory advises it."""
    as_if_extracted(extraction(workspace, media), {1: "open"})
    again = api.extraction_again(workspace, media=media, gpus=0, decoders=1, residency="turns")
    assert again.setting.residency == "turns"
    assert again.run(redo=api.mended(again)).counts == {"colour_grid": {"ok": 24, "failed": 0, "skipped": 0}}
