"""Text decoders, one module each: ``decoder(fused, tokens) -> logits``."""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("decoder", __name__)
