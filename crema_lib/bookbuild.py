"""From notebooks to pages: papermill runs the chapters into a build folder, Jupyter Book renders what they left there.

book/NN_x.ipynb ── papermill, parameters ──▶ BUILD/executed/PROFILE/book/NN_x.ipynb ─┐
book/*.md, pictures, references ─────────────────────────────────────────────────────┴▶ BUILD/src ── jupyter-book ──▶ BUILD/html
"""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import nbformat
from sphinx_external_toc.parsing import parse_toc_yaml

from . import kernels, params
from .errors import CremaError
from .notebook import parameter_names
from .paths import home, resolve

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def chapters():
    """Paths of the book's notebooks, relative to the project folder, in the order of `_toc.yml`."""
    paths = (Path(f"{name}.ipynb") for name in parse_toc_yaml(home() / "_toc.yml"))
    return [path for path in paths if (home() / path).is_file()]


def select(only):
    """Chapters whose file name begins with one of the given texts (`03`, `03_pretraining`); all if none is given.

    Raises:
        CremaError: a text names no chapter.
    """
    known = chapters()
    picked = {path for text in only for path in known if path.name.startswith(str(text))}
    for text in only:
        if not any(path.name.startswith(str(text)) for path in known):
            raise CremaError(f"no chapter {text}: known are {', '.join(path.stem for path in known)}")
    return [path for path in known if path in picked or not only]


def build(profile="quick", only=(), overrides=(), out="_build", render_pages=True, jobs=None):
    """Run chapters with a profile and render the book.

    Args:
        profile: name or YAML file, see `params.load_profile`.
        only: beginnings of chapter names; the others are shown as they were last run with this profile.
        overrides: texts `name=value` that overrule the profile.
        out: the build folder, relative to the project folder.
        render_pages: False stops after the run. jobs: chapters that run at the same time, two if there are two cores or more.

    Returns:
        Path of the first rendered page, or of the folder of executed notebooks.

    Raises:
        CremaError: a parameter is wrong, a chapter fails (its name and the last line of the error), or rendering gives a warning.
    """
    values, out, picked = params.load_profile(profile), resolve(out), select(only)
    if not picked:
        raise CremaError(f"{home()} has no chapter: _toc.yml names no notebook that is there")
    values |= parse(overrides, picked)
    executed = out / "executed" / values.get("profile", "default")
    os.environ.pop("MPLBACKEND", None)  # a backend without pictures, as servers set it, would leave the chapters without figures
    started = time.perf_counter()
    run_chapters(picked, executed, values, jobs or min(2, os.cpu_count() or 1))
    print(f"  {'all chapters':<28} {time.perf_counter() - started:6.1f} s", flush=True)
    return render(executed, out) if render_pages else executed


def declared(path):
    """Names of the parameters that a chapter has, in order."""
    return parameter_names(cell.source for cell in read(home() / path).cells if cell.cell_type == "code")


def parse(overrides, picked):
    known = sorted({name for path in picked for name in declared(path)})
    values = {}
    for text in overrides:
        name, values[name] = params.parse_pair(text)
        if name not in known:
            raise CremaError(f"no chapter that is to be run has a parameter {name}: they have {', '.join(known)}")
    return values


def needs(path):
    """Names of the chapters that a chapter's first cell links to after "You need"."""
    told = read(home() / path).cells[0].source.partition("**You need**")[2].partition("**Time**")[0]
    return {Path(link).name for link in re.findall(r"\]\(([\w./]+\.ipynb)\)", told)}


def run_chapters(picked, executed, values, jobs, stop=lambda: False, finished=lambda path: None):
    """Run chapters, each in a kernel of its own, up to `jobs` at a time, and none before those of them that it needs.

    Args:
        picked: paths. executed: folder for the results. values: of the parameters. jobs: the cores are shared out among them.
        stop: asked each second; once it is true no chapter starts, and those that run are ended, see `kernels.stop`.
        finished: called with the path of each chapter that has run to its end.

    Raises:
        CremaError: see `run_chapter`; the chapters that still run are ended in the same way.
    """
    waiting, running, ahead = list(picked), {}, {path.name for path in picked}
    needed = {path: needs(path) for path in picked}
    jobs = max(1, min(jobs, len(picked)))
    manager = kernels.warm_up(max(1, (os.cpu_count() or 1) // jobs))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while (waiting or running) and not stop():
                ready = [path for path in waiting if not needed[path] & ahead] or waiting[: not running]
                for path in ready[: jobs - len(running)]:
                    waiting.remove(path)
                    running[pool.submit(run_chapter, path, executed / path, values, manager)] = path
                for done in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    path = running.pop(done)
                    print(f"  {path.stem:<28} {done.result():6.1f} s", flush=True)
                    ahead.discard(path.name)
                    finished(path)
        finally:
            if running:
                kernels.stop()
    for path in (path for done, path in running.items() if not done.exception()):  # it was at its end when it was to be ended
        finished(path)


def run_chapter(source, target, values, manager=None):
    """Run one notebook through papermill into `target`, with those of the values that it declares; returns the seconds it took.

    Args:
        manager: class of kernel manager, see `kernels`; Jupyter's own if not given.

    Raises:
        CremaError: the chapter failed; `target` holds it as far as it came.
    """
    import papermill

    target.parent.mkdir(parents=True, exist_ok=True)
    started, own = time.perf_counter(), {name: values[name] for name in declared(source) if name in values}
    try:
        papermill.execute_notebook(
            home() / source,
            target,
            parameters=own,
            cwd=home(),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--log-level=50"],  # the kernel says on stderr what is of no use to a reader
            **({"kernel_manager_class": manager} if manager else {}),
        )
    except papermill.PapermillExecutionError as error:
        lines = [line for entry in error.traceback for line in _ANSI.sub("", entry).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"{error.ename}: {error.evalue}"
        raise CremaError(f"chapter {source.stem} failed in cell {error.exec_count}: {last} (as far as it came: {target})") from None
    except (RuntimeError, OSError) as error:  # the kernel died or never came up
        raise CremaError(f"chapter {source.stem} failed: {error} (as far as it came: {target})") from None
    return time.perf_counter() - started


def render(executed, out):
    """Render the book from the executed chapters of one profile; returns the path of the first page.

    A warning is an error, except where a chapter has no run yet: such a page lacks what other pages refer to.

    Raises:
        CremaError: Jupyter Book warned or failed.
    """
    ran = [path for path in chapters() if is_run_of(executed / path, home() / path)]
    if missing := [path.stem for path in chapters() if path not in ran]:
        print(
            f"  without results, as they have not been run to the end with this profile since they changed: {', '.join(missing)}",
            flush=True,
        )
    return typeset({path: _folded(read(executed / path)) for path in ran}, out, strict=not missing)


def typeset(notebooks, out, strict=True):
    """Render the book's pages with these notebooks in the place of the sources; nothing is executed.

    Colab and issue buttons keep pointing at the sources, as the build folder has the same relative paths.

    Args:
        notebooks: dict from a chapter's path to its notebook. out: build folder. strict: a warning is an error.

    Returns:
        Path of the first page.

    Raises:
        CremaError: Jupyter Book warned or failed.
    """
    pages = out / "src"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.rmtree(out / "html", ignore_errors=True)
    shutil.copytree(home() / "book", pages / "book", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path, notebook in notebooks.items():
        nbformat.write(notebook, pages / path)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(pages)]
    command += ["--path-output", str(out), "--all", "--quiet", "-n"]
    command += ["--config", str(home() / "_config.yml"), "--toc", str(home() / "_toc.yml")]
    command += ["-W", "--keep-going"] if strict else []
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=_environment())
    log = _ANSI.sub("", done.stdout + done.stderr)
    (out / "render.log").write_text(log, encoding="utf-8")
    notes = [line for line in log.splitlines() if re.search(r"WARNING|ERROR|Error:", line)]
    index = out / "_build" / "html"
    if done.returncode or not (index / "index.html").is_file() or (notes and strict):
        shown = "\n  ".join(notes[:20] or log.strip().splitlines()[-5:])
        raise CremaError(f"the book was not rendered without warnings (all of it: {out / 'render.log'}):\n  {shown}")
    index.rename(out / "html")
    shutil.rmtree(out / "_build")
    return out / "html" / "index.html"


def fold(cell, prompt="Parameters of this run"):
    """Fold the input of a cell under a prompt: it can be opened, and is not in the way."""
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    cell.metadata["mystnb"] = {"code_prompt_show": prompt, "code_prompt_hide": prompt}
    return cell


def _folded(notebook):
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            fold(cell)
    return notebook


def _environment():
    return {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def read(path):
    """A notebook; CremaError where there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise CremaError(f"{path} is no readable notebook: {error}") from None


def is_run_of(executed, source):
    """True where the notebook was run to its end and has the cells of the source (apart from papermill's own)."""
    if not executed.is_file():
        return False
    kept = read(executed).metadata.get("papermill", {})
    if kept.get("exception") or kept.get("duration") is None:  # it failed, or was killed on the way
        return False
    cells = [
        [cell.source for cell in read(path).cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        for path in (executed, source)
    ]
    return cells[0] == cells[1]
