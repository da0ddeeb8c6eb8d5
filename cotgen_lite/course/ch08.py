"""Chapter 08, PARM++: its figures, its explorer and its exercises' checkers.

Notebook: 08_parm_plus_plus.ipynb. Paper: section 5. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Sequence

import numpy as np
from ipywidgets import IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, menu
from cotgen_lite.course.plots import Texts, Truths, draw_flow, draw_grid, pictures, sign, wrap
from cotgen_lite.inputs import numbers, one_each, shaped, verdicts


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
    number = len(pictures(images, "images", "R"))
    # Of a reflection that is shown only so far, later rounds' may be there too.
    right = verdicts(right[:number], "right", (number,)).tolist()
    shaped(numbers(beliefs[:number], "beliefs", 0, 1), "beliefs", (number,))
    one_each(reasons[: number - 1], "reasons", number - 1, "pictures but the last")
    names = ["first", *(f"round {one}" for one in range(1, number))]
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
    for some, name in ((images, "images"), (right, "right"), (reasons, "reasons"), (beliefs, "beliefs")):
        one_each(some, name, len(prompts), "prompts")

    def draw(row: int, done: int) -> Figure:
        end = min(done, len(reasons[row])) + 1
        return draw_reflection(images[row][:end], right[row][:end], reasons[row][:end], beliefs[row][:end])

    return explorer(draw, (menu(prompts), IntSlider(value=0, min=0, max=3, description="round")))


def _first_yes(log_odds: Sequence[float], otherwise: int, least: float = 0.0) -> int:
    return next((number for number, one in enumerate(log_odds) if one > least), otherwise)


# Which image a reflection keeps, from what it would believe of all of them, log-odds in order.
check_kept = Exercise(
    lambda log_odds: _first_yes(log_odds, int(np.argmax(log_odds))),
    (
        ([-2.0, 1.0, 3.0, -1.0],),
        ([-3.0, -1.0, -2.0, -4.0],),
        ([0.5, 3.0, 1.0, -2.0],),
        ([-1.0, -2.0, -3.0, 0.1],),
        ([-0.9, -2.5, -0.4, -2.0],),
        ([-1.0, 0.0, -0.2, 0.3],),
        ([-0.7],),
    ),
    lambda odds: {
        "The first yes ends it: what would have come later is never drawn.": np.argmax(odds),
        "Without a yes the likeliest is kept, not the last.": _first_yes(odds, len(odds) - 1),
        "Without a yes the likeliest is kept, not the first.": _first_yes(odds, 0),
        "Images are counted from 0 here: the first one is number 0.": _first_yes(odds, int(np.argmax(odds))) + 1,
        "That is always the last one: a yes ends it, and corrections can spoil.": len(odds) - 1,
        "Yes means log-odds *above* 0: just 0 is no yes.": _first_yes(odds, int(np.argmax(odds)), -1e-9),
    },
    "The number of one image",
)

# How many images a reflection mended, and how many it spoiled; from verdicts before and after.
check_changed = Exercise(
    lambda before, after: ((~before & after).sum(), (before & ~after).sum()),
    tuple(
        (np.array(before, dtype=bool), np.array(after, dtype=bool))
        for before, after in (
            ([1, 1, 1, 0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 1, 0, 0]),
            ([1, 0, 1, 1, 1], [0, 1, 0, 1, 0]),
            ([0, 1, 1, 0], [0, 1, 1, 0]),
            ([0, 0], [1, 1]),
        )
    ),
    lambda a, b: {
        "The other way round: mended first, then spoiled.": ((a & ~b).sum(), (~a & b).sum()),
        "Their difference hides how many of each: return both numbers.": b.sum() - a.astype(int).sum(),
        "That counts all that are right, and wrong, afterwards: some were so before.": (b.sum(), (~b).sum()),
        "That counts all that were right, and wrong, before: look at both verdicts.": (a.sum(), (~a).sum()),
        "Those are shares of all images: counts are wanted.": ((~a & b).mean(), (a & ~b).mean()),
        "That is how many changed at all: count mended and spoiled ones apart.": (a != b).sum(),
    },
    "A pair of numbers, mended and spoiled,",
)


def _moved(reasons: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Every text at the next place of its tag."""
    places = [[at for at, one in enumerate(tags) if one == tag] for tag in tags]
    return [reasons[mine[(mine.index(at) + 1) % len(mine)]] for at, mine in enumerate(places)]


def _unfair(given: np.ndarray, reasons: Sequence[str], tags: Sequence[str]) -> str:
    """What is wrong with a control's reasons, if anything is: many orders are right."""
    got = given.tolist() if given.shape == (len(tags),) else []
    if len(got) < len(tags):
        return f"{len(tags)} texts are wanted, one for each image, not {len(given) if given.ndim else 'a single one'}."
    if "" in got:
        return "Empty reasons are another control: that one tells the generator that nothing is known."
    if not set(got) <= set(reasons):
        return "Only reasons that were given may be used: the same texts, at other images."
    if own := [at for at, text in enumerate(got) if text == reasons[at]]:
        return f"Image {own[0]} keeps its own reasons: a control must take them from another image."
    if far := [at for at, text in enumerate(got) if tags[reasons.index(text)] != tags[at]]:
        return f"Image {far[0]} gets reasons of another tag: they would be easy to tell from its own kind."
    return "Some reasons are given twice: use each once, so that only their places change." * (len(set(got)) < len(got))


# The control: for each image the reasons of another one of the same tag; from reasons and tags.
check_others_reasons = Exercise(
    _moved,
    tuple(
        ([f"why {len(tags)}{number}" for number in range(len(tags))], tags)
        for tags in (
            ["position", "color_attr", "position", "color_attr", "position", "counting", "counting"],
            ["colors", "colors", "colors", "two", "two"],
            [],
        )
    ),
    wanted="A list of texts",
    rule=_unfair,
    free=True,
)
