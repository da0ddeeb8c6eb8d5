"""The lite verifier: a small LLaVA, its processor, and a way to read many questions about one image at once."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cotgen_lite.hub import write_manifest
from cotgen_lite.lite.vocabulary import IMAGE, USER
from cotgen_lite.lite.world import world
from cotgen_lite.verify.verifier import Verifier

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


def lite_verifier(tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """An untrained lite verifier: SigLIP tower 128 wide x 3, Qwen2 decoder 128 wide x 4, 64 image tokens."""
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world().image_size,
        patch_size=world().lattice,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(world().image_size // world().lattice) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def lite_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """The lite verifier's processor: SigLIP's images through Pillow, the word-level tokenizer, our chat template."""
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": world().image_size, "width": world().image_size}, do_resize=False
        ),
        tokenizer=tokenizer,
        patch_size=world().lattice,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def save_verifier(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the weights as fp16 safetensors, with config and processor beside them."""
    weights = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    lite_processor(tokenizer).save_pretrained(folder)


def image_features(model: LlavaForConditionalGeneration, images: torch.Tensor) -> torch.Tensor:
    """What the decoder sees of uint8 images (B, 3, 64, 64): float (B, 64, 128)."""
    pixels = images.float() / 127.5 - 1
    return torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))


@dataclass(frozen=True)
class Group:
    """Questions of like length, read together: R of them, T tokens.

    image (R,): the image each is about. ids (R, T). learned: rows and places of the tokens to predict.
    early, last: hidden states (R, T, width) halfway up the decoder and at its end. source (R,): their index.
    """

    image: torch.Tensor
    ids: torch.Tensor
    learned: tuple[torch.Tensor, torch.Tensor]
    early: torch.Tensor
    last: torch.Tensor
    source: np.ndarray


def read_together(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    features: torch.Tensor,
    encoded: Sequence[tuple[int, list[int], list[int]]],
) -> Iterator[Group]:
    """Read many questions about few images; each sees its image and itself only.

    The decoder reads the images once. Questions go on from their image's keys and values, so positions restart for
    each. They are padded on the right, where causal attention cannot see.

    Args:
        features: the images as the decoder sees them, (B, 64, 128) from `image_features`.
        encoded: for each question its image's row, its token ids, and the places of those to be predicted.
    """
    decoder = model.model.language_model
    user = torch.full((len(features), 1), tokenizer.convert_tokens_to_ids(USER))
    prefix = torch.cat([decoder.embed_tokens(user), features], dim=1)
    cache = DynamicCache(config=model.config.text_config)
    decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True)
    lengths = np.array([len(ids) for _, ids, _ in encoded])
    for members in np.array_split(np.argsort(lengths, kind="stable"), min(GROUPS, len(encoded))):
        ids = torch.full((len(members), int(lengths[members].max())), tokenizer.pad_token_id)
        for row, member in enumerate(members):
            ids[row, : lengths[member]] = torch.tensor(encoded[member][1])
        image = torch.tensor([encoded[member][0] for member in members])
        own = DynamicCache([(layer.keys[image], layer.values[image]) for layer in cache.layers])
        out = decoder(input_ids=ids, past_key_values=own, use_cache=True, output_hidden_states=True)
        pairs = [(row, place) for row, member in enumerate(members) for place in encoded[member][2]]
        rows, places = torch.tensor(pairs).T
        middle = len(out.hidden_states) // 2
        yield Group(image, ids, (rows, places), out.hidden_states[middle], out.last_hidden_state, members)


def publish_verifier(verifier: Verifier, folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Save a fine-tuned lite verifier as fp16 safetensors with its processor, and its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    save_verifier(verifier.model, verifier.processor.tokenizer, folder)
    write_manifest(folder, settings, seconds)
