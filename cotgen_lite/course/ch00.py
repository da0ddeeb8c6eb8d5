"""Chapter 00, generating step by step: its figures, its explorer and its exercises' checkers.

Notebook: 00_generate_step_by_step.ipynb. Paper: sections 2 and 3.1. Shared: plots.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import FloatSlider, IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare, expect
from cotgen_lite.course.explorer import explorer, menu, slider
from cotgen_lite.course.plots import Texts, draw_grid, draw_picture


def draw_token_grid(image: Tensor, tokens: Tensor) -> Figure:
    """A picture, uint8 (3, H, W), beside its tokens (L,), row by row, as numbers over their patches."""
    grid, size = int(len(tokens) ** 0.5), image.shape[-1]
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
    columns = 9
    rows = 2 * -(-len(images) // columns)
    figure = plt.figure(figsize=(1.15 * columns, 1.225 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for step, (image, mask) in enumerate(zip(images, np.asarray(committed), strict=True)):
        row, column = divmod(step, columns)
        draw_picture(figure.add_subplot(grid[2 * row, column]), image, f"step {step + 1}")
        below, share = figure.add_subplot(grid[2 * row + 1, column]), f"{mask.mean():.0%} committed"
        draw_picture(below, veil(image, mask), share, fontsize=7)
    return figure


def draw_one_step(images: Tensor, committed: Tensor, step: int, title: str) -> Figure:
    """One step (1 to T) of a path in large: its guess, uncommitted patches veiled, and the finished image. images:
    uint8 (T, 3, H, W); committed: bool (T, L)."""
    mask = np.asarray(committed[step - 1])
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


def check_schedule(function: Callable[[int, int], Sequence[int]]) -> None:
    """How many of L places each of T steps commits, by the cosine and at least one a step."""
    for steps, places in ((18, 64), (13, 256), (18, 20)):
        case = f"With {steps} steps and {places} places"
        got = [int(count) for count in function(steps, places)]
        expect(len(got) == steps, f"One number a step is wanted: {steps} of them, not {len(got)}.")
        late = got[0] == 0 and got[-1] >= 1
        expect(not late, "The first step commits something already: the cosine of step s takes (s + 1) / T.")
        expect(sum(got) == places, f"{case}, all places are committed in the end: yours add up to {sum(got)}.")
        expect(min(got) >= 1, f"{case}, one of your steps commits nothing: at least one place a step.")
        wanted, up = _committed(steps, places, math.floor), _committed(steps, places, math.ceil)
        expect(not got == up != wanted, "What stays masked is whole: round it down, not up.")
        expect(got == wanted, f"{case}, expected {wanted}, got {got}: is it the cosine of a quarter turn?")


def _committed(steps: int, places: int, whole: Callable[[float], int]) -> list[int]:
    masked = [places]
    for step in range(1, steps):
        cosine = round(places * math.cos(math.pi * step / (2 * steps)), 9)  # a half may come out a little less
        masked.append(max(1, min(masked[-1] - 1, whole(cosine))))
    return (-np.diff([*masked, 0])).tolist()


def check_agreement(function: Callable[[Tensor], Tensor]) -> None:
    """The share of tokens that equal the final ones at each step; (T, L) → (T,)."""
    got = function(torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 7]]))
    fully = {"The last step agrees with itself fully: compare with tokens[-1].": lambda shares: shares[-1] != 1}
    compare(got, [0.5, 0.75, 1.0], fully, shape="One number a step, averaged over places,")


def check_guide(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Guidance in Show-o's form, (1 + g)·conditional − g·unconditional."""
    cond, uncond = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 3.0])
    compare(function(cond, uncond, 0.0), cond, case="Without guidance (g = 0) the conditional logits stay")
    mistakes = {
        "That is u + g·(c − u), diffusion's form: Show-o's g = 1.5 is 2.5 in it.": uncond + 1.5 * (cond - uncond),
        "The signs are swapped: away from the unconditional logits, not towards them.": 2.5 * uncond - 1.5 * cond,
    }
    compare(function(cond, uncond, 1.5), 2.5 * cond - 1.5 * uncond, mistakes, "(1 + g)·conditional − g·unconditional")
