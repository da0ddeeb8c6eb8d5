"""The scene that a wrong image should have been: what is right in it stays, what is wrong is mended.

The paper corrects an image towards another image of its prompt, chosen by preference (section 5). In the lite world two
images of a prompt share little, and a reason says nothing about the other one; a mended scene is what the reasons ask
for.
"""

from collections.abc import Sequence

import numpy as np

from cotgen_lite.geneval import Detection
from cotgen_lite.prompts import COLORS, Prompt, Requirement
from cotgen_lite.scenes import (
    IMAGE_SIZE,
    LATTICE,
    OBJECT_SIZE,
    Scene,
    SceneObject,
    _apart,
    _clearly,
    _layouts,
    icon_box,
    scene_for,
)

TRIES = 200  # of which the one that changes least is taken
FAITH = 0.3  # least confidence of a detection, GenEval's
STAYS, RECOLORED, MOVED, NEW = 0, 1, 2, 3  # what it costs to have an object otherwise than it is


def mend(prompt: Prompt, detections: Sequence[Detection], rng: np.random.Generator) -> Scene:
    """A scene that shows what the prompt asks for and nothing else, and changes what was seen as little as tries allow.

    detections: what is in the image that misses the prompt. An object may stay, change its colour, take the place of
    another one, and its colour where that is free, move, or be new; one whose place is taken is gone, colour and all,
    and so is what the prompt does not name.
    """
    seen = [_as_object(detection) for detection in detections if detection.score > FAITH]
    items = [item for item in prompt.include for _ in range(item.count)]
    relation = next((item.position for item in prompt.include if item.position), None)
    best, least = None, np.inf
    for _ in range(TRIES):
        scene = _try(items, seen, rng)
        if scene is None or (relation and not _clearly(relation[0], scene[1 - relation[1]], scene[relation[1]])):
            continue
        change = sum(_change(item, seen) for item in scene)
        if change < least:
            best, least = scene, change
    return best or scene_for(prompt, rng)


def _as_object(detection: Detection) -> SceneObject:
    """A detection as an icon in the nearest cell of the lattice."""
    x0, y0, *_ = icon_box(detection.name)
    last = IMAGE_SIZE - OBJECT_SIZE
    x, y = (
        int(np.clip(round((corner - inset) / LATTICE) * LATTICE, 0, last))
        for corner, inset in zip(detection.box[:2], (x0, y0), strict=True)
    )
    return SceneObject(detection.name, detection.color or "unknown", x, y)


def _try(items: Sequence[Requirement], seen: Sequence[SceneObject], rng: np.random.Generator) -> Scene | None:
    """Every item where an object of its class was, or another one, or anywhere; None if two of them overlap."""
    left = [seen[i] for i in rng.permutation(len(seen))]
    scene: list[SceneObject] = []
    for item in items:
        own = next((one for one in left if one.name == item.name), None)
        there = own if own and rng.random() < 0.7 else left[0] if left and rng.random() < 0.5 else None
        options = _layouts()
        x, y = (there.x, there.y) if there else options[rng.integers(len(options))]
        like = own or there
        color = item.color or (like.color if like and like.color in COLORS else COLORS[rng.integers(len(COLORS))])
        for used in (own, there):
            if used in left:
                left.remove(used)
        if any(not _apart((x, y), (other.x, other.y)) for other in scene):
            return None
        scene.append(SceneObject(item.name, color, x, y))
    return tuple(scene)


def _change(item: SceneObject, seen: Sequence[SceneObject]) -> int:
    if item in seen:
        return STAYS
    if any((one.name, one.x, one.y) == (item.name, item.x, item.y) for one in seen):
        return RECOLORED
    if any(one.name == item.name or (one.x, one.y) == (item.x, item.y) for one in seen):
        return MOVED
    return NEW
