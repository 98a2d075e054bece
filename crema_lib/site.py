"""The public pages: the book's sources with the outputs of a run on real recordings, which are kept in the repository.

executed NN_x.ipynb ── collect ──▶ results/PROFILE/pages/NN_x.json ─┐
book/NN_x.ipynb ────────────────────────────────────────────────────┴▶ typeset, no kernel ──▶ _build/site/html

What is kept of a cell is found again by a hash of its source, so a cell that has changed since the run shows no output until it is redrawn
and put into the page; `mark_redrawn` notes such cells, and the page says how many there are. What a chapter quotes of the committed records
is computed anew, see `words`: a page never quotes a record that has been replaced since. Three tags of cells in the chapters are read here:
`remove-on-site` (tables and figures of the committed record, which on the site would repeat the run above them), `single-records` (the
output names single recordings and is not kept), `draws-recordings` (the caption gets the source of what is drawn).
"""

import base64
import datetime
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from nbformat import from_dict, reads
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from . import bookbuild, runs, words
from .data import manifest
from .errors import CremaError
from .paths import home, repository, resolve

WIDTH, COLOURS = 1610, 128  # px and palette of a kept picture: twice the width that it has on a page
LEFT_OUT = "*Not shown here, because it names single recordings. Run the chapter to see it.*"
NOT_RUN = (
    "```{note}\nThis chapter has not been run on real recordings yet, so it stands here without its outputs. "
    "`make book` runs it on simulated ones.\n```"
)
_CHAPTER = re.compile(r"notebook\.setup\(\s*\"(\w+)\"")
_VERSIONS = re.compile(r"^crema_lib \S+(?: \((?P<commit>\w+)[^)]*\))? · \w+: (?P<device>.+)$", re.M)  # what `notebook.setup` prints
_GLUE = re.compile(r"\{glue:?\w*\}`(\w+)`")
_GLUED = "application/papermill.record/"


def key(source):
    """What a cell's output is found by: a hash of its source."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16]


def pages_folder(profile):
    """Folder of the kept outputs of a profile's run."""
    return home() / "results" / profile / "pages"


def collect(executed, into=None):
    """Keep what may be published of executed notebooks.

    Of each cell that ran without an error: printed text, tables, pictures as PNG with a palette, and glued values. No warnings, no
    interactive graphics (they hold their data), nothing from cells tagged `single-records`, no paths of the machine. A chapter's earlier
    page is replaced; cells that are not in its source any more are left aside.

    Args:
        executed: a notebook that papermill has left, or a folder of them (with subfolders).
        into: folder for the pages (default: `results/PROFILE/pages`).

    Returns:
        List of the files written, `NN_name.json`.

    Raises:
        CremaError: nothing there, a notebook that papermill has not run or is still running, or one that is no chapter of this book.
    """
    executed = resolve(executed)
    found = sorted(executed.rglob("*.ipynb")) if executed.is_dir() else [executed]
    if not found:
        raise CremaError(f"{executed} holds no notebook: give an executed chapter, or a folder of them")
    return [_collect(path, into) for path in found]


def _collect(path, into):
    notebook = bookbuild.read(path)
    named = [match[1] for cell in notebook.cells if (match := _CHAPTER.search(cell.source))]
    source = next((chapter for chapter in bookbuild.chapters() if chapter.stem in named), None)
    if source is None:
        raise CremaError(f"{path} is no chapter of this book")
    run = notebook.metadata.get("papermill", {})
    if run.get("duration") is None:  # it is running, or was killed: what it has so far must not replace a whole page
        raise CremaError(f"papermill has not run {path} to its end: give the notebook of a run that has ended")
    cells = {key(cell.source): cell for cell in notebook.cells if cell.cell_type == "code" and _ran(cell)}
    tags = {key(cell.source): cell.metadata.get("tags", []) for cell in bookbuild.read(home() / source).cells}
    given = {name: value for name, value in run["parameters"].items() if name in bookbuild.declared(source) and name != "out"}
    profile = given.get("profile", "quick")
    versions = _VERSIONS.search("\n".join(output.get("text", "") for cell in cells.values() for output in cell.outputs))
    page = {
        "chapter": source.stem,
        "profile": profile,
        "date": run["start_time"][:10],
        "commit": versions["commit"] if versions else None,
        "device": versions["device"] if versions else None,
        "parameters": {name: runs.no_paths(value) for name, value in given.items()},
        "cells": {at: _kept(cell, tags[at]) for at, cell in cells.items() if at in tags},
    }
    target = Path(into or pages_folder(profile)) / f"{source.stem}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, page)
    return target


def _write(path, page):
    path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def mark_redrawn(path):
    """Note in a kept page which of its cells were redrawn after its run: those whose source is not in the chapter of the page's commit.

    Args:
        path: of a file in `pages_folder`.

    Returns:
        List of the keys noted, empty where all cells are of that commit; None, and the file untouched, where this clone lacks the commit.

    Raises:
        CremaError: the file cannot be read.
    """
    page = _load(path := Path(path))
    at = f"{page['commit']}:book/{page['chapter']}.ipynb"
    shown = subprocess.run(["git", "-C", str(home()), "show", at], capture_output=True, text=True, encoding="utf-8", check=False)
    if shown.returncode:
        return None
    then = {key(cell.source) for cell in reads(shown.stdout, as_version=4).cells}
    page["redrawn"] = [at for at in page["cells"] if at not in then]
    _write(path, {name: page[name] for name in sorted(page, key="cells".__eq__)})  # the cells last, they are long
    return page["redrawn"]


def _ran(cell):
    return cell.execution_count is not None and all(output.output_type != "error" for output in cell.outputs)


def _kept(cell, tags):
    """Those outputs of a cell that may be published, as plain dicts; text that came in pieces is one again."""
    kept, text = [], "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    shown = [output for output in cell.outputs if "data" in output and not _is_glue(output)]
    if "remove-on-site" not in tags:
        if "single-records" in tags or any(_is_interactive(output) for output in shown):
            kept.append({"output_type": "display_data", "data": {"text/markdown": LEFT_OUT}, "metadata": {}})
        else:
            kept += [{"output_type": "stream", "name": "stdout", "text": runs.no_paths(text)}] if text else []
            kept += [{"output_type": "display_data", "data": _data(output.data), "metadata": _sizes(output)} for output in shown]
    return kept + [dict(output) for output in cell.outputs if _is_glue(output)]


def _is_glue(output):
    return any(kind.startswith(_GLUED) for kind in output.get("data", {}))


def _is_interactive(output):
    """True for HTML that is more than a table: a drawing or a script carries its data along."""
    html = output.data.get("text/html", "")
    return bool(html) and "image/png" not in output.data and ("<table" not in html or bool(re.search(r"<(svg|script|iframe)\b", html)))


def _data(data):
    """One form of an output: the picture, else the table, else the text."""
    if "image/png" in data:
        return {"image/png": _smaller(data["image/png"])}
    kind = next((kind for kind in ("text/html", "text/markdown", "text/latex") if kind in data), "text/plain")
    return {kind: runs.no_paths(data.get(kind, ""))}


def _sizes(output):
    return {"image/png": dict(output.metadata["image/png"])} if "image/png" in output.get("metadata", {}) else {}


def _smaller(picture):
    """A PNG (base64) on white, at most `WIDTH` wide, with a palette of `COLOURS`."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    paper.thumbnail((WIDTH, 100 * WIDTH))
    file = io.BytesIO()
    paper.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def render(profile="ptbxl", out="_build/site"):
    """Render the book from its sources and the kept outputs of a profile's run, without starting a kernel.

    Cells that have no kept output are listed on stderr; a chapter without any says so on its page.

    Args:
        profile: whose outputs, see `pages_folder`. out: build folder, relative to the project folder.

    Returns:
        Path of the first page.

    Raises:
        CremaError: a kept file cannot be read, or Jupyter Book gives a warning.
    """
    pages = {}
    for path in bookbuild.chapters():
        pages[path], bare = page(path, profile)
        if bare is None:
            print(f"  {path.stem}: not run with {profile} yet", file=sys.stderr)
        elif bare:
            first = "".join(f"\n    {cell.source.strip().splitlines()[0]}" for cell in bare)
            print(
                f"  {path.stem}: {len(bare)} cells without output, as they have changed since or were not reached:{first}", file=sys.stderr
            )
    return bookbuild.typeset(pages, resolve(out))


def page(path, profile):
    """A chapter with its kept outputs.

    Args:
        path: of the source. profile: whose outputs.

    Returns:
        (notebook, cells): the cells are those that should have an output and have none; None where nothing was kept of the chapter.

    Raises:
        CremaError: what was kept cannot be read, or a committed record lacks what the chapter quotes of it.
    """
    notebook = bookbuild.read(home() / path)
    kept = _load(pages_folder(profile) / f"{path.stem}.json")
    outputs = kept["cells"] if kept else {}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    quoted = words.glued([cell.source for cell in code])
    for cell, said in zip(code, quoted, strict=True):
        cell.outputs = [_output(one) for one in outputs.get(key(cell.source), [])]
        if said is not None:
            cell.outputs = [one for one in cell.outputs if not _is_glue(one)] + [_glue(*pair) for pair in said.items()]
        if not any("image/png" in output.get("data", {}) for output in cell.outputs):
            cell.metadata.get("mystnb", {}).pop("figure", None)  # a caption without its picture
        elif "draws-recordings" in cell.metadata.get("tags", []):
            cell.metadata["mystnb"]["figure"]["caption"] += f" {_source(kept['parameters'])}"
    values = {output.metadata["scrapbook"]["name"] for cell in code for output in cell.outputs if _is_glue(output)}
    expected = [cell for cell in code if not {"parameters", "remove-on-site"} & set(cell.metadata.get("tags", []))]
    bare = [cell for cell in expected if key(cell.source) not in outputs and not cell.outputs]
    cells = [new for cell in notebook.cells for new in _on_site(cell, values)]
    if kept:
        at = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
        bookbuild.fold(cells[at], "Parameters and their defaults")
        cells.insert(at + 1, _parameters(kept["parameters"]))
    cells.insert(1, new_markdown_cell(_run_line(path, kept, _younger(code, kept)) if kept else NOT_RUN))
    notebook.cells = cells
    return notebook, bare if kept else None


def _load(path):
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        kept = {}
    if not {"chapter", "profile", "date", "commit", "device", "parameters", "cells"} <= set(kept):
        raise CremaError(f"{path} holds no kept outputs: collect the chapter again")
    return kept


def _glue(name, value):
    """A glued value as `myst_nb.glue` leaves it."""
    return new_output("display_data", {f"{_GLUED}text/plain": repr(value)}, metadata={"scrapbook": {"name": name, "mime_prefix": _GLUED}})


def _output(kept):
    kept = from_dict(kept)
    return new_output(kept.pop("output_type"), **kept)


def _on_site(cell, values):
    """What becomes of a cell: itself, without glued values that are not there, or less where it is tagged `remove-on-site`."""
    if cell.cell_type == "code":
        if "remove-on-site" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["remove-cell"]  # its glued values are still wanted
        return [cell]
    if "remove-on-site" in cell.metadata.get("tags", []):
        return [new_markdown_cell("## In numbers")] if cell.source.startswith("## ") else []
    cell.source = _GLUE.sub(lambda match: match[0] if match[1] in values else "–", cell.source)
    return [cell]


def _parameters(given):
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    return bookbuild.fold(new_code_cell("\n".join(["# Parameters of this run", *lines]), metadata={"tags": []}))


def _source(given):
    """Whose recordings a run has drawn, for a caption."""
    if given.get("data", "simulated") == "simulated":
        return "Simulated."
    row = manifest.dataset(given["data"])
    return f"Source: {row['title'].split(',')[0]}, {row['licence']}."


def _credit(name):
    """A data set's name with address, reference and licence; a sample goes by the set that it is of."""
    table = manifest.load()
    if (whole := name.removesuffix("-sample")) not in table.index:
        return f"`{name}`"
    row = table.loc[whole]
    return f"[{name}]({row['url']}) ({{cite:t}}`{row['citation'].split(';')[0]}`, {row['licence']})"


def _younger(code, kept):
    """How many of the cells that show something were redrawn after the run."""
    redrawn = {at for at in kept.get("redrawn", []) if not all(map(_is_glue, kept["cells"].get(at, [])))}
    return sum(key(cell.source) in redrawn for cell in code)


def _run_line(path, kept, younger=0):
    """A line on top of a page: which run it shows, how many of its cells are younger, where its source and its record are, and whose
    recordings."""
    at = repository()
    sources = f"{at['url']}/blob/{at['branch']}"
    given, record = kept["parameters"], Path("results") / kept["profile"] / f"{path.stem}.json"
    recorded = (home() / record).is_file()
    date = datetime.date.fromisoformat(kept["date"])
    parts = [f"Run of {date.day} {date:%B %Y} with the profile `{kept['profile']}`"]
    parts += [f"commit [{kept['commit']}]({at['url']}/commit/{kept['commit']})"] if kept["commit"] else []
    parts += [f"{younger} of its cells changed or were redrawn later"] if younger else []
    parts += [kept["device"].replace("_", "-")] if kept["device"] else []
    if given.get("data", "simulated") != "simulated":
        count = f"{runs.read(record)['data']['records']:,} recordings of " if recorded else ""
        parts.append(count + _credit(given["data"]))
        parts += ["beside them " + ", ".join(_credit(name) for name in given["others"])] if given.get("others") else []
    links = [f"[source]({sources}/{path.as_posix()})"]
    links += [f"[record]({sources}/{record.as_posix()})"] if recorded else []
    return "```{div} run-shown\n" + " · ".join(parts + links) + "\n```"
