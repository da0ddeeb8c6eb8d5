"""Best-of-n and its step-by-step form: keep the favourite, say what it cost, draw the same whatever n."""

from typing import Any

import pytest
import torch

from cotgen_lite.search import best_of_n, stepwise_best_of_n

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


def test_step_by_step_goes_on_from_the_favourite(toy_generator: Any) -> None:
    verifier, steps = Favourite(), toy_generator.settings.steps
    result = stepwise_best_of_n(toy_generator, verifier, PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    assert result.guesses.shape == (steps, 4, 64) and result.log_odds.shape == (steps, 4)
    for step in range(steps):
        images = toy_generator.decode(result.guesses[step])
        assert int(result.chosen[step]) == int(images.float().mean(dim=(1, 2, 3)).argmin())
        assert torch.equal(result.trajectory.tokens[step], result.guesses[step, result.chosen[step]])
        if step:  # every draw keeps what the favourite of the step before had committed
            kept = result.trajectory.committed[step - 1]
            before = result.trajectory.tokens[step - 1]
            assert (result.guesses[step][:, kept] == before[kept]).all()
    assert torch.equal(result.image, toy_generator.decode(result.trajectory.tokens[-1])[0])
    # one guided pass a step serves all draws; the verifier looks at each draw of each step
    assert result.cost.generator_passes == 2 + 2 * steps
    assert verifier.asked == result.cost.verifier_passes == 4 * steps


def test_a_verifier_that_may_speak_later_changes_nothing_before(toy_generator: Any) -> None:
    verifier, steps = Favourite(), toy_generator.settings.steps
    late = stepwise_best_of_n(toy_generator, verifier, PROMPT, 4, seed=3, first_step=3)  # type: ignore[arg-type]
    alone = stepwise_best_of_n(toy_generator, Favourite(), PROMPT, 1, seed=3)  # type: ignore[arg-type]
    assert torch.equal(late.trajectory.tokens[:2], alone.trajectory.tokens[:2])
    assert late.log_odds[:2].isnan().all() and not late.log_odds[2:].isnan().any()
    assert verifier.asked == late.cost.verifier_passes == 4 * (steps - 2)


@pytest.mark.parametrize(("n", "first_step"), [(0, 1), (2, 0), (2, 6)])
def test_step_by_step_needs_draws_and_a_step(toy_generator: Any, n: int, first_step: int) -> None:
    with pytest.raises(ValueError, match=f"got n = {n}, first_step = {first_step}"):
        stepwise_best_of_n(toy_generator, Favourite(), PROMPT, n, 0, first_step=first_step)  # type: ignore[arg-type]
