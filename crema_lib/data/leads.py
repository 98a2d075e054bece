"""The canonical twelve leads: names, spellings, and the limb leads that follow from others.

Canonical order everywhere: I II III aVR aVL aVF V1 V2 V3 V4 V5 V6, in millivolt.
"""

import functools
import re

import numpy as np

from ..errors import CremaError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Subsets by their number of leads. 12, 6, 4, 3 and 2 are those of the PhysioNet/CinC Challenge 2021 (Reyna et al. 2021); 8 are the leads
# from which the twelve follow; lead I alone, what a wrist-worn recorder shows, is our choice.
SUBSETS = {
    12: LEADS,
    8: ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    6: LEADS[:6],
    4: ("I", "II", "III", "V2"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
    1: ("I",),
}
_BY_KEY = {lead.upper(): i for i, lead in enumerate(LEADS)}


@functools.lru_cache(maxsize=4096)
def lead_index(name):
    """Position of a lead in `LEADS` from any usual spelling (`AVR`, `aVR`, `MDC_ECG_LEAD_AVR`, `Lead II`, `ecg_v1`, `DII`), else None.

    A name that begins with a minus is that of an inverted lead (-aVR of the Cabrera order) and none of the twelve.
    """
    key = re.sub(r"^(MDC[ _]?)?(ECG[ _])?(LEAD[ _]?)?(D(?=I))?", "", str(name).strip().upper())
    return None if str(name).strip().startswith("-") else _BY_KEY.get(key.strip(" _-"))


def check_names(names):
    """Raise CremaError where a name is none of the twelve leads.

    For arrays, whose leads the caller names: a name that is not known there is a slip, which passed over would cost a lead. Channels of a
    file that are no leads (respiration, a marker) were named by whoever wrote it, and `to_canonical` drops them.
    """
    if unknown := [str(name) for name in names if lead_index(name) is None]:
        raise CremaError(f"no known lead is called {', '.join(unknown)}: known are {' '.join(LEADS)}; take other rows out of the array")


def to_canonical(signal, names):
    """Order leads by name and derive the limb leads that are missing; rows of other names are dropped, see `check_names`.

    Args:
        signal: float array (leads, samples), mV.
        names: one lead name per row, any spelling.

    Returns:
        (signal, present): float32 (12, samples) with zeros where a lead is missing, and bool (12,).

    Derivation (Einthoven 1912, Goldberger 1942), only from leads that are there:
        III = II - I, aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2.

    Raises:
        CremaError: shape and names disagree, a name is given twice, or no name is one of the twelve.
    """
    signal = np.asarray(signal, dtype=np.float32)
    if signal.ndim != 2 or len(names) != len(signal):
        raise CremaError(f"the signal has shape {signal.shape}, which does not fit {len(names)} lead names: give (leads, samples)")
    out = np.zeros((12, signal.shape[1]), dtype=np.float32)
    present = np.zeros(12, dtype=bool)
    for row, name in zip(signal, names, strict=True):
        i = lead_index(name)
        if i is None:
            continue
        if present[i]:
            raise CremaError(f"lead {LEADS[i]} is given twice (names: {', '.join(map(str, names))})")
        out[i], present[i] = row, True
    if not present.any():
        raise CremaError(f"no known lead among {', '.join(map(str, names))}: known are {' '.join(LEADS)}")
    if present[1] and present[2] and not present[0]:
        out[0], present[0] = out[1] - out[2], True
    if present[0] and present[2] and not present[1]:
        out[1], present[1] = out[0] + out[2], True
    if present[0] and present[1]:
        one, two = out[0], out[1]
        for i, derived in ((2, two - one), (3, -(one + two) / 2), (4, one - two / 2), (5, two - one / 2)):
            if not present[i]:
                out[i], present[i] = derived, True
    return out, present
