"""Fusion designs, one module each: ``fusion(batch) -> Fused``."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("fusion", __name__)
