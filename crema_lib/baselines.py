"""The networks that every table compares, trained by one loop under one budget: pretrained, from scratch, and a convolutional one."""

import json

import torch

from .engine import Training
from .errors import CremaError
from .finetune import finetune
from .sit import SiT
from .xresnet import XResNet1d

PRETRAINED, RANDOM, CNN = ARMS = ("CR-MAE", "random initialisation", "xresnet1d101")


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
    if arm == PRETRAINED:
        return SiT.from_pretrained(checkpoint, drop_path=drop_path)
    if arm == RANDOM:
        return SiT(**{**config, "drop_path": drop_path})
    if arm == CNN:
        return XResNet1d(**{name: config[name] for name in ("fs", "seconds", "leads", "scale", "band")})
    raise CremaError(f"unknown network {arm!r}: known are {', '.join(ARMS)}")


def train(arm, p, store, checkpoint, *, seed=0, rows=None, name="", progress=True):
    """Train one arm as the parameters say, on folds 1 to 8 or some rows of them.

    The convolutional network keeps the recipe of its benchmark: crops of 2.5 s, a high learning rate, a random head. Both SiTs start with
    a linear probe as head; the one from scratch has no layer decay, which would only hold its first layers back. Labels, augmentations,
    averaging and choice are the same for all.

    Args:
        p: namespace of the chapter's parameters. name: added to the folder's name, for a run on some rows.

    Returns:
        (model, log): see `finetune.finetune`. A finished run in `p.run_dir/finetune` is read.
    """
    out = p.run_dir / "finetune" / f"{arm.replace(' ', '-').lower()}-s{seed}{name}"
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
    options = (
        {"crop": p.cnn_crop}
        if cnn
        else {"crop": p.crop, "token_drop": p.token_drop, "readout": p.readout, "probe_first": True, "dropout": 0.0}
    )
    return finetune(
        new_encoder(arm, checkpoint, seed=seed, drop_path=p.drop_path), store, p.tasks, training, out, rows=rows,
        layer_decay=p.layer_decay if arm == PRETRAINED else 1.0, times=p.finetune_checks, progress=progress, **options,
    )  # fmt: skip
