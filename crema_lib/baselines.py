"""The networks that every table compares, trained by one loop under one budget: pretrained, from scratch, and a convolutional one."""

import json
import re
import zlib

import numpy as np
import torch

from .data import splits
from .data.store import kept
from .engine import Training
from .errors import CremaError
from .finetune import finetune, targets_of
from .handcrafted import waves
from .handcrafted.boosting import Boosting
from .sit import SiT
from .xresnet import XResNet1d

ARMS = ("CR-MAE", "CR-MAE, last 2 blocks", "random initialisation", "xresnet1d101")
PRETRAINED, PARTLY, RANDOM, CNN = ARMS
BOOSTING = "features + boosting"


def new_encoder(arm, checkpoint, *, seed=0, drop_path=0.0):
    """The encoder an arm starts from.

    Args:
        arm: one of `ARMS`. checkpoint: folder of the pretrained SiT; its configuration and lead scales serve all arms. seed: of the
            random initialisation. drop_path: stochastic depth of a SiT.

    Returns:
        A `SiT` or an `XResNet1d`.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    torch.manual_seed(seed)
    if arm in (PRETRAINED, PARTLY):
        return SiT.from_pretrained(checkpoint, drop_path=drop_path)
    if arm == RANDOM:
        return SiT(**{**config, "drop_path": drop_path})
    if arm == CNN:
        return XResNet1d(**{name: config[name] for name in ("fs", "seconds", "leads", "scale", "band")})
    raise CremaError(f"unknown network {arm!r}: known are {', '.join(ARMS)}")


def train(arm, p, store, checkpoint, *, seed=0, rows=None, leads=None, name="", progress=True):
    """Train one arm as the parameters say, on folds 1 to 8 or some rows of them, with all leads or some.

    The convolutional network keeps the recipe of its benchmark: crops of 2.5 s and a high learning rate. A pretrained SiT starts with a
    linear probe as head and lower learning rates in early layers; in the one from scratch there is nothing to protect, and both would
    hold it back. Labels, augmentations, averaging and choice are the same for all.

    Args:
        p: namespace of the chapter's parameters. leads: names of those that are shown, in training and later, for a SiT.
            name: added to the folder's name, for a run on some rows or leads.

    Returns:
        (model, log): see `finetune.finetune`. A finished run in `p.run_dir/finetune` is read.
    """
    out = _folder(p, arm, seed, name)
    cnn = arm == CNN
    training = Training(
        epochs=p.cnn_epochs if cnn else p.finetune_epochs,
        batch_size=p.finetune_batch,
        lr=p.cnn_lr if cnn else p.finetune_lr,
        weight_decay=0.01 if cnn else p.weight_decay,
        warmup=0.3 if cnn else 0.1,
        betas=(0.9, 0.99) if cnn else (0.9, 0.999),
        precision=p.precision,
        device=p.device,
        seed=seed,
        checkpoint_every=200,
    )
    options = {"crop": p.cnn_crop} if cnn else {"crop": p.crop, "token_drop": p.token_drop, "readout": p.readout, "dropout": 0.0}
    options |= {"leads": leads} if leads else {}
    if arm in (PRETRAINED, PARTLY):
        options |= {"probe_first": True, "layer_decay": p.layer_decay, "blocks": 2 if arm == PARTLY else None}
    return finetune(
        new_encoder(arm, checkpoint, seed=seed, drop_path=p.drop_path), store, p.heads, training, out,
        rows=rows, times=p.finetune_checks, progress=progress, **options,
    )  # fmt: skip


def boosting(p, store, *, rows=None, name="", progress=True):
    """Gradient boosting on the measurements of `handcrafted.waves`, one ensemble a label, the number of trees chosen on fold 9.

    Args:
        p: namespace of the chapter's parameters. rows: row numbers of the training recordings, folds 1 to 8 if not given.
            name: as in `train`.

    Returns:
        (columns, outputs): as `finetune.scores` would give them for fold 10, see `finetune.targets_of`. What was computed for the same
        recordings, labels and heads is read from `p.run_dir/finetune`.
    """
    heads = [task for task in p.heads if task != "age"]
    targets, columns = targets_of(store.table, heads)
    train, valid, test = splits.parts(store.table)
    rows = train if rows is None else rows
    labelled = zlib.crc32(np.c_[targets, store.table["fold"]].astype(np.float32).tobytes() + np.asarray(rows).tobytes())
    path = _folder(p, BOOSTING, p.seed, name) / f"{store.meta['sha256'][:16]}-{labelled:08x}-{'-'.join(heads)}.npy"

    def grow():
        values = waves.kept(store, progress=progress)
        trees = Boosting(seed=p.seed).fit(values[rows], targets[rows], (values[valid], targets[valid]), progress=progress)
        return trees.scores(values[test])

    return columns, kept(path, grow)


def _folder(p, arm, seed, name=""):
    return p.run_dir / "finetune" / f"{re.sub(r'[^a-z0-9]+', '-', arm.lower())}-s{seed}{name}"
