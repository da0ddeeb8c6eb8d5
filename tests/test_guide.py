"""The guide says what the notebooks say, and every word of the glossary is linked where it is first explained."""

import re
from pathlib import Path

import nbformat
import pytest

from cotgen_lite.course.guide import PREDICT, prose, question_lines, time_lines, write_guide
from cotgen_lite.hub import data_root

NOTEBOOKS = sorted((data_root().parent / "notebooks").glob("[0-9]*.ipynb"))
FOLDER = NOTEBOOKS[0].parent


def test_the_guide_is_up_to_date(tmp_path: Path) -> None:
    guide = FOLDER / "TEACHING.md"
    for notebook in NOTEBOOKS:
        (tmp_path / notebook.name).symlink_to(notebook)
    (tmp_path / guide.name).write_text(guide.read_text())
    write_guide(tmp_path)
    assert (tmp_path / guide.name).read_text() == guide.read_text()  # else: python -m cotgen_lite.course.guide


def test_times_predictions_and_exercises_are_taken_from_the_notebooks(tmp_path: Path) -> None:
    cells = ["# 42 · Chess: a game\n\nMeasured on 2 CPU cores: 7 s, 0.5 GB.", "**Predict:** who\nwins?\n\nText."]
    cells += ["## Exercise 1 (easy): a\n\nDo it.\n\n**Predict:** why?", "## Exercise 2 (hard): b"]
    cells += ["## Exercise 3 (core, 12 minutes): c", "## Exercise 4 (core, 5 minutes): d"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in cells])
    notebook.cells.append(nbformat.v4.new_code_cell("# **Predict:** no"))
    nbformat.write(notebook, tmp_path / "42_chess.ipynb")
    told = time_lines([tmp_path / "42_chess.ipynb"])
    assert told[2:] == ["| [42 · Chess](42_chess.ipynb) | 7 s | 0.5 GB | 2 | easy, hard, core (12 min), core (5 min) |"]
    assert question_lines([tmp_path / "42_chess.ipynb"]) == ["**42 · Chess: a game**", "", "- who wins?", "- why?"]
    notebook.cells[0].source = "# 42 · Chess"
    nbformat.write(notebook, tmp_path / "42_chess.ipynb")
    with pytest.raises(ValueError, match="does not say"):
        time_lines([tmp_path / "42_chess.ipynb"])


def test_chapters_that_the_guide_and_the_glossary_name_exist() -> None:
    sections = {line for notebook in NOTEBOOKS for line in prose(notebook).splitlines() if line.startswith("## ")}
    paths = (FOLDER / "TEACHING.md").read_text().partition("## Three paths")[2].partition("## How to use")[0]
    skips = (FOLDER / "TEACHING.md").read_text().partition("## What to skip")[2].partition("## Marking")[0]
    named = re.findall(r'"([^"]+)"', paths + skips)
    assert len(named) > 5
    for name in named:
        assert any(name in section for section in sections), name
    assert len(PREDICT.findall(prose(NOTEBOOKS[0]))) >= 5


def glossary() -> dict[str, str]:
    """Anchor of each entry, as GitHub makes it, and the notebook that it names."""
    found: dict[str, str] = {}
    text = (FOLDER / "GLOSSARY.md").read_text()
    for name, body in re.findall(r"^### ([^\n]*)\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
        anchor += "-1" if anchor in found else ""
        (found[anchor],) = re.findall(r"\((\d\d_\w+\.ipynb)\)", body)
    return found


def test_every_word_of_the_glossary_is_linked_where_it_is_explained() -> None:
    links = {notebook.name: re.findall(r"\(GLOSSARY\.md#([\w-]+)\)", prose(notebook)) for notebook in NOTEBOOKS}
    words = glossary()
    assert len(words) >= 28
    for word, chapter in words.items():
        assert [name for name, linked in links.items() if word in linked] == [chapter], word
    assert {word for linked in links.values() for word in linked} == set(words)
