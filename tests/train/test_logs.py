"""What a training says of the memory that it took."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avpipe.train.logs import peak_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process begin anew")
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU's memory, torch tells")
def test_the_peak_is_that_since_it_was_last_measured_anew() -> None:
    begin_anew()
    large = np.ones(2**25)
    peak = peak_memory_bytes()
    assert peak >= large.nbytes
    del large
    assert peak_memory_bytes() >= peak  # also when it is over
    begin_anew()
    assert peak_memory_bytes() < peak - 2**27


def begin_anew() -> None:
    """As a sweep does between its runs; see proc(5)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
