"""From feature sets and captions to batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.features import FeatureSource
from avpipe.train.batch import Batch
from avpipe.train.held import HeldFeatures, OnDisk
from avpipe.train.tokenizer import Tokenizer

CACHED_SHARE = 0.25
"""Of the free memory: what ``cache_features: auto`` may take."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Features of one clip as tensors: ``(T, dim)`` and ``(T,)``."""

    data: Tensor
    pts_seconds: Tensor


class ClipDataset:
    """Clips with their features, and their captions as tokens.

    Args:
        clips: which.
        sources: by feature-set name.
        tokenizer: encodes the captions; ``None``: features alone.
        max_tokens: longer captions are cut, keeping their end token.
        cache: hold the features in memory, as they are on disk.
        following: for clips by id, the captions of the clip that follows, which are targets, too.

    Attributes:
        captions: of each clip, its captions as tokens, and behind them those of the clip that follows.
        own: how many of them are its own.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sources: Mapping[str, FeatureSource],
        *,
        tokenizer: Tokenizer | None = None,
        max_tokens: int = 128,
        cache: bool = False,
        following: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.clips = list(clips)
        self.sources = dict(sources)
        self.special = tokenizer.special if tokenizer else None
        self.captions: list[list[list[int]]] = []
        self.own = [len(clip.captions) for clip in self.clips]
        if tokenizer:
            of_next = following or {}
            self.captions = [_encode(clip, tokenizer, max_tokens, of_next.get(clip.clip_id, ())) for clip in self.clips]
        self._has_next = following is not None
        self._views = {name: source.spec.views for name, source in self.sources.items()}
        self._cached: dict[tuple[int, str, int], _Rows | None] = {}
        if cache:
            self._cached = {
                (index, name, view): self._read(index, name, view)
                for name, views in self._views.items()
                if not isinstance(self.sources[name], OnDisk)
                for index in range(len(self.clips))
                for view in range(views if tokenizer else 1)  # without captions nobody trains, and nobody draws
            }

    def batch(self, items: Sequence[tuple[int, Sequence[int]]], draw: tuple[int, ...] | None = None) -> Batch:
        """Collate.

        Args:
            items: indices of clips, each with the indices of the captions to take.
            draw: where feature sets hold several views of a clip, seed of the draw among them, by item; ``None``: the
                plain views.
        """
        clips = [self.clips[index] for index, _ in items]
        views = [self._draw(index, captions, draw) for index, captions in items]
        rows = [
            {name: self._rows(index, name, chosen[name]) for name in self.sources}
            for (index, _), chosen in zip(items, views, strict=True)
        ]
        features, mask, pts_seconds, present = {}, {}, {}, {}
        for name, source in self.sources.items():
            found = [row[name] for row in rows]
            features[name], mask[name], pts_seconds[name] = _pad(found, source.spec.dim)
            present[name] = torch.tensor([row is not None for row in found])
        tokens = token_mask = caption_clip = of_next = None
        if self.special:
            chosen = [self.captions[index][caption] for index, captions in items for caption in captions]
            tokens = torch.full((len(chosen), max(map(len, chosen))), self.special.pad)
            token_mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, ids in enumerate(chosen):
                tokens[row, : len(ids)] = torch.tensor(ids)
                token_mask[row, : len(ids)] = True
            caption_clip = torch.tensor([row for row, (_, captions) in enumerate(items) for _ in captions])
            if self._has_next:
                of_next = torch.tensor([c >= self.own[index] for index, captions in items for c in captions])
        return Batch(
            clip_ids=tuple(clip.clip_id for clip in clips),
            features=features,
            mask=mask,
            pts_seconds=pts_seconds,
            present=present,
            tokens=tokens,
            token_mask=token_mask,
            caption_clip=caption_clip,
            of_next=of_next,
        )

    def _draw(self, index: int, captions: Sequence[int], draw: tuple[int, ...] | None) -> dict[str, int]:
        """Which view of each feature set: where every caption is an item, another one for each."""
        if draw is None or max(self._views.values(), default=1) == 1:
            return dict.fromkeys(self._views, 0)
        random = np.random.default_rng((*draw, index, *captions))
        return {name: int(random.integers(views)) for name, views in self._views.items()}

    def _rows(self, index: int, name: str, view: int) -> _Rows | None:
        key = (index, name, view)
        return self._cached[key] if key in self._cached else self._read(*key)

    def _read(self, index: int, name: str, view: int) -> _Rows | None:
        clip_id, source = self.clips[index].clip_id, self.sources[name]
        if clip_id not in source:
            return None
        features = source.read(clip_id, view)
        # Copied: what is read may be a view of a file that is mapped into memory. What is held there on purpose is not.
        data = features.data if isinstance(source, HeldFeatures) else np.array(features.data)
        pts = features.pts_seconds.astype(np.float32)
        return _Rows(torch.from_numpy(data), torch.from_numpy(pts))


def _encode(clip: Clip, tokenizer: Tokenizer, max_tokens: int, of_next: Sequence[str]) -> list[list[int]]:
    whole = [tokenizer.encode(caption) for caption in clip.captions]
    whole += [tokenizer.encode(caption, of_next=True) for caption in of_next]
    return [ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]] for ids in whole]


def learnable(clips: Sequence[Clip], sources: Collection[FeatureSource]) -> list[Clip]:
    """The clips that have both a caption and a feature in one of the sets."""
    return [clip for clip in clips if clip.captions and any(clip.clip_id in source for source in sources)]


def captions_of_next(clips: Sequence[Clip]) -> dict[str, tuple[str, ...]]:
    """For clips whose ``extra["next_clip"]`` is among them: the captions of that one.

    Raises:
        DataError: there are none.
    """
    of_clip = {clip.clip_id: clip.captions for clip in clips}
    named = {clip.clip_id: clip.extra["next_clip"] for clip in clips if "next_clip" in clip.extra}
    found = {clip_id: of_clip[other] for clip_id, other in named.items() if of_clip.get(other)}
    if not found:
        raise DataError(
            f"train.targets has next, but of {len(clips)} training clips none is followed by another: "
            f"{len(named)} name one in extra['next_clip']. howto100m's manifest has such; else leave next out"
        )
    return found


def _pad(rows: Sequence[_Rows | None], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, T, dim)`` float32, ``(B, T)`` bool, ``(B, T)`` float32; an absent clip is padding alone."""
    length = max((len(row.data) for row in rows if row), default=1)
    data = torch.zeros(len(rows), length, dim)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    pts_seconds = torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        if row:
            data[index, : len(row.data)] = row.data
            mask[index, : len(row.data)] = True
            pts_seconds[index, : len(row.data)] = row.pts_seconds
    return data, mask, pts_seconds


Items = list[tuple[int, tuple[int, ...]]]


def epoch_items(
    dataset: ClipDataset, *, seed: int, epoch: int, batch_size: int, captions_per_clip: int | str
) -> list[Items]:
    """All batches of one epoch, drawn by seed and epoch alone: a resumed run needs no replay to know the rest.

    The last, smaller batch is kept.

    Args:
        dataset: clips with captions.
        seed: of the run.
        epoch: from 0.
        batch_size: items a batch.
        captions_per_clip: ``"all"`` or a number: an item is a clip with all, or so many, of its captions, and as many
            of the clip's that follows; ``"each"``: an item is a clip with one caption, and every caption has its item.
    """
    # A generator of its own, seeded by both: epoch 1 of seed 0 is not epoch 0 of seed 1.
    random = np.random.default_rng((seed, epoch))
    items: Items = []
    for index, captions in enumerate(dataset.captions):
        own = dataset.own[index]
        if captions_per_clip == "each":
            items += [(index, (caption,)) for caption in range(len(captions))]
            continue
        drawn: list[int] = []
        for start, count in ((0, own), (own, len(captions) - own)):
            if captions_per_clip == "all" or int(captions_per_clip) >= count:
                drawn += range(start, start + count)
            else:
                drawn += (start + random.choice(count, int(captions_per_clip), replace=False)).tolist()
        items.append((index, tuple(drawn)))
    shuffled = [items[index] for index in random.permutation(len(items))]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


def loader(
    dataset: ClipDataset, batches: Sequence[Items], num_workers: int, draw: tuple[int, ...] | None = None
) -> Iterator[Batch]:
    """The given batches, read ahead: by ``num_workers`` processes, or one by a thread. ``draw``: see
    :meth:`ClipDataset.batch`.
    """
    if num_workers == 0:
        return _one_ahead(dataset, batches, draw)
    return iter(
        DataLoader(
            _Batches(dataset, batches, draw),
            batch_size=None,
            num_workers=num_workers,
            # Loading draws no random number, and must not take any from the training's own stream.
            generator=torch.Generator().manual_seed(0),
        )
    )


def _one_ahead(dataset: ClipDataset, batches: Sequence[Items], draw: tuple[int, ...] | None) -> Iterator[Batch]:
    """While a batch is trained on, a thread reads the next one."""
    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as thread:
        coming = None
        for items in batches:
            former, coming = coming, thread.submit(dataset.batch, items, draw)
            if former:
                yield former.result()
        if coming:
            yield coming.result()


class _Batches(torch.utils.data.Dataset[Batch]):
    def __init__(self, dataset: ClipDataset, batches: Sequence[Items], draw: tuple[int, ...] | None) -> None:
        self.dataset, self.batches, self.draw = dataset, batches, draw

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.dataset.batch(self.batches[index], self.draw)


def fits_in_memory(clips: Sequence[Clip], sources: Mapping[str, FeatureSource], share: float = CACHED_SHARE) -> bool:
    """Whether the features of all clips, by the look of the first ones, take at most a quarter of the free memory, or
    another share of it. What is held already takes none, and what must stay on disk takes none either.
    """
    size = 0.0
    for source in sources.values():
        if isinstance(source, HeldFeatures | OnDisk):
            continue
        sample = [clip.clip_id for clip in clips[:256] if clip.clip_id in source][:8]
        if sample:
            bytes_a_view = float(np.mean([source.read(clip_id).data.nbytes for clip_id in sample]))
            size += bytes_a_view * source.spec.views * len(clips)
    return size <= share * psutil.virtual_memory().available
