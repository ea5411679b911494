"""Captions by beam search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from avpipe.pipeline.captions import Beam, Caption
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.features import FeatureSource
from avpipe.train.batch import Batch, Fused
from avpipe.train.captioner import Captioner, Decoder
from avpipe.train.checkpoint import LoadedCaptioner, check_features
from avpipe.train.config import GenerateConfig, LengthPenaltyForm
from avpipe.train.dataset import ClipDataset
from avpipe.train.tokenizer import Special, Tokenizer


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished caption as tokens, without begin, with the end token where it has one.

    Attributes:
        tokens: ids.
        log_prob: sum over the tokens, in nats; with a repetition penalty, of what it makes of them.
        score: what hypotheses are ranked by: ``log_prob / divisor(len(tokens), length_penalty, form)``.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float


def divisor(length: int, length_penalty: float, form: LengthPenaltyForm = "hf") -> float:
    """What the log-probability of ``length`` tokens, the end counted, is divided by.

    ``hf``: Hugging Face's, ``length ** penalty``. ``gnmt``: ``((5 + length) / 6) ** penalty`` of Wu et al., "Google's
    Neural Machine Translation System" (2016), which GIT and AVCap use (with 0.6; they count the begin and not the end).
    """
    return float((length if form == "hf" else (5 + length) / 6) ** length_penalty)


@dataclass(slots=True)
class _Finished:
    """The best finished hypotheses of one clip."""

    beams: int
    length_penalty: float
    form: LengthPenaltyForm
    kept: list[Hypothesis] = field(default_factory=list)

    def add(self, tokens: Sequence[int], log_prob: float) -> None:
        score = log_prob / divisor(len(tokens), self.length_penalty, self.form)
        self.kept.append(Hypothesis(tuple(tokens), log_prob, score))
        self.kept.sort(key=lambda hypothesis: -hypothesis.score)
        del self.kept[self.beams :]

    def beats(self, log_prob: float, length: int, longest: int) -> bool:
        """Whether nothing that begins with ``length`` tokens of ``log_prob`` can still enter.

        A log-probability only falls, a penalised one too. With a positive penalty a longer caption may divide it by
        more, so the best that can come is at the greatest length; else at the next. Greedy decoding takes the first end
        that it comes to.
        """
        if len(self.kept) < self.beams:
            return False
        if self.beams == 1:
            return True
        best_length = longest if self.length_penalty > 0 else min(length + 1, longest)
        bound = log_prob / divisor(best_length, self.length_penalty, self.form)
        return bool(self.kept[-1].score >= bound)


def penalise(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Make words less likely that were said before: Hugging Face's form of the penalty of Keskar et al., "CTRL" (2019).

    Args:
        scores: ``(R, V)``: logits, or log-probabilities.
        said: ``(R, L)``, int64: the captions so far. How often a word was said does not matter.
        penalty: what a score below 0 is multiplied by, and one above is divided by. Below 1 repetition is rewarded.

    Returns:
        ``(R, V)``. Log-probabilities no longer sum to one.
    """
    found = scores.gather(1, said)
    return scores.scatter(1, said, torch.where(found < 0, found * penalty, found / penalty))


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    fused: Fused,
    special: Special,
    *,
    beams: int,
    max_tokens: int,
    min_tokens: int = 0,
    length_penalty: float = 1.0,
    length_penalty_form: LengthPenaltyForm = "hf",
    repetition_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The best captions of each clip.

    In every step the ``2 * beams`` best continuations of a clip are looked at: those that end are finished if they are
    among the first ``beams`` (as in Hugging Face's search), the first ``beams`` of the others go on. A clip is done
    when no unfinished hypothesis can still beat the finished ones, so the result is that of a search to the end.
    ``beams=1`` is greedy decoding.

    Args:
        decoder: one token at a time.
        fused: of B clips.
        special: ids of padding, begin and end.
        beams: hypotheses that are followed.
        max_tokens: longest caption, the end token counted; what is unfinished then counts as it stands.
        min_tokens: shortest caption, the end token not counted.
        length_penalty: 0 ranks by log-probability; above, longer captions fare better.
        length_penalty_form: see :func:`divisor`. With ``hf``, a penalty of 1 ranks by the mean over the tokens.
        repetition_penalty: see :func:`penalise`; 1: none. As in Hugging Face's search, the begin counts as said, and
            what is penalised are log-probabilities; in greedy decoding they are logits.

    Returns:
        For each clip, its hypotheses, best first; at least one.
    """
    size = fused.data.shape[0]
    device = fused.data.device
    # Each clip is read once for all its beams.
    state = decoder.start(fused).take(torch.arange(size, device=device).repeat_interleave(beams))
    # All beams of a clip begin alike: only the first may be continued at the start.
    log_probs = torch.full((size, beams), -torch.inf, device=device)
    log_probs[:, 0] = 0.0
    tokens = torch.empty(size, beams, 0, dtype=torch.int64, device=device)
    last = torch.full((size * beams,), special.begin, device=device)
    begin = last[:, None]
    finished = [_Finished(beams, length_penalty, length_penalty_form) for _ in range(size)]
    done = [False] * size
    longest = min(max_tokens, decoder.max_tokens - 1)
    for length in range(longest):
        logits, state = decoder.step(last, state)
        scores = logits.float() if beams == 1 else logits.float().log_softmax(-1)
        if repetition_penalty != 1:
            scores = penalise(scores, torch.cat([begin, tokens.flatten(0, 1)], dim=1), repetition_penalty)
        next_log_probs = scores.log_softmax(-1) if beams == 1 else scores
        next_log_probs[:, [*special.unsaid, *([special.end] if length < min_tokens else [])]] = -torch.inf
        vocabulary = next_log_probs.shape[-1]
        candidates = (log_probs[..., None] + next_log_probs.view(size, beams, vocabulary)).flatten(1)
        top_log_probs, top = candidates.topk(min(2 * beams, candidates.shape[1]))  # (B, 2 * beams)
        parents, words = top // vocabulary, top % vocabulary
        ends = words == special.end
        for clip, rank in (ends & (top_log_probs > -torch.inf)).nonzero().tolist():
            if rank < beams and not done[clip]:
                said = tokens[clip, parents[clip, rank]].tolist()
                finished[clip].add([*said, special.end], top_log_probs[clip, rank].item())
        # Those that go on, in the order of their scores; sorting by a flag is stable.
        keep = ends.int().sort(dim=1, stable=True).indices[:, :beams]
        log_probs = top_log_probs.gather(1, keep).masked_fill(ends.gather(1, keep), -torch.inf)
        parents, words = parents.gather(1, keep), words.gather(1, keep)
        tokens = torch.cat([tokens.gather(1, parents[..., None].expand(-1, -1, length)), words[..., None]], dim=-1)
        rows = (torch.arange(size, device=device)[:, None] * beams + parents).flatten()
        state, last = state.reorder(rows), words.flatten()
        best = log_probs.amax(dim=1).tolist()
        done = [
            already or best[clip] == -torch.inf or finished[clip].beats(best[clip], length + 1, longest)
            for clip, already in enumerate(done)
        ]
        if all(done):
            break
    for clip, already in enumerate(done):
        for beam in range(beams):
            log_prob = log_probs[clip, beam].item()
            if not already and log_prob > -torch.inf:
                finished[clip].add(tokens[clip, beam].tolist(), log_prob)
    return [clip.kept for clip in finished]


def caption_batch(captioner: Captioner, batch: Batch, tokenizer: Tokenizer, config: GenerateConfig) -> list[Caption]:
    """Caption the clips of one batch, which lies on the captioner's device. The captioner should be in eval mode."""
    with torch.inference_mode():
        fused: Fused = captioner.fusion(batch)
    found = beam_search(
        captioner.decoder,  # type: ignore[arg-type]  # a module that is a Decoder
        fused,
        tokenizer.special,
        beams=config.beams,
        max_tokens=config.max_tokens,
        min_tokens=config.min_tokens,
        length_penalty=config.length_penalty,
        length_penalty_form=config.length_penalty_form,
        repetition_penalty=config.repetition_penalty,
    )
    captions = []
    for clip_id, hypotheses in zip(batch.clip_ids, found, strict=True):
        # Rounding may lift the probability of a certain caption a hair above one.
        beams = tuple(Beam(text=tokenizer.decode(h.tokens), log_prob=min(h.log_prob, 0.0)) for h in hypotheses)
        captions.append(Caption(clip_id=clip_id, text=beams[0].text, log_prob=beams[0].log_prob, beams=beams))
    return captions


def caption_all(
    captioner: Captioner,
    dataset: ClipDataset,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    device: torch.device | str = "cpu",
) -> Iterator[Caption]:
    """Caption every clip of a dataset, in its order. A clip of which nothing is present gets a caption too."""
    training = captioner.training
    captioner.eval()
    try:
        for start in range(0, len(dataset.clips), config.batch_size):
            indices = range(start, min(start + config.batch_size, len(dataset.clips)))
            batch = dataset.batch([(index, ()) for index in indices])
            yield from caption_batch(captioner, batch.to(device), tokenizer, config)
    finally:
        captioner.train(training)


def caption_clips(
    loaded: LoadedCaptioner,
    clips: Sequence[Clip],
    sources: Mapping[str, FeatureSource],
    *,
    device: str = "cpu",
) -> list[Caption]:
    """Caption clips with a captioner from a checkpoint.

    Raises:
        FingerprintError: the features are not those that it was trained on.
    """
    there = {name: source.spec for name, source in sources.items()}
    check_features(loaded.specs, there, f"checkpoint {loaded.name!r}")
    dataset = ClipDataset(clips, {name: sources[name] for name in loaded.specs})
    captioner = loaded.captioner.to(device)
    found = caption_all(captioner, dataset, loaded.tokenizer, loaded.config.generate, device)
    return [replace(caption, checkpoint=loaded.name) for caption in found]
