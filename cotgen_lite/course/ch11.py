"""Chapter 11, all results: its figures, its explorer and its exercises' checkers.

Notebook: 11_results.ipynb. Paper: tables 1 to 5. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from ipywidgets import Dropdown, VBox
from matplotlib.figure import Figure

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer
from cotgen_lite.course.plots import CHANCE, OTHER, OURS, PAPER, WRONG, draw_profile, legend_below, new_chart, wrap
from cotgen_lite.inputs import named, numbers, one_each, one_of, shaped

SIGNS = {"yes": (OURS, "o", "seen"), "no": (WRONG, "X", "not seen"), "undecided": (CHANCE, "D", "undecided")}


def draw_guesses(
    labels: Sequence[str], measured: npt.ArrayLike, paper: npt.ArrayLike, guesses: Sequence[float | None]
) -> Figure:
    """What was guessed, what was measured, with its interval's ends (M, 3), and the paper's, a line a method."""
    shaped(numbers(measured, "measured"), "measured", (len(labels), 3))
    one_each(numbers(paper, "paper"), "paper", len(labels), "methods")
    one_each(guesses, "guesses", len(labels), "methods")
    figure, axis = new_chart(8, 0.38 * len(labels) + 1.1, "x", xlim=(0, 1), xlabel="overall GenEval accuracy")
    places = range(len(labels))
    middle, low, high = np.array(measured).T
    bars = [middle - low, high - middle]
    axis.errorbar(middle, places, xerr=bars, fmt="o", color=OURS, ms=6, lw=1.8, label="measured, 95% interval")
    axis.plot(paper, places, "s", color=PAPER, ms=6, ls="none", label="the paper's")
    if told := [(value, place) for place, value in enumerate(guesses) if value is not None]:
        axis.plot(*zip(*told, strict=True), "D", color=OTHER, ms=7, ls="none", label="your guess")
    axis.set_yticks(places, labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    legend_below(figure, axis)
    return figure


def draw_findings(findings: Mapping[str, Mapping], texts: Mapping[str, str]) -> Figure:
    """A difference for each finding, with its interval: whether that leaves zero, and to which side. findings: name →
    entry of results/findings.json; texts: name → what it claims. Colour and sign tell the verdict."""
    named(texts, "texts", named(findings, "findings"))
    for name, entry in findings.items():
        one_of(named(entry, f"findings[{name!r}]", ("seen", "delta", "ci"))["seen"], f"seen of {name}", SIGNS)
    figure, axis = new_chart(8.5, 0.42 * len(findings) + 1.1, "x", xlabel="difference in accuracy (F4: in AUC)")
    for seen in dict.fromkeys(entry["seen"] for entry in findings.values()):
        some = [(at, one["delta"], *one["ci"]) for at, one in enumerate(findings.values()) if one["seen"] == seen]
        places, middle, low, high = np.array(some).T
        (color, fmt, label), bars = SIGNS[seen], [middle - low, high - middle]
        axis.errorbar(middle, places, xerr=bars, fmt=fmt, color=color, ms=5, lw=1.2, capsize=4, label=label)
    axis.axvline(0, color="#333333", lw=0.8)
    axis.set_yticks(range(len(findings)), [wrap(f"{name}: {texts[name]}", 46) for name in findings], fontsize=8)
    axis.set_ylim(len(findings) - 0.5, -0.5)
    legend_below(figure, axis)
    return figure


def draw_two(rows: Mapping[str, Mapping], labels: Mapping[str, str], first: str, second: str) -> Figure:
    """Two methods' accuracies by tag. rows: method → its row of results/scores.jsonl; labels: method → its name."""
    named(labels, "labels", (first, second))
    named(rows, "rows", (first, second))
    bars = {labels[method]: rows[method]["tags"] | {"overall": rows[method]["overall"]} for method in (first, second)}
    return draw_profile(bars, dict(zip(bars, (OTHER, OURS), strict=False)))


def method_explorer(rows: Mapping[str, Mapping], labels: Mapping[str, str], first: str, second: str) -> VBox:
    """Choose two methods; arguments as in `draw_two`, and which two are shown at the start."""
    named(labels, "labels", (first, second))
    named(rows, "rows", (first, second))
    options = [(labels[method], method) for method in labels if method in rows]
    wide = {"options": options, "layout": {"width": "40em"}}
    one, other = (Dropdown(value=at, description=name, **wide) for name, at in (("first", first), ("second", second)))
    return explorer(lambda *two: draw_two(rows, labels, *two), (one,), (other,))


def _verdict(low: float, high: float) -> str:
    return "yes" if low > 0 else "no" if high < 0 else "undecided"


# From the interval of a difference to "yes", "no" or "undecided".
check_verdict = Exercise(
    _verdict,
    ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.3), (-0.4, 0.05), (0.0, 0.1), (-0.1, 0.0), (0.3, 0.31), (-0.9, -0.8)),
    lambda low, high: {
        "An interval that touches zero from above holds it: undecided.": _verdict(low + 1e-9, high),
        "An interval that touches zero from below holds it: undecided.": _verdict(low, high - 1e-9),
        "An interval that touches zero holds it: undecided.": _verdict(low + 1e-9, high - 1e-9),
        "That goes by the middle: an interval that holds zero decides nothing.": "yes" if low + high > 0 else "no",
        "An interval wholly below zero is a decision, too: no.": "yes" if low > 0 else "undecided",
        "An interval that holds zero decides nothing: undecided.": "yes" if low > 0 else "no",
        "The other way round: wholly above zero is what the claim says.": _verdict(-high, -low),
        "An interval wholly above zero decides, too: yes.": "no" if high < 0 else "undecided",
    },
    'One of "yes", "no" and "undecided"',
    lambda got, low, high: (
        "" if got in ("yes", "no", "undecided") else 'One of "yes", "no" and "undecided" is wanted, in small letters.'
    ),
)

# The difference of two methods' means in each of R bootstrap samples, (R,); from right a, right b, both (P,), and the
# prompts drawn in each sample, (R, P).
check_paired_difference = Exercise(
    lambda right_a, right_b, rows: (right_a - right_b)[rows].mean(axis=1),
    tuple(
        (np.array(a), np.array(b), np.array(rows))
        for a, b, rows in (
            ([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5], [[0, 0, 1, 2], [3, 3, 3, 3], [1, 2, 1, 2]]),
            ([0.2, 0.9, 0.4], [0.7, 0.1, 0.5], [[2, 0, 2], [1, 1, 0], [0, 1, 2], [2, 2, 2], [0, 1, 0]]),
            ([0.5, 1.0], [1.0, 0.0], [[0, 0]]),
        )
    ),
    lambda a, b, rows: {
        "The other way around: the first method minus the second.": (b - a)[rows].mean(axis=1),
        "Every sample gives the same: take the prompts that it drew, right_a[rows].": np.full(
            len(rows), (a - b).mean()
        ),
        "You drew prompts for the first method only: measure both on the same ones.": a[rows].mean(axis=1) - b.mean(),
        "You drew prompts for the second method only: measure both on the same ones.": a.mean() - b[rows].mean(axis=1),
        "Accuracies are means over prompts, not sums.": (a - b)[rows].sum(axis=1),
        "That is the first method alone: subtract the second.": a[rows].mean(axis=1),
        "A difference may be negative: leave out the absolute value.": abs((a - b)[rows].mean(axis=1)),
    },
    "One difference a sample",
)
