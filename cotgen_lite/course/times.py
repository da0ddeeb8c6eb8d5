"""How long every notebook runs and how much memory it takes: `python -m cotgen_lite.course.times`.

Each is executed once, alone, and nothing of it is kept but the two numbers, in data/results/notebooks.json; from there
they go into the notebooks' first cells, the README's table of the course and the instructor's guide.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from tqdm import tqdm

from cotgen_lite.course.guide import MEASURED, write_guide
from cotgen_lite.hub import data_root, insist_on_two_cores, write_atomically, write_json

MOST_SECONDS, MOST_GB, MOST_MINUTES_IN_ALL = 120, 4.0, 20


def measure(notebook: Path) -> dict[str, float]:
    """Execute a notebook: `seconds`, with the start of its kernel, and `gb`, the most memory that a process of it took.
    RuntimeError if a cell fails. Not on Windows, which does not say how much memory a process took. Call it from a
    small process: on Linux a child counts what its parent took when it was started."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nbconvert", "--log-level=ERROR", "--to=notebook", "--execute"]
        start = time.monotonic()
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        run = subprocess.Popen([*command, f"--output-dir={folder}", str(notebook)], env=offline)
        _, status, usage = os.wait4(run.pid, 0)  # of the run and of the kernel that it waited for
        run.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
    if run.returncode:
        raise RuntimeError(f"{notebook.name} failed: see the message above, and run it in JupyterLab.")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return {"seconds": round(seconds), "gb": round(usage.ru_maxrss * unit / 1e9, 1)}


def beyond_limits(times: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What takes more than a course on a laptop may: a sentence for each notebook, and for all together."""
    said = [
        f"{name} takes {one['seconds']:.0f} s and {one['gb']} GB; allowed are {MOST_SECONDS} s and {MOST_GB} GB."
        for name, one in times.items()
        if one["seconds"] > MOST_SECONDS or one["gb"] > MOST_GB
    ]
    minutes = sum(one["seconds"] for one in times.values()) / 60
    if minutes > MOST_MINUTES_IN_ALL:
        said.append(f"All together take {minutes:.0f} minutes; allowed are {MOST_MINUTES_IN_ALL}.")
    return said


def write_times(root: Path, times: Mapping[str, Mapping[str, float]]) -> None:
    """Put the times into the notebooks' first cells and the README's table. root: the repository."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name, one in times.items():
        path = root / f"notebooks/{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        line = f"Measured on 2 CPU cores: {one['seconds']:.0f} s, {one['gb']} GB"
        notebook.cells[0].source = MEASURED.sub(line, notebook.cells[0].source)
        write_atomically(path, nbformat.writes(notebook) + "\n")
        row = re.compile(rf"^(\|[^\n]*\(notebooks/{name}\.ipynb\)(?:[^|\n]*\|){{3}})[^|\n]*\|[^|\n]*\|", re.MULTILINE)
        readme = row.sub(rf"\g<1> {one['seconds'] / 60:.1f} min | {one['gb']} GB |", readme)
    write_atomically(root / "README.md", readme)


def main() -> None:
    """Measure all notebooks, say what changed, and write it down; exits with a message if something takes too much."""
    insist_on_two_cores()
    root, file = data_root().parent, data_root() / "results/notebooks.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    times = {}
    for notebook in tqdm(sorted((root / "notebooks").glob("[0-9]*.ipynb")), desc="notebooks"):
        times[notebook.stem] = measure(notebook)
        tqdm.write(f"{notebook.stem}: {times[notebook.stem]}, before: {before.get(notebook.stem, 'not measured')}")
    write_json(file, times)
    write_times(root, times)
    write_guide(root / "notebooks")
    sys.exit("\n".join(beyond_limits(times)) or None)


if __name__ == "__main__":
    main()
