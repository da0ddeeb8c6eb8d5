"""Chapter 06, verifying and aligning together: its figure, its explorer and its exercises' checkers.

Notebook: 06_verify_and_align.ipynb. Paper: section 3.4. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from ipywidgets import FloatLogSlider, SelectionSlider, VBox
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from cotgen_lite.course.checker import compare, expect
from cotgen_lite.course.explorer import explorer
from cotgen_lite.course.plots import CEILING, CHANCE, MARKERS, OTHER, OURS, Series, new_chart


def draw_budget(seconds: Series, accuracy: Series, budget: float, upfront: Mapping[str, float]) -> Figure:
    """What a budget for one picture buys: accuracy against seconds, both (len(n),), for each generator with a verifier
    on top. budget: seconds, drawn as a line, the best point within it circled; upfront: each picture's share of what
    training took, already in `seconds`, named in the legend."""
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
    options = [(f"{number:,}", number) for number in (10, 100, 1000, 10_000, 100_000)]
    pictures = SelectionSlider(options=options, value=10_000, description="pictures")
    budget = FloatLogSlider(value=10**0.4, min=-1, max=2, step=0.1, description="seconds", continuous_update=False)

    def draw(number: int, seconds: float) -> tuple[Figure, str]:
        share = {name: np.asarray(training[name]) / number for name in accuracy}
        spent = {name: share[name] + np.asarray(sizes) * seconds_each for name in accuracy}
        figure = draw_budget(spent, accuracy, seconds, {name: part[-1] for name, part in share.items()})
        most = {name: np.asarray(accuracy[name])[spent[name] <= seconds].max(initial=-1) for name in accuracy}
        best = max(most, key=lambda one: most[one])
        said = f"best within the budget: {best}, {most[best]:.3f}" if most[best] >= 0 else "nothing fits this budget"
        return figure, said

    return explorer(draw, (pictures, budget))


def check_online_pair(function: Callable[[Tensor], tuple[int, int]]) -> None:
    """Which of a prompt's fresh images make the online pair, from log-odds (K,): chosen, rejected."""
    for odds in (torch.tensor([0.5, 3.0, -2.0, 1.0]), torch.tensor([-5.0, -4.0, -9.0])):
        best, worst = int(odds.argmax()), int(odds.argmin())
        chosen, rejected = (int(place) for place in function(odds))
        expect((chosen, rejected) != (worst, best), "They are swapped: chosen first, rejected second.")
        expect(rejected == worst, f"The rejected image has the lowest log-odds: number {worst}, not {rejected}.")
        expect(chosen == best, f"The chosen image has the highest log-odds, even below 0: number {best}.")


def check_guided(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """The guided loss from offline margins (B,), online margins (K,) and λ."""
    offline, online = torch.tensor([0.5, -1.0, 2.0], requires_grad=True), torch.tensor([1.0, -0.5], requires_grad=True)
    got, weight = function(offline, online, 0.5), 0.5
    first, second = -F.logsigmoid(offline).mean(), -F.logsigmoid(online).mean()
    mistakes = {
        "That is one mean over all pairs: λ has no part in it.": (3 * first + 2 * second) / 5,
        "The weight λ of the online pairs is missing.": first + second,
        "That adds the margin itself: the online pairs have DPO's loss too, −log σ.": first - weight * online.mean(),
    }
    compare(got, first + weight * second, mistakes)
    expect(bool(got.requires_grad), "The loss has no gradient: do not turn it into a number on the way.")
    got.backward()
    reached = online.grad is not None and bool(online.grad.abs().sum() > 0)
    expect(reached, "No gradient reaches the online pairs: a reward that is a constant teaches nothing.")


def check_break_even(function: Callable[[float, float, float], float]) -> None:
    """From how many pictures on alignment pays; its seconds, and a picture's without and with it."""
    for upfront, without, with_it in ((3600.0, 2.0, 0.5), (100.0, 1.0, 0.9)):
        wanted, alone = upfront / (without - with_it), upfront / without
        mistakes = {
            "The aligned generator's pictures cost something too: divide by what each one saves.": alone,
            "A picture saves the difference of the two, not their sum.": upfront / (with_it + without),
            "The sign: what is saved is what it costs without, minus with.": -wanted,
            "Upside down: seconds once, divided by seconds saved a picture.": 1 / wanted,
        }
        case = f"{upfront:g} s once, {without:g} or {with_it:g} s each"
        compare(float(function(upfront, without, with_it)), wanted, mistakes, case)
    never = "Where a picture of the aligned generator costs more, alignment never pays: return infinity, np.inf."
    expect(math.isinf(float(function(100.0, 0.5, 1.0))), never)
