"""The search for settings: changes of a profile, each judged on fold 9 and kept in a log that the book prints.

    a change of pretraining  ── pretrain folds 1-8 ── linear probes ──┐
    a change of fine-tuning  ── fine-tune the published encoder ──────┴▶ macro AUROC on fold 9 ──▶ a row of results/PROFILE/search.csv

Nothing here looks at fold 10: it is in the store, and no row of it is read. A change of pretraining runs for `objective_epochs` passes in
the folder that chapter 14 would use, so that its comparison finds the run done.
"""

import os
from types import SimpleNamespace

import numpy as np
import pandas as pd

from . import baselines, finetune, params, pretrain, runs
from .data.labels import matrix
from .data.store import TRAIN, VALID
from .embeddings import embed_store
from .errors import CremaError
from .paths import resolve
from .probes.linear import fit_probe

TASKS = ("all", "super")
FINETUNING = (
    "finetune_epochs", "finetune_batch", "finetune_lr", "finetune_checks", "layer_decay", "drop_path", "token_drop", "crop",
)  # fmt: skip
COLUMNS = ("stage", "change", "passes", "seed", *TASKS, "minutes", "commit", "note")


def read_log(path):
    """The log as a DataFrame with `COLUMNS`; empty where there is none.

    Columns: stage ("pretraining": linear probes of the readout; "fine-tuning"; with more words for the trials of an earlier search,
    whose changes were of another profile), change ("" for the profile as it is), passes over the training recordings, seed, macro AUROC
    on fold 9 of each task in `TASKS`, minutes of training, commit of the code, note.
    """
    path = resolve(path)
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.read_csv(path, dtype={"change": str, "commit": str, "note": str}, keep_default_na=False, na_values={"minutes": [""]})


def stage_of(change):
    """Which stage a change (dict of parameters) belongs to; seed and readout belong to both, and without others to pretraining.

    Raises:
        CremaError: no parameter of either, or some of both.
    """
    tuned = [name for name in change if name in FINETUNING]
    other = [name for name in change if name not in (*FINETUNING, "seed", "readout")]
    if unknown := [name for name in other if name not in pretrain.PARAMETERS]:
        raise CremaError(f"neither pretraining nor fine-tuning is changed by {unknown[0]}")
    if tuned and other:
        raise CremaError(f"{tuned[0]} belongs to fine-tuning and {other[0]} to pretraining: make two trials of it")
    return "fine-tuning" if tuned else "pretraining"


def trial(p, store, text, checkpoint=None):
    """Run one trial.

    Args:
        p: namespace of a profile's parameters with `run_dir`. store: `EcgStore` whose fold 10 is not touched.
        text: the change, such as "mask_ratio=0.75" or "patch=50+lr=1e-3", see `params.parse_change`; "" for the profile as it is.
        checkpoint: folder of the encoder that a change of fine-tuning starts from.

    Returns:
        dict with `COLUMNS` but `note`.
    """
    change = params.parse_change(text)
    if stage_of(change) == "pretraining":
        own, readout = pretrained(p, change)
        model, log = pretrain.pretrain(own, store, progress=False)
        scores, passes = probed(model.encoder, store, readout, p.device), own.epochs
    else:
        if checkpoint is None:
            raise CremaError("a change of fine-tuning needs a checkpoint to start from")
        if missing := [task for task in TASKS if task not in p.heads]:
            raise CremaError(f"trials are judged on {' and '.join(TASKS)}: name {missing[0]} among the heads")
        own = SimpleNamespace(**{**vars(p), **change, "run_dir": p.run_dir / "search" / text})
        model, log = baselines.train(baselines.PRETRAINED, own, store, checkpoint, seed=own.seed, progress=False)
        scores, passes = tuned(model, store, p.device), own.finetune_epochs
    commit, changed = runs.git_commit()
    return {
        "stage": stage_of(change),
        "change": text,
        "passes": passes,
        "seed": own.seed,
        **{task: round(value, 4) for task, value in scores.items()},
        "minutes": round(float(log["seconds"].iloc[-1]) / 60, 1),
        "commit": f"{commit[:10]}{'+' * bool(changed)}" if commit else "",
    }


def pretrained(p, change):
    """Parameters of the pretraining of a trial and the readout that is probed, see `pretrain.variant`."""
    given = dict(change)
    readout = given.pop("readout", p.readout)  # the encoder is the same
    return pretrain.variant(p, given.pop("objective", p.objective), given.pop("seed", p.seed), **given), readout


def probed(encoder, store, readout, device="cpu"):
    """Linear probes of an encoder: dict task -> macro AUROC on fold 9, of the best penalty there."""
    rows, found = store.rows([*TRAIN, *VALID]), {}
    features, fold = embed_store(encoder, store, rows, readout=readout, device=device), store.table["fold"].to_numpy()[rows]
    for task in TASKS:
        targets, _, kept = matrix(store.table, task)
        train, valid = (np.isin(fold, folds) & kept[rows] for folds in (TRAIN, VALID))
        _, trail = fit_probe((features[train], targets[rows][train]), (features[valid], targets[rows][valid]), device=device)
        found[task] = max(tried["valid"] for tried in trail)
    return found


def tuned(model, store, device="cpu"):
    """A fine-tuned `Classifier`: dict task -> macro AUROC on fold 9."""
    rows = store.rows(VALID)
    targets, columns = finetune.targets_of(store.table, list(model.columns))
    found = finetune.reached(columns, targets[rows], finetune.scores(model, store, rows, device=device))
    return {task: found[task] for task in TASKS}


def search(p, store, changes, log, *, checkpoint=None, note=""):
    """Run those of some trials that the log does not hold, and add a row to it after each.

    Args:
        changes: texts, see `trial`. log: CSV file. note: kept with the rows.

    Returns:
        The log as a DataFrame.

    Raises:
        CremaError: see `stage_of`, `params.parse_change`, `pretrain.variant`, `pretrain.pretrain`, `finetune.finetune`. All texts are
            checked first.
    """
    log = resolve(log)
    stages = {text: stage_of(params.parse_change(text)) for text in changes}
    for text, stage in stages.items():
        if stage == "pretraining":
            pretrained(p, params.parse_change(text))
    for text, stage in stages.items():
        rows = read_log(log)
        if ((rows["stage"] == stage) & (rows["change"] == text)).any():
            continue
        row = {**trial(p, store, text, checkpoint), "note": note}
        print(f"  {text or 'the profile as it is'}: " + ", ".join(f"{task} {row[task]:.4f}" for task in TASKS), flush=True)
        rows = pd.concat([read_log(log), pd.DataFrame([row])])[list(COLUMNS)] if len(rows) else pd.DataFrame([row])[list(COLUMNS)]
        log.parent.mkdir(parents=True, exist_ok=True)
        part = log.with_name(f"{log.name}.{os.getpid()}.part")
        rows.to_csv(part, index=False)
        part.replace(log)
    return read_log(log)
