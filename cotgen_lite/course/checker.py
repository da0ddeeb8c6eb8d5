"""What the checkers of all exercises share: they compare an answer with the right one, and know the usual mistakes.

A chapter's checkers stand in its own file, ch00.py to ch11.py, as `check_…` functions of the learner's function; each
raises AssertionError with a hint unless the function does what its docstring says.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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


def expect_shape(got: np.ndarray | Tensor, shape: tuple[int, ...], what: str, hint: str = "") -> None:
    """AssertionError unless an answer has this shape."""
    found = tuple(got.shape)
    expect(found == shape, f"{what}, shape {shape}, is wanted; got {found}{': ' + hint if hint else ''}.")


def compare(got: object, wanted: object, mistakes: Mapping[str, object] = MappingProxyType({}), case: str = "") -> None:
    """AssertionError unless an answer is what is wanted, give or take a rounding error. got, wanted: numbers, lists,
    arrays or tensors; mistakes: hint → the answer that calls for it, unless it happens to be right; case: what was
    asked, said where no hint fits."""
    answer, right = as_array(got), as_array(wanted)
    for hint, wrong in mistakes.items():
        expect(not same(answer, as_array(wrong)) or same(as_array(wrong), right), hint)
    said = [(part.round(4) if part.dtype.kind == "f" else part).tolist() for part in (right, answer)]
    expect(same(answer, right), f"{f'{case}: expected' if case else 'Expected'} {said[0]}, got {said[1]}.")


def as_array(values: object) -> np.ndarray:
    """Numbers of any kind as an array."""
    return np.asarray(values.detach() if isinstance(values, Tensor) else values)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same shape and, give or take a rounding error, the same numbers."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-5, atol=1e-6))
