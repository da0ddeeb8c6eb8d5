"""Mended scenes show their prompt, and keep what was right of what it names."""

import numpy as np
import pytest

from cotgen_lite.geneval import Detection, evaluate
from cotgen_lite.judges import TemplateJudge, scene_detections
from cotgen_lite.mending import mend
from cotgen_lite.prompts import lite_prompts, parse_prompt
from cotgen_lite.scenes import Scene, SceneObject, random_scene, render


def test_mended_scenes_are_right() -> None:
    rng, prompts = np.random.default_rng(0), lite_prompts("dev")[::5]
    scenes = [mend(prompt, scene_detections(random_scene(rng)), rng) for prompt in prompts]
    judged = TemplateJudge().detect(render(scenes))
    assert all(evaluate(prompt, found).correct for prompt, found in zip(prompts, judged, strict=True))


CUP, CAR = SceneObject("cup", "red", 0, 8), SceneObject("car", "blue", 40, 32)


@pytest.mark.parametrize(
    ("prompt", "wrong", "wanted"),
    [
        ("a photo of a red cup and a green car", (CUP, CAR), {CUP, SceneObject("car", "green", 40, 32)}),
        ("a photo of a cup and a bus", (CUP, CAR), {CUP, SceneObject("bus", "blue", 40, 32)}),
        ("a photo of a red cup", (SceneObject("cup", "black", 0, 8), CAR), {CUP}),
        ("a photo of two cups", (CUP, SceneObject("cup", "blue", 40, 0), SceneObject("cup", "blue", 40, 32)), None),
    ],
)
def test_only_what_is_wrong_changes(prompt: str, wrong: Scene, wanted: set[SceneObject] | None) -> None:
    scene = mend(parse_prompt(prompt), scene_detections(wrong), np.random.default_rng(1))
    if wanted is None:
        assert len(scene) == 2 and set(scene) < set(wrong)
    else:
        assert set(scene) == wanted


def test_a_moved_object_keeps_its_colour_and_the_other_its_place() -> None:
    car = SceneObject("car", "blue", 16, 32)
    scene = mend(
        parse_prompt("a photo of a cup right of a car"), scene_detections((CUP, car)), np.random.default_rng(2)
    )
    assert {(item.name, item.color) for item in scene} == {("cup", "red"), ("car", "blue")} and car in scene


def test_an_empty_image_gets_a_scene_of_its_own() -> None:
    prompt = parse_prompt("a photo of a dog below a bus")
    scene = mend(prompt, [], np.random.default_rng(3))
    assert evaluate(prompt, scene_detections(scene)).correct


def test_doubtful_detections_do_not_count() -> None:
    doubtful = [Detection("cup", 0.2, (0, 8, 20, 28), "red")]
    places = {mend(parse_prompt("a photo of a cup"), doubtful, np.random.default_rng(k))[0] for k in range(8)}
    assert len(places) > 4
