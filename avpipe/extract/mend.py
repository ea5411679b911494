"""Which failed clips would go well today: what ``retry`` asks before it does their shards again.

A shard is done again as a whole: batches are cut over its clips, and a network may give other last bits in another
batch, so that a shard that was mended clip by clip would not be the shard of an unbroken run. But failures are
scattered: with one clip in a hundred, nine of ten shards of 256 have one, and most of those clips fail again. So they
are decoded first, they alone, and only the shards in which something changed are done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass

from avpipe.data_manifests.manifest import Manifest
from avpipe.extract.decoding import DecodeJob, DecodeWork
from avpipe.extract.fetch import Fetcher
from avpipe.extract.worker import Setting
from avpipe.pipeline import shards
from avpipe.pipeline.errors import ClipError, UnknownNameError
from avpipe.pipeline.sandbox import DecodePool
from avpipe.pipeline.shards import Mark

OnProgress = Callable[[int, int], None]
"""Told how many clips are tried, and of how many."""

ENCODED_KINDS = ("not_finite",)
"""Failures that decoding cannot tell: they come from the network."""


@dataclass(frozen=True, slots=True)
class Mended:
    """Says of a finished shard whether it is worth doing again.

    Attributes:
        clips: the clips that no longer fail, each with the fingerprint of the features that it lacked.
        failing: how many still fail, by kind; a clip counts once for each feature set that lacks it.
    """

    clips: Collection[tuple[str, str]]
    failing: Mapping[str, int]

    def __call__(self, mark: Mark) -> bool:
        """Whether one of its clips no longer fails."""
        return any((mark.fingerprint, outcome.clip_id) in self.clips for outcome in mark.outcomes)


def mended(
    manifest: Manifest, setting: Setting, only: str | None = None, on_progress: OnProgress | None = None
) -> Mended:
    """Try the failed clips of some feature sets: decode them, and do what each encoder does before its network.

    Failures that this cannot tell (the network gave NaN; the text that an encoder reads was not there) count as mended.

    Args:
        manifest: the clips.
        setting: the encoders that once made those feature sets.
        only: failures of one kind; default: all.
        on_progress: told how far it is.

    Raises:
        UnknownNameError: no clip failed that way.
        StoreError: the manifest changed.
    """
    plans = shards.plan([clip.clip_id for clip in manifest.clips], manifest.clips_per_shard)
    for name, folder in setting.folders.items():
        shards.pending(folder, plans, setting.encoders[name].spec.fingerprint)
    failures = _failures(setting)
    kinds = {kind for found in failures.values() for kind in found.values()}
    if only is not None and only not in kinds:
        raise UnknownNameError("kind of failure", only, kinds)
    chosen = {
        (name, clip_id): kind
        for name, found in failures.items()
        for clip_id, kind in found.items()
        if only is None or kind == only
    }
    untold = {key for key, kind in chosen.items() if kind in ENCODED_KINDS or key[0] in setting.readers}
    today = _try(manifest, setting, {clip_id for _, clip_id in chosen.keys() - untold}, on_progress)
    well = {key for key in chosen.keys() - untold if today[key] is None}
    return Mended(
        clips={(setting.encoders[name].spec.fingerprint, clip_id) for name, clip_id in well | untold},
        failing=Counter(kind for key in chosen.keys() - untold - well if (kind := today[key]) is not None),
    )


def _failures(setting: Setting) -> dict[str, dict[str, str]]:
    """For each feature set, the failed clips and why."""
    return {
        name: {
            row.clip_id: row.error_type
            for mark in shards.marks(folder)
            for row in mark.outcomes
            if row.status == "failed"
        }
        for name, folder in setting.folders.items()
    }


def _try(
    manifest: Manifest, setting: Setting, clip_ids: Collection[str], on_progress: OnProgress | None
) -> dict[tuple[str, str], str | None]:
    """For each feature set and clip, how the clip fails today; ``None`` if it does not."""
    clips = [clip for clip in manifest.clips if clip.clip_id in clip_ids]
    encoders = {name: encoder for name, encoder in setting.encoders.items() if name not in setting.readers}
    today: dict[tuple[str, str], str | None] = {}
    if not clips:
        return today
    jobs = [DecodeJob.of(clip, setting.media_root) for clip in clips]
    with (
        closing(Fetcher()) as fetcher,
        DecodePool(DecodeWork(encoders, setting.limits), setting.decoders, setting.limits, bring=fetcher.here) as pool,
    ):
        for done, (clip, result) in enumerate(zip(clips, pool.map(jobs), strict=True), start=1):
            for name in encoders:
                found = result if isinstance(result, ClipError) else result.prepared[name]
                fails = isinstance(found, ClipError) and found.status == "failed"
                today[name, clip.clip_id] = found.kind if isinstance(found, ClipError) and fails else None
            if on_progress:
                on_progress(done, len(clips))
    return today
