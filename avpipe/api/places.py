"""Which workspace, which dataset, which run, which feature sets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpipe.pipeline.errors import DataError, UnknownNameError, UsageError
from avpipe.pipeline.remote import RemotePath
from avpipe.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from avpipe.pipeline.store import FeatureSet

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]{0,199}")


def open_workspace(root: Path | None = None) -> Workspace:
    """The workspace asked for, or the default one; it need not exist yet.

    Raises:
        UsageError: something that is no readable folder stands in its place; there is no such bucket.
        StoreError: the remote storage that it is in does not answer.
    """
    workspace = Workspace.find(root)
    if isinstance(workspace.root, RemotePath):
        if not workspace.root.bucket_exists():
            raise UsageError(f"workspace: there is no bucket for {workspace.root}; make it, or try another --workspace")
        return workspace
    if workspace.root.exists() and not workspace.root.is_dir():
        raise UsageError(f"workspace: expected a folder at {workspace.root}, got a file; try another --workspace")
    if workspace.root.exists() and not os.access(workspace.root, os.R_OK | os.X_OK):
        raise UsageError(f"workspace: {workspace.root} cannot be read; change its mode, or try another --workspace")
    return workspace


def check_folder_name(what: str, name: str) -> None:
    """A name that becomes a folder leads to no other place."""
    if not _FOLDER_NAME.fullmatch(name):
        raise UsageError(f"{what}: expected letters, digits and _ . + = , @ -, a letter or digit first, got {name!r}")


def choose_dataset(workspace: Workspace, dataset: str | None, *, extracted: bool = False) -> str:
    """The dataset asked for, or the only one there is.

    Args:
        workspace: where to look.
        dataset: a name, or ``None``.
        extracted: whether it must have features.

    Raises:
        UnknownNameError: it is not prepared (or has no features).
        UsageError: none was asked for, and there is none or more than one.
    """
    prepared = workspace.prepared()
    known = [name for name in prepared if not extracted or workspace.extracted(name)]
    if dataset is not None and dataset not in prepared:
        raise UnknownNameError("dataset", dataset, prepared, f"Prepared are these. Try: avpipe prepare {dataset}")
    if dataset is not None and dataset not in known:
        raise UsageError(f"no features of {dataset!r} yet in {workspace.root}; try: avpipe extract --dataset {dataset}")
    if dataset is not None:
        return dataset
    if not prepared:
        raise UsageError(f"no dataset is prepared yet in {workspace.root}; try: avpipe prepare NAME")
    if not known:
        raise UsageError(f"nothing is extracted yet in {workspace.root}; try: avpipe extract --dataset {prepared[0]}")
    if len(known) > 1:
        raise UsageError(f"which dataset? In {workspace.root} there are {', '.join(known)}: say which with --dataset")
    return known[0]


def choose_run(workspace: Workspace, run: str | None) -> str:
    """The run asked for, or the newest.

    Raises:
        UnknownNameError: no run of that name.
        UsageError: none was asked for, and there is none.
    """
    known = workspace.runs()
    if run is not None and run not in known:
        raise UnknownNameError("run", run, known, "" if known else "Try: avpipe train")
    if not known:
        raise UsageError(f"no run yet in {workspace.root}; try: avpipe train")
    return run or known[-1]


def open_features(
    workspace: Workspace, dataset: str, names: Sequence[str] = (), modalities: Sequence[str] = ()
) -> dict[str, FeatureSet]:
    """Feature sets of a dataset by name, to read from.

    Args:
        workspace: where everything lies.
        dataset: which.
        names: which feature sets; default: all there are but those of text, which an encoder must read first.
        modalities: of those, the ones of these modalities; default: all.

    Raises:
        UnknownNameError: no feature set of that name.
        UsageError: none is left, or one holds text.
        StoreError: one is damaged.
    """
    from avpipe.pipeline.store import FeatureSet

    known = workspace.extracted(dataset)
    for name in names:
        if name not in known:
            raise UnknownNameError("feature set", name, known, f"Try: avpipe extract -d {dataset} -e {name}")
    found = {name: FeatureSet(workspace.feature_set(dataset, name)) for name in names or known}
    text = [name for name, source in found.items() if source.spec.is_text]
    if names and text:
        raise UsageError(
            f"feature set {text[0]!r} holds text; make vectors of it first: avpipe extract -d {dataset} -e bert_text "
            f"bert_text.of={text[0]}"
        )
    found = {name: source for name, source in found.items() if name not in text}
    chosen = {name: source for name, source in found.items() if not modalities or source.spec.modality in modalities}
    if not chosen:
        there = ", ".join(f"{name} ({source.spec.modality})" for name, source in found.items())
        raise UsageError(f"no feature set of {dataset!r} is of modality {', '.join(modalities)}; there are: {there}")
    return chosen


def check_extracted(dataset: str, sources: Mapping[str, FeatureSet], clip_ids: Sequence[str]) -> None:
    """Make sure that every clip was extracted, for every feature set.

    Raises:
        DataError: some were not.
    """
    for name, source in sources.items():
        missing = source.missing(clip_ids)
        if missing:
            raise DataError(
                f"feature set {name!r} of {dataset!r} says nothing about {len(missing)} of {len(clip_ids)} clips "
                f"(first: {missing[0]}): its extraction was broken off, or the manifest has grown. Run avpipe extract"
            )
