"""Checkers of the exercises of chapters 07 and 08, on stopping and reflecting; `exercises.check` holds them all.

Each raises AssertionError with a hint, or prints that the answer is right.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cotgen_lite.course.exercises_alignment import expect, say_right

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


def kept(function: Callable[[Sequence[float]], int]) -> None:
    """Notebook 08: which image a reflection keeps, from what it would believe of all of them, log-odds in order."""
    rows = ([-2.0, 1.0, 3.0, -1.0], [-3.0, -1.0, -2.0, -4.0], [0.5, 2.0, 1.0, 3.0], [-1.0, -2.0, -3.0, 0.1])
    got, wanted = [int(function(list(row))) for row in rows], [1, 1, 0, 3]
    if got == [2, 1, 3, 3]:
        expect(False, "The first yes ends it: what would have come later is never drawn.")
    if got == [1, 3, 0, 3]:
        expect(False, "Without a yes the likeliest is kept, not the last.")
    if got == [1, 0, 0, 3]:
        expect(False, "Without a yes the likeliest is kept, not the first.")
    if got == [2, 2, 1, 4]:
        expect(False, "Images are counted from 0 here: the first one is number 0.")
    if got == [3, 3, 3, 3]:
        expect(False, "That is always the last one: a yes ends it, and corrections can spoil.")
    case = f"of {[list(row) for row in rows]}"
    expect(got == wanted, f"Expected {wanted}, got {got}, {case}: yes means log-odds above 0.")
    say_right()


def changed(function: Callable[[np.ndarray, np.ndarray], tuple[int, int]]) -> None:
    """Notebook 08: how many images a reflection mended, and how many it spoiled; from verdicts before and after."""
    before = np.array([True, True, True, False, False, False, False, True, False])
    after = np.array([True, False, True, True, True, False, True, False, False])
    answer = np.asarray(function(before.copy(), after.copy()), dtype=float)
    expect(answer.shape == (2,), "Two numbers are wanted, mended and spoiled: their difference hides how many of each.")
    got, wanted = tuple(answer.tolist()), (3, 2)
    if got == (2, 3):
        expect(False, "The other way round: mended first, then spoiled.")
    if got == (5, 4):
        expect(False, "That counts all that are right, and wrong, afterwards: some were so before.")
    if got == (4, 5):
        expect(False, "That counts all that were right, and wrong, before: look at both verdicts of each image.")
    if np.allclose(got, (3 / 9, 2 / 9)):
        expect(False, "Those are shares: counts are wanted.")
    if np.allclose(got, (3 / 5, 2 / 4)):
        expect(False, "Those are shares of the wrong and of the right ones: counts are wanted.")
    expect(got == wanted, f"Expected {wanted}, got {got}: mended was wrong and is right.")
    say_right()


def others_reasons(function: Callable[[Sequence[str], Sequence[str]], Sequence[str]]) -> None:
    """Notebook 08: the control: for each image the reasons of another one of the same tag; from reasons and tags."""
    tags = ["position", "color_attr", "position", "color_attr", "position", "counting", "counting"]
    reasons = [f"reasons {number}" for number in range(len(tags))]
    got = list(function(list(reasons), list(tags)))
    expect(len(got) == len(tags), f"Reasons for each of {len(tags)} images are wanted, got {len(got)}.")
    expect("" not in got, "Empty reasons are another control: that one tells the generator that nothing is known.")
    expect(set(got) <= set(reasons), "Only reasons that were given may be used: the same texts, at other images.")
    own = [number for number, text in enumerate(got) if text == reasons[number]]
    if own:
        expect(False, f"Image {own[0]} keeps its own reasons: a control must take them from another image.")
    far = [number for number, text in enumerate(got) if tags[reasons.index(text)] != tags[number]]
    if far:
        expect(False, f"Image {far[0]} gets reasons of another tag: they would be easy to tell from its own kind.")
    if len(set(got)) < len(got):
        expect(False, "Some reasons are given twice: pass each on once, so that only their places change.")
    say_right()
