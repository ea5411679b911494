"""What runs worker processes, one module an engine, with three names:

- ``Pool``, a :class:`avpipe.pipeline.runner.Pool`;
- ``devices(gpus, gpu_share)``, which says on what the workers may run;
- ``cores(workers)``, which says how many cores each of them can have.
"""

from avpipe.pipeline.registry import Registry

ENGINES = Registry("engine", __name__)
