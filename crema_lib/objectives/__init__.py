"""Self-supervised objectives, one short module each, all of one shape.

An objective is an `Objective` module: built from an encoder and options, called with a batch
(`{"signal": float (batch, leads, samples) mV, "lead_mask": bool (batch, leads)}`), it returns a dict of scalar losses, `loss` among them.
"""

import inspect
import json

from .. import weights
from ..errors import CremaError
from .base import Objective
from .cmsc import CMSC
from .cr_mae import CRMAE
from .jepa import JEPA
from .mae import MAE
from .simclr import SimCLR
from .st_mem import STMEM
from .vicreg import VICReg
from .w2v_cmsc_rlm import W2VCMSCRLM

OBJECTIVES = {
    "cr_mae": CRMAE,
    "mae": MAE,
    "st_mem": STMEM,
    "simclr": SimCLR,
    "vicreg": VICReg,
    "cmsc": CMSC,
    "w2v_cmsc_rlm": W2VCMSCRLM,
    "jepa": JEPA,
}
TITLES = {
    "cr_mae": "CR-MAE",
    "mae": "MAE",
    "st_mem": "ST-MEM",
    "simclr": "SimCLR",
    "vicreg": "VICReg",
    "cmsc": "CMSC",
    "w2v_cmsc_rlm": "W2V+CMSC+RLM",
    "jepa": "JEPA",
}


def options(name):
    """The options of the objective called `name` with their defaults: dict name -> value.

    Raises:
        CremaError: unknown objective.
    """
    if name not in OBJECTIVES:
        raise CremaError(f"unknown objective {name!r}: known are {', '.join(OBJECTIVES)}")
    found = inspect.signature(OBJECTIVES[name]).parameters.values()
    return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}


def build(name, encoder, **chosen):
    """The objective called `name` on an encoder.

    Raises:
        CremaError: unknown name, an option that the objective does not have, or a value that it does not take.
    """
    known = options(name)
    for option in chosen:
        if option not in known:
            raise CremaError(f"the objective {name} has no option {option}: it has {', '.join(known)}")
    return OBJECTIVES[name](encoder, **chosen)


def load(folder):
    """The objective of a model, of whatever class, see `Objective.save_pretrained`; `folder` may be a name as in `SiT.from_pretrained`.

    Raises:
        CremaError: there is no objective, one of an unknown class, or a file that is damaged or was exchanged.
    """
    folder = weights.locate(folder)
    weights.verify(folder, weights.HEADS)
    path = folder / "objective.json"
    try:
        name = json.loads(path.read_text()).get("class")
    except (OSError, ValueError, AttributeError):  # not there, no JSON, no object
        name = None
    known = {one.__name__: one for one in OBJECTIVES.values()}
    if name not in known:
        raise CremaError(f"{folder} holds no objective of a known class ({', '.join(known)}), it says {name}")
    return known[name].from_pretrained(folder)
