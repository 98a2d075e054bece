"""Fine-tuning: an encoder and one linear head, trained together on labels, with early choice on fold 9.

One network learns all tasks at once, one output a label; a record that a task leaves out adds nothing to the loss of that task.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn

from . import checkpoints, parallel, views
from .data import labels, splits
from .data.store import check_fits
from .embeddings import fingerprint
from .engine import fit, parameter_groups
from .errors import CremaError
from .metrics import auroc, macro
from .objectives import Objective
from .probes.linear import fit_probe
from .probes.regression import fit_ridge
from .sit import SiT
from .xresnet import XResNet1d

STARTS = (1e-4, 1e-3, 1e-2, 1e-1)  # penalties of the probes that a head may start from
YEARS = (60.0, 20.0)  # an output o of the task `age` means 60 + 20 o years; the numbers only set where training starts


class Classifier(Objective):
    """Encoder, dropout and a linear head.

    Args:
        encoder: a `SiT`, or anything with its attributes and `features`.
        columns: dict task -> list of label names; the head has one output a name. The task `age` is a number, all others are 0/1.
        readout: see `SiT.features`. dropout: before the head.
        crop: s, length of the random window in training; 0 for the whole recording, rolled in time by a random amount.
        token_drop: share of tokens left out in training (PatchDropout, Liu et al. 2023, arXiv 2208.07220): faster, and it regularises;
            refused for the readout "moments", whose steps are those between neighbours.
        lead_drop, noise, gain: light augmentations, see `views`.
        blocks: train only the last so many transformer blocks (and the last norm and the head); None for everything.
        leads: names of the leads that it may see, in training and after, all others masked; None for all of the encoder's.
    """

    encoders = {"SiT": SiT, "XResNet1d": XResNet1d}  # noqa: RUF012

    def __init__(
        self,
        encoder,
        *,
        columns,
        readout="mean",
        dropout=0.1,
        crop=0.0,
        token_drop=0.0,
        lead_drop=0.1,
        noise=0.03,
        gain=0.1,
        blocks=None,
        leads=None,
    ):
        options = {key: value for key, value in locals().items() if key not in ("self", "encoder", "__class__")}
        super().__init__(encoder, **options)
        self.__dict__.update(options)
        self.samples = round((crop or encoder.seconds) * encoder.fs)
        if self.samples % encoder.patch or not 0 < self.samples <= round(encoder.seconds * encoder.fs):
            raise CremaError(f"a crop of {crop} s is no whole number of tokens ({encoder.patch} samples) within {encoder.seconds} s")
        if readout not in encoder.readouts:
            raise CremaError(f"unknown readout {readout!r} for this encoder: known are {', '.join(encoder.readouts)}")
        if token_drop and readout == "moments":
            raise CremaError("token_drop does not go with the readout moments, whose steps are those between neighbours: take another")
        if not 0 <= dropout <= 1:
            raise CremaError(f"dropout {dropout} is no probability")
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(encoder.feature_size(readout), sum(map(len, columns.values()))))
        nn.init.normal_(self.head[1].weight, std=0.01)
        nn.init.zeros_(self.head[1].bias)
        if leads is not None and (not len(leads) or not set(leads) <= set(encoder.leads)):
            raise CremaError(f"leads {' '.join(leads) or 'none'}: give one or more of the encoder's, {' '.join(encoder.leads)}")
        shown = [leads is None or lead in leads for lead in encoder.leads]
        self.register_buffer("shown", torch.tensor(shown), persistent=False)
        number = [task == "age" for task, names in columns.items() for _ in names]
        self.register_buffer("number", torch.tensor(number), persistent=False)
        self.numbers = any(number)  # known to the host: to ask the device would make each step wait for it
        if blocks is not None:
            depth = len(getattr(encoder, "blocks", ()))
            if not 0 <= blocks <= depth:
                raise CremaError(f"the last {blocks} blocks cannot be trained: this encoder has {depth} transformer blocks")
            encoder.requires_grad_(False)
            for part in self._trained():
                part.requires_grad_(True)

    def _trained(self):
        """Parts of the encoder that train when `blocks` is given."""
        return [*self.encoder.blocks[len(self.encoder.blocks) - self.blocks :], self.encoder.norm] if self.blocks else []

    def train(self, mode=True):
        super().train(mode)
        if self.blocks is not None:  # what is frozen stays in evaluation mode: no drop path, no moving statistics
            self.encoder.eval()
            for part in self._trained():
                part.train(mode)
        return self

    def group_matcher(self, coarse=False):
        """Layers from input to output, for timm's layer-wise learning rates: stem, blocks (99999: the norm goes with the last), head."""
        return {"stem": r"^encoder\.(?:stem|missing|cls)", "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))]}

    def augment(self, signal, lead_mask):
        full = self.samples == signal.shape[2]
        signal = views.shift(signal) if full else views.crop(signal, self.samples)
        return views.noise(views.gain(signal, self.gain), self.noise, self.encoder.fs), views.drop_leads(lead_mask, self.lead_drop)

    def features(self, signal, lead_mask):
        """What the head sees, (batch, features): in training mode of an augmented view with tokens left out."""
        visible, lead_mask = None, lead_mask & self.shown
        if self.training:
            signal, lead_mask = self.augment(signal, lead_mask)
            if self.token_drop:
                visible, _ = views.random_mask(len(signal), self.samples // self.encoder.patch, self.token_drop, signal.device)
        return self.encoder.features(signal, lead_mask, self.readout, visible)

    def forward(self, batch):
        """Batch with `signal`, `lead_mask` and `target` (NaN: not known) -> dict of losses."""
        target = batch["target"]
        outputs = self.head(self.features(batch["signal"], batch["lead_mask"])).float()
        known = ~target.isnan()
        wanted = target.nan_to_num()
        wrong = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        if self.numbers:
            wrong = torch.where(self.number, (outputs - (wanted - YEARS[0]) / YEARS[1]).square(), wrong)
        return {"loss": (wrong * known).sum() / parallel.mean_over_processes(known.sum()).clamp(min=1)}

    def outputs(self, signal, lead_mask=None):
        """Probabilities (and years, for the task `age`) of whole recordings, the mean over half-overlapping crops where there is a crop.

        signal: float (batch, leads, samples), mV. Returns float (batch, outputs).
        """
        lead_mask = self.shown.expand(len(signal), -1) if lead_mask is None else lead_mask & self.shown
        last = signal.shape[2] - self.samples
        count = 1 + -(-2 * last // self.samples)
        starts = np.unique(np.linspace(0, last, count).round().astype(int))
        crops = [self.head(self.encoder.features(signal[:, :, s : s + self.samples], lead_mask, self.readout)).float() for s in starts]
        mean = torch.stack([torch.where(self.number, YEARS[0] + YEARS[1] * one, one.sigmoid()) for one in crops]).mean(0)
        return mean


@torch.inference_mode()
def scores(model, store, rows, *, batch_size=128, device="cpu"):
    """What a `Classifier` says of the records of a store, in evaluation mode.

    Returns:
        float32 array (rows, outputs): probabilities, or years for the task `age`.

    Raises:
        CremaError: the store's rate, length or leads do not fit the encoder.
    """
    encoder = model.encoder
    check_fits(store, encoder, length=True)
    if not len(rows):
        raise CremaError("there is no recording to score")
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads]
    training = model.training
    model = model.to(device).eval()
    parts = []
    for i in range(0, len(rows), batch_size):
        chosen = rows[i : i + batch_size]
        mask = torch.from_numpy(store.lead_mask[chosen][:, pick]).to(device)
        parts.append(model.outputs(store.read(chosen, device)[:, pick], mask).cpu())
    model.train(training)
    return torch.cat(parts).numpy()


def reached(columns, targets, outputs):
    """One number a task, higher is better: macro AUROC, or for `age` the share of variance explained (R^2).

    Args:
        columns: dict task -> label names. targets, outputs: float (records, outputs of all tasks), targets NaN where not known.
    """
    result, start = {}, 0
    for task, names in columns.items():
        part = slice(start, start + len(names))
        start += len(names)
        known = ~np.isnan(targets[:, part]).any(1)
        t, o = targets[known, part], outputs[known, part]
        result[task] = float(r2_score(t, o)) if task == "age" else float(macro(auroc(t, o))[0])
    return result


def covers(columns, task, names):
    """True where a network with these columns has an output for each of the names of a task, see `of_task`."""
    return any(set(names) <= set(columns.get(owner, ())) for owner in (task, "all"))


def of_task(columns, outputs, task, names):
    """The columns of one task in the joint outputs; the statements of `diag`, `form` and `rhythm` are among those of `all`.

    Args:
        columns: dict task -> label names. outputs: (records, outputs of all tasks). task, names: what is wanted.

    Returns:
        (records, names).

    Raises:
        CremaError: the network was not trained on these labels.
    """
    start = dict(zip(columns, np.cumsum([0, *map(len, columns.values())]), strict=False))
    for owner in (task, "all"):
        if set(names) <= set(columns.get(owner, ())):
            return outputs[:, [start[owner] + list(columns[owner]).index(name) for name in names]]
    raise CremaError(f"this network was trained on {', '.join(columns)}: it has no outputs for the task {task}")


class EarlyChoice:
    """Moving average of the weights, scored now and then on the validation fold; the best one is kept.

    The average is w <- d w + (1 - d) w_now with d = min(decay, (1 + step) / (10 + step)), so that early weights are soon forgotten.

    Args:
        module: what is trained. score: called with the averaged module, returns a dict of numbers; their mean decides.
        times: how often a run is scored, evenly spaced, the last time at its end. decay: of the average.
    """

    def __init__(self, module, score, *, times=10, decay=0.99):
        self.module, self.score, self.times, self.decay = module, score, times, decay
        self.ema = ModelEmaV3(module)
        self.average = self.ema.module
        self.best, self.weights = -np.inf, {key: value.clone() for key, value in self.average.state_dict().items()}

    def __call__(self, step, steps):
        self.ema.decay = min(self.decay, (1 + step) / (10 + step))
        self.ema.update(self.module)
        if step * self.times // steps == (step - 1) * self.times // steps:
            return None
        if not all(mean.isfinite().all() for mean in self.average.state_dict().values() if mean.is_floating_point()):
            return None  # a loss was not finite before: the loop names its batch when it next reads the losses
        values = self.score(self.average)
        value = float(np.mean(list(values.values())))
        if not np.isfinite(value):
            raise CremaError(f"nothing can be chosen on the validation fold: {values}")
        if value > self.best:
            self.best, self.weights = value, {key: value.clone() for key, value in self.average.state_dict().items()}
        return {f"valid {name}": value for name, value in values.items()}

    def state_dict(self):
        return {"average": self.average.state_dict(), "best": self.best, "weights": self.weights}

    def load_state_dict(self, state):
        self.average.load_state_dict(state["average"])
        self.best, self.weights = state["best"], state["weights"]


def targets_of(table, tasks):
    """Targets of the tasks side by side (see `labels.joint`; `age` in years), and dict task -> label names."""
    binary = [task for task in tasks if task != "age"]
    parts, columns = [], {}
    if binary:
        targets, slices = labels.joint(table, binary)
        parts, columns = [targets], {task: list(names) for task, (_, names) in slices.items()}
    if "age" in tasks:
        parts.append(labels.age(table).astype(np.float32)[:, None])
        columns["age"] = ["years"]
    return np.concatenate(parts, axis=1), columns


def groups(model, training, layer_decay):
    """AdamW groups with the learning rate of layer k of n at lr * layer_decay^(n - k) (Clark et al. 2020, arXiv 2003.10555), by timm."""
    if layer_decay == 1:
        return parameter_groups(model, training.weight_decay)
    spared = {name for name, p in model.named_parameters() if p.squeeze().ndim <= 1}  # as in `parameter_groups`: a single token, too
    found = param_groups_layer_decay(model, training.weight_decay, spared, layer_decay=layer_decay)
    return [{"params": g["params"], "weight_decay": g["weight_decay"], "lr": training.lr * g["lr_scale"]} for g in found]


@torch.no_grad()
def start_from_probe(model, store, targets, train, valid, device="cpu"):
    """Set the head to linear probes of the encoder as it is (LP-FT, Kumar et al. 2022, arXiv 2202.10054).

    A random head would push the first gradients through the encoder in random directions. Probes are fitted on `train`, augmented as in
    training (a probe of clean features leans on directions that augmentation shakes), their penalty chosen on `valid`.
    """
    batches = [np.r_[train, valid][i : i + 256] for i in range(0, len(train) + len(valid), 256)]
    model.train()
    model.encoder.eval()
    leads = [list(store.meta["leads"]).index(lead) for lead in model.encoder.leads]
    seen = [
        model.features(store.read(rows, device)[:, leads], torch.from_numpy(store.lead_mask[rows][:, leads]).to(device)).cpu()
        for rows in batches
    ]
    features = torch.cat(seen).numpy()
    given = np.r_[targets[train], targets[valid]]
    here = np.arange(len(given)) < len(train)
    start = 0
    for task, names in model.columns.items():
        part = slice(start, start + len(names))
        start += len(names)
        known = ~np.isnan(given[:, part]).any(1)
        (x, y), (xv, yv) = ((features[some], given[some, part]) for some in (known & here, known & ~here))
        if task == "age":
            probe, _ = fit_ridge((x, (y[:, 0] - YEARS[0]) / YEARS[1]), (xv, (yv[:, 0] - YEARS[0]) / YEARS[1]))
        else:
            probe, _ = fit_probe((x, y), (xv, yv), STARTS)
        weight = (probe.weight.view(len(probe.mean), -1) / probe.deviation[:, None]).T
        bias = probe.bias - weight @ probe.mean
        model.head[1].weight[part], model.head[1].bias[part] = weight.to(device), bias.to(device)


def finetune(
    encoder, store, tasks, training, out, *, rows=None, layer_decay=1.0, decay=0.99, times=10, probe_first=False, progress=True, **options
):
    """Fine-tune an encoder on folds 1 to 8, or some rows of them; the averaged weights that are best on fold 9 are kept.

    Args:
        encoder: trained in place. tasks: of `labels.BINARY`, or `age`. training: an `engine.Training`; a batch larger than the number of
            rows is made as small. out: folder of the run; a finished run is read, an interrupted one goes on.
        layer_decay: see `groups`. decay, times: see `EarlyChoice`. probe_first: see `start_from_probe`. options: of `Classifier`.

    Returns:
        (model, log): the chosen `Classifier` in evaluation mode on the CPU, also in `out/model`, and the log of `engine.fit`.

    Raises:
        CremaError: see `splits.check`, `engine.fit`; an unknown task; a rate or leads that do not fit; a run in `out` that started from
            another encoder or had another recipe.
    """
    check_fits(store, encoder, length=True)
    if not len(tasks):
        raise CremaError("there is no task to train on: name one")
    targets, columns = targets_of(store.table, tasks)
    train, valid, _ = splits.parts(store.table, (~np.isnan(targets)).any(1))
    rows = train if rows is None else np.asarray(rows)
    if not len(rows) or not np.isin(rows, train).all():
        raise CremaError("fine-tuning takes recordings of folds 1 to 8 with a label of the tasks, and others or none were given")
    out = Path(out)
    recipe = {"encoder": fingerprint(encoder)[:16], "layer_decay": layer_decay, "decay": decay, "times": times, "probe_first": probe_first}
    torch.manual_seed(training.seed)
    model = Classifier(encoder, columns=columns, **options)
    training = dataclasses.replace(training, batch_size=min(training.batch_size, len(rows)))
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # of several processes each has a GPU
    device = own if torch.cuda.is_available() and training.device != "cpu" else "cpu"
    model.to(device)
    if probe_first and not checkpoints.found(out):
        start_from_probe(model, store, targets, rows, valid, device)

    def score(module):
        return reached(columns, targets[valid], scores(module, store, valid, device=device))

    choice = EarlyChoice(model, score, times=times, decay=decay)
    log = fit(
        model, store, rows, training, out, targets=targets[rows], groups=groups(model, training, layer_decay),
        companion=choice, recipe=recipe, progress=progress,
    )  # fmt: skip
    model.load_state_dict(choice.weights)
    model.cpu().eval()
    parallel.by_main(checkpoints.saved, model, out)
    return model, log
