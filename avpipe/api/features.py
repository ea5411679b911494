"""What lies on disk after stage one: what ``avpipe verify`` and ``avpipe features`` do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.api.places import check_folder_name, choose_dataset
from avpipe.pipeline.errors import UnknownNameError, UsageError
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.pipeline.check import Report
    from avpipe.pipeline.clip import Clip
    from avpipe.pipeline.difference import Difference
    from avpipe.pipeline.exchange import Form, Wanted
    from avpipe.pipeline.features import Modality
    from avpipe.pipeline.store import FeatureSet

OnProgress = Callable[[int, int], None]
"""Told how many items are done, and of how many."""


def verify(
    workspace: Workspace,
    dataset: str,
    *,
    names: Sequence[str] = (),
    deep: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Report]:
    """What is wrong or odd in the feature sets of a dataset; see :func:`avpipe.pipeline.check.check`.

    Args:
        workspace: where everything lies.
        dataset: which.
        names: of the feature sets; default: all there are.
        deep: read every shard, and look at the numbers.
        on_progress: of a deep check, by the shard.

    Raises:
        UnknownNameError: no feature set of that name.
        DataError: the manifest is damaged.
        StoreError: a folder cannot be read.
    """
    from avpipe.data_manifests import manifest
    from avpipe.pipeline import shards
    from avpipe.pipeline.check import check

    names = _known(workspace, dataset, names)
    read = manifest.read(workspace.manifest(dataset))
    plans = shards.plan([clip.clip_id for clip in read.clips], read.clips_per_shard)
    seconds = {clip.clip_id: _seconds(clip) for clip in read.clips}
    durations = {clip_id: length for clip_id, length in seconds.items() if length is not None}
    folders = {name: workspace.feature_set(dataset, name) for name in names}
    count = _Count(sum(len(shards.whole_marks(folder)) for folder in folders.values()) if deep else 0, on_progress)
    return {
        name: check(folder, plans, deep=deep, durations=durations, on_shard=count) for name, folder in folders.items()
    }


def find_features(workspace: Workspace, which: str, dataset: str | None = None) -> FeatureSet:
    """A feature set.

    Args:
        workspace: where everything lies.
        which: its folder or URL, ``dataset/name``, or its name.
        dataset: where ``which`` is a name; default: the only one with features.

    Raises:
        UnknownNameError: no dataset or feature set of that name.
        StoreError: it is damaged.
    """
    from avpipe.pipeline.places import place
    from avpipe.pipeline.remote import is_remote
    from avpipe.pipeline.shards import SPEC_FILE
    from avpipe.pipeline.store import FeatureSet

    folder = place(which)
    if is_remote(folder) or (folder / SPEC_FILE).is_file():
        return FeatureSet(folder)
    dataset, name = which.rstrip("/").split("/") if which.rstrip("/").count("/") == 1 else (dataset, which)
    dataset = choose_dataset(workspace, dataset, extracted=True)
    (name,) = _known(workspace, dataset, [name])
    return FeatureSet(workspace.feature_set(dataset, name))


def diff_features(first: FeatureSet, second: FeatureSet, on_progress: OnProgress | None = None) -> Difference:
    """How two feature sets differ, clip by clip; see :func:`avpipe.pipeline.difference.compare`.

    Raises:
        UsageError: one holds text, the other rows.
        StoreError: a shard is damaged.
    """
    from avpipe.pipeline.difference import compare

    both = sum(clip_id in second for clip_id in first.clip_ids)
    return compare(first, second, on_clip=_Count(both, on_progress))


def export_features(
    source: FeatureSet, folder: Path, form: Form, *, key: str = "", on_progress: OnProgress | None = None
) -> int:
    """Write a feature set as others keep theirs; see :func:`avpipe.pipeline.exchange.export`.

    Raises:
        UsageError: it holds text, or the folder is not empty.
        StoreError: the disk is full, ...
    """
    from avpipe.pipeline.exchange import export

    return export(source, folder, form, key=key, on_clip=_Count(len(source), on_progress))


def import_features(
    workspace: Workspace,
    path: Path,
    name: str,
    *,
    dataset: str | None = None,
    form: Form = "npy",
    key: str = "",
    modality: Modality | None = None,
    dim: int | None = None,
    dtype: str | None = None,
    hop_seconds: float | None = None,
    spread: bool = False,
    id: str = "",
    note: str = "",
    format: str = "hdf5",
    on_progress: OnProgress | None = None,
) -> FeatureSet:
    """Make a feature set of what somebody else extracted; see :func:`avpipe.pipeline.exchange.import_features`.

    A clip's features are looked for under its id, and under the name of its media file, where that is its alone.

    Args:
        workspace: where everything lies.
        path: a folder, or an HDF5 file.
        name: of the feature set to make.
        dataset: of which; default: the only one that is prepared.
        form: ``"npy"``, ``"h5"`` or ``"video-features"``.
        key: of ``video-features``: ``rgb`` for ``{id}_rgb.npy``; default: the only one there is.
        modality: ``"video"``, ``"audio"`` or ``"text"``; default: as the ``spec.json`` beside the features says.
        dim: width of a row, to be checked; default: as the first clip has it.
        dtype: on disk; default: ``"float16"`` if they are kept so, else ``"float32"``.
        hop_seconds: from one row to the next; default: their times are read.
        spread: instead, rows lie evenly over their clip.
        id: which model.
        note: how the features were made.
        format: ``"hdf5"`` or ``"webdataset"``.
        on_progress: told how far it is.

    Raises:
        UsageError: something that must be said was not said, or makes no sense.
        DataError: no clip has features there.
        FingerprintError: there is a feature set of that name with other features.
        StoreError: the disk is full, ...
    """
    from avpipe.data_manifests import manifest
    from avpipe.pipeline import shards
    from avpipe.pipeline.exchange import Told, import_features, open_outside
    from avpipe.pipeline.store import FORMATS, FeatureSet

    FORMATS.load(format)
    check_folder_name("name of a feature set", name)
    dataset = choose_dataset(workspace, dataset)
    source = open_outside(path, form, key)
    beside = path if path.is_dir() else path.parent
    was = shards.read_spec(beside) if (beside / shards.SPEC_FILE).is_file() else None
    if modality is None and was is None:
        raise UsageError(
            f"import from {path}: nothing says what the features are of; say --modality video, audio or text"
        )
    read = manifest.read(workspace.manifest(dataset))
    folder = workspace.feature_set(dataset, name)
    told = Told(
        name=name,
        modality=modality or was.modality,  # type: ignore[union-attr]  # one of them is there
        dim=dim,
        dtype=dtype,
        hop_seconds=hop_seconds,
        spread=spread,
        id=id,
        note=note,
        was={**was.to_json(), "fingerprint": was.fingerprint} if was else {},
    )
    import_features(
        source,
        told,
        _wanted(read.clips),
        shards.plan([clip.clip_id for clip in read.clips], read.clips_per_shard),
        folder,
        form=form,
        format=format,
        on_clip=_Count(2 * len(read.clips), on_progress),
    )
    return FeatureSet(folder)


def _wanted(clips: Sequence[Clip]) -> list[Wanted]:
    """A clip's own id first; then the name of its file, as most programs name what they extract from it. But not where
    several clips have files of that name, or a clip begins in the midst of its file.
    """
    from avpipe.pipeline.exchange import Wanted

    stems = {clip.clip_id: Path(clip.path).stem for clip in clips}
    taken = Counter([*stems.values(), *(clip.clip_id for clip in clips if clip.clip_id != stems[clip.clip_id])])
    return [
        Wanted(
            clip_id=clip.clip_id,
            names=tuple(
                dict.fromkeys([clip.clip_id, *([stem] if taken[stem] == 1 and not clip.start_seconds else [])])
            ),
            seconds=_seconds(clip),
        )
        for clip, stem in ((clip, stems[clip.clip_id]) for clip in clips)
    ]


def _seconds(clip: Clip) -> float | None:
    """How long a clip is, where the manifest knows."""
    return None if clip.stop_seconds is None else clip.stop_seconds - clip.start_seconds


def _known(workspace: Workspace, dataset: str, names: Sequence[str]) -> list[str]:
    """The feature sets asked for, or all there are."""
    known = workspace.extracted(dataset)
    for name in names:
        if name not in known:
            raise UnknownNameError("feature set", name, known)
    return list(names) or known


class _Count:
    """Counts what is done."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def __call__(self) -> None:
        self._done += 1
        if self._on_progress:
            self._on_progress(self._done, self._total)
