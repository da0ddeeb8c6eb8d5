"""What alignment brings and takes, on the baseline's prompts and seeds: chapters 04 to 06, findings F5 and F6.

Paper: section 3.3 and 3.4. How: measuring.py; what DPO's results hang on: dpo_studies.py.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_alignment, difference, write_findings
from cotgen_lite.experiments.measuring import Bench, measure_pool, time_search
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import MANIFEST
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import world
from cotgen_lite.metrics import bootstrap_interval, cohens_kappa, tag_means
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import TAGS, Prompt, lite_prompts
from cotgen_lite.verify.search import best_of_n

ALIGNED = ("dpo", "it-dpo", "it-dpo-guided-orm")
FEW_RIGHT = 4  # right images among which layouts are counted


def measure_alignment(out: Path, work: Path, config: Config) -> None:
    """Pools, scores and findings of the aligned generators, and what alignment cost them."""
    bench, pools = Bench(out, work, config, "dpo_results"), {}
    pools["baseline"] = bench.pool()
    for name in ALIGNED:
        pools[name] = measure_pool(bench, bench.generator(name), name, bench.orms)[0]
    write_findings(out, lambda judge: decide_alignment(pools, config.pool_size, judge))
    found = {
        "gains": gains_by_tag(pools),
        "layouts": layouts(bench.generator(), pools),
        "judges": {name: disagreement(pool) for name, pool in pools.items()},
        "cost": cost_of_training(bench),
    }
    bench.note_seconds("alignment", seconds_of_training(bench))
    bench.write("alignment", found)


def gains_by_tag(pools: Mapping[str, Pool]) -> dict[str, dict]:
    """What each aligned generator's own images gain over the baseline's, tag by tag, with paired intervals."""
    prompts, right = pools["baseline"].prompts, {name: pool.correct["learned"] for name, pool in pools.items()}
    rows = {tag: [row for row, prompt in enumerate(prompts) if prompt.tag == tag] for tag in TAGS}
    gains = {name: one.mean(1) - right["baseline"].mean(1) for name, one in right.items()}
    return {
        name: {tag: difference([prompts[row] for row in some], gain[some]) for tag, some in rows.items() if some}
        for name, gain in gains.items()
    }


def layouts(generator: Generator, pools: Mapping[str, Pool]) -> dict[str, dict]:
    """How many layouts a prompt's images have that differ in class, colour or lattice place, to the training judge.

    For each pool, with paired differences from the baseline's: "all", among its N images, to which mistakes add
    variety; and "right", the mean number among `FEW_RIGHT` right images, for prompts with as many in both pools.
    """
    prompts = pools["baseline"].prompts
    seen = {name: [layouts_of(generator, TemplateJudge(), row) for row in pool.tokens] for name, pool in pools.items()}
    right = {name: pool.correct["template"] for name, pool in pools.items()}
    some = {name: np.array([float(len(set(row))) for row in rows]) for name, rows in seen.items()}
    few = {
        name: np.array([_distinct_among(row, r, FEW_RIGHT) for row, r in zip(rows, right[name], strict=True)])
        for name, rows in seen.items()
    }
    found: dict[str, dict] = {}
    for name in pools:
        both = np.flatnonzero(~np.isnan(few[name]) & ~np.isnan(few["baseline"]))
        found[name] = {
            "all": {"of": pools[name].tokens.shape[1]} | _beside(prompts, some[name], some["baseline"]),
            "right": {"of": FEW_RIGHT, "pools": len(both)}
            | _beside([prompts[row] for row in both], few[name][both], few["baseline"][both]),
        }
    return found


def _beside(prompts: Sequence[Prompt], values: npt.NDArray, before: npt.NDArray) -> dict:
    """The mean over tags of some numbers, and their paired difference from others; nothing without prompts."""
    if not len(prompts):
        return {}
    mean, delta = (float(np.mean(list(tag_means(prompts, x).values()))) for x in (values, values - before))
    interval = [round(bound, 2) for bound in bootstrap_interval(prompts, values - before)]
    return {"overall": round(mean, 2), "delta": round(delta, 2), "ci": interval}


def layouts_of(generator: Generator, detector: Detector, tokens: Tensor) -> list[tuple]:
    """Each image's set of (class, colour, place on the lattice), in a fixed order; tokens (N, L)."""
    found = []
    for detections in detector.detect(generator.decode(tokens)):
        corners = [(round(d.box[0] / world().lattice), round(d.box[1] / world().lattice)) for d in detections]
        things = [(d.name, d.color or "", *at) for d, at in zip(detections, corners, strict=True)]
        found.append(tuple(sorted(things)))
    return found


def _distinct_among(layouts: Sequence[tuple], right: npt.NDArray, number: int) -> float:
    """Expected number of different layouts among `number` of the right images; nan if there are fewer."""
    kept = Counter(layout for layout, good in zip(layouts, right, strict=True) if good)
    total = kept.total()
    if total < number:
        return float("nan")
    return sum(1 - comb(total - count, number) / comb(total, number) for count in kept.values())


def disagreement(pool: Pool) -> dict[str, dict]:
    """How often the judges disagree on a pool's images, and on those that the fine-tuned ORM prefers among all N.

    "gamed" is the share that only the template judge, whose labels were learned from, calls right; "missed" the share
    that only the learned judge does. Cohen's κ is for the same images.
    """
    learned, template = pool.correct["learned"], pool.correct["template"]
    best = pool.scores["ft-orm"].argmax(axis=1)[:, None]
    preferred = (np.take_along_axis(learned, best, 1), np.take_along_axis(template, best, 1))
    cases = {"all": (learned, template), "chosen": preferred}
    return {
        name: {
            "images": int(a.size),
            "gamed": round(float((b & ~a).mean()), 4),
            "missed": round(float((a & ~b).mean()), 4),
            "kappa": round(cohens_kappa(a.ravel(), b.ravel()), 4),
        }
        for name, (a, b) in cases.items()
    }


def cost_of_training(bench: Bench) -> dict[str, float]:
    """Images drawn and labelled: "images" serve the ORM and the first round of DPO, "second_images" the second."""
    notes = [bench.out / "training" / name / MANIFEST for name in ("images", "dpo_images")]
    about = [json.loads(note.read_text(encoding="utf-8"))["settings"] for note in notes]
    images, second = (float(one["pools"] * one["images_a_pool"]) for one in about)
    return {"images": images, "second_images": second}


def seconds_of_training(bench: Bench) -> dict[str, float]:
    """Seconds that training took, model by model: of several learning rates that were tried, only the one taken counts.

    Beside them "seconds_of_one": drawing one candidate and reading it with the ORM, timed anew over best of n.
    """
    n = bench.config.pool_size
    searched = time_search(lite_prompts("test"), partial(best_of_n, bench.generator(), bench.orms["ft-orm"], n=n))
    taken = bench.seconds("training")
    return {"seconds_of_one": round(searched / n, 4)} | {
        name: float(taken.get(f"models/{name}", 0)) for name in ("orm", *ALIGNED)
    }
