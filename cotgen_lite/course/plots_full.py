"""Figures of the chapter on the full scale: what a GPU has to hold, and where the work goes."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cotgen_lite.course.plots import CEILING, OTHER, OURS, PAPER, RIGHT, WRONG

WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind numbers that a line may cross
# A part has one colour in every figure.
COLORS = {
    "Show-o, MAGVIT-v2": OURS,
    "drawing": OURS,
    "verifier": OTHER,
    "drawing and reading": CEILING,
    "decoding": CEILING,
    "left free": "#D9D9D9",
}


def draw_stacks(
    stacks: Mapping[str, Mapping[str, float]], xlabel: str, lines: Mapping[str, float] | None = None
) -> Figure:
    """Bars of several parts each, one below the other, beside lines to hold them against.

    stacks: bar → part → number, the same parts in every bar; lines: name → where it stands, such as a card's memory.
    """
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(stacks) + 1.5), layout="constrained")
    names, parts = list(stacks), list(next(iter(stacks.values())))
    for number, part in enumerate(parts):
        lefts = [sum(list(stacks[name].values())[:number]) for name in names]
        axis.barh(names, [stacks[name][part] for name in names], 0.65, lefts, color=COLORS.get(part, PAPER), label=part)
    for at, name in enumerate(names):
        total = sum(stacks[name].values())
        axis.annotate(
            f"{total:,.0f}" if total >= 100 else f"{total:.1f}",
            (total, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#333333",
            bbox=WHITE,
        )
    for card, size in (lines or {}).items():
        axis.axvline(size, color="#333333", lw=1, ls="--")
        axis.text(size, 1.01, card, ha="center", va="bottom", fontsize=8, transform=axis.get_xaxis_transform())
    axis.set_xlim(0, 1.08 * max([*(sum(parts.values()) for parts in stacks.values()), *(lines or {}).values()]))
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.tick_params(axis="y", labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def draw_fit(parts: Mapping[str, float], card: str, memory: float, title: str) -> Figure:
    """One bar of what a GPU has to hold beside its memory, and whether it fits.

    parts: part → GB; memory: GB of the card.
    """
    needed = sum(parts.values())
    fits = needed <= memory
    figure = draw_stacks({"needed": parts}, "GB", {f"{card}: {memory:g} GB": memory})
    verdict = (
        f"✓ fits, {memory - needed:.1f} GB to spare" if fits else f"✗ does not fit: {needed - memory:.1f} GB too much"
    )
    figure.suptitle(f"{title}\n{verdict}", fontsize=10, color=RIGHT if fits else WRONG)
    return figure
