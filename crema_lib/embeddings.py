"""Features of a store from a frozen encoder, computed once: a file for each encoder, data set, readout and choice of records."""

import contextlib
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from .data.prepare import implausible, prepare
from .data.store import MV_PER_STEP, check_fits
from .errors import CremaError
from .precision import HALF

BATCH = {"cpu": 32, "cuda": 512}  # recordings at once


@contextlib.contextmanager
def frozen(encoder, device="cpu"):
    """The encoder on a device, in evaluation mode and without gradients; afterwards every module is in the mode it was in before."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.to(device).eval()
    try:
        with torch.inference_mode():
            yield encoder
    finally:
        for module, training in modes:
            module.training = training


def fingerprint(encoder):
    """SHA-256 of what an encoder is: class, configuration, and each parameter and buffer with its name, type and shape."""
    config = json.dumps(getattr(encoder, "_hub_mixin_config", {}), sort_keys=True, default=str)  # heads, for one, show in no weight
    digest = hashlib.sha256(f"{type(encoder).__name__} {config}".encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_readout(encoder, readout):
    """Raise CremaError unless the readout is one that gives a vector a recording with this encoder (`blocks` and `tokens` give more)."""
    if readout not in encoder.readouts:
        raise CremaError(f"unknown readout {readout!r} for this {type(encoder).__name__}: known are {', '.join(encoder.readouts)}")


def read_out(encoder, signal, lead_mask, readouts):
    """Several readouts of a batch from one pass through the encoder: dict readout -> tensor, see `embed_store`."""
    if not hasattr(encoder, "blocks"):
        return {name: encoder.features(signal, lead_mask, name) for name in readouts}
    layers = encoder(signal, lead_mask, layers=range(len(encoder.blocks)))
    known = {
        "blocks": lambda: torch.cat([encoder.pool(tokens) for tokens in layers], dim=1),
        "tokens": lambda: layers[-1][:, encoder.cls is not None :].half(),
    }
    return {name: known[name]() if name in known else encoder.gather(layers, name, lead_mask) for name in readouts}


def embed_store(
    encoder, store, rows=None, *, readout="mean", leads=None, precision="no", batch_size=None, device="cpu", cache=None, progress=False
):
    """Features of the records of a store from a frozen encoder (eval mode, no gradient).

    Args:
        rows: row numbers, default all. readout: see `SiT.features`; or "blocks" for the means of all blocks side by side, each through
            the last norm; or "tokens" for all patch tokens after it; or a list of readouts, which then come from one pass.
        leads: names of the leads that the encoder is shown, None for all; the others are zero and marked as missing. See
            `data.leads.SUBSETS`. precision: of the matrix products, "no" for single, "bf16" or "fp16", which move a feature by a
            thousandth of its deviation (root mean square, SiT-xs). batch_size: None for `BATCH`; larger ones are slower on a CPU, whose
            cache they leave.
        cache: folder of computed features, or None. A file there is named after the encoder's fingerprint, the data, the readout, the
            rows and the leads; it is written whole or not at all, and four records are computed again before it is trusted.

    Returns:
        float32 array (rows, features); of "tokens" float16 (rows, tokens, width), a read-only memory map where there is a cache. For
        a list of readouts a list of arrays.

    Raises:
        CremaError: the store's rate, length or leads do not fit the encoder, an unknown readout or lead, a record that has none of the
            leads, or features that are not finite.
    """
    check_fits(store, encoder)
    readouts = [readout] if isinstance(readout, str) else list(readout)
    known = (*encoder.readouts, *["blocks", "tokens"] * hasattr(encoder, "blocks"))
    if unknown := [name for name in readouts if name not in known]:
        raise CremaError(f"unknown readout {unknown[0]!r} for this {type(encoder).__name__}: known are {', '.join(known)}")
    rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
    if not len(rows):
        raise CremaError("there is no record to embed")
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads]
    batch_size = batch_size or BATCH[torch.device(device).type]
    shown = _shown(encoder, leads)
    lead_mask = store.lead_mask[:, pick] & shown
    if leads is not None and (none := int((~lead_mask[rows].any(1)).sum())):
        raise CremaError(f"{none} records have none of the leads {' '.join(leads)}: leave them out of the rows")

    @torch.inference_mode()  # each thread has a mode of its own
    def embed(chosen):
        mask, signal = torch.from_numpy(lead_mask[chosen]).to(device), store.read(chosen, device)[:, pick]
        signal = signal if shown.all() else signal * torch.from_numpy(shown).to(device)[:, None]
        with torch.autocast(torch.device(device).type, HALF.get(precision), enabled=precision in HALF):
            found = read_out(encoder, signal, mask, readouts)
        if not all(value.isfinite().all() for value in found.values()):
            raise CremaError("the encoder gives features that are NaN or infinite: its weights are damaged")
        return {name: (value if name == "tokens" else value.float()).cpu().numpy() for name, value in found.items()}

    with frozen(encoder, device):
        first, found, paths = embed(rows[:4]), {}, {}
        if cache is not None:
            key = hashlib.sha256(f"{fingerprint(encoder)} {store.meta['sha256']} ".encode() + rows.tobytes() + lead_mask[rows].tobytes())
            if not shown.all():
                key.update(shown.tobytes())
            if precision != "no":
                key.update(precision.encode())
            paths = {name: Path(cache) / f"{key.hexdigest()[:32]}-{name}.npy" for name in readouts}
            found = {name: _load(path, name) for name, path in paths.items()}
        shapes = {name: (len(rows), *value.shape[1:]) for name, value in first.items()}
        missing = [name for name in readouts if not _holds(found.get(name), shapes[name], first[name])]
        if missing:
            with _new_arrays({name: (shapes[name], first[name].dtype) for name in missing}, paths) as arrays:
                batches = [slice(i, i + batch_size) for i in range(0, len(rows), batch_size)]
                with _side_by_side(embed, [rows[batch] for batch in batches], device) as computed:
                    computed = tqdm(computed, desc="embedding", unit="batch", total=len(batches), disable=not progress)
                    for batch, values in zip(batches, computed, strict=True):
                        for name, array in arrays.items():
                            array[batch] = values[name]
            found |= arrays if cache is None else {name: _load(paths[name], name) for name in missing}
    return found[readout] if isinstance(readout, str) else [found[name] for name in readouts]


def embed_files(encoder, paths, *, unit=None, rate=None, readout="mean", precision="no", device="cpu", progress=False):
    """Features of recordings in files, prepared as the encoder was trained: resampled, filtered, cropped or padded.

    Args:
        encoder: a pretrained one; its rate, length and band count. paths: WFDB or CSV files, and folders of recordings, see
            `data.sources.rows_of_files`. unit, rate: unit and sampling rate (Hz) of recordings that name none.
        readout: one of `encoder.readouts`, see `SiT.features`. precision: see `embed_store`.

    Returns:
        (features, report): DataFrames. features: record, quality (what was found: missing or flat leads, padding, see also
        `judged`), then float32 columns f0, f1, ...; report: record, reason, action, for what was left out, passed over or kept with a flag.

    Raises:
        CremaError: an unknown readout, a path that is not there, no recording that can be used, or recordings that are all implausibly
            large or small.
    """
    check_readout(encoder, readout)
    seconds = encoder.n_patches * encoder.patch / encoder.fs
    with tempfile.TemporaryDirectory() as folder:
        store, report = prepare(
            "files", source=list(paths), out=Path(folder) / "store", fs=encoder.fs, seconds=seconds, band=encoder.band,
            unit=unit, rate=rate, progress=progress,
        )  # fmt: skip
        table = store.table[["record"]].assign(quality=judged(store, unit)).reset_index(drop=True)
        values = embed_store(encoder, store, readout=readout, precision=precision, device=device, progress=progress)
        del store  # a system that locks open files could not take the folder away
    return pd.concat([table, pd.DataFrame(values, columns=[f"f{i}" for i in range(values.shape[1])])], axis=1), report


def write_features(path, features, origin):
    """Write the features of `embed_files` as a Parquet file that says where they are from.

    Args:
        origin: dict, kept as JSON under the key `crema_lib` of the schema's metadata:
            `json.loads(pyarrow.parquet.read_schema(path).metadata[b"crema_lib"])`.
    """
    table = pa.Table.from_pandas(features, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"crema_lib": json.dumps(origin).encode()}), path)


def judged(recordings, unit=None):
    """The quality of recordings, flags joined by ';', with "amplitude" where they are implausibly large or small for an ECG.

    Args:
        recordings: a store, or a `reader.Recordings`. unit: that was given for them, None where the files say it.

    Raises:
        CremaError: all are, see `data.prepare.implausible`.
    """
    odd = implausible(recordings.signals, recordings.lead_mask, unit, step=MV_PER_STEP)
    quality = recordings.table["quality"]
    return quality.mask(odd, quality.where(quality == "", quality + ";") + "amplitude")


@contextlib.contextmanager
def _side_by_side(compute, batches, device):
    """Results of batches in order. On a CPU each thread computes a batch of its own: threads that share one wait for each other."""
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads == 1:
        yield map(compute, batches)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map(compute, batches)
    finally:
        torch.set_num_threads(threads)  # those of threads still to come


def _shown(encoder, leads):
    """Which leads of an encoder are shown: bool (leads of the encoder,)."""
    if leads is None:
        return np.ones(len(encoder.leads), dtype=bool)
    if isinstance(leads, str) or not len(leads) or (set(leads) - set(encoder.leads)):
        raise CremaError(f"the leads to show are {leads!r}: give a list of one or more of {', '.join(encoder.leads)}")
    return np.isin(encoder.leads, list(leads))


def _load(path, readout):
    """The features in a file, or None where there is none or it is damaged."""
    try:
        return np.load(path, mmap_mode="r" if readout == "tokens" else None)
    except (OSError, ValueError, EOFError):
        return None


def _holds(found, shape, first):
    """A cache entry is there and says of the first records what the encoder says now: code that has changed since would show here."""
    if found is None or found.shape != shape:
        return False
    rounding = 0.02 * max(float(first.std(dtype=np.float64)), 1e-6)  # of another device or batch size
    return np.allclose(found[: len(first)], first, rtol=0, atol=rounding)


@contextlib.contextmanager
def _new_arrays(forms, paths):
    """Empty arrays, dict name -> array, for forms name -> (shape, type); those with a path are a file, which is there once all are full."""
    parts = {name: path.with_name(f"{path.stem}.{os.getpid()}.part") for name, path in paths.items() if name in forms}
    with contextlib.ExitStack() as stack:
        try:
            for part in parts.values():
                part.parent.mkdir(parents=True, exist_ok=True)
                stack.callback(part.unlink, missing_ok=True)
            arrays = {
                name: np.lib.format.open_memmap(parts[name], "w+", dtype, shape) if name in parts else np.empty(shape, dtype)
                for name, (shape, dtype) in forms.items()
            }
        except OSError as error:
            raise CremaError(f"features cannot be kept ({error}): make room, or give another folder as the cache") from None
        yield arrays
        for name, part in parts.items():
            arrays[name].flush()
            part.replace(paths[name])
