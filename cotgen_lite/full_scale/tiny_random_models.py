"""Small random stand-ins of the public models of the full scale, in the same files' formats.

A stand-in has the released file's names, layout and config fields, its grid of codes and the depth of its image
tokenizer, but few numbers a layer and no training: the code of the full scale runs on it in seconds, and draws noise.
"""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from cotgen_lite.full_scale.janus import BEGIN_OF_IMAGE
from cotgen_lite.full_scale.llamagen import VQ_NAMES, renamed
from cotgen_lite.full_scale.mask2former import CocoMask2Former
from cotgen_lite.full_scale.models import STAGES
from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.generate.vq import Magvit, MagvitConfig
from cotgen_lite.hub import in_place_of, write_json
from cotgen_lite.inputs import of_kind, whole
from cotgen_lite.prompts import GENEVAL
from cotgen_lite.verify.verifier import _ImageOnlyProcessor

END, PAD, IMAGE, VIDEO = "<|endoftext|>", "<|pad|>", "<image>", "<video>"
SPECIAL = [END, PAD, IMAGE, VIDEO, BEGIN_OF_IMAGE, "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# Two levels, so 2 px a code, where the released tokenizer has five; 32 channels, since its norms have 32 groups.
SMALL_VQ: dict[str, Any] = {"embed_dim": 4, "num_embeddings": 512, "latent_channels": 8, "base_channels": 32}
SMALL_VQ |= {"channel_multiplier": (1, 2), "num_res_blocks": 1}


def save_all(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write one stand-in of each kind under a folder; returns part → its file or folder. About 13 MB, in seconds.

    Parts: "words", "showo", "showo-512", "magvit", "onevision", "janus", "llamagen", "llamagen-vq", "t5", "clip" and
    "mask2former". The same seed gives the same weights.
    """
    folder = Path(of_kind(folder, "folder", (str, Path), "the path of a folder"))
    seed = whole(seed, "seed", 0, 2**63 - 1)
    parts = ("words", "showo", "showo-512", "magvit", "onevision", "janus", "t5", "clip", "mask2former")
    paths = {part: folder / part for part in parts} | {"llamagen": folder / "t2i.pt", "llamagen-vq": folder / "vq.pt"}
    words = save_words(paths["words"])
    with torch.random.fork_rng(devices=[]):
        for save, *details in (
            (save_showo, paths["showo"], words, 256),
            (save_showo, paths["showo-512"], words, 1024),
            (save_magvit, paths["magvit"]),
            (save_onevision, paths["onevision"], words),
            (save_janus, paths["janus"], words),
            (save_llamagen, paths["llamagen"], paths["llamagen-vq"], paths["t5"], words),
            (save_mask2former, paths["mask2former"]),
            (save_clip, paths["clip"]),
        ):
            torch.manual_seed(seed)  # so that no part hangs on another
            save(*details)
    return paths


def save_words(folder: Path) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE that reads any text, as Phi's does; with one token for yes and for no, in any writing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    answers = ("yes", "Yes", "no", "No")
    tokenizer.train_from_iterator([*answers, *(f" {word}" for word in answers)] * 2, trainer)
    ends = {"bos_token": END, "eos_token": END, "pad_token": PAD, "additional_special_tokens": SPECIAL[2:]}
    words = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
    words.save_pretrained(folder)
    return words


def _ids(words: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a language model's config says of its words."""
    of_kind(words, "words", hf.PreTrainedTokenizerFast, "the words that `save_words` gives")
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return special | {"vocab_size": len(words)}


def save_showo(folder: Path, words: hf.PreTrainedTokenizerFast, tokens: int) -> None:
    """A Show-o of 256 or 1,024 codes an image in the released fields and names, 8,192 codes to choose from.

    The released config.json leaves out the sizes of Phi-1.5; a smaller model has to state its own.
    """
    ends = {name: number for name, number in _ids(words).items() if name in ("bos_token_id", "eos_token_id")}
    sizes: dict[str, Any] = LAYERS | {"intermediate_size": 64} | ends
    config = ShowoConfig(text_vocab_size=len(words), num_image_tokens=tokens, **sizes)
    released = {
        **{"_class_name": "Showo", "_diffusers_version": "0.30.1", "codebook_size": config.codebook_size},
        **{"llm_model_path": "microsoft/phi-1_5", "llm_vocab_size": config.text_vocab_size, "load_from_showo": True},
        **{"mask_token_id": config.mask_id, "num_vq_tokens": tokens, "vocab_size": config.vocab_size},
        "w_clip_vit": False,
    }
    _write(folder, released | sizes, _stir(Showo(config)).state_dict())


def save_magvit(folder: Path) -> None:
    """A MAGVIT-v2 of the released depth and 13 bits, 2 channels wide instead of 128, with the released two tables."""
    narrow = {"channels": 2, "norm_groups": 2}
    state = Magvit(MagvitConfig(**narrow)).state_dict()
    tables = {"quantize.embedding": torch.zeros(2**13, 13), "quantize.power_vals": torch.zeros(13)}
    _write(folder, {"_class_name": "MAGViTv2", "_diffusers_version": "0.30.1"} | narrow, state | tables)


def save_onevision(folder: Path, words: hf.PreTrainedTokenizerFast) -> None:
    """A LLaVA-OneVision: SigLIP tower, Qwen2 decoder, an image as a whole and in tiles of 32 px instead of 384."""
    shape, pinpoints = LAYERS | {"intermediate_size": 48}, [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**shape, image_size=32, patch_size=8, vision_use_head=False),
        text_config=hf.Qwen2Config(**shape, num_key_value_heads=2, **_ids(words)),
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        video_token_index=words.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=pinpoints,
    )
    _stir(hf.LlavaOnevisionForConditionalGeneration(config), by=0.3).save_pretrained(folder)
    tiles = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints)
    seen = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    _ImageOnlyProcessor(tiles, words, **seen, chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def save_janus(folder: Path, words: hf.PreTrainedTokenizerFast) -> None:
    """A Janus-Pro of 24 x 24 codes in transformers' format, its pictures 48 px instead of 384."""
    room = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(**LAYERS, **room, **_ids(words)),
        vision_config=hf.JanusVisionConfig(**LAYERS, image_size=48, patch_size=2, projection_dim=32),
        vq_config=hf.JanusVQVAEConfig(**SMALL_VQ, projection_dim=32, image_token_embed_dim=32),
        image_token_id=words.convert_tokens_to_ids(IMAGE),
    )
    _stir(hf.JanusForConditionalGeneration(config)).save_pretrained(folder)
    words.save_pretrained(folder)


def save_llamagen(model: Path, vq: Path, t5: Path, words: hf.PreTrainedTokenizerFast) -> None:
    """LlamaGen's two files, 16 x 16 codes and pictures of 32 px, and a T5 with its words.

    The files are pickles, as LlamaGen's are, but hold nothing except named tensors.
    """
    width, inner, text, codes = 64, 96, 32, 512
    shapes = {"cls_embedding.uncond_embedding": (120, text), "cls_embedding.cap_proj.fc1.weight": (width, text)}
    shapes |= {"cls_embedding.cap_proj.fc2.weight": (width, width), "tok_embeddings.weight": (codes, width)}
    shapes |= {"output.weight": (codes, width)}
    layer = {"attention.wqkv": (3 * width, width), "attention.wo": (width, width), "feed_forward.w1": (inner, width)}
    layer |= {"feed_forward.w3": (inner, width), "feed_forward.w2": (width, inner)}
    shapes |= {f"layers.{i}.{part}.weight": shape for i in range(2) for part, shape in layer.items()}
    norms = ["norm.weight", *(f"layers.{i}.{part}_norm.weight" for i in range(2) for part in ("attention", "ffn"))]
    state = {name: 2 * torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    state |= {name: torch.ones(width) for name in norms}
    pixels = _stir(hf.JanusVQVAE(hf.JanusVQVAEConfig(**SMALL_VQ, num_patches=16))).state_dict()
    rebuilt = {renamed(name, VQ_NAMES): weights for name, weights in pixels.items()}
    for file, tensors in ((model, state), (vq, rebuilt)):
        with in_place_of(file) as part:
            torch.save({"model": tensors}, part)
    sizes = hf.T5Config(vocab_size=len(words), d_model=text, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    _stir(hf.T5EncoderModel(sizes)).save_pretrained(t5)
    words.save_pretrained(t5)


def save_mask2former(folder: Path) -> None:
    """A Mask2Former for COCO's 80 classes in the hub's layout."""
    stages = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "embed_dim": 8, "window_size": 2}
    few = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 12}
    narrow = {"encoder_feedforward_dim": 16, "dim_feedforward": 16}
    narrow |= dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)  # group norms have 32 groups
    backbone, classes = hf.SwinConfig(image_size=32, **stages, out_features=STAGES), dict(enumerate(GENEVAL.objects))
    names = {name: number for number, name in classes.items()}
    config = hf.Mask2FormerConfig(backbone_config=backbone, **few, **narrow, id2label=classes, label2id=names)
    model = CocoMask2Former(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(25)  # sure of itself, and wrong
    model.save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """A CLIP with letters for words."""
    letters = "abcdefghijklmnopqrstuvwxyz-"
    pieces = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), END]
    hf.CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    text, vision = shape | ends | {"vocab_size": len(pieces)}, shape | {"image_size": 16, "patch_size": 4}
    _stir(hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))).save_pretrained(folder)


def _stir(model: Any, by: float = 0.2) -> Any:
    """A freshly made network hardly looks at its input, so that all answers are alike: make its weights wilder."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(by * torch.randn_like(weights))
    return model


def _write(folder: Path, config: dict, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    with in_place_of(folder / "pytorch_model.safetensors") as part:
        save_file(state, part, metadata={"format": "pt"})
