"""The contract of a chapter, and what `notebook` does for it: parameters, data, model, record, table."""

import ast
import re
import subprocess
import sys
import types
from importlib.metadata import version

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, write_chapter

from crema_lib import bookbuild, notebook, params, runs
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError

CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
WALL = 60  # lines of a cell
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_chapters_and_the_table_of_contents_names_each():
    assert CHAPTERS
    assert sorted(ROOT / path for path in bookbuild.chapters()) == CHAPTERS
    files = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    assert [name for name in files if not any((ROOT / f"{name}{ending}").is_file() for ending in (".md", ".ipynb"))] == []


@each_chapter
def test_valid_and_clean(path):
    nb = read(path)
    nbformat.validate(nb)
    assert "widgets" not in nb.metadata
    assert nb.metadata.kernelspec.name == "python3", "papermill and Colab look for this kernel"
    for cell in code(path):
        assert not cell.outputs
        assert cell.execution_count is None
    text = "\n".join(cell.source for cell in nb.cells)
    assert not re.search(r"ipywidgets|tqdm\.auto|tqdm\.notebook|%pip|!pip", text)


@each_chapter
def test_defaults_are_those_of_the_quick_profile(path):
    quick = params.load_profile("quick")
    cell = next(cell for cell in code(path) if "parameters" in cell.metadata.get("tags", []))
    declared = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert {name: value for name, value in declared.items() if name in quick and quick[name] != value} == {}, (
        "a student who opens one chapter must meet the recordings and the model of the others"
    )


@each_chapter
def test_opens_with_what_a_reader_wants_to_know(path):
    first, second = read(path).cells[:2]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)
    text = first.source.lower()
    for word in ("you will learn", "need", "gpu", "min"):
        assert word in text, f"the first cell says nothing of '{word}'"
    assert re.search(r"cpu|cores", text)
    assert second.cell_type == "code"
    assert second.source.strip() == notebook.COLAB_CELL, "the set-up cell is the same in all chapters: crema_lib.notebook.COLAB_CELL"
    assert "hide-input" in second.metadata.tags


@each_chapter
def test_parameters_cell(path):
    cells = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    declared = {}
    for node in ast.parse(cells[0].source).body:
        assert isinstance(node, ast.AnnAssign), f"{ast.unparse(node)} is no typed assignment"
        name, kind = node.target.id, ast.unparse(node.annotation)
        assert name in params.SCHEMA, f"{name} is not in the schema"
        wanted = params.SCHEMA[name].type.__name__
        assert re.match(rf"{wanted}\b", kind), f"{name} is {kind}, the schema says {wanted}"
        lines = cells[0].source.splitlines()[node.lineno - 1 : node.end_lineno]
        assert re.search(r"#\s*\w", lines[-1]), f"{name} has no comment with its unit or meaning"
        declared[name] = ast.literal_eval(node.value)
    assert params.check(declared) == declared
    assert list(declared) == notebook.parameter_names([cells[0].source])
    assert {"profile", "seed"} <= set(declared)


@each_chapter
def test_setup_follows_the_parameters(path):
    sources = [cell.source for cell in code(path)]
    assert "parameters" in code(path)[1].metadata.get("tags", [])
    assert f'notebook.setup("{path.stem}")' in sources[2]


@each_chapter
def test_cells_are_short(path):
    assert max(len(cell.source.splitlines()) for cell in code(path)) <= WALL


@each_chapter
def test_links_to_pages_carry_their_titles(path):
    """A notebook outside the book shows no title of its own for a link without text."""
    titles = {page.name: read(page).cells[0].source if page.suffix == ".ipynb" else page.read_text() for page in (ROOT / "book").glob("*.*")
              if page.suffix in (".ipynb", ".md")}  # fmt: skip
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for shown, target in re.findall(r"\[([^\]]*)\]\((\w+\.(?:ipynb|md))\)", text):
        title = re.search(r"^# (.+)$", titles[target], re.M)[1]
        assert shown == title or re.fullmatch(r"\d\d", shown), f"the link to {target} says {shown!r}, its title is {title!r}"


@each_chapter
def test_figures_have_caption_and_alt_text(path):
    for cell in code(path):
        if re.search(r"\bplots\.(?!use_style)\w+\(|\bplt\.show\(", cell.source):
            assert_figure(cell)


def assert_figure(cell):
    mystnb = cell.metadata.get("mystnb", {})
    assert len(mystnb.get("figure", {}).get("caption", "")) > 20, f"no caption: {cell.source[:80]}"
    assert len(mystnb.get("image", {}).get("alt", "")) > 20, f"no alt text: {cell.source[:80]}"


@each_chapter
def test_ends_with_what_was_seen_exercises_and_where_to_go_next(path):
    cells = read(path).cells
    texts = [(i, cell.source) for i, cell in enumerate(cells) if cell.cell_type == "markdown"]
    headings = [(i, heading) for i, text in texts for heading in re.findall(r"^## (.+)", text, re.M)]
    (seen, one), (exercises, two), (onward, three) = headings[-3:]
    assert re.search(r"seen", one)
    assert re.search(r"^Exercises?", two)
    assert re.search(r"next", three)
    checks = "\n".join(cell.source for cell in cells[exercises : max(onward, exercises + 1)] if cell.cell_type == "code")
    assert re.search(r"\bassert\b|\bcheck", checks), "an exercise needs a check by machine"
    assert seen <= exercises <= onward


@each_chapter
def test_the_colab_address_is_that_of_the_repository(path):
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert re.findall(r"https://github\.com/[\w./-]+", read(path).cells[1].source) == [url]


# What papermill gives the first chapter, and the words of the sentence that must come back.
SLIPS = {
    "unknown": (["-p", "sede", "3"], "unknown parameter sede (did you mean seed?)"),
    "text": (["-y", "lr: 1e-4"], "parameter lr must be a number, not '1e-4': YAML reads 1e-4 as text, write 1.0e-4"),
}


def test_papermill_itself_stops_at_a_bad_parameter(tmp_path):
    started = {}
    for name, (options, _) in SLIPS.items():
        command = [sys.executable, "-m", "papermill", CHAPTERS[0], tmp_path / f"{name}.ipynb", *options, "--no-progress-bar"]
        started[name] = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for name, (_, sentence) in SLIPS.items():
        output = started[name].communicate(timeout=180)[0]
        assert started[name].returncode != 0, name
        assert f"CremaError: {sentence}" in output, output
        ran = [cell for cell in read(tmp_path / f"{name}.ipynb").cells if cell.cell_type == "code" and cell.outputs]
        error = ran[-1].outputs[-1]
        assert error.output_type == "error"
        assert len(error.traceback) == 1, "the reader sees the sentence, not our stack"


def test_papermill_from_any_folder_gives_what_the_runner_gives(project, tmp_path, python):
    draw = "import numpy as np\nimport torch\n\nvalue = float(np.random.rand() + torch.rand(1))"
    keep = """
p.data, p.records, p.fs, p.seconds = "simulated", 10, 100, 5
metric = {"name": "draw", "task": "-", "model": "-", "value": value, "low": 0, "high": 2, "n": 1, "seed": p.seed}
notebook.record(p, [metric], notebook.open_data(p))
"""
    write_chapter(project / "book" / "01_draw.ipynb", draw, keep)
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01_draw\n")
    record = project / "_runs" / "quick-s3" / "records" / "01_draw.json"
    bookbuild.build("quick", overrides=["seed=3"], render_pages=False)
    ours = runs.read(record)
    record.unlink()
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    options = ["-f", project / "params" / "quick.yaml", "-p", "seed", 3, "--no-progress-bar"]
    done = python("-m", "papermill", project / "book" / "01_draw.ipynb", "out.ipynb", *options, home=project, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    theirs = runs.read(record)
    assert theirs["metrics"] == ours["metrics"]
    assert ours["parameters"] == {"profile": "quick", "seed": 3}
    assert theirs["parameters"]["lr"] == params.load_profile("quick")["lr"], "papermill gives the whole profile, which is allowed"


def test_names_come_from_the_cells():
    cell, injected = "a: int = 1\nb: str = 'x'", "# Parameters\nb = 'y'\nc = 3\n"
    assert notebook.parameter_names(["%pip list", "import os", cell, injected, "d = 4"]) == ["a", "b", "c"]
    assert notebook.parameter_names([cell, "a: int = 2"]) == ["a"], "the last run of the cell counts"
    assert notebook.parameter_names([]) == []


def test_setup_seeds_and_derives(tmp_path, capsys):
    def draw(seed):
        names = {"seed": seed, "profile": "quick", "device": "cpu", "out": str(tmp_path)}
        cell = "\n".join(f"{name}: {type(value).__name__} = {value!r}" for name, value in names.items())
        p = notebook.setup("01_x", names, [cell])
        return p, torch.rand(3).tolist()

    p, first = draw(1)
    assert draw(1)[1] == first
    assert draw(2)[1] != first
    assert (p.run_dir, p.device, p.chapter, p.seed) == (tmp_path, "cpu", "01_x", 1)
    assert p.parameters == {"seed": 1, "profile": "quick", "device": "cpu", "out": str(tmp_path)}
    assert f"torch {torch.__version__.split('+')[0]}" in capsys.readouterr().out
    default = notebook.setup("01_x", {"seed": 4, "profile": "quick"}, ["seed: int = 4\nprofile: str = 'quick'"])
    assert default.run_dir.name == "quick-s4"


def test_a_parameter_survives_an_import_of_its_name(capsys):
    cells = [
        "seed: int = 4",
        '# Parameters\nseed = 5\nobjectives = ["mae", "simclr"]\nlr = -0.1e-1\nclip = float("nan")\n',
        "from crema_lib import objectives",
    ]
    with pytest.raises(CremaError, match="unknown parameter clip"):
        notebook.setup("01_x", {"seed": 5, "objectives": ast}, cells)
    cells[1] = cells[1].replace("clip", "# clip").replace("-0", "0")
    p = notebook.setup("01_x", {"seed": 5, "objectives": ast}, cells)
    assert (p.seed, p.objectives, p.lr) == (5, ["mae", "simclr"], 0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there():
    with pytest.raises(CremaError, match="torch sees no GPU"):
        notebook.setup("01_x", {"device": "cuda"}, ["device: str = 'cuda'"])


def test_a_record_does_not_tell_where_the_run_left_its_files(tmp_path):
    given = {
        "data": "simulated",
        "records": 10,
        "seconds": 5,
        "fs": 100,
        "out": str(tmp_path),
        "checkpoints": [f"MAE={tmp_path}/mae/model"],
    }
    p = notebook.setup("01_x", given, ["\n".join(f"{name}: {type(value).__name__} = {value!r}" for name, value in given.items())])
    store = simulated_store(tmp_path / "store", 10, fs=100, seconds=5)
    kept = notebook.record(p, [], store)
    assert kept["parameters"] == given | {"out": "", "checkpoints": ["MAE=mae/model"]}
    assert str(tmp_path) not in (tmp_path / "records" / "01_x.json").read_text()


def test_open_data(project, monkeypatch):
    monkeypatch.setenv("CREMA_DATA", str(project / "data"))
    p = types.SimpleNamespace(data="simulated", records=20, fs=100, seconds=5)
    store = notebook.open_data(p)
    assert len(store) == 20
    assert notebook.open_data(p).meta["sha256"] == store.meta["sha256"]
    with pytest.raises(CremaError, match="number of records to simulate"):
        notebook.open_data(types.SimpleNamespace(**{**vars(p), "records": 0}))
    with pytest.raises(CremaError, match=r"python -m crema_lib data prepare ptb-xl --fs 100 --seconds 5"):
        notebook.open_data(types.SimpleNamespace(**{**vars(p), "data": "ptb-xl"}))


def test_the_model_of_the_chapter_before_or_what_stands_in(project, capsys):
    def model(path):
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        return path

    p = types.SimpleNamespace(run_dir=project / "_runs" / "quick-s0", checkpoint="")
    with pytest.raises(CremaError, match="run the chapter on pretraining first"):
        notebook.checkpoint(p)
    stand_in = model(project / "weights" / "small")
    assert notebook.checkpoint(p) == stand_in
    assert "small from weights/ stands in" in capsys.readouterr().out
    own = model(p.run_dir / "pretrain" / "model")
    assert notebook.checkpoint(p) == own
    (own / "objective.json").write_text('{"class": "CRMAE"}')
    assert notebook.checkpoint(p) == own
    assert capsys.readouterr().out == ""
    (own / "objective.json").write_text('{"class": "JEPA"}')
    assert notebook.checkpoint(p) == own
    assert "pretrained with JEPA: it is meant wherever this chapter says CR-MAE" in capsys.readouterr().out
    p.checkpoint = "weights/small"
    assert notebook.checkpoint(p) == stand_in
    p.checkpoint = "weights/none"
    with pytest.raises(CremaError, match="holds no model"):
        notebook.checkpoint(p)


def test_table_shows_caption_and_dashes_and_no_index():
    frame = pd.DataFrame({"model": ["a", "b"], "AUROC": [0.87654, None], "remark": ["x" * 25, ""]})
    html = notebook.table(frame, "What came out").to_html()
    assert "What came out" in html
    assert "0.877" in html
    assert "–" in html
    assert "row_heading" not in html
    assert re.findall(r"td\.(col\d) \{\s*white-space: nowrap", html) == ["col0"], "a short text is not broken, a long one may be"


def test_table_shows_a_value_and_the_ends_of_its_interval_in_one_column():
    values = {"value": [0.87654, None, -0.5], "low": [0.8, None, None], "high": [0.9, None, None]}
    gains = {"gain": [0.01, 0.02, 0.03], "gain_low": [-0.01, 0.0, 0.01], "gain_high": [0.03, 0.04, 0.05]}
    frame = pd.DataFrame({"model": ["a", "b", "c"], **values, "n": [1, 2, 3], **gains})
    joined = notebook.intervals(frame, 2)
    assert list(joined) == ["model", "value", "n", "gain"]
    assert joined["value"].fillna("missing").tolist() == ["0.88 [0.80,\u00a00.90]", "missing", "-0.50"], "a value without ends stands alone"
    assert joined["gain"].tolist() == ["0.01 [-0.01,\u00a00.03]", "0.02 [0.00,\u00a00.04]", "0.03 [0.01,\u00a00.05]"]
    html = notebook.table(frame, "With intervals", 2).to_html()
    assert "0.88 [0.80,\u00a00.90]" in html and "–" in html and "high" not in html
    assert re.findall(r"td\.(col\d) \{\s*text-align: right;\s*white-space: nowrap", html) == ["col1", "col3"]
    assert notebook.intervals(frame[["model", "n"]]).equals(frame[["model", "n"]]), "nothing to join"


def test_a_sentence_that_ends_a_cell_is_shown_without_quotes(monkeypatch):
    from IPython.core.formatters import DisplayFormatter

    shell = types.SimpleNamespace(display_formatter=DisplayFormatter())
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    notebook._plain_sentences()

    def shown(value):
        return shell.display_formatter.format(value)[0]["text/plain"]

    assert shown("Nothing was asked.") == "Nothing was asked."
    assert shown(["I", "II"]) == "['I', 'II']"
    assert shown({"a": "b"}) == "{'a': 'b'}"


def test_the_colab_cell_installs_without_touching_torch_and_numpy(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = notebook.COLAB_CELL.replace("/content", str(tmp_path))
    exec(compile(source, "colab", "exec"), {})
    clone, install = calls
    assert clone[:2] == ["git", "clone"]
    assert install[-2:] == ["-e", str(tmp_path / "crema-book")]
    kept = (tmp_path / "keep.txt").read_text().split()
    assert [line.split("==")[0] for line in kept] == ["torch", "numpy"]
    assert kept[0].split("==")[1] == version("torch")
    assert sys.path[0] == str(tmp_path / "crema-book")


def test_a_value_for_the_sentences_is_printed_where_their_markup_is_unknown(monkeypatch, capsys):
    kept = {}
    monkeypatch.setitem(sys.modules, "myst_nb", types.SimpleNamespace(glue=lambda name, value, display: kept.update({name: value})))
    notebook.glue("gain", "+0.020")
    assert kept == {"gain": "+0.020"} and not capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    notebook.glue("gain", "+0.030")
    assert kept == {"gain": "+0.030"} and capsys.readouterr().out == "gain = +0.030\n"


def test_the_colab_cell_does_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("nothing may run outside Colab"))
    before = list(sys.path)
    exec(compile(notebook.COLAB_CELL, "colab", "exec"), {})
    assert sys.path == before


def test_other_data_sets_are_opened_by_name_and_one_that_is_not_prepared_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CREMA_DATA", str(tmp_path))
    store = simulated_store(tmp_path / "stores" / "mine-100hz-10s", 20, seed=0)
    found = notebook.open_others(types.SimpleNamespace(others=["mine", "georgia"]))
    assert [one.path for one in found] == [store.path]
    assert "left out: georgia" in capsys.readouterr().out
    with pytest.raises(CremaError, match="cannot open the data set georgai"):
        notebook.open_others(types.SimpleNamespace(others=["georgai"]))
    simulated_store(tmp_path / "stores" / "georgia-100hz-10s", 20, seed=0)
    simulated_store(tmp_path / "stores" / "georgia-100hz-5s", 20, seed=0, seconds=5)
    with pytest.raises(CremaError, match="it is prepared as georgia-100hz-10s, georgia-100hz-5s"):
        notebook.open_others(types.SimpleNamespace(others=["georgia"]))
