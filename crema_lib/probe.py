"""Embed a store with a frozen encoder, and the linear probe on top."""

import numpy as np
import torch
from tqdm import tqdm

from .errors import CremaError
from .labels import matrix
from .metrics import auroc, compare, macro
from .store import TEST, TRAIN, VALID

STRENGTHS = tuple(float(10.0**k) for k in np.arange(-5, -0.9, 0.5))


@torch.inference_mode()
def embed_store(encoder, store, rows=None, *, readout="mean", batch_size=256, device="cpu", progress=False):
    """Features of the records of a store from a frozen encoder (eval mode, no gradient).

    Args:
        rows: row numbers, default all. readout: see `SiT.features`.

    Returns:
        float32 array (rows, features).

    Raises:
        CremaError: the store's rate, length or leads do not fit the encoder.
    """
    if store.fs != encoder.fs or not set(encoder.leads) <= set(store.meta["leads"]):
        raise CremaError(f"the encoder takes {encoder.fs} Hz and leads {' '.join(encoder.leads)}, {store.path.name} holds {store.fs} Hz")
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads]
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    training = encoder.training
    encoder = encoder.to(device).eval()
    parts = []
    for i in tqdm(range(0, len(rows), batch_size), desc="embedding", unit="batch", disable=not progress):
        chosen = rows[i : i + batch_size]
        mask = torch.from_numpy(store.lead_mask[chosen][:, pick]).to(device)
        parts.append(encoder.features(store.read(chosen, device)[:, pick], mask, readout).float().cpu())
    encoder.train(training)
    return torch.cat(parts).numpy()


class LinearProbe:
    """Multi-label logistic regression on standardised features, all labels at once.

    Minimises  mean over records of the summed binary cross-entropies + strength * |W|^2 / 2  by L-BFGS, the intercept free. The mean and
    deviation of the features come from the training records.

    L-BFGS runs in coordinates where the problem is round: along the principal axes of the features (variances s), divided by the root
    of the curvature  p (1 - p) s + strength  that a label of prevalence p has at the start. Plain L-BFGS needs some twenty times as long.
    """

    def fit(self, features, targets, strength, start=None, iterations=100):
        """features float (records, features), targets 0/1 (records, labels), strength > 0; `start`: a fitted probe to begin from."""
        x = torch.as_tensor(features, dtype=torch.float32)
        y = torch.as_tensor(targets, dtype=torch.float32)
        if start is not None:
            self.mean, self.deviation, self.axes, self.variances, x = (
                start.mean,
                start.deviation,
                start.axes,
                start.variances,
                start.rotated,
            )
        else:
            self.mean, self.deviation = x.mean(0), x.std(0).clamp(min=1e-6)
            x = (x - self.mean) / self.deviation
            self.variances, self.axes = torch.linalg.eigh((x.T @ x / len(x)).double())
            self.variances, self.axes = self.variances.clamp(min=0).float(), self.axes.float()
            x = x @ self.axes
        self.rotated, self.strength = x, strength
        rate = y.mean(0).clamp(1 / (2 * len(y)), 1 - 1 / (2 * len(y)))
        spread = rate * (1 - rate)
        shape = (spread * self.variances[:, None] + strength).rsqrt()
        weight = (torch.zeros_like(shape) if start is None else start.rotated_weight / shape).requires_grad_()
        bias = ((torch.logit(rate) if start is None else start.bias) * spread.sqrt()).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=iterations, history_size=10, tolerance_grad=1e-4, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        @torch.no_grad()
        def closure():  # gradients by hand: half the passes over the records that autograd would make
            real = weight * shape
            logits = torch.addmm(bias / spread.sqrt(), x, real)
            loss = (torch.nn.functional.softplus(logits).sum() - (logits * y).sum()) / len(y) + strength / 2 * real.square().sum()
            error = logits.sigmoid_().sub_(y).div_(len(y))
            weight.grad = (x.T @ error + strength * real) * shape
            bias.grad = error.sum(0) / spread.sqrt()
            return loss

        optimiser.step(closure)
        self.rotated_weight, self.bias = (weight * shape).detach(), (bias / spread.sqrt()).detach()
        self.weight = self.axes @ self.rotated_weight
        return self

    def scores(self, features):
        """Probabilities, float32 array (records, labels)."""
        x = (torch.as_tensor(features, dtype=torch.float32) - self.mean) / self.deviation
        return torch.sigmoid(torch.addmm(self.bias, x, self.weight)).numpy()


def fit_probe(train, valid, strengths=STRENGTHS):
    """Fit a probe for every strength and keep the one with the best macro AUROC on the validation fold.

    Args:
        train, valid: (features, targets) each.

    Returns:
        (probe, list of dicts strength, valid): the chosen probe and what every strength reached.
    """
    if not len(train[0]) or not len(valid[0]):
        raise CremaError("the probe needs training and validation records, and there are none: check the folds")
    best, trail, probe = None, [], None
    for strength in sorted(strengths, reverse=True):  # from strong to weak: each fit starts where the last one ended
        probe = LinearProbe().fit(*train, strength, probe)
        reached = float(macro(auroc(valid[1], probe.scores(valid[0])))[0])
        trail.append({"strength": strength, "valid": reached})
        if best is None or reached > best[0]:
            best = (reached, probe)
    if not np.isfinite(best[0]):
        raise CremaError("no label has both a positive and a negative record in the validation fold: nothing can be chosen")
    return best[1], trail


def probe_task(store, features, task, *, bootstrap=1000, seed=0):
    """Linear probes of several encoders on one task: trained on folds 1-8, strength chosen on fold 9, scored on fold 10.

    Args:
        features: dict encoder name -> float (records of the store, features). task: see `labels.TASKS`; records without a label of the
            task are left out. bootstrap: resamples of patients.

    Returns:
        (Comparison, list of dicts): AUROC on fold 10, and for each encoder and strength what was reached on fold 9.
    """
    targets, names, kept = matrix(store.table, task)
    train, valid, test = (rows[kept[rows]] for rows in map(store.rows, (TRAIN, VALID, TEST)))
    scores, trail = {}, []
    for name, x in features.items():
        probe, tried = fit_probe((x[train], targets[train]), (x[valid], targets[valid]))
        scores[name] = probe.scores(x[test])
        trail += [{"encoder": name, "chosen": entry["strength"] == probe.strength, **entry} for entry in tried]
    return compare(targets[test], scores, store.table["patient"].to_numpy()[test], names, n=bootstrap, seed=seed), trail
