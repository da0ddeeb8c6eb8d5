"""Checkers of the notebooks' exercises: each says what is wrong and hints at why.

Use: `from cotgen_lite.exercises import check`, then `check.schedule(my_function)`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch


class check:
    """The exercises' checkers; each raises AssertionError with a hint, or prints that the answer is right."""

    @staticmethod
    def schedule(function: Callable[[int, int, int], int]) -> None:
        """Notebook 00: how many of L places stay unknown after step s of T (cosine), before the at-least-one rule."""
        rounded_up = [math.ceil(64 * math.cos(math.pi * (step + 1) / (2 * 18)) - 1e-9) for step in range(18)]
        if [function(step, 18, 64) for step in range(18)] == rounded_up:
            _expect(False, "Places are whole: round down, not up.")
        _expect(
            function(0, 18, 64) != 64,
            "After the first step something is known already: use (step + 1) / steps.",
        )
        _expect(function(17, 18, 64) == 0, "After the last step nothing may be unknown: cos(π/2) is 0.")
        for step in range(18):
            wanted = math.floor(64 * math.cos(math.pi * (step + 1) / (2 * 18)) + 1e-9)
            got = function(step, 18, 64)
            _expect(
                got == wanted,
                f"After step {step + 1} of 18, {wanted} of 64 places should be unknown, not {got}: "
                "is it the cosine of a quarter turn?",
            )
        _right()

    @staticmethod
    def agreement(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Notebook 00: the share of tokens that equal the final ones at each step; (T, L) → (T,)."""
        tokens = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 7]])
        got = torch.as_tensor(function(tokens)).float()
        _expect(
            got.shape == (3,),
            f"One number a step, shape (3,), is wanted; got {tuple(got.shape)}: average over places.",
        )
        _expect(float(got[-1]) == 1.0, "The last step agrees with itself fully: compare with tokens[-1].")
        _expect(
            torch.allclose(got, torch.tensor([0.5, 0.75, 1.0])),
            f"Expected 0.5, 0.75, 1.0; got {got.tolist()}.",
        )
        _right()

    @staticmethod
    def guide(function: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
        """Notebook 00: guidance in Show-o's form, (1 + g)·conditional − g·unconditional."""
        cond, uncond = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 3.0])
        _expect(
            torch.allclose(function(cond, uncond, 0.0), cond),
            "Without guidance (g = 0) the conditional logits stay.",
        )
        got = function(cond, uncond, 1.5)
        if torch.allclose(got, uncond + 1.5 * (cond - uncond)):
            _expect(False, "That is u + g·(c − u), diffusion's form: Show-o's g = 1.5 is 2.5 in it.")
        if torch.allclose(got, 2.5 * uncond - 1.5 * cond):
            _expect(False, "The signs are swapped: away from the unconditional logits, not towards them.")
        _expect(torch.allclose(got, 2.5 * cond - 1.5 * uncond), "Expected (1 + g)·conditional − g·unconditional.")
        _right()

    @staticmethod
    def log_odds(function: Callable[[torch.Tensor, Sequence[int], Sequence[int]], float]) -> None:
        """Notebook 01: log P(yes) − log P(no) from one row of logits, over several spellings of each."""
        logits = torch.tensor([3.0, 1.0, 2.0, -1.0, 0.5, 4.0])
        wanted = math.log(math.exp(3) + math.exp(1)) - math.log(math.exp(2) + math.exp(-1))
        got = float(function(logits, [0, 1], [2, 3]))
        if math.isclose(got, 3.0 + 1.0 - 2.0 + 1.0, abs_tol=1e-4):
            _expect(False, "You added logits; probabilities add, so take log-sum-exp over the spellings.")
        if math.isclose(got, 3.0 - 2.0, abs_tol=1e-4):
            _expect(False, "You took the best spelling only: log-sum-exp counts them all.")
        if math.isclose(got, -wanted, abs_tol=1e-4):
            _expect(False, "The sign is swapped: positive must mean yes.")
        _expect(math.isclose(got, wanted, abs_tol=1e-4), f"Expected {wanted:.4f}, got {got:.4f}.")
        large = float(function(logits + 200, [0, 1], [2, 3]))
        _expect(math.isclose(large, wanted, abs_tol=1e-3), "Large logits overflow: use torch.logsumexp, not exp.")
        _right()

    @staticmethod
    def best_of_n(function: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
        """Notebook 01: the expected accuracy of best-of-n over all n-subsets of one prompt's candidates (no ties)."""
        scores, correct = np.array([0.3, -1.0, 2.0, 0.9, 0.1]), np.array([1, 1, 0, 1, 0])
        for n in range(1, 6):
            wanted = float(
                np.mean([correct[max(subset, key=lambda i: scores[i])] for subset in combinations(range(5), n)])
            )
            got = float(function(scores, correct, n))
            hint = ""
            if n == 1 and not math.isclose(got, wanted):
                hint = " With n = 1 nothing is chosen: it is the mean accuracy."
            elif n == 5 and not math.isclose(got, wanted):
                hint = " With n = 5 the candidate with the highest score is always taken."
            elif n == 2 and math.isclose(got, float(correct[scores[:2].argmax()])):
                hint = " That is the first n candidates only: average over all subsets."
            _expect(
                math.isclose(got, wanted, abs_tol=1e-9),
                f"For n = {n} expected {wanted:.3f}, got {got:.3f}.{hint}",
            )
        _right()

    @staticmethod
    def oracle(function: Callable[[np.ndarray], float]) -> None:
        """Notebook 01: the ceiling of any choice: the share of prompts with at least one right candidate; (P, N)."""
        correct = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool)
        got = float(function(correct))
        if math.isclose(got, correct.mean()):
            _expect(
                False,
                "That is the mean over all images, the random choice: the oracle needs one right image a prompt.",
            )
        if math.isclose(got, correct.any(axis=0).mean()) and not math.isclose(got, 0.75):
            _expect(False, "That is over candidates: the axis of candidates is the last one.")
        _expect(
            math.isclose(got, 0.75),
            f"Three of four prompts have a right candidate: expected 0.75, got {got:.3f}.",
        )
        _right()


def _expect(condition: bool, hint: str) -> None:
    if not condition:
        raise AssertionError(hint)


def _right() -> None:
    print("✓ Right.")
