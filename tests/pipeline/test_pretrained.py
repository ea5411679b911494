"""Networks of transformers from checkpoints made on the spot."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.pretrained import quiet, read_network


def test_the_last_thread_to_leave_restores_what_the_first_one_found() -> None:
    def loudness() -> tuple[int, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    before = loudness()
    is_in, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            is_in.set()
            may_leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert is_in.wait(30)
    with quiet():
        may_leave.set()
        thread.join()
        assert loudness() == (logging.ERROR, False)
    assert loudness() == before


CROSS = r"\.crossattention\.|\.ln_cross_attn\."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 6}
    GPT2LMHeadModel(GPT2Config(**sizes, add_cross_attention=True)).save_pretrained(tmp_path)
    return tmp_path


def read(folder: Path, **more: Any) -> Any:
    return read_network(GPT2LMHeadModel, folder / "model.safetensors", what="a GPT-2", **more)


def without(folder: Path, *parts: str) -> None:
    """Take the tensors out whose names hold one of ``parts``."""
    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if not any(part in name for part in parts)}
    save_file(kept, path, metadata={"format": "pt"})


def test_all_matched(folder: Path) -> None:
    network, report = read(folder)
    assert len(report.matched) == len(list(network.parameters()))
    assert str(report) == f"{len(report.matched)} tensors matched, 0 new, 0 left over"


def test_new_and_left_over_are_told(folder: Path) -> None:
    without(folder, "crossattention", "ln_cross_attn")
    save_file(
        {
            **load_file(folder / "model.safetensors"),
            "head.weight": load_file(folder / "model.safetensors")["transformer.wpe.weight"],
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    _, report = read(folder, may_be_new=CROSS)
    assert len(report.new) == 2 * 8
    assert report.left_over == ("head.weight",)
    assert "16 new (transformer.h.0.crossattention.c_attn.bias, " in str(report)
    assert str(report).endswith(", ...), 1 left over (head.weight)")
    with pytest.raises(
        CheckpointError, match=r"16 tensors missing .*: transformer\.h\.0\.crossattention\.c_attn\.bias"
    ):
        read(folder)  # without leave to be new


@pytest.mark.parametrize("part", ["wpe", "h.1.mlp.c_fc.weight"])
def test_what_must_be_there_is_missed(folder: Path, part: str) -> None:
    without(folder, part)
    with pytest.raises(CheckpointError, match=rf"1 tensors missing or of another shape: transformer\.{part}"):
        read(folder, may_be_new=CROSS)


def test_half_of_what_may_be_new_is_not_new(folder: Path) -> None:
    without(folder, "h.1.crossattention.q_attn.weight")
    with pytest.raises(CheckpointError, match=r"1 tensors missing .*: transformer\.h\.1\.crossattention\.q_attn"):
        read(folder, may_be_new=CROSS)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as a GPT-2"):
        read(folder)
