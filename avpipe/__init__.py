"""avpipe: offline feature extraction and a lightweight trainer for audio-visual video captioning.

Three stages that meet on disk and never import one another:

    avpipe.extract   videos            -> feature shards   (frozen encoders, once per dataset)
    avpipe.train     feature shards    -> checkpoints, captions  (fusion and decoder heads only)
    avpipe.eval      captions          -> scores

``avpipe.pipeline`` is the ground that all of them stand on; ``avpipe.data_manifests`` says which clips there are.
Importing this package imports none of them.
"""

__version__ = "0.1.0"
