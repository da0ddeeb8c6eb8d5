"""Rows of results: how they are made from verdicts and scores, written, merged and read as a table.

A row is a method's accuracy at one n, by one judge, with its interval and cost. Read on in `findings.py`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.generate.pipeline import ImageGenerator
from cotgen_lite.hub import check_whole, data_root, restore, write_atomically, write_json
from cotgen_lite.metrics import expected_best_of, score
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.verifier import ORM_QUESTION, Verifier

if TYPE_CHECKING:
    import pandas as pd

TIMES = "times.json"  # seconds stand there alone: they differ from run to run, and everything else is the same
SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20)  # the n of curves
Price = Callable[[int], Mapping[str, float]] | Mapping[str, float]  # what a row cost: from n, or for every n the same


def score_tokens(
    generator: ImageGenerator[Any],
    verifier: Verifier,
    tokens: Tensor,
    prompts: Sequence[Prompt],
    question: str = ORM_QUESTION,
) -> tuple[npt.NDArray[np.float32], float]:
    """A verifier's log-odds on a pool's finished images, and the seconds it took, the decoding of codes included.

    tokens (P, N, L); question as in `Verifier.score`; returns float32 (P, N).
    """
    rows, seconds = [], 0.0
    for prompt, candidates in zip(prompts, tqdm(tokens, desc="verifier"), strict=True):
        started = time.perf_counter()
        images = generator.decode(candidates)
        rows.append(verifier.score(images, prompt.text, question).numpy())
        seconds += time.perf_counter() - started
    return np.stack(rows), seconds


def score_rows(
    method: str,
    prompts: Sequence[Prompt],
    correct: Mapping[str, npt.NDArray],
    sizes: Sequence[int],
    about: Mapping[str, object],
    cost: Price,
    order: npt.NDArray | Mapping[str, npt.NDArray] | None = None,
) -> list[dict]:
    """Rows of scores.jsonl: the method's accuracy for every n and judge, by exact expectation over the pool.

    correct: judge → (P, N) verdicts. about: the row's other fields (generator, verifier, seed, command). cost: from n
    to what choosing among n costs, or the same for every n. order: (P, N), the candidate with the highest value is
    taken; or one for each judge; without it, the choice is by chance.
    """
    rows = []
    for judge, verdicts in correct.items():
        chosen_by = order[judge] if isinstance(order, Mapping) else np.zeros(verdicts.shape) if order is None else order
        for n in sizes:
            result = score(prompts, expected_best_of(chosen_by, verdicts, n))
            rows.append(
                {
                    "method": method,
                    **about,
                    "n": n,
                    "judge": judge,
                    "tags": {tag: round(value, 4) for tag, value in result.tags.items()},
                    "overall": round(result.overall, 4),
                    "ci": [round(bound, 4) for bound in result.ci],
                    "prompts": len(set(prompts)),
                    "images": len(prompts) * n,
                    "cost": dict(cost(n) if callable(cost) else cost),
                }
            )
    return rows


def steps_profile(guesses: Tensor) -> npt.NDArray[np.float64]:
    """Share of tokens that already equal the final ones at each step; guesses (..., T, L), returns (T,). Figure 5."""
    flat = guesses.reshape(-1, *guesses.shape[-2:])
    return (flat == flat[:, -1:]).double().mean(dim=(0, 2)).numpy()


def results(out: Path | None = None) -> "pd.DataFrame":
    """Every measured row of the course, or of a folder that the build wrote, as a table.

    One row for each method, n, judge and training seed: accuracy by tag and "overall", the ends "low" and "high" of its
    95% interval, how many prompts and images it was measured on, and what one prompt cost, in "generator_passes",
    "verifier_passes", "tokens" and "seconds", where counted. FileNotFoundError if nothing was measured there.
    """
    import pandas as pd  # not before it is needed: it takes a second to load

    nested = ("tags", "ci", "cost")
    return pd.DataFrame(
        {key: value for key, value in row.items() if key not in nested}
        | row["tags"]
        | {"low": row["ci"][0], "high": row["ci"][1]}
        | row["cost"]
        for row in read_scores(out or data_root())
    )


def read_scores(out: Path) -> list[dict]:
    """The rows of `results/scores.jsonl` under `out`, with their seconds where these were kept (`TIMES`).

    FileNotFoundError if it is missing, ValueError if it is damaged; both say how to get it back.
    """
    path = out / "results/scores.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {restore(out)}.")
    seconds = read_seconds(out / "results" / TIMES).get("scores", {})
    rows = read_rows(path)
    for row in rows:
        if row_name(row) in seconds:
            row["cost"]["seconds"] = seconds[row_name(row)]
    return rows


def read_json(out: Path, name: str) -> Any:
    """What `results/NAME.json` under `out` holds; FileNotFoundError or ValueError names it if missing or damaged."""
    path = check_whole(out / f"results/{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {restore(out)}.") from None
    except ValueError:  # of JSON, and of UTF-8
        raise ValueError(f"{path} is damaged: {restore(out)}.") from None


def note_seconds(file: Path, name: str, seconds: Mapping[str, object]) -> None:
    """Write seconds that were measured into a file for all of them, under a name; what else is there stays."""
    merge_seconds(file, {name: seconds})


def merge_seconds(file: Path, seconds: Mapping[str, Mapping[str, object]]) -> None:
    """As `note_seconds`, for several names at once; the file need not be as the list of its data folder says.

    ValueError if there is no reading it.
    """
    try:
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        merged = there | {name: there.get(name, {}) | dict(new) for name, new in seconds.items()}
    except (ValueError, TypeError, AttributeError):  # of JSON and of UTF-8 too
        raise ValueError(
            f"{file} is damaged: it must hold a JSON object of objects; get it back, or delete it."
        ) from None
    write_json(file, dict(sorted(merged.items())))


def read_seconds(file: Path) -> dict[str, dict]:
    """What `note_seconds` wrote, by name; nothing if the file is missing."""
    return json.loads(check_whole(file).read_text(encoding="utf-8")) if file.exists() else {}


def note_training(work: Path, name: str, seconds: float) -> None:
    """Note how long a model's training took, or the drawing of a training set, e.g. "models/dpo"; work: the step's."""
    note_seconds(work.parent / TIMES, "training", {name: round(seconds)})


def row_name(row: Mapping) -> str:
    """What a row's seconds stand under."""
    return f"{row['method']} of {row['generator']}, n {row['n']}, seed {row['seed']}"


def read_rows(path: Path) -> list[dict]:
    """The rows of a jsonl file; FileNotFoundError if it is missing, ValueError where a line is not a JSON object."""
    rows = []
    check_whole(path)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(dict(json.loads(line)))
    except (ValueError, TypeError):  # of JSON and of UTF-8 too
        raise ValueError(f"{path} is damaged in line {len(rows) + 1}: it must be a JSON object.") from None
    return rows


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write a jsonl file atomically."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def merge_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write rows into a jsonl file, in the place of those of the same methods, generators and seeds; others stay."""
    key = itemgetter("method", "generator", "seed")
    new, there = set(map(key, rows)), read_rows(path) if path.exists() else []
    place = next((at for at, row in enumerate(there) if key(row) in new), len(there))
    before, after = ([row for row in some if key(row) not in new] for some in (there[:place], there[place:]))
    write_rows(path, [*before, *rows, *after])
