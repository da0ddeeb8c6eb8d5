"""What the starting models are judged by: counted on scenes that are known, and held by the shipped second world."""

import json
from types import SimpleNamespace

import pytest
import torch

from cotgen_lite.experiments.calibrate import profile
from cotgen_lite.hub import SHIPPED
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import SceneObject, render
from cotgen_lite.prompts import parse_prompt

NEXT = SHIPPED / "next"


def test_arrangement_and_binding_are_counted_among_images_with_both_things() -> None:
    cat, dog = SceneObject("cat", "red", 0, 16), SceneObject("dog", "blue", 40, 16)
    other_way = (SceneObject("cat", "red", 40, 16), SceneObject("dog", "blue", 0, 16))
    swapped = (SceneObject("cat", "blue", 0, 16), SceneObject("dog", "red", 40, 16))
    green = (SceneObject("cat", "green", 0, 16), dog)
    scenes = [(cat, dog), other_way, (cat,), (cat, dog), (cat, dog), swapped, green, (dog,)]
    prompts = [parse_prompt("a photo of a cat left of a dog"), parse_prompt("a photo of a red cat and a blue dog")]
    pictures = render(scenes)
    generator = SimpleNamespace(decode=lambda tokens: pictures[tokens[:, 0]])
    tokens = torch.arange(8).view(2, 4, 1)
    found = profile(generator, tokens, prompts, TemplateJudge())  # type: ignore[arg-type]
    assert found["tags"]["position"][0] == 1 / 2 and found["tags"]["color_attr"][0] == 1 / 4
    assert found["overall"][0] == pytest.approx(3 / 8) and found["any_of_4"] == [1, 1, 1]
    assert found["arranged"]["images"] == 3 and found["arranged"]["share"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert found["bound"]["images"] == 2 and found["bound"]["share"][0] == 1 / 2  # green is neither


def test_the_second_worlds_generator_has_the_skills_and_shows_them_seldom() -> None:
    """What its training was to reach, on dev prompts; the ends are those of 95% intervals."""
    found = json.loads((NEXT / "results/calibration.json").read_text())
    shown, tags = found["baseline"], {tag: value for tag, (value, *_) in found["baseline"]["tags"].items()}
    assert found["images_a_prompt"] == 20 and found["kappa_of_judges"] >= 0.95
    assert 0.48 <= shown["overall"][0] <= 0.58 and shown["any_of_4"][1] >= 0.65
    assert tags["single_object"] > tags["colors"] > max(tags["two_object"], tags["counting"])
    assert min(tags["two_object"], tags["counting"]) > max(tags["position"], tags["color_attr"])
    assert shown["arranged"]["share"][1] > 0.29 and shown["bound"]["share"][1] > 0.5
    learned = json.loads((NEXT / "models/generator/manifest.json").read_text())["settings"]["stages"][-1]["twin_test"]
    for skill in learned.values():
        assert skill["ci"][0] > 0 and skill["nats"] >= 0.7 * skill["implied"]


def test_dpo_has_something_to_strengthen() -> None:
    found = json.loads((NEXT / "results/dpo_pilot.json").read_text())
    assert found["gain"]["ci"][0] > 0
    assert all(found["after"][tag] > found["before"][tag] for tag in ("position", "color_attr"))
