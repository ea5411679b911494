"""What the published heads cost at their full size: parameters, memory, seconds of a training step, words a second.

    python benchmarks/full_size.py [--only E] [--batch 2] [--device cpu]

Each head is built with random weights by the settings that its paper has (where it says none: avpipe's own), in a
process of its own, one after the other. It is fed random features of the shapes that the paper's encoders give, takes
two steps of AdamW (the second is timed: forward, backward, optimizer), and captions the batch by beam search, every
caption of the same length. E's language model has the shape of Flan-T5-XL and is frozen in bfloat16, as in the paper:
its weights are written to a temporary folder first (6 GB of disk), and read as those of the Hub would be.

Memory is the most that the process held in RAM, or, on a GPU, what torch had taken of it; weights, gradients, AdamW's
state and activations, in float32 but for what is frozen (on a GPU, under autocast to bfloat16).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models

from avpipe.pipeline.features import FeatureSpec, Modality
from avpipe.train import checkpoint
from avpipe.train.batch import Batch
from avpipe.train.config import check
from avpipe.train.fusions import coattention, qformer
from avpipe.train.generate import beam_search
from avpipe.train.learner import Learner
from avpipe.train.tokenizer import Special, Tokenizer

WORDS = 12  # of a caption, and of what is generated
SHARD_BYTES = 2**30


@dataclass(frozen=True)
class Set:
    """A feature set: its modality, how many rows of how many channels a clip has, and how many rows each time has."""

    modality: Modality
    rows: int
    dim: int
    rows_a_time: int = 1


@dataclass(frozen=True)
class Head:
    """A published head."""

    paper: str
    sets: Mapping[str, Set]
    fusion: Mapping[str, Any]
    decoder: Mapping[str, Any]
    words: int
    beams: int
    needs: Mapping[str, Any] = field(default_factory=dict)  # shape of a language model that is read


FLAN_T5_XL = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}  # fmt: skip
BASE = {"width": 768, "layers": 6, "heads": 12, "feed_forward": 3072}

HEADS = {
    "A": Head(
        "MICap: coattention, bert (6 layers)",
        {"clip": Set("video", 985, 768, rows_a_time=197), "audio_caption": Set("text", 30, 768)},
        {"name": "coattention", **coattention.PAPER},
        {"name": "bert", "weights": "random"},
        words=30522,
        beams=4,
    ),
    "B": Head(
        "Role of Audio: local_global, transformer (768, 6 layers)",
        {"swin": Set("video", 784, 1024, rows_a_time=49), "ast": Set("audio", 1214, 768, rows_a_time=12)},
        {"name": "local_global"},
        {"name": "transformer", **BASE},
        words=30522,
        beams=4,
    ),
    "C": Head(
        "AVCap: av_tokens, git (base)",
        {"see": Set("video", 392, 768, rows_a_time=196), "hear": Set("audio", 512, 768, rows_a_time=8)},
        {"name": "av_tokens"},
        {"name": "git"},
        words=30522,
        beams=4,
    ),
    "D": Head(
        "ResNet50 + GPT-2: cross_attention, gpt2 (small)",
        {"resnet": Set("video", 16, 2048)},
        {"name": "cross_attention"},
        {"name": "gpt2", "weights": "random"},
        words=50257,
        beams=4,
    ),
    "E": Head(
        "Multi-modal BLIP-2: qformer (12 layers, 48 queries), t5 (XL, LoRA)",
        {"eva": Set("video", 16 * 257, 1408, rows_a_time=257), "beats": Set("audio", 496, 768, rows_a_time=8)},
        {"name": "qformer", **qformer.PAPER},
        {"name": "t5", "trained": "lora", "dtype": "bfloat16", "prompt": "w3 w4 w5", "dense_act_fn": "gelu"},
        words=32100,
        beams=6,
        needs=FLAN_T5_XL,
    ),
}


def tokenizer_of(words: int) -> Tokenizer:
    names = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, words))]
    backend = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, Special(pad=0, begin=1, end=2))


def write_random_t5(folder: Path, described: Mapping[str, Any]) -> None:
    """As the Hub has it: several files in bfloat16, and an index. Never more than one file's share is in memory."""
    from transformers import T5Config, T5ForConditionalGeneration

    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    with torch.device("meta"):
        network = T5ForConditionalGeneration(T5Config.from_dict(dict(described)))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    shapes["lm_head.weight"] = shapes["shared.weight"]
    place: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    for index, (name, shape) in enumerate(shapes.items()):
        start = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) / math.sqrt(shape[-1])
        held[name] = start.bfloat16()
        if index == len(shapes) - 1 or sum(tensor.nbytes for tensor in held.values()) > SHARD_BYTES:
            file = f"model-{len(set(place.values())):05}.safetensors"
            save_file(held, folder / file, {"format": "pt"})
            place |= dict.fromkeys(held, file)
            held = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def batch_of(head: Head, size: int) -> Batch:
    features, mask, times, present = {}, {}, {}, {}
    for name, each in head.sets.items():
        features[name] = torch.randn(size, each.rows, each.dim)
        mask[name] = torch.ones(size, each.rows, dtype=torch.bool)
        times[name] = (torch.arange(each.rows) // each.rows_a_time).float().expand(size, -1)
        present[name] = torch.ones(size, dtype=torch.bool)
    tokens = torch.randint(3, head.words, (size, WORDS + 2))
    tokens[:, 0], tokens[:, -1] = 1, 2
    return Batch(
        clip_ids=tuple(map(str, range(size))),
        features=features,
        mask=mask,
        pts_seconds=times,
        present=present,
        tokens=tokens,
        token_mask=torch.ones_like(tokens, dtype=torch.bool),
        caption_clip=torch.arange(size),
    )


def timed(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds, to the end of what the device was told to do: of the clock, and of the CPU over all threads."""
    if device == "cuda":
        torch.cuda.synchronize()
    started, used = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - used


def measure(head: Head, size: int, device: str, weights: str) -> dict[str, Any]:
    torch.manual_seed(0)
    decoder = {**head.decoder, "weights": weights} if weights else head.decoder
    config = check({"fusion": dict(head.fusion), "decoder": decoder}, "full_size")
    specs = {
        name: FeatureSpec(name=name, encoder="random", modality=each.modality, dim=each.dim)
        for name, each in head.sets.items()
    }
    tokenizer = tokenizer_of(head.words)
    started = time.perf_counter()
    captioner = checkpoint.build(config, specs, tokenizer)
    build_seconds = time.perf_counter() - started
    learner = Learner(captioner, config.objectives, specs).to(device).train()
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    batch = batch_of(head, size).to(device)
    losses: list[float] = []

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, _ = learner(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    def generate() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            lengths = {"beams": head.beams, "max_tokens": WORDS, "min_tokens": WORDS}
            found = beam_search(captioner.decoder, captioner.fusion(batch), tokenizer.special, **lengths)  # type: ignore
        assert all(len(row[0].tokens) == WORDS for row in found)

    timed(step, device)
    step_seconds, step_cpu_seconds = timed(step, device)
    learner.eval()
    generate_seconds, generate_cpu_seconds = timed(generate, device)
    assert all(map(math.isfinite, losses))
    on_gpu = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "parameters": sum(parameter.numel() for parameter in learner.parameters()),
        "trained": sum(parameter.numel() for parameter in trained),
        "build_seconds": round(build_seconds, 1),
        "step_seconds": round(step_seconds, 2),
        "step_cpu_seconds": round(step_cpu_seconds, 2),
        "generate_cpu_seconds": round(generate_cpu_seconds, 2),
        "words_a_second": round(size * WORDS / generate_seconds, 1),
        "peak_gib": round((on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30, 2),
        "losses": [round(loss, 3) for loss in losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(HEADS), action="append", help="these heads alone")
    parser.add_argument("--batch", type=int, default=2, help="clips of a step and of a generation")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    parser.add_argument("--child", choices=list(HEADS), help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        logging.disable(logging.WARNING)  # that weights are random is known
        print(json.dumps(measure(HEADS[arguments.child], arguments.batch, arguments.device, arguments.weights)))
        return
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} cores"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {hardware}, torch {torch.__version__}, {platform.platform()}")
    print(f"batch of {arguments.batch}, captions of {WORDS} words")
    print("| head | parameters, M | trained, M | step, s | its CPU, s | words/s (beams) | its CPU, s | peak, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    results = {}
    for name in arguments.only or HEADS:
        head = HEADS[name]
        with tempfile.TemporaryDirectory() as folder:
            if head.needs:
                write_random_t5(Path(folder), head.needs)
            command = [sys.executable, __file__, "--child", name, "--batch", str(arguments.batch)]
            command += ["--device", arguments.device, *(["--weights", folder] if head.needs else [])]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = results[name] = json.loads(run.stdout.splitlines()[-1])
        print(
            f"| {name} {head.paper} | {found['parameters'] / 1e6:.1f} | {found['trained'] / 1e6:.1f} "
            f"| {found['step_seconds']} | {found['step_cpu_seconds']} | {found['words_a_second']} ({head.beams}) "
            f"| {found['generate_cpu_seconds']} | {found['peak_gib']} |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
