"""The notebooks' explorers: controls around one picture, which is drawn by a pure function of `plots`."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from ipywidgets import HTML, Button, Dropdown, FloatSlider, HBox, Image, IntSlider, ToggleButtons, VBox
from torch import Tensor

from cotgen_lite.plots import draw_choice, draw_one_step, to_png

Path = tuple[Tensor, Tensor]  # images (T, 3, H, W) and committed (T, L) of one image's steps


def step_explorer(prompts: Sequence[str], draw_path: Callable[[str, int, float], Path], steps: int = 18) -> VBox:
    """Notebook 00: choose prompt, seed, guidance and step, and see what is known by then.

    draw_path: (prompt, seed, guidance scale) → the path's images and committed places, drawn anew at a change.
    """
    prompt = Dropdown(options=list(prompts), description="prompt", layout={"width": "30em"})
    seed = IntSlider(value=0, min=0, max=20, description="seed", continuous_update=False)
    guidance = FloatSlider(value=1.5, min=0, max=5, step=0.5, description="guidance", continuous_update=False)
    step = IntSlider(value=steps, min=1, max=steps, description="step")
    picture = Image(format="png")
    path: list[Path] = []

    def redraw(_: object = None) -> None:
        images, committed = path[-1]
        picture.value = to_png(draw_one_step(images, committed, step.value, f"{prompt.value}, seed {seed.value}"))

    def resample(_: object = None) -> None:
        path[:] = [draw_path(prompt.value, seed.value, guidance.value)]
        redraw()

    for control in (prompt, seed, guidance):
        control.observe(resample, names="value")
    step.observe(redraw, names="value")
    resample()
    return VBox([HBox([prompt, seed]), HBox([guidance, step]), picture])


def pick_the_best(
    prompts: Sequence[str], images: Sequence[Tensor], beliefs: npt.ArrayLike, right: npt.ArrayLike
) -> VBox:
    """Notebook 01: pick the best of a prompt's candidates, then see the verifier's choice; a score is kept.

    images: per prompt, uint8 (N, 3, H, W); beliefs: P(yes) (P, N); right: verdicts (P, N).
    """
    belief, verdict = np.asarray(beliefs, dtype=float), np.asarray(right, dtype=bool)
    picks = ToggleButtons(options=[(str(i + 1), i) for i in range(belief.shape[1])], value=None, description="you keep")
    onward = Button(description="next prompt")
    picture, score = Image(format="png"), HTML()
    tally = {"round": 0, "you": 0, "verifier": 0, "prompts": 0}

    def redraw() -> None:
        row = tally["round"] % len(prompts)
        chosen = int(belief[row].argmax())
        figure = draw_choice(images[row], prompts[row], picks.value, chosen, belief[row], verdict[row])
        picture.value = to_png(figure)
        score.value = f"you {tally['you']}, verifier {tally['verifier']} of {tally['prompts']} prompts right"

    def picked(change: dict) -> None:
        row = tally["round"] % len(prompts)
        if change["old"] is None and change["new"] is not None:  # only the first pick of a prompt counts
            tally["prompts"] += 1
            tally["you"] += int(verdict[row, change["new"]])
            tally["verifier"] += int(verdict[row, belief[row].argmax()])
        redraw()

    def go_on(_: object) -> None:
        tally["round"] += 1
        picks.value = None
        redraw()

    picks.observe(picked, names="value")
    onward.on_click(go_on)
    redraw()
    return VBox([picture, picks, HBox([onward, score])])
