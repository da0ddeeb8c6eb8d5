"""The twin test: nothing for a generator that does not read, all that captions imply for one that does."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.geneval import evaluate
from cotgen_lite.lite import twins as twin_test
from cotgen_lite.lite.judges import scene_detections
from cotgen_lite.lite.twins import SKILLS, implied, make_twins, twin_differences
from cotgen_lite.lite.world import CaptionNoise, noisy_pair
from cotgen_lite.prompts import Prompt, color_attr, lite_prompts, position, single_object

DEV = lite_prompts("dev")


@pytest.mark.parametrize("skill", SKILLS)
def test_twins_show_their_own_prompt_and_not_the_others(skill: str) -> None:
    twins = make_twins(DEV, skill, 100, seed=0)
    assert len({one.prompt for one in twins}) > 10
    for one in twins:
        for prompt, right, wrong in ((one.prompt, one.scene, one.twin), (one.twin_prompt, one.twin, one.scene)):
            assert evaluate(prompt, scene_detections(right)).correct
            assert not evaluate(prompt, scene_detections(wrong)).correct
        assert sorted(item.name for item in one.scene) == sorted(item.name for item in one.twin)
        assert sorted(item.color for item in one.scene) == sorted(item.color for item in one.twin)


def test_twins_need_prompts_that_ask_for_the_skill() -> None:
    with pytest.raises(ValueError, match="asks for left/right"):
        make_twins([single_object("cat"), position("cat", "above", "dog")], "left/right", 2, 0)


def test_a_generator_that_reads_nothing_gets_nothing(toy_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(model: object, prefixes: list, tokens: Tensor, hidden: Tensor) -> Tensor:
        return torch.sin(tokens.float()).masked_fill(~hidden, 0).sum(1)  # whatever it thinks of an image by itself

    monkeypatch.setattr(twin_test, "_log_p", unread)
    twins = make_twins(DEV, "left/right", 20, 0)
    found = _differences(toy_generator, twins)
    assert found.shape == (20,)
    assert found.abs().max() < 1e-3


def test_likelihoods_are_weighed_and_signed(toy_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives two nats more to a scene beside its own caption, spread over its places, gets two."""
    twins = make_twins(DEV, "binding", 20, 0)
    length = toy_generator.model.config.num_image_tokens
    own = {tuple(_prefix(toy_generator, one.prompt)): 1 for one in twins}
    order = []

    def reads(model: object, prefixes: list, tokens: Tensor, hidden: Tensor) -> Tensor:
        order.append(prefixes)
        says_first = torch.tensor([float(tuple(prefix) in own) for prefix in prefixes])
        is_first = torch.tensor([float(len(order) % 4 in (1, 2))] * len(tokens))  # scene, scene, twin, twin
        return (says_first == is_first) * 2.0 * hidden.sum(1) / length

    monkeypatch.setattr(twin_test, "_log_p", reads)
    assert torch.allclose(_differences(toy_generator, twins), torch.full((20,), 2.0))


def _prefix(generator: Generator, prompt: Prompt) -> list[int]:
    return twin_test.text_prefix(generator.model.config, generator.encode(prompt.text))


def _differences(generator: Generator, twins: Sequence[twin_test.Twins]) -> Tensor:
    return twin_differences(generator.model, generator.image_tokenizer, generator.text_tokenizer, twins, 3, seed=0)


def test_what_captions_imply() -> None:
    assert implied(CaptionNoise(relation_ignored=1, colors_ignored=1), "left/right") == 0
    assert implied(CaptionNoise(relation_ignored=1, colors_ignored=1), "binding") == 0
    assert implied(CaptionNoise(colors_swapped=0.25), "binding") == pytest.approx(np.log(3))
    assert implied(CaptionNoise(colors_ignored=0.3), "left/right") == np.inf


@pytest.mark.parametrize("skill", SKILLS)
def test_captions_hold_what_is_implied(skill: str) -> None:
    """Of many noisy pairs with both things: how often they are as the caption says, against as the twin's says."""
    noise = CaptionNoise(relation_ignored=0.7, colors_ignored=0.4, colors_swapped=0.1)
    rng, counts = np.random.default_rng(0), [0, 0]
    tag = "color_attr" if skill == "binding" else "position"
    for _ in range(6000):
        caption, scene = noisy_pair(rng, noise, {tag: 1})
        a, b = caption.include
        if tag == "position":
            relation = b.position[0]
            if relation not in SKILLS[skill]:
                continue
            twin = position(a.name, relation, b.name)
            chance = twin_test.clearly
            places = {item.name: (item.x, item.y) for item in scene}
            counts[0] += chance(relation, places[b.name], places[a.name])
            counts[1] += chance(relation, places[a.name], places[b.name])
            assert twin.include[1].name == a.name
        else:
            twin = color_attr(a.name, b.color, b.name, a.color)
            colors = [item.color for item in scene]
            counts[0] += colors == [a.color, b.color]
            counts[1] += colors == [b.color, a.color]
    error = 2.6 * np.sqrt(1 / counts[0] + 1 / counts[1])
    assert np.log(counts[0] / counts[1]) == pytest.approx(implied(noise, skill), abs=error)
