"""The course's aligned generators: rounds of DPO, guided or not, of both kinds of generator; and self-correction.

A round starts from a generator, which is its frozen reference as well: the first from the baseline, the second from the
first round's policy, on that policy's own images. Guided rounds add online pairs ranked by a verifier.
Paper: sections 3.3 and 3.4 (DPO), section 5 (self-correction). Read on in the measure_*.py beside this.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cotgen_lite.align.dpo import (
    DpoTraining,
    Online,
    Pair,
    divergence_on_samples,
    online_pairs,
    preference_pairs,
    train_autoregressive_dpo,
    train_dpo,
)
from cotgen_lite.align.self_correction import CorrectionTraining, train_correction
from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import difference
from cotgen_lite.experiments.results import note_training
from cotgen_lite.experiments.train_verifiers import keep_best
from cotgen_lite.generate.autoregressive import (
    AutoregressiveGenerator,
    load_autoregressive,
)
from cotgen_lite.generate.pipeline import Generator, ImageGenerator, generate_pool, judge_tokens, load_generator
from cotgen_lite.hub import MANIFEST, publish, write_json, write_manifest
from cotgen_lite.lite.edit_targets import corrections
from cotgen_lite.lite.generator_training import make_captioned_tokens
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import CaptionNoise
from cotgen_lite.metrics import score
from cotgen_lite.pools import Pool, load_pool, save_pool
from cotgen_lite.training import TrainingLog, subsample
from cotgen_lite.verify.reasons import find_reasons
from cotgen_lite.verify.training_data import HOT_TEMPERATURE, POOL_FILE, generate_labelled, train_prompts
from cotgen_lite.verify.verifier import Verifier

WATCHED_EVERY = 8  # one dev prompt in so many lends an image to the divergence


def build_dpo(out: Path, work: Path, config: Config) -> None:
    """The first round, with the learning rate that serves best on dev prompts."""
    pairs = pairs_of(out / "training/images", config, seed=0)
    best, generator, logs = keep_best(
        config.dpo_learning_rates,
        lambda rate: attempt(out, pairs, DpoTraining(rate), work, config),
        lambda log: log["dev"]["overall"],
    )
    before = dev_score(dev_verdicts(load_generator(models=out / "models"), work, config), config)
    tried = {f"learning rate {rate:g}": without_seconds(log) for rate, log in logs.items()}
    write_json(out / "results/dpo_rates.json", {"baseline": before, "taken": f"learning rate {best:g}", "tried": tried})
    publish_aligned(generator, logs[best], "generator", pairs, out / "models/dpo", work)


def attempt(
    out: Path, pairs: Sequence[Pair], settings: DpoTraining, work: Path, config: Config
) -> tuple[Generator, dict[str, Any]]:
    """A first round with some settings, and its log, with what it gains on dev prompts; resumes from `work`."""
    baseline = load_generator(models=out / "models")
    name = f"{settings.learning_rate:g}-{settings.masks}-{settings.weighting}-{'' if settings.shared else 'not-'}shared"
    generator, log = align(baseline, pairs, settings, work / name, config)
    before, right = (dev_verdicts(one, work, config) for one in (baseline, generator))
    return generator, log | {"dev": dev_score(right, config), "gain": difference(config.dev_prompts, right - before)}


def build_dpo_images(out: Path, work: Path, config: Config) -> None:
    """The second round's images: the first round's policy draws them, the training judge labels them anew."""
    draw_second_round(load_generator("dpo", models=out / "models"), out / "training/dpo_images", 0, work, config)


def build_it_dpo(out: Path, work: Path, config: Config, guide: str | None = None) -> None:
    """The second round: policy and reference both start from the first round's policy; with a guide, if any.

    guide: "orm" or "parm", which ranks the policy's fresh images; PARM is asked about finished ones.
    """
    pairs = pairs_of(out / "training/dpo_images", config, seed=0)
    first, online = load_generator("dpo", models=out / "models"), None
    if guide:
        online = guidance(first, Verifier.from_pretrained(out / "models" / guide), config)
    generator, log = align(first, pairs, settings_of(out, "dpo"), work, config, online)
    about = {"guided_by": guide} if guide else {}
    folder = out / f"models/it-dpo{f'-guided-{guide}' if guide else ''}"
    publish_aligned(generator, log | about, "dpo", pairs, folder, work)


def align(
    start: Generator,
    pairs: Sequence[Pair],
    settings: DpoTraining,
    work: Path,
    config: Config,
    online: Online | None = None,
) -> tuple[Generator, dict]:
    """One round of DPO from a generator, which stays as it is; resumes from `work`.

    Returns the aligned generator and the round's log: the settings; steps and seconds; "loss", "margin" and "accuracy"
    (and "online_margin") as means of twenty parts of the steps; "divergence", KL to the reference in nats an image,
    after so many steps. Without pairs nothing is learned.
    """
    generator, run = start, TrainingLog()
    if pairs:
        watch = divergence_on_samples(start, config.dev_prompts[::WATCHED_EVERY], n=1, seed=6)
        generator, run = train_dpo(start, pairs, settings, work / "run", online, watch)
    kept = ("loss", "margin", "accuracy", *(("online_margin",) if online else ()))
    looks = [(done, row["watched"]) for done, row in enumerate(run.rows[:-1]) if "watched" in row]
    looks += [(run.steps, row["watched"]) for row in run.rows[-1:]]
    how = asdict(settings)
    if online is None:
        del how["guidance"]
    log = {
        **how,
        "steps": run.steps,
        "seconds": round(run.seconds),
        **{key: in_parts([row[key] for row in run.rows]) for key in kept},
        "divergence": [[done, round(watched, 3)] for done, watched in looks],
    }
    return generator, log


def dev_verdicts(generator: ImageGenerator[Any], work: Path, config: Config) -> npt.NDArray[np.float64]:
    """Share of right images of each dev prompt (P,), by the training judge."""
    prompts = config.dev_prompts
    pool = generate_pool(generator, prompts, config.generator_dev_images, seed=5, work_dir=work / "dev")
    return judge_tokens(generator, pool.tokens, prompts, TemplateJudge()).mean(1)


def dev_score(right: npt.NDArray[np.float64], config: Config) -> dict:
    """What `dev_verdicts` come to: accuracy by tag, overall, and its interval."""
    result = score(config.dev_prompts, right)
    tags = {tag: round(value, 4) for tag, value in result.tags.items()}
    return {"overall": round(result.overall, 4), "ci": [round(bound, 4) for bound in result.ci], "tags": tags}


def guidance(start: Generator, verifier: Verifier, config: Config) -> Online:
    """Online pairs of the prompts that the ranking data were drawn for."""
    prompts = train_prompts({tag: number for tag, (number, _) in config.orm_prompts.items()}, seed=0)
    return online_pairs(start, verifier, prompts, config.online_prompts, config.online_samples, seed=7)


def settings_of(out: Path, name: str) -> DpoTraining:
    """What a shipped generator was aligned with."""
    log = json.loads((out / f"models/{name}/{MANIFEST}").read_text(encoding="utf-8"))["settings"]
    return DpoTraining(**{field: log[field] for field in asdict(DpoTraining(0.0)) if field in log})


def pairs_of(images: Path, config: Config, seed: int) -> Sequence[Pair]:
    """Pairs of a folder of labelled images: a right and a wrong one of a prompt each; one label only gives none."""
    return preference_pairs(load_pool(images / POOL_FILE), config.pairs_per_prompt, seed)


def draw_second_round(generator: Generator, folder: Path, seed: int, work: Path, config: Config) -> None:
    """Hot images of training prompts by an aligned generator, labelled, with their manifest.

    As many prompts of each tag as the first round's, drawn anew from all training prompts.
    """
    prompts = train_prompts(config.round_two_prompts, seed=2)
    labelled, seconds = generate_labelled(generator, TemplateJudge(), prompts, config.round_two_images, 10 + seed, work)
    note_training(work, f"training/{folder.name}", seconds)
    save_pool(labelled, folder / POOL_FILE)
    about = {
        "judge": "template",
        "temperature": HOT_TEMPERATURE,
        "images_a_pool": config.round_two_images,
        "pools": len(prompts),
    }
    write_manifest(folder, about | {"seed": 10 + seed})


def without_seconds(log: Mapping) -> dict:
    """A log as results keep it: the same at every run."""
    return {key: value for key, value in log.items() if key != "seconds"}


def publish_aligned(
    generator: Generator, log: Mapping, start: str, pairs: Sequence[Pair], folder: Path, work: Path
) -> None:
    """Save an aligned generator, with where it started, on how many pairs of how many prompts, and its log."""
    about = {"start": start, "pairs": len(pairs), "pairs_of_prompts": len({pair.prompt.text for pair in pairs})}
    note_training(work, f"models/{folder.name}", log["seconds"])
    publish(generator.model, folder, about | without_seconds(log))


def in_parts(values: Sequence[float], parts: int = 20) -> list[float]:
    """Means of up to `parts` equal stretches."""
    return [round(float(part.mean()), 4) for part in np.array_split(np.array(values), parts) if len(part)]


def draw_ranking_data(
    generator: AutoregressiveGenerator, work_dir: Path, config: Config, temperature: float = HOT_TEMPERATURE
) -> Pool:
    """Images of training prompts by a next-token generator, labelled; kept in `work_dir`, not shipped."""
    prompts = train_prompts(config.round_two_prompts, seed=0)
    return generate_labelled(generator, TemplateJudge(), prompts, config.round_two_images, 20, work_dir, temperature)[0]


def build_sequential_dpo(out: Path, work: Path, config: Config) -> None:
    """The next-token generator after a round of DPO: with the pairs and learning rate that serve best on dev prompts.

    Pairs drawn hot, as everywhere else in the course, or at the temperature at which the generator is used.
    """
    start = load_autoregressive(models=out / "models")
    before = dev_verdicts(start, work, config)
    temperatures = HOT_TEMPERATURE, start.settings.temperature
    drawn = {t: draw_ranking_data(start, work / "images", config, t) for t in temperatures}

    def attempt(option: tuple[float, float]) -> tuple[AutoregressiveGenerator, dict]:
        temperature, rate = option
        generator, images = start, drawn[temperature]
        pairs = preference_pairs(images, config.pairs_per_prompt, seed=0)
        log: dict[str, Any] = {"temperature": temperature, "learning_rate": rate}
        log |= {"images": images.correct["template"].size, "pairs": len(pairs)}
        if pairs:
            folder = work / f"{temperature:g}-{rate:g}"
            generator, run = train_autoregressive_dpo(start, pairs, DpoTraining(rate, save_steps=50), folder)
            log |= {"steps": run.steps, "seconds": round(run.seconds)}
            log |= {key: in_parts([row[key] for row in run.rows]) for key in run.rows[0]}
        right = dev_verdicts(generator, work, config)
        return generator, log | {
            "dev": dev_score(right, config),
            "gain": difference(config.dev_prompts, right - before),
        }

    options = product(drawn, config.autoregressive_dpo_learning_rates)
    best, generator, logs = keep_best(options, attempt, lambda log: log["dev"]["overall"])
    tried = {
        f"pairs at temperature {t:g}, learning rate {rate:g}": without_seconds(log) for (t, rate), log in logs.items()
    }
    taken = "pairs at temperature {:g}, learning rate {:g}".format(*best)
    about = {"start": "sequential", "dev_before": dev_score(before, config), "taken": taken, "tried": tried}
    note_training(work, "models/sequential-dpo", logs[best].get("seconds", 0))
    publish(generator.model, out / "models/sequential-dpo", about)


def build_self_correct(out: Path, work: Path, config: Config) -> None:
    """The generator that can correct an image."""
    images, start = load_pool(out / "training/images" / POOL_FILE), load_generator(models=out / "models")
    wrong = ~images.correct["template"]
    lessons = corrections(start, TemplateJudge(), images, wrong, config.corrections_per_prompt, seed=0)
    settings = json.loads((out / f"models/generator/{MANIFEST}").read_text(encoding="utf-8"))["settings"]
    replay = make_captioned_tokens(
        config.replay_pictures,
        start.image_tokenizer,
        start.text_tokenizer,
        CaptionNoise(**settings["noise"]),
        seed=0,
    )
    training = CorrectionTraining(config.correction_steps, config.correction_learning_rate)
    generator, log = train_correction(start, lessons, replay, training, work)
    about = {"start": "generator", "lessons": len(lessons), "replayed": config.replay_pictures}
    about |= {"dev": try_on_dev(start, generator, work, config), "losses": subsample(log.losses)}
    note_training(work, "models/self-correct", log.seconds)
    publish(generator.model, out / "models/self-correct", asdict(training) | about)


def try_on_dev(start: Generator, generator: Generator, work: Path, config: Config) -> dict[str, float]:
    """What a corrected generator can do on dev prompts, by the training judge: accuracy of its "plain" images, and of
    the starting generator's images ("before") after each wrong one was corrected once, by the judge's reasons
    ("corrected") or without reasons ("mute")."""
    prompts = config.dev_prompts
    number, judge = config.generator_dev_images, TemplateJudge()
    pools = [generate_pool(one, prompts, number, seed=5, work_dir=work / "dev").tokens for one in (start, generator)]
    right = [judge_tokens(generator, codes, prompts, judge) for codes in pools]
    reasons = find_reasons(start, judge, pools[0], prompts, seed=0)
    rows, columns = np.nonzero(~right[0])
    asked, wrong = [prompts[row] for row in rows], pools[0][rows, columns]
    found = {"before": right[0], "plain": right[1]}
    for name, texts in (("corrected", reasons), ("mute", np.full_like(reasons, ""))):
        found[name] = now = right[0].copy()
        if len(rows):
            why = texts[rows, columns].tolist()
            drawn = generator.correct([prompt.text for prompt in asked], wrong, why, seed=9)
            now[rows, columns] = judge_tokens(generator, drawn.tokens[:, None], asked, judge)[:, 0]
    return {name: round(score(prompts, verdicts.mean(1)).overall, 4) for name, verdicts in found.items()}
