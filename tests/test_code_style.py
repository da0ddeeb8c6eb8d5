"""The package keeps its own rules: small files, each with one job, and every public name explained."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "cotgen_lite").glob("**/*.py"))
MAX_LINES = 400


def explains_itself(node: ast.AST) -> bool:
    """Whether a method needs no docstring: a property, torch's `forward`, or a protocol's bare signature."""
    return (
        not isinstance(node, ast.FunctionDef)
        or node.name == "forward"
        or any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        or (isinstance(node.body[0], ast.Expr) and getattr(node.body[0].value, "value", None) is ...)
    )


def undocumented(path: Path) -> list[str]:
    """Public functions, classes and methods of a file that lack a docstring, the module itself included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    methods = [m for c in classes if not c.name.startswith("_") for m in c.body if not explains_itself(m)]
    public = [node for node in (*classes, *functions, *methods) if not node.name.startswith("_")]
    missing = [f"{node.name} (line {node.lineno})" for node in public if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) else ["the module", *missing]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_small_and_documented(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: split it by job"
    assert undocumented(path) == []


def test_no_file_without_a_job() -> None:
    assert {path.stem for path in FILES}.isdisjoint({"utils", "util", "helpers", "common", "misc"})
