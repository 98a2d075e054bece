"""What lets a run be killed at any moment: checkpoints that are whole or not there, one run a folder, and leaving when asked to.

A run's folder holds `checkpoints/STEP/state.pt`. A checkpoint is written beside its place (`STEP.part`), forced to the disk, and only then
renamed, so that whatever bears a step's number is whole; the last two are kept, and a damaged newest one gives way to the one before.
"""

import contextlib
import os
import shutil
import signal
import socket
import threading
import warnings
import zipfile

import torch
from safetensors import SafetensorError

from .errors import CremaError

try:
    import fcntl
except ImportError:  # Windows: nothing there is released by the kernel on a kill, so folders go unlocked
    fcntl = None


def found(out):
    """Folders of the checkpoints of a run, oldest first."""
    return sorted(folder for folder in (out / "checkpoints").glob("*") if folder.name.isdigit())


def kept(out):
    """A clause for error messages: what a run can go on from."""
    folders = found(out)
    return f"the checkpoint of step {int(folders[-1].name)} is kept" if folders else "there is no checkpoint yet"


@contextlib.contextmanager
def writing(out):
    """Turn a full disk or a folder that cannot be written to into a CremaError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save turns some of the first into the second
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CremaError(f"{out} cannot be written to ({reason}): make room or give another folder; {kept(out)}") from None


@contextlib.contextmanager
def lock(out):
    """Hold a run's folder, made if it is not there, against a second process. The kernel lets go of it however this process ends.

    Raises:
        CremaError: the folder cannot be written to, or another process holds it.
    """
    with writing(out):
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = open(out / "checkpoints" / "lock", "a+")  # noqa: SIM115 - closed below
    with file:
        try:
            if fcntl is None:
                raise OSError("no locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CremaError(f"{file.read() or 'another process'} is training in {out}: wait for it, or choose another folder") from None
        except OSError:
            warnings.warn(f"there are no locks for {out}: see to it that no second run uses this folder", stacklevel=3)
        with writing(out):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


@contextlib.contextmanager
def signals():
    """Collect SIGTERM and SIGINT instead of dying of them: yields the list of those that came. A second SIGINT is a KeyboardInterrupt.

    Signals that are ignored stay so, and outside the main thread, where Python allows no handlers, nothing is collected.
    """
    asked, before = [], {}

    def note(number, frame):
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is threading.main_thread():
        wanted = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _sync(folder):
    """Force a folder's entries to the disk; a file's own fsync says nothing of its name."""
    if os.name != "nt":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def save(out, state):
    """Write a checkpoint whole or not at all, and remove all but it and the one before.

    Args:
        out: folder of the run. state: dict of tensors, numbers, texts, lists and dicts, `step` among its keys.

    Raises:
        CremaError: it cannot be written, on a full disk for one; nothing of it stays, earlier ones do.
    """
    folder = out / "checkpoints" / f"{state['step']:08d}"
    part = folder.with_suffix(".part")
    with writing(out):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            with open(part / "state.pt", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            _sync(part)
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one: a run never comes to the step of a whole one twice
            part.rename(folder)
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        before = [old for old in found(out) if old.name < folder.name][-1:]
        for old in folder.parent.iterdir():  # what bears a later step was damaged, else the run had gone on from there
            if old.is_dir() and old not in (folder, *before):
                shutil.rmtree(old)


def saved(model, out, more=None):
    """Write the trained model of a run into `out/model`, and with `more(folder)` what belongs beside it.

    Raises:
        CremaError: it cannot be written, on a full disk for one.
    """
    with writing(out):
        model.save_pretrained(out / "model")
        if more is not None:
            more(out / "model")


def load(out):
    """The state in the newest checkpoint that is whole, on the CPU, or None where there is no checkpoint.

    Damage is found by the CRC-32 that `torch.save` puts beside each tensor. Warns where the newest was damaged.

    Raises:
        CremaError: there are checkpoints, and none can be read.
    """
    folders, reasons = found(out), []
    for folder in reversed(folders):
        try:
            with zipfile.ZipFile(folder / "state.pt") as archive:
                if wrong := archive.testzip():
                    raise OSError(f"{wrong} is not what was written")
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            reasons.append(f"the checkpoint {folder} cannot be read ({' '.join(str(error).split())[:200]})")
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}: going on from the one of step {state['step']}", stacklevel=2)
        return state
    if reasons:
        raise CremaError(f"{'; '.join(reasons)}: none is left to go on from; delete {out / 'checkpoints'} to start anew")
    return None


def differences(saved, identity, defaults):
    """What keeps a checkpoint from being one of this run, as texts; none where the run may go on.

    Args:
        saved, identity: JSON-like dicts of numbers, texts and dicts of such: of the checkpoint, and of the run.
        defaults: dict of the same shape. An entry that the checkpoint lacks came into the code after it was written: it counts as its
            default, and where it has none, as equal in the outer dict and as different in an inner one.
    """
    different = []
    for key, now in identity.items():
        if isinstance(now, dict) and key in {**saved, **defaults}:
            then = {**{name: value for name, value in defaults.get(key, {}).items() if name in now}, **saved.get(key, {})}
            names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            if names:
                different.append(f"{key} ({', '.join(f'{name} {then.get(name)} there, {now.get(name)} here' for name in names)})")
        elif (then := saved.get(key, defaults.get(key, now))) != now:
            different.append(f"{key} ({then} there, {now} here)")
    return different
