"""What several test modules share: the real recordings, a throw-away book, the whole book built once, and how to call Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
SLOW = ("test_book", "test_benchmarks", "test_notebooks", "test_site", "test_parallel", "test_checkpoints", "test_cli", "test_pretrain")


def pytest_configure(config):
    """The workers share the cores: with a thread of each for every core they would wait for one another. Read when torch is loaded."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_collection_modifyitems(items):
    """The files that take longest come first: begun last, one of them would keep a worker busy while the other has nothing left."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def real_data():
    """Folder of the unpacked real recordings."""
    folder = os.environ.get("CREMA_REAL_DATA", "")
    if not folder:
        pytest.skip("CREMA_REAL_DATA is not set: it names the folder of the unpacked real recordings")
    if not Path(folder).is_dir():
        pytest.skip(f"CREMA_REAL_DATA names {folder}, which is not there")
    return Path(folder)


@pytest.fixture(scope="session")
def python():
    """Call this Python with some arguments; returns the finished process with its output as text."""

    def call(*args, home=ROOT, cwd=ROOT, timeout=300):
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            env={**os.environ, "CREMA_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call


def write_chapter(path, *sources, parameters='profile: str = "quick"  # profile\nseed: int = 0  # start'):
    """A small chapter: title, parameters cell, set-up, then the given code cells."""
    cells = [
        new_markdown_cell(f"# {path.stem}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell(f'from crema_lib import notebook\n\np = notebook.setup("{path.stem}")'),
        *map(new_code_cell, sources),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A book of one page and no chapter with the real configuration, as the project folder of this process."""
    (tmp_path / "book").mkdir()
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    shutil.copytree(ROOT / "params", tmp_path / "params")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (tmp_path / "book" / "intro.md").write_text("# A book\n\nOf one page.\n")
    (tmp_path / "book" / "references.bib").write_text("")
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def quick_book(tmp_path_factory, python):
    """The build folder of the whole book, every chapter run with the profile quick: that of $CREMA_BUILT, or one made here."""
    if built := os.environ.get("CREMA_BUILT"):
        return Path(built).resolve()
    out = tmp_path_factory.mktemp("book")
    done = python("-m", "crema_lib", "book", "--profile", "quick", "--out", out, "-p", f"out={out / 'runs'}", timeout=1500)
    assert done.returncode == 0, done.stderr + done.stdout
    return out
