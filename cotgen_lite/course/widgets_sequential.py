"""The explorer of chapter 09: how much of a picture is there, and what the verifier makes of it."""

from collections.abc import Sequence

import numpy.typing as npt
from ipywidgets import Dropdown, HBox, IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.plots_sequential import draw_rows
from cotgen_lite.course.widgets import keep_drawn


def draw_run(
    grey: Tensor, likeliest: Tensor, beliefs: Sequence[npt.NDArray], right: Sequence[bool], run: int, title: str
) -> Figure:
    """Paths after a run, counted from 1, shown in both ways, with P(yes) of each.

    grey, likeliest: uint8 (N, T, 3, H, W); beliefs: of both, (N, T); right: verdicts on where the paths lead, shown at
    the last run only.
    """
    number, runs = grey.shape[:2]
    at = run - 1
    notes = [[f"P(yes) {belief:.2f}" for belief in one[:, at]] for one in beliefs]
    rows = {"grey": grey[:, at], "likeliest": likeliest[:, at]}
    heads = [f"path {path + 1}" for path in range(number)]
    known = right if run == runs else ()
    return draw_rows(rows, heads, dict(zip(rows, notes, strict=True)), known, f"{title}: run {run} of {runs}")


def run_explorer(
    prompts: Sequence[str],
    grey: Sequence[Tensor],
    likeliest: Sequence[Tensor],
    beliefs: Sequence[Sequence[npt.NDArray]],
    right: Sequence[Sequence[bool]],
) -> VBox:
    """Notebook 09: move from run to run; how each path ends is shown with the last. For each of P prompts what
    `draw_run` takes."""
    prompt = Dropdown(
        options=[(text, i) for i, text in enumerate(prompts)], description="prompt", layout={"width": "30em"}
    )
    runs = grey[0].shape[1]
    run = IntSlider(value=runs // 2, min=1, max=runs, description="run")

    def draw(row: int, at: int) -> tuple[Figure, str]:
        return draw_run(grey[row], likeliest[row], beliefs[row], right[row], at, prompts[row]), ""

    picture, _ = keep_drawn((prompt, run), draw)
    return VBox([HBox([prompt, run]), picture])
