"""GenEval: from detected objects to a verdict on one image.

The benchmark's rule engine (GenEval, arXiv 2310.11513) sees detections only, so it serves any detector: the lite judges
(lite/judges.py) or GenEval's own Mask2Former with CLIP for colours. Read next: metrics.py, which makes scores of
verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cotgen_lite.inputs import number, numbers, of_kind, settle, shaped, shown, text, whole, with_methods
from cotgen_lite.prompts import Prompt, Requirement, each_prompt

Box = tuple[float, float, float, float]

THRESHOLD = 0.3  # confidence that a detection has to exceed, both in float32 as in GenEval
COUNTING_THRESHOLD = 0.9  # the same where objects are counted
POSITION_MARGIN = 0.1  # share of both objects' sizes that an offset has to exceed before it counts
POSITION_COMPONENT = 0.5  # what a component of the shrunk unit offset has to exceed


@dataclass(frozen=True)
class Detection:
    """One detected object: class, confidence in 0..1, box (x0, y0, x1, y1) in px, colour if it was read.

    ValueError for what is none, as a confidence of NaN.
    """

    name: str
    score: float
    box: Box
    color: str | None = None

    def __post_init__(self) -> None:
        settle(self, name=text(self.name, "The class of a detection"))
        settle(self, score=number(self.score, f"The confidence of a {self.name}", 0, 1))
        if self.color is not None:
            settle(self, color=text(self.color, f"The colour of a {self.name}"))
        box = tuple(self.box) if hasattr(self.box, "__iter__") and not isinstance(self.box, str) else ()
        box = tuple(number(edge, f"Each edge of the box of a {self.name}") for edge in box)
        if len(box) != 4:
            raise ValueError(f"A box is (x0, y0, x1, y1) in px, got {shown(self.box)}.")
        settle(self, box=box)


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

    def __str__(self) -> str:
        """In a few words, e.g. "cat: orange, not red"."""
        match self.kind:
            case "missing":
                return f"no {self.name}"
            case "color":
                return f"{self.name}: {', '.join(self.found)}, not {self.expected}"  # type: ignore[arg-type]
            case "position":
                seen = " and ".join(self.found) or "not clearly placed"  # type: ignore[arg-type]
                return f"{self.name}: {seen}, not {self.expected} {self.reference}"
        return f"{self.name}: {self.found}, not {self.expected}"


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows its prompt and, where it does not, every requirement that it breaks."""

    correct: bool
    reasons: tuple[Finding, ...] = ()


class Detector(Protocol):
    """Anything that finds objects: `detect` maps uint8 images (B, 3, H, W) to B lists of detections."""

    def detect(self, images: torch.Tensor) -> list[list[Detection]]: ...


def threshold_of(prompt: Prompt) -> float:
    """The confidence that detections have to exceed for a prompt: it is higher where objects are counted."""
    of_kind(prompt, "prompt", Prompt, "a Prompt (`parse_prompt` makes one)")
    return COUNTING_THRESHOLD if prompt.tag == "counting" else THRESHOLD


def evaluate(prompt: Prompt, detections: Sequence[Detection], max_per_class: int = 16) -> Verdict:
    """Hold one image's detections against what it should show, by GenEval's rules.

    Detections at or below `threshold_of` the prompt are ignored, and so are all but the `max_per_class` likeliest of a
    class; of equally likely ones the last counts first, and overlapping boxes are all kept. Every `include` requirement
    must hold on the likeliest `count` detections of its class: enough of them, all in the colour, each in the relation
    to each detection that met the reference requirement. No `exclude` requirement may be reached. The verdict has
    reasons if and only if it is not correct.
    """
    limit, max_per_class = np.float32(threshold_of(prompt)), whole(max_per_class, "max_per_class", 1)
    if not isinstance(detections, Sequence) or not all(isinstance(one, Detection) for one in detections):
        raise ValueError(f"detections must be a list of one image's Detections, got {shown(detections)}.")
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: np.float32(d.score))[::-1]:  # so the original turns its order
        of_class = objects.setdefault(detection.name, [])
        if np.float32(detection.score) > limit and len(of_class) < max_per_class:
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
    """Where a box (x0, y0, x1, y1) lies relative to a reference: none, one or two of left of, right of, above, below.

    A relation holds where its component (`relation_components`) exceeds 0.5; y grows downward.
    """
    x, y = relation_components(box, reference)
    holds = {"left of": -x, "right of": x, "above": -y, "below": y}
    return tuple(relation for relation, component in holds.items() if component > POSITION_COMPONENT)


def relation_components(box: Box, reference: Box) -> tuple[float, float]:
    """How far a box lies from a reference along x and y, as GenEval measures it; boxes as in `relations`.

    The offset of the centres, shrunk on each axis by 0.1 · (size + reference's size) but never past zero, is
    divided by the length of the offset *before* shrinking. (0, 0) where next to nothing is left of it.
    """
    a, b = (shaped(numbers(one, "A box"), "A box", (4,)).reshape(2, 2) for one in (box, reference))
    offset = a.mean(0) - b.mean(0)
    margin = POSITION_MARGIN * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    if np.all(np.abs(shrunk) < 1e-3):
        return 0.0, 0.0
    x, y = shrunk / np.linalg.norm(offset)
    return float(x), float(y)


def judge(detector: Detector, images: torch.Tensor, prompts: Sequence[Prompt]) -> npt.NDArray[np.bool_]:
    """Whether each image shows its prompt, by a detector and GenEval's rules: bool (B,).

    images: uint8 (B, 3, H, W); prompts: one for each. ValueError if there are not as many prompts as images.
    """
    with_methods(detector, "detector", ["detect"], "a detector, as `load_judge()` gives")
    shaped(of_kind(images, "images", torch.Tensor, "a uint8 tensor (B, 3, H, W)"), "images", ("B", 3, "H", "W"))
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, got {images.dtype}.")
    prompts = each_prompt(prompts)
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images came with {len(prompts)} prompts: pass one prompt for each image.")
    found = detector.detect(images)
    if not isinstance(found, Sequence) or len(found) != len(images):
        raise ValueError(
            f"The detector must give a list of detections for each of {len(images)} images: {shown(found)}."
        )
    return np.array([evaluate(p, d).correct for p, d in zip(prompts, found, strict=True)], dtype=bool)
