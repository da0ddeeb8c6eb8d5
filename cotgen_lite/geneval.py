"""GenEval: from detected objects to a verdict on one image, and from verdicts to scores with intervals.

Part one is the benchmark's rule engine (GenEval, arXiv 2310.11513). It sees detections only, so it serves any
detector: the lite judges of `judges.py` or GenEval's own Mask2Former with CLIP for colours. Part two averages
verdicts over the six tags and says how far the average can be trusted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cotgen_lite.prompts import TAGS, Prompt, Requirement

Box = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]

POSITION_MARGIN = 0.1  # share of both objects' sizes that an offset has to exceed before it counts
POSITION_COMPONENT = 0.5  # what a component of the shrunk unit offset has to exceed


@dataclass(frozen=True)
class Detection:
    """One detected object: class, confidence in 0..1, box (x0, y0, x1, y1) in px, colour if it was read."""

    name: str
    score: float
    box: Box
    color: str | None = None


@dataclass(frozen=True)
class Finding:
    """One requirement of a prompt that an image breaks, in parts from which a sentence can be made.

    kind        expected                found
    "missing"   objects asked for       0
    "count"     objects asked for       fewer, but not none
    "color"     the colour asked for    the colours seen, the likeliest detection's first
    "position"  the relation asked for  the relations seen (none: too close to tell, or no valid reference)
    "extra"     most objects allowed    more than that
    """

    kind: Literal["missing", "count", "color", "position", "extra"]
    name: str
    expected: int | str
    found: int | tuple[str, ...]
    reference: str | None = None  # "position" only: the object the relation is to


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows its prompt and, where it does not, every requirement that it breaks."""

    correct: bool
    reasons: tuple[Finding, ...] = ()


class Detector(Protocol):
    """Anything that finds objects: `detect` maps uint8 images (B, 3, H, W) to B lists of detections."""

    def detect(self, images: torch.Tensor) -> list[list[Detection]]: ...


def evaluate(
    prompt: Prompt,
    detections: Sequence[Detection],
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    max_per_class: int = 16,
) -> Verdict:
    """Hold one image's detections against a prompt by GenEval's rules.

    Detections at or below the threshold are ignored (counting prompts use the higher one), and so are all but
    the `max_per_class` likeliest of a class; overlapping boxes are all kept. Every `include` requirement must
    hold on the likeliest `count` detections of its class: enough of them, all in the colour, each in the
    relation to each detection that met the reference requirement. No `exclude` requirement may be reached.

    Args:
        prompt: what the image should show.
        detections: the objects of one image, in any order.
        threshold: confidence to exceed, for all tags but counting.
        counting_threshold: confidence to exceed for the counting tag.
        max_per_class: most detections kept of a class.

    Returns:
        The verdict; `reasons` is empty if and only if it is correct.

    Raises:
        ValueError: if a position refers to a requirement that does not stand before it.
    """
    limit = counting_threshold if prompt.tag == "counting" else threshold
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        of_class = objects.setdefault(detection.name, [])
        if detection.score > limit and len(of_class) < max_per_class:
            of_class.append(detection)

    reasons: list[Finding] = []
    matched: list[list[Detection] | None] = []  # per requirement, its detections, or None where it is broken
    for required in prompt.include:
        found = objects.get(required.name, [])[: required.count]
        broken = _check(required, found, matched, prompt)
        if broken is not None:
            reasons.append(broken)
        matched.append(found if broken is None else None)
    for excluded in prompt.exclude:
        number = len(objects.get(excluded.name, []))
        if number >= excluded.count:
            reasons.append(Finding("extra", excluded.name, excluded.count - 1, number))
    return Verdict(not reasons, tuple(reasons))


def _check(
    required: Requirement, found: list[Detection], matched: list[list[Detection] | None], prompt: Prompt
) -> Finding | None:
    """What is wrong with the detections chosen for one requirement, or None."""
    name = required.name
    if len(found) < required.count:
        return Finding("count" if found else "missing", name, required.count, len(found))
    if required.color is not None and any(d.color != required.color for d in found):
        return Finding("color", name, required.color, tuple(d.color or "unknown" for d in found))
    if required.position is not None:
        relation, index = required.position
        if not 0 <= index < len(matched):
            raise ValueError(
                f"In {prompt.text!r} the position of {name!r} refers to requirement {index}, but it can only "
                f"refer to one of the {len(matched)} before it: put the reference object first in `include`."
            )
        reference = prompt.include[index].name
        targets = matched[index]
        if targets is None:
            return Finding("position", name, relation, (), reference)
        for detection in found:
            for target in targets:
                seen = relations(detection.box, target.box)
                if relation not in seen:
                    return Finding("position", name, relation, seen, reference)
    return None


def relations(box: Box, reference: Box) -> tuple[str, ...]:
    """Where a box lies relative to a reference: none, one or two of left of, right of, above, below.

    The offset of the centres, shrunk on each axis by 0.1 · (size + reference's size) but never past zero, is
    divided by the length of the offset *before* shrinking; a relation holds where its component exceeds 0.5.
    y grows downward.

    Args:
        box: (x0, y0, x1, y1) in px.
        reference: (x0, y0, x1, y1) in px.
    """
    a, b = np.asarray(box, float).reshape(2, 2), np.asarray(reference, float).reshape(2, 2)
    offset = a.mean(0) - b.mean(0)
    margin = POSITION_MARGIN * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    if np.all(np.abs(shrunk) < 1e-3):
        return ()
    x, y = shrunk / np.linalg.norm(offset)
    holds = {"left of": -x, "right of": x, "above": -y, "below": y}
    return tuple(relation for relation, component in holds.items() if component > POSITION_COMPONENT)


def judge(detector: Detector, images: torch.Tensor, prompts: Sequence[Prompt]) -> npt.NDArray[np.bool_]:
    """Whether each image shows its prompt, by a detector and GenEval's rules.

    Args:
        detector: finds the objects.
        images: uint8 (B, 3, H, W).
        prompts: B prompts, one an image.

    Returns:
        bool (B,).

    Raises:
        ValueError: if there are not as many prompts as images.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images came with {len(prompts)} prompts: pass one prompt for each image.")
    found = detector.detect(images)
    return np.array([evaluate(p, d).correct for p, d in zip(prompts, found, strict=True)], dtype=bool)


@dataclass(frozen=True)
class Score:
    """A GenEval score: accuracy of each tag, their plain mean, and its 95% interval over prompts."""

    tags: dict[str, float]
    overall: float
    ci: tuple[float, float]


def score(prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0) -> Score:
    """The GenEval score of a set of pools, with its interval.

    Args:
        prompts: the prompt of each pool, P of them; a prompt may have several pools.
        correct: (P,) share of each pool's images that are correct, in 0..1.
        samples: bootstrap draws.
        seed: of the bootstrap.
    """
    by_tag = accuracy_by_tag(prompts, correct)
    return Score(by_tag, float(np.mean(list(by_tag.values()))), bootstrap_interval(prompts, correct, samples, seed))


def accuracy_by_tag(prompts: Sequence[Prompt], correct: npt.ArrayLike) -> dict[str, float]:
    """Mean correctness of each tag that occurs, in GenEval's order; the overall score is their plain mean.

    Args:
        prompts: the prompt of each pool, P of them.
        correct: (P,) share of each pool's images that are correct, in 0..1.

    Raises:
        ValueError: if lengths differ, there is no prompt, a tag is unknown or a value is outside 0..1.
    """
    values = np.asarray(correct, dtype=float)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"Correctness runs from {values.min():g} to {values.max():g}: pass shares of correct images, from 0 to 1."
        )
    return {tag: float(sums.sum() / sizes.sum()) for tag, (sums, sizes) in _clusters(prompts, values).items()}


def bootstrap_interval(
    prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the overall score, prompts resampled within each tag.

    Args:
        prompts: the prompt of each pool, P of them.
        correct: (P,) share of each pool's images that are correct.
        samples: bootstrap draws.
        seed: of the bootstrap.
    """
    overall = bootstrap_tags(prompts, correct, samples, seed).mean(axis=1)
    low, high = np.percentile(overall, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(
    prompts: Sequence[Prompt], a: npt.ArrayLike, b: npt.ArrayLike, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of overall(a) − overall(b), both measured on the same prompts in the same order.

    Args:
        prompts: the prompt of each pool, P of them.
        a: (P,) share of correct images of one method.
        b: (P,) share of correct images of the other.
        samples: bootstrap draws.
        seed: of the bootstrap.
    """
    return bootstrap_interval(prompts, _difference(a, b), samples, seed)


def bootstrap_tags(prompts: Sequence[Prompt], correct: npt.ArrayLike, samples: int = 2000, seed: int = 0) -> Floats:
    """Accuracy of each tag in resampled sets of prompts, for intervals of any contrast between tags.

    Whole prompts are drawn, with all their pools, since pools of one prompt are not independent; each tag
    keeps its number of prompts. The same seed draws the same prompts, so two methods' draws are paired.

    Args:
        prompts: the prompt of each pool, P of them.
        correct: (P,) share of each pool's images that are correct, or differences of such shares.
        samples: draws.
        seed: of the draws.

    Returns:
        (samples, tags), tags in GenEval's order as in `accuracy_by_tag`.
    """
    rng = np.random.default_rng(seed)
    columns = []
    for sums, sizes in _clusters(prompts, np.asarray(correct, dtype=float)).values():
        times_drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=samples)
        columns.append(times_drawn @ sums / (times_drawn @ sizes))
    return np.stack(columns, axis=1)


def detectable_difference(prompts: Sequence[Prompt], a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Smallest true difference in overall score that this set of prompts would detect.

    (1.96 + 0.84) standard errors of the paired difference: found in 80% of repetitions by a two-sided test at
    5%. The standard error is that of a mean of tags, each with independent prompts.

    Args:
        prompts: the prompt of each pool, P of them; two different ones or more in each tag.
        a: (P,) share of correct images of one method.
        b: (P,) share of correct images of the other.

    Raises:
        ValueError: if lengths differ, a tag is unknown or a tag has one prompt only.
    """
    variances = []
    for tag, (sums, sizes) in _clusters(prompts, _difference(a, b)).items():
        n = len(sums)
        if n < 2:
            raise ValueError(f"The tag {tag!r} has one prompt: two or more are needed to see how prompts vary.")
        residuals = sums - sizes * (sums.sum() / sizes.sum())
        variances.append(n / (n - 1) * (residuals**2).sum() / sizes.sum() ** 2)
    return float((1.96 + 0.84) * np.sqrt(np.sum(variances)) / len(variances))


def cohens_kappa(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Agreement of two judges beyond chance: (observed − expected) / (1 − expected).

    Args:
        a: (B,) verdicts of one judge, bool.
        b: (B,) verdicts of the other.

    Returns:
        1 for full agreement (two constant and equal judges included), 0 for chance.

    Raises:
        ValueError: if lengths differ or there are no verdicts.
    """
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"Verdicts have shapes {x.shape} and {y.shape}: pass two equally long, non-empty lists.")
    observed = np.mean(x == y)
    expected = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    return 1.0 if expected == 1 else float((observed - expected) / (1 - expected))


def area_under_curve(log_odds: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """How often a right image scores above a wrong one, ties counting half; nan if there are not both kinds.

    Args:
        log_odds: a verifier's scores, of any shape.
        correct: the verdicts, of the same shape.
    """
    scores, truth = np.asarray(log_odds, dtype=float).ravel(), np.asarray(correct, dtype=bool).ravel()
    if truth.all() or not truth.any():
        return float("nan")
    _, rank, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # mean rank of each group of equal scores, from 1
    positives = truth.sum()
    return float((middle[rank][truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum()))


def _difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"Methods have results of shapes {x.shape} and {y.shape}: pair them pool by pool.")
    return x - y


def _clusters(prompts: Sequence[Prompt], values: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Per tag, the sum of values and the number of pools of each different prompt."""
    if values.shape != (len(prompts),) or not len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts came with results of shape {values.shape}: "
            "pass one number for each prompt, and at least one."
        )
    unknown = sorted({p.tag for p in prompts} - set(TAGS))
    if unknown:
        raise ValueError(f"Unknown tag {unknown[0]!r}: GenEval's tags are {', '.join(TAGS)}.")
    groups: dict[str, dict[Hashable, list[float]]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt.tag, {}).setdefault(prompt.text, []).append(float(value))
    return {
        tag: (
            np.array([sum(v) for v in groups[tag].values()]),
            np.array([float(len(v)) for v in groups[tag].values()]),
        )
        for tag in TAGS
        if tag in groups
    }
