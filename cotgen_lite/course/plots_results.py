"""Figures of the last chapter: guesses beside results, and the findings with their intervals."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cotgen_lite.course.plots import CHANCE, OTHER, OURS, PAPER, WRONG, wrap

SIGNS = {"yes": (OURS, "o"), "no": (WRONG, "X"), "undecided": (CHANCE, "D")}


def draw_guesses(
    labels: Sequence[str],
    measured: Sequence[tuple[float, float, float]],
    paper: Sequence[float],
    guesses: Sequence[float | None],
) -> Figure:
    """What was guessed, what was measured and what the paper has, a line a method.

    measured: accuracy, lower and upper end of its interval; guesses: None where there is none.
    """
    figure, axis = plt.subplots(figsize=(8, 0.38 * len(labels) + 1.1), layout="constrained")
    places = range(len(labels))
    middle, low, high = zip(*measured, strict=True)
    bars = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    axis.errorbar(middle, places, xerr=bars, fmt="o", color=OURS, ms=6, lw=1.8, label="measured, 95% interval")
    axis.plot(paper, places, "s", color=PAPER, ms=6, ls="none", label="the paper's")
    told = [(value, place) for place, value in enumerate(guesses) if value is not None]
    if told:
        axis.plot(*zip(*told, strict=True), "D", color=OTHER, ms=7, ls="none", label="your guess")
    axis.set_yticks(places, labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_xlabel("overall GenEval accuracy")
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_findings(findings: Mapping[str, Mapping], texts: Mapping[str, str]) -> Figure:
    """A difference for each finding, with its interval: whether that leaves zero, and to which side.

    findings: name → entry of results/findings.json; texts: name → what it claims. Colour and sign tell the verdict.
    """
    figure, axis = plt.subplots(figsize=(8.5, 0.42 * len(findings) + 1.1), layout="constrained")
    drawn = set()
    for place, entry in enumerate(findings.values()):
        color, marker = SIGNS[entry["seen"]]
        low, high = entry["ci"]
        label = None if entry["seen"] in drawn else {"yes": "seen", "no": "not seen"}.get(entry["seen"], "undecided")
        drawn.add(entry["seen"])
        bars = [[entry["delta"] - low], [high - entry["delta"]]]
        axis.errorbar(entry["delta"], place, xerr=bars, fmt=marker, color=color, ms=5, lw=1.2, capsize=4, label=label)
    axis.axvline(0, color="#333333", lw=0.8)
    axis.set_yticks(range(len(findings)), [wrap(f"{name}: {texts[name]}", 46) for name in findings], fontsize=8)
    axis.set_ylim(len(findings) - 0.5, -0.5)
    axis.set_xlabel("difference in accuracy (F4: in AUC)")
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
