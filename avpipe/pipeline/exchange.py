"""Features in the forms in which others keep them, out and in.

===================  ===============================================================================================
``npy``              ``{id}.npy`` (T, dim), and ``pts_seconds/{id}.npy`` (T,): a folder of its own, since an id may
                     end in any suffix that one could think of
``h5``               ``features.h5`` with one dataset an id, (T, dim); ``pts_seconds.h5`` likewise, (T,)
``video-features``   as v-iashin/video_features names them: ``{id}_{key}.npy``, ``{id}_timestamps_ms.npy``
===================  ===============================================================================================

Beside them lie ``spec.json`` (what the features are) and ``README.md``. An id is escaped where it is not safe as a file
name, reversibly; ids of a manifest are safe and stand as they are.

What is imported is a feature set like any other, but of the encoder ``"imported"``: its spec says what the user said
about it, and its identity is the hash of everything that was read. avpipe cannot make such features again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from avpipe.pipeline import shards
from avpipe.pipeline.errors import ClipError, DataError, StoreError, UsageError
from avpipe.pipeline.features import DISK_DTYPES, IMPORTED, Features, FeatureSpec, Modality
from avpipe.pipeline.files import atomic_write, bytes_text, storage_errors, write_json
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.shards import ShardPlan
from avpipe.pipeline.store import FeatureSet, ShardWriter, write_spec

Form = Literal["npy", "h5", "video-features"]
Array = npt.NDArray[Any]

TIMES_FOLDER = "pts_seconds"
FEATURES_FILE, TIMES_FILE = "features.h5", "pts_seconds.h5"
TIMES_SUFFIX = "_timestamps_ms"
BLOCK_BYTES, SPARE_BYTES = 4096, 64 << 20


def file_stem(clip_id: str) -> str:
    """A clip's id as the name of a file, without its suffix: escaped where need be, ``%XX``. Ids of a manifest are safe
    and come back as they are. Undone by :func:`clip_id_of`.

    Raises:
        DataError: the name would be too long for a file.
    """
    stem = quote(clip_id, safe="+=,@").replace("~", "%7E")
    stem = f"%2E{stem[1:]}" if stem.startswith(".") else stem
    if len(stem) > 220:
        raise DataError(f"clip {clip_id[:40]!r} ...: its id makes a file name of {len(stem)} characters, too long")
    return stem


def clip_id_of(stem: str) -> str:
    """The clip id that :func:`file_stem` was given."""
    return unquote(stem)


# -- out ---------------------------------------------------------------------------------------------------------------


def export(
    source: FeatureSet, folder: Path, form: Form, *, key: str = "", on_clip: Callable[[], None] = lambda: None
) -> int:
    """Write a feature set as others keep theirs. Of several views, the plain one.

    ``spec.json`` is written last: a folder without it was not finished.

    Args:
        source: what to write.
        folder: a new or empty one.
        form: see the module.
        key: of ``video-features``; default: the name of the feature set.
        on_clip: called after each clip.

    Returns:
        How many clips were written: those that have features.

    Raises:
        UsageError: the set holds text, or the folder is not empty or remote.
        StoreError: the disk is full, ...
    """
    if source.spec.is_text:
        raise UsageError(f"{source.folder} holds text, no rows: its shards are JSON lines, which any tool reads")
    _expect_local(folder)
    with storage_errors(folder, choose="--to"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"export to {folder}: expected a new or empty folder, it holds something; empty it first")
        folder.mkdir(parents=True, exist_ok=True)
        needed = source.bytes + 2 * BLOCK_BYTES * len(source) + SPARE_BYTES  # a file takes whole blocks
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise StoreError(f"export to {folder}: {bytes_text(needed)} are needed, {bytes_text(free)} free")
        write = _write_h5 if form == "h5" else _write_files
        write(source, folder, (key or source.spec.name) if form == "video-features" else "", on_clip)
        (folder / "README.md").write_text(_readme(source, form), encoding="utf-8")
    write_json(folder / shards.SPEC_FILE, {**source.spec.to_json(), "fingerprint": source.spec.fingerprint})
    return len(source)


def _expect_local(path: Path) -> None:
    if is_remote(path):
        raise UsageError(f"{path}: export and import work on folders of this machine; copy it there, or from there")


def _write_files(source: FeatureSet, folder: Path, key: str, on_clip: Callable[[], None]) -> None:
    """``{id}.npy``; with a key, as video_features names them, in milliseconds."""
    if not key:
        (folder / TIMES_FOLDER).mkdir()
    for clip_id, features in source.stream():
        stem = file_stem(clip_id)
        times = folder / (f"{stem}{TIMES_SUFFIX}.npy" if key else f"{TIMES_FOLDER}/{stem}.npy")
        _save_new(folder / (f"{stem}_{key}.npy" if key else f"{stem}.npy"), features.data)
        _save_new(times, features.pts_seconds * 1000 if key else features.pts_seconds)
        on_clip()


def _save_new(path: Path, array: Array) -> None:
    """Never over another clip's file, as where a file system takes ``a`` and ``A`` for one name."""
    try:
        with path.open("xb") as file:
            np.save(file, array, allow_pickle=False)
    except FileExistsError:
        raise StoreError(f"{path} would hold two clips; export to a file system that tells all ids apart") from None


def _write_h5(source: FeatureSet, folder: Path, _: str, on_clip: Callable[[], None]) -> None:
    import h5py

    with (
        atomic_write(folder / FEATURES_FILE, choose="--to") as rows_aside,
        atomic_write(folder / TIMES_FILE, choose="--to") as times_aside,
        h5py.File(rows_aside, "w") as rows,
        h5py.File(times_aside, "w") as times,
    ):
        for clip_id, features in source.stream():
            stem = file_stem(clip_id)
            rows.create_dataset(stem, data=features.data)
            times.create_dataset(stem, data=features.pts_seconds)
            on_clip()


def _readme(source: FeatureSet, form: Form) -> str:
    spec = source.spec
    where = {
        "npy": f"`{{id}}.npy`: rows (T, {spec.dim}) {spec.dtype}; `{TIMES_FOLDER}/{{id}}.npy`: their times (T,), in "
        f"seconds",
        "h5": f"`{FEATURES_FILE}`: one dataset an id, (T, {spec.dim}) {spec.dtype}; `{TIMES_FILE}`: their times (T,), "
        f"in seconds",
        "video-features": f"`{{id}}_{{key}}.npy`: rows (T, {spec.dim}) {spec.dtype}; `{{id}}{TIMES_SUFFIX}.npy`: their "
        f"times (T,), in milliseconds",
    }[form]
    counts = source.counts
    views = f" Of the {spec.views} views of each clip, the plain one is here.\n" if spec.views > 1 else ""
    return (
        f"# {spec.name}\n\nFeatures of the encoder `{spec.encoder}` ({spec.modality}), exported by avpipe.\n\n"
        f"- {where}\n"
        f"- A time is the middle of what its row saw, from the clip's start.\n"
        f"- `{shards.SPEC_FILE}`: everything that changes a number: settings, weights, preprocessing, versions.\n"
        f"- Characters of an id that are not safe in a file name are written as `%XX`.\n\n"
        f"{counts['ok']} clips have features; {counts['failed']} failed and {counts['skipped']} were skipped.\n{views}"
    )


# -- in ----------------------------------------------------------------------------------------------------------------


class Outside(Protocol):
    """Features that somebody keeps in another form."""

    names: frozenset[str]
    """Of the items that have rows."""
    has_times: bool
    where: str
    """For messages: ``"{id}.npy in /data/clip"``."""

    def read(self, name: str) -> tuple[Array, Array | None]:
        """Rows and their times in seconds, as they are kept.

        Raises:
            OSError, ValueError: they cannot be read.
        """


class NpyFiles:
    """``{name}{suffix}.npy`` in a folder.

    Args:
        folder: where they lie.
        key: of video_features: ``rgb`` for ``{name}_rgb.npy``; "" for plain ``{name}.npy``.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        self._folder, self._key = folder, key
        self._suffix = f"_{key}.npy" if key else ".npy"
        self._rows = _by_id(_stems(folder, self._suffix))
        self._times = _by_id(_stems(folder, f"{TIMES_SUFFIX}.npy") if key else _stems(folder / TIMES_FOLDER, ".npy"))
        self.names = frozenset(self._rows)
        self.has_times = not self.names.isdisjoint(self._times)
        self.where = f"{{id}}{self._suffix} in {folder}"

    def read(self, name: str) -> tuple[Array, Array | None]:
        """See :class:`Outside`."""
        rows = np.load(self._folder / f"{self._rows[name]}{self._suffix}", allow_pickle=False)
        if name not in self._times:
            return rows, None
        if self._key:
            return rows, np.load(self._folder / f"{self._times[name]}{TIMES_SUFFIX}.npy", allow_pickle=False) / 1000
        return rows, np.load(self._folder / TIMES_FOLDER / f"{self._times[name]}.npy", allow_pickle=False)


class Hdf5File:
    """One dataset an id.

    Args:
        path: of the file, or of a folder with ``features.h5``. Times are looked for in ``pts_seconds.h5`` beside it.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        path = path / FEATURES_FILE if path.is_dir() else path
        times = path.with_name(TIMES_FILE)
        with storage_errors(path, "read"):
            self._file = h5py.File(path, "r", locking=False)
            self._times_file = h5py.File(times, "r", locking=False) if times.exists() else {}
        self._rows = _by_id(name for name, item in self._file.items() if isinstance(item, h5py.Dataset))
        self._times = _by_id(self._times_file)
        self.names = frozenset(self._rows)
        self.has_times = not self.names.isdisjoint(self._times)
        self.where = f"dataset {{id}} in {path}"

    def read(self, name: str) -> tuple[Array, Array | None]:
        """See :class:`Outside`."""
        times = self._times_file[self._times[name]][()] if name in self._times else None
        return self._file[self._rows[name]][()], times


def _stems(folder: Path, suffix: str) -> list[str]:
    with storage_errors(folder, "read"):
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name.removesuffix(suffix) for name in found if name.endswith(suffix) and not name.startswith(".")]


def _by_id(stems: Iterable[str]) -> dict[str, str]:
    """Names as they are kept, by what they stand for; one that needs no undoing comes before one that does."""
    stems = list(stems)
    return {clip_id_of(stem): stem for stem in stems} | {stem: stem for stem in stems}


def _keys(folder: Path) -> set[str]:
    """The keys in a folder of video_features: what stands behind the stem, which the times tell, or the last ``_``."""
    timed = set(_stems(folder, f"{TIMES_SUFFIX}.npy"))
    keys = set()
    for name in _stems(folder, ".npy"):
        cuts = [i for i, letter in enumerate(name) if letter == "_"]
        cut = max((i for i in cuts if name[:i] in timed), default=max(cuts, default=len(name)))
        keys.add(name[cut + 1 :])
    return keys - {TIMES_SUFFIX[1:], "fps", "ms", ""}


def open_outside(path: Path, form: Form, key: str = "") -> Outside:
    """Features that somebody else made.

    Args:
        path: a folder; of ``h5``, also the file.
        form: see the module.
        key: of ``video-features``; default: the only one there is.

    Raises:
        UsageError: there is no such thing at ``path``, it is remote, or which key is not clear.
        StoreError: it cannot be read.
    """
    _expect_local(path)
    if not path.exists() or (form != "h5" and not path.is_dir()):
        raise UsageError(f"import from {path}: expected a folder{' or a file' if form == 'h5' else ''}, there is none")
    if form == "h5":
        return Hdf5File(path)
    if form == "npy":
        return NpyFiles(path)
    keys = {key} if key else _keys(path)
    if len(keys) != 1:
        raise UsageError(
            f"import from {path}: expected --key to be one of {', '.join(sorted(keys)) or 'none'}, got none"
        )
    return NpyFiles(path, keys.pop())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One clip that is to be imported.

    Attributes:
        clip_id: of the clip.
        names: under which its features may be kept, the most likely first.
        seconds: how long it is, where that is known.
    """

    clip_id: str
    names: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the user says of features that avpipe did not make.

    Attributes:
        name: of the feature set to make.
        modality: ``"video"``, ``"audio"`` or ``"text"``.
        dim: width of a row; ``None``: as the first clip has it.
        dtype: on disk; ``None``: ``"float16"`` if they are kept so, else ``"float32"``.
        hop_seconds: from one row to the next: row ``i`` lies at ``(i + 0.5) * hop_seconds``.
        spread: rows lie evenly over their clip, whose length the manifest knows. With neither, times are read.
        id: which model: ``"openai/clip-vit-base-patch32"``.
        note: how they were made.
        was: the ``spec.json`` beside them, where avpipe exported them.
    """

    name: str
    modality: Modality
    dim: int | None = None
    dtype: str | None = None
    hop_seconds: float | None = None
    spread: bool = False
    id: str = ""
    note: str = ""
    was: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hop_seconds is not None and (self.spread or not 0 < self.hop_seconds < float("inf")):
            both = "together with --spread" if self.spread else f"{self.hop_seconds}"
            raise UsageError(f"hop_seconds: expected a positive number of seconds, without --spread, got {both}")
        if self.dtype not in (None, *DISK_DTYPES[:2]):
            raise UsageError(f"dtype: expected float16 or float32, got {self.dtype!r}")


def import_features(
    source: Outside,
    told: Told,
    wanted: Sequence[Wanted],
    plans: Sequence[ShardPlan],
    folder: Path,
    *,
    form: Form,
    format: str = "hdf5",
    on_clip: Callable[[], None] = lambda: None,
) -> FeatureSpec:
    """Make a feature set of what somebody else extracted. Every clip gets a row: those that are not there have failed.

    Everything is read twice: its hash is the identity of the set, which must be known before anything is written.
    Goes on where a former import was broken off.

    Args:
        source: what to read.
        told: about it.
        wanted: every clip, in manifest order.
        plans: how the manifest is cut.
        folder: of the feature set to make.
        form: how ``source`` keeps features; for the spec.
        format: ``"hdf5"`` or ``"webdataset"``.
        on_clip: called twice a clip.

    Raises:
        DataError: no clip has features there, or none that can be used.
        UsageError: nothing says at what time the rows are.
        FingerprintError: the folder holds other features.
        StoreError: the disk is full, ...
    """
    importer = _Importer(source, told, wanted)
    spec = importer.spec(form, on_clip)
    write_spec(folder, spec)
    lacking = {plan.name for plan in shards.pending(folder, plans, spec.fingerprint)}
    for plan in plans:
        if plan.name not in lacking:
            for _ in plan.clip_ids:
                on_clip()
            continue
        with ShardWriter(folder, plan, spec, format) as shard:
            for clip_id in plan.clip_ids:
                try:
                    shard.add(clip_id, importer.features(clip_id, spec.dim))
                except ClipError as error:
                    shard.fail(clip_id, error)
                on_clip()
    return spec


class _Importer:
    def __init__(self, source: Outside, told: Told, wanted: Sequence[Wanted]) -> None:
        self._source, self._told = source, told
        self._wanted = {clip.clip_id: clip for clip in wanted}
        found = {clip.clip_id: [name for name in clip.names if name in source.names] for clip in wanted}
        self._name_of = {clip_id: names[0] for clip_id, names in found.items() if names}
        if not self._name_of:
            there = ", ".join(sorted(source.names)[:3]) or "nothing"
            asked = ", ".join(clip.names[0] for clip in wanted[:3])
            raise DataError(f"no clip has features there ({source.where}); there is {there}; clips are {asked}")
        if told.hop_seconds is None and not told.spread and not source.has_times:
            raise UsageError(
                f"nothing says at what time the rows are ({source.where}, without times): say --hop-seconds, or "
                f"--spread where the manifest knows how long its clips are"
            )
        unknown = [clip.clip_id for clip in wanted if clip.seconds is None]
        if told.spread and unknown:
            raise UsageError(
                f"--spread: the manifest does not say how long {len(unknown)} of {len(wanted)} clips are (first: "
                f"{unknown[0]}); say --hop-seconds"
            )

    def spec(self, form: Form, on_clip: Callable[[], None]) -> FeatureSpec:
        """Read everything, to know what it is."""
        told = self._told
        digest = hashlib.sha256()
        width, kept_as = 0, np.dtype(np.float32)
        for clip_id in self._wanted:
            try:
                rows, times = self._read(clip_id)
            except ClipError as error:
                digest.update(f"{clip_id} {error.kind}\n".encode())
            else:
                if not width:
                    width, kept_as = rows.shape[1], rows.dtype
                for array in (rows, *([] if times is None else [times])):
                    digest.update(f"{clip_id} {array.dtype.str} {array.shape}\n".encode())
                    digest.update(np.ascontiguousarray(array).data)
            on_clip()
        if not width:
            raise DataError(f"no clip has features there that can be read ({self._source.where})")
        return FeatureSpec(
            name=told.name,
            encoder=IMPORTED,
            modality=told.modality,
            dim=told.dim or width,
            dtype=told.dtype or ("float16" if kept_as == np.float16 else "float32"),
            config={"form": form},
            weights={"id": told.id or "unknown", "content_sha256": digest.hexdigest()},
            preprocessing={"note": told.note or "unknown", **({"exported": told.was} if told.was else {})},
            clock=self._clock(),
        )

    def features(self, clip_id: str, dim: int) -> Features:
        """Of one clip.

        Raises:
            ClipError: there are none, or they are not as expected.
        """
        rows, times = self._read(clip_id)
        if rows.shape[1] != dim:
            turned = " (turned on its side?)" if rows.shape[0] == dim else ""
            raise ClipError("shape", f"expected rows of width {dim}, got shape {rows.shape}{turned}")
        count = len(rows)
        if self._told.hop_seconds is not None:
            times = (np.arange(count) + 0.5) * self._told.hop_seconds
        elif self._told.spread:
            times = (np.arange(count) + 0.5) * ((self._wanted[clip_id].seconds or 0.0) / count)
        if times is None:
            raise ClipError("no_times", f"nothing says at what time its {count} rows are ({self._source.where})")
        if times.shape != (count,):
            raise ClipError("shape", f"expected {count} times, one a row, got shape {times.shape}")
        return Features(data=rows, pts_seconds=times.astype(np.float64))

    def _read(self, clip_id: str) -> tuple[Array, Array | None]:
        name = self._name_of.get(clip_id)
        if name is None:
            names = " or ".join(self._wanted[clip_id].names)
            raise ClipError("missing_file", f"no {names} ({self._source.where})")
        try:
            rows, times = self._source.read(name)
        except (OSError, ValueError, EOFError, BadZipFile) as error:  # the last two: an empty file, half an .npz
            raise ClipError("open", f"{name}: {error} ({self._source.where})") from None
        for array in (rows, *([] if times is None else [times])):
            if array.dtype.kind not in "fiu":
                raise ClipError("open", f"{name}: expected numbers, got {array.dtype} ({self._source.where})")
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or 0 in rows.shape:
            raise ClipError("shape", f"expected (T, dim) or (dim,), got {rows.shape}: flatten it to rows first")
        return rows, times

    def _clock(self) -> dict[str, Any]:
        if self._told.hop_seconds is not None:
            return {"hop_seconds": self._told.hop_seconds, "window_seconds": self._told.hop_seconds}
        if self._told.spread:
            return {"rows": "spread evenly over the clip"}
        return dict(self._told.was.get("clock", {})) or {"rows": "at the times that were imported"}
