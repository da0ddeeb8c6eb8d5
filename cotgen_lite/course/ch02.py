"""Chapter 02, the fine-tuned ORM: its figure, its explorer and its exercises' checkers.

Notebook: 02_finetuned_orm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown, VBox
from matplotlib.figure import Figure

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, slider
from cotgen_lite.course.plots import CHANCE, MARKERS, OTHER, OURS, Numbers, Texts, new_chart
from cotgen_lite.inputs import named, numbers, one_each, shaped, verdicts
from cotgen_lite.metrics import calibration, calibration_error


def draw_calibration(bins: Mapping[str, Sequence[Numbers]], colors: Mapping[str, str], title: str = "") -> Figure:
    """How often images are right against how sure the verifier is; on the diagonal it means what it says. bins: label →
    (mean P(yes), share of right images, number of images) of its bins; colors: label → colour."""
    for label in named(colors, "colors", named(bins, "bins")) and bins:
        columns = one_each(bins[label], f"bins[{label!r}]", 3, "columns")
        numbers(columns, f"bins[{label!r}]", 0)
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
    shape = verdicts(correct, "correct", ("P", "N")).shape
    one_each(tags, "tags", shape[0], "prompts")
    one_each([*named(log_odds, "log_odds")], "log_odds", 2, "verifiers")
    for name, odds in log_odds.items():
        shaped(numbers(odds, f"log_odds[{name!r}]"), f"log_odds[{name!r}]", shape)
    tag = Dropdown(options=["all", *dict.fromkeys(tags)], description="tag")
    colors = dict(zip(log_odds, (OTHER, OURS), strict=True))

    def draw(chosen: str, number: int) -> tuple[Figure, str]:
        rows = [chosen in ("all", name) for name in tags]
        asked = {name: (odds[rows], correct[rows], number) for name, odds in log_odds.items()}
        figure = draw_calibration({name: calibration(*one) for name, one in asked.items()}, colors, chosen)
        off = ", ".join(f"{name} {calibration_error(*one):.3f}" for name, one in asked.items())
        return figure, f"mean distance from the diagonal: {off}"

    return explorer(draw, (tag, slider("bins", 10, 2, 20)))


RANDOM = np.random.default_rng(0)  # of the exercises' cases


def _balanced(labels: np.ndarray) -> list[tuple[int, int]]:
    pairs = [(at, zip(np.flatnonzero(row), np.flatnonzero(~row), strict=False)) for at, row in enumerate(labels)]
    return [(at, int(place)) for at, both in pairs for pair in both for place in pair]


def _unbalanced(places: np.ndarray, labels: np.ndarray) -> str:
    """What is wrong with places, if anything is: many choices are right."""
    pairs = places.size == 0 or places.shape[1:] == (2,)
    if not pairs or (places.size and ((places != places.round()) | (places < 0) | (places >= labels.shape)).any()):
        return "A list of pairs (row, column) is wanted, whole numbers from 0, inside of the table."
    rows, columns = places.reshape(-1, 2).astype(int).T
    if len(set(zip(rows, columns, strict=True))) < len(rows):
        return "An image is taken twice: each place may stand in the list once."
    yes, no = (np.bincount(rows[labels[rows, columns] == kind], minlength=len(labels)) for kind in (True, False))
    if (yes + no)[labels.all(axis=1) | ~labels.any(axis=1)].any():
        return "A prompt with one label only can teach nothing: leave it out."
    if (yes != no).any():
        if yes.sum() == no.sum():
            return "Yes and no are as many over all, but not for each prompt: the prompt would tell the answer."
        return f"Of each prompt, as many yes as no are wanted; yours: {yes.tolist()} yes, {no.tolist()} no."
    most = np.minimum(labels.sum(axis=1), (~labels).sum(axis=1)).tolist()
    return "" if yes.tolist() == most else f"Take all there are of the rarer label, {most}, not {yes.tolist()}."


# Places (row, column) of as many yes as no in every row of verdicts (P, N), all there are.
check_balanced = Exercise(
    _balanced,
    tuple(
        (np.array(rows, dtype=bool),)
        for rows in (
            [[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]],
            [[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1]],
            [[1, 0]],
            [[1, 1, 1], [0, 0, 0]],
        )
    ),
    wanted="A list of places (row, column)",
    rule=_unbalanced,
    free=True,
)

# Mean cross-entropy of the answer's tokens; logits (T, V), ids (T,), is_answer bool (T,).
check_answer_loss = Exercise(
    lambda logits, ids, is_answer: F.cross_entropy(logits[:-1][is_answer[1:]], ids[1:][is_answer[1:]]),
    tuple(
        (
            torch.from_numpy(RANDOM.normal(size=(len(ids), 5)).round(1)).float(),
            torch.tensor(ids),
            torch.tensor(answer, dtype=torch.bool),
        )
        for ids, answer in (
            ([1, 4, 3], [0, 0, 1]),
            ([0, 3, 2, 1, 4, 0], [0, 0, 0, 0, 1, 1]),
            ([2, 2, 0, 4, 1, 3, 1], [0, 0, 1, 1, 1, 0, 0]),
        )
    ),
    lambda logits, ids, on: {
        "The logits at a place predict the *next* token: those at t − 1 belong to token t.": F.cross_entropy(
            logits[on], ids[on]
        ),
        "That is the loss on every token: only the answer is to be learned.": F.cross_entropy(logits[:-1], ids[1:]),
        "That is the loss on the question: only the answer is to be learned.": F.cross_entropy(
            logits[:-1][~on[1:]], ids[1:][~on[1:]]
        ),
        "That is the sum: take the mean, or long answers count more.": F.cross_entropy(
            logits[:-1][on[1:]], ids[1:][on[1:]], reduction="sum"
        ),
        "The sign: a loss is *minus* the log-probability.": -F.cross_entropy(logits[:-1][on[1:]], ids[1:][on[1:]]),
    },
    "One loss",
)
