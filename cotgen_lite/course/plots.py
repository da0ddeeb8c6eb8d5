"""The figures that several chapters share, in colours that all can tell apart; a chapter's own stand in its file.

Each is a plain function from arrays to a figure; a notebook shows it with `show`.
"""

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cotgen_lite.inputs import (
    named,
    number,
    numbers,
    of_kind,
    one_each,
    one_of,
    shaped,
    shown,
    text,
    texts,
    verdicts,
    whole,
)
from cotgen_lite.prompts import TAGS

# Okabe and Ito's palette, one meaning each throughout the course.
OURS, PAPER, CHANCE, CEILING = "#0072B2", "#D55E00", "#8C8C8C", "#009E73"
OTHER = "#CC79A7"  # what has no meaning of its own
RIGHT, WRONG = "#009E73", "#D55E00"
MARKERS = "osD^vP"
Texts = Sequence[str]
Truths = Sequence[bool]
Numbers = npt.ArrayLike
Curve = tuple[Sequence[int], Numbers, Numbers | None]  # n, accuracy (len(n),), bounds (2, len(n))
Box = tuple[float, float, str, str]  # x and y of its centre, text, colour
Series = Mapping[str, Numbers]  # label → numbers
_LISTS = (list, tuple, np.ndarray, Tensor)
TAG_NAMES = {tag: tag.replace("_", "\n") for tag in TAGS}
TAG_NAMES |= {"two_object": "two\nobjects", "color_attr": "attribute\nbinding"}


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file's bytes; closes it."""
    of_kind(figure, "figure", Figure, "a matplotlib figure")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return file.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with a text for those who cannot see it, and close it."""
    from IPython.display import display

    if not text(alt, "alt").strip():
        raise ValueError("alt must be words for those who cannot see the figure, got an empty text.")
    data = {"image/png": base64.b64encode(to_png(figure)).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def wrap(sentence: str, width: int = 18) -> str:
    """Break a sentence for use as a picture's title."""
    return textwrap.fill(of_kind(sentence, "sentence", str, "a text"), whole(width, "width", 1))


def sign(right: bool) -> str:
    """A check or a cross, so that colour is not all that tells a verdict."""
    return "✓" if right else "✗"


def pictures(images: Any, name: str, *before: int | str) -> Tensor:
    """Pictures as they are drawn, uint8 (..., 3, H, W), at least one; before: sizes of the dimensions before."""
    of_kind(images, name, Tensor, "a tensor of pictures, uint8 (..., 3, H, W)")
    shaped(images, name, (*before, 3, "H", "W"))
    if images.dtype != torch.uint8 or not images.numel():
        raise ValueError(f"{name} must be at least one picture, in uint8, got {shown(images)} of {images.dtype}.")
    return images


def new_chart(
    width: float, height: float, grid: Literal["both", "x", "y"] | None = None, **settings: Any
) -> tuple[Figure, Axes]:
    """A figure with one chart, open above and at its right. settings: of its axes, as for `Axes.set`."""
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.set(**settings)
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
        axis.grid(alpha=0.25, axis=grid)
    return figure, axis


def legend_below(figure: Figure, axis: Axes, columns: int = 3, size: int = 9) -> None:
    """A chart's legend beneath it."""
    names = axis.get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=columns, frameon=False, fontsize=size)


def draw_picture(
    axis: Axes,
    image: Tensor,
    title: str = "",
    right: bool | None = None,
    fontsize: float = 8,
    width: float = 1.5,
    alpha: float = 1,
) -> None:
    """One picture (3, H, W) without ticks; with a verdict, in a frame so many points wide, dashed if it is wrong."""
    pictures(image, "image")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=fontsize)
    axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest", alpha=alpha)
    if right is not None:
        axis.spines[:].set(color=RIGHT if right else WRONG, linewidth=width, linestyle="-" if right else "--")


def draw_grid(
    images: Tensor | Sequence[Tensor],
    titles: Texts,
    size: tuple[float, float],
    columns: int = 0,
    right: Numbers = (),
    fontsize: float = 9,
    width: float = 1.5,
    alphas: Sequence[float] = (),
) -> Figure:
    """Pictures (3, H, W), so many a row, 0 for one row of all. size: inches of the whole; right: verdicts, drawn as
    frames so many points wide; alphas: how opaque each is."""
    of_kind(images, "images", (Tensor, list, tuple), "a tensor or a list of pictures")
    if not len(images):
        raise ValueError("images must be at least one picture, got none.")
    one_each(titles, "titles", len(images), "pictures")
    columns = whole(columns, "columns", 0) or len(images)
    if len(alphas):
        one_each(alphas, "alphas", len(images), "pictures")
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(-(-len(images) // columns), columns)
    framed: list[bool] | list[None] = told(right, len(images)) or [None] * len(images)
    alphas = alphas or [1] * len(images)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = figure.add_subplot(grid[divmod(index, columns)])
        draw_picture(axis, image, title, framed[index], fontsize, width, alphas[index])
    return figure


def told(right: Any, number: int, name: str = "right") -> list[bool]:
    """Verdicts of so many pictures, or none at all."""
    return verdicts(right, name, (number,)).tolist() if len(of_kind(right, name, _LISTS, "a list of verdicts")) else []


def draw_images(
    images: Tensor | Sequence[Tensor],
    titles: Texts = (),
    columns: int = 10,
    right: Numbers = (),
    chosen: int | Sequence[int] | None = None,
    size: float = 1.1,
) -> Figure:
    """A grid of pictures. images: uint8 (B, 3, H, W). titles: one a picture. right: verdicts, drawn as a frame and a
    check or cross. chosen: the picture or pictures to mark with a thick frame. size: inches a picture."""
    of_kind(images, "images", (Tensor, list, tuple), "a tensor or a list of pictures")
    for image in images:
        pictures(image, "each of images")
    columns = min(whole(columns, "columns", 1), max(1, len(images)))
    size = number(size, "size", most=100, above=0)
    if len(titles):
        one_each(of_kind(titles, "titles", (list, tuple), "a list of texts"), "titles", len(images), "pictures")
        titles = texts(titles, "titles")
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    shape = (size * columns, (size + 0.17 * lines) * -(-len(images) // columns))
    signs = [sign(good) for good in told(right, len(images))] or [""] * len(images)
    words = [f"{mark} {title}".strip() for mark, title in zip(signs, titles or [""] * len(images), strict=True)]
    several = () if chosen is None else chosen if isinstance(chosen, list | tuple) else (chosen,)
    marked = [whole(one, "chosen", 0, len(images) - 1) for one in several]
    figure = draw_grid(images, words, shape, columns, right, 8)
    for index in marked:
        figure.axes[index].spines[:].set(linewidth=4, **({} if signs[index] else {"color": OURS}))
    return figure


def draw_side_by_side(images: Mapping[str, Tensor], right: Series, title: str) -> Figure:
    """The same seeds drawn by several generators, a row each: uint8 (N, 3, H, W), with the judge's verdicts (N,)."""
    rows, right = named(images, "images"), named(right, "right", images)
    each = len(pictures(next(iter(rows.values())), "images", "N"))
    for name, one in rows.items():
        pictures(one, f"images[{name!r}]", each)
    judged = np.array([verdicts(right[name], f"right[{name!r}]", (each,)) for name in rows])
    figure = draw_images(torch.cat(list(rows.values())), columns=each, right=judged.ravel(), size=1.3)
    for row, name in enumerate(rows):
        figure.axes[row * each].set_ylabel(f"{wrap(name, 12)}\n{judged[row].sum()} of {each} right", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_profile(
    bars: Mapping[str, Mapping[str, float]],
    colors: Mapping[str, str],
    ylabel: str = "GenEval accuracy",
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Figure:
    """A number in 0..1 by tag (or "overall"), a group of bars a tag. bars: label → tag → number; colors: of labels;
    intervals: of some labels, tag → its two ends, drawn as whiskers."""
    named(colors, "colors", named(bars, "bars"))
    keys = list(named(next(iter(bars.values())), "each of bars"))
    for label, one in bars.items():
        numbers([named(one, f"bars[{label!r}]", keys)[key] for key in keys], f"bars[{label!r}]")
    intervals = intervals or {}
    for label in intervals:
        one_of(label, "Each label of intervals", bars)
    width, size = 0.8 / len(bars), 7 if len(bars) < 4 else 5
    figure, axis = new_chart(8.5, 3.2, ylim=(0, 1.08), ylabel=ylabel)
    for place, (label, values) in enumerate(bars.items()):
        lefts = np.arange(len(keys)) + (place - (len(bars) - 1) / 2) * width
        axis.bar(lefts, [values[key] for key in keys], width * 0.92, label=label, color=colors[label])
        tops = [values[key] for key in keys]
        if label in intervals:
            ends = named(intervals[label], f"intervals[{label!r}]", keys)
            lows, highs = np.array([ends[key] for key in keys], dtype=float).T
            axis.vlines(lefts, lows, highs, color="#333333", lw=1.2)
            tops = np.maximum(tops, highs).tolist()
        for left, key, top in zip(lefts, keys, tops, strict=True):
            axis.text(left, top + 0.015, f"{values[key]:.2f}", ha="center", fontsize=size, color="#333333")
    axis.set_xticks(range(len(keys)), [TAG_NAMES.get(key, key) for key in keys])
    axis.legend(frameon=False, ncols=len(bars), loc="upper right", bbox_to_anchor=(1, 1.13))
    return figure


def draw_curves(
    curves: Mapping[str, Curve],
    colors: Mapping[str, str],
    ylabel: str = "GenEval accuracy",
    xlabel: str = "n candidates",
    log: bool = False,
) -> Figure:
    """Accuracy against n, one line a label with its 95% band. colors: label → colour; log: whether n's axis is."""
    named(colors, "colors", named(curves, "curves"))
    for label, (ns, values, bounds) in curves.items():
        least = 1e-9 if log else None
        if not numbers(ns, f"n of {label}", least).size:
            raise ValueError(f"n of {label} must have at least one entry, got none.")
        one_each(numbers(values, f"accuracy of {label}"), f"accuracy of {label}", len(ns), "n")
        if bounds is not None:
            shaped(numbers(bounds, f"bounds of {label}"), f"bounds of {label}", (2, len(ns)))
    figure, axis = new_chart(6.5, 3.8, "both", xlabel=xlabel, ylabel=ylabel)
    for place, (label, (ns, values, bounds)) in enumerate(curves.items()):
        marker = MARKERS[place % 6] if len(ns) <= 25 else None
        axis.plot(ns, np.asarray(values), color=colors[label], label=label, marker=marker, ms=4, lw=1.8)
        if bounds is not None:
            axis.fill_between(ns, *np.asarray(bounds), color=colors[label], alpha=0.15, lw=0)
    ticks = max((list(ns) for ns, _, _ in curves.values()), key=len)
    if log:
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{n:g}" for n in ticks])
        axis.minorticks_off()
    elif len(ticks) > 12:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axis.set_xticks(ticks)
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_spread(runs: Mapping[str, Sequence[float]], paper: Mapping[str, float]) -> Figure:
    """Several training runs of each generator, a dot each and a line at their mean, beside the paper's one number.
    runs: generator → one accuracy a run; paper: generator → the paper's, where it has one."""
    for name, values in named(runs, "runs").items():
        if not len(shaped(numbers(values, f"runs of {name}"), f"runs of {name}", ("R",))):
            raise ValueError(f"runs of {name} must have at least one entry, got none.")
    figure, axis = new_chart(6.5, 3.6, "y", xlim=(-0.6, len(runs) - 0.4), ylabel="GenEval accuracy")
    for column, (name, values) in enumerate(runs.items()):
        shift = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else 0
        dots, mark = ("one training run", "paper") if column == 0 else (None, None)
        axis.plot(np.full(len(values), column) + shift, values, "o", color=OURS, ms=7, label=dots)
        axis.hlines(np.mean(values), column - 0.2, column + 0.2, color=OURS, lw=1.5)
        axis.plot(column + 0.3, paper.get(name, np.nan), "D", color=CHANCE, ms=6, label=mark)
    axis.set_xticks(range(len(runs)), list(runs))
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_first_clear(
    shares: Mapping[str, Sequence[float]],
    marks: Mapping[str, tuple[float, float]],
    xlabel: str = "step at which a path is clear for the first time",
    never: bool = True,
) -> Figure:
    """At which step something first happens to paths, as bars side by side. shares: name → share of paths by step;
    never: the last share is of those to which it never does; marks: name → first and last step of a shaded stretch."""
    bars = [numbers(values, f"shares of {name}") for name, values in named(shares, "shares").items()]
    for name, one in zip(shares, bars, strict=True):
        shaped(one, f"shares of {name}", (len(np.atleast_1d(bars[0])),))
    for name, stretch in marks.items():
        shaped(numbers(stretch, f"the mark {name}"), f"the mark {name}", (2,))
    figure, axis = new_chart(6.8, 3.4, xlabel=xlabel, ylabel="share of paths")
    width = 0.8 / len(shares)
    for place, (name, values) in enumerate(shares.items()):
        lefts = np.arange(1, len(values) + 1) + (place - (len(shares) - 1) / 2) * width
        axis.bar(lefts, values, width, color=(OURS, OTHER, CEILING)[place % 3], label=name)
    for name, (low, high) in marks.items():
        axis.axvspan(low - 0.5, high + 0.5, color=CHANCE, alpha=0.15, lw=0, zorder=0)
        above = axis.get_xaxis_transform()
        axis.text((low + high) / 2, 1.02, name, ha="center", fontsize=8, color="#444444", transform=above)
    steps = len(next(iter(shares.values())))
    axis.set_xticks(range(1, steps + 1), [*map(str, range(1, steps)), "never" if never else str(steps)], fontsize=8)
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_flow(boxes: Mapping[str, Box], arrows: Sequence[tuple[str, str, str]], size: tuple[float, float]) -> Figure:
    """A method as boxes and arrows. arrows: from, to, text; size: inches."""
    named(boxes, "boxes", [name for start, end, _ in arrows for name in (start, end)])
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    width, height, patches = 1.75, 0.8, {}
    for name, (x, y, words, color) in boxes.items():
        corner = (x - width / 2, y - height / 2)
        patches[name] = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.05", fc=color, ec="#444444")
        axis.add_patch(patches[name])
        axis.text(x, y, words, ha="center", va="center", fontsize=9)
    pairs = {(start, end) for start, end, _ in arrows}
    for start, end, words in arrows:
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        bend = 0.35 if (end, start) in pairs else 0.0  # two arrows between the same boxes would lie on each other
        arrow = FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>", connectionstyle=f"arc3,rad={bend}")
        arrow.set(patchA=patches[start], patchB=patches[end], mutation_scale=13, color="#444444")
        axis.add_patch(arrow)
        level = y0 == y1
        x, y = (x0 + x1) / 2 - 0.6 * bend + (0 if level else 0.18), (y0 + y1) / 2 + (0.1 if level else 0)
        axis.text(x, y, words, fontsize=8, ha="center" if level else "left", va="bottom")
    xs, ys = zip(*((x, y) for x, y, *_ in boxes.values()), strict=True)
    axis.set(xlim=(min(xs) - 1.1, max(xs) + 1.1), ylim=(min(ys) - 0.65, max(ys) + 0.65))
    axis.axis("off")
    return figure


PARTS = ("prompt", "tokens", "pictures", "verifier", "choice", "lesson")  # of the thread, in its order
_THREAD = {  # each part's left, right, and words
    "prompt": (0.0, 1.9, "a prompt"),
    "tokens": (2.4, 6.2, "tokens, step by step"),
    "pictures": (6.7, 8.4, "pictures"),
    "verifier": (8.9, 10.6, "a verifier's yes or no"),
    "choice": (11.1, 12.6, "a choice"),
    "lesson": (4.3, 9.75, "or a lesson for the generator"),
}


def draw_thread(lit: Texts) -> Figure:
    """The thread of the whole course, with a chapter's parts of it lit: prompt → tokens, step by step → pictures → a
    verifier's yes or no → a choice, or a lesson for the generator. lit: some of `PARTS`."""
    chosen = texts(lit, "lit")
    if strange := [one for one in chosen if one not in PARTS]:
        raise ValueError(f"There is no part {strange[0]!r}: the thread has {', '.join(PARTS)}.")
    figure, axis = plt.subplots(figsize=(9.2, 2.45), layout="constrained")
    axis.set(xlim=(-0.15, 12.75), ylim=(-1.05, 2.3), aspect="equal")
    axis.axis("off")
    for name, (left, right, words) in _THREAD.items():
        on = name in chosen
        ink, paper = ("#111111" if on else "#9A9A9A"), ("#FFF3C4" if on else "#F6F6F6")
        low, high = (0.0, 1.6) if name != "lesson" else (-0.95, -0.55)
        box = FancyBboxPatch((left, low), right - left, high - low, boxstyle="round,pad=0.06", fc=paper, ec=ink)
        axis.add_patch(box).set_linewidth(1.8 if on else 0.8)
        middle = ((left + right) / 2, 1.98 if name != "lesson" else -0.75)
        axis.text(*middle, words, ha="center", va="center", fontsize=8.5, color=ink, weight="bold" if on else None)
        if name in _SKETCHES:
            _SKETCHES[name](axis, left, 1.0 if on else 0.3)
    ways = [((_THREAD[a][1], 0.8), (_THREAD[b][0], 0.8), a, b) for a, b in pairwise(PARTS[:-1])]
    ways += [((9.75, 0.0), (9.0, -0.6), "verifier", "lesson"), ((5.0, -0.6), (4.3, 0.0), "lesson", "tokens")]
    for start, end, *ends in ways:
        arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=4, shrinkB=4)
        towards = "lesson" if "lesson" in ends else ends[1]  # an arrow is lit with what it leads to
        axis.add_patch(arrow).set_color("#333333" if towards in chosen else "#B5B5B5")
    return figure


def _tokens(axis: Axes, left: float, strength: float) -> None:
    """Four small grids that fill up."""
    order = np.random.default_rng(5).permutation(9)
    for turn, filled in enumerate((0, 1, 4, 9)):
        for rank, place in enumerate(order):
            x, y = left + 0.08 + 0.95 * turn + 0.26 * (place % 3), 0.95 - 0.26 * (place // 3)
            color = (OURS if place in (1, 4, 6, 7) else "#E2E2DC") if rank < filled else "white"
            axis.add_patch(Rectangle((x, y), 0.24, 0.24, fc=color, ec="#555555", lw=0.5, alpha=strength))


def _scene(axis: Axes, left: float, low: float, side: float, first: str, second: str, strength: float) -> None:
    """A little picture: a round thing beside a square one."""
    axis.add_patch(Rectangle((left, low), side, side, fc="#F4F4F0", ec="#555555", lw=0.6, alpha=strength))
    axis.add_patch(Circle((left + 0.3 * side, low + 0.5 * side), 0.17 * side, fc=first, alpha=strength))
    axis.add_patch(
        Rectangle((left + 0.56 * side, low + 0.34 * side), 0.3 * side, 0.3 * side, fc=second, alpha=strength)
    )


def _prompt(axis: Axes, left: float, strength: float) -> None:
    said = "“a red ball\nleft of\na blue box”"
    axis.text(left + 0.95, 0.8, said, ha="center", va="center", fontsize=8, style="italic", alpha=strength)


def _pictures(axis: Axes, left: float, strength: float) -> None:
    red, blue = "#D62728", "#1E6EEB"
    for turn, colors in enumerate(((blue, red), (red, blue), (red, red), (blue, blue))):
        _scene(axis, left + 0.08 + 0.81 * (turn % 2), 0.84 - 0.76 * (turn // 2), 0.7, *colors, strength)


def _verdicts(axis: Axes, left: float, strength: float) -> None:
    for turn, right in enumerate((False, True, False, False)):
        at = (left + 0.45 + 0.81 * (turn % 2), 1.19 - 0.76 * (turn // 2))
        axis.text(
            *at,
            "yes" if right else "no",
            ha="center",
            va="center",
            fontsize=9.5,
            weight="bold",
            color=RIGHT if right else WRONG,
            alpha=strength,
        )


def _choice(axis: Axes, left: float, strength: float) -> None:
    _scene(axis, left + 0.15, 0.2, 1.2, "#D62728", "#1E6EEB", strength)


_SKETCHES: dict[str, Callable[[Axes, float, float], None]] = {
    "prompt": _prompt,
    "tokens": _tokens,
    "pictures": _pictures,
    "verifier": _verdicts,
    "choice": _choice,
}
