"""The explorer of chapter 09, driven as a learner would; no window is needed."""

import numpy as np

from cotgen_lite.course.ch09 import draw_run, run_explorer
from cotgen_lite.course.plots import to_png
from cotgen_lite.lite.world import random_scene, render

RNG = np.random.default_rng(0)
GREY, LIKELIEST = ([render([random_scene(RNG) for _ in range(12)]).view(2, 6, 3, 64, 64)] * 2 for _ in range(2))
BELIEFS = [[RNG.random((2, 6)), RNG.random((2, 6))] for _ in range(2)]


def test_each_run_has_its_picture_and_the_last_its_verdicts() -> None:
    box = run_explorer(["a photo of a cat", "a photo of a dog"], GREY, LIKELIEST, BELIEFS, [[True, False]] * 2)
    (prompt, run), picture = box.children[0].children, box.children[1]
    assert (run.value, run.max) == (3, 6)
    shown = [picture.value]
    for at in (1, 5, 6):
        run.value = at
        shown.append(picture.value)
    prompt.value = 1
    assert len({*shown, picture.value}) == 5


def test_how_paths_end_is_told_with_the_last_run_only() -> None:
    def heads(run: int) -> list[str]:
        figure = draw_run(GREY[0], LIKELIEST[0], BELIEFS[0], [True, False], run, "a photo of a cat")
        assert to_png(figure)
        return [axis.get_title() for axis in figure.axes[:2]]

    assert heads(5) == ["path 1", "path 2"] and heads(6) == ["✓ path 1", "✗ path 2"]
    figure = draw_run(GREY[0], LIKELIEST[0], BELIEFS[0], [], 2, "")
    assert figure.axes[3].get_xlabel() == f"P(yes) {BELIEFS[0][1][1, 1]:.2f}"
