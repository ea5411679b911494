"""What a training minimises, one module each. What such a module is, is told in :mod:`avpipe.train.objective`.

The objectives of a run are ``objectives`` in its configuration, each with a weight. ``cross_entropy`` is always among
them: it says what a caption costs, also to others, and is left out by ``objectives.cross_entropy.weight=0``.
"""

from avpipe.pipeline.registry import Registry

REGISTRY = Registry("objective", __name__)
