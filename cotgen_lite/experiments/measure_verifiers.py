"""What fine-tuning and step-by-step search bring: chapters 02 and 03, measured on the baseline's test pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import RESAMPLES, decide, decide_f2, decide_f3, decide_f4, write_findings
from cotgen_lite.experiments.measure import cost_of_drawing, load_steps_of_pool
from cotgen_lite.experiments.results import (
    SIZES,
    merge_json,
    merge_rows,
    read_rows,
    score_rows,
    score_tokens,
    steps_profile,
)
from cotgen_lite.generate.drawing import judge_tokens
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.hub import write_json
from cotgen_lite.lite.judges import load_judges
from cotgen_lite.metrics import expected_best_of, roc_auc, roc_auc_within_prompts, telling_tags
from cotgen_lite.pools import SHARD, Pool, in_shards, load_pool, save_pool, stratified_subset
from cotgen_lite.prompts import TAGS, Prompt
from cotgen_lite.training import fingerprint
from cotgen_lite.verify.search import SearchResult, StepwiseResult, best_of_n, stepwise_best_of_n
from cotgen_lite.verify.training_data import FEW, MANY, StepLabels, load_steps
from cotgen_lite.verify.verifier import ORM_QUESTION, PRM_QUESTION, Verifier

COMMAND = "python -m cotgen_lite.build"
QUESTIONERS = {
    "zs-orm": ("verifier", ORM_QUESTION),
    "zs-prm": ("verifier", PRM_QUESTION),
    "ft-orm": ("orm", ORM_QUESTION),
    "ft-prm": ("prm", PRM_QUESTION),
}


def measure_orm(out: Path, work: Path, config: Config) -> None:
    """Score the pool by the fine-tuned ORM and decide F2; adds to pool, scores and findings under `out`."""
    models, results = out / "models", out / "results"
    generator = load_generator(models=models)
    pool = load_pool(out / "pools/baseline.safetensors")
    prompts, correct, zero_shot = pool.prompts, pool.correct, pool.scores["zs-orm"]
    tuned, seconds = score_tokens(generator, Verifier.from_pretrained(models / "orm"), pool.tokens, prompts)
    tuned = tuned.astype(np.float16).astype(np.float32)
    save_pool(replace(pool, scores=pool.scores | {"ft-orm": tuned}), out / "pools/baseline.safetensors")

    about = {"generator": "baseline", "verifier": "fine-tuned ORM", "seed": 0, "command": f"{COMMAND} orm_results"}
    each, once = cost_of_drawing(generator, prompts[0].text)
    drawn = next(row["cost"] for row in read_rows(results / "scores.jsonl") if row["method"] == "baseline")
    cost = each | {"verifier_passes": 1.0, "seconds": drawn["seconds"] + seconds / tuned.size}
    sizes = [size for size in SIZES if size <= tuned.shape[1]]
    merge_rows(results / "scores.jsonl", score_rows("ft-orm", prompts, tuned, correct, sizes, about, cost, once))
    write_findings(out, lambda judge: {"F2": decide_f2(prompts, zero_shot, tuned, correct[judge])})
    write_json(results / "orm_auc.json", compare_areas(prompts, tuned, zero_shot, correct["learned"]))


def measure_prm(out: Path, work: Path, config: Config) -> None:
    """Search step by step with both PRMs and decide F3 and F4; adds to scores and findings under `out`.

    The fine-tuned PRM's images go to `pools/ft-prm.safetensors`, with which PARM is compared later.
    Runs in `work` let it resume.
    """
    models, results, n = out / "models", out / "results", config.pool_size
    generator = load_generator(models=models)
    judges = load_judges(models)
    verifiers = {name: Verifier.from_pretrained(models / name) for name in ("verifier", "orm", "prm")}
    pool = load_pool(out / "pools/baseline.safetensors")
    prompts, learned = pool.prompts, pool.correct["learned"]
    about = {"generator": "baseline", "seed": 0, "command": f"{COMMAND} prm_results"}
    rows, right, guesses, gains = [], {}, torch.empty(0), {}
    for method, firsts in config.prm_first_steps.items():
        for first_step in firsts:
            verifier = verifiers[QUESTIONERS[method][0]]
            run, cost = draw_stepwise(generator, verifier, prompts, n, first_step, work / "stepwise")
            final = run["codes"][:, None]
            verdicts = {judge: judge_tokens(generator, final, prompts, one) for judge, one in judges.items()}
            label = method if first_step == 1 else f"{method}-from-{first_step}"
            said = about | {"verifier": "zero-shot" if method == "zs-prm" else "fine-tuned PRM"}
            cost["seconds"] = time_search(
                prompts, partial(stepwise_best_of_n, generator, verifier, n=n, first_step=first_step)
            )
            chance = np.zeros(verdicts["learned"].shape)
            rows += [row | {"n": n} for row in score_rows(label, prompts, chance, verdicts, (1,), said, cost)]
            gains[label] = over_baseline(prompts, verdicts["learned"][:, 0], learned)
            if label == "ft-prm":
                right = {judge: verdict[:, 0].astype(float) for judge, verdict in verdicts.items()}
                save_pool(Pool(prompts, final, {}, verdicts), out / f"pools/{label}.safetensors")
            if label == "zs-prm":
                guesses = run["guesses"]
    merge_rows(results / "scores.jsonl", rows)

    whole, kept = load_steps_of_pool(out / "pools/baseline_steps.safetensors")
    beliefs = score_steps(generator, verifiers, [prompts[row] for row in kept], whole)
    best = {judge: expected_best_of(pool.scores["ft-orm"], verdicts, n) for judge, verdicts in pool.correct.items()}
    base = {judge: verdicts.mean(1) for judge, verdicts in pool.correct.items()}
    write_findings(out, lambda judge: {"F3": decide_f3(prompts, right[judge], best[judge], base[judge])})
    merge_json(results / "findings.json", {"F4": decide_f4(beliefs["zs-orm"], learned[kept], whole)})
    by_step = {
        "auc": {
            name: [round(roc_auc(odds[:, :, t], learned[kept]), 4) for t in range(odds.shape[2])]
            for name, odds in beliefs.items()
        },
        "auc_within_prompts": {
            name: [round(roc_auc_within_prompts(odds[:, :, t], learned[kept]), 4) for t in range(odds.shape[2])]
            for name, odds in beliefs.items()
        },
        "tokens_equal_to_final": [round(float(share), 4) for share in steps_profile(whole)],
        "tuning_gains_early": tuning_gains_early(beliefs["zs-prm"], beliefs["ft-prm"], learned[kept]),
        "gain_over_baseline": gains,
        "seconds_of_best_of_n": time_search(prompts, partial(best_of_n, generator, verifiers["orm"], n=n)),
    }
    write_json(results / "steps.json", by_step | likeness(generator, guesses[kept]))
    labels = [load_steps(out / "training/rollouts" / name) for name in (FEW, MANY)]
    write_json(results / "labels.json", label_noise(*labels))


def draw_stepwise(
    generator: Generator, verifier: Verifier, prompts: Sequence[Prompt], n: int, first_step: int, work_dir: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """`stepwise_best_of_n` for every entry of `prompts`, a repeated one with its own seed; resumes from `work_dir`.

    Returns the final codes int16 (P, L) with each step's guesses int16 (P, T, N, L), and the cost of one image.
    """
    seeds = [list(prompts[:i]).count(prompt) for i, prompt in enumerate(prompts)]
    jobs = list(zip([prompt.text for prompt in prompts], seeds, strict=True))
    shards = [jobs[i : i + SHARD] for i in range(0, len(jobs), SHARD)]

    def draw(shard: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        found = [stepwise_best_of_n(generator, verifier, text, n, seed, first_step=first_step) for text, seed in shard]
        spent = [[f.cost.generator_passes, f.cost.verifier_passes, f.cost.tokens, f.cost.seconds] for f in found]
        return {
            "codes": torch.stack([f.trajectory.tokens[-1] for f in found]),
            "guesses": torch.stack([f.guesses for f in found]),
            "cost": torch.tensor(spent, dtype=torch.float64),
        }

    folder = work_dir / fingerprint(
        (generator.model, generator.image_tokenizer, verifier.model), generator.settings, shards, n, first_step
    )
    parts = in_shards(shards, draw, folder, f"step by step from {first_step}")
    run = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    names = ("generator_passes", "verifier_passes", "tokens", "seconds")
    return run, dict(zip(names, run.pop("cost").mean(0).tolist(), strict=True))


def time_search(prompts: Sequence[Prompt], search: Callable[..., SearchResult | StepwiseResult]) -> float:
    """Mean seconds of a search, on a prompt of each tag. Timed anew: shards may be of other hours."""
    texts = [prompt.text for prompt in stratified_subset(list(dict.fromkeys(prompts)), most=1)]
    return round(float(np.mean([search(prompt=text, seed=0).cost.seconds for text in texts])), 4)


def over_baseline(prompts: Sequence[Prompt], right: npt.NDArray, pool: npt.NDArray) -> dict[str, object]:
    """What a search gains: right (P,), whether its images are; pool (P, N), verdicts on unguided ones. Paired."""
    found = decide("gain over the baseline > 0", prompts, right - pool.mean(1), paper="")
    return {key: found[key] for key in ("delta", "ci")}


def score_steps(
    generator: Generator, verifiers: Mapping[str, Verifier], prompts: Sequence[Prompt], guesses: Tensor
) -> dict[str, npt.NDArray[np.float32]]:
    """What each verifier believes of every step's guess; guesses (P, N, T, L), returns log-odds (P, N, T) by name."""
    flat = guesses.flatten(1, 2)
    return {
        method: score_tokens(generator, verifiers[name], flat, prompts, question)[0].reshape(guesses.shape[:3])
        for method, (name, question) in QUESTIONERS.items()
    }


def tuning_gains_early(before: npt.NDArray, after: npt.NDArray, correct: npt.NDArray) -> dict[str, dict]:
    """What fine-tuning adds to the AUC, mean of the first half of the steps, with intervals over prompts.

    before, after: log-odds (P, N, T); correct: (P, N), verdicts on the final images. "all_images" also counts what is
    known of the prompts, hard or easy; "within_prompts" only what tells one prompt's images apart.
    """
    rng, halves = np.random.default_rng(0), [odds[:, :, : odds.shape[2] // 2] for odds in (after, before)]

    def mean_roc_auc_of(odds: npt.NDArray, right: npt.NDArray) -> float:
        return float(np.mean([roc_auc(odds[:, :, t], right) for t in range(odds.shape[2])]))

    mixed = np.flatnonzero(correct.any(1) & ~correct.all(1))
    inside = np.array([[mean_roc_auc_of(odds[[p]], correct[[p]]) for odds in halves] for p in mixed]).reshape(-1, 2)

    def measured(rows: npt.NDArray, of_mixed: npt.NDArray) -> tuple[float, float]:
        over_all = [mean_roc_auc_of(odds[rows], correct[rows]) for odds in halves]
        return over_all[0] - over_all[1], float((inside[of_mixed] @ [1, -1]).mean())

    sizes = (len(correct), len(mixed))
    deltas = measured(np.arange(sizes[0]), np.arange(sizes[1]))
    draws = [measured(*(rng.integers(size, size=size) for size in sizes)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return {
        name: {"delta": round(deltas[i], 4), "ci": [round(float(low[i]), 4), round(float(high[i]), 4)]}
        for i, name in enumerate(("all_images", "within_prompts"))
    }


def compare_areas(prompts: Sequence[Prompt], a: npt.NDArray, b: npt.NDArray, correct: npt.NDArray) -> dict:
    """AUC of two verifiers on the same images, with the paired intervals of a − b.

    a, b: log-odds (P, N); correct: (P, N). Returns the AUC by tag; "mean", that of the `telling_tags` (None without
    any); "mean_of_all_tags", with the others; and "pooled", of all images together, which prompts of easy and hard tags
    help to tell apart. The intervals resample whole prompts within each tag.
    """
    rng = np.random.default_rng(0)
    groups = {tag: _rows_by_prompt(prompts, tag) for tag in TAGS}
    present = [tag for tag in TAGS if groups[tag]]
    names = ("fine_tuned", "zero_shot")

    def areas(rows: Mapping[str, npt.NDArray]) -> npt.NDArray:
        """AUC of both, (tags and all together, 2)."""
        each = [*rows.values(), np.concatenate(list(rows.values()))]
        return np.array([[roc_auc(odds[some], correct[some]) for odds in (a, b)] for some in each])

    rows = {tag: np.concatenate(groups[tag]) for tag in present}
    whole, draws = areas(rows), []
    for _ in range(RESAMPLES):
        chosen = {tag: rng.integers(len(groups[tag]), size=len(groups[tag])) for tag in present}
        draws.append(areas({tag: np.concatenate([groups[tag][i] for i in chosen[tag]]) for tag in present}) @ [1, -1])
    differences = np.array(draws)

    def summed_up(kept: list[int]) -> dict:
        if not kept:
            return dict.fromkeys((*names, "delta", "ci"))
        mean = np.nanmean(whole[kept], axis=0)
        interval = np.nanpercentile(np.nanmean(differences[:, kept], axis=1), [2.5, 97.5])
        delta = {"delta": round(float(mean @ [1, -1]), 4), "ci": interval.round(4).tolist()}
        return dict(zip(names, mean.round(4).tolist(), strict=True)) | delta

    counted = telling_tags(prompts, correct)
    return {
        "by_tag": {
            tag: dict(zip(names, pair.round(4).tolist(), strict=True))
            | {"right": int(correct[rows[tag]].sum()), "wrong": int((~correct[rows[tag]]).sum())}
            for tag, pair in zip(present, whole[:-1], strict=True)
        },
        "tags": list(counted),
        "mean": summed_up([present.index(tag) for tag in counted]),
        "mean_of_all_tags": summed_up(list(range(len(present)))),
        "pooled": summed_up([len(present)]),
    }


def _rows_by_prompt(prompts: Sequence[Prompt], tag: str) -> list[npt.NDArray]:
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        if prompt.tag == tag:
            rows.setdefault(prompt.text, []).append(row)
    return [np.array(group) for group in rows.values()]


def likeness(generator: Generator, guesses: Tensor) -> dict[str, list[float]]:
    """How alike the N draws of one step are: equal tokens, and distance of pixels in 0..255, means over pairs, by step.

    guesses: codes (P, T, N, L) of step-by-step searches. Paper: figure 5.
    """
    pairs = np.array(list(combinations(range(guesses.shape[2]), 2))).T
    equal = (guesses[:, :, pairs[0]] == guesses[:, :, pairs[1]]).double().mean(dim=(0, 2, 3))
    distance = torch.zeros(guesses.shape[1], dtype=torch.float64)
    for path in guesses:
        for step, draws in enumerate(path):
            images = generator.decode(draws).float()
            distance[step] += (images[pairs[0]] - images[pairs[1]]).abs().mean().double() / len(guesses)
    return {
        "tokens_equal_among_draws": [round(float(value), 4) for value in equal],
        "pixel_distance_among_draws": [round(float(value), 2) for value in distance],
    }


def label_noise(few: StepLabels, many: StepLabels) -> dict[str, object]:
    """How often Math-Shepherd's label is yes at each step, and whether a few rollouts say what many say.

    few: the training labels; many: fewer paths with more rollouts. Agreement is by step: of the label by the first
    rollouts with that by all, and of two labels by rollouts that have none in common.
    """
    rollouts = few.ends_well.shape[2]
    first = many.ends_well[:, :, :rollouts].any(axis=2)
    second = many.ends_well[:, :, rollouts : 2 * rollouts].any(axis=2)
    return {
        "rollouts": [rollouts, many.ends_well.shape[2]],
        "paths": [len(few.prompts), len(many.prompts)],
        "yes_by_step": few.labels.mean(0).round(4).tolist(),
        "rollouts_right_by_step": few.ends_well.mean((0, 2)).round(4).tolist(),
        "few_agree_with_many_by_step": (first == many.labels).mean(0).round(4).tolist(),
        "few_agree_with_other_few_by_step": (first == second).mean(0).round(4).tolist(),
    }
