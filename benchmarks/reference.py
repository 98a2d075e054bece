"""The reference: a pretraining loop as the field's published recipes describe theirs, plain and whole.

One WFDB file a record at its own rate, read, band-passed and resampled in every epoch by SciPy; lead-wise tokens, three quarters of them
masked, a decoder over all of them (ST-MEM, Na et al. 2024); single precision, AdamW, the loss read back at each step. Written from the
text of those recipes; nobody's code.
"""

import time
from pathlib import Path

import numpy as np
import torch
import wfdb
from scipy.signal import butter, resample_poly, sosfiltfilt
from torch.utils.data import DataLoader, Dataset

from crema_lib.cost import synchronise
from crema_lib.data.leads import LEADS
from crema_lib.data.simulate import simulate
from crema_lib.objectives import build
from crema_lib.sit import SiT


def write_files(folder, records, fs=500, seconds=10, seed=0):
    """Write simulated recordings as the archives do: one WFDB record a file, int16, 12 leads."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    signals = simulate(records, seed=seed, fs=fs, seconds=seconds)[0]
    for i, signal in enumerate(signals):
        wfdb.wrsamp(
            f"r{i:05d}", fs=fs, units=["mV"] * 12, sig_name=list(LEADS), d_signal=signal.T.astype(np.int64),
            fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(folder),
        )  # fmt: skip


class Files(Dataset):
    """Records of a folder, each read and filtered anew whenever it is asked for."""

    def __init__(self, folder, fs):
        self.paths, self.fs = sorted(str(path.with_suffix("")) for path in Path(folder).glob("*.hea")), fs

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        record = wfdb.rdrecord(self.paths[i])
        signal = record.p_signal.T
        signal = sosfiltfilt(butter(2, (0.5, 40.0), "bandpass", fs=record.fs, output="sos"), signal, axis=1)
        return torch.from_numpy(resample_poly(signal, self.fs, record.fs, axis=1).astype(np.float32))


def loop(folder, size, *, fs=100, seconds=10, patch=25, batch_size=128, lr=1e-3, workers=0, device="cpu"):
    """The training loop: call it with a number of steps for their durations, s, reading and filtering included.

    size: of the encoder, as `SiT.of_size` takes it. workers: processes that read.
    """
    torch.manual_seed(0)
    model = build("st_mem", SiT.of_size(size, fs=fs, seconds=seconds, patch=patch, tokens="lead"), mask_ratio=0.75).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    loader = DataLoader(Files(folder, fs), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)

    def epochs():
        while True:
            yield from loader

    batches = epochs()

    def run(steps):
        durations = []
        for _ in range(steps):
            start = time.perf_counter()
            signal = next(batches).to(device)
            losses = model({"signal": signal, "lead_mask": torch.ones(signal.shape[:2], dtype=torch.bool, device=device)})
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
            losses["loss"].item()
            synchronise(device)
            durations.append(time.perf_counter() - start)
        return durations

    return run
