"""The public pages: what is kept of a run, what is not, and what becomes of a page whose cells have changed."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT, write_chapter
from nbformat.v4 import new_markdown_cell, new_output
from PIL import Image
from test_book import browser  # noqa: F401 - a fixture

from crema_lib import bookbuild, runs, site
from crema_lib.errors import CremaError

CHAPTERS = bookbuild.chapters()
MEGABYTES = 8  # all that is kept of a run
PLACES = r"(?<![\w.:/<~])/(?:data|home|root|tmp|usr|work|Users|content|opt|mnt|var)/[\w./-]+"


def picture(width=800, height=60):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shown(**data):
    return new_output("execute_result", data={f"{kind.replace('_', '/')}": value for kind, value in data.items()}, execution_count=1)


def glued(name, text):
    return new_output(
        "display_data",
        data={"application/papermill.record/text/plain": repr(text)},
        metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}},
    )


SOURCES = ["print('where')", "table", "draw", "interactive", "rows", "fail", "old", "committed", "glued"]


@pytest.fixture
def book(project):
    """A book of two chapters, of which the first was run: (project folder, source, executed notebook)."""
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01_ran\n  - file: book/02_not\n")
    source, executed = project / "book" / "01_ran.ipynb", project / "executed" / "any.ipynb"
    parameters = (
        'profile: str = "quick"  # profile\nseed: int = 0  # start\nwave_folder: str = ""  # folder\ncheckpoints: list = []  # models'
    )
    for path in (source, project / "book" / "02_not.ipynb"):
        write_chapter(path, *SOURCES, parameters=parameters)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.metadata["tags"] = cell.metadata.get("tags", [])
            cell.metadata["tags"] += {"rows": ["single-records"], "draw": ["draws-recordings"], "committed": ["remove-on-site"]}.get(
                cell.source, []
            )
            if cell.source in ("draw", "interactive"):
                cell.metadata["mystnb"] = {"figure": {"caption": f"The caption of {cell.source}."}, "image": {"alt": "A picture."}}
        heading = new_markdown_cell("## On real recordings\n\nPrinted from the record.", metadata={"tags": ["remove-on-site"]})
        notebook.cells.insert(10, heading)
        notebook.cells.append(new_markdown_cell("It is {glue:text}`found` here and {glue:text}`lost` there."))
        nbformat.write(notebook, path)

    notebook = nbformat.read(source, as_version=4)
    outputs = {
        "print('where')": [
            new_output("stream", name="stdout", text="read /data/stores/ptb-xl: 3/4 of"),
            new_output("stream", name="stdout", text=" it\ncrema_lib 0.1.0 (abc1234, changed) · cpu: x86_64 processor, 2 cores\n"),
            new_output("stream", name="stderr", text="a warning"),
        ],
        "table": [shown(text_html="<table><tr><td>/home/me/secret.csv</td><td>.93</td></tr></table>", text_plain="<Styler>")],
        "draw": [shown(image_png=picture(), text_plain="<Figure>")],
        "interactive": [shown(text_html="<figure><svg><title>00065_lr</title></svg></figure>", text_plain="a map")],
        "rows": [shown(text_html="<table><tr><td>00001_lr</td></tr></table>")],
        "fail": [new_output("stream", name="stdout", text="so far"), new_output("error", ename="E", evalue="", traceback=["/tmp/x.py"])],
        "old": [new_output("stream", name="stdout", text="of before")],
        "committed": [shown(text_html="<table><tr><td>from the record</td></tr></table>"), glued("found", "0.93")],
        "glued": [],
    }
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count, cell.outputs = 1, outputs.get(cell.source, [])
    notebook.cells[-2].execution_count = None  # the run did not come so far
    given = {"profile": "quick", "seed": 7, "wave_folder": "/data/waves", "out": "/data/runs", "lr": 1e-3}
    given["checkpoints"] = ["MAE, 4 passes=/data/runs/mae/model", "quick-s0/model"]
    notebook.metadata["papermill"] = {"start_time": "2026-11-02T10:00:00", "duration": 3.0, "exception": None, "parameters": given}
    executed.parent.mkdir()
    nbformat.write(notebook, executed)
    text = source.read_text()
    assert text.count('"old"') == 1
    source.write_text(text.replace('"old"', '"new"'))
    return project, source, executed


def outputs_of(kept, source):
    return kept["cells"][site.key(source)]


def test_what_is_kept_of_a_run_and_what_is_not(book):
    project, _, executed = book
    (path,) = site.collect(executed.parent)
    assert path == project / "results" / "quick" / "pages" / "01_ran.json"
    text, kept = path.read_text(), json.loads(path.read_text())
    assert (kept["chapter"], kept["profile"], kept["date"]) == ("01_ran", "quick", "2026-11-02")
    assert (kept["commit"], kept["device"]) == ("abc1234", "x86_64 processor, 2 cores")
    shown = {"profile": "quick", "seed": 7, "wave_folder": "…/waves", "checkpoints": ["MAE, 4 passes=…/model", "quick-s0/model"]}
    assert kept["parameters"] == shown, "of a folder the last part, and nothing that the chapter does not declare"
    (printed,) = outputs_of(kept, "print('where')")
    assert printed["text"].startswith("read …/ptb-xl: 3/4 of it\n")
    (table,) = outputs_of(kept, "table")
    assert table["data"] == {"text/html": "<table><tr><td>…/secret.csv</td><td>.93</td></tr></table>"}
    for source in ("interactive", "rows"):
        assert [output["data"] for output in outputs_of(kept, source)] == [{"text/markdown": site.LEFT_OUT}]
    assert [output["metadata"]["scrapbook"]["name"] for output in outputs_of(kept, "committed")] == ["found"]
    for gone in ("fail", "old", "glued"):
        assert site.key(gone) not in kept["cells"]
    for word in ("_lr", "a warning", "from the record", "Styler", "/data", "/home", "/tmp"):
        assert word not in text


def test_pictures_become_small_and_stay_whole():
    before, after = picture(width=2400), site._smaller(picture(width=2400))
    image = Image.open(io.BytesIO(base64.b64decode(after)))
    assert image.mode == "P" and image.format == "PNG"
    assert image.size == (site.WIDTH, round(60 * site.WIDTH / 2400))
    assert len(after) < len(before) / 3
    assert len(image.getcolors(1000)) <= site.COLOURS
    plain = Image.new("RGBA", (40, 30), (0, 114, 178, 255))
    plain.putpixel((0, 0), (0, 0, 0, 0))
    file = io.BytesIO()
    plain.save(file, "PNG")
    same = Image.open(io.BytesIO(base64.b64decode(site._smaller(base64.b64encode(file.getvalue()).decode())))).convert("RGB")
    assert (same.size, same.getpixel((5, 5)), same.getpixel((0, 0))) == ((40, 30), (0, 114, 178), (255, 255, 255))


def test_outputs_come_back_where_their_source_is_unchanged(book, monkeypatch, capsys):
    project, source, executed = book
    site.collect(executed)
    typeset = {}
    monkeypatch.setattr(bookbuild, "typeset", lambda pages, out: typeset.update(pages) or out)
    assert site.render("quick") == project / "_build" / "site"
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("  01_ran: 3 cells without output")
    assert said.splitlines()[1:] == ["    fail", "    new", "    glued", "  02_not: not run with quick yet"]

    page = typeset[Path("book/01_ran.ipynb")]
    nbformat.validate(page)
    cells = {cell.source.splitlines()[0]: cell for cell in page.cells}
    assert cells["print('where')"].outputs[0].text.startswith("read …/ptb-xl")
    assert ".93" in cells["table"].outputs[0].data["text/html"]
    assert cells["new"].outputs == cells["fail"].outputs == cells["glued"].outputs == []
    assert cells["# Parameters of this run"].source.splitlines()[2:4] == ["profile = 'quick'", "seed = 7"]
    assert "hide-input" in cells["# Parameters of this run"].metadata.tags
    assert cells["draw"].metadata.mystnb.figure.caption == "The caption of draw. Simulated."
    assert cells["interactive"].outputs[0].data == {"text/markdown": site.LEFT_OUT}
    assert "figure" not in cells["interactive"].metadata.mystnb, "no caption without its picture"
    assert cells["committed"].metadata.tags == ["remove-cell"] and site._is_glue(cells["committed"].outputs[0])
    text = [cell.source for cell in page.cells if cell.cell_type == "markdown"]
    assert text[2:] == ["## In numbers", "It is {glue:text}`found` here and – there."]
    repository = "https://github.com/crema-book/crema-book"
    assert "Run of 2 November 2026 with the profile `quick`" in text[1] and "x86-64 processor, 2 cores" in text[1]
    assert f"({repository}/blob/main/book/01_ran.ipynb)" in text[1] and f"({repository}/commit/abc1234)" in text[1]
    other = typeset[Path("book/02_not.ipynb")]
    assert "has not been run on real recordings yet" in other.cells[1].source
    assert "{glue" not in other.cells[-1].source
    assert all(not cell.outputs for cell in bookbuild.read(source).cells if cell.cell_type == "code"), "the source is untouched"


def test_a_page_says_how_many_of_its_cells_are_younger_than_its_commit(book, monkeypatch):
    project, source, executed = book

    def git(*args):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", "-C", project, *identity, *args], check=True, capture_output=True, text=True).stdout.strip()

    def line():
        return site.page(Path("book/01_ran.ipynb"), "quick")[0].cells[1].source

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    (path,) = site.collect(executed)
    before = path.read_text()
    assert site.mark_redrawn(path) is None and path.read_text() == before, "a commit that is not in this clone"
    git("init")
    git("add", "book")
    git("commit", "-m", "a")
    page = {**json.loads(before), "commit": git("rev-parse", "--short", "HEAD")}
    path.write_text(json.dumps(page))
    assert site.mark_redrawn(path) == [] and "redrawn" not in line()
    assert list(json.loads(path.read_text()))[-1] == "cells"

    text = source.read_text()
    for cell in ("print('where')", "table", "committed"):
        assert text.count(json.dumps(cell)) == 1
        text = text.replace(json.dumps(cell), json.dumps(f"{cell}  # anew"))
        page["cells"][site.key(f"{cell}  # anew")] = page["cells"][site.key(cell)]
    page["cells"][site.key("gone")] = page["cells"][site.key("table")]
    source.write_text(text)
    path.write_text(json.dumps(page))
    assert site.mark_redrawn(path) == [site.key(cell) for cell in ("print('where')  # anew", "table  # anew", "committed  # anew", "gone")]
    assert " · 2 of its cells changed or were redrawn later · " in line(), "those that stand on the page and show more than a value"


def test_the_committed_pages_note_what_was_redrawn(kept, tmp_path):
    for path in kept:
        noted = json.loads(path.read_text()).get("redrawn", [])
        found = site.mark_redrawn(shutil.copy(path, tmp_path))
        assert found in (None, noted), f"{path.name}: note what was redrawn with site.mark_redrawn"  # None: a clone without its commit


PAPER = """
<html data-theme="dark"><style>
html[data-theme="dark"] { --pst-color-text-base: #ced6dd; --pst-color-background: #121212; }
html[data-theme="dark"] .highlight .k { color: #dcc6e0; }
html[data-theme="dark"] img:not(.only-dark) { filter: brightness(.8); }
body { color: var(--pst-color-text-base); background: var(--pst-color-background); }
</style><style>%s</style><body>
<div class="highlight"><pre><span class="k">def</span></pre></div><img alt="">
<div class="math"><mjx-container style="display: block">a long equation</mjx-container></div>
<div class="cell"><details class="hide above-input"><summary>Show</summary><p id="code">folded code</p></details></div>
<div class="cell"><details class="hide below-input"><summary id="fold">Show</summary><p id="table">folded table</p></details></div>
"""
COMPUTED = """() => {
  const style = (where, name) => getComputedStyle(document.querySelector(where))[name]
  const shown = where => document.querySelector(where).checkVisibility()
  return {text: style("body", "color"), paper: style("body", "backgroundColor"), code: style(".k", "color"),
          picture: style("img", "filter"),
          equation: [style("div.math", "overflowX"), style("mjx-container", "overflowX"), style("mjx-container", "overflowY")],
          folded: ["#code", "#table", "#fold"].filter(shown)}
}"""


def test_on_paper_nothing_is_cut_or_light_and_folded_outputs_are_there(browser):  # noqa: F811
    page = browser.new_page()
    page.set_content(PAPER % (ROOT / "book" / "_static" / "book.css").read_text())
    screen = page.evaluate(COMPUTED)
    assert screen["text"] == "rgb(206, 214, 221)" and screen["equation"] == ["auto", "auto", "hidden"] and screen["folded"] == ["#fold"]
    page.emulate_media(media="print")
    dark = "rgb(34, 40, 50)"
    assert page.evaluate(COMPUTED) == {
        "text": dark,
        "paper": "rgb(255, 255, 255)",
        "code": dark,
        "picture": "none",
        "equation": ["visible"] * 3,
        "folded": ["#table"],
    }
    page.close()


def test_real_recordings_are_credited(book):
    assert site._source({"data": "ptb-xl"}) == "Source: PTB-XL, CC BY 4.0."
    line = site._run_line(
        Path("book/01_ran.ipynb"),
        {
            "profile": "ptbxl", "date": "2026-11-21", "commit": None, "device": None,
            "parameters": {"data": "ptb-xl", "others": ["challenge-2021-sample", "mine"]},
        },
    )  # fmt: skip
    assert "[ptb-xl](https://physionet.org/content/ptb-xl/1.0.3/) ({cite:t}`wagner2020ptbxl`, CC BY 4.0)" in line
    assert "{cite:t}`reyna2021will`" in line and "`mine`" in line
    assert "None" not in line and "[record]" not in line


def test_what_cannot_be_collected_or_shown(book, tmp_path):
    _, source, executed = book
    (tmp_path / "empty").mkdir()
    with pytest.raises(CremaError, match="holds no notebook: give an executed chapter"):
        site.collect(tmp_path / "empty")
    killed = bookbuild.read(executed)
    killed.metadata["papermill"]["duration"] = None
    nbformat.write(killed, tmp_path / "01_killed.ipynb")
    for path in (source, tmp_path / "01_killed.ipynb"):
        with pytest.raises(CremaError, match=r"papermill has not run .* to its end: give the notebook of a run that has ended"):
            site.collect(path)
    write_chapter(tmp_path / "99_other.ipynb", "1")
    with pytest.raises(CremaError, match="is no chapter of this book"):
        site.collect(tmp_path / "99_other.ipynb")
    (path,) = site.collect(executed)
    for damaged in ("{", "{}", "[]"):
        path.write_text(damaged)
        with pytest.raises(CremaError, match="holds no kept outputs: collect the chapter again"):
            site.page(Path("book/01_ran.ipynb"), "quick")


@pytest.fixture(scope="module")
def kept():
    return sorted(site.pages_folder("ptbxl").glob("*.json"))


def test_the_committed_pages_are_small_and_name_no_machine_and_no_recording(kept):
    assert kept
    assert sum(path.stat().st_size for path in kept) < 1e6 * MEGABYTES
    known = {path.stem for path in CHAPTERS}
    for path in kept:
        page = json.loads(path.read_text())
        assert page["chapter"] == path.stem in known
        outputs = [output for outputs in page["cells"].values() for output in outputs]
        for output in outputs:
            data = {kind: text for kind, text in output.get("data", {}).items() if kind != "image/png"}
            text = json.dumps([output.get("text", ""), data])
            assert not re.search(PLACES, text), text[:300]
            assert not re.search(r"\b\d{5}_[lh]r\b", text), "the name of a recording of PTB-XL"
            assert "<script" not in text and "<svg" not in text


def texts(value):
    """All texts of a JSON value but the pictures."""
    if isinstance(value, dict):
        return [text for name, entry in value.items() if name != "image/png" for text in texts(entry)]
    return [text for entry in value for text in texts(entry)] if isinstance(value, list) else [value] if isinstance(value, str) else []


def test_no_committed_record_and_no_page_tells_a_path_of_a_machine():
    found = sorted((ROOT / "results").rglob("*.json"))
    assert found
    for path in found:
        for text in texts(json.loads(path.read_text(encoding="utf-8"))):
            assert runs.no_paths(text) == text and not re.search(PLACES, text), f"{path.name}: {text[:300]}"


def test_the_tags_are_where_the_site_looks_for_them():
    for path in CHAPTERS:
        cells = bookbuild.read(ROOT / path).cells
        real = [cell for cell in cells if re.match(r"## .*real recordings", cell.source)]
        assert all("remove-on-site" in cell.metadata.get("tags", []) for cell in real), f"{path}: the section repeats the run above it"
        for cell in cells:
            if "draws-recordings" in cell.metadata.get("tags", []):
                assert cell.metadata["mystnb"]["figure"]["caption"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, python):
    """The rendered site of this book."""
    out = tmp_path_factory.mktemp("site")
    done = python("-m", "crema_lib", "site", "--out", out)
    assert done.returncode == 0, done.stderr
    return out / "html" / "book"


def test_the_site_shows_what_was_kept(pages, kept):
    for path in kept:
        html = (pages / f"{path.stem}.html").read_text()
        page = json.loads(path.read_text())
        assert "Run of" in html and "run-shown" in html
        assert not re.search(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']https?://(?![^"']*/book/)""", html), (
            "nothing from outside"
        )
        hashes = {site.key(cell.source) for cell in bookbuild.read(ROOT / "book" / f"{path.stem}.ipynb").cells}
        drawn = sum("image/png" in one.get("data", {}) for at, outputs in page["cells"].items() if at in hashes for one in outputs)
        assert html.split("<article")[1].count("cell_output") and html.count("<img") >= drawn > 0
