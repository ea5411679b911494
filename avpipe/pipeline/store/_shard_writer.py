"""One shard of one feature set, from the first clip to the completion mark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.features import Encoded, FeatureSpec, Outcome, Segments
from avpipe.pipeline.files import storage_errors, sweep
from avpipe.pipeline.shards import Mark, ShardPlan
from avpipe.pipeline.store._formats import open_writer, suffix_of, suffixes
from avpipe.pipeline.store._text import TextWriter


class ShardWriter:
    """Writes one shard with its completion mark; every planned clip gets one outcome row.

    ::

        with ShardWriter(folder, plan, spec, "hdf5") as shard:
            shard.add("clip_a", features)
            shard.fail("clip_b", ClipError("decode", "moov atom not found"))
        shard.mark.counts   # {"ok": 1, "failed": 1, "skipped": 0}

    Clips may come in any order; file and mark have them as planned. If the block raises, or the process is killed,
    whatever stood there before still stands.

    Args:
        folder: of the feature set.
        plan: the clips.
        spec: of the features.
        format: ``"hdf5"`` or ``"webdataset"``.
        arithmetic: what the network runs in, for the mark.

    Raises:
        StoreError: the disk is full, the folder cannot be written, ...
        UnknownNameError: no such format.
    """

    mark: Mark
    """Once it is committed."""

    def __init__(
        self, folder: Path, plan: ShardPlan, spec: FeatureSpec, format: str = "hdf5", *, arithmetic: str = ""
    ) -> None:
        self.folder, self.plan, self.spec, self.format, self.arithmetic = folder, plan, spec, format, arithmetic
        self._path = folder / f"{plan.name}{suffix_of(format, spec)}"
        self._planned = frozenset(plan.clip_ids)
        self._outcomes: dict[str, Outcome] = {}
        for path in self._files():
            sweep(path)
        self._writer = open_writer(format, self._path, spec, plan.clip_ids)

    def add(self, clip_id: str, features: Encoded, *, notes: Sequence[str] = (), seconds: float = 0.0) -> Outcome:
        """Take a clip's features. Those that cannot be stored make it a failed clip.

        Returns:
            Its outcome: ``ok``, or ``failed`` with ``"not_finite"``.

        Raises:
            TypeError, ValueError: a bug of the caller: not planned, or known already; kind or width are not the spec's.
            StoreError: the disk is full, ...
        """
        self._expect(clip_id)
        try:
            self._put(clip_id, features)
        except ClipError as error:
            return self.fail(clip_id, error, notes=notes, seconds=seconds)
        return self._note(Outcome(clip_id=clip_id, status="ok", notes=tuple(notes), seconds=round(seconds, 3)))

    def fail(self, clip_id: str, error: ClipError, *, notes: Sequence[str] = (), seconds: float = 0.0) -> Outcome:
        """Take note of a clip that has no features: failed, or skipped if ``error`` is a ``SkipClip``.

        Raises:
            ValueError: a bug of the caller: not planned, or known already.
        """
        return self._note(
            Outcome(
                clip_id=clip_id,
                status=error.status,
                error_type=error.kind,
                error_message=error.message,
                notes=tuple(notes),
                seconds=round(seconds, 3),
            )
        )

    def commit(self) -> None:
        """Write the shard, and its mark last. The ``with`` block does it when it ends well.

        Raises:
            ValueError: a bug of the caller: a planned clip has no outcome.
            StoreError: the disk is full, ...
        """
        missing = [clip_id for clip_id in self.plan.clip_ids if clip_id not in self._outcomes]
        if missing:
            raise ValueError(
                f"shard {self.plan.name} of {self.folder}: {len(missing)} clips have no outcome, first {missing[0]!r}"
            )
        size, digest = self._writer.commit(former_mark=self.folder / f"{self.plan.name}.json")
        self.mark = Mark(
            file=self._path.name,
            bytes=size,
            sha256=digest,
            fingerprint=self.spec.fingerprint,
            outcomes=tuple(self._outcomes[clip_id] for clip_id in self.plan.clip_ids),
            arithmetic=self.arithmetic,
        )
        self.mark.write(self.folder)
        for path in self._files():  # the same shard in another format
            if path.name not in (self.mark.file, self.mark.path_name):
                with storage_errors(path, "remove"):
                    path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Forget the shard; what stood there before still stands. Does nothing after commit."""
        self._writer.abandon()

    def _put(self, clip_id: str, encoded: Encoded) -> None:
        if isinstance(self._writer, TextWriter) != isinstance(encoded, Segments):
            raise TypeError(f"{self.spec.name!r} holds {self.spec.dtype}, got {type(encoded).__name__} of {clip_id!r}")
        self._writer.add(clip_id, encoded)  # type: ignore[arg-type]  # the line before made sure

    def _expect(self, clip_id: str) -> None:
        if clip_id not in self._planned or clip_id in self._outcomes:
            state = "has an outcome already" if clip_id in self._outcomes else "is not planned"
            raise ValueError(f"clip {clip_id!r} {state} in shard {self.plan.name} of {self.folder}")

    def _note(self, outcome: Outcome) -> Outcome:
        self._expect(outcome.clip_id)
        self._outcomes[outcome.clip_id] = outcome
        return outcome

    def _files(self) -> list[Path]:
        """Everything that this shard can consist of: one file in either format, and the mark."""
        return [self.folder / f"{self.plan.name}{suffix}" for suffix in (*suffixes(), ".json")]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.abandon()
