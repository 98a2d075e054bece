"""Run records: the JSON file behind every number that the book prints.

A record says what was run (chapter, parameters, code, versions, device, data) and what came out (metrics with interval, n and seed).
Committed records lie in `results/PROFILE/CHAPTER.json`; a run writes its own to `OUT/records/CHAPTER.json`.
"""

import datetime
import glob
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import __version__
from .errors import CremaError
from .paths import home, resolve

KEYS = ("chapter", "parameters", "metrics", "data", "wall_seconds", "code", "versions", "device", "time_utc")
METRIC_KEYS = ("name", "task", "model", "value", "low", "high", "n", "seed")
_PATH = re.compile(r"(?<![\w.:/<~])(?:/[\w.+-]+){2,}")


def git_commit():
    """(commit hash, True where files differ from it) of the checkout; (None, None) outside a repository.

    What lies in `results/` came out of runs, this one's record perhaps, and counts as no difference.
    """
    try:
        lines = subprocess.run(
            ["git", "-C", str(home()), "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", ".", ":!results"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "(initial)")
    return (None, None) if commit == "(initial)" else (commit, any(not line.startswith("#") for line in lines))


def versions():
    """Versions that decide a number: python, torch, timm, numpy, crema_lib."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")}
    return {"python": platform.python_version(), **packages, "crema_lib": __version__}


def device_name(device):
    """Name of the accelerator, or of the processor with its number of usable cores."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor() or platform.machine()} processor, {cores} cores"


def processor():
    """What the processor calls itself where Linux tells it, else what Python knows of it, which may be nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(path, *, chapter, parameters, metrics, data, wall_seconds, device="cpu", extra=None):
    """Write one run record, whole or not at all.

    Args:
        path: JSON file to write; folders are made.
        chapter: name of the chapter, e.g. `04_linear_probe`.
        parameters: dict as the chapter was given them.
        metrics: list of dicts with `METRIC_KEYS` (value, low, high: numbers or NaN; n: count; low and high bound the 95 % interval).
        data: dict with `name`, `records` and `sha256` of the store.
        wall_seconds: duration of the run, s.
        device: torch device the run used.
        extra: dict of anything else that is worth keeping; a DataFrame becomes a list of its rows, each a dict.

    Returns:
        The record as `read` gives it.

    Raises:
        CremaError: a key is missing or a metric is malformed.
    """
    path = Path(path)
    commit, changed = git_commit()
    record = {
        "chapter": chapter,
        "parameters": dict(parameters),
        "metrics": list(metrics),
        "data": dict(data),
        "wall_seconds": round(float(wall_seconds), 1),
        "code": {"commit": commit, "changed": changed},
        "versions": versions(),
        "device": {"type": str(device), "name": device_name(device), "cpus": os.cpu_count()},
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "extra": dict(extra or {}),
    }
    _validate(record, path)
    text = json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return json.loads(text)


def read(path):
    """One run record as a dict.

    Raises:
        CremaError: no file, no JSON, or a key is missing.
    """
    path = _latest(resolve(path))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CremaError(f"no run record {path}: run its chapter first") from None
    except ValueError as error:
        raise CremaError(f"{path} is no run record: {error}") from None
    _validate(record, path)
    return record


def metrics(frame, **columns):
    """Rows of a table as metrics of a record, list of dicts.

    Args:
        frame: DataFrame. columns: those of `METRIC_KEYS` that it lacks or has under another name: one value, or one a row.
    """
    return frame.assign(**columns)[list(METRIC_KEYS)].to_dict("records")


def table(paths):
    """Metrics of several records, one row each.

    Args:
        paths: a list of files, or a pattern such as `results/ptbxl/*.json` (relative to the project folder).

    Returns:
        DataFrame with `chapter`, `profile`, `METRIC_KEYS`, `commit` and `device`, rows in the order of files and metrics.

    Raises:
        CremaError: nothing matches, or a record is malformed.
    """
    found = sorted(glob.glob(str(resolve(paths)))) if isinstance(paths, str | os.PathLike) else list(paths)
    if not found:
        raise CremaError(f"no run record matches {paths}")
    rows = []
    for record in map(read, found):
        head = {"chapter": record["chapter"], "profile": record["parameters"].get("profile", "")}
        tail = {"commit": record["code"]["commit"], "device": record["device"]["name"]}
        rows += [{**head, **{key: metric[key] for key in METRIC_KEYS}, **tail} for metric in record["metrics"]]
    columns = ["chapter", "profile", *METRIC_KEYS, "commit", "device"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})


def no_paths(value):
    """A value that may be published: of each absolute path in a text, or in the texts of a list, only the last part is left.

    `"MAE=/somewhere/mae/model"` becomes `"MAE=…/model"`; what is neither a text nor a list stays as it is.
    """
    if isinstance(value, list):
        return [no_paths(entry) for entry in value]
    return _PATH.sub(lambda match: "…/" + match[0].rsplit("/", 1)[1], value) if isinstance(value, str) else value


def _latest(path):
    """A committed record, or the one of its chapter and profile that the run has just written into the folder `$CREMA_RECORDS`.

    So a chapter that prints its committed record prints, in a study whose records are about to be committed, what the study has found.
    """
    own = Path(os.environ.get("CREMA_RECORDS") or path.parent) / path.name
    if own == path or path.parent.parent != home() / "results" or not own.is_file():
        return path
    return own if json.loads(own.read_text(encoding="utf-8"))["parameters"].get("profile") == path.parent.name else path


def _validate(record, path):
    missing = [key for key in KEYS if key not in record] if isinstance(record, dict) else KEYS
    if missing:
        raise CremaError(f"{path} is no run record: {', '.join(missing)} missing")
    if missing := [key for key in ("name", "records", "sha256") if key not in record["data"]]:
        raise CremaError(f"{path}: {', '.join(missing)} missing in data")
    for i, metric in enumerate(record["metrics"]):
        if missing := [key for key in METRIC_KEYS if key not in metric]:
            raise CremaError(f"{path}: metric {i} ({metric.get('name', 'no name')}) has no {', '.join(missing)}")


def _plain(value):
    """The same with tables, NumPy scalars, arrays and paths made plain, and what is missing or not finite made null."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return str(value) if isinstance(value, Path) else value
