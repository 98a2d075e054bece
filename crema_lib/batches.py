"""Random batches of a store as a function of the step alone, from where the device reads them fastest."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .data.store import MV_PER_STEP
from .errors import CremaError

RESIDENT_SHARE = 0.4  # of a GPU's free memory that recordings may take


class Batches:
    """Random batches of a store as a function of the step alone.

    Each epoch is a permutation drawn from (seed, epoch); the rest that does not fill a batch is left for the next epoch's draw.
    `batches[step]` is a dict: signal float32 (batch, leads, samples) mV, lead_mask bool (batch, leads), row int64 (batch,), and
    target where `targets` (an array aligned with `rows`) is given.

    A batch is `parts` micro-batches in a row, and process `rank` of `world` gets an equal share of each: the same records make up a
    micro-batch whatever the number of processes.

    On a GPU the recordings are copied to it whole, as int16, where they fit into `RESIDENT_SHARE` of its free memory (a million at 100 Hz
    are 24 GB). Else a thread reads the next batch into pinned memory while the step before it computes. On the CPU they are read from the
    memory map, which takes far less time than a step.

    Args:
        store: an `EcgStore`. rows: row numbers to draw from. targets: float (rows, outputs). leads: positions of those wanted, None: all.
        source: "memory map", "device" or "pinned memory"; None: the fastest as said above.

    Raises:
        CremaError: fewer records than a batch, or a batch that cannot be shared evenly.
    """

    def __init__(self, store, rows, batch_size, seed=0, targets=None, device="cpu", leads=None, rank=0, world=1, parts=1, source=None):
        self.store, self.rows, self.batch_size, self.seed = store, np.asarray(rows), batch_size, seed
        self.device = torch.device(device)
        self.targets = None if targets is None else torch.as_tensor(targets)
        self.leads = slice(None) if leads is None else torch.as_tensor(leads, device=self.device)
        self.rank, self.shape = rank, (parts, world, -1)
        if batch_size < 1 or batch_size % (parts * world):
            raise CremaError(
                f"a batch of {batch_size} cannot be shared by {world} processes in {parts} parts: "
                f"choose a batch_size that is a multiple of {parts * world}"
            )
        if len(self.rows) < batch_size:
            raise CremaError(f"{len(self.rows)} records are fewer than a batch of {batch_size}: lower batch_size or take more records")
        self.steps_per_epoch = len(self.rows) // batch_size
        self._epoch, self._order = None, None
        self.source = source or self._fastest()
        if self.source == "device":
            self._signals = torch.empty(len(self.rows), *store.signals.shape[1:], dtype=torch.int16, device=self.device)
            for i in range(0, len(self.rows), 4096):
                self._signals[i : i + 4096] = torch.from_numpy(store.steps(self.rows[i : i + 4096]))
            self._mask = torch.from_numpy(store.lead_mask[self.rows]).to(self.device)
        if self.source == "pinned memory":
            self._reader, self._ahead = ThreadPoolExecutor(1), (None, None)

    def _fastest(self):
        if self.device.type != "cuda":
            return "memory map"
        needed = len(self.rows) * self.store.signals[0].nbytes
        return "device" if needed < RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0] else "pinned memory"

    def order(self, step):
        """Positions in `rows` of the records of a step, those of all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def _own(self, step):
        """Positions in `rows` of this process's records of a step."""
        return self.order(step).reshape(self.shape)[:, self.rank].reshape(-1)

    def __getitem__(self, step):
        chosen = self._own(step)
        rows = self.rows[chosen]
        if self.source == "device":
            at = torch.from_numpy(chosen).to(self.device, non_blocking=True)
            signal, mask = self._signals[at], self._mask[at]
        else:
            signal, mask = (values.to(self.device, non_blocking=True) for values in self._read(step, rows))
        batch = {
            "signal": signal[:, self.leads].to(torch.float32).mul_(MV_PER_STEP),
            "lead_mask": mask[:, self.leads],
            "row": torch.from_numpy(rows),
        }
        if self.targets is not None:
            batch["target"] = self.targets[chosen].to(self.device, non_blocking=True)
        return batch

    def _read(self, step, rows):
        """int16 signals and lead mask of some rows; from pinned memory, and then the next step's are read meanwhile."""
        if self.source == "memory map":
            return self._fetch(rows)
        expected, future = self._ahead
        found = future.result() if step == expected else self._fetch(rows)
        self._ahead = step + 1, self._reader.submit(self._fetch, self.rows[self._own(step + 1)])
        return found

    def _fetch(self, rows):
        found = torch.from_numpy(self.store.steps(rows)), torch.from_numpy(self.store.lead_mask[rows])
        return [values.pin_memory() for values in found] if self.device.type == "cuda" else found
