"""Every error that avpipe raises on purpose.

::

    AvpipeError                  the user can act on it: printed without a traceback, exit status 1
     +- UsageError               the command or the configuration is wrong: exit status 2
     |   +- UnknownNameError     no encoder, dataset, fusion ... of that name
     |   +- ConfigError          a configuration file or override is wrong; holds all faults at once
     +- MissingPackageError      an optional package is not installed
     +- MissingWeightsError      model weights are neither here nor to be had
     +- DataError                a manifest, an annotation file or a caption file is wrong
     +- StoreError               a feature set cannot be read or written
     |   +- CorruptShardError    a shard is not what its completion mark says
     |   +- FingerprintError     features of two identities would be mixed
     +- CheckpointError          a checkpoint is incomplete, or does not fit
     +- TrainingError            a training cannot go on (the loss is not finite)
     +- ScoringError             captions cannot be scored (coverage, a metric's child process)
    ClipError                    one clip is bad: becomes one row of outcomes, never stops a run
     +- SkipClip                 the clip has not what the encoder wants (no audio stream, say): no failure

A bad clip is a row; a bug is a crash. Whoever catches :class:`ClipError` does so around one clip.
Messages say what was got, what is allowed and what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class AvpipeError(Exception):
    """The user can act on it. The message is all that is shown."""

    exit_status = 1


class UsageError(AvpipeError):
    """The command line or the configuration is wrong."""

    exit_status = 2


class UnknownNameError(UsageError):
    """A name that is not registered.

    Args:
        kind: what was looked up, in the singular ("encoder").
        name: what was asked for.
        known: every allowed name.
        hint: one more sentence, if there is something to say beyond the list.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(set(known))
        message = f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}"
        super().__init__(f"{message}. {hint}".rstrip() if hint else message)
        self.kind, self.name, self.known, self.hint = kind, name, known, hint

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[Any, ...]]:  # crosses process borders whole
        return type(self), (self.kind, self.name, self.known, self.hint)


class ConfigError(UsageError):
    """A configuration is wrong. All faults are listed at once.

    Args:
        source: the file or command line that the configuration came from.
        faults: one line a fault, each naming its key.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {fault}" for fault in faults))
        self.source, self.faults = source, list(faults)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Any, ...]]:  # crosses process borders whole
        return type(self), (self.source, self.faults)


class MissingPackageError(AvpipeError):
    """An optional package is not installed."""


class MissingWeightsError(AvpipeError):
    """Model weights are neither on this machine nor to be had. The message says how to get them."""


class DataError(AvpipeError):
    """A manifest, an annotation file, a media folder or a caption file is wrong."""


class StoreError(AvpipeError):
    """A feature set cannot be read or written."""


class CorruptShardError(StoreError):
    """A shard is cut short, has a flipped byte, or lacks its mark."""


class FingerprintError(StoreError):
    """Features of two identities would be mixed. The message names the fields that differ."""


class CheckpointError(AvpipeError):
    """A checkpoint is incomplete, damaged, or does not fit the model or the features."""


class TrainingError(AvpipeError):
    """A training cannot go on: its loss is not finite."""


class ScoringError(AvpipeError):
    """Captions cannot be scored: coverage is not complete, or a metric's child process failed."""


class ClipError(Exception):
    """One clip is bad. Becomes an outcome row with status "failed".

    Args:
        kind: a short stable word that ``retry --only`` and the tables use, e.g. ``"open"``, ``"decode"``,
            ``"timeout"``, ``"crashed"``, ``"memory"``, ``"missing_file"``.
        message: what happened, for a person.
    """

    status = "failed"

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:  # crosses process borders whole
        return type(self), (self.kind, self.message)


class SkipClip(ClipError):
    """The clip lacks what an encoder wants (``"no_audio"``, ``"no_video"``). Status "skipped": no failure."""

    status = "skipped"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
