"""Chapter 08, PARM++: its figures, its explorer and its exercises' checkers.

Notebook: 08_parm_plus_plus.ipynb. Paper: section 5. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
from ipywidgets import IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare, expect
from cotgen_lite.course.explorer import explorer, menu
from cotgen_lite.course.plots import Texts, Truths, draw_flow, draw_grid, sign, wrap


def draw_parm_plus_plus() -> Figure:
    """PARM++'s loop, in our own drawing (the paper's is figure 8)."""
    boxes = {
        "parm": (0, 0, "PARM's choice\namong n", "#EEEEEE"),
        "ask": (2.6, 0, "right? yes, or\nno with reasons", "#CCE3F2"),
        "done": (5.2, 0, "done", "#CDEBE1"),
        "fix": (2.6, -1.7, "draw anew from prompt,\nimage and reasons", "#F7D9C8"),
        "best": (6.6, -1.7, "after three rounds:\nthe likeliest one", "#CDEBE1"),
    }
    arrows = [("parm", "ask", ""), ("ask", "done", "yes"), ("ask", "fix", "no"), ("fix", "ask", "")]
    arrows += [("ask", "best", "no yes yet")]
    return draw_flow(boxes, arrows, (8.4, 3.1))


def draw_reflection(images: Tensor, right: Truths, reasons: Texts, beliefs: Sequence[float]) -> Figure:
    """An image and its corrections from left to right, with what was said of each and the judge's verdicts. images:
    uint8 (R + 1, 3, H, W); right, beliefs: verdict and P(yes) of each; reasons: R texts, of all but the last."""
    names = ["first", *(f"round {number}" for number in range(1, len(images)))]
    titles = [f"{name} {sign(right[n])}\nP(yes) {beliefs[n]:.2f}" for n, name in enumerate(names)]
    figure = draw_grid(images, titles, (2.2 * len(images), 3.1), right=right, width=2)
    for axis, text in zip(figure.axes, reasons, strict=False):
        axis.set_xlabel(wrap(text or "(no reasons)", 26) + " →", fontsize=8)
    return figure


def reflection_explorer(
    prompts: Texts,
    images: Sequence[Tensor],
    right: Sequence[Truths],
    reasons: Sequence[Texts],
    beliefs: Sequence[Sequence[float]],
) -> VBox:
    """Step through a reflection's rounds. For each of P prompts what `draw_reflection` takes of all of them."""

    def draw(row: int, done: int) -> Figure:
        end = min(done, len(reasons[row])) + 1
        return draw_reflection(images[row][:end], right[row][:end], reasons[row][:end], beliefs[row][:end])

    return explorer(draw, (menu(prompts), IntSlider(value=0, min=0, max=3, description="round")))


def check_kept(function: Callable[[Sequence[float]], int]) -> None:
    """Which image a reflection keeps, from what it would believe of all of them, log-odds in order."""
    rows = ([-2.0, 1.0, 3.0, -1.0], [-3.0, -1.0, -2.0, -4.0], [0.5, 2.0, 1.0, 3.0], [-1.0, -2.0, -3.0, 0.1])
    mistakes = {
        "The first yes ends it: what would have come later is never drawn.": [2, 1, 3, 3],
        "Without a yes the likeliest is kept, not the last.": [1, 3, 0, 3],
        "Without a yes the likeliest is kept, not the first.": [1, 0, 0, 3],
        "Images are counted from 0 here: the first one is number 0.": [2, 2, 1, 4],
        "That is always the last one: a yes ends it, and corrections can spoil.": [3, 3, 3, 3],
    }
    case = f"Of {[list(row) for row in rows]}, where yes means log-odds above 0"
    compare([int(function(list(row))) for row in rows], [1, 1, 0, 3], mistakes, case)


def check_changed(function: Callable[[np.ndarray, np.ndarray], tuple[int, int]]) -> None:
    """How many images a reflection mended, and how many it spoiled; from verdicts before and after."""
    before = np.array([True, True, True, False, False, False, False, True, False])
    after = np.array([True, False, True, True, True, False, True, False, False])
    got, two = function(before.copy(), after.copy()), "A pair of numbers (their difference hides how many of each)"
    mistakes = {
        "The other way round: mended first, then spoiled.": [2, 3],
        "That counts all that are right, and wrong, afterwards: some were so before.": [5, 4],
        "That counts all that were right, and wrong, before: look at both verdicts of each image.": [4, 5],
        "Those are shares: counts are wanted.": [3 / 9, 2 / 9],
        "Those are shares of the wrong and of the right ones: counts are wanted.": [3 / 5, 2 / 4],
    }
    compare(got, [3, 2], mistakes, "Mended was wrong and is right", two)


def check_others_reasons(function: Callable[[Texts, Texts], Texts]) -> None:
    """The control: for each image the reasons of another one of the same tag; from reasons and tags."""
    tags = ["position", "color_attr", "position", "color_attr", "position", "counting", "counting"]
    reasons = [f"reasons {number}" for number in range(len(tags))]
    got = list(function(list(reasons), list(tags)))
    expect(len(got) == len(tags), f"Reasons for each of {len(tags)} images are wanted, got {len(got)}.")
    expect("" not in got, "Empty reasons are another control: that one tells the generator that nothing is known.")
    expect(set(got) <= set(reasons), "Only reasons that were given may be used: the same texts, at other images.")
    own = next((number for number, text in enumerate(got) if text == reasons[number]), None)
    expect(own is None, f"Image {own} keeps its own reasons: a control must take them from another image.")
    far = next((number for number, text in enumerate(got) if tags[reasons.index(text)] != tags[number]), None)
    expect(far is None, f"Image {far} gets reasons of another tag: they would be easy to tell from its own kind.")
    twice = len(set(got)) < len(got)
    expect(not twice, "Some reasons are given twice: pass each on once, so that only their places change.")
