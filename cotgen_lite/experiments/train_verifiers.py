"""The course's fine-tuned verifiers: their training data, and the learning rate of each chosen on dev prompts.

Each function is a step of the build (`build.py`). Paper: section 3.2 (ORM, PRM), section 4 (PARM), section 5 (PARM++).
Read on in `train_generators.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.results import note_training
from cotgen_lite.generate.pipeline import generate_pool, judge_tokens, load_generator
from cotgen_lite.hub import file_sha256, write_manifest
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.verifier import publish_verifier
from cotgen_lite.metrics import mean_roc_auc
from cotgen_lite.pools import Pool, load_pool, save_pool
from cotgen_lite.training import subsample
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.reasons import find_reasons
from cotgen_lite.verify.training_data import (
    CLEAR_FROM,
    FOUR_ROLLOUTS,
    HOT_TEMPERATURE,
    POOL_FILE,
    PROPORTIONS,
    REFLECTIONS,
    SIXTEEN_ROLLOUTS,
    Example,
    as_dataset,
    generate_labelled,
    generate_paths,
    label_steps,
    orm_examples,
    parm_examples,
    prm_examples,
    reflection_examples,
    train_prompts,
)
from cotgen_lite.verify.verifier import PRM_QUESTION, Verifier

ROLLOUTS, MANY_ROLLOUTS = 4, 16  # the paper's, and what they are checked against
# Writing is new to the lite verifier: at PARM's own rate, 1e-4, its sentences had the right form and the wrong words.
WRITING_RATE = 3e-4
# What is asked of dev images when a learning rate is chosen: how a verifier is asked, and of which steps.
Look = tuple[Callable[[Verifier, Tensor, str], Tensor], slice]
FINISHED: Look = (lambda verifier, images, prompt: verifier.score(images, prompt), slice(-1, None))
EVERY_FOURTH: Look = (lambda verifier, images, prompt: verifier.score(images, prompt, PRM_QUESTION), slice(1, None, 4))
CLEAR: Look = (
    lambda verifier, images, prompt: verifier.clarity_and_potential(images, prompt)[1],
    slice(CLEAR_FROM - 1, -1, 2),
)
Option = TypeVar("Option")
Model = TypeVar("Model")


def keep_best(
    options: Iterable[Option], attempt: Callable[[Option], tuple[Model, dict]], dev: Callable[[dict], float]
) -> tuple[Option, Model, dict[Option, dict]]:
    """Try every option, and keep the model of the one whose log says the most of dev prompts; of equals the first.

    Returns that option, its model, and the logs of all.
    """
    tried = {option: attempt(option) for option in options}
    best = max(tried, key=lambda option: dev(tried[option][1]))
    return best, tried[best][0], {option: log for option, (_, log) in tried.items()}


def build_images(out: Path, work: Path, config: Config) -> None:
    """Hot images of training prompts, labelled: what the ORM learns from, and preferences later."""
    prompts = train_prompts({tag: number for tag, (number, _) in config.orm_prompts.items()}, seed=0)
    pools = [prompt for prompt in prompts for _ in range(config.orm_prompts[prompt.tag][1])]
    generator = load_generator(models=out / "models")
    labelled, seconds = generate_labelled(generator, TemplateJudge(), pools, config.orm_images, 0, work)
    save_pool(labelled, out / "training/images" / POOL_FILE)
    about = {"seed": 0, "temperature": HOT_TEMPERATURE, "images_a_pool": config.orm_images, "pools": len(pools)}
    note_training(work, "training/images", seconds)
    _describe(out, "images", about | {"distinct_prompts": len(prompts)})


def build_rollouts(out: Path, work: Path, config: Config) -> None:
    """Paths of training prompts, each step labelled by rollouts: what the PRM learns from."""
    generator, paths = load_generator(models=out / "models"), train_prompts(config.prm_prompts, seed=1)
    about: dict[str, object] = {"temperature": generator.settings.temperature}
    total = 0.0
    for name, some, rollouts, seed in (
        (FOUR_ROLLOUTS, paths, ROLLOUTS, 1),
        (SIXTEEN_ROLLOUTS, paths[:: config.prm_recheck_stride], MANY_ROLLOUTS, 2),
    ):
        labels, seconds = label_steps(generator, TemplateJudge(), some, rollouts, seed, work)
        save_pool(labels, out / "training/rollouts" / name)
        about[name] = {"paths": len(some), "rollouts": rollouts, "seed": seed}
        total += seconds
    note_training(work, "training/rollouts", total)
    _describe(out, "rollouts", about)


def build_paths(out: Path, work: Path, config: Config) -> None:
    """Paths of training prompts, a right and a wrong one of each, all steps judged: what PARM learns from."""
    prompts = train_prompts(config.parm_prompts, seed=3)
    generator = load_generator(models=out / "models")
    paths, seconds = generate_paths(generator, TemplateJudge(), prompts, config.parm_paths, 8, work)
    save_pool(paths, out / "training/paths" / POOL_FILE)
    about = {"seed": 8, "prompts": len(prompts), "drawn_of_each": config.parm_paths, "paths": len(paths.prompts)}
    note_training(work, "training/paths", seconds)
    _describe(out, "paths", about)


def build_orm(out: Path, work: Path, config: Config) -> None:
    """The fine-tuned ORM, with the learning rate that serves best on images of dev prompts."""
    examples = orm_examples(_images(out, "images"), config.orm_images_per_label, seed=0)
    _finetune(out, work, config, "orm", examples, (FINISHED,), config.verifier_learning_rates)


def build_prm(out: Path, work: Path, config: Config) -> None:
    """The fine-tuned PRM, with the learning rate that serves best on every fourth step of images of dev prompts."""
    examples = prm_examples(load_pool(out / "training/rollouts" / FOUR_ROLLOUTS), seed=0)
    _finetune(out, work, config, "prm", examples, (EVERY_FOURTH,), config.verifier_learning_rates)


def build_parm(out: Path, work: Path, config: Config) -> None:
    """PARM, with the learning rate that serves best on dev images: finished ones, and the potential of clear ones."""
    examples = parm_examples(_images(out, "paths"), _images(out, "images"), config.orm_images_per_label, seed=0)
    _finetune(out, work, config, "parm", examples, (FINISHED, CLEAR), config.parm_learning_rates)


def build_parm_plus(out: Path, work: Path, config: Config) -> None:
    """PARM++: PARM's data and reflection examples with their reasons, learned together."""
    images, generator = _images(out, "images"), load_generator(models=out / "models")
    examples = parm_examples(_images(out, "paths"), images, config.orm_images_per_label, seed=0)
    reasons = find_reasons(generator, TemplateJudge(), images.tokens, images.prompts, seed=0)
    if number := round(len(examples) * REFLECTIONS / sum(PROPORTIONS.values())):
        examples += reflection_examples(images, reasons, number, seed=1)
    examples = [examples[i] for i in np.random.default_rng(2).permutation(len(examples))]
    _finetune(out, work, config, "parm-plus-plus", examples, (FINISHED, CLEAR), (WRITING_RATE,))


def _images(out: Path, name: str) -> Pool:
    return load_pool(out / "training" / name / POOL_FILE)


def _describe(out: Path, name: str, about: Mapping[str, object]) -> None:
    """Write the manifest of a training set that the generator drew and the training judge labelled."""
    made = {"generator": file_sha256(out / "models/generator/model.safetensors"), "judge": "template"}
    write_manifest(out / "training" / name, made | dict(about))


def _finetune(
    out: Path,
    work: Path,
    config: Config,
    name: str,
    examples: list[Example],
    looks: Sequence[Look],
    rates: Sequence[float],
) -> None:
    """Fine-tune the zero-shot verifier once with each learning rate, and publish the best.

    Best by the mean AUC, over telling tags, steps and `looks`, of what it says of dev images' guesses against the
    verdicts on the finished images.
    """
    if not examples:
        print("no prompt has images of both labels: there is nothing to learn from, the verifier stays as it is")
        publish_verifier(Verifier.from_pretrained(out / "models/verifier"), out / "models" / name, {"examples": 0})
        return
    generator = load_generator(models=out / "models")
    data = as_dataset(examples, generator)
    prompts = config.dev_prompts
    pool = generate_pool(generator, prompts, config.verifier_dev_images, seed=3, work_dir=work)
    right = judge_tokens(generator, pool.tokens, prompts, TemplateJudge())

    def auc(verifier: Verifier) -> float:
        means = []
        for ask, steps in looks:
            areas = []
            for seen in pool.steps[:, :, steps].unbind(dim=2):
                rows = zip(seen, prompts, strict=True)
                odds = np.stack([ask(verifier, generator.decode(row), prompt.text).numpy() for row, prompt in rows])
                areas.append(mean_roc_auc(prompts, odds, right))
            means.append(np.mean(areas))
        return round(float(np.nan_to_num(np.mean(means))), 4)

    def attempt(rate: float) -> tuple[Verifier, dict]:
        verifier = Verifier.from_pretrained(out / "models/verifier")
        tuned, log = finetune_verifier(verifier, data, FineTuning(rate), work / f"{rate:g}")
        return tuned, {"auc": auc(tuned), "losses": subsample(log.losses), "seconds": log.seconds}

    before = auc(Verifier.from_pretrained(out / "models/verifier"))
    best, tuned, logs = keep_best(rates, attempt, lambda log: log["auc"])
    settings = {"examples": len(examples), "learning_rate": best, "losses": logs[best]["losses"]}
    settings |= {"dev_auc": {f"{rate:g}": log["auc"] for rate, log in logs.items()}, "dev_auc_zero_shot": before}
    note_training(work, f"models/{name}", logs[best]["seconds"])
    publish_verifier(tuned, out / "models" / name, settings)
