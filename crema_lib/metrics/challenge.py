"""The metric of the PhysioNet/CinC Challenges 2020 and 2021: a confusion matrix weighted by what a mistake costs.

Perez Alday et al. 2020 (doi:10.1088/1361-6579/abc960) give the reasons, github.com/physionetchallenges/evaluation-2021 the reference code
and the weights. Wrong calls earn some reward where treatment or outcome are alike; 1 is every label right, 0 is "sinus rhythm" for all.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError

NORMAL = "426783006"  # sinus rhythm, the call of who does nothing


@cache
def classes():
    """The 26 scored classes, index SNOMED CT `snomed` (equal codes joined by '|'): abbreviation, name, scp, challenge_records.

    `scp` joins the PTB-XL statements of the class by ';', empty where PTB-XL has none (see the file's head).
    """
    return _read("challenge_classes.csv", index_col="snomed", dtype={"snomed": str})


@cache
def weights():
    """Reward matrix of 2021: DataFrame (26 true classes, 26 called classes), both by SNOMED CT code."""
    return _read("challenge_weights.csv", index_col="class", dtype={"class": str})


def from_statements(scores, names):
    """Scores of the classes from those of PTB-XL statements: a class gets the largest of its statements.

    Args:
        scores: float (records, statements). names: of the statements.

    Returns:
        (scores, codes): float (records, classes) and the SNOMED CT codes of the classes that have a statement among the names.
    """
    place = {name: i for i, name in enumerate(names)}
    columns = {code: [place[one] for one in joined.split(";") if one in place] for code, joined in classes()["scp"].items()}
    columns = {code: chosen for code, chosen in columns.items() if chosen}
    return np.stack([np.asarray(scores)[:, chosen].max(axis=1) for chosen in columns.values()], axis=1), list(columns)


def metric(targets, decisions, codes, counts=None, *, rewards=None, normal=NORMAL):
    """Challenge metric: reward of the decisions, scaled so that the right ones get 1 and `normal` for every record gets 0.

    A record with labels y and calls o earns  sum of rewards[y, o] over its pairs / number of classes in y or o  (at least 1).

    Args:
        targets, decisions: 0/1 (records, classes); a column of NaN (no threshold, see `thresholds.decide`) is never called.
        codes: of the classes. counts: None, or how often each record counts (resamples, records).
        rewards: DataFrame by code, `weights()` if not given. normal: code of the class that stands for doing nothing.

    Returns:
        float, or (resamples,) with counts; 0 where doing nothing is right throughout, as in the reference.

    Raises:
        CremaError: shapes or codes do not fit, or values are not 0 and 1.
    """
    rewards = weights() if rewards is None else rewards
    if unknown := [code for code in (*codes, normal) if code not in rewards.index or code not in rewards.columns]:
        raise CremaError(f"no reward is known for class {', '.join(map(str, unknown))}: known are {', '.join(map(str, rewards.index))}")
    if normal not in codes:
        raise CremaError(f"class {normal} is the call of who does nothing and is missing among the classes")
    truth, called = np.asarray(targets), np.asarray(decisions, dtype=float)
    if truth.shape != called.shape or truth.shape[1:] != (len(codes),):
        raise CremaError(f"targets {truth.shape}, decisions {called.shape} and {len(codes)} classes do not fit (records, classes)")
    called = np.where(np.isnan(called).all(0), 0, called)
    if not (np.isin(truth, (0, 1)).all() and np.isin(called, (0, 1)).all()):
        raise CremaError("targets and decisions of the Challenge metric are 0 or 1: choose thresholds and apply them first")
    truth, called = truth.astype(bool), called.astype(bool)
    reward = np.nan_to_num(rewards.loc[list(codes), list(codes)].to_numpy(dtype=float))
    weighted = np.ones((1, len(truth))) if counts is None else np.asarray(counts, dtype=float)
    idle = np.broadcast_to(np.asarray(codes) == normal, truth.shape)
    observed, correct, inactive = (weighted @ _earned(truth, calls, reward) for calls in (called, truth, idle))
    span = correct - inactive
    result = np.divide(observed - inactive, span, out=np.zeros_like(span), where=span != 0)
    return float(result[0]) if counts is None else result


def _earned(truth, calls, reward):
    """What each record earns, float (records,)."""
    return ((truth @ reward) * calls).sum(1) / np.maximum((truth | calls).sum(1), 1)


def _read(name, **options):
    return pd.read_csv(Path(__file__).with_name(name), comment="#", keep_default_na=False, **options)
