"""What the starting generator can do, on dev prompts: the figures that its training is judged by.

The lite generator is to have the paper's profile (strong at single objects, weak at position and binding) and yet every
skill: right among some, and words that count (`lite/twins.py`). `pretrain.py` trains it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import Showo
from cotgen_lite.generate.vq import ImageTokenizer
from cotgen_lite.geneval import Detector, evaluate
from cotgen_lite.lite.twins import SKILLS, implied, make_twins, twin_differences
from cotgen_lite.lite.world import CaptionNoise
from cotgen_lite.metrics import bootstrap_tags, expected_best_of, score
from cotgen_lite.prompts import Prompt

MASKS = 6  # of each twin


def profile(generator: Generator, tokens: Tensor, prompts: Sequence[Prompt], detector: Detector) -> dict[str, Any]:
    """How good pictures are: tokens (P, N, L) of N images of every prompt, by a judge.

    Overall and by tag with 95% intervals; at least one of four right ("any_of_4"); "arranged": among images with both
    things how many are arranged as asked; "bound": among those with both things and both colours how many have each
    colour on its thing.
    """
    right, both, either = (np.zeros(tokens.shape[:2], bool) for _ in range(3))
    for row, prompt in enumerate(tqdm(prompts, desc="judge")):
        present, swapped = _without_position(prompt), _with_colors_swapped(prompt)
        for column, found in enumerate(detector.detect(generator.decode(tokens[row]))):
            right[row, column] = evaluate(prompt, found).correct
            both[row, column] = evaluate(present, found).correct
            either[row, column] = right[row, column] or evaluate(swapped, found).correct
    result, tags = score(prompts, right.mean(1)), np.array([prompt.tag for prompt in prompts])
    bounds = np.percentile(bootstrap_tags(prompts, right.mean(1)), (2.5, 97.5), axis=0).T
    any_of_4 = score(prompts, expected_best_of(right.astype(float), right, 4))
    return {
        "overall": [result.overall, *result.ci],
        "tags": {tag: [value, *edges] for (tag, value), edges in zip(result.tags.items(), bounds, strict=True)},
        "any_of_4": [any_of_4.overall, *any_of_4.ci],
        "arranged": _share(right, both, tags == "position"),
        "bound": _share(right, either, tags == "color_attr"),
    }


def _without_position(prompt: Prompt) -> Prompt:
    return replace(prompt, include=tuple(replace(item, position=None) for item in prompt.include))


def _with_colors_swapped(prompt: Prompt) -> Prompt:
    colors = [item.color for item in prompt.include][::-1]
    return replace(
        prompt, include=tuple(replace(item, color=color) for item, color in zip(prompt.include, colors, strict=True))
    )


def _share(right: npt.NDArray, among: npt.NDArray, rows: npt.NDArray) -> dict[str, Any]:
    """How many of some images of some prompts are right, with an interval over prompts, and how many these are."""
    hits, of = right[rows].sum(1), among[rows].sum(1)
    draws = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
    shares = hits[draws].sum(1) / np.maximum(of[draws].sum(1), 1)
    return {"share": [hits.sum() / max(of.sum(), 1), *np.quantile(shares, (0.025, 0.975))], "images": int(of.sum())}


def twin_test(
    model: Showo, pixels: ImageTokenizer, words: Any, prompts: Sequence[Prompt], noise: CaptionNoise, twins: int
) -> dict[str, dict[str, Any]]:
    """Of each skill how many nats the words count for, by so many twins, with a 95% interval.

    "implied" is how many the captions imply: None where they are never wrong, and there is no end of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for skill in SKILLS:
        nats = twin_differences(model, pixels, words, make_twins(prompts, skill, twins, seed=0), MASKS, seed=0).numpy()
        reach = 1.96 * nats.std() / len(nats) ** 0.5
        found[skill] = {
            "nats": round(float(nats.mean()), 4),
            "ci": [round(float(nats.mean() + sign * reach), 4) for sign in (-1, 1)],
            "implied": None if np.isinf(sure := implied(noise, skill)) else round(sure, 4),
        }
    return found
