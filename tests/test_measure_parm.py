"""PARM read off a pool: what `parm_search` does, path by path, and what it costs, for every n."""

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.measure_parm import Opinions, ask_of_paths, passes_of_search, stop_paths
from cotgen_lite.pools import expected_best_of
from cotgen_lite.prompts import lite_prompts
from cotgen_lite.search import Assess, parm_search

PROMPTS = lite_prompts("train")[:9:4]


class Moody(torch.nn.Module):
    """A verifier whose opinions hang on the image in some fixed, wild way."""

    def __init__(self, doubt: float = 0.0) -> None:
        super().__init__()
        self.model, self.doubt = self, doubt

    def _mood(self, images: torch.Tensor, by: float) -> torch.Tensor:
        return torch.sin(images.float().mean(dim=(1, 2, 3)) * by).half().float()

    def score(self, images: torch.Tensor, prompts: list[str], question: str = "") -> torch.Tensor:
        return self._mood(images, 31.0)

    def score_turns(self, images: torch.Tensor, prompts: list[str], questions: tuple[str, str]) -> torch.Tensor:
        return torch.stack([self._mood(images, 17.0), (self._mood(images, 53.0) - self.doubt).half().float()], dim=1)


@pytest.mark.parametrize("assess", ["every", "first"])
@pytest.mark.parametrize("doubt", [0.0, 2.0])  # with 2.0 every path is stopped at its first clear step
def test_a_pool_tells_what_the_search_does(toy_generator: Any, tmp_path: Path, assess: Assess, doubt: float) -> None:
    n, verifier = 5, Moody(doubt)
    drawn = toy_generator.draw([prompt.text for prompt in PROMPTS], n, seed=3)
    guesses = torch.stack([torch.stack([path.tokens for path in paths]) for paths in drawn])
    outcome = stop_paths(ask_of_paths(toy_generator, verifier, guesses, PROMPTS, tmp_path), assess)  # type: ignore[arg-type]
    passes = []
    for row, prompt in enumerate(PROMPTS):
        found = parm_search(toy_generator, verifier, prompt.text, n, seed=3, assess=assess)  # type: ignore[arg-type]
        np.testing.assert_array_equal(outcome.survived[row], found.survived.numpy())
        assert int(outcome.order[row].argmax()) == found.chosen
        ran = outcome.steps[row].copy()
        if not found.survived.any():
            ran[found.chosen] = guesses.shape[2]
        np.testing.assert_array_equal(ran, found.steps.numpy())
        passes.append([found.cost.generator_passes, found.cost.verifier_passes, not found.survived.any()])
    spent = passes_of_search(outcome, n, guesses.shape[2])
    assert list(spent.values()) == pytest.approx(np.mean(passes, axis=0), abs=1e-4)
    assert (outcome.survived.any() or doubt == 2.0) and not outcome.survived.all()


def test_cost_and_choice_of_fewer_paths_are_means_over_subsets() -> None:
    rng, steps, number, n = np.random.default_rng(0), 6, 6, 2
    odds = SimpleNamespace(clarity=rng.normal(size=(3, number, steps - 1)), potential=rng.normal(size=(3, number, 5)))
    opinions = Opinions(odds.clarity, odds.potential + 0.3, rng.normal(size=(3, number)))
    outcome, correct = stop_paths(opinions), rng.random((3, number)) < 0.5
    right, costs = [], []
    for row in range(3):
        for some in combinations(range(number), n):
            alive = [path for path in some if outcome.survived[row, path]]
            last = {
                path: opinions.potential[row, path, outcome.steps[row, path] - 1] for path in some if path not in alive
            }
            best = max(alive, key=lambda p: opinions.selection[row, p]) if alive else max(last, key=lambda p: last[p])
            ran = [int(outcome.steps[row, path]) for path in some]
            more = 0 if alive else steps - int(outcome.steps[row, best])
            asked = sum(min(r, steps - 1) for r in ran) + max(1, len(alive))
            right.append(correct[row, best])
            costs.append([4 + 2 * (sum(ran) - n) + 2 * more, asked, not alive])
    assert expected_best_of(outcome.order, correct, n).mean() == pytest.approx(np.mean(right))
    spent = passes_of_search(outcome, n, steps)
    assert list(spent.values()) == pytest.approx(np.mean(costs, axis=0), abs=1e-4)
    assert 0 < spent["none_left"] < 1
