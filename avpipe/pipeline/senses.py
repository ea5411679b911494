"""A captioner whose senses are taken away, or exchanged between clips: does it look, and does it listen?

A captioner that scores the same without a modality did not use it. One that scores the same with the modality of
*another* clip did not use what is in it. :class:`Senses` says what is done, and does it to feature sets: whoever reads
from them notices nothing, and needs no code for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avpipe.pipeline.errors import DataError, UnknownNameError, UsageError
from avpipe.pipeline.features import MODALITIES, Features, FeatureSource, FeatureSpec


class Absent:
    """A feature set of which no clip has anything.

    Args:
        source: the set as it is.
    """

    def __init__(self, source: FeatureSource) -> None:
        self.spec = source.spec

    def __contains__(self, clip_id: object) -> bool:
        return False

    def read(self, clip_id: str, view: int = 0) -> Features:
        """There is nothing to read.

        Raises:
            KeyError: always.
        """
        raise KeyError(clip_id)


class Exchanged:
    """A feature set in which each clip has what another one has, or lacks it where that one does.

    Args:
        source: the set as it is.
        partners: whose features a clip gets, by its id; clips that are not there have nothing.
    """

    def __init__(self, source: FeatureSource, partners: Mapping[str, str]) -> None:
        self.spec, self._source, self._partners = source.spec, source, partners

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._partners and self._partners[str(clip_id)] in self._source

    def read(self, clip_id: str, view: int = 0) -> Features:
        """The features of a clip's partner; errors are those of the set."""
        return self._source.read(self._partners[clip_id], view)


def partners(clip_ids: Sequence[str], seed: int, kind_of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Another clip for each: all stand in a circle, drawn from the seed, and take what the next one has.

    So nobody has his own, and everything is still there once. (Of a kind with one clip: the only one of its kind takes
    what another also gets, and what it had is gone.)

    Args:
        clip_ids: two or more, or none at all.
        seed: of the draw.
        kind_of: of each clip; a circle for each kind. The only one of its kind takes from the first of another.

    Raises:
        DataError: there is one clip alone.
    """
    if len(clip_ids) == 1:
        raise DataError(f"shuffle: only {clip_ids[0]} has features, and nobody to exchange them with")
    found: dict[str, str] = {}
    for kind in sorted({(kind_of or {}).get(clip_id, "") for clip_id in clip_ids}):
        of_kind = [clip_id for clip_id in clip_ids if (kind_of or {}).get(clip_id, "") == kind]
        circle = [of_kind[index] for index in np.random.default_rng(seed).permutation(len(of_kind))]
        if len(circle) == 1:
            circle.append(next(other for other in clip_ids if other != circle[0]))
            found[circle[0]] = circle[1]
        else:
            found |= dict(zip(circle, [*circle[1:], *circle[:1]], strict=True))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Senses:
    """What is done to the senses of a captioner before it captions. By default nothing.

    Attributes:
        dropped: modalities (``"audio"``) or names of feature sets that no clip has.
        shuffled: those that each clip has of another clip; of all together from the same one.
        seed: of the exchange.
    """

    dropped: tuple[str, ...] = ()
    shuffled: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("dropped", "shuffled"):  # the order in which they are named means nothing
            object.__setattr__(self, key, tuple(sorted(set(getattr(self, key)))))

    @property
    def is_whole(self) -> bool:
        """Nothing is done."""
        return not (self.dropped or self.shuffled)

    @property
    def signature(self) -> str:
        """For the signature of a score: ``"-audio"``, ``"shuffled(audio,seed 0)"``; empty if nothing is done."""
        parts = [f"-{name}" for name in self.dropped]
        if self.shuffled:
            parts.append(f"shuffled({','.join(self.shuffled)},seed {self.seed})")
        return ",".join(parts)

    @property
    def label(self) -> str:
        """For people: ``"without audio"``, ``"another clip's audio"``."""
        parts = [f"without {' and '.join(self.dropped)}"] if self.dropped else []
        parts += [f"another clip's {' and '.join(self.shuffled)}"] if self.shuffled else []
        return ", ".join(parts) or "whole"

    def name_of(self, split: str) -> str:
        """What files about a split are called: ``test``, ``test.without-audio``, ``test.shuffled-audio-seed0``."""
        parts = [f"without-{'+'.join(self.dropped)}"] if self.dropped else []
        parts += [f"shuffled-{'+'.join(self.shuffled)}-seed{self.seed}"] if self.shuffled else []
        return ".".join((split, *parts))

    def check(self, specs: Mapping[str, FeatureSpec], whose: str) -> None:
        """Whether this can be done to a captioner.

        Args:
            specs: of the feature sets that it reads, by name.
            whose: ``"run 'tiny'"``, for messages.

        Raises:
            UnknownNameError: it reads no such modality and no such feature set.
            UsageError: one is both dropped and shuffled, or nothing would be left.
        """
        there = _listed(specs)
        for name in (*self.dropped, *self.shuffled):
            if not sets_of(specs, (name,)):
                known = (*specs, *(spec.modality for spec in specs.values()))
                raise UnknownNameError("modality or feature set", name, known, f"{whose} reads {there}.")
        gone, exchanged = sets_of(specs, self.dropped), sets_of(specs, self.shuffled)
        if both := gone & exchanged:
            raise UsageError(
                f"drop and shuffle: {', '.join(sorted(both))} cannot be both taken away and exchanged; choose one"
            )
        if gone == specs.keys():
            raise UsageError(
                f"drop: {whose} reads nothing but {there}; without that nothing is left to caption from. "
                f"--shuffle {self.dropped[0]} gives it what another clip has"
            )

    def notes(self, specs: Mapping[str, FeatureSpec]) -> tuple[str, ...]:
        """What a reader of the scores might overlook: text that was heard is no audio.

        Args:
            specs: of the feature sets that the captioner reads, by name.
        """
        touched = sets_of(specs, (*self.dropped, *self.shuffled))
        text = [name for name, spec in specs.items() if spec.modality == "text" and name not in touched]
        if not (touched and text):
            return ()
        return (
            f"{', '.join(text)} is as it was: what was heard or seen and written down is left, unless text is named",
        )

    def of(
        self,
        sources: Mapping[str, FeatureSource],
        clip_ids: Sequence[str],
        kind_of: Mapping[str, str] | None = None,
    ) -> dict[str, FeatureSource]:
        """The feature sets as a captioner with these senses gets them; those that nothing is done to as they are.

        Args:
            sources: by name.
            clip_ids: all that are captioned: an exchange is among those that have any of what is exchanged.
            kind_of: exchange among clips of a kind; see :func:`partners`.

        Raises:
            DataError: a single clip has any of what is to be exchanged, or none has.
        """
        specs = {name: source.spec for name, source in sources.items()}
        gone, exchanged = sets_of(specs, self.dropped), sets_of(specs, self.shuffled)
        having = [clip_id for clip_id in clip_ids if any(clip_id in sources[name] for name in exchanged)]
        if exchanged and clip_ids and not having:
            raise DataError(
                f"shuffle: none of the {len(clip_ids)} clips has {' or '.join(sorted(exchanged))}; there is nothing to "
                f"exchange, and the captions would be those of --drop {','.join(self.shuffled)}"
            )
        others = partners(having, self.seed, kind_of)
        found: dict[str, FeatureSource] = {}
        for name, source in sources.items():
            if name in gone:
                found[name] = Absent(source)
            else:
                found[name] = Exchanged(source, others) if name in exchanged else source
        return found


WHOLE = Senses()
"""Nothing is done."""


def every_sense(specs: Mapping[str, FeatureSpec], whose: str, seed: int = 0) -> list[Senses]:
    """The captioner as it is; without each of its modalities in turn; with each of them of another clip.

    Args:
        specs: of the feature sets that it reads, by name.
        whose: ``"run 'tiny'"``, for messages.
        seed: of the exchanges.

    Raises:
        UsageError: it has one modality only.
    """
    there = [modality for modality in MODALITIES if any(spec.modality == modality for spec in specs.values())]
    if len(there) < 2:
        raise UsageError(
            f"senses: {whose} reads {_listed(specs)} alone, and cannot do without it. "
            f"Try --shuffle {there[0]}, or a run on two modalities"
        )
    without = [Senses(dropped=(modality,)) for modality in there]
    return [WHOLE, *without, *(Senses(shuffled=(modality,), seed=seed) for modality in there)]


def sets_of(specs: Mapping[str, FeatureSpec], names: Sequence[str]) -> set[str]:
    """The feature sets that are named, or whose modality is."""
    return {name for name, spec in specs.items() if name in names or spec.modality in names}


def _listed(specs: Mapping[str, FeatureSpec]) -> str:
    return ", ".join(f"{name} ({spec.modality})" for name, spec in specs.items())
