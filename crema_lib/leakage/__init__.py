"""Who has seen what: patients on both sides of a split, recordings that are there twice, and recordings that pretraining saw."""

from .checkpoint import SEEN, remember, seen, what_was_seen
from .duplicates import THRESHOLD, catalogue, digests, exact_duplicates, near_duplicates
from .report import Report, examine
