"""Chapter 01, choosing with a zero-shot ORM: its figures, its game and its exercises' checkers.

Notebook: 01_zero_shot_orm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from ipywidgets import Button, ToggleButtons, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import Game, explorer
from cotgen_lite.course.plots import RIGHT, WRONG, Numbers, Texts, draw_images, new_chart, pictures
from cotgen_lite.inputs import numbers, of_kind, one_each, shaped, verdicts, whole


def draw_beliefs(log_odds: Numbers, correct: Numbers) -> Figure:
    """How P(yes) is spread over right and over wrong images; from its log-odds and a judge's verdicts, (B,)."""
    odds = shaped(numbers(log_odds, "log_odds"), "log_odds", ("B",))
    if not odds.size:
        raise ValueError("log_odds must have at least one entry, got none.")
    belief, truth = 1 / (1 + np.exp(-odds)), verdicts(correct, "correct", odds.shape)
    figure, axis = new_chart(6.5, 3)
    bins = np.linspace(0, 1, 26).tolist()
    right, wrong = (np.full(part.sum(), 1 / max(part.sum(), 1)) for part in (truth, ~truth))
    axis.hist(belief[truth], bins, weights=right, color=RIGHT, alpha=0.6, label="right images")
    axis.hist(belief[~truth], bins, weights=wrong, histtype="step", color=WRONG, lw=2, label="wrong images")
    axis.set(yscale="log", xlabel="the verifier's P(yes)", ylabel="share of right, or of wrong, images (log)")
    axis.legend(frameon=False)
    return figure


def draw_choice(
    images: Tensor, prompt: str, picked: int | None, chosen: int, beliefs: Numbers, right: Numbers
) -> Figure:
    """Candidates to pick from; once one is picked, the verifier's choice, beliefs and the judge's verdicts too. images:
    uint8 (N, 3, H, W); picked: by the learner, or None; chosen: by the verifier; beliefs: P(yes) (N,); right: (N,)."""
    number = len(pictures(images, "images", "N"))
    for at in (chosen, picked) if picked is not None else (chosen,):
        whole(at, "What is picked or chosen", 0, number - 1)
    one_each(beliefs, "beliefs", number, "pictures")
    if picked is None:
        figure = draw_images(images, [str(number + 1) for number in range(len(images))], 8, size=1.25)
        figure.suptitle(f"{prompt}: which one would you keep?", fontsize=10)
        return figure
    names = {picked: "YOU", chosen: "VERIFIER"} if picked != chosen else {picked: "YOU, VERIFIER"}
    titles = [f"P(yes) {belief:.2f}\n{names.get(i, '')}" for i, belief in enumerate(np.asarray(beliefs))]
    figure = draw_images(images, titles, 8, right, (picked, chosen), 1.25)
    figure.suptitle(prompt, fontsize=10)
    return figure


def pick_the_best(prompts: Texts, images: Sequence[Tensor], beliefs: np.ndarray, right: np.ndarray) -> VBox:
    """Pick the best of a prompt's candidates, then see the verifier's choice; a score is kept. images: per prompt,
    uint8 (N, 3, H, W); beliefs: P(yes) (P, N); right: verdicts (P, N)."""
    verdicts(right, "right", shaped(numbers(beliefs, "beliefs"), "beliefs", ("P", "N")).shape)
    one_each(prompts, "prompts", len(beliefs), "rows of beliefs")
    for some in one_each(images, "images", len(of_kind(prompts, "prompts", (list, tuple), "a list")), "prompts"):
        pictures(some, "each of images", beliefs.shape[1])
    if not len(beliefs):
        raise ValueError("prompts must have at least one entry, got none.")
    options, best = [(str(i + 1), i) for i in range(beliefs.shape[1])], beliefs.argmax(axis=1)
    picks = ToggleButtons(options=options, value=None, description="you keep", style={"button_width": "4.5em"})
    onward = Button(description="next prompt")
    game = Game(
        value=(0, None, {})
    )  # the round, what is picked in it, and the first pick of each round: only that counts

    def draw(state: tuple[int, int | None, dict[int, int]]) -> tuple[Figure, str]:
        row, rows = state[0] % len(prompts), [number % len(prompts) for number in state[2]]
        figure = draw_choice(images[row], prompts[row], state[1], int(best[row]), beliefs[row], right[row])
        you, verifier = right[rows, list(state[2].values())].sum(), right[rows, best[rows]].sum()
        return figure, f"you {you}, verifier {verifier} of {len(rows)} prompts right"

    def picked(change: dict) -> None:
        new = change["new"]
        game.play(lambda at, _, firsts: (at, new, firsts if new is None else {at: new} | firsts))

    def go_on(_: object) -> None:
        game.play(lambda at, _, firsts: (at + 1, None, firsts))
        picks.value = None

    picks.observe(picked, names="value")
    onward.on_click(go_on)
    return explorer(draw, (picks,), (onward,), game=game)


def _log_odds(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    return logits[yes].logsumexp(0) - logits[no].logsumexp(0)


_LOGITS = torch.tensor([3.0, 1.0, 2.0, -1.0, 0.5, 4.0])
# P(yes) among yes and no, from one row of logits, over several spellings of each.
check_probability = Exercise(
    lambda logits, yes, no: _log_odds(logits, yes, no).sigmoid(),
    (
        (_LOGITS, [0, 1], [2, 3]),
        (_LOGITS, [4], [5, 2, 3]),
        (torch.tensor([0.25, -1.5, 0.75, 2.5, -0.5]), [4, 0], [1]),
        (_LOGITS + 1000, [0, 1], [2, 3]),
    ),
    lambda logits, yes, no: {
        "That is the share of yes among all words: only yes and no count here.": logits.softmax(0)[yes].sum(),
        "You added logits: log-sum-exp adds probabilities.": (logits[yes].sum() - logits[no].sum()).sigmoid(),
        "You took the best spelling: log-sum-exp counts them all.": (logits[yes].max() - logits[no].max()).sigmoid(),
        "That is P(no): yes and no are swapped.": _log_odds(logits, no, yes).sigmoid(),
        "Those are the log-odds: a sigmoid turns them into a probability.": _log_odds(logits, yes, no),
        "Large logits overflow: use torch.logsumexp, not exp.": logits[yes].exp().sum() / logits[yes + no].exp().sum(),
    },
    "One probability",
)


_SCORES, _CORRECT = np.array([0.3, -1.0, 2.0, 0.9, 0.1]), np.array([1, 1, 0, 1, 0])
# The expected accuracy of best-of-n over all n-subsets of one prompt's candidates (no ties).
check_best_of_n = Exercise(
    lambda scores, correct, n: np.mean(
        [correct[max(subset, key=scores.item)] for subset in combinations(range(len(scores)), n)]
    ),
    (
        *((_SCORES, _CORRECT, n) for n in range(1, 6)),
        (np.array([1.2, -0.7, 0.4, -2.1, 0.9, -0.2, -1.6]), np.array([0, 1, 1, 0, 1, 0, 1]), 3),
        (np.array([-0.4, -0.9, -3.0]), np.array([1, 0, 1]), 2),
        (np.array([-0.5]), np.array([1]), 1),
    ),
    lambda scores, correct, n: {
        "That is the choice among the first n only: average over all subsets.": correct[scores[:n].argmax()],
        "That is the mean accuracy, whatever n is: nothing is chosen by the scores.": correct.mean(),
        "That always takes the best of all: it is in some of the subsets only.": correct[scores.argmax()],
        "That averages the n best: one is chosen in each subset.": correct[np.argsort(-scores)[:n]].mean(),
    },
)

# The ceiling of any choice: the share of prompts with at least one right candidate; (P, N).
check_oracle = Exercise(
    lambda correct: correct.any(axis=1).mean(),
    tuple(
        (np.array(rows, dtype=bool),)
        for rows in (
            [[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]],
            [[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
            [[0, 0, 0], [0, 0, 0]],
            [[0], [1]],
            [[1, 0, 0], [0, 0, 0]],
        )
    ),
    lambda correct: {
        "That is the mean over all images, a random choice: an oracle needs one right image a prompt.": correct.mean(),
        "That is over candidates: the axis of candidates is the last one.": correct.any(axis=0).mean(),
        "That asks for all candidates to be right: the oracle needs one of them.": correct.all(axis=1).mean(),
        "That is a number of prompts: a share of them is wanted.": correct.any(axis=1).sum(),
    },
    "One share",
)
