"""What holds for every objective: gradients, half precision, several processes as one, saving; then each one's own."""

import numpy as np
import pytest
import torch
from test_objectives_losses import slow_cmsc, slow_info_nce, slow_uniformity, slow_vicreg

from crema_lib import objectives, parallel, views
from crema_lib.errors import CremaError
from crema_lib.handcrafted.waves import COUNT
from crema_lib.objectives import OBJECTIVES
from crema_lib.objectives.cr_mae import CONTRASTED, REGULARISERS
from crema_lib.objectives.losses import cmsc_nce, common_share, diversity, masked_nce
from crema_lib.objectives.w2v_cmsc_rlm import Quantiser
from crema_lib.sit import SiT

VARIANTS = [(name, {}) for name in OBJECTIVES] + [("cr_mae", {"regulariser": name}) for name in list(REGULARISERS)[1:]]
VARIANTS += [("cr_mae", {"contrast_weight": 0.0}), ("cr_mae", {"contrasted": "layers", "projected": False})]
VARIANTS += [("cr_mae", {"contrasted": "moments", "contrast_schedule": "falling"})]
VARIANTS += [("cr_mae", {"latent_weight": 1.0}), ("cr_mae", {"latent_weight": 1.0, "regulariser": "cmsc"})]
VARIANTS += [("cr_mae", {"measured_weight": 1.0})]
each = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))
)
SMALL = {"decoder_width": 16, "decoder_depth": 1, "projection": 8, "codes": 6}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def model(name, **options):
    tokens = OBJECTIVES[name].tokens[0]
    encoder = SiT(fs=100, seconds=4, width=16, depth=1, heads=2, tokens=tokens, scale=tuple(0.1 * i for i in range(1, 13)))
    return objectives.build(name, encoder, **{key: value for key, value in SMALL.items() if key in objectives.options(name)} | options)


def batch(n=6):
    lead_mask = torch.ones(n, 12, dtype=torch.bool)
    lead_mask[0, 3:7] = False
    target = torch.randn(n, COUNT).where(torch.rand(n, COUNT) < 0.8, torch.nan)
    return {"signal": torch.randn(n, 12, 400), "lead_mask": lead_mask, "target": target}


def run(m, records, seed=1):
    torch.manual_seed(seed)
    return m(records)


@each
def test_every_parameter_learns_and_only_parameters_do(name, options):
    m, records = model(name, **options), batch()
    losses = run(m, records)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    losses["loss"].backward()
    learned = {key for key, p in m.named_parameters() if p.requires_grad}
    assert {key for key, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == learned
    frozen = {key.split(".")[0] for key, p in m.named_parameters() if not p.requires_grad}
    assert frozen == ({"teacher"} if name == "jepa" or options.get("latent_weight") else set())


@each
def test_it_learns_a_batch_by_heart(name, options):
    m, records = model(name, lead_drop=0.0, noise=0.0, **options), batch()
    optimiser = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=3e-3)
    course = []
    for step in range(40):
        loss = run(m, records, seed=2)["loss"]
        course.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        m.after_step(step + 1, 40)
    assert np.mean(course[-5:]) < 0.97 * course[0]


@each
def test_half_precision(name, options):
    m, records = model(name, **options), batch()
    plain = run(m, records)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(m, records)
    for key, value in plain.items():
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(value.item(), rel=0.05, abs=0.02)


@each
def test_two_processes_compute_what_one_does(name, options, monkeypatch):
    """Both ranks are run one after the other: first to note what each would send, then with what they would get."""
    m, records = model(name, **options), batch(8)
    whole = run(m, records)
    sent = {}

    def exchange(rank, kind, value, combine):
        key = (kind, sum(1 for where in sent if where[0] == rank and where[1] == kind and where[3] == current[1]))
        sent[rank, kind, key[1], current[1]] = value.detach().clone()
        if current[1] == 0:
            return combine([value, value])
        other = sent[1 - rank, kind, key[1], 0]
        return combine([value, other] if rank == 0 else [other, value])

    current = [0, 0]
    monkeypatch.setattr(parallel, "place", lambda: (current[0], 2))
    monkeypatch.setattr(parallel, "gathered", lambda rows: exchange(current[0], "rows", rows, torch.cat))
    mean = lambda values: sum(values) / 2  # noqa: E731
    monkeypatch.setattr(parallel, "mean_over_processes", lambda value: exchange(current[0], "mean", value.detach(), mean))
    parts = []
    for attempt in range(2):
        for rank in range(2):
            current[:] = [rank, attempt]
            share = {key: value[4 * rank : 4 * rank + 4] for key, value in records.items()}
            parts.append(run(m, share))
    for key, value in whole.items():
        assert (parts[2][key] + parts[3][key]).item() / 2 == pytest.approx(value.item(), rel=1e-4, abs=1e-5), key


@each
def test_saved_and_loaded(name, options, tmp_path):
    m = model(name, lead_drop=0.25, **options)
    m.save_pretrained(tmp_path)
    again = objectives.load(tmp_path)
    assert type(again) is OBJECTIVES[name] and again.options == m.options and again.lead_drop == 0.25
    records = batch()
    assert run(m.eval(), records)["loss"] == run(again.eval(), records)["loss"]
    assert list(again.state_dict()) == list(m.state_dict())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lost_leads_reach_the_encoder(name):
    seen = []
    m = model(name, lead_drop=1.0)
    m.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    m(batch(64))
    assert seen[0].any(dim=1).all()
    assert 0.3 < seen[0].float().mean() < 0.7
    assert not seen[0][0, 3:7].any(), "a lead that never was cannot come back"


def test_class_names_are_distinct_and_options_known():
    assert len({one.__name__ for one in OBJECTIVES.values()}) == len(OBJECTIVES)
    assert objectives.options("mae")["mask_ratio"] == 0.6
    assert all("lead_drop" in objectives.options(name) for name in OBJECTIVES)
    with pytest.raises(CremaError, match="unknown objective 'bert': known are cr_mae, mae"):
        objectives.options("bert")
    with pytest.raises(CremaError, match="the objective mae has no option temperature: it has mask_ratio"):
        model("mae", temperature=0.1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mae", {"mask_ratio": 1}),
        ("st_mem", {"mask_ratio": 0}),
        ("mae", {"decoder_width": 33}),
        ("mae", {"decoder_depth": -1}),
        ("simclr", {"temperature": 0}),
        ("simclr", {"token_drop": 1.0}),
        ("simclr", {"projection": 0}),
        ("simclr", {"noise": -1}),
        ("cmsc", {"gain": float("nan")}),
        ("vicreg", {"variance": -1}),
        ("vicreg", {"invariance": -1}),
        ("vicreg", {"covariance": "1"}),
        ("jepa", {"momentum": 1.5}),
        ("jepa", {"block": 0}),
        ("jepa", {"lead_drop": 1.5}),
        ("w2v_cmsc_rlm", {"groups": 0}),
        ("w2v_cmsc_rlm", {"codes": 1}),
        ("w2v_cmsc_rlm", {"diversity_weight": -1}),
        ("cr_mae", {"regulariser": "barlow"}),
        ("cr_mae", {"contrast_schedule": "cosine"}),
        ("cr_mae", {"contrasted": "cls"}),
        ("cr_mae", {"contrasted": "middle"}),  # of a single block
        ("cr_mae", {"projected": 2}),
        ("cr_mae", {"latent_weight": -1}),
        ("cr_mae", {"momentum": 1.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_options(name, wrong):
    encoder = SiT(fs=100, seconds=4, width=16, depth=1, heads=2, tokens=OBJECTIVES[name].tokens[0])
    with pytest.raises(CremaError, match=next(iter(wrong))):
        objectives.build(name, encoder, **wrong)


def test_tokens_that_an_objective_cannot_take():
    lead, time = (SiT(fs=100, seconds=4, width=16, depth=1, heads=2, tokens=tokens) for tokens in ("lead", "time"))
    for name in ("mae", "cr_mae", "jepa", "w2v_cmsc_rlm"):
        with pytest.raises(CremaError, match="needs a SiT with tokens='time', this one has 'lead'"):
            objectives.build(name, lead)
    with pytest.raises(CremaError, match="STMEM needs a SiT with tokens='lead'"):
        objectives.build("st_mem", time)
    for name in ("simclr", "vicreg", "cmsc"):
        assert objectives.build(name, lead)(batch())["loss"].isfinite()


def test_halves_are_neighbours_in_time_that_keep_their_places():
    m = model("cmsc", noise=0.0, gain=0.0, lead_drop=0.0)
    x = torch.randn(5, 12, 400)
    clean, shown, seen, visible, hidden = m.pair(x, torch.ones(5, 12, dtype=torch.bool), halves=True)
    assert torch.equal(clean[:5], clean[5:]), "one random start for both"
    assert not torch.equal(clean[:5], x) and torch.equal(clean, shown) and seen.all()
    assert torch.equal(visible[:5], torch.arange(8).expand(5, 8)) and torch.equal(visible[5:], torch.arange(8, 16).expand(5, 8))
    assert hidden.shape == (10, 0)
    short = SiT(fs=100, seconds=4, patch=400, width=16, depth=1, heads=2)
    with pytest.raises(CremaError, match="one patch has no two halves"):
        objectives.build("cmsc", short)(batch())


def test_cr_mae_with_halves_draws_each_half_from_itself():
    m = model("cr_mae", regulariser="cmsc", noise=0.0, lead_drop=0.0)
    asked = []
    m.drawing_loss = lambda drawn, clean, lead_mask, seen, visible: asked.append((clean, visible)) or drawn.sum()
    records = batch()
    pairs = []
    pair = m.pair
    m.pair = lambda *args: pairs.append(pair(*args)) or pairs[-1]
    m(records)
    (clean, visible), (whole, _, _, places, _) = asked[0], pairs[0]
    assert torch.equal(clean[:6], whole[:6, :, :200]) and torch.equal(clean[6:], whole[6:, :, 200:])
    assert torch.equal(visible[:6], places[:6]) and torch.equal(visible[6:], places[6:] - 8)


def test_without_weight_there_is_no_regulariser():
    m = model("cr_mae", contrast_weight=0.0)
    assert not hasattr(m, "projector") and set(m(batch())) == {"mae", "loss"}
    for plain in ({"regulariser": "uniformity"}, {"projected": False}):
        assert not list(model("cr_mae", **plain).projector.parameters())


@pytest.mark.parametrize("contrasted", CONTRASTED)
def test_cr_mae_contrasts_what_it_says_and_draws_from_the_last_block(contrasted):
    encoder = SiT(fs=100, seconds=4, width=16, depth=6, heads=2)
    m = objectives.build("cr_mae", encoder, contrasted=contrasted, projected=False, temperature=0.3, decoder_width=16).eval()
    records = batch()
    fast = run(m, records)
    torch.manual_seed(1)
    clean, corrupted, seen, visible, _ = m.pair(records["signal"], records["lead_mask"])
    after = encoder(corrupted, seen, visible, range(6))  # the tokens after every block
    means = [tokens.mean(dim=1) for tokens in after]
    spread = [encoder.spread(tokens) for tokens in after]
    read = {"mean": means[5:], "middle": means[2:3], "layers": means[2:], "moments": means[2:] + spread[2:]}[contrasted]
    expected = slow_info_nce(*torch.cat(read, dim=1).detach().double().numpy().reshape(2, 6, -1), 0.3)
    assert fast["contrast"].item() == pytest.approx(expected, rel=1e-5)
    drawn = m.decode(after[-1], visible, 16)
    assert fast["mae"] == m.drawing_loss(drawn, clean, records["lead_mask"].repeat(2, 1), seen, visible)


@pytest.mark.parametrize(("schedule", "shares"), [("constant", [1, 1, 1]), ("rising", [0, 0.25, 1]), ("falling", [1, 0.75, 0])])
def test_lambda_follows_its_schedule_and_a_loaded_run_goes_on_where_it_was(schedule, shares, tmp_path):
    m, records = model("cr_mae", contrast_weight=0.4, contrast_schedule=schedule), batch()
    for step, share in zip((0, 1, 4), shares, strict=True):
        if step:
            m.after_step(step, 4)
        for one in (m, saved_and_loaded(m, tmp_path)):
            losses = run(one, records)
            assert (losses["loss"] - losses["mae"]).item() == pytest.approx(0.4 * share * losses["contrast"].item(), rel=1e-4, abs=1e-5)


def saved_and_loaded(m, folder):
    m.save_pretrained(folder)
    return objectives.load(folder)


def test_token_drop_leaves_tokens_out():
    lengths = []
    for drop in (0.0, 0.5):
        m = model("simclr", token_drop=drop)
        m.encoder.norm.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
        m(batch())
    assert lengths == [16, 8]


def test_mae_loss_is_that_of_its_parts():
    m, records = model("mae", noise=0.0, gain=0.0, lead_drop=0.0), batch()
    fast = run(m, records)["loss"].item()
    torch.manual_seed(1)
    clean, corrupted, seen = m.view(records["signal"], records["lead_mask"])
    visible, hidden = m.hide(6, 16, "cpu")
    predicted = m.decode(m.encoder(corrupted, seen, visible), visible, 16)
    errors = []
    for i in range(6):
        for patch in hidden[i].tolist():
            for lead in range(12):
                if records["lead_mask"][i, lead]:
                    true = clean[i, lead, 25 * patch : 25 * patch + 25] / m.encoder.scale[lead]
                    errors += (predicted[i, patch, 25 * lead : 25 * lead + 25] - true).square().tolist()
    assert fast == pytest.approx(np.mean(errors), rel=1e-5)


def test_st_mem_loss_against_loops_and_leads_decoded_by_themselves():
    m, records = model("st_mem", noise=0.0, lead_drop=0.5), batch()
    fast = run(m, records)["loss"].item()
    torch.manual_seed(1)
    clean, corrupted, seen = m.view(records["signal"], records["lead_mask"])
    visible, hidden = m.hide(6, 16, "cpu")
    assert visible.shape == (6, 12, 6) and hidden.shape == (6, 12, 10)
    assert not torch.equal(visible[:, 0], visible[:, 1]), "each lead has its own mask"
    tokens = m.encoder(corrupted, seen, visible)
    predicted = m.decode(tokens, visible, 16)
    errors = []
    for i in range(6):
        for lead in range(12):
            for patch in hidden[i, lead].tolist():
                if seen[i, lead]:
                    true = clean[i, lead, 25 * patch : 25 * patch + 25] / m.encoder.scale[lead]
                    errors += (predicted[i, patch, 25 * lead : 25 * lead + 25] - true).square().tolist()
    assert fast == pytest.approx(np.mean(errors), rel=1e-5)
    other = tokens.clone()
    other[:, 3 * 6 : 4 * 6] += 1  # tokens of the fourth lead
    changed = (m.decode(other, visible, 16) - predicted).view(6, 16, 12, 25).abs().amax((0, 1, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [3]


def two_views(m, records, span, firsts, ratio, block):
    """What `pair` should draw, from the plain functions: for each view (clean, corrupted, seen leads, visible patches)."""
    signal, drawn = records["signal"], []
    halves = firsts[0] != firsts[1]
    if halves:
        signal = views.shift(signal)
    for _ in firsts:
        clean = views.gain(signal if halves else views.shift(signal), m.gain)
        drawn.append((clean, views.noise(clean, m.noise, 100), views.drop_leads(records["lead_mask"], m.lead_drop)))
    return [(*view, first + views.block_mask(len(signal), span, ratio, block)[0]) for view, first in zip(drawn, firsts, strict=True)]


@pytest.mark.parametrize(
    ("name", "options", "slow"),
    [
        ("simclr", {"temperature": 0.3, "token_drop": 0.25}, lambda a, b: slow_info_nce(a, b, 0.3)),
        ("vicreg", {"invariance": 3, "variance": 2, "covariance": 0.5, "token_drop": 0.25}, lambda a, b: slow_vicreg(a, b, 3, 2, 0.5)),
        ("cmsc", {"temperature": 0.3, "token_drop": 0.25}, lambda a, b: slow_cmsc(a, b, 0.3)),
        ("cr_mae", {"regulariser": "infonce", "temperature": 0.3}, lambda a, b: slow_info_nce(a, b, 0.3)),
        ("cr_mae", {"regulariser": "vicreg"}, slow_vicreg),
        ("cr_mae", {"regulariser": "uniformity"}, lambda a, b: (slow_uniformity(a) + slow_uniformity(b)) / 2),
        ("cr_mae", {"regulariser": "cmsc", "temperature": 0.3}, lambda a, b: slow_cmsc(a, b, 0.3)),
    ],
    ids=["simclr", "vicreg", "cmsc", "cr_mae-infonce", "cr_mae-vicreg", "cr_mae-uniformity", "cr_mae-cmsc"],
)
def test_losses_of_two_views_are_those_of_their_parts(name, options, slow):
    """The contrast of the projected mean tokens, record by record; of CR-MAE also what is drawn, patch by patch and lead by lead."""
    if name == "cr_mae":
        options = {"contrast_weight": 0.7, "mask_ratio": 0.5, "block": 3} | options
    m, records = model(name, **options), batch()
    fast = run(m, records)
    span, firsts = (8, (0, 8)) if "cmsc" in (name, options.get("regulariser")) else (16, (0, 0))
    torch.manual_seed(1)
    drawn = two_views(m, records, span, firsts, options.get("mask_ratio", options.get("token_drop")), options.get("block", 1))
    means, errors = [], []
    for (clean, corrupted, seen, visible), first in zip(drawn, firsts, strict=True):
        tokens = m.encoder(corrupted, seen, visible)
        means.append(tokens.mean(dim=1))
        if name != "cr_mae":
            continue
        predicted = m.decode(tokens, visible - first, span).detach()
        for i, patch, lead in np.ndindex(6, span, 12):
            shown = first + patch in visible[i] and seen[i, lead]
            if records["lead_mask"][i, lead] and not shown:
                true = clean[i, lead, 25 * (first + patch) : 25 * (first + patch + 1)] / m.encoder.scale[lead]
                errors += (predicted[i, patch, 25 * lead : 25 * lead + 25] - true).square().tolist()
    means = torch.cat(means)
    projected = means if options.get("regulariser") == "uniformity" else m.projector(means)
    expected = {"contrast": slow(*projected.detach().double().numpy().reshape(2, 6, -1))}
    if name == "cr_mae":
        expected["mae"] = np.mean(errors)
    expected["loss"] = expected["contrast"] if name != "cr_mae" else expected["mae"] + 0.7 * expected["contrast"]
    assert {key: value.item() for key, value in fast.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["mae", "st_mem"])
def test_reconstruction_keeps_what_was_visible(name):
    m = model(name).eval()
    x, hidden = torch.randn(2, 12, 400), torch.tensor([[2, 5], [7, 8]])
    drawn, flags = m.reconstruct(x, hidden=hidden)
    inside = flags.repeat_interleave(25, dim=1)[:, None].expand_as(x)
    assert flags.nonzero().tolist() == [[0, 2], [0, 5], [1, 7], [1, 8]]
    torch.testing.assert_close(drawn[~inside], x[~inside])
    assert not torch.isclose(drawn[inside], x[inside]).all()


def test_jepa_loss_is_that_of_its_parts():
    m, records = model("jepa", block=3), batch()
    with torch.no_grad():
        for p in m.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    fast = run(m, records)["loss"].item()
    torch.manual_seed(1)
    clean, corrupted, seen = m.view(records["signal"], records["lead_mask"])
    visible, hidden = m.hide(6, 16, "cpu")
    predicted = m.decode(m.encoder(corrupted, seen, visible), visible, 16)
    assert fast == pytest.approx(slow_latent_loss(predicted, m.teacher(clean, records["lead_mask"]), hidden), rel=1e-5)


def slow_latent_loss(predicted, target, hidden):
    values = []
    for i, places in enumerate(hidden.tolist()):
        for place in places:
            t = target[i, place]
            d = (predicted[i, place] - (t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt()).abs()
            values += torch.where(d < 1, d**2 / 2, d - 0.5).tolist()
    return np.mean(values)


def test_cr_mae_with_latents_draws_contrasts_and_predicts_the_teacher(tmp_path):
    m, records = model("cr_mae", latent_weight=0.7, contrast_weight=0.4).eval(), batch()
    with torch.no_grad():
        for p in m.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    fast = run(m, records)
    torch.manual_seed(1)
    clean, corrupted, seen, visible, hidden = m.pair(records["signal"], records["lead_mask"])
    both = records["lead_mask"].repeat(2, 1)
    values = m.fill(m.embed(m.encoder(corrupted, seen, visible)), visible, 16)
    drawn, latents = values[..., :300], values[..., 300:]
    assert latents.shape == (12, 16, 16) and torch.equal(m.decode(m.encoder(corrupted, seen, visible), visible, 16), drawn)
    assert fast["mae"] == m.drawing_loss(drawn, clean, both, seen, visible)
    assert fast["latent"].item() == pytest.approx(slow_latent_loss(latents, m.teacher(clean, both), hidden), rel=1e-5)
    assert fast["loss"].item() == pytest.approx((fast["mae"] + 0.4 * fast["contrast"] + 0.7 * fast["latent"]).item(), rel=1e-5)
    again = saved_and_loaded(m, tmp_path).eval()
    assert run(again, records)["latent"] == fast["latent"]
    signal, places = records["signal"], torch.tensor([[2, 5]] * 6)
    assert torch.equal(again.reconstruct(signal, hidden=places)[0], m.reconstruct(signal, hidden=places)[0])


def test_measurements_are_read_from_every_second_recording_whole(monkeypatch):
    monkeypatch.setattr(views, "shift", lambda signal: signal)
    m, records = model("cr_mae", measured_weight=0.7, contrast_weight=0.0, noise=0.0, lead_drop=0.0, gain=2.0).eval(), batch()
    torch.nn.init.normal_(m.measure.weight)
    m.level.running_mean.normal_()
    found = run(m, records)
    features = m.encoder.features(records["signal"], records["lead_mask"], "moments")
    scores = m.measure((features - m.level.running_mean) / np.sqrt(1 + 1e-5) / np.sqrt(m.encoder.feature_size("moments")))
    expected = (scores - records["target"])[::2].square().nanmean()
    assert found["measured"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((found["mae"] + 0.7 * found["measured"]).item(), rel=1e-5)


def test_a_collapsed_teacher_shows():
    m = model("jepa")
    assert 0 < run(m, batch())["common"] < 0.9
    torch.nn.init.zeros_(m.teacher.norm.weight)
    torch.nn.init.normal_(m.teacher.norm.bias)
    assert run(m, batch())["common"].item() == pytest.approx(1, abs=1e-4)
    t = torch.randn(4, 5, 32)
    z = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert common_share(t).item() == pytest.approx((z.mean((0, 1)).norm() ** 2 / z.norm(dim=-1).square().mean()).item(), rel=1e-5)


@pytest.mark.parametrize(("name", "options"), [("jepa", {}), ("cr_mae", {"latent_weight": 1.0, "contrast_schedule": "rising"})])
def test_the_teacher_follows_slowly_and_stands_still_at_the_end(name, options):
    m = model(name, momentum=0.9, **options)
    start = [p.clone() for p in m.teacher.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, m.encoder.parameters(), strict=True))
    with torch.no_grad():
        for p in m.encoder.parameters():
            p.add_(1)
    m.after_step(5, 10)  # momentum half-way from 0.9 to 1
    for before, after in zip(start, m.teacher.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.05)
    still = [p.clone() for p in m.teacher.parameters()]
    m.after_step(10, 10)
    assert all(torch.equal(a, b) for a, b in zip(still, m.teacher.parameters(), strict=True))
    m.train()
    assert not m.teacher.training and m.encoder.training


def test_quantiser_takes_the_likeliest_code_and_mixes_the_groups():
    quantiser = Quantiser(8, 2, 5, 6)
    z = torch.randn(3, 4, 8)
    quantised, codes, probabilities = quantiser(z)
    assert probabilities.shape == (3, 4, 2, 5)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 4, 2))
    for i in np.ndindex(3, 4):
        logits = quantiser.logits(quantiser.norm(z[i])).view(2, 5)
        assert codes[i].tolist() == logits.argmax(1).tolist()
        entry = torch.cat([quantiser.codebook[g, codes[i][g]] for g in range(2)])
        torch.testing.assert_close(quantised[i], quantiser.mix(entry), atol=1e-5, rtol=1e-4)


def test_gumbel_noise_draws_codes_with_their_probabilities_and_the_gradient_is_that_of_the_softmax():
    quantiser, m = Quantiser(8, 1, 4, 4), model("w2v_cmsc_rlm", groups=1, codes=4)
    with torch.no_grad():
        quantiser.logits.weight.mul_(0.3)
    z = torch.randn(8).expand(2 * 4000, 1, 8)
    noise = m.gumbel(4000, 1, "cpu")
    _, codes, probabilities = quantiser(z, noise)
    share = torch.bincount(codes.flatten(), minlength=4) / 8000
    assert (share - probabilities[0, 0, 0]).abs().max() < 5 * (0.25 / 8000) ** 0.5, "the Gumbel trick (argmax of logits plus noise)"
    assert m.eval().gumbel(3, 1, "cpu") is None

    z = torch.randn(1, 8, requires_grad=True)
    direction = torch.randn(4)
    (straight,) = torch.autograd.grad((quantiser(z, noise[:1, 0])[0] * direction).sum(), z)
    soft = ((quantiser.logits(quantiser.norm(z)) + noise[0, 0, 0]) / 2).softmax(-1)
    (smooth,) = torch.autograd.grad((quantiser.mix(soft @ quantiser.codebook[0]) * direction).sum(), z)
    torch.testing.assert_close(straight, smooth)


def test_w2v_loss_is_that_of_its_parts():
    m, records = model("w2v_cmsc_rlm", diversity_weight=0.3), batch()
    losses = run(m, records)
    torch.manual_seed(1)
    _, shown, seen, visible, hidden = m.pair(records["signal"], records["lead_mask"], halves=True)
    tokens = m.encoder(shown, seen, visible)
    noise = m.gumbel(6, hidden.shape[1], "cpu")
    assert hidden[:6].max() < 8 <= hidden[6:].min()
    predicted, latents = [], []
    for i in range(12):
        first = 0 if i < 6 else 8
        drawn = m.decode(tokens[i : i + 1], visible[i : i + 1] - first, 8)[0]
        predicted.append(torch.stack([drawn[place - first] for place in hidden[i].tolist()]))
        signal = m.encoder.normalise(shown, seen)[i]
        latents.append(torch.stack([m.encoder.stem(signal[:, 25 * n : 25 * n + 25].flatten()) for n in hidden[i].tolist()]))
    quantised, codes, probabilities = m.quantiser(torch.stack(latents), noise)
    local = masked_nce(torch.stack(predicted), quantised, codes, 0.1)
    contrast = cmsc_nce(tokens[:6].mean(1), tokens[6:].mean(1), 0.1)
    idle = diversity(probabilities.flatten(0, 1))
    assert losses["local"].item() == pytest.approx(local.item(), rel=1e-4)
    assert losses["contrast"].item() == pytest.approx(contrast.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((local + 0.3 * idle + contrast).item(), rel=1e-4)
    for step, temperature in ((0, 2.0), (5, 1.0), (10, 0.5)):
        m.after_step(step, 10)
        assert m.quantiser.temperature.item() == pytest.approx(temperature)


def test_masks_come_in_blocks():
    for name in ("mae", "cr_mae", "jepa", "w2v_cmsc_rlm", "st_mem"):
        m = model(name, block=4, mask_ratio=0.5)
        torch.manual_seed(3)
        ours = [part[:, 0] if name == "st_mem" else part for part in m.hide(5, 16, "cpu")]  # the mask of the first lead
        torch.manual_seed(3)
        assert all(torch.equal(a, b) for a, b in zip(ours, views.block_mask(5, 16, 0.5, 4), strict=True))


def test_a_mask_by_a_seed_leaves_the_generator_as_it_was():
    m = model("mae", block=4, mask_ratio=0.5)
    before = torch.random.get_rng_state()
    first = m.places(16, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, m.places(16, 3)) and not torch.equal(first, m.places(16, 4))
    assert len(first) == 8 and (first.diff() > 1).sum() <= 3, "runs of hidden patches, not single ones"
