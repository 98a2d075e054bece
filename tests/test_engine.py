"""The training loop: batches as a function of the step, resuming, determinism, and what stops it."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType

from crema_lib import checkpoints, engine
from crema_lib.batches import Batches
from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Training, cosine, fit, parameter_groups
from crema_lib.errors import CremaError, Stopped
from crema_lib.objectives import CRMAE
from crema_lib.precision import PlainAttention, attention, matmul_precision
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d

QUICK = {"batch_size": 8, "epochs": 2, "log_every": 3, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 40, seed=0, fs=100, seconds=5)


def model(leads=None):
    torch.manual_seed(1)
    options = {"leads": leads} if leads else {}
    return CRMAE(SiT(fs=100, seconds=5, width=16, depth=2, heads=2, **options), decoder_width=32, decoder_depth=1, projection=8)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.state_dict().values() if p.is_floating_point()])


@pytest.mark.parametrize("source", ["device", "pinned memory"])
def test_every_source_gives_the_batches_of_the_memory_map(store, source):
    given = {"targets": np.arange(36.0), "leads": [1, 7], "seed": 2}
    plain, other = (Batches(store, np.arange(4, 40), 8, source=name, **given) for name in ("memory map", source))
    for step in (0, 1, 2, 3, 4, 5, 2, 9, 10):  # over the end of an epoch, back, and on
        for name, values in plain[step].items():
            assert torch.equal(other[step][name], values), (step, name)


def test_an_epoch_sees_every_record_once_and_the_next_in_another_order(store):
    batches = Batches(store, np.arange(4, 36), 8, seed=3)
    first = torch.cat([batches[i]["row"] for i in range(4)])
    second = torch.cat([batches[i]["row"] for i in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(4, 36))
    assert first.tolist() != second.tolist()
    again = Batches(store, np.arange(4, 36), 8, seed=3)
    assert torch.equal(again[6]["signal"], batches[6]["signal"]), "any step can be asked for alone"
    assert Batches(store, np.arange(4, 36), 8, seed=4)[0]["row"].tolist() != batches[0]["row"].tolist()


def test_targets_and_leads_follow_their_rows(store):
    rows = np.arange(10, 40)
    batch = Batches(store, rows, 8, targets=rows.astype(float) * 10, leads=[1, 7])[2]
    assert torch.equal(batch["target"], batch["row"].double() * 10)
    assert torch.equal(batch["signal"], store.read(batch["row"])[:, [1, 7]])
    assert batch["lead_mask"].shape == (8, 2)


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_share_each_part_of_a_batch_without_overlap(store, parts):
    whole = Batches(store, np.arange(40), 8, seed=1, parts=parts)[3]["row"].chunk(parts)
    shares = [Batches(store, np.arange(40), 8, seed=1, rank=r, world=2, parts=parts)[3]["row"].chunk(parts) for r in range(2)]
    for part, *own in zip(whole, *shares, strict=True):
        assert torch.cat(own).tolist() == part.tolist()


def test_a_batch_that_cannot_be_shared(store):
    with pytest.raises(CremaError, match=r"a batch of 10 cannot be shared by 2 processes in 2 parts: .* multiple of 4"):
        Batches(store, np.arange(40), 10, world=2, parts=2)


def test_fewer_records_than_a_batch(store):
    with pytest.raises(CremaError, match="3 records are fewer than a batch of 8"):
        Batches(store, np.arange(3), 8)


def test_schedule():
    factors = [cosine(i, 100, 0.1) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert np.all(np.diff(factors[10:]) <= 0) and factors[-1] < 0.001
    assert factors[55] == pytest.approx(0.5)


def test_decay_is_for_matrices(store):
    m = model()
    decayed, rest = (set(map(id, g["params"])) for g in parameter_groups(m, 0.1))
    names = {name: id(p) for name, p in m.named_parameters()}
    assert names["encoder.blocks.0.attn.qkv.weight"] in decayed
    assert {names["encoder.norm.weight"], names["encoder.stem.bias"], names["hidden_token"]} <= rest
    assert len(decayed | rest) == len(names) and not decayed & rest


def test_it_learns_and_logs(store, tmp_path):
    log = fit(model(), store, np.arange(40), Training(**{**QUICK, "epochs": 10}), tmp_path, progress=False)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.DataFrame(lines), log)
    assert {"step", "epoch", "lr", "loss", "mae", "contrast", "gradient", "records_per_s", "seconds"} == set(log)
    assert log["step"].iloc[-1] == 50 and len(checkpoints.found(tmp_path)) == 2


def test_same_seed_same_weights(store, tmp_path):
    runs = []
    for i, seed in enumerate((0, 0, 1)):
        m = model()
        fit(m, store, np.arange(40), Training(**QUICK, seed=seed), tmp_path / str(i), progress=False)
        runs.append(weights(m))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_every_weight_moves(store, tmp_path):
    m = model()
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    fit(m, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)
    assert [name for name, p in m.named_parameters() if torch.equal(p, before[name])] == []


def disturb(monkeypatch, what, at):
    """Let something happen once when the batch of step `at` is asked for; returns the list of the steps asked for."""
    real, calls = Batches.__getitem__, []

    def disturbed(self, step):
        calls.append(step)
        if step == at and calls.count(at) == 1:
            what()
        return real(self, step)

    monkeypatch.setattr(Batches, "__getitem__", disturbed)
    return calls


def raising(error):
    raise error


def losses(log):
    return log.drop(columns=["records_per_s", "seconds"])


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """Weights and log of an undisturbed run."""
    m = model()
    log = fit(m, store, np.arange(40), Training(**QUICK), tmp_path_factory.mktemp("whole"), progress=False)
    return weights(m), losses(log)


def run(store, out, m=None, **options):
    m = m or model()
    log = fit(m, store, np.arange(40), Training(**{**QUICK, **options}), out, progress=False)
    return weights(m), losses(log)


def same(one, other):
    assert torch.equal(one[0], other[0])
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)


def test_an_interrupted_run_ends_like_an_undisturbed_one(store, tmp_path, monkeypatch, whole):
    calls = disturb(monkeypatch, lambda: raising(KeyboardInterrupt()), 7)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path)
    same(run(store, tmp_path), whole)
    assert calls == [*range(8), *range(5, 10)], "it goes on from the checkpoint of step 5"
    assert whole[1]["step"].tolist() == [3, 6, 9, 10], "and the entry of step 6 knows the losses of steps 4 and 5"
    same(run(store, tmp_path), whole)
    assert len(calls) == 13, "a finished run is only loaded"


def test_notes_of_a_companion_survive_a_kill(store, tmp_path, monkeypatch):
    class Companion:
        def __call__(self, step, steps):
            return {"valid": np.float64(step)} if step == 4 else None  # a number that torch.load refuses

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            assert state == {}

    disturb(monkeypatch, lambda: raising(KeyboardInterrupt()), 5)
    for expected in (pytest.raises(KeyboardInterrupt), contextlib.nullcontext()):
        with expected:
            log = fit(model(), store, np.arange(40), Training(**QUICK), tmp_path, companion=Companion(), progress=False)
    assert log.set_index("step")["valid"].dropna().to_dict() == {6: 4.0}


def test_recompute_in_half_precision(store, tmp_path):
    once, twice = (run(store, tmp_path / str(again), precision="bf16", device="cpu", recompute=again)[0] for again in (False, True))
    assert torch.equal(once, twice)


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_every": 1, "log_every": 1},
        {"checkpoint_every": 1000},
        {"checkpoint_every": 1000, "checkpoint_seconds": 0},
        {"recompute": True},
    ],
)
def test_how_it_is_executed_changes_nothing(store, tmp_path, whole, options):
    found, log = run(store, tmp_path, **options)
    assert torch.equal(found, whole[0])
    assert log["step"].iloc[-1] == 10


@pytest.mark.parametrize(("seconds", "saved"), [(0, ["00000009", "00000010"]), (1000, ["00000010"])])
def test_a_slow_run_is_saved_as_often_as_it_was_asked_to(store, tmp_path, seconds, saved):
    run(store, tmp_path, checkpoint_every=1000, checkpoint_seconds=seconds)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()) == saved


def test_recompute_runs_blocks_twice_and_leaves_them_as_they_were(store, tmp_path):
    m, calls = model(), []
    m.encoder.blocks[1].norm1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    run(store, tmp_path / "once", m, epochs=0.2)
    run(store, tmp_path / "twice", m, epochs=0.2, recompute=True)
    assert len(calls) == 3 and "forward" not in vars(m.encoder.blocks[1])
    m.encoder = XResNet1d(fs=100, seconds=5, width=4, depth="xresnet1d50", hidden=8)
    with pytest.raises(CremaError, match="this XResNet1d has none"):
        run(store, tmp_path / "none", m, recompute=True)


class Mean(torch.nn.Module):
    """A loss that is a mean over records, without any chance in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoder = SiT(fs=100, seconds=5, width=16, depth=2, heads=2)
        self.steps = []

    def forward(self, batch):
        return {"loss": (self.encoder(batch["signal"], batch["lead_mask"]) - 1).square().mean()}

    def after_step(self, step, steps):
        self.steps.append((step, steps))


def test_a_batch_in_parts_is_a_batch(store, tmp_path):
    (once, log), (parts, log_parts) = (run(store, tmp_path / str(k), Mean(), accumulate=k) for k in (1, 4))
    torch.testing.assert_close(once, parts, rtol=0, atol=1e-4)
    assert not torch.equal(once, weights(Mean()))
    np.testing.assert_allclose(log["loss"], log_parts["loss"], rtol=1e-4)


def test_a_compiled_run_goes_on_too(store, tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # without a C++ compiler
    options = {"precision": "bf16", "device": "cpu", "checkpoint_every": 3}
    plain, whole = (run(store, tmp_path / str(fast), Mean(), compile=fast, **options)[0] for fast in (False, True))
    torch.testing.assert_close(plain, whole, rtol=0, atol=1e-3)
    disturb(monkeypatch, lambda: raising(KeyboardInterrupt()), 5)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "again", Mean(), compile=True, **options)
    assert torch.equal(run(store, tmp_path / "again", Mean(), compile=True, **options)[0], whole)


def test_compiled_and_recomputed(store, tmp_path, monkeypatch):
    torch._dynamo.reset()
    plain, _ = run(store, tmp_path / "plain", Mean(), epochs=0.4)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # which traces the backward pass, too
    both, _ = run(store, tmp_path / "both", Mean(), epochs=0.4, compile=True, recompute=True)
    torch.testing.assert_close(both, plain, rtol=0, atol=1e-4)


def test_fp16_on_a_cpu_says_that_it_is_single_precision(store, tmp_path):
    with pytest.warns(UserWarning, match="fp16 is for a GPU: on a CPU this run computes in single precision"):
        half = run(store, tmp_path / "half", Mean(), precision="fp16", device="cpu", epochs=0.4)[0]
    assert torch.equal(half, run(store, tmp_path / "single", Mean(), device="cpu", epochs=0.4)[0])


def test_after_step_is_called_after_each_update(store, tmp_path):
    m = Mean()
    run(store, tmp_path, m)
    assert m.steps == [(step, 10) for step in range(1, 11)]


def test_another_run_in_the_same_folder(store, tmp_path):
    run(store, tmp_path)
    with pytest.raises(CremaError, match=r"holds a run with another training \(lr 0.001 there, 0.0001 here\): choose another folder"):
        run(store, tmp_path, lr=1e-4)
    with pytest.raises(CremaError, match=r"with another options \(temperature 0.1 there, 0.2 here\)"):
        fit(CRMAE(SiT(fs=100, seconds=5, width=16, depth=2, heads=2), temperature=0.2, decoder_width=32, decoder_depth=1, projection=8),
            store, np.arange(40), Training(**QUICK), tmp_path, progress=False)  # fmt: skip
    with pytest.raises(CremaError, match="with another rows"):
        fit(model(), store, np.arange(40)[::-1], Training(**QUICK), tmp_path, progress=False)
    for change, sentence in (({"width": 32}, "width 16 there, 32 here"), ({"heads": 4}, "heads 2 there, 4 here")):  # 4 heads: same weights
        other = CRMAE(
            SiT(**{"fs": 100, "seconds": 5, "width": 16, "depth": 2, "heads": 2, **change}), decoder_width=32, decoder_depth=1, projection=8
        )
        with pytest.raises(CremaError, match=rf"with another encoder \({sentence}"):
            fit(other, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)


def test_a_store_of_another_rate_with_as_many_samples(store, tmp_path):
    other = CRMAE(SiT(fs=250, seconds=2, width=16, depth=2, heads=2), decoder_width=32, decoder_depth=1, projection=8)
    with pytest.raises(CremaError, match=r"the encoder takes 2 s at 250 Hz and leads .* holds 5 s at 100 Hz"):
        fit(other, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)


def test_other_targets_or_leads_are_another_run(store, tmp_path, monkeypatch):
    train = functools.partial(fit, store=store, rows=np.arange(40), training=Training(**QUICK), out=tmp_path, progress=False)
    train(model(), targets=np.arange(40.0))
    with pytest.raises(CremaError, match=r"holds a run with another targets \("):
        train(model(), targets=np.arange(40.0) + 1)
    other = store.lead_mask.copy()
    other[7, 0] ^= True
    monkeypatch.setattr(store, "lead_mask", other)
    with pytest.raises(CremaError, match=r"holds a run with another leads \("):
        train(model(), targets=np.arange(40.0))


def test_a_checkpoint_of_the_first_format_is_gone_on_from(store, tmp_path, monkeypatch, whole):
    disturb(monkeypatch, lambda: raising(KeyboardInterrupt()), 6)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path, log_every=5)
    path = tmp_path / "checkpoints" / "00000005" / "state.pt"
    state = torch.load(path, weights_only=True)
    old = {key: state[key] for key in ("module", "optimiser", "step", "log", "companion")}
    old["generators"] = state["generators"][0]
    old["identity"] = {key: state["identity"][key] for key in ("training", "steps", "data", "options")}
    del old["identity"]["training"]["accumulate"], old["identity"]["options"]["patch_norm"]  # options that came later
    old["identity"]["training"]["checkpoint_every"] = 500
    torch.save(old, path)
    assert torch.equal(run(store, tmp_path, log_every=5)[0], whole[0])


class Spoilt(CRMAE):
    """A CR-MAE that one step makes something wrong of."""

    at, spoil, calls = 6, staticmethod(lambda self, losses: losses["loss"] * torch.nan), 0

    def forward(self, batch):
        losses = super().forward(batch)
        Spoilt.calls += 1
        return {**losses, "loss": self.spoil(self, losses)} if Spoilt.calls == self.at else losses


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(3, 5), (100, 5), (7, 100)])
def test_a_loss_that_is_not_finite_stops(store, tmp_path, log_every, checkpoint_every):
    m, Spoilt.calls = model(), 0
    m.__class__ = Spoilt
    batches = Batches(store, np.arange(40), 8, 0)
    records = ", ".join(store.table["record"].iloc[batches[5]["row"].numpy()])
    kept = "the checkpoint of step 5 is kept" if checkpoint_every == 5 else "there is no checkpoint yet"
    with pytest.raises(CremaError, match=rf"the loss is nan at step 6 \(records {records}\): lower lr or mend them; {kept}"):
        run(store, tmp_path, m, log_every=log_every, checkpoint_every=checkpoint_every)
    for folder in checkpoints.found(tmp_path):
        state = torch.load(folder / "state.pt", weights_only=True)
        assert state["step"] == 5 and all(value.isfinite().all() for value in state["module"].values())


def test_long_batches_are_named_by_their_first_records(store, tmp_path):
    m, Spoilt.calls = model(), 5
    m.__class__ = Spoilt
    with pytest.raises(CremaError, match=r"at step 1 \(records .* and 2 more: `Batches.order\(0\)`\)"):
        run(store, tmp_path, m, batch_size=10)


class Steep(torch.autograd.Function):
    """A number whose slope is infinite."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, slope):
        return slope * torch.inf


@pytest.mark.parametrize(("checkpoint_every", "clip"), [(6, 1.0), (100, 1.0), (100, 0.0)])
def test_a_gradient_that_is_not_finite_is_told_of_its_own_batch(store, tmp_path, checkpoint_every, clip):
    m, Spoilt.calls = model(), 0
    m.__class__, m.spoil = type("Steeper", (Spoilt,), {}), lambda module, losses: Steep.apply(losses["loss"])
    records = ", ".join(store.table["record"].iloc[Batches(store, np.arange(40), 8, 0)[5]["row"].numpy()])
    with pytest.raises(CremaError, match=rf"the gradient is (nan|inf) at step 6 \(records {records}\): lower lr or mend them; there is no"):
        run(store, tmp_path, m, checkpoint_every=checkpoint_every, clip=clip)


def test_weights_that_are_not_finite_are_not_saved(store, tmp_path):
    def damage(module, losses):
        with torch.no_grad():
            module.projector[0].bias[0] = torch.nan  # read before, so this loss is finite
        return losses["loss"]

    m, Spoilt.calls = model(), 0
    m.__class__, m.spoil = type("Damaged", (Spoilt,), {"at": 5}), damage
    with pytest.raises(CremaError, match="weights are not finite after step 5: lower lr; there is no checkpoint yet"):
        run(store, tmp_path, m)
    assert checkpoints.found(tmp_path) == []


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT: a shell's job in the background ignores it, and so do the tests that it runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(store, tmp_path, monkeypatch, whole, interruptible, number):
    before = signal.getsignal(number)
    calls = disturb(monkeypatch, lambda: os.kill(os.getpid(), number), 6)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 7 of 10: the checkpoint is saved") as stopped:
        run(store, tmp_path)
    assert stopped.value.status == 128 + number and isinstance(stopped.value, CremaError) and CremaError("").status == 1
    assert signal.getsignal(number) is before
    same(run(store, tmp_path), whole)
    assert calls == list(range(10)), "nothing is computed twice"


def test_a_signal_in_the_last_step_is_not_lost(store, tmp_path, monkeypatch, whole):
    disturb(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM), 9)
    with pytest.raises(Stopped, match="after step 10 of 10"):
        run(store, tmp_path)
    same(run(store, tmp_path), whole)


def test_a_second_interrupt_does_not_wait(store, tmp_path, monkeypatch, interruptible):
    disturb(monkeypatch, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)], 6)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path)
    assert [folder.name for folder in checkpoints.found(tmp_path)] == ["00000005"]


def test_outside_the_main_thread_it_trains_without_handlers(store, tmp_path, whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(store, tmp_path)))
    thread.start()
    thread.join()
    same(found[0], whole)


def test_a_notebook_may_change_the_precision(store, tmp_path):
    half, exact = (run(store, tmp_path / name, Mean(), precision=name, epochs=0.4)[0] for name in ("bf16", "no"))
    assert not torch.equal(half, exact)
    assert torch.allclose(half, exact, atol=1e-2)
    used, fresh = Mean(), Mean()
    run(store, tmp_path / "first", used, precision="bf16", epochs=0.2)
    fresh.load_state_dict(used.state_dict())
    again, alone = (run(store, tmp_path / name, m, epochs=0.4)[0] for name, m in (("used", used), ("fresh", fresh)))
    assert torch.equal(again, alone), "a module that was trained in half precision goes on in single precision when asked to"
    assert "forward" not in vars(used)


@pytest.mark.parametrize("tokens", [7, PlainAttention.most + 1])
def test_attention_on_a_cpu_in_half_precision(tokens):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, tokens, 8).bfloat16()
    mask = torch.rand(2, 1, 1, tokens) < 0.8

    def attended(inputs):
        inputs = inputs.clone().requires_grad_()
        found = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        found.float().square().sum().backward()
        return found, inputs.grad

    exact = attended(inputs.float())
    with torch.autocast("cpu", torch.bfloat16), PlainAttention():
        found = attended(inputs)
    for value, right in zip(found, exact, strict=True):
        assert value.dtype == torch.bfloat16
        assert (value - right).norm() < 0.01 * right.norm()


def test_attention_is_left_alone_where_its_kernel_is_fast():
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 7, 8)
    mask = torch.randn(7, 7)
    for half, options in ((False, {}), (True, {"is_causal": True}), (True, {"scale": 1.0}), (True, {"attn_mask": mask.bfloat16()})):
        given = inputs.bfloat16() if half else inputs
        expected = F.scaled_dot_product_attention(*given, **options)
        with PlainAttention():
            assert torch.equal(F.scaled_dot_product_attention(*given, **options), expected)
    with PlainAttention():
        dropped = F.scaled_dot_product_attention(*inputs[:, :, :, :1].bfloat16(), dropout_p=1.0)
    assert not dropped.any(), "dropout of the weights is kept"


@pytest.mark.parametrize("recompute", [False, True])
def test_training_in_half_precision_on_a_cpu_attends_plainly(store, tmp_path, monkeypatch, recompute):
    asked = []
    monkeypatch.setattr(engine, "attention", lambda *given: asked.append(given) or attention(*given))
    kernel, called = F.scaled_dot_product_attention, []
    monkeypatch.setattr(PlainAttention, "_knows", lambda self, args, kwargs: called.append(args[0].dtype) or True)
    run(store, tmp_path, Mean(), precision="bf16", epochs=0.2, device="cpu", recompute=recompute)
    assert F.scaled_dot_product_attention is kernel
    assert called == [torch.bfloat16] * (4 if recompute else 2), "each of two blocks, again where it is recomputed"
    assert [(precision, str(device)) for precision, device in asked] == [("bf16", "cpu")] * len(asked)
    for given, plain in ((("no", "cpu"), False), (("bf16", "cuda"), False), (("bf16", "cpu"), True)):
        assert isinstance(attention(*given), PlainAttention) == plain


def test_products_on_a_gpu_have_the_precision_asked_for(store, tmp_path, monkeypatch):
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == before, "nothing changes on a CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_sharding_by_accelerate_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        CremaError, match="FSDP is set in accelerate, and no checkpoints of it are made here: take it out there and set shard"
    ):
        run(store, tmp_path)


def test_weights_are_not_shared_in_half_precision_that_needs_scaling():
    with pytest.raises(CremaError, match="shard does not go with fp16: take bf16, or leave shard off"):
        Training(shard=True, precision="fp16")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("epochs", 0, "epochs 0 is not positive"),
        ("epochs", float("nan"), "epochs nan is not positive"),
        ("accumulate", 0, "accumulate 0 is below 1"),
        ("lr", float("inf"), "lr inf is no learning rate"),
        ("weight_decay", -1.0, "weight_decay -1.0 is negative or not finite"),
        ("warmup", 5.0, "warmup 5.0 is outside 0 <= warmup < 1"),
        ("clip", -1.0, "clip -1.0 is negative or not finite"),
        ("betas", (2, 0.9), "are outside 0 <= beta < 1"),
        ("seed", -1, "seed -1 is outside"),
        ("log_every", 0, "must be at least 1"),
        ("precision", "fp8", "unknown precision 'fp8': known are no, bf16, fp16"),
        ("matmul", "low", "unknown matmul 'low': known are highest, high, medium"),
        ("device", "gpu", "unknown device 'gpu': known are auto, cpu, cuda"),
    ],
)
def test_options_out_of_range(option, value, sentence):
    with pytest.raises(CremaError, match=sentence):
        dataclasses.replace(Training(), **{option: value})


def test_a_model_of_fewer_leads_gets_its_leads(store, tmp_path):
    m = model(leads=("II", "V2"))
    log = fit(m, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)
    assert np.isfinite(log["loss"]).all()
