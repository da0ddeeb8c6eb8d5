"""Measurements of the course: pools, scores with intervals, and findings decided by rules fixed beforehand."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.files import write_atomically
from cotgen_lite.generator import Generator
from cotgen_lite.geneval import Detector, judge, paired_interval, score
from cotgen_lite.pools import expected_best_of
from cotgen_lite.prompts import Prompt
from cotgen_lite.sampling import Ledger
from cotgen_lite.verifier import ORM_QUESTION, Verifier

SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20)  # the n of curves
SHARD = 8  # prompts drawn between two savings


def draw_pool(
    generator: Generator, prompts: Sequence[Prompt], n: int, seed: int, work_dir: Path
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """N candidates for every entry of `prompts`; equal neighbours are pools of one prompt, with their own candidates.

    Resumes from the shards in `work_dir`, kept apart by weights, settings, prompts, n and seed. Returns the guess of
    every step int16 (P, N, T, L), the step at which each place got its final code uint8 (P, N, L), and the cost:
    generator passes, sequence places and seconds.
    """
    work_dir = work_dir / _fingerprint(generator, prompts, n, seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    shards: list[list[Prompt]] = [[]]
    for _, same in groupby(prompts):
        if len(shards[-1]) >= SHARD:
            shards.append([])
        shards[-1] += same
    parts = []
    for number, shard in enumerate(tqdm(shards, desc="pool")):
        path = work_dir / f"shard-{number:03d}.safetensors"
        if not path.exists():
            save_file(_draw_shard(generator, [prompt.text for prompt in shard], n, seed), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        parts.append(load_file(path))
    passes, places, seconds = torch.stack([part["cost"] for part in parts]).sum(0).tolist()
    cost = {"generator_passes": passes, "tokens": places, "seconds": seconds}
    return torch.cat([part["guesses"] for part in parts]), torch.cat([part["committed_at"] for part in parts]), cost


def _fingerprint(generator: Generator, prompts: Sequence[Prompt], n: int, seed: int) -> str:
    """A name for all that a pool depends on, so that shards of another model are never taken for this one's."""
    digest = hashlib.sha256(repr((generator.settings, [prompt.text for prompt in prompts], n, seed)).encode())
    for weights in generator.model.parameters():
        digest.update(weights.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def _draw_shard(generator: Generator, texts: list[str], n: int, seed: int) -> dict[str, Tensor]:
    ledger, started = Ledger(), time.perf_counter()
    drawn = generator.draw(texts, n, seed, ledger=ledger)
    cost = [ledger.passes + ledger.prefix_passes, ledger.places, time.perf_counter() - started]
    guesses = torch.stack([torch.stack([t.tokens for t in candidates]) for candidates in drawn])
    committed = torch.stack([torch.stack([t.committed for t in candidates]) for candidates in drawn])
    committed_at = committed.to(torch.uint8).argmax(dim=2).to(torch.uint8)
    return {"guesses": guesses, "committed_at": committed_at, "cost": torch.tensor(cost, dtype=torch.float64)}


def judge_tokens(generator: Generator, tokens: Tensor, prompts: Sequence[Prompt], detector: Detector) -> npt.NDArray:
    """A judge's verdicts on a pool's finished images; tokens (P, N, L), returns bool (P, N)."""
    verdicts = [
        judge(detector, generator.decode(candidates), [prompt] * len(candidates))
        for prompt, candidates in zip(prompts, tqdm(tokens, desc=f"judge {type(detector).__name__}"), strict=True)
    ]
    return np.stack(verdicts)


def score_tokens(
    generator: Generator, verifier: Verifier, tokens: Tensor, prompts: Sequence[Prompt], question: str = ORM_QUESTION
) -> tuple[npt.NDArray[np.float32], float]:
    """A verifier's log-odds on a pool's finished images, and the seconds it took (decoding not counted).

    tokens (P, N, L); returns float32 (P, N).
    """
    rows, seconds = [], 0.0
    for prompt, candidates in zip(prompts, tqdm(tokens, desc="verifier"), strict=True):
        images = generator.decode(candidates)
        started = time.perf_counter()
        rows.append(verifier.score(images, [prompt.text] * len(images), question).numpy())
        seconds += time.perf_counter() - started
    return np.stack(rows), seconds


def score_rows(
    method: str,
    prompts: Sequence[Prompt],
    chosen_by: npt.NDArray,
    correct: Mapping[str, npt.NDArray],
    sizes: Sequence[int],
    about: Mapping[str, object],
    cost_of_one: Mapping[str, float],
) -> list[dict]:
    """Rows of scores.jsonl: the method's accuracy for every n and judge, by exact expectation over the pool.

    chosen_by: (P, N), the candidate with the highest value is taken; correct: judge → (P, N) verdicts;
    about: the row's other fields (generator, verifier, seed, command); cost_of_one: cost of one candidate.
    """
    rows = []
    for judge_name, verdicts in correct.items():
        for n in sizes:
            result = score(prompts, expected_best_of(chosen_by, verdicts, n))
            rows.append(
                {
                    "method": method,
                    **about,
                    "n": n,
                    "judge": judge_name,
                    "tags": {tag: round(value, 4) for tag, value in result.tags.items()},
                    "overall": round(result.overall, 4),
                    "ci": [round(bound, 4) for bound in result.ci],
                    "prompts": len(set(prompts)),
                    "images": len(prompts) * n,
                    "cost": {key: round(value * n, 4) for key, value in cost_of_one.items()},
                }
            )
    return rows


def decide(
    claim: str, prompts: Sequence[Prompt], a: npt.NDArray, b: npt.NDArray, paper: str, note: str = ""
) -> dict[str, object]:
    """One finding of the form "a is better than b": seen if the paired 95% interval of a − b lies above zero.

    a, b: (P,) accuracy of each pool. Returns the entry of findings.json ("no" needs an interval below zero).
    """
    low, high = paired_interval(prompts, a, b)
    delta = score(prompts, a).overall - score(prompts, b).overall
    seen = "yes" if low > 0 else "no" if high < 0 else "undecided"
    return {
        "claim": claim,
        "seen": seen,
        "delta": round(delta, 4),
        "ci": [round(low, 4), round(high, 4)],
        "paper": paper,
        "note": note,
    }


def steps_profile(guesses: Tensor) -> npt.NDArray[np.float64]:
    """Share of tokens that already equal the final ones at each step; guesses (..., T, L), returns (T,). Figure 5."""
    flat = guesses.reshape(-1, *guesses.shape[-2:])
    return (flat == flat[:, -1:]).double().mean(dim=(0, 2)).numpy()


def read_rows(path: Path) -> list[dict]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write a jsonl file atomically."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")
