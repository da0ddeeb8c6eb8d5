"""Checkers of the exercises of chapters 04 to 06, on preference and guidance; `exercises.check` holds them all.

Each raises AssertionError with a hint, or prints that the answer is right.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F


def expect(condition: bool, hint: str) -> None:
    """AssertionError with a hint for the learner unless the condition holds."""
    if not condition:
        raise AssertionError(hint)


def say_right() -> None:
    """Tell the learner that all is well."""
    print("✓ Right.")


def margin(function: Callable[[float, float, float, float, float], float]) -> None:
    """Notebook 04: the reward margin of a pair, from policy's and reference's log-probabilities and β."""
    for numbers in ((-10.0, -12.0, -11.0, -11.5, 0.1), (-30.0, -20.0, -35.0, -20.5, 0.5)):
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta = numbers
        gains = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        wanted, got = beta * (gains[0] - gains[1]), float(function(*numbers))
        expect(
            not math.isclose(got, -wanted, abs_tol=1e-9),
            "The sign: the margin is positive where the policy has learned to prefer the chosen image.",
        )
        expect(
            not math.isclose(got, beta * (policy_chosen - policy_rejected), abs_tol=1e-9),
            "That is the policy alone: a reward is how much likelier an image became *than under the reference*.",
        )
        expect(not math.isclose(got, wanted / beta, abs_tol=1e-9), "The scale β is missing.")
        expect(
            not math.isclose(got, beta * (gains[0] + gains[1]), abs_tol=1e-9),
            "You added both rewards: the margin is that of the chosen image *minus* that of the rejected.",
        )
        expect(math.isclose(got, wanted, abs_tol=1e-9), f"Expected {wanted:.3f}, got {got:.3f}.")
    say_right()


def pull(function: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    """Notebook 04: how hard a pair pulls: minus the derivative of the loss by the log-ratio; margins (B,), β."""
    margin, beta = torch.tensor([-2.0, 0.0, 3.0]), 0.1
    got, wanted = torch.as_tensor(function(margin, beta)).float(), beta * torch.sigmoid(-margin)
    expect(got.shape == (3,), f"One number a pair, shape (3,), is wanted; got {tuple(got.shape)}.")
    if torch.allclose(got, beta * torch.sigmoid(margin)):
        expect(False, "That pulls hardest at pairs that are right already: the sign inside the sigmoid.")
    if torch.allclose(got, torch.sigmoid(-margin)):
        expect(False, "The chain rule: the margin is β times the log-ratio, so β comes out as a factor.")
    if torch.allclose(got, -wanted):
        expect(False, "Minus the derivative is wanted: it is positive.")
    if torch.allclose(got, F.logsigmoid(margin)) or torch.allclose(got, -F.logsigmoid(margin)):
        expect(False, "That is the loss itself, not how it changes.")
    expect(torch.allclose(got, wanted), f"Expected {wanted.tolist()}, got {got.tolist()}.")
    say_right()


def elbo(function: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    """Notebook 04: one ELBO-weighted estimate, from log p of every place (L,) and which are hidden, bool (L,)."""
    log_p = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    for hidden in (torch.tensor([True, False, True, False]), torch.tensor([True, True, True, True])):
        k = int(hidden.sum())
        wanted, got = 4 / k * float(log_p[hidden].sum()), float(function(log_p, hidden))
        if k < 4 and math.isclose(got, float(log_p[hidden].sum()), abs_tol=1e-6):
            expect(False, "That is the plain sum over hidden places: fewer of them must count more, by L / k.")
        if math.isclose(got, float(log_p[hidden].mean()), abs_tol=1e-6):
            expect(False, "That is the mean of hidden places: the image has L of them, so multiply by L.")
        if k < 4 and math.isclose(got, 4 / (4 - k) * float(log_p[~hidden].sum()), abs_tol=1e-6):
            expect(False, "You took the visible places: they are given, only the hidden ones are predicted.")
        expect(math.isclose(got, wanted, abs_tol=1e-6), f"{k} of 4 hidden: expected {wanted:.3f}, got {got:.3f}.")
    say_right()


def pairs(function: Callable[[np.ndarray, int], int]) -> None:
    """Notebook 05: how many pairs verdicts (P, N) give, each image used once, at most `most` a prompt."""
    labels = np.array([[1] * 5, [0, 0, 0, 0, 1], [0] * 5, [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], dtype=bool)
    right, wrong = labels.sum(axis=1), (~labels).sum(axis=1)
    across = np.minimum(labels.sum(axis=0), (~labels).sum(axis=0)).sum()
    got = float(function(labels, 10))
    expect(got != (right * wrong).sum(), "Each image is used once: three right and two wrong make two pairs, not six.")
    expect(got != right.sum(), "Each right image needs a wrong one of its prompt.")
    expect(got != min(right.sum(), wrong.sum()), "Both images of a pair are of one prompt: count by prompt, then add.")
    expect(got != across, "That looks along the wrong axis: each row is a prompt.")
    expect(got == 4, f"The five prompts give 0, 1, 0, 2 and 1 pairs: expected 4, got {got:g}.")
    got = float(function(labels, 1))
    expect(got == 3, f"With most = 1, the fourth prompt gives one of its two pairs: expected 3 in all, got {got:g}.")
    say_right()


def chance_of_a_pair(function: Callable[[float, int], float]) -> None:
    """Notebook 05: how likely n images of a prompt have both labels, if each is right with chance p."""
    for p, n in ((0.2, 10), (0.9, 4), (0.5, 2)):
        wanted, got = 1 - p**n - (1 - p) ** n, float(function(p, n))
        hint = ""
        if math.isclose(got, 1 - (1 - p) ** n, abs_tol=1e-9):
            hint = " That is the chance of at least one right image: a pair needs a wrong one too."
        elif math.isclose(got, 1 - p**n, abs_tol=1e-9):
            hint = " That is the chance of at least one wrong image: a pair needs a right one too."
        elif math.isclose(got, 1 - wanted, abs_tol=1e-9) and not math.isclose(wanted, 0.5):
            hint = " That is the chance of one label only."
        elif math.isclose(got, 2 * p * (1 - p), abs_tol=1e-9):
            hint = " That is for two images: with n of them, ask how all can be alike."
        elif math.isclose(got, (1 - p**n) * (1 - (1 - p) ** n), abs_tol=1e-9):
            hint = " Having a right and having a wrong image are not independent: subtract both ways to fail."
        expect(
            math.isclose(got, wanted, abs_tol=1e-9),
            f"With p = {p} and n = {n} expected {wanted:.4f}, got {got:.4f}.{hint}",
        )
    say_right()


def online_pair(function: Callable[[torch.Tensor], tuple[int, int]]) -> None:
    """Notebook 06: which of a prompt's fresh images make the online pair, from log-odds (K,): chosen, rejected."""
    for odds in (torch.tensor([0.5, 3.0, -2.0, 1.0]), torch.tensor([-5.0, -4.0, -9.0])):
        best, worst = int(odds.argmax()), int(odds.argmin())
        chosen, rejected = (int(place) for place in function(odds))
        expect((chosen, rejected) != (worst, best), "They are swapped: chosen first, rejected second.")
        expect(
            rejected == worst,
            f"The rejected image is the one with the lowest log-odds, place {worst}, not {rejected}.",
        )
        expect(
            chosen == best,
            f"The chosen image is the one with the highest log-odds, place {best}, even if that is below 0.",
        )
    say_right()


def guided(function: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
    """Notebook 06: the guided loss from offline margins (B,), online margins (K,) and λ."""
    offline = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    online = torch.tensor([1.0, -0.5], requires_grad=True)
    weight = 0.5
    parts = -F.logsigmoid(offline).mean(), -F.logsigmoid(online).mean()
    wanted = parts[0] + weight * parts[1]
    got = function(offline, online, weight)
    value = float(got)
    both = -F.logsigmoid(torch.cat([offline, online])).mean()
    expect(not math.isclose(value, float(both), abs_tol=1e-5), "That is one mean over all pairs: λ has no part in it.")
    expect(
        not math.isclose(value, float(parts[0] + parts[1]), abs_tol=1e-5),
        "The weight λ of the online pairs is missing.",
    )
    expect(
        not math.isclose(value, float(parts[0] - weight * online.mean()), abs_tol=1e-5),
        "That adds the margin itself: the online pairs have DPO's loss too, −log σ.",
    )
    expect(math.isclose(value, float(wanted), abs_tol=1e-5), f"Expected {float(wanted):.4f}, got {value:.4f}.")
    expect(bool(got.requires_grad), "The loss has no gradient: do not turn it into a number on the way.")
    got.backward()
    expect(
        online.grad is not None and bool(online.grad.abs().sum() > 0),
        "No gradient reaches the online pairs: a reward that is a constant teaches nothing.",
    )
    say_right()


def break_even(function: Callable[[float, float, float], float]) -> None:
    """Notebook 06: from how many pictures on alignment pays; its seconds, and a picture's without and with it."""
    for upfront, without, with_it in ((3600.0, 2.0, 0.5), (100.0, 1.0, 0.9)):
        wanted, got = upfront / (without - with_it), float(function(upfront, without, with_it))
        hint = ""
        if math.isclose(got, upfront / without, rel_tol=1e-9):
            hint = " The aligned generator's pictures cost something too: divide by what each one saves."
        elif math.isclose(got, upfront / (with_it + without), rel_tol=1e-9):
            hint = " A picture saves the difference of the two, not their sum."
        elif math.isclose(got, -wanted, rel_tol=1e-9):
            hint = " The sign: what is saved is what it costs without, minus with."
        elif math.isclose(got, 1 / wanted, rel_tol=1e-9):
            hint = " Upside down: seconds once, divided by seconds saved a picture."
        expect(
            math.isclose(got, wanted, rel_tol=1e-6),
            f"{upfront:g} s once, {without:g} or {with_it:g} s each: expected {wanted:.1f}, got {got:.1f}.{hint}",
        )
    expect(
        math.isinf(float(function(100.0, 0.5, 1.0))),
        "Where a picture of the aligned generator costs more, alignment never pays: return infinity, np.inf.",
    )
    say_right()
