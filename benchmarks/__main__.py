"""`python -m benchmarks`: apart from the sections, as a process that is spawned cannot find what lives in a `__main__`."""

from .sections import main

main()
