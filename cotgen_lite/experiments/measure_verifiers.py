"""What fine-tuning and step-by-step search bring, on the baseline's test pool: chapters 02 and 03, findings F2 to F4.

Paper: section 3.2. How: measuring.py; the search itself: verify/search.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import (
    decide_f2,
    decide_f3,
    decide_f4,
    difference,
    merge_findings,
    resampled,
    write_findings,
)
from cotgen_lite.experiments.measure import load_steps_of_pool
from cotgen_lite.experiments.measuring import VERIFIER_NAMES, Bench, by_step, let_choose, rounded, time_search
from cotgen_lite.experiments.results import row_name, score_tokens, steps_profile
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.identity import fingerprint
from cotgen_lite.metrics import expected_best_of, roc_auc, roc_auc_within_prompts, telling_tags
from cotgen_lite.pools import SHARD, Pool, in_shards, load_pool
from cotgen_lite.prompts import TAGS, Prompt
from cotgen_lite.verify.search import best_of_n, prm_search
from cotgen_lite.verify.training_data import FOUR_ROLLOUTS, SIXTEEN_ROLLOUTS
from cotgen_lite.verify.verifier import ORM_QUESTION, PRM_QUESTION, Verifier

QUESTIONS = {  # method → folder of the verifier, and what it is asked
    "zs-orm": ("verifier", ORM_QUESTION),
    "zs-prm": ("verifier", PRM_QUESTION),
    "ft-orm": ("orm", ORM_QUESTION),
    "ft-prm": ("prm", PRM_QUESTION),
}


def measure_orm(out: Path, work: Path, config: Config) -> None:
    """Scores and findings of the fine-tuned ORM on the baseline's pool, which keeps its scores."""
    bench = Bench(out, work, config, "orm_results")
    drawn = bench.seconds("scores").get(
        row_name({"method": "baseline", "generator": "baseline", "n": 1, "seed": 0}), 0.0
    )
    orm, pool = bench.verifier("orm"), bench.pool()
    pool = let_choose(bench, bench.generator(), "baseline", pool, "ft-orm", orm, drawn)
    prompts, correct, zero_shot, tuned = pool.prompts, pool.correct, pool.scores["zs-orm"], pool.scores["ft-orm"]
    write_findings(out, lambda judge: {"F2": decide_f2(prompts, zero_shot, tuned, correct[judge])})
    bench.write("orm_auc", compare_areas(prompts, tuned, zero_shot, correct["learned"]))


def measure_prm(out: Path, work: Path, config: Config) -> None:
    """Scores and findings of search step by step with both PRMs, from each first step at which they may speak.

    The fine-tuned PRM's images go to `pools/ft-prm.safetensors`, with which PARM is compared later.
    """
    bench, n = Bench(out, work, config, "prm_results"), config.pool_size
    generator, pool = bench.generator(), bench.pool()
    prompts, learned = pool.prompts, pool.correct["learned"]
    verifiers = {folder: bench.verifier(folder) for folder, _ in QUESTIONS.values()}
    pools, guesses, gains = {}, {}, {}
    for method, first_step in [(name, step) for name, firsts in config.prm_first_steps.items() for step in firsts]:
        label = method if first_step == 1 else f"{method}-from-{first_step}"
        verifier = verifiers[QUESTIONS[method][0]]
        run, cost = run_prm_search(generator, verifier, prompts, n, first_step, work / "stepwise")
        search = partial(prm_search, generator, verifier, n=n, first_step=first_step)
        spent = {key: round(value, 4) for key, value in (cost | {"seconds": time_search(prompts, search)}).items()}
        tokens, guesses[label] = run["tokens"][:, None], run["guesses"]
        pools[label] = chosen = Pool(prompts, tokens, {}, bench.judge(generator, tokens, prompts))
        bench.add_rows(label, "baseline", chosen, spent, verifier=VERIFIER_NAMES[method], n=n)
        gains[label] = difference(prompts, chosen.correct["learned"][:, 0] - learned.mean(1))  # paired
    prm = pools["ft-prm"]
    bench.save_pool("ft-prm", prm)

    whole, kept = load_steps_of_pool(out / "pools/baseline_steps.safetensors")
    beliefs = score_steps(generator, verifiers, [prompts[row] for row in kept], whole)

    def decide_by(judge: str) -> dict[str, dict]:
        right, best = pool.correct[judge], expected_best_of(pool.scores["ft-orm"], pool.correct[judge], n)
        return {"F3": decide_f3(prompts, prm.correct[judge][:, 0].astype(float), best, right.mean(1))}

    write_findings(out, decide_by)
    merge_findings(out, {"F4": decide_f4(beliefs["zs-orm"], learned[kept], whole)})
    found = {
        name: {method: by_step(measured, odds, learned[kept]) for method, odds in beliefs.items()}
        for name, measured in (("auc", roc_auc), ("auc_within_prompts", roc_auc_within_prompts))
    }
    others = {
        "tokens_equal_to_final": [rounded(share) for share in steps_profile(whole)],
        "tuning_gains_early": tuning_gains_early(beliefs["zs-prm"], beliefs["ft-prm"], learned[kept]),
        "gain_over_baseline": gains,
    }
    best_of = time_search(prompts, partial(best_of_n, generator, verifiers["orm"], n=n))
    bench.note_seconds("steps", {"seconds_of_best_of_n": best_of})
    bench.write("steps", found | others | likeness(generator, guesses["zs-prm"][kept]))
    labels = [load_pool(out / "training/rollouts" / name) for name in (FOUR_ROLLOUTS, SIXTEEN_ROLLOUTS)]
    bench.write("labels", label_noise(*labels))


def run_prm_search(
    generator: Generator, verifier: Verifier, prompts: Sequence[Prompt], n: int, first_step: int, work_dir: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """`prm_search` for every entry of `prompts`, a repeated one with its own seed; resumes from `work_dir`.

    Returns the final tokens int16 (P, L) with each step's guesses int16 (P, T, N, L), and the cost of one image.
    """
    seeds = [list(prompts[:i]).count(prompt) for i, prompt in enumerate(prompts)]
    jobs = list(zip([prompt.text for prompt in prompts], seeds, strict=True))
    shards = [jobs[i : i + SHARD] for i in range(0, len(jobs), SHARD)]
    names = ("generator_passes", "verifier_passes", "tokens", "seconds")

    def draw(shard: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        found = [prm_search(generator, verifier, text, n, seed, first_step=first_step) for text, seed in shard]
        return {
            "tokens": torch.stack([one.path[-1] for one in found]),
            "guesses": torch.stack([one.guesses for one in found]),
            "cost": torch.tensor([[getattr(one.cost, name) for name in names] for one in found], dtype=torch.float64),
        }

    networks = (generator.model, generator.image_tokenizer, verifier.model)
    folder = work_dir / fingerprint(networks, generator.settings, shards, n, first_step)
    parts = in_shards(shards, draw, folder, f"step by step from {first_step}")
    run = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return run, dict(zip(names, run.pop("cost").mean(0).tolist(), strict=True))


def score_steps(
    generator: Generator, verifiers: Mapping[str, Verifier], prompts: Sequence[Prompt], guesses: Tensor
) -> dict[str, npt.NDArray[np.float32]]:
    """What each verifier believes of every step's guess; guesses (P, N, T, L), returns log-odds (P, N, T) by name."""
    flat = guesses.flatten(1, 2)
    return {
        method: score_tokens(generator, verifiers[name], flat, prompts, question)[0].reshape(guesses.shape[:3])
        for method, (name, question) in QUESTIONS.items()
    }


def tuning_gains_early(before: npt.NDArray, after: npt.NDArray, correct: npt.NDArray) -> dict[str, dict]:
    """What fine-tuning adds to the AUC, mean of the first half of the steps, with intervals over prompts.

    before, after: log-odds (P, N, T); correct: (P, N), verdicts on the final images. "all_images" also counts what is
    known of the prompts, hard or easy; "within_prompts" only what tells one prompt's images apart.
    """
    halves = [odds[:, :, : odds.shape[2] // 2] for odds in (after, before)]

    def mean_area_of(odds: npt.NDArray, right: npt.NDArray) -> float:
        return float(np.mean([roc_auc(odds[:, :, t], right) for t in range(odds.shape[2])]))

    mixed = np.flatnonzero(correct.any(1) & ~correct.all(1))
    inside = np.array([[mean_area_of(odds[[p]], correct[[p]]) for odds in halves] for p in mixed]).reshape(-1, 2)

    def measured(rows: npt.NDArray, of_mixed: npt.NDArray) -> tuple[float, float]:
        over_all = [mean_area_of(odds[rows], correct[rows]) for odds in halves]
        return over_all[0] - over_all[1], float((inside[of_mixed] @ [1, -1]).mean())

    deltas, (low, high) = resampled(measured, len(correct), len(mixed))
    return {
        name: {"delta": rounded(deltas[i]), "ci": [rounded(low[i]), rounded(high[i])]}
        for i, name in enumerate(("all_images", "within_prompts"))
    }


def compare_areas(prompts: Sequence[Prompt], a: npt.NDArray, b: npt.NDArray, correct: npt.NDArray) -> dict:
    """AUC of two verifiers on the same images, with the paired intervals of a − b.

    a, b: log-odds (P, N); correct: (P, N). Returns the AUC by tag; "mean", that of the `telling_tags` (None without
    any); "mean_of_all_tags", with the others; and "pooled", of all images together, which prompts of easy and hard tags
    help to tell apart. The intervals resample whole prompts within each tag.
    """
    groups: dict[str, dict[str, list[int]]] = {tag: {} for tag in TAGS}  # of each tag: rows of each prompt
    for row, prompt in enumerate(prompts):
        groups[prompt.tag].setdefault(prompt.text, []).append(row)
    rows_of_prompts = {tag: list(rows.values()) for tag, rows in groups.items() if rows}
    present, names = list(rows_of_prompts), ("fine_tuned", "zero_shot")
    counted = telling_tags(prompts, correct)
    of_counted, of_all = [present.index(tag) for tag in counted], [*range(len(present))]
    means = {"mean": of_counted, "mean_of_all_tags": of_all, "pooled": [-1]}

    def rows_of(*chosen: npt.NDArray) -> list[npt.NDArray]:
        pairs = zip(rows_of_prompts.values(), chosen, strict=True)
        return [np.concatenate([rows[i] for i in some]) for rows, some in pairs]

    def areas(rows: list[npt.NDArray]) -> npt.NDArray:
        """AUC of both, (tags and all together, 2)."""
        return np.array([[roc_auc(o[some], correct[some]) for o in (a, b)] for some in (*rows, np.concatenate(rows))])

    def deltas(*chosen: npt.NDArray) -> list[float]:
        each = areas(rows_of(*chosen)) @ [1, -1]
        return [float(np.nanmean(each[kept])) if kept else np.nan for kept in means.values()]

    sizes = [len(rows) for rows in rows_of_prompts.values()]
    _, intervals = resampled(deltas, *sizes)
    rows = rows_of(*map(np.arange, sizes))
    whole, found = areas(rows), {}
    for (name, kept), interval in zip(means.items(), intervals.T, strict=True):
        if not kept:
            found[name] = dict.fromkeys((*names, "delta", "ci"))
            continue
        mean = np.nanmean(whole[kept], axis=0)
        delta = {"delta": round(float(mean @ [1, -1]), 4), "ci": interval.round(4).tolist()}
        found[name] = dict(zip(names, mean.round(4).tolist(), strict=True)) | delta
    by_tag = {
        tag: dict(zip(names, pair.round(4).tolist(), strict=True))
        | {"right": int(correct[some].sum()), "wrong": int((~correct[some]).sum())}
        for tag, pair, some in zip(present, whole[:-1], rows, strict=True)
    }
    return {"by_tag": by_tag, "tags": list(counted)} | found


def likeness(generator: Generator, guesses: Tensor) -> dict[str, list[float]]:
    """How alike the N draws of one step are: equal tokens, and distance of pixels in 0..255, means over pairs, by step.

    guesses: tokens (P, T, N, L) of step-by-step searches. Paper: figure 5.
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


def label_noise(few: Pool, many: Pool) -> dict[str, object]:
    """How often Math-Shepherd's label is yes at each step, and whether a few rollouts say what many say.

    few: the training labels, from `label_steps`; many: fewer paths with more rollouts. Agreement is by step: of the
    label by the first rollouts with that by all, and of two labels by rollouts that have none in common.
    """
    ends, ends_of_many = few.correct["rollouts"], many.correct["rollouts"]
    rollouts = ends.shape[2]
    first = ends_of_many[:, :, :rollouts].any(axis=2)
    second = ends_of_many[:, :, rollouts : 2 * rollouts].any(axis=2)
    return {
        "rollouts": [rollouts, ends_of_many.shape[2]],
        "paths": [len(few.prompts), len(many.prompts)],
        "yes_by_step": ends.any(axis=2).mean(0).round(4).tolist(),
        "rollouts_right_by_step": ends.mean((0, 2)).round(4).tolist(),
        "few_agree_with_many_by_step": (first == ends_of_many.any(axis=2)).mean(0).round(4).tolist(),
        "few_agree_with_other_few_by_step": (first == second).mean(0).round(4).tolist(),
    }
