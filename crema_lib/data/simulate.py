"""Simulated 12-lead ECGs: the data set that comes with the book and needs no download.

Model. A moving cardiac dipole (X to the left, Y to the feet, Z to the back, mV) is a sum of Gaussian waves P, Q, R, S, late QRS, ST and T
placed around each R peak (McSharry et al. 2003, doi:10.1109/TBME.2003.808805; in three dimensions Sameni et al. 2007,
doi:10.1155/2007/43407). Dower's lead vectors (Dower et al. 1980, doi:10.1016/S0022-0736(80)80067-8) project it to I, II and V1-V6, and the
other limb leads follow from Einthoven and Goldberger. Nine noisy electrodes, a device filter and the 0.5-40 Hz band of `prepare` follow.

The wave tables (`simulate_tables`) are ours. Labels are PTB-XL's SCP codes, and name what was simulated: there is no label noise.
"""

from numbers import Integral, Real

import numpy as np
import pandas as pd
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from ..errors import CremaError
from .simulate_tables import ATRIA, DELTA, DEVICES, DOWER, ECTOPY, ELECTRODES, GROUPS, LIMB, NORMAL, QRS, REPOL, RHYTHMS, WAVES
from .store import COLUMNS, EcgStore, StoreWriter, to_steps

VERSION = 2  # raise it whenever the bytes change, so that stores on disk are written again
BAND = (0.5, 40.0)  # Hz
CHUNK = 128  # records at a time: the arrays of one chunk stay in cache
PAD = 0.5  # s simulated before and after the record, and cut off: filters wrap around at the ends
LEAD_IN = 4.0  # s between the first heart beat and the record
SITES = ("health check", "outpatient", "emergency")


def simulate(n, *, seed=0, fs=100, seconds=10):
    """Simulate n recordings of patients who have one to four each.

    Args:
        n: number of recordings; seed: non-negative integer; fs: sampling rate in Hz, at least 100; seconds: length, at least 5.

    Returns:
        (signals, table): int16 (n, 12, fs * seconds) in steps of 1 uV, and a DataFrame with `store.COLUMNS`.

    Raises:
        CremaError: an argument is out of range.
    """
    _check(n, seed, fs, seconds)
    table, traits = _population(n, seed, round(fs * seconds))
    signals = np.empty((n, 12, round(fs * seconds)), dtype="<i2")
    for rows, chunk in _chunks(traits, seed, fs, seconds):
        signals[rows] = chunk
    return signals, table


def simulated_store(path, n, *, seed=0, fs=100, seconds=10):
    """The same recordings as an `EcgStore` at path: opened if it is there and was made with these arguments, else written."""
    _check(n, seed, fs, seconds)
    made = {"version": VERSION, "n": int(n), "seed": int(seed)}
    if store := _made(path, made, fs, seconds):
        return store
    table, traits = _population(n, seed, round(fs * seconds))
    writer = StoreWriter(path, fs=fs, seconds=seconds, source="simulated", band=BAND, simulator=made)
    try:
        for rows, chunk in _chunks(traits, seed, fs, seconds):
            writer.append(chunk, table[rows].to_dict("records"))
    except BaseException:
        writer.discard()
        raise
    if store := _made(path, made, fs, seconds):  # another process was faster, and may be reading already
        writer.discard()
        return store
    return writer.close()


def _made(path, made, fs, seconds):
    """The store at path if it was made so, None where it is absent, damaged or another one."""
    try:
        store = EcgStore(path)
    except CremaError:
        return None
    return store if store.meta.get("simulator") == made and (store.fs, store.seconds) == (fs, seconds) else None


def _check(n, seed, fs, seconds):
    """Raise CremaError for what cannot be simulated."""
    for name, value, kind, least in (
        ("n", n, Integral, 1),
        ("seed", seed, Integral, 0),
        ("fs", fs, Real, 100),
        ("seconds", seconds, Real, 5),
    ):
        if not isinstance(value, kind) or not least <= value < np.inf:
            raise CremaError(
                f"cannot simulate with {name}={value!r}: give {'an integer' if kind is Integral else 'a number'} of at least {least}"
            )


def _chunks(traits, seed, fs, seconds):
    """Yield (slice of records, int16 signals); every chunk draws from its own stream."""
    n = len(traits["hr"])
    for start in range(0, n, CHUNK):
        rows = slice(start, min(start + CHUNK, n))
        rng = np.random.default_rng([seed, 1, start])
        yield rows, _signals({name: values[rows] for name, values in traits.items()}, rng, fs, seconds)


def _population(n, seed, samples):
    """Who is recorded: the table, and a dict of arrays (n, ...) with all that makes each heart, rhythm and recording its own."""
    rng = np.random.default_rng([seed, 0])
    patient = np.repeat(np.arange(n), rng.choice(4, n, p=(0.72, 0.17, 0.07, 0.04)) + 1)[:n]
    people = patient[-1] + 1
    site = rng.choice(3, people, p=(0.34, 0.36, 0.30))
    age = np.clip(np.rint(rng.normal(np.array([46, 61, 66])[site], 14)), 18, 95)
    male = rng.random(people) < 0.52
    risk = 2 / (1 + np.exp(-(age - 58) / 9))

    severity = {code: np.zeros(people) for _, _, share in GROUPS for code in share}
    for frequency, spread, share in GROUPS:
        p = np.array(frequency)[site] * risk
        if "ISC_" in share:  # strain accompanies hypertrophy; behind a bundle branch block ST and T say nothing
            p = np.where(severity["LVH"] > 0, 2 * p, p) * (severity["CLBBB"] + severity["CRBBB"] == 0)
        if "IMI" in share or "LVH" in share:  # neither can be read behind a left bundle branch block
            p = p * (severity["CLBBB"] == 0)
        has = rng.random(people) < p
        member = rng.choice(len(share), people, p=np.array(list(share.values())))
        strength = np.clip(np.exp(spread * rng.standard_normal(people)), 0.5, 2)
        for i, code in enumerate(share):
            severity[code] = np.where(has & (member == i), strength, 0)

    def rhythms(who):
        p = np.array([np.array(f)[site[who]] * (risk[who] if code in ("AFIB", "AFLT") else 1) for code, f in RHYTHMS.items()])
        drawn = (rng.random(len(who)) > np.cumsum(p, axis=0)).sum(axis=0)
        return np.array([*RHYTHMS, "SR"])[drawn]

    rhythm = np.where(rng.random(n) < 0.75, rhythms(np.arange(people))[patient], rhythms(patient))  # most stay as they were
    sinus = np.isin(rhythm, ["SR", "SBRAD", "STACH", "SARRH"])
    chance = {code: np.array(f)[site[patient]] for code, f in ECTOPY.items()}
    pvc = rng.random(n) < chance["PVC"] * risk[patient]
    pac = (rng.random(n) < chance["PAC"] * risk[patient]) & sinus & ~pvc
    severity = {code: s[patient] for code, s in severity.items()}
    severity["1AVB"] *= np.isin(rhythm, ["SR", "SBRAD"])  # needs P waves, and room for the long PR
    findings = np.stack(list(severity.values()), axis=1)
    normal = sinus & ~pvc & (findings == 0).all(axis=1)

    def traits(patient_sd, record_sd, *shape):  # a patient is recognisable: what differs between records is small
        return patient_sd * rng.standard_normal((people, *shape))[patient] + record_sd * rng.standard_normal((n, *shape))

    site, age, male = site[patient], age[patient], male[patient]
    hr = np.clip(70 + 3 * ~male + traits(8, 4), 61, 98)
    hr = np.select(
        [rhythm == "SARRH", rhythm == "SBRAD", rhythm == "STACH", rhythm == "AFIB"],
        [
            hr - 5,
            58 - rng.gamma(2, 2.5, n).clip(0, 16),
            103 + rng.gamma(2, 7, n).clip(0, 45),
            np.clip(88 * np.exp(traits(0.2, 0.1)), 50, 150),
        ],
        hr,
    )
    pr = np.clip(158 - 0.3 * (hr - 70) + traits(14, 4), 116, 192)
    pr = np.where(severity["1AVB"] > 0, 215 + rng.gamma(2, 20, people)[patient].clip(0, 90), pr)
    device = (rng.random(n)[:, None] > np.cumsum(np.array([d[-1] for d in DEVICES.values()]).T[site], axis=1)[:, :-1]).sum(axis=1)
    size = np.exp(traits(0.27, 0.03, 1))  # tall QRS and tall T go together
    made = {
        "rhythm": rhythm, "hr": hr, "pr": pr, "pvc": pvc, "pac": pac, "device": device, "site": site,
        "qtc": (395 + 10 * ~male + 0.1 * (age - 50) + traits(14, 4)) / 393,
        "findings": findings * np.exp(traits(0, 0.07, 1)),
        "size": size * np.where(male, 1.1, 1.0)[:, None] * (1 - 0.002 * (age - 50))[:, None],
        "t_size": np.sqrt(size) * np.exp(traits(0.24, 0.06, 1)) * np.where(male, 1.1, 0.85)[:, None],
        "p_size": np.exp(traits(0.25, 0.06, 1)),
        "width": np.exp(traits(0.06, 0.01, 1)) * np.where(male, 1.03, 0.98)[:, None],
        "jitter": traits(1, 0.3, len(WAVES), 3),
        # frontal, horizontal and sagittal turn of the heart; the axis moves to the left with age
        "turn": np.deg2rad(traits(np.array([13, 14, 10]), 2.5, 3) - np.outer(0.25 * (age - 50), [1, 0, 0])),
        "leads": DOWER + traits(0.08, 0.02, 8, 3) * np.abs(DOWER).max(axis=1, keepdims=True),  # body shape, electrode positions
        "ectopic": traits(1, 0.1, 2, 3),
        "left_focus": (rng.random(people) < 0.5)[patient],
        "atrial": traits(1, 0.3, 3),
        "noise": np.exp(rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 0.25, (n, 9))),
    }  # fmt: skip
    flags = {"NORM": normal} | {code: s > 0 for code, s in severity.items()} | {"PAC": pac, "PVC": pvc}
    codes = np.array(list(flags))
    labels = [";".join([*codes[on], beat]) for on, beat in zip(np.stack(list(flags.values()), axis=1), rhythm, strict=True)]
    columns = {
        "record": [f"sim{i:06d}" for i in range(n)],
        "patient": [f"p{i:06d}" for i in patient],
        "source": "simulated",
        "fold": (rng.permutation(people) % 10 + 1)[patient],
        "age": age,
        "sex": np.where(male, "M", "F"),
        "device": np.array(list(DEVICES))[device],
        "site": np.array(SITES)[site],
        "labels": labels,
        "lead_mask": 4095,
        "valid": samples,
        "quality": "",
        "year": 0,
    }
    return pd.DataFrame(columns).astype(COLUMNS), made


def _beats(traits, rng, seconds, end):
    """R-peak times (n, beats) in s to beyond `end`, kind of each beat (0 ordinary, 1 PAC, 2 PVC), and flutter frequency (n,) in Hz."""
    n, mean = len(traits["hr"]), 60 / traits["hr"][:, None]
    rhythm = traits["rhythm"][:, None]
    count = int((end + PAD + LEAD_IN) / 0.33) + 3
    breath = np.sin(2 * np.pi * (rng.uniform(0.18, 0.3, (n, 1)) * mean * np.arange(count) + rng.random((n, 1))))
    depth = np.where(rhythm == "SARRH", rng.uniform(0.12, 0.2, (n, 1)), 0.8 / traits["hr"][:, None] * rng.random((n, 1)) * 2)
    sinus = mean * (1 + depth * breath + 0.008 * rng.standard_normal((n, count)))
    spread = rng.uniform(0.18, 0.28, (n, 1))
    fibrillation = mean * rng.gamma(1 / spread**2, spread**2, (n, count))
    flutter = np.clip(rng.normal(4.9, 0.3, n), 4.2, 5.6)
    fixed = rng.choice([2, 3, 4], (n, 1), p=(0.5, 0.1, 0.4))
    ratio = np.where(rng.random((n, 1)) < 0.75, fixed, rng.choice([2, 4], (n, count)))
    rr = np.where(rhythm == "AFIB", np.maximum(fibrillation, 0.34), np.where(rhythm == "AFLT", ratio / flutter[:, None], sinus))
    start = -PAD - LEAD_IN + rng.random((n, 1)) * mean

    ectopic = rng.random((n, count)) < 0.08
    place = np.abs(start + rr.cumsum(axis=1) - seconds * rng.uniform(0.25, 0.8, (n, 1))).argmin(axis=1)  # one surely in view
    for step in (-1, 0, 1):
        ectopic[np.arange(n), (place + step).clip(0, count - 1)] = step == 0
    ectopic[:, 1:] &= ~ectopic[:, :-1]
    kind = ectopic * (traits["pac"] + 2 * traits["pvc"])[:, None]
    early = np.clip(rr * rng.uniform(0.55, 0.75, (n, count)), np.minimum(0.4, 0.85 * rr), None)
    pause = np.where(kind[:, :-1] == 2, 2 * rr[:, 1:] - early[:, :-1], 1.08 * rr[:, 1:])  # compensatory after PVC; PAC resets the node
    pause = np.where(rhythm == "AFLT", rr[:, 1:] + rr[:, :-1] - early[:, :-1], pause)  # conduction stays locked to the flutter
    rr[:, 1:] = np.where(kind[:, :-1] > 0, pause, rr[:, 1:])
    rr = np.where(kind > 0, early, rr)
    return start + rr.cumsum(axis=1), kind, flutter


def _waves(traits):
    """The wave table (n, waves, 5) of each record's ordinary beat, in ms and mV: finding, size, turn of the heart, own shape."""
    deltas = np.stack([DELTA.get(code, np.zeros_like(NORMAL)) for *_, share in GROUPS for code in share])
    waves = NORMAL + np.tensordot(traits["findings"], deltas, axes=1)
    waves[:, :, 1] = np.maximum(waves[:, :, 1], 6)
    waves[:, QRS, :2] *= traits["width"][:, :, None]
    waves[:, ATRIA, 0] -= traits["pr"][:, None] - 150
    waves[:, :, 2:] *= np.concatenate([traits[s] for s in ("p_size",) * 2 + ("size",) * 4 + ("t_size",) * 3], axis=1)[:, :, None]
    spread = np.array([0.012] * 2 + [0.05, 0.10, 0.09, 0.05] + [0.010, 0.015, 0.025])[:, None]
    waves[:, :, 2:] += spread * traits["jitter"]
    vectors = waves[:, :, 2:]
    for angle, (i, j) in zip(traits["turn"].T[:, :, None], ((0, 1), (0, 2), (1, 2)), strict=True):
        a, b = vectors[:, :, i].copy(), vectors[:, :, j].copy()
        vectors[:, :, i] = np.cos(angle) * a - np.sin(angle) * b
        vectors[:, :, j] = np.sin(angle) * a + np.cos(angle) * b
    return waves.astype(np.float32)


def _pvc_waves(traits):
    """The wave table (m, 3, 5) of a ventricular ectopic beat: slow QRS from one ventricle to the other, T against it."""
    main = np.where(traits["left_focus"][:, None], (-0.5, 0.3, -1.1), (0.5, 0.9, 1.1)) + 0.3 * traits["ectopic"][:, 0]
    late = 0.75 * main + 0.25 * traits["ectopic"][:, 1]
    rows = [np.concatenate([np.broadcast_to(when, (len(main), 2)), v], axis=1)
            for when, v in (((-18, 22), main), ((32, 24), late), ((280, 62), -0.22 * (main + late)))]  # fmt: skip
    return np.stack(rows, axis=1).astype(np.float32)


def _bumps(dt, table):
    """Gaussians (n, waves, samples) of a wave table (n, waves, 5) at time since R `dt` (n, samples) in ms."""
    u = (dt[:, None] - table[:, :, :1]) / table[:, :, 1:2]
    np.multiply(u, u, out=u)
    u *= np.float32(-0.5)
    return np.exp(u, out=u)


def _dipole(traits, rng, t, seconds):
    """Dipole moment (n, 3, samples) in mV at times t (s)."""
    n, fs = len(traits["hr"]), 1 / (t[1] - t[0])
    peaks, kind, flutter = _beats(traits, rng, seconds, t[-1])
    passed = np.zeros((n, len(t) + 1), dtype=np.int32)
    np.add.at(passed, (np.arange(n)[:, None], np.clip(np.ceil((peaks - t[0]) * fs), 0, len(t)).astype(int)), 1)
    last = passed[:, :-1].cumsum(axis=1) - 1  # the latest R peak at each sample

    def at(values, beat):
        return np.take_along_axis(values.astype(np.float32), beat, axis=1)

    since = 1000 * (t - np.take_along_axis(peaks, last, axis=1)).astype(np.float32)
    until = 1000 * (t - np.take_along_axis(peaks, last + 1, axis=1)).astype(np.float32)
    near = last + (since > -until)
    nearest = np.where(since > -until, until, since)

    rr = np.diff(peaks, axis=1, prepend=peaks[:, :1] - 60 / traits["hr"][:, None])
    ahead = np.concatenate([rr[:, 1:], rr[:, -1:]], axis=1)
    qt = traits["qtc"][:, None] * np.cbrt(
        (0.6 * np.median(rr, axis=1, keepdims=True) + 0.4 * rr) / 0.87
    )  # Fridericia, with memory; 1 at 69 /min
    qt = np.minimum(qt, (ahead - 0.01) / 0.335)  # T ends before the next beat
    size = 1 + 0.05 * np.sin(2 * np.pi * (rng.uniform(0.18, 0.3, (n, 1)) * peaks + rng.random((n, 1))))  # breathing
    atrial = np.isin(traits["rhythm"], ["AFIB", "AFLT"])[:, None]
    p = np.where(atrial | (kind == 2), 0, np.where(kind == 1, rng.uniform(-0.9, 0.3, kind.shape), 1))  # PAC: from elsewhere in the atria

    waves = _waves(traits)
    table = [waves[:, part] for part in (ATRIA, QRS, REPOL)]
    own = np.where(kind == 2, 0, size)
    bumps = [_bumps(until, table[0]), _bumps(nearest, table[1]), _bumps(since / at(qt, last), table[2])]
    for part, gain in zip(bumps, (at(p, last + 1), at(own, near), at(own, last)), strict=True):
        part *= gain[:, None]
    dipole = np.matmul(waves[:, :, 2:].transpose(0, 2, 1), np.concatenate(bumps, axis=1))

    m = np.flatnonzero(traits["pvc"])
    if len(m):
        waves = _pvc_waves({name: values[m] for name, values in traits.items()})
        bumps = [
            _bumps(nearest[m], waves[:, :2]) * at(kind == 2, near)[m][:, None],
            _bumps(since[m], waves[:, 2:]) * at(kind == 2, last)[m][:, None],
        ]
        dipole[m] += np.matmul(waves[:, :, 2:].transpose(0, 2, 1), np.concatenate(bumps, axis=1))

    for code, make in (("AFIB", _fibrillation), ("AFLT", _flutter)):
        m = np.flatnonzero(traits["rhythm"] == code)
        if len(m):
            dipole[m] += make(rng, t, traits["atrial"][m], traits["p_size"][m], flutter[m, None], peaks[m, :1])
    return dipole


def _fibrillation(rng, t, way, size, *_):
    """Atrial dipole (m, 3, samples): two wandering 4-9 Hz waves, the larger one towards V1."""
    total = 0
    for direction, sd in (((-0.016, 0.005, -0.030), 0.007), ((0.005, 0.020, 0.0), 0.006)):
        rate, drift, swell, lag = (rng.uniform(*limits, (len(way), 1)) for limits in ((4.8, 8), (0.1, 0.5), (0.2, 0.7), (0, 6.3)))
        phase = (
            2 * np.pi * rate * t + 1.2 * np.sin(2 * np.pi * drift * t + lag) / drift * 0.5 + 0.9 * np.sin(2 * np.pi * 1.7 * drift * t) + lag
        )
        wave = (np.sin(phase) + 0.3 * np.sin(2 * phase + 1)) * (1 + 0.5 * np.sin(2 * np.pi * swell * t + lag))
        total = total + (np.array(direction) + sd * way)[:, :, None] * (size * wave)[:, None]
    return total


def _flutter(rng, t, way, size, rate, first):
    """Atrial dipole (m, 3, samples): a sawtooth that falls slowly and rises fast in II, III and aVF, in step with the R peaks."""
    phase = 2 * np.pi * (rate * (t - first) + rng.random((len(way), 1)))
    saw = sum(np.sin(h * phase) / h for h in range(1, 4)) / 1.5
    vector = np.array([0.01, 0.11, -0.03]) + 0.02 * way
    return (vector * size)[:, :, None] * saw[:, None]


def _noise(traits, rng, frequency, t):
    """Spectra (n, 9 electrodes, frequencies) of baseline wander, muscle, mains hum and, now and then, an electrode that moves."""
    n, samples = len(traits["hr"]), len(t)
    shapes = np.stack([1 / (1 + (frequency / 0.3) ** 2), frequency / (frequency + 8), np.exp(-(((frequency - 50) / 0.1) ** 2))])
    shapes *= samples / 2 / np.sqrt((shapes**2 * (frequency <= 51)).sum(axis=1, keepdims=True))  # mV below 51 Hz, whatever the rate
    levels = np.array([d[3:6] for d in DEVICES.values()])[traits["device"]]
    level = np.sqrt((levels**2) @ (shapes**2)).astype(np.float32)
    white = rng.standard_normal((n, 9, len(frequency), 2), dtype=np.float32).view(np.complex64)[..., 0]
    white *= level[:, None] * traits["noise"].astype(np.float32)[:, :, None]
    moves = np.flatnonzero(rng.random(n) < np.array([0.02, 0.04, 0.12])[traits["site"]])
    since = np.maximum(t - rng.uniform(0, t[-1], (len(moves), 1)), 0)
    jump = rng.normal(0, 0.35, (len(moves), 1)) * (1 - np.exp(-since / 0.08)) * np.exp(-since / rng.uniform(0.2, 0.8, (len(moves), 1)))
    white[moves, rng.integers(0, 9, len(moves))] += rfft(jump).astype(np.complex64)
    return white


def _response(frequency):
    """Complex gain (devices, frequencies): the device's first-order high-pass and second-order low-pass, then the band of `prepare`."""
    gain, high, low = np.array([d[:3] for d in DEVICES.values()]).T[:, :, None]
    f = np.maximum(frequency, 1e-9)
    device = gain / (1 + high / (1j * f)) / (1 - (f / low) ** 2 + 1j * np.sqrt(2) * f / low)
    return device / (1 + (BAND[0] / f) ** 4) / (1 + (f / BAND[1]) ** 8)


def _signals(traits, rng, fs, seconds):
    """One chunk: int16 (n, 12, samples), steps of 1 uV."""
    samples, edge = round(fs * seconds), round(fs * PAD)
    t = (np.arange(next_fast_len(samples + 2 * edge, real=True)) - edge) / fs
    frequency = rfftfreq(len(t), 1 / fs)
    spectrum = np.matmul(traits["leads"].astype(np.complex64), rfft(_dipole(traits, rng, t, seconds).astype(np.float32)))
    spectrum += np.matmul(ELECTRODES.astype(np.complex64), _noise(traits, rng, frequency, t))
    spectrum *= _response(frequency).astype(np.complex64)[traits["device"]][:, None]
    leads = irfft(spectrum, len(t))[..., edge : edge + samples]
    return to_steps(np.matmul(LIMB.astype(np.float32), leads))[0]
