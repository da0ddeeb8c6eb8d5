"""Reward margins say which image of a pair a generator has come to prefer."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from cotgen_lite.align.dpo import Pair, draw_masks, log_probability, reward_margins
from cotgen_lite.generate.showo import text_prefix
from cotgen_lite.prompts import encode_text


def test_margins_are_what_changed_for_the_chosen_minus_the_rejected(toy_generator: Any) -> None:
    prefix = text_prefix(toy_generator.model.config, encode_text(toy_generator.text_tokenizer, "a photo of a red cat"))
    codes = torch.randint(1024, (3, 2, 64), generator=torch.Generator().manual_seed(0)).short()
    pairs = [Pair(prefix, right, wrong) for right, wrong in codes]
    policy = replace(toy_generator, model=copy.deepcopy(toy_generator.model))
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    found = reward_margins(policy, toy_generator, pairs, beta=0.5, masks=3, seed=4)
    same = draw_masks(3, 64, 3, "sum", torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = [
            sign * log_probability(one.model, one.model.config, [prefix] * 3, codes[:, side].long(), same)
            for side, one, sign in ((0, policy, 1), (0, toy_generator, -1), (1, policy, -1), (1, toy_generator, 1))
        ]
    torch.testing.assert_close(found, 0.5 * sum(wanted), atol=1e-3, rtol=1e-4)
    swapped = [Pair(prefix, pair.rejected, pair.chosen) for pair in pairs]
    torch.testing.assert_close(reward_margins(policy, toy_generator, swapped, 0.5, 3, 4), -found)
    assert not reward_margins(toy_generator, toy_generator, pairs).any()
    with pytest.raises(ValueError, match="at least one pair"):
        reward_margins(policy, toy_generator, [])
