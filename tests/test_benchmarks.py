"""The benchmarks: the bound computes what the book computes, the reference learns from files, and the measures measure."""

import json
import math
import runpy
import sys
import time

import pytest
import torch

from benchmarks import bound, reference, sections
from crema_lib import cost
from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Training
from crema_lib.errors import CremaError
from crema_lib.objectives import build
from crema_lib.precision import autocast
from crema_lib.sit import SiT


def objective():
    torch.manual_seed(0)
    return build("cr_mae", SiT(width=32, depth=2, heads=2, seconds=5, scale=tuple(0.1 + 0.02 * i for i in range(12))))


def test_the_bound_computes_the_loss_of_the_book():
    model = objective()
    torch.nn.init.normal_(model.encoder.missing)
    signal, lead_mask = torch.randn(6, 12, 500), torch.rand(6, 12) < 0.8
    torch.manual_seed(1)
    ours = model({"signal": signal, "lead_mask": lead_mask})["loss"]
    torch.manual_seed(1)
    by_hand = bound.loss(model, signal, lead_mask)
    assert by_hand.item() == pytest.approx(ours.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (ours, by_hand)]
    for name, a, b in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_the_bound_computes_it_in_half_precision_too():
    model, signal, lead_mask = objective(), torch.randn(6, 12, 500), torch.ones(6, 12, dtype=torch.bool)
    found = []
    for loss in (lambda: model({"signal": signal, "lead_mask": lead_mask})["loss"], lambda: bound.loss(model, signal, lead_mask)):
        torch.manual_seed(1)
        with autocast("bf16"):
            found.append(loss())
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-3)
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]) for loss in found]
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()
    torch.manual_seed(1)
    exact = bound.loss(model, signal, lead_mask).item()
    assert exact != found[1].item() and exact == pytest.approx(found[1].item(), rel=0.02)


@pytest.mark.parametrize(
    ("device", "rates", "expected"),
    [("cpu", (6, 6), "bf16"), ("cpu", (2, 6), "no"), ("cuda", (6, 6), "bf16"), ("cuda", (2, 6), "fp16"), ("cuda", (2, 2), "no")],
)
def test_half_precision_is_taken_where_it_is_faster(monkeypatch, device, rates, expected):
    rate = dict(zip((torch.bfloat16, torch.float16), rates, strict=True))
    monkeypatch.setattr(cost, "matmul_peak", lambda device, dtype, **options: rate.get(dtype, 2))
    assert cost.fast_precision(device) == expected


def test_the_bound_trains():
    model, signal = objective(), torch.randn(1, 12, 500).repeat(8, 1, 1)
    before = model.encoder.stem.weight.clone()
    seconds = bound.loop(model, signal, torch.ones(8, 12, dtype=torch.bool), batch_size=4)(3)
    assert len(seconds) == 3 and min(seconds) > 0
    assert not torch.equal(before, model.encoder.stem.weight)


def test_the_reference_reads_filters_and_trains(tmp_path):
    reference.write_files(tmp_path, 5)
    files = reference.Files(tmp_path, 100)
    assert len(files) == 5 and files[0].shape == (12, 1000) and files[0].std() > 0.02
    assert torch.allclose(files[0][0] + files[0][2], files[0][1], atol=0.02), "lead II is the sum of I and III"
    seconds = reference.loop(tmp_path, "xs", batch_size=2)(3)
    assert len(seconds) == 3 and min(seconds) > 0


def test_operations_are_those_of_the_formula():
    layer, x = torch.nn.Linear(30, 50), torch.randn(7, 30, requires_grad=True)
    assert cost.flops(lambda: layer(x)) == 2 * 7 * 30 * 50
    assert cost.flops(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 30 * 50


def test_the_peak_is_not_below_a_product_of_ours():
    a = torch.randn(256, 256)
    slowest = 2 * 256**3 / max(cost.timed(lambda: a @ a) for _ in range(5))
    assert cost.matmul_peak(sizes=(256, 512), repeats=5) > slowest


def test_steps_of_a_run_are_timed(tmp_path):
    store = simulated_store(tmp_path / "store", 40, seconds=5)
    seconds = cost.step_seconds(objective(), store, range(40), Training(batch_size=4), tmp_path / "run", 13)
    assert len(seconds) == 13 and min(seconds) > 0
    with pytest.raises(CremaError, match="3 records are fewer than a batch of 4"):
        cost.step_seconds(objective(), store, range(3), Training(batch_size=4), tmp_path / "few", 5)


def test_turns_and_ratio():
    order = []

    def loop(name, rounds):
        rounds = iter(rounds)
        return lambda: order.append(name) or next(rounds)

    fast = loop("fast", [[1.0, 9.0, 1.0], [2.0, 2.0, 8.0], [1.0, 1.0, 1.0]])
    slow = loop("slow", [[5.0, 5.0, 5.0], [6.0, 1.0, 7.0], [4.0, 4.0, 9.0]])
    seconds = cost.in_turns({"fast": fast, "slow": slow}, 3)
    assert order == ["fast", "slow"] * 3
    assert seconds == {"fast": [1.0, 2.0, 1.0], "slow": [5.0, 6.0, 4.0]}
    assert cost.speed_ratio(seconds, "fast", "slow") == (4.0, 3.0, 5.0)


def test_a_time_is_that_of_the_run():
    assert cost.timed(lambda: time.sleep(0.05)) >= 0.05


def test_shares_name_the_kernels():
    a = torch.randn(512, 512)
    shares = cost.shares(lambda: [a @ a for _ in range(20)])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matmul"] > 0.9
    norm = torch.nn.LayerNorm(512)
    assert cost.shares(lambda: [norm(a) for _ in range(20)])["norm"] > 0.5


def test_one_command_writes_a_record(tmp_path, capsys, monkeypatch):
    out = tmp_path / "cpu.json"
    measured = ["peak", "compare", "halves", "steps", "recompute", "networks", "parts", "whole", "profile"]
    small = ["--device", "cpu", "--size", "xs", "--sizes", "xs", "--rates", "100", "--steps", "2", "--rounds", "1", "--records", "32"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *measured, *small, "--out", str(out)])
    runpy.run_module("benchmarks", run_name="__main__")  # `python -m benchmarks`, without importing torch once more
    record = json.loads(out.read_text())
    tasks = {row["task"] for row in record["metrics"]}
    assert {
        "matrix product, best",
        "pretraining side by side",
        "bf16",
        "pretraining step, 100 Hz",
        "embedding, 100 Hz",
        "embedding and UMAP",
        "embed, 100 Hz WFDB files",
        "simulator, 100 Hz",
        "recompute, 100 Hz",
        "fine-tuning, 100 Hz",
        "input",
        "a step: matmul",
    } <= tasks
    assert all(row["value"] > 0 and math.isfinite(row["value"]) for row in record["metrics"] if not row["task"].startswith("a step"))
    assert record["parameters"]["sizes"] == ["xs"] and "GFLOP an ECG" in capsys.readouterr().out


def test_an_unknown_section(capsys):
    with pytest.raises(SystemExit):
        sections.main(["peek"])
    assert "unknown section peek: known are peak, compare" in capsys.readouterr().err


def test_peak_memory_is_the_process_own(python):
    held = bytearray(b"1") * 2_000_000_000  # what this process holds at its peak is not the other's
    found = python("-c", "from crema_lib import cost; print(cost.peak_memory())")
    before = cost.peak_memory()
    assert before >= len(held) > int(found.stdout) > 0, found.stderr
