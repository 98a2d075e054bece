"""Groups of recordings inside one data set: by device, site, year, age or sex; what else differs between them, and splits by group.

A shift study by group trains a probe on some groups and scores it on another. The encoder is not trained again: one that was pretrained on
folds 1-8 of the data set may have seen, without labels, recordings at home and away alike. What `own_split` measures is therefore how a
probe carries over, and a test on it stands beside the test on fold 10, never in its place.

Dates of PTB-XL: it was recorded from October 1989 to June 1996, and each patient's dates were moved by a random offset (Wagner et al. 2020,
doi:10.1038/s41597-020-0495-6), which spreads them from 1984 to 2001. Bands of its years are blurred by that: they are no test of time.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from ..data.labels import SUPERCLASSES, age
from ..data.splits import SPLITS, patients
from ..errors import CremaError
from ..metrics import holm

AGES = (40, 60, 75)  # years, edges of the age bands
YEARS = (1990, 1995)  # edges of the bands of calendar years
OTHER = "other"  # small groups together
# Share of recordings with a finding of each superclass, by where a patient is met. Ours, made to span what a model may meet; not a survey.
DOMAINS = pd.DataFrame(
    [(0.80, 0.03, 0.08, 0.10, 0.05), (0.50, 0.12, 0.25, 0.22, 0.15), (0.25, 0.35, 0.40, 0.28, 0.18)],
    index=["health check", "outpatient", "emergency"],
    columns=list(SUPERCLASSES),
)


def device_family(devices):
    """Model of each device: the first word of its name, without variant and software version ("AT-6 C 5.5" -> "AT-6").

    Of PTB-XL's eleven names, by Schiller all, this leaves CS-12, CS100, AT-6 and AT-60.
    """
    return pd.Series(devices, dtype=str).str.split().str[0].fillna("")


def bands(values, edges):
    """Half-open bands between ascending edges, with open ends: "<40", "40-59", "60-74", ">=75" for edges 40, 60, 75.

    Args:
        values: float (records,), NaN for unknown. edges: whole numbers.

    Returns:
        str (records,), empty where the value is unknown.

    Raises:
        CremaError: no edge, or edges that do not ascend.
    """
    edges = np.asarray(edges)
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise CremaError(f"the edges {', '.join(map(str, edges)) or '(none)'} make no bands: give ascending numbers")
    inner = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    values = np.asarray(values, dtype=float)
    names = np.array([f"<{edges[0]}", *inner, f">={edges[-1]}"])[np.digitize(values, edges)]
    return np.where(np.isnan(values), "", names)


def year_bands(years, edges=YEARS):
    """`bands` of calendar years, int (records,), where 0 is unknown; see above for what PTB-XL's years are worth."""
    years = np.asarray(years)
    return bands(np.where(years > 0, years, np.nan), edges)


def age_bands(table, edges=AGES):
    """`bands` of ages in years; ages that the table lacks or that PTB-XL hides (above 89) are unknown."""
    return bands(age(table), edges)


GROUPINGS = {
    "device": lambda table: device_family(table["device"]),
    "site": lambda table: table["site"],
    "year": lambda table: year_bands(table["year"]),
    "age": age_bands,
    "sex": lambda table: table["sex"],
    "source": lambda table: table["source"],
}


def groups(table, by, least=1):
    """Group of each recording.

    Args:
        table: DataFrame with the column `by` of `store.COLUMNS`. by: one of `GROUPINGS`. least: groups with fewer recordings than this
            (most of PTB-XL's 52 sites) become one group `other`.

    Returns:
        str Series with the index of table; empty where the group is unknown.

    Raises:
        CremaError: an unknown grouping, or no recording with a known group.
    """
    if by not in GROUPINGS:
        raise CremaError(f"unknown grouping {by!r}: known are {', '.join(GROUPINGS)}")
    found = pd.Series(np.asarray(GROUPINGS[by](table), dtype=object), index=table.index, name=by)
    if not (found != "").any():
        raise CremaError(f"no recording of this data set has a known {by}: prepare it again if it should have, or group by something else")
    return found.where((found.map(found.value_counts()) >= least) | (found == ""), OTHER)


def confounding(table, by, targets, names, least=1):
    """What differs between groups beside the group: before a loss of accuracy is laid at a device's door.

    Cramer's V (0: group and label are independent, 1: one tells the other) and Pearson's chi-square test take the first recording of each
    patient whose group is known, because recordings of one patient are not independent. In a large set small differences are
    significant: look at V.

    Args:
        table, by, least: as in `groups`. targets: 0/1 (records, labels). names: of the labels.

    Returns:
        (shares, tests): DataFrames. Shares by group: n (recordings), patients, the share of each label, age (median), female (share of
        those whose sex is known), years ("1986-1997"), and shares of the split (train, valid, test); NaN or empty where no recording of
        the group tells. Tests by label: v, chi2, df, p, p_holm (see `metrics.holm`) and expected, the smallest expected count: below 5
        the test is not to be trusted.

    Raises:
        CremaError: targets that do not fit or are not 0/1, fewer than two groups, a label without a positive or a negative.
    """
    targets, group = np.asarray(targets), groups(table, by, least).to_numpy()
    if targets.shape != (len(table), len(names)):
        raise CremaError(f"targets of shape {targets.shape} do not fit {len(table)} recordings and {len(names)} labels")
    if not np.isin(targets, (0, 1)).all():
        raise CremaError("targets hold values other than 0 and 1: leave out the recordings without a label of the task")
    people, fold = pd.Series(patients(table)), table["fold"].to_numpy()
    known = group != ""
    told = pd.DataFrame(targets, columns=list(names))
    told["age"], told["female"] = age(table), table["sex"].map({"F": 1.0, "M": 0.0}).to_numpy()
    told[list(SPLITS)] = np.column_stack([np.isin(fold, own) for own in SPLITS.values()])
    parts = told[known].groupby(group[known])
    shares = parts.mean()
    shares["age"] = parts["age"].median()
    years = table["year"].where(table["year"] > 0).reset_index(drop=True)[known].groupby(group[known]).agg(["min", "max"])
    text = [f"{low:.0f}-{high:.0f}" if low == low else "" for low, high in years.to_numpy()]
    shares.insert(shares.columns.get_loc("train"), "years", text)
    shares.insert(0, "patients", people[known].groupby(group[known]).nunique())
    shares.insert(0, "n", parts.size())

    first = known & ~people.where(known).duplicated().to_numpy()
    if len(np.unique(group[first])) < 2:
        raise CremaError(f"all patients with a known {by} are of the group {group[first][0]}: there is nothing to compare")
    rows = []
    for name, target in zip(names, targets[first].T, strict=True):
        if target.min() == target.max():
            lacks = "negative" if target[0] else "positive"
            raise CremaError(f"the label {name} has no {lacks} among the patients with a known {by}: leave it out")
        counts = pd.crosstab(group[first], target).to_numpy()
        test = chi2_contingency(counts, correction=False)
        rows.append((association(counts, method="cramer"), test.statistic, test.dof, test.pvalue, test.expected_freq.min()))
    tests = pd.DataFrame(rows, index=list(names), columns=["v", "chi2", "df", "p", "expected"])
    tests.insert(4, "p_holm", holm(tests["p"]))
    shares = shares.sort_index(key=lambda bands: bands.str.lstrip("<"))  # the open band first
    return shares.rename_axis(by), tests.rename_axis("label")


class OwnSplit(NamedTuple):
    """Row numbers of a split by group, ascending: three parts at home, and away."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    away: np.ndarray


def own_split(table, by, held, seed=0, *, kept=None, least=1):
    """Hold groups out: 80, 10 and 10 % of the patients at home train, choose and test, and the held groups are away.

    A patient with recordings in both worlds belongs to home, and his recordings in the held groups are in no part; neither are recordings
    whose group is unknown. The store's own folds play no part, as groups are not spread evenly over them: PTB-XL's folds 9 and 10 took only
    recordings that a cardiologist had validated. See the top of this module for what a pretrained encoder has seen.

    Args:
        table, by, least: as in `groups`. held: group, or several. seed: of the draw of patients. kept: bool (records,), the recordings to
            split, or None for all.

    Returns:
        `OwnSplit`.

    Raises:
        CremaError: a held group that is not there, or an empty part.
    """
    group = groups(table, by, least).to_numpy()
    held = {held} if isinstance(held, str) else set(held)
    if not held or held - set(group) or "" in held:
        there = ", ".join(sorted(set(group) - {""}))
        raise CremaError(f"no recording is of the {by} {', '.join(sorted(held - set(group))) or '(none)'}: give some of {there}")
    kept = np.ones(len(table), dtype=bool) if kept is None else np.asarray(kept)
    people, out = patients(table), np.isin(group, list(held))
    home = kept & ~out & (group != "")
    drawn = np.random.default_rng(seed).permutation(np.unique(people[home]))
    ends = np.rint([0.8 * len(drawn), 0.9 * len(drawn)]).astype(int)
    at_home = [np.flatnonzero(home & np.isin(people, some)) for some in np.split(drawn, ends)]
    found = OwnSplit(*at_home, np.flatnonzero(kept & out & ~np.isin(people, drawn)))
    for name, rows in zip(found._fields, found, strict=True):
        if not len(rows):
            raise CremaError(f"no recording is in the part {name} when the {by} {', '.join(sorted(held))} is held out: hold out another")
    return found


def rake(targets, prevalences):
    """Weights that give records a stated label mix and change them the least (in relative entropy).

    This is the limit of raking, or iterative proportional fitting (Deming & Stephan 1940, doi:10.1214/aoms/1177731829), found at once as
    entropy balancing (Hainmueller 2012, doi:10.1093/pan/mpr025): w ~ exp(targets @ l), with l at the minimum of a convex function.

    Args:
        targets: 0/1 (records, labels). prevalences: (labels,), above 0 and below 1; the index of a Series names the labels in messages.

    Returns:
        float (records,) of sum 1, with weights @ targets equal to prevalences within .0001.

    Raises:
        CremaError: shapes or values out of range, or a mix that no weights of these records have.
    """
    targets, wanted = np.asarray(targets, dtype=float), pd.Series(prevalences, dtype=float)
    if targets.ndim != 2 or not len(targets) or targets.shape[1] != len(wanted):
        raise CremaError(f"{len(wanted)} prevalences do not fit targets of shape {targets.shape}: give one for each label")
    if not np.isin(targets, (0, 1)).all():
        raise CremaError("targets hold values other than 0 and 1: leave out the recordings without a label of the task")
    if not wanted.between(0, 1, inclusive="neither").all():
        raise CremaError(f"the prevalences {', '.join(f'{p:g}' for p in wanted)} must lie above 0 and below 1")
    p = wanted.to_numpy()
    best = minimize(
        lambda tilt: (logsumexp(targets @ tilt) - p @ tilt, softmax(targets @ tilt) @ targets - p),
        np.zeros(len(p)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-30, 30)] * len(p),  # where a mix cannot be had the minimum lies at infinity
        options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 1000},
    )
    weights = softmax(targets @ best.x)
    miss = np.abs(weights @ targets - p)
    if not miss.max() < 1e-4:  # NaN too
        worst = int(miss.argmax())
        raise CremaError(
            f"no weights of these {len(targets)} records give label {wanted.index[worst]} a prevalence of {p[worst]:g} together with the "
            "others: state a mix nearer to theirs"
        )
    return weights


def resample(targets, patients, prevalences, n, seed=0):
    """Draw recordings so that their labels have stated prevalences: another clinic, as far as the label mix makes one.

    One recording of each patient, drawn at random, stands for the patient. `rake` gives these the weights, and systematic sampling with
    probabilities in proportion to them (Madow 1949, doi:10.1214/aoms/1177729988), over recordings sorted by their labels, draws each
    combination of labels as often as it should be, within one. A recording is drawn twice only where n times its weight is above 1. What
    changes is P(label); P(signal | label) stays that of the data set.

    Args:
        targets: 0/1 (records, labels). patients: (records,). prevalences: as in `rake`, for instance a row of `DOMAINS` for the task
            `super`. n: recordings to draw.

    Returns:
        int64 (n,) row numbers, ascending.

    Raises:
        CremaError: see `rake`; or n is no positive whole number, or patients do not fit.
    """
    targets, patients = np.asarray(targets), np.asarray(patients)
    if len(patients) != len(targets):
        raise CremaError(f"{len(patients)} patients do not fit {len(targets)} records")
    if n != int(n) or n < 1:
        raise CremaError(f"cannot draw {n} recordings: give a positive whole number")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(targets))
    one = shuffled[np.unique(patients[shuffled], return_index=True)[1]]
    one = one[np.lexsort((rng.random(len(one)), *targets[one].T))]
    ends = np.cumsum(n * rake(targets[one], prevalences))
    drawn = np.searchsorted(ends, rng.random() + np.arange(n), side="right").clip(max=len(one) - 1)
    return np.sort(one[drawn])
