"""Weights: half precision, checksums, names, the hub; that nothing is unpickled; and what half precision costs."""

import hashlib
import json
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from crema_lib import __main__ as cli
from crema_lib import objectives, publish, runs, weights
from crema_lib.data import labels, splits
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.leakage import remember
from crema_lib.probes.linear import fit_probe
from crema_lib.sit import SiT

FILES = ["config.json", "heads.safetensors", "model.safetensors", "objective.json", "seen.safetensors"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 400, seed=0, fs=100, seconds=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    encoder = SiT(fs=100, seconds=5, width=32, depth=2, heads=2, scale=(0.1477,) * 12)
    objectives.build("cr_mae", encoder, decoder_width=32, decoder_depth=1).save_pretrained(folder)
    remember(folder, store, [0, 1, 2])
    return folder


@pytest.fixture
def published(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    return publish.publish(trained, "small")


def test_matrices_are_halved_and_all_else_stays(trained, published):
    assert sorted(path.name for path in published.iterdir()) == sorted([*FILES, "SHA256SUMS"])
    for file in ("model.safetensors", "heads.safetensors"):
        before, after = load_file(trained / file), load_file(published / file)
        assert before.keys() == after.keys()
        for key, value in before.items():
            half = value.ndim > 1
            assert after[key].dtype == (torch.float16 if half else value.dtype), key
            assert torch.equal(after[key], value.half() if half else value), key
    for file in ("config.json", "objective.json", "seen.safetensors"):
        assert (published / file).read_bytes() == (trained / file).read_bytes()
    count = sum(value.numel() for key, value in load_file(trained / "model.safetensors").items() if key != "scale")
    assert weights.stored(published) == ("float16", count)
    assert weights.stored(trained) == ("float32", count)


def test_what_is_loaded_is_in_single_precision(trained, published):
    signal = 0.2 * torch.randn(4, 12, 500)
    before, after = SiT.from_pretrained(trained), SiT.from_pretrained("small")
    assert {value.dtype for value in after.state_dict().values()} == {torch.float32}
    assert not after.training
    assert torch.equal(after.scale, before.scale)
    with torch.no_grad():
        torch.testing.assert_close(after.features(signal), before.features(signal), atol=5e-3, rtol=5e-3)
        assert not torch.equal(after.features(signal), before.features(signal))
    model = objectives.load("small")
    assert type(model) is objectives.CRMAE and model.decoder_width == 32
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_names_and_folders(trained, published, tmp_path, monkeypatch):
    assert weights.names() == ["small"]
    monkeypatch.chdir(tmp_path.parent)
    for name in ("small", "weights/small", published, str(published)):
        assert weights.locate(name) == published
    assert SiT.from_pretrained("small", drop_path=0.1).blocks[1].drop_path1.drop_prob == 0.1
    with pytest.raises(CremaError, match=r"smal is no folder and no model in weights/ \(there: small\); a model of the hub is named"):
        SiT.from_pretrained("smal")
    with pytest.raises(CremaError, match="no folder and no model"):
        objectives.load(tmp_path / "none" / "here")


def test_a_folder_on_the_way_comes_before_a_name(trained, published, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "elsewhere" / "small")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert weights.locate("small").resolve() == tmp_path / "elsewhere" / "small"


def test_a_hub_id_becomes_a_folder_of_safetensors_and_json(published, monkeypatch):
    asked = []

    def fetch(name, **options):
        asked.append((name, options))
        return str(published)

    monkeypatch.setattr(weights, "snapshot_download", fetch)
    model = SiT.from_pretrained("owner/model", revision="abc", drop_path=0.1)
    assert type(objectives.load("owner/model")) is objectives.CRMAE
    patterns = {"allow_patterns": ["*.safetensors", "*.json", "SHA256SUMS"]}
    assert asked == [("owner/model", {**patterns, "revision": "abc"}), ("owner/model", patterns)]
    assert model.blocks[1].drop_path1.drop_prob == 0.1

    def refuse(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(weights, "snapshot_download", refuse)
    with pytest.raises(CremaError, match=r"owner/model is no folder and no model .* the hub does not give it: no route to the hub"):
        SiT.from_pretrained("owner/model")


# --- checksums


def test_the_list_is_that_of_sha256sum(published):
    lines = (published / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256((published / file).read_bytes()).hexdigest()}  {file}" for file in FILES]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=published, check=True, capture_output=True)


@pytest.mark.parametrize("file", [*weights.ENCODER, *weights.HEADS])
def test_a_damaged_file_is_told_by_its_name(published, file):
    path = published / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CremaError, match=rf"{file} is damaged or was exchanged: its SHA-256 is not that of SHA256SUMS"):
        (SiT.from_pretrained if file in weights.ENCODER else objectives.load)("small")
    path.unlink()
    with pytest.raises(CremaError, match=rf"{file} is missing"):
        objectives.load("small")


def test_exchanged_weights_that_would_fit_are_refused(published):
    state = load_file(published / "model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in state.items()}, published / "model.safetensors", {"format": "pt"})
    with pytest.raises(CremaError, match=r"model\.safetensors is damaged or was exchanged"):
        SiT.from_pretrained("small")
    with pytest.raises(CremaError, match=r"model\.safetensors is damaged or was exchanged"):
        objectives.load("small")
    (published / "SHA256SUMS").unlink()
    assert SiT.from_pretrained("small").norm.weight.abs().max() == 0, "without a list there is nothing to compare with"


def test_a_list_that_does_not_hold(published):
    sums = published / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "config" not in line))
    with pytest.raises(CremaError, match=r"does not list config\.json: the file was added after publishing"):
        SiT.from_pretrained("small")
    for text in (lines[0][:-1] + " and more\n" + "short  config.json\n", "\xff" * 20):
        sums.write_text(text)
        with pytest.raises(CremaError, match="SHA256SUMS is damaged"):
            SiT.from_pretrained("small")


def test_nothing_is_unpickled(trained, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    folder = shutil.copytree(trained, tmp_path / "trap")
    torch.save({"a": Trap()}, folder / "pytorch_model.bin")

    def never(*_, **__):
        raise AssertionError("a pickle was read")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, never)
    assert SiT.from_pretrained(folder).width == 32
    assert type(objectives.load(folder)) is objectives.CRMAE
    shutil.copyfile(folder / "pytorch_model.bin", folder / "heads.safetensors")
    with pytest.raises(CremaError, match="holds no readable objective"):
        objectives.load(folder)
    for text in ("{", "[]"):
        (folder / "objective.json").write_text(text)
        with pytest.raises(CremaError, match="holds no objective of a known class"):
            objectives.load(folder)
    shutil.copyfile(folder / "pytorch_model.bin", folder / "model.safetensors")
    for load in (SiT.from_pretrained, weights.stored):
        with pytest.raises(CremaError, match="can"):
            load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CremaError, match="holds no Signal Transformer"):
        SiT.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


# --- publishing


def test_types_that_weights_do_not_fit():
    state = {"matrix": torch.full((2, 2), 1e5), "vector": torch.full((2,), 1e5), "count": torch.tensor(3)}
    assert torch.equal(weights.rounded(state, "bfloat16")["matrix"], state["matrix"].bfloat16())
    with pytest.raises(CremaError, match="matrix has weights that are not finite as float16"):
        weights.rounded(state, "float16")
    with pytest.raises(CremaError, match="vector has weights that are not finite as float32"):
        weights.rounded({"vector": torch.tensor([1, torch.nan])}, "float32")
    with pytest.raises(CremaError, match="unknown type of weights 'int8': known are float32, float16, bfloat16"):
        weights.rounded(state, "int8")


def test_what_cannot_be_published_leaves_an_earlier_model_as_it_was(trained, published, tmp_path):
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    (published / "README.md").write_text("a card")
    for name in ("Small", "../small", "", ".x"):
        with pytest.raises(CremaError, match="is no name for a model"):
            publish.publish(trained, name)
    part = shutil.copytree(trained, tmp_path / "part")
    (part / "seen.safetensors").unlink()
    (part / "objective.json").unlink()
    with pytest.raises(CremaError, match=r"no whole trained model: it lacks objective\.json, seen\.safetensors"):
        publish.publish(part, "small")
    broken = shutil.copytree(trained, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["stem.weight"][0, 0] = torch.inf
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CremaError, match="weights that are not finite"):
        publish.publish(broken, "small")
    assert {path.name: path.read_bytes() for path in published.iterdir() if path.name != "README.md"} == before
    assert [path.name for path in published.parent.iterdir()] == ["small"]
    publish.publish(trained, "small", "bfloat16")
    assert weights.stored(published)[0] == "bfloat16"
    assert (published / "README.md").read_text() == "a card", "until the cards are written anew"
    publish.publish("small", "again", "float32")
    assert weights.stored(published.parent / "again")[0] == "float32"


def test_the_committed_weights_are_whole_and_small():
    files = [path for path in (ROOT / "weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ""}
    folders = [path.parent for path in files if path.name == "config.json"]
    assert folders
    for folder in folders:
        assert weights.stored(folder)[0] in ("float16", "bfloat16")
        weights.verify(folder, [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json")])
        assert (folder / "SHA256SUMS").is_file() and (folder / "README.md").is_file()
        assert type(SiT.from_pretrained(folder.name)) is SiT
        assert objectives.load(folder.name).encoder.n_patches > 0


# --- what it costs


def test_precision_is_that_of_one_probe_on_rounded_features(trained, store):
    metrics, moved = publish.precision(trained, store, tasks=("super",), readout="mean", bootstrap=50)
    found = {(m["name"], m["model"]): m for m in metrics}
    encoder = SiT.from_pretrained(trained)
    coarse = SiT.from_pretrained(trained)
    coarse.load_state_dict({key: value.bfloat16() if value.ndim > 1 else value for key, value in encoder.state_dict().items()})
    plain, rough = (embed_store(one, store) for one in (encoder, coarse))
    targets, _, kept = labels.matrix(store.table, "super")
    train, valid, test = splits.parts(store.table, kept)
    probe, _ = fit_probe((plain[train], targets[train]), (plain[valid], targets[valid]))
    for fold, rows in ((9, valid), (10, test)):
        scores = [roc_auc_score(targets[rows], probe.scores(x[rows]), average="macro") for x in (plain, rough)]
        assert found[f"macro AUROC, fold {fold}", "float32"]["value"] == pytest.approx(scores[0])
        assert found[f"macro AUROC, fold {fold}", "bfloat16"]["value"] == pytest.approx(scores[1])
        gain = found[f"macro AUROC, fold {fold}", "bfloat16 - float32"]
        assert gain["value"] == pytest.approx(scores[1] - scores[0], abs=1e-12)
        assert gain["low"] <= gain["high"] and gain["n"] == targets.shape[1]
    judged = np.concatenate(splits.parts(store.table)[1:])
    change = ((rough - plain) / plain[judged].std(0))[judged]
    assert moved["bfloat16"] == pytest.approx(np.sqrt((change**2).mean()), rel=1e-3)
    assert 0 < moved["float16"] < moved["bfloat16"]


def test_the_gentlest_type_is_chosen_on_fold_9():
    def row(fold, model, value):
        return {"name": f"macro AUROC, fold {fold}", "task": "all", "model": model, "value": value}

    metrics = [row(9, "float32", 0.9), row(9, "float16 - float32", -0.2), row(9, "bfloat16 - float32", 0.1)]
    record = {"extra": {"moved": {"float16": 0, "bfloat16": 0}}, "metrics": metrics}
    assert publish.gentlest(record) == "bfloat16"
    record["metrics"] += [row(10, "bfloat16 - float32", 9)]
    assert publish.gentlest(record) == "bfloat16", "fold 10 has no say"


def test_the_command_measures_publishes_and_says_what_is_next(trained, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    monkeypatch.setattr(publish.precision, "__kwdefaults__", {**publish.precision.__kwdefaults__, "tasks": ("super",), "bootstrap": 20})
    assert cli.main(["publish", str(trained), "mine", "--measure", str(store.path)]) == 0
    record = runs.read(tmp_path / "results" / "ptbxl" / "precision.json")
    assert record["data"] == {"name": "simulated", "records": 400, "sha256": store.meta["sha256"]}
    assert record["extra"]["config"] == json.loads((trained / "config.json").read_text())
    assert publish.gentlest(record) in ("float16", "bfloat16")
    assert f"{tmp_path / 'weights' / 'mine'}: next, python -m crema_lib cards" in capsys.readouterr().out
    assert cli.main(["publish", "mine", "again", "--measure", str(store.path)]) == 1
    assert "are float16 already: give the folder of the training run" in capsys.readouterr().err
    assert not (tmp_path / "weights" / "again").exists()
