"""What alignment brings and takes: chapters 04 to 06, measured on the test prompts with the baseline's seeds."""

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
from cotgen_lite.experiments.findings import decide_alignment, write_findings
from cotgen_lite.experiments.measure import cost_of_drawing
from cotgen_lite.experiments.measure_verifiers import time_search
from cotgen_lite.experiments.results import SIZES, merge_rows, score_rows, score_tokens
from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.drawing import draw_pool, judge_tokens
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import MANIFEST, write_json
from cotgen_lite.lite.judges import TemplateJudge, load_judges
from cotgen_lite.lite.world import world
from cotgen_lite.metrics import bootstrap_interval, cohens_kappa, tag_means
from cotgen_lite.pools import Pool, load_pool, save_pool
from cotgen_lite.prompts import TAGS, Prompt, lite_prompts
from cotgen_lite.verify.search import best_of_n
from cotgen_lite.verify.verifier import Verifier

COMMAND = "python -m cotgen_lite.build dpo_results"
ALIGNED = ("dpo", "it-dpo", "it-dpo-guided-orm")
ON_TOP = {"zs-orm": "verifier", "ft-orm": "orm"}  # method → folder of the verifier
VERIFIER_NAMES = {"zs-orm": "zero-shot", "ft-orm": "fine-tuned ORM"}
FEW_RIGHT = 4  # right images among which layouts are counted


def measure_alignment(out: Path, work: Path, config: Config) -> None:
    """Draw and score a pool of each aligned generator, decide F5 and F6, count what alignment cost; under `out`.

    Pools in `work` let it resume.
    """
    models, results = out / "models", out / "results"
    judges = load_judges(models)
    verifiers = {method: Verifier.from_pretrained(models / name) for method, name in ON_TOP.items()}
    pools = {"baseline": load_pool(out / "pools/baseline.safetensors")}
    for name in ALIGNED:
        pools[name] = measure_generator(out, work, name, judges, verifiers, config, COMMAND)
    write_findings(out, lambda judge: decide_alignment(pools, config.pool_size, judge))
    pixels = load_generator(models=models)
    write_json(
        results / "alignment.json",
        {
            "gains": gains_by_tag(pools),
            "layouts": layouts(pixels, pools),
            "judges": {name: disagreement(pool) for name, pool in pools.items()},
            "cost": cost_of_training(out, config.pool_size),
        },
    )


def measure_generator(
    out: Path,
    work: Path,
    name: str,
    judges: Mapping[str, Detector],
    verifiers: Mapping[str, Verifier],
    config: Config,
    command: str,
) -> Pool:
    """Draw a pool of one aligned generator with the baseline's prompts and seeds, judge it, let the verifiers choose.

    verifiers: of `ON_TOP`. Pool and scores go under `out`, their rows naming `command`; shards in `work` let it resume.
    """
    generator = load_generator(name, models=out / "models")
    return measure_drawn(out, work, generator, name, name, f"{name}+", judges, verifiers, config, command)


def measure_drawn(
    out: Path,
    work: Path,
    generator: AnyGenerator,
    name: str,
    alone: str,
    on_top: str,
    judges: Mapping[str, Detector],
    verifiers: Mapping[str, Verifier],
    config: Config,
    command: str,
) -> Pool:
    """`measure_generator` of any generator: name, its pool's; alone, the method of its images without a choice; on_top,
    what stands before the methods that choose."""
    prompts = load_pool(out / "pools/baseline.safetensors").prompts
    sizes = [size for size in SIZES if size <= config.pool_size]
    guesses, _, drawing = draw_pool(generator, prompts, config.pool_size, seed=0, work_dir=work / "pool")
    final = guesses[:, :, -1].contiguous()
    correct = {judge: judge_tokens(generator, final, prompts, one) for judge, one in judges.items()}
    each, once = cost_of_drawing(generator, prompts[0].text)
    each |= {"seconds": drawing["seconds"] / correct["learned"].size, "verifier_passes": 0.0}
    about = {"generator": name, "verifier": None, "seed": 0, "command": command}
    chance = np.zeros(correct["learned"].shape)
    rows = score_rows(alone, prompts, chance, correct, (1,), about, each, once)
    for judge, verdicts in correct.items():
        rows += score_rows(f"{on_top}oracle", prompts, verdicts, {judge: verdicts}, sizes, about, each, once)
    scores = {}
    for method, verifier in verifiers.items():
        log_odds, seconds = score_tokens(generator, verifier, final, prompts)
        scores[method] = log_odds.astype(np.float16).astype(np.float32)
        asked = about | {"verifier": VERIFIER_NAMES[method]}
        cost = each | {"verifier_passes": 1.0, "seconds": each["seconds"] + seconds / log_odds.size}
        rows += score_rows(f"{on_top}{method}", prompts, scores[method], correct, sizes, asked, cost, once)
    merge_rows(out / "results/scores.jsonl", rows)
    pool = Pool(prompts, final, scores, correct)
    save_pool(pool, out / f"pools/{name}.safetensors")
    return pool


def gains_by_tag(pools: Mapping[str, Pool]) -> dict[str, dict]:
    """What each aligned generator's own images gain over the baseline's, tag by tag, with paired intervals."""
    prompts, base = pools["baseline"].prompts, pools["baseline"].correct["learned"].mean(1)
    found: dict[str, dict] = {}
    for name in pools:
        difference, found[name] = pools[name].correct["learned"].mean(1) - base, {}
        for tag in TAGS:
            rows = [row for row, prompt in enumerate(prompts) if prompt.tag == tag]
            some = [prompts[row] for row in rows]
            if some:
                interval = bootstrap_interval(some, difference[rows])
                delta = round(float(difference[rows].mean()), 4)
                found[name][tag] = {"delta": delta, "ci": [round(bound, 4) for bound in interval]}
    return found


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
        things = [
            (d.name, d.color or "", round(d.box[0] / world().lattice), round(d.box[1] / world().lattice))
            for d in detections
        ]
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


def cost_of_training(out: Path, n: int) -> dict[str, float]:
    """What training took, part by part: images drawn and labelled, and seconds; beside it what a candidate costs.

    "images" serve the ORM and the first round of DPO alike, "second_images" the second round. Of several learning rates
    that were tried, only the one taken counts. "seconds_of_one": drawing one candidate and reading it with the ORM,
    timed anew over best of n.
    """

    def manifest(name: str) -> dict:
        return json.loads((out / name / MANIFEST).read_text(encoding="utf-8"))

    about = {name: manifest(f"training/{name}")["settings"] for name in ("images", "dpo_images")}
    images, second = (float(one["pools"] * one["images_a_pool"]) for one in about.values())
    generator, orm = load_generator(models=out / "models"), Verifier.from_pretrained(out / "models/orm")
    searched = time_search(lite_prompts("test"), partial(best_of_n, generator, orm, n=n))
    seconds = {name: float(manifest(f"models/{name}")["seconds"]) for name in ("orm", *ALIGNED)}
    return {"images": images, "second_images": second, "seconds_of_one": round(searched / n, 4), **seconds}
