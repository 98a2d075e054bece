"""CR-MAE against a slow reference, what its gradient reaches, and saving."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from crema_lib import objectives, views
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE
from crema_lib.objectives.losses import masked_loss
from crema_lib.sit import SiT


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def model(**options):
    encoder = SiT(fs=100, seconds=4, width=32, depth=2, heads=2, scale=tuple(0.1 * i for i in range(1, 13)))
    return CRMAE(encoder, **{"decoder_width": 32, "decoder_depth": 1, **options})


def batch(n=6):
    return {"signal": torch.randn(n, 12, 400), "lead_mask": torch.ones(n, 12, dtype=torch.bool)}


def test_mae_of_the_model_against_a_slow_one():
    """The loss of given predictions, patch by patch and lead by lead, with leads that never were and leads that were lost."""
    m = model().eval()
    x, has, seen = torch.randn(2, 12, 400), torch.ones(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    has[1, 3:5] = seen[1, 3:5] = False
    seen[0, 7] = False
    visible, _ = views.random_mask(2, 16, 0.7)
    predicted = m.decode(m.encoder(x, seen, visible), visible, 16)
    fast = masked_loss(predicted, *m.target(x, has, seen, visible)).item()
    losses = []
    for i in range(2):
        for patch in range(16):
            for lead in range(12):
                if has[i, lead] and not (patch in visible[i] and seen[i, lead]):
                    true = x[i, lead, 25 * patch : 25 * patch + 25] / m.encoder.scale[lead]
                    losses += (predicted[i, patch, 25 * lead : 25 * lead + 25] - true).square().tolist()
    assert fast == pytest.approx(np.mean(losses), rel=1e-5)


def test_loss_is_the_sum_it_says():
    losses = model(contrast_weight=0.3)(batch())
    assert losses["loss"].item() == pytest.approx((losses["mae"] + 0.3 * losses["contrast"]).item(), rel=1e-5)


def test_gradient_reaches_what_it_should_and_nothing_else():
    def touched(m, loss):
        m.zero_grad()
        loss.backward()
        return {name.split(".")[0] for name, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    m = model()
    heads = {"embed", "hidden_token", "neighbours", "decoder", "predict"}
    assert touched(m, m(batch())["mae"]) == {"encoder"} | heads
    assert touched(m, m(batch())["contrast"]) == {"encoder", "projector"}
    losses = m(batch())
    m.zero_grad()
    losses["loss"].backward()
    silent = [name for name, p in m.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_visible_values_are_not_in_the_target_and_hidden_ones_not_in_the_input():
    m = model(lead_drop=0.0, noise=0.0, gain=0.0).eval()
    x, mask = torch.randn(1, 12, 400), torch.ones(1, 12, dtype=torch.bool)
    hidden = torch.tensor([[2, 5, 6]])
    first = m.reconstruct(x, mask, hidden)[0]
    other = x.clone()
    other[:, :, 50:75] += 5
    second = m.reconstruct(other, mask, hidden)[0]
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[:, :, 75:125], x[:, :, 75:125])
    assert not torch.allclose(first[:, :, 50:75], x[:, :, 50:75])


def test_lost_leads_are_still_asked_for_and_leads_that_never_were_are_not():
    m = model(lead_drop=1.0)
    x, mask = torch.randn(4, 12, 400), torch.ones(4, 12, dtype=torch.bool)
    mask[:, 5] = False
    clean, _, seen = m.view(x, mask)
    assert (seen.sum(1) < 11).any() and not seen[:, 5].any()
    visible = torch.tensor([[0, 1]] * 4)
    asked = m.target(clean, mask, seen, visible)[1].bool()
    assert asked.shape == (4, 16, 12)
    assert torch.equal(asked[:, 2:].all(dim=1), mask) and not asked[:, :, 5].any()
    assert torch.equal(asked[:, :2].all(dim=1), mask & ~seen)


def test_patch_norm_targets_have_no_level_and_unit_size():
    m = model(patch_norm=True)
    has = torch.ones(2, 12, dtype=torch.bool)
    target, _ = m.target(torch.randn(2, 12, 400), has, has, torch.tensor([[0, 1]] * 2))
    by_lead = target.view(2, 16, 12, 25)
    assert by_lead.mean(-1).abs().max() < 1e-4
    torch.testing.assert_close(by_lead.var(-1), torch.ones(2, 16, 12), atol=0.02, rtol=0)


@pytest.mark.parametrize("patch_norm", [False, True])
def test_save_and_load(tmp_path, patch_norm):
    m = model(mask_ratio=0.5, patch_norm=patch_norm).eval()
    m.save_pretrained(tmp_path)
    again = CRMAE.from_pretrained(tmp_path).eval()
    assert again.options == m.options and again.mask_ratio == 0.5
    x, hidden = torch.randn(2, 12, 400), torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(m.reconstruct(x, hidden=hidden)[0], again.reconstruct(x, hidden=hidden)[0])
    assert torch.equal(SiT.from_pretrained(tmp_path).eval()(x), m.encoder(x))
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.bin"))


def test_corrupted_and_foreign_checkpoints(tmp_path):
    with pytest.raises(CremaError, match="no readable objective"):
        CRMAE.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(b"garbage")
    with pytest.raises(CremaError, match="no readable objective"):
        CRMAE.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    text = (tmp_path / "objective.json").read_text()
    (tmp_path / "objective.json").write_text(text.replace("CRMAE", "SimCLR"))
    with pytest.raises(CremaError, match="holds the objective SimCLR"):
        CRMAE.from_pretrained(tmp_path)
    (tmp_path / "objective.json").write_text(text.replace('"decoder_depth": 1', '"decoder_depth": 2'))
    with pytest.raises(CremaError, match="do not fit"):
        CRMAE.from_pretrained(tmp_path)
    for old, new in (('"options"', '"choices"'), ('"temperature"', '"warmth"'), ('"SiT"', '"ViT"')):
        assert old in text
        (tmp_path / "objective.json").write_text(text.replace(old, new))
        with pytest.raises(CremaError, match="an encoder or options that are not known here"):
            CRMAE.from_pretrained(tmp_path)
    (tmp_path / "objective.json").write_text("[]")
    with pytest.raises(CremaError, match="holds the objective None"):
        CRMAE.from_pretrained(tmp_path)


def test_build():
    assert isinstance(objectives.build("cr_mae", model().encoder, mask_ratio=0.6), CRMAE)
    with pytest.raises(CremaError, match="unknown objective"):
        objectives.build("bert", model().encoder)


@pytest.mark.parametrize("options", [{"mask_ratio": 0}, {"mask_ratio": 1}, {"contrast_weight": -1}, {"temperature": 0}, {"lead_drop": 2},
                                     {"decoder_width": 32.0}, {"block": 2.0}, {"patch_norm": "no"}])  # fmt: skip
def test_bad_options(options):
    with pytest.raises(CremaError, match=next(iter(options))):
        model(**options)


@pytest.mark.parametrize("name", ["mae", "st_mem", "cr_mae", "jepa", "w2v_cmsc_rlm"])
def test_a_record_of_one_patch_has_nothing_to_hide(name):
    tokens = objectives.OBJECTIVES[name].tokens[0]
    m = objectives.build(name, SiT(fs=100, seconds=1, patch=100, width=16, depth=1, heads=2, tokens=tokens))
    with pytest.raises(CremaError, match="one patch"):
        m({"signal": torch.zeros(4, 12, 100), "lead_mask": torch.ones(4, 12, dtype=torch.bool)})


def test_a_model_saved_before_there_were_regularisers_loads(tmp_path):
    m = model()
    m.save_pretrained(tmp_path)
    text = (tmp_path / "objective.json").read_text()
    (tmp_path / "objective.json").write_text(text.replace('  "regulariser": "infonce",\n', ""))
    assert "regulariser" not in (tmp_path / "objective.json").read_text()
    assert objectives.load(tmp_path).regulariser == "infonce"


def test_the_committed_model_loads_and_draws():
    m = objectives.load(ROOT / "weights" / "sit-xs-ptbxl-100hz").eval()
    assert (type(m), m.regulariser, m.encoder.tokens) == (CRMAE, "infonce", "time")
    drawn, hidden = m.reconstruct(torch.zeros(1, 12, 1000))
    assert drawn.isfinite().all() and hidden.sum() == round(m.mask_ratio * m.encoder.n_patches)
