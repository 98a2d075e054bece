"""One checkpoint, any leads: what a probe makes of subsets of the leads.

A probe of a frozen encoder can be trained in three ways (`TRAINED`), and each is tested on every subset:
- own: on features of the very leads that it is tested with, one probe for each subset;
- full: on features of the largest subset, and then shown fewer leads without being told;
- mixed: one probe for all, each recording of its training and choice with a subset drawn at random (ours, after random lead masking).
"""

import numpy as np
import pandas as pd

from .data import splits
from .data.labels import matrix
from .data.leads import SUBSETS
from .errors import CremaError
from .finetune import STARTS
from .metrics import compare
from .metrics.bootstrap import holm
from .probes.linear import check_finite, fit_probe, learnable

TRAINED = ("own", "full", "mixed")


def called(count):
    """A number of leads in words: "1 lead", "3 leads"."""
    return f"{count} lead{'s' * (count != 1)}"


def embedded(features):
    """Features by model and subset, put in order and checked.

    Args:
        features: dict (model, number of leads) -> float (records, features).

    Returns:
        dict model -> dict number of leads -> features, most leads first.

    Raises:
        CremaError: nothing given, a number without a subset in `leads.SUBSETS`, a model that lacks a subset, or shapes that differ.
    """
    if not features:
        raise CremaError("there is nothing to probe: give features by model and number of leads")
    counts = sorted({count for _, count in features}, reverse=True)
    if unknown := [count for count in counts if count not in SUBSETS]:
        raise CremaError(f"no subset of {unknown[0]} leads is known: known are {', '.join(map(str, SUBSETS))}")
    found = {}
    for model in dict.fromkeys(model for model, _ in features):
        if missing := [count for count in counts if (model, count) not in features]:
            raise CremaError(f"{model} has no features of {called(missing[0])}: embed every subset with every model")
        found[model] = {count: features[model, count] for count in counts}
        if len(shapes := {np.shape(x) for x in found[model].values()}) > 1:
            raise CremaError(f"the features of {model} have shapes {', '.join(map(str, sorted(shapes)))}: embed the same recordings")
    return found


def mixture(features, seed=0):
    """Each recording with one of its subsets, drawn at random: dict number of leads -> float (records, features) -> the same shape."""
    counts = list(features)
    mixed = np.array(features[counts[0]])
    drawn = np.random.default_rng(seed).integers(len(counts), size=len(mixed))
    for i, count in enumerate(counts):
        mixed[drawn == i] = features[count][drawn == i]
    return mixed


def probe_leads(store, features, task, *, strengths=STARTS, bootstrap=1000, seed=0, device="cpu"):
    """Linear probes by subset of leads: trained on folds 1-8, penalty chosen on fold 9, scored on fold 10.

    Args:
        store: its table gives folds, patients and labels.
        features: dict (model, number of leads) -> float (records of the store, features), see `embeddings.embed_store(leads=)`.
        task: see `labels.matrix`. strengths: penalties to choose from; four, as the heads of fine-tuning start with. bootstrap: resamples
            of patients. seed: of the resamples and of the subsets that the mixed probe is trained on.

    Returns:
        Comparison of AUROC whose models are (model, trained, number of leads shown), `trained` one of `TRAINED`, all on the same
        resamples. Labels that the training folds or fold 10 lack are left out.

    Raises:
        CremaError: see `embedded`, `splits.check`, `fit_probe`; features that do not fit the store.
    """
    found = embedded(features)
    targets, names, kept = matrix(store.table, task)
    train, valid, test = splits.parts(store.table, kept)
    known, names, scores = learnable(targets[train]), np.asarray(names), {}

    def fit(x):
        return fit_probe((x[train], targets[train]), (x[valid], targets[valid]), strengths, device=device)[0]

    for model, subsets in found.items():
        full, *_ = subsets
        if len(subsets[full]) != len(store):
            raise CremaError(f"{model} has features of {len(subsets[full])} recordings, the store holds {len(store)}: embed all of them")
        for x in subsets.values():
            check_finite(x[test], "test")
        own = {count: fit(x) for count, x in subsets.items()}
        mixed = fit(mixture(subsets, seed)) if len(subsets) > 1 else own[full]
        for count, x in subsets.items():
            for trained, probe in zip(TRAINED, (own[count], own[full], mixed), strict=True):
                scores[model, trained, count] = probe.scores(x[test])[:, known]
    patients = splits.patients(store.table)[test]
    return compare(targets[test][:, known], scores, patients, names[known], n=bootstrap, seed=seed)


def table(result):
    """Macro averages of `probe_leads`: DataFrame model, trained, leads, value, low, high, labels."""
    rows = [dict(zip(("model", "trained", "leads"), key, strict=True)) | vars(result.macro(key)) for key in result.per_label]
    return pd.DataFrame(rows).assign(labels=len(result.names))


def differences(result, twin=None):
    """Paired differences in the macro average of `probe_leads`.

    Args:
        twin: model that every other one is held against with the same leads, or None.

    Returns:
        DataFrame model, trained, leads, less (text), value, low, high, p, p_holm: each subset less the largest one of the same model
        and way of training; the probes "full" and "mixed" less "own" on the same leads; each model less the twin, both "own". p_holm is
        adjusted within a way of training and what is taken off.

    Raises:
        CremaError: the twin is none of the models.
    """
    models, full = dict.fromkeys(model for model, *_ in result.per_label), max(count for *_, count in result.per_label)
    if twin is not None and twin not in models:
        raise CremaError(f"there is no model {twin!r} to hold the others against: there are {', '.join(map(str, models))}")
    asked = []
    for model, trained, count in result.per_label:
        if count < full:
            asked.append(((model, trained, count), (model, trained, full), called(full)))
        if trained != "own" and (trained, count) != ("full", full):  # which is the own probe of the largest subset
            asked.append(((model, trained, count), (model, "own", count), "own"))
        if trained == "own" and twin not in (None, model):
            asked.append(((model, trained, count), (twin, trained, count), str(twin)))
    rows = [{"model": key[0], "trained": key[1], "leads": key[2], "less": less} for key, _, less in asked]
    tested = result.gains([pair[:2] for pair in asked]).drop(columns=["model", "other"])
    found = pd.concat([pd.DataFrame(rows, columns=["model", "trained", "leads", "less"]), tested], axis=1)
    return found.assign(p_holm=found.groupby(["trained", "less"])["p"].transform(lambda p: holm(p)))


def by_label(result):
    """AUROC of each label by the probes trained on the leads that they are shown, and what is lost against the largest subset.

    Returns:
        DataFrame model, leads, label, n (positives in fold 10), value, low, high, loss, loss_low, loss_high; the loss is paired, above
        zero where fewer leads are worse.
    """
    full, rows = max(count for *_, count in result.per_label), []
    for key in result.per_label:
        model, trained, count = key
        for i, label in enumerate(result.names if trained == "own" else ()):
            loss = result.gain((model, trained, full), key, [i])
            lost = {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high}
            row = {"model": model, "leads": count, "label": str(label), "n": int(result.positives[i])}
            rows.append(row | vars(result.label(key, i)) | lost)
    return pd.DataFrame(rows)
