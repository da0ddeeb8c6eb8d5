"""Measurements: AUC by brute force, findings decided by their interval, pools drawn shard by shard."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cotgen_lite.generator import Generator
from cotgen_lite.geneval import area_under_curve
from cotgen_lite.pools import pool_prompts
from cotgen_lite.prompts import lite_prompts
from cotgen_lite.results import decide, draw_pool, read_rows, score_rows, steps_profile, write_rows


def test_area_under_curve_equals_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(s > t) + 0.5 * (s == t) for s in scores[truth] for t in scores[~truth]]
    assert area_under_curve(scores, truth) == pytest.approx(np.mean(pairs))
    assert area_under_curve([0.1, 0.9], [False, True]) == 1
    assert np.isnan(area_under_curve([0.1, 0.9], [True, True]))


def test_decide_needs_the_interval_on_one_side() -> None:
    prompts = lite_prompts("dev")
    rng = np.random.default_rng(1)
    base = rng.random(len(prompts)) * 0.5
    assert decide("", prompts, base + 0.3, base, "")["seen"] == "yes"
    assert decide("", prompts, base, base + 0.3, "")["seen"] == "no"
    assert decide("", prompts, base, rng.permutation(base), "")["seen"] == "undecided"
    assert decide("", prompts, base + 0.3, base, "")["delta"] == pytest.approx(0.3, abs=1e-3)


def test_score_rows_of_the_largest_n_follow_the_scores() -> None:
    prompts = pool_prompts("dev")[:20] + pool_prompts("dev")[-20:]
    rng = np.random.default_rng(2)
    correct = rng.random((40, 5)) < 0.4
    rows = score_rows("oracle", prompts, correct, {"learned": correct}, (1, 5), {"seed": 0}, {"seconds": 0.1})
    by_tag = {tag: [] for tag in {prompt.tag for prompt in prompts}}
    for prompt, row in zip(prompts, correct, strict=True):
        by_tag[prompt.tag].append(row.any())
    assert rows[1]["tags"] == {tag: pytest.approx(np.mean(hits), abs=1e-4) for tag, hits in by_tag.items()}
    assert rows[1]["cost"] == {"seconds": 0.5} and rows[1]["images"] == 200
    assert rows[0]["overall"] < rows[1]["overall"]


def test_steps_profile() -> None:
    guesses = torch.tensor([[[1, 2], [1, 3], [4, 3]]])
    np.testing.assert_allclose(steps_profile(guesses), [0.0, 0.5, 1.0])


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = [{"method": "baseline", "n": 1}, {"method": "oracle", "n": 20}]
    write_rows(tmp_path / "scores.jsonl", rows)
    assert read_rows(tmp_path / "scores.jsonl") == rows


def test_pool_is_the_same_after_an_interrupt(tmp_path: Path, toy_generator) -> None:
    prompts = pool_prompts("test")[:12]
    tokens, committed_at, cost = draw_pool(toy_generator, prompts, 2, 0, tmp_path / "whole")
    assert tokens.shape == (12, 2, toy_generator.settings.steps, 64) and committed_at.max() < 18
    assert cost["generator_passes"] > 0
    draw_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    for shard in sorted((tmp_path / "parted").glob("*/shard-*"))[1:]:
        shard.unlink()
    again, _, _ = draw_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    assert torch.equal(again, tokens)
    # four pools of one prompt hold four different sets of candidates
    pools = {tuple(tokens[i, 0, -1].tolist()) for i in range(4)}
    assert prompts[0] == prompts[3] and len(pools) == 4


def test_shards_of_other_weights_are_not_reused(tmp_path: Path, toy_generator: Generator) -> None:
    prompts = pool_prompts("test")[:1]
    draw_pool(toy_generator, prompts, 2, 0, tmp_path)
    other = replace(toy_generator, settings=replace(toy_generator.settings, guidance_scale=0.0))
    draw_pool(other, prompts, 2, 0, tmp_path)
    with torch.no_grad():
        next(toy_generator.model.parameters()).mul_(1 + 1e-4)
    draw_pool(toy_generator, prompts, 2, 0, tmp_path)
    assert len(list(tmp_path.glob("*/shard-000.safetensors"))) == 3
