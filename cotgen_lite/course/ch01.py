"""Chapter 01, choosing with a zero-shot ORM: its figures, its game and its exercises' checkers.

Notebook: 01_zero_shot_orm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import Button, ToggleButtons, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import Game, explorer
from cotgen_lite.course.plots import (
    CHANCE,
    MARKERS,
    RIGHT,
    WRONG,
    Curve,
    Numbers,
    Series,
    Texts,
    draw_images,
    draw_picture,
    pictures,
)
from cotgen_lite.inputs import named, numbers, of_kind, one_each, shaped, texts, verdicts, whole
from cotgen_lite.metrics import roc_auc, roc_auc_within_prompts


def draw_answer(image: Tensor, patch: int, words: Texts, logits: Numbers, yes: Texts, no: Texts) -> Figure:
    """What a verifier reads of a picture, and what it would say next. image: uint8 (3, H, W), cut into patches of so
    many pixels a side; words: the likeliest next ones, with their logits; yes, no: those that are an answer."""
    size = pictures(image, "image").shape[-1]
    patch, said = whole(patch, "patch", 1, size), texts(words, "words")
    heights = one_each(shaped(numbers(logits, "logits"), "logits", ("W",)), "logits", len(said), "words")
    if not said:
        raise ValueError("words must have at least one entry, got none.")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3), layout="constrained", width_ratios=(1, 2.2))
    draw_picture(left, image, f"the picture, in {(size // patch) ** 2} patches", fontsize=9)
    for line in range(patch, size, patch):
        left.axhline(line - 0.5, color="#888888", lw=0.5)
        left.axvline(line - 0.5, color="#888888", lw=0.5)
    colors = [RIGHT if word in yes else WRONG if word in no else CHANCE for word in said]
    bars = right.bar(range(len(said)), heights, color=colors)
    right.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=7, padding=2)
    right.set_xticks(range(len(said)), [f"“{word}”" for word in said], rotation=35, ha="right", fontsize=8)
    right.set(ylabel="logit of the next word", title="the twelve likeliest words" if len(said) == 12 else "")
    right.spines[["top", "right"]].set_visible(False)
    right.margins(y=0.15)
    for color, label in ((RIGHT, "yes-words"), (WRONG, "no-words"), (CHANCE, "all others")):
        right.bar(0, 0, color=color, label=label)
    right.legend(frameon=False, fontsize=8)
    return figure


def draw_with_subsets(curves: Mapping[str, Curve], colors: Mapping[str, str], size: int) -> Figure:
    """Accuracy against n, one line a label with its 95% band, above bars of how many subsets of n candidates a pool of
    `size` has. colors: label → colour."""
    named(colors, "colors", named(curves, "curves"))
    size = whole(size, "size", 1, 1000)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.8, 5), layout="constrained", sharex=True, height_ratios=(3, 1.1)
    )
    for place, (label, (ns, values, bounds)) in enumerate(curves.items()):
        one_each(numbers(values, f"accuracy of {label}"), f"accuracy of {label}", len(ns), "n")
        above.plot(ns, np.asarray(values), color=colors[label], label=label, marker=MARKERS[place % 6], ms=4)
        if bounds is not None:
            shaped(numbers(bounds, f"bounds of {label}"), f"bounds of {label}", (2, len(ns)))
            above.fill_between(ns, *np.asarray(bounds), color=colors[label], alpha=0.15, lw=0)
    above.set(ylabel="GenEval accuracy")
    above.legend(frameon=False, fontsize=9)
    numbers_of_candidates = range(1, size + 1)
    below.bar(numbers_of_candidates, [comb(size, n) for n in numbers_of_candidates], color=CHANCE)
    below.set(yscale="log", ylabel="subsets\na prompt", xlabel="n candidates", ylim=(0.5, None))
    below.set_xticks(numbers_of_candidates)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure


def draw_belief_and_truth(ns: Sequence[int], belief: Series, truth: Series, colors: Mapping[str, str]) -> Figure:
    """What verifiers believe of the pictures that they choose among n, and beside it how many of these are right.
    belief, truth: verifier → a share for each n; colors: verifier → colour."""
    named(colors, "colors", named(truth, "truth", named(belief, "belief")))
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.3), layout="constrained", sharex=True)
    titles = ("the winner's P(yes), as the verifier says", "the winner is right, as the judge says")
    for axis, series, title in zip(axes, (belief, truth), titles, strict=True):
        for place, (label, values) in enumerate(series.items()):
            heights = one_each(numbers(values, f"values of {label}"), f"values of {label}", len(ns), "n")
            dashes = "-" if place % 2 == 0 else "--"  # lines that lie on each other are both seen
            axis.plot(ns, heights, dashes, color=colors[label], marker=MARKERS[place % 6], ms=5, label=label)
        axis.set(title=title, xlabel="n candidates", ylim=(0, 1.02), xticks=list(ns))
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False, fontsize=9)
    return figure


def draw_choice(
    images: Tensor, prompt: str, picked: int | None, chosen: int, beliefs: Numbers, right: Numbers
) -> Figure:
    """Candidates to pick from; once one is picked, the verifier's choice, beliefs and the judge's verdicts too. images:
    uint8 (N, 3, H, W); picked: by the learner, or None; chosen: by the verifier; beliefs: P(yes) (N,); right: (N,)."""
    number = len(pictures(images, "images", "N"))
    columns = 8 if number <= 8 else 10
    for at in (chosen, picked) if picked is not None else (chosen,):
        whole(at, "What is picked or chosen", 0, number - 1)
    one_each(beliefs, "beliefs", number, "pictures")
    if picked is None:
        figure = draw_images(images, [str(number + 1) for number in range(len(images))], columns, size=1.25)
        figure.suptitle(f"{prompt}: which one would you keep?", fontsize=10)
        return figure
    names = {picked: "YOU", chosen: "VERIFIER"} if picked != chosen else {picked: "YOU, VERIFIER"}
    titles = [f"P(yes) {belief:.2f}\n{names.get(i, '')}" for i, belief in enumerate(np.asarray(beliefs))]
    figure = draw_images(images, titles, columns, right, (picked, chosen), 1.25)
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
    picks = ToggleButtons(options=options, value=None, description="you keep", style={"button_width": "3.5em"})
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


def _expected(scores: np.ndarray, correct: np.ndarray, n: int) -> float:
    """Over all subsets of n, how often the best of it is right; equally good ones share the win."""
    found = []
    for subset in map(list, combinations(range(len(scores)), n)):
        best = scores[subset] == scores[subset].max()
        found.append(correct[subset][best].mean())
    return float(np.mean(found))


def _with_replacement(scores: np.ndarray, correct: np.ndarray, n: int) -> float:
    """The same if each of the n were drawn from all candidates anew."""
    places = np.arange(len(scores), 0, -1)
    weights = (places / len(scores)) ** n - ((places - 1) / len(scores)) ** n
    return float(weights @ correct[np.argsort(-scores, kind="stable")])


_SCORES, _CORRECT = np.array([0.3, -1.0, 2.0, 0.9, 0.1]), np.array([1, 1, 0, 1, 0])
# The expected accuracy of best-of-n over all n-subsets of one prompt's candidates; ties are averaged.
check_best_of_n = Exercise(
    _expected,
    (
        *((_SCORES, _CORRECT, n) for n in range(1, 6)),
        (np.array([1.2, -0.7, 0.4, -2.1, 0.9, -0.2, -1.6]), np.array([0, 1, 1, 0, 1, 0, 1]), 3),
        (np.array([-0.4, -0.9, -3.0]), np.array([1, 0, 1]), 2),
        (np.array([-0.5]), np.array([1]), 1),
        (np.array([0.5, 2.0, 2.0, -1.0, 2.0, 0.5, -1.0, 0.5]), np.array([1, 1, 0, 0, 0, 0, 1, 1]), 3),
        (np.array([0.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 0]), 2),
    ),
    lambda scores, correct, n: {
        "That draws with replacement: the n candidates of a subset are all different.": _with_replacement(
            scores, correct, n
        ),
        "Your ranking is ascending: rank 1 is the highest score, so sort -scores.": _expected(-scores, correct, n),
        "1 − (1 − k/N)ⁿ is an oracle's, drawn with replacement: the choice is made by the scores.": 1
        - (1 - correct.mean()) ** n,
        "That is the choice among the first n only: average over all subsets.": correct[scores[:n].argmax()],
        "That is the mean accuracy, whatever n is: nothing is chosen by the scores.": correct.mean(),
        "That always takes the best of all: it is in some of the subsets only.": correct[scores.argmax()],
        "That averages the n best: one is chosen in each subset.": correct[np.argsort(-scores)[:n]].mean(),
        "Of equal scores you take the first: they share the win, so average their verdicts.": np.mean(
            [correct[max(subset, key=scores.item)] for subset in combinations(range(len(scores)), n)]
        ),
    },
)


def _rows_auc(scores: np.ndarray, correct: np.ndarray, tie: float = 0.5, one_label: float | None = None) -> float:
    """The mean AUC of rows; all but the defaults are usual mistakes."""
    areas = []
    for row, right in zip(scores, correct.astype(bool), strict=True):
        gaps = row[right][:, None] - row[~right]
        if gaps.size:
            areas.append(((gaps > 0) + tie * (gaps == 0)).mean())
        elif one_label is not None:
            areas.append(one_label)
    return float(np.mean(areas)) if areas else float("nan")


_ODDS = np.array([[2.0, 0.5, 1.0, -1.0], [0.0, 3.0, 0.0, -2.0], [5.0, 4.0, 6.0, 7.0], [-3.0, -3.0, -1.0, -5.0]])
_RIGHT = np.array([[1, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=bool)
# How often a right picture scores above a wrong one of the same prompt; (P, N) scores and verdicts.
check_auc = Exercise(
    lambda scores, correct: roc_auc_within_prompts(scores, np.asarray(correct).astype(bool)),
    (
        (_ODDS, _RIGHT),
        (_ODDS[::-1, ::-1].round() * 2, _RIGHT),
        (np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([[0, 1, 0], [0, 0, 0]], dtype=bool)),
        (np.array([[0.5, -0.5, 0.25, 0.0, 1.5]]), np.array([[1, 0, 0, 1, 1]], dtype=bool)),
    ),
    lambda scores, correct: {
        "That pools all prompts: compare a right picture with wrong ones of its own prompt only.": roc_auc(
            scores, correct.astype(bool)
        ),
        "A tie counts one half: you count it as lost.": _rows_auc(scores, correct, 0.0),
        "A tie counts one half: you count it as won.": _rows_auc(scores, correct, 1.0),
        "Prompts with one label only say nothing: drop them, do not count them as ½.": _rows_auc(
            scores, correct, one_label=0.5
        ),
        "Prompts with one label only say nothing: drop them, do not count them as 0.": _rows_auc(
            scores, correct, one_label=0.0
        ),
        "That is how often the wrong picture wins: yours is turned round.": 1 - _rows_auc(scores, correct),
    },
    "One share",
)

# How sure a verifier is of a whole that it was asked for in parts: as sure as of the weakest one; (K, N) → (N,).
check_parts = Exercise(
    lambda log_odds: log_odds.min(axis=0),
    tuple(
        (np.array(rows),)
        for rows in (
            [[2.0, -1.0, 0.5], [1.0, 3.0, -0.5]],
            [[4.0, -2.0, -1.5, 0.0], [-3.0, 1.0, -0.5, 2.0], [0.5, -4.0, 2.5, 1.0]],
            [[-1.0], [-2.5]],
            [[1.5, -0.5]],
        )
    ),
    lambda log_odds: {
        "A mean lets one sure part make up for one that is missing: take the weakest.": log_odds.mean(axis=0),
        "You added the probabilities of the parts: all of them must hold, not one or the other.": (
            1 / (1 + np.exp(-log_odds))
        ).sum(axis=0),
        "That is the strongest part: the picture is wrong if the weakest fails.": log_odds.max(axis=0),
        "You added the log-odds: a sure part then makes up for one that is missing.": log_odds.sum(axis=0),
        "One number a picture is wanted: the parts are the first axis.": log_odds.min(axis=1),
        "That is a probability: the log-odds themselves are wanted.": 1 / (1 + np.exp(-log_odds.min(axis=0))),
    },
    "One number a picture",
)
