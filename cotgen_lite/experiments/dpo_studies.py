"""What DPO's results hang on: the estimator, the training seed, where guidance starts; and best of very many.

Chapters 04 and 06; paper: section 3.3. How: measuring.py; the trainings: train_generators.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cotgen_lite.align.dpo import DpoTraining, Pair, draw_masks, log_probability, read_pairs
from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import difference
from cotgen_lite.experiments.measuring import Bench, cost_of_best_of
from cotgen_lite.experiments.results import score_tokens
from cotgen_lite.experiments.train_generators import (
    align,
    attempt,
    dev_verdicts,
    draw_second_round,
    guidance,
    pairs_of,
    settings_of,
    without_seconds,
)
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.hub import write_json
from cotgen_lite.metrics import expected_best_of, score
from cotgen_lite.pools import Pool, stratified_subset
from cotgen_lite.prompts import Prompt, lite_prompts

FAR = (1, 2, 5, 10, 20, 50, 100, 200)  # the n of best-of-n far beyond the usual
# What the log-probability may be estimated with; the first is what everything here was trained with.
FIRST = "one mask, shared"
ESTIMATORS: dict[str, dict] = {
    FIRST: {},
    "masks not shared": {"shared": False},
    "ELBO weighting": {"weighting": "elbo"},
    "two masks": {"masks": 2},
}
ESTIMATES = 32  # of each pair's margin


def measure_estimators(out: Path, work: Path, config: Config) -> None:
    """How the estimators of log-probability differ: in noise, and in what training with them gains on dev prompts.

    At the learning rate of the shipped "dpo", which was trained with the first; "over_first" is the paired difference
    on dev prompts from that one. Writes `results/dpo_estimators.json`.
    """
    settings, pairs = settings_of(out, "dpo"), pairs_of(out / "training/images", config, seed=0)
    noise, found = estimator_noise(out, pairs[: config.estimator_pairs]), {}
    prompts, right = config.dev_prompts, {}
    for name, change in ESTIMATORS.items():
        generator, log = attempt(out, pairs, replace(settings, **change), work, config)
        right[name] = dev_verdicts(generator, work, config)
        found[name] = {
            "noise": noise[name],
            "over_first": difference(prompts, right[name] - right[FIRST]),
        } | without_seconds(log)
    write_json(out / "results/dpo_estimators.json", found)


def estimator_noise(out: Path, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """How much the margin of a pair (policy: the shipped "dpo") scatters when its masks are drawn anew, by estimator.

    For each: "mean" margin of pairs that this policy was trained on, "scatter", the standard deviation over masks, and
    "between", that of the pairs' own margins, without what is left of the scatter in their means; in nats, before β.
    Sums over all 64 positions (ELBO) and over the hidden ones alone are of different size: compare ratios. Nothing
    without pairs.
    """
    baseline, aligned = load_generator(models=out / "models"), load_generator("dpo", models=out / "models")
    if not pairs:
        return {name: {} for name in ESTIMATORS}
    prefixes, *both = read_pairs(baseline, pairs)
    prefixes, tokens = prefixes * 2, torch.cat(both)
    found = {}
    for name, change in ESTIMATORS.items():
        settings, margins = replace(DpoTraining(0.0), **change), []
        drawing = torch.Generator().manual_seed(0)
        for _ in range(ESTIMATES):
            masks = draw_masks(len(tokens), tokens.shape[1], settings.masks, settings.weighting, drawing)
            if settings.shared:
                for half in (masks.positions, masks.weight):
                    half[:, len(pairs) :] = half[:, : len(pairs)]
            with torch.no_grad():
                ratio = log_probability(aligned.model, aligned.model.config, prefixes, tokens, masks)
                ratio = ratio - log_probability(baseline.model, baseline.model.config, prefixes, tokens, masks)
            margins.append(ratio[: len(pairs)] - ratio[len(pairs) :])
        drawn = torch.stack(margins).numpy()
        between = drawn.mean(axis=0).var() - drawn.var(axis=0, ddof=1).mean() / ESTIMATES
        found[name] = {
            "mean": round(float(drawn.mean()), 4),
            "scatter": round(float(drawn.std(axis=0, ddof=1).mean()), 4),
            "between": round(float(max(0.0, between) ** 0.5), 4),
        }
    return found


def measure_spread(out: Path, work: Path, config: Config) -> None:
    """Both rounds with other training seeds, and a guided first round: generators that are not shipped, scores only.

    `results/dpo_spread.json` has their logs, and their scores and paired gains beside those of the shipped generators
    on equally few images a pool. Resumes from `work`.
    """
    bench, n = Bench(out, work, config, "dpo_spread"), config.extra_seed_images
    baseline, settings, logs = bench.generator(), settings_of(out, "dpo"), {}
    pools = {name: bench.pool(name) for name in ("baseline", "dpo", "it-dpo")}
    prompts = pools["baseline"].prompts
    runs = {name: [pool.correct["learned"][:, :n].mean(1)] for name, pool in pools.items()}

    def score_few(generator: Generator, log: dict, name: str, seed: int) -> None:
        drawn, images = bench.generate(generator, prompts, n), len(prompts) * n
        pool = Pool(prompts, drawn.tokens, {}, bench.judge(generator, drawn.tokens, prompts))
        cost = cost_of_best_of(generator, prompts[0].text, drawn.cost.seconds / images)
        bench.add_rows(name, name, pool, cost, seed=seed, images=images)
        runs.setdefault(name, []).append(pool.correct["learned"].mean(1))
        logs[f"{name}, seed {seed}"] = without_seconds(log)

    labelled = out / "training/images"
    for seed in config.extra_seeds:
        again = replace(settings, seed=seed)
        first, log = align(baseline, pairs_of(labelled, config, seed), again, work / f"dpo-{seed}", config)
        score_few(first, log, "dpo", seed)
        draw_second_round(first, work / f"images-{seed}", seed, work / f"drawing-{seed}", config)
        pairs = pairs_of(work / f"images-{seed}", config, seed)
        second, log = align(first, pairs, again, work / f"it-dpo-{seed}", config)
        score_few(second, log, "it-dpo", seed)
    online = guidance(baseline, bench.verifier("orm"), config)
    guided, log = align(baseline, pairs_of(labelled, config, 0), settings, work / "guided", config, online)
    score_few(guided, log, "dpo-guided-orm", 0)
    overall = {name: [round(score(prompts, right).overall, 4) for right in some] for name, some in runs.items()}
    found = {"images_a_pool": n, "overall": overall, "gains": gains(prompts, runs), "logs": logs}
    bench.write("dpo_spread", found)


def gains(prompts: Sequence[Prompt], runs: Mapping[str, Sequence[npt.NDArray]]) -> dict[str, dict]:
    """What one generator's runs gain over another's, run by run and in the mean of the runs, paired by prompt.

    runs: name → for each training run, accuracy of each pool (P,); a generator with one run is compared with that one.
    """
    found = {}
    for after, before in (("dpo", "baseline"), ("it-dpo", "dpo"), ("it-dpo", "baseline"), ("dpo-guided-orm", "dpo")):
        olds = [*runs[before]] * (len(runs[after]) if len(runs[before]) == 1 else 1)
        differences = [new - old for new, old in zip(runs[after], olds, strict=False)]
        found[f"{after} − {before}"] = {
            "runs": [difference(prompts, gain) for gain in differences],
            "mean": difference(prompts, np.mean(differences, axis=0)),
        }
    return found


def measure_far(out: Path, work: Path, config: Config) -> None:
    """Best of n up to 200 under the guided generator: what verifiers believe of their choice, and what judges say.

    A few prompts of every tag but the easiest. By exact expectation over subsets, with intervals over prompts; writes
    `results/best_of_many.json`, resumes from `work`.
    """
    bench, many = Bench(out, work, config, "dpo_far"), config.best_of_many_images
    generator = bench.generator("it-dpo-guided-orm")
    options = [prompt for prompt in lite_prompts("test") if prompt.tag != "single_object"]
    prompts = stratified_subset(options, most=config.best_of_many_prompts)
    tokens = bench.generate(generator, prompts, many, seed=4).tokens
    correct, sizes = bench.judge(generator, tokens, prompts), [n for n in FAR if n <= many]
    oracle = far_curves(prompts, correct["learned"], correct, sizes)
    found: dict = {"n": sizes, "prompts": len(prompts), "oracle": oracle}
    for method, verifier in bench.orms.items():
        odds, _ = score_tokens(generator, verifier, tokens, prompts)
        belief = 1 / (1 + np.exp(-odds.astype(np.float64)))
        gaps = {n: expected_best_of(odds, belief, n) - expected_best_of(odds, correct["learned"], n) for n in sizes}
        found[method] = far_curves(prompts, odds, correct | {"belief": belief}, sizes) | {
            "gap": [difference(prompts, gaps[n]) for n in sizes],
            "gap_since_one": [difference(prompts, gaps[n] - gaps[1]) for n in sizes],
        }
    bench.write("best_of_many", found)


def far_curves(
    prompts: Sequence[Prompt], order: npt.NDArray, values: Mapping[str, npt.NDArray], sizes: Sequence[int]
) -> dict[str, dict]:
    """What becomes of some values (P, N), by name, if the best of n by an order (P, N) is taken; n by n."""
    curves = {}
    for name, value in values.items():
        results = [score(prompts, expected_best_of(order, value, n)) for n in sizes]
        ci = [[round(bound, 4) for bound in result.ci] for result in results]
        curves[name] = {"overall": [round(result.overall, 4) for result in results], "ci": ci}
    return curves
