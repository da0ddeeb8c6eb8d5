"""The instructor's guide takes from the notebooks what they say themselves: times, predictions and exercises.

`python -m cotgen_lite.course.guide` puts it between the markers of notebooks/TEACHING.md.
"""

import re
from pathlib import Path

import nbformat

from cotgen_lite.hub import data_root, write_atomically

PREDICT = re.compile(r"\*\*Predict:\*\*(.*?)(?:\n\n|$)", re.DOTALL)
MEASURED = re.compile(r"Measured on 2 CPU cores: (\d+) s, ([\d.]+) GB")


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
        exercises = ", ".join(re.findall(r"^## Exercise \d+ \((.*?)\)", text, re.MULTILINE))
        seconds, memory = measured.groups()
        asked = len(PREDICT.findall(text))
        lines.append(f"| [{title}]({notebook.name}) | {seconds} s | {memory} GB | {asked} | {exercises} |")
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


if __name__ == "__main__":
    write_guide(data_root().parent / "notebooks")
