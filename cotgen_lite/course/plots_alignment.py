"""Figures of the chapters on alignment: pairs, the same noise under several generators, and what a budget buys."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from cotgen_lite.course.plots import CEILING, CHANCE, OTHER, OURS, draw_images, wrap


def draw_pairs(chosen: Tensor, rejected: Tensor, prompts: Sequence[str]) -> Figure:
    """Pairs of preference data, one a column: what is preferred above, what is not below.

    chosen, rejected: uint8 (B, 3, H, W); prompts: B.
    """
    titles = [wrap(prompt) for prompt in prompts] + [""] * len(prompts)
    verdicts = [True] * len(prompts) + [False] * len(prompts)
    figure = draw_images(torch.cat([chosen, rejected]), titles, columns=len(prompts), right=verdicts, size=1.6)
    figure.axes[0].set_ylabel("chosen")
    figure.axes[len(prompts)].set_ylabel("rejected")
    return figure


def draw_side_by_side(images: Mapping[str, Tensor], right: Mapping[str, npt.ArrayLike], title: str) -> Figure:
    """The same seeds drawn by several generators, a row each, with the judge's verdicts.

    images: generator → uint8 (N, 3, H, W); right: generator → verdicts (N,).
    """
    number = len(next(iter(images.values())))
    verdicts = [bool(verdict) for name in images for verdict in np.asarray(right[name])]
    figure = draw_images(torch.cat(list(images.values())), columns=number, right=verdicts, size=1.3)
    for row, name in enumerate(images):
        count = int(np.asarray(right[name]).sum())
        figure.axes[row * number].set_ylabel(f"{wrap(name, 12)}\n{count} of {number} right", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_budget(
    seconds: Mapping[str, npt.ArrayLike],
    accuracy: Mapping[str, npt.ArrayLike],
    budget: float,
    upfront: Mapping[str, float],
) -> Figure:
    """What a budget for one picture buys: accuracy against seconds for each generator with a verifier on top.

    seconds, accuracy: generator → (len(n),); budget: seconds for one picture, drawn as a line, the best point within it
    circled; upfront: generator → each picture's share of what training took, already in `seconds`, named in the legend.
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for number, (name, spent) in enumerate(seconds.items()):
        color = (CHANCE, OTHER, OURS, CEILING)[number % 4]
        label = f"{name} ({upfront[name]:,.2f} s of it for training)" if upfront[name] else name
        x, y = np.asarray(spent, dtype=float), np.asarray(accuracy[name], dtype=float)
        axis.plot(x, y, color=color, marker="osD^"[number % 4], ms=4, lw=1.8, label=label)
        within = np.flatnonzero(x <= budget)
        if len(within):
            best = within[y[within].argmax()]
            axis.plot(x[best], y[best], "o", ms=13, mfc="none", mec=color, mew=2)
    axis.axvline(budget, color="#333333", lw=1, ls=":")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel("seconds for one picture")
    axis.set_ylabel("GenEval accuracy")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_spread(
    runs: Mapping[str, Sequence[float]], paper: Mapping[str, float], ylabel: str = "GenEval accuracy"
) -> Figure:
    """Several training runs of each generator, a dot each and a line at their mean, beside the paper's one number.

    runs: generator → one value a run; paper: generator → the paper's value, where it has one.
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for column, (name, values) in enumerate(runs.items()):
        shift = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else np.zeros(1)
        label = "one training run" if column == 0 else None
        axis.plot(column + shift, values, "o", color=OURS, ms=7, label=label)
        axis.hlines(np.mean(values), column - 0.2, column + 0.2, color=OURS, lw=1.5)
        if name in paper:
            axis.plot(column + 0.3, paper[name], "D", color=CHANCE, ms=6, label="paper" if column == 0 else None)
    axis.set_xticks(range(len(runs)), list(runs))
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.25, axis="y")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure
