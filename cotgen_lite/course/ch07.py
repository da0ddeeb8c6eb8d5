"""Chapter 07, PARM: its figures, its game and its exercises' checkers.

Notebook: 07_parm.ipynb. Paper: section 4. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ipywidgets import Button, VBox
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import Game, explorer, menu
from cotgen_lite.course.plots import (
    OURS,
    RIGHT,
    WRONG,
    Numbers,
    Texts,
    Truths,
    draw_flow,
    draw_grid,
    new_chart,
    pictures,
    sign,
)
from cotgen_lite.inputs import one_each, verdicts, whole
from cotgen_lite.verify.search import ParmPath

UNCLEAR, PROMISING, HOPELESS = "#D9D9D9", "#56B4E9", "#D55E00"
FIRST_LOOK, STRIDE = 2, 2  # the step that the game shows first, and how many steps lie between two looks


def draw_parm() -> Figure:
    """PARM's three tasks, in our own drawing (the paper's is figure 4)."""
    boxes = {
        "guess": (0, 0, "guess of\nstep t", "#EEEEEE"),
        "clear": (2.4, 0, "clear enough\nto judge?", "#CCE3F2"),
        "potential": (4.8, 0, "has it\npotential?", "#CCE3F2"),
        "stop": (7.2, 0, "stop the path:\nno more passes", "#F7D9C8"),
        "next": (2.4, -1.7, "next step", "#EEEEEE"),
        "select": (7.2, -1.7, "finished: choose\nthe best one", "#CDEBE1"),
    }
    arrows = [("guess", "clear", ""), ("clear", "potential", "yes"), ("potential", "stop", "no")]
    arrows += [("clear", "next", "no"), ("potential", "next", "yes"), ("next", "guess", "")]
    arrows += [("next", "select", "after the last step")]
    return draw_flow(boxes, arrows, (9, 3.1))


def draw_lanes(paths: Sequence[ParmPath], right: Truths, kept: int | None, steps: int, title: str) -> Figure:
    """Paths as lanes, a row each: what PARM says at every step, where it stops a path, and how each would have ended.
    paths: of a `ParmResult`; right: (N,), verdicts on where all paths lead; kept: the one PARM keeps; steps: T."""
    verdicts(right, "right", (whole(len(paths), "The number of paths", 1),))
    if kept is not None:
        whole(kept, "kept", 0, len(paths) - 1)
    whole(steps, "steps", max(len(path.clarity) for path in paths))
    figure, axis = new_chart(7, 0.24 * len(paths) + 1.3, xlabel="step", ylabel="path", xlim=(0.4, steps + 3))
    axis.set_ylim(len(paths) - 0.4, -0.6)
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    for path, (said, good) in enumerate(zip(paths, right, strict=True)):
        for step, (clarity, potential) in enumerate(zip(said.clarity, said.potential, strict=True)):
            color = (PROMISING if potential > 0 else HOPELESS) if clarity > 0 else UNCLEAR
            axis.add_patch(Rectangle((step + 0.54, path - 0.4), 0.92, 0.8, fc=color, ec="none"))
            if color == HOPELESS:
                axis.text(step + 1, path, "×", color="white", fontsize=9, fontweight="bold", **middle)
        axis.text(steps + 0.2, path, sign(good), color=RIGHT if good else WRONG, fontsize=11, **middle)
        if path == kept:
            axis.text(steps + 1.1, path, "◀ kept", ha="left", va="center", color=OURS, fontsize=9)
    names = {UNCLEAR: "not clear yet", PROMISING: "clear, has potential", HOPELESS: "clear, no potential: stopped"}
    handles, style = [Rectangle((0, 0), 1, 1, fc=color) for color in names], {"frameon": False, "fontsize": 8}
    axis.legend(handles, list(names.values()), ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), **style)
    axis.set_xticks([*range(1, steps), steps + 0.2], [*map(str, range(1, steps)), "end"], fontsize=8)
    axis.set_yticks(range(len(paths)), [str(path + 1) for path in range(len(paths))], fontsize=7)
    axis.set_title(title, fontsize=10)
    return figure


def draw_paths_now(
    images: Tensor, step: int, stopped: Sequence[int | None], right: Truths | None, title: str
) -> Figure:
    """Where N paths stand at a step, 1 to T: guesses of those that run, the last guess of stopped ones, dimmed. images:
    uint8 (N, T, 3, H, W); stopped: at which step, or None; right: where all paths lead, once it may be seen."""
    number, steps = pictures(images, "images", "N", "T").shape[:2]
    whole(step, "step", 1, steps)
    for at in one_each(stopped, "stopped", number, "paths"):
        whole(step if at is None else at, "The step at which a path was stopped", 1, step)
    shown = [images[path, (at or step) - 1] for path, at in enumerate(stopped)]
    words = [f"stopped at {at}" if at else "runs" if right is None else "kept" for at in stopped]
    signs = [""] * len(words) if right is None else [f" {sign(one)}" for one in right]
    titles = [f"path {n}\n{word}{mark}" for n, (word, mark) in enumerate(zip(words, signs, strict=True), start=1)]
    size, alphas = (1.35 * len(images), 1.9), [0.35 if at else 1 for at in stopped]
    figure = draw_grid(shown, titles, size, right=() if right is None else right, fontsize=8, width=2, alphas=alphas)
    figure.suptitle(f"{title}, step {step} of {images.shape[1]}", fontsize=10)
    return figure


def tally(stopped: Sequence[int | None], right: Numbers, steps: int) -> dict[str, int]:
    """What stopping paths by hand came to: "hits", stopped wrong ones; "misses", wrong ones kept; "lost", right ones
    stopped; "steps", that all paths ran together. stopped: the step of each path, or None; right: verdicts (N,)."""
    truth, halted = verdicts(right, "right", (len(stopped),)), np.array([at is not None for at in stopped])
    counts = {"hits": halted & ~truth, "misses": ~halted & ~truth, "lost": halted & truth}
    return {name: int(which.sum()) for name, which in counts.items()} | {"steps": sum(at or steps for at in stopped)}


def be_the_parm(
    prompts: Texts, images: Sequence[Tensor], right: Sequence[Truths], parm: Sequence[Sequence[int | None]]
) -> VBox:
    """Look at paths as they run, stop those without potential, then compare with PARM. For each of P prompts: images
    uint8 (N, T, 3, H, W), guesses of all steps; right (N,), of the ends; parm (N,), when PARM stopped each, or None."""
    number, steps = pictures(next(iter(images), None), "images", "N", "T").shape[:2]
    for some, name in ((images, "images"), (right, "right"), (parm, "parm")):
        one_each(some, name, len(prompts), "prompts")
    for row, paths in enumerate(images):
        pictures(paths, "each of images", number, steps)
        verdicts(right[row], "each of right", (number,))
        one_each(parm[row], "each of parm", number, "paths")
    prompt, onward, again = menu(prompts), Button(description="go on"), Button(description="start again")
    stops = [Button(description=f"stop {path + 1}", layout={"width": "6.5em"}) for path in range(number)]
    fresh = FIRST_LOOK, (None,) * number
    game = Game(value=(0, *fresh))  # the prompt, the step, and at which step each path was stopped

    def draw(state: tuple[int, int, tuple[int | None, ...]]) -> tuple[Figure, str]:
        row, step, stopped = state
        over, lines = step == steps, []
        for button, at in zip((*stops, onward), (*stopped, None), strict=True):
            button.disabled = over or at is not None
        for who, halted in (("you", stopped), ("PARM", parm[row])) if over else ():
            said = "{hits} wrong paths stopped, {misses} wrong paths kept, {lost} right paths stopped; {steps} of "
            lines.append(f"{who}: {said.format(**tally(halted, right[row], steps))}{number * steps} steps run")
        figure = draw_paths_now(images[row], step, stopped, right[row] if over else None, prompts[row])
        return figure, "<br>".join(lines) or "stop what has no potential, then go on"

    def stop(path: int) -> None:
        game.play(lambda row, step, at: (row, step, (*at[:path], at[path] or step, *at[path + 1 :])))

    for path, button in enumerate(stops):
        button.on_click(lambda _, path=path: stop(path))
    onward.on_click(lambda _: game.play(lambda row, step, at: (row, min(steps, step + STRIDE), at)))
    again.on_click(lambda _: game.play(lambda row, step, at: (row, *fresh)))
    prompt.observe(lambda change: game.play(lambda *_: (change["new"], *fresh)), names="value")
    return explorer(draw, (prompt, again), (*stops, onward), game=game)


_PATHS = (  # clarity and potential, log-odds of (paths, steps)
    (
        np.array([[-1.0, 2.0, 1.0, 3.0], [-2.0, -1.0, -1.0, -3.0], [1.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 0.5, 2.0]]),
        np.array([[-3.0, 1.0, -1.0, 2.0], [-1.0, -1.0, -1.0, -1.0], [2.0, -4.0, 1.0, 0.5], [9.0, -1.0, -2.0, 1.0]]),
    ),
    (
        np.array([[0.0, -0.3, 0.6, 1.2, 0.4], [-0.8, 0.7, 0.2, -0.1, 2.3], [-1.5, 0.0, -0.2, -2.0, 0.0]]),
        np.array([[-0.6, 0.5, 1.1, -0.2, 0.9], [-0.3, 0.8, 0.0, -1.4, 1.7], [0.2, -0.9, 1.3, 0.4, -0.5]]),
    ),
    (np.array([[0.4, -1.1]]), np.array([[-0.7, 0.6]])),
    (  # clear, or without potential, at the last step only
        np.array([[-1.0, -0.5, 2.0], [0.7, 1.4, 0.2], [-0.4, -2.0, 0.3]]),
        np.array([[-1.0, 0.6, -0.2], [1.1, 0.5, -0.8], [-0.3, -1.2, 0.9]]),
    ),
)


def _first(at: np.ndarray, never: int = 0) -> np.ndarray:
    """The first true step of each path, counted from 1; 0 where there is none."""
    return np.where(at.any(axis=1), at.argmax(axis=1) + 1, never)


# The step, counted from 1, at which each path is clear for the first time; 0 for never.
check_first_clear = Exercise(
    lambda clarity: _first(clarity > 0),
    tuple((clarity,) for clarity, _ in _PATHS),
    lambda c: {
        "A path that is never clear gets 0: argmax alone takes it for clear at once.": _first(c > 0, 1),
        "Steps are counted from 1 here: add one, but keep 0 for paths that never are.": (c > 0).argmax(axis=1),
        "Clear means log-odds *above* 0: just 0 is not clear.": _first(c >= 0),
        "That is where each path is clearest: the first step above zero is asked for.": (
            np.where((c > 0).any(axis=1), c.argmax(axis=1) + 1, 0)
        ),
        "That counts how many steps are clear: which is the first?": (c > 0).sum(axis=1),
    },
    "One number a path",
)

# The step, counted from 1, at which PARM stops each path; 0 for paths that it lets live.
check_stops = Exercise(
    lambda clarity, potential: _first((clarity > 0) & (potential <= 0)),
    _PATHS,
    lambda c, p: {
        "Potential counts only where the path is clear: one that never is clear is never stopped.": _first(p <= 0),
        "That asks at the first clear step only; the paper's text asks at every clear step.": _first(
            (c > 0) & (np.cumsum(c > 0, axis=1) == 1) & (p <= 0)
        ),
        "Steps are counted from 1 here.": np.maximum(_first((c > 0) & (p <= 0)) - 1, 0),
        "A path that lives gets 0: argmax alone takes it for stopped at once.": _first((c > 0) & (p <= 0), 1),
        "The sign: paths *without* potential are stopped, log-odds of 0 or less.": _first((c > 0) & (p > 0)),
        "Potential of just 0 is none: a path goes on where its log-odds are *above* 0.": _first((c > 0) & (p < 0)),
        "Clear means log-odds *above* 0: just 0 is not clear.": _first((c >= 0) & (p <= 0)),
    },
    "One number a path",
)

# The share of generator passes that stopping saves; from the steps that each path ran, and T.
check_saved = Exercise(
    lambda ran, steps: 1 - ran.mean() / steps,
    ((np.array([18, 18, 18, 6, 12]), 18), (np.array([3, 7, 2]), 8), (np.array([1]), 4), (np.array([5, 5]), 5)),
    lambda ran, steps: {
        "That is the share that was spent: the rest was saved.": ran.mean() / steps,
        "That is the share of paths that were stopped: they did run some steps.": (ran < steps).mean(),
        "That is the number of steps saved: divide by what all paths would have run.": (steps - ran).sum(),
        "That averages over the stopped paths only: the share is of all paths' steps.": (
            1 - ran[ran < steps].mean() / steps if (ran < steps).any() else 0
        ),
        "That is a median: the share is of all paths' steps.": 1 - np.median(ran) / steps,
    },
    "One share",
)
