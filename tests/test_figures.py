"""Figures and explorers say in one clear sentence what is wrong with what they are given."""

from collections.abc import Callable
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipywidgets import IntSlider
from matplotlib.colors import to_rgb

from cotgen_lite.course import ch00, ch01, ch02, ch03, ch04, ch06, ch07, ch08, ch09, ch10, ch11, plots, predictions
from cotgen_lite.course.explorer import explorer, generators_explorer, menu, slider
from cotgen_lite.geneval import Detection
from cotgen_lite.verify.search import ParmPath

IMAGES = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
PATHS = IMAGES.expand(2, 3, 3, 16, 16)  # two paths of three steps
ODDS, RIGHT, NAN = [0.5, -1.0, 2.0], [True, False, True], float("nan")
MOST = {"a": (1, 2)}
BARS, COLORS = {"a": {"x": 0.5, "y": 1.0}}, {"a": "red"}
CURVE = {"a": ([1, 2, 4], [0.1, 0.2, 0.3], None)}
ROWS = {"a": {"tags": {"x": 0.5}, "overall": 0.5}, "b": {"tags": {"x": 0.5}, "overall": 0.5}}
PARM = [ParmPath(0, [], [1.0], [1.0]), ParmPath(1, [], [1.0], [-1.0])]
FINDING = {"F1": {"seen": "yes", "delta": 0.1, "ci": [0.0, 0.2]}}
LOOK = {"a": IMAGES, "b": IMAGES}, {"a": RIGHT, "b": RIGHT}

WRONG: dict[str, Callable[[], object]] = {
    "show a path": lambda: plots.show("figure.png", "a figure"),
    "show without words": lambda: plots.show(plots.new_chart(1, 1)[0], ""),
    "png of None": lambda: plots.to_png(None),
    "wrap a number": lambda: plots.wrap(3),
    "wrap to nothing": lambda: plots.wrap("a b", 0),
    "picture, floats": lambda: plots.draw_picture(plt.gca(), IMAGES[0].float()),
    "picture, several": lambda: plots.draw_picture(plt.gca(), IMAGES),
    "picture, channels last": lambda: plots.draw_picture(plt.gca(), IMAGES[0].permute(1, 2, 0)),
    "grid, none": lambda: plots.draw_grid([], [], (1, 1)),
    "grid, columns": lambda: plots.draw_grid(IMAGES, ["", "", ""], (1, 1), columns=-1),
    "grid, alphas": lambda: plots.draw_grid(IMAGES, ["", "", ""], (1, 1), alphas=[1]),
    "images, none": lambda: plots.draw_images(IMAGES[:0]),
    "images, one without its dimension": lambda: plots.draw_images(IMAGES[0]),
    "images, a list of paths": lambda: plots.draw_images(["a.png", "b.png"]),
    "images, None": lambda: plots.draw_images(None),
    "images, floats": lambda: plots.draw_images(IMAGES.float()),
    "images, arrays": lambda: plots.draw_images(IMAGES.numpy()),
    "images, empty": lambda: plots.draw_images(IMAGES[..., :0]),
    "images, titles": lambda: plots.draw_images(IMAGES, ["one"]),
    "images, one title as a text": lambda: plots.draw_images(IMAGES, "abc"),
    "images, titles of numbers": lambda: plots.draw_images(IMAGES, [1, 2, 3]),
    "images, no columns": lambda: plots.draw_images(IMAGES, columns=0),
    "images, half columns": lambda: plots.draw_images(IMAGES, columns=1.5),
    "images, verdicts": lambda: plots.draw_images(IMAGES, right=[True]),
    "images, verdicts in words": lambda: plots.draw_images(IMAGES, right=["yes", "no", "no"]),
    "images, chosen": lambda: plots.draw_images(IMAGES, chosen=3),
    "images, chosen below": lambda: plots.draw_images(IMAGES, chosen=-1),
    "images, chosen in words": lambda: plots.draw_images(IMAGES, chosen="first"),
    "images, no size": lambda: plots.draw_images(IMAGES, size=0),
    "images, huge": lambda: plots.draw_images(IMAGES, size=1e9),
    "side by side, nobody": lambda: plots.draw_side_by_side({}, {}, ""),
    "side by side, a list": lambda: plots.draw_side_by_side([IMAGES], [RIGHT], ""),
    "side by side, names": lambda: plots.draw_side_by_side({"a": IMAGES}, {"b": RIGHT}, ""),
    "side by side, numbers": lambda: plots.draw_side_by_side({"a": IMAGES, "b": IMAGES[:2]}, LOOK[1], ""),
    "side by side, verdicts": lambda: plots.draw_side_by_side({"a": IMAGES}, {"a": [True]}, ""),
    "profile, nobody": lambda: plots.draw_profile({}, {}),
    "profile, nothing": lambda: plots.draw_profile({"a": {}}, COLORS),
    "profile, keys": lambda: plots.draw_profile(BARS | {"b": {"x": 1.0}}, COLORS | {"b": "red"}),
    "profile, colours": lambda: plots.draw_profile(BARS, {}),
    "profile, NaN": lambda: plots.draw_profile({"a": {"x": NAN}}, COLORS),
    "curves, none": lambda: plots.draw_curves({}, {}),
    "curves, lengths": lambda: plots.draw_curves({"a": ([1, 2], [0.1], None)}, COLORS),
    "curves, bounds": lambda: plots.draw_curves({"a": ([1, 2], [0.1, 0.2], [0.1, 0.2])}, COLORS),
    "curves, colours": lambda: plots.draw_curves(CURVE, {}),
    "curves, no points": lambda: plots.draw_curves({"a": ([], [], None)}, COLORS),
    "curves, log of 0": lambda: plots.draw_curves({"a": ([0, 1], [0.1, 0.2], None)}, COLORS, log=True),
    "spread, none": lambda: plots.draw_spread({}, {}),
    "spread, no runs": lambda: plots.draw_spread({"a": []}, {}),
    "spread, a number": lambda: plots.draw_spread({"a": 0.5}, {}),
    "first clear, none": lambda: plots.draw_first_clear({}, {}),
    "first clear, lengths": lambda: plots.draw_first_clear({"a": [0.5, 0.5], "b": [1.0]}, {}),
    "first clear, marks": lambda: plots.draw_first_clear({"a": [0.5, 0.5]}, {"m": 3}),
    "flow, none": lambda: plots.draw_flow({}, [], (1, 1)),
    "flow, to nowhere": lambda: plots.draw_flow({"a": (0, 0, "a", "red")}, [("a", "b", "")], (1, 1)),
    "00, tokens": lambda: ch00.draw_tokens(IMAGES, ["", "", ""], torch.arange(10)),
    "00, no tokens": lambda: ch00.draw_tokens(IMAGES, ["", "", ""], torch.arange(0)),
    "00, one picture": lambda: ch00.draw_tokens(IMAGES[0], [""], torch.arange(16)),
    "00, steps": lambda: ch00.draw_steps(IMAGES, torch.zeros(2, 16, dtype=torch.bool)),
    "00, not a square": lambda: ch00.draw_steps(IMAGES, torch.zeros(3, 15, dtype=torch.bool)),
    "00, endings, not a square": lambda: ch00.draw_endings(IMAGES[0], torch.ones(15) > 0, IMAGES, RIGHT, 1),
    "00, endings, verdicts": lambda: ch00.draw_endings(IMAGES[0], torch.ones(16) > 0, IMAGES, RIGHT[:2], 1),
    "00, no endings": lambda: ch00.draw_endings(IMAGES[0], torch.ones(16) > 0, IMAGES[:0], [], 1),
    "00, right and wrong, verdicts": lambda: ch00.draw_right_and_wrong(PATHS, [RIGHT], ["a", "b"], ["", ""]),
    "00, right and wrong, names": lambda: ch00.draw_right_and_wrong(PATHS, [RIGHT] * 2, ["a"], ["", ""]),
    "00, right and wrong, notes": lambda: ch00.draw_right_and_wrong(PATHS, [RIGHT] * 2, ["a", "b"], [""]),
    "00, a percentage": lambda: ch00.cautious_interval(53, 10),
    "00, scenes, no distance": lambda: ch00.same_scenes([], float("nan")),
    "00, of no prompts": lambda: ch00.cautious_interval(0.5, 0),
    "00, no prompts": lambda: ch00.step_explorer([], lambda *_: None),
    "00, no function": lambda: ch00.step_explorer(["a"], None),
    "00, few steps": lambda: ch00.step_explorer(["a"], lambda *_: None, 3),
    "thread, no part": lambda: plots.draw_thread(["tokens", "verifiers"]),
    "thread, a number": lambda: plots.draw_thread(3),
    "profile, intervals": lambda: plots.draw_profile(BARS, COLORS, intervals={"a": {"x": (0, 1)}}),
    "profile, intervals of nobody": lambda: plots.draw_profile(BARS, COLORS, intervals={"b": {"x": (0, 1)}}),
    "01, answer, floats": lambda: ch01.draw_answer(IMAGES[0].float(), 8, ["a"], [1.0], [], []),
    "01, answer, patch": lambda: ch01.draw_answer(IMAGES[0], 0, ["a"], [1.0], [], []),
    "01, answer, logits": lambda: ch01.draw_answer(IMAGES[0], 8, ["a"], [1.0, 2.0], [], []),
    "01, answer, NaN": lambda: ch01.draw_answer(IMAGES[0], 8, ["a"], [NAN], [], []),
    "01, answer, no words": lambda: ch01.draw_answer(IMAGES[0], 8, [], [], [], []),
    "01, subsets, none": lambda: ch01.draw_with_subsets({}, {}, 4),
    "01, subsets, colours": lambda: ch01.draw_with_subsets(CURVE, {}, 4),
    "01, subsets, lengths": lambda: ch01.draw_with_subsets({"a": ([1, 2], [0.1], None)}, COLORS, 4),
    "01, subsets, bounds": lambda: ch01.draw_with_subsets({"a": ([1, 2], [0.1, 0.2], [0.1, 0.2])}, COLORS, 4),
    "01, subsets, size": lambda: ch01.draw_with_subsets(CURVE, COLORS, 0),
    "01, belief, verifiers": lambda: ch01.draw_belief_and_truth([1], {"a": [0.5]}, {"b": [0.5]}, COLORS),
    "01, belief, lengths": lambda: ch01.draw_belief_and_truth([1], {"a": [0.5, 0.5]}, {"a": [0.5]}, COLORS),
    "01, belief, colours": lambda: ch01.draw_belief_and_truth([1], {"a": [0.5]}, {"a": [0.5]}, {}),
    "01, picked": lambda: ch01.draw_choice(IMAGES, "a", 7, 0, ODDS, RIGHT),
    "01, chosen": lambda: ch01.draw_choice(IMAGES, "a", 0, 7, ODDS, RIGHT),
    "01, game without prompts": lambda: ch01.pick_the_best([], [], np.zeros((0, 3)), np.zeros((0, 3))),
    "01, game, beliefs": lambda: ch01.pick_the_best(["a"], [IMAGES], np.zeros((2, 3)), np.zeros((1, 3))),
    "01, game, pictures": lambda: ch01.pick_the_best(["a", "b"], [IMAGES], np.zeros((2, 3)), np.zeros((2, 3))),
    "02, bins": lambda: ch02.draw_calibration({"a": [[0.5], [0.5, 1.0], [3]]}, COLORS),
    "02, colours": lambda: ch02.draw_calibration({"a": [[0.5], [0.5], [3]]}, {}),
    "02, tags": lambda: ch02.calibration_explorer({"a": np.zeros((2, 3))}, np.zeros((2, 3), bool), ["x"]),
    "02, shapes": lambda: ch02.calibration_explorer({"a": np.zeros((2, 4))}, np.zeros((2, 3), bool), ["x", "y"]),
    "02, three verifiers": lambda: ch02.calibration_explorer(
        dict.fromkeys("abc", np.zeros((2, 3))), np.zeros((2, 3), bool), ["x", "y"]
    ),
    "03, labels": lambda: ch03.draw_step_labels(np.full((2, 3), 7.0), ["x", "y"]),
    "03, groups": lambda: ch03.draw_step_labels(np.zeros((2, 3)), ["x"]),
    "03, no rollouts": lambda: ch03.draw_rollouts(IMAGES[0], IMAGES[:0], [], np.zeros(3), 1, ""),
    "03, verdicts": lambda: ch03.draw_rollouts(IMAGES[0], IMAGES, [True], np.zeros(3), 1, ""),
    "03, step": lambda: ch03.draw_rollouts(IMAGES[0], IMAGES, RIGHT, np.zeros(3), 4, ""),
    "03, beliefs": lambda: ch03.rollout_explorer(["a"], np.zeros(3), lambda *_: None),
    "04, no pairs": lambda: ch04.draw_pairs(IMAGES[:0], IMAGES[:0], []),
    "04, pairs": lambda: ch04.draw_pairs(IMAGES, IMAGES[:2], ["a", "b", "c"]),
    "04, prompts": lambda: ch04.draw_pairs(IMAGES, IMAGES, ["a"]),
    "05, no prompts": lambda: generators_explorer([], lambda *_: LOOK),
    "06, nothing": lambda: ch06.draw_budget({}, {}, 1.0, {}),
    "06, budget": lambda: ch06.draw_budget({"a": [1.0]}, {"a": [0.5]}, NAN, {"a": 0.0}),
    "06, lengths": lambda: ch06.draw_budget({"a": [1.0, 2.0]}, {"a": [0.5]}, 1.0, {"a": 0.0}),
    "06, names": lambda: ch06.draw_budget({"a": [1.0]}, {"b": [0.5]}, 1.0, {"a": 0.0}),
    "06, sizes": lambda: ch06.budget_explorer([1, 2], {"a": [0.5]}, 0.1, {"a": [0.0, 0.0]}),
    "06, seconds": lambda: ch06.budget_explorer([1], {"a": [0.5]}, -1, {"a": [0.0]}),
    "07, no paths": lambda: ch07.draw_lanes([], [], None, 6, ""),
    "07, verdicts": lambda: ch07.draw_lanes(PARM, [True], None, 6, ""),
    "07, kept": lambda: ch07.draw_lanes(PARM, [True, False], 2, 6, ""),
    "07, steps": lambda: ch07.draw_lanes(PARM, [True, False], 0, 0, ""),
    "07, step": lambda: ch07.draw_paths_now(PATHS, 4, [None, None], None, ""),
    "07, stopped": lambda: ch07.draw_paths_now(PATHS, 1, [None], None, ""),
    "07, stopped later": lambda: ch07.draw_paths_now(PATHS, 1, [None, 9], None, ""),
    "07, tally": lambda: ch07.tally([None, 1], [True], 3),
    "07, game": lambda: ch07.be_the_parm(["a"], [PATHS], [[True, False]], []),
    "07, game, verdicts": lambda: ch07.be_the_parm(["a"], [PATHS], [[True]], [[None, None]]),
    "08, verdicts": lambda: ch08.draw_reflection(IMAGES, [True], ["a", "b"], [0.5] * 3),
    "08, reasons": lambda: ch08.draw_reflection(IMAGES, RIGHT, ["a"], [0.5] * 3),
    "08, beliefs": lambda: ch08.draw_reflection(IMAGES, RIGHT, ["a", "b"], [NAN] * 3),
    "08, lengths": lambda: ch08.reflection_explorer(["a", "b"], [IMAGES], [RIGHT], [["a", "b"]], [[0.5] * 3]),
    "09, heads": lambda: ch09.draw_rows({"a": IMAGES}, ["1"]),
    "09, notes": lambda: ch09.draw_rows({"a": IMAGES}, ["1", "2", "3"], {"b": ["", "", ""]}),
    "09, run": lambda: ch09.draw_run(PATHS, PATHS, [np.zeros((2, 3))] * 2, [True, False], 4, ""),
    "09, both": lambda: ch09.draw_run(PATHS, PATHS[:1], [np.zeros((2, 3))] * 2, [True, False], 1, ""),
    "09, no prompts": lambda: ch09.run_explorer([], [], [], [], []),
    "10, no bars": lambda: ch10.draw_stacks({}, "GB"),
    "10, parts": lambda: ch10.draw_stacks({"a": {"x": 1.0}, "b": {"y": 1.0}}, "GB"),
    "10, NaN": lambda: ch10.draw_stacks({"a": {"x": NAN}}, "GB"),
    "10, memory": lambda: ch10.draw_fit({"x": 1.0}, "card", -1, ""),
    "10, no cards": lambda: ch10.memory_explorer(lambda *_: {"x": 1.0}, {}),
    "11, lengths": lambda: ch11.draw_guesses(["a"], np.zeros((2, 3)), [0.5], [None]),
    "11, guesses": lambda: ch11.draw_guesses(["a"], np.zeros((1, 3)), [0.5], []),
    "11, no findings": lambda: ch11.draw_findings({}, {}),
    "11, texts": lambda: ch11.draw_findings(FINDING, {}),
    "11, unknown verdict": lambda: ch11.draw_findings({"F1": FINDING["F1"] | {"seen": "maybe"}}, {"F1": "a"}),
    "11, unknown method": lambda: ch11.draw_two(ROWS, {"a": "A", "b": "B"}, "a", "c"),
    "11, unknown first": lambda: ch11.method_explorer(ROWS, {"a": "A", "b": "B"}, "c", "b"),
    "guess, a text": lambda: predictions.guess("baseline", "0.5"),
    "guess, NaN": lambda: predictions.guess("baseline", NAN),
    "guess, true": lambda: predictions.guess("baseline", True),
    "guess, a list as method": lambda: predictions.guess(["baseline"], 0.5),
    "menu, none": lambda: menu([]),
    "menu, a text": lambda: menu("prompt"),
    "slider, beyond": lambda: slider("seed", 30, 0, 20),
    "slider, half": lambda: slider("seed", 1.5, 0, 20),
    "slider, the wrong way": lambda: slider("seed", 0, 20, 0),
    "explorer, no function": lambda: explorer(None, (IntSlider(),)),
    "explorer, no control": lambda: explorer(lambda: plots.new_chart(1, 1)[0]),
    "explorer, no rows": lambda: explorer(lambda _: plots.new_chart(1, 1)[0], IntSlider()),
    "explorer, no figure": lambda: explorer(lambda _: "a picture", (IntSlider(),)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("COTGEN_GUESSES", str(tmp_path / "guesses.json"))
    with pytest.raises(ValueError, match=r"\A[\w ].* (must|have|has|lie|lies|is) .*\.\Z") as error:
        WRONG[name]()
    assert error.traceback[-1].path.parent.name in ("cotgen_lite", "course"), "a library's error"
    assert len(str(error.value)) < 300
    plt.close("all")


def test_what_is_right_is_drawn() -> None:
    """The same functions, with what they are made for."""
    figures = [
        plots.draw_images(IMAGES, ("a", "b", "c"), right=np.array(RIGHT), chosen=np.int64(2)),
        plots.draw_images(list(IMAGES), chosen=[0, 1]),
        plots.draw_grid([IMAGES[0], IMAGES[0, :, :8]], ["a", "b"], (2, 1)),
        plots.draw_side_by_side(*LOOK, "a"),
        plots.draw_profile(BARS, COLORS),
        plots.draw_profile(BARS, COLORS, intervals={"a": {"x": (0.4, 0.6), "y": (0.9, 1.0)}}),
        plots.draw_thread(["tokens", "lesson"]),
        plots.draw_curves(CURVE, COLORS, log=True),
        plots.draw_spread({"a": [0.5, 0.6]}, {}),
        plots.draw_first_clear({"a": [0.5, 0.5]}, MOST),
        ch02.draw_calibration({"a": [[0.5], [0.5], [3]]}, COLORS),
        ch04.draw_pairs(IMAGES, IMAGES, ["a", "b", "c"]),
        ch07.draw_lanes(PARM, [True, False], None, 6, ""),
        ch07.draw_paths_now(PATHS, 1, [None, 1], [True, False], ""),
        ch08.draw_reflection(IMAGES, RIGHT, ["a", ""], [0.5] * 3),
        ch09.draw_run(PATHS, PATHS, [np.zeros((2, 3))] * 2, [True, False], 3, ""),
        ch10.draw_fit({"x": 1.0}, "card", 16, ""),
        ch11.draw_guesses(["a"], np.zeros((1, 3)), [0.5], [None]),
        ch11.draw_findings(FINDING, {"F1": "a"}),
        ch11.draw_two(ROWS, {"a": "A", "b": "B"}, "a", "b"),
    ]
    assert all(figure.axes for figure in figures)
    plt.close("all")


def test_cautious_interval_is_wilsons() -> None:
    for share, prompts, ends in ((0.5, 100, (0.4038, 0.5962)), (0, 10, (0, 0.2775)), (1, 1, (0.2065, 1))):
        assert ch00.cautious_interval(share, prompts) == pytest.approx(ends, abs=5e-5)


def test_scenes_are_the_same_if_the_same_things_stand_in_the_same_places() -> None:
    cat, beside, away = (Detection("cat", 1.0, (x, 0, x + 16, 16), "red") for x in (0, 8, 20))
    boat = Detection("boat", 0.9, (40, 40, 56, 56), "blue")
    assert ch00.same_scenes([[cat, boat], [boat, replace(beside, color="green")], [cat, boat]])
    assert ch00.same_scenes([[], [], []]) and ch00.same_scenes([[cat, away], [away, beside]])
    for other in ([cat], [cat, boat, boat], [away, boat], [cat, replace(boat, name="cup")], []):
        assert not ch00.same_scenes([[cat, boat], [cat, boat], other])
    assert ch00.same_scenes([[cat], [away]], apart=20)


def test_what_chapter_01_shows_is_drawn() -> None:
    answer = ch01.draw_answer(IMAGES[0], 8, ["yes", "no", "a"], [2.0, 1.0, 0.0], ["yes"], ["no"])
    assert [bar.get_facecolor()[:3] for bar in answer.axes[1].patches[:3]] == [
        to_rgb(color) for color in (plots.RIGHT, plots.WRONG, plots.CHANCE)
    ]
    subsets = ch01.draw_with_subsets(CURVE, COLORS, 4)
    assert [bar.get_height() for bar in subsets.axes[1].patches] == [4, 6, 4, 1]
    both = ch01.draw_belief_and_truth([1, 2], {"a": [0.5, 0.6]}, {"a": [0.5, 0.5]}, COLORS)
    assert [axis.lines[0].get_ydata().tolist() for axis in both.axes] == [[0.5, 0.6], [0.5, 0.5]]
    asked = ch01.draw_choice(IMAGES, "a", None, 0, ODDS, RIGHT)
    picked = ch01.draw_choice(IMAGES.repeat(4, 1, 1, 1), "a", 1, 0, ODDS * 4, RIGHT * 4)
    assert len(asked.axes) == 3 and [len(axis.get_title().splitlines()) for axis in picked.axes[:3]] == [2, 2, 1]
