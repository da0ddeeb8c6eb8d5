"""Chapter 01, choosing with a zero-shot ORM: its figures, its game and its exercises' checkers.

Notebook: 01_zero_shot_orm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from ipywidgets import Button, ToggleButtons, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare
from cotgen_lite.course.explorer import Game, explorer
from cotgen_lite.course.plots import RIGHT, WRONG, Numbers, Texts, draw_images, new_chart


def draw_beliefs(log_odds: Numbers, correct: Numbers) -> Figure:
    """How P(yes) is spread over right and over wrong images; from its log-odds and a judge's verdicts, (B,)."""
    belief, truth = 1 / (1 + np.exp(-np.asarray(log_odds, dtype=float))), np.asarray(correct, dtype=bool)
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


def check_probability(function: Callable[[Tensor, Sequence[int], Sequence[int]], float]) -> None:
    """P(yes) among yes and no, from one row of logits, over several spellings of each."""
    logits = torch.tensor([3.0, 1.0, 2.0, -1.0, 0.5, 4.0])
    yes, no = math.exp(3) + math.exp(1), math.exp(2) + math.exp(-1)
    wanted = yes / (yes + no)
    mistakes = {
        "That is the share of yes among all words: only yes and no count here.": yes / float(logits.exp().sum()),
        "You added logits; probabilities add, so take log-sum-exp over the spellings.": 1 / (1 + math.exp(-3)),
        "You took the best spelling only: log-sum-exp counts them all.": 1 / (1 + math.exp(-1)),
        "That is P(no): yes and no are swapped.": 1 - wanted,
        "Those are the log-odds: a sigmoid turns them into a probability.": math.log(yes / no),
    }
    compare(float(function(logits, [0, 1], [2, 3])), wanted, mistakes)
    large = float(function(logits + 1000, [0, 1], [2, 3]))
    compare(round(large, 3), round(wanted, 3), case="Large logits overflow: use torch.logsumexp, not exp")


def check_best_of_n(function: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
    """The expected accuracy of best-of-n over all n-subsets of one prompt's candidates (no ties)."""
    scores, correct = np.array([0.3, -1.0, 2.0, 0.9, 0.1]), np.array([1, 1, 0, 1, 0])
    told = {1: "nothing is chosen (it is the mean accuracy)", 5: "the candidate with the highest score is always taken"}
    for n in range(1, 6):
        chosen = [max(subset, key=lambda i: scores[i]) for subset in combinations(range(5), n)]
        hint = f"For n = {n}, that is the first n candidates only: average over all subsets."
        mistakes = {hint: correct[scores[:n].argmax()]} if n == 2 else {}
        case = f"For n = {n}" + (f", where {told[n]}" if n in told else "")
        compare(float(function(scores, correct, n)), np.mean(correct[chosen]), mistakes, case)


def check_oracle(function: Callable[[np.ndarray], float]) -> None:
    """The ceiling of any choice: the share of prompts with at least one right candidate; (P, N)."""
    correct, share = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool), 5 / 12
    mistakes = {
        "That is the mean over all images, the random choice: the oracle needs one right image a prompt.": share,
        "That is over candidates: the axis of candidates is the last one.": correct.any(axis=0).mean(),
    }
    compare(float(function(correct)), 0.75, mistakes, "Three of four prompts have a right candidate")
