"""A sentence about what a clip sounds like, from a large language model that hears and is asked.

- ``qwen2_audio``: Chu et al., "Qwen2-Audio Technical Report" (2024), ``Qwen/Qwen2-Audio-7B-Instruct``;
- ``audio_flamingo3``: Goel et al., "Audio Flamingo 3" (2025), ``nvidia/audio-flamingo-3-hf``.

Both through transformers: its processor makes spectrograms and the chat in the checkpoint's own form, its ``generate``
writes. There is no sampling: two runs give the same text. The small captioner that MICap reads is in
:mod:`avpipe.extract.encoders.audio_caption`.

The processor needs torch, so it works where the network is and not in the decoding processes; beside seven billion
weights that costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import BatchConfig
from avpipe.extract.encoders._media import waveform_of
from avpipe.extract.encoders._pretrained import network_of, number_type, pretrained
from avpipe.extract.encoders._writing import DIGITS, BestLogProbs, settings, until
from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline import weight_shards, weights
from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.features import FeatureSpec, Segment, Segments
from avpipe.pipeline.pretrained import json_of, quiet

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLE_RATE = 16000
LEAST_SAMPLES = 1600
"""Of shorter sound the models would make no token at all: silence follows it."""

CLASSES = {
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "audio_flamingo3": "AudioFlamingo3ForConditionalGeneration",
}
REPOSITORIES = {"qwen2_audio": "Qwen/Qwen2-Audio-7B-Instruct", "audio_flamingo3": "nvidia/audio-flamingo-3-hf"}
PARTS = {
    "preprocessor": ("preprocessor_config.json", "processor_config.json"),
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "tokenizer": ("tokenizer.json",),
    "tokenizer_config": ("tokenizer_config.json",),
    "chat": ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"),
}
"""A checkpoint keeps its processor in one file or two, and the form of its chats in one of four."""


class Config(BatchConfig):
    """Configuration of a captioner that is asked in words."""

    model: Literal["qwen2_audio", "audio_flamingo3"] = "qwen2_audio"
    """The architecture."""

    weights: str = ""
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder; by default that of the model's authors."""

    prompt: str = "Describe the sounds in one sentence."
    """What is asked about each clip."""

    max_seconds: float = Field(default=30.0, gt=0)
    """Of sound, from the clip's start. Qwen2-Audio hears no more than 30."""

    beams: int = Field(default=1, ge=1)
    """Of the beam search; 1 takes the best token each time."""

    max_new_tokens: int = Field(default=40, ge=1)
    """Of an answer."""

    precision: Literal["bf16", "float32"] = "bf16"
    """``bf16``: the weights are kept in bfloat16 on GPUs that have it; float32 everywhere else."""


class Encoder:
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        place = config.weights or REPOSITORIES[config.model]
        if place.partition(":")[0] == "random":
            raise UsageError(
                f"{name}.weights: expected a folder or a repository on the Hub, got {place!r}: random weights have no "
                f"processor to be asked through"
            )
        if config.model == "qwen2_audio" and config.max_seconds > 30:
            raise UsageError(f"{name}.max_seconds: expected at most 30 with qwen2_audio, got {config.max_seconds}")
        self.config = config
        self.batch_size = config.batch_size
        self.files = weight_shards.find(place, "", component=name)
        if not weights.looks_local(place):  # the Hub's cache has a folder a commit: all files must come from one
            place = f"{place.partition('@')[0]}@{self.files.config.parent.name}"
        parts = weights.resolve(place, PARTS, component=name, has_random=False).files
        self.spec = FeatureSpec(
            name=name,
            encoder="audio_chat",
            modality="text",
            dim=0,
            dtype="text",
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=self.files.to_spec(),
            preprocessing={
                **{part: weights.sha256_of(path) for part, path in parts.items()},
                "network": network_of(json_of(self.files.config)),
            },
            clock={"segments": "one a clip, over the sound that was heard"},
        )
        self._model: Any = None
        self._processor: Any = None
        self._device = "cpu"

    @property
    def request(self) -> AudioRequest:
        """The waveform it wants."""
        return AudioRequest(sample_rate=SAMPLE_RATE, max_seconds=self.config.max_seconds)

    def prepare(self, media: Media) -> Prepared:
        """What the models hear.

        - ``samples`` float32 ``(num_samples,)``, a tenth of a second at least;
        - ``span_seconds`` float64 ``(2,)``: from when to when it heard.

        Raises:
            SkipClip: the clip has no sound.
        """
        waveform = waveform_of(media, self.spec.name, self.config.max_seconds)
        span = waveform.start_seconds + np.array([0, len(waveform.data)]) / SAMPLE_RATE
        behind = max(0, LEAST_SAMPLES - len(waveform.data))
        return {"samples": np.pad(waveform.data, (0, behind)), "span_seconds": np.maximum(span, 0.0)}

    def load(self, device: str) -> None:
        """Build the network and its processor and read the weights onto ``device``.

        Raises:
            CheckpointError: the files do not fit the model.
        """
        import transformers

        from avpipe.extract.encoders._device import ready

        kind = number_type(device, self.config.precision)
        if self._model is None:
            folder = str(self.files.config.parent)
            library: Any = transformers
            with quiet():
                try:
                    processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
                except (OSError, ValueError, KeyError) as error:
                    raise CheckpointError(f"{folder}: cannot be read as a processor: {error}") from None
            model_class = getattr(library, CLASSES[self.config.model])
            self._model = pretrained(model_class, self.files.files[0], what=f"a {self.config.model}", dtype=kind)
            ends = self._model.generation_config.eos_token_id or processor.tokenizer.eos_token_id
            self._ends = ends if isinstance(ends, list) else [ends]
            self._model.generation_config = settings()  # empty: no sampling, no penalty that the checkpoint suggests
            self._processor = processor
        # Place and type in one go, tensor by tensor: a GPU that hands the network back never holds it in float32.
        self._model, self._device = ready(self._model.to(device, kind), device), device

    def encode(self, batch: Sequence[Prepared]) -> list[Segments]:
        """One segment a clip."""
        answers = self._answers([clip["samples"] for clip in batch])
        return [
            Segments((self._segment(text, score, *map(float, clip["span_seconds"])),))
            for (text, score), clip in zip(answers, batch, strict=True)
        ]

    def _answers(self, sounds: Sequence[npt.NDArray[Any]]) -> list[tuple[str, float]]:
        """Text and mean log-probability of a token, for each sound."""
        import torch
        from transformers import LogitsProcessorList

        if self._model is None:
            raise RuntimeError("encode: called before load")
        beams = self.config.beams
        chat = [
            {
                "role": "user",
                "content": [{"type": "audio", "audio": ""}, {"type": "text", "text": self.config.prompt}],
            }
        ]
        asked = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        best = BestLogProbs()
        processors: Any = LogitsProcessorList([best] if beams == 1 else [])
        with torch.inference_mode(), quiet():
            inputs = self._processor(
                text=[asked] * len(sounds),
                audio=list(sounds),
                text_kwargs={"padding": True, "padding_side": "left"},  # sounds are filled up to 30 s, as always
                audio_kwargs={"sampling_rate": SAMPLE_RATE},
                return_tensors="pt",
            ).to(self._device)
            inputs["input_features"] = inputs["input_features"].to(self._model.dtype)
            output = self._model.generate(
                **inputs,
                generation_config=settings(
                    num_beams=beams,
                    do_sample=False,
                    max_new_tokens=self.config.max_new_tokens,
                    eos_token_id=self._ends,
                    pad_token_id=self._processor.tokenizer.pad_token_id,
                    return_dict_in_generate=True,
                    output_scores=beams > 1,
                ),
                logits_processor=processors,
            )
        rows = [until(row, self._ends) for row in output.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
        scores = output.sequences_scores.tolist() if beams > 1 else best.means(rows)
        texts = self._processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [(text.strip(), score) for text, score in zip(texts, scores, strict=True)]

    def _segment(self, text: str, score: float, start_seconds: float, stop_seconds: float) -> Segment:
        return Segment(
            start_seconds=round(start_seconds, DIGITS),
            stop_seconds=round(stop_seconds, DIGITS),
            text=text,
            score=round(score, DIGITS),
        )
