"""GenEval's detector at full scale: Mask2Former finds the objects, CLIP reads their colours (arXiv 2310.11513).

It stands where the lite judges stand (`geneval.Detector`): in transformers, but prepared and read out as GenEval has it
from mmdet and open_clip.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cotgen_lite.geneval import THRESHOLD, Box, Detection, Detector, evaluate, threshold_of
from cotgen_lite.hub import data_path, write_atomically
from cotgen_lite.inputs import finite, number, of_kind, shaped, shown, text, whole, with_methods
from cotgen_lite.loading import chosen_device, load_complete, load_tokenizer, read_config, read_whole
from cotgen_lite.prompts import GENEVAL, Prompt, each_prompt, to_record

INSTANCES = 100  # most pairs of mask and class that are looked at in an image
LOWEST = 0.05  # scores up to this are not reported: far below GenEval's .3, so that a near miss can still be seen
INPUT_SIZE = (800, 1333)  # the shorter side of what Mask2Former sees, and the most of the longer one, in px
GREY = (0x99, 0x99, 0x99)  # what CLIP sees in place of the background
MAX_PER_CLASS = 16  # most boxes of a class in a results file, as in `evaluate`
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# Other spellings, without spaces: those of the hub's COCO detectors, and the three classes that GenEval renamed.
SPELLINGS = {
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"},
    **{"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"},
}
# What the self-check draws: plain shapes, in colours nearly all of which change when channels are swapped.
GROUND, INK = (244, 244, 240), {"red": (214, 39, 40), "green": (20, 150, 70), "blue": (30, 110, 235)}
INK |= {"purple": (150, 60, 200), "brown": (115, 65, 25), "black": (20, 20, 24)}
DRAWN = (
    *(("car", "red"), ("bus", "blue"), ("airplane", "blue"), ("bicycle", "black"), ("bird", "blue")),
    *(("elephant", "purple"), ("umbrella", "red"), ("apple", "red"), ("wine glass", "purple"), ("scissors", "red")),
    *(("clock", "green"), ("teddy bear", "brown")),
)


def geneval_names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    """GenEval's names of a model's classes, in the order of its outputs.

    id2label: index to label, as in a transformers config. ValueError unless the labels are COCO's 80 things.
    """
    labels_are = isinstance(id2label, Mapping) and all(isinstance(label, str) for label in id2label.values())
    if not labels_are or not all(isinstance(number, int) for number in id2label):
        raise ValueError(f"id2label must be numbers and their labels, got {shown(id2label)}.")
    known = {name.replace(" ", ""): name for name in GENEVAL.objects} | SPELLINGS
    labels = [label for _, label in sorted(id2label.items())]
    names = [known.get(label.lower().replace(" ", ""), "") for label in labels]
    if sorted(names) != sorted(GENEVAL.objects):
        odd = ", ".join([label for label, name in zip(labels, names, strict=True) if not name][:3])
        raise ValueError(
            f"The detector's {len(labels)} classes are not the 80 of COCO's instances{odd and f' (unknown: {odd})'}: "
            "load a Mask2Former for those, such as facebook/mask2former-swin-small-coco-instance."
        )
    return tuple(names)


def read_instances(
    classes: Tensor, masks: Tensor, input_size: tuple[int, int], image_size: tuple[int, int], lowest: float = LOWEST
) -> tuple[list[int], list[float], Tensor]:
    """Turn one image's logits into instances as mmdet does for GenEval, every mask whole, however much they overlap.

    Of all pairs of a query and a class the 100 likeliest are taken, so one mask may come under two classes. A score is
    the class's probability times the mean probability of the mask's pixels; those above `lowest` are kept.

    classes: logits (Q, C + 1), the last one for nothing; masks: logits (Q, h, w), coarse; input_size, image_size:
    (H, W) of what the model saw, and of the image. Returns, likeliest first, N classes, scores in 0..1, masks bool
    (N, H, W).
    """
    shaped(of_kind(classes, "classes", Tensor, "a tensor"), "classes", ("Q", "C + 1"))
    shaped(of_kind(masks, "masks", Tensor, "a tensor"), "masks", (len(classes), "h", "w"))
    input_size, image_size = _size(input_size, "input_size"), _size(image_size, "image_size")
    lowest = number(lowest, "lowest", 0, 1)
    for logits, name in ((classes, "classes"), (masks, "masks")):
        finite(logits, f"The detector's logits of {name}")
    likely, pairs = classes.softmax(dim=-1)[:, :-1].flatten().topk(min(INSTANCES, classes[:, :-1].numel()))
    likely, pairs = likely[likely > lowest], pairs[likely > lowest]  # a score is never above its class's probability
    if not len(likely):
        return [], [], torch.zeros(0, *image_size, dtype=torch.bool)
    queries, labels = pairs // (classes.shape[1] - 1), pairs % (classes.shape[1] - 1)
    # In two steps, as mmdet's (alike for square images), and uncut: transformers' own cuts at 384 x 384 px.
    logits = F.interpolate(masks[queries][None], input_size, mode="bilinear", align_corners=False)
    logits = F.interpolate(logits, image_size, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    scores = likely * (logits.sigmoid() * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-6)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > lowest]
    return labels[order].tolist(), scores[order].tolist(), inside[order].cpu()


def _size(value: Any, name: str) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} must be two sizes in px, got {shown(value)}.")
    return whole(value[0], f"each of {name}", 1, 2**14), whole(value[1], f"each of {name}", 1, 2**14)


def mask_box(mask: Tensor) -> Box:
    """The tight box (x0, y0, x1, y1) of a bool mask (H, W) that is not empty, in px, the ends exclusive."""
    of_kind(mask, "mask", Tensor, "a bool tensor (H, W)")
    if mask.dtype != torch.bool or mask.ndim != 2 or not mask.any():
        raise ValueError(f"mask must be a bool tensor (H, W) that is not empty, got {shown(mask)}.")
    columns, rows = mask.any(dim=0).nonzero(), mask.any(dim=1).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def grey_crop(picture: Image.Image, mask: Tensor) -> Image.Image:
    """What CLIP sees of an object: its box, with all that is outside its mask (bool, H, W) in #999."""
    of_kind(picture, "picture", Image.Image, "a picture of PIL's")
    on_grey = Image.composite(picture, Image.new("RGB", picture.size, GREY), Image.fromarray(mask.numpy()))
    return on_grey.crop(mask_box(mask))


class CocoMask2Former(hf.Mask2FormerForUniversalSegmentation):
    """transformers' Mask2Former, told of weights that it makes no use of, so that the hub's files lack them."""

    _keys_to_ignore_on_load_missing = [r"\.swin\.layernorm\."]


@dataclass(eq=False)
class Mask2FormerDetector:
    """GenEval's detector: instances of COCO's 80 classes under GenEval's names, with GenEval's ten colours.

    A colour takes a pass of CLIP and is read only above `color_above`, since the rules ignore all else; lower it if you
    lower the threshold of `evaluate`. batch_size: images at a time through Mask2Former, crops through CLIP.
    """

    model: Any
    clip: Any
    tokenizer: Any
    clip_processor: Any
    input_size: tuple[int, int] = INPUT_SIZE
    color_above: float = THRESHOLD
    batch_size: int = 4

    def __post_init__(self) -> None:
        self.batch_size = whole(self.batch_size, "batch_size", 1)
        self.color_above = number(self.color_above, "color_above", 0, 1)
        self.input_size = _size(self.input_size, "input_size")
        of_kind(self.model, "model", hf.Mask2FormerForUniversalSegmentation, "a Mask2Former")
        of_kind(self.clip, "clip", hf.CLIPModel, "a CLIPModel")
        self.names = geneval_names(self.model.config.id2label)
        # Not the checkpoint's own settings: the hub's squeeze every image into 384 x 384 px, mmdet's do not.
        size = dict(zip(("shortest_edge", "longest_edge"), self.input_size, strict=True))
        self.processor = hf.Mask2FormerImageProcessorPil(size=size)
        self._words: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, detector_path: str | Path, clip_path: str | Path, device: str = "auto", **options: Any
    ) -> "Mask2FormerDetector":
        """Load the detector from folders or hub names, device "auto" taking a GPU if there is one.

        "facebook/mask2former-swin-small-coco-instance" is GenEval's network, but not its (mmdet's) weights;
        "openai/clip-vit-large-patch14". options: of the constructor. ValueError if the classes are not COCO's 80 or
        weights are missing; OSError if there is no such model.
        """
        chosen = chosen_device(device)
        read_config(detector_path, "Mask2Former", ["mask2former"])
        config = read_whole(hf.Mask2FormerConfig.from_pretrained, detector_path, "Mask2Former")
        geneval_names(config.id2label)  # before any weight is loaded
        detector = load_complete(CocoMask2Former, detector_path, "Mask2Former", dtype=torch.float32).to(chosen)
        clip = load_complete(hf.CLIPModel, clip_path, "CLIP", dtype=torch.float32).to(chosen)
        pictures = read_whole(hf.CLIPImageProcessorPil.from_pretrained, clip_path, "CLIP's image processor")
        return cls(detector, clip, load_tokenizer(clip_path), pictures, **options)

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Find the objects of images, uint8 (B, 3, H, W), RGB; ValueError for another form.

        Returns B lists of detections, likeliest first, one for each mask and class with a score above .05; boxes in px.
        Overlapping ones all stay.
        """
        of_kind(images, "images", Tensor, "a uint8 tensor (B, 3, H, W)")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not min(images.shape[2:]):
            raise ValueError(f"Give a uint8 tensor of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
        chunks = images.split(self.batch_size) if len(images) else ()
        return [found for chunk in chunks for found in self._detect(chunk.cpu())]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        out = self.model(pixel_values=pixels.to(self.model.device))
        (high, wide), size, found = pixels.shape[2:], (images.shape[2], images.shape[3]), []
        for picture, classes, masks in zip(pictures, out.class_queries_logits, out.masks_queries_logits, strict=True):
            labels, scores, inside = read_instances(classes, masks, (high, wide), size)
            names = [self.names[label] for label in labels]
            read = sum(bool(np.float32(score) > np.float32(self.color_above)) for score in scores)
            colors = self.read_colors([grey_crop(picture, mask) for mask in inside[:read]], names[:read])
            whole = zip(names, scores, inside, [*colors, *[None] * (len(names) - read)], strict=True)
            found.append([Detection(name, score, mask_box(mask), color) for name, score, mask, color in whole])
        return found

    @torch.inference_mode()
    def read_colors(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """The likeliest of GenEval's ten colours of each object; crops: RGB pictures; names: their classes."""
        if len(crops) != len(names):
            raise ValueError(f"{len(crops)} crops came with {len(names)} names: give one name for each.")
        colors = []
        for first in range(0, len(crops), self.batch_size):
            some = slice(first, first + self.batch_size)
            pixels = self.clip_processor(list(crops[some]), return_tensors="pt")["pixel_values"]
            looks = self.clip.get_image_features(pixel_values=pixels.to(self.clip.device)).pooler_output
            words = torch.stack([self._color_words(name) for name in names[some]])  # (b, 10, D)
            finite(looks, "What CLIP sees")
            colors += [GENEVAL.colors[i] for i in (words @ looks[:, :, None]).argmax(dim=1)[:, 0].tolist()]
        return colors

    def _color_words(self, name: str) -> Tensor:
        """One direction (10, D) for each colour of an object: the mean of its prompts' directions."""
        if name not in self._words:
            texts = [form.format(color=color, name=name) for color in GENEVAL.colors for form in COLOR_PROMPTS]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.clip.device)
            each = F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)
            self._words[name] = F.normalize(each.view(len(GENEVAL.colors), len(COLOR_PROMPTS), -1).mean(1), dim=-1)
        return self._words[name]


def write_geneval_results(
    path: Path, filenames: Sequence[str], prompts: Sequence[Prompt], found: Sequence[Sequence[Detection]]
) -> None:
    """Judge images and write a jsonl file that GenEval's own tools read, atomically.

    filenames, prompts, found: each image's file, prompt and detections; ValueError if they are not equally many. Keys
    and values are GenEval's, metadata and details (class to boxes [x0, y0, x1, y1, score] above the tag's threshold,
    at most 16 a class) being JSON in strings; the wording of reasons, one a line, is this course's.
    """
    prompts = each_prompt(prompts)
    filenames, found = ([*given] if isinstance(given, list | tuple) else [] for given in (filenames, found))
    if not len(filenames) == len(prompts) == len(found):
        counts = f"{len(filenames)} files came with {len(prompts)} prompts and the detections of {len(found)} images"
        raise ValueError(f"{counts}: pass one prompt and one list of detections for each file.")
    of_kind(path, "path", (str, Path), "the path of a file")
    lines = []
    for filename, prompt, detections in zip(filenames, prompts, found, strict=True):
        verdict = evaluate(prompt, detections)
        if unknown := sorted({d.name for d in detections} - set(GENEVAL.objects)):
            raise ValueError(f"GenEval has no class {unknown[0]!r}: its 80 are `prompts.GENEVAL.objects`.")
        limit = np.float32(threshold_of(prompt))
        boxes: dict[str, list[list[float]]] = {}
        by_score = sorted(detections, key=lambda d: np.float32(d.score))[::-1]  # of equal ones the last one first
        for d in sorted(by_score, key=lambda d: GENEVAL.objects.index(d.name)):
            if np.float32(d.score) > limit and len(boxes.setdefault(d.name, [])) < MAX_PER_CLASS:
                boxes[d.name].append([*d.box, d.score])
        line = {
            "filename": text(filename, "Each of filenames"),
            "tag": prompt.tag,
            "prompt": prompt.text,
            "correct": verdict.correct,
        }
        line |= {"reason": "\n".join(map(str, verdict.reasons)), "metadata": json.dumps(to_record(prompt))}
        lines.append(json.dumps(line | {"details": json.dumps(boxes)}) + "\n")
    write_atomically(Path(path), "".join(lines))


def draw_pictures() -> tuple[Tensor, list[Detection]]:
    """The self-check's pictures, uint8 (12, 3, 256, 256), one big icon each; and what a perfect detector finds."""
    icons = json.loads(data_path("world/icons.json").read_text(encoding="utf-8"))
    font = ImageFont.truetype(str(data_path("world/objects.ttf")), 150)
    pictures, there = [], []
    for name, color in DRAWN:
        picture = Image.new("RGB", (256, 256), GROUND)
        glyph = chr(int(icons[name]["codepoint"], 16))
        # Off centre, so that a box in other pixels or with swapped axes does not match.
        ImageDraw.Draw(picture).text((170, 86), glyph, font=font, fill=INK[color], anchor="mm")
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        inked = (pictures[-1] != torch.tensor(GROUND, dtype=torch.uint8)[:, None, None]).any(dim=0)
        there.append(Detection(name, 1.0, mask_box(inked), color))
    return torch.stack(pictures), there


def self_check(detector: Detector) -> dict[str, int]:
    """Look at a few drawn pictures of known content first, and stop if hardly anything in them is recognised.

    It shows gross faults: foreign weights, wrong class names, swapped channels or axes, boxes in other pixels. It
    cannot show that scores equal GenEval's: flat icons are no photos, and the bounds are guesses on the safe side.
    Returns how many were drawn, found, and found in the right colour. RuntimeError where a bound is missed.
    """
    with_methods(detector, "detector", ["detect"], "a detector")
    images, there = draw_pictures()
    hits = []
    for item, detections in zip(there, detector.detect(images), strict=True):
        same = [d for d in detections if d.name == item.name and d.score > THRESHOLD and _iou(d.box, item.box) > 0.5]
        hits += [(max(same, key=lambda d: d.score), item)] if same else []
    drawn, found, colored = len(there), len(hits), sum(hit.color == item.color for hit, item in hits)
    if 3 * found < drawn:
        raise RuntimeError(
            f"The detector found {found} of {drawn} big drawn objects, fewer than a third, so its scores would mean "
            "nothing: check that its weights are Mask2Former's for COCO instances and that images are RGB in 0..255."
        )
    if 2 * colored < found:
        wrong = ", ".join(f"{item.color} {item.name} as {hit.color}" for hit, item in hits if hit.color != item.color)
        raise RuntimeError(
            f"Of {found} drawn objects {colored} got their colour, fewer than half ({wrong}): check that the model for "
            "colours is openai/clip-vit-large-patch14 and that images are RGB, not BGR."
        )
    return {"drawn": drawn, "found": found, "colored": colored}


def _iou(a: Box, b: Box) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
