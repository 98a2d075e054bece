"""The whole study of a profile, from prepared data to committed records, in as many sittings as it takes.

Everything of it lies in the run's folder: `executed/` holds the notebooks, `records/NN_name.json` a chapter's record, and beside it
`records/NN_name.key` what it was run with. A chapter with an unchanged key is not run again.
"""

import hashlib
import json
import os
import shutil
import time
from types import SimpleNamespace

from . import bookbuild, checkpoints, notebook, params, site
from .data.store import find
from .errors import CremaError, Stopped
from .paths import home, resolve


def study(profile="ptbxl", minutes=None, overrides=(), out=None, jobs=None):
    """Run what is left of a profile's chapters in order; when all is done, copy records to `results/PROFILE` and keep the pages.

    Pretraining and fine-tuning, all that goes through `engine.fit`, go on at the step where they were stopped; features and most probes are
    kept as they are made (`embeddings.embed_store`, `probes.linear.remembered`); what else a chapter that was stopped computes starts anew
    with it. Chapters that have run to their end are not run again, unless their
    source, their parameters, the data, or a chapter that they need has changed. A change of crema_lib is not seen: delete
    `records/NN_name.key` in the run's folder to have a chapter run again.

    Args:
        profile: name or YAML file, see `params.load_profile`.
        minutes: after so many no chapter is started, and what runs is stopped; None for no limit.
        overrides: texts `name=value` that overrule the profile.
        out: folder of the run (default: `_runs/PROFILE-sSEED`).
        jobs: chapters that run at the same time, two if there are two cores or more.

    Raises:
        CremaError: a parameter is wrong, the data set is not prepared, a chapter fails, or the minutes are spent before all is done.
        Stopped: SIGTERM or SIGINT came.
    """
    started, picked = time.monotonic(), bookbuild.select(())
    if minutes is not None and not minutes > 0:
        raise CremaError(f"minutes {minutes:g} is no budget: give a number above zero")
    values = params.load_profile(profile)
    values |= bookbuild.parse(overrides, picked) | ({"out": out} if out else {})
    name = values.get("profile", "default")
    folder = resolve(values.get("out") or f"_runs/{name}-s{values.get('seed', 0)}")
    keys = keys_of(picked, values)
    kept = {path for path in picked if _is_done(path, folder, keys[path])}
    done = set(kept)

    def finished(path):
        at = _key_file(path, folder)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(keys[path])
        done.add(path)

    os.environ.pop("MPLBACKEND", None)  # as in bookbuild.build
    os.environ["CREMA_RECORDS"] = str(folder / "records")
    try:
        with checkpoints.signals() as asked:

            def stop():
                return bool(asked) or (minutes is not None and time.monotonic() - started > 60 * minutes)

            if left := [path for path in picked if path not in done]:
                jobs = jobs or min(2, os.cpu_count() or 1)
                bookbuild.run_chapters(left, folder / "executed", values, jobs, stop, finished)
    finally:
        del os.environ["CREMA_RECORDS"]
        for path in picked:
            print(f"  {path.stem:<28} {'done before' if path in kept else 'done' if path in done else 'to do'}", flush=True)
    if remain := len(picked) - len(done):
        told = f"{remain} of {len(picked)} chapters remain: the same command goes on"
        if asked:
            raise Stopped(f"the study was asked to stop, {told}", asked[0])
        raise CremaError(f"the {minutes:g} minutes are spent, {told}")
    publish(picked, folder, name)


def publish(picked, folder, profile):
    """Copy the records of a finished study to `results/PROFILE` and keep what its pages show (see `site.collect`)."""
    target = home() / "results" / profile
    target.mkdir(parents=True, exist_ok=True)
    records = [path for path in (folder / "records" / f"{path.stem}.json" for path in picked) if path.is_file()]
    for record in records:
        shutil.copy(record, target)
    pages = [page for path in picked for page in site.collect(folder / "executed" / path)]
    print(f"{target}: {len(records)} records, {len(pages)} pages")


def keys_of(picked, values):
    """What each chapter's result depends on, as a hash: its source, its parameters, the data, and the chapters that it needs.

    Args:
        picked: paths. values: of all parameters.

    Returns:
        Dict from each path to a hex digest.

    Raises:
        CremaError: the data set is not prepared.
    """
    by_name, data, keys = {path.name: path for path in picked}, _data(values), {}

    def of(path):
        if path not in keys:
            cells = bookbuild.read(home() / path).cells
            own = {name: values[name] for name in bookbuild.declared(path) if name in values and name != "out"}
            before = [of(by_name[name]) for name in sorted(bookbuild.needs(path)) if name in by_name]
            parts = [[cell.source for cell in cells], own, {name: data[name] for name in ("data", "others") if name in own}, before]
            keys[path] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return keys[path]

    return {path: of(path) for path in picked}


def _data(values):
    """Hashes of the stores that the parameters `data` and `others` name; of simulated recordings the parameters say all."""
    others = {}
    for name in values.get("others", ()):
        try:
            others[name] = find(name).meta["sha256"]
        except CremaError:  # not prepared: chapters leave it out
            others[name] = None
    simulated = values.get("data", "simulated") == "simulated"
    return {"data": None if simulated else notebook.open_data(SimpleNamespace(**values)).meta["sha256"], "others": others}


def _key_file(path, folder):
    return folder / "records" / f"{path.stem}.key"


def _is_done(path, folder, key):
    """True where a chapter has run to its end with this key, and its record, if it writes one, is there."""
    at, executed = _key_file(path, folder), folder / "executed" / path
    if not at.is_file() or at.read_text() != key or not bookbuild.is_run_of(executed, home() / path):
        return False
    writes = any("notebook.record(" in cell.source for cell in bookbuild.read(home() / path).cells if cell.cell_type == "code")
    return not writes or at.with_suffix(".json").is_file()
