"""LlamaGen at full scale: its released checkpoints under this package's names, and its captions read by T5.

Files: "t2i_XL_stage1_256.pt" (grid 16), "t2i_XL_stage2_512.pt" (grid 32), "vq_ds16_t2i.pt"; T5: "google/flan-t5-xl".
Facts: LlamaGen's code (MIT, github.com/FoundationVision/LlamaGen), arXiv 2406.06525.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusVQVAE, JanusVQVAEConfig, PreTrainedTokenizerBase, T5EncoderModel

from cotgen_lite.generate.autoregressive import (
    AutoregressiveConfig,
    AutoregressiveGenerator,
    AutoregressiveModel,
    AutoregressiveSettings,
)
from cotgen_lite.generate.vq import VqTokenizer
from cotgen_lite.inputs import of_kind, whole
from cotgen_lite.inputs import text as check_text
from cotgen_lite.loading import check_dtype, chosen_device, load_complete, load_pickle, load_tokenizer
from cotgen_lite.prompts import encode_text

# Parts of the names: of ours, and of LlamaGen's for the same weights (three of ours are cut from "wqkv").
_GPT = {
    **{"llama.embed_tokens": "tok_embeddings", "llama.norm": "norm", "head.": "output.", "llama.layers": "layers"},
    **{"project.0": "cls_embedding.cap_proj.fc1", "project.2": "cls_embedding.cap_proj.fc2"},
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.wqkv"),
    **{"nothing": "cls_embedding.uncond_embedding", "self_attn.o_proj": "attention.wo"},
    **{"mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3"},
    **{"post_attention_layernorm": "ffn_norm", "input_layernorm": "attention_norm"},
}
VQ_NAMES = {
    **{"encoder.down.": "encoder.conv_blocks.", "decoder.up.": "decoder.conv_blocks.", ".block.": ".res."},
    **{".mid.block_1.": ".mid.0.", ".mid.attn_1.": ".mid.1.", ".mid.block_2.": ".mid.2."},
}


def load_llamagen(path: str | Path, grid: int, heads: int | None = None) -> AutoregressiveModel:
    """The generator in a released text-to-image file, in float32 and eval mode.

    grid: tokens along one side, of which the weights say nothing: 16 at 256 px, 32 at 512 px. heads: by default as
    many as are 64 wide, like GPT-XL's. ValueError if the file is damaged or is not exactly such a checkpoint.
    """
    grid, heads = whole(grid, "grid", 1, 128), None if heads is None else whole(heads, "heads", 1, 1024)
    state = read_weights(path)
    state.pop("freqs_cis", None)  # a table of positions that some files hold; it is computed here
    codes, width = _shape(state, "tok_embeddings.weight", 2)
    length, text_width = _shape(state, "cls_embedding.uncond_embedding", 2)
    heads = heads or max(1, width // 64)
    if width % (4 * heads):
        raise ValueError(f"{width} numbers cannot be cut into {heads} heads of a multiple of 4: give another `heads`.")
    inner, layers = _shape(state, "layers.0.feed_forward.w1.weight", 2)[0], _count(state, "layers.")
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    read = {"codebook_size": codes, "grid": grid, "text_length": length, "text_width": text_width}
    config = AutoregressiveConfig(**read, **shape, num_attention_heads=heads)
    with torch.device("meta"):  # neither drawn at random first nor twice in memory
        model = AutoregressiveModel(config)
    model.load_state_dict(convert_gpt(state, model), assign=True)
    return model.float().eval()


def convert_gpt(state: Mapping[str, Tensor], model: AutoregressiveModel) -> dict[str, Tensor]:
    """LlamaGen's weights under the model's names; ValueError names the first missing, unexpected or misshapen one.

    LlamaGen turns neighbouring numbers of a query or key together, transformers' Llama those half a head apart. The
    rows of both projections are put in that order, which leaves every product of a query and a key as it was.
    """
    of_kind(model, "model", AutoregressiveModel, "an AutoregressiveModel")
    converted = _convert(of_kind(state, "state", Mapping, "named tensors"), model, _GPT)
    for name, weight in converted.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            converted[name] = _halves(weight, model.config.num_attention_heads)
    return converted


def renamed(name: str, parts: Mapping[str, str]) -> str:
    """A weight's name with parts of it replaced by LlamaGen's."""
    name = check_text(name, "name")
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _convert(state: Mapping[str, Tensor], model: nn.Module, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """LlamaGen's weights under the model's names, after a check that they are exactly those."""
    sizes, sources = {name: weight.shape for name, weight in model.state_dict().items()}, dict[str, list[str]]()
    for name in sizes:
        sources.setdefault(renamed(name, parts), []).append(name)
    shapes = {theirs: (sum(sizes[n][0] for n in ours), *sizes[ours[0]][1:]) for theirs, ours in sources.items()}
    for name in [*shapes, *state]:
        found = tuple(state[name].shape) if name in state else "missing"
        if found != (right := shapes.get(name, "unexpected")):
            raise ValueError(
                f"These weights are not LlamaGen's: {name} is {found}, but {right} here; give its released file."
            )
    converted: dict[str, Tensor] = {}
    for theirs, ours in sources.items():
        pieces = state[theirs].split([sizes[name][0] for name in ours])
        # A piece is copied, lest it keep the whole in memory.
        converted |= zip(ours, pieces if len(ours) == 1 else [piece.clone() for piece in pieces], strict=True)
    return converted


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head's block reordered, the even ones first, then the odd ones."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def load_vq(path: str | Path, grid: int) -> VqTokenizer:
    """The image tokenizer in a released file, for images of any `grid` tokens a side; errors as in `load_llamagen`."""
    grid, state = whole(grid, "grid", 1, 128), read_weights(path)
    codes, numbers = _shape(state, "quantize.embedding.weight", 2)
    channels = _shape(state, "encoder.conv_in.weight", 4)[0]
    levels = range(_count(state, "encoder.conv_blocks."))
    widths = [_shape(state, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in levels]
    config = JanusVQVAEConfig(
        num_embeddings=codes,
        embed_dim=numbers,
        latent_channels=_shape(state, "encoder.conv_out.weight", 4)[0],
        base_channels=channels,
        channel_multiplier=tuple(width // channels for width in widths),
        num_res_blocks=_count(state, "encoder.conv_blocks.0.res."),
        num_patches=grid,
    )
    with torch.device("meta"):
        vq = JanusVQVAE(config)
    # What is left out is a record of the codes in use while it was trained.
    kept = {name: value for name, value in state.items() if name != "quantize.codebook_used"}
    vq.load_state_dict(_convert(kept, vq, VQ_NAMES), assign=True)
    return VqTokenizer(vq.float())


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in one of LlamaGen's files, by its own names; ValueError if it is missing or damaged."""
    of_kind(path, "path", (str, Path), "the path of a .pt file")
    try:
        with torch.serialization.safe_globals([Namespace]):  # some files hold their training's arguments too
            checkpoint = load_pickle(path)
    except Exception as error:  # torch raises almost anything for a file that is none of its own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read ({reason}): it must be an intact .pt file; fetch it again.") from error
    for part in ("model", "module", "state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(part), dict):
            state = checkpoint[part]
            if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
                return dict(state)
    raise ValueError(
        f'{path} holds no named tensors under "model", "module" or "state_dict": give a .pt file of LlamaGen.'
    )


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state or state[name].dim() != dimensions or not state[name].numel():
        raise ValueError(f"These are not LlamaGen's weights: {name} is missing or misshapen; give its released file.")
    return tuple(state[name].shape)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def plain_caption(text: str) -> str:
    """A caption in lower case with single spaces; LlamaGen takes out links and the like besides."""
    return " ".join(check_text(text, "A caption").lower().split())


@torch.inference_mode()
def t5_features(
    encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]], length: int = 120
) -> tuple[Tensor, Tensor]:
    """T5's features of B captions (B, length, width), pads at the left, and which places are no pads, bool (B, length).

    ValueError for a caption that is too long, where LlamaGen would cut it.
    """
    if not texts:
        raise ValueError("There is no caption to read: give at least one.")
    ended = [[*text, tokenizer.eos_token_id] for text in texts]
    longest = max(len(text) for text in ended)
    if longest > length:
        raise ValueError(f"A caption of {longest} tokens is too long: at most {length} can be read; shorten it.")
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(text)) + text for text in ended]).to(encoder.device)
    visible = ids != tokenizer.pad_token_id
    # LlamaGen pads at the right and then moves the pads: the same, for T5 knows only distances.
    features = encoder(input_ids=ids, attention_mask=visible.long()).last_hidden_state * visible[..., None]
    return F.pad(features, (0, 0, length - longest, 0)), F.pad(visible, (length - longest, 0))


@dataclass(frozen=True)
class LlamaGenGenerator(AutoregressiveGenerator):
    """LlamaGen with its tokenizers and T5; draws and decodes like `AutoregressiveGenerator`."""

    encoder: T5EncoderModel

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what its weights do not say has to be said
        cls,
        model: str | Path,
        text_tokenizer: str | Path,
        image_tokenizer: str | Path,
        settings: AutoregressiveSettings,
        grid: int,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> "LlamaGenGenerator":
        """Load LlamaGen's two files, and T5 with its words from a folder or hub name; OSError without them.

        grid: as in `load_llamagen`, as are errors. device: "auto" takes a GPU. dtype: of generator and T5.
        """
        chosen = chosen_device(device)
        check_dtype(dtype)
        of_kind(settings, "settings", AutoregressiveSettings, "AutoregressiveSettings")
        generator = cls(
            load_llamagen(model, grid).to(chosen, dtype),
            load_tokenizer(text_tokenizer),
            load_vq(image_tokenizer, grid).to(chosen),
            settings,
            load_complete(T5EncoderModel, text_tokenizer, "T5", dtype=dtype).to(chosen),
        )
        ours = generator.model.config.codebook_size, generator.model.config.text_width
        theirs = generator.image_tokenizer.config.codebook_size, generator.encoder.config.d_model
        if ours != theirs:
            raise ValueError(
                f"{model} was made for {ours[0]} codes and caption features of {ours[1]} numbers, but "
                f"{image_tokenizer} and {text_tokenizer} have {theirs[0]} and {theirs[1]}: "
                "give the parts that it was trained with."
            )
        words, known = generator.text_tokenizer, generator.encoder.config.vocab_size
        if None in (words.eos_token_id, words.pad_token_id) or len(words) > known:
            raise ValueError(
                f"The tokenizer in {text_tokenizer} lacks an end or a pad, or has more than the {known} words of T5 "
                "beside it: give T5 with its own words."
            )
        return generator

    def encode(self, prompt: str) -> list[int]:
        """A prompt in lower case, as T5's ids."""
        most = self.model.config.text_length - 1  # the end follows
        return encode_text(self.text_tokenizer, plain_caption(prompt), most)

    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """T5's features of Q captions (Q, S, D), those that stand for no caption, and which are no pads, (Q, S)."""
        features, visible = t5_features(self.encoder, self.text_tokenizer, texts, self.model.config.text_length)
        return features.to(self.model.dtype), self.model.nothing, visible
