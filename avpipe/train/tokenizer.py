"""Words to numbers and back: a tokenizer learned from the training captions, or any of the Hub's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, UsageError
from avpipe.pipeline.files import atomic_write, write_json

TOKENIZER_FILE, SPECIAL_FILE = "tokenizer.json", "special_tokens.json"
PAD, BEGIN, END = "<pad>", "<s>", "</s>"


@dataclass(frozen=True, slots=True)
class Special:
    """Ids of the tokens that stand for no text. Padding is never attended to and never a target.

    ``begin_next`` begins the caption of the clip that follows, where that is learned, too.
    """

    pad: int
    begin: int
    end: int
    begin_next: int | None = None

    @property
    def unsaid(self) -> frozenset[int]:
        """Those that no caption holds; not the end, which padding or begin may be, too (GPT-2's)."""
        return frozenset(i for i in (self.pad, self.begin, self.begin_next) if i is not None) - {self.end}


class Tokenizer:
    """Captions as token ids.

    Args:
        backend: of the ``tokenizers`` package.
        special: ids of padding, begin and end of a sentence.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: Special) -> None:
        self._backend = backend
        backend.encode_special_tokens = True  # "</s>" in a caption is text like any other, and ends nothing
        self.special = special

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, the special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, of_next: bool = False) -> list[int]:
        """Begin, the text's tokens, end; ``of_next``: with the other begin."""
        begin = self.special.begin_next if of_next else self.special.begin
        if begin is None:
            raise ValueError("of_next: expected a tokenizer with a begin for it (with_next_begin), got one without")
        return [begin, *self._backend.encode(text, add_special_tokens=False).ids, self.special.end]

    def with_next_begin(self, token: str) -> Self:
        """The same words, and a begin for captions of the next clip: a token that is there, or a new one.

        Raises:
            UsageError: the token stands for something else already.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens([token])
        begin_next = backend.token_to_id(token)
        if begin_next in (self.special.pad, self.special.begin, self.special.end):
            raise UsageError(f"tokenizer.next_begin: {token!r} is padding, begin or end of a caption already")
        return type(self)(backend, replace(self.special, begin_next=begin_next))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, up to the first end; special tokens are left out."""
        ids = list(ids)
        if self.special.end in ids:
            ids = ids[: ids.index(self.special.end)]
        skipped = {self.special.pad, self.special.begin, self.special.begin_next}
        return " ".join(str(self._backend.decode([i for i in ids if i not in skipped])).split())

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``special_tokens.json``."""
        with atomic_write(folder / TOKENIZER_FILE) as aside:
            aside.write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        write_json(folder / SPECIAL_FILE, asdict(self.special))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of :meth:`save`.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        try:
            backend = tokenizers.Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            special = Special(**json.loads((folder / SPECIAL_FILE).read_text(encoding="utf-8")))
        except Exception as error:
            # tokenizers raises plain Exception for whatever it cannot read
            raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
        return cls(backend, special)

    @classmethod
    def trained(cls, captions: Iterable[str], *, vocabulary_size: int, lower_case: bool) -> Self:
        """Learn a byte-level BPE tokenizer (Sennrich et al. 2016, over bytes as in GPT-2): any text can be encoded.

        The same captions, in whatever order, give the same tokenizer.

        Args:
            captions: of the training split alone.
            vocabulary_size: at most this many tokens.
            lower_case: fold case, as the field's metrics do.
        """
        backend = tokenizers.Tokenizer(models.BPE())
        if lower_case:
            backend.normalizer = normalizers.Lowercase()
        # A space before the first word: "a" at the start and in the middle is one token.
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            special_tokens=[PAD, BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(sorted(captions), trainer)
        vocabulary = backend.get_vocab()
        return cls(backend, Special(pad=vocabulary[PAD], begin=vocabulary[BEGIN], end=vocabulary[END]))

    @classmethod
    def from_hub(cls, name: str) -> Self:
        """Any tokenizer of the Hub, by id, or of a local folder.

        Begin and end are its own, or the class and separator tokens (BERT), or, where there is but one (T5, GPT-2),
        that one; padding is its own, or its end.

        Raises:
            MissingWeightsError: it is neither here nor to be had.
            UsageError: it has no fast form, or no token that could end a sentence.
        """
        from transformers import AutoTokenizer

        try:
            whole = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise MissingWeightsError(
                f"tokenizer {name!r} is neither a local folder nor to be had from the Hub here: "
                f"{str(error).splitlines()[0]}\nFetch it on a machine with internet (hf download {name}), or give the "
                "path of a folder with tokenizer.json, or use tokenizer.name=trained"
            ) from None
        backend = getattr(whole, "backend_tokenizer", None)
        if backend is None:
            raise UsageError(f"tokenizer {name!r}: expected a fast one (tokenizer.json), got {type(whole).__name__}")
        end = whole.eos_token_id if whole.eos_token_id is not None else whole.sep_token_id
        begin = whole.bos_token_id if whole.bos_token_id is not None else whole.cls_token_id
        if end is None:
            raise UsageError(f"tokenizer {name!r} has no token that ends a sentence")
        pad = whole.pad_token_id if whole.pad_token_id is not None else end
        return cls(backend, Special(pad=pad, begin=pad if begin is None else begin, end=end))
