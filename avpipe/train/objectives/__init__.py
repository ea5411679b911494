"""What a training minimises beside the cross-entropy of its captions, one module each."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("objective", __name__)
