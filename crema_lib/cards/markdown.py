"""How the cards write: numbers, intervals, lists and tables in Markdown, and pages from templates."""

import re
from pathlib import Path
from string import Template

from ..data import splits
from ..errors import CremaError
from ..metrics import Interval


def table(header, rows):
    """A table of Markdown, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    right = [all(re.match(r"-?\d", row[i]) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if one else "---" for one in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value, digits=3):
    """A number, or an `Interval` with its ends; what is rounded to zero has no sign."""
    return f"{value:z.{digits}f}"


def difference(value):
    """An `Interval` around a difference, with as many digits as keep an end near zero from looking like zero."""
    ends = (value.low, value.high)
    return number(value, next((digits for digits in (3, 4, 5) if all(round(end, digits) or not end for end in ends)), 6))


def share(value):
    return f"{100 * value:.0f} %"


def interval(row):
    return Interval(row["value"], row["low"], row["high"])


def drop(row):
    return Interval(row["drop"], row["drop_low"], row["drop_high"])


def away(row):
    """ "home → there [low, high]" of a row that is held against home."""
    return f"{number(row['home'])}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{interval(row)}"


def listed(words):
    *most, last = [str(word) for word in words] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def folds(*parts):
    """The folds of some parts of the split: "1 to 8", "9 and 10"."""
    found = [fold for part in parts for fold in splits.SPLITS[part]]
    return f"{found[0]} to {found[-1]}" if len(found) > 2 else listed(found)


def word(part):
    return f"fold{'s' * (len(splits.SPLITS[part]) > 1)} {folds(part)}"


COMMAND = "python -m crema_lib cards"
FOLDS = {f"{part}_fold{'s' * (len(of) > 1)}": folds(part) for part, of in splits.SPLITS.items()}
FOLDS["held_folds"] = folds("valid", "test")


def fill(template, values):
    """A page: the template of that name with its values, all of them and no other."""
    page = Template(Path(__file__).with_name(template).read_text(encoding="utf-8"))
    if unequal := set(page.get_identifiers()) ^ set(values):
        raise CremaError(f"{template} and its values differ in {', '.join(sorted(unequal))}")
    return page.substitute(values)
