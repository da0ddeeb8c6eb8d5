"""Best-of-n: keeps the favourite, says what it cost, and draws the same candidates whatever n."""

from typing import Any

import pytest
import torch

from cotgen_lite.search import best_of_n

PROMPT = "a photo of a red cat and a blue dog"


class Favourite:
    """A verifier that counts its questions and likes dark images."""

    asked = 0

    def score(self, images: torch.Tensor, prompts: list[str], question: str) -> torch.Tensor:
        assert len(images) == len(prompts) and "{prompt}" in question
        self.asked += len(images)
        return -images.float().mean(dim=(1, 2, 3))


def test_keeps_the_favourite_and_bills_it(toy_generator: Any) -> None:
    verifier = Favourite()
    result = best_of_n(toy_generator, verifier, PROMPT, n=5, seed=3)  # type: ignore[arg-type]
    means = result.images.float().mean(dim=(1, 2, 3))
    assert result.chosen == int(means.argmin())
    assert torch.equal(result.image, result.images[result.chosen])
    assert verifier.asked == result.cost.verifier_passes == 5
    steps = toy_generator.settings.steps
    # one prompt and the empty one; first step shared by all five; then both passes for each
    assert result.cost.generator_passes == 2 + 2 + 2 * 5 * (steps - 1)
    assert result.cost.seconds == result.cost.generator_seconds + result.cost.verifier_seconds


def test_smaller_n_has_the_first_candidates_of_a_larger(toy_generator: Any) -> None:
    few = best_of_n(toy_generator, Favourite(), PROMPT, n=2, seed=3)  # type: ignore[arg-type]
    many = best_of_n(toy_generator, Favourite(), PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    assert torch.equal(few.images, many.images[:2])


def test_needs_a_candidate(toy_generator: Any) -> None:
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        best_of_n(toy_generator, Favourite(), PROMPT, n=0, seed=0)  # type: ignore[arg-type]
