"""The training loop on a toy: it learns, and, broken off anywhere, goes on as if nothing had happened."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from avpipe.api.training import run_differences as _differences
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FingerprintError,
    TrainingError,
    UsageError,
)
from avpipe.train import checkpoint
from avpipe.train.captioner import Captioner
from avpipe.train.config import check
from avpipe.train.dataset import ClipDataset, captions_of_next, epoch_items
from avpipe.train.generate import caption_clips
from avpipe.train.loop import train
from avpipe.train.optimizer import learning_rate
from avpipe.train.tokenizer import Tokenizer
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


@pytest.fixture(scope="module", params=["all", "blended", "everything"])
def with_objectives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Settings with objectives, and an unbroken run of them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    toys.run(folder, save_every=2, **toys.SETTINGS[request.param])
    return request.param, folder


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the objectives remember."""
    state: dict[str, torch.Tensor] = checkpoint.load_state(folder / "checkpoints" / "last")["objectives"]
    return state


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
            [sys.executable, "-m", "tests.train.loop_toys", str(tmp_path), str(step), "plain"],
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


def plain_training(accumulate: int, label_smoothing: float) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The toy trained for two epochs by a loop that knows no objectives: losses, gradient norms and weights."""
    config = toys.config()
    clips = toys.clips(20)
    torch.manual_seed(config.train.seed)
    captions = (caption for clip in clips for caption in clip.captions)
    tokenizer = Tokenizer.trained(captions, vocabulary_size=8000, lower_case=True)
    sources = toys.sources(clips)
    captioner = checkpoint.build(config, {name: source.spec for name, source in sources.items()}, tokenizer)
    matrices, vectors = ([p for p in captioner.parameters() if (p.ndim >= 2) == is_matrix] for is_matrix in (1, 0))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0}])
    data = ClipDataset(clips, sources, tokenizer=tokenizer)
    losses, norms, step = [], [], 0
    for epoch in range(2):
        items = epoch_items(data, seed=0, epoch=epoch, batch_size=8, captions_per_clip=1)
        groups = [items[start : start + accumulate] for start in range(0, len(items), accumulate)]
        for group in groups:
            of_step = []
            for batch in map(data.batch, group):
                assert batch.tokens is not None
                assert batch.token_mask is not None
                targets = batch.tokens[:, 1:].masked_fill(~batch.token_mask[:, 1:], -100).flatten()
                logits = captioner(batch).flatten(0, 1)
                loss = F.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=label_smoothing)
                (loss / len(group)).backward()
                of_step.append(loss.detach())
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate(
                    step, config.train, steps_per_epoch=len(groups), total_steps=2 * len(groups)
                )
                settings["betas"] = config.train.betas
            losses.append((sum(of_step[1:], of_step[0]) / len(group)).item())
            norms.append(float(torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return losses, norms, captioner.state_dict()


@pytest.mark.parametrize(("accumulate", "smoothing"), [(1, 0.0), (1, 0.1), (2, 0.0), (3, 0.0)])
def test_the_cross_entropy_alone_is_the_plain_training_bit_for_bit(
    tmp_path: Path, accumulate: int, smoothing: float
) -> None:
    """Each step is the mean of its own batches, also where three batches make groups of two and one."""
    objectives = {"cross_entropy": {"label_smoothing": smoothing}} if smoothing else None
    toys.run(tmp_path, epochs=2, accumulate=accumulate, objectives=objectives)
    losses, norms, expected = plain_training(accumulate, smoothing)
    found = [row for row in rows(tmp_path) if "loss" in row]
    assert [row["loss"] for row in found] == losses
    assert [row["cross_entropy"] for row in found] == losses
    assert [row["grad_norm"] for row in found] == norms
    stored = weights(tmp_path, "last")
    assert all(torch.equal(value, expected[name]) for name, value in stored.items())


def test_label_smoothing_of_older_configurations_is_that_of_the_cross_entropy(tmp_path: Path) -> None:
    toys.run(tmp_path / "older", epochs=1, label_smoothing=0.1)
    toys.run(tmp_path / "newer", epochs=1, objectives={"cross_entropy": {"label_smoothing": 0.1}})
    assert rows(tmp_path / "older") == rows(tmp_path / "newer")
    assert checkpoint.load(tmp_path / "older" / "checkpoints" / "best").config.objectives["cross_entropy"] == {
        "weight": 1.0,
        "label_smoothing": 0.1,
        "form": "standard",
    }


def test_an_older_run_has_the_settings_that_are_asked_for(unbroken: Path, tmp_path: Path) -> None:
    """What is new since is not a difference, where it has its default; what is otherwise is."""
    values = yaml.safe_load((unbroken / "config.yaml").read_text())
    del values["objectives"]
    values["train"]["label_smoothing"] = 0.0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert _differences(tmp_path, toys.config(save_every=2)) == []
    smoothed = {"cross_entropy": {"label_smoothing": 0.1}}
    assert _differences(tmp_path, toys.config(save_every=2, objectives=smoothed)) == [
        "objectives.cross_entropy.label_smoothing: 0.0 against 0.1"
    ]
    (tmp_path / "config.yaml").write_text("fusion: 3\n")  # no configuration: compared as it stands
    assert "fusion: 3 against None" in _differences(tmp_path, toys.config())


# -- parameter groups, averages, next clips ----------------------------------------------------------------------------


def start_of(folder: Path) -> torch.nn.Module:
    """The captioner that a run of seed 0 began with."""
    words = Tokenizer.load(folder / "checkpoints" / "last")
    torch.manual_seed(0)
    return checkpoint.build(toys.config(), {k: s.spec for k, s in toys.sources(toys.clips(1)).items()}, words)


def test_frozen_parameters_stay_and_are_in_the_checkpoint(tmp_path: Path) -> None:
    """They have no file of their own: a captioner that is loaded must find them."""
    toys.run(tmp_path, epochs=1, groups=[{"match": "^fusion", "frozen": True}])
    toys.run(tmp_path / "free", epochs=1)
    start = start_of(tmp_path)
    frozen, free = weights(tmp_path, "last"), weights(tmp_path / "free", "last")
    fusion = [name for name in frozen if name.startswith("fusion.")]
    assert fusion and all(torch.equal(frozen[name], start.state_dict()[name]) for name in fusion)
    assert not any(torch.equal(free[name], frozen[name]) for name in frozen if name.startswith("decoder.layers"))
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best").captioner
    assert all(torch.equal(value, frozen[name]) for name, value in loaded.state_dict().items())


def test_the_result_counts_what_is_trained_and_what_is_not(tmp_path: Path) -> None:
    free = toys.run(tmp_path / "free", epochs=1)
    part = toys.run(tmp_path / "part", epochs=1, groups=[{"match": "^fusion", "frozen": True}])
    assert free.parameters == free.parameters_total == part.parameters_total
    assert 0 < part.parameters < part.parameters_total
    assert part.peak_memory_bytes > 100e6  # torch alone is more
    assert json.loads((tmp_path / "part" / "result.json").read_text()) == asdict(part)


def test_a_run_that_was_killed_before_it_could_tell_its_result_tells_it_later(tmp_path: Path) -> None:
    first = toys.run(tmp_path, epochs=1)
    (tmp_path / "result.json").unlink()
    again = toys.run(tmp_path, epochs=1)
    assert json.loads((tmp_path / "result.json").read_text())["best_score"] == first.best_score == again.best_score


def test_half_precision_without_a_gpu_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="only on a GPU are gradients scaled"):
        toys.run(tmp_path, precision="fp16")


def test_captions_that_are_longer_than_the_decoder_can_hold_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = toys.config(epochs=1).model_dump(mode="json")
    short = check({**values, "decoder": {**values["decoder"], "positions": 8}}, "toy")
    clips = toys.clips(4)
    train(short, sources=toys.sources(clips), train_clips=clips, val_clips=[], run_folder=tmp_path)
    assert "generate.max_tokens=12: this decoder ends captions after 7 tokens" in caplog.text


def test_a_group_of_its_own_learning_rate_moves_less(tmp_path: Path) -> None:
    """AdamW's first step is the learning rate, whatever the gradient."""
    toys.run(
        tmp_path, epochs=1, max_steps=1, warmup_steps=0, weight_decay=0.0, groups=[{"match": "^fusion", "lr": 1e-5}]
    )
    start = start_of(tmp_path)
    moved = {name: (value - start.state_dict()[name]).abs().max() for name, value in weights(tmp_path, "last").items()}
    for name, distance in moved.items():
        assert distance <= (1.01e-5 if name.startswith("fusion") else 1.01e-3)
    assert max(distance for name, distance in moved.items() if name.startswith("decoder")) > 5e-4


def test_the_best_checkpoint_is_the_average(tmp_path: Path) -> None:
    toys.run(tmp_path, ema=0.9)
    state = checkpoint.load_state(tmp_path / "checkpoints" / "last")["average"]
    raw, best = weights(tmp_path, "last"), weights(tmp_path, "best")
    assert any(not torch.equal(raw[name], best[name]) for name in raw)
    if json.loads((tmp_path / "result.json").read_text())["best_step"] == 12:
        assert sorted(v.sum().item() for v in state["values"]) == sorted(v.sum().item() for v in best.values())
    toys.run(tmp_path / "without")
    assert rows(tmp_path)[-2]["loss"] == rows(tmp_path / "without")[-2]["loss"]  # training itself is the same


def answers(count: int) -> tuple[list[Clip], dict[str, toys.ToySource]]:
    """Clips that show a colour and are followed by one that sounds, which can be heard coming."""
    found, seen, heard = [], {}, {}
    for i in range(count):
        said = {f"shows{i}": f"a {toys.COLOURS[i % 3]} thing", f"sounds{i}": f"now a {toys.SOUNDS[i % 2]}"}
        for (clip_id, caption), colour in zip(said.items(), (i % 3, 3), strict=True):
            follows = {"next_clip": f"sounds{i}"} if colour < 3 else {}
            options = {"dataset": "toy", "path": "x", "split": "train", "captions": (caption,), "extra": follows}
            found.append(Clip(clip_id=clip_id, **options))
            seen[clip_id], heard[clip_id] = colour, i % 2
    return found, {"eyes": toys.ToySource("eyes", "video", seen), "ears": toys.ToySource("ears", "audio", heard)}


def test_what_comes_next_is_learned_with_a_begin_of_its_own(tmp_path: Path) -> None:
    """PCC and PNC (2306.12559)."""
    clips, sources = answers(12)
    settings = toys.config(epochs=50, lr=0.01, targets=["current", "next"])
    train(settings, sources=sources, train_clips=clips, val_clips=[], run_folder=tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best")
    data = ClipDataset(clips, sources, tokenizer=loaded.tokenizer, following=captions_of_next(clips))
    batch = data.batch([(0, (0, 1)), (2, (0, 1)), (4, (0, 1))])  # three clips that show something
    assert batch.tokens is not None and batch.token_mask is not None
    said = loaded.captioner(batch).argmax(-1)
    assert torch.equal(said[batch.token_mask[:, 1:]], batch.tokens[:, 1:][batch.token_mask[:, 1:]])
    # It is the begin that decides, and what is generated is of the clip itself.
    captions = caption_clips(loaded, [clips[0], clips[2], clips[1]], sources)
    assert [caption.text for caption in captions] == ["a red thing", "a blue thing", "now a beep"]


def test_long_captions_are_cut_and_keep_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    decode = Captioner.decode
    monkeypatch.setattr(
        Captioner, "decode", lambda self, fused, batch: seen.append(batch.tokens) or decode(self, fused, batch)
    )
    toys.run(tmp_path, epochs=1, max_caption_tokens=5)
    end = Tokenizer.load(tmp_path / "checkpoints" / "last").special.end
    assert seen and all(tokens.shape[1] == 5 and (tokens[:, -1] == end).all() for tokens in seen)


def test_weights_and_biases_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((step, values))

        def finish(self, exit_code: int) -> None:
            calls.append(f"finished with {exit_code}")

    def init(**options: Any) -> Run:
        calls.append(options)
        return Run()

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb/__init__.py")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    toys.run(tmp_path, epochs=1, wandb="captions")
    assert calls[0]["project"] == "captions"
    assert calls[0]["config"]["train"]["epochs"] == 1
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for step, values in calls[1:-1]] == written
    assert calls[-1] == "finished with 0"
    # A training that goes on, goes on with its own; one of the same name elsewhere is another. A failed one is told.
    first = calls[0]["id"]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        toys.run(tmp_path / "b" / tmp_path.name, stop_at=2, wandb="captions")
    assert calls[-1] == "finished with 1"
    toys.run(tmp_path / "b" / tmp_path.name, wandb="captions")
    ids = [call["id"] for call in calls if isinstance(call, dict)]
    assert ids[0] == ids[1] != first


def test_a_folder_of_that_name_is_not_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # as it makes one itself
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="is not installed"):
        toys.run(tmp_path / "run", epochs=1, wandb="captions")
    assert not (tmp_path / "run").exists()  # told before anything is written


def test_weights_and_biases_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(UsageError, match="Weights & Biases is not installed"):
        toys.run(tmp_path, epochs=1, wandb="captions")


# -- objectives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 13))
def test_broken_off_with_objectives_it_takes_the_same_steps(
    tmp_path: Path, with_objectives: tuple[str, Path], step: int
) -> None:
    name, unbroken = with_objectives
    with pytest.raises(KeyboardInterrupt):
        toys.run(tmp_path, stop_at=step, save_every=2, **toys.SETTINGS[name])
    toys.run(tmp_path, save_every=2, **toys.SETTINGS[name])
    assert_same(tmp_path, unbroken)
    left, right = state_of(tmp_path), state_of(unbroken)
    assert left.keys() == right.keys()
    assert left
    assert all(torch.equal(value, right[key]) for key, value in left.items())


def test_killed_with_objectives_it_takes_the_same_steps(tmp_path: Path, with_objectives: tuple[str, Path]) -> None:
    name, unbroken = with_objectives
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.loop_toys", str(tmp_path), "7", name],
        cwd=ROOT, env={"OMP_NUM_THREADS": "1", "PATH": "", "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    toys.run(tmp_path, save_every=2, **toys.SETTINGS[name])
    assert_same(tmp_path, unbroken)


def test_without_the_state_of_its_objectives_a_run_would_not_take_the_same_steps(
    tmp_path: Path, with_objectives: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the state is needed."""
    name, unbroken = with_objectives
    with pytest.raises(KeyboardInterrupt):
        toys.run(tmp_path, stop_at=7, save_every=2, **toys.SETTINGS[name])
    monkeypatch.setattr(torch.nn.ModuleDict, "load_state_dict", lambda *_: None)
    toys.run(tmp_path, save_every=2, **toys.SETTINGS[name])
    assert rows(tmp_path) != rows(unbroken)


@pytest.mark.parametrize("name", ["all", "blended", "everything"])
def test_two_processes_hold_the_same(tmp_path: Path, name: str) -> None:
    """Gradients are shared, also those of objectives, and weights are made of the means over both."""
    both = toys.run_two(tmp_path, name)
    for process in both:
        assert process.returncode == 0, process.stderr
    one, other = (json.loads(process.stdout.splitlines()[-1]) for process in both)
    assert one == other
    [balanced] = (key for key in one if key.endswith(".weights"))
    assert len(set(one[balanced])) == len(one[balanced])  # they have moved
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 9))  # two batches of 16 an epoch


def test_two_processes_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Each has its own random numbers, and gets them back; another number of processes cannot go on."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for process in toys.run_two(whole, "everything"):
        assert process.returncode == 0, process.stderr
    first, _ = toys.run_two(broken, "everything", stop_at=5)
    assert first.returncode == -9
    with pytest.raises(CheckpointError, match="broken off with 2 processes, here are 1"):
        toys.run(broken, save_every=2, **toys.SETTINGS["everything"])
    for process in toys.run_two(broken, "everything"):
        assert process.returncode == 0, process.stderr
    assert_same(broken, whole)
    states = checkpoint.load_state(whole / "checkpoints" / "last")["random"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_metrics_hold_every_loss_and_weight(with_objectives: tuple[str, Path]) -> None:
    name, unbroken = with_objectives
    found = [row for row in rows(unbroken) if "loss" in row]
    for row in found:
        if name == "all":
            parts = row["cross_entropy"] + 0.5 * row["contrastive"]
            kinds, balanced = ("audio", "video"), "modality_balanced"
            assert 0.01 <= row["contrastive.temperature"] <= 1
        elif name == "everything":
            parts, kinds, balanced = row["cross_entropy"], ("audio", "video"), "modality_balanced"
        else:
            parts, kinds, balanced = 0.5 * row["scst"], ("joint", "audio", "video"), "g_blend"
            assert "cross_entropy" not in row
        assert sum(row[f"{balanced}.w_{kind}"] for kind in kinds) == pytest.approx(1, abs=1e-6)
        parts += sum(row[f"{balanced}.w_{kind}"] * row[f"{balanced}.{kind}"] for kind in kinds)
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    key = "g_blend.w_joint" if name == "blended" else "modality_balanced.w_audio"
    seen = [row[key] for row in found]
    # MBP's weights move with every batch, those of G-Blend with every epoch of three.
    assert len(set(seen)) > (3 if name == "blended" else 11) - 1
    if name == "blended":
        assert all(len(set(seen[start : start + 3])) == 1 for start in (0, 3, 6, 9))
        assert seen[0] == pytest.approx(1 / 3)
    if name == "all":
        temperatures = [row["contrastive.temperature"] for row in found]
        assert temperatures[0] == pytest.approx(0.5)
        assert len(set(temperatures)) == 12


def test_the_temperature_is_clamped_after_every_step(tmp_path: Path) -> None:
    objectives = {"contrastive": {"temperature": 0.9}}
    toys.run(tmp_path, fusion=toys.COATTENTION, objectives=objectives, lr=5.0, warmup_steps=0, epochs=1)
    found = [row["contrastive.temperature"] for row in rows(tmp_path) if "loss" in row]
    assert found[0] == pytest.approx(0.9)
    # The first step moves the logarithm by the learning rate: out of what is allowed, whichever way.
    assert found[1] in (pytest.approx(0.01, rel=1e-4), 1.0)


def informed(kind: str, clips: list[Any]) -> dict[str, toys.ToySource]:
    """Features of which those of one modality tell all of the caption, those of the other one clip in four, roughly."""
    whole = {clip.clip_id: index % 3 for index, clip in enumerate(clips)}
    slight = {clip.clip_id: index % 3 if index % 12 < 3 else 3 for index, clip in enumerate(clips)}
    facts = (whole, slight) if kind == "video" else (slight, whole)
    return {"eyes": toys.ToySource("eyes", "video", facts[0]), "ears": toys.ToySource("ears", "audio", facts[1])}


@pytest.mark.parametrize(("dominant", "neglected"), [("video", "audio"), ("audio", "video")])
def test_mbp_moves_weight_to_the_modality_that_is_neglected(tmp_path: Path, dominant: str, neglected: str) -> None:
    clips = toys.clips(24)
    colours = [replace(clip, captions=(f"a {toys.COLOURS[i % 3]} thing",)) for i, clip in enumerate(clips)]
    train(
        toys.config(epochs=30, lr=0.01, warmup_steps=5, objectives={"modality_balanced": {"beta": 0.9, "alpha": 100}}),
        sources=informed(dominant, clips),
        train_clips=colours,
        val_clips=[],
        run_folder=tmp_path,
    )
    found = [row for row in rows(tmp_path) if "loss" in row]
    assert found[0][f"modality_balanced.w_{neglected}"] == pytest.approx(0.5, abs=0.06)
    assert found[-1][f"modality_balanced.w_{neglected}"] > 0.8
    assert found[-1][f"modality_balanced.{neglected}"] > found[-1][f"modality_balanced.{dominant}"] + 0.1


@pytest.mark.parametrize("balanced", [True, False])
def test_mbp_narrows_the_gap_of_a_captioner_that_is_deafened(tmp_path: Path, balanced: bool) -> None:
    """Sound tells all, sight half of it: without MBP nothing is learned of sight, as sound suffices."""
    clips = [replace(c, captions=(f"a {toys.COLOURS[i % 3]} thing",)) for i, c in enumerate(toys.clips(24))]
    heard = {clip.clip_id: i % 3 for i, clip in enumerate(clips)}
    seen = {clip.clip_id: i % 3 if i % 12 < 6 else 3 for i, clip in enumerate(clips)}
    sources = {"eyes": toys.ToySource("eyes", "video", seen), "ears": toys.ToySource("ears", "audio", heard)}
    objectives = {"modality_balanced": {"beta": 0.9, "alpha": 100}} if balanced else None
    settings = toys.config(epochs=30, lr=0.005, warmup_steps=5, objectives=objectives)
    train(settings, sources=sources, train_clips=clips, val_clips=[], run_folder=tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoints" / "best")
    asked = [clip for clip in clips if seen[clip.clip_id] < 3]

    def right(**others: toys.ToySource) -> float:
        said = caption_clips(loaded, asked, {**sources, **others})
        return sum(caption.text in clip.captions for caption, clip in zip(said, asked, strict=True)) / len(asked)

    assert right() == 1.0
    deaf = right(ears=toys.ToySource("ears", "audio", {}))
    assert deaf == 1.0 if balanced else deaf < 0.7


def test_the_contrastive_loss_falls_and_pairs_match(tmp_path: Path) -> None:
    """Four facts, each seen and heard in its own clip: what is seen finds what is heard, in clips never trained on."""
    clips, others = toys.clips(4), toys.clips(4, "val")
    facts = {clip.clip_id: index for group in (clips, others) for index, clip in enumerate(group)}
    # Heard otherwise than it is seen: alike numbers would match without learning.
    heard = {clip_id: (2, 0, 3, 1)[fact] for clip_id, fact in facts.items()}
    sources = {"eyes": toys.ToySource("eyes", "video", facts), "ears": toys.ToySource("ears", "audio", heard)}
    fusion = {**toys.COATTENTION, "pool": "pre", "dropout": 0.0}
    config = toys.config(fusion=fusion, objectives={"contrastive": {}}, epochs=60, batch_size=4, lr=0.005)

    def matched(which: str) -> float:
        """How many of the clips that were not trained on find their partner, by the captioner of a checkpoint."""
        captioner = checkpoint.load(tmp_path / which / "checkpoints" / "last").captioner
        with torch.no_grad():
            aux = captioner.fusion(ClipDataset(others, sources).batch([(index, ()) for index in range(4)])).aux
        scores = F.normalize(aux["pooled_video"]) @ F.normalize(aux["pooled_audio"]).T
        return float((scores.argmax(1) == torch.arange(4)).float().mean())

    for which, chosen in (("with", config), ("without", toys.config(fusion=fusion, epochs=60, batch_size=4, lr=0.005))):
        train(chosen, sources=sources, train_clips=clips, val_clips=[], run_folder=tmp_path / which)
    losses = [row["contrastive"] for row in rows(tmp_path / "with") if "loss" in row]
    assert losses[0] > 1
    assert losses[-1] < 0.1
    assert matched("with") == 1
    assert matched("without") < 1


def test_what_an_objective_lacks_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"objectives\.contrastive: .*fusion qformer gives no pooled.*fusion\.pool=post"
    ):
        toys.run(tmp_path / "run", objectives={"contrastive": {}})
    assert not (tmp_path / "run").exists()
    clips = toys.clips(8)
    with pytest.raises(DataError, match="of 0 validation clips none has both a caption and a feature"):
        train(
            toys.config(objectives=toys.BLENDED),
            sources=toys.sources(clips),
            train_clips=clips,
            val_clips=[],
            run_folder=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


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


def test_a_gradient_that_is_not_finite_names_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite, its gradient is not: nothing is learned from it, and all clips of the step are named."""
    from avpipe.train.objectives.cross_entropy import CaptionLoss

    honest, seen = CaptionLoss.__call__, []

    def steep(self: CaptionLoss, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(logits)
        # sqrt at 0 is finite, its slope is not
        return honest(self, logits, *rest) + (logits.sum() * (0.0 if len(seen) == 6 else 1.0)).abs().sqrt() * 1e-9

    monkeypatch.setattr(CaptionLoss, "__call__", steep)
    clips = toys.clips(32)
    told: list[Any] = []
    with pytest.raises(TrainingError, match=r"norm of the gradient is (nan|inf) at step 2, on the clips ") as caught:
        train(
            toys.config(accumulate=2, save_every=2),
            sources=toys.sources(clips),
            train_clips=clips,
            val_clips=[],
            run_folder=tmp_path,
            on_event=told.append,
        )
    assert [event["step"] for event in told if event["event"] == "step"] == [1, 2]
    tokenizer = Tokenizer.trained(["a"], vocabulary_size=300, lower_case=True)
    data = ClipDataset(clips, toys.sources(clips), tokenizer=tokenizer)
    items = epoch_items(data, seed=0, epoch=1, batch_size=8, captions_per_clip=1)[:2]
    named = str(caught.value).partition("on the clips ")[2].partition(" (")[0].split(", ")
    assert named == [clips[index].clip_id for item in items for index, _ in item]
    assert all(value.isfinite().all() for value in weights(tmp_path, "last").values())


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
    found = [learning_rate(step, settings, steps_per_epoch=5, total_steps=10) for step in (0, 2, 6, 9)]
    assert found == pytest.approx(expected, abs=1e-6)
