"""The training loop on a toy: it learns, and, broken off anywhere, goes on as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from avpipe.pipeline.errors import CheckpointError, DataError, FingerprintError, TrainingError
from avpipe.train import checkpoint
from avpipe.train.generate import caption_clips
from avpipe.train.loop import _learning_rate, train
from tests.train import loop_toys as toys

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ: the time spent waiting."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "data_seconds"} for line in lines]


def weights(folder: Path, which: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / which / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for which in ("last", "best"):
        left, right = weights(one, which), weights(other, which)
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]), f"{which}: {name}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    toys.run(folder, save_every=2)
    return folder


def test_it_learns_what_is_seen_and_heard(tmp_path: Path) -> None:
    result = toys.run(tmp_path, epochs=60, lr=0.01, validate_every=10)
    assert result.best_score == 1.0
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best")
    val = toys.clips(6, "val")
    captions = caption_clips(loaded, val, toys.sources(val))
    assert {c.clip_id: c.text for c in captions}[val[1].clip_id] in val[1].captions
    assert captions[0].checkpoint == f"{tmp_path.name}@{result.best_step}"


def test_the_run_folder_tells_everything(unbroken: Path) -> None:
    written = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert written["fusion"]["queries"] == {"video": 2, "audio": 2, "text": 8}
    assert json.loads((unbroken / "env.json").read_text())["torch"] == torch.__version__
    losses = [row for row in rows(unbroken) if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, 13))  # 20 clips by 8 are 3 steps; 4 epochs
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert [row["step"] for row in rows(unbroken) if "val_score" in row] == [3, 6, 9, 12]


@pytest.mark.parametrize("step", range(1, 13))
def test_broken_off_at_any_step_it_takes_the_same_steps(tmp_path: Path, unbroken: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        toys.run(tmp_path, stop_at=step, save_every=2)
    toys.run(tmp_path, save_every=2)
    assert_same(tmp_path, unbroken)


def test_killed_twice_it_takes_the_same_steps(tmp_path: Path, unbroken: Path) -> None:
    for step in (5, 10):
        done = subprocess.run(
            [sys.executable, "-m", "tests.train.loop_toys", str(tmp_path), str(step)],
            cwd=ROOT, env={"OMP_NUM_THREADS": "1", "PATH": "", "CUDA_VISIBLE_DEVICES": ""}, check=False,
        )  # fmt: skip
        assert done.returncode == -9
    toys.run(tmp_path, save_every=2)
    assert_same(tmp_path, unbroken)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = toys.run(tmp_path, epochs=1)
    before = weights(tmp_path, "last")
    again = toys.run(tmp_path, epochs=1)
    assert (again.step, again.best_score) == (first.step, first.best_score)
    assert all(torch.equal(value, weights(tmp_path, "last")[name]) for name, value in before.items())


def test_another_seed_takes_other_steps(tmp_path: Path, unbroken: Path) -> None:
    toys.run(tmp_path, seed=1, save_every=2)
    assert rows(tmp_path)[0]["loss"] != rows(unbroken)[0]["loss"]


def test_workers_and_the_memory_cache_change_nothing(tmp_path: Path, unbroken: Path) -> None:
    toys.run(tmp_path, save_every=2, num_workers=1, cache_features="no")
    assert_same(tmp_path, unbroken)


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    toys.run(tmp_path, accumulate=2, epochs=2)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4]  # 3 batches are 2 steps


def test_patience_ends_it(tmp_path: Path) -> None:
    clips, val = toys.clips(8), toys.clips(2, "val")
    result = train(
        toys.config(epochs=50, patience=3),
        sources=toys.sources(clips, val),
        train_clips=clips,
        val_clips=val,
        run_folder=tmp_path,
        score=lambda captions: 0.5,
    )
    assert result.stopped_early
    assert (result.best_step, result.step) == (1, 4)


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    clips = toys.clips(8)
    result = train(
        toys.config(epochs=3), sources=toys.sources(clips), train_clips=clips, val_clips=[], run_folder=tmp_path
    )
    assert (result.best_score, result.best_step) == (None, 3)


def test_a_loss_that_is_not_finite_names_the_clips(tmp_path: Path) -> None:
    clips = toys.clips(3)
    found = toys.sources(clips)
    read = found["ears"].read
    found["ears"].read = lambda clip_id, view=0: (
        _broken(read(clip_id)) if clip_id == clips[1].clip_id else read(clip_id)
    )  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=rf"loss is nan at step 0, on the clips .*{clips[1].clip_id}"):
        train(toys.config(), sources=found, train_clips=clips, val_clips=[], run_folder=tmp_path)


def _broken(features: Any) -> Any:
    features.data[0, 0] = float("nan")
    return features


def test_other_features_under_the_same_run_fail(tmp_path: Path) -> None:
    toys.run(tmp_path, epochs=1)
    clips = toys.clips(8)
    changed = toys.sources(clips)
    changed["ears"].spec = type(changed["ears"].spec)(name="ears", encoder="toy", modality="audio", dim=5)
    with pytest.raises(FingerprintError, match=r"(?s)trained on other features.*ears\.dim: 4 against 5"):
        train(toys.config(epochs=2), sources=changed, train_clips=clips, val_clips=[], run_folder=tmp_path)


def test_nothing_to_learn_from_fails(tmp_path: Path) -> None:
    clips = toys.clips(4)
    with pytest.raises(DataError, match="of 4 training clips, none has both a caption and a feature in eyes, ears"):
        train(toys.config(), sources=toys.sources([]), train_clips=clips, val_clips=[], run_folder=tmp_path)


def test_clips_without_a_modality_or_without_any_are_captioned(tmp_path: Path) -> None:
    clips, val = toys.clips(8), toys.clips(3, "val")
    mute = (clips[1].clip_id, val[0].clip_id)
    train(
        toys.config(epochs=1),
        sources=toys.sources(clips, val, absent=mute),
        train_clips=clips,
        val_clips=[],
        run_folder=tmp_path,
    )
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best")
    stranger = toys.clips(1, "test")
    captions = caption_clips(loaded, [*val, *stranger], toys.sources(clips, val, absent=mute))
    assert [caption.clip_id for caption in captions] == [clip.clip_id for clip in [*val, *stranger]]


def test_a_damaged_checkpoint_fails(tmp_path: Path) -> None:
    toys.run(tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: model\.safetensors is not what was written"):
        checkpoint.load(path.parent)


def test_no_checkpoint_fails(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no whole checkpoint at .*best"):
        checkpoint.load(tmp_path / "best")


def test_a_checkpoint_that_was_killed_while_it_took_its_name_is_found(tmp_path: Path) -> None:
    toys.run(tmp_path, epochs=1)
    best = tmp_path / "checkpoints" / "best"
    best.rename(best.with_name("best.new"))  # the former was moved away, the new one not yet put in its place
    assert checkpoint.find(best) == best
    assert checkpoint.load(best).name.endswith("@3")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("hold", [0.5, 1.0, 1.0, 0.25]), ("cosine", [0.5, 1.0, 0.5, 0.0380602])],
)
def test_the_learning_rate_is_a_function_of_the_step(schedule: Any, expected: list[float]) -> None:
    settings = toys.config(lr=1.0, warmup_steps=2, schedule=schedule).train
    found = [_learning_rate(step, 10, settings) for step in (0, 2, 6, 9)]
    assert found == pytest.approx(expected, abs=1e-6)
