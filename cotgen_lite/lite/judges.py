"""The two lite detectors of GenEval's objects: one matches templates, one has learned.

`TemplateJudge` labels training data; `LearnedJudge` reports results. One compares pixels with the icons, the other
has nothing but its weights; they share the record of a detection and GenEval's rules (`geneval.py`), so a picture made
to please one has to please the other by its own merit. Both read the colour of an object as that of at least two thirds
of it, or as none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cotgen_lite.geneval import Box, Detection
from cotgen_lite.lite.world import (
    BACKGROUND,
    IMAGE_SIZE,
    LATTICE,
    OBJECT_SIZE,
    PALETTE,
    Scene,
    icon_box,
    icon_mask,
)
from cotgen_lite.prompts import COLORS, OBJECTS

CHUNK = 128  # images at a time: bounds memory, whatever the batch


def scene_detections(scene: Scene) -> list[Detection]:
    """What a perfect detector finds in a scene: each object with its tight box, colour and confidence 1."""
    return [Detection(item.name, 1.0, _icon_at(item.name, item.x, item.y), item.color) for item in scene]


def _icon_at(name: str, x: int, y: int) -> Box:
    x0, y0, x1, y1 = icon_box(name)
    return float(x + x0), float(y + y0), float(x + x1), float(y + y1)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"Images are {images.dtype} {tuple(images.shape)}, but the lite judges look at torch.uint8 "
            f"(batch, 3, {IMAGE_SIZE}, {IMAGE_SIZE}): resize them and keep values 0..255."
        )


class TemplateJudge:
    """Finds icons by normalised cross-correlation with the icons themselves, at every pixel position.

    An image is reduced to each pixel's distance from the background, in which an icon of any colour is its
    mask times a constant; correlation with the mask is 1 there and at most .78 for any other icon. The best
    match is taken, places within two thirds of an icon of it are struck out, and so on.
    """

    # Confidence is a logistic of the correlation: the best fit, on whole and damaged scenes, clean and rebuilt by the
    # tokenizer, to how much of an icon is there (`judge_training`). .81 gives GenEval's .3, .90 gives its .9.
    MIDPOINT = 0.84
    STEEPNESS = 34.0
    FAINTEST = 90.0  # least contrast of an icon: yellow, the faintest colour, has 222
    LOWEST = 0.6  # correlations below this are not reported at all
    REACH = OBJECT_SIZE * 2 // 3  # icons nearer than this in x and in y are the same icon

    def __init__(self) -> None:
        masks = np.stack([icon_mask(name) for name in OBJECTS])
        self.masks = torch.from_numpy(masks)  # (classes, 24, 24)
        zero_mean = self.masks - self.masks.mean(dim=(1, 2), keepdim=True)
        self.templates = (zero_mean / zero_mean.flatten(1).norm(dim=1)[:, None, None])[:, None]
        self.palette = torch.tensor([PALETTE[color] for color in COLORS], dtype=torch.float32)
        self.background = torch.tensor(BACKGROUND, dtype=torch.float32)[:, None, None]

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Find the objects of images.

        images: uint8 (B, 3, 64, 64). Returns B lists of detections, likeliest first; boxes are those of the
        icons.
        Errors: ValueError for another dtype or size.
        """
        _check_images(images)
        return [found for chunk in images.split(CHUNK) for found in self._detect(chunk.cpu())]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        pixels = images.float()
        best, names = self.correlate(pixels).max(dim=1)  # (B, 41, 41)
        found: list[list[Detection]] = [[] for _ in images]
        rows, columns = torch.arange(best.shape[1])[:, None], torch.arange(best.shape[2])
        side = best.shape[2]
        while True:
            top, place = best.flatten(1).max(dim=1)
            open_images = torch.nonzero(top > self.LOWEST)[:, 0].tolist()
            if not open_images:
                return found
            for i in open_images:
                y, x = divmod(int(place[i]), side)
                patch = pixels[i, :, y : y + OBJECT_SIZE, x : x + OBJECT_SIZE]
                name = int(names[i, y, x])
                confidence = 1 / (1 + np.exp(-self.STEEPNESS * (float(top[i]) - self.MIDPOINT)))
                box = _icon_at(OBJECTS[name], x, y)
                found[i].append(Detection(OBJECTS[name], float(confidence), box, self._color(patch, name)))
            y0, x0 = (place // side)[:, None, None], (place % side)[:, None, None]
            near_y, near_x = (rows - y0).abs() < self.REACH, (columns - x0).abs() < self.REACH
            best = best.masked_fill(near_y & near_x, -1)

    def correlate(self, pixels: Tensor) -> Tensor:
        """Correlation of every icon with every window: (B, 3, 64, 64) in 0..255 -> (B, classes, 41, 41)."""
        distance = (pixels - self.background).norm(dim=1, keepdim=True)
        area = OBJECT_SIZE**2
        mean = F.avg_pool2d(distance, OBJECT_SIZE, 1)
        spread = (F.avg_pool2d(distance**2, OBJECT_SIZE, 1) - mean**2).clamp(min=0).mul(area).sqrt()
        # An icon's spread is its contrast times that of its mask, about 10: with less than the faintest, it is noise.
        return F.conv2d(distance, self.templates) / spread.clamp(min=self.FAINTEST * 10)

    def _color(self, patch: Tensor, name: int) -> str | None:
        """The palette colour nearest to two thirds or more of the icon's solid pixels of a (3, 24, 24) patch."""
        inside = patch[:, self.masks[name] > 0.9].T
        nearest = torch.cdist(inside, self.palette).argmin(dim=1)
        votes = torch.bincount(nearest, minlength=len(COLORS))
        return COLORS[int(votes.argmax())] if int(votes.max()) * 3 >= 2 * len(inside) else None


class LearnedJudgeConfig(PreTrainedConfig):
    """Sizes of the learned judge. width: channels of the 8 x 8 grid. blocks: residual blocks on that grid."""

    model_type = "learned_judge"

    width: int = 96
    blocks: int = 2


class LearnedJudge(PreTrainedModel):
    """Finds icons by a small convolutional network that says what each cell of an 8 x 8 grid is the centre of.

    A cell's centre is the centre of the object that sits there. Trained by `judge_training.train_judge` on
    scenes whose objects may be broken: the confidence of a class is how whole its icon is, not how alike.
    """

    config_class = LearnedJudgeConfig
    main_input_name = "images"

    LOWEST = 0.05  # confidences below this are not reported at all

    def __init__(self, config: LearnedJudgeConfig) -> None:
        super().__init__(config)
        width = config.width
        self.down = nn.Sequential(
            _convolution(3, width // 4, stride=2),
            _convolution(width // 4, width // 2, stride=2),
            _convolution(width // 2, width, stride=2),
        )
        self.blocks = nn.ModuleList(_convolution(width, width) for _ in range(config.blocks))
        self.head = nn.Conv2d(width, len(OBJECTS) + len(COLORS) + 1 + 4, 1)
        assert self.head.bias is not None
        with torch.no_grad():
            self.head.bias[: len(OBJECTS)].fill_(-4.0)  # most cells hold nothing: say so from the start
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps PyTorch's own initialisation: transformers' normal(0, 0.02) starves convolutions of signal."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **kwargs: Any) -> "LearnedJudge":
        """Loads a judge, computing in float32 unless `dtype` says otherwise; arguments are transformers'."""
        kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(path, *args, **kwargs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each cell of the 8 x 8 grid holds, if it is the centre of an object.

        images: uint8 (B, 3, 64, 64). Returns logits of every class (B, 16, 8, 8), independent of each other;
        logits of one colour or none (B, 9, 8, 8); and the box's x0, y0, x1, y1 from the cell's centre, in
        cells (B, 4, 8, 8).
        """
        x = self.down(images.to(self.device).to(self.dtype) / 127.5 - 1)
        for block in self.blocks:
            x = x + block(x)
        classes, colors, boxes = self.head(x).split([len(OBJECTS), len(COLORS) + 1, 4], dim=1)
        return classes, colors, boxes

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Find the objects of images; call `eval()` first if the model was just trained.

        images: uint8 (B, 3, 64, 64). Returns B lists of detections, in reading order; boxes in whole pixels.
        Errors: ValueError for another dtype or size.
        """
        _check_images(images)
        return [found for chunk in images.split(CHUNK) for found in self._detect(chunk)]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        classes, colors, boxes = (output.float().cpu() for output in self(images))
        confidence, names = classes.sigmoid().max(dim=1)  # (B, 8, 8)
        # One object a neighbourhood: whole objects are three cells apart.
        peaks = confidence == F.max_pool2d(confidence, 3, 1, padding=1)
        found: list[list[Detection]] = [[] for _ in images]
        for i, y, x in torch.nonzero(peaks & (confidence > self.LOWEST)).tolist():
            centre = torch.tensor([x, y, x, y]) + 0.5
            x0, y0, x1, y1 = ((centre + boxes[i, :, y, x]) * LATTICE).round().tolist()
            color = int(colors[i, :, y, x].argmax())
            found[i].append(
                Detection(
                    OBJECTS[int(names[i, y, x])],
                    float(confidence[i, y, x]),
                    (x0, y0, x1, y1),
                    COLORS[color] if color < len(COLORS) else None,
                )
            )
        return found


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
