"""Freed memory stays with the process, so that a step causes no page faults."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from crema_lib.allocation import keep_freed

if sys.argv[1] == "keep":
    assert keep_freed()

def step():
    parts = [torch.ones(size, 1 << 18) for size in (30, 9, 5, 60)]  # MB, freed together at the end
    return sum(float(part[0, 0]) for part in parts)

for _ in range(5):  # until the heap has its size
    step()
rounds = []
for _ in range(3):  # the quietest counts: a system short of memory takes pages away
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(rounds))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is what is told to keep memory")
def test_a_step_touches_no_new_pages_once_memory_is_kept():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "as it is")
    }
    assert faults["keep"] < 0.02 * faults["as it is"], faults
