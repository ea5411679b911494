"""The store formats by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.registry import Registry
from avpipe.pipeline.store._rows import Reader, Writer

FORMATS = Registry("store format", __package__ or __name__)


def open_writer(format: str, path: Path, spec: FeatureSpec, order: Sequence[str] | None = None) -> Writer:
    """A writer for one shard file, to be used in a ``with`` block.

    Args:
        format: ``"hdf5"`` or ``"webdataset"``.
        path: of the shard file.
        spec: of the features.
        order: the clip ids that may come, in the order that the file shall have; by default the order of coming.

    Raises:
        UnknownNameError: no such format.
        StoreError: the folder cannot be written.
    """
    return Writer(path, spec, FORMATS.load(format).compose, order)


def open_reader(path: Path) -> Reader:
    """A reader for one shard file of any format.

    Raises:
        CorruptShardError: the file is damaged.
        StoreError: the file cannot be read, or its name has no format's suffix.
    """
    formats = {FORMATS.load(name).SUFFIX: FORMATS.load(name) for name in FORMATS.names()}
    if path.suffix not in formats:
        raise StoreError(f"{path} is no shard: expected a name that ends in {' or '.join(formats)}")
    return Reader(path, formats[path.suffix].read_index)
