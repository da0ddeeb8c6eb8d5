"""From verdicts to numbers: scores with intervals, agreement of judges, AUC and calibration of verifiers.

Everywhere P pools come with their prompts, one each; a prompt may have several pools of N images. GenEval's score is
the plain mean of six tags' accuracies (paper: section 3.1). ValueError wherever shapes do not fit, a number is not
finite, or a verdict is neither yes nor no. Verdicts come from geneval.py. Read next: pools.py.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cotgen_lite.inputs import numbers, verdicts, whole
from cotgen_lite.prompts import TAGS, Prompt, each_prompt

Floats = npt.NDArray[np.float64]
MOST_SAMPLES, MOST_BINS = 100_000, 1000
FEWEST = 10  # right images of a tag, and wrong ones, for its AUC to count in a mean


@dataclass(frozen=True)
class Score:
    """A GenEval score: accuracy of each tag, their plain mean, and its 95% interval over prompts."""

    tags: dict[str, float]
    overall: float
    ci: tuple[float, float]


def score(prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0) -> Score:
    """The GenEval score of P pools, with its interval.

    correct: (P,) share of each pool's images that are right, in 0..1; samples, seed: of the bootstrap. Errors as in
    `accuracy_by_tag`.
    """
    by_tag = accuracy_by_tag(prompts, correct)
    return Score(by_tag, float(np.mean(list(by_tag.values()))), bootstrap_interval(prompts, correct, samples, seed))


def accuracy_by_tag(prompts: Sequence[Prompt], correct: npt.ArrayLike) -> dict[str, float]:
    """Mean correctness of each tag that occurs, in GenEval's order; the overall score is their plain mean.

    correct: (P,) share of each pool's images that are right, in 0..1. ValueError if lengths differ, there is no prompt
    or a value is outside 0..1.
    """
    return tag_means(prompts, numbers(correct, "correct (shares of right images)", 0, 1))


def tag_means(prompts: Sequence[Prompt], values: npt.ArrayLike) -> dict[str, float]:
    """Mean over each tag's pools of any numbers, such as differences; arguments and errors as `accuracy_by_tag`."""
    clusters = _clusters(prompts, values)
    return {tag: float(sums.sum() / sizes.sum()) for tag, (sums, sizes) in clusters.items()}


def bootstrap_interval(
    prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the overall score, prompts resampled within each tag; arguments as in `score`."""
    overall = bootstrap_tags(prompts, correct, samples, seed).mean(axis=1)
    low, high = np.percentile(overall, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(
    prompts: Sequence[Prompt], a: npt.ArrayLike, b: npt.ArrayLike, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of overall(a) − overall(b), two methods' shares of right images (P,) on the same prompts."""
    return bootstrap_interval(prompts, _difference(a, b), samples, seed)


def bootstrap_tags(prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0) -> Floats:
    """Accuracy of each tag in resampled sets of prompts, for intervals of any contrast between tags.

    Whole prompts are drawn, with all their pools, since pools of one prompt are not independent; each tag
    keeps its number of prompts. The same seed draws the same prompts, so two methods' draws are paired.
    correct: (P,) shares of right images, or differences of shares. Returns (samples, tags), tags in GenEval's order.
    """
    samples, rng = whole(samples, "samples", 1, MOST_SAMPLES), np.random.default_rng(whole(seed, "seed", 0))
    columns = []
    for sums, sizes in _clusters(prompts, correct).values():
        times_drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=samples)
        columns.append(times_drawn @ sums / (times_drawn @ sizes))
    return np.stack(columns, axis=1)


def detectable_difference(prompts: Sequence[Prompt], a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Smallest true difference in overall score that this set of prompts would detect.

    (1.96 + 0.84) standard errors of the paired difference: found in 80% of repetitions by a two-sided test at
    5%. The standard error is that of a mean of tags, each with independent prompts. a, b: as in `paired_interval`.
    ValueError if lengths differ, or a tag has one prompt only.
    """
    variances = []
    for tag, (sums, sizes) in _clusters(prompts, _difference(a, b)).items():
        n = len(sums)
        if n < 2:
            raise ValueError(f"The tag {tag!r} has one prompt: two or more are needed to see how prompts vary.")
        residuals = sums - sizes * (sums.sum() / sizes.sum())
        variances.append(n / (n - 1) * (residuals**2).sum() / sizes.sum() ** 2)
    return float((1.96 + 0.84) * np.sqrt(np.sum(variances)) / len(variances))


def expected_best_of(scores: npt.ArrayLike, correct: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
    """How often best-of-n is right if its n candidates are any n of the pool's N: exact, for each prompt.

    The candidate ranked r-th by score is the best of C(N-r, n-1) of the C(N, n) subsets; equal scores share the mean of
    their places. scores: (P, N), higher is better; correct: (P, N), verdicts or any shares in 0..1; n: 1 to N. Returns
    (P,) in 0..1. ValueError for an n that the pool does not hold.
    """
    score, right = numbers(scores, "scores"), numbers(correct, "correct", 0, 1)
    if score.shape != right.shape or score.ndim != 2 or not score.shape[1]:
        raise ValueError(f"Scores {score.shape} and verdicts {right.shape} must both be (prompts, candidates).")
    size = score.shape[1]
    n = whole(n, f"n, of {size} candidates a prompt,", 1, size)
    weights = _weights_of_ranks(size, n)
    order = np.argsort(-score, axis=1, kind="stable")
    score, right = np.take_along_axis(score, order, 1), np.take_along_axis(right, order, 1)
    expected = np.array([weights @ _mean_of_ties(s, r) for s, r in zip(score, right, strict=True)])
    return expected.clip(0, 1)  # the weights add up to 1 but for rounding


def _weights_of_ranks(size: int, n: int) -> Floats:
    """How likely the candidate of each rank is the best of n out of `size`: each weight from the one before it."""
    weights = np.zeros(size)
    weights[0] = n / size
    for rank in range(1, size - n + 1):
        weights[rank] = weights[rank - 1] * ((size - rank - n + 1) / (size - rank))
    return weights


def _mean_of_ties(score: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, group = np.unique(-score, return_inverse=True)
    return (np.bincount(group, right) / np.bincount(group))[group]


def cohens_kappa(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Agreement of two judges beyond chance: 1 if they always agree (two constant ones included), 0 by chance.

    a, b: (B,) their verdicts, bool. ValueError if lengths differ or there are no verdicts.
    """
    from sklearn.metrics import cohen_kappa_score  # takes a second to import

    x, y = verdicts(a, "a", ("B",)), verdicts(b, "b", ("B",))
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"Verdicts have shapes {x.shape} and {y.shape}: pass two equally long, non-empty lists.")
    return 1.0 if (x == y).all() else float(cohen_kappa_score(x, y))


def roc_auc(log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """How often a right image scores above a wrong one, ties counting half; nan if there are not both kinds.

    log_odds: a verifier's scores, of any shape; correct: the verdicts, of the same shape. As scikit-learn's
    roc_auc_score, but thirty times as fast on a few hundred images, of which bootstraps ask thousands of times.
    """
    scores, truth = _scored(log_odds, correct)
    scores, truth = scores.ravel(), truth.ravel()
    if truth.all() or not truth.any():
        return float("nan")
    _, rank, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # mean rank of each group of equal scores, from 1
    positives = truth.sum()
    return float((middle[rank][truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum()))


def telling_tags(prompts: Sequence[Prompt], correct: npt.ArrayLike) -> tuple[str, ...]:
    """The tags whose AUC is more than noise: at least `FEWEST` images are right and as many are wrong.

    With k wrong ones, an AUC of chance has a standard error of 0.29 / √k or more: 0.12 with six of them. correct:
    verdicts (P, N).
    """
    tags = np.array([prompt.tag for prompt in each_prompt(prompts)])
    right = verdicts(correct, "correct", (len(tags), "N"))
    return tuple(
        tag for tag in TAGS if min(right[tags == tag].sum(dtype=int), (~right[tags == tag]).sum(dtype=int)) >= FEWEST
    )


def mean_roc_auc(prompts: Sequence[Prompt], log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean over the `telling_tags` of the AUC of each, from scores and verdicts (P, N); nan if there are none."""
    scores, right = _scored(log_odds, correct)
    counted, tags = telling_tags(prompts, right), np.array([prompt.tag for prompt in prompts])
    areas = [roc_auc(scores[tags == tag], right[tags == tag]) for tag in counted]
    return float(np.mean(areas)) if areas else float("nan")


def roc_auc_within_prompts(log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean AUC of the rows that have both verdicts, all that a choice among a prompt's candidates depends on.

    log_odds, correct: scores and verdicts (P, N). nan if no row has both.
    """
    scores, truth = _scored(log_odds, correct)
    rows = zip(scores, verdicts(truth, "correct", ("P", "N")), strict=True)
    areas = [roc_auc(odds, right) for odds, right in rows if right.any() and not right.all()]
    return float(np.mean(areas)) if areas else float("nan")


def calibration(
    log_odds: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """What a verifier believes, and how often it is right, in bins of P(yes) of equal width; empty bins are left out.

    log_odds, correct: scores and verdicts, of any one shape. Returns of each bin mean P(yes), share of right images,
    and number of images.
    """
    scores, truth = _scored(log_odds, correct)
    scores, truth = scores.ravel(), truth.ravel()
    if not scores.size:
        raise ValueError("Calibration needs at least one score with its verdict, got none.")
    bins = whole(bins, "bins", 1, MOST_BINS)
    with np.errstate(over="ignore"):  # of log-odds below −709, where P(yes) is 0
        belief = 1 / (1 + np.exp(-scores))
    count, believed, right = (np.histogram(belief, bins, (0, 1), weights=w)[0] for w in (None, belief, truth * 1.0))
    filled = count > 0
    return believed[filled] / count[filled], right[filled] / count[filled], count[filled]


def calibration_error(log_odds: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean distance of belief and share of right images, arguments as in `calibration`."""
    mean, share, count = calibration(log_odds, correct, bins)
    return float(np.abs(mean - share) @ count / count.sum())


def _difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    x, y = numbers(a, "a"), numbers(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"Methods have results of shapes {x.shape} and {y.shape}: pair them pool by pool.")
    return x - y


def _scored(log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Scores and as many verdicts."""
    scores = numbers(log_odds, "scores")
    return scores, verdicts(correct, "verdicts", scores.shape)


def _clusters(prompts: Sequence[Prompt], results: npt.ArrayLike) -> dict[str, tuple[Floats, Floats]]:
    """Per tag, the sum of values and the number of pools of each different prompt."""
    prompts, values = each_prompt(prompts), numbers(results, "results")
    if values.shape != (len(prompts),) or not len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts came with results of shape {values.shape}: "
            "pass one number for each prompt, and at least one."
        )
    groups: dict[str, dict[Hashable, list[float]]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt.tag, {}).setdefault(prompt.text, []).append(float(value))
    of_tags = {tag: groups[tag].values() for tag in TAGS if tag in groups}
    return {tag: (np.array([sum(v) for v in of]), np.array([float(len(v)) for v in of])) for tag, of in of_tags.items()}
