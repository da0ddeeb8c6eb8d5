"""Chapter 02, the fine-tuned ORM: its figure, its explorer and its exercises' checkers.

Notebook: 02_finetuned_orm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from ipywidgets import Dropdown, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare, expect
from cotgen_lite.course.explorer import explorer, slider
from cotgen_lite.course.plots import CHANCE, MARKERS, OTHER, OURS, Numbers, Texts, new_chart
from cotgen_lite.metrics import calibration, calibration_error


def draw_calibration(bins: Mapping[str, Sequence[Numbers]], colors: Mapping[str, str], title: str = "") -> Figure:
    """How often images are right against how sure the verifier is; on the diagonal it means what it says. bins: label →
    (mean P(yes), share of right images, number of images) of its bins; colors: label → colour."""
    figure, axis = new_chart(4.6, 4.2, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of right images")
    axis.set_xlabel("the verifier's P(yes), mean of a bin")
    axis.set_title(title, fontsize=10)
    axis.plot([0, 1], [0, 1], color=CHANCE, ls="--", lw=1, label="means what it says")
    for marker, (label, columns) in zip(MARKERS, bins.items(), strict=False):
        belief, share, count = (np.asarray(column) for column in columns)
        axis.plot(belief, share, color=colors[label], lw=1.2, alpha=0.7)
        sizes = 12 + 160 * count / max(count.sum(), 1)
        axis.scatter(belief, share, sizes, color=colors[label], marker=marker, label=label)
    axis.legend(frameon=False, fontsize=8)
    return figure


def calibration_explorer(log_odds: Mapping[str, np.ndarray], correct: np.ndarray, tags: Texts) -> VBox:
    """Choose a tag and a number of bins, and see how far two verifiers mean what they say. log_odds: verifier → (P, N);
    correct: verdicts (P, N); tags: (P,) of the prompts."""
    tag = Dropdown(options=["all", *dict.fromkeys(tags)], description="tag")
    colors = dict(zip(log_odds, (OTHER, OURS), strict=True))

    def draw(chosen: str, number: int) -> tuple[Figure, str]:
        rows = [chosen in ("all", name) for name in tags]
        asked = {name: (odds[rows], correct[rows], number) for name, odds in log_odds.items()}
        figure = draw_calibration({name: calibration(*one) for name, one in asked.items()}, colors, chosen)
        off = ", ".join(f"{name} {calibration_error(*one):.3f}" for name, one in asked.items())
        return figure, f"mean distance from the diagonal: {off}"

    return explorer(draw, (tag, slider("bins", 10, 2, 20)))


def check_balanced(function: Callable[[np.ndarray], list[tuple[int, int]]]) -> None:
    """Places (row, column) of as many yes as no in every row of verdicts (P, N), all there are."""
    labels = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=bool)
    chosen = [(int(row), int(column)) for row, column in function(labels)]
    expect(len(set(chosen)) == len(chosen), "An image is taken twice: each place may stand in the list once.")
    taken = [[bool(labels[place]) for place in chosen if place[0] == row] for row in range(4)]
    yes, no = [sum(row) for row in taken], [len(row) - sum(row) for row in taken]
    hint = "Yes and no are as many over all, but not for each prompt: the prompt would tell the answer."
    expect(sum(yes) != sum(no) or yes == no, hint)
    expect(yes == no, f"Of each prompt as many yes as no are wanted; yours: {yes} yes, {no} no.")
    expect(yes[2] == 0, "The third prompt has one label only: it can teach nothing, leave it out.")
    expect(yes == [2, 1, 0, 2], f"Take as many as there are of the rarer label: 2, 1, 0, 2 pairs, not {yes}.")


def check_answer_loss(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Mean cross-entropy of the answer's tokens; logits (T, V), ids (T,), is_answer bool (T,)."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    ids, answer = torch.tensor([0, 3, 2, 1, 4, 0]), torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.bool)
    log_p = logits.log_softmax(-1)

    def loss(rows: list[int], words: list[int]) -> float:
        return -float(log_p[rows, ids[words]].mean())

    wanted, every = loss([3, 4], [4, 5]), loss([*range(5)], [*range(1, 6)])
    mistakes = {
        "The logits at a place predict the *next* token: those at t − 1 belong to token t.": loss([4, 5], [4, 5]),
        "That is the loss on every token: the question is given, only the answer is to be learned.": every,
        "That is the sum: take the mean, or long answers count more.": 2 * wanted,
        "The sign: a loss is *minus* the log-probability.": -wanted,
    }
    compare(float(function(logits, ids, answer)), wanted, mistakes)
