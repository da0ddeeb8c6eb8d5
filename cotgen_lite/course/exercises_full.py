"""Checkers of the exercises of chapter 10, on the full scale's costs; `exercises.check` holds them all.

Each raises AssertionError with a hint, or prints that the answer is right.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cotgen_lite.course.exercises_alignment import expect, say_right


def keys_and_values(function: Callable[[int, int, int, int, int, int], int]) -> None:
    """Notebook 10: bytes of the keys and values that are kept while n guided candidates are drawn; from n, the places
    of one sequence, the layers, the heads of a layer, the width of a head, and the bytes of a number."""
    for n, places, layers, heads, width, size in ((20, 280, 24, 32, 64, 8), (3, 1050, 5, 7, 11, 2)):
        got, one = int(function(n, places, layers, heads, width, size)), n * places * layers * heads * width * size
        for share, hint in (
            (4, "That is a quarter: keys *and* values, and two rows a candidate, with the prompt and without."),
            (2, "That is half: keys *and* values are kept, for two rows a candidate, with the prompt and without."),
        ):
            expect(got != 4 * one // share, hint)
        expect(got != 4 * one // size, "Those are numbers: each takes several bytes.")
        expect(got != 4 * one // heads, "That is one head of each layer: a layer keeps all its heads' keys and values.")
        expect(got != 4 * one // layers, "That is one layer: each has keys and values of its own.")
        expect(got != 4 * one // n, "That is one candidate: all n are drawn at once.")
        expect(got != 4 * one * places, "Keys and values grow with the places, not with their square, as scores would.")
        expect(got == 4 * one, f"Expected {4 * one}, got {got}, for n = {n} and {places} places.")
    say_right()


def hours(function: Callable[[int, int, int, int, float, int], float]) -> None:
    """Notebook 10: hours that a pool of guided images takes; from images, steps of each, places of a pass, the model's
    weights, the FLOPs a second that one GPU reaches, and the number of GPUs."""
    for images, steps, places, weights, rate, gpus in (
        (288_000, 18, 258, 1_208_506_368, 94e12, 8),
        (7, 5, 11, 1000, 3.0, 2),
    ):
        got = float(function(images, steps, places, weights, rate, gpus))
        wanted = images * steps * 2 * places * 2 * weights / rate / gpus / 3600

        def caught(wrong: float, hint: str, got: float = got) -> None:
            expect(not math.isclose(got, wrong, rel_tol=1e-6), hint)

        caught(wanted * 3600, "Those are seconds: an hour has 3,600.")
        caught(wanted * 60, "Those are minutes: an hour has 60.")
        caught(
            wanted / 4, "A weight takes a multiplication *and* an addition, and guidance a second row: both double it."
        )
        caught(wanted / 2, "Half of it: 2 FLOPs a weight and place, and two rows, with the prompt and without.")
        caught(wanted * gpus, "The GPUs share the work: divide by their number.")
        caught(wanted / steps, "Every step is a pass over the whole image.")
        caught(wanted / places, "A weight is used once for every place of the sequence.")
        expect(math.isclose(got, wanted, rel_tol=1e-6), f"Expected {wanted:.4g} hours, got {got:.4g}.")
    say_right()


def parm_over_best(function: Callable[[npt.NDArray[np.int64], int, float, float], float]) -> None:
    """Notebook 10: what PARM costs as a share of what best-of-n costs; from how many of the steps each path ran (those
    that ran all are judged once more when they are finished), the steps, the cost of a step, and that of a look."""
    for ran, steps, step, look in (
        (np.array([18, 3, 5, 18, 2]), 18, 1.2, 25.0),
        (np.array([4, 4, 1]), 4, 3.0, 0.5),
    ):
        got, number, done = float(function(ran, steps, step, look)), len(ran), ran == steps
        best = number * (steps * step + look)
        wanted = ran.sum() * (step + look) / best
        asked = np.minimum(ran, steps - 1).sum() * look

        def caught(wrong: float, hint: str, got: float = got) -> None:
            expect(not math.isclose(got, wrong, rel_tol=1e-6), hint)

        caught(
            (ran.sum() * step + asked) / best, "The finished pictures are looked at once more, to choose among them."
        )
        caught(
            (ran.sum() * step + done.sum() * look) / best,
            "PARM looks at every step, not only at the finished pictures.",
        )
        caught(
            number * steps * (step + look) / best,
            "Stopped paths cost nothing more: count the steps that each path ran.",
        )
        caught(
            ran.sum() * step / (number * steps * step), "That is the generator alone: the verifier's looks cost too."
        )
        caught(
            (number * steps * step + ran.sum() * look) / best, "A stopped path's steps are saved as well as its looks."
        )
        caught(
            ran.sum() * (step + look) / (number * steps * step), "Best-of-n looks too: once at each finished picture."
        )
        caught(1 / wanted, "Upside down: PARM's cost over that of best-of-n.")
        caught(1 - wanted, "That is what is saved: the share that is spent is asked for.")
        expect(
            math.isclose(got, wanted, rel_tol=1e-6), f"Expected {wanted:.3f}, got {got:.3f}, for steps {ran.tolist()}."
        )
    say_right()
