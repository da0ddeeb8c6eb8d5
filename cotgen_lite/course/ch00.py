"""Chapter 00, generating step by step: its figures, its explorer and its exercises' checkers.

Notebook: 00_generate_step_by_step.ipynb. Paper: sections 2 and 3.1. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import FloatSlider, IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, menu, slider
from cotgen_lite.course.plots import Texts, draw_grid, draw_picture, pictures
from cotgen_lite.inputs import number, shaped, verdicts, whole, with_methods


def _side(number: int, name: str) -> int:
    """The side of the square of so many patches; ValueError if they make none."""
    side = math.isqrt(number)
    if not number or side**2 != number:
        raise ValueError(f"{name} must be a square number, row by row, of at least one, got {number}.")
    return side


def _path(images: Tensor, committed: Any) -> np.ndarray:
    """Which tokens stay after each step, (T, L); ValueError unless they fit the images of a path."""
    pictures(images, "images", "T")
    stays = verdicts(committed, "committed", (len(images), "L"))
    _side(stays.shape[1], "The number of tokens")
    return stays


def draw_token_grid(image: Tensor, tokens: Tensor) -> Figure:
    """A picture, uint8 (3, H, W), beside its tokens (L,), row by row, as numbers over their patches."""
    grid = _side(len(shaped(tokens, "tokens", ("L",))), "The number of tokens")
    size = pictures(image, "image").shape[-1]
    titles = (f"{size} × {size} pixels", f"{grid} × {grid} tokens")
    figure = draw_grid([image, image], titles, (8, 4.1), alphas=(1, 0.35), fontsize=10)
    axis, patch = figure.axes[1], size / grid
    for line in range(1, grid):
        axis.axhline(line * patch - 0.5, color="#666666", lw=0.5)
        axis.axvline(line * patch - 0.5, color="#666666", lw=0.5)
    for index, token in enumerate(tokens.tolist()):
        y, x = ((part + 0.5) * patch - 0.5 for part in divmod(index, grid))
        axis.text(x, y, str(token), ha="center", va="center", fontsize=8)
    return figure


def draw_steps(images: Tensor, committed: Tensor) -> Figure:
    """One image coming into being: the model's full guess at each step, patches not yet committed veiled. images: uint8
    (T, 3, H, W), the guess of each step; committed: bool (T, L), the tokens that stay after it."""
    stays, columns = _path(images, committed), 9
    rows = 2 * -(-len(images) // columns)
    figure = plt.figure(figsize=(1.15 * columns, 1.225 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for step, (image, mask) in enumerate(zip(images, stays, strict=True)):
        row, column = divmod(step, columns)
        draw_picture(figure.add_subplot(grid[2 * row, column]), image, f"step {step + 1}")
        below, share = figure.add_subplot(grid[2 * row + 1, column]), f"{mask.mean():.0%} committed"
        draw_picture(below, veil(image, mask), share, fontsize=7)
    return figure


def draw_one_step(images: Tensor, committed: Tensor, step: int, title: str) -> Figure:
    """One step (1 to T) of a path in large: its guess, uncommitted patches veiled, and the finished image. images:
    uint8 (T, 3, H, W); committed: bool (T, L)."""
    mask = _path(images, committed)[whole(step, "step", 1, len(images)) - 1]
    pictures = (images[step - 1], veil(images[step - 1], mask), images[-1])
    names = (f"full guess at step {step}", f"{mask.sum()} of {len(mask)} tokens committed", "finished image")
    figure = draw_grid(pictures, names, (7.5, 2.9))
    figure.suptitle(title, fontsize=10)
    return figure


def veil(image: Tensor, committed: np.ndarray) -> Tensor:
    """A picture (3, H, W) whose uncommitted patches (L, row by row) are covered in grey."""
    grid = int(len(committed) ** 0.5)
    patch = (image.shape[-1] // grid,) * 2
    covered = np.kron(~committed.reshape(grid, grid), np.ones(patch, dtype=bool))
    return image.masked_fill(torch.from_numpy(covered).to(image.device), 150)


def step_explorer(prompts: Texts, draw_path: Callable[[str, int, float], tuple[Tensor, Tensor]], scale: float) -> VBox:
    """Choose prompt, seed, guidance (first: scale) and step, and see what is known by then. draw_path: (prompt, seed,
    guidance) → the path's images (18, 3, H, W) and committed places (18, L), drawn anew at a change."""
    number(scale, "scale", 0, 5)
    with_methods(draw_path, "draw_path", ["__call__"], "a function of prompt, seed and guidance")
    guidance = FloatSlider(value=scale, min=0, max=5, step=0.5, description="guidance", continuous_update=False)
    step = IntSlider(value=18, min=1, max=18, description="step")
    path = lru_cache(maxsize=1)(draw_path)  # moving along a path samples nothing anew
    return explorer(
        lambda row, seed, guide, at: draw_one_step(
            *path(prompts[row], seed, guide), at, f"{prompts[row]}, seed {seed}"
        ),
        (menu(prompts), slider("seed", 0, 0, 20)),
        (guidance, step),
    )


RANDOM = np.random.default_rng(0)  # of the exercises' cases


def _schedule(steps: int, places: int, curve: str = "cosine", whole: Any = math.floor, least: int = 1) -> list[int]:
    """What each step commits, by a curve of the share that stays masked; all but "cosine" are usual mistakes."""
    left = [places]
    for done in range(steps) if curve == "late" else range(1, steps + 1):
        turn = math.pi / 2 * done / steps
        share = 1 - done / steps if curve == "line" else math.cos(turn)
        masked = whole(round(places * share, 9))  # a half may come out a little less
        left.append(max(least, min(left[-1] - least, masked)) if len(left) < steps else 0)
    return (-np.diff(left)).tolist()


# How many of L places each of T steps commits, by the cosine and at least one a step.
check_schedule = Exercise(
    _schedule,
    ((17, 64), (18, 21), (1, 5), (4, 4), (13, 256)),
    lambda steps, places: {
        "The first step commits something already: the cosine of step s, from 0, takes (s + 1) / T.": _schedule(
            steps, places, "late", least=0
        ),
        "Yours is a step late: the cosine of step s, from 0, takes (s + 1) / T.": _schedule(steps, places, "late"),
        "That is a straight line: take the cosine of a quarter turn.": _schedule(steps, places, "line"),
        "What stays masked is whole: round it down, not up.": _schedule(steps, places, whole=math.ceil),
        "That is what stays masked: what each step commits is wanted.": places - np.cumsum(_schedule(steps, places)),
    },
    "One number a step",
    lambda counts, steps, places: (
        "All places are committed in the end: your numbers do not add up to `places`."
        if counts.sum() != places
        else "At least one place a step: one of your steps commits nothing."
        if counts.min() < 1
        else ""
    ),
)

# The share of tokens that equal the final ones at each step; (T, L) → (T,).
check_agreement = Exercise(
    lambda tokens: (tokens == tokens[-1]).float().mean(dim=1),
    (
        (torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 7]]),),
        (torch.tensor([[5, 6, 5]]),),
        (torch.from_numpy(RANDOM.integers(3, size=(5, 3))),),
        (torch.from_numpy(RANDOM.integers(2, size=(4, 7))),),
    ),
    lambda tokens: {
        "The last step agrees with itself fully: compare with tokens[-1].": (tokens == tokens[0]).float().mean(1),
        "That averages over steps: average over places, the last dimension.": (tokens == tokens[-1]).float().mean(0),
        "That averages over steps too: average over places alone.": (tokens == tokens[-1]).float().mean(),
        "Those are the shares that differ: the shares that agree are wanted.": (tokens != tokens[-1]).float().mean(1),
    },
    "One share a step",
)

# Guidance in Show-o's form, (1 + g)·conditional − g·unconditional.
check_guide = Exercise(
    lambda conditional, unconditional, g: unconditional + (1 + g) * (conditional - unconditional),
    tuple(
        (torch.tensor(conditional), torch.tensor(unconditional), g)
        for conditional, unconditional, g in (
            ([2.0, 0.0, 1.0], [1.0, 0.0, 3.0], 0.0),
            ([2.0, 0.0, 1.0], [1.0, 0.0, 3.0], 1.5),
            ([-0.3, 1.7, -2.2, 0.8], [0.6, -1.1, -0.4, 2.5], 0.7),
            ([-1.5], [-4.0], 5.0),
        )
    ),
    lambda c, u, g: {
        "That is u + g·(c − u): which s leaves the conditional logits as they are at g = 0?": u + g * (c - u),
        "The two are swapped: away from the unconditional logits, not towards them.": (1 + g) * u - g * c,
        "You added the unconditional logits: take them away.": (1 + g) * c + g * u,
        "That starts from the conditional logits, and goes too far: s = 1 + g starts from u.": c + (1 + g) * (c - u),
    },
    "One number for each logit",
)
