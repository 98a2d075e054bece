"""Intervals and tests from a bootstrap over patients."""

from dataclasses import dataclass

import numpy as np

from ..errors import CremaError


def patient_counts(patients, n=1000, seed=0):
    """Bootstrap over patients: int (n, records), how often each record is in each resample; a drawn patient brings all records along."""
    if n < 1:
        raise CremaError(f"a bootstrap needs at least one resample, not {n}")
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    people = patient.max() + 1
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=n)
    return drawn[:, patient]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval; as text `0.912 [0.903, 0.920]`, and with another format as that format says.

    The space between the ends does not break, so that in a narrow column of a table the bracket stays in one line.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec):
        spec = spec or "z.3f"  # z: what is rounded to zero has no sign
        return f"{self.value:{spec}} [{self.low:{spec}},\u00a0{self.high:{spec}}]"

    def __str__(self):
        return format(self)


def interval(value, resamples, *, reflect=False):
    """95 % bootstrap interval of a value from its resampled values; resamples in which it is undefined (NaN) are left out.

    Args:
        reflect: False for the percentile interval (Efron & Tibshirani 1993), True for the basic one, 2 value - percentiles (Davison &
            Hinkley 1997, section 5.2), which takes the bias of the resamples away where the percentile interval would double it.

    Returns:
        Interval; its ends are NaN where the value is undefined in every resample.
    """
    resamples = np.asarray(resamples)[np.isfinite(resamples)]
    ends = np.quantile(resamples, [0.025, 0.975]) if len(resamples) else np.full(2, np.nan)
    low, high = 2 * value - ends[::-1] if reflect else ends
    return Interval(float(value), float(low), float(high))


def p_value(differences):
    """Two-sided bootstrap p-value of "no difference": twice the smaller share of resampled differences on one side of zero.

    It inverts the percentile interval (Davison & Hinkley 1997, section 4.4: one is added to either count, so that n resamples never give
    less than 2 / (n + 1)). NaN where no resample is defined.
    """
    differences = np.asarray(differences)[np.isfinite(differences)]
    if not len(differences):
        return float("nan")
    sides = 1 + np.array([(differences <= 0).sum(), (differences >= 0).sum()])
    return float(min(1, 2 * sides.min() / (len(differences) + 1)))


def holm(p_values):
    """P-values adjusted for so many comparisons at once (Holm 1979, step-down): float (comparisons,), in the order given; NaN stays NaN.

    The smallest of m is multiplied by m, the next by m - 1 and so on, and none may fall below one before it.
    """
    p_values = np.asarray(p_values, dtype=float)
    adjusted = np.full_like(p_values, np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]  # NaN sort last
    steps = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps * p_values[order]))
    return adjusted
