"""What all tests share: rendered clips, the shared folder beside the project, and a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings

from avpipe import api
from avpipe.pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]

# Tests never time: what an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the user's workspace."""
    monkeypatch.delenv("AVPIPE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Third-party clips beside the project; the test is skipped where they are absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "clips").is_dir():
        pytest.skip("no ../shared beside the project")
    return folder


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with 24 rendered clips in three shards. Not to be written to: see :func:`workspace`."""
    workspace = Workspace(tmp_path_factory.mktemp("rendered"))
    counts = ["clips.train=16", "clips.val=4", "clips.test=4", "processes=1"]
    api.prepare(workspace, "synthetic", overrides=counts, clips_per_shard=8)
    return workspace


@pytest.fixture
def workspace(rendered: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of one's own with the rendered clips."""
    own = Workspace(tmp_path / "workspace")
    (own.root / "manifests").mkdir(parents=True)
    for path in rendered.root.glob("manifests/*"):
        (own.root / "manifests" / path.name).write_bytes(path.read_bytes())
    (own.root / "media").symlink_to(rendered.root / "media")
    return own
