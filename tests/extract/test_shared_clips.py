"""Stage one on real files: 25 odd but good ones, and 12 that crash, hang or empty other decoders.

The networks are small or see few frames: what is tested is the way of the clips, not the encoders' numbers.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.extract import media
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.store import FeatureSet
from avpipe.pipeline.workspace import Workspace

pytestmark = pytest.mark.shared

NO_VIDEO = {"test2_8000.mkv"}
NO_AUDIO = {
    "bear-vp9-odd-dimensions.webm", "bitmap.mp4", "h265_video.mp4", "video_0.mov", "video_90.mov", "video_180.mov",
    "video_270.mov",
}  # fmt: skip

# What each bad file ends as: a kind of failure, or None where it is used as far as it goes, with a note.
BAD = {
    "WrongFile.mp4": "open",
    "broken.mp4": "open",
    "empty.flv": "open",
    "ffprobe-big_buck_bunny_720p_1mb.mp4": "open",
    "result.webm": "open",
    "invalid_userdata.mp4": "empty",
    "invalid_vp9_bitstream-bug_1416.webm": "too_large",
    "corrupted.mp4": None,
    "no_timescale.mp4": None,
}
USED_WHOLE = {"video_desks.3gp", "sample_dts_hd_ma.mp4"}
DAMAGED_BETWEEN = "sample_with_invalid_nalu.mp4"  # where few frames are wanted, none of them needs the broken packets


@pytest.fixture(scope="module")
def small_ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AST of two layers, in the layout of a Hub folder."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    folder = tmp_path_factory.mktemp("ast")
    config = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(shared: Path, small_ast: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """All 37 files, extracted with ``clip_vit`` (random weights) and ``ast``."""
    logging.disable(logging.WARNING)
    workspace = Workspace(tmp_path_factory.mktemp("clips"))
    files = sorted(path.relative_to(shared / "clips") for path in (shared / "clips").glob("*/*") if path.is_file())
    clips = [Clip(clip_id=path.name, dataset="clips", path=path.as_posix(), split="train") for path in files]
    manifest.write(workspace.manifest("clips"), clips, media_root=shared / "clips", clips_per_shard=16)
    extraction = api.extraction(
        workspace,
        encoders=["clip_vit", "ast"],
        overrides=[
            "clip_vit.model=ViT-B-32",
            "clip_vit.weights=random",
            "clip_vit.frames=2",
            f"ast.weights={small_ast}",
        ],
        gpus=0,
    )
    result = extraction.run()
    logging.disable(logging.NOTSET)
    assert not result.is_complete
    assert {name: sum(counts.values()) for name, counts in result.counts.items()} == {"clip_vit": 37, "ast": 37}
    return workspace


def outcomes(workspace: Workspace, name: str) -> dict[str, object]:
    return {row.clip_id: row for row in FeatureSet(workspace.feature_set("clips", name)).outcomes()}


def test_good_files_have_features_or_honestly_lack_the_modality(report: Workspace, shared: Path) -> None:
    seen, heard = outcomes(report, "clip_vit"), outcomes(report, "ast")
    good = {path.name for path in (shared / "clips" / "ok").iterdir()}
    assert len(good) == 25
    assert {name for name in good if seen[name].status == "ok"} == good - NO_VIDEO
    assert {name for name in good if heard[name].status == "ok"} == good - NO_AUDIO
    assert {seen[name].error_type for name in NO_VIDEO} == {"no_video"}
    assert {heard[name].error_type for name in NO_AUDIO} == {"no_audio"}


def test_bad_files_end_as_rows_with_a_reason_or_a_note(report: Workspace, shared: Path) -> None:
    seen, heard = outcomes(report, "clip_vit"), outcomes(report, "ast")
    assert {path.name for path in (shared / "clips" / "bad").iterdir()} == BAD.keys() | USED_WHOLE | {DAMAGED_BETWEEN}
    for name, kind in BAD.items():
        if kind:
            assert (seen[name].status, seen[name].error_type) == ("failed", kind), name
            assert seen[name].error_message
        else:
            assert seen[name].status == "ok", seen[name]
            assert any(note.startswith(("video damaged", "video cut short")) for note in seen[name].notes), seen[name]
    assert seen["video_desks.3gp"].status == heard["video_desks.3gp"].status == "ok"
    assert heard["sample_dts_hd_ma.mp4"].status == "ok"
    assert seen[DAMAGED_BETWEEN].status == "ok"


def test_damage_is_noted_where_a_wanted_frame_needs_it(shared: Path) -> None:
    path = shared / "clips" / "bad" / DAMAGED_BETWEEN
    clip = media.read(path, frames={"all": lambda pts: np.arange(len(pts))}, audio={})
    assert len(clip.frames["all"].data) >= 26  # what other programs get out of it
    assert any(note.startswith(("video damaged", "video cut short")) for note in clip.notes), clip.notes
