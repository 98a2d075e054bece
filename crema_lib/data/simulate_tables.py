"""The simulator's heart in numbers: lead vectors, waves, what each finding changes, how frequent it is, and the devices.

The wave tables are ours: set by hand to the textbook pattern of each diagnosis, with amplitudes in the range of mean beats of PTB-XL
folds 1-8. The lead vectors are Dower's (Dower et al. 1980, doi:10.1016/S0022-0736(80)80067-8).
"""

import numpy as np

DOWER = np.array(
    [
        (0.632, -0.235, 0.059),  # I
        (0.235, 1.066, -0.132),  # II
        (-0.515, 0.157, -0.917),  # V1
        (0.044, 0.164, -1.387),
        (0.882, 0.098, -1.277),
        (1.213, 0.127, -0.601),
        (1.125, 0.127, -0.086),
        (0.831, 0.076, 0.230),  # V6
    ]
)
ELECTRODES = np.zeros((8, 9))  # the same leads from the electrodes RA LA LL V1-V6; chest leads against Wilson's terminal
ELECTRODES[0, [0, 1]], ELECTRODES[1, [0, 2]] = (-1, 1), (-1, 1)
ELECTRODES[2:, :3], ELECTRODES[2:, 3:] = -1 / 3, np.eye(6)
LIMB = np.zeros((12, 8))  # canonical leads from I II V1-V6
LIMB[:6, :2] = [[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]]
LIMB[6:, 2:] = np.eye(6)

# Waves: centre (ms after R), width (standard deviation, ms), x, y, z (mV). ST and T are those at 69 beats a minute, QT 375 ms.
WAVES = ("P1", "P2", "Q", "R", "S", "L", "ST", "T1", "T2")
ATRIA, QRS, REPOL = slice(0, 2), slice(2, 6), slice(6, 9)
NORMAL = np.array(
    [
        (-150, 17, 0.03, 0.07, -0.04),  # right atrium
        (-120, 18, 0.06, 0.06, 0.03),  # left atrium
        (-15, 9.5, -0.05, -0.05, -0.40),  # septum
        (-2, 10, 1.40, 0.52, 0.12),  # apex and free wall
        (11, 10.5, -0.12, 0.08, 0.72),  # base
        (30, 10.5, -0.10, -0.03, 0.04),  # outflow tracts
        (110, 45, 0.01, 0.00, -0.05),
        (215, 55, 0.08, 0.03, -0.13),
        (265, 34, 0.27, 0.09, -0.15),
    ]
)
# A finding adds its table, times a severity, to the normal beat; waves that it leaves alone are not listed.
FINDINGS = {
    "ASMI": {
        "Q": (-4, 2, 0.10, 0.05, 0.50),
        "R": (0, 0, -0.40, -0.15, 0.35),
        "ST": (0, 0, 0.02, 0, -0.08),
        "T2": (0, 0, -0.16, -0.05, 0.20),
    },
    "AMI": {"Q": (-4, 3, -0.14, 0, 0.38), "R": (0, 0, -0.40, -0.05, 0.32), "ST": (0, 0, 0.05, 0, -0.08), "T2": (8, 0, -0.25, -0.05, 0.20)},
    "ALMI": {"Q": (-5, 3, -0.32, 0, 0.22), "R": (0, 0, -0.65, -0.30, 0.20), "ST": (0, 0, 0.06, -0.01, -0.03), "T2": (5, 0, -0.32, 0, 0.08)},
    "IMI": {"Q": (-8, 4, 0, -0.28, 0.02), "R": (0, 0, -0.05, -0.42, 0.05), "ST": (0, 0, -0.02, 0.03, 0.01), "T2": (8, 0, -0.06, -0.17, 0)},
    "ILMI": {"Q": (-8, 4, -0.20, -0.27, 0), "R": (0, 0, -0.40, -0.36, 0.1), "ST": (0, 0, 0.03, 0.03, 0), "T2": (8, 0, -0.28, -0.16, 0)},
    "NDT": {"T1": (0, 0, -0.06, -0.02, 0.06), "T2": (0, 0, -0.20, -0.08, 0.08)},
    "NST_": {"ST": (0, 5, -0.07, -0.05, 0.04), "T1": (0, 0, -0.06, -0.03, 0.04), "T2": (0, 0, -0.10, -0.05, 0.02)},
    "ISC_": {"ST": (0, 8, -0.10, -0.06, 0.05), "T1": (0, 0, -0.12, -0.05, 0.07), "T2": (0, 0, -0.28, -0.12, 0.09)},
    "ISCAL": {"ST": (0, 5, -0.10, -0.02, 0.06), "T1": (0, 0, -0.10, -0.02, 0.06), "T2": (10, 0, -0.43, -0.07, 0.18)},
    "ISCIN": {"ST": (0, 5, 0, -0.08, 0.02), "T1": (0, 0, -0.02, -0.06, 0), "T2": (5, 0, -0.05, -0.22, 0)},
    "CRBBB": {"S": (0, 0, 0, -0.10, -0.70), "L": (20, 8, -0.35, -0.05, -0.58), "T1": (0, 0, 0.02, 0, 0.15), "T2": (10, 0, 0, -0.02, 0.19)},
    "IRBBB": {"S": (0, 0, 0, 0, -0.30), "L": (8, 1, -0.16, -0.03, -0.34), "T2": (0, 0, 0, 0, 0.06)},
    "CLBBB": {
        "Q": (-17, 6, 0.50, 0.20, 0.45),
        "R": (2, 9, -1.22, -0.24, 1.13),
        "S": (14, 9, 0.69, 0.07, 0.49),
        "L": (28, 9, 0.20, -0.12, 0.21),
        "ST": (40, 12, -0.08, -0.04, -0.10),
        "T1": (15, 5, -0.16, -0.07, -0.18),
        "T2": (25, 4, -0.36, -0.14, -0.26),
    },
    "IVCD": {"Q": (-8, 4, 0, 0, 0.05), "R": (-6, 5, -0.25, -0.10, 0), "S": (8, 6, 0.15, -0.05, -0.10), "L": (14, 6, 0.05, -0.08, 0.12)},
    "LAFB": {"Q": (0, 0, 0, 0.14, 0), "R": (0, 0, 0.05, -0.36, 0), "S": (2, 1, 0.10, -0.62, 0.05), "L": (0, 1, -0.05, -0.20, 0)},
    "LVH": {
        "Q": (0, 0, -0.08, 0, -0.10),
        "R": (0, 1, 0.75, 0.25, 0.30),
        "S": (1, 1.5, 0.25, 0.10, 0.45),
        "ST": (0, 0, -0.03, -0.01, -0.03),
    },
    "RVH": {
        "P1": (0, 0, -0.01, 0.06, -0.02),
        "R": (0, 0, -0.60, -0.20, -0.05),
        "S": (2, 0, -0.45, 0, -0.90),
        "L": (2, 3, -0.42, 0, -0.50),
        "ST": (0, 0, 0, -0.03, 0.06),
        "T1": (0, 0, 0, 0, 0.12),
        "T2": (0, 0, -0.04, -0.05, 0.22),
    },
    "LAO/LAE": {"P1": (-8, 0, 0, 0, 0), "P2": (14, 4, 0.05, 0.02, 0.09)},
}
DELTA = {code: np.array([table.get(wave, (0,) * 5) for wave in WAVES]) for code, table in FINDINGS.items()}

# Groups of which a patient has at most one member: frequency by site at the age of 58, spread of the severity, share of each member.
GROUPS = (  # in this order: what comes first decides on what follows
    ((0.05, 0.14, 0.16), 0.12, {"IRBBB": 0.32, "IVCD": 0.22, "CRBBB": 0.22, "CLBBB": 0.24}),
    ((0.025, 0.09, 0.10), 0.25, {"LAFB": 1.0}),
    ((0.015, 0.055, 0.06), 0.0, {"1AVB": 1.0}),
    ((0.03, 0.14, 0.14), 0.30, {"LVH": 0.86, "RVH": 0.14}),
    ((0.005, 0.025, 0.025), 0.25, {"LAO/LAE": 1.0}),
    ((0.08, 0.30, 0.40), 0.30, {"IMI": 0.40, "ASMI": 0.40, "ILMI": 0.08, "AMI": 0.06, "ALMI": 0.06}),
    ((0.10, 0.22, 0.27), 0.30, {"NDT": 0.35, "NST_": 0.20, "ISC_": 0.20, "ISCAL": 0.15, "ISCIN": 0.10}),
)
# Rhythms by site; the rest is sinus rhythm (SR). Ectopic beats come with any of them except that PAC needs a sinus node in command.
RHYTHMS = {"SBRAD": (0.05, 0.03, 0.02), "STACH": (0.01, 0.02, 0.09), "SARRH": (0.05, 0.03, 0.02)}
RHYTHMS |= {"AFIB": (0.012, 0.07, 0.11), "AFLT": (0.002, 0.011, 0.02)}
ECTOPY = {"PAC": (0.015, 0.025, 0.03), "PVC": (0.02, 0.05, 0.08)}

# Device: gain, high-pass corner (Hz), low-pass corner (Hz), wander, muscle noise, mains (mV, per electrode), share of its use by site.
DEVICES = {
    "Rest-12": (1.00, 0.05, 150.0, 0.05, 0.007, 0.002, (0.85, 0.15, 0.05)),
    "Clinic-R": (0.95, 0.15, 45.0, 0.08, 0.012, 0.004, (0.10, 0.75, 0.10)),
    "Bedside-M": (1.06, 0.40, 35.0, 0.13, 0.020, 0.008, (0.05, 0.10, 0.85)),
}
