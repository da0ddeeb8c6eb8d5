"""Reward margins of pairs under any two generators: what the notebooks look at where `dpo` trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cotgen_lite.align.dpo import Pair, dpo_loss, draw_masks, log_probability
from cotgen_lite.generate.pipeline import Generator


def reward_margins(
    policy: Generator, reference: Generator, pairs: Sequence[Pair], beta: float = 0.1, masks: int = 2, seed: int = 0
) -> Tensor:
    """How far a policy prefers each pair's chosen image, against a reference; positive where it does.

    Estimated under `masks` masks a pair, the same for both images and both models. Returns (B,). ValueError without
    pairs.
    """
    if not pairs:
        raise ValueError("There is nothing to estimate: give at least one pair.")
    same = draw_masks(len(pairs), len(pairs[0].chosen), masks, "sum", torch.Generator().manual_seed(seed))
    prefixes = [pair.prefix for pair in pairs]
    sides = (torch.stack([pair.chosen for pair in pairs]), torch.stack([pair.rejected for pair in pairs]))
    with torch.no_grad():
        new, old = (
            [log_probability(one.model, one.model.config, prefixes, side.long(), same) for side in sides]
            for one in (policy, reference)
        )
    return dpo_loss(new[0], new[1], old[0], old[1], beta)[1]
