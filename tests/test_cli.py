"""The command line: help at once, one sentence for what is wrong, exit status that a script can read."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import wfdb
from conftest import ROOT
from safetensors import safe_open

import crema_lib
from crema_lib import __main__ as cli
from crema_lib import bookbuild, embeddings, objectives
from crema_lib.data.leads import LEADS
from crema_lib.data.simulate import simulate, simulated_store
from crema_lib.errors import CremaError, Stopped
from crema_lib.sit import SiT


def test_help_needs_no_torch(python):
    done = python("-X", "importtime", "-m", "crema_lib", "book", "--help")
    assert done.returncode == 0
    assert "--profile" in done.stdout
    assert "argparse" in done.stderr
    assert "torch" not in done.stderr
    assert "numpy" not in done.stderr


@pytest.mark.parametrize(
    "words", [["data"], ["data", "list"], ["data", "fetch"], ["data", "verify"], ["data", "prepare"], ["book"], ["pretrain"], ["leakage"]]
)
def test_every_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--help"])
    assert stop.value.code == 0
    assert "usage: crema_lib" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["boook"], ["data"], ["data", "fetch"], ["book", "--profil"], ["pretrain", "mae"], ["leakage"]])
def test_wrong_usage_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["book", "--profile", "quik"], "no profile quik"),
        (["book", "--only", "99"], "no chapter 99"),
        (["book", "-p", "sede=3"], "unknown parameter sede (did you mean seed?)"),
        (["book", "-p", "seed=three"], "parameter seed must be a whole number"),
        (["book", "-p", "seed"], "seed is no name=value"),
        (["data", "verify", "no-such-set"], "no-such-set"),
        (["data", "prepare", "no-such-set"], "no-such-set"),
        (["pretrain", "--objective", "bert"], "parameter objective = 'bert' is not known"),
        (["pretrain", "--profile", "quik"], "no profile quik"),
        (["pretrain", "-p", "lr"], "lr is no name=value"),
        (["pretrain", "-p", "tasks=all"], "pretraining reads no parameter tasks: it reads data, records"),
        (["pretrain", "--objective", "mae", "-p", "temperature=0.2"], "the objective mae has no temperature: it has mask_ratio"),
        (["pretrain", "-p", "data=no-such-set"], "no-such-set is not prepared"),
        (["leakage", "no-such-set"], "python -m crema_lib data prepare no-such-set"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_1(words, sentence, capsys):
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "words",
    [["pretrain", "-p", "device=cuda"], ["embed", "x.csv", "--out", "x.parquet", "--device", "cuda"],
     ["reader", "ptb-xl", "--checkpoint", "sit-xs-ptbxl-100hz", "--device", "cuda"]],
)  # fmt: skip
def test_a_gpu_that_is_not_there_is_one_sentence(words, capsys):
    assert cli.main(words) == 1
    assert "torch sees no GPU" in capsys.readouterr().err


def test_list_names_the_sets(capsys):
    assert cli.main(["data", "list"]) == 0
    assert "ptb-xl" in capsys.readouterr().out


def test_options_that_are_not_given_stay_with_the_function(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(bookbuild, "build", lambda **options: calls.append(options) or "there")
    assert cli.main(["book", "--only", "03", "04", "-p", "seed=1", "-p", "lr=1e-4", "--no-render"]) == 0
    assert calls == [{"profile": "quick", "only": ["03", "04"], "overrides": ["seed=1", "lr=1e-4"], "out": "_build", "render_pages": False}]
    assert capsys.readouterr().out == "there\n"
    monkeypatch.setattr("crema_lib.data.archive.verify", lambda name, **options: calls.append((name, options)) or ["a", "b"])
    assert cli.main(["data", "verify", "x", "--source", "d"]) == 0
    assert calls[-1] == ("x", {"source": "d"})
    assert "2 files" in capsys.readouterr().out


def test_prepare_says_what_it_did(tmp_path, capsys):
    for i, name in enumerate(("good", "bad")):
        signal = np.random.default_rng(i).integers(-900, 900, (1000, 2))
        wfdb.wrsamp(
            name, 100, ["mV"] * 2, ["I", "II"], d_signal=signal, fmt=["16"] * 2, adc_gain=[1000.0] * 2, baseline=[0] * 2, write_dir=tmp_path
        )
    with open(tmp_path / "bad.dat", "r+b") as file:
        file.truncate(100)
    assert cli.main(["data", "prepare", "mine", "--source", str(tmp_path), "--out", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert "left out bad:" in out and "1 records, 1 left out" in out
    (tmp_path / "note.txt").write_text("mine")
    shutil.rmtree(tmp_path / "store")
    rest = "passed over in folders, neither WFDB nor CSV with a column a lead: 1 file (note.txt)"
    with tempfile.TemporaryDirectory() as out:
        for words in (["data", "prepare", "mine", "--out", f"{out}/store", "--source"], ["embed", "--out", f"{out}/x.parquet"]):
            assert cli.main([*words, str(tmp_path)]) == 0
            assert rest in capsys.readouterr().out


def test_pretrain_leaves_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    shutil.copytree(ROOT / "params", tmp_path / "params")
    small = ["records=80", "seconds=5", "width=24", "depth=1", "epochs=1", "batch_size=32", "device=cpu"]
    words = ["pretrain", "--objective", "simclr", *(word for text in small for word in ("-p", text))]
    assert cli.main(words) == 0
    folder = tmp_path / "_runs" / "quick-simclr-s0" / "pretrain" / "model"
    out = capsys.readouterr()
    assert out.out == f"the model is in {folder}\n"
    assert "step" in out.err, "a progress bar"
    assert type(objectives.load(folder)) is objectives.SimCLR
    assert cli.main([*words, "--out", str(tmp_path / "mine"), "-p", "temperature=0.2"]) == 0
    assert objectives.load(tmp_path / "mine" / "pretrain" / "model").temperature == 0.2


def test_pretrain_by_two_processes_that_accelerate_starts(tmp_path):
    small = ["records=80", "seconds=5", "width=24", "depth=1", "epochs=1", "batch_size=32", "device=cpu"]
    words = ["pretrain", *(word for text in small for word in ("-p", text))]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    words = [sys.executable, "-m", *launch, *plain, "-m", "crema_lib", *words, "--out", str(tmp_path / "two")]
    found = subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("the model is in") == 1 and objectives.load(tmp_path / "two" / "pretrain" / "model").state_dict()
    one, two = (pd.read_json(tmp_path / name / "pretrain" / "log.jsonl", lines=True) for name in ("one", "two"))
    assert one["step"].tolist() == two["step"].tolist()
    np.testing.assert_allclose(two[["loss", "mae"]], one[["loss", "mae"]], rtol=0, atol=1e-4)


def test_pretrain_that_is_asked_to_stop_saves_and_goes_on(tmp_path):
    small = ["records=80", "seconds=5", "width=24", "depth=1", "epochs=100000", "batch_size=32", "device=cpu"]
    words = [sys.executable, "-m", "crema_lib", "pretrain", "--out", str(tmp_path), *(word for text in small for word in ("-p", text))]
    run = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, until = tmp_path / "pretrain" / "log.jsonl", time.monotonic() + 240
    while run.poll() is None and time.monotonic() < until and not (log.is_file() and log.stat().st_size):
        time.sleep(0.1)
    run.terminate()
    _, told = run.communicate(timeout=60)
    assert run.returncode == 143, told
    assert "error: stopped by SIGTERM after step" in told and "Traceback" not in told
    assert len(list((tmp_path / "pretrain" / "checkpoints").glob("*/state.pt"))) == 1


def test_embed_writes_a_table_of_features(tmp_path, monkeypatch, capsys):
    columns = {lead: np.random.default_rng(0).normal(size=1000) for lead in ("I", "II", "V1")}
    pd.DataFrame(columns).to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "bad.csv").write_text("x\n1\n")
    words = ["embed", str(tmp_path / "mine.csv"), str(tmp_path / "bad.csv"), "--out", str(tmp_path / "out" / "x.parquet")]
    assert cli.main([*words, "--unit", "mV", "--rate", "100", "--precision", "no"]) == 0
    out = capsys.readouterr()
    assert (
        "left out bad: " in out.out and "x.parquet: 1 recordings, 192 features of sit-xs-ptbxl-100hz" in out.out and "embedding" in out.err
    )
    found = pd.read_parquet(tmp_path / "out" / "x.parquet")
    assert found["record"].tolist() == ["mine"] and found.shape == (1, 194) and "missing:V2" in found["quality"].item()
    model = SiT.from_pretrained(ROOT / "weights" / "sit-xs-ptbxl-100hz")
    expected = model.embed(np.stack(list(columns.values())), fs=100, leads=list(columns))
    np.testing.assert_allclose(found.iloc[:, 2:], expected, atol=5e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.parquet"]
    told = pq.read_schema(tmp_path / "out" / "x.parquet").metadata
    with safe_open(ROOT / "weights" / "sit-xs-ptbxl-100hz" / "probe-super.safetensors", framework="numpy") as file:
        sha256 = file.metadata()["model_sha256"]
    assert b"pandas" in told and json.loads(told[b"crema_lib"]) == {
        "model": "sit-xs-ptbxl-100hz", "model_sha256": sha256, "fs": 100, "readout": "mean", "precision": "no", "unit": "mV", "rate": 100.0,
        "crema_lib": crema_lib.__version__,
    }  # fmt: skip
    (1000 * pd.DataFrame(columns)).to_csv(tmp_path / "large.csv", index=False)
    words[2:3] = [str(tmp_path / "large.csv")]
    assert cli.main([*words, "--unit", "mV", "--rate", "100"]) == 0
    assert "in doubt large: its leads are too small or too large for an ECG" in capsys.readouterr().out
    assert cli.main([*words[:1], *words[2:], "--unit", "mV", "--rate", "100"]) == 1
    assert "error: the leads measure" in capsys.readouterr().err
    monkeypatch.setattr(embeddings, "embed_files", lambda *a, **k: pytest.fail("computed for nothing"))
    for out in (tmp_path / "out", tmp_path / "mine.csv" / "x.parquet"):
        assert cli.main([*words[:3], "--out", str(out)]) == 1
        assert f"{out} cannot be written" in capsys.readouterr().err
    assert cli.main([*words[:3], "--out", str(tmp_path / "x.csv")]) == 1
    assert "x.csv would be a Parquet file: give it a name that ends in .parquet with --out" in capsys.readouterr().err
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    assert cli.main(words) == 1
    assert "weights holds no model: name one with --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "reader"])
def test_readouts_that_are_offered_are_taken(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    offered = capsys.readouterr().out.partition("  --readout")[2].partition("\n  --")[0]
    assert all(name in offered for name in ("mean", "layers", "moments")) and "cls" not in offered
    words = {
        "embed": ["embed", str(ROOT / "README.md"), "--out", str(tmp_path / "x.parquet")],
        "reader": ["reader", str(simulated_store(tmp_path / "store", 20, seconds=5).path), "--checkpoint", "sit-xs-ptbxl-100hz"],
    }
    for readout in ("cls", "blocks", "tokens"):
        assert cli.main([*words[command], "--readout", readout]) == 1
        assert f"error: unknown readout '{readout}' for this SiT: known are mean, layers, moments\n" in capsys.readouterr().err


def test_the_steps_of_the_readme_lead_from_recordings_to_probabilities(tmp_path, monkeypatch, capsys):
    signals = simulate(3, seed=0, fs=500)[0] / 1000
    (tmp_path / "records").mkdir()
    for i, mv in enumerate(signals[:2]):
        wfdb.wrsamp(
            f"r{i}", 500, ["mV"] * 12, list(LEADS), p_signal=mv.T, fmt=["16"] * 12, adc_gain=[1000] * 12, baseline=[0] * 12,
            write_dir=str(tmp_path / "records"),
        )  # fmt: skip
    pd.DataFrame(signals[2].T, columns=LEADS).to_csv(tmp_path / "mine.csv", index=False)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## For your own ECGs")[2].partition("\n## ")[0]
    commands, steps = (
        [text for kind, text in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL) if kind == one] for one in ("bash", "python")
    )
    words = next(shlex.split(line, comments=True) for line in commands[0].splitlines() if " embed " in line)
    monkeypatch.chdir(tmp_path)
    assert words[:3] == ["python", "-m", "crema_lib"] and cli.main([*words[3:], "--precision", "no"]) == 0
    found = {"signal": 1000 * signals[0][[0, 1, 6, 10]]}
    for step in steps:
        exec(step, found)
    assert found["chances"].shape == (3, 5) and found["chances"].index.tolist() == ["r0", "r1", "mine"]
    assert list(found["strange"].columns) == ["distance", "percentile"]


def test_leakage_is_told_and_only_strict_fails(tmp_path, capsys):
    store = simulated_store(tmp_path / "mine", 40, seconds=5)
    assert cli.main(["leakage", str(store.path), "--strict"]) == 0
    assert "leaks: none found" in capsys.readouterr().out
    shutil.copytree(store.path, tmp_path / "copy")
    words = ["leakage", str(store.path), str(tmp_path / "copy")]
    assert cli.main(words) == 0
    assert "mine: 40 exact duplicates in other sets" in capsys.readouterr().out
    assert cli.main([*words, "--strict"]) == 1
    assert "error: recordings or patients leak: " in capsys.readouterr().err
    assert cli.main([*words, "--checkpoint", str(tmp_path)]) == 1
    assert "does not say what it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (CremaError("x"), 1), (Stopped("x", signal.SIGTERM), 143)])
def test_exit_status(error, status, monkeypatch, capsys):
    def fail(**options):
        raise error

    monkeypatch.setattr(bookbuild, "build", fail)
    assert cli.main(["book"]) == status
    assert "Traceback" not in capsys.readouterr().err
