"""Where the risk of a self-supervised representation comes from (Dubois, Hashimoto & Liang, ICML 2023, arXiv 2302.03068).

The risk of a linear probe on records that neither the encoder nor the probe has seen is the sum of four components, each the step from one
setting to a harder one:

    approximation           risk of a supervised network of the encoder's architecture, on its training records: what the family cannot do
    usability               a linear probe on the frozen features, trained and scored on all records the encoder has seen, less that:
                            what a supervised encoder makes easy for a linear probe and this one does not
    probe generalisation    a probe scored on records the encoder has seen and the probe has not, less that: what few labels cost
    encoder generalisation  a probe scored on records the encoder has not seen either, less that: what unseen recordings cost the encoder

These are the estimators of the authors' released notebook. Ours differ:

- Multi-label risks: mean log loss, or 1 - macro AUROC, over the labels; theirs is the error rate in 1000 classes. The second is no mean
  over records; its components add up too.
- All probes have one strength of the penalty, chosen by macro AUROC on a part of the seen records, so that all risks are of one family of
  probes. The usability holds what the penalty costs the fit.
- Parts are split, and intervals drawn, by patient. The held-out part is a share of the seen patients; theirs is as large as the test set.
- A negative component stays negative; their released analysis sets it to zero.
"""

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from ..errors import CremaError
from ..metrics import auroc, interval, log_loss, macro, patient_counts
from ..probes.linear import STRENGTHS, LinearProbe, check_records, fit_probe, learnable

COMPONENTS = ("approximation", "usability", "probe generalisation", "encoder generalisation")
RISKS = {"log_loss": log_loss, "auroc": lambda *args: 1 - auroc(*args)}


def decompose(
    features,
    targets,
    seen_rows,
    unseen_rows,
    supervised_scores,
    patients,
    *,
    metric="log_loss",
    share=0.1,
    strengths=STRENGTHS,
    n=1000,
    seed=0,
    device="cpu",
):
    """Split the risk of a linear probe on frozen features into its four components.

    Args:
        features: float (records, features) of a frozen encoder. targets: 0/1 (records, labels).
        seen_rows: row numbers that the encoder was pretrained on. unseen_rows: row numbers of other patients.
        supervised_scores: float (seen rows, labels), the probabilities that a supervised network of the same architecture, trained on the
            seen rows, gives them, in `eval()`.
        patients: (records,).
        metric: "log_loss" (nats, mean over the labels) or "auroc" (the risk is 1 - macro AUROC), or a list of them.
        share: of the seen patients held out from the probe, and again as many to choose its strength on; 0 < share < .5.
        strengths: of the penalty, see `probes.linear.fit_probe`. n: resamples of patients. seed: of the split and of the resamples.

    Returns:
        DataFrame metric, component, value, low, high, labels, strength: a row for each of `COMPONENTS` and one for their sum, "total",
        which is the risk of a probe trained on the seen rows and scored on the unseen ones. 95 % percentile intervals; seen and unseen
        patients are resampled apart, held-out ones with the seen, and the probes are not trained anew. `labels` says how many labels
        count: those with a positive and a negative record in each part.

    Raises:
        CremaError: an unknown metric, a share out of range, shapes that do not fit, rows given twice, a patient on both sides, or what
            `fit_probe` refuses; a part without a label that can be scored.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    if unknown := [one for one in metrics if one not in RISKS]:
        raise CremaError(f"unknown metric {unknown[0]!r}: known are {', '.join(RISKS)}")
    if not 0 < share < 0.5:
        raise CremaError(f"a held-out share of {share} is outside 0 < share < 0.5")
    features, targets, patients = np.asarray(features), np.asarray(targets), np.asarray(patients)
    seen, unseen = np.asarray(seen_rows, dtype=int), np.asarray(unseen_rows, dtype=int)
    supervised = np.asarray(supervised_scores)
    if targets.ndim != 2 or not len(features) == len(targets) == len(patients):
        raise CremaError(f"features {features.shape}, targets {targets.shape} and patients {patients.shape} must be of the same records")
    if supervised.shape != (len(seen), targets.shape[1]):
        raise CremaError(f"supervised scores {supervised.shape} must be (seen rows, labels), here {(len(seen), targets.shape[1])}")
    for name, rows in (("seen", seen), ("unseen", unseen)):
        if len(np.unique(rows)) < len(rows):
            raise CremaError(f"{len(rows) - len(np.unique(rows))} of the {name} rows are given twice")
        check_records(features[rows], targets[rows], name)
    if len(both := np.intersect1d(patients[seen], patients[unseen])):
        raise CremaError(f"{len(both)} patients are among the seen and the unseen, the first is {both[0]}: split by patient")
    fitted, chosen, held = _parts(patients[seen], share, seed)  # positions in seen
    x, y = features[seen], targets[seen]
    strength = fit_probe((x[fitted], y[fitted]), (x[chosen], y[chosen]), strengths, device=device)[0].strength
    part = np.concatenate([fitted, chosen])
    known = learnable(y[part]) & learnable(y[held]) & learnable(targets[unseen])
    if not known.any():
        raise CremaError("no label has a positive and a negative record in each part: take more records, or a larger held-out share")
    probe = LinearProbe().fit(x[part], y[part][:, known], strength, device=device)
    whole = LinearProbe().fit(x, y[:, known], strength, device=device)
    counts, others = patient_counts(patients[seen], n, [seed, 0]), patient_counts(patients[unseen], n, [seed, 1])
    stages = (
        (y[:, known], supervised[:, known], counts),
        (y[:, known], whole.scores(x), counts),
        (y[held][:, known], probe.scores(x[held]), counts[:, held]),
        (targets[unseen][:, known], whole.scores(features[unseen]), others),
    )
    names, rows = (*COMPONENTS, "total"), []
    for name in metrics:
        values = _macro([RISKS[name](truth, scores) for truth, scores, _ in stages])
        resamples = _macro([RISKS[name](*stage) for stage in stages])
        found = [interval(value, sample) for value, sample in zip(_steps(values), _steps(resamples), strict=True)]
        rows += [(name, part, i.value, i.low, i.high, int(known.sum()), strength) for part, i in zip(names, found, strict=True)]
    return pd.DataFrame(rows, columns=["metric", "component", "value", "low", "high", "labels", "strength"])


def _parts(patients, share, seed):
    """Positions of records (fitted, chosen, held) of which the last two are a share of the patients each."""
    if len(np.unique(patients)) < 2 / share:
        raise CremaError(f"{len(np.unique(patients))} seen patients are too few to hold out a share of {share:g} twice: take more")
    fitted, rest = next(GroupShuffleSplit(1, test_size=2 * share, random_state=seed).split(patients, groups=patients))
    chosen, held = next(GroupShuffleSplit(1, test_size=0.5, random_state=seed).split(rest, groups=patients[rest]))
    return fitted, rest[chosen], rest[held]


def _macro(stages):
    """Mean over the labels that are defined in all stages: (stages, ..., labels) -> (stages, ...)."""
    stages = np.stack(stages)
    return macro(np.where(np.isfinite(stages).all(0), stages, np.nan))[0]


def _steps(risks):
    """The risk of the first stage, what each later one adds, and the risk of the last."""
    return [*np.diff(risks, axis=0, prepend=np.zeros_like(risks[:1])), risks[-1]]
