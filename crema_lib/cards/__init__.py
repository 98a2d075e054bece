"""Model card and datasheet, made from run records: no result in them is typed.

Their words are in `model_card.md` and `datasheet.md` beside this file; what they say of numbers is filled in here. Both become pages of
the book, and the card also the README of its weights. A committed page must equal what the committed records give:
`python -m crema_lib cards` writes all of them anew.
"""

import re

from huggingface_hub import EvalResult, ModelCardData

from .. import weights
from ..data import labels
from ..data.manifest import reference
from ..errors import CremaError
from ..paths import home
from . import committed
from .card import model_card
from .committed import read_all
from .markdown import COMMAND
from .sheet import datasheet


def readme(name, card, records):
    """The card as the README of its weights: front matter of the Hugging Face hub, plain references, links into the repository."""
    of_these = {"model": committed.MODEL, "seed": committed.record(records, "03_pretraining")["parameters"]["seed"]}
    own = [committed.frame(records, "04_linear_probing", "by_seed", task=task, **of_these)["value"].item() for task in labels.TASKS]
    data = {"dataset_type": "ptb-xl", "dataset_name": "PTB-XL", "dataset_split": "fold 10"}
    what = {**data, "task_type": "feature-extraction", "metric_type": "roc_auc", "metric_name": "macro AUROC of a linear probe"}
    data = ModelCardData(
        license="mit",
        library_name="crema_lib",
        pipeline_tag="feature-extraction",
        tags=["ecg", "electrocardiogram", "biosignals", "self-supervised-learning", "masked-autoencoder"],
        model_name=name,
        eval_results=[
            EvalResult(**what, dataset_config=task, metric_value=round(value, 4)) for task, value in zip(labels.TASKS, own, strict=True)
        ],
    )
    body = re.sub(r"\{cite:t\}`(\w+)`", lambda found: _reference(found[1]), card)
    body = re.sub(r"\[\]\((\w+)\.(ipynb|md)\)", lambda found: f"[{_title(found[1])}](../../book/{found[1]}.{found[2]})", body)
    return f"---\n{data.to_yaml().strip()}\n---\n\n{body}"


def _reference(key):
    """Authors and year with a link, "[Mitchell et al. (2019)](https://doi.org/...)"."""
    who, year, address = re.fullmatch(r"(.+?) \((\d{4})\)\. .*?(https://\S+)?", reference(key)).groups()
    return f"[{who} ({year})]({address})" if address else f"{who} ({year})"


def _title(stem):
    number, _, words = stem.partition("_")
    return f"chapter {int(number)}, {words.replace('_', ' ')}" if number.isdigit() else stem.replace("_", " ")


def pages(profile="ptbxl"):
    """All pages of this module as the committed records give them: dict path from the project folder -> text.

    The book's page is the card of the model that its chapters take, the first in `weights/`.

    Raises:
        CremaError: no weights, or see `model_card` and `datasheet`.
    """
    if not weights.names():
        raise CremaError("weights/ holds no model: python -m crema_lib publish FOLDER NAME")
    records = read_all(profile)
    cards = {name: model_card(name, records) for name in weights.names()}
    texts = {f"weights/{name}/README.md": readme(name, card, records) for name, card in cards.items()}
    return {**texts, "book/model_card.md": next(iter(cards.values())), "book/datasheet.md": datasheet(records)}


def write(profile="ptbxl"):
    """Write all `pages`; returns their paths from the project folder."""
    texts = pages(profile)
    for path, text in texts.items():
        (home() / path).write_text(text, encoding="utf-8")
    return list(texts)
