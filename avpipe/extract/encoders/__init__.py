"""Frozen encoders, one module each: the file's name is the encoder's name."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("encoder", __name__)
