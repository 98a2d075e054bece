"""Models for others: written in half precision with their checksums, and what that precision costs."""

import copy
import json
import re
import shutil
import time

import numpy as np
from safetensors.torch import load_file, save_file

from . import runs
from .data import labels, splits
from .embeddings import embed_store
from .errors import CremaError
from .metrics import compare
from .objectives import load
from .paths import digest, home
from .probes.linear import fit_probe, learnable
from .sit import SiT
from .weights import DTYPES, ENCODER, HEADS, SEEN, SUMS, locate, rounded, stored


def publish(folder, name, dtype="float16"):
    """Write a trained model to `weights/NAME`, whole or not at all.

    A model of that name is replaced, and what was fitted to its weights and lay beside them goes with it (see `reader`).

    Args:
        folder: of the trained model: encoder, heads, options, and what it was trained on. name: lower-case letters, digits, dots, hyphens.
        dtype: of the matrices, see `weights.rounded` and `precision`.

    Returns:
        The folder `weights/NAME`, with `SHA256SUMS` in the form of sha256sum. `python -m crema_lib cards` adds its README.

    Raises:
        CremaError: a bad name or type, a file missing or damaged, weights that do not fit.
    """
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
