"""What the exercises of all chapters share: an exercise is data, and `check` tries a learner's function on it.

A chapter's exercises stand in its own file, ch00.py to ch11.py, as `check_…`. A hint at a usual mistake is given only
where the learner's answers are that mistake's in every case; else the first case that is wrong is shown.
"""

import io
import traceback
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cotgen_lite.course.doctor import say
from cotgen_lite.hub import first_line

Answer = tuple[np.ndarray, ...]  # what was returned, then its gradients by those arguments that ask for them

IN_WORDS: dict[type[BaseException], str] = {  # the first that fits is said
    RecursionError: "it calls itself without end",
    ImportError: "what it imports is not there",
    NameError: "it uses a name that is not known: misspelt, or defined in a cell that was not run",
    IndexError: "an index lies outside of what is there",
    KeyError: "what it looks up is not there",
    ZeroDivisionError: "it divides by zero",
    AttributeError: "it asks a value for something that such values do not have",
    TypeError: "it handles a value of another kind than it expects",
    SystemExit: "it ends the program instead of returning",
}


RIGHT = "✓ Right."


@dataclass(frozen=True)
class Exercise:
    """A right function, and the cases it is tried on, each the arguments of a call.

    mistakes: of a case's arguments, hint → the wrong answer that calls for it; wanted: what an answer is, in words;
    rule: of an answer and the case's arguments, what is wrong in words, or ""; free: many answers are right, and the
    rule alone decides.
    """

    solution: Callable[..., Any]
    cases: Sequence[tuple]
    mistakes: Callable[..., Mapping[str, Any]] = lambda *_: {}
    wanted: str = "One number"
    rule: Callable[..., str] = lambda *_: ""
    free: bool = False


def check(exercise: Exercise, function: Callable[..., Any] | None = None) -> None:
    """Try a learner's function on an exercise: prints ✓, ✗ with a hint, or that it is not solved yet. Nothing is raised
    but KeyboardInterrupt."""
    try:
        say(_verdict(exercise, function))
    except NotImplementedError as stub:
        say(f"Not solved yet: {stub}" if str(stub) else "Not solved yet.")


def yours_or_ours(exercise: Exercise, function: Callable[..., Any]) -> Callable[..., Any]:
    """A learner's function if it is right, else the exercise's solution; prints which, for a cell that uses it."""
    with redirect_stdout(io.StringIO()):  # what the function prints
        try:
            right = _verdict(exercise, function) == RIGHT
        except NotImplementedError:
            right = False
    print("Your function is used." if right else "Your function is not right yet, so the solution is used.")
    return function if right else exercise.solution


def _verdict(exercise: Any, function: Any) -> str:
    if not isinstance(exercise, Exercise) or not callable(function):
        return "✗ The checker takes your function itself, without parentheses: check(ch00.check_guide, my_guide)."
    names = list(signature(exercise.solution).parameters)[: len(exercise.cases[0])]
    try:
        signature(function).bind(*exercise.cases[0])
    except TypeError:
        return f"✗ Your function has to take, in this order: {', '.join(names)}."
    except ValueError:  # a built-in function that does not tell
        pass
    answers: list[Answer | str] = []
    for case in exercise.cases:
        answers.append(_answer(function, case))
        if isinstance(answers[-1], str):
            break
    tried = list(zip(exercise.cases, answers, strict=False))
    faults = ((case, _fault(exercise, case, got)) for case, got in tried)
    case, fault = next((one for one in faults if one[1]), ((), ""))
    if not fault:
        return RIGHT
    told = [_mistakes(exercise, case) for case, _ in tried]
    for hint in told[0]:
        if all(_same(got, wrong[hint]) for (_, got), wrong in zip(tried, told, strict=True)):
            return f"✗ {hint}"
    inputs = ", ".join(f"{name} = {_said(_array(one))}" for name, one in zip(names, case, strict=True))
    return f"✗ {fault}\n  Tried with {inputs}."


def _answer(function: Callable[..., Any], case: tuple) -> Answer | str:
    """What a function returns for copies of a case's arguments, or what is wrong about it, in words."""
    handed, said = deepcopy(case), io.StringIO()
    try:
        with redirect_stdout(said):
            answer = function(*handed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return _broken(error, function)
    finally:
        say(said.getvalue(), end="")
    if answer is None or answer is ...:
        code = getattr(function, "__code__", None)
        if code and len(code.co_code) == len(_stub.__code__.co_code):
            raise NotImplementedError
        cure = "It only prints: write return in place of print" if said.getvalue() else "End it with return"
        return f"Your function returns {answer}. {cure}."
    try:
        return _read(answer, handed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object says itself how it is read
        made = ": list(…) around it makes its values" if hasattr(type(answer), "__next__") else ""
        made = ": a list is wanted, which list(…) around it makes" if isinstance(answer, Set | ValuesView) else made
        told = isinstance(answer, int | list | tuple | np.ndarray | Tensor)
        inside = f" that cannot be read ({shorten(first_line(error), 120, placeholder='…')})" if told else ""
        return f"Your function returns a {type(answer).__name__}{inside}{made}."


def _stub() -> None: ...


def _broken(error: BaseException, function: Callable[..., Any]) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in frames if frame.filename == file]
    if isinstance(error, NotImplementedError) and frames[-1:] == own[-1:] and "raise" in (own[-1].line or "raise"):
        raise error  # a stub; torch raises this, too, where it cannot compute
    line = f" in line {own[-1].lineno} of its cell, {shorten(own[-1].line or '', 70, placeholder='…')}" if own else ""
    plain = next((f": {words}" for kind, words in IN_WORDS.items() if isinstance(error, kind)), "")
    message = f"{type(error).__name__}: {shorten(str(error), 120, placeholder='…')}".rstrip(": ")
    return f"Your function breaks off{line.rstrip(', ')}{plain} ({message})."


def _mistakes(exercise: Exercise, case: tuple) -> dict[str, Answer | str]:
    handed = deepcopy(case)
    return {hint: _read(wrong, handed) for hint, wrong in exercise.mistakes(*handed).items()}


def _read(answer: Any, handed: tuple) -> Answer | str:
    """An answer as arrays, with its gradients where arguments ask for them; TypeError or ValueError if it is neither
    numbers nor texts."""
    value = _array(answer)
    leaves = [one for one in handed if isinstance(one, Tensor) and one.requires_grad]
    if not leaves:
        return (value,)
    if not (isinstance(answer, Tensor) and answer.requires_grad):
        return "The loss has no gradient: return a tensor, and do not turn it into a number on the way."
    slopes = torch.autograd.grad(answer.sum(), leaves, allow_unused=True)
    pairs = zip(leaves, slopes, strict=True)
    return value, *(_array(torch.zeros_like(leaf) if slope is None else slope) for leaf, slope in pairs)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.array([_array(one) for one in value] if isinstance(value, list | tuple) else value)
    if array.dtype.kind == "O" and array.size and all(isinstance(one, str) for one in array.ravel()):
        array = array.astype(str)
    if array.dtype.kind == "O":  # fractions, whole numbers of many digits
        array = np.array([float(one) for one in array.ravel()]).reshape(array.shape)
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{array.dtype} is no kind of number or text")
    return array


def _same(one: Answer | str, other: Answer | str) -> bool:
    """Whether answers, not faults, are the same."""
    if isinstance(one, str) or isinstance(other, str):
        return False
    return len(one) == len(other) and all(map(_close, one, other))


def _close(got: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether arrays have the same shape and, give or take float32's rounding errors, values."""
    if got.shape != wanted.shape or _are_texts(got) != _are_texts(wanted):
        return False
    if _are_texts(wanted):
        return bool((got == wanted).all())
    rough = 1e-4 if wanted.dtype.kind == "f" else 1e-6
    return np.allclose(got.astype(float), wanted.astype(float), rough, 1e-6, equal_nan=True)


def _are_texts(array: np.ndarray) -> bool:
    """Whether an array holds texts; of one without entries nobody can say."""
    return array.dtype.kind == "U" and array.size > 0


def _fault(exercise: Exercise, case: tuple, got: Answer | str) -> str:
    """What is wrong with the answer in one case; nothing if it is right."""
    if isinstance(got, str):
        return got
    right = _answer(exercise.solution, case)
    if not exercise.free and _same(got, right):
        return ""
    answer, wanted = got[0], np.asarray(right[0])
    if _are_texts(answer) != _are_texts(wanted) and answer.size:
        return f"{exercise.wanted} is wanted, not {_said(answer)}."
    if answer.shape != wanted.shape and not exercise.free:
        yours = f"an answer of shape {answer.shape}" if answer.ndim else f"the single number {_said(answer)}"
        return f"{exercise.wanted} is wanted{f', shape {wanted.shape}' if wanted.ndim else ''}, not {yours}."
    broken = exercise.rule(answer, *case)
    if broken or exercise.free:
        return broken
    if answer.dtype.kind == "f" and (~np.isfinite(answer) & np.isfinite(wanted)).any():
        return "Your answer holds nan or infinity. Is something divided by 0, or too large for exp or log?"
    if _close(answer, wanted):
        return "The value is right, but not its gradient. Is a part of it a plain number?"
    digits = 4 if _said(answer) != _said(wanted) else 10
    return f"Expected {_said(wanted, digits)}, got {_said(answer, digits)}."


def _said(array: np.ndarray, digits: int = 4) -> str:
    """Values as hints show them: rounded, and large arrays by their shape."""
    if array.size > 40:
        return f"an array of shape {array.shape}"
    if array.ndim:
        plain = array.astype(int) if array.dtype.kind == "b" else array
        return f"[{', '.join(_said(np.asarray(one), digits) for one in plain)}]"
    if array.dtype.kind != "f":
        value = repr(array.item())
        return value if len(value) <= 60 else f"{value[:57]}..."
    return f"{array:.0f}" if 1e4 <= abs(array) < 1e9 and digits < 9 else f"{array:.{digits}g}"
