"""Checkers of chapter 11's exercises."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cotgen_lite.course.exercises_alignment import expect, say_right


def verdict(function: Callable[[float, float], str]) -> None:
    """Notebook 11: from the interval of a difference to "yes", "no" or "undecided"."""
    for low, high, wanted in (
        (0.01, 0.2, "yes"),
        (-0.2, -0.01, "no"),
        (-0.1, 0.3, "undecided"),
        (0.0, 0.1, "undecided"),
    ):
        got = function(low, high)
        expect(got in ("yes", "no", "undecided"), f'One of "yes", "no" and "undecided" is wanted, not {got!r}.')
        if (low, wanted) == (0.0, "undecided"):
            expect(got == wanted, "An interval that touches zero holds it: undecided.")
        elif wanted == "undecided":
            expect(got == wanted, f"From {low} to {high} holds zero: such a difference may have either sign.")
        elif wanted == "no":
            expect(got != "undecided", f"From {low} to {high} lies wholly below zero: that is a decision, too.")
            expect(got == wanted, f"From {low} to {high} lies below zero: the claim says above.")
        else:
            expect(got == wanted, f"From {low} to {high} lies wholly above zero, as the claim says.")
    say_right()


def paired_difference(
    function: Callable[[npt.NDArray, npt.NDArray, npt.NDArray], npt.NDArray],
) -> None:
    """Notebook 11: the difference of two methods' means in each of R bootstrap samples, (R,); from right a, right b,
    both (P,), and the prompts drawn in each sample, (R, P)."""
    a, b = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 0.5])
    rows = np.array([[0, 0, 1, 2], [3, 3, 3, 3], [1, 2, 1, 2]])
    got = np.asarray(function(a.copy(), b.copy(), rows.copy()), dtype=float)
    expect(got.shape == (3,), f"One difference a sample is wanted, shape (3,); got {got.shape}: average over prompts.")
    wanted = (a - b)[rows].mean(axis=1)
    for wrong, hint in (
        (-wanted, "The other way around: the first method minus the second."),
        (np.full(3, (a - b).mean()), "Every sample gives the same: take the prompts that it drew, a[rows]."),
        (
            a[rows].mean(1) - b.mean(),
            "Both methods are measured on the *same* drawn prompts: that is what makes it paired.",
        ),
        ((a - b)[rows].sum(axis=1), "Accuracies are means over prompts, not sums."),
    ):
        expect(not np.allclose(got, wrong), hint)
    expect(np.allclose(got, wanted), f"Expected {wanted.tolist()}, got {got.tolist()}.")
    say_right()
