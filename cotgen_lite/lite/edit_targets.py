"""The scene that a wrong image should have been: what is right in it stays, what is wrong is edited.

The paper corrects an image towards another image of its prompt, chosen by preference (section 5). In the lite world two
images of a prompt share little, and a reason says nothing about the other one; an edited scene is what the reasons
ask for. What the prompt does not name is gone as well, which no reason asks for.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from cotgen_lite.align.self_correction import Correction
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.geneval import Detection, evaluate, threshold_of
from cotgen_lite.inputs import of_kind, one_of, verdicts, whole, with_methods
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import Scene, SceneObject, clearly, free_places, icon_box, layouts, render, world
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import Prompt, Requirement, refuse_held_out
from cotgen_lite.verify.reasons import write_reasons

Place = tuple[int, int]


def edit_target(prompt: Prompt, detections: Sequence[Detection], rng: np.random.Generator) -> Scene:
    """A scene that shows what the prompt asks for and nothing else, and changes what was seen as little as it can.

    detections: what is in the image that misses the prompt. An object that is asked for stays where it is, in its
    colour unless another one is asked for; what is missing takes place and colour of an object that is not asked for,
    if there is one. For a relation as few as possible move, as short a way as possible. The rest is drawn by `rng`.
    ValueError for a prompt or a detection of what the lite world does not know, or of more than four objects.
    """
    of_kind(rng, "rng", np.random.Generator, "numpy's random Generator")
    limit = threshold_of(prompt)
    for seen in of_kind(detections, "detections", Sequence, "a list of Detections"):
        one_of(
            of_kind(seen, "each of detections", Detection, "a Detection").name, "a detection's name", world().objects
        )
    for item in prompt.include:
        one_of(item.name, "what a prompt asks for", world().objects)
    whole(sum(item.count for item in prompt.include), "the number of objects that a prompt asks for", 1, 4)
    left = [_as_object(detection) for detection in detections if detection.score > limit]
    items, palette = [item for item in prompt.include for _ in range(item.count)], world().colors
    own = [_take(left, item) for item in items]
    like = [one or (left.pop() if left else None) for one in own]
    colors = [
        item.color or (one.color if one and one.color in palette else palette[rng.integers(len(palette))])
        for item, one in zip(items, like, strict=True)
    ]
    were = [(one.x, one.y) if one else None for one in like]
    related = next(((i, *item.position) for i, item in enumerate(prompt.include) if item.position), None)
    places = _move(*related, were, rng) if related else _stay(were, [one is None for one in own], rng)
    return tuple(SceneObject(i.name, color, *place) for i, color, place in zip(items, colors, places, strict=True))


def _as_object(detection: Detection) -> SceneObject:
    """A detection as an icon in the nearest cell of the lattice."""
    x0, y0, *_ = icon_box(detection.name)
    last = world().image_size - world().object_size
    corner = np.array(detection.box[:2]) - (x0, y0)
    x, y = (np.round(corner / world().lattice) * world().lattice).clip(0, last).astype(int).tolist()
    return SceneObject(detection.name, detection.color or "unknown", x, y)


def _take(seen: list[SceneObject], item: Requirement) -> SceneObject | None:
    """Takes an object of the item's class out of those seen, in its colour if there is one."""
    own = sorted((one for one in seen if one.name == item.name), key=lambda one: one.color != item.color)
    if own:
        seen.remove(own[0])
    return own[0] if own else None


def _stay(were: Sequence[Place | None], later: Sequence[bool], rng: np.random.Generator) -> list[Place]:
    """Everything where it was, those marked `later` only where there is still room, and what is left in free places.

    Up to four: any three icons leave room for another one.
    """
    places: dict[int, Place] = {}
    for i in sorted(range(len(were)), key=lambda i: later[i]):
        if (was := were[i]) and was in free_places(places.values()):
            places[i] = was
    for i in range(len(were)):
        if i not in places:
            free = free_places(places.values())
            places[i] = free[rng.integers(len(free))]
    return [places[i] for i in range(len(were))]


def _move(
    item: int, relation: str, reference: int, were: Sequence[Place | None], rng: np.random.Generator
) -> list[Place]:
    """The places nearest to where two objects were in which the relation is clear: best if only one of them moves."""
    pairs = rng.permutation(_related(relation))
    cost = np.zeros(len(pairs))
    for column, number in enumerate((item, reference)):
        if (was := were[number]) is not None:
            way = np.abs(pairs[:, column] - was).sum(axis=1)
            cost += way + 4 * world().image_size * (way > 0)
    found = pairs[int(cost.argmin())].tolist()
    return [tuple(found[number != item]) for number in range(2)]


@cache
def _related(relation: str) -> npt.NDArray[np.int64]:
    """All pairs of places (K, 2, 2), of an item and its reference, that are clearly in the relation."""
    return np.array([pair for pair in product(layouts(), layouts()) if clearly(relation, *pair)])


def corrections(
    generator: Generator, judge: TemplateJudge, pool: Pool, wrong: npt.NDArray[np.bool_], most: int, seed: int
) -> list[Correction]:
    """Lessons from the wrong images of a pool, at most so many of each row, in random order.

    Each has what the judge finds wrong with it, in words, and what it sees, edited (`edit_target`) and drawn, as its
    target. wrong: (P, N), which images are. An image in which the judge finds nothing wrong gives none. ValueError if
    a dev or test prompt is among them.
    """
    of_kind(generator, "generator", Generator, "a Generator")
    with_methods(judge, "judge", ("detect",), "a judge")
    most, seed = whole(most, "most", 1), whole(seed, "seed", 0)
    wrong = verdicts(wrong, "wrong", of_kind(pool, "pool", Pool, "a Pool").tokens.shape[:2])
    refuse_held_out(pool.prompts)
    rng = np.random.default_rng(seed)
    picks = [(row, column) for row, some in enumerate(wrong) for column in rng.permutation(np.flatnonzero(some))[:most]]
    picks, lessons = [picks[i] for i in rng.permutation(len(picks))], []
    for first in tqdm(range(0, len(picks), 64), desc="lessons", disable=len(picks) <= 64):
        rows, columns = map(list, zip(*picks[first : first + 64], strict=True))
        tokens, scenes, reasons = pool.tokens[rows, columns], [], []
        for row, seen in zip(rows, judge.detect(generator.decode(tokens)), strict=True):
            found = evaluate(pool.prompts[row], seen).reasons
            reasons.append(write_reasons(found, rng) if found else "")
            scenes.append(edit_target(pool.prompts[row], seen, rng))
        targets = generator.image_tokenizer.encode(render(scenes)).to("cpu", torch.int16)
        made = map(Correction, [pool.prompts[row] for row in rows], tokens, reasons, targets)
        lessons += [correction for correction in made if correction.reasons]
    return lessons
