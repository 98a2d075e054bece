"""EcgStore: every recording of a data set in one memory-mapped int16 array plus one table.

On disk, a folder:
    signals.i16     int16, little-endian, shape (records, 12, samples), 1 uV per step (so +-32.7 mV), leads in canonical order
    table.parquet   one row a record, columns `COLUMNS`
    store.json      sampling rate, seconds, leads, filter band, SHA-256 of signals.i16, source, versions
    derived/        what was worked out from the recordings later and takes long; can be deleted at any time
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError
from ..paths import data_home, digest
from .leads import LEADS

MV_PER_STEP = 0.001
FILES = {"signals.i16", "table.parquet", "store.json", "report.csv", "derived"}
ABANDONED = 7 * 24 * 3600  # s; a half-written store of that age is one whose process was killed
TRAIN, VALID, TEST = tuple(range(1, 9)), (9,), (10,)  # folds: pretrain and train, choose, read once for a table
COLUMNS = {
    "record": "str",  # name inside its source
    "patient": "str",  # identifier; the record's own name where the source has none
    "source": "str",  # data set the record comes from
    "fold": "int64",  # 1 to 10, split by patient
    "age": "float64",  # years, NaN unknown
    "sex": "str",  # F, M or empty
    "device": "str",
    "site": "str",
    "labels": "str",  # codes joined by ';'
    "lead_mask": "int64",  # bit i set: lead i of the canonical order is there
    "valid": "int64",  # samples before padding
    "quality": "str",  # flags joined by ';', empty: nothing found
    "year": "int64",  # of the recording, 0 unknown; PTB-XL moved the dates of each patient by a random offset
}


def kept(path, compute):
    """An array from a file, computed and written whole where the file is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found, part = compute(), path.with_name(f"{path.name}.{os.getpid()}.part")  # of two runs at once each writes its own
        with open(part, "wb") as file:
            np.save(file, found)
        part.replace(path)
    return np.load(path)


class StoreWriter:
    """Writes a store beside its final place and moves it there whole, so that a half-written store never exists.

    Raises:
        CremaError: a folder with something else than a store is in its place.
    """

    def __init__(self, path, *, fs, seconds, **meta):
        self.path, self.meta = Path(path), {"fs": fs, "seconds": seconds, "leads": LEADS, **meta}
        self.samples = round(fs * seconds)
        if self.path.exists() and (not self.path.is_dir() or {file.name for file in self.path.iterdir()} - FILES):
            raise CremaError(f"{self.path} holds something else than a prepared data set: it is left as it is, give another folder")
        self.part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")  # others may write the same store at the same time
        for left in {self.part, *self.path.parent.glob(f"{self.path.name}.*.part")}:
            if left == self.part or time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        self.part.mkdir(parents=True)
        self.file = open(self.part / "signals.i16", "wb")  # noqa: SIM115 - closed by close or discard
        self.hash, self.rows = hashlib.sha256(), []

    def append(self, signals, rows):
        """Add records: int16 (n, 12, samples) in steps of 1 uV, and n dicts with the keys of `COLUMNS`."""
        signals = np.ascontiguousarray(signals, dtype="<i2")
        if signals.shape[1:] != (12, self.samples) or len(rows) != len(signals):
            raise CremaError(f"{len(rows)} rows do not fit signals of shape {signals.shape}: expected (n, 12, {self.samples})")
        self.file.write(signals.data)
        self.hash.update(signals.data)
        self.rows += rows

    def close(self):
        """Finish and return the opened `EcgStore`; a store that lay there before is replaced."""
        self.file.close()
        table = pd.DataFrame(self.rows, columns=list(COLUMNS)).astype(COLUMNS)
        table.to_parquet(self.part / "table.parquet", index=False)
        meta = {**self.meta, "records": len(table), "sha256": self.hash.hexdigest()}
        (self.part / "store.json").write_text(json.dumps(meta, indent=1) + "\n")
        if self.path.exists():
            shutil.rmtree(self.path)
        self.part.rename(self.path)
        return EcgStore(self.path)

    def discard(self):
        """Give up: nothing of this store stays, an earlier one at the same place does."""
        with contextlib.suppress(OSError):  # on a full device closing fails too
            self.file.close()
        shutil.rmtree(self.part, ignore_errors=True)


def millivolts(steps, device="cpu"):
    """Signals as a store keeps them, an int16 array in uV, as a float32 tensor in mV on a device."""
    import torch  # here, because preparing a data set needs no torch and starts in half the memory without

    return torch.from_numpy(steps).to(device, non_blocking=True).to(torch.float32).mul_(MV_PER_STEP)


class EcgStore:
    """A prepared data set, open for reading.

    Attributes:
        signals: int16 memory map (records, 12, samples), uV.
        table: DataFrame with `COLUMNS`.
        meta: dict of store.json (`fs` in Hz, `seconds`, `band` in Hz, `sha256`, ...).
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.meta = json.loads((self.path / "store.json").read_text())
            self.table = pd.read_parquet(self.path / "table.parquet")
            found = (self.path / "signals.i16").stat().st_size
        except (OSError, ValueError) as error:
            what = "no readable store.json, table.parquet and signals.i16"
            raise CremaError(f"{self.path} is not a prepared data set ({what}): {error}") from None
        if "year" not in self.table:  # prepared before the column was there
            self.table["year"] = 0
        self.fs, self.seconds = self.meta["fs"], self.meta["seconds"]
        shape = (len(self.table), 12, round(self.fs * self.seconds))
        needed = 2 * shape[0] * shape[1] * shape[2]
        if found != needed:
            raise CremaError(f"{self.path}/signals.i16 has {found} bytes where its table needs {needed}: prepare the data set again")
        if not len(self.table):
            raise CremaError(f"{self.path} holds no record")
        self.signals = np.memmap(self.path / "signals.i16", dtype="<i2", mode="r", shape=shape)
        bits = self.table["lead_mask"].to_numpy()[:, None] >> np.arange(12)
        self.lead_mask = (bits & 1).astype(bool)
        self.stamp = self._stamp()

    def _stamp(self):
        """What a change of the files would change: [SHA-256 in store.json, bytes of signals.i16, its time in ns]; None if unreadable."""
        try:
            found = (self.path / "signals.i16").stat()
            return [json.loads((self.path / "store.json").read_text()).get("sha256"), found.st_size, found.st_mtime_ns]
        except (OSError, ValueError):
            return None

    def check_unchanged(self, stamp=None):
        """Make sure that the files are those that were opened or, given the `stamp` of an earlier opening, those of that time.

        A copy of a store has the time of its making: it is read in whole and compared with the SHA-256 in its store.json.

        Raises:
            CremaError: they are not.
        """
        changed = self._stamp() != self.stamp
        if stamp is not None and stamp != self.stamp and not changed:
            changed = stamp[:2] != self.stamp[:2] or digest(self.path / "signals.i16") != self.meta["sha256"]
        if changed:
            raise CremaError(f"the data set {self.path} was changed while a run was using it: put it back, or start the run anew")

    def derived(self, name, compute):
        """An array that follows from the recordings, see `kept`; where nothing can be written it is computed each time."""
        path = self.path / "derived" / f"{name}-{self.meta['sha256'][:16]}.npy"
        return kept(path, compute) if path.is_file() or os.access(self.path, os.W_OK) else compute()

    def __len__(self):
        return len(self.table)

    def steps(self, rows):
        """Signals of some rows as they are kept, int16 (n, 12, samples), uV.

        Raises:
            CremaError: the file was cut short since it was opened. To read its memory map would kill the process.
        """
        try:
            cut = (self.path / "signals.i16").stat().st_size < self.signals.nbytes
        except OSError:  # taken away: what is mapped can still be read
            cut = False
        if cut:
            raise CremaError(f"the data set {self.path} was changed while it was read: signals.i16 is cut short. Put it back")
        return self.signals[np.asarray(rows)]

    def read(self, rows, device="cpu"):
        """Signals of some rows as a float32 tensor (n, 12, samples) in mV."""
        return millivolts(self.steps(rows), device)

    def rows(self, folds):
        """Row numbers of the records in the given folds, in table order."""
        return np.flatnonzero(self.table["fold"].isin(list(folds)))


def check_fits(store, encoder, *, length=False):
    """Make sure that an encoder can read the recordings of a store: their rate, the leads and, where `length` counts, the seconds.

    Raises:
        CremaError: it cannot.
    """
    long = f"{encoder.seconds} s at {encoder.fs} Hz", f"{store.seconds} s at {store.fs} Hz"
    takes, holds = long if length else (f"{encoder.fs} Hz", f"{store.fs} Hz")
    if takes != holds or not set(encoder.leads) <= set(store.meta["leads"]):
        here = f"{store.path.name} holds {holds} and leads {' '.join(store.meta['leads'])}"
        raise CremaError(f"the encoder takes {takes} and leads {' '.join(encoder.leads)}: {here}")


def prepared(name):
    """Folders of the stores of a data set, one for each sampling rate and length that it was prepared at."""
    folder = data_home() / "stores"
    form = re.compile(rf"{re.escape(str(name))}-[\d.]+hz-[\d.]+s")  # `cpsc2018` is not `cpsc2018-extra`
    return sorted(path for path in folder.iterdir() if form.fullmatch(path.name)) if folder.is_dir() else []


def find(name):
    """The prepared data set of a name (`ptb-xl`) or a folder.

    Raises:
        CremaError: there is none, or there are several of that name.
    """
    if (Path(name) / "store.json").is_file():
        return EcgStore(Path(name).resolve())
    found = prepared(name)
    if len(found) != 1:
        several = f"it is prepared as {', '.join(path.name for path in found)}: give the folder of one"
        none = f"it is neither a folder with a store.json nor prepared in {data_home() / 'stores'}: python -m crema_lib data prepare {name}"
        raise CremaError(f"cannot open the data set {name}: {several if found else none}")
    return EcgStore(found[0])


def to_steps(signal_mv):
    """mV to int16 steps of 1 uV; returns (int16 array, bool: some value lay beyond +-32.767 mV)."""
    steps = np.rint(np.asarray(signal_mv) / MV_PER_STEP)
    return np.clip(steps, -32767, 32767).astype("<i2"), bool((np.abs(steps) > 32767).any())
