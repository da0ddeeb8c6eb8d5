"""Guesses made before the results are shown: kept on this machine, and looked at in chapter 11.

Notebooks ask for a guess before a result (`guess`); ch11.py draws how far the guesses were off.
"""

import json
import os
from pathlib import Path

from cotgen_lite.experiments.report import LABELS
from cotgen_lite.hub import write_json
from cotgen_lite.inputs import number

# What is guessed, in which chapter: the overall accuracy of a method, best of 20 where it chooses.
METHODS = "baseline zs-orm ft-orm ft-prm dpo it-dpo it-dpo-guided-orm+ft-orm parm self-correct+parm++reflect seq:ft-orm"
GUESSED = {method: f"{chapter:02d}" for chapter, method in enumerate(METHODS.split())}
SECOND_WORLD = ("00", "01")  # chapters about the second world, `next/` in the data folder; all others: the first


def guesses_file() -> Path:
    """Where guesses are kept: $COTGEN_GUESSES if set, else a file of the user's own."""
    return Path(os.environ.get("COTGEN_GUESSES") or Path.home() / ".cotgen_lite" / "guesses.json")


def guess(method: str, overall: float | None) -> None:
    """Keep a guess of a method's overall GenEval accuracy, 0 to 1; None keeps nothing and says what to do. ValueError
    for anything but a number in 0..1 (a percentage?), or a method that is not asked about."""
    if method not in list(GUESSED):
        raise ValueError(f"method {method!r} is not guessed: one of {', '.join(GUESSED)} is.")
    if overall is None:
        print("No guess yet: write a number from 0 to 1 in place of None, and run this cell before the next one.")
        return
    value = number(overall, "Your guess (write .5 for 50%)", 0, 1)
    try:
        write_json(guesses_file(), kept() | {method: value})
    except OSError as error:
        print(f"Not kept, {guesses_file()} cannot be written: {error}. $COTGEN_GUESSES may name another file.")
        return
    print(f"Kept: {value:.2f} for {LABELS[method].format(n=20)}. Chapter 11 looks back on all of them.")


def kept() -> dict[str, float]:
    """The guesses so far, method → accuracy, in the course's order; a damaged file holds none, which is printed."""
    try:
        found = json.loads(guesses_file().read_text(encoding="utf-8"))
        return {method: number(found[method], method, 0, 1) for method in GUESSED if method in found}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        print(f"{guesses_file()} holds no guesses that can be read ({error}): your next one replaces it.")
    return {}


def mean_distance(guesses: dict[str, float], truth: dict[str, float]) -> float:
    """Mean distance of guesses from what was measured, over the methods that were guessed; nan without any."""
    apart = [abs(value - truth[method]) for method, value in guesses.items()]
    return sum(apart) / len(apart) if apart else float("nan")
