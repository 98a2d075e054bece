"""Weights for others: written in half precision with their checksums, found by name, checked before they are read.

Only safetensors and JSON are written and read: no file of a model can run code. What `SHA256SUMS` lists is compared with it first, so that
a damaged or exchanged file is told by its name.
"""

import copy
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .errors import CremaError
from .paths import digest, home, resolve

SUMS = "SHA256SUMS"
ENCODER = ("config.json", "model.safetensors")  # what `SiT.from_pretrained` reads
HEADS = ("objective.json", "heads.safetensors")  # what `objectives.load` reads besides
SEEN = "seen.safetensors"  # what the model was trained on, see `leakage.remember`
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")  # options of `from_pretrained` that are the hub's


def names():
    """Names of the models in `weights/`, in order."""
    return sorted(path.parent.name for path in (home() / "weights").glob("*/config.json"))


def locate(name, **hub):
    """Folder of a model.

    Args:
        name: a folder (from here or from the project folder), the name of a model in `weights/`, or OWNER/NAME on the Hugging Face hub,
            from where only safetensors, JSON and checksums are fetched.
        hub: options of `HUB`.

    Raises:
        CremaError: it is none of these, or the hub does not give it out.
    """
    for folder in (Path(name), resolve(name), home() / "weights" / name):
        if folder.is_dir():
            return folder
    known = f"no folder and no model in weights/ (there: {', '.join(names()) or 'none'})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise CremaError(f"{name} is {known}; a model of the hub is named OWNER/NAME")
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json", SUMS], **hub))
    except Exception as error:
        raise CremaError(f"{name} is {known}, and the hub does not give it: {' '.join(str(error).split())[:200]}") from None


def verify(folder, files):
    """Compare some files of a model with its `SHA256SUMS`; a folder without that file has nothing to compare with.

    Raises:
        CremaError: a file differs, is missing, or is not listed; or the list itself cannot be read.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        return
    lines = (folder / SUMS).read_bytes().decode("utf-8", "replace").splitlines()
    pairs = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    if not all(pairs):
        raise CremaError(f"{folder / SUMS} is damaged: it is no list of SHA-256 sums as sha256sum writes it; fetch the model again")
    listed = {pair[2]: pair[1] for pair in pairs}
    for name in files:
        if name not in listed:
            raise CremaError(f"{folder / SUMS} does not list {name}: the file was added after publishing; fetch the model again")
        if not (folder / name).is_file():
            raise CremaError(f"{folder / name} is missing: fetch the model again")
        if digest(folder / name) != listed[name]:
            raise CremaError(f"{folder / name} is damaged or was exchanged: its SHA-256 is not that of {SUMS}; fetch the model again")


def stored(folder):
    """What the files of a model's encoder hold: (type of its matrices by torch's name, number of its parameters).

    Raises:
        CremaError: no readable `model.safetensors`.
    """
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise CremaError(f"{path} cannot be read as safetensors: {error}") from None
    types = {str(value.dtype).removeprefix("torch.") for value in tensors.values() if _halved(value)}
    return " and ".join(sorted(types)), sum(value.numel() for key, value in tensors.items() if key != "scale")


def _halved(value):
    """Whether half precision is for this tensor: matrices are nearly all of a model; biases, norms, running statistics and the scale of
    the leads are few, and stay what they are."""
    return value.is_floating_point() and value.ndim > 1


def rounded(state, dtype):
    """A state dict with its matrices in another type; all else as it is.

    Raises:
        CremaError: an unknown type, or a weight that is not finite or too large for it.
    """
    if dtype not in DTYPES:
        raise CremaError(f"unknown type of weights {dtype!r}: known are {', '.join(DTYPES)}")
    state = {key: (value.to(DTYPES[dtype]) if _halved(value) else value).contiguous() for key, value in state.items()}
    if wrong := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise CremaError(f"{wrong[0]} has weights that are not finite as {dtype}: take another type, or look at the training log")
    return state


def publish(folder, name, dtype="float16"):
    """Write a trained model to `weights/NAME`, whole or not at all.

    A model of that name is replaced, and what was fitted to its weights and lay beside them goes with it (see `reader`).

    Args:
        folder: of the trained model: encoder, heads, options, and what it was trained on. name: lower-case letters, digits, dots, hyphens.
        dtype: of the matrices, see `rounded` and `precision`.

    Returns:
        The folder `weights/NAME`, with `SHA256SUMS` in the form of sha256sum. `python -m crema_lib cards` adds its README.

    Raises:
        CremaError: a bad name or type, a file missing or damaged, weights that do not fit.
    """
    from .objectives import load  # here, because the objectives find their weights through this module

    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise CremaError(f"{name!r} is no name for a model: take lower-case letters, digits, dots and hyphens")
    folder, out = locate(folder), home() / "weights" / name
    if missing := [file for file in (*ENCODER, *HEADS, SEEN) if not (folder / file).is_file()]:
        raise CremaError(f"{folder} is no whole trained model: it lacks {', '.join(missing)}")
    load(folder)
    part, old = (out.with_name(f".{name}.{kind}") for kind in ("part", "old"))
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file in ("model.safetensors", "heads.safetensors"):
            save_file(rounded(load_file(folder / file), dtype), part / file, {"format": "pt"})
            (part / file).chmod(0o644)  # safetensors makes files that nobody else may read
        for file in ("config.json", "objective.json", SEEN):
            shutil.copyfile(folder / file, part / file)
        (part / SUMS).write_text("".join(f"{digest(path)}  {path.name}\n" for path in sorted(part.iterdir())))
        load(part)
        if (out / "README.md").is_file():
            shutil.copyfile(out / "README.md", part / "README.md")
        if out.exists():
            out.rename(old)
        part.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
    return out


def precision(folder, store, *, tasks=("all", "super"), readout="layers", bootstrap=1000, seed=0, cache=None, progress=False):
    """What half precision costs: one linear probe, fitted on features of the weights in single precision, on features of rounded ones.

    The probe learns from folds 1 to 8 and is chosen on fold 9, as in `probes.fit_probe`. It is then given the same recordings from the
    same encoder with its matrices rounded to each type. Fold 9 is there to choose a type by, fold 10 to tell what it costs.

    Args:
        folder: of a model in single precision. store: prepared, with labels. tasks: see `labels.BINARY`. readout: see `SiT.features`.
        bootstrap: resamples of patients. cache: see `embed_store`.

    Returns:
        (metrics, moved): metrics as `runs.write` takes them, macro AUROC of each fold, task and type, and the paired difference from single
        precision; moved, dict type -> root mean square change of a feature, in standard deviations of that feature.

    Raises:
        CremaError: weights that are rounded already, or what `embed_store` and `fit_probe` refuse.
    """
    from .data import labels, splits  # here, because the encoder finds its weights through this module
    from .embeddings import embed_store
    from .metrics import compare
    from .probes.linear import fit_probe, learnable
    from .sit import SiT

    folder = locate(folder)
    if (found := stored(folder)[0]) != "float32":
        raise CremaError(f"the weights in {folder} are {found} already: give the folder of the training run")
    encoder = SiT.from_pretrained(folder)
    options = {"readout": readout, "cache": cache, "progress": progress}
    features = {"float32": embed_store(encoder, store, **options)}
    judged = np.concatenate(splits.parts(store.table)[1:])
    deviation, moved = features["float32"][judged].std(0), {}
    for dtype in list(DTYPES)[1:]:
        other = copy.deepcopy(encoder)
        other.load_state_dict(rounded(encoder.state_dict(), dtype))
        features[dtype] = features["float32"].copy()
        features[dtype][judged] = embed_store(other, store, judged, **options)
        change = (features[dtype] - features["float32"])[judged] / np.maximum(deviation, 1e-6)
        moved[dtype] = float(np.sqrt(np.square(change, dtype=np.float64).mean()))
    metrics = []
    for task in tasks:
        targets, names, kept = labels.matrix(store.table, task)
        train, valid, test = splits.parts(store.table, kept)
        probe, _ = fit_probe(*((features["float32"][rows], targets[rows]) for rows in (train, valid)))
        known = learnable(targets[train])
        for fold, rows in ((9, valid), (10, test)):
            scores = {dtype: probe.scores(values[rows])[:, known] for dtype, values in features.items()}
            patients = splits.patients(store.table)[rows]
            result = compare(targets[rows][:, known], scores, patients, np.asarray(names)[known], n=bootstrap, seed=seed)
            found = {dtype: result.macro(dtype) for dtype in scores}
            found |= {f"{dtype} - float32": result.gain(dtype, "float32") for dtype in moved}
            for model, one in found.items():
                entry = {"name": f"macro AUROC, fold {fold}", "task": task, "model": model, "n": len(result.names), "seed": seed}
                metrics.append({**entry, "value": one.value, "low": one.low, "high": one.high})
    return metrics, moved


def gentlest(record):
    """The type of half precision that moves the macro AUROC of fold 9 least in the mean over tasks, by a record of `measure_precision`."""
    moved = {dtype: [] for dtype in record["extra"]["moved"]}
    for metric in record["metrics"]:
        dtype, _, other = metric["model"].partition(" - ")
        if other and metric["name"] == "macro AUROC, fold 9":
            moved[dtype].append(abs(metric["value"]))
    return min(moved, key=lambda dtype: np.mean(moved[dtype]))


def measure_precision(folder, store, path, **options):
    """Run `precision` with its options, and write the record that the model card reads; returns it."""
    from . import runs

    start, given = time.perf_counter(), {**precision.__kwdefaults__, **options}
    metrics, moved = precision(folder, store, **given)
    name = store.meta.get("source", store.path.name)
    return runs.write(
        path,
        chapter="precision",
        parameters={"data": name, **{key: given[key] for key in ("tasks", "readout", "bootstrap", "seed")}},
        metrics=metrics,
        data={"name": name, "records": len(store), "sha256": store.meta["sha256"]},
        wall_seconds=time.perf_counter() - start,
        extra={"moved": moved, "config": json.loads((locate(folder) / "config.json").read_text())},
    )
