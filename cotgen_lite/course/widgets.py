"""The notebooks' explorers: controls around one picture, which is drawn by a pure function of `plots`."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Lock, RLock

import numpy as np
import numpy.typing as npt
from ipywidgets import (
    HTML,
    Button,
    Dropdown,
    FloatLogSlider,
    FloatSlider,
    HBox,
    Image,
    IntSlider,
    SelectionSlider,
    ToggleButtons,
    ValueWidget,
    VBox,
)
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.plots import (
    OTHER,
    OURS,
    draw_calibration,
    draw_choice,
    draw_one_step,
    draw_rollouts,
    to_png,
)
from cotgen_lite.course.plots_alignment import draw_budget, draw_side_by_side
from cotgen_lite.metrics import calibration, calibration_error

Path = tuple[Tensor, Tensor]  # images (T, 3, H, W) and committed (T, L) of one image's steps

OWN_SIZE = {"align_self": "flex-start", "max_width": "100%"}  # a box would stretch a picture to its own width


def keep_drawn(controls: Sequence[ValueWidget], draw: Callable[..., tuple[Figure, str]]) -> tuple[Image, HTML]:
    """A picture and words beneath it, drawn now and again whenever a control moves: always those of the last values.

    draw: the controls' values, in order → figure and words. The kernel calls back on several threads at once, so values
    are read once, one drawing is made at a time, and what the controls have left behind meanwhile is not shown.
    """
    picture, words, drawing = Image(format="png", layout=OWN_SIZE), HTML(), Lock()

    def redraw(_: object = None) -> None:
        with drawing:
            values = [control.value for control in controls]
            figure, text = draw(*values)
            drawn = to_png(figure)
            if values == [control.value for control in controls]:  # else the move that came meanwhile draws next
                picture.value, words.value = drawn, text

    for control in controls:
        control.observe(redraw, names="value")
    redraw()
    return picture, words


def step_explorer(
    prompts: Sequence[str], draw_path: Callable[[str, int, float], Path], scale: float, steps: int = 18
) -> VBox:
    """Notebook 00: choose prompt, seed, guidance and step, and see what is known by then.

    draw_path: (prompt, seed, guidance scale) → the path's images and committed places, drawn anew at a change.
    scale: the guidance to begin with.
    """
    prompt = Dropdown(options=list(prompts), description="prompt", layout={"width": "30em"})
    seed = IntSlider(value=0, min=0, max=20, description="seed", continuous_update=False)
    guidance = FloatSlider(value=scale, min=0, max=5, step=0.5, description="guidance", continuous_update=False)
    step = IntSlider(value=steps, min=1, max=steps, description="step")
    path = lru_cache(maxsize=1)(draw_path)  # moving along a path samples nothing anew

    def draw(text: str, number: int, guide: float, at: int) -> tuple[Figure, str]:
        return draw_one_step(*path(text, number, guide), at, f"{text}, seed {number}"), ""

    picture, _ = keep_drawn((prompt, seed, guidance, step), draw)
    return VBox([HBox([prompt, seed]), HBox([guidance, step]), picture])


def pick_the_best(
    prompts: Sequence[str], images: Sequence[Tensor], beliefs: npt.ArrayLike, right: npt.ArrayLike
) -> VBox:
    """Notebook 01: pick the best of a prompt's candidates, then see the verifier's choice; a score is kept.

    images: per prompt, uint8 (N, 3, H, W); beliefs: P(yes) (P, N); right: verdicts (P, N).
    """
    belief, verdict = np.asarray(beliefs, dtype=float), np.asarray(right, dtype=bool)
    options = [(str(i + 1), i) for i in range(belief.shape[1])]
    picks = ToggleButtons(options=options, value=None, description="you keep", style={"button_width": "4.5em"})
    onward = Button(description="next prompt")
    picture, score = Image(format="png", layout=OWN_SIZE), HTML()
    tally, one_at_a_time = {"round": 0, "you": 0, "verifier": 0, "prompts": 0}, RLock()

    def redraw() -> None:
        row = tally["round"] % len(prompts)
        chosen = int(belief[row].argmax())
        figure = draw_choice(images[row], prompts[row], picks.value, chosen, belief[row], verdict[row])
        picture.value = to_png(figure)
        score.value = f"you {tally['you']}, verifier {tally['verifier']} of {tally['prompts']} prompts right"

    def picked(change: dict) -> None:
        with one_at_a_time:
            row = tally["round"] % len(prompts)
            if change["old"] is None and change["new"] is not None:  # only the first pick of a prompt counts
                tally["prompts"] += 1
                tally["you"] += int(verdict[row, change["new"]])
                tally["verifier"] += int(verdict[row, belief[row].argmax()])
            redraw()

    def go_on(_: object) -> None:
        with one_at_a_time:
            tally["round"] += 1
            picks.value = None
            redraw()

    picks.observe(picked, names="value")
    onward.on_click(go_on)
    redraw()
    return VBox([picture, picks, HBox([onward, score])])


def generators_explorer(
    prompts: Sequence[str], look: Callable[[str, int], tuple[dict[str, Tensor], dict[str, npt.ArrayLike]]]
) -> VBox:
    """Notebooks 04 and 05: choose prompt and seed, and see what each generator makes of the same noise.

    look: (prompt, seed) → by generator, images (N, 3, H, W) and verdicts (N,), drawn anew at a change.
    """
    prompt = Dropdown(options=list(prompts), description="prompt", layout={"width": "30em"})
    seed = IntSlider(value=0, min=0, max=20, description="seed", continuous_update=False)

    def draw(text: str, number: int) -> tuple[Figure, str]:
        return draw_side_by_side(*look(text, number), f"{text}, seed {number}"), ""

    picture, _ = keep_drawn((prompt, seed), draw)
    return VBox([HBox([prompt, seed]), picture])


def budget_explorer(
    sizes: Sequence[int],
    accuracy: Mapping[str, npt.ArrayLike],
    seconds_each: float,
    training: Mapping[str, npt.ArrayLike],
) -> VBox:
    """Notebook 06: choose how many pictures are to be made and the budget of each, and see what is best to do.

    sizes: the n of best-of-n; accuracy: generator → (len(sizes),); seconds_each: seconds of drawing and reading one
    candidate; training: generator → seconds of all training that best-of-n needs (len(sizes),), shared by all pictures.
    """
    options = [(f"{number:,}", number) for number in (10, 100, 1000, 10_000, 100_000)]
    pictures = SelectionSlider(options=options, value=10_000, description="pictures")
    budget = FloatLogSlider(value=10**0.4, min=-1, max=2, step=0.1, description="seconds", continuous_update=False)

    def draw(number: int, seconds: float) -> tuple[Figure, str]:
        share = {name: np.asarray(training[name], dtype=float) / number for name in accuracy}
        spent = {name: share[name] + np.asarray(sizes) * seconds_each for name in accuracy}
        best = {
            name: float(np.asarray(accuracy[name])[spent[name] <= seconds].max())
            for name in accuracy
            if (spent[name] <= seconds).any()
        }
        figure = draw_budget(spent, accuracy, seconds, {name: part[-1] for name, part in share.items()})
        if not best:
            return figure, "nothing fits this budget"
        name = max(best, key=lambda one: best[one])
        return figure, f"best within the budget: {name}, {best[name]:.3f}"

    picture, verdict = keep_drawn((pictures, budget), draw)
    return VBox([HBox([pictures, budget]), picture, verdict])


def calibration_explorer(log_odds: Mapping[str, npt.ArrayLike], correct: npt.ArrayLike, tags: Sequence[str]) -> VBox:
    """Notebook 02: choose a tag and a number of bins, and see how far two verifiers mean what they say.

    log_odds: verifier → (P, N); correct: verdicts (P, N); tags: (P,) of the prompts.
    """
    tag = Dropdown(options=["all", *dict.fromkeys(tags)], description="tag")
    bins = IntSlider(value=10, min=2, max=20, description="bins", continuous_update=False)
    colors, truth = dict(zip(log_odds, (OTHER, OURS), strict=True)), np.asarray(correct, dtype=bool)

    def draw(chosen: str, number: int) -> tuple[Figure, str]:
        rows = np.array([chosen in ("all", name) for name in tags])
        scores = {name: np.asarray(odds)[rows] for name, odds in log_odds.items()}
        curves = {name: calibration(odds, truth[rows], number) for name, odds in scores.items()}
        off = [f"{name} {calibration_error(odds, truth[rows], number):.3f}" for name, odds in scores.items()]
        return draw_calibration(curves, colors, chosen), f"mean distance from the diagonal: {', '.join(off)}"

    picture, errors = keep_drawn((tag, bins), draw)
    return VBox([HBox([tag, bins]), picture, errors])


def rollout_explorer(
    prompts: Sequence[str], beliefs: npt.ArrayLike, look: Callable[[int, int], tuple[Tensor, Tensor, npt.ArrayLike]]
) -> VBox:
    """Notebook 03: move along a path and see the verifier's belief, and where rollouts from that step end.

    prompts: of P paths; beliefs: P(yes) (P, T); look: (path, step from 1) → the guess (3, H, W), the rollouts' ends
    (R, 3, H, W) and their verdicts (R,).
    """
    belief = np.asarray(beliefs, dtype=float)
    path = Dropdown(options=[(text, i) for i, text in enumerate(prompts)], description="path", layout={"width": "30em"})
    step = IntSlider(value=1, min=1, max=belief.shape[1], description="step", continuous_update=False)

    def draw(row: int, at: int) -> tuple[Figure, str]:
        return draw_rollouts(*look(row, at), belief[row], at, prompts[row]), ""

    picture, _ = keep_drawn((path, step), draw)
    return VBox([HBox([path, step]), picture])
