"""Small random checkpoints of three kinds of verifier, in the files' real layouts."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from cotgen_lite.lite.verifier import CHAT_TEMPLATE, lite_processor, lite_verifier
from cotgen_lite.lite.vocabulary import IMAGE, lite_tokenizer
from cotgen_lite.verify.verifier import ORM_QUESTION, _ImageOnlyProcessor

PROMPTS = ["a photo of a cat", "a photo of a red apple and a blue car", "a photo of three dogs", "a photo of a cup"]
SPECIAL = ["<|endoftext|>", "<|pad|>", "<image>", "<|user|>", "<|assistant|>", "<video>"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE, in which "yes", "Yes", " yes" and " Yes" are four tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [word for word in ("yes", "Yes", "no", "No") for _ in range(50)]
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words), ORM_QUESTION, *PROMPTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[2:],
    )


def token_settings(tokenizer: PreTrainedTokenizerFast) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,  # large, so that logits differ from image to image and prompt to prompt
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }


def save_lite(folder: Path) -> None:
    tokenizer = lite_tokenizer()
    model = lite_verifier(tokenizer)
    model.save_pretrained(folder)
    lite_processor(tokenizer).save_pretrained(folder)


def save_llava(folder: Path) -> None:
    """LLaVA 1.5's layout: CLIP tower with a class token, Llama decoder, images resized by the processor."""
    tokenizer = byte_level_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**token_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=16,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def save_onevision(folder: Path) -> None:
    """LLaVA-OneVision's layout: SigLIP tower, Qwen2 decoder, an image as a whole and in tiles."""
    tokenizer = byte_level_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**token_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    _ImageOnlyProcessor(
        LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints),
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


class Moody(torch.nn.Module):
    """A verifier whose opinions hang on the image in some fixed, wild way."""

    def __init__(self, doubt: float = 0.0) -> None:
        super().__init__()
        self.model, self.doubt = self, doubt

    def _mood(self, images: torch.Tensor, by: float) -> torch.Tensor:
        return torch.sin(images.float().mean(dim=(1, 2, 3)) * by).half().float()

    def score(self, images: torch.Tensor, prompt: str, *_: object) -> torch.Tensor:
        return self._mood(images, 31.0)

    def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mood(images, 17.0), (self._mood(images, 53.0) - self.doubt).half().float()
