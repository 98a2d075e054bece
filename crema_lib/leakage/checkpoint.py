"""What a checkpoint saw in pretraining: a Bloom filter of hashes beside its weights."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import weights
from ..errors import CremaError
from .duplicates import digests

SEEN = "seen.safetensors"


def remember(folder, store, rows, rate=1e-6):
    """Write into a model's folder which recordings it was trained on, as a Bloom filter of their hashes: `seen.safetensors`.

    A Bloom filter (Bloom 1970, doi:10.1145/362686.362692) of m bits with k positions an item says "no" only where it is sure, and "yes"
    wrongly with probability (1 - exp(-k n / m))^k, here `rate` for its n items. No recording and no hash can be read back from it. The k
    positions come from the two halves of one hash (Kirsch & Mitzenmacher 2008, doi:10.1002/rsa.20208).

    Args:
        folder: of the model. store, rows: what it was trained on. rate: probability of a false "seen", 0 < rate < 1.
    """
    rows = np.asarray(rows)
    if not len(rows) or not 0 < rate < 1:
        raise CremaError(f"{len(rows)} recordings and a false-positive rate of {rate}: give one or more, and a rate within 0 to 1")
    size = 8 * int(np.ceil(-len(rows) * np.log(rate) / np.log(2) ** 2 / 8))
    positions = max(1, round(size / len(rows) * np.log(2)))
    bits = np.zeros(size, bool)
    bits[_positions(digests(store, rows), size, positions)] = True
    kept = {"items": len(rows), "positions": positions, "rate": rate, "hash": "BLAKE2b-128 of int16 (12, samples), 1 uV a step"}
    kept |= {**_grid(store), "source": store.meta.get("source", ""), "data_sha256": store.meta["sha256"], "scipy": version("scipy")}
    save_file({"bits": np.packbits(bits)}, Path(folder) / SEEN, {key: str(value) for key, value in kept.items()})


def what_was_seen(folder):
    """(bool (bits,), dict of texts): the Bloom filter of a model's folder with its `items`, `positions`, `rate`, `fs`, `data_sha256`, ...

    Raises:
        CremaError: the folder has none, or it is damaged or was exchanged.
    """
    path = Path(folder) / SEEN
    if not path.is_file():
        raise CremaError(f"{folder} does not say what it was trained on (no {SEEN}): pretrain again, or write it with leakage.remember")
    weights.verify(folder, [SEEN])
    try:
        with safe_open(path, framework="numpy") as file:
            bits, kept = np.unpackbits(file.get_tensor("bits")).astype(bool), dict(file.metadata() or {})
        int(kept["positions"]), int(kept["items"]), float(kept["rate"]), [kept[key] for key in ("fs", "seconds", "band")]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CremaError(f"{path} is damaged ({error}): fetch or write it again") from None
    return bits, kept


def seen(folder, store, rows=None):
    """Whether a model was trained on recordings of a store.

    Equal means equal in every prepared sample. A recording that was prepared in another way, or the near duplicate of one, is not found.

    Returns:
        bool (records,): True is wrong with the probability `rate` of the filter, False is never wrong.

    Raises:
        CremaError: no or a damaged `seen.safetensors`, or the store was prepared at another rate, length or band.
    """
    bits, kept = what_was_seen(folder)
    grid = {key: str(value) for key, value in _grid(store).items()}
    if wrong := [f"{key} {kept[key]}, not {value}" for key, value in grid.items() if kept[key] != value]:
        raise CremaError(f"{folder} was trained on recordings of {', '.join(wrong)}: prepare {store.path.name} in the same way to compare")
    return bits[_positions(digests(store, rows), len(bits), int(kept["positions"]))].all(1)


def _grid(store):
    """How a store was prepared, as far as equal samples need it."""
    band = store.meta.get("band")
    return {"fs": f"{store.fs:g}", "seconds": f"{store.seconds:g}", "band": "-".join(f"{edge:g}" for edge in band) if band else "none"}


def _positions(hashes, size, count):
    """Bit numbers (records, count)."""
    with np.errstate(over="ignore"):
        return ((hashes[:, :1] + np.arange(count, dtype=np.uint64) * (hashes[:, 1:] | np.uint64(1))) % np.uint64(size)).astype(np.int64)
