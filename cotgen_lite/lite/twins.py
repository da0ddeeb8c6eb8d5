"""The twin test: does a generator know who is where, and whose colour is whose?

A scene and its twin show the same things, but have exchanged their places (or colours); so have the captions. Half of
log p(scene | its caption) − log p(scene | the twin's) + log p(twin | its own) − log p(twin | the scene's) is how much
the words count for, in nats. What a scene is worth by itself falls out, and a generator that reads nothing gets 0; how
much captions as noisy as those that it learned from imply is known (`implied`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from cotgen_lite.generate.showo import Showo, image_logits, random_positions, text_prefix
from cotgen_lite.generate.vq import ImageTokenizer
from cotgen_lite.inputs import whole
from cotgen_lite.lite.world import CaptionNoise, Scene, clearly, free_places, layouts, render, scene_for, world
from cotgen_lite.prompts import Prompt, color_attr, encode_text, position

SKILLS = {"left/right": ("left of", "right of"), "above/below": ("above", "below"), "binding": ()}
BATCH = 16  # twins at a time, each of four sequences


@dataclass(frozen=True)
class Twins:
    """A prompt with a scene that shows it, and their twins."""

    prompt: Prompt
    scene: Scene
    twin_prompt: Prompt
    twin: Scene


def make_twins(prompts: Sequence[Prompt], skill: str, count: int, seed: int) -> list[Twins]:
    """So many twins of a skill, one of SKILLS, from those of the prompts that ask for it, in turn.

    ValueError if none does.
    """
    relations, rng = SKILLS[skill], np.random.default_rng(seed)
    asking = (
        [prompt for prompt in prompts if prompt.tag == "color_attr"]
        if skill == "binding"
        else [prompt for prompt in prompts if prompt.tag == "position" and _relation(prompt) in relations]
    )
    if not asking:
        raise ValueError(
            f"None of the {len(prompts)} prompts asks for {skill}: give prompts of position and color_attr."
        )
    made = []
    for number in range(whole(count, "count", 1, 1_000_000)):
        prompt = asking[number % len(asking)]
        scene = scene_for(prompt, rng)
        one, other = scene
        a, b = prompt.include
        if skill == "binding":
            twin = (replace(one, color=other.color), replace(other, color=one.color))
            twin_prompt = color_attr(a.name, str(b.color), b.name, str(a.color))
        else:
            twin = (replace(one, x=other.x, y=other.y), replace(other, x=one.x, y=one.y))
            twin_prompt = position(a.name, _relation(prompt), b.name)
        made.append(Twins(prompt, scene, twin_prompt, twin))
    return made


def _relation(prompt: Prompt) -> str:
    return next(item.position[0] for item in prompt.include if item.position)


@torch.no_grad()
def twin_differences(
    model: Showo,
    image_tokenizer: ImageTokenizer,
    text_tokenizer: PreTrainedTokenizerBase,
    twins: Sequence[Twins],
    masks: int,
    seed: int,
) -> Tensor:
    """Of each of N twins how many nats the words count for, float32 (N,), by `masks` random masks each.

    The likelihood of an image in any order of its L tokens is the mean over k = 1 … L hidden ones of L/k times what
    their log-probabilities add up to; k is drawn from as many equal parts of 1 … L as there are masks. A scene, its
    twin and both captions share the masks.
    """
    config, generator, found = model.config, torch.Generator().manual_seed(seed), []
    length = config.num_image_tokens
    for start in range(0, len(twins), BATCH):
        some = twins[start : start + BATCH]
        images = image_tokenizer.encode(render([one.scene for one in some] + [one.twin for one in some]))
        own, other = (
            [text_prefix(config, encode_text(text_tokenizer, prompt.text)) for prompt in prompts]
            for prompts in ([one.prompt for one in some], [one.twin_prompt for one in some])
        )
        scenes, others = images.split(len(some))
        nats = torch.zeros(len(some))
        for part in range(masks):
            hidden = _mask(len(some), length, part, masks, generator)
            weight = length / hidden.sum(dim=1) / 2 / masks
            for sign, prefixes, tokens in (
                (1, own, scenes),
                (-1, other, scenes),
                (1, other, others),
                (-1, own, others),
            ):
                nats += sign * weight * _log_p(model, prefixes, tokens, hidden)
        found.append(nats)
    return torch.cat(found)


def _mask(batch: int, length: int, part: int, parts: int, generator: torch.Generator) -> Tensor:
    share = (part + torch.rand(batch, 1, generator=generator)) / parts
    count = (share * length).floor() + 1
    return random_positions(count, length, generator)


def _log_p(model: Showo, prefixes: list[list[int]], tokens: Tensor, hidden: Tensor) -> Tensor:
    nats = F.cross_entropy(image_logits(model, prefixes, tokens, hidden), tokens[hidden], reduction="none")
    return -torch.zeros(hidden.shape).masked_scatter(hidden, nats).sum(dim=1)


def implied(noise: CaptionNoise, skill: str) -> float:
    """How many nats the words count for in captions as noisy as these: ln P(scene | caption) − ln P(scene | twin's).

    Of scenes that show both things; that a wrong second thing happens to be the missing one is left out.
    """
    if skill == "binding":
        ignored = noise.colors_ignored / len(world().colors) ** 2
        right, wrong = 1 - noise.colors_ignored - noise.colors_swapped + ignored, noise.colors_swapped + ignored
    else:
        wrong = noise.relation_ignored
        right = wrong + (1 - wrong) / _chance(SKILLS[skill][0])
    return float(np.log(right / wrong)) if wrong else float("inf")


@cache
def _chance(relation: str) -> float:
    """How probable it is that two things which stand anywhere clearly stand so."""
    places = layouts()
    return sum(
        clearly(relation, item, place) / len(places) / len(free)
        for place in places
        if (free := free_places([place]))
        for item in free
    )
