"""The commands as Python functions: what ``avpipe prepare``, ``extract``, ``train``, ``score`` and ``caption`` do.

The three stages meet on disk and never import one another; this package is where a job needs two of them at once, as
training does, which scores its own captions on the validation split. ``cli`` only reads options and prints.
"""

from avpipe.api.comparing import Compared, compare
from avpipe.api.dense import score_dense_files
from avpipe.api.extracting import Extraction, extraction, extraction_again, mended
from avpipe.api.features import diff_features, export_features, find_features, import_features, verify
from avpipe.api.places import choose_dataset, choose_run, open_features, open_workspace
from avpipe.api.preparing import clips_of, export_manifest, prepare
from avpipe.api.scoring import caption, captions_of, score_files, score_run, score_senses
from avpipe.api.slicing import partitions_of_files, partitions_of_run, slice_run
from avpipe.api.sweeping import Sweep, SweepReport, sweep
from avpipe.api.training import train

__all__ = [
    "Compared",
    "Extraction",
    "Sweep",
    "SweepReport",
    "caption",
    "captions_of",
    "choose_dataset",
    "choose_run",
    "clips_of",
    "compare",
    "diff_features",
    "export_features",
    "export_manifest",
    "extraction",
    "extraction_again",
    "find_features",
    "import_features",
    "mended",
    "open_features",
    "open_workspace",
    "partitions_of_files",
    "partitions_of_run",
    "prepare",
    "score_dense_files",
    "score_files",
    "score_run",
    "score_senses",
    "slice_run",
    "sweep",
    "train",
    "verify",
]
