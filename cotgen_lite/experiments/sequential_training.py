"""The course's next-token generators: pre-training on the masked one's captions and pictures, then a round of DPO."""

import copy
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from cotgen_lite.align.dpo import train_sequential_dpo
from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.train_generators import dev_gain, dev_score, dev_verdicts, in_parts
from cotgen_lite.generate.autoregressive import (
    AutoregressiveGenerator,
    AutoregressiveModel,
    lite_autoregressive_config,
    load_autoregressive,
)
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.hub import publish
from cotgen_lite.lite.generator_training import make_captioned_tokens, train_generator
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import world
from cotgen_lite.pools import Pool
from cotgen_lite.training import subsample
from cotgen_lite.verify.training_data import HOT, draw_labelled, preference_pairs, train_prompts


def build_sequential(out: Path, work: Path, config: Config) -> None:
    """The next-token generator, on noisy captions."""
    words, pixels, noise = lite_tokenizer(), Magvit.from_pretrained(out / "models/tokenizer"), world().caption_noise
    data = make_captioned_tokens(config.captioned_pictures, pixels, words, noise, seed=0)
    torch.manual_seed(0)
    model = AutoregressiveModel(lite_autoregressive_config(len(words), words.pad_token_id))
    log = train_generator(model, data, config.autoregressive_steps, work, seed=0)
    settings = {"steps": log.steps, "pictures": config.captioned_pictures, "seed": 0, "noise": asdict(noise)}
    publish(model, out / "models/sequential", settings | {"losses": subsample(log.losses)}, log.seconds)


def draw_ranking_data(
    generator: AutoregressiveGenerator, work_dir: Path, config: Config, temperature: float = HOT
) -> Pool:
    """Images of training prompts by a next-token generator, labelled; kept in `work_dir`, not shipped."""
    prompts = train_prompts(config.round_two_prompts, seed=0)
    return draw_labelled(generator, TemplateJudge(), prompts, config.round_two_images, 20, work_dir, temperature)[0]


def build_sequential_dpo(out: Path, work: Path, config: Config) -> None:
    """The next-token generator after a round of DPO: with the pairs and learning rate that serve best on dev prompts.

    Pairs drawn hot, as everywhere else in the course, or at the temperature at which the generator is used.
    """
    start = load_autoregressive(models=out / "models")
    before, tried = dev_verdicts(start, work, config), {}
    drawn = {t: draw_ranking_data(start, work / "images", config, t) for t in (HOT, start.settings.temperature)}
    pairs = {
        temperature: preference_pairs(images, config.pairs_per_prompt, seed=0) for temperature, images in drawn.items()
    }
    for temperature, rate in product(drawn, config.autoregressive_dpo_learning_rates):
        images, triples = drawn[temperature], pairs[temperature]
        model = copy.deepcopy(start.model)
        log: dict[str, Any] = {"temperature": temperature, "learning_rate": rate}
        log |= {"images": images.correct["template"].size, "pairs": len(triples)}
        if triples:
            folder = work / f"{temperature:g}-{rate:g}"
            steps, seconds = train_sequential_dpo(model, start.text_tokenizer, triples, rate, folder)
            log |= {"steps": len(steps), "seconds": round(seconds)}
            log |= {key: in_parts([step[key] for step in steps]) for key in steps[0]}
        right = dev_verdicts(replace(start, model=model), work, config)
        log |= {"dev": dev_score(right, config), "gain": dev_gain(right, before, config)}
        tried[f"pairs at temperature {temperature:g}, learning rate {rate:g}"] = log, model
    taken = max(tried, key=lambda name: tried[name][0]["dev"]["overall"])
    log, model = tried[taken]
    logs = {name: one for name, (one, _) in tried.items()}
    about = {"start": "sequential", "dev_before": dev_score(before, config), "taken": taken, "tried": logs}
    publish(model, out / "models/sequential-dpo", about, log.get("seconds", 0))
