"""BLIP-2's vision transformer ViT-g/14 (EVA-CLIP-g without its last block), from transformers' parts.

Numbers are those of LAVIS (``lavis/models/eva_vit.py``): layer norms of the blocks with epsilon 1e-6, ``ln_vision``
with 1e-5. transformers has one epsilon for both, which its versions and the Hub's configurations set differently;
neither is asked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from avpipe.extract.encoders._device import seeded

BLOCK_EPSILON, LN_VISION_EPSILON = 1e-6, 1e-5
RANDOM_STD = 0.02  # as LAVIS draws; transformers' own 1e-10 would make all frames the same

_LAVIS_NAMES = {
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12])\.(weight|bias)": r"encoder.layers.\1.layer_norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": r"encoder.layers.\1.self_attn.qkv.\2",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.layers.\1.self_attn.projection.\2",
    r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)": r"encoder.layers.\1.mlp.fc\2.\3",
    r"ln_vision\.(weight|bias)": r"post_layernorm.\1",
}


class EvaClipG(nn.Module):
    """Normalised frames in, tokens out: CLS, then patches row by row.

    Args:
        described: what ``Blip2VisionConfig`` calls ``hidden_size``, ``num_hidden_layers`` ...
        final_norm: whether ``ln_vision`` follows.
    """

    def __init__(self, described: Mapping[str, Any], *, final_norm: bool) -> None:
        from transformers import Blip2VisionConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

        super().__init__()
        config = Blip2VisionConfig(**described, layer_norm_eps=BLOCK_EPSILON, initializer_range=RANDOM_STD)
        vision = Blip2VisionModel(config)
        self.embeddings, self.encoder = vision.embeddings, vision.encoder
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=LN_VISION_EPSILON) if final_norm else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(F, 3, H, W)`` -> ``(F, 1 + patches, dim)``."""
        hidden: torch.Tensor = self.embeddings(pixels)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden if self.post_layernorm is None else self.post_layernorm(hidden)


def random(described: Mapping[str, Any], seed: int, *, final_norm: bool) -> EvaClipG:
    """With random weights."""
    with seeded(seed):
        return EvaClipG(described, final_norm=final_norm)


def empty(described: Mapping[str, Any], *, final_norm: bool) -> EvaClipG:
    """With whatever lies in memory, to be filled: drawing a billion numbers only to overwrite them takes a while."""
    with torch.device("meta"):
        network = EvaClipG(described, final_norm=final_norm)
    return network.to_empty(device="cpu")


def from_lavis(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LAVIS's names as transformers has them: query and value biases become one with a key bias of zeros.

    Args:
        state: of the visual encoder, and ``ln_vision``. A name that is not known stays as it is.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        query = re.fullmatch(r"(blocks\.\d+\.attn\.)q_bias", name)
        if query and query[1] + "v_bias" in state:
            value = state[query[1] + "v_bias"]
            found[_renamed(query[1] + "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not (re.fullmatch(r"blocks\.\d+\.attn\.v_bias", name) and name.replace("v_bias", "q_bias") in state):
            found[_renamed(name)] = tensor
    return found


def _renamed(name: str) -> str:
    for pattern, replacement in _LAVIS_NAMES.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return name
