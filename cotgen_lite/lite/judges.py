"""The two lite detectors of GenEval's objects: one matches templates, one has learned; their training and measuring.

`TemplateJudge` labels training data; `LearnedJudge` reports results. One compares pixels with the icons, the other has
nothing but its weights; they share the record of a detection and GenEval's rules (`geneval.py`), so a picture made to
please one has to please the other by its own merit. Both read the colour of an object as that of at least two thirds of
it, or as none. They stand for the paper's Mask2Former (section 3.1). Read on in `generator_training.py`.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cotgen_lite import prompts as templates
from cotgen_lite.geneval import Detection, Detector, evaluate
from cotgen_lite.hub import model_path
from cotgen_lite.inputs import folder as checked_folder
from cotgen_lite.inputs import of_kind, shown, whole, with_methods
from cotgen_lite.lite.world import Scene, SceneObject, icon_box, icon_mask, random_scene, render, world
from cotgen_lite.loading import load_exactly
from cotgen_lite.prompts import RELATIONS, TAGS, Prompt
from cotgen_lite.training import TrainingLog, train

CHUNK = 128  # images at a time: bounds memory, whatever the batch


def scene_detections(scene: Scene) -> list[Detection]:
    """What a perfect detector finds in a scene: each object with its tight box, colour and confidence 1."""
    return [_icon_at(item.x, item.y, item.name, 1.0, item.color) for item in scene]


def _icon_at(x: int, y: int, name: str, score: float, color: str | None) -> Detection:
    x0, y0, x1, y1 = icon_box(name)
    return Detection(name, score, (float(x + x0), float(y + y0), float(x + x1), float(y + y1)), color)


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    size = world().image_size
    of_kind(images, "images", Tensor, f"a uint8 tensor (batch, 3, {size}, {size})")
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"Images are {images.dtype} {tuple(images.shape)}, but the lite judges look at torch.uint8 "
            f"(batch, 3, {size}, {size}): resize them and keep values 0..255."
        )
    return images.split(CHUNK) if len(images) else ()


class TemplateJudge:
    """Finds icons by normalised cross-correlation with the icons themselves, at every pixel position.

    An image is reduced to each pixel's distance from the background, in which an icon of any colour is its mask times a
    constant; correlation with the mask is 1 there and at most .78 for any other icon. The best match is taken, places
    within two thirds of an icon of it are struck out, and so on.
    """

    # Confidence is a logistic of the correlation: the best fit, on whole and damaged scenes, clean and rebuilt by the
    # tokenizer, to how much of an icon is there (see `draw_lessons`). .81 gives GenEval's .3, .90 gives its .9.
    MIDPOINT, STEEPNESS = 0.84, 34.0
    FAINTEST = 90.0  # least contrast of an icon: yellow, the faintest colour, has 222
    LOWEST = 0.6  # correlations below this are not reported at all

    def __init__(self) -> None:
        here = world()
        self.masks = torch.from_numpy(np.stack([icon_mask(name) for name in here.objects]))  # (classes, 24, 24)
        zero_mean = self.masks - self.masks.mean(dim=(1, 2), keepdim=True)
        self.templates = (zero_mean / zero_mean.flatten(1).norm(dim=1)[:, None, None])[:, None]
        self.palette = torch.tensor([here.palette[color] for color in here.colors], dtype=torch.float32)
        self.background = torch.tensor(here.background, dtype=torch.float32)[:, None, None]
        self.size = here.object_size

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """B lists of what is in images, uint8 (B, 3, 64, 64), likeliest first; ValueError for another dtype or size."""
        return [found for chunk in _chunks(images) for found in self._detect(chunk.cpu())]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        pixels = images.float()
        best, names = self.correlate(pixels).max(dim=1)  # (B, 41, 41)
        found: list[list[Detection]] = [[] for _ in images]
        side, near = best.shape[2], self.size * 2 // 3  # icons nearer than this in x and in y are the same icon
        rows, columns = torch.arange(side)[:, None], torch.arange(side)
        while True:
            top, place = best.flatten(1).max(dim=1)
            if not (open_images := torch.nonzero(top > self.LOWEST)[:, 0].tolist()):
                return found
            for i in open_images:
                y, x = divmod(int(place[i]), side)
                number = int(names[i, y, x])
                name, color = world().objects[number], self._color(pixels[i, :, y:, x:], number)
                confidence = 1 / (1 + np.exp(-self.STEEPNESS * (float(top[i]) - self.MIDPOINT)))
                found[i].append(_icon_at(x, y, name, float(confidence), color))
            y0, x0 = (place // side)[:, None, None], (place % side)[:, None, None]
            best = best.masked_fill(((rows - y0).abs() < near) & ((columns - x0).abs() < near), -1)

    def correlate(self, pixels: Tensor) -> Tensor:
        """Correlation of every icon with every window: (B, 3, 64, 64) in 0..255 -> (B, classes, 41, 41)."""
        distance = (pixels - self.background).norm(dim=1, keepdim=True)
        mean = F.avg_pool2d(distance, self.size, 1)
        spread = (F.avg_pool2d(distance**2, self.size, 1) - mean**2).clamp(min=0).mul(self.size**2).sqrt()
        # An icon's spread is its contrast times that of its mask, about 10: with less than the faintest, it is noise.
        return F.conv2d(distance, self.templates) / spread.clamp(min=self.FAINTEST * 10)

    def _color(self, pixels: Tensor, number: int) -> str | None:
        """The palette colour nearest to two thirds or more of the solid pixels of an icon in the top left corner."""
        inside = pixels[:, : self.size, : self.size][:, self.masks[number] > 0.9].T
        nearest = torch.cdist(inside, self.palette).argmin(dim=1)
        votes = torch.bincount(nearest, minlength=len(self.palette))
        return world().colors[int(votes.argmax())] if int(votes.max()) * 3 >= 2 * len(inside) else None


def look_alikes() -> list[tuple[float, str, str]]:
    """Every two objects of the world, the most alike first, and how alike they are: the template judge's correlation.

    1 is the same icon; from .8 on the judge begins to take one for the other.
    """
    names, middle = world().objects, (world().image_size - world().object_size) // 2
    scenes = [(SceneObject(name, world().colors[0], middle, middle),) for name in names]
    best = TemplateJudge().correlate(render(scenes).float()).flatten(2).amax(2)
    pairs = combinations(range(len(names)), 2)
    return sorted(((float(max(best[i, j], best[j, i])), names[i], names[j]) for i, j in pairs), reverse=True)


class LearnedJudgeConfig(PreTrainedConfig):
    """Sizes of the learned judge. width: channels of the 8 x 8 grid. blocks: residual blocks on that grid."""

    model_type = "learned_judge"
    width: int = 96
    blocks: int = 2


class LearnedJudge(PreTrainedModel):
    """Finds icons by a small convolutional network that says what each cell of an 8 x 8 grid is the centre of.

    It has learned (`train_judge`) from scenes whose objects may be broken: the confidence of a class is how whole its
    icon is, not how alike.
    """

    config_class = LearnedJudgeConfig
    main_input_name = "images"
    LOWEST = 0.05  # confidences below this are not reported at all

    def __init__(self, config: LearnedJudgeConfig) -> None:
        super().__init__(config)
        width, blocks = whole(config.width, "width", 4, 4096), whole(config.blocks, "blocks", 0, 100)
        levels = (3, width // 4, width // 2, width)
        self.down = nn.Sequential(*(_convolution(*pair, stride=2) for pair in pairwise(levels)))
        self.blocks = nn.ModuleList(_convolution(width, width) for _ in range(blocks))
        self.outputs = [len(world().objects), len(world().colors) + 1, 4]
        self.head = nn.Conv2d(width, sum(self.outputs), 1)
        assert self.head.bias is not None
        with torch.no_grad():
            self.head.bias[: self.outputs[0]].fill_(-4.0)  # most cells hold nothing: say so from the start
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps PyTorch's own initialisation: transformers' normal(0, 0.02) starves convolutions of signal."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> "LearnedJudge":
        """Load config and weights from a folder; errors as in `loading.load_exactly`."""
        return load_exactly(super().from_pretrained, path, "learned judge", **kwargs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each cell of the 8 x 8 grid holds, if it is the centre of an object.

        images: uint8 (B, 3, 64, 64). Returns logits of every class (B, 16, 8, 8), independent of each other; logits of
        one colour or none (B, 9, 8, 8); and the box's x0, y0, x1, y1 from the cell's centre, in cells (B, 4, 8, 8).
        """
        x = self.down(images.to(self.device).to(self.dtype) / 127.5 - 1)
        for block in self.blocks:
            x = x + block(x)
        classes, colors, boxes = self.head(x).split(self.outputs, dim=1)
        return classes, colors, boxes

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Like `TemplateJudge.detect`, but in reading order, and boxes are what the network says, in whole pixels."""
        return [found for chunk in _chunks(images) for found in self._detect(chunk)]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        classes, colors, boxes = (output.float().cpu() for output in self(images))
        confidence, names = classes.sigmoid().max(dim=1)  # (B, 8, 8)
        # One object a neighbourhood: whole objects are three cells apart.
        peaks = confidence == F.max_pool2d(confidence, 3, 1, padding=1)
        found: list[list[Detection]] = [[] for _ in images]
        for i, y, x in torch.nonzero(peaks & (confidence > self.LOWEST)).tolist():
            centre = torch.tensor([x, y, x, y]) + 0.5
            x0, y0, x1, y1 = ((centre + boxes[i, :, y, x]) * world().lattice).round().tolist()
            name = world().objects[int(names[i, y, x])]
            color = (*world().colors, None)[int(colors[i, :, y, x].argmax())]
            found[i].append(Detection(name, float(confidence[i, y, x]), (x0, y0, x1, y1), color))
        return found


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def load_judge(models: Path | None = None) -> LearnedJudge:
    """The learned judge, which reports; the template judge needs no files. Arguments and errors as in `model_path`."""
    return LearnedJudge.from_pretrained(model_path("judge", models))


def load_judges(models: Path | None = None) -> dict[str, Detector]:
    """Both judges: "learned", which reports, and "template", which labels; as `load_judge`."""
    return {"learned": load_judge(models), "template": TemplateJudge()}


# --- training ---

Rebuild = Callable[[Tensor], Tensor]  # uint8 images (B, 3, 64, 64) to their like, as through a tokenizer and back
AS_THEY_ARE: Rebuild = nn.Identity()

# Confidence wanted for an icon, by how much of it is there (intersection over union of what is drawn and the icon):
# none up to BROKEN, which is as alike as two different icons are, full from WHOLE on, linear between.
BROKEN, WHOLE = 0.70, 0.90
# An object has a colour if this share of it has, and none if no colour reaches the other; no lesson between the two.
ONE_COLOR, MIXED_COLOR = 0.72, 0.61
BATCH = 64
PEAK_RATE = 4e-3


class Lessons(NamedTuple):
    """Training images and what the judge should say of them, in the shapes of `LearnedJudge.forward`.

    Colours are int64 (B, 8, 8): an index, 8 (their number) for none, -1 for no lesson.
    """

    images: Tensor
    classes: Tensor
    colors: Tensor
    boxes: Tensor


def draw_lessons(count: int, rng: np.random.Generator, rebuild: Rebuild = AS_THEY_ARE) -> Lessons:
    """Random scenes, a third of them whole; in the others, patches are exchanged with other pictures.

    Of a damaged object some patches come from the scene's twin, where that object is of another class or colour or is
    gone; stray patches come from the next scene. rebuild: what all pictures go through before they are damaged, if
    anything: a tokenizer heals damage, so what it makes of a broken icon is unknown.
    """
    count = whole(count, "count", 1, 100_000)
    of_kind(rng, "rng", np.random.Generator, "a generator of numpy's, such as `np.random.default_rng(0)` gives")
    if not callable(rebuild):
        raise ValueError(f"rebuild must be a function from images to images, got {shown(rebuild)}.")
    scenes = [random_scene(rng) for _ in range(count)]
    drawn = scenes + [_twin(scene, rng) for scene in scenes]
    images, (inks, hues) = rebuild(render(drawn)), _inks(drawn)
    damage, grid = np.stack([_damaged_patches(scene, rng) for scene in scenes]), world().grid
    strays = (damage.any((1, 2)) & (rng.random(count) < 0.5))[:, None, None] & (rng.random((count, grid, grid)) < 0.04)

    def exchange(maps: np.ndarray) -> np.ndarray:
        own, twin, next_one = maps[:count], maps[count:], np.roll(maps[:count], 1, axis=0)
        return np.where(_per_pixel(strays), next_one, np.where(_per_pixel(damage), twin, own))

    answers = [_answers(*drawn) for drawn in zip(exchange(inks), exchange(hues), scenes, strict=True)]
    pictures = np.stack([exchange(images[:, channel].numpy()) for channel in range(3)], axis=1)
    return Lessons(*map(torch.from_numpy, (pictures, *(np.stack(answer) for answer in zip(*answers, strict=True)))))


def _inks(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel of the pictures, how much of it is drawn on and in which colour."""
    shape = len(scenes), world().image_size, world().image_size
    inks, hues = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for ink, hue, scene in zip(inks, hues, scenes, strict=True):
        for item in scene:
            ink[_cell(item)], hue[_cell(item)] = icon_mask(item.name), world().colors.index(item.color)
    return inks, hues


def _twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same places, but each object gone, of another class, of another colour, or both."""
    twin, names, colors = [], world().objects, world().colors
    for item in scene:
        if kind := rng.integers(4):
            name = names[rng.integers(len(names))] if kind in (1, 3) else item.name
            color = colors[rng.integers(len(colors))] if kind in (2, 3) else item.color
            twin.append(SceneObject(name, color, item.x, item.y))
    return tuple(twin)


def _damaged_patches(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Which patches of a picture are damaged, (8, 8): a part of some objects; none in a third of the scenes.

    A part is one or two rows or columns of patches at a side, or one to six patches anywhere.
    """
    grid, span = world().grid, world().span
    damaged = np.zeros((grid, grid), dtype=bool)
    if rng.random() < 1 / 3:
        return damaged
    for item in scene:
        part = np.zeros((span, span), dtype=bool)
        if rng.random() < 0.5:
            part[: rng.integers(1, span)] = True
            part = np.rot90(part, int(rng.integers(4)))
        else:
            part.flat[rng.permutation(span * span)[: rng.integers(1, 7)]] = True
        row, column = item.y // world().lattice, item.x // world().lattice
        damaged[row : row + span, column : column + span] = part & (rng.random() < 0.6)
    return damaged


def _per_pixel(patches: np.ndarray) -> np.ndarray:
    return patches.repeat(world().lattice, axis=1).repeat(world().lattice, axis=2)


def _cell(item: SceneObject) -> tuple[slice, slice]:
    size = world().object_size
    return np.s_[item.y : item.y + size, item.x : item.x + size]


def _answers(ink: np.ndarray, hue: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What to say of each cell: in an object's middle cell, every class is held against what is drawn."""
    names, unsure, grid, lattice = world().objects, len(world().colors), world().grid, world().lattice
    icons, colors = np.stack([icon_mask(name) for name in names]), np.full((grid, grid), -1)
    classes, boxes = (np.zeros((channels, grid, grid), dtype=np.float32) for channels in (len(names), 4))
    for item in scene:
        cell = _cell(item)
        middle = item.y // lattice + world().span // 2, item.x // lattice + world().span // 2
        overlap = np.minimum(icons, ink[cell]).sum((1, 2)) / np.maximum(icons, ink[cell]).sum((1, 2))
        classes[:, *middle] = ((overlap - BROKEN) / (WHOLE - BROKEN)).clip(0, 1)
        boxes[:, *middle] = (np.array(icon_box(names[int(overlap.argmax())])) - world().object_size / 2) / lattice
        painted = np.bincount(hue[cell].ravel(), weights=ink[cell].ravel(), minlength=unsure)
        share = painted / max(painted.sum(), 1e-6)
        if share.max() >= ONE_COLOR:
            colors[middle] = share.argmax()
        elif share.max() <= MIXED_COLOR:
            colors[middle] = unsure
    return classes, colors, boxes


def train_judge(
    work_dir: str | Path, steps: int, seed: int = 0, rebuild: Rebuild = AS_THEY_ARE
) -> tuple[LearnedJudge, TrainingLog]:
    """Train the learned judge and save it to `work_dir` as fp16; an interrupted call goes on where it was.

    steps: of 64 images each. rebuild: half of every batch goes through it, e.g. through the tokenizer and back. Returns
    the trained judge as it is after saving, in evaluation mode, and what its training was.
    """
    folder, seed = checked_folder(work_dir, "work_dir"), whole(seed, "seed", 0)
    steps = whole(steps, "steps", 1, 1_000_000)
    torch.manual_seed(seed)
    model = LearnedJudge(LearnedJudgeConfig())

    def lessons_at(step: int) -> Lessons:
        rng = np.random.default_rng([seed, step])
        halves = (draw_lessons(BATCH // 2, rng), draw_lessons(BATCH // 2, rng, rebuild))
        return Lessons(*(torch.cat(parts) for parts in zip(*halves, strict=True)))

    about = {"seed": seed, "first_lessons": lessons_at(0)}  # which stand for what draws and rebuilds them
    log = train(model, lambda step: _loss(model, lessons_at(step)), steps, PEAK_RATE, folder, "judge", about=about)
    model.half().save_pretrained(folder)
    return LearnedJudge.from_pretrained(folder), log


def _loss(model: LearnedJudge, lessons: Lessons) -> Tensor:
    """Cross-entropy of classes everywhere, summed per image, of colours where there is one; distance of boxes."""
    classes, colors, boxes = model(lessons.images)
    is_object = lessons.classes.amax(dim=1) > 0
    class_loss = F.binary_cross_entropy_with_logits(classes, lessons.classes, reduction="sum") / len(classes)
    color_loss = F.cross_entropy(colors, lessons.colors.masked_fill(~is_object, -1), ignore_index=-1)
    box_loss = (boxes - lessons.boxes).abs().mean(dim=1)[is_object].mean()
    return class_loss + color_loss + box_loss


# --- measuring ---


def random_question(scene: Scene, tag: str, true: bool, rng: np.random.Generator) -> Prompt | None:
    """A prompt of one tag that a scene shows (`true`), or narrowly does not show; None where the scene allows none.

    The false ones are near misses: another class, count, colour or relation, colours exchanged. Colour and place are
    asked of classes that occur once, since GenEval looks at the likeliest object and equal ones have no likeliest.
    """
    names = [item.name for item in scene]
    single = [item for item in scene if names.count(item.name) == 1]
    absent = str(rng.choice([name for name in world().objects if name not in names]))
    some = str(rng.choice(names))
    pair = [single[i] for i in rng.permutation(len(single))[:2]]

    def other_color(color: str) -> str:
        return str(rng.choice([c for c in world().colors if c != color]))

    if tag == "single_object":
        return templates.single_object(some if true else absent)
    if tag == "counting":
        count = names.count(some)
        allowed = [n for n in ([count] if true else [count - 1, count + 1]) if 2 <= n <= 4]
        return templates.counting(some, int(rng.choice(allowed))) if allowed else None
    if tag == "two_object":
        if not true:
            return templates.two_object(some, absent)
        different = sorted(set(names) - {some})
        return templates.two_object(some, str(rng.choice(different))) if different else None
    if tag == "colors" and single:
        return templates.colored(pair[0].name, pair[0].color if true else other_color(pair[0].color))
    if len(pair) < 2:
        return None
    a, b = pair
    if tag == "color_attr":
        first, second = a.color, b.color
        if not true:
            swap = first != second and rng.random() < 0.5
            first, second = (second, first) if swap else (first, other_color(second))
        return templates.color_attr(a.name, first, b.name, second)
    options = [templates.position(a.name, relation, b.name) for relation in RELATIONS]
    options = [p for p in options if evaluate(p, scene_detections(scene)).correct is true]
    return options[rng.integers(len(options))] if options else None


def measure_judge(detector: Detector, number: int, seed: int, rebuild: Rebuild = AS_THEY_ARE) -> dict[str, float]:
    """How often a judge's verdict on a fresh scene is that of the scene's own boxes.

    Each scene gets a question that it shows and a near miss, of the same random tag; at least `number` scenes count.
    rebuild: what images go through first, if anything. Returns the share of right verdicts by tag, and of all as "all".
    """
    with_methods(detector, "detector", ("detect",), "a judge, such as `load_judges` gives")
    number, rng = whole(number, "number", 1, 1_000_000), np.random.default_rng(whole(seed, "seed", 0))
    right: dict[str, list[bool]] = {tag: [] for tag in TAGS}
    while sum(map(len, right.values())) < 2 * number:
        scenes = [random_scene(rng) for _ in range(200)]
        for scene, found in zip(scenes, detector.detect(rebuild(render(scenes))), strict=True):
            tag = TAGS[rng.integers(len(TAGS))]
            for question in [random_question(scene, tag, true, rng) for true in (True, False)]:
                if question is not None:
                    truth = evaluate(question, scene_detections(scene)).correct
                    right[tag].append(evaluate(question, found).correct == truth)
    shares = {tag: float(np.mean(verdicts)) for tag, verdicts in right.items()}
    return shares | {"all": float(np.mean([verdict for verdicts in right.values() for verdict in verdicts]))}
