"""Chapter 09, next-token generators: its figures, its explorer and its exercises' checkers.

Notebook: 09_sequential_models.ipynb. Paper: section 4, table 4. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy.typing as npt
import torch
from ipywidgets import IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare
from cotgen_lite.course.explorer import explorer, menu
from cotgen_lite.course.plots import Texts, Truths, draw_grid, sign


def draw_rows(
    rows: Mapping[str, Tensor],
    heads: Texts,
    notes: Mapping[str, Texts] | None = None,
    right: Truths = (),
    title: str = "",
) -> Figure:
    """Rows of N pictures, label → uint8 (N, 3, H, W), under common heads. notes: label → N texts, written under that
    row's pictures; right: N verdicts, drawn as frames and a check or cross in the heads."""
    number, marks = len(heads), [f"{sign(good)} " for good in right] or [""] * len(heads)
    size = (1.35 * number + 1.2, (1.35 + 0.3 * bool(notes)) * len(rows) + 0.4 + 0.3 * bool(title))
    titles = [mark + head for mark, head in zip(marks, heads, strict=True)] + [""] * number * (len(rows) - 1)
    figure = draw_grid(torch.cat(list(rows.values())), titles, size, number, [*right] * len(rows))
    figure.set_layout_engine("constrained", h_pad=0.08 if notes else 0.04)  # notes belong to the pictures above them
    for row, label in enumerate(rows):
        some = figure.axes[row * number : (row + 1) * number]
        some[0].set_ylabel(label, fontsize=9)
        for axis, note in zip(some, notes[label] if notes else (), strict=False):
            axis.set_xlabel(note, fontsize=8, labelpad=1)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def draw_run(
    grey: Tensor, likeliest: Tensor, beliefs: Sequence[npt.NDArray], right: Truths, run: int, title: str
) -> Figure:
    """Paths after a run, counted from 1, shown in both ways, with P(yes) of each. grey, likeliest: uint8 (N, T, 3, H,
    W); beliefs: of both, (N, T); right: verdicts on where the paths lead, shown at the last run only."""
    number, runs = grey.shape[:2]
    rows = {"grey": grey[:, run - 1], "likeliest": likeliest[:, run - 1]}
    notes = {name: [f"P(yes) {p:.2f}" for p in one[:, run - 1]] for name, one in zip(rows, beliefs, strict=True)}
    heads, known = [f"path {path + 1}" for path in range(number)], right if run == runs else ()
    return draw_rows(rows, heads, notes, known, f"{title}: run {run} of {runs}")


def run_explorer(
    prompts: Texts,
    grey: Sequence[Tensor],
    likeliest: Sequence[Tensor],
    beliefs: Sequence[Sequence[npt.NDArray]],
    right: Sequence[Truths],
) -> VBox:
    """Move from run to run; how each path ends is shown with the last. For each of P prompts what `draw_run` takes."""
    runs = grey[0].shape[1]
    return explorer(
        lambda row, run: draw_run(grey[row], likeliest[row], beliefs[row], right[row], run, prompts[row]),
        (menu(prompts), IntSlider(value=runs // 2, min=1, max=runs, description="run")),
    )


def check_whole_after(function: Callable[[int, int, int, int], int]) -> None:
    """The run, from 1, after which a thing is drawn whole; from its last row and column (from 0), side and runs."""
    cases = ((0, 0, 8, 16), (0, 7, 8, 16), (3, 3, 8, 16), (3, 4, 8, 16), (7, 7, 8, 16), (2, 1, 4, 4))
    wanted = [1, 2, 7, 8, 16, 3]
    before = [-(-(row * side + column) // (side * side // runs)) for row, column, side, runs in cases]
    across = [(column * side + row) // (side * side // runs) + 1 for row, column, side, runs in cases]
    mistakes = {
        "Runs are counted from 1 here: add one.": [one - 1 for one in wanted],
        "The place itself has to be drawn as well: count the places up to it, it included.": before,
        "That counts rows: a run is as many codes as L / runs, here half a row.": [row + 1 for row, *_ in cases],
        "Codes are written row by row: the number of a place is row * side + column.": across,
        "Those are codes: divide by how many of them make a run.": [r * side + c + 1 for r, c, side, _ in cases],
    }
    compare([int(function(*case)) for case in cases], wanted, mistakes, f"(row, column, side, runs) in {list(cases)}")


def check_places(function: Callable[[int, int, bool], int]) -> None:
    """How many places one image takes (without guidance); from words, codes L, and whether keys and values are kept."""
    got = [function(5, 4, True), function(5, 4, False), function(16, 64, False)]
    wanted = [5 + 3, 5 + 6 + 7 + 8, sum(16 + k for k in range(64))]
    too_many = [5 + 4, 5 + 6 + 7 + 8 + 9, sum(16 + k for k in range(65))]
    mistakes = {
        "One pass too many: once the last code is drawn, nothing has to be read any more.": too_many,
        "The words take places too: once if they are kept, in every pass if not.": [3, 0 + 1 + 2 + 3, sum(range(64))],
        "Those are passes: without kept keys and values each of them reads the whole sequence.": [4, 4, 64],
        "The other way round: kept keys and values save work.": [wanted[1], wanted[0], 16 + 63],
        "The sequence grows: in the first pass only the words are there.": [8, (5 + 4) * 4, (16 + 64) * 64],
    }
    compare(got, wanted, mistakes, "(5, 4, kept), (5, 4, not), (16, 64, not)")


def check_image_log_probability(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The exact log-probability of each image; from logits of whole sequences (B, W + L, K) and codes (B, L)."""
    torch.manual_seed(0)
    logits, codes = torch.randn(3, 5 + 4, 7), torch.randint(7, (3, 4))

    def told(seen: Tensor, first: int = 4) -> Tensor:
        return seen[:, first : first + 4].gather(2, codes[..., None])[..., 0].sum(1)

    log_p = logits.log_softmax(2)
    wanted = told(log_p)
    mistakes = {
        "A place's logits are of the *next* code: begin one place earlier.": told(log_p, 5),
        "That is the mean: the log-probability of all codes is their sum.": wanted / 4,
        "Those are logits: take `log_softmax` first.": told(logits),
        "Probabilities multiply, their logarithms add up: take the log.": told(logits.softmax(2)),
        "The softmax runs over the codes, the last dimension.": told(logits.log_softmax(1)),
        "The first places belong to the words: the image's codes stand at the end.": told(log_p, 0),
        "The sign: that is the loss, a log-probability is at most 0.": -wanted,
    }
    compare(
        function(logits.clone(), codes.clone()), wanted, mistakes, shape="One number an image, all places added up,"
    )
