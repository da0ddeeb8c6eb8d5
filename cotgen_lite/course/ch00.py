"""Chapter 00, generating step by step: its figures, its explorer and its exercises' checkers.

Notebook: 00_generate_step_by_step.ipynb. Paper: sections 2, 3.1. Shared: plots.py, cards.py, explorer.py, checker.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer, menu, slider
from cotgen_lite.course.plots import RIGHT, WRONG, Texts, draw_grid, draw_picture, pictures, sign, told
from cotgen_lite.geneval import Detection
from cotgen_lite.inputs import number, one_each, shaped, texts, verdicts, whole, with_methods


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


def draw_tokens(images: Tensor, titles: Texts, tokens: Tensor) -> Figure:
    """Pictures, uint8 (N, 3, H, W), in a row; over the last, made pale, its tokens (L,), row by row, as numbers."""
    side = _side(len(shaped(tokens, "tokens", ("L",))), "The number of tokens")
    size = pictures(images, "images", "N").shape[-1]
    pale = (*[1.0] * (len(images) - 1), 0.5)
    figure = draw_grid(images, titles, (3.1 * len(images), 3.4), alphas=pale)
    axis, patch = figure.axes[len(images) - 1], size / side
    for line in range(1, side):
        axis.axhline(line * patch - 0.5, color="#666666", lw=0.5)
        axis.axvline(line * patch - 0.5, color="#666666", lw=0.5)
    for index, token in enumerate(tokens.tolist()):
        y, x = ((part + 0.5) * patch - 0.5 for part in divmod(index, side))
        axis.text(x, y, str(token), ha="center", va="center", fontsize=6)
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


def draw_endings(guess: Tensor, committed: Tensor, endings: Tensor, right: Sequence[bool], step: int) -> Figure:
    """One moment of a path: what is committed, its guess, its own ending, and other endings from the same state, in
    frames by verdict. guess: uint8 (3, H, W); committed: bool (L,); endings: uint8 (E, 3, H, W), its own first."""
    mask, judged = verdicts(committed, "committed", ("L",)), told(right, len(pictures(endings, "endings", "E")))
    _side(len(mask), "The number of tokens")
    others = [f"another ending {sign(one)}" for one in judged[1:]]
    titles = [f"{mask.sum()} of {len(mask)} committed", f"guess at step {step}", f"its own ending {sign(judged[0])}"]
    veiled = veil(pictures(guess, "guess"), mask)
    figure = draw_grid([veiled, guess, *endings], [*titles, *others], (1.62 * (2 + len(endings)), 1.95), fontsize=8)
    for axis, one in zip(figure.axes[2:], judged, strict=True):
        axis.spines[:].set(color=RIGHT if one else WRONG, linewidth=2, linestyle="-" if one else "--")
    return figure


def draw_right_and_wrong(images: Tensor, right: Sequence[Sequence[bool]], names: Texts, notes: Texts) -> Figure:
    """Of each prompt its first right picture above, its first wrong one below; a dash where none of N is so. images:
    uint8 (P, N, 3, H, W); right: (P, N); names: above each column; notes: what is wrong, below it."""
    judged = verdicts(right, "right", pictures(images, "images", "P", "N").shape[:2])
    one_each(texts(names, "names"), "names", len(judged), "prompts")
    one_each(notes, "notes", len(judged), "prompts")
    figure, axes = plt.subplots(2, len(judged), figsize=(1.62 * len(judged), 4.3), layout="constrained", squeeze=False)
    for row, wanted in enumerate((True, False)):
        for column, verdicts_of_one in enumerate(judged):
            axis, found = axes[row][column], np.flatnonzero(verdicts_of_one == wanted)
            if len(found):
                draw_picture(axis, images[column, found[0]], right=wanted, width=2)
            else:
                axis.text(0.5, 0.5, f"none of {len(verdicts_of_one)}", ha="center", va="center", color="#777777")
                axis.set(xticks=[], yticks=[])
                axis.set_box_aspect(1)
        axes[row][0].set_ylabel("right ✓" if wanted else "wrong ✗", fontsize=9)
    for column, (name, note) in enumerate(zip(names, notes, strict=True)):
        axes[0][column].set_title(name, fontsize=8)
        axes[1][column].set_xlabel(note, fontsize=7.5)
    return figure


def cautious_interval(share: float, prompts: int) -> tuple[float, float]:
    """A 95% interval of a mean of so many prompts' shares, at its widest: Wilson's, as if each share were 0 or 1."""
    share, n, z = number(share, "share", 0, 1), whole(prompts, "prompts", 1), 1.96
    middle, reach = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


def same_scenes(found: Sequence[Sequence[Detection]], apart: float = 8) -> bool:
    """Whether several pictures show the same things in the same places, in whatever colours. found: what a detector
    saw in each; apart: by how many pixels the middles of one thing may differ, by default a lite model's token."""
    apart, first = number(apart, "apart", 0), [_places(one) for one in found[:1]]
    return all(_matches(first[0], _places(one), apart) for one in found[1:])


def _places(found: Sequence[Detection]) -> list[tuple[str, float, float]]:
    """The name and the middle of each thing."""
    return [(one.name, (one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2) for one in found]


def _matches(some: list[tuple[str, float, float]], others: list[tuple[str, float, float]], apart: float) -> bool:
    """Whether each thing has one of the same name beside it among as many others."""
    left = list(others)
    for name, x, y in some:
        near = [one for one in left if one[0] == name and max(abs(one[1] - x), abs(one[2] - y)) <= apart]
        if not near:
            return False
        left.remove(min(near, key=lambda one: max(abs(one[1] - x), abs(one[2] - y))))
    return not left


# Guess, committed, endings and their verdicts, as `draw_endings` takes them.
Look = tuple[Tensor, Tensor, Tensor, Sequence[bool]]


def step_explorer(prompts: Texts, look: Callable[[str, int, int], Look], steps: int = 18) -> VBox:
    """Choose prompt, seed and step, and see what is known by then, and how else the picture could still end. look:
    (prompt, seed, step from 1) → guess, committed, endings and verdicts, drawn anew at a change."""
    with_methods(look, "look", ["__call__"], "a function of prompt, seed and step")
    step = IntSlider(value=4, min=1, max=whole(steps, "steps", 4), description="step", continuous_update=False)

    def draw(row: int, seed: int, at: int) -> tuple[Figure, str]:
        found = look(prompts[row], seed, at)
        others = told(found[3], len(found[2]))[1:]
        return draw_endings(*found, at), f"{sum(others)} of {len(others)} other endings show {prompts[row]!r}"

    return explorer(draw, (menu(prompts), slider("seed", 0, 0, 20)), (step,))


def veil(image: Tensor, committed: np.ndarray) -> Tensor:
    """A picture (3, H, W) whose uncommitted patches (L, row by row) are covered in grey."""
    grid = int(len(committed) ** 0.5)
    patch = (image.shape[-1] // grid,) * 2
    covered = np.kron(~committed.reshape(grid, grid), np.ones(patch, dtype=bool))
    return image.masked_fill(torch.from_numpy(covered).to(image.device), 150)


def _schedule(
    steps: int, places: int, curve: str = "cosine", whole: Any = math.floor, least: int = 1, tiny: float = 1e-9
) -> list[int]:
    """What each step commits, by a curve of the share that stays hidden; all but "cosine" are usual mistakes."""
    left = [places]
    for s in range(steps) if curve == "late" else range(1, steps + 1):
        share = 1 - s / steps if curve == "line" else math.cos(math.pi * s / (2 * steps))
        hidden = whole(places * share + tiny)  # a half may come out a little less
        left.append(max(least, min(left[-1] - least, hidden)) if len(left) < steps else 0)
    return (-np.diff(left)).tolist()


def _below_zero(steps: int, places: int, tiny: float) -> list[int]:
    """The schedule, but for the last cosine, which may come out just below 0 and is rounded down to -1."""
    *before, last = _schedule(steps, places, tiny=tiny)
    return [*before, last - math.floor(places * math.cos(math.pi * steps / (2 * steps)))]


def _schedule_mistakes(steps: int, places: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "That is a straight line: take the cosine of a quarter turn.": _schedule(steps, places, "line"),
        "What stays hidden is whole: round it down, not up.": _schedule(steps, places, whole=math.ceil, tiny=0),
        "round() takes the nearest whole number: round down, with math.floor or int.": _schedule(
            steps, places, whole=round
        ),
        "A cosine of exactly one half can come out a hair below it: add 1e-9 before you round down.": _schedule(
            steps, places, tiny=0
        ),
    }
    for tiny, too in ((1e-9, ""), (0.0, " And add 1e-9 before you round down.")):
        found |= {
            f"You took s − 1 for s, and so the first step commits nothing: s counts from 1.{too}": _schedule(
                steps, places, "late", least=0, tiny=tiny
            ),
            f"You took s − 1 for s: after step s the cosine is that of s / T, and s counts from 1.{too}": _schedule(
                steps, places, "late", tiny=tiny
            ),
            f"That is what stays hidden: what each step commits is wanted.{too}": places
            - np.cumsum(_schedule(steps, places, tiny=tiny)),
            "The last cosine can come out a hair below 0, and is rounded down to −1: after step T nothing is "
            f"hidden.{too}": _below_zero(steps, places, tiny),
        }
    return found


# How many of L places each of T steps commits, by the cosine and at least one a step. At T = 39 a half comes out less.
check_schedule = Exercise(
    _schedule,
    ((18, 64), (13, 256), (4, 16), (1, 64), (13, 16), (18, 256), (39, 64)),
    _schedule_mistakes,
    "One number a step",
    lambda counts, steps, places: (
        "All places are committed in the end: your numbers do not add up to `places`."
        if counts.sum() != places
        else "At least one place a step: one of your steps commits nothing."
        if counts.min() < 1
        else "What stays hidden is whole: round it down, not up."
        if counts.tolist() in [_schedule(steps, places, whole=math.ceil, tiny=tiny) for tiny in (0, -1e-9)]
        else ""
    ),
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
        "That is u + g·(c − u): which w leaves the conditional logits as they are at g = 0?": u + g * (c - u),
        "The two are swapped: away from the unconditional logits, not towards them.": (1 + g) * u - g * c,
        "You added the unconditional logits: take them away.": (1 + g) * c + g * u,
        "That starts from the conditional logits, and goes too far: u + w·(c − u) starts from u.": c
        + (1 + g) * (c - u),
    },
    "One number for each logit",
)


def _stay(score: Tensor, hidden: Tensor, left: int) -> Tensor:
    """The `left` hidden places of each row with the lowest scores."""
    lowest = score.masked_fill(~hidden, math.inf).argsort(dim=1, stable=True)[:, :left]
    return torch.zeros_like(hidden).scatter(1, lowest, True)


def _order_case(rows: int, places: int, hidden: int, left: int) -> tuple[Tensor, int, Tensor]:
    rng = np.random.default_rng((rows, places, hidden, left))
    draws = torch.from_numpy(rng.random((rows, places)))
    return torch.from_numpy(rng.random((rows, places))).argsort(dim=1) < hidden, left, draws


def _order_rule(stay: np.ndarray, hidden: Tensor, left: int, draws: Tensor) -> str:
    if stay.shape != hidden.shape:
        return ""
    chosen = torch.from_numpy(stay != 0)
    if (chosen & ~hidden).any():
        return "Committed places are open again: only places that are hidden now may stay hidden."
    if (chosen.sum(1) != left).any():
        return f"In each picture {left} places stay hidden: yours leave {chosen.sum(1).tolist()}."
    return (
        "Of each picture the right number of hidden places stays, but not those with the smallest draws. Use the draws "
        "that are given, not new ones, and of each picture its own row."
    )


# Which places stay hidden if chance decides: the `left` hidden ones with the smallest draws, picture by picture.
check_order = Exercise(
    lambda hidden, left, draws: _stay(draws, hidden, left),
    (_order_case(2, 6, 4, 2), _order_case(3, 9, 5, 3), _order_case(4, 16, 12, 5), _order_case(1, 9, 7, 1)),
    lambda hidden, left, draws: {
        "Committed places are open again: only places that are hidden now may stay hidden.": _stay(
            draws, torch.ones_like(hidden), left
        ),
        "One order for all pictures: each picture has its own row of draws.": _stay(
            draws[:1].expand_as(draws), hidden, left
        ),
        "One order for all pictures, by the mean of their draws: each picture has its own row of draws.": _stay(
            draws.mean(dim=0, keepdim=True).expand_as(draws), hidden, left
        ),
        "One order for all pictures: the places of the first are taken for all.": _stay(
            draws[:1], hidden[:1], left
        ).expand_as(hidden),
        "Those are the places that are committed now: the ones that stay hidden are wanted.": (
            hidden & ~_stay(draws, hidden, left)
        ),
        "The largest draws stay hidden with you: let the smallest stay, as the least sure places do.": _stay(
            -draws, hidden, left
        ),
    },
    "A yes or no for each place of each picture",
    _order_rule,
)


def _down_to(steps: Sequence[int], fine: np.ndarray) -> int:
    """The fewest steps that are fine, as are all numbers above them; the most steps always are."""
    return int(steps[int(max(np.flatnonzero(~fine[:-1]), default=-1)) + 1])


def _enough(steps: Sequence[int], right: np.ndarray, loss: float, tiny: float = 1e-9) -> int:
    share = np.asarray(right, float).mean(axis=1)
    return _down_to(steps, share >= share[-1] - loss - tiny)


def _enough_mistakes(steps: Sequence[int], right: np.ndarray, loss: float) -> dict[str, Any]:
    share = np.asarray(right, float).mean(axis=1)
    each = (np.asarray(right) >= np.asarray(right)[-1]).mean(axis=1)
    found: dict[str, Any] = {
        "A share that lies exactly `loss` below is good enough, too: ≥, not >.": _down_to(
            steps, share > share[-1] - loss
        ),
        "The computer makes a hair more than 0.7 of 0.8 − 0.1: allow 1e-9 when you compare.": _enough(
            steps, right, loss, 0
        ),
        "Against a perfect score: compare with the share of the most steps, the last row.": _down_to(
            steps, share >= 1 - loss
        ),
        "Against the largest share: compare with that of the most steps, the last row.": _down_to(
            steps, share >= share.max() - loss - 1e-9
        ),
        "That asks picture by picture: compare shares, the means over pictures.": _down_to(steps, each >= 1 - loss),
        "A part of the best share may be lost with you: `loss` is a difference of shares.": _down_to(
            steps, share >= share[-1] * (1 - loss)
        ),
    }
    first = int(np.flatnonzero(share >= share[-1] - loss - 1e-9)[0])
    found["The first number that is good enough may be luck: every larger one must be good enough, too."] = steps[first]
    for tiny, too in ((1e-9, ""), (0.0, " And allow 1e-9 when you compare.")):
        fine, below = share >= share[-1] - loss - tiny, share[:-1] >= share[1:] - loss - tiny
        found |= {
            f"That is its place in the list: the number of steps is wanted.{too}": list(steps).index(
                _down_to(steps, fine)
            ),
            f"A share that lies far above that of the most steps is good enough: do not take abs().{too}": _down_to(
                steps, abs(share - share[-1]) <= loss + tiny
            ),
            "You compare each number with the next larger one: compare all with the most steps, or small losses add "
            f"up.{too}": _down_to(steps, np.append(below, True)),
        }
    return found


def _enough_case(steps: list[int], counts: Sequence[int], number: int, loss: float) -> tuple:
    """So many of `number` pictures right at each number of steps, not always the same ones."""
    right = [np.roll(np.arange(number) < count, row) for row, count in enumerate(counts)]
    return steps, np.array(right), loss


# The fewest steps that lose at most so much against the most steps, as do all numbers of steps between them. In two
# cases a share lies exactly at the bound: ¾ − ¼ is ½ for the computer, too, but 0.8 − 0.1 is a hair more than 0.7.
check_enough = Exercise(
    _enough,
    tuple(
        _enough_case(*case)
        for case in (
            ([1, 2, 4, 8, 18], (2, 8, 5, 8, 7), 12, 0.1),
            ([2, 3, 6, 12], (5, 2, 3, 4), 7, 0.2),
            ([1, 3, 9], (1, 4, 6), 8, 0.25),
            ([2, 5, 10, 20], (4, 10, 7, 8), 10, 0.1),
            ([1, 2, 4, 8, 16, 32, 64], (2, 4, 5, 6, 7, 8, 8), 9, 0.15),
            ([4, 9, 18], (5, 3, 3), 6, 0.02),
            ([5, 6, 7, 8], (5, 6, 4, 6), 10, 0.0),
            ([3, 5, 9], (7, 4, 4), 7, 0.1),
        )
    ),
    _enough_mistakes,
    "One number of steps",
)
