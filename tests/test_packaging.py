"""pyproject.toml, requirements.txt, environment.yml and the Makefile describe one consistent environment."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORT_NAMES = {"PIL": "pillow", "sklearn": "scikit-learn"}  # of packages that are imported under another name
UNPINNED = {"bitsandbytes"}  # of use on a GPU alone, so that the course's environment does without


def declared() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, extras included, by canonical name."""
    lines = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def pinned(file: str = "requirements.txt") -> dict[str, Version]:
    """The version that a file pins, by canonical name."""
    pins = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-")):
            name, _, number = line.partition("==")
            pins[canonicalize_name(name)] = Version(number)
    return pins


def conda_environment() -> tuple[dict[str, str], list[str]]:
    """environment.yml's conda packages with their version specifiers, and the lines of its pip section."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip_section,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    conda = [re.fullmatch(r"([a-z]+)(.*)", entry) for entry in entries if isinstance(entry, str)]
    return {match[1]: match[2] for match in conda if match}, pip_section


def imported_packages() -> set[str]:
    """Canonical names of all third-party packages that the package imports anywhere, lazily included."""
    roots = set()
    for path in (ROOT / "cotgen_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                roots.add(node.module.split(".")[0])
    roots -= {*sys.stdlib_module_names, "cotgen_lite"}
    return {canonicalize_name(IMPORT_NAMES.get(root, root)) for root in roots}


def test_pins_and_ranges_name_the_same_packages() -> None:
    assert set(pinned()) == set(declared()) - UNPINNED


@pytest.mark.parametrize("name", sorted(declared()))
def test_range_has_a_lower_bound_and_admits_the_pin(name: str) -> None:
    specifier = declared()[name].specifier
    assert any(part.operator == ">=" for part in specifier), f"{name} needs a lower bound"
    assert name in UNPINNED or pinned()[name] in specifier


@pytest.mark.parametrize("name", sorted(set(declared()) - UNPINNED))
def test_the_lowest_version_that_is_allowed_is_the_lowest_that_is_tested(name: str) -> None:
    (least,) = (part.version for part in declared()[name].specifier if part.operator == ">=")
    assert pinned("requirements-lowest.txt")[name] == Version(least), "then try it: `make test-lowest`"


def test_every_import_of_the_package_is_declared() -> None:
    assert imported_packages() <= set(declared())


def test_conda_and_make_install_the_same_things() -> None:
    conda, pip_section = conda_environment()
    assert set(conda) == {"python", "pip"}
    # conda's "=3.11" means any 3.11: its first release must lie in the range that pyproject.toml promises.
    assert Version(conda["python"].lstrip("=")) in SpecifierSet(PROJECT["requires-python"])
    assert pip_section == ["-r requirements.txt", "-e ."]
    # make's environment is that pip section in a fresh virtual environment, so CI tries it at every run.
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"pip install $(PIP_ARGS) {' '.join(pip_section)}\n" in makefile


def test_only_wheels_are_installed() -> None:
    for file in ("requirements.txt", "requirements-lowest.txt"):
        assert "--only-binary :all:" in (ROOT / file).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(pinned()))
def test_this_environment_has_the_pinned_version(name: str) -> None:
    installed = Version(version(name)).public  # without a build's label such as "+cpu"
    assert installed == str(pinned()[name]), "run `make env`, or `pip install -r requirements.txt` in your environment"


def test_installed_packages_agree_with_each_other() -> None:
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
