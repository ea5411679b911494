"""Datasets, one module each: the file's name is the dataset's name."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("dataset", __name__)
