"""Scores, intervals, AUC and calibration against closed forms and brute force."""

import math
from collections.abc import Callable
from typing import Any

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
    tag_means,
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


def test_tags_are_means_over_pools_not_over_prompts() -> None:
    pools = [*make_pools({"colors": 1}, pools=3), *make_pools({"colors": 2})[1:]]  # three pools of one, one of another
    assert tag_means(pools, [1, 1, 1, 0]) == {"colors": 0.75}
    assert tag_means(pools, [-3, 0, 0, 0]) == {"colors": -0.75}
    assert set(bootstrap_tags(pools, [1, 1, 1, 0], samples=50)[:, 0]) == {0, 0.75, 1}
    assert detectable_difference(pools, [1, 1, 1, 0], [0, 0, 0, 0]) == pytest.approx(
        2.8 * math.sqrt(2 * 2 * 0.75**2) / 4
    )


@pytest.mark.parametrize("prompts", [2, 3])
def test_bootstrap_draws_as_many_prompts_as_there_are(prompts: int) -> None:
    drawn = bootstrap_tags(make_pools({"colors": prompts}), [1.0] + [0.0] * (prompts - 1), samples=500)
    assert drawn.shape == (500, 1)
    assert sorted(set(drawn[:, 0])) == pytest.approx([k / prompts for k in range(prompts + 1)])
    assert np.mean(drawn == 0) == pytest.approx((1 - 1 / prompts) ** prompts, abs=0.07)


def test_the_interval_is_of_95_percent_and_of_as_many_samples_as_asked_for() -> None:
    pools, values = make_pools({"colors": 50, "counting": 50}), np.random.default_rng(0).random(100)
    drawn = bootstrap_tags(pools, values, samples=321, seed=5).mean(axis=1)
    expected = tuple(np.percentile(drawn, [2.5, 97.5]))
    assert bootstrap_interval(pools, values, 321, 5) == expected == score(pools, values, 321, 5).ci
    assert paired_interval(pools, values, values * 0, 321, 5) == expected
    assert score(pools, values).ci == bootstrap_interval(pools, values, 2000, 0)


NAN = [0.5, math.nan]
TWO = make_pools({"colors": 2})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: score(TWO, NAN), "1 of 2 are NaN"),
        (lambda: score(TWO, [0.5, -0.1]), "from 0 to 1"),
        (lambda: score(TWO, [0.5, "right"]), "must be numbers"),
        (lambda: score(TWO, [[0.5], [0.5, 1]]), "must be an array"),
        (lambda: score([], []), "at least one"),
        (lambda: score(None, [0.5]), "list of Prompts"),
        (lambda: score(["a cat", "a dog"], [0.5, 1]), "a Prompt"),
        (lambda: score(TWO[0], [0.5]), "list of Prompts"),
        (lambda: score(TWO, [0.5, 1], samples=0), "samples must be a whole number from 1"),
        (lambda: score(TWO, [0.5, 1], samples=10**9), "from 1 to 100000"),
        (lambda: score(TWO, [0.5, 1], samples=2.5), "samples"),
        (lambda: score(TWO, [0.5, 1], seed=-1), "seed"),
        (lambda: score(TWO, [0.5, 1], seed="one"), "seed"),
        (lambda: accuracy_by_tag(TWO, NAN), "NaN"),
        (lambda: tag_means(TWO, NAN), "NaN"),
        (lambda: tag_means(TWO, [1.0, math.inf]), "infinite"),
        (lambda: bootstrap_interval(TWO, NAN), "NaN"),
        (lambda: bootstrap_tags(TWO, NAN), "NaN"),
        (lambda: paired_interval(TWO, NAN, [1, 1]), "a must be finite"),
        (lambda: paired_interval(TWO, [1, 1], NAN), "b must be finite"),
        (lambda: detectable_difference(TWO, NAN, [1, 1]), "a must be finite"),
        (lambda: roc_auc(NAN, [True, False]), "scores must be finite, but 1 of 2"),
        (lambda: roc_auc([1, 2], [True, math.nan]), "verdicts"),
        (lambda: roc_auc([1, 2], [0, 2]), "verdicts"),
        (lambda: roc_auc([1, 2], ["yes", "no"]), "verdicts"),
        (lambda: roc_auc([1, 2, 3], [True, False]), "shape"),
        (lambda: roc_auc([[1, 2]], [True, False]), "shape"),
        (lambda: roc_auc(None, [True]), "scores must be numbers"),
        (lambda: mean_roc_auc(TWO, [NAN, NAN], [[1, 0], [1, 0]]), "NaN"),
        (lambda: mean_roc_auc(TWO, [[1, 2]], [[1, 0]]), "shape"),
        (lambda: telling_tags(TWO, [[1, 0]]), "shape"),
        (lambda: telling_tags("colors", [[1, 0]]), "list of Prompts"),
        (lambda: roc_auc_within_prompts([NAN], [[1, 0]]), "NaN"),
        (lambda: roc_auc_within_prompts([1, 2], [1, 0]), "shape"),
        (lambda: calibration(NAN, [1, 0]), "NaN"),
        (lambda: calibration([1, 2], [0.5, 0]), "verdicts"),
        (lambda: calibration([1, 2], [1]), "shape"),
        (lambda: calibration([], []), "at least one"),
        (lambda: calibration_error([], []), "at least one"),
        *((lambda bins=bins: calibration([1, 2], [1, 0], bins), "bins") for bins in (0, -1, 10**9, 2.5, "ten", None)),
        (lambda: cohens_kappa([0.5, 1], [1, 0]), "a must be verdicts"),
        (lambda: cohens_kappa([1, 0], ["yes", "no"]), "b must be verdicts"),
        (lambda: cohens_kappa([1, math.nan], [1, 0]), "a must be verdicts"),
        (lambda: cohens_kappa([[1, 0]], [[1, 0]]), "shape"),
        (lambda: cohens_kappa([], []), "verdicts|non-empty"),
    ],
)
def test_numbers_that_are_none_get_one_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


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


def test_calibration_has_as_many_bins_as_asked_for() -> None:
    odds = np.log([0.05 / 0.95, 0.3 / 0.7, 0.45 / 0.55, 0.55 / 0.45, 0.95 / 0.05])
    for bins, counts in ((1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (10, [1, 1, 1, 1, 1]), (5, [1, 1, 2, 1])):
        assert calibration(odds, [1] * 5, bins)[2].tolist() == counts
    assert calibration(odds[3:], [1, 1], 2)[2].tolist() == [2]  # bins part 0..1, not the scores that there are
    edges = np.log(np.linspace(0.05, 0.95, 10) / (1 - np.linspace(0.05, 0.95, 10)))
    assert calibration(edges, [1] * 10)[2].tolist() == [1] * 10
    assert calibration(edges, [1] * 10, 20)[2].size == 10
    assert calibration([-800.0, 800.0], [0, 1])[0].tolist() == [0, 1]  # without a warning


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
