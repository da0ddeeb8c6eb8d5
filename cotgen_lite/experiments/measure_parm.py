"""What PARM brings: its three tasks on candidate pools, what stopping saves, and at equal cost; chapter 07."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide, decide_best, decide_f7, write_findings
from cotgen_lite.experiments.measure import load_steps_of_pool
from cotgen_lite.experiments.measure_alignment import ALIGNED, ON_TOP, measure_generator
from cotgen_lite.experiments.results import SIZES, merge_rows, score_rows
from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.drawing import draw_pool
from cotgen_lite.generate.pipeline import load_generator
from cotgen_lite.generate.sampling import Ledger
from cotgen_lite.hub import write_json
from cotgen_lite.lite.judges import load_judges
from cotgen_lite.metrics import expected_best_of, tag_means
from cotgen_lite.pools import Pool, load_pool, save_pool, stratified_subset
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.pool_search import (
    Opinions,
    Outcome,
    areas_by_step,
    ask_of_paths,
    clear_at,
    save_opinions,
    spent_by_best_of_n,
    spent_by_search,
    stop_paths,
    stopping,
)
from cotgen_lite.verify.training_data import CLEAR_FROM
from cotgen_lite.verify.verifier import Verifier

BUILD = "python -m cotgen_lite.build"
GENERATORS = ("baseline", "dpo", "it-dpo")  # under which PARM chooses; figures 3, 6 and 7


GUIDED = "it-dpo-guided-parm"


def measure_parm(out: Path, work: Path, config: Config) -> None:
    """Let PARM stop and choose among the paths of each generator's pool, decide F7, compare at equal cost; under `out`.

    Pools and opinions in `work` let it resume.
    """
    models, results = out / "models", out / "results"
    generator, parm = load_generator(models=models), Verifier.from_pretrained(models / "parm")
    units = unit_costs(generator, parm, load_pool(out / "pools/baseline.safetensors").prompts, config.pool_size)
    found = {name: measure_paths(out, work, name, parm, units, config) for name in GENERATORS}
    pool, guesses, opinions = found["baseline"].pool, found["baseline"].guesses, found["baseline"].opinions
    steps = guesses.shape[2]
    late = ask_of_paths(generator, parm, guesses, pool.prompts, work / "opinions", CLEAR_FROM)
    others = {
        "parm-first": stop_paths(opinions, "first"),
        f"parm-from-{CLEAR_FROM}": stop_paths(late, first_step=CLEAR_FROM),
    }
    for method, outcome in others.items():
        save_rows(results, method, "baseline", pool, outcome, units, steps)
    orders = {method: outcome.order for method, outcome in others.items()} | {"unstopped": opinions.selection}
    equal = at_equal_cost(pool, found["baseline"].outcome, units, steps)
    prm = load_pool(out / "pools/ft-prm.safetensors")
    whole, kept = load_steps_of_pool(out / "pools/baseline_steps.safetensors")
    some = [pool.prompts[row] for row in kept]
    everywhere = ask_of_paths(generator, parm, whole, some, work / "opinions", stop=False)
    save_opinions(out / "pools/baseline_steps_parm.safetensors", everywhere)
    outcome = found["baseline"].outcome
    write_findings(out, lambda judge: {"F7": decide_f7(pool, prm, outcome, config.pool_size, equal, judge)})
    summary = {name: one.summary for name, one in found.items()}
    summary["baseline"] |= {
        "stopping_otherwise": {method: stopping(outcome, pool) for method, outcome in others.items()},
        "over_orm": over_orm(pool, {"parm": found["baseline"].outcome.order} | orders, config.pool_size),
        "auc_within_prompts": areas_by_step(everywhere, pool.correct["learned"][kept]),
        "units": units,
        "equal_cost": equal,
    }
    write_json(results / "parm.json", summary)


def measure_guided(out: Path, work: Path, config: Config) -> None:
    """The pool of the generator that PARM guided, verifiers' choices in it, F8 and F9; under `out`.

    Pools and opinions in `work` let it resume.
    """
    models, results = out / "models", out / "results"
    judges, parm = load_judges(models), Verifier.from_pretrained(models / "parm")
    orms = {method: Verifier.from_pretrained(models / folder) for method, folder in ON_TOP.items()}
    measure_generator(out, work, GUIDED, judges, orms, config, f"{BUILD} parm_guided_results")
    units = json.loads((results / "parm.json").read_text(encoding="utf-8"))["baseline"]["units"]
    summary = measure_paths(out, work, GUIDED, parm, units, config).summary
    pools = {name: load_pool(out / f"pools/{name}.safetensors") for name in (*GENERATORS, *ALIGNED, GUIDED)}
    write_findings(out, lambda judge: decide_best(pools, config.pool_size, judge))
    write_json(results / "parm_guided.json", summary)


@dataclass(frozen=True)
class Measured:
    """PARM under one generator: its pool and all guesses (P, N, T, L), what PARM says and does, and that in numbers."""

    pool: Pool
    guesses: Tensor
    opinions: Opinions
    outcome: Outcome
    summary: dict


def measure_paths(
    out: Path,
    work: Path,
    name: str,
    parm: Verifier,
    units: Mapping[str, Mapping[str, float]],
    config: Config,
) -> Measured:
    """PARM among the paths of one generator's pool, in which its order of them is kept beside the ORMs' scores.

    ValueError if the generator does not draw the pool's images again on this machine.
    """
    generator = load_generator("generator" if name == "baseline" else name, models=out / "models")
    path = out / f"pools/{name}.safetensors"
    pool = load_pool(path)
    guesses, _, _ = draw_pool(generator, pool.prompts, config.pool_size, seed=0, work_dir=work / "pool")
    if not torch.equal(guesses[:, :, -1], pool.tokens):
        raise ValueError(f"The paths drawn by {name} are not those of its pool: make the pool again on this machine.")
    opinions = ask_of_paths(generator, parm, guesses, pool.prompts, work / "opinions")
    outcome = stop_paths(opinions)
    save_pool(replace(pool, scores=pool.scores | {"parm": order_within_rows(outcome.order)}), path)
    method = "parm" if name == "baseline" else f"{name}+parm"
    save_rows(out / "results", method, name, pool, outcome, units, guesses.shape[2])
    return Measured(pool, guesses, opinions, outcome, in_numbers(pool, opinions, outcome, config.pool_size))


def in_numbers(pool: Pool, opinions: Opinions, outcome: Outcome, n: int) -> dict:
    """When PARM says clear of a pool's paths, how good its stops are, and its choice among n if it stopped none."""
    alone = expected_best_of(opinions.selection, pool.correct["learned"], n)
    return {
        "clear_at": clear_at(opinions),
        "stopping": stopping(outcome, pool),
        "selection_alone": round(float(np.mean(list(tag_means(pool.prompts, alone).values()))), 4),
    }


def order_within_rows(order: npt.NDArray) -> npt.NDArray[np.float32]:
    """Numbers (P, N) as whole ones from 0 upward, in the same order within each row, ties alike; a pool keeps them."""
    return np.stack([np.unique(row, return_inverse=True)[1] for row in order]).astype(np.float32)


def save_rows(
    results: Path,
    method: str,
    generator: str,
    pool: Pool,
    outcome: Outcome,
    units: Mapping[str, Mapping[str, float]],
    steps: int,
) -> None:
    """PARM's rows of scores.jsonl for every n, with what a search costs."""
    about = {"generator": generator, "verifier": "PARM", "seed": 0}
    about["command"] = f"{BUILD} {'parm_guided_results' if generator == GUIDED else 'parm_results'}"
    sizes = [size for size in SIZES if size <= outcome.order.shape[1]]
    rows = score_rows(method, pool.prompts, outcome.order, pool.correct, sizes, about, {})
    for row in rows:
        row["cost"] = priced(spent_by_search(outcome, row["n"], steps), units)
    merge_rows(results / "scores.jsonl", rows)


def unit_costs(
    generator: AnyGenerator, verifier: Verifier, prompts: Sequence[Prompt], n: int
) -> dict[str, dict[str, float]]:
    """Seconds and FLOPs of what searches are made of, mean over a prompt of each tag, n images side by side.

    "generator_pass": one sequence through the generator once, without decoding; "decode": one image; "read": one image
    read with the ORM's question; "read_twice": with both of PARM's.
    """
    of_prompts = []
    for prompt in stratified_subset(list(dict.fromkeys(prompts)), most=1):
        ledger = Ledger()
        paths = generator.draw([prompt.text], n, seed=0, ledger=ledger)[0]
        codes = torch.stack([path.final for path in paths])
        images = generator.decode(codes)
        deeds: dict[str, tuple[Callable[[], object], int]] = {
            "generator_pass": (partial(generator.draw, [prompt.text], n, seed=0), ledger.passes + ledger.prefix_passes),
            "decode": (partial(generator.decode, codes), n),
            "read": (partial(verifier.score, images, prompt.text), n),
            "read_twice": (partial(verifier.clarity_and_potential, images, prompt.text), n),
        }
        of_prompts.append([[spent / times for spent in _spent(deed)] for deed, times in deeds.values()])
    means = np.mean(of_prompts, axis=0)
    return {
        deed: {"seconds": round(float(seconds), 6), "flops": round(float(flops))}
        for deed, (seconds, flops) in zip(deeds, means, strict=True)
    }


def _spent(deed: Callable[[], object]) -> tuple[float, float]:
    """Seconds and FLOPs of something."""
    # Counted first, which warms up; by plain attention, because the counter does not know the CPU's fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        deed()
    started = time.perf_counter()
    deed()
    return time.perf_counter() - started, float(counter.get_total_flops())


def at_equal_cost(
    pool: Pool, outcome: Outcome, units: Mapping[str, Mapping[str, float]], steps: int, judge: str = "learned"
) -> dict[str, list[dict]]:
    """PARM against the fine-tuned ORM where both cost the same: in generator passes, in seconds, in FLOPs.

    For each n of the ORM's, the number of PARM's paths that costs as much (between whole numbers the accuracy is taken
    between theirs), and the paired difference. An n of 1 is left out, and one for which PARM would need more paths
    than the pool has, or less than one. units: from `unit_costs`; steps: T.
    """
    number = outcome.order.shape[1]
    every, correct = np.arange(1, number + 1), pool.correct[judge]
    spent = {
        "parm": [priced(spent_by_search(outcome, n, steps), units) for n in every],
        "ft-orm": [priced(spent_by_best_of_n(n, steps), units) for n in every],
    }
    accuracy = np.stack([expected_best_of(outcome.order, correct, n) for n in every])
    found: dict[str, list[dict]] = {}
    for measure in ("generator_passes", "seconds", "flops"):
        parm, orm = (np.array([cost[measure] for cost in costs]) for costs in spent.values())
        found[measure] = []
        for n in (n for n in SIZES if 1 < n <= number and parm[0] <= orm[n - 1] <= parm[-1]):
            paths = float(np.interp(orm[n - 1], parm, every))
            low = min(int(paths), number - 1)
            between = accuracy[low - 1] + (paths - low) * (accuracy[low] - accuracy[low - 1])
            difference = between - expected_best_of(pool.scores["ft-orm"], correct, n)
            one = decide("parm − ft-orm > 0", pool.prompts, difference, paper="")
            about = {"orm_n": n, "parm_n": round(paths, 2), "cost": round(float(orm[n - 1]), 4)}
            found[measure].append(about | {key: one[key] for key in ("seen", "delta", "ci")})
    return found


def over_orm(pool: Pool, orders: Mapping[str, npt.NDArray], n: int, judge: str = "learned") -> dict[str, dict]:
    """Paired differences from the fine-tuned ORM's choice among n, for several orders of the paths (P, N)."""
    correct = pool.correct[judge]
    best = expected_best_of(pool.scores["ft-orm"], correct, n)
    found = {
        name: decide(f"{name} − ft-orm > 0", pool.prompts, expected_best_of(order, correct, n) - best, paper="")
        for name, order in orders.items()
    }
    return {name: {key: one[key] for key in ("seen", "delta", "ci")} for name, one in found.items()}


def priced(spent: Mapping[str, float], units: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A row's cost from what was spent, every image that is read being decoded first; units: from `unit_costs`."""
    times = {
        "generator_pass": spent["generator_passes"],
        "decode": spent["guesses_read"] + spent["finished_read"],
        "read": spent["finished_read"],
        "read_twice": spent["guesses_read"],
    }
    reads = {"verifier_passes": round(times["decode"], 4), "none_left": spent["none_left"]}
    sums = {key: sum(times[deed] * units[deed][key] for deed in times) for key in ("seconds", "flops")}
    return {"generator_passes": spent["generator_passes"]} | reads | {k: round(v, 4) for k, v in sums.items()}
