"""Self-critical training: what the captioner writes is made likelier by how far it beats its other captions in CIDEr.

Source: Rennie et al., "Self-critical Sequence Training for Image Captioning" (CVPR 2017, 1612.00563), as PIT-VC
(2502.13363; chunhuizng/mllm-video-captioner) and multi-modal BLIP-2 (ABrimont/Multi-modal-BLIP-2) train: the K captions
of a clip b are the beams of a beam search, and what they are measured against is their mean, without a greedy one::

    S_bk = (sum over the tokens of ln p) / n_bk
    loss = -mean over b, k of S_bk (r_bk - mean over k of r_bk)

with the reward r, the CIDEr-D of :mod:`avpipe.pipeline.cider_d` on the words of :mod:`avpipe.pipeline.ptb`, that is, on
text as stage three scores it. Captions are written first, in eval mode and without gradients; then they are
taught to the captioner like any others, with dropout, which gives S and its gradient. It starts from a captioner that
has learned to write (``train.init_from``): of captions without a word in common with any reference it learns nothing.

The defaults are right roles, all references of the clip, and document frequencies of the training captions. With them
PIT-VC is ``references=sampled df=batch`` and multi-modal BLIP-2 ``references=each df=batch count=4``, each with
``swap_roles=true lengths=uncertain`` for the numbers of its code (tests/train/test_scst.py). ``average=tokens``
with ``baseline=greedy`` or ``others`` is the loss of ruotianluo/self-critical.pytorch.

The authors' roles: both give CIDEr the captioner's captions for references and the others for candidates, so that a
document is a caption just written.

What is left open, and what is done here:

- CIDEr-D is a mean over references: ``all`` and ``each`` are one number wherever the document frequencies are the same,
  which is with ``df=corpus``.
- A document of ``df=batch`` is a pair of a written caption and what it is compared with, as the authors count them.
- n counts the tokens and the end. The authors count those with ln p < 0, so that a certain one is left out.
- The probabilities of S are over all tokens, also those that a search never takes (padding).
- In several processes, the batch is that of the process.
- A clip is rewarded by its own captions alone, also where ``train.targets`` has those of the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.cider_d import DocumentFrequencies, References
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.ptb import is_ordinary, words
from avpipe.train.batch import Fused
from avpipe.train.captioner import Decoder
from avpipe.train.generate import beam_search
from avpipe.train.objective import BaseObjective, Losses, ObjectiveConfig, Step
from avpipe.train.tokenizer import Special, Tokenizer

Tokens = tuple[int, ...]

END_WORD = "</s>"
"""What stands for the end in a reward with ``end_word``."""
CLIPS_HELD = 4096
"""Of so many clips, those met last, counted references are held: some 60 kB a clip of twenty."""

_log = logging.getLogger(__name__)


class Config(ObjectiveConfig):
    """Settings of self-critical training."""

    samples: Literal["beams", "multinomial"] = "beams"
    """What is written: the best of a beam search, or tokens drawn by their probabilities (Rennie et al.)."""
    count: int = Field(5, ge=1)
    """Captions a clip; K. PIT-VC: 5; multi-modal BLIP-2: 4."""
    baseline: Literal["mean", "others", "greedy"] = "mean"
    """What a reward is measured against: the mean of all K, the mean of the K - 1 others, or the caption of greedy
    decoding."""
    references: Literal["all", "each", "sampled"] = "all"
    """What a caption is rewarded by: all captions of the clip together; each alone, averaged (multi-modal BLIP-2); or
    those that stand in the batch, as the captioner's tokenizer gives them back (PIT-VC: one a clip)."""
    df: Literal["corpus", "batch"] = "corpus"
    """Where document frequencies come from: the training clips, each a document of all its captions; or the batch."""
    swap_roles: bool = False
    """Whether candidates and references change places, as in both authors' code."""
    lengths: Literal["tokens", "uncertain"] = "tokens"
    """What n counts: all tokens, or those of ln p < 0, as both authors' code."""
    average: Literal["captions", "tokens"] = "captions"
    """``tokens``: every token of the batch counts the same, and not every caption."""
    end_word: bool = False
    """Whether the end is a word of the reward, as in self-critical.pytorch: a caption that is cut off lacks it."""
    max_tokens: int = Field(30, ge=1)
    """Longest caption that is written, end included."""
    min_tokens: int = Field(1, ge=0)
    """Shortest one, end not included."""
    length_penalty: float = 1.0
    """Of the beam search."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.baseline != "greedy" and self.count < 2:
            raise ValueError(
                f"expected count of 2 or more with baseline={self.baseline}, got {self.count}: a caption alone is its "
                "own mean, and nothing would be learned; try baseline=greedy"
            )
        if self.baseline == "greedy" and self.samples == "beams" and self.count < 2:
            raise ValueError(
                "the one beam is the greedy caption itself; expected samples=multinomial, or a larger count"
            )
        if self.swap_roles and (self.df, self.references) not in {("batch", "each"), ("batch", "sampled")}:
            raise ValueError(
                "swap_roles: expected df=batch and references=each or sampled, as the authors have them, got "
                f"df={self.df} and references={self.references}"
            )
        return self


# -- rewards -----------------------------------------------------------------------------------------------------------


def rewards(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    apart: bool = False,
    swap_roles: bool = False,
) -> list[npt.NDArray[np.float64]]:
    """CIDEr-D with document frequencies of the batch.

    Args:
        candidates: of each clip, what was written, tokenised.
        references: of each clip, at least one, tokenised.
        apart: each reference alone, averaged; else all of a clip together.
        swap_roles: candidates are the references and references the candidates; ``apart``.

    Returns:
        Of each clip ``(K,)``.
    """
    pairs = list(zip(candidates, references, strict=True))
    if swap_roles:
        frequencies = DocumentFrequencies([own] for written, theirs in pairs for own in written for _ in theirs)
        return [
            np.array([References([own], frequencies).score(theirs).mean() for own in written])
            for written, theirs in pairs
        ]
    if apart:
        frequencies = DocumentFrequencies([one] for written, theirs in pairs for _ in written for one in theirs)
    else:
        frequencies = DocumentFrequencies(theirs for written, theirs in pairs for _ in written)
    return [References(theirs, frequencies).score(written) for written, theirs in pairs]


# -- the loss ----------------------------------------------------------------------------------------------------------


def policy_loss(
    log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    lengths: Literal["tokens", "uncertain"] = "tokens",
    average: Literal["captions", "tokens"] = "captions",
) -> Tensor:
    """The loss of M captions.

    Args:
        log_probs: ``(M, L)``: of the tokens, in nats.
        mask: ``(M, L)``, bool: True = real.
        advantages: ``(M,)``: reward less baseline.
        lengths: what n counts.
        average: over captions or over tokens.

    Returns:
        One number; a caption without a token that counts gives 0.
    """
    log_probs = log_probs.masked_fill(~mask, 0)
    counted = mask & (log_probs < 0) if lengths == "uncertain" else mask
    sums, n = log_probs.sum(dim=1), counted.sum(dim=1)
    if average == "tokens":
        return -(sums * advantages).sum() / n.sum().clamp(min=1)
    return -(sums / n.clamp(min=1) * advantages).mean()


def advantages(
    found: Sequence[npt.NDArray[np.float64]],
    baseline: Literal["mean", "others", "greedy"],
    greedy: Sequence[npt.NDArray[np.float64]] = (),
) -> list[npt.NDArray[np.float64]]:
    """Rewards less their baseline.

    Args:
        found: of each clip ``(K,)``.
        baseline: which.
        greedy: of each clip ``(1,)``, the reward of its greedy caption.
    """
    if baseline == "greedy":
        return [values - base for values, base in zip(found, greedy, strict=True)]
    if baseline == "mean":
        return [values - values.mean() for values in found]
    # r - mean of the others = (r - mean of all) * K / (K - 1)
    return [(values - values.mean()) * len(values) / max(len(values) - 1, 1) for values in found]


# -- what is written ---------------------------------------------------------------------------------------------------


def sample(
    decoder: Decoder, fused: Fused, special: Special, *, count: int, max_tokens: int, min_tokens: int = 0
) -> list[list[Tokens]]:
    """Captions drawn token by token by their probabilities, from torch's global generator.

    Args:
        decoder: one token at a time.
        fused: of B clips.
        special: ids of padding, begin and end.
        count: captions a clip.
        max_tokens: longest caption, the end token counted; what is unfinished then counts as it stands.
        min_tokens: shortest caption, the end token not counted.

    Returns:
        For each clip ``count`` of them, without begin, with the end token where they have one.
    """
    rows = torch.arange(fused.data.shape[0], device=fused.data.device).repeat_interleave(count)
    state = decoder.start(fused).take(rows)
    last = torch.full((len(rows),), special.begin, device=rows.device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    drawn: list[Tensor] = []
    while len(drawn) < min(max_tokens, decoder.max_tokens - 1) and not done.all():
        logits, state = decoder.step(last, state)
        forbidden = special.unsaid | ({special.end} if len(drawn) < min_tokens else set())
        logits = logits.float()
        logits[:, list(forbidden)] = -torch.inf
        last = torch.multinomial(logits.softmax(-1), 1).squeeze(1).masked_fill(done, special.end)
        done = done | (last == special.end)
        drawn.append(last)
    found = [_until_end(tokens, special.end) for tokens in torch.stack(drawn, dim=1).tolist()]
    return [found[start : start + count] for start in range(0, len(found), count)]


def _until_end(tokens: Sequence[int], end: int) -> Tokens:
    return tuple(tokens[: tokens.index(end) + 1] if end in tokens else tokens)


# -- the objective -----------------------------------------------------------------------------------------------------


class Objective(BaseObjective):
    """The loss of what is written of a batch. With ``samples=multinomial`` it draws at random."""

    def __init__(self, config: Config, *, fusion: nn.Module, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.config = config
        self._tokenizer: Tokenizer | None = None
        self._captions: dict[str, list[str]] = {}
        self._frequencies: DocumentFrequencies | None = None
        self._references = lru_cache(CLIPS_HELD)(self._count_references)

    def prepare(self, clips: Sequence[Clip], tokenizer: Tokenizer) -> None:
        """Tokenise all captions of the training clips, and count them."""
        self._tokenizer = tokenizer
        self._captions = {clip.clip_id: [self._reference(text) for text in clip.captions] for clip in clips}
        self._frequencies = DocumentFrequencies(self._captions.values()) if self.config.df == "corpus" else None
        self._references.cache_clear()
        if _log.isEnabledFor(logging.INFO):  # some seconds for a large dataset
            captions = [caption for clip in clips for caption in clip.captions]
            others = sum(not is_ordinary(caption) for caption in captions)
            _log.info("of %d references, %d may be tokenised otherwise than in scoring", len(captions), others)

    def forward(self, step: Step) -> Losses:
        """One loss; reward and tokens a caption are watched, and how many texts are surely tokenised as in scoring."""
        if self._tokenizer is None:
            raise RuntimeError("scst: expected prepare(clips, tokenizer) before the first step")
        written, greedy = self._write(step, self._tokenizer.special)
        texts = [[self._tokenizer.decode(tokens) for tokens in several] for several in written]
        found = self._rewards(step, [[*own, *base] for own, base in zip(written, greedy, strict=True)])
        bases = [values[len(own) :] for values, own in zip(found, written, strict=True)]
        found = [values[: len(own)] for values, own in zip(found, written, strict=True)]
        gained = advantages(found, self.config.baseline, bases)
        log_probs, mask = self._teach(step, written, self._tokenizer.special)
        loss = policy_loss(
            log_probs,
            mask,
            torch.from_numpy(np.concatenate(gained)).to(log_probs),
            lengths=self.config.lengths,
            average=self.config.average,
        )
        ordinary = [is_ordinary(text) for several in texts for text in several]
        watched = {
            "reward": float(np.concatenate(found).mean()),
            "tokens": mask.sum().item() / len(mask),
            "ordinary": sum(ordinary) / len(ordinary),
        }
        return Losses(
            losses={"scst": loss},
            watched={name: torch.tensor(value, device=loss.device) for name, value in watched.items()},
        )

    def _write(self, step: Step, special: Special) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
        """Of each clip, the captions that are learned from, and its greedy one if that is the baseline."""
        config, captioner = self.config, step.captioner
        decoder: Decoder = captioner.decoder  # type: ignore[assignment]  # a module that is a Decoder

        def searched(beams: int) -> list[list[Tokens]]:
            found = beam_search(
                decoder,
                fused,
                special,
                beams=beams,
                max_tokens=config.max_tokens,
                min_tokens=config.min_tokens,
                length_penalty=config.length_penalty,
            )
            return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]

        training = captioner.training
        captioner.eval()
        try:
            with torch.no_grad():
                fused: Fused = captioner.fusion(step.batch)
                if config.samples == "multinomial":
                    written = sample(
                        decoder,
                        fused,
                        special,
                        count=config.count,
                        max_tokens=config.max_tokens,
                        min_tokens=config.min_tokens,
                    )
                else:
                    written = searched(config.count)
                return written, searched(1) if config.baseline == "greedy" else [[] for _ in written]
        finally:
            captioner.train(training)

    def _teach(self, step: Step, written: Sequence[Sequence[Tokens]], special: Special) -> tuple[Tensor, Tensor]:
        """``(M, L)`` each: the tokens' log-probabilities by teacher forcing, and which are real."""
        whole = [[special.begin, *tokens] for several in written for tokens in several]
        tokens = torch.full((len(whole), max(map(len, whole))), special.pad)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, ids in enumerate(whole):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        clips = torch.tensor([row for row, several in enumerate(written) for _ in several])
        tokens, mask, clips = (tensor.to(step.fused.data.device) for tensor in (tokens, mask, clips))
        logits: Tensor = step.captioner.decoder(step.fused.take(clips), tokens[:, :-1], mask[:, :-1])
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return log_probs.gather(2, tokens[:, 1:, None]).squeeze(2), mask[:, 1:]

    def _rewards(self, step: Step, written: Sequence[Sequence[Tokens]]) -> list[npt.NDArray[np.float64]]:
        """Of each clip, one a caption."""
        config = self.config
        candidates = [[self._candidate(tokens) for tokens in several] for several in written]
        sampled = config.references == "sampled"
        if self._frequencies is None:
            references = (
                self._sampled(step) if sampled else [self._captions[clip_id] for clip_id in step.batch.clip_ids]
            )
            return rewards(candidates, references, apart=config.references == "each", swap_roles=config.swap_roles)
        if sampled:
            counted = [References(captions, self._frequencies) for captions in self._sampled(step)]
        else:
            counted = [self._references(clip_id) for clip_id in step.batch.clip_ids]
        return [theirs.score(own) for theirs, own in zip(counted, candidates, strict=True)]

    def _sampled(self, step: Step) -> list[list[str]]:
        """Of each clip, the captions that stand in the batch."""
        assert self._tokenizer is not None
        assert step.batch.tokens is not None
        assert step.batch.token_mask is not None
        assert step.batch.caption_clip is not None
        tokens, lengths = step.batch.tokens.tolist(), step.batch.token_mask.sum(dim=1).tolist()
        of_next = [False] * len(tokens) if step.batch.of_next is None else step.batch.of_next.tolist()
        found: list[list[str]] = [[] for _ in step.batch.clip_ids]
        for ids, length, clip, is_next in zip(tokens, lengths, step.batch.caption_clip.tolist(), of_next, strict=True):
            if not is_next:
                found[clip].append(self._reference(self._tokenizer.decode(ids[1:length])))
        return found

    def _count_references(self, clip_id: str) -> References:
        assert self._frequencies is not None
        return References(self._captions[clip_id], self._frequencies)

    def _reference(self, text: str) -> str:
        return f"{words(text)} {END_WORD}" if self.config.end_word else words(text)

    def _candidate(self, tokens: Tokens) -> str:
        assert self._tokenizer is not None
        text = words(self._tokenizer.decode(tokens))
        ended = self.config.end_word and self._tokenizer.special.end in tokens
        return f"{text} {END_WORD}" if ended else text
