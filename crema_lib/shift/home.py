"""Models as they would be put to use: an encoder with a probe, temperatures and thresholds, all of them chosen at home."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data import splits
from ..data.labels import matrix
from ..embeddings import embed_store
from ..errors import CremaError
from ..finetune import Classifier
from ..metrics import thresholds
from ..metrics.calibration import Temperature, fit_temperature
from ..paths import resolve
from ..probes.linear import LinearProbe, fit_probe, learnable
from ..sit import SiT


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
            computed features, or None. precision: in which features are computed, see `embed_store`.
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
    precision: str = "no"

    def features(self, store, rows=None):
        """Features of recordings of any store, float32 (rows, features)."""
        options = {"readout": self.readout, "cache": self.cache, "device": self.device, "precision": self.precision}
        return embed_store(self.encoder, store, rows, **options)

    def scores(self, features):
        """Calibrated probabilities, float (records, labels)."""
        return self.temperature(self.probe.scores(features))


def encoders(p, folder, extra=()):
    """The encoders that the chapters on shift compare, to be frozen under a probe of their own.

    Args:
        p: namespace of `notebook.setup` with `seed` and `run_dir`. folder: of the pretrained model.
        extra: further pretrained Signal Transformers, as texts NAME=FOLDER.

    Returns:
        dict name -> encoder: "random, probe" (the configuration of the pretrained one at random initialisation), "CR-MAE, probe",
        "xresnet1d101" (the trunk of the network that the chapter on fine-tuning trained with this profile and seed, where it is there),
        then the further ones.

    Raises:
        CremaError: a text without a name or a folder, a name that is there already, or a folder without a model.
    """
    torch.manual_seed(p.seed)
    config = json.loads((Path(folder) / "config.json").read_text())
    found = {"random, probe": SiT(**config).eval(), "CR-MAE, probe": SiT.from_pretrained(folder)}
    network = p.run_dir / "finetune" / f"xresnet1d101-s{p.seed}" / "model"
    if network.is_dir():
        found["xresnet1d101"] = Classifier.from_pretrained(network).encoder.eval()
    for text in extra:
        name, path = (part.strip() for part in text.partition("=")[::2])
        if not name or not path:
            raise CremaError(f"a further checkpoint is written NAME=FOLDER, not {text!r}")
        if name in found:
            raise CremaError(f"there is an encoder named {name} already: give the checkpoint {path} another name")
        found[name] = SiT.from_pretrained(resolve(path))
    return found


def _readout(encoder, wanted):
    """The wanted readout, or the only one that a convolutional network has."""
    return wanted if wanted in encoder.readouts else encoder.readouts[0]


def embed(encoders, store, rows=None, *, readout="mean", **options):
    """Features of several frozen encoders, dict name -> float32 (rows, features), see `embed_store`."""
    return {name: embed_store(one, store, rows, readout=_readout(one, readout), **options) for name, one in encoders.items()}


def settle(encoders, store, task, *, readout="mean", features=None, sensitivity=None, train=None, valid=None, **options):
    """Fit probes of several encoders on a task and choose temperatures and thresholds for them.

    Args:
        encoders: dict name -> encoder. store: home. task: see `labels.matrix`.
        sensitivity: None for thresholds of the highest F1, else see `thresholds.choose`.
        features: dict name -> float (records of the store, features) where they are known already, for several splits of one store.
        train, valid: row numbers, folds 1-8 and fold 9 where they are not given. options: cache, device and precision of `embed_store`,
            for recordings elsewhere too.

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
        how = _readout(encoder, readout)
        rows = np.r_[train, valid]
        x = features[name][rows] if features else embed_store(encoder, store, rows, readout=how, **options)
        y = targets[rows][:, usable]
        known = slice(None, len(train)), slice(len(train), None)
        probe, _ = fit_probe((x[known[0]], y[known[0]]), (x[known[1]], y[known[1]]), device=options.get("device", "cpu"))
        raw = probe.scores(x[known[1]])
        temperature = fit_temperature(y[known[1]], raw)
        chosen = thresholds.choose(y[known[1]], temperature(raw), names, sensitivity=sensitivity)["threshold"].to_numpy()
        models.append(Model(name, encoder, how, names, probe, temperature, chosen, **options))
    return models


def visit(models, store, task, rows, name=None, features=None):
    """What models from home say of recordings elsewhere.

    Args:
        models: of `settle`. store: any store with the vocabulary of the task, or a `corrupt.Shifted` one. rows: row numbers.
        name: of the sample, the store's folder if not given. features: as in `settle`.

    Returns:
        (Sample, features): the features are a dict model -> float (rows, features).
    """
    targets, names, _ = matrix(store.table, task)
    pick = [list(names).index(label) for label in models[0].names]
    found = {model.name: features[model.name][rows] if features else model.features(store, rows) for model in models}
    scores = {model.name: model.scores(found[model.name]) for model in models}
    return Sample(name or store.path.name, targets[rows][:, pick], splits.patients(store.table)[rows], scores), found
