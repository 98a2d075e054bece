"""What the cards read: the run records of a profile, and the few ways in which figures are taken from them."""

import numpy as np
import pandas as pd

from .. import runs
from ..errors import CremaError
from ..metrics import Interval
from ..objectives import OBJECTIVES
from ..paths import home
from ..sit import SIZES

MODEL, TWIN, PROBE = "CR-MAE", "random initialisation", "CR-MAE, probe"  # rows of the records
INSIDE = r"(device|site|year) "  # samples of record 09 that are parts of the home set


def read_all(profile="ptbxl"):
    """The committed records of a profile: dict name of the file -> record.

    Raises:
        CremaError: there is none, or one is malformed.
    """
    found = sorted((home() / "results" / profile).glob("*.json"))
    if not found:
        raise CremaError(f"results/{profile} holds no run record: run the chapters with this profile first")
    return {path.stem: runs.read(path) for path in found}


def record(records, chapter):
    """One record; CremaError where it is not there."""
    if chapter not in records:
        raise CremaError(f"the cards need the record {chapter}.json, which is not there: run its chapter or command first")
    return records[chapter]


def metric(records, chapter, name, task, model):
    """The `Interval` of one metric of a record."""
    found = [m for m in record(records, chapter)["metrics"] if (m["name"], m["task"], m["model"]) == (name, task, model)]
    if len(found) != 1:
        raise CremaError(f"the record {chapter} has {len(found)} rows for {name}, {task}, {model} where the cards need one: run it again")
    return Interval(*(np.nan if found[0][key] is None else found[0][key] for key in ("value", "low", "high")))


def frame(records, chapter, key, **where):
    """Those rows of a table in the `extra` of a record that have the given values."""
    frame = pd.DataFrame(record(records, chapter)["extra"].get(key) or [])
    for column, value in where.items():
        frame = frame[frame[column] == value] if column in frame else frame[:0]
    if frame.empty:
        raise CremaError(f"the record {chapter} has no rows of {key} with {where}, which the cards need: run it again")
    return frame.reset_index(drop=True)


def check(records, config, objective):
    """Refuse records of another model: figures of one model on the card of another would be the worst of errors."""
    p, half = record(records, "03_pretraining")["parameters"], record(records, "precision")["extra"]["config"]
    told = {**SIZES[p["model"]], **{key: p[key] for key in ("width", "depth") if p.get(key)}}
    told |= {key: p[key] for key in ("patch", "stem", "fs")} | {"objective": OBJECTIVES[p["objective"]].__name__, "scale": half["scale"]}
    found = {**config, "objective": objective}
    if wrong := [f"{key} {found.get(key)} and not {told[key]}" for key in told if found.get(key) != told[key]]:
        raise CremaError(f"the records are of another model than these weights, which have {', '.join(wrong)}: commit the records of these")


def outside(records, **where):
    """Rows of record 09 on the sets of other hospitals."""
    places = frame(records, "09_other_hospitals", "other places", model=PROBE, **where)
    return places[~places["sample"].str.match(INSIDE)]


def recognised(records, model=MODEL):
    """The row of record 15 that says how often the features of a model pick the right person: most leads, the best space."""
    people = frame(records, "15_any_leads", "people", model=model, measure="top-1")
    return people[people["leads"] == people["leads"].max()].sort_values("value").iloc[-1]
