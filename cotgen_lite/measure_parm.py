"""What PARM brings: its three tasks on candidate pools, what stopping saves, and at equal cost; chapter 07."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cotgen_lite.checkpoints import built_generator
from cotgen_lite.drawing import SHARD, draw_pool, fingerprint, in_shards
from cotgen_lite.files import write_json
from cotgen_lite.generator import Generator
from cotgen_lite.measure_verifiers import by_both_judges
from cotgen_lite.pools import Pool, expected_best_of, first_of_each_tag, load_pool
from cotgen_lite.prompts import Prompt
from cotgen_lite.recipes import Recipe
from cotgen_lite.results import SIZES, decide, merge_json, merge_rows, read_rows, score_rows
from cotgen_lite.search import Assess, ParmResult, SearchResult, best_of_n, parm_search
from cotgen_lite.verifier import CLARITY_QUESTION, POTENTIAL_QUESTION, Verifier

COMMAND = "python -m cotgen_lite.build parm_results"
GENERATORS = ("baseline", "dpo", "it-dpo")  # under which PARM chooses; figures 3, 6 and 7


@dataclass(frozen=True)
class Opinions:
    """What PARM says of all paths of a pool, whether it would have come to ask or not.

    clarity, potential: log-odds float32 (P, N, T − 1), of every step but the last; selection: (P, N), of the finished
    images.
    """

    clarity: npt.NDArray[np.float32]
    potential: npt.NDArray[np.float32]
    selection: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What `parm_search` would do on a pool: steps that each path runs, int (P, N); whether it survives, bool (P, N);
    and by which order the choice falls, float (P, N): survivors by selection, above the stopped ones by potential."""

    steps: npt.NDArray[np.int64]
    survived: npt.NDArray[np.bool_]
    order: npt.NDArray[np.float64]


def measure_parm(out: Path, work: Path, recipe: Recipe) -> None:
    """Let PARM stop and choose among the paths of each generator's pool, decide F7, compare at equal cost; under `out`.

    Pools and opinions in `work` let it resume.
    """
    models, results = out / "models", out / "results"
    parm, orm = (Verifier.from_pretrained(models / name) for name in ("parm", "orm"))
    found: dict[str, Any] = {}
    for name in GENERATORS:
        generator = built_generator(models, "generator" if name == "baseline" else name)
        pool = load_pool(out / f"pools/{name}.safetensors")
        guesses, _, _ = draw_pool(generator, pool.prompts, recipe.pool_size, seed=0, work_dir=work / "pool")
        if not torch.equal(guesses[:, :, -1], pool.tokens):
            raise ValueError(
                f"The paths drawn by {name} are not those of its pool: make the pool again on this machine."
            )
        opinions = ask_of_paths(generator, parm, guesses, pool.prompts, work / "opinions")
        outcomes = {assess: stop_paths(opinions, assess) for assess in ("every", "first")}
        label = "parm" if name == "baseline" else f"{name}+parm"
        about = {"generator": name, "verifier": "PARM", "seed": 0, "command": COMMAND}
        sizes = [size for size in SIZES if size <= recipe.pool_size]
        steps = guesses.shape[2]
        methods = {label: outcomes["every"]} | ({f"{label}-first": outcomes["first"]} if name == "baseline" else {})
        for method, outcome in methods.items():
            rows = score_rows(method, pool.prompts, outcome.order, pool.correct, sizes, about, {})
            for row in rows:
                row["cost"] = passes_of_search(outcome, row["n"], steps)
            merge_rows(results / "scores.jsonl", rows)
        every = score_rows(f"{label}-selection", pool.prompts, opinions.selection, pool.correct, sizes, about, {})
        found[name] = {
            "clear_at": clear_at(opinions),
            "stopping": {assess: stopping(outcome, pool) for assess, outcome in outcomes.items()},
            "selection_alone": {str(row["n"]): row["overall"] for row in every if row["judge"] == "learned"},
        }
        if name == "baseline":
            _save_opinions(out / "pools/baseline_parm.safetensors", opinions)
            merge_json(results / "findings.json", {"F7": decide_f7(pool, outcomes["every"], recipe.pool_size, results)})
            costs = {
                "parm": cost_of_search(pool.prompts, partial(parm_search, generator, parm, n=recipe.pool_size)),
                "ft-orm": cost_of_search(pool.prompts, partial(best_of_n, generator, orm, n=recipe.pool_size)),
            }
            found["cost"] = costs
    write_json(results / "parm.json", found)


def cost_of_search(prompts: Sequence[Prompt], search: Callable[..., SearchResult | ParmResult]) -> dict[str, float]:
    """Mean cost of a search on a prompt of each tag: passes and seconds of generator (decoding included) and verifier
    apart, FLOPs together."""
    spent = []
    for prompt in first_of_each_tag(list(dict.fromkeys(prompts)), 1):
        # Counted first, which warms up; by plain attention, because the counter does not know the CPU's fused one.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            search(prompt=prompt.text, seed=0)
        cost = search(prompt=prompt.text, seed=0).cost
        spent.append([cost.generator_passes, cost.verifier_passes, cost.generator_seconds, cost.verifier_seconds])
        spent[-1].append(float(counter.get_total_flops()))
    names = ("generator_passes", "verifier_passes", "generator_seconds", "verifier_seconds", "flops")
    return dict(zip(names, np.mean(spent, axis=0).round(4).tolist(), strict=True))


def decide_f7(pool: Pool, outcome: Outcome, n: int, results: Path) -> dict:
    """F7 by its rule, by both judges: PARM's choice among n is better than the fine-tuned ORM's and the PRM's.

    The first by prompts in pairs; the second by the scores of both and their intervals, as if of different prompts.
    """
    rows, found = read_rows(results / "scores.jsonl"), {}
    for judge, correct in pool.correct.items():
        difference = expected_best_of(outcome.order, correct, n) - expected_best_of(pool.scores["ft-orm"], correct, n)
        over_orm = decide("parm − ft-orm > 0", pool.prompts, difference, paper="0.63 → 0.67")
        parm, prm = (
            next(r for r in rows if (r["method"], r["judge"], r["n"]) == (method, judge, n))
            for method in ("parm", "ft-prm")
        )
        over_prm = parm["overall"] - prm["overall"]
        margin = 1.96 * float(np.hypot(*((row["ci"][1] - row["ci"][0]) / 3.92 for row in (parm, prm))))
        low, high = over_prm - margin, over_prm + margin
        beats = "yes" if low > 0 else "no" if high < 0 else "undecided"
        both = {over_orm["seen"], beats}
        seen = "no" if "no" in both else "undecided" if "undecided" in both else "yes"
        note = f"parm − ft-prm {over_prm:+.3f} [{low:+.3f}, {high:+.3f}], not paired: {beats}"
        claim = "parm − ft-orm > 0 and parm − ft-prm > 0"
        found[judge] = over_orm | {"claim": claim, "seen": seen, "note": note}
    return by_both_judges(found)


def clear_at(opinions: Opinions) -> list[float]:
    """Share of paths that PARM first calls clear at each step but the last; the last number: never."""
    clear = opinions.clarity > 0
    never = ~clear.any(axis=2)
    first = np.bincount(clear.argmax(axis=2)[~never], minlength=clear.shape[2])
    return (np.array([*first, never.sum()]) / never.size).round(4).tolist()


def stopping(outcome: Outcome, pool: Pool) -> dict[str, float]:
    """How good the stops are: share of paths stopped; of the stopped, how many would have ended wrong (precision); of
    those that end wrong, how many are stopped (recall); mean step of a stop; of the prompts with a right path, how many
    lose all of them."""
    wrong, stopped = ~pool.correct["learned"], ~outcome.survived
    possible = (~wrong).any(axis=1)
    lost = possible & ~(~wrong & outcome.survived).any(axis=1)
    found = {
        "stopped": stopped.mean(),
        "precision": wrong[stopped].mean() if stopped.any() else np.nan,
        "recall": stopped[wrong].mean() if wrong.any() else np.nan,
        "mean_step": outcome.steps[stopped].mean() if stopped.any() else np.nan,
        "prompts_lost": lost.sum() / max(1, possible.sum()),
    }
    return {key: round(float(np.nan_to_num(value)), 4) for key, value in found.items()}


def _save_opinions(path: Path, opinions: Opinions) -> None:
    part = path.with_suffix(".part")
    save_file({key: torch.from_numpy(value).half() for key, value in vars(opinions).items()}, part)
    part.replace(path)


def ask_of_paths(
    generator: Generator, verifier: Verifier, guesses: Tensor, prompts: Sequence[Prompt], work_dir: Path
) -> Opinions:
    """PARM's opinions of a pool's guesses (P, N, T, L); resumes from shards in `work_dir`.

    Kept in half precision, as pools keep scores.
    """
    shards = [range(i, min(i + SHARD, len(prompts))) for i in range(0, len(prompts), SHARD)]

    def ask(shard: range) -> dict[str, Tensor]:
        odds, final = [], []
        for row in shard:
            seen = guesses[row, :, :-1].flatten(0, 1)
            texts = [prompts[row].text] * len(seen)
            said = verifier.score_turns(generator.decode(seen), texts, (CLARITY_QUESTION, POTENTIAL_QUESTION))
            odds.append(said.view(guesses.shape[1], -1, 2))
            final.append(verifier.score(generator.decode(guesses[row, :, -1]), texts[: guesses.shape[1]]))
        return {"odds": torch.stack(odds).half(), "final": torch.stack(final).half()}

    about = [prompt.text for prompt in prompts], guesses.sum().item(), list(guesses.shape)
    folder = work_dir / fingerprint((verifier.model, generator.pixels), *about)
    parts = in_shards(shards, ask, folder, "PARM")
    odds, final = (torch.cat([part[name] for part in parts]).float().numpy() for name in ("odds", "final"))
    return Opinions(odds[..., 0], odds[..., 1], final)


def stop_paths(opinions: Opinions, assess: Assess = "every") -> Outcome:
    """How `parm_search` would treat the paths of a pool; exact, because paths do not depend on each other."""
    clear = opinions.clarity > 0
    if assess == "first":
        clear &= np.cumsum(clear, axis=2) == 1
    hopeless = clear & (opinions.potential <= 0)
    last = hopeless.argmax(axis=2)
    survived = np.logical_not(np.logical_or.reduce(hopeless, axis=2))
    steps = np.where(survived, hopeless.shape[2] + 1, last + 1)
    doubt = np.take_along_axis(opinions.potential, last[..., None], axis=2)[..., 0].astype(np.float64)
    # Log-odds of selection may be of any size: squeezed into 0..1, above what potential becomes, −1..0.
    order = np.where(survived, _squeeze(opinions.selection), _squeeze(doubt) - 1)
    return Outcome(steps, survived, order)


def _squeeze(log_odds: npt.NDArray) -> npt.NDArray[np.float64]:
    """Any numbers into 0..1, in the same order, even where a sigmoid would round to 1."""
    ranks = np.unique(log_odds, return_inverse=True)[1].reshape(log_odds.shape)
    return ranks / (ranks.max() + 1)


def passes_of_search(outcome: Outcome, n: int, steps: int) -> dict[str, float]:
    """What `parm_search` with n paths costs for one image, in expectation over any n of a pool's: generator passes,
    verifier passes (an image read counts one), and how often no path is left.

    steps: T. The generator's: prompt and empty prompt, the first step for all paths together, then two passes a path
    and step; a resumed path's remaining steps on top.
    """
    ran = outcome.steps
    number = ran.shape[1]
    dead = number - outcome.survived.sum(axis=1)
    none_left = np.array([comb(int(d), n) / comb(number, n) for d in dead])
    remaining = np.where(outcome.survived, 0, steps - ran) / steps
    resumed = expected_best_of(outcome.order, remaining, n) * steps  # 0 wherever a survivor is among the n
    asked = n * np.minimum(ran, steps - 1).mean(axis=1) + n * outcome.survived.mean(axis=1) + none_left
    generator = 2 + 2 + 2 * n * (ran.mean(axis=1) - 1) + 2 * resumed
    found = {"generator_passes": generator, "verifier_passes": asked, "none_left": none_left}
    return {key: round(float(value.mean()), 4) for key, value in found.items()}
