"""Mended scenes show their prompt, and keep what was right of what it names."""

from typing import Any

import numpy as np
import pytest

from cotgen_lite.geneval import Detection, evaluate
from cotgen_lite.lite.edit_targets import edit_target
from cotgen_lite.lite.judges import TemplateJudge, scene_detections
from cotgen_lite.lite.world import Scene, SceneObject, clearly, layouts, random_scene, render
from cotgen_lite.prompts import Prompt, Requirement, lite_prompts, parse_prompt


def test_mended_scenes_are_right() -> None:
    rng, prompts = np.random.default_rng(0), lite_prompts("dev")[::5]
    scenes = [edit_target(prompt, scene_detections(random_scene(rng)), rng) for prompt in prompts]
    judged = TemplateJudge().detect(render(scenes))
    assert all(evaluate(prompt, found).correct for prompt, found in zip(prompts, judged, strict=True))


CUP, CAR, BUS = (SceneObject(*one) for one in (("cup", "red", 0, 8), ("car", "blue", 40, 32), ("bus", "black", 0, 40)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("prompt", "wrong", "wanted"),
    [
        ("a photo of a red cup and a green car", (CUP, CAR), {CUP, SceneObject("car", "green", 40, 32)}),
        ("a photo of a cup and a bus", (CUP, CAR), {CUP, SceneObject("bus", "blue", 40, 32)}),
        ("a photo of a cup and a clock", (CUP, BUS), {CUP, SceneObject("clock", "black", 0, 40)}),
        ("a photo of a red cup", (SceneObject("cup", "black", 0, 8), CAR), {CUP}),
        ("a photo of two cups", (CUP, SceneObject("cup", "blue", 40, 0), SceneObject("cup", "blue", 40, 32)), None),
        ("a photo of a cup left of a bus", (CUP, CAR), {CUP, SceneObject("bus", "blue", 40, 32)}),
    ],
)
def test_only_what_is_wrong_changes(prompt: str, wrong: Scene, wanted: set[SceneObject] | None, seed: int) -> None:
    scene = edit_target(parse_prompt(prompt), scene_detections(wrong), np.random.default_rng(seed))
    if wanted is None:
        assert len(scene) == 2 and set(scene) < set(wrong)
    else:
        assert set(scene) == wanted


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
@pytest.mark.parametrize("car", [CAR, SceneObject("car", "blue", 16, 16), SceneObject("car", "blue", 16, 32)])
@pytest.mark.parametrize("seed", range(4))
def test_for_a_relation_colours_stay_and_what_moves_moves_least(relation: str, car: SceneObject, seed: int) -> None:
    cup = SceneObject("cup", "red", 16, 40) if car.y == 16 else CUP
    prompt = parse_prompt(f"a photo of a cup {relation} a car")
    scene = edit_target(prompt, scene_detections((cup, car)), np.random.default_rng(seed))
    assert {(item.name, item.color) for item in scene} == {("cup", "red"), ("car", "blue")}
    assert evaluate(prompt, scene_detections(scene)).correct
    new_cup, new_car = sorted(scene, key=lambda item: item.name == "car")
    moves = [abs(a.x - b.x) + abs(a.y - b.y) for a, b in ((new_cup, cup), (new_car, car))]
    one_moves = [  # brute force: every way of moving only one of the two
        abs(x - one.x) + abs(y - one.y)
        for one, pair in ((cup, lambda spot: (spot, (car.x, car.y))), (car, lambda spot: ((cup.x, cup.y), spot)))
        for x, y in layouts()
        if clearly(relation, *pair((x, y)))
    ]
    if one_moves:
        assert sum(moves) == min(one_moves) and 0 in moves
    else:
        assert 0 not in moves


def test_an_object_in_the_middle_can_not_stay_between_the_edges() -> None:
    cup, car = (
        SceneObject("cup", "red", 24, 16),
        SceneObject("car", "blue", 16, 16),
    )  # neither leaves room for the other
    assert not any(clearly("left of", spot, (car.x, car.y)) for spot in layouts())
    scene = edit_target(
        parse_prompt("a photo of a cup left of a car"), scene_detections((cup, car)), np.random.default_rng(0)
    )
    assert {(item.name, item.color) for item in scene} == {("cup", "red"), ("car", "blue")}
    assert evaluate(parse_prompt("a photo of a cup left of a car"), scene_detections(scene)).correct


def test_what_is_missing_is_drawn_beside_what_stays() -> None:
    cups = (CUP, SceneObject("cup", "blue", 40, 0))
    scene = edit_target(parse_prompt("a photo of three cups"), scene_detections(cups), np.random.default_rng(2))
    assert len(scene) == 3 and set(scene) > set(cups) and all(item.name == "cup" for item in scene)


def test_an_empty_image_gets_a_scene_of_its_own() -> None:
    prompt = parse_prompt("a photo of a dog below a bus")
    scene = edit_target(prompt, [], np.random.default_rng(3))
    assert evaluate(prompt, scene_detections(scene)).correct


def test_doubtful_detections_do_not_count() -> None:
    doubtful = [Detection("cup", 0.2, (0, 8, 20, 28), "red")]
    places = {edit_target(parse_prompt("a photo of a cup"), doubtful, np.random.default_rng(k))[0] for k in range(8)}
    assert len(places) > 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a photo of a cup", []), "prompt must be"),
        ((parse_prompt("a photo of a cup"), None), "detections must be a list"),
        ((parse_prompt("a photo of a cup"), [CUP]), "each of detections must be a Detection"),
        (
            (parse_prompt("a photo of a cup"), [Detection("zebra", 0.9, (0, 0, 9, 9))]),
            "a detection's name must be one of",
        ),
        ((Prompt("a photo of a zebra", "single_object", (Requirement("zebra"),)), []), "asks for must be one of"),
        ((Prompt("five cups", "counting", (Requirement("cup", 5),)), []), "number of objects"),
    ],
)
def test_what_cannot_be_edited_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        edit_target(*given, np.random.default_rng(0))
    with pytest.raises(ValueError, match="rng must be"):
        edit_target(parse_prompt("a photo of a cup"), [], 0)
