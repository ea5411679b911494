"""Chat models that hear, of one layer each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<sound>"]
VOCABULARY = 300
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
FLAMINGO_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<sound>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def settings(folder: Path) -> dict[str, Any]:
    """Of a small encoder. Qwen2-Audio hears no more than 30 s, so less is asked for, and there is room for more."""
    return {"weights": str(checkpoint(folder / "qwen")), "max_new_tokens": 5, "max_seconds": 10.0}


def checkpoint(folder: Path, model: str = "qwen2_audio", *, leave_out: Sequence[str] = ()) -> Path:
    """A checkpoint in the layout of the public ones."""
    import torch
    import transformers

    library: Any = transformers
    torch.manual_seed(0)
    words, extractor = tokenizer(), library.WhisperFeatureExtractor(feature_size=128)
    if model == "qwen2_audio":
        hearing = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        config = library.Qwen2AudioConfig(
            audio_config={"model_type": "qwen2_audio_encoder", "num_mel_bins": 128, **hearing},
            text_config=TEXT,
            audio_token_id=words.convert_tokens_to_ids("<|AUDIO|>"),
        )
        network = library.Qwen2AudioForConditionalGeneration(config)
        processor = library.Qwen2AudioProcessor(extractor, words)
    else:
        hearing = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = library.AudioFlamingo3Config(
            audio_config={"num_mel_bins": 128, **hearing},
            text_config=TEXT,
            audio_token_id=words.convert_tokens_to_ids("<sound>"),
        )
        network = library.AudioFlamingo3ForConditionalGeneration(config)
        processor = library.AudioFlamingo3Processor(extractor, words, chat_template=FLAMINGO_CHAT)
    with torch.no_grad():
        for parameter in network.parameters():  # sensitive to what it hears
            parameter.add_(0.3 * torch.randn_like(parameter))
    processor.save_pretrained(folder)
    network.save_pretrained(folder)
    for name in leave_out:
        (folder / name).unlink()
    return folder


def tokenizer() -> Any:
    """Byte pairs, and the special tokens of both models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["a dog barks while it rains"], trainer)
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
