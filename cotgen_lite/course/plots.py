"""Every figure of the course: plain functions from arrays to figures, in colours that all can tell apart."""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Okabe and Ito's palette, one meaning each throughout the course.
OURS, PAPER, CHANCE, CEILING = "#0072B2", "#D55E00", "#8C8C8C", "#009E73"
OTHER = "#CC79A7"  # what has no meaning of its own
RIGHT, WRONG = "#009E73", "#D55E00"
TAG_NAMES = {
    "single_object": "single\nobject",
    "two_object": "two\nobjects",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "attribute\nbinding",
}


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file's bytes; closes it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return file.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with a text for those who cannot see it, and close it."""
    data = {"image/png": base64.b64encode(to_png(figure)).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def draw_images(
    images: Tensor,
    titles: Sequence[str] = (),
    columns: int = 10,
    right: Sequence[bool] = (),
    chosen: int | Sequence[int] | None = None,
    size: float = 1.1,
) -> Figure:
    """A grid of pictures.

    images: uint8 (B, 3, H, W). titles: one a picture. right: verdicts, drawn as a frame and a check or cross.
    chosen: the picture or pictures to mark with a thick frame. size: inches a picture.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    thick = {chosen} if isinstance(chosen, int) else set(chosen or ())
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(size * columns, (size + 0.17 * lines) * rows),
        squeeze=False,
        layout="constrained",
    )
    for index, axis in enumerate(axes.flat):
        _bare(axis)
        if index >= len(images):
            axis.set_visible(False)
            continue
        axis.imshow(images[index].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        title = titles[index] if titles else ""
        if len(right):
            verdict = bool(right[index])
            title = f"{'✓' if verdict else '✗'} {title}".strip()
            _frame(axis, RIGHT if verdict else WRONG, 4 if index in thick else 1.5, "-" if verdict else "--")
        elif index in thick:
            _frame(axis, OURS, 4, "-")
        axis.set_title(title, fontsize=8)
    return figure


def draw_steps(images: Tensor, committed: npt.NDArray[np.bool_] | Tensor, columns: int = 9) -> Figure:
    """One image coming into being: the model's full guess at each step, places not yet committed veiled.

    images: uint8 (T, 3, H, W), the guess of each step; committed: bool (T, L), the codes that stay after it.
    """
    veiled = [veil(image, mask) for image, mask in zip(images, np.asarray(committed), strict=True)]
    pairs = [picture for pair in zip(images.permute(0, 2, 3, 1).numpy(), veiled, strict=True) for picture in pair]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(1.15 * columns, 2.45 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        _bare(axis)
        axis.set_visible(False)
    for step in range(len(images)):
        row, column = divmod(step, columns)
        for part in (0, 1):
            axis = axes[2 * row + part, column]
            axis.set_visible(True)
            axis.imshow(pairs[2 * step + part], interpolation="nearest")
        share = np.asarray(committed)[step].mean()
        axes[2 * row, column].set_title(f"step {step + 1}", fontsize=8)
        axes[2 * row + 1, column].set_title(f"{share:.0%} committed", fontsize=7)
    return figure


def draw_one_step(images: Tensor, committed: Tensor, step: int, title: str) -> Figure:
    """One step of a path in large: the guess, the guess with uncommitted places veiled, and the finished image.

    images: uint8 (T, 3, H, W); committed: bool (T, L); step: 1 to T.
    """
    mask = np.asarray(committed[step - 1])
    pictures = (images[step - 1].permute(1, 2, 0).numpy(), veil(images[step - 1], mask), images[-1].permute(1, 2, 0))
    names = (f"full guess at step {step}", f"{mask.sum()} of {len(mask)} tokens committed", "finished image")
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), layout="constrained")
    for axis, picture, name in zip(axes, pictures, names, strict=True):
        _bare(axis)
        axis.imshow(np.asarray(picture), interpolation="nearest")
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_choice(
    images: Tensor,
    prompt: str,
    picked: int | None,
    chosen: int,
    beliefs: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Figure:
    """Candidates to pick from; once one is picked, the verifier's beliefs, its choice and the judge's verdicts too.

    images: uint8 (N, 3, H, W); picked: the learner's choice or None; chosen: the verifier's; beliefs: P(yes) (N,);
    right: (N,) verdicts.
    """
    if picked is None:
        titles = [str(number + 1) for number in range(len(images))]
        figure = draw_images(images, titles, columns=8, size=1.25)
        figure.suptitle(f"{prompt}: which one would you keep?", fontsize=10)
        return figure
    names = {picked: "YOU", chosen: "VERIFIER"} if picked != chosen else {picked: "YOU, VERIFIER"}
    titles = [f"P(yes) {belief:.2f}\n{names.get(i, '')}" for i, belief in enumerate(np.asarray(beliefs, dtype=float))]
    verdicts = [bool(verdict) for verdict in np.asarray(right)]
    figure = draw_images(images, titles, columns=8, right=verdicts, size=1.25, chosen=(picked, chosen))
    figure.suptitle(prompt, fontsize=10)
    return figure


def veil(image: Tensor, committed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A picture (3, H, W) whose uncommitted patches (L, row by row) are covered in grey; returns (H, W, 3)."""
    grid = int(len(committed) ** 0.5)
    patch = image.shape[-1] // grid
    covered = np.kron(~np.asarray(committed).reshape(grid, grid), np.ones((patch, patch), dtype=bool))
    picture = image.permute(1, 2, 0).numpy().copy()
    picture[covered] = 150
    return picture


def draw_token_grid(image: Tensor, tokens: Tensor) -> Figure:
    """A picture beside its token grid: the codes as numbers over their patches.

    image: uint8 (3, H, W); tokens: (L,), row by row.
    """
    grid = int(len(tokens) ** 0.5)
    patch = image.shape[-1] / grid
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.1), layout="constrained")
    for axis in axes:
        _bare(axis)
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", alpha=1.0 if axis is axes[0] else 0.35)
    for line in range(1, grid):
        axes[1].axhline(line * patch - 0.5, color="#666666", lw=0.5)
        axes[1].axvline(line * patch - 0.5, color="#666666", lw=0.5)
    for index, code in enumerate(tokens.tolist()):
        row, column = divmod(index, grid)
        axes[1].text(
            (column + 0.5) * patch - 0.5,
            (row + 0.5) * patch - 0.5,
            str(code),
            ha="center",
            va="center",
            fontsize=8,
        )
    axes[0].set_title(f"{image.shape[-1]} × {image.shape[-1]} pixels", fontsize=10)
    axes[1].set_title(f"{grid} × {grid} tokens", fontsize=10)
    return figure


def draw_profile(
    bars: Mapping[str, Mapping[str, float]],
    colors: Mapping[str, str],
    ylabel: str = "GenEval accuracy",
) -> Figure:
    """A number in 0..1 by tag, a group of bars a tag.

    bars: label → tag (or "overall") → number; colors: label → colour.
    """
    keys = list(next(iter(bars.values())))
    figure, axis = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
    width, size = 0.8 / len(bars), 7 if len(bars) < 4 else 5
    for number, (label, values) in enumerate(bars.items()):
        places = np.arange(len(keys)) + (number - (len(bars) - 1) / 2) * width
        heights = np.array([values[key] for key in keys])
        axis.bar(places, heights, width * 0.92, label=label, color=colors[label])
        for place, height in zip(places, heights, strict=True):
            axis.text(place, height + 0.015, f"{height:.2f}", ha="center", fontsize=size, color="#333333")
    axis.set_xticks(range(len(keys)), [TAG_NAMES.get(key, key) for key in keys])
    axis.set_ylim(0, 1.08)
    axis.set_ylabel(ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(bars), loc="upper right", bbox_to_anchor=(1, 1.13))
    return figure


def draw_curves(
    curves: Mapping[str, tuple[Sequence[int], npt.ArrayLike, npt.ArrayLike | None]],
    colors: Mapping[str, str],
    ylabel: str = "GenEval accuracy",
    xlabel: str = "n candidates",
    log: bool = False,
) -> Figure:
    """Accuracy against n, one line a label with its 95% band.

    curves: label → (n values, accuracy (len(n),), bounds (2, len(n)) or None); colors: label → colour; log: whether n
    stands on a logarithmic axis.
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for number, (label, (ns, values, bounds)) in enumerate(curves.items()):
        color = colors[label]
        marker = "osD^vP"[number % 6] if len(ns) <= 25 else None
        axis.plot(ns, np.asarray(values), color=color, label=label, marker=marker, ms=4, lw=1.8)
        if bounds is not None:
            low, high = np.asarray(bounds)
            axis.fill_between(ns, low, high, color=color, alpha=0.15, lw=0)
    axis.set_xlabel(xlabel)
    ticks = max((list(ns) for ns, _, _ in curves.values()), key=len)
    if log:
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{n:g}" for n in ticks])
        axis.minorticks_off()
    elif len(ticks) > 12:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axis.set_xticks(ticks)
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_beliefs(log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> Figure:
    """How the verifier's P(yes) is spread over right and over wrong images.

    log_odds: (B,) of yes; correct: (B,) verdicts of a judge.
    """
    belief = 1 / (1 + np.exp(-np.asarray(log_odds, dtype=float)))
    truth = np.asarray(correct, dtype=bool)
    figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
    bins = np.linspace(0, 1, 26).tolist()
    right, wrong = (np.full(part.sum(), 1 / max(part.sum(), 1)) for part in (truth, ~truth))
    axis.hist(belief[truth], bins, weights=right, color=RIGHT, alpha=0.6, label="right images")
    axis.hist(belief[~truth], bins, weights=wrong, histtype="step", color=WRONG, lw=2, label="wrong images")
    axis.set_yscale("log")
    axis.set_xlabel("the verifier's P(yes)")
    axis.set_ylabel("share of right, or of wrong, images (log)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def draw_calibration(
    bins: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]], colors: Mapping[str, str], title: str = ""
) -> Figure:
    """How often images are right against how sure the verifier is; on the diagonal it means what it says.

    bins: label → (mean P(yes), share of right images, number of images) of its bins; colors: label → colour.
    """
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axis.plot([0, 1], [0, 1], color=CHANCE, ls="--", lw=1, label="means what it says")
    for number, (label, (belief, share, count)) in enumerate(bins.items()):
        sizes = 12 + 160 * np.asarray(count) / max(np.sum(count), 1)
        axis.plot(np.asarray(belief), np.asarray(share), color=colors[label], lw=1.2, alpha=0.7)
        axis.scatter(
            np.asarray(belief), np.asarray(share), sizes, color=colors[label], marker="osD^"[number % 4], label=label
        )
    axis.set_xlabel("the verifier's P(yes), mean of a bin")
    axis.set_ylabel("share of right images")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_step_labels(labels: npt.ArrayLike, groups: Sequence[str]) -> Figure:
    """Labels of all steps of many paths, a row a path, sorted within each group by how many steps are yes.

    labels: share of rollouts that end well, 0..1 (P, T); groups: (P,) the group of each path, e.g. its tag.
    """
    share = np.asarray(labels, dtype=float)
    names = list(dict.fromkeys(groups))
    order = sorted(range(len(share)), key=lambda row: (names.index(groups[row]), share[row].sum()))
    figure, axis = plt.subplots(figsize=(6.5, 5), layout="constrained")
    picture = axis.imshow(share[order], aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(range(share.shape[1]), [str(step + 1) for step in range(share.shape[1])], fontsize=8)
    axis.set_xlabel("step")
    edges = np.cumsum([0, *(list(groups).count(name) for name in names)])
    axis.set_yticks(
        (edges[:-1] + edges[1:]) / 2, [TAG_NAMES.get(name, name).replace("\n", " ") for name in names], fontsize=8
    )
    for edge in edges[1:-1]:
        axis.axhline(edge - 0.5, color="white", lw=1)
    figure.colorbar(picture, ax=axis, label="share of rollouts that end well", shrink=0.8)
    return figure


def draw_rollouts(
    guess: Tensor, ends: Tensor, right: npt.ArrayLike, beliefs: npt.ArrayLike, step: int, title: str
) -> Figure:
    """One step of a path: its guess, the images that rollouts from it end in, and the verifier's belief at every step.

    guess: uint8 (3, H, W); ends: uint8 (R, 3, H, W); right: (R,) verdicts; beliefs: P(yes) (T,); step: 1 to T.
    """
    figure = plt.figure(figsize=(1.35 * (len(ends) + 1), 3.6), layout="constrained")
    grid = figure.add_gridspec(2, len(ends) + 1, height_ratios=(1.2, 1))
    pictures = [guess, *ends]
    for column, picture in enumerate(pictures):
        axis = figure.add_subplot(grid[0, column])
        _bare(axis)
        axis.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        if column == 0:
            axis.set_title(f"guess at\nstep {step}", fontsize=8)
        else:
            good = bool(np.asarray(right)[column - 1])
            axis.set_title(f"rollout {column}\n{'✓' if good else '✗'}", fontsize=8)
            _frame(axis, RIGHT if good else WRONG, 1.5, "-" if good else "--")
    axis = figure.add_subplot(grid[1, :])
    belief = np.asarray(beliefs, dtype=float)
    axis.plot(range(1, len(belief) + 1), belief, color=OURS, marker="o", ms=3, lw=1.5)
    axis.axvline(step, color=OTHER, lw=1.5)
    axis.set_xlabel("step")
    axis.set_ylabel("P(yes)")
    axis.set_ylim(-0.05, 1.05)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def wrap(text: str, width: int = 18) -> str:
    """Break a sentence for use as a picture's title."""
    return textwrap.fill(text, width)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])


def _frame(axis: Axes, color: str, width: float, style: str) -> None:
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=width, linestyle=style)
