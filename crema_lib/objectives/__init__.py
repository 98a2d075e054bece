"""Self-supervised objectives, one short module each, all of one shape.

An objective is an `Objective` module: built from an encoder and options, called with a batch
(`{"signal": float (batch, leads, samples) mV, "lead_mask": bool (batch, leads)}`), it returns a dict of scalar losses, `loss` among them.
"""

import json
from pathlib import Path

from ..errors import CremaError
from .base import Objective
from .cr_mae import CRMAE

OBJECTIVES = {"cr_mae": CRMAE}


def build(name, encoder, **options):
    """The objective called `name` on an encoder.

    Raises:
        CremaError: unknown name or an option that the objective does not have.
    """
    if name not in OBJECTIVES:
        raise CremaError(f"unknown objective {name!r}: known are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](encoder, **options)


def load(folder):
    """The objective that a folder holds, of whatever class, see `Objective.save_pretrained`.

    Raises:
        CremaError: the folder holds no objective, or one of an unknown class.
    """
    path = Path(folder) / "objective.json"
    name = json.loads(path.read_text()).get("class") if path.is_file() else None
    known = {one.__name__: one for one in OBJECTIVES.values()}
    if name not in known:
        raise CremaError(f"{folder} holds no objective of a known class ({', '.join(known)}), it says {name}")
    return known[name].from_pretrained(folder)


__all__ = ["CRMAE", "OBJECTIVES", "Objective", "build", "load"]
