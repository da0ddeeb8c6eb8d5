"""The lite world: scenes satisfy their prompts, captions are wrong as often as they say."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cotgen_lite import prompts as p
from cotgen_lite.hub import data_path
from cotgen_lite.lite.world import (
    CaptionNoise,
    Scene,
    SceneObject,
    clearly,
    icon_box,
    icon_mask,
    noisy_pair,
    random_scene,
    render,
    scene_for,
    world,
)

CATS, DOG, LEFT = p.Requirement("cat", 2), p.Requirement("dog"), p.Requirement("cup", position=("left of", 1))
PERFECT = CaptionNoise()


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


def test_captions_without_noise_are_true_and_hold_every_meaning() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(3000):
        caption, scene = noisy_pair(rng, PERFECT)
        assert shows(caption, scene)
        seen.add(p.meaning(caption))
    for tag in ("single_object", "counting", "colors"):  # the few, of which 500 captions of each leave hardly one out
        everything = {p.meaning(prompt) for split in p.SPLITS for prompt in p.lite_prompts(split) if prompt.tag == tag}
        assert len(everything & seen) > 0.95 * len(everything)


def test_captions_are_of_the_tags_that_are_asked_for() -> None:
    rng = np.random.default_rng(2)
    tags = [noisy_pair(rng, PERFECT, {"position": 3, "counting": 1})[0].tag for _ in range(400)]
    assert set(tags) == {"position", "counting"}
    assert 0.68 < np.mean([tag == "position" for tag in tags]) < 0.82


def test_counts_that_are_not_said_leave_a_plain_plural() -> None:
    rng = np.random.default_rng(2)
    pairs = [noisy_pair(rng, CaptionNoise(count_unsaid=0.5), {"counting": 1}) for _ in range(400)]
    plain = [(caption, scene) for caption, scene in pairs if caption.text.split()[3] not in p.COUNTS]
    assert 150 < len(plain) < 250
    assert {len(scene) for _, scene in plain} == {2, 3, 4}
    assert all(caption.text == f"a photo of {p.plural(scene[0].name)}" for caption, scene in plain)


@pytest.mark.parametrize(
    ("tag", "noise", "low", "high"),
    [
        # A wrong colour is drawn, so one in eight is right again.
        ("colors", CaptionNoise(color_wrong=0.5), 0.5, 0.62),
        ("counting", CaptionNoise(count_off=0.4), 0.54, 0.66),
        ("color_attr", CaptionNoise(colors_swapped=0.3), 0.64, 0.76),
        ("color_attr", CaptionNoise(colors_swapped=0.1, colors_ignored=0.4), 0.44, 0.57),
        ("two_object", CaptionNoise(object_missing=0.4), 0.55, 0.67),
        # Anywhere: about a third of layouts fit by chance.
        ("position", CaptionNoise(relation_ignored=1), 0.2, 0.42),
    ],
)
def test_noise_is_as_frequent_as_it_says(tag: str, noise: CaptionNoise, low: float, high: float) -> None:
    rng = np.random.default_rng(3)
    pairs = [pair for pair in (noisy_pair(rng, noise) for _ in range(4000)) if pair[0].tag == tag]
    true = np.mean([shows(caption, scene) for caption, scene in pairs])
    assert low < true < high


def test_missing_world_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    p.world_file.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"world\.json is missing.*COTGEN_DATA"):
        p.world_file()


OTHER_WORLD: dict[str, Any] = {
    "objects": {
        "duck": {"glyph": "F01E5", "plural": "ducks"},
        "knife": {"glyph": "F09FB", "plural": "knives"},
        "oven": {"glyph": "F04DE", "plural": "ovens"},
        "star": {"glyph": "F04CE", "plural": "stars"},
        "teddy bear": {"glyph": "F18FB", "plural": "teddy bears"},
    },
    "colors": {"crimson": [200, 20, 60], "teal": [0, 150, 150], "black": [20, 20, 24]},
    "background": [250, 250, 250],
    "sizes": {"image_size": 64, "object_size": 24, "lattice": 8},
    "prompts": {
        "test": dict(zip(p.TAGS, (1, 3, 4, 4, 8, 10), strict=True)),
        "dev": dict(zip(p.TAGS, (1, 2, 3, 3, 6, 8), strict=True)),
        "pools": dict.fromkeys(p.TAGS, 2),
    },
    "caption_noise": dict.fromkeys(vars(PERFECT), 0.4),
}
IN_ANOTHER_WORLD = """
import numpy as np
from cotgen_lite.geneval import evaluate
from cotgen_lite.lite import judges, verifier, verifier_questions, vocabulary, world
from cotgen_lite.lite.edit_targets import edit_target
from cotgen_lite.pools import pool_prompts
from cotgen_lite.prompts import encode_text, lite_prompts, parse_prompt

rng = np.random.default_rng(0)
sets = {split: lite_prompts(split) for split in ("train", "dev", "test")}
assert [len(sets[split]) for split in sets] == [5 + 10 + 15 + 15 + 40 + 60 - 30 - 23, 23, 30]
assert len(pool_prompts("test")) == 60
every = sum(sets.values(), ())
assert all(parse_prompt(prompt.text) == prompt for prompt in every)
assert any("knives" in prompt.text for prompt in every) and parse_prompt("a photo of a crimson oven").tag == "colors"
words = vocabulary.lite_tokenizer()
for prompt in every:
    assert words.decode(encode_text(words, prompt.text)) == prompt.text
template = judges.TemplateJudge()
scenes = [world.scene_for(prompt, rng) for prompt in every]
assert all(evaluate(prompt, found).correct for prompt, found in zip(every, template.detect(world.render(scenes))))
assert judges.measure_judge(template, 100, seed=0)["all"] == 1
assert len({world.noisy_pair(rng, world.world().caption_noise) for _ in range(20)}) > 10
judges.LearnedJudge(judges.LearnedJudgeConfig(width=16, blocks=1)).eval().detect(world.render(scenes[:2]))
judges.draw_lessons(4, rng)
for prompt in every[::9]:
    found = judges.scene_detections(world.random_scene(rng))
    target = edit_target(prompt, found, rng)
    assert evaluate(prompt, judges.scene_detections(target)).correct
for mix in (verifier_questions.Mix(1, 0, caption=True), verifier_questions.Mix(0.2, 0.5)):
    for _ in range(20):
        for dialogue in verifier_questions.draw_dialogues(verifier_questions.training_scene(rng), 6, mix, rng):
            verifier_questions.encode_dialogue(words, dialogue, clarity=True)
for held in verifier.evaluation_set(4, 0):
    assert evaluate(parse_prompt(held.prompt), judges.scene_detections(held.scene)).correct == held.holds
for text, hint in (("a photo of a cat", "duck"), ("a cat", "a crimson duck")):
    try:
        parse_prompt(text)
    except ValueError as error:
        assert hint in str(error), error
    else:
        raise AssertionError(text)
try:
    encode_text(words, "a photo of a cat")
except ValueError as error:
    assert "duck" in str(error) and "teal" in str(error)
print("another world")
"""


def test_another_world_file_is_another_world(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    folder.mkdir()
    shutil.copy(data_path("world/objects.ttf"), folder)
    (folder / "world.json").write_text(json.dumps(OTHER_WORLD))
    run = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_WORLD],
        env=os.environ | {"COTGEN_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "another world\n", run.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": {"image_size": 60, "object_size": 24, "lattice": 8}}, "do not fit"),
        ({"sizes": {"image_size": 64, "object_size": 40, "lattice": 8}}, "do not fit"),
        ({"sizes": {"image_size": 64, "object_size": 32, "lattice": 16}}, "lattice of world.json is 16"),
        ({"caption_noise": {"colors_ignored": 0.6, "colors_swapped": 0.6}}, "both rates together are at most 1"),
        ({"background": None}, "background must be red, green and blue"),
        ({"background": [1, 2]}, "background must be red, green and blue"),
        ({"background": [214, 39, 40]}, "two of its colours are the same"),
        ({"colors": p.world_file()["colors"] | {"red": "red"}}, "Each of red's"),
        ({"colors": p.world_file()["colors"] | {"red": [300, 0, 0]}}, "Each of red's .* from 0 to 255"),
        ({"colors": p.world_file()["colors"] | {"red": [0.5, 0, 0]}}, "Each of red's"),
        ({"colors": p.world_file()["colors"] | {"red": [255, 140, 0]}}, "two of its colours are the same"),
        ({"objects": {"cat": {"glyph": "F011B"}, "dog": {"glyph": "F011B"}}}, "two of its glyphs are the same"),
        ({"objects": {"cat": {"glyph": "cat"}, "dog": {"glyph": "F011B"}}}, "does not describe a world"),
        ({"objects": {"cat": {"glyph": "FFFFFFFFFF"}}}, "does not describe a world"),
        ({"objects": {"cat": {}}}, "it lacks 'glyph'"),
        ({"sizes": {"image_size": 64, "object_size": 24, "lattice": 0}}, "lattice must be a whole number"),
        ({"sizes": {"image_size": 64, "object_size": 24}}, "it lacks 'lattice'"),
        ({"sizes": {"image_size": 10**9, "object_size": 24, "lattice": 8}}, "image_size must be"),
        ({"sizes": {"image_size": 64.0, "object_size": 24, "lattice": 8}}, "image_size must be"),
        ({"sizes": [64, 24, 8]}, "does not describe a world"),
        ({"caption_noise": vars(PERFECT) | {"count_off": 1.5}}, "caption noise count_off .* from 0 to 1"),
        ({"caption_noise": vars(PERFECT) | {"count_off": float("nan")}}, "caption noise count_off"),
        ({"caption_noise": vars(PERFECT) | {"typo": 0.5}}, "does not describe a world .*typo"),
    ],
)
def test_a_wrong_world_file_is_explained(change: dict, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotgen_lite.lite.world.world_file", lambda: p.world_file() | change)
    with pytest.raises(ValueError, match=says):
        world.__wrapped__()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"objects": None}, "does not describe a world"),
        ({"objects": ["duck"]}, "does not describe a world"),
        ({"objects": {"duck": OTHER_WORLD["objects"]["duck"]}}, "two objects and two colours are the least"),
        ({"objects": {"duck": {"glyph": "F01E5"}}}, "it lacks 'plural'"),
        ({"objects": {"duck": {"plural": 3}}}, "plural of 'duck' must be a text"),
        ({"objects": {"Duck": {"plural": "ducks"}}}, "'Duck' is no name"),
        ({"objects": {"rubber  duck": {"plural": "ducks"}}}, "is no name"),
        ({"objects": {"duck": {"plural": "ducks"}, "drake": {"plural": "ducks"}}}, "'ducks' is the singular or plural"),
        ({"objects": {"duck": {"plural": "ducks"}, "ducks": {"plural": "flocks"}}}, "'ducks' is the singular"),
        ({"colors": {"red": [1, 2, 3]}}, "are the least"),
        ({"prompts": {}}, "it lacks 'test'"),
        ({"prompts": OTHER_WORLD["prompts"] | {"dev": {"colors": 3}}}, "it lacks 'single_object'"),
        ({"prompts": OTHER_WORLD["prompts"] | {"pools": dict.fromkeys(p.TAGS, 0)}}, "of prompts.pools"),
        ({"prompts": OTHER_WORLD["prompts"] | {"test": dict.fromkeys(p.TAGS, 1.5)}}, "of prompts.test"),
        ({"prompts": OTHER_WORLD["prompts"] | {"pools": dict.fromkeys(p.TAGS, 10**9)}}, "of prompts.pools"),
        ("not json", "Expecting value"),
        ('{"objects": {"duck": {}, "duck": {}}}', "'duck' is there twice"),
        ("[]", "does not describe a world"),
        ("", "Expecting value"),
    ],
)
def test_a_world_file_that_prompts_cannot_be_made_of(
    change: dict | str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    (tmp_path / "world").mkdir()
    text = change if isinstance(change, str) else json.dumps(OTHER_WORLD | change)
    (tmp_path / "world/world.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"world\.json does not describe a world.*{says}.*git -C|{says}.*git -C"):
        p.world_file.__wrapped__()


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: render(None), "list of scenes"),
        (lambda: render([SceneObject("cat", "red", 0, 0)]), "list of scenes"),
        (lambda: render([("cat",)]), "a SceneObject"),
        (lambda: render([(SceneObject("unicorn", "red", 0, 0),)]), "object must be one of 'airplane'"),
        (lambda: render([(SceneObject("cat", "mauve", 0, 0),)]), "colour must be one of 'red'"),
        (lambda: render([(SceneObject("cat", "red", 48, 0),)]), "place of the cat .* from 0 to 40"),
        (lambda: render([(SceneObject("cat", "red", 0, -1),)]), "place of the cat"),
        (lambda: render([(SceneObject("cat", "red", 0.5, 0),)]), "place of the cat"),
        (lambda: scene_for("a photo of a cat", RNG), "a Prompt"),
        (lambda: scene_for(p.single_object("cat"), 0), "numpy Generator"),
        (lambda: scene_for(p.single_object("bear", p.GENEVAL), RNG), "object must be one of"),
        (lambda: scene_for(p.colored("cat", "pink", p.GENEVAL), RNG), "colour must be one of"),
        (lambda: scene_for(p.Prompt("five", "counting", (p.Requirement("cat", 5),)), RNG), "room for 4"),
        (lambda: scene_for(p.Prompt("", "position", (CATS, DOG, LEFT)), RNG), "relations are of two"),
        (lambda: random_scene(np.random), "numpy Generator"),
        (lambda: noisy_pair(RNG, 0.5), "CaptionNoise"),
        (lambda: noisy_pair(None, PERFECT), "numpy Generator"),
        (lambda: CaptionNoise(count_off="often"), "caption noise count_off"),
        (lambda: CaptionNoise(color_wrong=-0.1), "caption noise color_wrong"),
        (lambda: icon_mask("unicorn"), "object must be one of"),
        (lambda: clearly("beside", (0, 0), (0, 0)), "relation must be one of"),
    ],
)
def test_what_is_not_of_this_world_gets_one_sentence(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_dev_and_test_prompts_must_leave_some_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = p.world_file()["prompts"] | {"test": p.world_file()["prompts"]["test"] | {"counting": 40}}
    world_file = p.world_file() | {"prompts": sizes}
    monkeypatch.setattr(p, "world_file", lambda: world_file)
    with pytest.raises(ValueError, match="48 counting prompts, of which 48"):
        p._lite_prompts.__wrapped__("train")
