"""The decisions of chapters 02 and 03, on data whose answer is known."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from cotgen_lite.experiments import findings
from cotgen_lite.experiments.findings import decide_f2, decide_f3, decide_f4, difference
from cotgen_lite.experiments.measure import load_steps_of_pool, save_steps_of_pool
from cotgen_lite.experiments.measure_verifiers import (
    compare_areas,
    label_noise,
    likeness,
    run_prm_search,
    tuning_gains_early,
)
from cotgen_lite.experiments.measuring import time_search
from cotgen_lite.experiments.results import SIZES
from cotgen_lite.generate.pipeline import GeneratedPool
from cotgen_lite.metrics import expected_best_of, roc_auc, score
from cotgen_lite.pools import Pool, pool_prompts
from cotgen_lite.prompts import TAGS, lite_prompts, parse_prompt
from cotgen_lite.verify.search import Cost, SearchResult, prm_search
from cotgen_lite.verify.verifier import load_verifier

PROMPTS = pool_prompts("dev")
N = 20


def verdicts_and_scores(sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts (P, N), half of them right, and scores that know them up to noise."""
    rng = np.random.default_rng(seed)
    right = rng.random((len(PROMPTS), N)) < 0.5
    return right, sharpness * right + rng.normal(size=right.shape)


def test_a_sharper_verifier_is_seen_and_an_equal_one_is_not():
    right, blunt = verdicts_and_scores(0.3)
    _, sharp = verdicts_and_scores(2.0)
    chance = right[:, 0].astype(float)
    gain = decide_f2(PROMPTS, blunt, sharp, right)
    assert gain["seen"] == "yes" and "yes" in gain["note"]
    assert decide_f2(PROMPTS, blunt, blunt, right)["seen"] == "undecided"
    assert decide_f2(PROMPTS, sharp, blunt, right)["seen"] == "no"
    best, base = expected_best_of(sharp, right, N), right.mean(1)
    assert decide_f3(PROMPTS, chance, best, base)["seen"] == "yes"  # step by step gained nothing, the ORM a lot
    assert decide_f3(PROMPTS, np.ones(len(PROMPTS)), best, base)["seen"] == "no"  # more than half as much


def test_steepness_is_the_slope_of_the_gain_on_log_n():
    right, blunt = verdicts_and_scores(0.3)
    _, sharp = verdicts_and_scores(2.0)
    curves = [[expected_best_of(odds, right, n) for n in SIZES] for odds in (sharp, blunt)]
    overall = np.array([[score(PROMPTS, pools).overall for pools in curve] for curve in curves])
    slope = np.polyfit(np.log(SIZES), overall[0] - overall[1], 1)[0]
    assert f"slope of accuracy on log n: {slope:+.4f} " in decide_f2(PROMPTS, blunt, sharp, right)["note"]


@pytest.mark.parametrize(
    ("gain", "steeper", "seen"),
    [("yes", "yes", "yes"), ("yes", "no", "no"), ("no", "yes", "no"), ("yes", "undecided", "undecided")],
)
def test_f2_needs_both_its_parts(monkeypatch, gain, steeper, seen):
    answers = iter([gain, steeper])
    monkeypatch.setattr(findings, "decide", lambda *_, **__: {"seen": next(answers), "delta": 0.1, "ci": [0.0, 0.2]})
    right, odds = verdicts_and_scores(1.0)
    assert decide_f2(PROMPTS, odds, odds, right)["seen"] == seen


@pytest.mark.parametrize(
    ("sharpness", "settled_from", "seen"),
    [((0.0, 2.0), 10, "yes"), ((2.0, 2.0), 10, "no"), ((0.0, 2.0), 17, "no"), ((0.2, 0.0), 10, "no")],
)
def test_f4_needs_a_blurry_start_a_clear_end_and_settled_tokens(sharpness, settled_from, seen):
    rng = np.random.default_rng(3)
    right = rng.random((40, N)) < 0.5
    early, late = (s * right + rng.normal(size=right.shape) for s in sharpness)
    odds = np.stack([early] * 8 + [late] * 10, axis=2)
    guesses = torch.randint(0, 1024, (40, N, 18, 16), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    guesses[:, :, settled_from:] = guesses[:, :, -1:]
    assert decide_f4(odds, right, guesses)["seen"] == seen


def test_f4_notes_what_is_left_when_prompts_do_not_tell():
    rng = np.random.default_rng(0)
    hard = np.arange(40) % 2 == 0
    right = rng.random((40, N)) < np.where(hard, 0.2, 0.8)[:, None]
    odds = np.repeat(np.where(hard, -1.0, 1.0)[:, None, None], N, axis=1).repeat(18, axis=2)  # knows prompts only
    note = decide_f4(odds, right, torch.zeros((40, N, 18, 16), dtype=torch.int16))["note"]
    assert "AUC at step 4 0.7" in note or "AUC at step 4 0.8" in note
    assert (
        "within prompts, AUC at step 4 0.500 [0.500, 0.500]; within prompts, gain from there to step 14 0.000" in note
    )


@pytest.mark.parametrize("learned", ["prompts", "pictures"])
def test_what_a_prm_learned_is_of_prompts_or_of_pictures(learned):
    rng = np.random.default_rng(0)
    hard = np.arange(40) % 2 == 0
    right = rng.random((40, N)) < np.where(hard, 0.3, 0.7)[:, None]
    before = rng.normal(size=(40, N, 4))
    hint = np.repeat(~hard[:, None], N, axis=1) if learned == "prompts" else right
    after = before + 3.0 * hint[:, :, None] * (np.arange(4) < 2)  # the late half does not count
    found = tuning_gains_early(before, after, right)
    assert found["all_images"]["ci"][0] > 0.1
    low, high = found["within_prompts"]["ci"]
    assert (low == high == 0.0) if learned == "prompts" else low > 0.3
    assert low <= found["within_prompts"]["delta"] <= high


def test_a_search_is_timed_on_one_prompt_of_each_tag():
    asked = []

    def search(prompt: str, seed: int) -> SearchResult:
        asked.append(prompt)
        cost = Cost(1, 1, 1, generator_seconds=float(len(asked)), verifier_seconds=0.5)
        return SearchResult(prompt, torch.empty(0), torch.empty(0), 0, cost)

    assert time_search(PROMPTS, search) == 4.0  # the mean of 1 to 6, and a half
    assert [parse_prompt(text).tag for text in asked] == list(TAGS)


def test_a_search_gains_over_the_mean_of_its_pool():
    pool = np.zeros((len(PROMPTS), N), dtype=bool)
    pool[:, :5] = True
    assert difference(PROMPTS, 1 - pool.mean(1)) == {"delta": 0.75, "ci": [0.75, 0.75]}


def test_areas_are_compared_tag_by_tag():
    right, blunt = verdicts_and_scores(0.5)
    _, sharp = verdicts_and_scores(1.5)
    found = compare_areas(PROMPTS, sharp, blunt, right)
    tags = np.array([prompt.tag for prompt in PROMPTS])
    rows = tags == "position"
    assert found["by_tag"]["position"]["fine_tuned"] == pytest.approx(roc_auc(sharp[rows], right[rows]), abs=1e-4)
    tagwise = [area["fine_tuned"] - area["zero_shot"] for area in found["by_tag"].values()]
    assert found["mean"] == found["mean_of_all_tags"]
    assert found["pooled"]["fine_tuned"] == pytest.approx(roc_auc(sharp, right), abs=1e-4)
    assert found["mean"]["delta"] == pytest.approx(np.mean(tagwise), abs=2e-4)
    assert found["mean"]["ci"][0] < found["mean"]["delta"] < found["mean"]["ci"][1] and found["mean"]["ci"][0] > 0
    same = compare_areas(PROMPTS, blunt, blunt, right)
    assert same["mean"]["delta"] == 0 and same["mean"]["ci"] == [0, 0]


def test_a_tag_of_few_wrong_images_is_reported_but_not_counted():
    right, sharp = verdicts_and_scores(1.5)
    tags = np.array([prompt.tag for prompt in PROMPTS])
    single = np.flatnonzero(tags == "single_object")
    right[single], right[single[0], :9] = True, False
    blunt = sharp.copy()
    blunt[single] *= -1
    found = compare_areas(PROMPTS, sharp, blunt, right)
    assert found["by_tag"]["single_object"]["wrong"] == 9 and "single_object" not in found["tags"]
    assert found["mean"]["delta"] == 0 and found["mean_of_all_tags"]["delta"] != 0


def test_intervals_of_areas_resample_prompts_and_not_pools():
    right, blunt = verdicts_and_scores(0.5)
    _, sharp = verdicts_and_scores(1.5)
    once = compare_areas(PROMPTS, sharp, blunt, right)["mean"]
    twice = [np.repeat(values, 2, axis=0) for values in (sharp, blunt, right)]
    doubled = [prompt for prompt in PROMPTS for _ in range(2)]
    assert compare_areas(doubled, *twice)["mean"] == once


def test_likeness_is_the_mean_over_pairs(toy_generator):
    tokens = torch.randint(0, 1024, (2, 3, 4, 64), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    tokens[:, 2, 1:] = tokens[:, 2, :1]  # at the last step all draws are one
    found = likeness(toy_generator, tokens)
    equal, distance = [], []
    for path in tokens:
        images = toy_generator.decode(path[1]).float()
        for a, b in combinations(range(4), 2):
            equal.append((path[1, a] == path[1, b]).double().mean())
            distance.append((images[a] - images[b]).abs().mean())
    assert found["tokens_equal_among_draws"][1] == pytest.approx(float(np.mean(equal)), abs=1e-4)
    assert found["pixel_distance_among_draws"][1] == pytest.approx(float(np.mean(distance)), abs=0.01)
    assert found["tokens_equal_among_draws"][2] == 1 and found["pixel_distance_among_draws"][2] == 0


def test_label_noise_compares_few_rollouts_with_many():
    prompts = lite_prompts("train")[:2]
    tokens = torch.zeros(2, 3, 64, dtype=torch.int16)
    many = np.zeros((2, 3, 8), dtype=bool)
    many[0, 0, 0] = True  # seen by the first two rollouts, not by the next two
    many[1, 0, 7] = True  # seen by the last of eight only
    many[:, 2] = True
    few = Pool(prompts, tokens, {}, {"rollouts": many[:, :, :2]})
    found = label_noise(few, Pool(prompts, tokens, {}, {"rollouts": many}))
    assert found["yes_by_step"] == [0.5, 0, 1]
    assert found["rollouts_right_by_step"] == [0.25, 0, 1]
    assert found["few_agree_with_many_by_step"] == [0.5, 1, 1]
    assert found["few_agree_with_other_few_by_step"] == [0.5, 1, 1]
    assert found["rollouts"] == [2, 8] and found["paths"] == [2, 2]


def test_a_prompt_that_is_listed_again_is_searched_anew(tmp_path, toy_generator):
    prompts, verifier = pool_prompts("dev")[:2], load_verifier()
    assert prompts[0] == prompts[1]
    run, cost = run_prm_search(toy_generator, verifier, prompts, 2, 1, tmp_path)
    assert not torch.equal(run["guesses"][0], run["guesses"][1])
    alone = prm_search(toy_generator, verifier, prompts[1].text, 2, 1)
    assert torch.equal(run["tokens"][1], alone.path[-1])
    assert cost["verifier_passes"] == 2 * toy_generator.settings.steps and cost["tokens"] == alone.cost.tokens > 0


def test_steps_of_a_pool_come_back_as_they_were(tmp_path: Path) -> None:
    prompts = [lite_prompts("train")[0]] * 2
    guesses = torch.randint(0, 1024, (2, 3, 4, 64), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    committed_at = torch.zeros(2, 3, 64, dtype=torch.uint8)
    drawn = GeneratedPool(guesses, committed_at, None)
    save_steps_of_pool(tmp_path / "steps.safetensors", prompts, drawn)
    back, rows = load_steps_of_pool(tmp_path / "steps.safetensors")
    assert rows == [0] and torch.equal(back, guesses[:1])  # of a prompt that occurs twice, its first pool
