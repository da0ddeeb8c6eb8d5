"""The lite verifier: a small LLaVA and its processor, how it reads many questions at once, and how well it sees.

The paper's verifier is LLaVA-OneVision (section 3.1), asked through `verify/verifier.py`; ours is of the same kind, but
small. It is measured by its AUC on clean scenes of dev prompts, whose negatives only just fail. What it is asked while
it learns is in `verifier_questions.py`, how it learns in `verifier_training.py`.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cotgen_lite.hub import write_manifest
from cotgen_lite.inputs import finite, of_kind, whole, with_methods
from cotgen_lite.lite.verifier_questions import another, as_dialogue, encode_dialogue, pick, relations_seen
from cotgen_lite.lite.vocabulary import IMAGE, USER
from cotgen_lite.lite.world import Scene, render, scene_for, world
from cotgen_lite.metrics import roc_auc
from cotgen_lite.prompts import OPPOSITE, RELATIONS, TAGS, Prompt, Requirement, lite_prompts
from cotgen_lite.verify.verifier import ORM_QUESTION, POTENTIAL_QUESTION, PRM_QUESTION, Verifier

# The answers are closed by the end token, which {% generation %} marks as part of what is learned.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% else %}<|assistant|>{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|endoftext|>{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GROUPS = 8  # of questions of like length, so that little is padded
WORDINGS = {"orm": ORM_QUESTION, "prm": PRM_QUESTION, "potential": POTENTIAL_QUESTION}


def lite_verifier(tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """An untrained lite verifier: SigLIP tower 128 wide x 3, Qwen2 decoder 128 wide x 4, 64 image tokens."""
    with_methods(tokenizer, "tokenizer", ("convert_tokens_to_ids",), "the lite tokenizer, `lite_tokenizer()`")
    same, picture = {"hidden_size": 128, "num_attention_heads": 4}, world()
    tower = {"image_size": picture.image_size, "patch_size": picture.lattice, "vision_use_head": False}
    decoder: dict[str, Any] = {"num_key_value_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.05}
    decoder |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    decoder |= {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    read = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "tie_word_embeddings": True}
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**same, intermediate_size=512, num_hidden_layers=3, **tower),
        text_config=hf.Qwen2Config(**same, intermediate_size=256, num_hidden_layers=4, **decoder),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=picture.grid**2,
        **read,
    )
    return LlavaForConditionalGeneration(config)


def lite_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """The lite verifier's processor: SigLIP's images through Pillow, the word-level tokenizer, our chat template."""
    with_methods(tokenizer, "tokenizer", ("convert_tokens_to_ids",), "the lite tokenizer, `lite_tokenizer()`")
    size = {"height": world().image_size, "width": world().image_size}
    seen = {"patch_size": world().lattice, "vision_feature_select_strategy": "full", "image_token": IMAGE}
    images = SiglipImageProcessorPil(size=size, do_resize=False)
    return LlavaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, **seen)


def save_verifier(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the weights as fp16 safetensors, with config and processor beside them."""
    model.save_pretrained(folder, state_dict={name: value.half() for name, value in model.state_dict().items()})
    lite_processor(tokenizer).save_pretrained(folder)


def publish_verifier(verifier: Verifier, folder: Path, settings: Mapping[str, object]) -> None:
    """Save a fine-tuned lite verifier as `save_verifier` does, and its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    save_verifier(verifier.model, verifier.processor.tokenizer, folder)
    write_manifest(folder, settings)


# --- reading many questions at once ---


def image_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """What the decoder sees of uint8 images (B, 3, 64, 64): float (B, 64, 128)."""
    pixels = images.float() / 127.5 - 1
    return torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))


@dataclass(frozen=True)
class Group:
    """Questions of like length, read together: R of them, T tokens."""

    image: Tensor  # (R,): which one each is about
    ids: Tensor  # (R, T)
    learned: tuple[Tensor, Tensor]  # rows and places of the tokens to predict
    early: Tensor  # hidden states (R, T, width) halfway up the decoder
    last: Tensor  # and at its end
    source: np.ndarray  # (R,): their index


def read_together(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    features: Tensor,
    encoded: Sequence[tuple[int, list[int], list[int]]],
) -> Iterator[Group]:
    """Read many questions about few images; each sees its image and itself only.

    The decoder reads the images once. Questions go on from their image's keys and values, so positions restart for
    each, and are padded on the right, where causal attention cannot see. features: of the images, (B, 64, 128), by
    `image_features`. encoded: each question's image's row, its token ids, and the places of those to be predicted.
    """
    decoder = model.model.language_model
    user = torch.full((len(features), 1), tokenizer.convert_tokens_to_ids(USER))
    prefix = torch.cat([decoder.embed_tokens(user), features], dim=1)
    cache = hf.DynamicCache(config=model.config.text_config)
    decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True)
    lengths = np.array([len(ids) for _, ids, _ in encoded])
    for members in np.array_split(np.argsort(lengths, kind="stable"), min(GROUPS, len(encoded))):
        ids = torch.full((len(members), int(lengths[members].max())), tokenizer.pad_token_id)
        for row, member in enumerate(members):
            ids[row, : lengths[member]] = torch.tensor(encoded[member][1])
        image = torch.tensor([encoded[member][0] for member in members])
        own = hf.DynamicCache([(layer.keys[image], layer.values[image]) for layer in cache.layers])
        out = decoder(input_ids=ids, past_key_values=own, use_cache=True, output_hidden_states=True)
        rows, places = torch.tensor([(row, at) for row, member in enumerate(members) for at in encoded[member][2]]).T
        middle = len(out.hidden_states) // 2
        yield Group(image, ids, (rows, places), out.hidden_states[middle], out.last_hidden_state, members)


# --- how well it sees ---


@dataclass(frozen=True)
class HeldOut:
    """One clean scene of a dev prompt, and whether it shows it."""

    tag: str
    prompt: str
    holds: bool
    scene: Scene


def evaluation_set(scenes_per_tag: int, seed: int) -> list[HeldOut]:
    """Clean scenes of dev prompts, for each tag as many, half of them hard negatives."""
    scenes_per_tag, rng = (
        whole(scenes_per_tag, "scenes_per_tag", 2, 100_000),
        np.random.default_rng(whole(seed, "seed", 0)),
    )
    held_out = []
    for tag in TAGS:
        prompts = [prompt for prompt in lite_prompts("dev") if prompt.tag == tag]
        for index in range(scenes_per_tag // 2):
            prompt = prompts[index % len(prompts)]
            held_out.append(HeldOut(tag, prompt.text, True, scene_for(prompt, rng)))
            held_out.append(HeldOut(tag, prompt.text, False, hard_negative(prompt, rng)))
    return held_out


@torch.no_grad()
def measure_verifier(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, held_out: Sequence[HeldOut]
) -> dict[str, dict[str, float]]:
    """AUC of yes against no, by wording and tag, from the answer's log-odds."""
    if not held_out:
        raise ValueError("There is nothing to measure by: give what `evaluation_set` draws.")
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    odds = np.zeros((len(held_out), len(WORDINGS)))
    for start in range(0, len(held_out), 120):
        part = held_out[start : start + 120]
        encoded = [
            (row, *encode_dialogue(tokenizer, as_dialogue(wording, example.prompt, True), clarity=False))
            for row, example in enumerate(part)
            for wording in WORDINGS.values()
        ]
        features = image_features(model, render([example.scene for example in part]))
        for group in read_together(model, tokenizer, features, encoded):
            first = torch.tensor([encoded[index][2][0] for index in group.source])
            logits = model.lm_head(group.last[torch.arange(len(first)), first - 1])
            rows, columns = np.divmod(group.source, len(WORDINGS))
            odds[start + rows, columns] = (logits[:, yes] - logits[:, no]).numpy()
    finite(odds, "log-odds of the lite verifier that is measured")
    holds, tags = np.array([h.holds for h in held_out]), np.array([h.tag for h in held_out])
    return {
        name: {tag: roc_auc(odds[tags == tag, column], holds[tags == tag]) for tag in TAGS}
        for column, name in enumerate(WORDINGS)
    }


def hard_negative(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene that only just fails a prompt: one count off, a wrong colour, a wrong relation, one thing gone."""
    of_kind(prompt, "prompt", Prompt, "a Prompt, as `parse_prompt` gives")
    of_kind(rng, "rng", np.random.Generator, "a generator of numpy's, such as `np.random.default_rng(0)` gives")
    items, names = list(prompt.include), [item.name for item in prompt.include]
    other = another(world().objects, names, rng)
    chance = rng.random()

    def change(which: int, **to: Any) -> None:
        items[which] = replace(items[which], **to)

    match prompt.tag:
        case "single_object":
            more = [another(world().objects, (*names, other), rng)] if chance >= 0.5 else []
            items = [Requirement(name) for name in (other, *more)]
        case "two_object":
            items = [Requirement(pick(names, rng)), Requirement(other)][: 1 if chance < 0.5 else 2]
        case "counting":
            change(0, count=pick([n for n in (items[0].count - 1, items[0].count + 1) if n <= 4], rng))
        case "position" if chance >= 0.2:
            relation = items[1].position[0]  # type: ignore[index]
            crosswise = [r for r in RELATIONS if r not in (relation, OPPOSITE[relation])]
            change(1, position=(OPPOSITE[relation] if chance < 0.6 else pick(crosswise, rng), 0))
        case "position":
            change(1 if chance < 0.1 else 0, name=other)
        case "color_attr" if chance < 0.5:
            items = [replace(items[0], color=items[1].color), replace(items[1], color=items[0].color)]
        case _:  # one of one or two coloured things has another colour, or is another thing
            if chance < 0.8:
                new = another(world().colors, [item.color for item in items], rng)
                change(int(len(items) > 1 and chance >= 0.65), color=new)
            else:
                change(int(len(items) > 1 and chance >= 0.9), name=other)
    while True:
        scene = scene_for(Prompt("", prompt.tag, tuple(items)), rng)
        if prompt.tag != "position" or other in [item.name for item in items]:
            return scene
        reference, item = scene
        seen, clear = relations_seen(item, reference)
        if clear and prompt.include[1].position[0] not in seen:  # type: ignore[index]
            return scene
