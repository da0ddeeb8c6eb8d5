"""Pools drawn shard by shard: the same after an interrupt, and never another model's."""

import copy
from dataclasses import replace
from pathlib import Path

import torch

from cotgen_lite.drawing import draw_pool
from cotgen_lite.generator import Generator
from cotgen_lite.pools import pool_prompts


def test_pool_is_the_same_after_an_interrupt(tmp_path: Path, toy_generator) -> None:
    prompts = pool_prompts("test")[:12]
    tokens, committed_at, cost = draw_pool(toy_generator, prompts, 2, 0, tmp_path / "whole")
    assert tokens.shape == (12, 2, toy_generator.settings.steps, 64) and committed_at.max() < 18
    assert cost["generator_passes"] > 0
    draw_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    shards = sorted((tmp_path / "parted").glob("*/shard-*"))
    for shard in shards[1:]:
        shard.unlink()
    kept = shards[0].stat().st_mtime_ns
    again, _, _ = draw_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    assert torch.equal(again, tokens)
    assert shards[0].stat().st_mtime_ns == kept and shards[-1].exists()
    # four pools of one prompt hold four different sets of candidates
    pools = {tuple(tokens[i, 0, -1].tolist()) for i in range(4)}
    assert prompts[0] == prompts[3] and len(pools) == 4


def test_shards_of_other_weights_are_not_reused(tmp_path: Path, toy_generator: Generator) -> None:
    prompts = pool_prompts("test")[:1]
    draw_pool(toy_generator, prompts, 2, 0, tmp_path)
    other = replace(toy_generator, settings=replace(toy_generator.settings, guidance_scale=0.0))
    draw_pool(other, prompts, 2, 0, tmp_path)
    model = copy.deepcopy(toy_generator.model)
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-4)
    draw_pool(replace(toy_generator, model=model), prompts, 2, 0, tmp_path)
    assert len(list(tmp_path.glob("*/shard-000.safetensors"))) == 3
