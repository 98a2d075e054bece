"""Self-supervised objectives, one short module each, all of one shape.

An objective is an `Objective` module: built from an encoder and options, called with a batch
(`{"signal": float (batch, leads, samples) mV, "lead_mask": bool (batch, leads)}`), it returns a dict of scalar losses, `loss` among them.
"""

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


__all__ = ["CRMAE", "OBJECTIVES", "Objective", "build"]
