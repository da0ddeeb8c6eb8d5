"""The checkers pass right answers in any style and no wrong ones, and say what is wrong in words."""

import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cotgen_lite.course import ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11
from cotgen_lite.course.checker import Exercise, check, yours_or_ours
from cotgen_lite.prompts import color_attr

CHAPTERS = (ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11)
EXERCISES: dict[str, Exercise] = {
    name.removeprefix("check_"): exercise
    for chapter in CHAPTERS
    for name, exercise in vars(chapter).items()
    if name.startswith("check_")
}
# An exercise of no chapter, on which the checker itself is tried: the share of rows with any right candidate.
SHARE = Exercise(
    lambda correct: correct.any(axis=1).mean(),
    (
        (np.array([[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool),),
        (np.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool),),
        (np.zeros((2, 3), dtype=bool),),
    ),
    wanted="One share",
)
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STUB = re.compile(r"check\(ch\d\d\.check_(\w+), (\w+)\)")
each = pytest.mark.parametrize("name", EXERCISES)


def folded_solutions() -> dict[str, Callable]:
    """The functions that notebooks show below exercises; they see what the cells tagged "from-scratch" define."""
    found: dict[str, Callable] = {}
    for path in sorted(NOTEBOOKS.glob("[01]*.ipynb")):
        space: dict[str, Any] = {"math": math, "torch": torch, "np": np, "F": F, "probability_yes": torch.sigmoid}
        asked: list[tuple[str, str]] = []
        for cell in nbformat.read(path, as_version=4).cells:
            if "from-scratch" in cell.metadata.get("tags", []):
                exec(cell.source, space)  # the notebook's own text
            if stubs := STUB.findall(cell.source):
                asked = stubs
            elif asked and "<summary>Solution" in cell.source:
                exec(cell.source.split("```python\n")[1].split("```")[0], space)
                found |= {exercise: space[function] for exercise, function in asked}
                asked = []
    return found


FOLDED = folded_solutions()


def said(name: str, function: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The verdict that `check` prints of a function, after what that prints itself."""
    check(SHARE if name == "share" else EXERCISES[name], function)
    verdict = re.search(r"^(✓ Right\.|✗ .+|Not solved yet.*)(\n  Tried with .+)?\n\Z", capsys.readouterr().out, re.M)
    assert verdict
    return verdict[0][:-1]


def test_every_exercise_is_asked_and_solved_in_a_notebook() -> None:
    assert FOLDED.keys() == EXERCISES.keys()


@each
def test_folded_solution_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(name, FOLDED[name], capsys) == "✓ Right."
    assert said(name, EXERCISES[name].solution, capsys) == "✓ Right."


# Right answers in plain Python, without a library's help, or in another library's words.


def plain_schedule(T: int, L: int) -> list[float]:
    left = [L]
    for s in range(T - 1):
        left.append(min(left[-1] - 1, max(1, int(L * math.cos(math.pi * (s + 1) / T / 2) + 1e-9))))
    return [float(before - after) for before, after in itertools.pairwise([*left, 0])]


def plain_order(hidden: Any, left: int, draws: Any) -> list[list[bool]]:
    stay = []
    for open_now, row in zip(hidden.tolist(), draws.tolist(), strict=True):
        lowest = sorted(draw for draw, at in zip(row, open_now, strict=True) if at)[:left]
        stay.append([at and draw in lowest for draw, at in zip(row, open_now, strict=True)])
    return stay


def plain_best_of_n(scores: Any, correct: Any, n: int) -> Fraction:
    tied = [[r for s, r in zip(scores, correct.tolist(), strict=True) if s == one] for one in scores]
    shares = [Fraction(sum(one), len(one)) for one in tied]
    ranked = sorted(zip(scores.tolist(), shares, strict=True))
    ways = [Fraction(math.comb(below, n - 1) * right) for below, (_, right) in enumerate(ranked)]
    return sum(ways, Fraction(0)) / math.comb(len(ranked), n)


def plain_auc(scores: Any, correct: Any) -> float:
    areas = []
    for row, right in zip(scores.tolist(), correct.tolist(), strict=True):
        pairs = [(a, b) for i, a in enumerate(row) for j, b in enumerate(row) if right[i] and not right[j]]
        if pairs:
            areas.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
    return sum(areas) / len(areas)


def plain_questions(names: list[str], colors: list[str], relation: str) -> list[str]:
    asked = [f"a {names[0]} {relation} a {names[1]}"] if relation else []
    for name, color in zip(names, colors, strict=True):
        asked += [f"a {color} {name}", f"a {name}"] if color else [f"a {name}"]
    return [f"a photo of {re.sub('^a (?=[aeiou])', 'an ', one)}" for one in asked]


def plain_balanced(labels: Any) -> list[list[int]]:
    places = []
    for row, right in enumerate(labels.tolist()):
        by_label = [[k for k in range(len(right)) if right[k] == wanted] for wanted in (False, True)]
        places += [[row, k] for one in by_label for k in one[::-1][: min(map(len, by_label))]]
    return places[::-1]


def plain_loss(logits: Any, ids: Any, answer: Any) -> float:
    told = [
        math.log(sum(math.exp(x) for x in logits[t - 1].tolist())) - float(logits[t - 1, ids[t]])
        for t in range(1, len(ids))
        if answer[t]
    ]
    return sum(told) / len(told)


def plain_likeness(tokens: Any) -> float:
    rows, alike = tokens.tolist(), []
    for i in range(len(rows)):
        for j in range(i):
            alike.append(sum(a == b for a, b in zip(rows[i], rows[j], strict=True)) / len(rows[i]))
    return sum(alike) / len(alike)


def plain_kept(log_odds: list[float]) -> int:
    for number in range(len(log_odds)):
        if log_odds[number] > 0:
            return number
    return log_odds.index(max(log_odds))


def plain_first(clarity: Any, potential: Any = None) -> list[int]:
    found = []
    for path, row in enumerate(clarity.tolist()):
        steps = [t + 1 for t, c in enumerate(row) if c > 0 and (potential is None or potential[path][t] <= 0)]
        found.append(steps[0] if steps else 0)
    return found


def plain_reasons(reasons: list[str], tags: list[str]) -> list[str]:
    given = list(reasons)
    for tag in set(tags):
        places = [at for at in range(len(tags)) if tags[at] == tag]
        for to, source in enumerate(places):
            given[places[to - 1]] = reasons[source]
    return given


def plain_log_probability(logits: Any, codes: Any) -> list[Any]:
    L = codes.shape[1]
    return [sum(torch.log_softmax(logits[b, -L - 1 + k], 0)[codes[b, k]] for k in range(L)) for b in range(len(codes))]


PLAINLY: dict[str, Callable] = {
    "schedule": plain_schedule,
    "order": plain_order,
    "enough": lambda steps, right, loss: min(
        T for T in steps if all(row.mean() + loss >= right[-1].mean() - 1e-9 for row in right[list(steps).index(T) :])
    ),
    "guide": lambda c, u, g: [(1 + g) * float(a) - g * float(b) for a, b in zip(c, u, strict=True)],
    "probability": lambda logits, yes, no: F.softmax(logits[yes + no], 0)[: len(yes)].sum().item(),
    "best_of_n": plain_best_of_n,
    "auc": plain_auc,
    "questions": plain_questions,
    "parts": lambda log_odds: [min(part[k] for part in log_odds.tolist()) for k in range(log_odds.shape[1])],
    "balanced": plain_balanced,
    "answer_loss": plain_loss,
    "step_labels": lambda ends: [[int(any(step)) for step in path] for path in ends],
    "chance_of_yes": lambda p, rollouts: 1 - np.prod(np.full(rollouts, 1 - p)),
    "likeness": plain_likeness,
    "margin": lambda pc, pr, rc, rr, beta: torch.tensor(beta * (pc - pr - rc + rr)),
    "pull": lambda margin, beta: [beta / (1 + math.exp(m)) for m in margin.tolist()],
    "elbo": lambda log_p, hidden: sum(log_p.numpy()[hidden.numpy()]) / sum(hidden.numpy()) * log_p.numel(),
    "pairs": lambda labels, most: sum(min(sum(row), len(row) - sum(row), most) for row in labels.tolist()),
    "chance_of_a_pair": lambda p, n: sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(1, n)),
    "online_pair": lambda odds: [int(odds.argsort()[-1]), int(odds.argsort()[0])],
    "guided": lambda a, b, w: F.softplus(-a).mean() + w * torch.log(1 + torch.exp(-b)).sum() / len(b),
    "break_even": lambda once, a, b: math.inf if b >= a else np.float32(once) / (a - b),
    "first_clear": plain_first,
    "stops": plain_first,
    "saved": lambda ran, steps: sum(steps - one for one in ran.tolist()) / (steps * len(ran)),
    "kept": plain_kept,
    "changed": lambda before, after: np.array([(after > before).sum(), (after < before).sum()]),
    "others_reasons": plain_reasons,
    "verdict": lambda low, high: np.array(["undecided", "yes", "no"])[(low > 0) - (high < 0)],
    "paired_difference": lambda a, b, rows: [sum(a[k] - b[k] for k in row) / len(row) for row in rows],
    "whole_after": lambda row, column, side, runs: math.ceil((row * side + column + 1) * runs / side**2),
    "places": lambda W, L, kept: W + L - 1 if kept else L * W + L * (L - 1) / 2,
    "image_log_probability": plain_log_probability,
    "keys_and_values": lambda *numbers: float(4 * math.prod(numbers)),
    "hours": lambda i, t, p, w, rate, gpus: torch.tensor(float(i * t * p)) * 4 * w / (3600 * rate * gpus),
    "parm_over_best": lambda ran, T, step, look: (
        sum(int(t) * (step + look) for t in ran) / (len(ran) * (T * step + look))
    ),
}


@each
def test_right_answers_written_plainly_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(name, PLAINLY[name], capsys) == "✓ Right."


def arrays(answer: Any) -> Any:
    """A right answer as an array."""
    if isinstance(answer, tuple):
        return np.array([np.asarray(one) for one in answer])
    return np.asarray(answer.detach() if isinstance(answer, torch.Tensor) else answer)


def single(answer: Any) -> Any:
    """In the numbers of half the width."""
    values = arrays(answer)
    return values if values.dtype.kind == "U" or abs(values).max(initial=0) > 2**24 else values.astype(np.float32)


def torches(answer: Any) -> Any:
    values = arrays(answer)
    return values if values.dtype.kind == "U" else torch.as_tensor(values, dtype=torch.float64)


STYLES: dict[str, Callable[[Any], Any]] = {
    "as arrays": arrays,
    "as lists": lambda answer: arrays(answer).tolist(),
    "as single precision": single,
    "as tensors": torches,
    "as a list of scalars": lambda answer: list(arrays(answer)) if arrays(answer).ndim == 1 else arrays(answer)[()],
}


@each
def test_right_answers_of_other_kinds_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    solution = EXERCISES[name].solution
    for style, change in STYLES.items():
        verdict = said(name, lambda *case, change=change: change(solution(*case)), capsys)
        assert verdict == "✓ Right." or (name == "guided" and "The loss has no gradient" in verdict), style


@each
def test_right_answers_pass_that_spoil_their_arguments_and_print(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def spoils(*case: Any) -> Any:
        answer = EXERCISES[name].solution(*case)
        for one in case:
            if isinstance(one, list):
                one.clear()
            elif isinstance(one, np.ndarray | torch.Tensor) and not getattr(one, "requires_grad", False):
                one[...] = 1
            print("spoiled")
        return answer

    for _ in range(2):  # the cases themselves are as before
        assert said(name, spoils, capsys) == "✓ Right."


# Wrong answers of any exercise, made of the right one.


def changed(change: Callable[[np.ndarray], Any]) -> Callable[[Callable], Callable]:
    """Functions that give a right answer's array, changed."""
    return lambda solution: lambda *case: change(arrays(solution(*case)))


def constant(solution: Callable, first: tuple) -> Callable:
    return lambda *case: solution(*first)


def blank(value: Any) -> Any:
    """An argument of the same kind that tells nothing."""
    if isinstance(value, torch.Tensor):
        return torch.ones_like(value, requires_grad=value.requires_grad)
    return np.ones_like(value) if isinstance(value, np.ndarray) else [0] * len(value) if isinstance(value, list) else 1


def prints(solution: Callable) -> Callable:
    return lambda *case: print(solution(*case))


def breaks(solution: Callable) -> Callable:
    return lambda *case: solution(*case)[len(case) + 100][0]


WRONG: dict[str, Callable[[Callable], Callable]] = {
    "None": lambda solution: lambda *case: None,
    "a print": prints,
    "an error": breaks,
    "the first argument": lambda solution: lambda *case: case[0],
    "the last argument": lambda solution: lambda *case: case[-1],
    "a generator": lambda solution: lambda *case: (one for one in np.ravel(arrays(solution(*case)))),
    "a function": lambda solution: lambda *case: lambda: solution(*case),
    "a dictionary": lambda solution: lambda *case: {"answer": solution(*case)},
    "a text of it": lambda solution: lambda *case: f"{solution(*case)}!",
    "one value more": changed(lambda right: [*np.ravel(right), right.ravel()[0] if right.size else "x"]),
    "in another list": changed(lambda right: [right]),
    "nan": changed(lambda right: np.full(right.shape, np.nan)),
    "complex": changed(lambda right: np.full(right.shape, 1j)),
}
NUMBERS: dict[str, Callable[[Callable], Callable]] = {
    "nothing but zeros": changed(np.zeros_like),
    "nothing but ones": changed(lambda right: np.ones(right.shape)),
    "one more": changed(lambda right: right.astype(float) + 1),
    "one less": changed(lambda right: right.astype(float) - 1),
    "a little more": changed(lambda right: right * 1.002 + 0.002),
    "twice": changed(lambda right: 2.0 * right),
    "a half": changed(lambda right: right / 2),
    "the negative": changed(lambda right: -right.astype(float)),
    "without its sign": changed(lambda right: abs(right.astype(float))),
    "one minus it": changed(lambda right: 1 - right.astype(float)),
    "infinity": changed(lambda right: np.full(right.shape, np.inf)),
    "its mean": changed(lambda right: np.full(right.shape, right.mean()) if right.ndim and right.size else 9.9),
    "backwards": changed(lambda right: right[..., ::-1] if right.ndim else right + 1),
    "transposed": changed(lambda right: right.T if right.ndim > 1 else right[None].T),
    "the largest everywhere": changed(lambda right: np.full(right.shape, right.max(initial=0)) if right.ndim else 9.9),
}
# What these ask for is never negative, so that its absolute value is right. (Of text there is none.)
SIGNED = {"guide", "parts", "margin", "elbo", "guided", "paired_difference", "image_log_probability"}
NEVER_NEGATIVE = {*EXERCISES} - SIGNED


@each
def test_wrong_answers_fail_with_a_hint(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    solution = EXERCISES[name].solution
    text = arrays(solution(*EXERCISES[name].cases[0])).dtype.kind == "U"
    for wrong, change in (WRONG if text else WRONG | NUMBERS).items():
        verdict = said(name, change(solution), capsys)
        if wrong == "without its sign" and name in NEVER_NEGATIVE:
            assert verdict == "✓ Right."
        else:
            assert verdict.startswith("Not solved yet" if wrong == "None" else "✗ ") and len(verdict) < 600, wrong


@each
def test_ignored_exchanged_and_constant_arguments_fail(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = EXERCISES[name]
    first = exercise.cases[0]
    assert said(name, constant(exercise.solution, first), capsys).startswith("✗ ")
    for place in range(len(first)):
        for other in (lambda one: blank(one), lambda one, place=place: first[place]):

            def ignores(*case: Any, place: int = place, other: Any = other) -> Any:
                return exercise.solution(*case[:place], other(case[place]), *case[place + 1 :])

            assert said(name, ignores, capsys).startswith("✗ "), place
    for place in range(len(first) - 1):

        def exchanges(*case: Any, place: int = place) -> Any:
            return exercise.solution(*case[:place], case[place + 1], case[place], *case[place + 2 :])

        assert said(name, exchanges, capsys).startswith("✓" if place in SYMMETRIC.get(name, ()) else "✗ "), place


def shortened(case: tuple, place: int, axis: int, part: slice) -> tuple:
    """A case without the first or last entry of an axis of an argument, and of all that are as long there."""

    def size(one: Any) -> int:
        return np.shape(one)[axis] if isinstance(one, list | np.ndarray | torch.Tensor) and np.ndim(one) > axis else 0

    if size(case[place]) < 2:
        return case
    at = (*[slice(None)] * axis, part)
    cut = [one[part] if isinstance(one, list) else one[at] if size(one) else one for one in case]
    return tuple(new if size(old) == size(case[place]) else old for new, old in zip(cut, case, strict=True))


# Exercises in which an end counts for nothing, as the first token of a sequence, which is never predicted; or where
# other arguments say which entries count.
FREE_ENDS = {("answer_loss", "first"), ("image_log_probability", "first")}
FREE_ENDS |= {("probability", "last"), ("paired_difference", "last")}


@each
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize(("end", "part"), [("first", slice(1, None)), ("last", slice(-1))])
def test_answers_that_leave_out_an_end_fail(
    name: str, end: str, part: slice, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise = EXERCISES[name]
    for place, axis, later in itertools.product(range(len(exercise.cases[0])), range(3), (0, 1)):
        tried = []

        def leaves_out(
            *case: Any, place: int = place, axis: int = axis, later: int = later, tried: list = tried
        ) -> Any:
            right, cut = exercise.solution(*case), shortened(case, place, axis, part)
            try:
                short = arrays(exercise.solution(*cut))
            except (IndexError, RuntimeError, ValueError):
                return right
            if cut is case or (short.shape != arrays(right).shape and not exercise.free):
                return right
            tried.append(case)
            return short if short.dtype.kind == "U" else np.where(short > 0, short + later, short) if later else short

        verdict = said(name, leaves_out, capsys)
        assert verdict.startswith("✗ ") or not tried or (name, end) in FREE_ENDS, (place, axis)


def test_a_first_time_may_be_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    def early(c: np.ndarray, p: np.ndarray | None = None) -> list[int]:
        at = (c > 0) if p is None else (c > 0) & (p <= 0)
        return [next((i + 1 for i in range(c.shape[1] - 1) if row[i]), 0) for row in at]

    assert said("first_clear", lambda clarity: early(clarity), capsys).startswith("✗ Expected [3, 1, 3], got [0, 1, 0]")
    assert said("stops", early, capsys).startswith("✗ Expected [3, 3, 0], got [0, 0, 0]")


SYMMETRIC = {  # arguments that may be exchanged with the next one, as factors of a product or terms of a sum
    "keys_and_values": range(5),
    "hours": (0, 1, 2, 4),
    "margin": [1],  # −p + −r
}


@each
def test_a_usual_mistake_gets_its_own_hint(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = EXERCISES[name]
    for hint in exercise.mistakes(*exercise.cases[0]):
        verdict = said(name, lambda *case, hint=hint: exercise.mistakes(*case)[hint], capsys)
        assert verdict == f"✗ {hint}"


@each
def test_a_mistake_made_in_one_case_only_gets_no_hint_at_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = EXERCISES[name]
    hints = list(exercise.mistakes(*exercise.cases[0]))
    assert len(hints) >= 4 or exercise.free
    for hint in hints:
        calls = itertools.count()

        def mixes(*case: Any, hint: str = hint, calls: Any = calls) -> Any:
            wrong = exercise.mistakes(*case)[hint]
            return (
                wrong
                if next(calls) % 2
                else arrays(exercise.solution(*case)) * 3 + 17
                if name not in ("verdict", "questions")
                else "no"
            )

        assert said(name, mixes, capsys) != f"✗ {hint}"


def test_texts_may_come_in_any_array(capsys: pytest.CaptureFixture[str]) -> None:
    right = EXERCISES["others_reasons"].solution
    for kind in (lambda told: np.array(told, dtype=str), lambda told: np.array(told, dtype=object), pd.Series, tuple):
        assert said("others_reasons", lambda *case, kind=kind: kind(right(*case)), capsys) == "✓ Right."
    assert said("verdict", lambda *case: np.array(EXERCISES["verdict"].solution(*case), object), capsys) == "✓ Right."


def test_a_verdict_is_printed_in_any_encoding() -> None:
    code = """
from cotgen_lite.course import ch01, checker
checker.check(ch01.check_auc, lambda scores, correct: print("→✓") or 9)
checker.check(ch01.check_auc, ch01.check_auc.solution)
"""
    given = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, check=True)
    lines = done.stdout.decode("cp1252")
    assert all(part in lines for part in ("\\u2192+", "x Expected 0.6667, got 9", "+ Right."))


def imports(correct: Any) -> float:
    import no_such_package  # type: ignore[import-not-found]

    return no_such_package.mean(correct)


def runs_on(correct: Any) -> float:
    return runs_on(correct)


def prints_only(correct: Any) -> None:
    print(correct.any(axis=1).mean())


def yields(correct: Any) -> Any:
    yield correct.any(axis=1).mean()


async def awaits(correct: Any) -> float:
    return correct.any(axis=1).mean()


def forgets_a_way(correct: Any) -> float | None:
    if correct.any():
        return correct.any(axis=1).mean()
    return None


def sums_up(correct: Any) -> None:
    share = correct.any(axis=1).mean()
    share += 0


def unset(correct: Any) -> None: ...


def leaves(correct: Any) -> None:
    raise SystemExit(3)


class Stop(BaseException):
    pass


def stops(correct: Any) -> None:
    raise Stop


def asserts(correct: Any) -> None:
    assert correct.sum() > 99


def multiplies(correct: Any) -> Any:
    return torch.randint(3, (2,)).log_softmax(0)


class Unreadable:
    """An answer that breaks off at whatever is asked of it."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error


HINTS: list[tuple[Any, str]] = [
    (lambda correct: correct[99], r"^✗ Your function breaks off in line \d+ of its cell, .lambda .*\n  Tried with cor"),
    (lambda correct: correct[99], r": an index lies outside of what is there \(IndexError: index 99"),
    (lambda correct: 1 / 0, r"it divides by zero \(ZeroDivisionError: division by zero\)\.\n"),
    (lambda correct: numpy.mean(correct), r"a name that is not known: .* \(NameError: name 'numpy'"),  # noqa: F821
    (lambda correct: correct.whatever, r"such values do not have \(AttributeError"),
    (lambda correct: correct + "1", r"handles a value of another kind than it expects \(UFuncTypeError"),
    (lambda correct: {}["a"], r"what it looks up is not there \(KeyError: 'a'\)"),
    (lambda correct: np.zeros(2).reshape(3), r"breaks off in line \d+ of its cell, .* \(ValueError: cannot reshape"),
    (imports, r", import no_such_package.*: what it imports is not there \(ModuleNotFoundError: No module named"),
    (runs_on, r"it calls itself without end"),
    (leaves, r"it ends the program instead of returning"),
    (asserts, r", assert correct.sum\(\) > 99 \(AssertionError"),
    (multiplies, r"\(NotImplementedError: .* not implemented for 'Long'"),
    (prints_only, r"returns None\. It only prints: write return in place of print\.\n"),
    (sums_up, r"returns None\. End it with return\.\n"),
    (forgets_a_way, r"^✗ Your function returns None\. .*\n  Tried with correct = \[\[0, 0, 0\], \[0, 0, 0\]\]\.$"),
    (yields, r"returns a generator: list\(…\) around it makes its values\.\n"),
    (awaits, r"returns a coroutine\.\n"),
    (lambda correct: [[1], [1, 2]], r"returns a list that cannot be read"),
    (lambda correct: [0.5, None], r"returns a list that cannot be read"),
    (lambda correct: {0.75}, r"returns a set: a list is wanted, which list\(…\) around it makes\.\n"),
    (lambda correct: {0.75: 1}.keys(), r"returns a dict_keys: a list is wanted, which list\(…\) around it makes\.\n"),
    (lambda correct: {1: 0.75}.values(), r"returns a dict_values: a list is wanted"),
    (lambda correct: 10**400, r"returns a int that cannot be read \(int too large"),
    (lambda correct: [10**400], r"returns a list that cannot be read \(int too large"),
    (lambda correct: Unreadable(KeyError), r"returns a Unreadable\.\n"),
    (lambda correct: [Unreadable(SystemExit)], r"returns a list that cannot be read \(SystemExit\)"),
    (lambda correct: np.mean, r"returns a (_ArrayFunctionDispatcher|function)\.\n"),
    (lambda correct: torch.tensor(1j), r"returns a Tensor that cannot be read"),
    (lambda correct: "0.75", r"One share is wanted, not '0.75'\.\n"),
    (lambda correct: [correct.any(axis=1).mean()], r"One share is wanted, not an answer of shape \(1,\)\.\n"),
    (lambda correct: math.nan, r"Your answer holds nan or infinity"),
    (lambda correct: 0.7491, r"^✗ Expected 0\.75, got 0\.7491\.\n  Tried with correct = \[\[0, 0, 1\], "),
    (lambda correct: 0.75, r"^✗ Expected 0\.3333, got 0\.75\.\n  Tried with correct = \[\[0, 1, 0, 0, 1\], "),
    (lambda correct: torch.tensor(0.75, dtype=torch.bfloat16), r"^✗ Expected 0\.3333, got 0\.75\.\n"),
    (lambda: 0.75, r"^✗ Your function has to take, in this order: correct\.$"),
    (lambda a, b: 0.75, r"^✗ Your function has to take, in this"),
    (lambda correct: "why " * 9999, r"One share is wanted, not 'why why .*\.\.\.\.\n"),
    (stops, r"Your function breaks off in line \d+ of its cell, raise Stop \(Stop\)\.\n"),
    (SHARE, r"^✗ The checker takes your function itself"),
    (0.75, r"^✗ The checker takes your function itself, without parentheses"),
    (None, r"^✗ The checker takes your function itself"),
    (..., r"^✗ The checker takes your function itself"),
    (unset, r"^Not solved yet\.$"),
    (lambda correct: ..., r"^Not solved yet\.$"),
    (lambda correct: None, r"^Not solved yet\.$"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(("function", "hint"), HINTS)
def test_whatever_a_function_does_is_said_in_words(
    function: Any, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(hint, said("share", function, capsys))


def test_exchanged_and_missing_arguments_of_check_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    check(np.mean, SHARE)  # type: ignore[arg-type]
    check(SHARE)
    assert capsys.readouterr().out.count("✗ The checker takes your function itself, without parentheses") == 2


def test_the_stub_of_a_notebook_is_not_solved_yet(capsys: pytest.CaptureFixture[str]) -> None:
    def my_share(correct: np.ndarray) -> float:
        raise NotImplementedError("what must hold for a prompt?")

    assert said("share", my_share, capsys) == "Not solved yet: what must hold for a prompt?"


def test_a_measurement_takes_a_right_function_and_else_the_solution(capsys: pytest.CaptureFixture[str]) -> None:
    def my_share(correct: np.ndarray) -> float:
        raise NotImplementedError("what must hold for a prompt?")

    def prints(correct: np.ndarray) -> float:
        print("a line")
        return SHARE.solution(correct)

    assert yours_or_ours(SHARE, prints) is prints
    assert capsys.readouterr().out == "Your function is used.\n"
    for wrong in (my_share, np.mean, None):
        assert yours_or_ours(SHARE, wrong) is SHARE.solution
        assert capsys.readouterr().out == "Your function is not right yet, so the solution is used.\n"


def test_an_interruption_goes_through(capsys: pytest.CaptureFixture[str]) -> None:
    def waits(correct: np.ndarray) -> float:
        print("waiting")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(SHARE, waits)
    assert capsys.readouterr().out == "waiting\n"


def test_a_missing_gradient_is_told_from_a_wrong_one(capsys: pytest.CaptureFixture[str]) -> None:
    solution = ch06.check_guided.solution
    for wrong, hint in (
        (lambda *case: solution(*case).detach(), "has no gradient"),
        (lambda *case: solution(*case).item(), "has no gradient"),
        (lambda a, b, weight: solution(a, b.clone().detach(), weight), "No gradient reaches the online pairs"),
        (lambda a, b, weight: solution(a, (b + b.detach()) / 2, weight), "The value is right, but not its gradient"),
    ):
        assert hint in said("guided", wrong, capsys)


# Wrong answers that have a hint of their own from a rule, since many answers are right.
def balance(number: Callable) -> Callable:
    """Of each row, `number` of both labels."""

    def chosen(labels: np.ndarray) -> list[tuple[int, int]]:
        rows = [(np.flatnonzero(row), np.flatnonzero(~row)) for row in labels]
        return [(at, int(k)) for at, (y, n) in enumerate(rows) for one in (y, n) for k in one[: number(y, n)]]

    return chosen


def pass_on(by: int, alike: bool = True) -> Callable:
    """Each text at another place of its tag, or of all, so many places on."""

    def passed(reasons: list[str], tags: list[str]) -> list[str]:
        places = [[k for k, one in enumerate(tags) if one == tag or not alike] for tag in tags]
        return [reasons[mine[(mine.index(k) + by) % len(mine)]] for k, mine in enumerate(places)]

    return passed


def first_other(reasons: list[str], tags: list[str]) -> list[str]:
    return [next(reasons[j] for j, one in enumerate(tags) if one == tag and j != k) for k, tag in enumerate(tags)]


def first_wins(order: Any, correct: np.ndarray, n: int) -> float:
    """The expected accuracy of best-of-n by a ranking in which equal scores stand as they come."""
    ranked = correct[order].tolist()
    ways = [math.comb(len(ranked) - place, n - 1) for place in range(1, len(ranked) + 1)]
    return float(np.dot(ways, ranked)) / math.comb(len(ranked), n)


def drawn_again(sort: Callable) -> Callable:
    """Best-of-n where each candidate is drawn from all."""

    def drawn(scores: np.ndarray, correct: np.ndarray, n: int) -> float:
        beaten = np.arange(len(scores), -1, -1) / len(scores)
        return float((beaten[:-1] ** n - beaten[1:] ** n) @ correct[sort(-scores)])

    return drawn


def ask(choose: Callable) -> Callable:
    """Questions for parts, chosen from those for the things, for these in their colours, and for the place."""

    def asked(names: list[str], colors: list[str], relation: str) -> list[str]:
        right = plain_questions(names, colors, relation)
        place = right[: bool(relation)]
        painted = [one for one in right if any(color and color in one.split() for color in colors)]
        return choose([one for one in right if one not in place + painted], painted, place)

    return asked


RULES: list[tuple[str, Callable, str]] = [
    ("best_of_n", drawn_again(np.argsort), "draws with replacement"),
    ("best_of_n", drawn_again(lambda lows: np.argsort(lows, kind="stable")), "draws with replacement"),
    ("best_of_n", lambda scores, *case: first_wins(np.argsort(scores), *case), "Your ranking is ascending"),
    ("best_of_n", lambda scores, *case: first_wins(np.argsort(-scores), *case), "Equal scores share the win"),
    ("best_of_n", lambda scores, *case: first_wins(np.argsort(scores)[::-1], *case), "Equal scores share the win"),
    ("questions", ask(lambda things, painted, place: painted + place), "Nobody asks for a thing alone"),
    ("questions", ask(lambda things, painted, place: things + place), "Nobody asks for a colour"),
    ("questions", ask(lambda things, painted, place: things + painted), "Nobody asks for the place"),
    ("questions", ask(lambda things, painted, place: 2 * things + painted + place), "asked twice"),
    ("questions", ask(lambda things, *others: [*things, "a photo", *others[0], *others[1]]), "“a photo” is no part"),
    ("questions", lambda names, colors, relation: plain_questions(names[::-1], colors[::-1], relation), "turned round"),
    (
        "questions",
        lambda names, colors, _: [color_attr(names[0], colors[0], names[1], colors[1]).text],
        "in one question",
    ),
    ("questions", lambda *case: [ch01.check_questions.solution(*case)], "one text each"),
    ("parts", lambda log_odds: log_odds.min(axis=0, keepdims=True), "One number a picture"),
    ("parts", lambda log_odds: log_odds.prod(axis=0), "All parts must hold at once"),
    ("balanced", balance(lambda y, n: max(len(y), len(n))), "one label only"),
    ("balanced", balance(lambda y, n: 2 * bool(len(y) and len(n))), "Of each prompt, as many yes as no are wanted"),
    (
        "balanced",
        lambda labels: [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)][: labels.size],
        "would tell the answer",
    ),
    ("balanced", balance(lambda y, n: min(len(y), len(n), 1)), "Take all there are"),
    ("balanced", lambda labels: 2 * ch02.check_balanced.solution(labels), "taken twice"),
    ("balanced", lambda labels: [], "Take all there are"),
    ("balanced", lambda labels: np.nonzero(labels), "pairs"),
    ("balanced", lambda labels: [(9, 9)], "inside of the table"),
    ("balanced", lambda labels: [(-1, 0)], "inside of the table"),
    ("balanced", lambda labels: [(0.5, 0)], "whole numbers"),
    ("balanced", lambda labels: np.ravel(ch02.check_balanced.solution(labels)), "pairs"),
    ("balanced", lambda labels: 3, "pairs"),
    ("others_reasons", pass_on(1, alike=False), "of another tag"),
    ("others_reasons", pass_on(2), "keeps its own"),
    ("others_reasons", pass_on(0), "keeps its own"),
    ("others_reasons", lambda reasons, tags: [""] * len(tags), "another control"),
    ("others_reasons", first_other, "given twice"),
    ("others_reasons", lambda reasons, tags: reasons[1:], "7 texts are wanted"),
    ("others_reasons", lambda reasons, tags: ["it is wrong"] * len(tags), "Only reasons that were given"),
    ("others_reasons", lambda reasons, tags: reasons[0], "not a single one"),
    ("schedule", lambda steps, places: [max(1, places // steps)] * steps, "add up"),
    (
        "order",
        lambda hidden, left, draws: ch00.check_order.solution(hidden | True, left, draws.masked_fill(~hidden, 0)),
        "Committed places are open again",
    ),
    ("order", lambda hidden, left, draws: hidden, "In each picture 2 places stay hidden"),
    (
        "order",
        lambda hidden, left, draws: ch00.check_order.solution(hidden, left, draws.flip(1)),
        "draws that are given",
    ),
    ("schedule", lambda steps, places: [places] + [0] * (steps - 1), "commits nothing"),
    ("verdict", lambda low, high: "Yes", "in small letters"),
    ("whole_after", lambda *case: ch09.check_whole_after.solution(*case) + 1e-4, "Expected 1, got 1.0001."),
    ("verdict", lambda low, high: low > 0, 'One of "yes", "no" and "undecided" is wanted, not True'),
]


@pytest.mark.parametrize(
    "whole",
    [
        lambda p: np.log(p).sum(axis=0),
        lambda p: np.log(p.prod(axis=0) / (1 - p.prod(axis=0))),
        lambda p: -np.log((1 / p - 1).sum(axis=0)),
    ],
)
def test_all_parts_may_be_made_to_hold_in_several_ways(whole: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert said("parts", lambda log_odds: whole(1 / (1 + np.exp(-log_odds))), capsys) == "✓ Right."


@pytest.mark.parametrize(("name", "wrong", "hint"), RULES)
def test_a_broken_rule_gets_its_hint(name: str, wrong: Any, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = said(name, wrong, capsys)
    assert verdict.startswith("✗ ") and hint in verdict
