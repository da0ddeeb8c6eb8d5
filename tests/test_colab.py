"""Notebooks on Colab, as far as that can be had here: their own set-up cell, in an environment like Colab's.

It has the kernel and the libraries that Colab had in August 2026 (the list is public: googlecolab/backend-info), but
torch, which is this environment's own. The working tree takes the place of the published repository. What Colab lacks
comes from the package index, in the newest versions: so the tests hold pyproject.toml's bounds, not the pins.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, distributions, version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COLAB = """
    contourpy==1.3.3 cycler==0.12.1 fonttools==4.63.0 kiwisolver==1.5.0 matplotlib==3.10.0 numpy==2.1.3
    packaging==26.3 pillow==11.3.0 pyparsing==3.3.2 python-dateutil==2.9.0.post0 six==1.17.0 tqdm==4.67.3
    backcall==0.2.0 decorator==4.4.2 entrypoints==0.4 ipykernel==6.17.1 ipython==7.34.0 ipython-genutils==0.2.0
    ipywidgets==7.7.1 jupyter_client==7.4.9 jupyter_core==5.9.1 matplotlib-inline==0.2.2 nest-asyncio==1.6.0
    pexpect==4.9.0 pickleshare==0.7.5 platformdirs==4.11.3 prompt_toolkit==3.0.53 psutil==5.9.5 ptyprocess==0.7.0
    pygments==2.21.0 pyzmq==26.2.1 tornado==6.5.7 traitlets==5.7.1 wcwidth==0.8.2
    accelerate==1.14.0 datasets==4.0.0 huggingface_hub==1.27.0 peft==0.20.0 safetensors==0.8.0 tokenizers==0.22.2
    transformers==5.15.0 pip==24.1.2
"""
TORCH = "torch==2.11.0"  # likewise, but too large to install here
UPGRADED = {"datasets", "huggingface-hub", "tokenizers", "transformers"}  # too old there, and not loaded at the start
LAUNCHER = """
import google.colab
from ipykernel import kernelapp

kernelapp.launch_new_instance()
"""
WHERE = "from cotgen_lite import hub\nprint(hub.__file__, end='')"


@dataclass(frozen=True)
class Runtime:
    """A machine like Colab's: its Python, that Python's site-packages, and where Jupyter finds its kernel."""

    python: Path
    packages: Path
    kernels: Path

    def versions(self) -> dict[str, str]:
        """The version of each package that is installed, by canonical name."""
        return {canonicalize_name(d.name): d.version for d in distributions(path=[str(self.packages)])}


def link_installed(name: str, packages: Path, known: set[str]) -> None:
    """Give another site-packages this environment's copy of a package and of all that it requires, without a download.

    Hard links: whatever pip does there, the files here stay. `known` are packages to leave out; it grows.
    """
    known.add(canonicalize_name(name))
    found = distribution(name)
    for file in found.files or ():
        if ".." not in file.parts:  # scripts name the Python here
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.locate(), target)
            except OSError:  # another disk
                shutil.copy2(file.locate(), target)
    for required in map(Requirement, found.requires or ()):
        wanted = required.marker is None or required.marker.evaluate({"extra": ""})
        if wanted and canonicalize_name(required.name) not in known:
            link_installed(required.name, packages, known)


def publish(folder: Path) -> Path:
    """A repository whose one commit is the working tree, as it is now but for what git ignores."""
    git = ["git", f"--git-dir={folder}", f"--work-tree={ROOT}", "-c", "core.compression=0"]
    git += ["-c", "user.name=test", "-c", "user.email=test"]
    commit = ["commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message=now"]
    subprocess.run(["git", "init", "--quiet", "--bare", folder], check=True)
    subprocess.run([*git, "add", "--all", "."], check=True, cwd=ROOT)
    subprocess.run([*git, *commit], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A machine like Colab's, on which nothing of the course is installed."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    python = home / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    # torch needs a newer setuptools than a fresh environment has.
    wanted = [*COLAB.split(), f"setuptools=={version('setuptools')}"]
    pip = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False)
    if pip.returncode:
        pytest.skip(f"no package index within reach that has what Colab has: {pip.stderr.strip().splitlines()[-1]}")
    (packages,) = (home / "venv/lib").glob("python*/site-packages")
    link_installed("torch", packages, known={"setuptools"})
    (packages / "google/colab").mkdir(parents=True)
    (packages / "google/colab/__init__.py").write_text("import PIL, numpy  # as Colab's own does\n")
    (packages / "colab_kernel_launcher.py").write_text(LAUNCHER)
    variables = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "PIP_COMPILE": "0",  # for time's sake: most of what is installed is never imported
        "IPYTHONDIR": str(home / "ipython"),
        "COTGEN_GUESSES": str(home / "guesses.json"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{publish(home / 'published')}.insteadOf",
        "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"],
    }
    start = [str(python), "-m", "colab_kernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": start, "display_name": "Colab", "language": "python", "env": variables}
    (home / "jupyter/kernels/colab").mkdir(parents=True)
    (home / "jupyter/kernels/colab/kernel.json").write_text(json.dumps(kernel))
    return Runtime(python, packages, home / "jupyter")


@pytest.fixture
def colab(machine: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """The same machine for each test, without the package."""
    monkeypatch.setenv("JUPYTER_PATH", str(machine.kernels))
    yield machine
    subprocess.run([machine.python, "-m", "pip", "uninstall", "--quiet", "--yes", "cotgen-lite"], check=True)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(cells: list[NotebookNode], folder: Path) -> list[NotebookNode]:
    """The cells, executed by a new kernel of Colab's in a folder; one that fails, fails the test."""
    notebook = nbformat.v4.new_notebook(cells=copy.deepcopy(cells))
    resources = {"metadata": {"path": str(folder)}}
    try:
        NotebookClient(notebook, kernel_name="colab", timeout=600, resources=resources).execute()
    except CellExecutionError as error:
        setup = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
        without_colors = re.sub(r"\x1b\[[\d;]*m", "", f"{error}\nThe set-up cell said:\n{setup}")
        pytest.fail(without_colors, pytrace=False)
    return notebook.cells


def said(cell: NotebookNode) -> list[str]:
    """What a cell printed, then the kinds and words of what it showed; no warnings, and no digits.

    A sampled number's last digits, and now and then a count, may differ between processors.
    """
    words = ["".join(output.text for output in cell.outputs if output.get("name") == "stdout")]
    for data in (output.data for output in cell.outputs if "data" in output):
        words.append(f"{sorted(data)}: {data.get('text/markdown', data['text/plain'])}")
    return [re.sub(r"\d[\d.,]*", "#", text) for text in words]


def test_set_up_cells_differ_in_the_extra_alone() -> None:
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    cells = [code_cells(nbformat.read(path, as_version=4))[0].source for path in paths]
    assert len({cell.replace("./cotgen-lite[train]", "./cotgen-lite") for cell in cells}) == 1


def test_what_colab_has_lies_in_our_ranges() -> None:
    """What its kernel loads at the start can be replaced by a restart alone, and torch takes gigabytes."""
    has = {canonicalize_name(one.name): one.specifier for one in map(Requirement, [*COLAB.split(), TORCH])}
    needs = {canonicalize_name(one.name): one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    pins = {name: str(has[name]).removeprefix("==") for name in needs.keys() & has.keys()}
    assert {name for name, pin in pins.items() if pin not in needs[name]} == UPGRADED & needs.keys()


# A git that clones half and is killed, or all of it; a pip that fails, or makes the package importable as it ends.
GIT = """#!/bin/sh
echo git >> calls
for folder; do true; done
mkdir "$folder" && [ ! -e git-fails ] && mkdir "$folder/cotgen_lite" && echo > "$folder/cotgen_lite/__init__.py"
"""
PIP = """#!/bin/sh
echo pip >> calls
[ ! -e pip-fails ] && cp -r cotgen-lite/cotgen_lite packages
"""
START = """
import importlib.util, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.path[:0] = ["", "packages"]
try:
    exec(open("cell.py").read())
finally:
    spec = importlib.util.find_spec("cotgen_lite")
    print(spec and spec.origin)
"""


def test_an_interrupted_set_up_cell_starts_again(tmp_path: Path) -> None:
    cell = code_cells(nbformat.read(ROOT / "notebooks/03_prm.ipynb", as_version=4))[0].source
    (tmp_path / "cell.py").write_text(cell)
    (tmp_path / "packages").mkdir()
    for name, script in (("git", GIT), ("pip", PIP)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cotgen_lite/cotgen_lite").mkdir(parents=True)  # a clone of an older cell, which is no package

    def start(*failing: str) -> tuple[bool, list[str], str]:
        for name in ("git-fails", "pip-fails", "calls"):
            (tmp_path / name).unlink(missing_ok=True)
        for name in (*failing, "calls"):
            (tmp_path / name).touch()
        path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = [sys.executable, "-S", "-c", START]
        done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
        return not done.returncode, (tmp_path / "calls").read_text().split(), done.stdout.strip()

    installed = str(tmp_path / "packages/cotgen_lite/__init__.py")
    assert start("git-fails") == (False, ["git"], "None")  # leaves half a clone
    assert start("pip-fails") == (False, ["git", "pip"], "None")
    assert start("pip-fails") == (False, ["pip"], "None")  # what is cloned stays, and nothing is taken for installed
    ended, calls, origin = start()
    assert ended and calls == ["pip"] and origin == str(tmp_path / "cotgen-lite/cotgen_lite/__init__.py")
    assert start() == (True, [], installed)  # as after "Restart session"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"), [("00_generate_step_by_step", ""), ("02_finetuned_orm", "finetune_verifier(")], ids=["00", "02"]
)
def test_notebook_runs_on_colab(colab: Runtime, tmp_path: Path, name: str, last: str) -> None:
    """`last`: what stands in the last cell to run, for a part that trains; nothing for the whole notebook."""
    written = code_cells(nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4))
    if last:
        written = written[: 1 + next(k for k, cell in enumerate(written) if last in cell.source)]
    where = nbformat.v4.new_code_cell(WHERE)
    before = colab.versions()

    *cells, found = run([*written, where], tmp_path)

    package = str(tmp_path / "cotgen-lite/cotgen_lite/hub.py")
    assert found.outputs[0].text == package
    after = colab.versions()
    assert {name for name in before if after.get(name) != before[name]} <= UPGRADED
    for here, there in zip(written[1:], cells[1:], strict=True):
        if not {"widget", "prediction-result"} & {*here.metadata.get("tags", [])}:  # which ship without outputs
            assert said(there) == said(here), here.source

    setup, found = run([written[0], where], tmp_path)  # as after "Restart session"
    assert not setup.outputs
    assert found.outputs[0].text == package
