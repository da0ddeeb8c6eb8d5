"""The model table of the full scale: what each public model is, and its network in the released size.

Chapter 10 computes from it what fits and what it costs; tiny_random_models.py writes small ones in the same formats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import nn

from cotgen_lite.full_scale.mask2former import CocoMask2Former
from cotgen_lite.generate.autoregressive import AutoregressiveConfig, AutoregressiveModel
from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.generate.vq import Magvit, MagvitConfig
from cotgen_lite.inputs import of_kind
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
    return sum(weights.numel() for weights in of_kind(model, "model", nn.Module, "a network").parameters())


def _onevision_7b() -> nn.Module:
    """A SigLIP tower (transformers' defaults), 384 px a tile, and Qwen2-7B."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text = hf.Qwen2Config(**sizes, num_key_value_heads=4, vocab_size=152128)
    return hf.LlavaOnevisionForConditionalGeneration(hf.LlavaOnevisionConfig(text_config=text))


def _janus_pro(width: int, inner: int, layers: int, heads: int) -> nn.Module:
    """Janus-Pro in one of its two sizes, which differ in the language model alone.

    As if its head for words were tied to their embeddings: drawing does not use that head, so it is not counted.
    """
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    text = hf.LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=102400)
    vq = hf.JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width)
    parts = {"vision_config": hf.JanusVisionConfig(projection_dim=width), "vq_config": vq}
    return hf.JanusForConditionalGeneration(hf.JanusConfig(text_config=text, **parts, tie_word_embeddings=True))


def _mask2former_swin_small() -> nn.Module:
    """GenEval's network, Mask2Former on Swin-S, for COCO's 80 classes."""
    stages = {"depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "embed_dim": 96, "window_size": 7}
    swin = hf.SwinConfig(image_size=384, **stages, out_features=STAGES)
    return CocoMask2Former(hf.Mask2FormerConfig(backbone_config=swin, num_labels=len(GENEVAL.objects)))


def _clip_large() -> nn.Module:
    """ViT-L/14, which reads colours."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 14}, projection_dim=768))


def _gpt_xl() -> nn.Module:
    return AutoregressiveModel(AutoregressiveConfig())


def _flan_t5_xl() -> nn.Module:
    """The T5 that reads LlamaGen's captions; its encoder alone is used."""
    sizes = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
    return hf.T5EncoderModel(hf.T5Config(**sizes, feed_forward_proj="gated-gelu"))


JANUS, COCO = "deepseek-community/Janus-Pro", "facebook/mask2former-swin-small-coco-instance"
RELEASED = tuple(
    Released(*row)
    for row in (
        ("Show-o, 256 px", "showlab/show-o", "Generator", lambda: Showo(ShowoConfig())),
        ("Show-o, 512 px", "showlab/show-o-512x512", "Generator", lambda: Showo(ShowoConfig(num_image_tokens=1024))),
        ("MAGVIT-v2", "showlab/magvitv2", "Generator", lambda: Magvit(MagvitConfig())),
        ("LLaVA-OneVision-7B", "llava-hf/llava-onevision-qwen2-7b-ov-hf", "Verifier", _onevision_7b),
        ("LlamaGen GPT-XL", "t2i_XL_stage1_256.pt", "LlamaGenGenerator", _gpt_xl),
        ("its captions' T5", "google/flan-t5-xl", "LlamaGenGenerator", _flan_t5_xl),
        ("its image tokenizer", "vq_ds16_t2i.pt", "LlamaGenGenerator", lambda: hf.JanusVQVAE(hf.JanusVQVAEConfig())),
        ("Janus-Pro-1B", f"{JANUS}-1B", "JanusGenerator", lambda: _janus_pro(2048, 5632, 24, 16)),
        ("Janus-Pro-7B", f"{JANUS}-7B", "JanusGenerator", lambda: _janus_pro(4096, 11008, 30, 32)),
        ("Mask2Former Swin-S", COCO, "Mask2FormerDetector", _mask2former_swin_small),
        ("CLIP ViT-L/14", "openai/clip-vit-large-patch14", "Mask2FormerDetector", _clip_large),
    )
)
