"""A Whisper that hears two seconds, knows two languages, and says what its random weights tell it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SENTENCES = ("the dog barks at the rain", "a man says hello and goes home", "who are you? said the cat: nobody!")
WORDS = 300
"""Tokens that are words; the special ones follow."""

END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, NO_SPEECH, NO_TIMESTAMPS = range(WORDS, WORDS + 8)
ZERO = NO_TIMESTAMPS + 1
"""The time stamp of 0.00 s; the next is that of 0.02 s."""

WINDOW_SECONDS = 2
NETWORK = {
    "vocab_size": ZERO + 101,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_source_positions": 100,
    "max_target_positions": 40,
    "pad_token_id": END,
    "bos_token_id": END,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}
SPOKEN = {
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "no_timestamps_token_id": NO_TIMESTAMPS,
    "max_initial_timestamp_index": 50,
    "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
    "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE},
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [3, END],
    "is_multilingual": True,
}


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder that transcribes whatever it hears."""
    return {"weights": str(checkpoint(folder / "whisper")), "max_new_tokens": 16, "vad": False}


def checkpoint(
    folder: Path, *, seed: int = 0, english_only: bool = False, leave_out: Sequence[str] = (), **network: Any
) -> Path:
    """A checkpoint in the layout of the public ones."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**NETWORK, **network}))
    with torch.no_grad():
        for parameter in model.parameters():  # none at its initial value, and sensitive to what it hears
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_SECONDS).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    spoken = dict(SPOKEN)
    if english_only:
        spoken = {key: value for key, value in spoken.items() if not key.endswith("_to_id")}
    (folder / "generation_config.json").write_text(json.dumps(spoken), encoding="utf-8")
    for name in leave_out:
        (folder / name).unlink()
    return folder


def tokenizer() -> Any:
    """Byte pairs learned from three sentences, filled up to :data:`WORDS`, and the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    assert made.get_vocab_size() == WORDS
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    made.add_special_tokens([*special, "<|nospeech|>", "<|notimestamps|>"])
    return made
