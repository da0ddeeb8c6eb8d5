"""Checkers of the exercises of chapters 07 and 08, on stopping and reflecting; `exercises.check` holds them all.

Each raises AssertionError with a hint, or prints that the answer is right.
"""

from collections.abc import Callable

import numpy as np

from cotgen_lite.exercises_alignment import expect, say_right

CLARITY = np.array([[-1.0, 2.0, 1.0, 3.0], [-2.0, -1.0, -1.0, -3.0], [1.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 0.5, 2.0]])
POTENTIAL = np.array([[-3.0, 1.0, -1.0, 2.0], [-1.0, -1.0, -1.0, -1.0], [2.0, -4.0, 1.0, 0.5], [9.0, -1.0, -2.0, 1.0]])


def first_clear(function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Notebook 07: the step, counted from 1, at which each path is clear for the first time; 0 for never."""
    got = np.asarray(function(CLARITY.copy()))
    expect(got.shape == (4,), f"One number a path is wanted, shape (4,); got {got.shape}: look along the steps.")
    wanted = np.array([2, 0, 1, 3])
    if (got == [1, 0, 0, 2]).all():
        expect(False, "Steps are counted from 1 here: add one, but keep 0 for paths that never are.")
    expect(got[1] != 1, "The second path is never clear: argmax gives 0 for it, as for one that is clear at once.")
    if (got == [4, 0, 3, 4]).all():
        expect(False, "That is where each path is clearest: the first step above zero is asked for.")
    if (got == [3, 0, 3, 2]).all():
        expect(False, "That counts how many steps are clear: which is the first?")
    expect((got == wanted).all(), f"Expected {wanted.tolist()}, got {got.tolist()}: clear means log-odds above 0.")
    say_right()


def stops(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Notebook 07: the step, counted from 1, at which PARM stops each path; 0 for paths that it lets live."""
    got = np.asarray(function(CLARITY.copy(), POTENTIAL.copy()))
    expect(got.shape == (4,), f"One number a path is wanted, shape (4,); got {got.shape}: look along the steps.")
    wanted = np.array([3, 0, 0, 3])
    if (got == [1, 1, 2, 2]).all():
        expect(False, "Potential counts only where the path is clear: path 2 never is, and is never stopped.")
    if (got == [0, 0, 0, 3]).all():
        expect(False, "That asks at the first clear step only; the paper's text asks at every clear step.")
    if (got == [2, 0, 0, 2]).all():
        expect(False, "Steps are counted from 1 here.")
    if (got == [2, 0, 1, 4]).all():
        expect(False, "The sign: paths *without* potential are stopped, log-odds of 0 or less.")
    expect((got == wanted).all(), f"Expected {wanted.tolist()}, got {got.tolist()}: clear, and potential not above 0.")
    say_right()


def saved(function: Callable[[np.ndarray, int], float]) -> None:
    """Notebook 07: the share of generator passes that stopping saves; from the steps that each path ran, and T."""
    ran = np.array([18, 18, 18, 6, 12])
    got, wanted = float(function(ran, 18)), 1 - 72 / 90
    if np.isclose(got, 72 / 90):
        expect(False, "That is the share that was spent: the rest was saved.")
    if np.isclose(got, 2 / 5):
        expect(False, "That is the share of paths that were stopped: they did run some steps.")
    if np.isclose(got, 18):
        expect(False, "That is the number of steps saved: divide by what all paths would have run.")
    if np.isclose(got, 1 / 2):
        expect(False, "That averages over the stopped paths only: the share is of all paths' steps.")
    expect(bool(np.isclose(got, wanted)), f"With steps {ran.tolist()} of 18, expected {wanted:.2f}, got {got}.")
    say_right()
