"""Reasons in words: true to the findings, in words that the lite models know, only where something is wrong."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.geneval import Finding, evaluate
from cotgen_lite.lite.judges import TemplateJudge, scene_detections
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import SceneObject, random_prompt, random_scene, render, scene_for
from cotgen_lite.prompts import OPPOSITE, TAGS, encode_text, parse_prompt
from cotgen_lite.verify.reasons import exchanged, find_reasons, share_told, wordings, write_reasons

GIVEN_PROMPTS = [parse_prompt("a photo of a cat")]
GIVEN: dict = {
    "generator": SimpleNamespace(decode=list),
    "detector": SimpleNamespace(detect=list),
    "tokens": torch.zeros(1, 2, 64, dtype=torch.int16),
    "prompts": GIVEN_PROMPTS,
    "seed": 0,
}


def test_every_wording_is_in_words_the_models_know_and_names_what_is_wrong() -> None:
    rng, words, kinds = np.random.default_rng(0), lite_tokenizer(), set()
    for number in range(1500):
        prompt = random_prompt(TAGS[number % 6], rng)
        other = random_prompt(TAGS[rng.integers(6)], rng)
        scene = random_scene(rng) if number % 2 else scene_for(other, rng)
        verdict = evaluate(prompt, scene_detections(scene))
        if verdict.correct:
            continue
        text = write_reasons(verdict.reasons, rng)
        assert 0 < len(encode_text(words, text)) <= 40 and text == text.lower()
        pair, parts = exchanged(verdict.reasons), text.split(", and ")
        for place in pair:  # said once, of both
            assert verdict.reasons[place].name in parts[min(pair)]
        apart = [finding for place, finding in enumerate(verdict.reasons) if place not in pair[1:]]
        for finding, part in zip(apart, parts, strict=True):
            kinds.add(finding.kind)
            assert finding.name in part
            if finding.kind == "color" and not pair:
                assert str(finding.expected) in part
            if finding.kind == "position":
                assert str(finding.expected) in part and str(finding.reference) in part
                assert all(relation in part for relation in finding.found)  # type: ignore[union-attr]
    assert kinds >= {"missing", "count", "color", "position"}  # chance hardly draws "extra", which is below


def test_wordings_vary_and_say_the_numbers() -> None:
    rng = np.random.default_rng(0)
    few = {write_reasons([Finding("count", "bus", 3, 1)], rng) for _ in range(40)}
    assert few == {
        "there is only one bus, not three",
        "there is one bus but there should be three",
        "there are too few buses: three are asked for",
    }
    many = {write_reasons([Finding("extra", "bus", 2, 4)], rng) for _ in range(40)}
    assert many == {
        "there are four buses, not two",
        "there are four buses but there should be two",
        "there are too many buses: two are asked for",
    }
    unclear = write_reasons([Finding("color", "cat", "red", ("unknown",))], rng)
    assert unclear == "the color of the cat is unclear but should be red"
    assert "there are ten buses, not two" in wordings(Finding("extra", "bus", 2, 12))  # as far as words go
    assert "the cat is blue, not red" in wordings(Finding("color", "cat", "red", ("red", "unknown", "blue")))
    nowhere = Finding("position", "cat", "left of", (), reference="dog")
    assert wordings(nowhere) == ["the cat is not left of the dog"]
    with pytest.raises(ValueError, match="only a wrong image has reasons"):
        write_reasons([], rng)


def test_colors_that_are_exchanged_are_said_together() -> None:
    prompt = parse_prompt("a photo of a red cat and a blue dog")
    scene = (SceneObject("cat", "blue", 0, 0), SceneObject("dog", "red", 40, 40))
    findings = evaluate(prompt, scene_detections(scene)).reasons
    rng = np.random.default_rng(0)
    said = {write_reasons(findings, rng) for _ in range(40)}
    assert said == {
        "the color of the cat and that of the dog are swapped",
        "the cat should be red and the dog blue: they are swapped",
        "the cat is blue and the dog is red, not red and blue",
    }
    assert all(share_told(one, findings) == (1, 1) for one in said)
    assert share_told("the cat is blue, not red", findings) == (1, 1 / 2)
    one_wrong = evaluate(prompt, scene_detections((scene[0], SceneObject("dog", "green", 40, 40)))).reasons
    assert not exchanged(one_wrong) and share_told(next(iter(said)), one_wrong)[0] == 0
    unclear = [Finding("color", "cat", "red", ("unknown",)), Finding("color", "dog", "blue", ("red",))]
    assert not exchanged(unclear)
    third = [Finding("missing", "bus", 1, 0), *findings]
    assert exchanged(third) == (1, 2) and write_reasons(third, rng).count("and") >= 2


def test_a_text_tells_a_share_of_what_is_wrong() -> None:
    findings = [Finding("missing", name, 1, 0) for name in ("cat", "dog", "bus")]
    assert share_told("there is no dog, and the car is red", findings) == (1 / 2, 1 / 3)
    assert share_told("there is no dog, and the bus is missing, and there is no cat", findings) == (1, 1)
    assert share_told("nothing is wrong", findings) == (0, 0) and share_told("there is no dog", []) == (0, 0)


COUNT = Finding("count", "cat", 3, 1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda f=f: write_reasons(f, np.random.default_rng(0)), says) for f, says in (
            (None, "findings must be a list of Findings"),
            (COUNT, "findings must be a list of Findings"),
            (["x"], "each of findings must be a Finding"),
            ([Finding("odd", "cat", 1, 2)], "no words for a finding of kind 'odd'"),
            ([Finding("count", "cat", 12, 2)], "asked for must be a whole number from 0 to 10"),
            ([Finding("count", "cat", "two", 2)], "asked for must be a whole number"),
        )),
        (lambda: write_reasons([COUNT], 0), "rng must be"),  # type: ignore[arg-type]
        (lambda: share_told(None, [COUNT]), "said must be a text"),  # type: ignore[arg-type]
        (lambda: share_told("a", COUNT), "findings must be a list"),  # type: ignore[arg-type]
        *((lambda change=change: find_reasons(**(GIVEN | change)), says) for change, says in (
            ({"generator": None}, "generator must be"),
            ({"detector": None}, "detector must be"),
            ({"prompts": GIVEN_PROMPTS * 2}, r"tokens must have shape \(2, N, L\)"),
            ({"prompts": ["a"]}, "Each of prompts must be"),
            ({"tokens": None}, "tokens must be a tensor"),
            ({"seed": -1}, "seed must be"),
        )),
    ],
)  # fmt: skip
def test_what_has_no_reasons_is_said_in_a_sentence(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_only_wrong_images_get_reasons() -> None:
    prompt = parse_prompt("a photo of a cat left of a dog")
    left, right = ((SceneObject("cat", "red", x, 16), SceneObject("dog", "blue", 40 - x, 16)) for x in (0, 40))
    pictures = render([left, right, left[:1]])
    generator = SimpleNamespace(decode=lambda codes: pictures[codes[:, 0]])
    tokens = torch.arange(3)[None, :, None]
    found = find_reasons(generator, TemplateJudge(), tokens, [prompt], seed=0)  # type: ignore[arg-type]
    assert found.shape == (1, 3) and found[0, 0] == ""
    assert OPPOSITE["left of"] in found[0, 1] and "dog" in found[0, 2]
