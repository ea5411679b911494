"""Clips that break decoders, decoded in processes that can die."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpipe.extract import media, sampling
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.sandbox import DecodePool


def count_frames(path: Path) -> tuple[int, int]:
    found = media.read(
        path,
        frames={"x": lambda seconds: sampling.uniform(seconds, 4)},
        audio={"y": media.AudioRequest(sample_rate=16000)},
    )
    return len(found.frames), len(found.waveforms)


@pytest.mark.shared
def test_all_broken_clips_in_one_go(shared: Path) -> None:
    paths = sorted((shared / "clips" / "bad").iterdir())
    with DecodePool(count_frames, 2) as pool:
        found = dict(zip([path.name for path in paths], pool.map(paths), strict=True))
    outcomes = {name: f"<{got.kind}>" if isinstance(got, ClipError) else got for name, got in found.items()}
    assert outcomes == {
        "WrongFile.mp4": "<open>",
        "broken.mp4": "<open>",
        "corrupted.mp4": (1, 0),
        "empty.flv": "<open>",
        "ffprobe-big_buck_bunny_720p_1mb.mp4": "<open>",
        "invalid_userdata.mp4": "<empty>",
        "invalid_vp9_bitstream-bug_1416.webm": "<too_large>",
        "no_timescale.mp4": (1, 0),
        "result.webm": "<open>",
        "sample_dts_hd_ma.mp4": (0, 1),
        "sample_with_invalid_nalu.mp4": (1, 0),
        "video_desks.3gp": (1, 1),
    }
