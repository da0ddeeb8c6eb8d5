"""Checkers of the notebooks' exercises: each says what is wrong and hints at why.

Use: `from cotgen_lite.course.exercises import check`, then `check.schedule(my_function)`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch

from cotgen_lite.course import (
    exercises_alignment,
    exercises_full,
    exercises_parm,
    exercises_results,
    exercises_sequential,
)
from cotgen_lite.course.exercises_alignment import expect, say_right


class check:
    """The exercises' checkers; each raises AssertionError with a hint, or prints that the answer is right."""

    @staticmethod
    def schedule(function: Callable[[int, int], Sequence[int]]) -> None:
        """Notebook 00: how many of L places each of T steps commits, by the cosine and at least one a step."""
        for steps, places in ((18, 64), (13, 256), (18, 20)):
            case = f"{steps} steps and {places} places"
            got = [int(count) for count in function(steps, places)]
            expect(len(got) == steps, f"One number a step is wanted: {steps} of them, not {len(got)}.")
            if got[0] == 0 and got[-1] >= 1:
                expect(False, "The first step commits something already: the cosine of step s takes (s + 1) / T.")
            expect(sum(got) == places, f"With {case}, all places are committed in the end: yours add up to {sum(got)}.")
            expect(min(got) >= 1, f"With {case}, one of your steps commits nothing: at least one place a step.")
            wanted = _committed(steps, places, math.floor)
            if got == _committed(steps, places, math.ceil) != wanted:
                expect(False, "What stays masked is whole: round it down, not up.")
            expect(got == wanted, f"With {case}, expected {wanted}, got {got}: is it the cosine of a quarter turn?")
        say_right()

    @staticmethod
    def agreement(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Notebook 00: the share of tokens that equal the final ones at each step; (T, L) → (T,)."""
        tokens = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 7]])
        got = torch.as_tensor(function(tokens)).float()
        expect(
            got.shape == (3,),
            f"One number a step, shape (3,), is wanted; got {tuple(got.shape)}: average over places.",
        )
        expect(float(got[-1]) == 1.0, "The last step agrees with itself fully: compare with tokens[-1].")
        expect(
            torch.allclose(got, torch.tensor([0.5, 0.75, 1.0])),
            f"Expected 0.5, 0.75, 1.0; got {got.tolist()}.",
        )
        say_right()

    @staticmethod
    def guide(function: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
        """Notebook 00: guidance in Show-o's form, (1 + g)·conditional − g·unconditional."""
        cond, uncond = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 3.0])
        expect(
            torch.allclose(function(cond, uncond, 0.0), cond),
            "Without guidance (g = 0) the conditional logits stay.",
        )
        got = function(cond, uncond, 1.5)
        if torch.allclose(got, uncond + 1.5 * (cond - uncond)):
            expect(False, "That is u + g·(c − u), diffusion's form: Show-o's g = 1.5 is 2.5 in it.")
        if torch.allclose(got, 2.5 * uncond - 1.5 * cond):
            expect(False, "The signs are swapped: away from the unconditional logits, not towards them.")
        expect(torch.allclose(got, 2.5 * cond - 1.5 * uncond), "Expected (1 + g)·conditional − g·unconditional.")
        say_right()

    @staticmethod
    def probability(function: Callable[[torch.Tensor, Sequence[int], Sequence[int]], float]) -> None:
        """Notebook 01: P(yes) among yes and no, from one row of logits, over several spellings of each."""
        logits = torch.tensor([3.0, 1.0, 2.0, -1.0, 0.5, 4.0])
        yes, no = math.exp(3) + math.exp(1), math.exp(2) + math.exp(-1)
        wanted = yes / (yes + no)
        got = float(function(logits, [0, 1], [2, 3]))
        if math.isclose(got, yes / float(logits.exp().sum()), abs_tol=1e-4):
            expect(False, "That is the share of yes among all words: only yes and no count here.")
        if math.isclose(got, 1 / (1 + math.exp(-(3.0 + 1.0 - 2.0 + 1.0))), abs_tol=1e-4):
            expect(False, "You added logits; probabilities add, so take log-sum-exp over the spellings.")
        if math.isclose(got, 1 / (1 + math.exp(-1.0)), abs_tol=1e-4):
            expect(False, "You took the best spelling only: log-sum-exp counts them all.")
        if math.isclose(got, 1 - wanted, abs_tol=1e-4):
            expect(False, "That is P(no): yes and no are swapped.")
        if math.isclose(got, math.log(yes / no), abs_tol=1e-4):
            expect(False, "Those are the log-odds: a sigmoid turns them into a probability.")
        expect(math.isclose(got, wanted, abs_tol=1e-4), f"Expected {wanted:.4f}, got {got:.4f}.")
        large = float(function(logits + 1000, [0, 1], [2, 3]))
        expect(math.isclose(large, wanted, abs_tol=1e-3), "Large logits overflow: use torch.logsumexp, not exp.")
        say_right()

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
            expect(
                math.isclose(got, wanted, abs_tol=1e-9),
                f"For n = {n} expected {wanted:.3f}, got {got:.3f}.{hint}",
            )
        say_right()

    @staticmethod
    def oracle(function: Callable[[np.ndarray], float]) -> None:
        """Notebook 01: the ceiling of any choice: the share of prompts with at least one right candidate; (P, N)."""
        correct = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool)
        got = float(function(correct))
        if math.isclose(got, correct.mean()):
            expect(
                False,
                "That is the mean over all images, the random choice: the oracle needs one right image a prompt.",
            )
        if math.isclose(got, correct.any(axis=0).mean()) and not math.isclose(got, 0.75):
            expect(False, "That is over candidates: the axis of candidates is the last one.")
        expect(
            math.isclose(got, 0.75),
            f"Three of four prompts have a right candidate: expected 0.75, got {got:.3f}.",
        )
        say_right()

    @staticmethod
    def balanced(function: Callable[[np.ndarray], list[tuple[int, int]]]) -> None:
        """Notebook 02: places (row, column) of as many yes as no in every row of verdicts (P, N), all there are."""
        labels = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=bool)
        chosen = [(int(row), int(column)) for row, column in function(labels)]
        expect(len(set(chosen)) == len(chosen), "An image is taken twice: each place may stand in the list once.")
        taken = [[bool(labels[place]) for place in chosen if place[0] == row] for row in range(4)]
        yes, no = [sum(row) for row in taken], [len(row) - sum(row) for row in taken]
        if sum(yes) == sum(no) and yes != no:
            expect(False, "Yes and no are as many over all, but not for each prompt: the prompt would tell the answer.")
        expect(yes == no, f"Of each prompt as many yes as no are wanted; yours: {yes} yes, {no} no.")
        expect(yes[2] == 0, "The third prompt has one label only: it can teach nothing, leave it out.")
        expect(yes == [2, 1, 0, 2], f"Take as many as there are of the rarer label: 2, 1, 0, 2 pairs, not {yes}.")
        say_right()

    @staticmethod
    def answer_loss(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Notebook 02: mean cross-entropy of the answer's tokens; logits (T, V), ids (T,), is_answer bool (T,)."""
        logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
        ids, answer = torch.tensor([0, 3, 2, 1, 4, 0]), torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.bool)
        log_p = logits.log_softmax(-1)

        def mean(rows: list[int], words: list[int]) -> float:
            return float(-log_p[rows, ids[words]].mean())

        got = float(function(logits, ids, answer))
        if math.isclose(got, mean([4, 5], [4, 5]), abs_tol=1e-5):
            expect(False, "The logits at a place predict the *next* token: those at t − 1 belong to token t.")
        if math.isclose(got, mean(list(range(5)), list(range(1, 6))), abs_tol=1e-5):
            expect(False, "That is the loss on every token: the question is given, only the answer is to be learned.")
        if math.isclose(got, 2 * mean([3, 4], [4, 5]), abs_tol=1e-5):
            expect(False, "That is the sum: take the mean, or long answers count more.")
        if math.isclose(got, -mean([3, 4], [4, 5]), abs_tol=1e-5):
            expect(False, "The sign: a loss is *minus* the log-probability.")
        wanted = mean([3, 4], [4, 5])
        expect(math.isclose(got, wanted, abs_tol=1e-5), f"Expected {wanted:.4f}, got {got:.4f}.")
        say_right()

    @staticmethod
    def step_labels(function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Notebook 03: Math-Shepherd's labels (P, T) from how rollouts end, bool (P, T, R): yes if any ends well."""
        ends = np.array([[[0, 0, 0], [0, 1, 0], [1, 1, 0]], [[1, 1, 1], [1, 0, 0], [0, 0, 1]]], dtype=bool)
        got = np.asarray(function(ends))
        expect(got.shape == (2, 3), f"One label a step of each path, shape (2, 3), is wanted; got {got.shape}.")
        if np.array_equal(got, ends.all(axis=2)):
            expect(False, "That asks for all rollouts to end well: one is enough to show that it is still possible.")
        if np.array_equal(got, ends.mean(axis=2) > 0.5):
            expect(False, "That is the majority: one rollout that ends well is enough.")
        if np.array_equal(got, ends[:, :, 0]):
            expect(False, "That looks at the first rollout only.")
        expect(np.array_equal(got, ends.any(axis=2)), f"Expected {ends.any(axis=2).tolist()}, got {got.tolist()}.")
        say_right()

    @staticmethod
    def chance_of_yes(function: Callable[[float, int], float]) -> None:
        """Notebook 03: how likely a step's label is yes, if each of its rollouts ends well with chance p."""
        for p, rollouts in ((0.1, 4), (0.5, 1), (0.02, 16)):
            wanted, got = 1 - (1 - p) ** rollouts, float(function(p, rollouts))
            hint = ""
            if rollouts > 1 and math.isclose(got, p**rollouts, abs_tol=1e-9):
                hint = " That is the chance that all end well."
            elif rollouts > 1 and math.isclose(got, p * rollouts, abs_tol=1e-9):
                hint = " Chances add only if not two rollouts can both end well: ask for none instead."
            elif rollouts > 1 and math.isclose(got, p, abs_tol=1e-9):
                hint = " That is one rollout's chance: the label looks at all of them."
            elif math.isclose(got, 1 - wanted, abs_tol=1e-9) and not math.isclose(wanted, 0.5):
                hint = " That is the chance of no."
            expect(
                math.isclose(got, wanted, abs_tol=1e-9),
                f"With p = {p} and {rollouts} rollouts expected {wanted:.4f}, got {got:.4f}.{hint}",
            )
        say_right()

    @staticmethod
    def likeness(function: Callable[[torch.Tensor], float]) -> None:
        """Notebook 03: how alike candidates (N, L) are: the mean share of equal tokens over all pairs."""
        tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [1, 0, 0, 0]])
        pairs = [(tokens[a] == tokens[b]).float().mean().item() for a, b in combinations(range(3), 2)]
        got = float(function(tokens))
        with_self = (tokens[:, None] == tokens[None]).float().mean().item()
        if math.isclose(got, with_self, abs_tol=1e-6):
            expect(False, "A candidate is compared with itself too: leave out those pairs.")
        if math.isclose(got, float((tokens == tokens[:1]).float().mean()), abs_tol=1e-6):
            expect(False, "All are compared with the first, itself included: take every pair.")
        if math.isclose(got, sum(pairs[:2]) / 2, abs_tol=1e-6):
            expect(False, "All are compared with the first only: take every pair.")
        if math.isclose(got, sum(pairs), abs_tol=1e-6):
            expect(False, "That is the sum over pairs: take the mean.")
        wanted = sum(pairs) / 3
        expect(math.isclose(got, wanted, abs_tol=1e-6), f"Expected {wanted:.4f}, got {got:.4f}.")
        say_right()

    margin = staticmethod(exercises_alignment.margin)
    pull = staticmethod(exercises_alignment.pull)
    elbo = staticmethod(exercises_alignment.elbo)
    pairs = staticmethod(exercises_alignment.pairs)
    chance_of_a_pair = staticmethod(exercises_alignment.chance_of_a_pair)
    online_pair = staticmethod(exercises_alignment.online_pair)
    guided = staticmethod(exercises_alignment.guided)
    break_even = staticmethod(exercises_alignment.break_even)
    first_clear = staticmethod(exercises_parm.first_clear)
    stops = staticmethod(exercises_parm.stops)
    saved = staticmethod(exercises_parm.saved)
    kept = staticmethod(exercises_parm.kept)
    changed = staticmethod(exercises_parm.changed)
    others_reasons = staticmethod(exercises_parm.others_reasons)
    whole_after = staticmethod(exercises_sequential.whole_after)
    places = staticmethod(exercises_sequential.places)
    image_log_probability = staticmethod(exercises_sequential.image_log_probability)
    verdict = staticmethod(exercises_results.verdict)
    paired_difference = staticmethod(exercises_results.paired_difference)
    keys_and_values = staticmethod(exercises_full.keys_and_values)
    hours = staticmethod(exercises_full.hours)
    parm_over_best = staticmethod(exercises_full.parm_over_best)


def _committed(steps: int, places: int, rounded: Callable[[float], int]) -> list[int]:
    masked, counts = places, []
    for step in range(steps):
        cosine = places * math.cos(math.pi * (step + 1) / (2 * steps))
        nudge = 1e-9 if rounded is math.floor else -1e-9
        left = 0 if step == steps - 1 else max(1, min(masked - 1, rounded(cosine + nudge)))
        counts.append(masked - left)
        masked = left
    return counts
