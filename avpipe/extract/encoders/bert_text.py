"""BERT reads what another feature set says: audio captions, a transcript.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (NAACL 2019), through transformers. The text of a
clip, its segments one after the other with a space between, is cut into word pieces as MICap does it: ``[CLS]`` before,
``[SEP]`` behind, at most 30 of them together. A clip about which nothing was said has the rows ``[CLS]`` and ``[SEP]``.

The time of a row is the middle of the segment that its word piece came from; that of ``[CLS]`` and ``[SEP]`` is the
middle of all, or 0 where there is no text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig
from avpipe.extract.encoders._media import segments_of
from avpipe.extract.encoders._pretrained import network_of, pretrained, tokenizer_at
from avpipe.extract.media import Media, TextRequest
from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.features import Features, FeatureSpec, Segment
from avpipe.pipeline.pretrained import json_of

if TYPE_CHECKING:
    import torch

PARTS = {
    "config": ("config.json",),
    "tokenizer": ("tokenizer.json",),
    "weights": ("model.safetensors", "pytorch_model.bin"),
}
SPECIAL = "[CLS]", "[SEP]"


class Config(DeviceConfig):
    """Configuration of BERT."""

    of: str
    """Name of the feature set that is read: ``audio_caption``, ``whisper`` ..."""

    weights: str = "google-bert/bert-base-uncased"
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder."""

    max_tokens: int = Field(default=30, ge=2)
    """Of a clip, ``[CLS]`` and ``[SEP]`` included; what comes after is not read."""

    tokens: Literal["all", "cls", "mean"] = "all"
    """Rows of a clip, of the last hidden state: all, that of ``[CLS]``, or the mean of all."""

    batch_size: int = Field(default=64, ge=1)
    """Clips at once. Changes no feature."""


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        if config.weights.partition(":")[0] == "random":
            raise UsageError(
                f"{name}.weights: expected a folder or a repository on the Hub, got {config.weights!r}: random weights "
                f"have no vocabulary to read with"
            )
        self.config = config
        self.batch_size = config.batch_size
        self.files = weights.resolve(config.weights, PARTS, component=name, has_random=False)
        network = json_of(self.files.files["config"])
        positions = network.get("max_position_embeddings", 512)
        if config.max_tokens > positions:
            raise UsageError(f"max_tokens: expected at most {positions} with {config.weights}, got {config.max_tokens}")
        self.spec = FeatureSpec(
            name=name,
            encoder="bert_text",
            modality="text",
            dim=network.get("hidden_size", 768),
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=self.files.to_spec(),
            preprocessing={
                "tokenizer": weights.sha256_of(self.files.files["tokenizer"]),
                "network": network_of(network),
            },
            clock={"rows": "one a word piece" if config.tokens == "all" else "one a clip"},
        )
        self._model: torch.nn.Module | None = None
        self._device = "cpu"

    @property
    def request(self) -> TextRequest:
        """The feature set that it reads."""
        return TextRequest(of=self.config.of)

    def prepare(self, media: Media) -> Prepared:
        """``ids`` int64 ``(T,)``, T from 2 to ``max_tokens``; ``pts_seconds`` float64 ``(T,)``.

        Raises:
            SkipClip: the clip has no such features.
            CheckpointError: the tokenizer is not that of a BERT.
        """
        tokenizer = tokenizer_at(self.files.files["tokenizer"])
        first, last = map(tokenizer.token_to_id, SPECIAL)
        if first is None or last is None:
            raise CheckpointError(f"{self.files.files['tokenizer']}: expected the tokens {SPECIAL[0]} and {SPECIAL[1]}")
        segments = [segment for segment in segments_of(media, self.spec.name).items if segment.text]
        encoding = tokenizer.encode(" ".join(segment.text for segment in segments), add_special_tokens=False)
        room = self.config.max_tokens - len(SPECIAL)
        ids, places = encoding.ids[:room], encoding.offsets[:room]
        ends = np.cumsum([len(segment.text) + 1 for segment in segments]).tolist()  # in letters, the space included
        middles = [_middle([segments[bisect_right(ends, begin)]]) for begin, _ in places]
        whole = _middle(segments)
        return {
            "ids": np.array([first, *ids, last], np.int64),
            "pts_seconds": np.array([whole, *middles, whole], np.float64),
        }

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the model.
        """
        from transformers import BertModel

        from avpipe.extract.encoders._device import ready

        if self._model is None:
            self._model = pretrained(BertModel, self.files.files["weights"], what="a BERT", add_pooling_layer=False)
        self._model, self._device = ready(self._model, device, compile=self.config.compile), device

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Rows of each clip, float32."""
        hidden = self._forward([clip["ids"] for clip in batch])
        return [
            self._chosen(rows[: len(clip["ids"])], clip["pts_seconds"].astype(np.float64))
            for rows, clip in zip(hidden, batch, strict=True)
        ]

    def _forward(self, texts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Token numbers of several clips -> last hidden state ``(B, longest, dim)``."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, upload

        if self._model is None:
            raise RuntimeError("encode: called before load")
        longest = max(map(len, texts))
        ids = np.stack([np.pad(text, (0, longest - len(text))) for text in texts])  # what stands behind is not seen
        mask = np.stack([np.arange(longest) < len(text) for text in texts]).astype(np.int64)
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            output = self._model(input_ids=upload(ids, self._device), attention_mask=upload(mask, self._device))
            return download(output.last_hidden_state)

    def _chosen(self, rows: npt.NDArray[np.float32], pts_seconds: npt.NDArray[np.float64]) -> Features:
        if self.config.tokens == "all":
            return Features(data=rows, pts_seconds=pts_seconds)
        row = rows[0] if self.config.tokens == "cls" else rows.mean(axis=0)
        return Features(data=row[None], pts_seconds=pts_seconds[:1])


def _middle(segments: Sequence[Segment]) -> float:
    """Of the time that segments take together; 0 for none."""
    if not segments:
        return 0.0
    return (segments[0].start_seconds + max(segment.stop_seconds for segment in segments)) / 2
