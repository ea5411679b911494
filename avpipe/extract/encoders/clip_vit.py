"""Image towers of CLIP, SigLIP, EVA and their kin, through open_clip.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021), and whatever else
open_clip holds. Preprocessing is the model's own (resize, crop, mean, std), equal bit for bit to what
``open_clip.create_model_and_transforms`` returns for validation.

Two traps that this module takes care of. open_clip only warns where weights were trained with QuickGELU (OpenAI's own,
MetaCLIP, DFN) and the model is built without it; here the activation that a tag was trained with is always taken. And
only the image tower is built: text towers from the Hub would want the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from avpipe.extract.encoders import _open_clip
from avpipe.extract.encoders._frames import FrameEncoder, FrameNetworkConfig, frame_spec

if TYPE_CHECKING:
    import torch


class Config(FrameNetworkConfig):
    """Configuration of an image tower."""

    model: str | None = None
    """An open_clip model name. None: what the Hub repository or the folder says of itself; else ViT-B-16. SigLIP 2 is
    ``model: ViT-B-16-SigLIP2-256, weights: webli`` (and other sizes)."""

    weights: str = "openai"
    """A pretrained tag of open_clip (``openai``), ``hf-hub:org/name`` or ``hf-hub:org/name@revision``, a local file, a
    local folder with open_clip_config.json, or ``random`` (``random:<seed>``) for tests and benchmarks."""

    tokens: str = Field(default="all", pattern=r"^(all|mean|cls|embedding|grid:[1-9]\d*)$")
    """Rows of each frame. ``all``: the tokens of the last layer after the final norm, CLS first where there is one,
    then patches row by row; ``mean``: the mean patch; ``grid:k``: patches averaged to k x k; ``cls``: one pooled vector
    before CLIP's projection; ``embedding``: the image embedding in the space shared with text (not normalised)."""


class Encoder(FrameEncoder):
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.tower = _open_clip.find(config.model, config.weights, name)
        config = config.model_copy(update={"model": self.tower.model})
        super().__init__(config, self.tower.preprocessing)
        self.tokens = config.tokens
        rows, dim = _open_clip.probe(self.tower, config.tokens)
        self.spec = frame_spec(
            name,
            "clip_vit",
            config,
            rows=rows,
            dim=dim,
            weights=self.tower.weights,
            preprocessing=self.tower.to_json(),
        )

    def _build(self) -> torch.nn.Module:
        return _open_clip.load(self.tower, self.tokens)
