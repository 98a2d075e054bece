"""Weights: found by name, and checked before they are read; see `publish` for how they come there.

Only safetensors and JSON are written and read: no file of a model can run code. What `SHA256SUMS` lists is compared with it first, so that
a damaged or exchanged file is told by its name.
"""

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from .errors import CremaError
from .paths import digest, home, resolve

SUMS = "SHA256SUMS"
ENCODER = ("config.json", "model.safetensors")  # what `SiT.from_pretrained` reads
HEADS = ("objective.json", "heads.safetensors")  # what `objectives.load` reads besides
SEEN = "seen.safetensors"  # what the model was trained on, see `leakage.remember`
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")  # options of `from_pretrained` that are the hub's


def names():
    """Names of the models in `weights/`, in order."""
    return sorted(path.parent.name for path in (home() / "weights").glob("*/config.json"))


def locate(name, **hub):
    """Folder of a model.

    Args:
        name: a folder (from here or from the project folder), the name of a model in `weights/`, or OWNER/NAME on the Hugging Face hub,
            from where only safetensors, JSON and checksums are fetched.
        hub: options of `HUB`.

    Raises:
        CremaError: it is none of these, or the hub does not give it out.
    """
    for folder in (Path(name), resolve(name), home() / "weights" / name):
        if folder.is_dir():
            return folder
    known = f"no folder and no model in weights/ (there: {', '.join(names()) or 'none'})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise CremaError(f"{name} is {known}; a model of the hub is named OWNER/NAME")
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json", SUMS], **hub))
    except Exception as error:
        raise CremaError(f"{name} is {known}, and the hub does not give it: {' '.join(str(error).split())[:200]}") from None


def verify(folder, files):
    """Compare some files of a model with its `SHA256SUMS`; a folder without that file has nothing to compare with.

    Raises:
        CremaError: a file differs, is missing, or is not listed; or the list itself cannot be read.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        return
    lines = (folder / SUMS).read_bytes().decode("utf-8", "replace").splitlines()
    pairs = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    if not all(pairs):
        raise CremaError(f"{folder / SUMS} is damaged: it is no list of SHA-256 sums as sha256sum writes it; fetch the model again")
    listed = {pair[2]: pair[1] for pair in pairs}
    for name in files:
        if name not in listed:
            raise CremaError(f"{folder / SUMS} does not list {name}: the file was added after publishing; fetch the model again")
        if not (folder / name).is_file():
            raise CremaError(f"{folder / name} is missing: fetch the model again")
        if digest(folder / name) != listed[name]:
            raise CremaError(f"{folder / name} is damaged or was exchanged: its SHA-256 is not that of {SUMS}; fetch the model again")


def stored(folder):
    """What the files of a model's encoder hold: (type of its matrices by torch's name, number of its parameters).

    Raises:
        CremaError: no readable `model.safetensors`.
    """
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise CremaError(f"{path} cannot be read as safetensors: {error}") from None
    types = {str(value.dtype).removeprefix("torch.") for value in tensors.values() if _halved(value)}
    return " and ".join(sorted(types)), sum(value.numel() for key, value in tensors.items() if key != "scale")


def _halved(value):
    """Whether half precision is for this tensor: matrices are nearly all of a model; biases, norms, running statistics and the scale of
    the leads are few, and stay what they are."""
    return value.is_floating_point() and value.ndim > 1


def rounded(state, dtype):
    """A state dict with its matrices in another type; all else as it is.

    Raises:
        CremaError: an unknown type, or a weight that is not finite or too large for it.
    """
    if dtype not in DTYPES:
        raise CremaError(f"unknown type of weights {dtype!r}: known are {', '.join(DTYPES)}")
    state = {key: (value.to(DTYPES[dtype]) if _halved(value) else value).contiguous() for key, value in state.items()}
    if wrong := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise CremaError(f"{wrong[0]} has weights that are not finite as {dtype}: take another type, or look at the training log")
    return state
