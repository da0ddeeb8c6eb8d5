"""The public models of the full scale: what each is, and its network in the released size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mask2FormerConfig,
    Qwen2Config,
    SwinConfig,
    T5Config,
    T5EncoderModel,
)

from cotgen_lite.full_scale.mask2former import _Segmenter
from cotgen_lite.generate.autoregressive import AutoregressiveConfig, AutoregressiveModel
from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.generate.vq import Magvit, MagvitConfig
from cotgen_lite.prompts import GENEVAL

STAGES = ["stage1", "stage2", "stage3", "stage4"]  # of Swin, all of which Mask2Former sees


@dataclass(frozen=True)
class Released:
    """A public model: what it is, where it lies, what loads it here, and its network in the released size."""

    name: str
    source: str
    loader: str
    build: Callable[[], nn.Module]

    def on_meta(self) -> nn.Module:
        """The network with shapes but no weights, so that even the largest takes no memory."""
        with torch.device("meta"):
            return self.build()


def parameters(model: nn.Module) -> int:
    """How many numbers are learned in a network, each counted once."""
    return sum(weights.numel() for weights in model.parameters())


def onevision_7b() -> LlavaOnevisionConfig:
    """LLaVA-OneVision-7B: a SigLIP tower (transformers' defaults), 384 px a tile, and Qwen2-7B."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    return LlavaOnevisionConfig(text_config=Qwen2Config(**sizes, num_key_value_heads=4, vocab_size=152128))


def janus_pro(width: int, inner: int, layers: int, heads: int) -> JanusConfig:
    """Janus-Pro in one of its two sizes, which differ in the language model alone.

    As if its head for words were tied to their embeddings: drawing does not use that head, so it is not counted.
    """
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    text = LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=102400)
    vq = JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width)
    return JanusConfig(
        text_config=text, vision_config=JanusVisionConfig(projection_dim=width), vq_config=vq, tie_word_embeddings=True
    )


def mask2former_swin_small() -> Mask2FormerConfig:
    """GenEval's network, Mask2Former on Swin-S, for COCO's 80 classes."""
    stages = {"depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "embed_dim": 96, "window_size": 7}
    return Mask2FormerConfig(
        backbone_config=SwinConfig(image_size=384, **stages, out_features=STAGES), num_labels=len(GENEVAL.objects)
    )


def clip_large() -> CLIPConfig:
    """CLIP ViT-L/14, which reads colours."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 14}, projection_dim=768)


def flan_t5_xl() -> T5Config:
    """The T5 that reads LlamaGen's captions; its encoder alone is used."""
    return T5Config(d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu")


RELEASED = (
    Released("Show-o, 256 px", "showlab/show-o", "Generator", lambda: Showo(ShowoConfig())),
    Released(
        "Show-o, 512 px", "showlab/show-o-512x512", "Generator", lambda: Showo(ShowoConfig(num_image_tokens=1024))
    ),
    Released("MAGVIT-v2", "showlab/magvitv2", "Generator", lambda: Magvit(MagvitConfig())),
    Released(
        "LLaVA-OneVision-7B",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "Verifier",
        lambda: LlavaOnevisionForConditionalGeneration(onevision_7b()),
    ),
    Released(
        "LlamaGen GPT-XL",
        "t2i_XL_stage1_256.pt",
        "LlamaGenGenerator",
        lambda: AutoregressiveModel(AutoregressiveConfig()),
    ),
    Released("its captions' T5", "google/flan-t5-xl", "LlamaGenGenerator", lambda: T5EncoderModel(flan_t5_xl())),
    Released("its image tokenizer", "vq_ds16_t2i.pt", "LlamaGenGenerator", lambda: JanusVQVAE(JanusVQVAEConfig())),
    Released(
        "Janus-Pro-1B",
        "deepseek-community/Janus-Pro-1B",
        "JanusGenerator",
        lambda: JanusForConditionalGeneration(janus_pro(2048, 5632, 24, 16)),
    ),
    Released(
        "Janus-Pro-7B",
        "deepseek-community/Janus-Pro-7B",
        "JanusGenerator",
        lambda: JanusForConditionalGeneration(janus_pro(4096, 11008, 30, 32)),
    ),
    Released(
        "Mask2Former Swin-S",
        "facebook/mask2former-swin-small-coco-instance",
        "Mask2FormerDetector",
        lambda: _Segmenter(mask2former_swin_small()),
    ),
    Released("CLIP ViT-L/14", "openai/clip-vit-large-patch14", "Mask2FormerDetector", lambda: CLIPModel(clip_large())),
)
