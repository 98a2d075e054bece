"""What every chapter does first and last: check its parameters, find its data and its predecessor's model, show tables, keep a record."""

import ast
import json
import random
import sys
import time
import zlib
from types import SimpleNamespace

import numpy as np
import torch

from . import params, runs, weights
from .errors import CremaError
from .metrics.bootstrap import Interval
from .objectives import CRMAE
from .paths import home, resolve
from .precision import chosen_device
from .pretrain import seeded

_INJECTED = "# Parameters\n"  # how papermill opens the cell that it puts after the one tagged `parameters`
_last_start = {}

# The second cell of every chapter, the same in all. The clone is where `paths.home` then finds profiles, results and weights.
COLAB_CELL = """\
# On Colab only: fetch the book and install what is missing; torch and NumPy stay as they are.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import version
    from pathlib import Path

    _book, _keep = Path("/content/crema-book"), Path("/content/keep.txt")
    if not _book.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "https://github.com/crema-book/crema-book", str(_book)], check=True)
    _keep.write_text("".join(f"{name}=={version(name)}\\n" for name in ("torch", "numpy")))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-c", str(_keep), "-e", str(_book)], check=True)
    sys.path.insert(0, str(_book))"""


def setup(chapter, namespace=None, sources=None):
    """Check the parameters, seed every generator, set the plot style, print versions and device.

    Papermill injects any name into a chapter; so the names are read from the cells themselves, the typed parameters cell and the
    injected one, and their values from the namespace.

    Args:
        chapter: name of the chapter's file without ending, e.g. `04_linear_probe`; the run record gets this name.
        namespace: dict of the chapter's variables; those of the running notebook if not given.
        sources: list of the cells run so far; those of the running notebook if not given.

    Returns:
        Namespace of the parameters with what follows from them: `device` as "cpu" or "cuda" (never "auto"), `run_dir` (Path, what
        this profile and seed leave behind), `chapter`, and `parameters` (dict, as given).

    Raises:
        CremaError: unknown name, wrong type, value out of range, or a GPU is asked for and there is none.
    """
    _short_errors()
    _plain_sentences()
    if namespace is None:
        namespace = sys.modules["__main__"].__dict__
    declared, injected = _parameters(namespace.get("In", []) if sources is None else sources)
    values = {name: namespace[name] for name in declared if name in namespace}
    given = params.check(values | {name: value for name, value in injected.items() if name not in declared})
    derived = {
        "chapter": chapter,
        "parameters": given,
        "device": chosen_device(given.get("device", "auto")),
        "run_dir": resolve(given.get("out") or f"_runs/{given.get('profile') or 'default'}-s{given.get('seed', 0)}"),
    }
    random.seed(given.get("seed", 0))
    np.random.seed(given.get("seed", 0))  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(given.get("seed", 0))
    from . import plots

    plots.use_style()
    _last_start[chapter] = time.perf_counter()
    print(_versions(derived["device"]))
    return SimpleNamespace(**{**given, **derived})


def parameter_names(sources):
    """Names that the parameters cell declares and that papermill injected, in order.

    A parameters cell is one made of typed assignments only (`seed: int = 0`); of several runs of such a cell the last one counts.
    """
    declared, injected = _parameters(sources)
    return list(dict.fromkeys([*declared, *injected]))


def _parameters(sources):
    """Names of the parameters cell, and what papermill injected: dict name -> value, because an import of the chapter may have taken the
    name of a parameter that it does not declare."""
    declared, injected = [], {}
    for source in sources:
        try:
            body = ast.parse(source).body
        except SyntaxError:  # a magic or a shell line
            continue
        if body and all(isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) for node in body):
            declared = [node.target.id for node in body]
        elif source.startswith(_INJECTED):
            injected = {target.id: _literal(node.value) for node in body if isinstance(node, ast.Assign) for target in node.targets}
    return declared, injected


def _literal(node):
    """The value that papermill wrote: a literal, or float("nan") and its like."""
    return float(node.args[0].value) if isinstance(node, ast.Call) else ast.literal_eval(node)


def open_data(p, records=None):
    """The `EcgStore` that the parameters `data`, `records`, `fs` and `seconds` name.

    Args:
        records: how many recordings to simulate, where that is not the parameter `records`.

    The simulated cohort is made once for each size and kept; its seed is fixed, so that the seed of a run changes the run alone.

    Raises:
        CremaError: the set is not prepared; the sentence gives the command.
    """
    if p.data == "simulated":
        from .data.simulate import simulated_store

        records = p.records if records is None else records
        if not records:
            raise CremaError("parameter records = 0 means all records of a prepared set: give the number of records to simulate")
        path = home() / "_runs" / "stores" / f"simulated-{records}-{p.fs}hz-{p.seconds}s"
        return simulated_store(path, records, seed=0, fs=p.fs, seconds=p.seconds)
    from .data.prepare import store_path
    from .data.store import EcgStore

    path = store_path(p.data, p.fs, p.seconds)
    if not (path / "store.json").is_file():
        raise CremaError(
            f"{p.data} is not prepared at {p.fs} Hz and {p.seconds} s ({path} is not there): "
            f"python -m crema_lib data prepare {p.data} --fs {p.fs} --seconds {p.seconds}"
        )
    return EcgStore(path)


def open_others(p):
    """The `EcgStore`s of the parameter `others`: prepared data sets, or folders. One of the manifest that is not prepared is left out, and
    a line says so.

    Raises:
        CremaError: a name that is neither prepared nor in the manifest, or that is prepared in several forms.
    """
    from .data import manifest
    from .data.store import find, prepared

    stores, absent = [], []
    for name in p.others:
        try:
            stores.append(find(name))
        except CremaError:
            if name not in manifest.load().index or prepared(name):
                raise
            absent.append(name)
    if absent:
        print(f"Not prepared here and left out: {', '.join(absent)} (python -m crema_lib data prepare NAME)")
    return stores


def checkpoint(p):
    """Folder of the pretrained model: the parameter `checkpoint`, else what chapter 03 left behind, else the one in `weights/`.

    Raises:
        CremaError: none is there.
    """
    if getattr(p, "checkpoint", ""):
        path = resolve(p.checkpoint)
        if not (path / "config.json").is_file():
            raise CremaError(f"parameter checkpoint: {path} holds no model (no config.json)")
        return _named(path)
    path = p.run_dir / "pretrain" / "model"
    if (path / "config.json").is_file():
        return _named(path)
    stand_ins = weights.names()
    if not stand_ins:
        raise CremaError(f"no pretrained model in {path}: run the chapter on pretraining first, or give the parameter checkpoint")
    print(f"No model of this profile and seed yet (chapter 03 makes it): {stand_ins[0]} from weights/ stands in.")
    return home() / "weights" / stand_ins[0]


def checkpoints(p):
    """Folders of the pretrained models of all seeds: dict seed -> folder, that of `checkpoint` first, then those of the further runs.

    A run that chapter 03 has not made is left out, with a line that says so.
    """
    found = {p.seed: checkpoint(p)}
    found |= {seed: own.run_dir / "pretrain" / "model" for seed, own in seeded(p).items() if seed != p.seed}
    absent = [seed for seed, folder in found.items() if not (folder / "config.json").is_file()]
    if absent:
        print(f"Not pretrained here and left out: seed {', '.join(map(str, absent))} (chapter 03 makes them)")
    return {seed: folder for seed, folder in found.items() if seed not in absent}


def _named(folder):
    """The folder; says so where its model was pretrained with something else than what the chapters name."""
    told = folder / "objective.json"
    if told.is_file() and (kind := json.loads(told.read_text())["class"]) != CRMAE.__name__:
        print(f"The model in {folder} was pretrained with {kind}: it is meant wherever this chapter says CR-MAE.")
    return folder


def record(p, metrics, store, **extra):
    """Write the chapter's run record to `run_dir/records/CHAPTER.json` (see `runs.write`) and return it.

    Where the run found and left its files is not told: paths in `run_dir` are written from there on, of others the last part.
    """

    def within(value):
        if isinstance(value, list):
            return [within(entry) for entry in value]
        return runs.no_paths(value.replace(f"{p.run_dir}/", "")) if isinstance(value, str) else value

    return runs.write(
        p.run_dir / "records" / f"{p.chapter}.json",
        chapter=p.chapter,
        parameters={name: "" if name == "out" else within(value) for name, value in p.parameters.items()},
        metrics=metrics,
        data={"name": p.data, "records": len(store), "sha256": store.meta["sha256"]},
        wall_seconds=time.perf_counter() - _last_start[p.chapter],
        device=p.device,
        extra=extra,
    )


def glue(name, value):
    """Keep a value for the sentences of a chapter, which quote it as {glue:text}`name`.

    Colab shows that role as it stands; there the value is printed as well.
    """
    from myst_nb import glue as keep

    keep(name, value, display=False)
    if "google.colab" in sys.modules:
        print(f"{name} = {value}")


def table(frame, caption, decimals=3):
    """A DataFrame as a captioned table without its index; numbers rounded, what is missing shown as a dash.

    A value and the ends of its interval are one column, see `intervals`; short texts are not broken, fewer where a row is long.
    """
    spread = [name for name, *_ in _ends(frame)]
    frame = intervals(frame, decimals)
    style = frame.style.hide(axis="index").format(precision=decimals, na_rep="–").set_caption(caption)
    numbers = frame.select_dtypes("number").columns
    props = {column: "text-align: right" for column in numbers} | {column: "text-align: right; white-space: nowrap" for column in spread}
    longest = {column: frame[column].astype(str).str.len().max() for column in frame.columns.difference(numbers)}
    width = sum(max([longest.get(column, 6), *map(len, str(column).split())]) + 2 for column in frame)  # characters, the padding included
    room = 24 if width <= 95 else 12  # what a page is wide, ours
    short = [column for column, length in longest.items() if length <= room and column not in spread]
    props |= dict.fromkeys(short, "white-space: nowrap")
    style = style.set_table_styles({column: [{"selector": "th, td", "props": text}] for column, text in props.items()})
    return style.set_uuid(f"{zlib.crc32(caption.encode()):08x}")


def intervals(frame, decimals=3):
    """A DataFrame in which a value and the ends of its interval are one column of texts, `0.912 [0.903, 0.920]`.

    The ends of a column `x` are named `x_low` and `x_high`, or `low` and `high` right behind it. A value without ends stands alone, and a
    missing one stays missing.
    """
    for name, low, high in _ends(frame):
        rows = zip(frame[name], frame[low], frame[high], strict=True)
        texts = [
            None if value != value else f"{Interval(value, *ends) if ends[0] == ends[0] else value:z.{decimals}f}" for value, *ends in rows
        ]
        frame = frame.assign(**{name: texts}).drop(columns=[low, high])
    return frame


def _ends(frame):
    """The columns (value, low, high) of each interval that a DataFrame holds."""
    before = dict(zip(frame.columns[1:], frame.columns, strict=False))
    named = [(before["low"], "low", "high")] if {"low", "high"} <= before.keys() else []
    return named + [(name, f"{name}_low", f"{name}_high") for name in frame if {f"{name}_low", f"{name}_high"} <= before.keys()]


def _versions(device):
    commit, changed = runs.git_commit()
    code = f" ({commit[:7]}{', changed' if changed else ''})" if commit else ""
    parts = [f"{name} {version.split('+')[0]}" for name, version in runs.versions().items()]
    return f"{' · '.join(parts[:-1])}\n{parts[-1]}{code} · {device}: {runs.device_name(device)}"


def _short_errors():
    """Show a CremaError as its sentence alone.

    IPython asks an exception for `_render_traceback_`. A handler set with `set_custom_exc` would hide the failure from papermill.
    """
    CremaError._render_traceback_ = lambda error: [f"{type(error).__name__}: {error}"]


def _plain_sentences():
    """Show a string that ends a cell as the sentence that it is, without quotes; within a list or a dict it keeps them."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None  # commands run without it
    if shell is not None:
        show = lambda text, printer, cycle: printer.text(text if len(printer.stack) == 1 else repr(text))  # noqa: E731 - the shape it asks for
        shell.display_formatter.formatters["text/plain"].for_type(str, show)
