"""The lite world: scenes satisfy their prompts, captions are wrong as often as they say."""

import numpy as np
import pytest

from cotgen_lite import prompts as p
from cotgen_lite.lite.world import (
    CaptionNoise,
    Scene,
    icon_box,
    icon_mask,
    noisy_pair,
    random_scene,
    render,
    scene_for,
    world,
)

PERFECT = CaptionNoise(object_missing=0, relation_ignored=0, colors_swapped=0, color_wrong=0, count_off=0)


def overlaps(scene: Scene) -> bool:
    pairs = [(a, b) for i, a in enumerate(scene) for b in scene[:i]]
    return any(abs(a.x - b.x) < world().object_size and abs(a.y - b.y) < world().object_size for a, b in pairs)


def shows(prompt: p.Prompt, scene: Scene) -> bool:
    """A plain reading of the prompt, for scenes without overlaps."""
    for item in prompt.include:
        found = [o for o in scene if o.name == item.name]
        if len(found) != item.count or (item.color and any(o.color != item.color for o in found)):
            return False
        if item.position:
            other = next(o for o in scene if o.name == prompt.include[item.position[1]].name)
            dx, dy = found[0].x - other.x, found[0].y - other.y
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[item.position[0]]
            if along < world().object_size:
                return False
    return len(scene) == sum(item.count for item in prompt.include)


def test_icons_are_distinct_and_fit_their_cell() -> None:
    masks = np.stack([icon_mask(name) for name in world().objects])
    assert masks.shape == (16, world().object_size, world().object_size)
    flat = masks.reshape(16, -1)
    agreement = np.corrcoef(flat) - np.eye(16)
    assert agreement.max() < 0.8
    for name in world().objects:
        x0, y0, x1, y1 = icon_box(name)
        assert 0 <= x0 < x1 <= world().object_size and 0 <= y0 < y1 <= world().object_size
        assert (x1 - x0) * (y1 - y0) > 200


def test_colors_stay_apart() -> None:
    values = np.array([*world().palette.values(), world().background], dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e9 * np.eye(len(values))
    assert distances.min() > 60


def test_render_paints_where_the_scene_says() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(50)]
    images = render(scenes).numpy()
    for image, scene in zip(images, scenes, strict=True):
        assert not overlaps(scene)
        painted = (image != np.array(world().background, dtype=np.uint8)[:, None, None]).any(0)
        for item in scene:
            cell = (slice(item.y, item.y + world().object_size), slice(item.x, item.x + world().object_size))
            full = icon_mask(item.name) == 1
            assert (np.array(world().palette[item.color]) == image[(slice(None), *cell)][:, full].T).all()
            painted[cell] = False
        assert not painted.any()


def test_scenes_satisfy_their_prompts() -> None:
    rng = np.random.default_rng(1)
    for prompt in p.lite_prompts("test"):
        scene = scene_for(prompt, rng)
        assert shows(prompt, scene) and not overlaps(scene)


def test_same_seed_same_scene() -> None:
    one, two = (random_scene(np.random.default_rng(7)) for _ in range(2))
    assert one == two


def test_captions_without_noise_are_true_and_never_held_out() -> None:
    rng = np.random.default_rng(2)
    held_out = {p.meaning(prompt) for prompt in p.lite_prompts("dev") + p.lite_prompts("test")}
    for _ in range(500):
        caption, scene = noisy_pair(rng, PERFECT)
        assert shows(caption, scene)
        assert p.meaning(caption) not in held_out


@pytest.mark.parametrize(
    ("tag", "noise", "low", "high"),
    [
        (
            "colors",
            CaptionNoise(0, 0, 0, 0.5, 0),
            0.5,
            0.62,
        ),  # a wrong colour is drawn, so one in eight is right again
        ("counting", CaptionNoise(0, 0, 0, 0, 0.4), 0.54, 0.66),
        ("color_attr", CaptionNoise(0, 0, 0.3, 0, 0), 0.64, 0.76),
        ("two_object", CaptionNoise(0.4, 0, 0, 0, 0), 0.55, 0.67),
        (
            "position",
            CaptionNoise(0, 1, 0, 0, 0),
            0.2,
            0.42,
        ),  # anywhere: about a third of layouts fit by chance
    ],
)
def test_noise_is_as_frequent_as_it_says(tag: str, noise: CaptionNoise, low: float, high: float) -> None:
    rng = np.random.default_rng(3)
    pairs = [pair for pair in (noisy_pair(rng, noise) for _ in range(4000)) if pair[0].tag == tag]
    true = np.mean([shows(caption, scene) for caption, scene in pairs])
    assert low < true < high
