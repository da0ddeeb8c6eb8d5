"""What chapter 11 stands on: guesses that are kept, tables of the paper's rows, and its figures and explorer."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from cotgen_lite.course import predictions
from cotgen_lite.course.ch11 import draw_findings, draw_guesses, draw_two, method_explorer
from cotgen_lite.course.plots import to_png
from cotgen_lite.experiments.report import LABELS, PAPER, TABLES, paper_table, rows_by_method
from cotgen_lite.hub import data_root


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COTGEN_GUESSES", str(tmp_path / "mine" / "guesses.json"))
    return tmp_path / "mine" / "guesses.json"


def test_guesses_are_kept_and_changed(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions.guess("parm", None)
    assert "No guess yet" in capsys.readouterr().out and not own_file.exists() and predictions.kept() == {}
    predictions.guess("parm", 0.9)
    predictions.guess("baseline", 1)
    predictions.guess("parm", 0.7)
    assert "Kept: 0.70 for PARM, 20 paths" in capsys.readouterr().out
    assert list(predictions.kept().items()) == [("baseline", 1.0), ("parm", 0.7)]
    assert predictions.mean_distance(predictions.kept(), {"baseline": 0.5, "parm": 0.8, "dpo": 0}) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"write \.5 for 50%"):
        predictions.guess("parm", 70)
    with pytest.raises(ValueError, match="'nothing' is not guessed"):
        predictions.guess("nothing", 0.5)
    assert predictions.kept()["parm"] == 0.7


@pytest.mark.parametrize("wrong", ["0.5", "50%", float("nan"), float("inf"), -0.1, True, [0.5], {}, torch.ones(2), 1j])
def test_what_is_no_guess_is_refused_in_a_sentence(wrong: Any, own_file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^Your guess \(write \.5 for 50%\) must be a finite number from 0 to 1, got .*\.$"
    ):
        predictions.guess("parm", wrong)
    with pytest.raises(ValueError, match="is not guessed: one of baseline, "):
        predictions.guess(wrong, 0.5)
    assert not own_file.exists()


def test_guesses_of_any_kind_of_number_are_kept(own_file: Path) -> None:
    for right in (np.float32(0.5), torch.tensor(0.5), np.array(0.5), Fraction(1, 2)):
        predictions.guess("dpo", right)
        assert predictions.kept() == {"dpo": 0.5}


@pytest.mark.parametrize(
    "damage", ["", "{", "[]x", "3", "null", '["parm"]', '{"parm": "0.5"}', '{"parm": 7}', "\udc80"]
)
def test_a_damaged_file_of_guesses_is_said_and_replaced(damage: str, own_file: Path, capsys: Any) -> None:
    own_file.parent.mkdir()
    own_file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert predictions.kept() == {} and "guesses.json holds no guesses that can be read" in capsys.readouterr().out
    predictions.guess("parm", 0.25)
    assert predictions.kept() == {"parm": 0.25}


def test_guesses_that_cannot_be_written_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COTGEN_GUESSES", str(tmp_path / "file" / "guesses.json"))
    predictions.guess("parm", 0.25)
    assert re.search("^Not kept, .*guesses.json cannot be written: .*COTGEN_GUESSES", capsys.readouterr().out, re.M)


def test_each_guess_is_asked_for_in_its_chapter_and_has_a_result() -> None:
    for method, chapter in predictions.GUESSED.items():
        results = rows_by_method(data_root() / "next" if chapter in predictions.SECOND_WORLD else data_root())
        (notebook,) = (data_root().parent / "notebooks").glob(f"{chapter}_*.ipynb")
        cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        assert sum(f'guess("{method}", None)' in source for source in cells) == 1, chapter
        assert method in results and method in PAPER


def test_tables_hold_the_papers_rows_and_ours() -> None:
    results = rows_by_method(data_root())
    assert {method for method in PAPER if method.startswith("seq:")} <= set(TABLES[4])
    assert set(PAPER) <= {method for methods in TABLES.values() for method in methods}
    for table, methods in TABLES.items():
        lines = paper_table(data_root(), (table,))
        assert len(lines) == 2 + len(methods) and len({line.count("|") for line in lines}) == 1
        for line, method in zip(lines[2:], methods, strict=True):
            assert f"| **{results[method]['overall']:.3f}** |" in line
            assert (f"| {PAPER[method][-1]:.2f} |" if method in PAPER else "| – |") in line
    assert paper_table(data_root(), (1, 2))[2:] == [
        line for table in (1, 2) for line in paper_table(data_root(), (table,))[2:]
    ]


def test_guesses_stand_where_they_should() -> None:
    figure = draw_guesses(["a", "b"], [(0.5, 0.4, 0.6), (0.8, 0.7, 0.9)], [0.4, 0.6], [None, 0.3])
    axis = figure.axes[0]
    points = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
    assert points["your guess"] == [(0.3, 1)] and points["the paper's"] == [(0.4, 0), (0.6, 1)]
    assert to_png(figure)
    figure = draw_guesses(["a"], [(0.5, 0.4, 0.6)], [0.4], [None])
    assert "your guess" not in [line.get_label() for line in figure.axes[0].lines]
    plt.close(figure)


def test_findings_are_told_apart_by_sign_too() -> None:
    entry = {"delta": 0.1, "ci": [0.0, 0.3]}
    findings = {name: entry | {"seen": seen} for name, seen in (("F1", "yes"), ("F2", "no"), ("F3", "undecided"))}
    figure = draw_findings(findings, dict.fromkeys(findings, "a is above b"))
    marks = [line.get_marker() for line in figure.axes[0].lines if line.get_marker() not in ("None", "", None, "|")]
    assert len(set(marks)) == 3
    assert figure.axes[0].get_yticklabels()[0].get_text() == "F1: a is above b"
    assert to_png(figure)


def test_the_explorer_draws_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = rows_by_method(data_root()), {method: label.format(n=20) for method, label in LABELS.items()}
    drawn = []

    def draw(*asked: object) -> object:
        drawn.append(asked[2:])
        return draw_two(rows, labels, *asked[2:])  # type: ignore[arg-type]

    monkeypatch.setattr("cotgen_lite.course.ch11.draw_two", draw)
    above, below, picture, _ = method_explorer(rows, labels, "baseline", "ft-orm").children
    (first,), (second,) = above.children, below.children
    before = picture.value
    first.value = "parm"
    second.value = "parm"  # twice the same is one bar
    assert drawn == [("baseline", "ft-orm"), ("parm", "ft-orm"), ("parm", "parm")] and picture.value != before
    assert len(first.options) == len(second.options) > 30
