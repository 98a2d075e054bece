"""What a folder of recordings holds: one adapter a data set, each giving one dict a recording.

Keys: `record`, `path`, `index` (row in an HDF5 file) and, where the data set's own table knows them, columns of the store; what is absent
is taken from the recording's header. CPSC, Chapman-Shaoxing-Ningbo, Georgia and LUDB name no patients: there every record counts as a
patient of its own.
"""

import ast
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError
from . import records, tables

PTBXL_NOISE = ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems")
CODE15_LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "normal_ecg")


def rows_of(source, fs, others=None):
    """The recordings of a folder as dicts, in a fixed order.

    Args:
        others: list that takes the paths of files that are no part of a recording, where the folder is none of a known data set.

    Raises:
        CremaError: no folder, no recordings, or a table of the data set that cannot be read.
    """
    if not source.is_dir():
        raise CremaError(f"{source} is not a folder")
    adapters = {"ptbxl_database.csv": _ptbxl, "exams.csv": _code15, "ludb.csv": _ludb, "metadata.csv": _brugada}
    adapter = next((adapters[file] for file in adapters if (source / file).is_file()), None)
    rows, rest = (adapter(source, fs), []) if adapter else _any(source)
    if not rows:
        sheets = [path for path in rest if path.suffix.lower() == ".csv"]
        seen = f"; {sheets[0].name} begins with {tables.shown(sheets[0])}" if sheets else ""
        raise CremaError(
            f"{source} holds no recordings: expected WFDB (*.hea), CSV tables with a column a lead, or CODE-15% files (*.hdf5 with "
            f"exams.csv){seen}"
        )
    if others is not None:
        others += rest
    return rows


def rows_of_files(paths, fs, others=None):
    """The recordings that some files and folders hold, as `rows_of` gives them; those of one name are told apart by their paths.

    Raises:
        CremaError: a path that is not there, nothing named, or see `rows_of`.
    """
    rows = []
    for path in map(Path, paths):
        there = path.exists() or path.with_name(f"{path.name}.hea").is_file()
        if not there:
            raise CremaError(f"{path} is not there: name recordings (WFDB or CSV) or folders of them")
        rows += rows_of(path, fs, others) if path.is_dir() else [{"record": path.stem, "path": path}]
    if not rows:
        raise CremaError("no recording is named")
    names = pd.Series([row["record"] for row in rows])
    for i in np.flatnonzero(names.duplicated(keep=False)):
        rows[i] = {**rows[i], "record": f"{rows[i]['path']}" + (f"#{rows[i]['index']}" if "index" in rows[i] else "")}
    return rows


def _csv(path, columns=None, key=None):
    """Named columns of a table (None: all) as text; CremaError where it cannot be read or lacks one."""
    try:
        table = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CremaError(f"{path} is damaged or not the table that it should be: {error}") from None
    if key and (twice := table[key][table[key].duplicated()].tolist()):
        raise CremaError(f"{path} has more than one row for {key} {twice[0]}: leave one")
    return table.set_index(key) if key else table


def _has(path, columns):
    """The first line of a file names these columns; a table of that name may be somebody's own."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return set(columns) <= {name.strip(' "\n\r\ufeff') for name in file.readline().split(",")}


def _ptbxl(source, fs):
    """PTB-XL: its 100 Hz records up to 100 Hz, else the 500 Hz ones (or those, where only they are there)."""
    path = source / "ptbxl_database.csv"
    columns = [
        "ecg_id",
        "patient_id",
        "age",
        "sex",
        "device",
        "site",
        "recording_date",
        "scp_codes",
        "strat_fold",
        "filename_lr",
        "filename_hr",
        *PTBXL_NOISE,
    ]
    table = _csv(path, columns)
    column = "filename_lr" if fs <= 100 and (source / "records100").is_dir() else "filename_hr"
    if column == "filename_hr" and not (source / "records500").is_dir():
        raise CremaError(f"{source} has no folder records500, which {fs} Hz needs: fetch it, or prepare at 100 Hz")
    rows = []
    try:
        for row in table.to_dict("records"):
            age, old = records.parse_age(row["age"])
            flags = [flag for flag in PTBXL_NOISE if row[flag].strip()] + ["age>89"] * old
            rows.append(
                {
                    "record": Path(row[column]).name,
                    "path": source / row[column],
                    "patient": row["patient_id"].removesuffix(".0"),
                    "fold": int(row["strat_fold"]),
                    "age": age,
                    "sex": {"0": "M", "1": "F"}.get(row["sex"], ""),
                    "device": " ".join(row["device"].split()),
                    "site": row["site"].removesuffix(".0"),
                    "labels": ";".join(ast.literal_eval(row["scp_codes"])),
                    "quality": ";".join(flags),
                    "year": int(row["recording_date"][:4] or 0),
                }
            )
    except (ValueError, SyntaxError, TypeError) as error:
        raise CremaError(f"{path}: the row of ecg_id {row['ecg_id']} cannot be read ({error})") from None
    return rows


def _code15(source, fs):
    """CODE-15%: the exams of every HDF5 file that is there, in file order."""
    import h5py

    exams = _csv(source / "exams.csv", ["exam_id", "patient_id", "age", "is_male", *CODE15_LABELS], "exam_id").to_dict("index")
    rows = []
    for path in sorted(source.rglob("*.hdf5")):
        try:
            with h5py.File(path, "r") as file:
                ids = file["exam_id"][:].astype(str).tolist()
        except (OSError, KeyError) as error:
            raise CremaError(f"{path} cannot be read as a CODE-15% file (HDF5 with tracings and exam_id): {error}") from None
        for index, exam in enumerate(ids):
            row = {"record": exam, "path": path, "index": index}
            if exam in exams:
                known = exams[exam]
                male = known["is_male"].strip().lower() in ("true", "1", "1.0")
                labels = [label for label in CODE15_LABELS if known[label].strip().lower() in ("true", "1", "1.0")]
                row |= {"patient": known["patient_id"], "age": records.parse_age(known["age"])[0], "sex": "M" if male else "F"}
                row["labels"] = ";".join(labels)
            rows.append(row)
    return rows


def _ludb(source, fs):
    """LUDB: rhythm and diagnoses of `ludb.csv` as labels (its cells hold one statement a line)."""
    table = _csv(source / "ludb.csv")
    rows = []
    for row in table.to_dict("records"):
        lines = [line for cell in list(row.values())[3:] for line in cell.splitlines()]
        labels = [line.strip().rstrip(".").replace(";", ",") for line in lines if line.strip()]
        name = row["ID"].strip()
        rows.append({"record": name, "path": source / "data" / name, "labels": ";".join(labels)})
    return rows  # age and sex stand in the headers too, in a cleaner form


def _brugada(source, fs):
    """Brugada-HUCA: the diagnosis (`brugada:0`, `:1`, `:2` other) and two findings."""
    table = _csv(source / "metadata.csv", ["patient_id", "brugada", "basal_pattern", "sudden_death"])
    rows = []
    for row in table.to_dict("records"):
        name = row["patient_id"].strip()
        labels = [f"brugada:{row['brugada'].strip()}"] + [x for x in ("basal_pattern", "sudden_death") if row[x].strip() == "1"]
        rows.append({"record": name, "path": source / "files" / name / name, "patient": name, "labels": ";".join(labels)})
    return rows


def _any(source):
    """Any folder, those of Challenges among them: WFDB records and CSV tables with a column a lead, at any depth, in the order of their
    paths; codes from a `labels.csv` in it or beside it, else from the headers.

    Returns:
        (rows, others): others are the files that are no part of these, but for hidden ones.
    """
    files = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    columns = ["record", "source", "snomed"]
    labels = [path for path in (source / "labels.csv", source.parent / "labels.csv") if path.is_file() and _has(path, columns)][:1]
    codes = _csv(labels[0], columns, "record").to_dict("index") if labels else {}
    headers = {path.with_suffix("") for path in files if path.suffix == ".hea"}
    found = sorted(path for path in files if path.suffix == ".hea" or (path.suffix.lower() == ".csv" and tables.has_leads(path)))
    unique = len({path.stem for path in found}) == len(found)
    rows = []
    for path in found:
        name = path.stem if unique else str(path.relative_to(source)).removesuffix(".hea")
        row = {"record": name, "path": path}
        if path.stem in codes:
            row |= {"source": codes[path.stem]["source"], "labels": ";".join(codes[path.stem]["snomed"].split())}
        rows.append(row)
    used = {*found, *labels}
    return rows, sorted(path for path in files if path not in used and not _beside(path, headers))


def _beside(path, headers):
    """Whether a file is of one of these WFDB records, by its name: signals, marks (`r1.dat`, `r1.atr`, and `r1_0.dat` of a lead)."""
    return any(path.with_name(path.name[: end.start()]) in headers for end in re.finditer(r"[._]", path.name) if end.start())
