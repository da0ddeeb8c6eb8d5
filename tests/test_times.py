"""What the course says of its own times is what was measured, and within what a laptop and a lesson allow."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cotgen_lite.course.guide import beyond_limits, measure, write_times
from cotgen_lite.hub import data_root

ROOT = data_root().parent
TIMES = json.loads((data_root() / "results/notebooks.json").read_text())


def test_all_notebooks_were_measured_and_keep_to_the_limits() -> None:
    assert list(TIMES) == [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    assert beyond_limits(TIMES) == []


def test_readme_says_how_long_all_notebooks_take() -> None:
    readme = (ROOT / "README.md").read_text()
    minutes = math.ceil(sum(one["seconds"] for one in TIMES.values()) / 60)
    assert f"`make course` takes about {minutes} minutes on two idle cores" in " ".join(readme.split())


def test_notebooks_and_readme_say_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    pages = ["README.md", *(f"notebooks/{name}.ipynb" for name in TIMES)]
    for page in pages:
        (tmp_path / page).write_text((ROOT / page).read_text())
    write_times(tmp_path, TIMES)
    for page in pages:  # else: python -m cotgen_lite.course.guide measure
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), page
    write_times(tmp_path, {name: {"seconds": 61, "gb": 3.5} for name in TIMES})
    assert (tmp_path / "README.md").read_text().count("| 1.0 min | 3.5 GB |") == len(TIMES)
    for page in pages[1:]:
        assert "Measured on 2 CPU cores: 61 s, 3.5 GB." in (tmp_path / page).read_text()


def test_what_is_too_much_is_said() -> None:
    assert beyond_limits({"a": {"seconds": 120, "gb": 4.0}}) == []
    assert "b takes 121 s" in beyond_limits({"b": {"seconds": 121, "gb": 1.0}})[0]
    assert "4.1 GB" in beyond_limits({"c": {"seconds": 1, "gb": 4.1}})[0]
    assert "21 minutes" in beyond_limits({str(i): {"seconds": 105, "gb": 1} for i in range(12)})[0]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="only where the system says how much memory a process took")
def test_memory_and_failure_of_a_notebook_are_seen(tmp_path: Path) -> None:
    def written(source: str) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, tmp_path / "one.ipynb")
        return tmp_path / "one.ipynb"

    # In a process of its own: on Linux a child counts what its parent took when it was started.
    program = "import sys; from pathlib import Path; from cotgen_lite.course.guide import measure; "
    program += "print(measure(Path(sys.argv[1])))"
    taken = subprocess.check_output([sys.executable, "-c", program, written("x = bytearray(b'1') * 600_000_000")])
    assert 0.6 < ast.literal_eval(taken.decode())["gb"] < 0.9
    with pytest.raises(RuntimeError, match=r"one\.ipynb failed"):
        measure(written("1 / 0"))
