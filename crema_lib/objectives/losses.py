"""Losses on plain tensors, in single precision whatever the network computes in.

Those that compare records take the rows of the whole global batch (`parallel.gathered`), row i of both arguments from record i.
"""

import functools

import torch
import torch.nn.functional as F

from .. import parallel
from ..errors import CremaError


def single_precision(loss):
    """Half precision becomes single before the loss, and autocast is off in it: sums of many squares and exponentials need the digits."""

    @functools.wraps(loss)
    def wrapped(*args, **options):
        args = [arg.float() if torch.is_tensor(arg) and arg.dtype in (torch.bfloat16, torch.float16) else arg for arg in args]
        with torch.autocast(args[0].device.type, enabled=False):
            return loss(*args, **options)

    return wrapped


def _check_rows(a, b):
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2:
        raise CremaError(f"features of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: give two equal (records, features)")


@single_precision
def masked_loss(predicted, target, asked):
    """Mean squared error over what is asked for: L_MAE = sum(w (p - t)^2) / sum(w), w = 1 where asked, else 0.

    predicted, target: (..., groups * n). asked: (..., groups), 1 or 0 for the n values of a group together.

    Squared, as in He et al.: an absolute error is best met by a median, and the median of a hidden patch is a flat line as long as the
    time of the next QRS complex is uncertain.
    """
    error = F.mse_loss(predicted, target, reduction="none").unflatten(-1, (asked.shape[-1], -1)).mean(-1)
    return (error * asked).sum() / parallel.mean_over_processes(asked.sum()).clamp(min=1)


@single_precision
def known_loss(predicted, target):
    """Mean squared error over the values of the target that are known: sum((p - t)^2) / number of them, a NaN is not; same shapes."""
    known = ~target.isnan()
    return ((predicted - target.nan_to_num()).square() * known).sum() / known.sum().clamp(min=1)


@single_precision
def latent_loss(predicted, target):
    """Smooth L1 between predicted features and the target's, each target normalised over its features (Kim 2024, arXiv 2410.08559).

    With d = p - (t - mean(t)) / sqrt(var(t) + 0.00001) the mean of d^2 / 2 where |d| < 1, else of |d| - 1/2. Shapes (..., features).
    """
    return F.smooth_l1_loss(predicted, F.layer_norm(target.float(), target.shape[-1:]))


@torch.no_grad()
def common_share(target):
    """How much of normalised targets is one vector common to all records and places: |mean t|^2 / mean |t|^2, from 0 to 1.

    At 1 a constant predicts everything: the teacher has collapsed, and a loss like `latent_loss` is small for nothing. Shape (records,
    places, features); ours.
    """
    target = F.layer_norm(target.float(), target.shape[-1:])
    common, energy = (parallel.mean_over_processes(part.mean((0, 1))) for part in (target, target.square()))
    return common.square().sum() / energy.sum().clamp(min=1e-12)


@single_precision
def masked_nce(predicted, quantised, codes, temperature):
    """Contrast of hidden places within a record (wav2vec 2.0, Baevski et al. 2020, arXiv 2006.11477, eq. 3).

    The mean over records and hidden places t of -log softmax_s(cos(c_t, q_s) / temperature)[t], over all hidden places s of the record;
    a place with the very code of t is no distractor. The paper draws 100 distractors of an utterance; a record here has fewer places.

    Args:
        predicted, quantised: (records, places, features), c and q. codes: int64 (records, places, groups), the codes of q.

    Raises:
        CremaError: fewer than two hidden places a record.
    """
    if predicted.shape[1] < 2:
        raise CremaError("a record with one hidden place has no distractor: raise mask_ratio, take a smaller patch or longer records")
    places = predicted.shape[1]
    similarity = F.normalize(predicted, dim=2) @ F.normalize(quantised, dim=2).transpose(1, 2) / temperature
    other = ~torch.eye(places, dtype=torch.bool, device=predicted.device)
    equal = (codes[:, :, None] == codes[:, None]).all(dim=3) & other
    similarity = similarity.masked_fill(equal, float("-inf"))
    return -similarity.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean()


@single_precision
def diversity(probabilities):
    """How much of the codebooks lies idle (wav2vec 2.0): (G V - sum_g exp(H(p_g))) / (G V), with p the mean over the places given.

    The paper's eq. 4 maximises the entropies H(p_g) themselves; their exponentials are what its code does. 0 where all codes are used
    equally often. probabilities: (places, groups, codes), of this process; the mean is over all processes.
    """
    p = parallel.gathered(probabilities.mean(dim=0, keepdim=True)).mean(dim=0)
    used = (-(p * (p + 1e-7).log()).sum(dim=1)).exp().sum()
    return (p.numel() - used) / p.numel()


@single_precision
def info_nce(a, b, temperature):
    """Symmetric InfoNCE over both views (NT-Xent, SimCLR eq. 1): a record's other view against the 2 (batch - 1) other embeddings.

        L = -1 / 2B sum_i log( exp(z_i . z_i' / temperature) / sum_{j != i} exp(z_i . z_j / temperature) )

    over the 2B rows z of a and b, normalised here; i' is the row of the same record in the other one.

    a, b: (batch, features), row i of both from record i. Returns a scalar.

    Raises:
        CremaError: a and b are no two equal (records, features) of at least two records.
    """
    _check_rows(a, b)
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(a)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


@single_precision
def cmsc_nce(a, b, temperature):
    """Contrast of two segments (CMSC of CLOCS, Kiyasseh et al. 2021): a segment finds the other one of its record among all of them.

    With s_ij = cos(a_i, b_j) / temperature the mean over records i of -log softmax_j(s_ij)[i] and of -log softmax_j(s_ji)[i]. Unlike
    in `info_nce`, segments of the same place never are each other's negatives. CLOCS also takes other records of the same patient as
    positives; a batch here carries no patients, so they are negatives.

    a, b: (batch, features), row i of both from record i; normalised here. Returns a scalar.

    Raises:
        CremaError: as `info_nce`.
    """
    _check_rows(a, b)
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


@single_precision
def vicreg(a, b, invariance=25.0, variance=25.0, covariance=1.0):
    """Variance, invariance and covariance (VICReg, Bardes et al. 2022, arXiv 2105.04906, Algorithm 1).

    loss = invariance * mean((a - b)^2) + variance * (v(a) + v(b)) + covariance * (c(a) + c(b)), where v(z) is the mean over features of
    max(0, 1 - sqrt(Var(z_j) + 0.0001)), and c(z) the sum of the squared covariances of different features over their number.

    a, b: (batch, features), row i of both from record i. Returns a scalar.

    Raises:
        CremaError: as `info_nce`.
    """
    _check_rows(a, b)
    n, features = a.shape
    spread, redundancy = 0, 0
    for z in (a, b):
        centred = z - z.mean(dim=0)
        covariances = centred.T @ centred / (n - 1)  # torch.cov would read values back from a GPU
        spread = spread + F.relu(1 - (covariances.diagonal() + 1e-4).sqrt()).mean()
        redundancy = redundancy + (covariances - covariances.diagonal().diag()).square().sum() / features
    return invariance * F.mse_loss(a, b) + variance * spread + covariance * redundancy


@single_precision
def uniformity(z):
    """Uniformity of U-MAE (Zhang et al. 2022, arXiv 2210.08344): the mean of (z_i . z_j)^2 over pairs of different records.

    1 / n(n - 1) sum_{i != j} (z_i . z_j)^2, between 0 and 1; 1 where all features have collapsed to one direction.

    z: (batch, features), normalised here. Returns a scalar.

    Raises:
        CremaError: z is no (records, features) of at least two records.
    """
    _check_rows(z, z)
    z = F.normalize(z, dim=1)
    n = len(z)
    return ((z @ z.T).square().sum() - n) / (n * (n - 1))
