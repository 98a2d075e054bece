"""Views of a batch: augmentations, random leads, random masks. All batched, on the device of the batch, from torch's own generator,
and the same for a record whatever number of processes share the batch (`parallel`)."""

import torch

from .errors import CremaError
from .parallel import integers, normal, uniform


def random_mask(batch, patches, ratio, device="cpu"):
    """Uniform random masks with the same number of visible patches in each record (He et al. 2022, arXiv 2111.06377).

    Args:
        batch: records. patches: patches a record. ratio: share hidden, 0 <= ratio < 1.

    Returns:
        (visible, hidden): int64 indices (batch, n_visible) and (batch, n_hidden), each row ascending; n_hidden = round(ratio * patches),
        but at least one patch stays visible, and of several at least one is hidden where the ratio is not 0.

    Raises:
        CremaError: a ratio outside 0 <= ratio < 1.
    """
    if not 0 <= ratio < 1:
        raise CremaError(f"mask ratio {ratio} is outside 0 <= ratio < 1")
    n_hidden = hidden_of(patches, ratio)
    order = uniform(batch, patches, device=device).argsort(dim=1)
    return order[:, n_hidden:].sort(dim=1).values, order[:, :n_hidden].sort(dim=1).values


def hidden_of(patches, ratio):
    """How many of some patches are hidden, see `random_mask`."""
    return min(max(round(ratio * patches), ratio > 0), patches - 1)


def block_mask(batch, patches, ratio, block, device="cpu"):
    """Random masks that hide runs of neighbouring patches, with the same number of visible patches in each record.

    Each record is cut into blocks of `block` patches from a random first cut, and blocks are hidden in random order until the share is
    reached; the last one is hidden as far as needed. Neighbouring hidden blocks make longer runs (ours; the blocks of Weimann & Conrad
    2024, arXiv 2410.13867, have random lengths from a least one on).

    Args, Returns: as `random_mask`; block: patches a block.

    Raises:
        CremaError: a ratio outside 0 <= ratio < 1, or a block of less than one patch.
    """
    if not 0 <= ratio < 1 or block < 1:
        raise CremaError(f"mask ratio {ratio} and block {block}: give 0 <= ratio < 1 and blocks of at least one patch")
    if block == 1:
        return random_mask(batch, patches, ratio, device)
    n_hidden = hidden_of(patches, ratio)
    number = (torch.arange(patches, device=device) + integers(0, block, batch, 1, device=device)) // block
    turn = uniform(batch, (patches + block - 2) // block + 1, device=device)
    order = turn.gather(1, number).argsort(dim=1, stable=True)
    return order[:, n_hidden:].sort(dim=1).values, order[:, :n_hidden].sort(dim=1).values


def shift(signal):
    """Roll each record in time by its own random number of samples (circular).

    A rhythm strip has no preferred start; the seam costs one unnatural beat. signal: (batch, leads, samples).
    """
    batch, _, length = signal.shape
    by = integers(0, length, batch, 1, device=signal.device)
    index = (torch.arange(length, device=signal.device) + by) % length
    return signal.gather(2, index[:, None].expand_as(signal))


def crop(signal, samples):
    """A random window of each record: (batch, leads, length) -> (batch, leads, samples).

    Raises:
        CremaError: a window of no sample, or one longer than the records.
    """
    batch, leads, length = signal.shape
    if not 0 < samples <= length:
        raise CremaError(f"a crop of {samples} samples does not fit into {length}")
    start = integers(0, length - samples + 1, batch, 1, device=signal.device)
    index = start + torch.arange(samples, device=signal.device)
    return signal.gather(2, index[:, None].expand(-1, leads, -1))


def gain(signal, spread=0.2):
    """Multiply each record by exp(spread * N(0, 1)): electrode contact and body habitus scale all leads alike."""
    return signal * torch.exp(spread * normal(len(signal), 1, 1, device=signal.device))


def noise(signal, level=0.05, fs=100):
    """Add white noise and baseline wander, each with a random level per record and lead up to `level` mV (root mean square).

    Wander is one sinusoid a lead at 0.05-0.5 Hz, the band of breathing and movement.
    """
    batch, leads, length = signal.shape
    draw = lambda low, high: low + (high - low) * uniform(batch, leads, 1, device=signal.device)  # noqa: E731
    time = torch.arange(length, device=signal.device) / fs
    wander = draw(0, level) * 2**0.5 * torch.sin(2 * torch.pi * (draw(0.05, 0.5) * time + draw(0, 1)))
    return signal + wander + draw(0, level) * normal(*signal.shape, device=signal.device)


def drop_leads(lead_mask, probability=0.5):
    """Random lead masking (Oh et al. 2022, PMLR 174): with `probability` a record keeps a random subset of its leads.

    Args:
        lead_mask: bool (batch, leads), leads that are there.

    Returns:
        bool (batch, leads): a subset of it with at least one lead; the share kept is uniform.
    """
    score = uniform(*lead_mask.shape, device=lead_mask.device).masked_fill(~lead_mask, -1)
    share = uniform(len(lead_mask), 1, device=lead_mask.device)
    kept = lead_mask & ((score >= 1 - share) | (score == score.amax(dim=1, keepdim=True)))
    chosen = uniform(len(lead_mask), 1, device=lead_mask.device) < probability
    return torch.where(chosen, kept, lead_mask)
