"""Every notebook has the anatomy that a reader of the course can rely on: its parts are the tests below.

Conventions that the tests read: a heading is a markdown line that starts with `#`; a cell that shows a widget,
and nothing else, carries the tag "widget" (no kernel, no view: `make notebooks` drops its output), one that gives what
a prediction asks for the tag "prediction-result" (its output is dropped as well); code that checks
an exercise has "check" in it; a figure's alt text is its output's metadata {"image/png": {"alt": ...}}.
"""

import re
import statistics
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "notebooks/00_generate_step_by_step.ipynb"  # always expected: no notebooks at all is a failure
PATHS = sorted({FIRST, *FIRST.parent.glob("*.ipynb")})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
FENCED = re.compile(r"```.*?```", re.DOTALL)  # a comment in quoted code is no heading
MEASURED = re.compile(r"[Mm]easured.*?([\d.]+) (s|seconds|min|minutes)\b.*?([\d.]+) (MB|GB)\b")
PAPER_TABLE = re.compile(r"^\|(?=.*\bpaper\b)(?=.*\bours\b).*\|\n\|[-:| ]+\|\n(?:\|.*\d.*\|\n?)+", re.M | re.I)
TIME_STAMP = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d|\b\d\d:\d\d:\d\d,\d{3}\b")
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])(?:/(?:home|root|Users|tmp|work|opt|usr|var|mnt)/|[A-Z]:\\)\w")

pytestmark = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def load(path: Path) -> NotebookNode:
    """The notebook, as nbformat reads it."""
    return nbformat.read(path, as_version=4)


def cells(notebook: NotebookNode, kind: str) -> list[NotebookNode]:
    """The notebook's "code" or "markdown" cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def is_widget(cell: NotebookNode) -> bool:
    """Whether a cell shows a widget."""
    return "widget" in cell.metadata.get("tags", [])


def is_prediction(cell: NotebookNode) -> bool:
    """Whether a cell gives what a prediction asks for: it is shown without its outputs, until it is run."""
    return "prediction-result" in cell.metadata.get("tags", [])


def sections(notebook: NotebookNode) -> list[tuple[str, list[NotebookNode]]]:
    """(heading, its cells) of each section, which ends where the next heading begins."""
    found: list[tuple[str, list[NotebookNode]]] = []
    for cell in notebook.cells:
        text = FENCED.sub("", cell.source) if cell.cell_type == "markdown" else ""
        headings = HEADING.findall(text)
        found += [(heading, [cell]) for heading in headings]
        if found and not headings:
            found[-1][1].append(cell)
    return found


def section(notebook: NotebookNode, heading: str) -> list[NotebookNode]:
    """The cells of the one section with this heading."""
    matching = [members for name, members in sections(notebook) if name == heading]
    assert len(matching) == 1, f"there must be one section {heading!r}, not {len(matching)}"
    return matching[0]


def shown_text(cell: NotebookNode) -> str:
    """A cell's own text with that of its outputs."""
    texts = [cell.source]
    for output in cell.get("outputs", []):
        texts.append(output.get("text", ""))
        texts += [data for mime, data in output.get("data", {}).items() if mime.startswith("text/")]
    return "\n".join(texts)


def test_is_valid_with_cell_ids(path: Path) -> None:
    notebook = load(path)
    nbformat.validate(notebook)
    ids = [cell.get("id") for cell in notebook.cells]
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert None not in ids
    assert len(set(ids)) == len(ids)


def test_runs_on_the_environments_own_kernel_within_a_time_limit(path: Path) -> None:
    metadata = load(path).metadata
    assert metadata.kernelspec.name == "python3"
    assert 0 < metadata.execution.timeout <= 600


def test_opens_with_title_badge_measurement_and_aims(path: Path) -> None:
    notebook = load(path)
    assert notebook.cells[0].source.startswith("# ")
    opening = "\n".join(cell.source for cell in notebook.cells[:4] if cell.cell_type == "markdown")
    home = REPOSITORY.removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{home}/blob/main/notebooks/{path.name}"
    assert re.search(rf"\[!\[[^\]]+\]\([^)]+\)\]\({re.escape(target)}\)", opening), f"no badge to {target}"
    assert MEASURED.search(opening), 'no line such as "Measured on 2 CPU cores: 75 s, 1.1 GB"'
    section(notebook, "What you will learn")


def test_first_code_cell_sets_up_here_and_on_colab(path: Path) -> None:
    setup = cells(load(path), "code")[0].source
    assert "google.colab" in setup
    assert REPOSITORY in setup
    assert "cotgen_lite" in setup.replace(REPOSITORY, "")
    # Ranking data are read with datasets, which comes with that extra; the first two chapters need none.
    assert ("./cotgen-lite[train]" in setup) == (path.name[:2] not in ("00", "01"))


def test_code_cells_are_short(path: Path) -> None:
    lengths = [len(cell.source.splitlines()) for cell in cells(load(path), "code")]
    assert statistics.median(lengths) <= 10
    assert max(lengths) <= 40


def test_asks_for_predictions_before_results(path: Path) -> None:
    notebook = load(path)
    asked = [i for i, cell in enumerate(notebook.cells) if "**Predict" in cell.source]
    assert asked, "no **Predict** question"
    for i in asked:
        answers = [cell for cell in notebook.cells[i + 1 : i + 3] if cell.cell_type == "code"]
        assert answers, "a **Predict** question stands right before the code that answers it"


def test_exercises_have_a_checker_and_a_folded_solution(path: Path) -> None:
    exercises = [members for name, members in sections(load(path)) if name.startswith("Exercise")]
    assert 2 <= len(exercises) <= 5
    for members in exercises:
        assert any("check" in cell.source for cell in members if cell.cell_type == "code")
        folded = [c.source for c in members if c.cell_type == "markdown" and "<details>" in c.source]
        assert folded
        assert all("<summary>" in text and "</details>" in text for text in folded)


def test_ends_with_the_papers_number_beside_ours_and_the_way_on(path: Path) -> None:
    notebook = load(path)
    learned = "\n".join(shown_text(cell) for cell in section(notebook, "What we learned"))
    assert PAPER_TABLE.search(learned), 'no table with the columns "paper" and "ours" and numbers'
    assert sections(notebook)[-1][0] == "Next"


def test_was_run_whole_from_top_to_bottom(path: Path) -> None:
    code = cells(load(path), "code")
    for count, cell in enumerate(code, start=1):
        assert cell.execution_count == count or is_widget(cell) or is_prediction(cell), "run `make notebooks`"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs, "outputs are kept, so that a reader on GitHub sees them"
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [cell for cell in code if is_prediction(cell) and cell.outputs], "run `make notebooks`"


def test_holds_nothing_that_differs_at_every_run(path: Path) -> None:
    notebook = load(path)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        assert not any("widget" in mime for output in cell.get("outputs", []) for mime in output.get("data", {}))
        text = shown_text(cell)
        assert not TIME_STAMP.search(text)
        assert not MACHINE_PATH.search(text)


def test_has_a_widget_and_every_figure_an_alt_text(path: Path) -> None:
    notebook = load(path)
    assert any(is_widget(cell) for cell in cells(notebook, "code"))
    figures = [o for c in cells(notebook, "code") for o in c.outputs if "image/png" in o.get("data", {})]
    assert figures
    for figure in figures:
        alt = figure.metadata.get("image/png", {}).get("alt", "")
        assert len(alt.split()) >= 4, "show figures with cotgen_lite.course.plots.show(figure, alt)"
    for cell in cells(notebook, "markdown"):
        assert "![](" not in cell.source
        assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", cell.source))


def test_readme_lists_it(path: Path) -> None:
    assert f"(notebooks/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
