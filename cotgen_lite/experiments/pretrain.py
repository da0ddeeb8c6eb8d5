"""The models that everything starts from, made from nothing: tokenizer, judge, both generators, verifier.

Each function is a step of the build (`build.py`): it reads and writes under `out`, and `work` lets it resume.
Read on in `train_verifiers.py`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cotgen_lite.experiments.calibrate import twin_test
from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.results import note_training, write_rows
from cotgen_lite.generate.autoregressive import AutoregressiveModel, lite_autoregressive_config
from cotgen_lite.generate.showo import Showo, lite_showo_config
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.hub import publish, write_manifest
from cotgen_lite.lite.generator_training import Stage, make_captioned_tokens, train_generator
from cotgen_lite.lite.judges import train_judge
from cotgen_lite.lite.tokenizer_training import train_tokenizer
from cotgen_lite.lite.verifier import evaluation_set, measure_verifier, save_verifier
from cotgen_lite.lite.verifier_training import train_verifier
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import random_scene, render, world
from cotgen_lite.prompts import lite_prompts, to_record
from cotgen_lite.training import subsample


def build_prompts(out: Path, work: Path, config: Config) -> None:
    """The dev and test prompts, as GenEval writes its own, and the words that lite models read."""
    for split in ("dev", "test"):
        write_rows(out / f"prompts/{split}.jsonl", [to_record(prompt) for prompt in lite_prompts(split)])
    words = out / "models/words"
    lite_tokenizer().save_pretrained(words)
    write_manifest(words, {})


def build_tokenizer(out: Path, work: Path, config: Config) -> None:
    """The image tokenizer, on random scenes."""
    torch.manual_seed(0)
    model = Magvit(lite_magvit_config(world().image_size))
    phases = enumerate(config.tokenizer)
    logs = [train_tokenizer(model, _draw_scenes, training, work / f"phase-{n}") for n, training in phases]
    settings = {"phases": [asdict(training) for training in config.tokenizer]}
    note_training(work, "models/tokenizer", sum(log.seconds for log in logs))
    publish(model, out / "models/tokenizer", settings)


def build_judge(out: Path, work: Path, config: Config) -> None:
    """The learned judge, on clean scenes and on what the tokenizer makes of them."""
    pixels = Magvit.from_pretrained(out / "models/tokenizer")
    model, log = train_judge(work, config.judge_steps, rebuild=pixels.rebuild)
    note_training(work, "models/judge", log.seconds)
    publish(model, out / "models/judge", {"steps": config.judge_steps, "seed": 0})


def build_generator(out: Path, work: Path, config: Config) -> None:
    """The generator, on right captions and then on noisy ones."""
    words = lite_tokenizer()
    torch.manual_seed(0)
    model = Showo(lite_showo_config(len(words), words.bos_token_id, words.eos_token_id, world().grid ** 2))
    _pretrain(model, out, work, "generator", config.generator, config.twins)


def build_sequential(out: Path, work: Path, config: Config) -> None:
    """The next-token generator, on noisy captions."""
    words = lite_tokenizer()
    torch.manual_seed(0)
    model = AutoregressiveModel(lite_autoregressive_config(len(words), words.pad_token_id, world().grid))
    _pretrain(model, out, work, "sequential", config.autoregressive, config.twins)


def _pretrain(
    model: Showo | AutoregressiveModel, out: Path, work: Path, name: str, stages: Sequence[Stage], twins: int
) -> None:
    pixels, words = Magvit.from_pretrained(out / "models/tokenizer"), lite_tokenizer()
    told, seconds = list[dict[str, object]](), 0.0
    for number, stage in enumerate(stages):
        data = make_captioned_tokens(stage.pictures, pixels, words, stage.noise, number, stage.tags)
        log = train_generator(model, data, stage, work / f"stage-{number}")
        seconds += log.seconds
        told.append(asdict(stage) | {"losses": subsample(log.losses)})
        if isinstance(model, Showo):
            told[-1]["twin_test"] = twin_test(model, pixels, words, lite_prompts("dev"), stage.noise, twins)
    note_training(work, f"models/{name}", seconds)
    publish(model, out / "models" / name, {"noise": asdict(world().caption_noise), "stages": told})


def build_verifier(out: Path, work: Path, config: Config) -> None:
    """The verifier, on clean scenes only."""
    model, log = train_verifier(config.verifier, work)
    note_training(work, "models/verifier", log.seconds)
    folder, words = out / "models/verifier", lite_tokenizer()
    shutil.rmtree(folder, ignore_errors=True)
    save_verifier(model, words, folder)
    held_out = evaluation_set(config.verifier_scenes, seed=1)
    about = {"training": asdict(config.verifier), "losses": subsample(log.losses)}
    write_manifest(folder, about | {"dev_auc": measure_verifier(model, words, held_out)})


def _draw_scenes(rng: np.random.Generator, count: int) -> Tensor:
    return render([random_scene(rng) for _ in range(count)])
