"""Feature sets on disk: written shard by shard, read clip by clip.

A format is a module of this folder (``hdf5``, ``webdataset``); the modules with an underscore are what the formats
share. Who extracts needs :func:`write_spec` and :class:`ShardWriter`, who trains :class:`FeatureSet`.
"""

from avpipe.pipeline.shards import read_spec, write_spec
from avpipe.pipeline.store._feature_set import FeatureSet
from avpipe.pipeline.store._formats import FORMATS, open_reader, open_writer
from avpipe.pipeline.store._rows import Reader, Writer
from avpipe.pipeline.store._shard_writer import ShardWriter
from avpipe.pipeline.store._text import TextReader, TextWriter

__all__ = [
    "FORMATS",
    "FeatureSet",
    "Reader",
    "ShardWriter",
    "TextReader",
    "TextWriter",
    "Writer",
    "open_reader",
    "open_writer",
    "read_spec",
    "write_spec",
]
