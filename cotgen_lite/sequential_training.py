"""Pre-training of the lite next-token generator, on the same noisy captions and pictures as the masked one."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cotgen_lite.checkpoints import publish
from cotgen_lite.generator_training import BATCH_SIZE, CaptionedTokens, make_captioned_tokens
from cotgen_lite.recipes import Recipe
from cotgen_lite.scenes import CaptionNoise
from cotgen_lite.sequential import Sequential, lite_sequential_config, next_token_loss
from cotgen_lite.tokenizer import Magvit
from cotgen_lite.training import TrainingLog, thinned, train
from cotgen_lite.vocabulary import lite_tokenizer


def train_sequential(
    model: Sequential, data: CaptionedTokens, steps: int, work_dir: Path, seed: int, learning_rate: float = 2e-3
) -> TrainingLog:
    """Train in place to predict each code from caption and codes before it, resumable from `work_dir`."""

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(data.text_ids), (BATCH_SIZE,), generator=generator)
        texts = [data.text_ids[i] for i in chosen.tolist()]
        return next_token_loss(model, texts, data.tokens[chosen].long(), generator)

    return train(model, loss_at, steps, learning_rate, work_dir, "next-token generator", about=data.about)


def build_sequential(out: Path, work: Path, recipe: Recipe) -> None:
    """The next-token generator, on noisy captions."""
    words, pixels, noise = lite_tokenizer(), Magvit.from_pretrained(out / "models/tokenizer"), CaptionNoise()
    data = make_captioned_tokens(recipe.pictures, pixels, words, noise, seed=0)
    torch.manual_seed(0)
    model = Sequential(lite_sequential_config(len(words), words.pad_token_id))
    log = train_sequential(model, data, recipe.sequential_steps, work, seed=0)
    settings = {"steps": log.steps, "pictures": recipe.pictures, "seed": 0, "noise": asdict(noise)}
    publish(model, out / "models/sequential", settings | {"losses": thinned(log.losses)}, log.seconds)
