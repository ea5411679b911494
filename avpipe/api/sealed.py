"""The test split is sealed: whoever looks at it leaves a line in ``test_access.log`` of the run.

Whoever looks often chooses by what he sees, and then the test split is a second validation split. So every look is
counted, and the count stands beside the scores. (That a training cannot look is the business of
:func:`avpipe.data_manifests.manifest.read_for_training`.)
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from avpipe.pipeline.files import storage_errors

LOG = "test_access.log"


def note_look(run_folder: Path, what: str) -> int:
    """Note a look at the test split in ``test_access.log`` of a run: when, and what for.

    Lines are only ever appended, each whole, by one process at a time; a line that a killed process left half written
    stays as it is, and counts.

    Args:
        run_folder: of the run.
        what: for; a line break in it becomes a space.

    Returns:
        Which look at test of this run it is, counted from 1.

    Raises:
        StoreError: it cannot be written, and there must be no look.
    """
    log = run_folder / LOG
    line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(what.splitlines())}\n".encode(
        "utf-8", "backslashreplace"
    )
    with storage_errors(log):
        descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go of when it is closed
            before = _content(descriptor)
            if before and not before.endswith(b"\n"):
                line = b"\n" + line
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return len(before.splitlines()) + 1


def _content(descriptor: int) -> bytes:
    blocks = []
    while block := os.read(descriptor, 1 << 16):
        blocks.append(block)
    return b"".join(blocks)
