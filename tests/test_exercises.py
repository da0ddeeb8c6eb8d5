"""The checkers pass solutions and catch the usual mistakes with a fitting hint."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from cotgen_lite.exercises import check

SOLUTIONS: dict[str, Callable] = {
    "schedule": lambda s, t, k: math.floor(k * math.cos(math.pi * (s + 1) / (2 * t)) + 1e-9),
    "agreement": lambda tokens: (tokens == tokens[-1]).float().mean(dim=1),
    "guide": lambda c, u, g: u + (1 + g) * (c - u),
    "log_odds": lambda logits, yes, no: logits[yes].logsumexp(0) - logits[no].logsumexp(0),
    "oracle": lambda correct: correct.any(axis=1).mean(),
    "best_of_n": lambda scores, correct, n: np.mean(
        [correct[max(subset, key=lambda i: scores[i])] for subset in combinations(range(len(scores)), n)]
    ),
}
MISTAKES: list[tuple[str, Callable, str]] = [
    ("schedule", lambda s, t, k: math.floor(k * math.cos(math.pi * s / (2 * t)) + 1e-9), r"step \+ 1"),
    ("schedule", lambda s, t, k: math.floor(k * (1 - (s + 1) / t) + 1e-9), "cosine"),
    ("schedule", lambda s, t, k: math.ceil(k * math.cos(math.pi * (s + 1) / (2 * t)) - 1e-9), "round down, not up"),
    (
        "schedule",
        lambda s, t, k: math.floor(k * math.cos(math.pi * (s + 1) / (2 * t + 2))),
        "known already|nothing may",
    ),
    ("agreement", lambda tokens: (tokens == tokens[0]).float().mean(dim=1), r"tokens\[-1\]"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().mean(dim=0), "One number a step"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().mean(), "One number a step"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().sum(dim=1), "agrees with itself"),
    ("guide", lambda c, u, g: u + g * (c - u), "conditional logits stay"),
    ("guide", lambda c, u, g: c if g == 0 else u + g * (c - u), "diffusion's form"),
    ("guide", lambda c, u, g: c if g == 0 else (1 + g) * u - g * c, "swapped"),
    ("guide", lambda c, u, g: (1 + g) * c + g * u, "conditional logits stay|Expected"),
    ("log_odds", lambda logits, yes, no: logits[yes].sum() - logits[no].sum(), "log-sum-exp"),
    ("log_odds", lambda logits, yes, no: logits[yes].max() - logits[no].max(), "best spelling"),
    ("log_odds", lambda logits, yes, no: logits[no].logsumexp(0) - logits[yes].logsumexp(0), "sign"),
    ("log_odds", lambda logits, yes, no: (logits[yes].exp().sum() / logits[no].exp().sum()).log(), "overflow"),
    ("oracle", lambda correct: correct.mean(), "random choice"),
    ("oracle", lambda correct: correct.any(axis=0).mean(), "expected 0.75|axis"),
    ("oracle", lambda correct: correct.all(axis=1).mean(), "expected 0.75"),
    ("oracle", lambda correct: correct[:, 0].mean(), "expected 0.75"),
    ("best_of_n", lambda scores, correct, n: correct[scores[:n].argmax()], "n = 1"),
    ("best_of_n", lambda scores, correct, n: correct.mean(), "n = 2"),
    ("best_of_n", lambda scores, correct, n: correct[scores.argmin()] if n == 5 else correct.mean(), "n = 2"),
    ("best_of_n", lambda scores, correct, n: float(correct.any()), "n = 1"),
]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name: str, capsys: pytest.CaptureFixture) -> None:
    getattr(check, name)(SOLUTIONS[name])
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "mistake", "hint"), MISTAKES)
def test_mistake_is_caught_with_its_hint(name: str, mistake: Callable, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        getattr(check, name)(mistake)


def test_every_exercise_has_four_mistakes() -> None:
    for name in SOLUTIONS:
        assert sum(mistake[0] == name for mistake in MISTAKES) >= 4
    assert torch.is_tensor(SOLUTIONS["guide"](torch.ones(1), torch.zeros(1), 1.0))
