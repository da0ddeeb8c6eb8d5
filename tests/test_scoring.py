"""Scores, intervals, AUC and calibration against closed forms and brute force."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cotgen_lite.metrics import (
    accuracy_by_tag,
    bootstrap_interval,
    bootstrap_tags,
    calibration,
    calibration_error,
    cohens_kappa,
    detectable_difference,
    mean_roc_auc,
    paired_interval,
    roc_auc,
    roc_auc_within_prompts,
    score,
    telling_tags,
)
from cotgen_lite.prompts import TAGS, Prompt, Requirement, lite_prompts


def make_pools(per_tag, pools=1):
    """`per_tag` prompts of each tag with `pools` pools each."""
    made = []
    for tag, n in per_tag.items():
        made += [Prompt(f"{tag} {i}", tag, (Requirement("cat"),)) for i in range(n) for _ in range(pools)]
    return made


def test_tag_accuracy_is_the_mean_over_pools_and_overall_the_mean_over_tags():
    pools = make_pools({"colors": 2, "single_object": 1}) + make_pools({"counting": 1}, pools=4)
    result = score(pools, [0.5, 1.0, 1.0, 0, 0, 0, 1], samples=50)
    assert result.tags == {"single_object": 1.0, "counting": 0.25, "colors": 0.75}
    assert list(result.tags) == ["single_object", "counting", "colors"]  # GenEval's order
    assert result.overall == pytest.approx((1 + 0.25 + 0.75) / 3)
    assert result.ci[0] <= result.overall <= result.ci[1]


def test_bootstrap_matches_the_closed_form():
    rng = np.random.default_rng(0)
    pools = make_pools(dict.fromkeys(TAGS, 40))
    values = rng.random(len(pools))
    tags = bootstrap_tags(pools, values, samples=20000)
    means = np.array(list(accuracy_by_tag(pools, values).values()))
    deviations = values.reshape(6, 40).std(axis=1) / math.sqrt(40)  # s.e. of a resampled mean
    np.testing.assert_allclose(tags.mean(axis=0), means, atol=0.002)
    np.testing.assert_allclose(tags.std(axis=0), deviations, rtol=0.03)
    assert abs(np.corrcoef(tags.T) - np.eye(6)).max() < 0.03  # tags are drawn independently
    low, high = bootstrap_interval(pools, values, samples=20000)
    half = 1.96 * np.sqrt((deviations**2).sum()) / 6
    assert low == pytest.approx(means.mean() - half, abs=0.003)
    assert high == pytest.approx(means.mean() + half, abs=0.003)


def test_bootstrap_draws_prompts_not_pools():
    pools = make_pools({"counting": 30}, pools=4)
    values = np.repeat(np.arange(30) % 2, 4).astype(float)  # the four pools of a prompt agree entirely
    assert bootstrap_tags(pools, values, samples=5000).std() == pytest.approx(0.5 / math.sqrt(30), rel=0.05)
    shuffled = np.random.default_rng(0).permutation(len(pools))  # pools of a prompt need not stand together
    moved = bootstrap_tags([pools[i] for i in shuffled], values[shuffled], samples=5000)
    assert moved.std() == pytest.approx(0.5 / math.sqrt(30), rel=0.05)


def test_bootstrap_keeps_every_tag_and_repeats_with_its_seed():
    pools = make_pools({"single_object": 1, "colors": 200})
    values = np.array([1.0, *[0.0] * 200])
    assert bootstrap_interval(pools, values) == (0.5, 0.5)
    noise = np.random.default_rng(1).random(201)
    assert bootstrap_interval(pools, noise, seed=3) == bootstrap_interval(pools, noise, seed=3)
    assert bootstrap_interval(pools, noise, seed=3) != bootstrap_interval(pools, noise, seed=4)


def test_paired_interval_uses_the_pairing():
    rng = np.random.default_rng(0)
    pools = make_pools(dict.fromkeys(TAGS, 30))
    base = rng.random(len(pools)) * 0.9
    low, high = paired_interval(pools, base + 0.1, base)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)  # prompts differ, the difference does not
    one, other = paired_interval(pools, base, rng.permutation(base))
    assert other - one > 0.05
    draws = bootstrap_tags(pools, base + 0.1) - bootstrap_tags(pools, base)  # same seed, same prompts
    np.testing.assert_allclose(draws, 0.1)


def test_detectable_difference_is_what_eight_of_ten_repetitions_detect():
    rng = np.random.default_rng(0)
    pools = make_pools(dict.fromkeys(TAGS, 50))
    noise = rng.normal(0, 0.3, len(pools))
    step = detectable_difference(pools, noise, np.zeros(len(pools)))
    errors = noise.reshape(6, 50).std(axis=1, ddof=1) / math.sqrt(50)
    assert step == pytest.approx(2.8 * math.sqrt((errors**2).sum()) / 6)
    standard_error = step / 2.8
    estimates = rng.normal(step, standard_error, 20000)
    assert np.mean(np.abs(estimates) > 1.96 * standard_error) == pytest.approx(0.8, abs=0.01)


def test_detectable_difference_gains_from_prompts_not_from_repeated_pools():
    noise = np.random.default_rng(0).normal(0, 0.3, 40)
    once = detectable_difference(make_pools({"counting": 40}), noise, np.zeros(40))
    repeated = detectable_difference(make_pools({"counting": 40}, pools=4), np.repeat(noise, 4), np.zeros(160))
    assert repeated == pytest.approx(once)
    with pytest.raises(ValueError, match="two or more"):
        detectable_difference(make_pools({"counting": 1}), [0.5], [0.0])


def test_kappa():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed .7, expected .5 · .6 + .5 · .4 = .5, so κ = .4
    a = [True] * 25 + [False] * 25
    b = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohens_kappa(a, b) == pytest.approx(0.4)
    assert cohens_kappa(a, a) == 1 and cohens_kappa(a, np.logical_not(a)) == -1
    assert cohens_kappa([True, True], [True, True]) == 1
    with pytest.raises(ValueError, match="equally long"):
        cohens_kappa([True], [True, False])


def test_errors_say_what_to_do():
    pools = make_pools({"colors": 2})
    with pytest.raises(ValueError, match="one number for each prompt"):
        accuracy_by_tag(pools, [1.0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        accuracy_by_tag(pools, [1.0, 20.0])
    with pytest.raises(ValueError, match="pool by pool"):
        paired_interval(pools, [1.0, 1.0], [1.0])


def test_roc_auc_equals_all_pairs_and_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(s > t) + 0.5 * (s == t) for s in scores[truth] for t in scores[~truth]]
    assert roc_auc(scores, truth) == pytest.approx(np.mean(pairs)) == pytest.approx(roc_auc_score(truth, scores))
    assert roc_auc([0.1, 0.9], [False, True]) == 1
    assert np.isnan(roc_auc([0.1, 0.9], [True, True]))


def test_roc_auc_within_prompts_ignores_how_rows_differ() -> None:
    odds = np.array([[0.0, 1.0, 2.0], [10.0, 12.0, 11.0], [5.0, 6.0, 7.0]])
    right = np.array([[0, 0, 1], [1, 0, 0], [1, 1, 1]], dtype=bool)
    assert roc_auc_within_prompts(odds, right) == pytest.approx((1.0 + 0.0) / 2)  # the third row has one verdict only
    assert roc_auc_within_prompts(odds + np.array([[0], [100], [-50]]), right) == roc_auc_within_prompts(odds, right)
    assert np.isnan(roc_auc_within_prompts(odds[2:], right[2:]))


def test_calibration_by_hand() -> None:
    odds = np.log(np.array([0.1, 0.2, 0.7, 0.9, 0.9]) / np.array([0.9, 0.8, 0.3, 0.1, 0.1]))
    belief, share, count = calibration(odds, [0, 1, 1, 1, 0], bins=2)
    np.testing.assert_allclose(belief, [0.15, 2.5 / 3])
    np.testing.assert_allclose(share, [0.5, 2 / 3])
    assert count.tolist() == [2, 3]
    assert calibration_error(odds, [0, 1, 1, 1, 0], bins=2) == pytest.approx((2 * 0.35 + 3 * (2.5 / 3 - 2 / 3)) / 5)
    assert calibration([100.0], [1], bins=4)[2].tolist() == [1]  # P(yes) = 1 is in the last bin


def test_mean_roc_auc_counts_tags_with_enough_of_both_verdicts_only() -> None:
    prompts = lite_prompts("dev")
    chosen = [next(prompt for prompt in prompts if prompt.tag == tag) for tag in ("counting", "position", "colors")]
    right = np.arange(21) < 10  # ten right ones and eleven wrong ones: just enough
    few = np.arange(21) < 9
    truth = np.stack([right, ~right, few])
    odds = np.stack([right * 1.0, right * 1.0, few * 1.0])  # perfect, the wrong way round, perfect but not counted
    assert telling_tags(chosen, truth) == ("counting", "position")
    assert mean_roc_auc(chosen, odds, truth) == pytest.approx((1.0 + 0.0) / 2)
    assert telling_tags(chosen, ~truth) == ("counting", "position")
    assert np.isnan(mean_roc_auc(chosen[2:], odds[2:], truth[2:]))
