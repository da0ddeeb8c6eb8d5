"""What PARM brings: its three tasks on candidate pools, what stopping saves, and at equal cost; chapter 07, F7 to F9.

Paper: section 4. How: measuring.py; what PARM would do with a pool's paths: verify/pool_search.py.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import brief, decide, decide_best, decide_f7, write_findings
from cotgen_lite.experiments.measure import load_steps_of_pool
from cotgen_lite.experiments.measure_alignment import ALIGNED
from cotgen_lite.experiments.measuring import Bench, by_step, measure_pool, method_name
from cotgen_lite.experiments.results import SIZES
from cotgen_lite.generate.pipeline import ImageGenerator
from cotgen_lite.metrics import expected_best_of, roc_auc_within_prompts, tag_means
from cotgen_lite.pools import Pool, stratified_subset
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.pool_search import (
    Opinions,
    Outcome,
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

GENERATORS = ("baseline", "dpo", "it-dpo")  # under which PARM chooses; figures 3, 6 and 7
GUIDED = "it-dpo-guided-parm"
Units = Mapping[str, Mapping[str, float]]  # as `unit_costs` gives them


def measure_parm(out: Path, work: Path, config: Config) -> None:
    """PARM among the paths of each generator: what it stops and chooses, what that costs; scores and findings."""
    bench, n = Bench(out, work, config, "parm_results"), config.pool_size
    generator, parm = bench.generator(), bench.verifier("parm")
    units = unit_costs(generator, parm, bench.pool().prompts, n)
    found = {name: measure_paths(bench, name, parm, units) for name in GENERATORS}
    base = found["baseline"]
    pool, learned = base.pool, base.pool.correct["learned"]
    late = ask_of_paths(generator, parm, base.steps, pool.prompts, work / "opinions", CLEAR_FROM)
    others = {
        "parm-first": stop_paths(base.opinions, "first"),
        f"parm-from-{CLEAR_FROM}": stop_paths(late, first_step=CLEAR_FROM),
    }
    for method, outcome in others.items():
        add_rows(bench, method, "baseline", pool, outcome, units, base.steps.shape[2])
    whole, kept = load_steps_of_pool(out / "pools/baseline_steps.safetensors")
    some = [pool.prompts[row] for row in kept]
    everywhere = ask_of_paths(generator, parm, whole, some, work / "opinions", stop=False)
    save_opinions(out / "pools/baseline_steps_parm.safetensors", everywhere)
    equal, prm = at_equal_cost(pool, base.outcome, units, whole.shape[2]), bench.pool("ft-prm")
    bench.note_seconds("parm", {"units": in_seconds(units), "equal_cost": equal.pop("seconds")})
    write_findings(out, lambda judge: {"F7": decide_f7(pool, prm, base.outcome, n, equal, judge)})
    orders = {method: outcome.order for method, outcome in {"parm": base.outcome, **others}.items()}
    best = expected_best_of(pool.scores["ft-orm"], learned, n)
    summary = {name: one.summary for name, one in found.items()}
    summary["baseline"] |= {
        "stopping_otherwise": {method: stopping(outcome, pool) for method, outcome in others.items()},
        "over_orm": {
            name: brief(decide("", pool.prompts, expected_best_of(order, learned, n) - best, paper=""))
            for name, order in (orders | {"unstopped": base.opinions.selection}).items()
        },
        "auc_within_prompts": {
            task: by_step(roc_auc_within_prompts, odds, learned[kept])
            for task, odds in (("clarity", everywhere.clarity), ("potential", everywhere.potential))
        },
        "units": in_flops(units),
        "equal_cost": equal,
    }
    bench.write("parm", summary)


def measure_guided(out: Path, work: Path, config: Config) -> None:
    """The generator that PARM guided, verifiers on top of it, PARM among them; scores and findings."""
    bench = Bench(out, work, config, "parm_guided_results")
    measure_pool(bench, bench.generator(GUIDED), GUIDED, bench.orms)
    seconds = bench.seconds("parm").get("units", {})
    flops = json.loads((out / "results/parm.json").read_text(encoding="utf-8"))["baseline"]["units"]
    units = {deed: {"seconds": seconds.get(deed, 0.0), "flops": number} for deed, number in flops.items()}
    summary = measure_paths(bench, GUIDED, bench.verifier("parm"), units).summary
    pools = {name: bench.pool(name) for name in (*GENERATORS, *ALIGNED, GUIDED)}
    write_findings(out, lambda judge: decide_best(pools, config.pool_size, judge))
    bench.write("parm_guided", summary)


@dataclass(frozen=True)
class Measured:
    """PARM under one generator: its pool with all steps (P, N, T, L), what PARM says and does, and that in numbers."""

    pool: Pool
    steps: Tensor
    opinions: Opinions
    outcome: Outcome
    summary: dict


def measure_paths(bench: Bench, name: str, parm: Verifier, units: Units) -> Measured:
    """PARM among the paths of one generator's pool, in which its order of them is kept beside the ORMs' scores.

    ValueError if the generator does not draw the pool's images again on this machine.
    """
    generator, pool = bench.generator(name), bench.pool(name)
    drawn = bench.generate(generator, pool.prompts, bench.config.pool_size)
    if not torch.equal(drawn.tokens, pool.tokens):
        raise ValueError(f"The paths drawn by {name} are not those of its pool: make the pool again on this machine.")
    opinions = ask_of_paths(generator, parm, drawn.steps, pool.prompts, bench.work / "opinions")
    outcome = stop_paths(opinions)
    bench.save_pool(name, replace(pool, scores=pool.scores | {"parm": order_within_rows(outcome.order)}))
    add_rows(bench, method_name(name, "parm"), name, pool, outcome, units, drawn.steps.shape[2])
    return Measured(pool, drawn.steps, opinions, outcome, in_numbers(pool, opinions, outcome, bench.config.pool_size))


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


def add_rows(bench: Bench, method: str, generator: str, pool: Pool, outcome: Outcome, units: Units, steps: int) -> None:
    """PARM's rows of scores.jsonl for every n, with what a search costs; steps: T."""

    def cost(n: int) -> dict[str, float]:
        return priced(spent_by_search(outcome, n, steps), units)

    bench.add_rows(method, generator, pool, cost, outcome.order, verifier="PARM")


def unit_costs(
    generator: ImageGenerator[Any], verifier: Verifier, prompts: Sequence[Prompt], n: int
) -> dict[str, dict[str, float]]:
    """Seconds and FLOPs of what searches are made of, mean over a prompt of each tag, n images side by side.

    "generator_pass": one sequence through the generator once, without decoding; "decode": one image; "read": one image
    read with the ORM's question; "read_twice": with both of PARM's.
    """
    of_prompts = []
    for prompt in stratified_subset(list(dict.fromkeys(prompts)), most=1):
        out = generator(prompt.text, n)
        deeds: dict[str, tuple[Callable[[], object], int]] = {
            "generator_pass": (partial(generator, prompt.text, n), out.cost.generator_passes),
            "decode": (partial(generator.decode, out.tokens), n),
            "read": (partial(verifier.score, out.images, prompt.text), n),
            "read_twice": (partial(verifier.clarity_and_potential, out.images, prompt.text), n),
        }
        of_prompts.append([[spent / times for spent in _spent(deed)] for deed, times in deeds.values()])
    means = np.mean(of_prompts, axis=0)
    return {
        deed: {"seconds": round(float(seconds), 6), "flops": round(float(flops))}
        for deed, (seconds, flops) in zip(deeds, means, strict=True)
    }


def in_seconds(units: Units) -> dict[str, float]:
    """The seconds of `unit_costs`."""
    return {deed: cost["seconds"] for deed, cost in units.items()}


def in_flops(units: Units) -> dict[str, float]:
    """The FLOPs of `unit_costs`, which are the same at every run."""
    return {deed: cost["flops"] for deed, cost in units.items()}


def _spent(deed: Callable[[], object]) -> tuple[float, float]:
    """Seconds and FLOPs of something."""
    # Counted first, which warms up; by plain attention, because the counter does not know the CPU's fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        deed()
    started = time.perf_counter()
    deed()
    return time.perf_counter() - started, float(counter.get_total_flops())


def at_equal_cost(pool: Pool, outcome: Outcome, units: Units, steps: int) -> dict[str, list[dict]]:
    """PARM against the fine-tuned ORM where both cost the same: in generator passes, in seconds, in FLOPs.

    For each n of the ORM's, the number of PARM's paths that costs as much (between whole numbers the accuracy is taken
    between theirs), and the paired difference. An n of 1 is left out, and one for which PARM would need more paths
    than the pool has, or less than one. units: from `unit_costs`; steps: T.
    """
    number = outcome.order.shape[1]
    every, correct = np.arange(1, number + 1), pool.correct["learned"]
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
            gain = between - expected_best_of(pool.scores["ft-orm"], correct, n)
            about = {"orm_n": n, "parm_n": round(paths, 2), "cost": round(float(orm[n - 1]), 4)}
            found[measure].append(about | brief(decide("", pool.prompts, gain, paper="")))
    return found


def priced(spent: Mapping[str, float], units: Units) -> dict[str, float]:
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
