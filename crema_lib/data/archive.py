"""Get a data set of the manifest whole: fetch its files from the archive, resume, check every one.

PhysioNet lists the files of an archive in SHA256SUMS.txt, Zenodo's API gives an MD5 a file; `fetch` leaves the list of what it took in the
data set's folder, so that `verify` (or `sha256sum -c`) needs no network.
"""

import errno
import hashlib
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from .. import paths
from ..errors import CremaError, Stopped
from .manifest import dataset, describe, load, locate, steps

LISTS = {"sha256": "SHA256SUMS.txt", "md5": "MD5SUMS.txt"}
TABLES = {".csv", ".txt", ".md", ""}  # suffixes of small files at the top of an archive that the rest cannot be read without
ATTEMPTS, BACKOFF, TIMEOUT = 5, 1.0, 60  # times, s before the second of them (doubling), s without a byte
BLOCK = 2**15  # bytes: small, so that little is lost where a connection breaks
GIVE_UP = 20  # files that the archive does not give as listed, before the rest is not tried


class File(NamedTuple):
    name: str  # relative to the data set's folder
    url: str
    algorithm: str  # sha256 or md5
    digest: str


class _Refused(Exception):
    """The server answered, and the answer is no."""


class _Busy(requests.RequestException):
    """The server answered that it cannot now."""


class _Stopped(Exception):
    """Another download failed for a reason that concerns all of them."""


def _parse_list(text, algorithm, where):
    """{file name: digest} of a checksum list (`digest  name` a line)."""
    length, found = hashlib.new(algorithm).digest_size * 2, {}
    for line in filter(str.strip, text.splitlines()):
        match = re.fullmatch(rf"([0-9a-fA-F]{{{length}}}) [ *]?(.+)", line.rstrip())
        if not match:
            raise CremaError(f"{where} is not a list of {algorithm} checksums: it has the line {line[:60]!r}")
        found[_inside(match[2].removeprefix("./"), where)] = match[1].lower()
    if not found:
        raise CremaError(f"{where} lists no files")
    return found


def _inside(name, where):
    # a list comes from outside: it must not be able to name a file beyond the data set's folder
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or re.search(r"\\|^\w:", name):
        raise CremaError(f"{where} names the file {name!r}, which would lie outside the data set's folder")
    return name


def _read_list(folder):
    """(algorithm, {name: digest}) of the list in a folder, or None."""
    for algorithm, name in LISTS.items():
        if (path := folder / name).is_file():
            return algorithm, _parse_list(path.read_text(encoding="utf-8", errors="replace"), algorithm, path)
    return None


def _ask(session, url):
    """The answer to a GET; CremaError where there is none or it is a refusal."""

    def get():
        answer = session.get(url, timeout=TIMEOUT)
        _raise_for(answer.status_code)
        return answer

    try:
        return _persist(get, url)
    except _Refused as error:
        raise CremaError(f"{url} cannot be read ({error}): the archive may have moved, see the data set's page") from None


def _raise_for(status):
    if status == 429 or status >= 500:
        raise _Busy(f"HTTP {status}")
    if status >= 400:
        raise _Refused(f"HTTP {status}")


def _persist(action, url):
    """Run `action` until the network lets it through, ATTEMPTS times at most, waiting twice as long each time."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            return action()
        except requests.RequestException as error:
            reason = "the connection broke"
            if isinstance(error, (_Busy, requests.exceptions.InvalidURL)):
                reason = str(error)
            elif isinstance(error, (requests.Timeout, requests.ConnectionError)):
                reason = "no answer"
    raise CremaError(f"{url} cannot be downloaded ({reason}): check the network and run the command again, it goes on where it stopped")


def _published(row, session, base_url=None):
    """The `File`s that the archive lists for a data set, its `part` only."""
    base = base_url or row["files_url"]
    if row["checksums"] == "zenodo-md5":
        try:
            found = [
                File(_inside(f["key"], base), f["links"]["self"], *f["checksum"].split(":", 1)) for f in _ask(session, base).json()["files"]
            ]
        except (requests.JSONDecodeError, KeyError, TypeError) as error:
            raise CremaError(f"{base} does not answer as Zenodo's list of files does ({error!r}): see {row['url']}") from None
    else:
        base = base.rstrip("/") + "/"
        where = base + LISTS["sha256"]
        names = _parse_list(_ask(session, where).content.decode("utf-8", "replace"), "sha256", where)
        found = [File(name, base + quote(name), "sha256", digest) for name, digest in names.items()]
    return [file for file in found if _wanted(file.name, row["part"])]


def _matches(name, globs):
    return any(fnmatchcase(name, glob.strip()) for glob in globs.split(","))


def _wanted(name, globs):
    """Whether a file matches one of the comma-separated globs (none given: all do); tables at the top are always wanted."""
    return not globs or ("/" not in name and PurePosixPath(name).suffix.lower() in TABLES) or _matches(name, globs)


def fetch(name, dest=None, *, only=None, base_url=None, workers=4, progress=True):
    """Download an open data set; what is there and right is kept, what was interrupted goes on where it stopped.

    Args:
        name: data set of the manifest.
        dest: folder; None: `$CREMA_DATA/NAME`.
        only: glob, several joined by commas, of the files to take ("records100/*"); tables at the top of the archive come along.
        base_url: another address of the same files (a mirror).
        workers: downloads at a time.
        progress: show a bar.

    Returns:
        the folder; beside the files it holds the list of their checksums.

    Raises:
        CremaError: unknown name, access that a person must ask for (with the steps), nothing matches `only`, no network, no space left,
            or files that the archive does not give as it lists them. Files that are complete stay, of others the part that came.
    """
    row = dataset(name)
    if row["access"] != "open":
        raise CremaError(steps(row))
    print(describe(name))
    folder = Path(dest).expanduser() if dest else paths.data_home() / name
    only = only if only is None or isinstance(only, str) else ",".join(only)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=workers))
        session.headers["Accept-Encoding"] = "identity"  # a byte range of a compressed answer would be of no use
        listed = _published(row, session, base_url)
        files = [file for file in listed if _wanted(file.name, only)]
        if only and not any(_matches(file.name, only) for file in listed):
            top = sorted({file.name.split("/")[0] for file in listed})
            raise CremaError(f"--only {only!r} matches none of the {len(listed):,} files of {name}; at its top are {', '.join(top[:12])}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_list(folder, files)
            problems = _obtain_all(session, files, folder, workers, progress)
            if not problems and row["checksums"] == "zenodo-md5":
                _unzip(folder, files)
        except KeyboardInterrupt:
            raise Stopped(f"{name}: interrupted; run the command again, it goes on where it stopped", signal.SIGINT) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"no space left in {folder}: make room, or choose another folder, and run the command again, complete files are kept"
            else:
                text = f"{error.filename or folder} cannot be written: {error.strerror or error}"
            raise CremaError(f"{name}: {text}") from None
    if problems:
        raise CremaError(f"{name}: {_count(problems, len(files))} could not be had from the archive; what came is in {folder}")
    print(f"{name}: {len(files):,} files, complete and checked, in {folder}")
    return folder


def _write_list(folder, files):
    """Keep the checksums of the files asked for, with those of earlier calls, before the first download: `verify` then sees what lacks."""
    algorithm = files[0].algorithm
    known = _read_list(folder) or (algorithm, {})
    lines = {**(known[1] if known[0] == algorithm else {}), **{file.name: file.digest for file in files}}
    part = folder / (LISTS[algorithm] + ".part")
    part.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(lines.items())), encoding="utf-8")
    os.replace(part, folder / LISTS[algorithm])


def _obtain_all(session, files, folder, workers, progress):
    """{file name: what is wrong} of the files that could not be had."""
    stop, lock, problems = threading.Event(), threading.Lock(), {}
    received, shown = 0, 0.0
    with tqdm(total=len(files), unit="file", disable=not progress) as bar, ThreadPoolExecutor(workers) as pool:

        def tick(count):
            nonlocal received, shown
            with lock:
                received += count
                if time.monotonic() - shown > 0.5:
                    shown = time.monotonic()
                    bar.set_postfix_str(f"{received / 1e6:,.0f} MB received")

        def obtain(file):
            try:
                return _obtain(session, file, folder, stop, tick)
            except BaseException:
                stop.set()  # no space, no network: the others would fail alike
                raise

        try:
            for start in range(0, len(files), 1000):  # a million queued tasks would fill the memory
                batch = files[start : start + 1000]
                for file, problem in zip(batch, pool.map(obtain, batch), strict=True):
                    bar.update()
                    if problem:
                        problems[file.name] = problem
                if len(problems) >= GIVE_UP:
                    break
        except BaseException:
            stop.set()
            raise
    return problems


def _obtain(session, file, folder, stop, tick):
    """One file, whole and checked, in its place: None, or what is wrong with it."""
    path = folder / file.name
    if stop.is_set() or (path.is_file() and paths.digest(path, file.algorithm) == file.digest):
        return None
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for _ in range(2):
            resumed = _persist(lambda: _receive(session, file.url, part, stop, tick), file.url)
            if paths.digest(part, file.algorithm) == file.digest:
                os.replace(part, path)
                return None
            part.unlink()
            if not resumed:  # else the first bytes may be of another version: once more, from the start
                break
        return "wrong checksum"
    except _Refused as error:
        return str(error)
    except _Stopped:
        return None


def _receive(session, url, part, stop, tick):
    """Continue `part` by one request; True where it holds bytes of an earlier request."""
    have = part.stat().st_size if part.is_file() else 0
    with session.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416 and have:  # no byte is left to send: the part is whole, or too long
            return True
        _raise_for(answer.status_code)
        resumed = have > 0 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if int(answer.headers.get("Content-Length", 0)) > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
        with open(part, "ab" if resumed else "wb") as out:
            for block in answer.iter_content(BLOCK):
                if stop.is_set():
                    raise _Stopped
                out.write(block)
                tick(len(block))
    return resumed


def _unzip(folder, files):
    """Unpack the archives among the files beside themselves; members that are there with their size are kept."""
    for path in (folder / file.name for file in files if file.name.endswith(".zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    target = path.parent / _inside(member.filename, path)
                    if not member.is_dir() and not (target.is_file() and target.stat().st_size == member.file_size):
                        archive.extract(member, path.parent)
        except zipfile.BadZipFile as error:
            raise CremaError(f"{path} cannot be unpacked: {error}") from None


def check(name, source=None, *, base_url=None, progress=True):
    """Compare a data set's files with the checksums of its archive.

    The list is the one in the folder (SHA256SUMS.txt or MD5SUMS.txt); where there is none, the archive is asked.

    Returns:
        DataFrame with `file` and `state`: ok, missing, truncated (shorter than its WFDB header says, or empty) or wrong checksum.

    Raises:
        CremaError: no folder, no list, a list that is none.
    """
    folder = locate(name, source)
    row = dataset(name) if name in load().index else None  # any folder with a list can be checked
    if (found := _read_list(folder)) is None:
        if row is None or row["access"] != "open":
            raise CremaError(f"{folder} has no SHA256SUMS.txt: download it from the archive into this folder, then verify again")
        with requests.Session() as session:
            files = _published(row, session, base_url)
        found = files[0].algorithm, {file.name: file.digest for file in files}
    algorithm, digests = found
    names = [n for n in digests if row is None or _wanted(n, row["part"])]
    with ThreadPoolExecutor(4) as pool:
        states = pool.map(lambda n: _state(folder / n, algorithm, digests[n]), names)
        states = list(tqdm(states, total=len(names), unit="file", disable=not progress, leave=False))
    return pd.DataFrame({"file": names, "state": states}, dtype=str)


def verify(name, source=None, *, base_url=None, progress=True):
    """`check`, raising CremaError with the number of wrong files and the first names unless every file is right."""
    report = check(name, source, base_url=base_url, progress=progress)
    wrong = report[report["state"] != "ok"]
    if len(wrong):
        text = _count(dict(zip(wrong["file"], wrong["state"], strict=True)), len(report))
        raise CremaError(f"{locate(name, source)}: {text} are not as the archive publishes them; fetch {name} again to repair")
    return report


def _count(problems, total):
    first = ", ".join(f"{name} ({problem})" for name, problem in list(problems.items())[:5])
    return f"{len(problems):,} of {total:,} files ({first}{', ...' if len(problems) > 5 else ''})"


def _state(path, algorithm, digest):
    try:
        if paths.digest(path, algorithm) == digest:
            return "ok"
        return "truncated" if path.stat().st_size < _header_size(path) else "wrong checksum"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _header_size(path):
    """Bytes that a signal file must have by the WFDB header beside it (header(5): formats of whole bytes and 212); 1 where none says."""
    bits = {"8": 8, "80": 8, "16": 16, "61": 16, "160": 16, "212": 12, "24": 24, "32": 32}
    try:
        lines = path.with_suffix(".hea").read_text(encoding="utf-8", errors="replace").splitlines()
        record, *rest = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        signals = [line for line in rest[: int(record[1].split("/")[0])] if line[0] == path.name]
        formats = [re.fullmatch(r"(\d+)(?:x(\d+))?(?::\d+)?(?:\+(\d+))?", line[1]) for line in signals]
        frame = sum(bits[f[1]] * int(f[2] or 1) for f in formats)
        return max(1, int(formats[0][3] or 0) + -(-frame * int(record[3]) // 8))
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 1
