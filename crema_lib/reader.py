"""A model ready for anyone's recordings, from one folder: encoder and decoder, a linear probe, and what its home looks like.

Beside the weights lie `probe-TASK.safetensors` (a linear probe of folds 1-8, with the temperatures and thresholds of fold 9) and
`novelty.safetensors` (mean and covariance of the features of folds 1-8, and how far recordings of fold 9 lie from them). No feature of a
single recording is in them, and nothing of fold 10.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from . import objectives, weights
from .data import splits
from .data.leads import LEADS, check_names
from .data.prepare import condition, crop_or_pad, prepare, screen
from .data.records import canonical, mv_per
from .data.store import millivolts, to_steps
from .embeddings import check_readout, embed_store, frozen, judged
from .errors import CremaError
from .metrics.calibration import Temperature
from .paths import digest
from .probes.linear import LinearProbe
from .shift.home import Model, settle
from .shift.signals import Novelty

PERCENT = np.arange(101)
PROBE, TEMPERATURE = ("mean", "deviation", "weight", "bias", "known"), ("values", "positives", "own")  # what of them is kept


@dataclass(frozen=True)
class Recordings:
    """Recordings in memory, in the form that an encoder takes, for everything that reads a store (`embed_store`, `corrupt.Shifted`).

    Attributes:
        signals: int16 (records, 12, samples), 1 uV a step, leads in canonical order. lead_mask: bool (records, 12), False where one is
            missing or flat. table: DataFrame record, quality (flags joined by ';'). meta: dict with fs (Hz), seconds, leads, band (Hz),
            sha256. report: DataFrame record, reason, action, of what was left out or kept with a flag.
    """

    signals: np.ndarray
    lead_mask: np.ndarray
    table: pd.DataFrame
    meta: dict
    report: pd.DataFrame
    path: ClassVar = Path("recordings")

    @property
    def fs(self):
        return self.meta["fs"]

    @property
    def seconds(self):
        return self.meta["seconds"]

    def __len__(self):
        return len(self.table)

    def read(self, rows, device="cpu"):
        """As `EcgStore.read`."""
        return millivolts(self.signals[np.asarray(rows)], device)


@dataclass(frozen=True)
class Reference:
    """What the features of home are like.

    Attributes:
        mean: (features,). factor: (features, k); a feature vector x lies |(x - mean) factor| from home, the Mahalanobis distance of
            `shift.signals.Novelty`. distances: (101,), the percentiles 0 to 100 of the distances of recordings that were not fitted.
    """

    mean: np.ndarray
    factor: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, features, held):
        """From features (records, features) of home, and of further recordings of home that give the scale.

        Raises:
            CremaError: too few recordings to fit (see `Novelty`), fewer than 100 for the scale, or features that are not finite.
        """
        if len(held) < 100:
            raise CremaError(f"{len(held)} recordings are too few for percentiles of their distances: give 100 or more")
        novelty = Novelty(features)
        factor = novelty.axes / novelty.deviation[:, None] @ np.linalg.cholesky(novelty.covariance.precision_)
        return cls(novelty.mean, factor, np.percentile(novelty.mahalanobis(held), PERCENT))

    def __call__(self, features):
        """How far recordings lie from home.

        Args:
            features: (records, features), array or DataFrame.

        Returns:
            DataFrame distance, percentile (how many of a hundred recordings of home lie nearer), with the index of the features.

        Raises:
            CremaError: another number of features, or values that are not finite.
        """
        x = _features(features, len(self.mean))
        distance = np.linalg.norm((x - self.mean) @ self.factor, axis=1)
        return pd.DataFrame({"distance": distance, "percentile": np.interp(distance, self.distances, PERCENT)}, index=_index(features))


@dataclass(frozen=True)
class Reader:
    """An encoder with its decoder, probe and reference: recordings in, features, probabilities, novelty and reconstructions out.

    Attributes:
        objective: that the encoder was pretrained with. model: encoder, readout, probe, temperatures, thresholds, see `home.Model`.
        reference: of the features of its training recordings.
    """

    objective: nn.Module
    model: Model
    reference: Reference

    @classmethod
    def load(cls, name, task="super", device="cpu"):
        """The reader of a model.

        Args:
            name: of a folder in `weights/`, or a folder. task: of the probe, see `labels.BINARY`. device: "cpu" or "cuda".

        Raises:
            CremaError: no such model, a file that is missing or damaged, or one that was made for other weights.
        """
        folder = weights.locate(name)
        objective = objectives.load(folder)
        tensors, told = _open(folder, f"probe-{task}")
        probe = LinearProbe()
        vars(probe).update({key: torch.from_numpy(tensors[key]) for key in PROBE}, strength=float(told["strength"]))
        temperature = Temperature(*(tensors[key] for key in TEMPERATURE))
        names = tuple(json.loads(told["labels"]))
        model = Model(folder.name, objective.encoder, told["readout"], names, probe, temperature, tensors["thresholds"], device=device)
        tensors, told = _open(folder, "novelty")
        if told["readout"] != model.readout:
            raise CremaError(f"probe and reference in {folder} read different features: make both anew with python -m crema_lib reader")
        return cls(objective, model, Reference(**tensors))

    @property
    def encoder(self):
        return self.model.encoder

    def read(self, source, *, fs=None, leads=None, unit=None, progress=False):
        """Bring recordings into the form that the encoder was trained on: leads by name, mV, its rate, band and length.

        Args:
            source: array (leads, samples) or (records, leads, samples), a list of such recordings of any length; or a path, or a list of
                paths, of WFDB records, CSV tables and folders of them.
            fs: sampling rate, Hz. leads: names, any order and spelling. unit: mV, uV, nV or V. An array needs all three; of files they
                are read, and fs and unit are those of files that name none.

        Returns:
            `Recordings`. Of files, what cannot be used is left out and told in `report`. Longer recordings are cut to their middle,
            shorter ones padded with zeros; missing limb leads are derived, others masked. Quality "amplitude": see
            `embeddings.judged`.

        Raises:
            CremaError: an array without fs, leads or unit, or with a name that is no lead (in a file it is a channel to drop); a
                recording that cannot be read (an array) or none that can (files); all recordings implausibly large or small.
        """
        source = [source] if isinstance(source, str | Path) else source
        if isinstance(source, list | tuple) and all(isinstance(one, str | Path) for one in source):
            found = _from_files(self.encoder, source, fs, unit, progress)
        else:
            found = _from_arrays(self.encoder, source, fs, leads, unit)
        found.table["quality"] = judged(found, unit)
        return found

    def embed(self, recordings):
        """Features of recordings: float32 DataFrame (records, features), index record. recordings: of `read`, or any store."""
        values = embed_store(self.encoder, recordings, readout=self.model.readout, device=self.model.device)
        index = pd.Index(recordings.table["record"], name="record")
        return pd.DataFrame(values, index=index, columns=[f"f{i}" for i in range(values.shape[1])])

    def probabilities(self, features):
        """Calibrated probabilities of the probe's labels: DataFrame (records, labels), index as of the features. See `embed`.

        Raises:
            CremaError: another number of features, or values that are not finite.
        """
        x = _features(features, len(self.model.probe.mean))
        return pd.DataFrame(self.model.scores(x), index=_index(features), columns=self.model.names)

    def novelty(self, features):
        """How strange recordings are to the model: DataFrame distance, percentile, see `Reference`."""
        return self.reference(features)

    def reconstruct(self, recordings, hidden=None, *, seed=0):
        """Hide a part of each recording and let the decoder draw it.

        Args:
            recordings: of `read`, or any store. hidden: numbers of the patches to hide in all recordings and leads; None for a random
                share, as large as in pretraining, by `seed`.

        Returns:
            (drawn, hidden): float32 (records, leads of the encoder, samples) in mV, as the input where nothing was hidden; bool
            (patches,).

        Raises:
            CremaError: the model has no decoder, or the patches are not some of those that there are.
        """
        if not hasattr(self.objective, "reconstruct"):
            raise CremaError(f"{self.model.name} was pretrained with {type(self.objective).__name__}, which draws nothing")
        encoder, device = self.encoder, self.model.device
        patches, drawn = round(recordings.fs * recordings.seconds) // encoder.patch, []
        if hidden is None:
            hidden = self.objective.places(patches, seed).tolist()
        hidden = sorted(set(map(int, hidden)))
        if not 0 < len(hidden) < patches or hidden[0] < 0 or hidden[-1] >= patches:
            raise CremaError(f"hide some of the patches 0 to {patches - 1} and leave one, not {len(hidden)}: {hidden[:5]} ...")
        pick = [list(recordings.meta["leads"]).index(lead) for lead in encoder.leads]
        with frozen(self.objective, device):
            for i in range(0, len(recordings), 256):
                rows = np.arange(i, min(i + 256, len(recordings)))
                mask = torch.from_numpy(recordings.lead_mask[rows][:, pick]).to(device)
                chosen = torch.tensor(hidden, device=device).expand(len(rows), -1)
                drawn.append(self.objective.reconstruct(recordings.read(rows, device)[:, pick], mask, chosen)[0].cpu())
        return torch.cat(drawn).numpy(), np.isin(np.arange(patches), hidden)


def make(name, store, task="super", *, readout="layers", cache=None, device="cpu", progress=False):
    """Fit the probe and the reference of a model on a prepared data set and write them into its folder.

    Args:
        name: as of `Reader.load`. store: with folds; folds 1-8 fit, fold 9 gives temperatures, thresholds and the scale of novelty.
            task: see `labels.matrix`. readout: of `SiT.features`. cache: see `embed_store`.

    Returns:
        `Reader`.

    Raises:
        CremaError: no such model, a readout that it does not have, see `home.settle` and `Reference.of`.
    """
    folder = weights.locate(name)
    encoder = objectives.load(folder).encoder
    check_readout(encoder, readout)
    train, valid, _ = splits.parts(store.table)
    rows = np.sort(np.r_[train, valid])
    found = embed_store(encoder, store, rows, readout=readout, cache=cache, device=device, progress=progress)
    features = np.full((len(store), found.shape[1]), np.nan, dtype=np.float32)  # of fold 10 nothing
    features[rows] = found
    model = settle({folder.name: encoder}, store, task, readout=readout, features={folder.name: features}, device=device)[0]
    reference = Reference.of(features[train], features[valid])
    tensors = {key: getattr(model.probe, key).cpu().numpy() for key in PROBE}
    tensors |= {key: getattr(model.temperature, key) for key in TEMPERATURE} | {"thresholds": model.thresholds}
    told = {"readout": model.readout, "data": store.meta.get("source", ""), "data_sha256": store.meta["sha256"]}
    told |= {"model_sha256": digest(folder / "model.safetensors"), "fitted": len(train), "held": len(valid)}
    about = {"task": task, "labels": json.dumps(model.names), "strength": model.probe.strength}
    _write(folder, f"probe-{task}", tensors, told | about)
    _write(folder, "novelty", {key: value.astype(np.float32) for key, value in vars(reference).items()}, told)
    return Reader.load(folder, task, device)


def _from_arrays(encoder, source, fs, leads, unit):
    if fs is None or leads is None or unit is None:
        raise CremaError("an array does not say what it holds: give fs (Hz), leads (their names) and unit (mV, uV, nV or V)")
    if mv_per(unit) is None:
        raise CremaError(f"unknown unit {unit!r}: known are mV, uV, nV and V")
    check_names(leads)
    samples, ready, flags, masks = encoder.n_patches * encoder.patch, [], [], []
    condition(np.zeros((1, samples)), fs, fs_out=encoder.fs, band=encoder.band)  # a bad rate is told first
    for i, signal in enumerate(source if isinstance(source, list | tuple) or np.ndim(source) == 3 else [source]):
        signal = np.asarray(signal, dtype=np.float32)
        if signal.ndim != 2 or len(signal) != len(leads):
            raise CremaError(f"recording {i} has shape {signal.shape}, which does not fit {len(leads)} lead names: give (leads, samples)")
        if np.isinf(signal).any():
            raise CremaError(f"recording {i} holds infinite values: write NaN where a sample is missing")
        record = canonical(str(i), signal * np.float32(mv_per(unit)), leads, float(fs), {})
        found = record.flags + screen(record)
        cut, valid = crop_or_pad(condition(record.signal, fs, fs_out=encoder.fs, band=encoder.band), samples)
        ready.append(to_steps(cut)[0])
        masks.append(record.lead_mask)
        flags.append(";".join(found + ["padded"] * (valid < samples)))
    if not ready:
        raise CremaError("there is no recording in the list")
    signals = np.stack(ready)
    meta = {"fs": encoder.fs, "seconds": samples / encoder.fs, "leads": LEADS, "band": encoder.band}
    meta["sha256"] = hashlib.sha256(signals.data).hexdigest()
    table = pd.DataFrame({"record": [str(i) for i in range(len(signals))], "quality": flags})
    report = table[table["quality"] != ""].rename(columns={"quality": "reason"}).assign(action="kept with flag")
    return Recordings(signals, np.stack(masks), table, meta, report)


def _from_files(encoder, source, fs, unit, progress):
    seconds = encoder.n_patches * encoder.patch / encoder.fs
    with tempfile.TemporaryDirectory() as folder:
        store, report = prepare(
            "files", source=list(source), out=Path(folder) / "store", fs=encoder.fs, seconds=seconds, band=encoder.band,
            unit=unit, rate=fs, progress=progress,
        )  # fmt: skip
        found = Recordings(np.array(store.signals), store.lead_mask, store.table[["record", "quality"]].copy(), store.meta, report)
        del store  # a system that locks open files could not take the folder away
    return found


def _features(features, size):
    x = np.array(features, dtype=np.float32)
    if x.ndim != 2 or x.shape[1] != size or not np.isfinite(x).all():
        raise CremaError(
            f"features of shape {x.shape} must be finite (records, {size}): make them with `embed` of the same reader, or by command with "
            "--readout as the reader was made (layers, unless told otherwise)"
        )
    return x


def _index(features):
    return features.index if isinstance(features, pd.DataFrame) else None


def _write(folder, name, tensors, told):
    """Write a file beside the weights, and its checksum into the list of those that there are, if there is one."""
    path, sums = folder / f"{name}.safetensors", folder / weights.SUMS
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(tensors, path, {key: str(value) for key, value in told.items()})
    if sums.is_file():
        others = [line for line in sums.read_text().splitlines() if not line.endswith(f" {path.name}")]
        sums.write_text("".join(f"{line}\n" for line in sorted([*others, f"{digest(path)}  {path.name}"], key=lambda line: line[66:])))


def _open(folder, name):
    path = folder / f"{name}.safetensors"
    advice = f"make it with python -m crema_lib reader DATA --checkpoint {folder.name}"
    if not path.is_file():
        raise CremaError(f"{folder} has no {path.name}: {advice}")
    weights.verify(folder, [path.name])
    try:
        with safe_open(path, framework="numpy") as file:
            tensors, told = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise CremaError(f"{path} is damaged ({error}): fetch it again, or {advice}") from None
    if told.get("model_sha256") != digest(folder / "model.safetensors"):
        raise CremaError(f"{path} was made for other weights than those beside it: {advice}")
    return tensors, told
