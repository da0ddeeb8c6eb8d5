"""What the checkers of all exercises share: they compare an answer with the right one, and know the usual mistakes.

A chapter's checkers stand in its own file, ch00.py to ch11.py, as `check_…` functions of the learner's function; each
raises AssertionError with a hint unless the function does what its docstring says.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from torch import Tensor

F = TypeVar("F", bound=Callable)


def check(checker: Callable[[F], None], function: F) -> None:
    """Try a learner's function on a chapter's checker, and print that it is right or a hint at what is wrong."""
    try:
        checker(function)
        print("✓ Right.")
    except (NotImplementedError, AssertionError) as hint:
        print(hint)


def expect(condition: bool, hint: str) -> None:
    """AssertionError with a hint for the learner unless the condition holds."""
    if not condition:
        raise AssertionError(hint)


def compare(
    got: object, wanted: object, mistakes: Mapping[str, object] | None = None, case: str = "", shape: str = ""
) -> None:
    """AssertionError unless an answer is what is wanted, give or take a rounding error; both are numbers of any kind.
    mistakes: hint → a wrong answer that calls for it, or a test of the answer; case: what was asked, said where no hint
    fits; shape: what is wanted, said of a wrong shape."""
    answer, right = as_array(got), as_array(wanted)
    fits = not shape or answer.shape == right.shape
    expect(fits, f"{shape} is wanted: shape {right.shape}, got {answer.shape}.")
    for hint, wrong in (mistakes or {}).items():
        expect(not (wrong(answer) if callable(wrong) else same(answer, wrong) and not same(wrong, right)), hint)
    said = [(part.round(4) if part.dtype.kind == "f" else part).tolist() for part in (right, answer)]
    expect(same(answer, right), f"{f'{case}: expected' if case else 'Expected'} {said[0]}, got {said[1]}.")


def as_array(values: object) -> np.ndarray:
    """Numbers of any kind as an array."""
    return np.asarray(values.detach() if isinstance(values, Tensor) else values)


def same(one: object, other: object) -> bool:
    """Whether numbers of any kind have the same shape and, give or take a rounding error, the same values."""
    first, second = as_array(one), as_array(other)
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-5, atol=1e-6))
