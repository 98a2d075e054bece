"""Masks and augmentations: their statistics, and that they do nothing else."""

import pytest
import torch

from crema_lib import views
from crema_lib.errors import CremaError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_mask_is_a_partition_with_the_right_share():
    visible, hidden = views.random_mask(500, 40, 0.7)
    assert visible.shape == (500, 12) and hidden.shape == (500, 28)
    both = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(40).expand(500, 40))


def test_mask_is_uniform():
    _, hidden = views.random_mask(20000, 10, 0.5)
    share = torch.bincount(hidden.flatten(), minlength=10) / 20000
    assert (share - 0.5).abs().max() < 5 * (0.25 / 20000) ** 0.5


def test_one_patch_stays():
    visible, _ = views.random_mask(3, 4, 0.99)
    assert visible.shape == (3, 1)
    with pytest.raises(CremaError, match="mask ratio"):
        views.random_mask(3, 4, 1.0)
    for mask in (views.random_mask(3, 20, 0.02), views.block_mask(3, 20, 0.02, 2)):
        assert mask[1].shape == (3, 1), "something is hidden"
    assert views.random_mask(3, 20, 0)[1].shape == views.random_mask(3, 1, 0.5)[1].shape == (3, 0)


@pytest.mark.parametrize(("patches", "ratio", "block"), [(40, 0.75, 2), (40, 0.6, 5), (20, 0.5, 3), (7, 0.5, 10), (16, 0.5, 1)])
def test_block_mask_is_a_partition_in_blocks(patches, ratio, block):
    visible, hidden = views.block_mask(500, patches, ratio, block)
    assert hidden.shape == (500, round(ratio * patches))
    both = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(patches).expand(500, patches))
    flags = torch.zeros(500, patches, dtype=torch.long).scatter(1, hidden, 1)
    for row in flags.tolist():
        runs = [len(part) for part in "".join(map(str, row)).strip("0").split("0") if part]
        inner = "".join(map(str, row)).split("0")[1:-1]  # runs that touch neither end, where blocks may be cut short
        short = [len(part) for part in inner if 0 < len(part) < block]
        assert runs and len(short) <= 1, "at most one block is cut short, the last"


def test_block_mask_hides_each_patch_about_equally_often_and_moves():
    _, hidden = views.block_mask(20000, 20, 0.5, 4)
    share = torch.bincount(hidden.flatten(), minlength=20) / 20000
    assert (share - 0.5).abs().max() < 0.06
    neighbours = (hidden.diff(dim=1) == 1).float().mean()
    assert neighbours > 0.75, "runs, where single patches would have neighbours in every second case"
    assert views.block_mask(3, 4, 0.99, 2)[0].shape == (3, 1)
    for ratio, block in ((1.0, 2), (-0.1, 2), (0.5, 0)):
        with pytest.raises(CremaError, match="give 0 <= ratio < 1 and blocks"):
            views.block_mask(3, 4, ratio, block)


def test_shift_rolls_all_leads_of_a_record_alike():
    x = torch.arange(3 * 2 * 50.0).view(3, 2, 50)
    y = views.shift(x)
    for before, after in zip(x, y, strict=True):
        steps = [k for k in range(50) if torch.equal(before.roll(-k, dims=1), after)]
        assert len(steps) == 1
    assert len({tuple(row[0].tolist()) for row in (y - x)}) > 1, "records are shifted by different amounts"


def test_gain_is_one_factor_a_record():
    x = torch.rand(2000, 3, 4) + 1
    factor = views.gain(x, 0.2) / x
    assert torch.allclose(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-5)
    log = factor[:, 0, 0].log()
    assert abs(log.mean()) < 0.02 and abs(log.std() - 0.2) < 0.015


def test_noise_has_the_level_it_says():
    added = views.noise(torch.zeros(400, 2, 1000), level=0.1)
    assert added.square().mean().sqrt() < 0.1 * 2**0.5
    assert added.square().mean() == pytest.approx(2 * 0.1**2 / 3, rel=0.1)  # two terms, each with a mean square of level^2 / 3
    assert not views.noise(torch.zeros(2, 2, 10), level=0.0).any()


def test_drop_leads_keeps_a_subset_and_at_least_one():
    mask = torch.rand(3000, 12) < 0.8
    mask[:, 0] = True
    kept = views.drop_leads(mask, 1.0)
    assert not (kept & ~mask).any() and kept.any(dim=1).all()
    assert 0.4 < (kept.sum() / mask.sum()).item() < 0.62
    untouched = (views.drop_leads(mask, 0.5) == mask).all(dim=1).float().mean()
    assert 0.48 < untouched < 0.62
    assert torch.equal(views.drop_leads(mask, 0.0), mask)
