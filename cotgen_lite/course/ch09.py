"""Chapter 09, next-token generators: its figures, its explorer and its exercises' checkers.

Notebook: 09_sequential_models.ipynb. Paper: section 4, table 4. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from ipywidgets import IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, menu
from cotgen_lite.course.plots import Texts, Truths, draw_grid, pictures, sign
from cotgen_lite.inputs import named, numbers, one_each, shaped, whole


def draw_rows(
    rows: Mapping[str, Tensor],
    heads: Texts,
    notes: Mapping[str, Texts] | None = None,
    right: Truths = (),
    title: str = "",
) -> Figure:
    """Rows of N pictures, label → uint8 (N, 3, H, W), under common heads. notes: label → N texts, written under that
    row's pictures; right: N verdicts, drawn as frames and a check or cross in the heads."""
    for label, one in named(rows, "rows").items():
        pictures(one, f"rows[{label!r}]", whole(len(heads), "The number of heads", 1))
        if notes:
            one_each(named(notes, "notes", rows)[label], f"notes[{label!r}]", len(heads), "pictures")
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
    number, runs = pictures(grey, "grey", "N", "T").shape[:2]
    pictures(likeliest, "likeliest", number, runs)
    whole(run, "run", 1, runs)
    for one in one_each(beliefs, "beliefs", 2, "ways"):
        shaped(numbers(one, "each of beliefs", 0, 1), "each of beliefs", (number, runs))
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
    for some, name in ((grey, "grey"), (likeliest, "likeliest"), (beliefs, "beliefs"), (right, "right")):
        one_each(some, name, whole(len(prompts), "The number of prompts", 1), "prompts")
    runs = pictures(grey[0], "grey", "N", "T").shape[1]
    return explorer(
        lambda row, run: draw_run(grey[row], likeliest[row], beliefs[row], right[row], run, prompts[row]),
        (menu(prompts), IntSlider(value=runs // 2, min=1, max=runs, description="run")),
    )


RANDOM = np.random.default_rng(0)  # of the exercises' cases

# The run, from 1, after which a thing is drawn whole; from its last row and column (from 0), side and runs.
check_whole_after = Exercise(
    lambda row, column, side, runs: (row * side + column) // (side * side // runs) + 1,
    (
        (0, 0, 8, 16),
        (0, 7, 8, 16),
        (3, 3, 8, 16),
        (3, 4, 8, 16),
        (7, 7, 8, 16),
        (2, 1, 4, 4),
        (1, 4, 6, 3),
        (5, 0, 6, 9),
    ),
    lambda row, column, side, runs: {
        "Runs are counted from 1 here: add one.": (row * side + column) // (side * side // runs),
        "The place itself has to be drawn as well: count it, too.": -(-(row * side + column) // (side * side // runs)),
        "That counts rows: a run is L / runs codes, not always a row.": row + 1,
        "The number of a place is row * side + column.": (column * side + row) // (side * side // runs) + 1,
        "Those are codes: divide by how many of them make a run.": row * side + column + 1,
        "Return a whole number: the run that draws the place.": (row * side + column) / (side * side // runs) + 1,
    },
    "The number of a run",
)


def _places(words: int, length: int, kept: bool) -> int:
    return words + length - 1 if kept else sum(words + written for written in range(length))


# How many places one image takes (without guidance); from words, codes L, and whether keys and values are kept.
check_places = Exercise(
    _places,
    ((5, 4, True), (5, 4, False), (16, 64, False), (3, 7, True), (2, 1, True), (2, 1, False)),
    lambda words, length, kept: {
        "One pass too many: once the last code is drawn, nothing has to be read any more.": (
            words + length if kept else sum(range(words, words + length + 1))
        ),
        "The words take places too: once if they are kept, in every pass if not.": _places(0, length, kept),
        "Those are passes: without kept keys and values each of them reads the whole sequence.": length,
        "The other way round: kept keys and values save work.": _places(words, length, not kept),
        "The sequence grows: in the first pass only the words are there.": (
            words + length - 1 if kept else (words + length) * length
        ),
    },
)


def _log_p(seen: Tensor, codes: Tensor, ahead: int = 1) -> Tensor:
    """What each image's codes got, added up, at the last places but so many."""
    end = seen.shape[1] - ahead
    return seen[:, end - codes.shape[1] : end].gather(2, codes[..., None])[..., 0].sum(1)


# The exact log-probability of each image; from logits of whole sequences (B, W + L, K) and codes (B, L).
check_image_log_probability = Exercise(
    lambda logits, codes: _log_p(logits.log_softmax(2), codes),
    tuple(
        (
            torch.from_numpy(RANDOM.normal(size=(images, words + length, options)).round(1)).float(),
            torch.from_numpy(RANDOM.integers(options, size=(images, length))),
        )
        for images, words, length, options in ((1, 2, 2, 3), (3, 5, 4, 7), (2, 2, 3, 5))
    ),
    lambda logits, codes: {
        "A place's logits are of the *next* code: begin one place earlier.": _log_p(logits.log_softmax(2), codes, 0),
        "That is the mean over codes: take the sum.": _log_p(logits.log_softmax(2), codes) / codes.shape[1],
        "Those are logits: take `log_softmax` first.": _log_p(logits, codes),
        "Probabilities multiply, their logarithms add up: take the log.": _log_p(logits.softmax(2), codes),
        "The softmax runs over the codes, the last dimension.": _log_p(logits.log_softmax(1), codes),
        "The first places belong to the words: the image's codes stand at the end.": (
            _log_p(logits.log_softmax(2)[:, : codes.shape[1]], codes, 0)
        ),
        "The sign: that is the loss, a log-probability is at most 0.": -_log_p(logits.log_softmax(2), codes),
    },
    "One number an image",
)
