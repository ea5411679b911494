"""The store formats by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.registry import Registry
from avpipe.pipeline.store import _text
from avpipe.pipeline.store._rows import Reader, Writer
from avpipe.pipeline.store._text import TextReader, TextWriter

FORMATS = Registry("store format", __package__ or __name__)


def suffix_of(format: str, spec: FeatureSpec) -> str:
    """How the name of a shard file ends. Text has one format of its own, whatever ``format`` is.

    Raises:
        UnknownNameError: no such format.
    """
    suffix: str = FORMATS.load(format).SUFFIX
    return _text.SUFFIX if spec.is_text else suffix


def suffixes() -> tuple[str, ...]:
    """All endings that the name of a shard file may have."""
    return (*(FORMATS.load(name).SUFFIX for name in FORMATS.names()), _text.SUFFIX)


def open_writer(format: str, path: Path, spec: FeatureSpec, order: Sequence[str] | None = None) -> Writer | TextWriter:
    """A writer for one shard file, to be used in a ``with`` block.

    Args:
        format: ``"hdf5"`` or ``"webdataset"``; does not matter for text.
        path: of the shard file.
        spec: of the features.
        order: the clip ids that may come, in the order that the file shall have; by default the order of coming.

    Raises:
        UnknownNameError: no such format.
        StoreError: the folder cannot be written.
    """
    compose = FORMATS.load(format).compose
    return TextWriter(path, spec, order) if spec.is_text else Writer(path, spec, compose, order)


def open_reader(path: Path, sha256: str = "") -> Reader | TextReader:
    """A reader for one shard file of any format.

    Args:
        path: of the shard file. A remote one is first copied to this machine, whole, once.
        sha256: of the file, in hex, if it is known; tells whether a remote one is already here.

    Raises:
        CorruptShardError: the file is damaged.
        StoreError: the file cannot be read, or its name has no format's suffix.
    """
    if path.suffix == _text.SUFFIX:
        return TextReader(path, sha256)
    formats = {FORMATS.load(name).SUFFIX: FORMATS.load(name) for name in FORMATS.names()}
    if path.suffix not in formats:
        raise StoreError(f"{path} is no shard: expected a name that ends in {' or '.join(suffixes())}")
    return Reader(path, formats[path.suffix].read_index, sha256)
