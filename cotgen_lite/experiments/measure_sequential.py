"""Do the methods carry over to next-token generators? Table 4 and finding F10, chapter 09.

The verifiers are those that learned from the masked generator's images; beside them the same, taught on the next-token
generator's own. Paper: section 4.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f10, write_findings
from cotgen_lite.experiments.measure_alignment import ON_TOP, measure_drawn
from cotgen_lite.experiments.measure_parm import in_numbers, order_within_rows, priced, unit_costs
from cotgen_lite.experiments.results import SIZES, merge_rows, score_rows, score_tokens
from cotgen_lite.experiments.train_generators import dev_score, draw_ranking_data
from cotgen_lite.generate.autoregressive import AutoregressiveGenerator, Fill, load_autoregressive
from cotgen_lite.generate.drawing import draw_pool, judge_tokens
from cotgen_lite.hub import MANIFEST, write_json
from cotgen_lite.lite.judges import TemplateJudge, load_judges
from cotgen_lite.metrics import expected_best_of, mean_roc_auc, roc_auc_within_prompts, score
from cotgen_lite.pools import Pool, save_pool, stratified_subset
from cotgen_lite.prompts import lite_prompts
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.pool_search import (
    Outcome,
    ask_of_paths,
    spent_by_best_of_n,
    spent_by_search_of_runs,
    stop_paths,
)
from cotgen_lite.verify.training_data import Example, as_dataset, draw_paths, orm_examples, parm_examples, train_prompts
from cotgen_lite.verify.verifier import Verifier

COMMAND = "python -m cotgen_lite.build sequential_results"
GUIDANCE_SCALES = (0.0, 0.5, 1.5, 3.0, 5.0)
TOP_KS = (0, 50)
VERIFIERS = {"parm": "PARM", "parm-retaught": "PARM, retaught", "ft-orm-retaught": "fine-tuned ORM, retaught"}


def measure_sequential(out: Path, work: Path, config: Config) -> None:
    """Choose how to draw on dev prompts, draw and score pools, teach verifiers anew, decide F10; under `out`.

    Pools, opinions and checkpoints in `work` let it resume.
    """
    models, results, n = out / "models", out / "results", config.pool_size
    generator, judges = load_autoregressive(models=models), load_judges(models)
    dev = measure_settings(generator, work / "settings", config)
    orms = {name: Verifier.from_pretrained(models / folder) for name, folder in ON_TOP.items()}
    taught = teach_verifiers(out, generator, work, config)
    parms = {"parm": Verifier.from_pretrained(models / "parm"), "parm-retaught": taught["parm"]}
    pool = measure_drawn(out, work, generator, "sequential", "seq:baseline", "seq:", judges, orms, config, COMMAND)
    aligned = measure_drawn(
        out,
        work,
        load_autoregressive("sequential-dpo", models=models),
        "sequential-dpo",
        "seq:dpo",
        "seq:dpo+",
        judges,
        orms,
        config,
        COMMAND,
    )
    guesses, _, _ = draw_pool(generator, pool.prompts, n, seed=0, work_dir=work / "pool")
    log_odds, _ = score_tokens(generator, taught["orm"], pool.tokens, pool.prompts)
    orders = {"ft-orm-retaught": log_odds.astype(np.float16).astype(np.float32)}
    found, outcomes = {}, {}
    for name, verifier in parms.items():
        opinions = ask_of_paths(generator, verifier, guesses, pool.prompts, work / "opinions")
        outcomes[name] = outcome = stop_paths(opinions)
        orders[name] = order_within_rows(outcome.order)
        found[name] = in_numbers(pool, opinions, outcome, n)
    pool = replace(pool, scores=pool.scores | orders)
    save_pool(pool, out / "pools/sequential.safetensors")
    units = unit_costs(generator, parms["parm"], pool.prompts, n)
    save_choices(out, generator, pool, outcomes, units)
    write_findings(out, lambda judge: {"F10": decide_f10(pool, aligned, n, judge)})
    fills = measure_fills(generator, orms | parms, work / "fills", config)
    write_json(results / "sequential.json", {"settings": dev, "fills": fills, "parm": found, "units": units})


def measure_settings(generator: AutoregressiveGenerator, work: Path, config: Config) -> list[dict]:
    """The dev score at each guidance scale and top-k, by the training judge."""
    prompts, rows = stratified_subset(lite_prompts("dev"), config.prompt_stride), []
    for top_k, scale in product(TOP_KS, GUIDANCE_SCALES):
        tried = replace(generator, settings=replace(generator.settings, guidance_scale=scale, top_k=top_k))
        guesses, _, _ = draw_pool(tried, prompts, config.guidance_dev_images, seed=0, work_dir=work)
        right = judge_tokens(generator, guesses[:, :, -1], prompts, TemplateJudge()).mean(1)
        rows.append({"guidance_scale": scale, "top_k": top_k} | dev_score(right, config))
    return rows


def teach_verifiers(out: Path, generator: AutoregressiveGenerator, work: Path, config: Config) -> dict[str, Verifier]:
    """ORM and PARM taught as the shipped ones were, but on the next-token generator's images; they are not shipped.

    The same learning rates, from the same zero-shot verifier, and the same steps called clear, though runs are 16 and
    steps were 18; unfinished images show what the generator's settings say.
    Where all images are right or all wrong there is nothing to learn, and the zero-shot verifier is returned.
    """
    images = draw_ranking_data(generator, work.parent / "sequential-dpo/images", config)
    prompts = train_prompts(config.parm_prompts, seed=3)
    paths, _ = draw_paths(generator, TemplateJudge(), prompts, config.parm_paths, 8, work / "paths")
    lessons: dict[str, list[Example]] = {
        "orm": orm_examples(images, config.orm_images_per_label, seed=0),
        "parm": parm_examples(paths, images, config.orm_images_per_label, seed=0),
    }
    taught = {}
    for name, examples in lessons.items():
        verifier = Verifier.from_pretrained(out / "models/verifier")
        about = json.loads((out / "models" / name / MANIFEST).read_text(encoding="utf-8"))["settings"]
        if examples:
            rate = FineTuning(about.get("learning_rate", config.parm_learning_rates[0]))
            verifier, _ = finetune_verifier(verifier, as_dataset(examples, generator), rate, work / name)
        taught[name] = verifier
    return taught


def save_choices(
    out: Path,
    generator: AutoregressiveGenerator,
    pool: Pool,
    outcomes: Mapping[str, Outcome],
    units: Mapping[str, Mapping[str, float]],
) -> None:
    """Rows of scores.jsonl: both PARMs' choices for every n, and the retaught ORM's, with what they cost."""
    length, number = pool.tokens.shape[2], pool.tokens.shape[1]
    sizes, steps = [size for size in SIZES if size <= number], generator.settings.steps
    rows, preview = [], generator.settings.fill == "likeliest"
    for name in (*outcomes, "ft-orm-retaught"):
        about = {"generator": "sequential", "verifier": VERIFIERS[name], "seed": 0, "command": COMMAND}
        some = score_rows(f"seq:{name}", pool.prompts, pool.scores[name], pool.correct, sizes, about, {})
        for row in some:
            n = row["n"]
            if name in outcomes:
                spent = spent_by_search_of_runs(outcomes[name], n, steps, length, preview)
            else:
                spent = spent_by_best_of_n(n, steps) | {"generator_passes": 2 + 2.0 * n * (length - 1)}
            row["cost"] = priced(spent, units)
        rows += some
    merge_rows(out / "results/scores.jsonl", rows)


def measure_fills(
    generator: AutoregressiveGenerator,
    verifiers: Mapping[str, Verifier],
    work: Path,
    config: Config,
) -> dict[str, dict]:
    """Unfinished images with grey, and with the likeliest codes, where no code is yet: which can be read better?

    On dev prompts, by the training judge: at each run but the last, AUC against the final verdict of what the verifiers
    say ("zs-orm": its question; "parm": that about potential), all prompts together and within them; share of paths
    that PARM calls clear; accuracy of PARM's search; generator passes of a path.
    """
    prompts, found = stratified_subset(lite_prompts("dev"), config.prompt_stride), {}
    for fill in get_args(Fill):
        filled = replace(generator, settings=replace(generator.settings, fill=fill))
        number = config.generator_dev_images
        guesses, _, cost = draw_pool(filled, prompts, number, seed=5, work_dir=work)
        right = judge_tokens(generator, guesses[:, :, -1], prompts, TemplateJudge())
        steps = range(guesses.shape[2] - 1)
        odds = {"zs-orm": [score_tokens(generator, verifiers["zs-orm"], guesses[:, :, t], prompts)[0] for t in steps]}
        entry: dict[str, object] = {"generator_passes": round(cost["generator_passes"] / right.size, 2)}
        for name in ("parm", "parm-retaught"):
            opinions = ask_of_paths(filled, verifiers[name], guesses, prompts, work, stop=False)
            odds[name] = [opinions.potential[:, :, t] for t in steps]
            chosen = score(prompts, expected_best_of(stop_paths(opinions).order, right, number))
            entry[f"{name}_clear"] = [round(float((opinions.clarity[:, :, t] > 0).mean()), 4) for t in steps]
            entry[f"{name}_search"] = {"overall": round(chosen.overall, 4), "ci": [round(x, 4) for x in chosen.ci]}
        entry["auc"] = {
            name: [_rounded(mean_roc_auc(prompts, one, right)) for one in many] for name, many in odds.items()
        }
        within = {name: [_rounded(roc_auc_within_prompts(one, right)) for one in many] for name, many in odds.items()}
        found[fill] = entry | {"auc_within_prompts": within}
    return found


def _rounded(value: float) -> float | None:
    """For JSON, which knows no nan."""
    return None if np.isnan(value) else round(value, 4)
