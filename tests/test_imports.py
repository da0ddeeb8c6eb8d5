"""What importing the package loads; who imports whom inside it is import-linter's (`make lint`)."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cotgen_lite"
CORE = sorted(
    [*PACKAGE.glob("*.py"), *(f for folder in ("generate", "verify", "align") for f in PACKAGE.glob(f"{folder}/*.py"))]
)
HEAVY = {"IPython", "datasets", "ipywidgets", "matplotlib", "trl"}  # the core imports these only where it needs them


def imported_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """The packages that a file's code imports as soon as it is imported itself."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ClassDef | ast.Try | ast.With):
            yield from imported_at_once(node.body)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from imported_at_once([*node.body, *node.orelse])


def test_the_core_loads_no_notebook_plot_or_training_library() -> None:
    found = {
        path.name: HEAVY & set(imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body)) for path in CORE
    }
    assert not {name: heavy for name, heavy in found.items() if heavy}


def test_importing_the_package_loads_no_torch() -> None:
    loaded = "import cotgen_lite, sys; print({'torch', 'transformers', 'numpy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_readme_lists_parts_in_the_order_in_which_they_import_each_other() -> None:
    listed = re.findall(
        r"^  (\w+)(?:\.py|/) ", (PACKAGE.parent / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [part for layer in reversed(layers) for part in re.split(r" [|:] ", layer)]
    assert listed == [part for part in order if part != "build"]
    files = [f"{part}.py" for part in listed if (PACKAGE / f"{part}.py").exists()]
    for name, following in pairwise([*files, "generate/vq.py"]):
        opening = ast.get_docstring(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))) or ""
        assert re.search(rf"Read (next:|on in) `?{following}", opening), name
