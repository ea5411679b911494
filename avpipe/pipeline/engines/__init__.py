"""What runs worker processes, one module an engine, with two names: ``Pool``, a :class:`avpipe.pipeline.runner.Pool`,
and ``devices(gpus)``, which says on what the workers may run.
"""

from avpipe.pipeline.registry import Registry

ENGINES = Registry("engine", __name__)
