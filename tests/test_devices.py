"""The machine: memory that is freed stays with the process."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
import numpy as np
from nstvis import devices

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(2**22).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
devices.keep_memory()
faults()
print(first, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is what is told")
def test_large_buffers_are_kept():
    command = [sys.executable, "-c", CHURN]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(int, text.split())
    assert before > 1000  # a page of 4 KB or 64 KB each
    assert after < 0.05 * before
