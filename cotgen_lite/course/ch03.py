"""Chapter 03, the PRM: its figures, its explorer and its exercises' checkers.

Notebook: 03_prm.ipynb. Paper: section 3.2. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import VBox
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, menu, slider
from cotgen_lite.course.plots import OTHER, OURS, TAG_NAMES, Numbers, Texts, draw_picture, pictures, sign
from cotgen_lite.inputs import numbers, one_each, shaped, verdicts, whole


def draw_step_labels(labels: np.ndarray, groups: Texts) -> Figure:
    """Labels of all steps of many paths, a row a path, sorted within each group by how many steps are yes. labels:
    share of rollouts that end well, 0..1 (P, T); groups: (P,) the group of each path, e.g. its tag."""
    shaped(numbers(labels, "labels", 0, 1), "labels", ("P", "T"))
    names, steps = list(dict.fromkeys(one_each(groups, "groups", len(labels), "paths"))), range(labels.shape[1])
    order = sorted(range(len(labels)), key=lambda row: (names.index(groups[row]), labels[row].sum()))
    figure, axis = plt.subplots(figsize=(6.5, 5), layout="constrained")
    picture = axis.imshow(labels[order], aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(steps, [str(step + 1) for step in steps], fontsize=8)
    axis.set_xlabel("step")
    edges = np.cumsum([0, *(list(groups).count(name) for name in names)])
    shown = [TAG_NAMES.get(name, name).replace("\n", " ") for name in names]
    axis.set_yticks((edges[:-1] + edges[1:]) / 2, shown, fontsize=8)
    for edge in edges[1:-1]:
        axis.axhline(edge - 0.5, color="white", lw=1)
    figure.colorbar(picture, ax=axis, label="share of rollouts that end well", shrink=0.8)
    return figure


def draw_rollouts(guess: Tensor, ends: Tensor, right: Numbers, belief: np.ndarray, step: int, title: str) -> Figure:
    """One step of a path: its guess, the images that rollouts from it end in, and the verifier's belief at every step.
    guess: uint8 (3, H, W); ends: uint8 (R, 3, H, W); right: (R,) verdicts; belief: P(yes) (T,); step: 1 to T."""
    good_ends = verdicts(right, "right", (len(pictures(ends, "ends", "R")),)).tolist()
    whole(step, "step", 1, len(shaped(numbers(belief, "belief", 0, 1), "belief", ("T",))))
    figure = plt.figure(figsize=(1.35 * (len(ends) + 1), 3.6), layout="constrained")
    grid = figure.add_gridspec(2, len(ends) + 1, height_ratios=(1.2, 1))
    draw_picture(figure.add_subplot(grid[0, 0]), guess, f"guess at\nstep {step}")
    for number, (end, good) in enumerate(zip(ends, good_ends, strict=True), start=1):
        draw_picture(figure.add_subplot(grid[0, number]), end, f"rollout {number}\n{sign(good)}", good)
    axis = figure.add_subplot(grid[1, :])
    axis.plot(range(1, len(belief) + 1), belief, color=OURS, marker="o", ms=3, lw=1.5)
    axis.axvline(step, color=OTHER, lw=1.5)
    axis.set(xlabel="step", ylabel="P(yes)", ylim=(-0.05, 1.05))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def rollout_explorer(
    prompts: Texts, beliefs: np.ndarray, look: Callable[[int, int], tuple[Tensor, Tensor, Numbers]]
) -> VBox:
    """Move along one of P paths and see the verifier's beliefs, P(yes) (P, T), and where rollouts from that step end.
    look: (path, step from 1) → the guess (3, H, W), the rollouts' ends (R, 3, H, W), their verdicts (R,)."""
    shaped(numbers(beliefs, "beliefs", 0, 1), "beliefs", (len(prompts), "T"))
    return explorer(
        lambda row, at: draw_rollouts(*look(row, at), beliefs[row], at, prompts[row]),
        (menu(prompts, "path"), slider("step", 1, 1, beliefs.shape[1])),
    )


RANDOM = np.random.default_rng(0)  # of the exercises' cases

# Math-Shepherd's labels (P, T) from how rollouts end, bool (P, T, R): yes if any ends well.
check_step_labels = Exercise(
    lambda ends_well: ends_well.any(axis=2),
    (
        (np.array([[[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]], [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]]]) > 0,),
        (RANDOM.random((3, 2, 5)) < 0.25,),
        (RANDOM.random((2, 4, 3)) < 0.4,),
        (np.array([[[True]]]),),
    ),
    lambda ends: {
        "That asks for all rollouts to end well: one shows that it is still possible.": ends.all(axis=2),
        "That is the majority: one rollout that ends well is enough.": ends.mean(axis=2) > 0.5,
        "That looks at the first rollout only.": ends[:, :, 0],
        "That looks along the steps: the rollouts lie on the last axis.": ends.any(axis=1),
        "The labels are the wrong way round: yes if one ends well.": ~ends.any(axis=2),
    },
    "One label a step of each path",
)

# How likely a step's label is yes, if each of its rollouts ends well with chance p.
check_chance_of_yes = Exercise(
    lambda p, rollouts: 1 - (1 - p) ** rollouts,
    ((0.1, 4), (0.5, 1), (0.02, 16), (0.37, 3), (0.0, 2), (1.0, 5)),
    lambda p, rollouts: {
        "That is the chance that all end well.": p**rollouts,
        "Chances add only if not two rollouts can both end well: ask for none instead.": p * rollouts,
        "That is one rollout's chance: the label looks at all of them.": p,
        "That is the chance of no.": (1 - p) ** rollouts,
        "That is the chance that not all end well: the label is yes unless *none* does.": 1 - p**rollouts,
        "That is the chance of exactly one: two that end well make a yes, too.": rollouts
        * p
        * (1 - p) ** (rollouts - 1),
    },
    "One chance",
)


def _likeness(tokens: Tensor) -> float:
    return float(np.mean([(one == other).float().mean() for one, other in combinations(tokens, 2)]))


# How alike candidates (N, L) are: the mean share of equal tokens over all pairs.
check_likeness = Exercise(
    _likeness,
    (
        (torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [1, 0, 0, 0]]),),
        (torch.from_numpy(RANDOM.integers(3, size=(4, 7))),),
        (torch.from_numpy(RANDOM.integers(2, size=(5, 3))),),
        (torch.tensor([[1, 2, 3], [1, 2, 0]]),),
    ),
    lambda tokens: {
        "A candidate is compared with itself too: leave out those pairs.": (tokens[:, None] == tokens).float().mean(),
        "All are compared with the first, itself included: take every pair.": (tokens == tokens[:1]).float().mean(),
        "All are compared with the first only: take every pair.": (tokens[1:] == tokens[:1]).float().mean(),
        "Each is compared with the next one only: take every pair.": (tokens[1:] == tokens[:-1]).float().mean(),
        "That is the sum over pairs: take the mean.": math.comb(len(tokens), 2) * _likeness(tokens),
        "That is how much they differ: the share of equal tokens is wanted.": 1 - _likeness(tokens),
    },
)
