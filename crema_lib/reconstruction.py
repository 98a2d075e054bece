"""Which waves a masked autoencoder draws well: reconstruction error of P, QRS, T and the rest, by the marks of cardiologists.

LUDB (Kalyakulina et al. 2020, doi:10.1109/ACCESS.2020.3029211) has onset, peak and offset of every P, QRS and T in each lead, as WFDB
annotations `(`, `p`, `N` or `t`, and `)`, one file a lead. Its first and last beats are not marked: what lies before the first mark of a
lead and after the last one belongs to no class.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, gcd
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .data import splits
from .data.sources import rows_of
from .embeddings import frozen
from .errors import CremaError
from .metrics import interval, patient_counts
from .readings import batches_of

WAVES = ("P", "QRS", "T", "rest")
SYMBOLS = {"p": 0, "N": 1, "t": 2}
REST, UNMARKED = 3, -1
_WAVE = re.compile(r"[(pNt]+\)+")


# --- marks


def lead_marks(symbols, times, ratio, samples):
    """Class of every sample of a lead from its annotations.

    A wave is a run of onsets and peaks up to its offsets. It starts at the first of them: a file holds one mark a sample, so that an onset
    at the peak is missing in it. A wave without a peak, or with peaks of two kinds, is left without a class (ours).

    Args:
        symbols: annotation symbols in order of time. times: int (marks,), their sample numbers at the rate of the annotations.
        ratio: rate wanted over that rate, a `Fraction`. samples: length at the rate wanted.

    Returns:
        int8 (samples,): positions in `WAVES`, or -1. A sample belongs to a wave from its onset to its offset, both included.
    """
    marks = np.full(samples, UNMARKED, dtype=np.int8)
    found = list(_WAVE.finditer("".join(symbols)))
    times = [int(time) * ratio for time in times]

    def mark(first, last, kind):
        marks[ceil(times[first]) : floor(times[last]) + 1] = kind

    if found:
        mark(found[0].start(), found[-1].end() - 1, REST)
    for wave in found:
        kinds = set(wave[0]) & set(SYMBOLS)
        mark(wave.start(), wave.end() - 1, SYMBOLS[kinds.pop()] if len(kinds) == 1 else UNMARKED)
    return marks


def read_marks(store, source):
    """Marks of every record of a prepared LUDB, where `prepare` put its samples: resampled, cropped to the middle or padded at the end.

    Args:
        store: `EcgStore` of LUDB. source: folder that it was prepared from, with an annotation file for each lead (`data/1.i`, ...).

    Returns:
        int8 (records, 12, samples): positions in `WAVES`, -1 where nothing is known.

    Raises:
        CremaError: no such folder, a record of the store that is not in it, a file that is absent or cannot be read, or one without waves.
    """
    import wfdb

    paths = {row["record"]: str(row["path"]).removesuffix(".hea") for row in rows_of(Path(source), store.fs)}
    samples = store.signals.shape[2]
    marks = np.full(store.signals.shape, UNMARKED, dtype=np.int8)
    for i, record in enumerate(store.table["record"]):
        if record not in paths:
            raise CremaError(
                f"the record {record} of {store.path.name} is not in {source}: give the folder that the store was prepared from"
            )
        try:
            header = wfdb.rdheader(paths[record])
            leads = {lead: wfdb.rdann(paths[record], lead.lower()) for lead in store.meta["leads"]}
        except Exception as error:
            raise CremaError(f"the marks of record {record} in {source} cannot be read, a file for each lead: {error}") from None
        ratio = Fraction(str(store.fs)) / Fraction(str(header.fs))
        length = ceil(header.sig_len * ratio)
        start = max(0, (length - samples) // 2)
        for k, (lead, found) in enumerate(leads.items()):
            whole = lead_marks(found.symbol, found.sample, ratio, length)
            if (whole == UNMARKED).all():
                raise CremaError(f"record {record}: no P, QRS or T wave is marked in lead {lead}: expected the symbols ( p N t ) of LUDB")
            marks[i, k, : length - start] = whole[start : start + samples]
    return marks


# --- error


@dataclass(frozen=True)
class WaveErrors:
    """Reconstruction error of hidden patches by wave and lead.

    Attributes:
        leads: names. patients: (records,).
        sums: float (records, leads, waves, 4) over the samples of a wave: their number, squared error, signal, squared signal (mV).
    """

    leads: tuple
    patients: np.ndarray
    sums: np.ndarray

    def _totals(self, counts):
        """Number of samples, squared error, squared deviation from the mean of the lead, squared signal: (n, 1 + leads, waves) each, all
        leads together first."""
        number, error, first, second = np.moveaxis(np.tensordot(counts.astype(float), self.sums, 1), -1, 0)
        totals = number, error, second - first**2 / np.maximum(number, 1), second
        return [np.concatenate([x.sum(1, keepdims=True), x], axis=1) for x in totals]

    def _measures(self, counts):
        """Root mean squared error in mV and normalised error, (2, n, 1 + leads, waves)."""
        number, error, spread, _ = self._totals(counts)
        with np.errstate(invalid="ignore", divide="ignore"):  # a wave that no record of a resample has
            return np.stack([np.sqrt(error / number), error / spread])

    def _kept(self):
        """Pairs (row of lead, column of wave) that can be measured, and how many records have that wave."""
        there = self.sums[..., 0] > 0
        there = np.concatenate([there.any(1, keepdims=True), there], axis=1)
        people = np.array([len(np.unique(self.patients[one])) for one in there.reshape(len(there), -1).T]).reshape(there.shape[1:])
        *_, spread, second = self._totals(np.ones((1, len(there))))
        kept = np.argwhere((people > 1) & (spread[0] > 1e-9 * second[0]))
        if not len(kept):
            raise CremaError("no wave is marked in the recordings of two patients: nothing can be measured")
        return kept, there.sum(0)

    def _rows(self, value, resamples):
        """A row for each wave and lead, from measures of all records (2, 1, 1 + leads, waves) and of resamples (2, n, 1 + leads, waves)."""
        kept, records = self._kept()
        rows = []
        for i, k in kept[np.lexsort(kept.T)]:
            row = {"wave": WAVES[k], "lead": ("all", *self.leads)[i], "records": int(records[i, k])}
            for name, v, drawn in zip(("rmse", "nmse"), value, resamples, strict=True):
                found = interval(v[0, i, k], drawn[:, i, k])
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def table(self, *, n=1000, seed=0):
        """The errors with 95 % intervals from a bootstrap over patients.

        `rmse` is the root of the mean squared error in mV. `nmse` is the mean squared error over the variance of that wave in that lead,
        over the same recordings: 1 for one who draws the mean level of the wave, 0 for the signal itself. For all leads together both
        are summed over leads first, each lead about its own mean.

        Args:
            n: resamples of patients.

        Returns:
            DataFrame wave, lead ("all" or a name), records (that have the wave), rmse, rmse_low, rmse_high, nmse, nmse_low, nmse_high. A
            wave that fewer than two patients have in a lead, or that is flat, has no row.

        Raises:
            CremaError: no row is left.
        """
        return self._rows(self._measures(np.ones((1, len(self.sums)))), self._measures(patient_counts(self.patients, n, seed)))


def hidden_sets(patches, mask_ratio, *, block=1, rounds=1, seed=0):
    """Sets of patches to hide, one after the other, so that every patch is hidden equally often and each set has the same size.

    In a round the blocks are laid on a circle in random order, and each set takes up where the one before it ended, until the circle is
    closed: once around where the size of a set divides the number of blocks, as often as needed else.

    Args:
        patches: of a record. mask_ratio: share hidden at a time. block: patches that are hidden together. rounds: random orders.

    Returns:
        int64 (sets, hidden patches), each row ascending.

    Raises:
        CremaError: a parameter out of range, patches that are no whole number of blocks, or nothing left hidden or visible.
    """
    if block < 1 or patches % block or rounds < 1:
        raise CremaError(
            f"{patches} patches in blocks of {block} and {rounds} rounds: give a block that divides the patches, and a round or more"
        )
    blocks = patches // block
    hidden = round(mask_ratio * blocks)
    if not 0 < hidden < blocks:
        raise CremaError(f"a mask ratio of {mask_ratio} hides {hidden} of {blocks} blocks: at least one must be hidden and one visible")
    rng, sets = np.random.default_rng(seed), []
    for _ in range(rounds):
        order = np.tile(rng.permutation(blocks), hidden // gcd(hidden, blocks)).reshape(-1, hidden)
        sets.append((order[..., None] * block + np.arange(block)).reshape(len(order), -1))
    return np.sort(np.concatenate(sets), axis=1)


def error_by_wave(objective, store, marks, rows=None, *, mask_ratio=None, block=1, rounds=4, seed=0, batch_size=256, device="cpu"):
    """How well a masked autoencoder draws the waves it does not see.

    Every patch of each record is hidden equally often, the same patches in every record, see `hidden_sets`; a sample's squared error is
    the mean over the times it was hidden. No augmentation.

    Args:
        objective: with an encoder and `reconstruct`, such as `objectives.MAE`. store: an `EcgStore`.
        marks: int8 (records of the store, 12, samples), see `read_marks`. rows: row numbers of both, default all.
        mask_ratio: share of the patches hidden at a time, default that of the objective. Compare objectives at one ratio.
        block: patches that are hidden together: more than one patch, and the beat is not to be guessed from its other half.
        rounds: random orders of the patches.

    Returns:
        `WaveErrors`.

    Raises:
        CremaError: the objective has no decoder or draws patches normalised by themselves, marks or store do not fit, a parameter out of
            range, or a drawing that is not finite.
    """
    if not hasattr(objective, "reconstruct"):
        raise CremaError(f"{type(objective).__name__} draws nothing: the reconstruction error needs a masked autoencoder")
    if objective.patch_norm:
        raise CremaError("an objective with patch_norm is told level and size of what it draws: its error in mV is not its own")
    marks = np.asarray(marks)
    if marks.shape != store.signals.shape or not np.isin(marks, range(UNMARKED, len(WAVES))).all():
        raise CremaError(
            f"marks of shape {marks.shape} do not fit: give {store.signals.shape}, each -1 or a position in {', '.join(WAVES)}"
        )
    encoder, rows = objective.encoder, np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads if lead in store.meta["leads"]]
    masks = {"mask_ratio": objective.mask_ratio if mask_ratio is None else mask_ratio, "block": block, "rounds": rounds, "seed": seed}
    sets = torch.from_numpy(hidden_sets(store.signals.shape[2] // encoder.patch, **masks)).to(device)
    times, sums = sets.numel() * encoder.patch / store.signals.shape[2], []
    with frozen(objective, device):
        for i, (signal, mask) in enumerate(batches_of(encoder, store, rows, batch_size)):
            encoder.check(signal)
            signal, mask = signal.to(device), mask.to(device)
            squared = torch.zeros_like(signal)
            for hidden in sets:
                drawn, _ = objective.reconstruct(signal, mask, hidden.expand(len(signal), -1))
                squared += (drawn - signal).square() / times  # what is visible is drawn as it is
            if not squared.isfinite().all():
                raise CremaError("the objective draws values that are NaN or infinite: its weights are damaged")
            squared, signal = squared.cpu().numpy().astype(float), signal.cpu().numpy().astype(float)
            kinds = np.where(mask.cpu().numpy()[..., None], marks[rows[i * batch_size : (i + 1) * batch_size]][:, pick], UNMARKED)
            values = np.stack([np.ones_like(signal), squared, signal, signal**2], axis=-1)
            sums.append((kinds[:, :, None] == np.arange(len(WAVES))[:, None]).astype(float) @ values)
    return WaveErrors(encoder.leads, splits.patients(store.table.iloc[rows]), np.concatenate(sums))
