"""How well the lite verifier sees: AUC on clean scenes of the dev prompts, whose negatives only just fail."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from cotgen_lite.lite.verifier import image_features, read_together
from cotgen_lite.lite.verifier_questions import (
    CROSSWISE,
    Dialogue,
    another,
    as_dialogue,
    encode_dialogue,
    pick,
    relations_seen,
)
from cotgen_lite.lite.world import Scene, render, scene_for, world
from cotgen_lite.metrics import roc_auc
from cotgen_lite.prompts import (
    OPPOSITE,
    TAGS,
    Prompt,
    color_attr,
    colored,
    counting,
    lite_prompts,
    position,
    single_object,
    two_object,
)
from cotgen_lite.verify.verifier import ORM_QUESTION, POTENTIAL_QUESTION, PRM_QUESTION

WORDINGS = {"orm": ORM_QUESTION, "prm": PRM_QUESTION, "potential": POTENTIAL_QUESTION}
# A verifier sees well enough when the ORM question reaches these, and the other wordings are within SLACK of it.
ENOUGH = dict.fromkeys(TAGS, 0.95) | {"position": 0.80, "color_attr": 0.80}
SLACK = 0.03


@dataclass(frozen=True)
class HeldOut:
    """One clean scene of a dev prompt, and whether it shows it."""

    tag: str
    prompt: str
    holds: bool
    scene: Scene


def evaluation_set(scenes_per_tag: int, seed: int) -> list[HeldOut]:
    """Clean scenes of dev prompts, for each tag as many, half of them hard negatives."""
    rng = np.random.default_rng(seed)
    held_out = []
    for tag in TAGS:
        prompts = [prompt for prompt in lite_prompts("dev") if prompt.tag == tag]
        for index in range(scenes_per_tag // 2):
            prompt = prompts[index % len(prompts)]
            held_out.append(HeldOut(tag, prompt.text, True, scene_for(prompt, rng)))
            held_out.append(HeldOut(tag, prompt.text, False, hard_negative(prompt, rng)))
    return held_out


@torch.no_grad()
def measure(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[HeldOut],
    batch: int = 120,
) -> dict[str, dict[str, float]]:
    """AUC of yes against no, by wording and tag, from the answer's log-odds."""
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    odds = np.zeros((len(held_out), len(WORDINGS)))
    for start in range(0, len(held_out), batch):
        part = held_out[start : start + batch]
        asked: list[tuple[int, Dialogue]] = [
            (row, as_dialogue(wording, example.prompt, True))
            for row, example in enumerate(part)
            for wording in WORDINGS.values()
        ]
        encoded = [(row, *encode_dialogue(tokenizer, dialogue, clarity=False)) for row, dialogue in asked]
        features = image_features(model, render([example.scene for example in part]))
        for group in read_together(model, tokenizer, features, encoded):
            first = torch.tensor([encoded[index][2][0] for index in group.source])
            logits = model.lm_head(group.last[torch.arange(len(first)), first - 1])
            rows, columns = np.divmod(group.source, len(WORDINGS))
            odds[start + rows, columns] = (logits[:, yes] - logits[:, no]).numpy()
    holds, tags = np.array([h.holds for h in held_out]), np.array([h.tag for h in held_out])
    return {
        name: {tag: roc_auc(odds[tags == tag, column], holds[tags == tag]) for tag in TAGS}
        for column, name in enumerate(WORDINGS)
    }


def sees_enough(auc: dict[str, dict[str, float]]) -> bool:
    """Whether every tag's AUC in the ORM's wording is high enough, and no other wording's is much lower."""
    others = [auc[name] for name in WORDINGS if name != "orm"]
    return all(
        auc["orm"][tag] >= enough and all(auc["orm"][tag] - other[tag] <= SLACK for other in others)
        for tag, enough in ENOUGH.items()
    )


def hard_negative(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene that only just fails a prompt: one count off, a wrong colour, a wrong relation, one thing gone."""
    names = [item.name for item in prompt.include]
    other = pick([name for name in world().objects if name not in names], rng)
    colors = [item.color or "" for item in prompt.include]
    chance = rng.random()
    match prompt.tag:
        case "single_object":
            wrong = (
                single_object(other)
                if chance < 0.5
                else two_object(other, another(world().objects, (*names, other), rng))
            )
        case "two_object":
            kept = pick(names, rng)
            wrong = single_object(kept) if chance < 0.5 else two_object(kept, other)
        case "counting":
            count = prompt.include[0].count
            near = pick([n for n in (count - 1, count + 1) if n <= 4], rng)
            wrong = single_object(names[0]) if near == 1 else counting(names[0], near)
        case "colors":
            wrong = (
                colored(names[0], another(world().colors, colors, rng)) if chance < 0.8 else colored(other, colors[0])
            )
        case "position":
            reference, name = names
            relation = prompt.include[1].position[0]  # type: ignore[index]
            if chance < 0.2:
                wrong = position(other, relation, reference) if chance < 0.1 else position(name, relation, other)
            else:
                wrong = position(
                    name, OPPOSITE[relation] if chance < 0.6 else pick(CROSSWISE[relation], rng), reference
                )
        case _:
            (a, b), (ca, cb) = names, colors
            if chance < 0.5:
                wrong = color_attr(a, cb, b, ca)
            elif chance < 0.8:
                new = another(world().colors, colors, rng)
                wrong = color_attr(a, new, b, cb) if chance < 0.65 else color_attr(a, ca, b, new)
            else:
                wrong = color_attr(other, ca, b, cb) if chance < 0.9 else color_attr(a, ca, other, cb)
    while True:
        scene = scene_for(wrong, rng)
        if prompt.tag != "position" or other in (wrong.include[0].name, wrong.include[1].name):
            return scene
        placed = {item.name: item for item in scene}
        seen, clear = relations_seen(placed[name], placed[reference])
        if clear and relation not in seen:
            return scene
