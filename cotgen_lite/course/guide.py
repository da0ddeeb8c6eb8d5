"""What the notebooks tell of themselves: how long they run, in how much memory, and what they ask.

`python -m cotgen_lite.course.guide` puts it between the markers of the instructor's guide, notebooks/TEACHING.md; with
`measure` behind it, every notebook is executed first, once and alone, and seconds and memory go into
data/results/notebooks.json, the notebooks' first cells and the README's table of the course.
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

from cotgen_lite.hub import data_root, insist_on_two_cores, write_atomically, write_json

PREDICT = re.compile(r"\*\*Predict:\*\*(.*?)(?:\n\n|$)", re.DOTALL)
MEASURED = re.compile(r"Measured on 2 CPU cores: (\d+) s, ([\d.]+) GB")
MOST_SECONDS, MOST_GB, MOST_MINUTES_IN_ALL = 120, 4.0, 20


def prose(notebook: Path) -> str:
    """All markdown cells of a notebook, one after the other."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def time_lines(notebooks: list[Path]) -> list[str]:
    """A table of the chapters: seconds and memory to run them, predictions to make, exercises by difficulty."""
    lines = ["| chapter | runs in | memory | predictions | exercises |", "|---|---|---|---|---|"]
    for notebook in notebooks:
        text = prose(notebook)
        measured = MEASURED.search(text)
        if measured is None:
            raise ValueError(f"{notebook.name} does not say 'Measured on 2 CPU cores: N s, M GB': add that line.")
        title = text.splitlines()[0].removeprefix("# ").split(":")[0]
        levels = re.findall(r"^## Exercise \d+ \((.*?)\)", text, re.MULTILINE)
        exercises = ", ".join(re.sub(r", (\d+) minutes$", r" (\1 min)", level) for level in levels)
        seconds, gb, asked = *measured.groups(), len(PREDICT.findall(text))
        lines.append(f"| [{title}]({notebook.name}) | {seconds} s | {gb} GB | {asked} | {exercises} |")
    return lines


def question_lines(notebooks: list[Path]) -> list[str]:
    """Every prediction that the notebooks ask for, by chapter: questions to ask a class before a result is shown."""
    lines: list[str] = []
    for notebook in notebooks:
        text = prose(notebook)
        lines += ["", f"**{text.splitlines()[0].removeprefix('# ')}**", ""]
        lines += [f"- {' '.join(question.split())}" for question in PREDICT.findall(text)]
    return lines[1:]


def write_guide(folder: Path) -> None:
    """Put both between the markers of the guide in a folder of notebooks."""
    guide, notebooks = folder / "TEACHING.md", sorted(folder.glob("[0-9]*.ipynb"))
    text = guide.read_text(encoding="utf-8")
    for name, lines in (("times", time_lines(notebooks)), ("questions", question_lines(notebooks))):
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        text = "\n".join([text.partition(start)[0] + start, *lines, end + text.partition(end)[2]])
    write_atomically(guide, text)


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
    in_all = f"All together take {minutes:.0f} minutes; allowed are {MOST_MINUTES_IN_ALL}."
    return [*said, in_all] if minutes > MOST_MINUTES_IN_ALL else said


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


def measure_all(root: Path) -> dict[str, dict[str, float]]:
    """Measure all notebooks of the repository, say what changed, and write it down."""
    insist_on_two_cores()
    file, times = data_root() / "results/notebooks.json", {}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for notebook in tqdm(sorted((root / "notebooks").glob("[0-9]*.ipynb")), desc="notebooks"):
        times[notebook.stem] = measure(notebook)
        tqdm.write(f"{notebook.stem}: {times[notebook.stem]}, before: {before.get(notebook.stem, 'not measured')}")
    write_json(file, times)
    write_times(root, times)
    return times


if __name__ == "__main__":
    root = data_root().parent
    times = measure_all(root) if sys.argv[1:] == ["measure"] else {}
    write_guide(root / "notebooks")
    sys.exit("\n".join(beyond_limits(times)) or None)
