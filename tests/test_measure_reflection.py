"""Reflection measured: row by row what `reflect` does, controls that differ in one thing, rounds counted by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.experiments import measuring
from cotgen_lite.experiments.configs import QUICK
from cotgen_lite.experiments.findings import decide_f11, decide_f12
from cotgen_lite.experiments.measure_reflection import (
    Reflections,
    by_round,
    reasons_told,
    run_reflections,
    sample_more,
    shuffled,
    spent_with_rounds,
)
from cotgen_lite.experiments.measuring import Bench, cost_of_drawing
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import SceneObject, render
from cotgen_lite.prompts import TAGS, lite_prompts, parse_prompt
from cotgen_lite.verify.search import reflect

PROMPTS = lite_prompts("train")[:20:2]


class Picky(torch.nn.Module):
    """A verifier whose opinion and reasons hang on the image in some fixed, wild way."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self

    def score(self, images: torch.Tensor, prompt: str, question: str = "") -> torch.Tensor:
        return torch.sin(images.float().mean(dim=(1, 2, 3)) * 31) - 0.5

    def explain(self, images: torch.Tensor, prompt: str) -> list[str]:
        return ["" if image.float().mean() % 1 < 0.5 else "the cat is missing" for image in images]


def test_rows_are_reflections_and_resume(toy_generator: Any, tmp_path: Path) -> None:
    critic: Any = Picky()
    first = torch.randint(1024, (len(PROMPTS), 64), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    run = run_reflections(toy_generator, critic, PROMPTS, first, None, tmp_path)
    costs = []
    assert (run.rounds > 0).sum() > 0 and run.rounds.max() <= 3
    for row, prompt in enumerate(PROMPTS):
        found = reflect(toy_generator, critic, prompt.text, first[row], row)
        assert run.reasons[row] == found.reasons and run.rounds[row] == len(found.reasons)
        assert run.chosen[row] == found.chosen
        assert torch.equal(run.tokens[row, run.chosen[row]], found.tokens[found.chosen])
        np.testing.assert_allclose(run.log_odds[row, : len(found.log_odds)], found.log_odds, atol=1e-6)
        costs.append([found.cost.generator_passes, found.cost.verifier_passes])
    of_one = sum(cost["generator_passes"] for cost in cost_of_drawing(toy_generator, PROMPTS[0].text))
    searched = {"generator_passes": 100.0, "verifier_passes": 10.0}
    spent = spent_with_rounds(searched, run.rounds, of_one, explained=True)
    np.testing.assert_allclose(list(spent.values()), np.add(np.mean(costs, axis=0), [100, 10]), atol=1e-4)
    assert spent_with_rounds(searched, run.rounds, of_one, False)["verifier_passes"] == 11 + run.rounds.mean()
    again = run_reflections(toy_generator, critic, PROMPTS, first, lambda *_: 1 / 0, tmp_path)  # type: ignore[return-value]
    assert again.reasons == run.reasons and torch.equal(again.tokens, run.tokens)
    heard = []

    def hear(row: int, done: int, image: torch.Tensor, text: str) -> str:
        heard.append((row, done, text))
        return "there is no dog"

    told = run_reflections(toy_generator, critic, PROMPTS, first, hear, tmp_path / "told")
    assert {text for texts in told.reasons for text in texts} == {"there is no dog"}
    assert heard == [(row, k, PROMPTS[row].text) for row in range(len(PROMPTS)) for k in range(told.rounds[row])]


def test_shuffled_reasons_are_of_another_prompt_of_the_same_tag() -> None:
    prompts = [p for tag in TAGS[1:3] for p in [q for q in lite_prompts("train") if q.tag == tag][:3]]
    reasons = [[], ["a"], ["b"], ["c"], ["d"], []]
    found = shuffled(prompts, reasons)
    assert found[0][0] in "ab" and found[1] == ["b"] and found[2] == ["a"]
    assert found[3] == ["d"] and found[4] == ["c"] and found[5][0] in "cd"
    assert shuffled(prompts, [[]] * 6) == [[""]] * 6


def a_run(log_odds: list[list[float]]) -> Reflections:
    odds = np.array(log_odds, dtype=np.float32)
    rounds = (~np.isnan(odds)).sum(axis=1) - 1
    tokens = torch.zeros(len(odds), 4, 64, dtype=torch.int16)
    return Reflections(tokens, odds, rounds, np.nanargmax(odds, axis=1), [["x"] * k for k in rounds])


def test_rounds_are_counted_by_hand() -> None:
    nan = np.nan
    run = a_run([[1, nan, nan, nan], [-1, 2, nan, nan], [-1, -2, -0.5, -3], [-0.1, -2, -2, 3]])
    right = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]], dtype=bool)
    assert by_round(run, right) == {
        "right": [0.5, 0.75, 0.75, 0.5],
        "reflected_on": [3, 2, 2],
        "mended": 1,
        "spoiled": 1,
        "right_but_reflected_on": 1,
    }


@pytest.mark.parametrize(
    ("shift", "seen"),
    [(0.0, "yes"), (-0.02, "yes"), (0.1, "no"), (-0.2, "no"), (-0.06, "undecided"), (0.02, "undecided")],
)
def test_f11_wants_a_small_loss(shift: float, seen: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [p for tag in TAGS for p in [q for q in lite_prompts("train") if q.tag == tag][:16]]
    noise = rng.normal(0, 0.03, len(prompts))
    assert decide_f11(prompts, noise - noise.mean() + shift)["seen"] == seen


def test_f12_needs_every_control_beaten() -> None:
    prompts = [p for tag in TAGS for p in [q for q in lite_prompts("train") if q.tag == tag][:4]]
    nothing, much = np.zeros(len(prompts)), np.ones(len(prompts))
    right = {"not": nothing, "more": nothing, "empty": nothing, "shuffled": nothing, "reflect": much, "judge": nothing}
    assert decide_f12(prompts, right)["seen"] == "yes"
    found = decide_f12(prompts, right | {"shuffled": much})
    assert found["seen"] == "undecided" and found["parts"]["reflecting − shuffled reasons"]["delta"] == 0


def test_more_samples_are_as_many_as_rounds(toy_generator: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first = torch.randint(1024, (2, 64), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    seen: list[int] = []

    class Counting(Picky):
        def score(self, images: torch.Tensor, prompt: str, question: str = "") -> torch.Tensor:
            seen.append(len(images))
            return torch.arange(len(images)).float()  # the last is the favourite

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(
        measuring, "judge_tokens", lambda g, tokens, *_: (kept.append(tokens), np.ones((2, 1), dtype=bool))[1]
    )
    monkeypatch.setattr(measuring, "load_judges", lambda _: {"learned": None})
    run = a_run([[1, np.nan, np.nan, np.nan], [-1, -2, 1, np.nan]])
    bench = Bench(tmp_path, tmp_path, QUICK, "test")
    found = sample_more(bench, toy_generator, Counting(), PROMPTS[:2], first, run.rounds)  # type: ignore[arg-type]
    assert seen == [1, 3] and found["learned"].tolist() == [True, True]
    assert torch.equal(kept[0][0, 0], first[0]) and not torch.equal(kept[0][1, 0], first[1])


def test_reasons_are_held_against_the_judges() -> None:
    prompt = parse_prompt("a photo of a red cat and a blue dog")
    pictures = render([(SceneObject("cat", "red", 0, 0),), (SceneObject("cat", "green", 0, 0),)])
    generator: Any = SimpleNamespace(decode=lambda tokens: pictures[tokens[:, 0].long()])
    tokens = torch.arange(2, dtype=torch.int16)[:, None, None].repeat(1, 4, 64)
    said = [["there is no dog"], ["the dog is missing, and there is no cat"]]
    run = Reflections(tokens, np.zeros((2, 4), dtype=np.float32), np.array([1, 1]), np.zeros(2, dtype=int), said)
    assert len(TemplateJudge().detect(pictures)[0]) == 1
    # The first says all and nothing else; the second tells one of two faults, and one that is none.
    assert reasons_told(generator, run, [prompt] * 2) == {"given": 2, "of_wrong": 2, "true": 0.75, "told": 0.75}
