"""The explorers of chapters 07 and 08: stop paths by hand, step through a reflection."""

from collections.abc import Sequence
from threading import RLock

import numpy as np
import numpy.typing as npt
from ipywidgets import HTML, Button, Dropdown, HBox, Image, IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.plots import to_png
from cotgen_lite.course.plots_parm import draw_paths_now, draw_reflection
from cotgen_lite.course.widgets import OWN_SIZE, keep_drawn

FIRST_LOOK, STRIDE = 2, 2  # the step shown first, and how many steps lie between two looks


def tally(stopped: Sequence[int | None], right: npt.ArrayLike, steps: int) -> dict[str, int]:
    """What stopping paths by hand came to: "hits", stopped wrong ones; "misses", wrong ones kept; "lost", right ones
    stopped; "steps", that all paths ran together. stopped: the step of each path, or None; right: verdicts (N,)."""
    truth, halted = np.asarray(right, dtype=bool), np.array([at is not None for at in stopped])
    return {
        "hits": int((halted & ~truth).sum()),
        "misses": int((~halted & ~truth).sum()),
        "lost": int((halted & truth).sum()),
        "steps": sum(steps if at is None else at for at in stopped),
    }


def be_the_parm(
    prompts: Sequence[str], images: Sequence[Tensor], right: npt.ArrayLike, parm: Sequence[Sequence[int | None]]
) -> VBox:
    """Notebook 07: look at paths as they run, stop those without potential, then compare with PARM.

    For each of P prompts: images uint8 (N, T, 3, H, W), the guesses of all steps; right: (P, N), verdicts on where the
    paths lead; parm: for each path the step at which PARM stopped it, or None.
    """
    truth, number, steps = np.asarray(right, dtype=bool), len(images[0]), images[0].shape[1]
    prompt = Dropdown(
        options=[(text, i) for i, text in enumerate(prompts)], description="prompt", layout={"width": "30em"}
    )
    buttons = [Button(description=f"stop {path + 1}", layout={"width": "6.5em"}) for path in range(number)]
    onward, again = Button(description="go on"), Button(description="start again")
    picture, score = Image(format="png", layout=OWN_SIZE), HTML()
    state: dict = {"step": FIRST_LOOK, "stopped": [None] * number}
    acting = RLock()  # the kernel calls back on several threads at once

    def redraw() -> None:
        row, step, stopped = prompt.value, state["step"], state["stopped"]
        over = step == steps
        picture.value = to_png(draw_paths_now(images[row], step, stopped, truth[row] if over else None, prompts[row]))
        for path, button in enumerate(buttons):
            button.disabled = over or stopped[path] is not None
        onward.disabled = over
        names = {"hits": "wrong paths stopped", "misses": "wrong paths kept", "lost": "right paths stopped"}
        lines = []
        for who, at in (("you", stopped), ("PARM", parm[row])) if over else ():
            found = tally(at, truth[row], steps)
            said = ", ".join(f"{found[key]} {words}" for key, words in names.items())
            lines.append(f"{who}: {said}; {found['steps']} of {number * steps} steps run")
        score.value = "<br>".join(lines) or "stop what has no potential, then go on"

    def stop(path: int) -> None:
        with acting:
            if state["stopped"][path] is None and state["step"] < steps:
                state["stopped"][path] = state["step"]
                redraw()

    def go_on(_: object = None) -> None:
        with acting:
            state["step"] = min(steps, state["step"] + STRIDE)
            redraw()

    def restart(_: object = None) -> None:
        with acting:
            state.update(step=FIRST_LOOK, stopped=[None] * number)
            redraw()

    for path, button in enumerate(buttons):
        button.on_click(lambda _, path=path: stop(path))
    onward.on_click(go_on)
    again.on_click(restart)
    prompt.observe(restart, names="value")
    redraw()
    return VBox([HBox([prompt, again]), picture, HBox([*buttons, onward]), score])


def reflection_explorer(
    prompts: Sequence[str],
    images: Sequence[Tensor],
    right: Sequence[Sequence[bool]],
    reasons: Sequence[Sequence[str]],
    beliefs: Sequence[Sequence[float]],
) -> VBox:
    """Notebook 08: step through the rounds of a reflection.

    For each of P prompts what `draw_reflection` takes: images, verdicts, reasons and P(yes) of its rounds.
    """
    prompt = Dropdown(
        options=[(text, i) for i, text in enumerate(prompts)], description="prompt", layout={"width": "30em"}
    )
    seen = IntSlider(value=0, min=0, max=3, description="round")

    def draw(row: int, done: int) -> tuple[Figure, str]:
        shown = min(done, len(reasons[row])) + 1
        said = reasons[row][:shown]
        return draw_reflection(images[row][:shown], right[row][:shown], said, beliefs[row][:shown]), ""

    picture, _ = keep_drawn((prompt, seen), draw)
    return VBox([HBox([prompt, seen]), picture])
