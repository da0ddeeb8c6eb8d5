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
from cotgen_lite.prompts import color_attr, colored, position, single_object


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
    right.set(ylabel="logit of the next word", title="the likeliest words")
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
    # The round, what is picked in it, and the first pick of each round: only that counts.
    game = Game(value=(0, None, {}))

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


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


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
        "You took the mean of logits: log-sum-exp adds probabilities.": (
            logits[yes].mean() - logits[no].mean()
        ).sigmoid(),
        "That is the first spelling of each only: log-sum-exp counts them all.": (
            logits[yes[0]] - logits[no[0]]
        ).sigmoid(),
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
    shared = np.array([correct[scores == one].mean() for one in scores])
    return float(weights @ shared[np.argsort(-scores)])


def _one_case(answer: np.ndarray, scores: np.ndarray, correct: np.ndarray, n: int) -> str:
    """What is wrong in one case. Whoever makes one of two usual mistakes may break ties in any way, and so these are
    told by the first case, which has no ties, and not by all."""
    if len(set(scores.tolist())) < len(scores):
        return "Equal scores share the win: average their verdicts."
    if np.isclose(answer, _with_replacement(scores, correct, n), 1e-4):
        return "That draws with replacement: the n candidates of a subset are all different."
    if np.isclose(answer, _expected(-scores, correct, n), 1e-4):
        return "Your ranking is ascending: rank 1 is the highest score, so sort -scores."
    return ""


_SCORES, _CORRECT = np.array([0.3, -1.0, 2.0, 0.9, 0.1]), np.array([1, 1, 0, 1, 0])
# The expected accuracy of best-of-n over all n-subsets of one prompt's candidates; ties are averaged.
check_best_of_n = Exercise(
    _expected,
    (
        (np.array([1.2, -0.7, 0.4, -2.1, 0.9, -0.2, -1.6]), np.array([0, 1, 1, 0, 1, 1, 0]), 3),
        *((_SCORES, _CORRECT, n) for n in range(1, 6)),
        (np.array([-0.4, -0.9, -3.0]), np.array([1, 0, 1]), 2),
        (np.array([-0.5]), np.array([1]), 1),
        (np.array([0.5, 2.0, 2.0, -1.0, 2.0, 0.5, -1.0, 0.5]), np.array([1, 1, 0, 0, 0, 0, 1, 1]), 3),
        (np.array([0.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 0]), 2),
    ),
    lambda scores, correct, n: {
        "1 − (1 − k/N)ⁿ is an oracle's, drawn with replacement: the choice is made by the scores.": 1
        - (1 - correct.mean()) ** n,
        "That is the oracle's: here the choice is made by the scores.": 1
        - comb(int((correct == 0).sum()), n) / comb(len(correct), n),
        "That is the choice among the first n only: average over all subsets.": correct[scores[:n].argmax()],
        "That is the mean accuracy, whatever n is: nothing is chosen by the scores.": correct.mean(),
        "That always takes the best of all: it is in some of the subsets only.": correct[scores.argmax()],
        "Does your j start at 0? Then N − j − 1 candidates rank below it.": sum(
            right * comb(len(scores) - j, n - 1) for j, right in enumerate(correct[np.argsort(-scores, kind="stable")])
        )
        / comb(len(scores), n),
        "That averages the n best: one is chosen in each subset.": correct[np.argsort(-scores)[:n]].mean(),
        "Of equal scores you take the first: they share the win, so average their verdicts.": np.mean(
            [correct[max(subset, key=scores.item)] for subset in combinations(range(len(scores)), n)]
        ),
    },
    rule=_one_case,
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


def _auc_of_pairs(scores: np.ndarray, correct: np.ndarray) -> float:
    """The same, but with all prompts' pairs thrown together."""
    pairs = [
        (row[right][:, None] - row[~right]).ravel() for row, right in zip(scores, correct.astype(bool), strict=True)
    ]
    gaps = np.concatenate(pairs)
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)


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
        "That pools all prompts, and counts ties as lost: compare within prompts, and give a tie one half.": _rows_auc(
            scores.reshape(1, -1), correct.reshape(1, -1), 0.0
        ),
        "You throw all prompts' pairs together: take each prompt's AUC first, then the mean of these.": _auc_of_pairs(
            scores, correct
        ),
        "A tie counts one half: you count it as lost.": _rows_auc(scores, correct, 0.0),
        "A tie counts one half: you count it as won.": _rows_auc(scores, correct, 1.0),
        "Prompts with one label only say nothing: drop them, do not count them as ½.": _rows_auc(
            scores, correct, one_label=0.5
        ),
        "Prompts with one label only say nothing: drop them, do not count them as 0.": _rows_auc(
            scores, correct, one_label=0.0
        ),
        "Prompts with one label only say nothing: drop them, do not count them as 1.": _rows_auc(
            scores, correct, one_label=1.0
        ),
        "That is how often the wrong picture wins: yours is turned round.": 1 - _rows_auc(scores, correct),
    },
    "One share",
)


def _questions(names: Sequence[str], colors: Sequence[str], relation: str) -> list[str]:
    """Each thing alone, each thing in its colour, and the place."""
    alone = [single_object(name).text for name in names]
    painted = [colored(name, color).text for name, color in zip(names, colors, strict=True) if color]
    return alone + painted + ([position(names[0], relation, names[1]).text] if relation else [])


def _asked(answer: np.ndarray, names: list[str], colors: list[str], relation: str) -> str:
    """What is wrong with a list of questions, which may stand in any order."""
    if answer.ndim != 1:
        return "A list of questions is wanted, one text each."
    asked, wanted = answer.tolist(), _questions(names, colors, relation)
    kinds = ["a thing alone"] * len(names) + ["a colour"] * sum(map(bool, colors)) + ["the place"] * bool(relation)
    if relation and position(names[1], relation, names[0]).text in asked:
        return "The place is turned round: names[0] is what stands there, and names[1] what it relates to."
    if len(names) == 2 and all(colors) and color_attr(names[0], colors[0], names[1], colors[1]).text in asked:
        return "That is the whole prompt in one question: ask of one thing at a time."
    for kind, question in zip(kinds, wanted, strict=True):
        if question not in asked:
            return f"Nobody asks for {kind}: “{question}” is lacking."
    if strange := [one for one in asked if one not in wanted]:
        return f"“{strange[0]}” is no part of the prompt."
    return "A question is asked twice." if len(asked) > len(wanted) else ""


# The questions for the parts of a prompt: things' names, a colour or "" of each, and where the first is to the second.
check_questions = Exercise(
    _questions,
    (
        (["apple", "car"], ["red", "blue"], ""),
        (["dog", "cup"], ["", ""], "above"),
        (["umbrella"], ["orange"], ""),
        (["cat", "boat"], ["", "green"], "left of"),
        (["bus"], [""], ""),
    ),
    wanted="A list of questions",
    rule=_asked,
    free=True,
)


def _all_hold(answer: np.ndarray, log_odds: np.ndarray) -> str:
    """What is wrong with a rule for all parts at once; there are several right ones."""
    if answer.shape != log_odds.shape[1:]:
        return "One number a picture is wanted: the parts are the first axis."
    log_p = -np.logaddexp(0, -log_odds).sum(axis=0)  # of the product of all P(yes)
    weakest, soft = log_odds.min(axis=0), -np.logaddexp.reduce(-log_odds, axis=0)
    right = (weakest, soft, log_p, log_p - np.log(-np.expm1(log_p)))  # the last: the product's own log-odds
    if any(np.allclose(answer, one, 1e-4, 1e-6) for one in right):
        return ""
    return "All parts must hold at once: what does a picture get in which one of them surely fails?"


# How sure a verifier is of a whole that it was asked for in parts, all of which must hold; (K, N) → (N,).
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
        "A mean lets one sure part make up for one that is missing.": log_odds.mean(axis=0),
        "You added log-odds: one sure part then makes up for one that is missing.": log_odds.sum(axis=0),
        "You added the probabilities of the parts: all of them must hold, not one or the other.": (
            _sigmoid(log_odds).sum(axis=0)
        ),
        "A mean of probabilities lets one sure part make up for one that is missing.": _sigmoid(log_odds).mean(axis=0),
        "That is the strongest part: the picture is wrong if any other fails.": log_odds.max(axis=0),
        "Log-sum-exp adds odds, as for several spellings of yes: any one part would do, but all must hold.": (
            np.logaddexp.reduce(log_odds, axis=0)
        ),
        "A good rule, but a product of probabilities is rounded to 1 or 0: add their logarithms.": (
            _sigmoid(log_odds).prod(axis=0)
        ),
        "A good rule, but a probability is rounded to 1 or 0: give the log-odds themselves.": _sigmoid(
            log_odds.min(axis=0)
        ),
        "One number a picture is wanted, and that is one a part: the parts are the first axis.": log_odds.min(axis=1),
    },
    "One number a picture",
    _all_hold,
    free=True,
)
