"""One list of dependencies in three files, one address of the repository, and the files that a fresh machine starts from."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import crema_lib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["dev"])]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line and not line.startswith("#"))
URL = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_what_is_asked_for_has_a_lower_bound_and_a_pin_that_meets_it(asked):
    assert any(part.operator == ">=" for part in asked.specifier)
    pin = PINNED[canonicalize_name(asked.name)]
    assert asked.specifier.contains(pin), f"{asked} does not allow the {pin} of constraints.txt"


def test_only_the_theme_and_jupyter_book_have_an_upper_bound():
    capped = {asked.name for asked in ASKED if any(part.operator in ("<", "<=", "==", "~=") for part in asked.specifier)}
    assert capped == {"jupyter-book", "sphinx", "sphinx-book-theme", "pydata-sphinx-theme"}


def test_pins_fit_every_platform():
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in PINNED)
    assert not [name for name in PINNED if re.match(r"nvidia|cuda|triton|pywin", name)]
    assert not [pin for pin in PINNED.values() if Version(pin).local], "a local version such as +cpu exists on one platform only"


def test_what_is_installed_meets_the_bounds():
    for asked in ASKED:
        try:
            assert asked.specifier.contains(version(asked.name), prereleases=True), f"{asked.name} {version(asked.name)}, asked: {asked}"
        except PackageNotFoundError:
            pytest.fail(f"{asked.name} is not installed: make test installs what is missing")


def test_environment_yml_installs_the_same():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in env["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in env["dependencies"] if isinstance(entry, dict)]
    assert f"python{PROJECT['requires-python']}" in plain
    assert "pip" in plain
    assert pip == ["-c constraints.txt", "-e .[book]"], "the list itself stays in pyproject.toml"


def test_imports_are_declared():
    """Every module that crema_lib imports comes with Python or is asked for."""
    modules = {"sklearn": "scikit-learn", "yaml": "pyyaml", "umap": "umap-learn", "matplotlib_inline": "ipykernel", "IPython": "ipykernel"}
    modules |= {"PIL": "pillow"}
    asked = {canonicalize_name(entry.name) for entry in ASKED}
    for path in [*(ROOT / "crema_lib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        found += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        for module in (name.partition(".")[0] for name in found):
            if module not in sys.stdlib_module_names and module not in ("crema_lib", "benchmarks"):
                name = canonicalize_name(modules.get(module, module))
                assert name in asked, f"{path.name} imports {module}, which pyproject.toml does not ask for"


def test_imports_flow_in_the_direction_that_the_package_says():
    """A module's own imports, not those inside of functions, name only modules to its left in the list of `crema_lib/__init__.py`."""
    listed, package = re.findall(r"\w+", re.sub(r"\(.*?\)", "", crema_lib.__doc__.split("::")[1])), ROOT / "crema_lib"
    there = [path.stem for path in package.glob("*.py") if path.stem != "__init__"] + [p.parent.name for p in package.glob("*/__init__.py")]
    assert sorted(listed) == sorted(there)
    for path in package.rglob("*.py"):
        inside = path.relative_to(package).with_suffix("").parts
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == len(inside) and inside != ("__init__",):
                for module in [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]:
                    assert module not in listed or listed.index(module) < listed.index(inside[0]), f"{path.name} imports {module}"


def test_one_address_of_the_repository():
    assert PROJECT["urls"]["Repository"] == URL
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["repository-code"] == URL
    assert cff["version"] == crema_lib.__version__
    assert cff["license"] == PROJECT["license"] == "MIT"
    readme = ROOT / "README.md"
    assert readme.is_file()
    repo = URL.removeprefix("https://github.com/")
    for other in re.findall(r"github\.com/([\w-]+/crema[\w-]*)", readme.read_text()):
        assert other.removesuffix(".git") == repo


def test_make_explains_itself_and_refuses_an_old_python(tmp_path):
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make book" in shown
    assert "make test" in shown
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "book", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout + done.stderr
    assert "Python 3.8.10" in done.stdout + done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_script_is_a_script():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    assert "make test" in script.read_text()
