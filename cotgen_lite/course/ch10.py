"""Chapter 10, the full scale: its figures, its explorer and its exercises' checkers.

Notebook: 10_full_scale.ipynb. Paper: sections 3 to 5. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from ipywidgets import Dropdown, IntSlider, ToggleButtons, VBox
from matplotlib.figure import Figure

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.explorer import explorer
from cotgen_lite.course.plots import CEILING, OTHER, OURS, PAPER, RIGHT, WRONG, legend_below, new_chart, sign
from cotgen_lite.inputs import named, number, numbers

# A part has one colour in every figure.
COLORS = {"Show-o, MAGVIT-v2": OURS, "drawing": OURS, "verifier": OTHER, "left free": "#D9D9D9"}
COLORS |= dict.fromkeys(("drawing and reading", "decoding"), CEILING)


def draw_stacks(
    stacks: Mapping[str, Mapping[str, float]], xlabel: str, lines: Mapping[str, float] | None = None
) -> Figure:
    """Bars of several parts each, one below the other, beside lines to hold them against. stacks: bar → part → number,
    the same parts in every bar; lines: name → where it stands, such as a card's memory."""
    first = named(next(iter(named(stacks, "stacks").values())), "each of stacks")
    for name, one in stacks.items():
        numbers([*named(one, f"stacks[{name!r}]", first).values()], f"stacks[{name!r}]", 0)
    figure, axis = new_chart(8, 0.42 * len(stacks) + 1.5, xlabel=xlabel)
    names, parts = list(stacks), list(next(iter(stacks.values())))
    for place, part in enumerate(parts):
        lefts = [sum(list(stacks[name].values())[:place]) for name in names]
        axis.barh(names, [stacks[name][part] for name in names], 0.65, lefts, color=COLORS.get(part, PAPER), label=part)
    for at, name in enumerate(names):
        total = sum(stacks[name].values())
        text = axis.annotate(f"{total:,.{int(total < 100)}f}", (total, at), (5, 0), textcoords="offset points")
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a line may cross the number
        text.set(va="center", fontsize=8, color="#333333", bbox=white)
    for card, size in (lines or {}).items():
        axis.axvline(size, color="#333333", lw=1, ls="--")
        axis.text(size, 1.01, card, ha="center", va="bottom", fontsize=8, transform=axis.get_xaxis_transform())
    axis.set_xlim(0, 1.08 * max([*(sum(parts.values()) for parts in stacks.values()), *(lines or {}).values()]))
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=9)
    legend_below(figure, axis, 4, 8)
    return figure


def draw_fit(parts: Mapping[str, float], card: str, memory: float, title: str) -> Figure:
    """One bar of what a GPU has to hold, part → GB, beside its memory in GB, and whether it fits."""
    needed = float(numbers([*named(parts, "parts").values()], "parts", 0).sum())
    number(memory, "memory", above=0)
    fits = needed <= memory
    figure = draw_stacks({"needed": parts}, "GB", {f"{card}: {memory:g} GB": memory})
    verdict = f"fits, {memory - needed:.1f} GB to spare" if fits else f"does not fit: {needed - memory:.1f} GB too much"
    figure.suptitle(f"{title}\n{sign(fits)} {verdict}", fontsize=10, color=RIGHT if fits else WRONG)
    return figure


def memory_explorer(parts_of: Callable[[int, int, int], Mapping[str, float]], cards: Mapping[str, float]) -> VBox:
    """Choose card, image size, candidates and the bits of the verifier's weights. parts_of: (image size in px,
    candidates at once, bits) → part → GB; cards: name → GB of memory."""
    card = Dropdown(options=list(named(cards, "cards")), description="card")
    n = IntSlider(value=20, min=1, max=60, description="paths")
    sizes, widths = [("256 px", 256), ("512 px", 512)], [("16 bits", 16), ("8", 8), ("4", 4)]
    size = ToggleButtons(options=sizes, description="images", style={"button_width": "5em"})
    bits = ToggleButtons(options=widths, description="verifier", style={"button_width": "4em"})

    def draw(name: str, paths: int, pixels: int, width: int) -> Figure:
        title = f"{paths} paths of {pixels} px at once, the verifier in {width} bits"
        return draw_fit(parts_of(pixels, paths, width), name, cards[name], title)

    return explorer(draw, (card, n), (size, bits))


# Bytes of the keys and values that are kept while n guided candidates are drawn; from n, the places of one sequence,
# the layers, the heads of a layer, the width of a head, and the bytes of a number.
check_keys_and_values = Exercise(
    lambda n, places, layers, heads, head_width, size: 4 * n * places * layers * heads * head_width * size,
    ((2, 3, 5, 7, 11, 2), (20, 280, 24, 32, 64, 2), (3, 1050, 2, 13, 5, 8), (1, 1, 1, 1, 1, 1)),
    lambda n, places, layers, heads, width, size: {
        "That is a quarter: keys *and* values, and two rows a candidate, with the prompt and without.": (
            n * places * layers * heads * width * size
        ),
        "That is half: keys *and* values are kept, for two rows a candidate, with the prompt and without.": (
            2 * n * places * layers * heads * width * size
        ),
        "Those are numbers: each takes several bytes.": 4 * n * places * layers * heads * width,
        "That is one head of each layer: a layer keeps all its heads'.": 4 * n * places * layers * width * size,
        "That is one layer: each has keys and values of its own.": 4 * n * places * heads * width * size,
        "That is one candidate: all n are drawn at once.": 4 * places * layers * heads * width * size,
        "Keys and values grow with the places, not with their square, as scores would.": (
            4 * n * places**2 * layers * heads * width * size
        ),
    },
    "A number of bytes",
)


def _hours(images: int, steps: int, places: int, weights: int, rate: float, gpus: int) -> float:
    return images * steps * 2 * places * 2 * weights / rate / gpus / 3600


# Hours that a pool of guided images takes; from images, steps of each, places of a pass, the model's weights, the
# FLOPs a second that one GPU reaches, and the number of GPUs.
check_hours = Exercise(
    _hours,
    ((7, 5, 11, 1000, 3.0, 2), (288_000, 18, 258, 1_208_506_368, 94e12, 8), (3, 2, 5, 7, 11.0, 4)),
    lambda images, steps, places, weights, rate, gpus: {
        hint: factor * _hours(images, steps, places, weights, rate, gpus)
        for hint, factor in {
            "Those are seconds: an hour has 3,600.": 3600,
            "Those are minutes: an hour has 60.": 60,
            "A weight takes a multiplication *and* an addition, and guidance a second row: both double it.": 1 / 4,
            "Half of it: 2 FLOPs a weight and place, and two rows, with the prompt and without.": 1 / 2,
            "The GPUs share the work: divide by their number.": gpus,
            "The GPUs share the work: divide by their number, do not multiply.": gpus**2,
            "Every step is a pass over the whole image.": 1 / steps,
            "A weight is used once for every place of the sequence.": 1 / places,
            "That is one image: the pool has many.": 1 / images,
        }.items()
    },
    "A number of hours",
)


def _parm_mistakes(ran: npt.NDArray[np.int64], steps: int, step: float, look: float) -> dict[str, float]:
    some, whole, finished = ran.sum(), len(ran) * steps, (ran == steps).sum()
    best, last = whole * step + len(ran) * look, np.minimum(ran, steps - 1).sum()
    return {
        "The finished pictures are looked at once more, to choose among them.": (some * step + last * look) / best,
        "A finished picture's last step has one look, not two.": (some * step + (some + finished) * look) / best,
        "PARM looks at every step, not only at the finished pictures.": (some * step + finished * look) / best,
        "Stopped paths cost nothing more: count the steps that each path ran.": whole * (step + look) / best,
        "That is the generator alone: the verifier's looks cost too.": some / whole,
        "A stopped path's steps are saved as well as its looks.": (whole * step + some * look) / best,
        "Best-of-n looks too: once at each finished picture.": some * (step + look) / (whole * step),
        "Upside down: PARM's cost over that of best-of-n.": best / (some * (step + look)),
        "That is what is saved: the share that is spent is asked for.": 1 - some * (step + look) / best,
    }


# What PARM costs as a share of what best-of-n costs; from how many of the steps each path ran (those that ran all are
# judged once more when they are finished), the steps, the cost of a step, and that of a look.
check_parm_over_best = Exercise(
    lambda ran, steps, step, look: ran.sum() * (step + look) / (len(ran) * (steps * step + look)),
    (
        (np.array([18, 3, 5, 18, 2]), 18, 1.2, 25.0),
        (np.array([4, 4, 1]), 4, 3.0, 0.5),
        (np.array([7, 2, 6, 7, 7, 1]), 7, 0.8, 1.9),
        (np.array([2, 2]), 2, 1.0, 3.0),
    ),
    _parm_mistakes,
    "One share",
)
