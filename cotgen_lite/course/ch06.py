"""Chapter 06, verifying and aligning together: its figure, its explorer and its exercises' checkers.

Notebook: 06_verify_and_align.ipynb. Paper: section 3.4. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from ipywidgets import FloatLogSlider, SelectionSlider, VBox
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer
from cotgen_lite.course.plots import CEILING, CHANCE, MARKERS, OTHER, OURS, Series, new_chart
from cotgen_lite.inputs import named, number, numbers, one_each, shaped


def draw_budget(seconds: Series, accuracy: Series, budget: float, upfront: Mapping[str, float]) -> Figure:
    """What a budget for one picture buys: accuracy against seconds, both (len(n),), for each generator with a verifier
    on top. budget: seconds, drawn as a line, the best point within it circled; upfront: each picture's share of what
    training took, already in `seconds`, named in the legend."""
    number(budget, "budget", above=0)
    for name, x in named(seconds, "seconds").items():
        y, share = (named(one, "accuracy and upfront", seconds)[name] for one in (accuracy, upfront))
        one_each(numbers(y, f"accuracy of {name}"), f"accuracy of {name}", len(numbers(x, f"seconds of {name}")), "n")
        number(share, f"upfront of {name}", 0)
    figure, axis = new_chart(6.5, 3.8, "both", xlabel="seconds for one picture", ylabel="GenEval accuracy")
    for name, color, marker in zip(seconds, (CHANCE, OTHER, OURS, CEILING), MARKERS, strict=False):
        label = f"{name} ({upfront[name]:,.2f} s of it for training)" if upfront[name] else name
        x, y = np.asarray(seconds[name]), np.asarray(accuracy[name])
        axis.plot(x, y, color=color, marker=marker, ms=4, lw=1.8, label=label)
        if (x <= budget).any():
            best = np.where(x <= budget, y, -1).argmax()
            axis.plot(x[best], y[best], "o", ms=13, mfc="none", mec=color, mew=2)
    axis.axvline(budget, color="#333333", lw=1, ls=":")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend(frameon=False, fontsize=8)
    return figure


def budget_explorer(sizes: Sequence[int], accuracy: Series, seconds_each: float, training: Series) -> VBox:
    """Choose how many pictures are to be made and the budget of each, and see what is best to do. sizes: the n of
    best-of-n; accuracy, training (seconds, shared by all pictures): generator → (len(sizes),); seconds_each: of drawing
    and reading one candidate."""
    number(seconds_each, "seconds_each", above=0)
    for name in named(training, "training", named(accuracy, "accuracy")) and accuracy:
        for what, one in (("accuracy", accuracy[name]), ("training", training[name])):
            shaped(numbers(one, f"{what} of {name}", 0), f"{what} of {name}", (len(sizes),))
    options = [(f"{many:,}", many) for many in (10, 100, 1000, 10_000, 100_000)]
    pictures = SelectionSlider(options=options, value=10_000, description="pictures")
    budget = FloatLogSlider(value=10**0.4, min=-1, max=2, step=0.1, description="seconds", continuous_update=False)

    def draw(many: int, seconds: float) -> tuple[Figure, str]:
        share = {name: np.asarray(training[name]) / many for name in accuracy}
        spent = {name: share[name] + np.asarray(sizes) * seconds_each for name in accuracy}
        figure = draw_budget(spent, accuracy, seconds, {name: part[-1] for name, part in share.items()})
        most = {name: np.asarray(accuracy[name])[spent[name] <= seconds].max(initial=-1) for name in accuracy}
        best = max(most, key=lambda one: most[one])
        said = f"best within the budget: {best}, {most[best]:.3f}" if most[best] >= 0 else "nothing fits this budget"
        return figure, said

    return explorer(draw, (pictures, budget))


# Which of a prompt's fresh images make the online pair, from log-odds (K,): chosen, rejected.
check_online_pair = Exercise(
    lambda log_odds: (log_odds.argmax(), log_odds.argmin()),
    (
        (torch.tensor([0.5, 3.0, -2.0, 1.0]),),
        (torch.tensor([-5.0, -4.0, -9.0]),),
        (torch.tensor([2.0, 0.5]),),
        (torch.tensor([1.2, -0.3, 0.8, -3.1, 2.6]),),
        (torch.tensor([-1.4, 0.2, 0.7, 4.4, 3.9, 1.0]),),
    ),
    lambda odds: {
        "They are swapped: chosen first, rejected second.": (odds.argmin(), odds.argmax()),
        "Those are log-odds: the numbers of the two images are wanted, from 0.": (odds.max(), odds.min()),
        "Images are counted from 0 here.": (odds.argmax() + 1, odds.argmin() + 1),
        "Log-odds are compared with their signs, not by their size.": (odds.abs().argmax(), odds.abs().argmin()),
    },
    "A pair of numbers, of the chosen and of the rejected image,",
)

# The guided loss from offline margins (B,), online margins (K,) and λ: its value and its gradients.
check_guided = Exercise(
    lambda offline, online, weight: -F.logsigmoid(offline).mean() - weight * F.logsigmoid(online).mean(),
    tuple(
        (torch.tensor(offline, requires_grad=True), torch.tensor(online, requires_grad=True), weight)
        for offline, online, weight in (
            ([0.5, -1.0, 2.0], [1.0, -0.5], 0.5),
            ([-0.7], [0.9, 0.2, -1.6, 1.3], 2.0),
            ([1.4, -0.1], [-2.3, 0.6, 0.8], 0.0),
        )
    ),
    lambda a, b, weight: {
        "That is one mean over all pairs: λ has no part in it.": -F.logsigmoid(torch.cat([a, b])).mean(),
        "The weight λ of the online pairs is missing.": -F.logsigmoid(a).mean() - F.logsigmoid(b).mean(),
        "That adds the margin itself: the online loss is −log σ, too.": -F.logsigmoid(a).mean() - weight * b.mean(),
        "Those are sums: each loss is a mean over its pairs.": -F.logsigmoid(a).sum() - weight * F.logsigmoid(b).sum(),
        "The sign: a loss falls where margins grow, −log σ.": F.logsigmoid(a).mean() + weight * F.logsigmoid(b).mean(),
        "No gradient reaches the online pairs: a reward that is a constant teaches nothing.": (
            -F.logsigmoid(a).mean() - weight * F.logsigmoid(b.detach()).mean()
        ),
    },
    "One loss",
)


def _over(once: float, saved: float) -> float:
    return once / saved if saved else math.inf


# From how many pictures on alignment pays; its seconds, and a picture's without and with it.
check_break_even = Exercise(
    lambda once, without, with_it: _over(once, max(without - with_it, 0)),
    ((3600.0, 2.0, 0.5), (100.0, 1.0, 0.9), (730.0, 3.1, 1.7), (100.0, 0.5, 1.0), (100.0, 2.0, 2.0)),
    lambda once, a, b: {
        "The aligned generator's pictures cost something too: divide by what each one saves.": once / a,
        "A picture saves the difference of the two, not their sum.": once / (a + b),
        "Where a picture costs more with alignment, it never pays: return infinity, np.inf.": _over(once, a - b),
        "The sign: what is saved is what it costs without, minus with.": _over(once, b - a),
        "Upside down: seconds once, divided by seconds saved a picture.": (a - b) / once if a > b else math.inf,
        "Leave the number as it is, without rounding it.": math.ceil(once / (a - b)) if a > b else math.inf,
    },
)
