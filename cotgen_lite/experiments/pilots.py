"""Is there room for the paper's methods? A round of DPO and a fine-tuned ORM, small, on dev prompts alone.

Before anything is built on the starting models, one of each kind of lesson is tried with a single seed: DPO must lift
position and attribute binding, and a fine-tuned verifier must gain over the zero-shot one and stay below the oracle.
Where they do not, the world is not ready, and `calibrate.py` says what its models lack.
"""

from pathlib import Path

from cotgen_lite.align.dpo import DpoTraining, preference_pairs, train_dpo
from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import difference
from cotgen_lite.experiments.measuring import Bench, rounded, score_pool
from cotgen_lite.experiments.results import note_training
from cotgen_lite.metrics import expected_best_of, roc_auc_within_prompts, score, tag_means
from cotgen_lite.training import TrainingLog, subsample
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.training_data import as_dataset, generate_labelled, orm_examples, train_prompts

ARRANGED = ("position", "color_attr")
# Mostly hidden masks teach arrangement; pairs are made afresh four times of the same images, four a prompt.
DPO = DpoTraining(2e-4, batch_size=16, muon_rate=2e-3, weighting="early")
PAIRS, ROUNDS = 4, 4
ORM, MOST = FineTuning(2e-4, epochs=2), 4  # images of either label a prompt


def try_dpo(out: Path, work: Path, config: Config) -> None:
    """A small round of DPO: whether it lifts position and attribute binding on dev prompts, and its images."""
    bench, n = Bench(out, work, config, "dpo_pilot"), config.pool_size
    generator, judge, pool = bench.generator(), bench.judges["template"], bench.pool("dev")
    prompts = train_prompts(config.pilot_prompts, seed=0)
    labelled, seconds = generate_labelled(generator, judge, prompts, config.pilot_images, 0, work, temperature=1.0)
    note_training(work, "pools/pilot", seconds)
    bench.save_pool("pilot", labelled)

    pairs = [pair for seed in range(ROUNDS) for pair in preference_pairs(labelled, PAIRS, seed)]
    aligned, log = train_dpo(generator, pairs, DPO, work / "dpo") if pairs else (generator, TrainingLog())
    rows = [row for row, prompt in enumerate(pool.prompts) if prompt.tag in ARRANGED]
    asked, before = [pool.prompts[row] for row in rows], pool.correct["template"][rows].mean(1)
    drawn = bench.generate(aligned, asked, n)
    after = bench.judge(aligned, drawn.tokens, asked)["template"].mean(1)
    bench.write(
        "dpo_pilot",
        {
            "images": labelled.correct["template"].size,
            "pairs": len(pairs),
            "prompts_with_both_labels": len({pair.prompt for pair in pairs}),
            "steps": log.steps,
            "accuracy_of_pairs": subsample([row["accuracy"] for row in log.rows]),
            "before": {tag: rounded(value) for tag, value in tag_means(asked, before).items()},
            "after": {tag: rounded(value) for tag, value in tag_means(asked, after).items()},
            "gain": difference(asked, after - before),
        },
    )


def try_orm(out: Path, work: Path, config: Config) -> None:
    """A small fine-tuning of the verifier on the same images: what it gains on dev prompts, and what is left."""
    bench, n = Bench(out, work, config, "orm_pilot"), config.pool_size
    generator, tuned, run = bench.generator(), bench.verifier("verifier"), TrainingLog()
    examples, pool = orm_examples(bench.pool("pilot"), MOST, seed=0), bench.pool("dev")
    odds = {"zs-orm": score_pool(generator, tuned, pool)[0]}
    if examples:
        tuned, run = finetune_verifier(tuned, as_dataset(examples, generator), ORM, work / "orm")
    odds["ft-orm"] = score_pool(generator, tuned, pool)[0]
    dev, right = pool.prompts, pool.correct["template"]
    best = {name: expected_best_of(order, right, n) for name, order in (odds | {"oracle": right}).items()}
    bench.write(
        "orm_pilot",
        {
            "examples": len(examples),
            "steps": run.steps,
            "losses": subsample(run.losses),
            "overall": {name: rounded(score(dev, values).overall) for name, values in best.items()},
            "auc_within_prompts": {name: rounded(roc_auc_within_prompts(order, right)) for name, order in odds.items()},
            "gain_over_zs_orm": difference(dev, best["ft-orm"] - best["zs-orm"]),
            "oracle_above_ft_orm": difference(dev, best["oracle"] - best["ft-orm"]),
        },
    )
