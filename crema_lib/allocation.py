"""Memory on a CPU: what one step has freed is there for the next."""

import ctypes
import functools
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


@functools.cache
def keep_freed():
    """Have glibc's allocator keep what is freed, from now on and in this process; elsewhere nothing is done.

    A training step takes and frees the same activations again and again. By default glibc hands large ones back to the system, which
    clears each page anew when it is next touched: tens of thousands of page faults a step, a tenth of its time (SiT-Ti on two cores).
    The process does not need more memory at its height, and does not shrink after it.

    Returns:
        bool: whether the allocator took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Blocks up to this size, bytes, come from the heap; an older glibc allows no more than 32 MB.
    heap = mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 1 << 25)
    return bool(heap and mallopt(TRIM_THRESHOLD, -1))  # -1: the heap never shrinks
