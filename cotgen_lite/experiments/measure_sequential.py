"""Do the methods carry over to next-token generators? Table 4, chapter 09, finding F10.

The verifiers are those that learned from the masked generator's images; beside them the same, taught on the next-token
generator's own. Paper: section 4. How: measuring.py; the generators: generate/autoregressive.py.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f10, write_findings
from cotgen_lite.experiments.measure_parm import (
    Units,
    in_flops,
    in_numbers,
    in_seconds,
    order_within_rows,
    priced,
    unit_costs,
)
from cotgen_lite.experiments.measuring import Bench, by_step, measure_pool, rounded, score_pool
from cotgen_lite.experiments.results import score_tokens
from cotgen_lite.experiments.train_generators import dev_score, draw_ranking_data
from cotgen_lite.generate.autoregressive import AutoregressiveGenerator, Fill, load_autoregressive
from cotgen_lite.hub import MANIFEST
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.metrics import expected_best_of, mean_roc_auc, roc_auc_within_prompts, score
from cotgen_lite.pools import Pool
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.pool_search import (
    Outcome,
    ask_of_paths,
    spent_by_best_of_n,
    spent_by_search,
    stop_paths,
)
from cotgen_lite.verify.training_data import (
    Example,
    as_dataset,
    generate_paths,
    orm_examples,
    parm_examples,
    train_prompts,
)
from cotgen_lite.verify.verifier import Verifier

GUIDANCE_SCALES = (0.0, 0.5, 1.5, 3.0, 5.0)
TOP_KS = (0, 50)
VERIFIERS = {"parm": "PARM", "parm-retaught": "PARM, retaught", "ft-orm-retaught": "fine-tuned ORM, retaught"}


def measure_sequential(out: Path, work: Path, config: Config) -> None:
    """The methods on next-token generators, with verifiers as they are and retaught; scores and findings."""
    bench, n = Bench(out, work, config, "sequential_results"), config.pool_size
    generator, tuned = (load_autoregressive(name, models=out / "models") for name in ("sequential", "sequential-dpo"))
    dev = measure_settings(bench, generator)
    taught = teach_verifiers(out, generator, work, config)
    parms = {"parm": bench.verifier("parm"), "parm-retaught": taught["parm"]}
    orms = bench.orms
    pool, drawn = measure_pool(bench, generator, "sequential", orms)
    dpo, _ = measure_pool(bench, tuned, "sequential-dpo", orms)
    orders = {"ft-orm-retaught": score_pool(generator, taught["orm"], pool)[0]}
    found, outcomes = {}, {}
    for name, verifier in parms.items():
        opinions = ask_of_paths(generator, verifier, drawn.steps, pool.prompts, work / "opinions")
        outcomes[name] = outcome = stop_paths(opinions)
        orders[name] = order_within_rows(outcome.order)
        found[name] = in_numbers(pool, opinions, outcome, n)
    pool = replace(pool, scores=pool.scores | orders)
    bench.save_pool("sequential", pool)
    units = unit_costs(generator, parms["parm"], pool.prompts, n)
    add_choices(bench, generator, pool, outcomes, units)
    write_findings(out, lambda judge: {"F10": decide_f10(pool, dpo, n, judge)})
    fills = measure_fills(bench, generator, orms | parms)
    bench.note_seconds("sequential", {"units": in_seconds(units)})
    bench.write("sequential", {"settings": dev, "fills": fills, "parm": found, "units": in_flops(units)})


def measure_settings(bench: Bench, generator: AutoregressiveGenerator) -> list[dict]:
    """The dev score at each guidance scale and top-k, by the training judge."""
    rows = []
    for top_k, scale in product(TOP_KS, GUIDANCE_SCALES):
        tried = generator.with_settings(guidance_scale=scale, top_k=top_k)
        _, _, right = bench.generate_dev(tried, bench.config.guidance_dev_images)
        rows.append({"guidance_scale": scale, "top_k": top_k} | dev_score(right.mean(1), bench.config))
    return rows


def teach_verifiers(out: Path, generator: AutoregressiveGenerator, work: Path, config: Config) -> dict[str, Verifier]:
    """ORM and PARM taught as the shipped ones were, but on the next-token generator's images; they are not shipped.

    The same learning rates, from the same zero-shot verifier, and the same steps called clear, though runs are 16 and
    steps were 18; unfinished images show what the generator's settings say.
    Where all images are right or all wrong there is nothing to learn, and the zero-shot verifier is returned.
    """
    images = draw_ranking_data(generator, work.parent / "sequential-dpo/images", config)
    prompts = train_prompts(config.parm_prompts, seed=3)
    paths, _ = generate_paths(generator, TemplateJudge(), prompts, config.parm_paths, 8, work / "paths")
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


def add_choices(
    bench: Bench, generator: AutoregressiveGenerator, pool: Pool, outcomes: Mapping[str, Outcome], units: Units
) -> None:
    """Rows of scores.jsonl: both PARMs' choices for every n, and the retaught ORM's, with what they cost."""
    length, steps, preview = pool.tokens.shape[2], generator.settings.steps, generator.settings.fill == "likeliest"

    def cost(name: str, n: int) -> dict[str, float]:
        if name in outcomes:
            return priced(spent_by_search(outcomes[name], n, steps, length, preview), units)
        return priced(spent_by_best_of_n(n, steps) | {"generator_passes": 2 + 2.0 * n * (length - 1)}, units)

    for name in (*outcomes, "ft-orm-retaught"):
        order, by = pool.scores[name], VERIFIERS[name]
        bench.add_rows(f"seq:{name}", "sequential", pool, partial(cost, name), order, verifier=by)


def measure_fills(
    bench: Bench, generator: AutoregressiveGenerator, verifiers: Mapping[str, Verifier]
) -> dict[str, dict]:
    """Unfinished images with grey, and with the likeliest tokens, where no token is yet: which can be read better?

    On dev prompts, by the training judge: at each run but the last, AUC against the final verdict of what the verifiers
    say ("zs-orm": its question; "parm": that about potential), all prompts together and within them; share of paths
    that PARM calls clear; accuracy of PARM's search; generator passes of a path.
    """
    found = {}
    for fill in get_args(Fill):
        filled = generator.with_settings(fill=fill)
        prompts, drawn, right = bench.generate_dev(filled, bench.config.generator_dev_images, seed=5)
        unfinished = drawn.steps[:, :, :-1].unbind(dim=2)
        said = [score_tokens(generator, verifiers["zs-orm"], tokens, prompts)[0] for tokens in unfinished]
        entry: dict[str, object] = {"generator_passes": round(drawn.cost.generator_passes / right.size, 2)}
        odds = {"zs-orm": np.stack(said, axis=2)}
        for name in ("parm", "parm-retaught"):
            opinions = ask_of_paths(filled, verifiers[name], drawn.steps, prompts, bench.work / "opinions", stop=False)
            odds[name] = opinions.potential
            chosen = score(prompts, expected_best_of(stop_paths(opinions).order, right, right.shape[1]))
            entry[f"{name}_clear"] = [rounded(share) for share in (opinions.clarity > 0).mean(axis=(0, 1))]
            entry[f"{name}_search"] = {"overall": round(chosen.overall, 4), "ci": [round(x, 4) for x in chosen.ci]}
        entry["auc"] = {name: by_step(partial(mean_roc_auc, prompts), one, right) for name, one in odds.items()}
        within = {name: by_step(roc_auc_within_prompts, one, right) for name, one in odds.items()}
        found[fill] = entry | {"auc_within_prompts": within}
    return found
