"""Caption metrics, one module each: corpus score and per-clip scores by id."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("metric", __name__)
