"""The data sets of the field: what each is, where it lies, under which licence, and what a person must do to get it.

data_manifest.csv has one row a data set; book/references.bib what to cite.
"""

import difflib
import re
import textwrap
from pathlib import Path

import pandas as pd

from .. import paths
from ..errors import CremaError
from .store import prepared

COUNTS, NUMBERS = ["records", "patients", "leads"], ["hz", "seconds"]
TEXTS = ["name", "title", "version", "role", "licence", "access", "url", "files_url", "part", "checksums", "format", "citation", "note"]
VALUES = {
    "role": ["pretrain", "in-domain", "shift", "noise", "beats", "waves", "rhythm", "quality", "labels"],
    "access": ["open", "registered", "credentialed"],
    "checksums": ["SHA256SUMS.txt", "zenodo-md5", "none"],
}


def _project_file(name):
    checkout = Path(__file__).resolve().parents[2]
    for folder in (paths.home(), checkout):
        if (folder / name).is_file():
            return folder / name
    raise CremaError(f"{name} lies neither in {paths.home()} nor in {checkout}: set CREMA_HOME to the project's folder")


def load(path=None):
    """The manifest as a DataFrame indexed by `name`: texts (empty: none), counts as Int64 and numbers as float64 (missing: not known).

    Raises:
        CremaError: unreadable, a column missing, a name twice, an unknown role, access or checksum source, a number that is none,
            an address that is not https, an open data set without the address of its files.
    """
    path = Path(path) if path else _project_file("data_manifest.csv")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CremaError(f"{path} cannot be read as a table of data sets: {error}") from None
    if missing := sorted({*TEXTS, *COUNTS, *NUMBERS} - set(table)):
        raise CremaError(f"{path} lacks the columns {', '.join(missing)}")
    if len(twice := table["name"][table["name"].duplicated()]):
        raise CremaError(f"{path} has two rows named {twice.iloc[0]}")
    patterns = {
        "name": r"[a-z0-9][a-z0-9-]*",
        "url": r"https://.+",
        "files_url": r"(https://.+)?",
        **{column: "|".join(values) for column, values in VALUES.items()},
        **dict.fromkeys(COUNTS, r"\d*"),
        **dict.fromkeys(NUMBERS, r"(\d+(\.\d+)?)?"),
    }
    for row in table.to_dict("records"):
        for column, pattern in patterns.items():
            if not re.fullmatch(pattern, row[column]):
                raise CremaError(f"{path}: {column} of {row['name']!r} is {row[column]!r}, expected {pattern}")
        if row["access"] == "open" and (not row["files_url"] or row["checksums"] == "none"):
            raise CremaError(f"{path}: {row['name']} is open and needs files_url and a checksum source")
    numbers = {column: pd.to_numeric(table[column]) for column in COUNTS + NUMBERS}
    table = table.assign(**numbers).astype(dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(NUMBERS, "float64"))
    return table.set_index("name", drop=False)


def dataset(name):
    """The manifest's row of one data set, a Series; CremaError names the close ones, or all, where `name` is unknown."""
    table = load()
    if name not in table.index:
        close = difflib.get_close_matches(str(name).lower(), table.index, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(table.index)}"
        raise CremaError(f"there is no data set named {name!r}: {hint}")
    return table.loc[name]


def locate(name, source=None):
    """Folder of a data set: `source` where given, else `$CREMA_DATA/NAME`; CremaError tells how to get it where neither is there."""
    if source is not None:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise CremaError(f"{folder} is not a folder: --source must name the folder that holds the files of {name}")
        return folder
    row, folder = dataset(name), paths.data_home() / name
    if not folder.is_dir() or not any(folder.iterdir()):
        first = f"fetch it (python -m crema_lib data fetch {name})" if row["access"] == "open" else f"get it from {row['url']}"
        raise CremaError(f"{name} is not in {folder}: {first}, or name the folder that holds it (--source DIR)")
    return folder


def _here(name):
    return ", ".join(["on disk"] * (paths.data_home() / name).is_dir() + ["prepared"] * bool(prepared(name)))


def _number(value):
    return "" if pd.isna(value) else f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def listing():
    """All data sets as a text table: name, role, records, leads, Hz, licence, access, and what of it is here."""
    head = ["name", "role", "records", "leads", "Hz", "licence", "access", "here"]
    rows = [
        [r["name"], r["role"], *(_number(r[c]) for c in ("records", "leads", "hz")), r["licence"], r["access"], _here(r["name"])]
        for _, r in load().iterrows()
    ]
    width = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    align = ["<", "<", ">", ">", ">", "<", "<", "<"]
    return "\n".join("  ".join(f"{x:{a}{w}}" for x, a, w in zip(row, align, width, strict=True)).rstrip() for row in (head, *rows))


def describe(name):
    """What the manifest knows of one data set, as text: title, size, licence, access, addresses, what to mind, what to cite."""
    row = dataset(name)
    size = [f"{_number(row[c])} {unit}" for c, unit in zip(COUNTS + NUMBERS, (*COUNTS, "Hz", "s"), strict=True) if not pd.isna(row[c])]
    lines = [
        f"{row['title']}{', version ' + row['version'] if row['version'] else ''}",
        f"size     {', '.join(size) or 'not stated'}",
        f"licence  {row['licence'] or 'see its page'}",
        f"access   {row['access']}: {row['url']}",
        f"note     {row['note']}",
        *(f"cite     {reference(key)}" for key in row["citation"].split(";")),
    ]
    if here := _here(name):
        lines.append(f"here     {here}: {paths.data_home() / name}")
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False) for line in lines)


def reference(key):
    """One entry of book/references.bib as a line: authors (year). Title. Address."""
    entry = re.search(rf"@\w+\{{{re.escape(key)},\n(.*?)\n\}}", _project_file("book/references.bib").read_text(encoding="utf-8"), re.DOTALL)
    if not entry:
        raise CremaError(f"book/references.bib has no entry {key}")
    fields = {k: re.sub(r"[{}]", "", v) for k, v in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", entry[1], re.MULTILINE)}
    names = [name.split(",")[0] for name in fields["author"].split(" and ")]
    who = f"{names[0]} et al." if len(names) > 2 or names[-1] == "others" else " and ".join(names)
    if "doi" in fields:
        fields["url"] = f"https://doi.org/{fields['doi']}"
    where = next((fields[k] for k in ("url", "journal", "booktitle") if k in fields), "")
    return f"{who} ({fields['year']}). {fields['title']}. {where}"


def steps(row):
    """What a person must do to get a data set that no program may take for them."""
    name, after = row["name"], "then use it from there (--source DIR), or put the folder at"
    if "physionet.org" in row["url"]:
        steps = [
            "make an account: https://physionet.org/register/",
            "have it credentialed, with the CITI course 'Data or Specimens Only Research': https://physionet.org/settings/credentialing/",
            f"sign the data use agreement at the foot of {row['url']}",
            f"download: wget -r -N -c -np -nH --cut-dirs=3 --user YOU --ask-password -P DIR {row['files_url']}",
        ]
    else:
        steps = [f"read the terms and ask for access at {row['url']}", "download it the way that page describes"]
    lines = [*steps, f"{after} {paths.data_home() / name}"]
    return f"{name} is {row['access']}: a person must ask for it, no program can fetch it.\n" + "\n".join(
        f"  {i}. {line}" for i, line in enumerate(lines, 1)
    )
