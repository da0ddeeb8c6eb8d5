"""Trains a MAGVIT-v2 tokenizer: rebuild the picture through bits of ±1, decidedly, with many different tokens.

Lookup-free quantisation needs three terms beside the reconstruction (Yu et al. 2024, section 3.1): every token
certain (its entropy low), all of them used (the entropy of their mean high), encoder values near ±1
(commitment). No adversarial loss: icons on a plain ground need none. The model itself is in `generate/vq.py`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cotgen_lite.generate.vq import Magvit, to_pixels, tokens_to_bits
from cotgen_lite.inputs import number, of_kind, settle, shaped, whole, with_methods
from cotgen_lite.training import LARGEST_RATE, LARGEST_SEED, MOST_AT_ONCE, MOST_STEPS, TrainingLog, train


@dataclass(frozen=True)
class TokenizerTraining:
    """Length, pace and loss weights of a training run."""

    steps: int
    batch: int = 32
    learning_rate: float = 3e-3  # the peak
    weight_decay: float = 1e-4
    foreground: float = 4.0  # what a pixel on or beside an object counts more than plain ground
    squared: float = 1.0  # L2 beside L1
    diversity: float = 0.02  # entropy of the mean token on objects, to be high
    # Both small while tokens are being found; then large, or a bit near zero flips with whatever stands nearby.
    certainty: float = 0.002  # entropy of each token on objects, to be low
    commitment: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        most = {"steps": (1, MOST_STEPS), "batch": (1, MOST_AT_ONCE), "seed": (0, LARGEST_SEED)}
        for name, value in asdict(self).items():
            checked = whole(value, name, *most[name]) if name in most else number(value, name, 0, LARGEST_RATE)
            settle(self, **{name: checked})


def train_tokenizer(
    model: Magvit, draw: Callable[[np.random.Generator, int], Tensor], config: TokenizerTraining, work: Path
) -> TrainingLog:
    """Trains a tokenizer in place; resuming and errors as in `training.train`, whose checkpoint is in `work`.

    draw(rng, n): n images, uint8 (n, 3, H, W); step s draws with a generator seeded by (seed, s).
    """
    of_kind(model, "model", Magvit, "a Magvit")
    of_kind(config, "config", TokenizerTraining, "a TokenizerTraining")
    with_methods(draw, "draw", ("__call__",), "a function of a random Generator and a number")

    def images_at(step: int) -> Tensor:
        return of_kind(draw(np.random.default_rng((config.seed, step)), config.batch), "images", Tensor, "a tensor")

    def loss_at(step: int) -> Tensor:
        return tokenizer_loss(model, images_at(step).to(model.device), config)

    about = asdict(config) | {"first_images": images_at(0)}  # which stand for what draws them
    rate, decay = config.learning_rate, config.weight_decay
    return train(model, loss_at, config.steps, rate, work, "tokenizer", decay, warmup=0.1, about=about)


def tokenizer_loss(model: Magvit, images: Tensor, config: TokenizerTraining) -> Tensor:
    """The training loss on one batch, uint8 (B, 3, H, W): a scalar with a gradient (Yu et al. 2024, section 3.1).

    Reconstruction is per pixel, in [-1, 1]; certainty and diversity are in nats, commitment is per bit.
    """
    side = of_kind(model, "model", Magvit, "a Magvit").config.image_size
    of_kind(config, "config", TokenizerTraining, "a TokenizerTraining")
    shaped(of_kind(images, "images", Tensor, "a tensor"), "images", ("B", 3, side, side))
    if images.dtype != torch.uint8 or not len(images):
        raise ValueError(f"images must be at least one, of dtype uint8, got {len(images)} of {images.dtype}.")
    pixels = to_pixels(images)
    marked = foreground(pixels)
    weight = 1 + config.foreground * marked
    values = model.encoder(pixels)
    signs = torch.where(values > 0, 1.0, -1.0)
    error = model.decoder(values + (signs - values).detach()) - pixels  # straight through the sign
    l1 = (weight * error.abs()).sum() / (3 * weight.sum())
    l2 = (weight * error**2).sum() / (3 * weight.sum())
    commitment = ((values - signs) ** 2).mean()

    # Plain ground needs few tokens: only patches with something on them are asked to differ.
    share = F.avg_pool2d(marked, model.config.patch_size).flatten()
    vectors = values.permute(0, 2, 3, 1).flatten(0, 2)[share > 0]
    share = share[share > 0] / share.sum().clamp(min=1e-8)
    certainty = (share * token_entropies(vectors)).sum()
    diversity = mean_token_entropy(vectors, share)

    total = l1 + config.squared * l2 + config.commitment * commitment
    return total + config.certainty * certainty - config.diversity * diversity


def foreground(pixels: Tensor) -> Tensor:
    """1 on and within 2 px of objects, where pixels (B, 3, H, W) leave their median colour, else 0: (B, 1, H, W)."""
    shaped(pixels, "pixels", ("B", 3, "H", "W"))
    ground = pixels.flatten(2).median(dim=2).values[:, :, None, None]
    off = ((pixels - ground).abs().amax(1, keepdim=True) > 0.1).float()
    return F.max_pool2d(off, 5, stride=1, padding=2)


def token_entropies(values: Tensor) -> Tensor:
    """How uncertain each token is when its signs are softened to probabilities, in nats (N,): equation 5.

    values: float (N, bits), the encoder's output; a bit is +1 with probability sigmoid(4·value), the softmax over the
    squared distances to ±1.
    """
    shaped(values, "values", ("N", "bits"))
    return F.binary_cross_entropy_with_logits(4 * values, torch.sigmoid(4 * values), reduction="none").sum(1)


def mean_token_entropy(values: Tensor, share: Tensor) -> Tensor:
    """How many different tokens are in use: the entropy of the mean token, over all 2**bits of them, in nats.

    values: (N, bits), as in `token_entropies`. share: (N,), what each counts in the mean. 0 for N = 0. Equation 5.
    """
    bits = whole(shaped(values, "values", ("N", "bits")).shape[1], "bits", 1, 20)
    shaped(share, "share", values.shape[:1])
    codes = tokens_to_bits(torch.arange(2**bits, device=values.device), bits)
    # log p(code) = sum over bits of log σ(±4v) = ½ Σ (log σ(4v) + log σ(-4v)) + 2 code · v
    both = F.logsigmoid(4 * values) + F.logsigmoid(-4 * values)
    log_p = both.sum(1, keepdim=True) / 2 + 2 * values @ codes.T
    mean = (share / share.sum()) @ log_p.exp()
    return -(mean * mean.clamp(min=1e-12).log()).sum()
