"""Fine-tuning: what trains and what does not, the joint loss, crops, averaging, early choice, resuming, and what is refused."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

from crema_lib import baselines, engine, finetune
from crema_lib.data import labels, splits
from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Training
from crema_lib.errors import CremaError
from crema_lib.finetune import Classifier, EarlyChoice
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d

TASKS = ["super", "sex", "age"]
COLUMNS = {"super": ["NORM", "MI"], "age": ["years"]}
QUICK = Training(epochs=2, batch_size=16, lr=1e-3, log_every=4, checkpoint_every=4, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 150, seed=0, fs=100, seconds=5)


def sit(**options):
    torch.manual_seed(1)
    return SiT(fs=100, seconds=5, width=16, depth=3, heads=2, **options)


def batch(n=4, outputs=3):
    torch.manual_seed(2)
    target = torch.randint(0, 2, (n, outputs)).float()
    return {"signal": torch.randn(n, 12, 500), "lead_mask": torch.ones(n, 12, dtype=torch.bool), "target": target}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_hold_every_weight_once(decay):
    model = Classifier(sit(), columns=COLUMNS)
    found = finetune.groups(model, QUICK, decay)
    assert all(group["params"] for group in found)
    members = [id(p) for group in found for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    lr = {id(p): group.get("lr", QUICK.lr) for group in found for p in group["params"]}
    names = dict(model.named_parameters())
    chain = ["encoder.stem.weight", "encoder.blocks.0.norm1.weight", "encoder.blocks.2.attn.qkv.weight", "head.1.weight"]
    assert [lr[id(names[name])] / QUICK.lr for name in chain] == pytest.approx([decay**k for k in (4, 3, 1, 0)])
    assert lr[id(names["encoder.norm.weight"])] == lr[id(names["encoder.blocks.2.attn.qkv.weight"])]


def test_fine_tuned_means_that_everything_moved(store, tmp_path):
    encoder = sit()
    before = state(encoder)
    finetune.finetune(encoder, store, TASKS, QUICK, tmp_path, times=1, progress=False, layer_decay=0.7, lead_drop=0.5)
    assert moved(encoder, before) == {name for name in before if name != "scale"}


@pytest.mark.parametrize("encoder", [sit(drop_path=0.3), XResNet1d(fs=100, seconds=5, depth="xresnet1d50", width=4, hidden=8)])
def test_frozen_means_that_nothing_moved(encoder, store, tmp_path):
    before = state(encoder)
    model, _ = finetune.finetune(encoder, store, ["super"], QUICK, tmp_path, times=1, progress=False, blocks=0)
    assert moved(encoder, before) == set(), "neither weights nor the statistics of a normalisation"
    still = dataclasses.replace(QUICK, lr=0.0)
    asleep, _ = finetune.finetune(encoder, store, ["super"], still, tmp_path / "still", times=1, progress=False, blocks=0)
    assert moved(model.head, state(asleep.head)) == {"1.weight", "1.bias"}, "the head did"


def test_the_last_blocks_alone(store, tmp_path):
    encoder = sit()
    before = state(encoder)
    finetune.finetune(encoder, store, ["super"], QUICK, tmp_path, times=1, progress=False, blocks=1, layer_decay=0.7)
    assert moved(encoder, before) == {name for name in before if name.startswith(("blocks.2.", "norm."))}


def test_frozen_parts_stay_in_evaluation_mode():
    model = Classifier(sit(drop_path=0.5), columns=COLUMNS, blocks=1).train()
    assert [block.training for block in model.encoder.blocks] == [False, False, True]
    assert model.head.training and not model.eval().head.training


def test_the_loss_counts_what_is_known():
    model = Classifier(sit(), columns=COLUMNS).eval()
    given = batch()
    given["target"][:, 2] = torch.tensor([50.0, 70, 61, 44])
    given["target"][0, 0] = given["target"][2, 1] = given["target"][3, 2] = torch.nan
    outputs = model.head(model.encoder.features(given["signal"], given["lead_mask"])).double()
    total, count = 0.0, 0
    for row, wanted in zip(outputs, given["target"].double(), strict=True):
        for k, (o, t) in enumerate(zip(row, wanted, strict=True)):
            if not t.isnan():
                total += (o - (t - 60) / 20) ** 2 if k == 2 else -(t * o.sigmoid().log() + (1 - t) * (1 - o.sigmoid()).log())
                count += 1
    assert model(given)["loss"].item() == pytest.approx((total / count).item(), rel=1e-5)
    other = {**given, "target": given["target"].clone()}
    other["target"][:, 0] = torch.nan
    assert model(other)["loss"].item() != pytest.approx(model(given)["loss"].item())
    model(given)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_training_augments_and_evaluation_does_not():
    model = Classifier(sit(), columns=COLUMNS, dropout=0.0, token_drop=0.5)
    given = batch()
    assert model.eval()(given)["loss"] == model(given)["loss"]
    assert model.train()(given)["loss"] != model(given)["loss"]
    seen = []
    model.encoder.blocks[0].register_forward_hook(lambda block, args, out: seen.append(args[0].shape[1]))
    model(given), model.eval()(given)
    assert seen == [10, 20], "half of the tokens are left out in training alone"


def test_crops_are_averaged():
    model = Classifier(sit(), columns=COLUMNS, crop=2.0).eval()
    signal = batch()["signal"]
    starts = (0, 100, 200, 300)
    one = torch.stack([model.head(model.encoder.features(signal[:, :, s : s + 200])) for s in starts])
    wanted = torch.cat([one[..., :2].sigmoid(), 60 + 20 * one[..., 2:]], dim=-1).mean(0)
    torch.testing.assert_close(model.outputs(signal), wanted)
    whole = Classifier(sit(), columns=COLUMNS).eval()
    torch.testing.assert_close(whole.outputs(signal)[:, :2], whole.head(whole.encoder.features(signal))[:, :2].sigmoid())
    seen = []
    model.encoder.blocks[0].register_forward_hook(lambda block, args, out: seen.append(args[0].shape[1]))
    model.train()(batch())
    assert seen == [8], "2 s are eight tokens"


@pytest.mark.parametrize("encoder", [sit(), XResNet1d(fs=100, seconds=5, depth="xresnet1d50", width=4, hidden=8)])
def test_leads_that_are_not_given_are_not_seen(encoder):
    model = Classifier(encoder, columns=COLUMNS, leads=["I", "II"], lead_drop=0.0, noise=0.0)
    one = batch()
    other = {**one, "signal": one["signal"].clone()}
    other["signal"][:, 2:] += 5
    losses = []
    for given in (one, other):
        torch.manual_seed(3)
        losses.append(model.train()(given)["loss"].item())
    assert losses[0] == losses[1]
    model.eval()
    assert torch.equal(model.outputs(one["signal"]), model.outputs(other["signal"]))
    other["signal"][:, 1] += 5 * torch.randn(500)
    assert not torch.equal(model.outputs(one["signal"]), model.outputs(other["signal"]))
    for wrong in ([], ["V9"]):
        with pytest.raises(CremaError, match="give one or more of the encoder's"):
            Classifier(sit(), columns=COLUMNS, leads=wrong)


def test_early_choice_averages_and_keeps_the_best():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    values = iter([0.3, 0.9, 0.5])
    choice = EarlyChoice(module, lambda averaged: {"super": next(values)}, times=3, decay=0.9)
    slow, notes, kept = module[0].weight.detach().double(), [], None
    for step in range(1, 10):
        with torch.no_grad():
            module[0].weight.add_(torch.randn(2, 2))
            module[1].num_batches_tracked.add_(1)
        d = min(0.9, (1 + step) / (10 + step))
        slow = d * slow + (1 - d) * module[0].weight.detach().double()
        notes.append(choice(step, 9))
        kept = slow if step == 6 else kept
    assert [note and note["valid super"] for note in notes] == [None, None, 0.3, None, None, 0.9, None, None, 0.5]
    assert choice.best == 0.9
    torch.testing.assert_close(choice.weights["0.weight"].double(), kept, rtol=1e-5, atol=1e-6)
    assert choice.weights["1.num_batches_tracked"] == 6
    other = EarlyChoice(module, None)
    other.load_state_dict(choice.state_dict())
    assert other.best == 0.9 and torch.equal(other.weights["0.weight"], choice.weights["0.weight"])


def test_nothing_to_choose_by():
    choice = EarlyChoice(torch.nn.Linear(1, 1), lambda averaged: {"super": float("nan")}, times=1)
    with pytest.raises(CremaError, match="nothing can be chosen"):
        choice(1, 1)


def test_weights_that_are_not_finite_are_not_scored_so_that_the_loop_can_say_where_they_went_wrong():
    module = torch.nn.Linear(1, 1)
    choice = EarlyChoice(module, lambda averaged: pytest.fail("scored"), times=1)
    module.bias.data.fill_(float("nan"))
    assert choice(1, 1) is None


def test_reached_is_what_scikit_learn_says():
    rng = np.random.default_rng(0)
    targets = np.column_stack([rng.integers(0, 2, (40, 2)), rng.normal(60, 10, 40)]).astype(float)
    outputs = np.column_stack([rng.random((40, 2)), rng.normal(60, 10, 40)])
    targets[:5, 2], targets[5:9, :2] = np.nan, np.nan
    found = finetune.reached(COLUMNS, targets, outputs)
    some, aged = np.r_[0:5, 9:40], np.arange(5, 40)
    assert found["super"] == pytest.approx(np.mean([roc_auc_score(targets[some, k], outputs[some, k]) for k in (0, 1)]))
    assert found["age"] == pytest.approx(r2_score(targets[aged, 2], outputs[aged, 2]))


def test_columns_of_a_task():
    columns = {"all": ["A", "B", "C"], "super": ["NORM", "B"]}
    outputs = np.arange(10.0).reshape(2, 5)
    assert finetune.of_task(columns, outputs, "super", ["B", "NORM"]).tolist() == [[4, 3], [9, 8]]
    assert finetune.of_task(columns, outputs, "form", ["C", "A"]).tolist() == [[2, 0], [7, 5]], "statements of form are among all"
    with pytest.raises(CremaError, match="no outputs for the task sub"):
        finetune.of_task(columns, outputs, "sub", ["IMI"])


def test_it_learns_and_can_be_read_again(store, tmp_path):
    training = dataclasses.replace(QUICK, epochs=12, lr=1e-2)
    model, log = finetune.finetune(sit(), store, ["super", "age"], training, tmp_path, times=3, progress=False)
    assert log["loss"].iloc[-1] < 0.9 * log["loss"].iloc[0]
    assert log["valid super"].count() == log["valid age"].count() == 3
    targets, columns = finetune.targets_of(store.table, ["super", "age"])
    train, valid, _ = splits.parts(store.table)
    train = train[~np.isnan(targets[train, 0])]
    assert finetune.reached(columns, targets[train], finetune.scores(model, store, train))["super"] > 0.6
    read = Classifier.from_pretrained(tmp_path / "model").eval()
    assert read.columns == columns and isinstance(read.encoder, SiT)
    assert np.array_equal(finetune.scores(read, store, valid), finetune.scores(model, store, valid))
    again, _ = finetune.finetune(sit(), store, ["super", "age"], training, tmp_path, times=3, progress=False)
    assert moved(again, state(model)) == set(), "a finished run is read"


def test_an_interrupted_run_ends_like_an_undisturbed_one(store, tmp_path, monkeypatch):
    options = {"times": 4, "progress": False, "token_drop": 0.4, "layer_decay": 0.8}
    whole, _ = finetune.finetune(sit(), store, ["super"], QUICK, tmp_path / "whole", **options)
    real, calls = engine.Batches.__getitem__, []

    def interrupted(self, step):
        calls.append(step)
        if step == 6 and calls.count(6) == 1:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(engine.Batches, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(sit(), store, ["super"], QUICK, tmp_path / "cut", **options)
    resumed, _ = finetune.finetune(sit(), store, ["super"], QUICK, tmp_path / "cut", **options)
    assert calls.count(4) == 2 and calls.count(3) == 1, "it goes on from the checkpoint of step 4"
    assert moved(resumed, state(whole)) == set(), "weights, average and choice are those of the undisturbed run"


def test_a_run_is_not_taken_up_for_another_encoder_or_recipe(store, tmp_path):
    def run(encoder, **options):
        return finetune.finetune(encoder, store, ["super"], QUICK, str(tmp_path), **{"times": 2, "progress": False, **options})[0]

    first = run(sit())
    other = sit()
    other.norm.weight.data += 1e-3
    wrong = [(other, {}, "encoder"), (sit(drop_path=0.1), {}, "encoder"), (sit(), {"times": 3}, "times")]
    wrong += [(sit(), {"layer_decay": 0.9}, "layer_decay"), (sit(), {"probe_first": True}, "probe_first")]
    for encoder, options, word in wrong:
        with pytest.raises(CremaError, match=f"holds a run with another {word} .*: choose another folder"):
            run(encoder, **options)
    assert moved(run(sit()), state(first)) == set()


def test_boosting_is_kept_for_the_same_labels_alone(store, tmp_path, monkeypatch):
    calls = []

    class Trees:
        def __init__(self, seed):
            pass

        def fit(self, *args, **options):
            calls.append(len(args[1]))
            return self

        def scores(self, values):
            return np.zeros((len(values), 5), np.float32)

    monkeypatch.setattr(baselines, "Boosting", Trees)
    monkeypatch.setattr(baselines.waves, "kept", lambda store, **options: np.zeros((len(store), 3)))
    p = types.SimpleNamespace(heads=["super", "age"], seed=0, run_dir=tmp_path)
    for _ in range(2):
        columns, outputs = baselines.boosting(p, store, progress=False)
        assert list(columns) == ["super"] and outputs.shape == (len(store.rows([10])), 5) and len(calls) == 1
    few = store.rows(range(1, 9))[:40]
    for _ in range(2):
        baselines.boosting(p, store, rows=few, name="-few", progress=False)
    assert len(calls) == 2 and calls[1] < calls[0], "some rows are another run, kept as well"
    moved_folds = store.table.assign(fold=store.table["fold"] % 10 + 1)
    monkeypatch.setattr(store, "table", moved_folds)
    baselines.boosting(p, store, progress=False)
    assert len(calls) == 3, "other folds are another run"
    assert [path.suffix for path in (tmp_path / "finetune").rglob("*.*")] == [".npy"] * 3


def test_the_arms(store, tmp_path):
    sit(cls_token=True).save_pretrained(tmp_path / "pretrained")
    p = types.SimpleNamespace(
        heads=["super"], readout="mean", precision="no", device="cpu", weight_decay=0.05, run_dir=tmp_path, finetune_epochs=0.2,
        finetune_batch=16, finetune_lr=1e-4, finetune_checks=1, layer_decay=0.7, drop_path=0.1, token_drop=0.2, crop=0.0, cnn_epochs=0.1,
        cnn_lr=1e-3, cnn_crop=1.0,
    )  # fmt: skip
    start = {arm: baselines.new_encoder(arm, tmp_path / "pretrained", seed=3) for arm in baselines.ARMS}
    assert moved(start["CR-MAE"], state(sit(cls_token=True))) == set()
    assert "blocks.0.attn.qkv.weight" in moved(start["random initialisation"], state(start["CR-MAE"]))
    assert isinstance(start["xresnet1d101"], XResNet1d) and torch.equal(start["xresnet1d101"].scale, start["CR-MAE"].scale)
    model, _ = baselines.train("CR-MAE", p, store, tmp_path / "pretrained", seed=1, progress=False)
    assert (tmp_path / "finetune" / "cr-mae-s1" / "model" / "heads.safetensors").is_file()
    assert model.token_drop == 0.2
    partly, _ = baselines.train("CR-MAE, last 2 blocks", p, store, tmp_path / "pretrained", seed=1, progress=False)
    assert moved(partly.encoder, state(start["CR-MAE"])) == {
        n for n in start["CR-MAE"].state_dict() if n.startswith(("blocks.1.", "blocks.2.", "norm."))
    }
    with pytest.raises(CremaError, match="unknown network 'lstm'"):
        baselines.new_encoder("lstm", tmp_path / "pretrained")


def test_what_is_refused(store, tmp_path):
    run = lambda encoder=None, tasks=("super",), **options: finetune.finetune(  # noqa: E731
        encoder or sit(), store, tasks, QUICK, tmp_path, progress=False, **options
    )
    with pytest.raises(CremaError, match="takes 5 s at 250 Hz"):
        run(SiT(fs=250, seconds=5, width=16, depth=1, heads=2))
    with pytest.raises(CremaError, match="unknown task 'supper'"):
        run(tasks=["supper"])
    with pytest.raises(CremaError, match="folds 1 to 8"):
        run(rows=store.rows([10]))
    with pytest.raises(CremaError, match=r"crop of 1\.1 s"):
        run(crop=1.1)
    with pytest.raises(CremaError, match="unknown readout 'cls'"):
        run(readout="cls")
    with pytest.raises(CremaError, match="last 4 blocks cannot be trained"):
        run(blocks=4)
    with pytest.raises(CremaError, match="0 transformer blocks"):
        run(XResNet1d(fs=100, seconds=5, depth="xresnet1d50", width=4, hidden=8), blocks=1)
    other = Classifier(SiT(fs=250, seconds=5, width=16, depth=1, heads=2), columns=COLUMNS)
    with pytest.raises(CremaError, match="250 Hz"):
        finetune.scores(other, store, [0])


def test_targets_side_by_side(store):
    targets, columns = finetune.targets_of(store.table, TASKS)
    single, names, kept = labels.matrix(store.table, "super")
    assert list(columns) == TASKS and columns["super"] == names
    assert np.array_equal(targets[kept, :5], single[kept]) and np.isnan(targets[~kept, :5]).all()
    assert np.array_equal(targets[:, -1], labels.age(store.table).astype(np.float32), equal_nan=True)


def test_a_head_that_starts_from_probes(store, tmp_path):
    training = dataclasses.replace(QUICK, epochs=0.1, lr=1e-9)
    random, _ = finetune.finetune(sit(), store, TASKS, training, tmp_path / "random", times=1, progress=False)
    model, _ = finetune.finetune(sit(), store, TASKS, training, tmp_path / "probe", times=1, progress=False, probe_first=True)
    targets, columns = finetune.targets_of(store.table, TASKS)
    train, _, _ = splits.parts(store.table, (~np.isnan(targets)).any(1))
    before, after = (finetune.reached(columns, targets[train], finetune.scores(m, store, train)) for m in (random, model))
    assert after["super"] > before["super"] + 0.1 and after["age"] > before["age"]


def test_a_single_token_does_not_decay_whatever_the_layers_do():
    model = Classifier(sit(cls_token=True), columns=COLUMNS)
    for decay in (1.0, 0.5):
        decays = {id(p): group["weight_decay"] for group in finetune.groups(model, QUICK, decay) for p in group["params"]}
        spared = {name for name, p in model.named_parameters() if decays[id(p)] == 0}
        assert {"encoder.cls", "head.1.bias", "encoder.norm.weight"} <= spared and "encoder.stem.weight" not in spared


def test_what_cannot_be_trained_on_or_scored(store, tmp_path):
    def train(tasks=("super",), **options):
        return finetune.finetune(sit(), store, list(tasks), QUICK, tmp_path, progress=False, **options)

    for wrong, sentence in (
        ({"tasks": []}, "there is no task to train on"),
        ({"rows": []}, "others or none were given"),
        ({"dropout": 1.5}, "dropout 1.5 is no probability"),
        ({"readout": "moments", "token_drop": 0.5}, "token_drop does not go with the readout moments"),
    ):
        with pytest.raises(CremaError, match=sentence):
            train(**wrong)
    with pytest.raises(CremaError, match="there is no recording to score"):
        finetune.scores(Classifier(sit(), columns=COLUMNS), store, [])
