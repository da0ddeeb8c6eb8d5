"""Pre-training of the lite generators: noisy captions beside pictures as tokens, learned by filling in or going on.

The paper starts from a generator that has learned from pairs of the web (section 2); ours learns from scenes whose
captions are as often wrong (`world.py`). The masked generator and the next-token one learn from the same pairs.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from cotgen_lite.generate.autoregressive import AutoregressiveModel, next_token_loss
from cotgen_lite.generate.showo import CaptionedTokens, Showo, masked_loss, text_prefix
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.inputs import of_kind, whole
from cotgen_lite.lite.world import CaptionNoise, noisy_pair, render
from cotgen_lite.prompts import encode_text
from cotgen_lite.training import LARGEST_SEED, MOST_STEPS, TrainingLog, stack_tokens, train

BATCH_SIZE = 64


def make_captioned_tokens(
    count: int, image_tokenizer: Magvit, text_tokenizer: PreTrainedTokenizerBase, noise: CaptionNoise, seed: int
) -> CaptionedTokens:
    """Draw `count` noisy pairs and encode their pictures; the same seed gives the same set."""
    count, seed = whole(count, "count", 1, MOST_STEPS), whole(seed, "seed", 0, LARGEST_SEED)
    of_kind(image_tokenizer, "image_tokenizer", Magvit, "a Magvit")
    of_kind(text_tokenizer, "text_tokenizer", PreTrainedTokenizerBase, "a tokenizer of transformers")
    of_kind(noise, "noise", CaptionNoise, "a CaptionNoise")
    rng = np.random.default_rng(seed)
    text_ids, tokens = [], []
    for start in tqdm(range(0, count, 256), desc="captioned pictures"):
        pairs = [noisy_pair(rng, noise) for _ in range(min(256, count - start))]
        text_ids += [encode_text(text_tokenizer, caption.text) for caption, _ in pairs]
        tokens.append(image_tokenizer.encode(render([scene for _, scene in pairs])).to(torch.int16))
    return CaptionedTokens(text_ids, torch.cat(tokens), {"pictures": count, "data_seed": seed, **asdict(noise)})


def train_generator(
    model: Showo | AutoregressiveModel, data: CaptionedTokens, steps: int, work_dir: Path, seed: int, rate: float = 2e-3
) -> TrainingLog:
    """Train in place, resumable from `work_dir`, in batches of 64: a `Showo` to fill in masked tokens (Show-o's loss),
    an `AutoregressiveModel` to predict each token from the caption and the tokens before it. ValueError as in `train`,
    or for data that the model does not fit."""
    of_kind(model, "model", (Showo, AutoregressiveModel), "a Showo or an AutoregressiveModel")
    if not len(of_kind(data, "data", CaptionedTokens, "CaptionedTokens").text_ids) == len(data.tokens) > 0:
        raise ValueError(
            f"data must hold one caption an image, got {len(data.text_ids)} captions for {len(data.tokens)} images."
        )
    stack_tokens(list(data.tokens), model.config.num_image_tokens, model.config.codebook_size)
    seed = whole(seed, "seed", 0, LARGEST_SEED)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(data.text_ids), (BATCH_SIZE,), generator=generator)
        texts, tokens = [data.text_ids[i] for i in chosen.tolist()], data.tokens[chosen].long()
        if isinstance(model, Showo):
            return masked_loss(model, [text_prefix(model.config, text) for text in texts], tokens, generator)
        return next_token_loss(model, texts, tokens, generator)

    label = "generator" if isinstance(model, Showo) else "next-token generator"
    return train(model, loss_at, steps, rate, work_dir, label, about={"data": data, "seed": seed, "batch": BATCH_SIZE})
