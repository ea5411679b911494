"""Checkpoints of visual networks, so small that they are made on the spot, in the layouts of the public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

TINY_EVA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
"""4 x 4 patches and CLS."""


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With no weight at its initial value: no zero and no one hides a mistake. Variances stay positive."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return module.eval()


def blip2_vision(**described: int) -> Any:
    """transformers' own image tower of BLIP-2, with LAVIS's epsilon, and a key bias of zero as all public ones have."""
    from transformers import Blip2VisionConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

    described = {**TINY_EVA, **described}
    config = Blip2VisionConfig(**described, layer_norm_eps=1e-6, initializer_range=0.1)
    torch.manual_seed(0)
    model = shaken(Blip2VisionModel(config))
    width = described["hidden_size"]
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.qkv.bias[width : 2 * width] = 0
    return model


def blip2_folder(folder: Path, *, leave_out: str = "", sharded: bool = True) -> Path:
    """A BLIP-2 as the Hub has them: a configuration; an index and three files, of which the first two hold the image
    tower, or one file.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    described = {"architectures": ["Blip2ForConditionalGeneration"], "vision_config": TINY_EVA, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    vision = {f"vision_model.{name}": value for name, value in blip2_vision().state_dict().items()}
    vision.pop(leave_out, None)
    other = {"query_tokens": torch.zeros(1, 2, 8), "language_model.lm_head.weight": torch.zeros(4, 8)}
    if not sharded:
        save_file({**vision, **other}, folder / "model.safetensors")
        return folder
    names = list(vision)
    parts = [dict.fromkeys(names[:20]), dict.fromkeys([*names[20:], "query_tokens"]), dict.fromkeys(list(other)[1:])]
    places = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: {**vision, **other}[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def caught_graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """From now on, what ``compile`` is given lands in this list, and runs as it is: no compiler is needed."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend=backend, **how))
    return graphs


def calls_in(graphs: list[torch.fx.GraphModule], name: str) -> int:
    """How often something whose name holds ``name`` is called."""
    return sum(name in str(node.target) for graph in graphs for node in graph.graph.nodes)
