"""Checkers of the exercises of chapter 09, on next-token generators; `exercises.check` holds them all.

Each raises AssertionError with a hint, or prints that the answer is right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cotgen_lite.course.exercises_alignment import expect, say_right


def whole_after(function: Callable[[int, int, int, int], int]) -> None:
    """Notebook 09: the run, counted from 1, after which a thing is drawn whole; from the row and column of its last
    place on the grid (counted from 0), the grid's side, and the number of runs."""
    cases = ((0, 0, 8, 16), (0, 7, 8, 16), (3, 3, 8, 16), (3, 4, 8, 16), (7, 7, 8, 16), (2, 1, 4, 4))
    got, wanted = [int(function(*case)) for case in cases], [1, 2, 7, 8, 16, 3]
    if got == [one - 1 for one in wanted]:
        expect(False, "Runs are counted from 1 here: add one.")
    if got == [-(-(row * side + column) // (side * side // runs)) for row, column, side, runs in cases]:
        expect(False, "The place itself has to be drawn as well: count the places up to it, it included.")
    if got == [row + 1 for row, *_ in cases]:
        expect(False, "That counts rows: a run is as many codes as L / runs, here half a row.")
    if got == [(column * side + row) // (side * side // runs) + 1 for row, column, side, runs in cases]:
        expect(False, "Codes are written row by row: the number of a place is row * side + column.")
    if got == [row * side + column + 1 for row, column, side, _ in cases]:
        expect(False, "Those are codes: divide by how many of them make a run.")
    expect(got == wanted, f"Expected {wanted}, got {got}, for (row, column, side, runs) in {list(cases)}.")
    say_right()


def places(function: Callable[[int, int, bool], int]) -> None:
    """Notebook 09: how many sequence places one image takes (without guidance); from words, codes L, and whether keys
    and values are kept."""
    got = [function(5, 4, True), function(5, 4, False), function(16, 64, False)]
    wanted = [5 + 3, 5 + 6 + 7 + 8, sum(16 + k for k in range(64))]
    if got == [5 + 4, 5 + 6 + 7 + 8 + 9, sum(16 + k for k in range(65))]:
        expect(False, "One pass too many: once the last code is drawn, nothing has to be read any more.")
    if got == [3, 0 + 1 + 2 + 3, sum(range(64))]:
        expect(False, "The words take places too: once if they are kept, in every pass if not.")
    if got == [4, 4, 64]:
        expect(False, "Those are passes: without kept keys and values each of them reads the whole sequence.")
    if got == [wanted[1], wanted[0], 16 + 63]:
        expect(False, "The other way round: kept keys and values save work.")
    if got == [8, (5 + 4) * 4, (16 + 64) * 64]:
        expect(False, "The sequence grows: in the first pass only the words are there.")
    expect(got == wanted, f"Expected {wanted}, got {got}, for (5, 4, kept), (5, 4, not), (16, 64, not).")
    say_right()


def image_log_probability(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Notebook 09: the exact log-probability of each image; from logits of whole sequences (B, W + L, K), and the
    image's codes (B, L)."""
    torch.manual_seed(0)
    logits, codes = torch.randn(3, 5 + 4, 7), torch.randint(7, (3, 4))
    got = torch.as_tensor(function(logits.clone(), codes.clone())).float()
    expect(got.shape == (3,), f"One number an image is wanted, shape (3,); got {tuple(got.shape)}: add up over places.")

    def told(seen: Tensor) -> Tensor:
        return seen.gather(2, codes[..., None])[..., 0]

    chances, raw = logits.log_softmax(dim=2), logits
    for wrong, hint in (
        (told(chances[:, -4:]).sum(1), "A place's logits are of the *next* code: begin one place earlier."),
        (told(chances[:, 4:8]).mean(1), "That is the mean: the log-probability of all codes is their sum."),
        (told(raw[:, 4:8]).sum(1), "Those are logits: take `log_softmax` first."),
        (told(logits.softmax(2)[:, 4:8]).sum(1), "Probabilities multiply, their logarithms add up: take the log."),
        (told(logits.log_softmax(1)[:, 4:8]).sum(1), "The softmax runs over the codes, the last dimension."),
        (told(chances[:, :4]).sum(1), "The first places belong to the words: the image's codes stand at the end."),
        (-told(chances[:, 4:8]).sum(1), "The sign: that is the loss, a log-probability is at most 0."),
    ):
        expect(not torch.allclose(got, wrong, atol=1e-5), hint)
    wanted = told(chances[:, 4:8]).sum(1)
    expect(torch.allclose(got, wanted, atol=1e-5), f"Expected {wanted.tolist()}, got {got.tolist()}.")
    say_right()
