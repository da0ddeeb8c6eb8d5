"""What a public call is given, checked as it enters: a plain Python value comes out, or one sentence of what is wrong.

Numpy's numbers and strings become Python's, so that equal inputs draw equal noise and name equal runs. All errors here
are ValueErrors. Read next: hub.py.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set, ValuesView
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
WHOLE_TYPES = ("uint8", "int8", "int16", "int32", "int64")  # numpy's and torch's


def whole(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number as an int; ValueError for anything else (True and 2.0 too), or if it is out of range."""
    try:
        number_ = None if _is_truth(value) else operator.index(value)
    except TypeError:
        number_ = None
    if number_ is None or (least is not None and number_ < least) or (most is not None and number_ > most):
        raise ValueError(f"{name} must be a whole number{_range(least, most)}, got {shown(value)}.")
    return number_


def number(
    value: Any, name: str, least: float | None = None, most: float | None = None, above: float | None = None
) -> float:
    """A finite number as a float; ValueError for anything else (NaN, infinity, text), or if it is out of range."""
    try:
        number_ = math.nan if _is_truth(value) or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several values
        number_ = math.nan
    low, high = (least is not None and number_ < least), (most is not None and number_ > most)
    if not math.isfinite(number_) or low or high or (above is not None and number_ <= above):
        wanted = f" above {_plain(above)}" if above is not None else ""
        raise ValueError(f"{name} must be a finite number{wanted}{_range(least, most)}, got {shown(value)}.")
    return number_


def yes_or_no(value: Any, name: str) -> bool:
    """True or False; ValueError for anything else, 0 and "no" too."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def one_of(value: Any, name: str, known: Iterable[str]) -> str:
    """A known word; ValueError lists them all."""
    words = list(known)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {shown(value)}.")
    return str(value)


def text(value: Any, name: str) -> str:
    """A plain string; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {shown(value)}.")
    return str(value)


def texts(value: Any, name: str) -> list[str]:
    """One text, or several, as a list; ValueError for anything else, and for none."""
    if isinstance(value, str):
        return [str(value)]
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}.")
    listed = [text(one, f"each of {name}") for one in in_order(value, name)]
    if not listed:
        raise ValueError(f"{name} must hold at least one text, got an empty list.")
    return listed


def in_order(value: T, name: str) -> T:
    """Several things, if their order is their own; ValueError for a set, whose order is chance, or a dict's views."""
    if isinstance(value, Set | ValuesView):
        raise ValueError(f"{name} must be a list, as their order counts, got {shown(value)}: make it with list(…).")
    return value


def of_kind(value: T, name: str, kind: type | tuple[type, ...], wanted: str) -> T:
    """The value, if it is an instance of `kind`; ValueError says that `wanted` is, e.g. "a Generator"."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")
    return value


def with_methods(value: T, name: str, methods: Sequence[str], wanted: str) -> T:
    """The value, if it has these methods, whatever its class; ValueError says that `wanted` is, e.g. "a verifier"."""
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")
    return value


def verdicts(values: Any, name: str, shape: Sequence[int | str]) -> npt.NDArray[np.bool_]:
    """An array of verdicts of this shape (see `shaped`), each yes or no, 1 or 0; ValueError for anything else."""
    given = shaped(_array(values, name), name, shape)
    if given.dtype != bool and (given.dtype.kind not in "iuf" or not np.isin(given, (0, 1)).all()):
        raise ValueError(f"{name} must be verdicts, each yes or no (1 or 0), got {shown(given)} of {given.dtype}.")
    return given.astype(bool)


def numbers(values: Any, name: str, least: float | None = None, most: float | None = None) -> npt.NDArray[np.float64]:
    """An array of finite numbers, as float64; ValueError for anything else, or if any is out of range."""
    given = finite(_array(values, name), name).astype(np.float64)
    if given.size and ((least is not None and given.min() < least) or (most is not None and given.max() > most)):
        run = f"they run from {_plain(given.min())} to {_plain(given.max())}"
        raise ValueError(f"{name} must be numbers{_range(least, most)}, but {run}.")
    return given


def all_whole(values: Any) -> bool:
    """Whether a tensor or an array holds whole numbers, such as tokens: neither fractions nor truth values."""
    return str(getattr(values, "dtype", "")).removeprefix("torch.") in WHOLE_TYPES


def whole_numbers(values: T, name: str) -> T:
    """A tensor or an array, if it holds whole numbers; ValueError otherwise."""
    if not all_whole(values):
        raise ValueError(f"{name} must be whole numbers, got {getattr(values, 'dtype', None) or shown(values)}.")
    return values


def finite(values: T, name: str) -> T:
    """A tensor or an array of numbers, if none of them is NaN or infinite; ValueError says how many are."""
    is_tensor = type(values).__module__.startswith("torch")  # which is looked at where it is, on a GPU too
    given: Any = values if is_tensor else np.asarray(values)
    if given.is_complex() if is_tensor else given.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {shown(values)}.")
    right = given.isfinite() if is_tensor else np.isfinite(given)
    if not right.all():
        wrong, every = int((~right).sum()), math.prod(right.shape)
        raise ValueError(f"{name} must be finite, but {wrong} of {every} are NaN or infinite.")
    return values


def shaped(values: T, name: str, shape: Sequence[int | str]) -> T:
    """A tensor or an array, if its shape is as wanted; a letter stands for any size, the same letter for the same one.

    ValueError otherwise, e.g. for `shaped(scores, "scores", ("P", "N"))`.
    """
    got = tuple(getattr(values, "shape", ()))
    sizes: dict[str, int] = {}
    fits = hasattr(values, "shape") and len(got) == len(shape)
    for size, wanted in zip(got, shape, strict=False):
        fits = fits and size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
    if not fits:
        said = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(f"{name} must have shape {said}, got {got if hasattr(values, 'shape') else shown(values)}.")
    return values


def one_each(values: T, name: str, number: int, of: str) -> T:
    """A list, tuple, array or tensor with an entry for each of something; ValueError says how many it has."""
    size = len(values) if isinstance(values, list | tuple) or getattr(values, "shape", ()) else None  # type: ignore
    if size != number:
        has = shown(values) if size is None else f"{size} entries"
        raise ValueError(f"{name} must have one entry for each of {number} {of}, got {has}.")
    return values


def named(values: Any, name: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A mapping that is not empty as a dict, with all these keys; ValueError says which it lacks."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{name} must be a dict with at least one entry, got {shown(values)}.")
    if lacking := [key for key in keys if key not in values]:
        raise ValueError(f"{name} must have an entry for {lacking[0]!r}, and has {', '.join(map(repr, values))[:100]}.")
    return dict(values)


def folder(value: Any, name: str) -> Path:
    """The path of a folder, which need not be there yet; ValueError for a file, what no folder can be called, or
    anything but a path or a text."""
    try:
        fits = isinstance(value, str | Path) and bool(str(value).strip()) and not S_ISREG(Path(value).stat().st_mode)
    except FileNotFoundError:  # it can be made
        fits = True
    except (OSError, ValueError):  # too long, inside a file, out of reach
        fits = False
    if not fits:
        raise ValueError(f"{name} must be the path of a folder, got {shown(value)}.")
    return Path(value)


def settle(record: Any, **values: Any) -> None:
    """Give a frozen dataclass, in its `__post_init__`, the fields that were checked."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def shown(value: Any) -> str:
    """A value as an error shows it: short, with its type, and an array by its shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and tuple(value.shape):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    try:
        said = (repr(value).splitlines() or [""])[0]
    except Exception:  # what cannot even be shown is as wrong, and must be named
        said = "something"
    return f"{said if len(said) <= 60 else said[:57] + '...'} ({type(value).__name__})"


def _array(values: Any, name: str) -> npt.NDArray:
    if np.ma.is_masked(values):  # numpy's mask, which is lost here
        raise ValueError(f"{name} must have a value everywhere, but some entries are masked: fill them or leave out.")
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of unequal length; a tensor elsewhere
        raise ValueError(f"{name} must be an array of numbers, got {shown(values)}.") from error


def _is_truth(value: Any) -> bool:
    """Whether it is True or False, numpy's and torch's among them, which would pass for 1 and 0."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {_plain(least)} to {_plain(most)}"
    if least is not None:
        return f" of at least {_plain(least)}"
    return f" of at most {_plain(most)}" if most is not None else ""


def _plain(end: float) -> str:
    """A number in all its digits."""
    return str(end) if isinstance(end, int) else f"{end:.15g}"
