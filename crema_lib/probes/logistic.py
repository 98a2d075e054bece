"""Logistic regressions on the same features, one a label, all fitted at once."""

import torch


def evaluate(x, positive, weight, penalty):
    """Loss of each label and its gradient, see `minimise`; `positive` = x^T y / records is all they need of the labels."""
    logits = x @ weight
    loss = torch.logaddexp(logits, logits.new_zeros(())).mean(0) - (weight * positive).sum(0) + (penalty * weight.square()).sum(0) / 2
    return loss, x.T @ logits.sigmoid_() / len(x) - positive + penalty * weight


def minimise(x, y, weight, penalty, curvature, *, tolerance=1e-6, memory=10, iterations=1000):
    """Minimise for each label  mean over records of log(1 + exp(z)) - y z  +  sum over features of penalty w^2 / 2,  z = x w.

    L-BFGS (Nocedal & Wright 2006, algorithm 7.5) with a history and a step of its own for each label. A pass over the records serves all
    labels: those whose last trial went too far try half the step while the others move on, and those that have arrived drop out.

    Args:
        x: float (records, features). y: 0/1 (records, labels). weight: where to start (features, labels). penalty: (features, 1).
        curvature: (features, labels), roughly the second derivatives of the loss: the better, the fewer steps.
        tolerance: a label has arrived when half the squared Newton decrement, about what is left to gain, is below this share of the loss
            of a constant guess. The decrement is that of `curvature` and of the history: with a weak penalty and few records, where labels
            can be told apart without error, some tens of times as much may be left, which moves an AUROC by a thousandth.

    Returns:
        float (features, labels).
    """
    eps = torch.finfo(x.dtype).eps
    rate = y.mean(0)
    entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
    state = {  # the label is the last axis of each
        "label": torch.arange(y.shape[1], device=x.device),
        "aim": tolerance * entropy,
        "positive": x.T @ y / len(x),
        "curvature": curvature,
        "weight": weight.clone(),
        "direction": torch.zeros_like(weight),
        "step": torch.ones_like(rate),
        "scale": torch.ones_like(rate),
        "moved": torch.ones_like(rate, dtype=torch.bool),
        "steps": torch.zeros(memory, *weight.shape, dtype=x.dtype, device=x.device),
        "changes": torch.zeros(memory, *weight.shape, dtype=x.dtype, device=x.device),
        "inverse": torch.zeros(memory, y.shape[1], dtype=x.dtype, device=x.device),
    }
    state["loss"], state["gradient"] = evaluate(x, state["positive"], state["weight"], penalty)
    result = weight.clone()
    for i in range(iterations):
        direction = -_times_inverse_hessian(state["gradient"], state, [(i - 1 - k) % memory for k in range(min(i, memory))])
        state["direction"] = torch.where(state["moved"], direction, state["direction"])
        state["slope"] = (state["gradient"] * state["direction"]).sum(0)
        arrived = (-state["slope"] / 2 <= state["aim"]) | (state["step"] < 1e-6)  # or the numbers resolve no smaller step
        if arrived.any():
            result[:, state["label"][arrived]] = state["weight"][:, arrived]
            if arrived.all():
                return result
            state = {name: value[..., ~arrived] for name, value in state.items()}
        s = state
        trial = s["weight"] + s["step"] * s["direction"]
        loss, gradient = evaluate(x, s["positive"], trial, penalty)
        moved = loss <= s["loss"] + 1e-4 * s["step"] * s["slope"] + 4 * eps * s["loss"].abs()
        step, change = moved * (trial - s["weight"]), moved * (gradient - s["gradient"])
        product, size = (step * change).sum(0), (change.square() / s["curvature"]).sum(0)
        usable = product > eps * size
        now = i % memory
        s["steps"][now], s["changes"][now], s["inverse"][now] = step, change, torch.where(usable, 1 / product, 0)
        s["scale"] = torch.where(usable, product / size, s["scale"])
        s["weight"], s["gradient"] = torch.where(moved, trial, s["weight"]), torch.where(moved, gradient, s["gradient"])
        s["loss"], s["step"], s["moved"] = torch.where(moved, loss, s["loss"]), torch.where(moved, 1.0, s["step"] / 2), moved
    result[:, state["label"]] = state["weight"]
    return result


def _times_inverse_hessian(gradient, state, newest_first):
    """The two-loop recursion of L-BFGS: (features, labels). A refused step left zeros in the history, which change nothing."""
    steps, changes, inverse = state["steps"], state["changes"], state["inverse"]
    q, factors = gradient.clone(), {}
    for k in newest_first:
        factors[k] = inverse[k] * (steps[k] * q).sum(0)
        q -= factors[k] * changes[k]
    q = state["scale"] * q / state["curvature"]
    for k in reversed(newest_first):
        q += steps[k] * (factors[k] - inverse[k] * (changes[k] * q).sum(0))
    return q
