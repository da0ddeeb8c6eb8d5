"""The explorers of chapters 07 and 08, driven as a learner would; no window is needed."""

import numpy as np
import torch
from matplotlib.figure import Figure

from cotgen_lite.course.ch07 import be_the_parm, draw_lanes, draw_parm, tally
from cotgen_lite.course.ch08 import draw_parm_plus_plus, reflection_explorer
from cotgen_lite.course.plots import draw_first_clear, to_png
from cotgen_lite.lite.world import random_scene, render
from cotgen_lite.verify.search import ParmPath

RNG = np.random.default_rng(0)
IMAGES = [render([random_scene(RNG) for _ in range(3 * 6)]).view(3, 6, 3, 64, 64) for _ in range(2)]
PROMPTS = ["a photo of a cat", "a photo of a dog"]
RIGHT = [[True, False, False], [False, False, True]]
PARM = [[None, 4, 2], [None, None, 3]]


def test_a_learner_stops_paths_and_is_compared_with_parm() -> None:
    box = be_the_parm(PROMPTS, IMAGES, RIGHT, PARM)
    (prompt, again), (*stops, onward) = box.children[0].children, box.children[1].children
    picture, score = box.children[2:]
    first = picture.value
    stops[1].click()  # a wrong path, at step 2
    assert picture.value != first and stops[1].disabled and "stop what has no potential" in score.value
    onward.click()
    stops[0].click()  # a right one, at step 4
    onward.click()
    assert onward.disabled and all(button.disabled for button in stops)
    you, parm = score.value.split("<br>")
    assert "1 wrong paths stopped, 1 wrong paths kept, 1 right paths stopped; 12 of 18 steps" in you
    assert parm.startswith("PARM: 2 wrong paths stopped, 0 wrong paths kept, 0 right paths stopped; 12 of 18 steps")
    prompt.value = 1
    assert not any(button.disabled for button in (*stops, onward)) and "<br>" not in score.value
    for _ in range(5):
        onward.click()
    assert "0 wrong paths stopped, 2 wrong paths kept" in score.value.split("<br>")[0]
    again.click()
    assert not onward.disabled


def test_the_tally_counts_by_hand() -> None:
    assert tally([None, 2, 3, None], [True, True, False, False], 6) == {"hits": 1, "misses": 1, "lost": 1, "steps": 17}


def test_reflections_are_shown_round_by_round() -> None:
    images = [IMAGES[0][0, :3], IMAGES[1][0, :1]]
    box = reflection_explorer(
        PROMPTS, images, [[False, False, True], [True]], [["no cat", "a dog"], []], [[0.1, 0.2, 0.9], [0.8]]
    )
    (prompt, seen), picture = box.children[0].children, box.children[1]
    shown = [picture.value]
    for number in (1, 2):
        seen.value = number
        shown.append(picture.value)
    assert len(set(shown)) == 3
    seen.value = 3  # there were only two rounds
    assert picture.value == shown[2]
    prompt.value = 1
    assert picture.value != shown[2]


def test_figures_are_drawn_from_a_search() -> None:
    clarity, potential = (torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rows = zip(clarity.tolist(), potential.tolist(), strict=True)
    paths = [ParmPath(path, [], clear, promise) for path, (clear, promise) in enumerate(rows)]
    figures: list[Figure] = [
        draw_lanes(paths, [True, False, True, False], 2, 6, PROMPTS[0]),
        draw_first_clear({"paths": [0.5, 0.3, 0.2]}, {"paper": (1, 2)}),
        draw_parm(),
        draw_parm_plus_plus(),
    ]
    stopped = ((clarity > 0) & (potential <= 0)).any().item()
    assert stopped and "◀ kept" in {text.get_text() for text in figures[0].axes[0].texts}
    assert all(to_png(figure).startswith(b"\x89PNG") for figure in figures)
