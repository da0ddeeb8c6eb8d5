"""The lite world: coloured icons on a plain ground, and the noisy captions that a generator learns from.

Which icons, colours and sizes, and how noisy, says `world/world.json` in the data folder: another file there is another
world. A scene is up to four icons, each in a 24-pixel cell on an 8-pixel lattice of a 64 x 64 picture. The lattice is
that of the image tokens: icons, lattice, tokenizer and judges were chosen together, so that small models draw and see
well. Read on in `judges.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cotgen_lite.hub import data_path
from cotgen_lite.inputs import number, of_kind, one_of, settle, shown, whole
from cotgen_lite.prompts import (
    RELATIONS,
    TAGS,
    Prompt,
    Requirement,
    color_attr,
    colored,
    counting,
    lite_names,
    plural,
    position,
    single_object,
    two_object,
    world_file,
)


@dataclass(frozen=True)
class SceneObject:
    """One icon: its class, its colour, and the top-left pixel of its 24 x 24 cell."""

    name: str
    color: str
    x: int
    y: int


Scene = tuple[SceneObject, ...]


@dataclass(frozen=True)
class CaptionNoise:
    """How often a pre-training caption is wrong about its picture, as web captions are.

    These rates, 0..1, shape the baseline's profile: weak at position and binding, good at single objects. What is
    sometimes true is learned, however seldom; what is always ignored is not.
    """

    object_missing: float = 0.0  # of two things named, only one is there; the other is another class, or absent
    relation_ignored: float = 0.0  # the two things stand anywhere
    colors_ignored: float = 0.0  # of two coloured things, both have any colour
    colors_swapped: float = 0.0  # each has the other's colour
    color_wrong: float = 0.0  # a single coloured thing has any colour
    count_off: float = 0.0  # one more or one fewer than the caption says
    count_unsaid: float = 0.0  # not wrong, but plain: "a photo of clocks", which are two, three or four

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = number(getattr(self, field.name), f"The caption noise {field.name}", 0, 1)
            settle(self, **{field.name: rate})
        if self.colors_ignored + self.colors_swapped > 1:
            raise ValueError("Colours are swapped or ignored in one caption: both rates together are at most 1.")


@dataclass(frozen=True)
class World:
    """What `world/world.json` says, beside the sizes of the prompt sets (`prompts.py`); sizes are in pixels a side."""

    objects: tuple[str, ...]
    colors: tuple[str, ...]
    glyphs: dict[str, str]  # each object's character in `world/objects.ttf`
    palette: dict[str, tuple[int, int, int]]  # red, green and blue, 0..255
    background: tuple[int, int, int]
    image_size: int
    object_size: int  # of an icon's cell, which starts on multiples of the lattice
    lattice: int  # the patch of an image token; image tokenizer and learned judge take 8
    caption_noise: CaptionNoise

    @property
    def grid(self) -> int:
        """Patches, so image tokens, along a side of a picture."""
        return self.image_size // self.lattice

    @property
    def span(self) -> int:
        """Patches along a side of an icon's cell."""
        return self.object_size // self.lattice


@cache
def world() -> World:
    """The world of this process: that of the folder which COTGEN_DATA names, by default the shipped one.

    ValueError if its file lacks something, names colours that are none or alike, or four icons do not fit a picture.
    """
    file = world_file()
    try:
        sizes = {name: whole(file["sizes"][name], name, 1, 1024) for name in ("image_size", "object_size", "lattice")}
        here = World(
            objects=lite_names().objects,
            colors=lite_names().colors,
            glyphs={name: chr(int(about["glyph"], 16)) for name, about in file["objects"].items()},
            palette={name: _rgb(value, name) for name, value in file["colors"].items()},
            background=_rgb(file["background"], "background"),
            **sizes,
            caption_noise=CaptionNoise(**file["caption_noise"]),
        )
        for what, values in (("colours", (*here.palette.values(), here.background)), ("glyphs", here.glyphs.values())):
            if len(set(values)) < len(values):
                raise ValueError(f"two of its {what} are the same")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(f"world.json does not describe a world ({said}): compare it with the shipped one.") from error
    if here.image_size % here.lattice or here.object_size % here.lattice or here.image_size < 2 * here.object_size:
        raise ValueError(
            f"The sizes {file['sizes']} of world.json do not fit: pictures and icons are multiples of the lattice, "
            "and a picture is at least two icons wide."
        )
    if here.lattice != 8:
        raise ValueError(
            f"The lattice of world.json is {here.lattice}: image tokenizer and learned judge take 8 pixels."
        )
    return here


def _rgb(value: Sequence[int], name: str) -> tuple[int, int, int]:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"{name} must be red, green and blue, got {shown(value)}")
    red, green, blue = (whole(one, f"Each of {name}'s red, green and blue", 0, 255) for one in value)
    return red, green, blue


@cache
def icon_mask(name: str) -> np.ndarray:
    """The icon's coverage, float32 (24, 24) in 0..1, drawn from the world's font by Pillow."""
    name, size = one_of(name, "The object", world().objects), world().object_size
    font = ImageFont.truetype(str(data_path("world/objects.ttf")), size)
    cell = Image.new("L", (size, size), 0)
    ImageDraw.Draw(cell).text((size / 2, size / 2), world().glyphs[name], font=font, fill=255, anchor="mm")
    mask = np.asarray(cell, dtype=np.float32) / 255
    if not (mask > 0.5).any():
        raise ValueError(f"The font of the world has no picture for {name!r}: give it another glyph in world.json.")
    return mask


@cache
def icon_box(name: str) -> tuple[int, int, int, int]:
    """The tight box of an icon inside its cell: x0, y0, x1, y1 in pixels, the ends exclusive."""
    rows, columns = np.nonzero(icon_mask(name) > 0.5)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@cache
def _painted_cell(name: str, color: str) -> np.ndarray:
    mask, color = icon_mask(name)[None], one_of(color, "The colour", world().colors)
    ink, ground = (np.array(rgb, np.float32)[:, None, None] for rgb in (world().palette[color], world().background))
    return np.round(mask * ink + (1 - mask) * ground).astype(np.uint8)


def render(scenes: Sequence[Scene]) -> torch.Tensor:
    """Draw scenes; returns uint8 images (B, 3, 64, 64). ValueError for an icon that is not in the world or picture."""
    if not isinstance(scenes, Sequence) or not all(isinstance(scene, Sequence) for scene in scenes):
        raise ValueError(f"scenes must be a list of scenes, each a tuple of SceneObjects; got {shown(scenes)}.")
    size, cell = world().image_size, world().object_size
    images = np.empty((len(scenes), 3, size, size), dtype=np.uint8)
    images[:] = np.array(world().background, dtype=np.uint8)[None, :, None, None]
    for image, scene in zip(images, scenes, strict=True):
        for item in scene:
            of_kind(item, "Each icon of a scene", SceneObject, "a SceneObject")
            for edge in (item.x, item.y):
                whole(edge, f"The place of the {item.name}", 0, size - cell)
            image[:, item.y : item.y + cell, item.x : item.x + cell] = _painted_cell(item.name, item.color)
    return torch.from_numpy(images)


def random_scene(rng: np.random.Generator) -> Scene:
    """One to four icons of any class and colour, anywhere."""
    of_kind(rng, "rng", np.random.Generator, "a numpy Generator, as np.random.default_rng(0) gives")
    count = int(rng.integers(1, 5))
    return _place(_random_names(count, rng), _random_colors(count, rng), rng)


def scene_for(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A random scene that shows exactly what the prompt asks for, and nothing else; free colours are random.

    ValueError for a prompt that no scene of the world shows, as of more icons than fit.
    """
    of_kind(prompt, "prompt", Prompt, "a Prompt (`parse_prompt` makes one)")
    of_kind(rng, "rng", np.random.Generator, "a numpy Generator, as np.random.default_rng(0) gives")
    items = [item for item in prompt.include for _ in range(item.count)]
    colors = [item.color or _random_colors(1, rng)[0] for item in items]
    relation = next((item.position for item in prompt.include if item.position), None)
    most = (world().image_size // world().object_size) ** 2
    if len(items) > most or (relation and len(items) != 2):
        raise ValueError(
            f"No scene can be made for {prompt.text!r}: it has {len(items)} things, a picture has room for {most}, and "
            "relations are of two."
        )
    for item, color in zip(items, colors, strict=True):
        one_of(item.name, "The object", world().objects)
        one_of(color, "The colour", world().colors)
    while True:
        scene = _place([item.name for item in items], colors, rng)
        places = [(item.x, item.y) for item in scene]
        if relation is None or clearly(relation[0], places[1 - relation[1]], places[relation[1]]):
            return scene


def noisy_pair(
    rng: np.random.Generator, noise: CaptionNoise, tags: Mapping[str, float] | None = None
) -> tuple[Prompt, Scene]:
    """A pre-training example: a caption, which may ask for anything in the world, and the scene it was found beside.

    tags: how often captions are of each, by default all six alike. Nobody holds a test's meanings out of the web, and
    so captions hold them too; what is learned from labels does not (`refuse_held_out`).
    """
    of_kind(rng, "rng", np.random.Generator, "a numpy Generator, as np.random.default_rng(0) gives")
    of_kind(noise, "noise", CaptionNoise, "a CaptionNoise, as world().caption_noise")
    shares = np.array([1.0 if tags is None else tags.get(tag, 0) for tag in TAGS])
    caption = random_prompt(TAGS[rng.choice(len(TAGS), p=shares / shares.sum())], rng)
    scene = scene_for(_what_is_there(caption, rng, noise), rng)
    if caption.tag == "counting" and rng.random() < noise.count_unsaid:
        name = caption.include[0].name
        caption = replace(caption, text=f"a photo of {plural(name)}", exclude=())
    return caption, scene


def random_prompt(tag: str, rng: np.random.Generator) -> Prompt:
    """Any prompt of a tag, of whichever set and wording; ValueError for a tag that is none."""
    one_of(tag, "tag", TAGS)
    of_kind(rng, "rng", np.random.Generator, "a numpy Generator, as np.random.default_rng(0) gives")
    first, second = (world().objects[i] for i in rng.choice(len(world().objects), 2, replace=False))
    color, other = (world().colors[i] for i in rng.choice(len(world().colors), 2, replace=False))
    if tag == "counting":
        return counting(first, int(rng.integers(2, 5)))
    if tag == "position":
        return position(first, RELATIONS[int(rng.random() * len(RELATIONS))], second)
    if tag == "colors":
        return colored(first, color)
    if tag == "color_attr":
        return color_attr(first, color, second, other)
    return single_object(first) if tag == "single_object" else two_object(first, second)


def _what_is_there(caption: Prompt, rng: np.random.Generator, noise: CaptionNoise) -> Prompt:
    """What the picture beside a noisy caption really shows, as a prompt without text."""
    items, tag = list(caption.include), caption.tag
    if tag == "counting" and rng.random() < noise.count_off:
        counts = [count for count in (items[0].count - 1, items[0].count + 1) if count <= 4]
        items = [replace(items[0], count=int(rng.choice(counts)))]
    if tag == "colors" and rng.random() < noise.color_wrong:
        items = [replace(items[0], color=_random_colors(1, rng)[0])]
    if tag == "position" and rng.random() < noise.relation_ignored:
        items = [replace(item, position=None) for item in items]
    if tag == "color_attr":
        fate = rng.random()
        if fate < noise.colors_swapped:
            items = [replace(items[0], color=items[1].color), replace(items[1], color=items[0].color)]
        elif fate < noise.colors_swapped + noise.colors_ignored:
            items = [replace(item, color=color) for item, color in zip(items, _random_colors(2, rng), strict=True)]
    if len(items) == 2 and rng.random() < noise.object_missing:
        lost = int(rng.integers(2))
        kept = replace(items[1 - lost], position=None)
        other = Requirement(_random_names(1, rng)[0], color=items[lost].color)
        items = [kept] if rng.random() < 0.5 else [kept, other]
    return Prompt("", tag, tuple(items))


def _place(names: Sequence[str], colors: Sequence[str], rng: np.random.Generator) -> Scene:
    """Cells on the lattice, drawn one after the other among the free places; starts over when none is left."""
    while True:
        places: list[tuple[int, int]] = []
        while len(places) < len(names) and (free := free_places(places)):
            places.append(free[rng.integers(len(free))])
        if len(places) == len(names):
            return tuple(SceneObject(n, c, *p) for n, c, p in zip(names, colors, places, strict=True))


@cache
def layouts() -> list[tuple[int, int]]:
    """All places of an icon, x and y in pixels."""
    steps = range(0, world().image_size - world().object_size + 1, world().lattice)
    return list(product(steps, steps))


def free_places(taken: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places whose cells overlap with none that is taken."""
    size = world().object_size
    return [(x, y) for x, y in layouts() if all(max(abs(x - u), abs(y - v)) >= size for u, v in taken)]


def clearly(relation: str, item: tuple[int, int], reference: tuple[int, int]) -> bool:
    """Whether the relation holds with room to spare: far enough along its axis, and more than along the other."""
    dx, dy = item[0] - reference[0], item[1] - reference[1]
    one_of(relation, "The relation", RELATIONS)
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return along >= world().object_size and along > abs(across)


def _random_names(count: int, rng: np.random.Generator) -> list[str]:
    return [world().objects[i] for i in rng.integers(len(world().objects), size=count)]


def _random_colors(count: int, rng: np.random.Generator) -> list[str]:
    return [world().colors[i] for i in rng.integers(len(world().colors), size=count)]
