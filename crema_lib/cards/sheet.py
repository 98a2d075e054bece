"""The datasheet of the recordings, in the form of Gebru et al. (2021)."""

import re

from .. import composition
from ..data import labels, splits
from ..data.manifest import dataset
from ..metrics import FEW
from ..paths import repository
from . import committed, markdown

FLAGS = {"flat": "flat lead", "electrodes_problems": "electrode problems"}  # where the flag of the table is no plain English


def datasheet(records):
    """The datasheet of the recordings that the models of this book were trained and judged on, a MyST page.

    Args:
        records: see `read_all`; `datasheet` among them, see `write_counts`.

    Returns:
        str, Markdown with the book's citations and links to its chapters.

    Raises:
        CremaError: a record is missing, or a data set is not in the manifest.
    """
    record = committed.record(records, "datasheet")
    source, told = dataset(record["data"]["name"]), record["extra"]
    statements, made, parts = told["statements"], told["prepared"], list(splits.SPLITS)
    rare = [f"`{row['code']}`" for row in statements if row["test"] < FEW]
    frequent = sorted(statements, key=lambda row: -sum(row[part] for part in parts))[:10]
    named = labels.statements()["description"]
    sexes, quartiles = {"F": "female", "M": "male"}, dict(zip(("low", "middle", "high"), told["age quartiles"], strict=True))
    ages = [(row["age"].replace("<", "&lt;"), f"{row['records']:,}") for row in told["age"] if row["records"]]
    found, untrained = (committed.recognised(records, model) for model in (committed.MODEL, committed.TWIN))
    sizes = {
        f"{by}_table": markdown.table((by, "recordings", "patients"), [_thousands(row) for row in told[by]]) for by in ("device", "site")
    }
    values = {
        **{key: source[key] for key in ("name", "title", "version", "url", "licence", "note")},
        **{key: f"{told[key]:,}" for key in ("patients", "several", "most", "whole", "shorter", "devices", "sites")},
        **{f"age_{key}": f"{value:.0f}" for key, value in quartiles.items()},
        **sizes,
        **markdown.FOLDS,
        "command": markdown.COMMAND,
        "citation": source["citation"].replace(";", ","),
        "archive": source["url"].split("/")[2],
        "records": f"{record['data']['records']:,}",
        "sha": record["data"]["sha256"][:16],
        "parts": markdown.table(("part", *parts), _compositions(told["parts"])),
        "quality": markdown.listed(f"{count:,} {FLAGS.get(flag, flag.replace('_', ' '))}" for flag, count in told["quality"].items()),
        "sex": markdown.listed(f"{count:,} {sexes.get(sex, sex)}" for sex, count in told["sex"].items()),
        "oldest": labels.OLDEST,
        "ages": markdown.table(("age, years", "recordings"), ages),
        "statements": len(statements),
        "frequent": markdown.table(
            ("code", "statement", *parts), [(row["code"], named[row["code"]], *_thousands(row)[1:]) for row in frequent]
        ),
        "rare_count": len(rare),
        "rare": ", ".join(rare),
        "few": FEW,
        "least": composition.LEAST,
        "dates": "Dates run from {} to {}, but each patient's were".format(*told["years"]) if told["years"] else "Dates, where known, are",
        "rates": markdown.listed(f"{count:,} recordings at {rate} Hz" for rate, count in (made["source_fs"] or {}).items()),
        "fs": f"{made['fs']:g}",
        "seconds": f"{made['seconds']:g}",
        "band": "filtered to {:g} to {:g} Hz without shift of phase".format(*made["band"]) if made["band"] else "filtered nothing",
        "left_out": f"{told['left out']:,}",
        "reasons": "".join(f", {count:,} because {reason}" for reason, count in told["reasons"].items()),
        "queries": f"{found['n']:,}",
        "candidates": f"{committed.record(records, '15_any_leads')['extra']['counts']['candidates']:,}",
        "found": markdown.number(markdown.interval(found)),
        "found_untrained": markdown.number(markdown.interval(untrained)),
        "repository": repository()["url"],
        "others": _others(records),
    }
    return markdown.fill("datasheet.md", values)


def _thousands(row):
    return [f"{value:,}" if isinstance(value, int) else value for value in row.values()]


def _compositions(parts):
    """Rows of a table with a column a part of the split."""
    yield "folds", *(markdown.folds(part["part"]) for part in parts)
    yield "recordings", *(f"{part['records']:,}" for part in parts)
    yield "patients", *(f"{part['patients']:,}" for part in parts)
    yield "female", *(markdown.share(part["female"] / part["records"]) for part in parts)
    yield "median age, years", *(f"{part['median age']:.0f}" for part in parts)
    for name in labels.SUPERCLASSES:
        yield name, *(f"{part[name]:,}" for part in parts)
    yield "no superclass", *(f"{part['none']:,}" for part in parts)


def _others(records):
    """The sets of other hospitals in record 09, with what the manifest knows of them."""
    rows = []
    for _, row in committed.outside(records, metric="auroc").iterrows():
        source = dataset(re.sub("^cpsc-", "cpsc", row["sample"].replace("_", "-")))
        cited = f"{{cite:t}}`{source['citation'].split(';')[0]}`"
        rows.append((source["title"], f"{row['records']:,}", row["labels"], source["licence"], cited))
    return markdown.table(("set", "recordings", "labels scored", "licence", "source"), rows)
