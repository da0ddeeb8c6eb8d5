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
from cotgen_lite.metrics import expected_best_of, mean_roc_auc, score, tag_means
from cotgen_lite.training import TrainingLog, subsample
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.training_data import as_dataset, generate_labelled, orm_examples, train_prompts

ARRANGED = ("position", "color_attr")
# Mostly hidden masks teach arrangement; pairs are made afresh four times of the same images, four a prompt.
DPO = DpoTraining(2e-4, batch_size=16, muon_rate=2e-3, weighting="early")
PAIRS, ROUNDS = 4, 4
ORM, MOST = FineTuning(2e-4, epochs=2), 4  # images of either label a prompt


def measure_pilots(out: Path, work: Path, config: Config) -> None:
    """A small round of DPO and a small fine-tuning of the verifier, both measured on dev prompts."""
    bench, n = Bench(out, work, config, "pilots"), config.pool_size
    generator, judge = bench.generator(), bench.judges["template"]
    prompts = train_prompts(config.pilot_prompts, seed=0)
    labelled, seconds = generate_labelled(generator, judge, prompts, config.pilot_images, 0, work, temperature=1.0)
    note_training(work, "pilots/images", seconds)

    pool = bench.pool("dev")
    dev, right = pool.prompts, pool.correct["template"]
    asked = [row for row, prompt in enumerate(dev) if prompt.tag in ARRANGED]
    arranged = [dev[row] for row in asked]

    pairs = [pair for seed in range(ROUNDS) for pair in preference_pairs(labelled, PAIRS, seed)]
    aligned, log = train_dpo(generator, pairs, DPO, work / "dpo") if pairs else (generator, TrainingLog())
    after = bench.generate(aligned, arranged, n)
    lifted = bench.judge(aligned, after.tokens, arranged)["template"].mean(1)
    dpo = {
        "pairs": len(pairs),
        "prompts_with_both_labels": len({pair.prompt for pair in pairs}),
        "steps": log.steps,
        "accuracy_of_pairs": [rounded(x) for x in subsample([row["accuracy"] for row in log.rows])],
        "before": tag_means(arranged, right[asked].mean(1)),
        "after": tag_means(arranged, lifted),
        "gain": difference(arranged, lifted - right[asked].mean(1)),
    }

    examples = orm_examples(labelled, MOST, seed=0)
    tuned, run = bench.verifier("verifier"), TrainingLog()
    if examples:
        tuned, run = finetune_verifier(tuned, as_dataset(examples, generator), ORM, work / "orm")
    odds = pool.scores | {"ft-orm": score_pool(generator, tuned, pool)[0]}
    best = {name: expected_best_of(order, right, n) for name, order in (odds | {"oracle": right}).items()}
    orm = {
        "examples": len(examples),
        "steps": run.steps,
        "losses": [rounded(x) for x in subsample(run.losses)],
        "overall": {name: rounded(score(dev, values).overall) for name, values in best.items()},
        "auc_within_prompts": {name: rounded(mean_roc_auc(dev, order, right)) for name, order in odds.items()},
        "gain_over_zs_orm": difference(dev, best["ft-orm"] - best["zs-orm"]),
        "oracle_above_ft_orm": difference(dev, best["oracle"] - best["ft-orm"]),
    }
    bench.write("pilots", {"images": labelled.correct["template"].size, "dpo": dpo, "orm": orm})
