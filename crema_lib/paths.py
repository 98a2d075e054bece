"""Where things lie, whatever folder a chapter is started from, and the checksum of a file."""

import hashlib
import os
from pathlib import Path

import yaml

_CHECKOUT = Path(__file__).resolve().parent.parent


def home():
    """The project folder: `$CREMA_HOME`, else the checkout that holds crema_lib, else the working folder."""
    if os.environ.get("CREMA_HOME"):
        return Path(os.environ["CREMA_HOME"]).expanduser().resolve()
    return _CHECKOUT if (_CHECKOUT / "_toc.yml").is_file() else Path.cwd()


def data_home():
    """Folder of downloaded and prepared data: `$CREMA_DATA`, else `_data` in the project folder (ignored by git)."""
    return Path(os.environ.get("CREMA_DATA") or home() / "_data").expanduser().resolve()


def resolve(path):
    """An absolute path as it is; a relative one from the project folder."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def repository():
    """Where the sources are published: dict with url and branch, as `_config.yml` says."""
    return yaml.safe_load((home() / "_config.yml").read_text(encoding="utf-8"))["repository"]


def fetched(name, given=""):
    """Folder of a data set's own files: the one that is given, else where `data fetch` puts it, None where nothing is there."""
    folder = data_home() / name
    return resolve(given) if given else folder if folder.is_dir() else None


def digest(path, algorithm="sha256"):
    """Checksum of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
