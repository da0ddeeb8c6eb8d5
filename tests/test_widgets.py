"""Widgets redraw when a control moves, and keep count."""

from threading import Event, Thread

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cotgen_lite.course import explorer
from cotgen_lite.course.ch00 import step_explorer
from cotgen_lite.course.ch01 import pick_the_best
from cotgen_lite.course.ch02 import calibration_explorer
from cotgen_lite.course.ch03 import rollout_explorer
from cotgen_lite.course.ch06 import budget_explorer
from cotgen_lite.course.explorer import generators_explorer
from cotgen_lite.course.plots import new_chart
from cotgen_lite.metrics import calibration_error

IMAGES = torch.randint(0, 255, (18, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_step_explorer_draws_again_only_when_needed() -> None:
    calls = []

    def look(prompt: str, seed: int, step: int) -> tuple:
        calls.append((prompt, seed, step))
        committed = torch.rand(64, generator=torch.Generator().manual_seed(step)) < step / 18
        return IMAGES[step - 1], committed, IMAGES[seed : seed + 5], [True, False, True, False, False]

    box = step_explorer(["a photo of a cat", "a photo of a dog"], look)
    prompt, seed = box.children[0].children
    (step,), picture, words = box.children[1].children, box.children[2], box.children[3]
    first = picture.value
    assert calls == [("a photo of a cat", 0, 4)] and words.value.startswith("1 of 4 other endings show")
    step.value = 9
    assert picture.value != first and calls[-1] == ("a photo of a cat", 0, 9)
    step.value = 4
    assert picture.value == first and len(calls) == 2  # kept
    prompt.value, seed.value = 1, 4
    assert calls[-1] == ("a photo of a dog", 4, 4) and len(calls) == 4
    assert bytes(picture.value).startswith(b"\x89PNG")


def test_picker_keeps_count_of_first_picks() -> None:
    beliefs = np.array([[0.1, 0.9, 0.2], [0.7, 0.2, 0.1]])
    right = np.array([[True, True, False], [False, True, True]])
    box = pick_the_best(["a photo of a cat", "a photo of a dog"], [IMAGES[:3], IMAGES[3:6]], beliefs, right)
    (picks,), (onward,) = box.children[0].children, box.children[1].children
    picture, score = box.children[2:]
    asked = picture.value
    picks.value = 2  # wrong, the verifier's choice is right
    assert score.value == "you 0, verifier 1 of 1 prompts right" and picture.value != asked
    picks.value = 0  # a second thought does not count
    assert score.value.startswith("you 0")
    onward.click()
    assert picks.value is None
    picks.value = 1
    assert score.value == "you 1, verifier 1 of 2 prompts right"
    onward.click()
    assert picture.value == asked


def test_calibration_explorer_shows_the_chosen_tag_and_bins() -> None:
    rng = np.random.default_rng(0)
    odds = {"zero-shot": rng.normal(size=(4, 5)), "fine-tuned": rng.normal(size=(4, 5))}
    correct = rng.random((4, 5)) < 0.5
    box = calibration_explorer(odds, correct, ["counting", "counting", "position", "position"])
    (tag, bins), picture, errors = box.children[0].children, box.children[1], box.children[2]
    assert tag.options == ("all", "counting", "position")
    whole, said = picture.value, errors.value
    tag.value = "position"
    assert picture.value != whole
    wanted = calibration_error(odds["fine-tuned"][2:], correct[2:], 10)
    assert errors.value.endswith(f"fine-tuned {wanted:.3f}") and errors.value != said
    bins.value = 2
    assert errors.value.endswith(f"fine-tuned {calibration_error(odds['fine-tuned'][2:], correct[2:], 2):.3f}")


def test_rollout_explorer_looks_at_the_chosen_step() -> None:
    looked = []

    def look(path: int, step: int) -> tuple[torch.Tensor, torch.Tensor, list[bool]]:
        looked.append((path, step))
        return IMAGES[step], IMAGES[:4], [True, False, True, False]

    beliefs = np.linspace(0, 1, 36).reshape(2, 18)
    box = rollout_explorer(["a photo of a cat", "a photo of a dog"], beliefs, look)
    (path, step), picture = box.children[0].children, box.children[1]
    first = picture.value
    step.value = 7
    assert looked[-1] == (0, 7) and picture.value != first
    path.value = 1
    assert looked[-1] == (1, 7)


def test_generators_explorer_draws_the_chosen_prompt_and_seed() -> None:
    looked = []

    def look(prompt: str, seed: int) -> tuple[dict, dict]:
        looked.append((prompt, seed))
        images = dict.fromkeys(("baseline", "DPO"), IMAGES[seed : seed + 3])
        return images, {"baseline": [True, False, True], "DPO": [True, True, True]}

    box = generators_explorer(["a photo of a cat", "a photo of a dog"], look)
    (prompt, seed), picture = box.children[0].children, box.children[1]
    first = picture.value
    seed.value = 4
    prompt.value = 1
    assert looked == [("a photo of a cat", 0), ("a photo of a cat", 4), ("a photo of a dog", 4)]
    assert picture.value != first and bytes(picture.value).startswith(b"\x89PNG")


def test_a_slow_drawing_gives_way_to_the_last_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "draw_side_by_side", lambda images, right, title: f"{images} titled {title}")
    monkeypatch.setattr(explorer, "to_png", str.encode)
    drawing, moved_on = Event(), Event()

    def look(prompt: str, seed: int) -> tuple[str, list]:
        if (prompt, seed) == ("a cat", 7):  # does not end before another control has moved
            drawing.set()
            assert moved_on.wait(60)
        return f"{prompt}, seed {seed}", []

    box = generators_explorer(["a cat", "a dog"], look)
    (prompt, seed), picture, shown = box.children[0].children, box.children[1], []
    picture.observe(lambda change: shown.append(bytes(change["new"]).decode()), names="value")
    prompt.observe(lambda _: moved_on.set(), names="index")  # a Dropdown's index moves before its value's observers run
    first = Thread(target=setattr, args=(seed, "value", 7))
    second = Thread(target=setattr, args=(prompt, "value", 1))
    first.start()
    assert drawing.wait(60)
    second.start()
    for thread in (first, second):
        thread.join(60)
    assert shown == ["a dog, seed 7 titled a dog, seed 7"]


def test_a_setting_that_cannot_be_drawn_says_so() -> None:
    plt.close("all")  # whatever other tests of this process have left open
    calls: list[int] = []

    def draw(number: int) -> tuple[Figure, str]:
        calls.append(number)
        figure, axis = new_chart(2, 2)
        if number == 3:
            raise KeyError("<b>no</b> such path\nmore")
        axis.plot([number])
        return figure, f"number {number}"

    control = explorer.slider("number", 0, 0, 9)
    box = explorer.explorer(draw, (control,))
    (picture, words), said, first = box.children[1:], [], box.children[1].value
    words.observe(lambda change: said.append(change["new"]), names="value")
    control.value = 3
    assert picture.value == b"" and picture.layout.display == "none"  # not the old setting's
    assert words.value.startswith("This could not be drawn") and "&lt;b&gt;no" in words.value and "more" in words.value
    assert not plt.get_fignums()  # nothing half done is left for the next cell
    control.value = 5
    assert bytes(picture.value).startswith(b"\x89PNG") and picture.layout.display == "" and picture.value != first
    assert said == [explorer.BUSY, words_of_3 := said[1], explorer.BUSY, "number 5"] and words_of_3 != "number 0"
    control.value = 0  # drawn before
    assert picture.value == first and words.value == "number 0" and calls == [0, 3, 5]
    control.value = 3  # an error is not kept
    assert calls == [0, 3, 5, 3]


def test_a_first_drawing_that_fails_fails_its_cell() -> None:
    with pytest.raises(ZeroDivisionError):
        explorer.explorer(lambda number: number / 0, (explorer.slider("number", 1, 0, 9),))


def test_an_interrupted_drawing_does_not_stay_busy() -> None:
    def draw(number: int) -> Figure:
        if number:
            raise KeyboardInterrupt
        return new_chart(2, 2)[0]

    control = explorer.slider("number", 0, 0, 9)
    box = explorer.explorer(draw, (control,))
    with pytest.raises(KeyboardInterrupt):
        control.value = 1
    assert "KeyboardInterrupt" in box.children[2].value and not bytes(box.children[1].value)
    control.value = 0
    assert bytes(box.children[1].value).startswith(b"\x89PNG")


def test_budget_explorer_names_the_best_that_fits() -> None:
    accuracy = {"baseline": [0.5, 0.6, 0.7], "dpo": [0.65, 0.7, 0.8]}
    training = {"baseline": [0.0, 500.0, 500.0], "dpo": [1000.0, 1500.0, 1500.0]}
    box = budget_explorer([1, 4, 10], accuracy, 0.12, training)
    (pictures, budget), picture, verdict = box.children[0].children, box.children[1], box.children[2]
    assert pictures.value == 10_000 and verdict.value == "best within the budget: dpo, 0.800"
    first = picture.value
    budget.value = 0.3  # one picture of either: training takes a tenth of a second each
    assert verdict.value == "best within the budget: dpo, 0.650" and picture.value != first
    pictures.value = 1000
    budget.value = 1.0  # four of the baseline and its verifier, none of the aligned
    assert verdict.value == "best within the budget: baseline, 0.600"
    pictures.value = 10  # one of the baseline takes no training
    assert verdict.value == "best within the budget: baseline, 0.500"
    budget.value = 0.1  # the slider's least; a candidate takes more
    assert verdict.value == "nothing fits this budget"
