"""Pre-training of the lite generators: noisy captions beside pictures as tokens, learned by filling in or going on.

The paper starts from a generator that has learned from pairs of the web (section 2); ours learns from scenes whose
captions are as often wrong (`world.py`). First it learns from right captions, mostly of two things: who is where and
whose colour is whose is learned late, and from noisy captions alone it was not learned at all. Then noisy ones teach it
to do as it pleases most of the time. The masked generator and the next-token one learn from the same kind of pairs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from cotgen_lite.lite.world import CaptionNoise, noisy_pair, render, world
from cotgen_lite.prompts import TAGS, encode_text
from cotgen_lite.training import LARGEST_SEED, MOST_STEPS, TrainingLog, stack_tokens, train


@dataclass(frozen=True)
class Stage:
    """One of the runs that a generator learns in, one after the other.

    noisy: whether captions are as noisy as the world's, or all right. tags: how often captions are of each. muon_rate:
    of weight matrices (None: AdamW's), learning_rate: of all else, both at their peak. mask_power: as in `draw_mask`.
    batch: images a step, of so many pictures.
    """

    steps: int
    noisy: bool
    tags: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TAGS, 1.0))
    muon_rate: float | None = 0.02
    learning_rate: float = 3e-3
    mask_power: float = 1.0
    batch: int = 32
    pictures: int = 30_000
    seed: int = 0

    @property
    def noise(self) -> CaptionNoise:
        """How often its captions are wrong."""
        return world().caption_noise if self.noisy else CaptionNoise()


def make_captioned_tokens(
    count: int,
    image_tokenizer: Magvit,
    text_tokenizer: PreTrainedTokenizerBase,
    noise: CaptionNoise,
    seed: int,
    tags: Mapping[str, float] | None = None,
) -> CaptionedTokens:
    """Draw `count` noisy pairs and encode their pictures; the same seed gives the same set.

    tags: as in `noisy_pair`.
    """
    count, seed = whole(count, "count", 1, MOST_STEPS), whole(seed, "seed", 0, LARGEST_SEED)
    of_kind(image_tokenizer, "image_tokenizer", Magvit, "a Magvit")
    of_kind(text_tokenizer, "text_tokenizer", PreTrainedTokenizerBase, "a tokenizer of transformers")
    of_kind(noise, "noise", CaptionNoise, "a CaptionNoise")
    rng = np.random.default_rng(seed)
    text_ids, tokens = [], []
    for start in tqdm(range(0, count, 256), desc="captioned pictures"):
        pairs = [noisy_pair(rng, noise, tags) for _ in range(min(256, count - start))]
        text_ids += [encode_text(text_tokenizer, caption.text) for caption, _ in pairs]
        tokens.append(image_tokenizer.encode(render([scene for _, scene in pairs])).to(torch.int16))
    return CaptionedTokens(text_ids, torch.cat(tokens), {"pictures": count, "data_seed": seed, **asdict(noise)})


def train_generator(
    model: Showo | AutoregressiveModel, data: CaptionedTokens, stage: Stage, work_dir: Path
) -> TrainingLog:
    """Train in place, resumable from `work_dir`: a `Showo` to fill in masked tokens (Show-o's loss),
    an `AutoregressiveModel` to predict each token from the caption and the tokens before it. ValueError as in `train`,
    or for data that the model does not fit."""
    of_kind(model, "model", (Showo, AutoregressiveModel), "a Showo or an AutoregressiveModel")
    of_kind(stage, "stage", Stage, "a Stage")
    if not len(of_kind(data, "data", CaptionedTokens, "CaptionedTokens").text_ids) == len(data.tokens) > 0:
        raise ValueError(
            f"data must hold one caption an image, got {len(data.text_ids)} captions for {len(data.tokens)} images."
        )
    stack_tokens(list(data.tokens), model.config.num_image_tokens, model.config.codebook_size)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(stage.seed * 1_000_003 + step)
        chosen = torch.randint(len(data.text_ids), (stage.batch,), generator=generator)
        texts, tokens = [data.text_ids[i] for i in chosen.tolist()], data.tokens[chosen].long()
        if isinstance(model, Showo):
            prefixes = [text_prefix(model.config, text) for text in texts]
            return masked_loss(model, prefixes, tokens, generator, mask_power=stage.mask_power)
        return next_token_loss(model, texts, tokens, generator)

    label = "generator" if isinstance(model, Showo) else "next-token generator"
    about = {"data": data, "stage": asdict(stage)}
    rate, warmup = stage.learning_rate, min(0.1, 100 / max(1, stage.steps))
    return train(
        model, loss_at, stage.steps, rate, work_dir, label, warmup=warmup, about=about, muon_rate=stage.muon_rate
    )
