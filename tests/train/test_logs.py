"""What a training says of the memory that it took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avpipe.train.logs import peak_memory_bytes

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process begin anew"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU's memory, torch tells"),
]


def begin_anew() -> None:
    """As a sweep does between its runs; see proc(5)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def test_the_peak_is_that_since_it_was_last_measured_anew() -> None:
    begin_anew()
    large = np.ones(2**25)
    assert peak_memory_bytes() > large.nbytes
    del large
    assert peak_memory_bytes() > 2**28  # also when it is over
    before = peak_memory_bytes()
    begin_anew()
    assert peak_memory_bytes() < before - 2**27


def test_the_peak_is_not_that_of_the_process_before() -> None:
    """A process that is started begins with the peak of its parent, as getrusage(2) counts."""
    large = np.ones(2**27)
    program = "from avpipe.train.logs import peak_memory_bytes; print(peak_memory_bytes())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 2**26 < int(said.stdout) < large.nbytes
