"""The table of a comparison: every network on fold 10, task by task, runs with several seeds averaged."""

import dataclasses

import numpy as np
import torch

from . import finetune
from .data import splits
from .data.labels import age, matrix
from .metrics import compare
from .probes.linear import fit_probe, learnable
from .probes.regression import compare_ages

RULES = {"macro AUROC": lambda result: np.ones(len(result.names), bool), "macro AUROC, >= 10 positives": lambda result: result.frequent}


def average(result, groups):
    """A `Comparison` of means over runs: the value of a group is the mean of its runs', and so is each resample.

    Args:
        result: `Comparison` of single runs. groups: dict name -> list of its models.
    """
    mean = lambda values: {name: np.mean([values[run] for run in runs], axis=0) for name, runs in groups.items()}  # noqa: E731
    return dataclasses.replace(result, per_label=mean(result.per_label), resampled=mean(result.resampled))


def mean(results):
    """One `Comparison` of several, one a training run: scores and resamples are their means.

    Args:
        results: `Comparison`s of the same models on the same records, with the same seed of the bootstrap.
    """
    means = {
        part: {model: np.mean([getattr(one, part)[model] for one in results], axis=0) for model in results[0].per_label}
        for part in ("per_label", "resampled")
    }
    return dataclasses.replace(results[0], **means)


def compare_task(store, task, outputs, *, probes=(), bootstrap=1000, seed=0):
    """Networks and probes on one task, fold 10, seeds averaged.

    Args:
        outputs: dict (model, seed) -> (columns, float (records of fold 10, outputs)), see `finetune.of_task`; a model whose heads do not
            cover the task is left out. probes: dict name -> float (records of the store, features), for linear probes.

    Returns:
        Comparison, models in the order probes, networks. Labels that the training folds or fold 10 lack are left out.
    """
    targets, names, kept = matrix(store.table, task)
    train, valid, test = splits.parts(store.table, kept)
    known, names = learnable(targets[train]), np.asarray(names)
    place = np.searchsorted(splits.parts(store.table)[2], test)
    scores, groups = {}, {}
    for name, x in dict(probes).items():
        probe, _ = fit_probe((x[train], targets[train]), (x[valid], targets[valid]))
        scores[name], groups[name] = probe.scores(x[test])[:, known], [name]
    for (model, run), (columns, values) in outputs.items():
        if not finetune.covers(columns, task, names):
            continue
        scores[model, run] = finetune.of_task(columns, values[place], task, names[known])
        groups.setdefault(model, []).append((model, run))
    patients = splits.patients(store.table)[test]
    result = compare(targets[test][:, known], scores, patients, names[known], n=bootstrap, seed=seed)
    return average(result, groups)


def compare_years(store, outputs, *, bootstrap=1000, seed=0):
    """Age on fold 10, seeds averaged: dict "MAE" and "R2" -> `Comparison`; networks without the task `age` are left out."""
    years = age(store.table)
    train, _, test = splits.parts(store.table, np.isfinite(years))
    place = np.searchsorted(splits.parts(store.table)[2], test)
    predictions, groups = {"mean age": np.full(len(test), years[train].mean())}, {"mean age": ["mean age"]}
    for (model, run), (columns, values) in outputs.items():
        if "age" in columns:
            predictions[model, run] = finetune.of_task(columns, values[place], "age", ["years"])[:, 0]
            groups.setdefault(model, []).append((model, run))
    found = compare_ages(years[test], predictions, splits.patients(store.table)[test], n=bootstrap, seed=seed)
    return {metric: average(result, groups) for metric, result in found.items()}


@torch.inference_mode()
def outputs_of(models, store, device="cpu"):
    """What trained `Classifier`s say of fold 10: dict key -> (columns, float (records, outputs))."""
    test = splits.parts(store.table)[2]
    return {key: (model.columns, finetune.scores(model, store, test, device=device)) for key, model in models.items()}


def entries(task, result, pairs=(), *, seed=0):
    """Metrics of a task for a run record: macro AUROC of each model under both rules for rare labels, and paired differences.

    Args:
        result: `Comparison` of AUROC. pairs: (model, other).

    Returns:
        list of dicts with `runs.METRIC_KEYS`; n is the number of labels. A difference is named "model - other".
    """
    found = []
    for rule, chosen in RULES.items():
        labels = chosen(result)
        if not labels.any():
            continue
        values = {model: result.macro(model, labels) for model in result.per_label}
        values |= {f"{model} - {other}": result.gain(model, other, labels) for model, other in pairs}
        found += [
            {"name": rule, "task": task, "model": model, **dataclasses.asdict(value), "n": int(labels.sum()), "seed": seed}
            for model, value in values.items()
        ]
    return found


def age_entries(results, *, seed=0):
    """Metrics of `compare_years` (or `regression.probe_age`) for a run record; n is the number of records."""
    return [
        {
            "name": metric,
            "task": "age",
            "model": model,
            **dataclasses.asdict(result.macro(model)),
            "n": int(result.positives[0]),
            "seed": seed,
        }
        for metric, result in results.items()
        for model in result.per_label
    ]
