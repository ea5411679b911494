"""How a manifest is cut into shards, and how one knows that a shard is whole.

A feature set is a folder::

    spec.json     what the features are: a FeatureSpec and its fingerprint
    00000.h5      a shard: the features of some clips (or 00000.tar; 00000.jsonl where the features are text)
    00000.json    its completion mark, written last: counts, size and sha256 of the shard, one outcome row a clip

A shard counts only with its mark. Whatever else lies in the folder was left by a run that was killed, and is written
again by the next. Every planned clip has a row in the mark; a shard whose clips all failed is an empty shard file
with a mark like any other, so that readers, checks and streams need no exception.

Two runs over the same clips write the same bytes, marks included, but for the ``seconds`` in the outcome rows (and the
mark's checksum, which covers them).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avpipe.pipeline.errors import CorruptShardError, DataError, FingerprintError, StoreError
from avpipe.pipeline.features import STATUSES, FeatureSpec, Outcome
from avpipe.pipeline.files import bytes_text, each, leftovers, listed, sha256, storage_errors, write_json
from avpipe.pipeline.remote import is_remote

SPEC_FILE = "spec.json"
_MARK_NAME = re.compile(r"\d{5,}\.json")
_SHARD_NAME = re.compile(r"\d{5,}\.(h5|tar|jsonl)")


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which clips one shard holds, in order. The same for every feature set of a dataset.

    Attributes:
        index: of the shard, from 0.
        clip_ids: in manifest order.
    """

    index: int
    clip_ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """The shard's name without suffix: ``"00000"``."""
        return f"{self.index:05d}"

    @property
    def clip_ids_sha256(self) -> str:
        """Tells this plan from one made of another manifest."""
        return _ids_sha256(self.clip_ids)


def plan(clip_ids: Sequence[str], clips_per_shard: int) -> list[ShardPlan]:
    """Cut a manifest into shards of ``clips_per_shard`` clips each, the last one shorter.

    Raises:
        ValueError: ``clips_per_shard`` is below 1.
        DataError: a clip id occurs twice.
    """
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard: expected at least 1, got {clips_per_shard}")
    doubles = [clip_id for clip_id, count in Counter(clip_ids).items() if count > 1]
    if doubles:
        raise DataError(f"clip ids must be unique, got {doubles[0]!r} more than once ({len(doubles)} such ids)")
    starts = range(0, len(clip_ids), clips_per_shard)
    return [ShardPlan(i, tuple(clip_ids[start : start + clips_per_shard])) for i, start in enumerate(starts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The completion mark of a shard.

    Attributes:
        file: name of the shard file beside the mark.
        bytes: its size.
        sha256: of its bytes, in hex.
        fingerprint: of the features in it.
        outcomes: one row for every planned clip, in planned order.
        arithmetic: what the network ran in, which depends on the device: ``"bfloat16"``, ``"float32"``; "" if there is
            no network, or nobody said.

    Raises:
        ValueError: a field is not as described.
    """

    file: str
    bytes: int
    sha256: str
    fingerprint: str
    outcomes: tuple[Outcome, ...]
    arithmetic: str = ""

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.file):
            raise ValueError(f"file: expected the name of a shard, for example '00000.h5', got {self.file!r}")
        if self.bytes < 0:
            raise ValueError(f"bytes of {self.file}: expected a size, got {self.bytes}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 of {self.file}: expected 64 hex digits, got {self.sha256!r}")

    @property
    def path_name(self) -> str:
        """Name of the mark's own file."""
        return f"{Path(self.file).stem}.json"

    @property
    def clip_ids_sha256(self) -> str:
        """Tells which plan this shard was made for."""
        return _ids_sha256(outcome.clip_id for outcome in self.outcomes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of clips by status: ``{"ok": 250, "failed": 4, "skipped": 2}``."""
        found = Counter(outcome.status for outcome in self.outcomes)
        return {status: found[status] for status in STATUSES}

    def write(self, folder: Path) -> None:
        """Write the mark. The shard file must be in place.

        Raises:
            StoreError: it cannot be written.
        """
        values: dict[str, Any] = {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "fingerprint": self.fingerprint,
            "clip_ids_sha256": self.clip_ids_sha256,
            "counts": self.counts,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            **({"arithmetic": self.arithmetic} if self.arithmetic else {}),
        }
        write_json(folder / self.path_name, {**values, "checksum": _checksum(values)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a mark and check that it is what was written.

        Raises:
            CorruptShardError: it is no mark, or was damaged.
            StoreError: it cannot be read.
        """
        with storage_errors(path, "read"):
            content = path.read_bytes()
        try:
            values = json.loads(content)
            checksum = values.pop("checksum")
            mark = cls(
                **{key: values[key] for key in ("file", "bytes", "sha256", "fingerprint")},
                outcomes=tuple(Outcome.from_json(row) for row in values["outcomes"]),
                arithmetic=str(values.get("arithmetic", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptShardError(f"{path}: not a completion mark ({error}). {_REDO}") from None
        if checksum != _checksum(values) or mark.path_name != path.name:
            raise CorruptShardError(f"{path}: the completion mark was damaged or renamed. {_REDO}")
        return mark


def marks(folder: Path) -> list[Mark]:
    """The marks of all finished shards, in order.

    Raises:
        CorruptShardError: a mark is damaged.
        StoreError: a mark cannot be read.
    """
    return each(Mark.read, _numbered(folder, _MARK_NAME))


def whole_marks(folder: Path) -> dict[str, Mark]:
    """The undamaged marks by the names of their shards, in order. Unlike :func:`marks`, passes over damaged ones.

    Raises:
        StoreError: a mark cannot be read.
    """
    there = _numbered(folder, _MARK_NAME)
    found = dict(zip((path.stem for path in there), each(_whole_mark, there), strict=True))
    return {name: mark for name, mark in found.items() if mark}


def mixture(found: Sequence[Mark]) -> str:
    """What shards were computed in, if not all in the same: ``"3 in bfloat16, 1 in float32"``; else ""."""
    counts = Counter(mark.arithmetic for mark in found if mark.arithmetic)
    return ", ".join(f"{counts[kind]} in {kind}" for kind in sorted(counts)) if len(counts) > 1 else ""


def is_done(folder: Path, plan: ShardPlan, fingerprint: str) -> bool:
    """Whether a shard needs no more work: its mark is whole, made for this plan and fingerprint, and fits its file.

    Cheap: looks at the size of the shard file, and reads its bytes only if the file changed after its mark was
    written, as ``make`` would. So a shard that somebody cut or edited is found without reading the others;
    :func:`verify` finds what a failing disk did. (Object stores tell time in whole seconds: there, a shard that was
    replaced within the second in which its mark was written is found by :func:`verify` alone.)

    Raises:
        StoreError: the mark or the shard cannot be read for another reason than not being there.
    """
    mark = _whole_mark(folder / f"{plan.name}.json")
    return mark is not None and _fits(folder, mark, plan, fingerprint)


def pending(folder: Path, plans: Sequence[ShardPlan], fingerprint: str) -> list[ShardPlan]:
    """The shards that remain to be written; see :func:`is_done`.

    Raises:
        StoreError: the folder holds shards of another manifest, or of the same one cut differently.
    """
    found = whole_marks(folder)
    by_name = {plan.name: plan for plan in plans}
    for name, mark in found.items():
        planned = by_name.get(name)
        if planned is None or planned.clip_ids_sha256 != mark.clip_ids_sha256:
            expected = f"{len(planned.clip_ids)} clips" if planned else "no such shard"
            raise StoreError(
                f"{folder / mark.file} was made for other clips ({len(mark.outcomes)}; the manifest now has {expected} "
                f"there): the manifest changed. Write the features under another name (in a recipe of your own), or "
                f"delete {folder}"
            )

    shards = {folder / mark.file: name for name, mark in found.items()}
    fits = each(lambda shard: _fits(folder, found[shards[shard]], by_name[shards[shard]], fingerprint), list(shards))
    whole = {name for name, is_whole in zip(found, fits, strict=True) if is_whole}
    return [plan for plan in plans if plan.name not in whole]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a feature set.

    Attributes:
        file: its name in the folder.
        reason: what is wrong, for a person.
    """

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def verify(folder: Path, *, deep: bool = True) -> list[Problem]:
    """Every file of a feature set that is not what its mark says; empty if all is well. Changes nothing.

    :mod:`avpipe.pipeline.check` also compares with the manifest, and looks at the numbers.

    Args:
        folder: of the feature set.
        deep: read every shard and compare its sha256; else compare sizes only.

    Raises:
        StoreError: a file cannot be read.
    """
    problems = [Problem(path.name, "left by a run that was killed") for path in leftovers(folder)]
    fingerprint = None
    try:
        fingerprint = read_spec(folder).fingerprint
    except CorruptShardError as error:
        problems.append(Problem(SPEC_FILE, str(error)))
    marked: set[str] = set()
    for path in _numbered(folder, _MARK_NAME):
        try:
            mark = Mark.read(path)
        except CorruptShardError as error:
            problems.append(Problem(path.name, str(error)))
            continue
        marked.add(mark.file)
        fault = _fault(folder / mark.file, mark, fingerprint, deep=deep)
        if fault:
            problems.append(Problem(mark.file, fault))
    no_mark = "has no completion mark: its run was killed, or the mark is damaged"
    shards = _numbered(folder, _SHARD_NAME)
    problems += [Problem(path.name, no_mark) for path in shards if path.name not in marked]
    return sorted(problems, key=lambda problem: problem.file)


def size_fault(folder: Path, mark: Mark) -> str:
    """What is wrong with a shard at first sight: gone, or of another size than its mark says; "" if nothing.

    Raises:
        StoreError: the file cannot be looked at.
    """
    path = folder / mark.file
    with storage_errors(path, "read"):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return "is gone, but its completion mark is there"
    if size == mark.bytes:
        return ""
    change = "cut short" if size < mark.bytes else "grown"
    return f"is {change}: {bytes_text(size)} ({size} bytes), its completion mark says {mark.bytes} bytes"


def byte_fault(folder: Path, mark: Mark) -> str:
    """What is wrong with a shard, told by reading it: its bytes are not those that its mark was written for.

    Raises:
        StoreError: the file cannot be read.
    """
    if sha256(folder / mark.file) == mark.sha256:
        return ""
    redo = f"Remove its completion mark ({mark.path_name}), then {_REDO}"
    return f"its bytes are not those that were written (sha256 differs). {redo}"


def write_spec(folder: Path, spec: FeatureSpec) -> None:
    """Say what a feature set holds, before its first shard is written. A spec that is there already must agree.

    Raises:
        FingerprintError: the folder holds other features; the message names the fields that differ.
        StoreError: the file cannot be written.
    """
    if (folder / SPEC_FILE).exists():
        there = read_spec(folder)
        if there.fingerprint != spec.fingerprint:
            raise FingerprintError(
                f"{folder} holds other features ({there.fingerprint}) than those asked for ({spec.fingerprint}); "
                f"there against asked for:\n{_list(there.differences(spec))}\n"
                f"Write them under another name (in a recipe of your own), or delete {folder}"
            )
        return
    write_json(folder / SPEC_FILE, {**spec.to_json(), "fingerprint": spec.fingerprint})


def read_spec(folder: Path) -> FeatureSpec:
    """What a feature set holds.

    Raises:
        CorruptShardError: ``spec.json`` is damaged.
        StoreError: there is none, or it cannot be read.
    """
    path = folder / SPEC_FILE
    with storage_errors(folder, "read"):
        if not path.exists():
            raise StoreError(f"no feature set at {folder}: it has no {SPEC_FILE}. `avpipe ls` lists the feature sets")
        content = path.read_bytes()
    try:
        values: Mapping[str, Any] = json.loads(content)
        spec = FeatureSpec.from_json(values)
        promised = values.get("fingerprint")
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptShardError(f"{path}: not a feature spec ({error}). Delete {folder} and extract again") from None
    if promised != spec.fingerprint:
        raise CorruptShardError(
            f"{path}: says fingerprint {promised!r}, but its fields give {spec.fingerprint!r}: it was edited. "
            f"Put it back, or delete {folder} and extract again"
        )
    return spec


_REDO = "`avpipe extract` writes this shard again"


def _whole_mark(path: Path) -> Mark | None:
    """The mark of a shard, if it is there and undamaged."""
    with storage_errors(path, "read"):
        if not path.exists():
            return None
    try:
        return Mark.read(path)
    except CorruptShardError:
        return None


def _fits(folder: Path, mark: Mark, plan: ShardPlan, fingerprint: str) -> bool:
    """Whether a mark was made for this plan and fingerprint, and its shard is what it says."""
    if (mark.fingerprint, mark.clip_ids_sha256) != (fingerprint, plan.clip_ids_sha256):
        return False
    if size_fault(folder, mark):
        return False
    shard = folder / mark.file
    with storage_errors(shard, "read"):
        changed, marked = shard.stat().st_mtime_ns, (folder / mark.path_name).stat().st_mtime_ns
    unchanged = changed <= marked if is_remote(folder) else changed < marked
    return unchanged or sha256(shard) == mark.sha256


def _fault(shard: Path, mark: Mark, fingerprint: str | None, *, deep: bool) -> str:
    """What is wrong with one marked shard; "" if nothing."""
    fault = size_fault(shard.parent, mark)
    if fault:
        return f"{fault}. {_REDO}"
    if fingerprint is not None and mark.fingerprint != fingerprint:
        return f"holds features {mark.fingerprint}, {SPEC_FILE} says {fingerprint}. {_REDO}"
    return byte_fault(shard.parent, mark) if deep else ""


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Files of a folder whose names match, in the order of their numbers."""
    found = [path for path in listed(folder) if pattern.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.stem), path.suffix))


def _ids_sha256(clip_ids: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(clip_ids)).encode("ascii")).hexdigest()


def _checksum(values: Mapping[str, Any]) -> str:
    """Of a mark's own content: a flipped byte in a mark shall not pass for an outcome."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
