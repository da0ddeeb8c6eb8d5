"""Figures of the chapters on PARM and PARM++: their method, paths that live and die, images before and after."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from cotgen_lite.course.plots import CEILING, CHANCE, OTHER, OURS, RIGHT, WRONG, _bare, _frame, wrap

UNCLEAR, PROMISING, HOPELESS, UNASKED = "#D9D9D9", "#56B4E9", "#D55E00", "#FFFFFF"
Box = tuple[float, float, str, str]  # centre x and y, text, colour


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
    arrows = [
        ("guess", "clear", ""),
        ("clear", "potential", "yes"),
        ("potential", "stop", "no"),
        ("clear", "next", "no"),
        ("potential", "next", "yes"),
        ("next", "guess", ""),
        ("next", "select", "after the last step"),
    ]
    return _flow(boxes, arrows, (9, 3.1))


def draw_parm_plus_plus() -> Figure:
    """PARM++'s loop, in our own drawing (the paper's is figure 8)."""
    boxes = {
        "parm": (0, 0, "PARM's choice\namong n", "#EEEEEE"),
        "ask": (2.6, 0, "right? yes, or\nno with reasons", "#CCE3F2"),
        "done": (5.2, 0, "done", "#CDEBE1"),
        "fix": (2.6, -1.7, "draw anew from prompt,\nimage and reasons", "#F7D9C8"),
        "best": (6.6, -1.7, "after three rounds:\nthe likeliest one", "#CDEBE1"),
    }
    arrows = [
        ("parm", "ask", ""),
        ("ask", "done", "yes"),
        ("ask", "fix", "no"),
        ("fix", "ask", ""),
        ("ask", "best", "no yes yet"),
    ]
    return _flow(boxes, arrows, (8.4, 3.1))


def _flow(boxes: Mapping[str, Box], arrows: Sequence[tuple[str, str, str]], size: tuple[float, float]) -> Figure:
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    width, height, patches = 1.75, 0.8, {}
    for name, (x, y, text, color) in boxes.items():
        corner = (x - width / 2, y - height / 2)
        patches[name] = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.05", fc=color, ec="#444444")
        axis.add_patch(patches[name])
        axis.text(x, y, text, ha="center", va="center", fontsize=9)
    pairs = {(start, end) for start, end, _ in arrows}
    for start, end, text in arrows:
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        bend = 0.35 if (end, start) in pairs else 0.0  # two arrows between the same boxes would lie on each other
        path = FancyArrowPatch(
            (x0, y0),
            (x1, y1),
            patchA=patches[start],
            patchB=patches[end],
            arrowstyle="-|>",
            mutation_scale=13,
            color="#444444",
            connectionstyle=f"arc3,rad={bend}",
        )
        axis.add_patch(path)
        level = y0 == y1
        x, y = (x0 + x1) / 2 - 0.6 * bend + (0 if level else 0.18), (y0 + y1) / 2 + (0.1 if level else 0)
        axis.text(x, y, text, fontsize=8, ha="center" if level else "left", va="bottom")
    xs, ys = zip(*((x, y) for x, y, *_ in boxes.values()), strict=True)
    axis.set_xlim(min(xs) - 1.1, max(xs) + 1.1)
    axis.set_ylim(min(ys) - 0.65, max(ys) + 0.65)
    axis.axis("off")
    return figure


def draw_lanes(
    clarity: npt.ArrayLike, potential: npt.ArrayLike, right: npt.ArrayLike, chosen: int, title: str
) -> Figure:
    """Paths as lanes, a row each: what PARM says at every step, where it stops a path, and how each would have ended.

    clarity, potential: log-odds (T, N), NaN where not asked, as in `ParmResult`; right: (N,), verdicts on where all
    paths lead; chosen: the path that PARM keeps.
    """
    clear, promise = np.asarray(clarity, dtype=float), np.asarray(potential, dtype=float)
    truth, (steps, number) = np.asarray(right, dtype=bool), clear.shape
    figure, axis = plt.subplots(figsize=(7, 0.24 * number + 1.3), layout="constrained")
    for path in range(number):
        for step in range(steps):
            if step == steps - 1 or np.isnan(clear[step, path]):
                continue
            asked = not np.isnan(promise[step, path])
            color = (PROMISING if promise[step, path] > 0 else HOPELESS) if asked else UNCLEAR
            axis.add_patch(Rectangle((step + 0.54, path - 0.4), 0.92, 0.8, fc=color, ec="none"))
            if color == HOPELESS:
                axis.text(step + 1, path, "×", ha="center", va="center", color="white", fontsize=9, fontweight="bold")
        mark, color = ("✓", RIGHT) if truth[path] else ("✗", WRONG)
        axis.text(steps + 0.2, path, mark, ha="center", va="center", color=color, fontsize=11)
        if path == chosen:
            axis.text(steps + 1.1, path, "◀ kept", ha="left", va="center", color=OURS, fontsize=9)
    names = {UNCLEAR: "not clear yet", PROMISING: "clear, has potential", HOPELESS: "clear, no potential: stopped"}
    handles = [Rectangle((0, 0), 1, 1, fc=color) for color in names]
    axis.legend(
        handles,
        list(names.values()),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    axis.set_xlim(0.4, steps + 3)
    axis.set_ylim(number - 0.4, -0.6)
    axis.set_xticks([*range(1, steps), steps + 0.2], [*map(str, range(1, steps)), "end"], fontsize=8)
    axis.set_yticks(range(number), [str(path + 1) for path in range(number)], fontsize=7)
    axis.set_xlabel("step")
    axis.set_ylabel("path")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)
    return figure


def draw_first_clear(
    shares: Mapping[str, Sequence[float]],
    marks: Mapping[str, tuple[float, float]],
    xlabel: str = "step at which a path is clear for the first time",
    never: bool = True,
) -> Figure:
    """At which step something happens to paths for the first time, as bars side by side.

    shares: name → the share of paths for each step; never: whether the last value is the share to which it never does;
    marks: name → first and last step of a shaded stretch.
    """
    figure, axis = plt.subplots(figsize=(6.8, 3.4), layout="constrained")
    wide = 0.8 / len(shares)
    for number, (name, values) in enumerate(shares.items()):
        places = np.arange(1, len(values) + 1) + (number - (len(shares) - 1) / 2) * wide
        axis.bar(places, values, wide, color=(OURS, OTHER, CEILING)[number % 3], label=name)
    for name, (low, high) in marks.items():
        axis.axvspan(low - 0.5, high + 0.5, color=CHANCE, alpha=0.15, lw=0, zorder=0)
        place = axis.get_xaxis_transform()
        axis.text((low + high) / 2, 1.02, name, ha="center", fontsize=8, color="#444444", transform=place)
    steps = len(next(iter(shares.values())))
    axis.set_xticks(range(1, steps + 1), [*map(str, range(1, steps)), "never" if never else str(steps)], fontsize=8)
    axis.set_xlabel(xlabel)
    axis.set_ylabel("share of paths")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_paths_now(
    images: Tensor, step: int, stopped: Sequence[int | None], right: Sequence[bool] | None, title: str
) -> Figure:
    """Where N paths stand at a step: guesses of those that run, the last guess of stopped ones, dimmed.

    images: uint8 (N, T, 3, H, W); step: 1 to T; stopped: the step at which each was stopped, or None; right: verdicts
    on where all paths lead, once they may be seen.
    """
    number = len(images)
    figure, axes = plt.subplots(1, number, figsize=(1.35 * number, 1.9), squeeze=False, layout="constrained")
    for path, axis in enumerate(axes[0]):
        _bare(axis)
        at = stopped[path]
        picture = images[path, (step if at is None else at) - 1].permute(1, 2, 0).cpu().numpy()
        axis.imshow(picture, interpolation="nearest", alpha=1.0 if at is None else 0.35)
        words = "runs" if at is None else f"stopped at {at}"
        if right is not None:
            words = ("kept" if at is None else words) + (" ✓" if right[path] else " ✗")
            _frame(axis, RIGHT if right[path] else WRONG, 2, "-" if right[path] else "--")
        axis.set_title(f"path {path + 1}\n{words}", fontsize=8)
    figure.suptitle(f"{title}, step {step} of {images.shape[1]}", fontsize=10)
    return figure


def draw_reflection(images: Tensor, right: Sequence[bool], reasons: Sequence[str], beliefs: Sequence[float]) -> Figure:
    """An image and its corrections from left to right, with what was said of each and the judge's verdicts.

    images: uint8 (R + 1, 3, H, W); right, beliefs: verdict and P(yes) of each; reasons: R texts, of all but the last.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(2.2 * len(images), 3.1), squeeze=False, layout="constrained")
    for number, axis in enumerate(axes[0]):
        _bare(axis)
        axis.imshow(images[number].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        good = bool(right[number])
        _frame(axis, RIGHT if good else WRONG, 2, "-" if good else "--")
        name = "first" if number == 0 else f"round {number}"
        axis.set_title(f"{name} {'✓' if good else '✗'}\nP(yes) {beliefs[number]:.2f}", fontsize=9)
        if number < len(reasons):
            axis.set_xlabel(wrap(reasons[number] or "(no reasons)", 26) + " →", fontsize=8)
    return figure
