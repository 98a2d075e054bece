"""Models as they would be put to use: an encoder with a probe, temperatures and thresholds, all of them chosen at home."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ..data import splits
from ..data.labels import matrix
from ..embeddings import embed_store
from ..errors import CremaError
from ..metrics import thresholds
from ..metrics.calibration import Temperature, fit_temperature
from ..probes.linear import LinearProbe, fit_probe, learnable


@dataclass(frozen=True)
class Sample:
    """Recordings that models are judged on.

    Attributes:
        name: of the place or condition. targets: 0/1 (records, labels). patients: identifiers (records,).
        scores: dict model -> probabilities (records, labels).
    """

    name: str
    targets: np.ndarray
    patients: np.ndarray
    scores: dict

    def take(self, chosen, name=None):
        """Some of the recordings, by row number or bool."""
        scores = {model: values[chosen] for model, values in self.scores.items()}
        return Sample(name or self.name, self.targets[chosen], self.patients[chosen], scores)


@dataclass(frozen=True)
class Model:
    """A frozen encoder with what was chosen at home for it.

    Attributes:
        name: of the model. encoder: a `SiT` or `XResNet1d`. readout: see `SiT.features`. names: of the labels.
        probe: linear probe of folds 1-8, its penalty from fold 9. temperature, thresholds (labels,): from fold 9 too. cache: folder of
            computed features, or None.
    """

    name: str
    encoder: nn.Module
    readout: str
    names: tuple
    probe: LinearProbe
    temperature: Temperature
    thresholds: np.ndarray
    cache: Path | None = None
    device: str = "cpu"

    def features(self, store, rows=None):
        """Features of recordings of any store, float32 (rows, features)."""
        return embed_store(self.encoder, store, rows, readout=self.readout, cache=self.cache, device=self.device)

    def scores(self, features):
        """Calibrated probabilities, float (records, labels)."""
        return self.temperature(self.probe.scores(features))


def settle(encoders, store, task, *, readout="mean", sensitivity=None, cache=None, device="cpu", train=None, valid=None):
    """Fit probes of several encoders on a task and choose temperatures and thresholds for them.

    Args:
        encoders: dict name -> encoder, or (encoder, readout). store: home. task: see `labels.matrix`.
        sensitivity: None for thresholds of the highest F1, else see `thresholds.choose`.
        train, valid: row numbers, folds 1-8 and fold 9 where they are not given.

    Returns:
        List of `Model`. Labels that cannot be learnt or chosen for (no positive or no negative among either) are left out.

    Raises:
        CremaError: see `splits.check`, `fit_probe`.
    """
    targets, names, kept = matrix(store.table, task)
    folds = splits.parts(store.table, kept)
    train, valid = (folds[0] if train is None else train), (folds[1] if valid is None else valid)
    usable = learnable(targets[train]) & learnable(targets[valid])
    if not usable.any():
        raise CremaError(f"no label of the task {task} can both be learnt at home and have a threshold chosen")
    names, models = tuple(np.asarray(names)[usable]), []
    for name, encoder in encoders.items():
        encoder, how = encoder if isinstance(encoder, tuple) else (encoder, readout)
        how = how if how in encoder.readouts else encoder.readouts[0]
        x = embed_store(encoder, store, np.r_[train, valid], readout=how, cache=cache, device=device)
        y = targets[np.r_[train, valid]][:, usable]
        known = slice(None, len(train)), slice(len(train), None)
        probe, _ = fit_probe((x[known[0]], y[known[0]]), (x[known[1]], y[known[1]]), device=device)
        raw = probe.scores(x[known[1]])
        temperature = fit_temperature(y[known[1]], raw)
        chosen = thresholds.choose(y[known[1]], temperature(raw), names, sensitivity=sensitivity)["threshold"].to_numpy()
        models.append(Model(name, encoder, how, names, probe, temperature, chosen, cache, device))
    return models


def visit(models, store, task, rows, name=None):
    """What models from home say of recordings elsewhere.

    Args:
        models: of `settle`. store: any store with the vocabulary of the task, or a `corrupt.Shifted` one. rows: row numbers.
        name: of the sample, the store's folder if not given.

    Returns:
        (Sample, features): the features are a dict model -> float (rows, features).
    """
    targets, names, _ = matrix(store.table, task)
    pick = [list(names).index(label) for label in models[0].names]
    features = {model.name: model.features(store, rows) for model in models}
    scores = {model.name: model.scores(features[model.name]) for model in models}
    patients = (store.table["source"].astype(str) + "/" + store.table["patient"].astype(str)).to_numpy()[rows]
    return Sample(name or store.path.name, targets[rows][:, pick], patients, scores), features
