"""The masked-token generator: Show-o, a Phi language model that fills in the tokens of an image.

One sequence holds prompt and image: `[pad...][t2i][bos] text [eos]` then `[soi] tokens [eoi]`. Text is read causally;
an image position sees everything but the pads, so all unknown tokens are predicted at once. Show-o: arXiv 2408.12528;
paper: section 2.1. Read next: forward.py, the same pass for drawing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM, PretrainedConfig, PreTrainedModel

from cotgen_lite.inputs import all_whole, number, of_kind, shown, whole, yes_or_no
from cotgen_lite.loading import check_dtype, load_exactly

# After the text words and the pad, in this order (Show-o's vocabulary).
SPECIAL_TOKENS = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
# Fields of the original checkpoint's config.json that say nothing about the network.
ORIGINAL_ONLY_FIELDS = (
    "_class_name",
    "_diffusers_version",
    "llm_model_path",
    "load_from_showo",
    "num_new_special_tokens",
)


class ShowoConfig(PretrainedConfig):
    """Sizes and vocabulary of a Show-o model; the defaults are the released 256 px checkpoint's (Phi-1.5).

    Vocabulary: text 0..V-1, pad V, the nine SPECIAL_TOKENS, K image codes, mask. `max_text_length` counts
    t2i, bos and eos. The released checkpoint's own field names (llm_vocab_size, num_vq_tokens, ...) are
    understood. ValueError if sizes contradict each other or the checkpoint needs parts this class lacks.
    """

    model_type = "showo"

    text_vocab_size: int = 50295
    codebook_size: int = 8192
    num_image_tokens: int = 256
    max_text_length: int = 129
    bos_token_id: int = 50256
    eos_token_id: int = 50256
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    intermediate_size: int = 8192
    max_position_embeddings: int = 2048
    qk_layernorm: bool = True
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ORIGINAL_ONLY_FIELDS:
            kwargs.pop(name, None)
        if kwargs.pop("w_clip_vit", False):
            raise ValueError(
                "This Show-o checkpoint reads images through CLIP (w_clip_vit), which cannot draw here: "
                "use showlab/show-o or showlab/show-o-512x512."
            )
        self.text_vocab_size = kwargs.pop("llm_vocab_size", self.text_vocab_size)
        self.num_image_tokens = kwargs.pop("num_vq_tokens", self.num_image_tokens)
        self._check_sizes()
        for name, ours in (("vocab_size", self.vocab_size), ("mask_token_id", self.mask_id)):
            stated = kwargs.pop(name, None)
            if stated is not None and stated != ours:
                raise ValueError(
                    f"Config says {name} {stated}, but {self.text_vocab_size} words, pad, 9 special tokens, "
                    f"{self.codebook_size} image codes and a mask make it {ours}: correct one of them."
                )
        if self.max_text_length + self.num_image_tokens + 2 > self.max_position_embeddings:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} is too small for {self.max_text_length} "
                f"text and {self.num_image_tokens + 2} image positions: raise it."
            )
        super().__post_init__(**kwargs)

    def _check_sizes(self) -> None:
        """ValueError for sizes that no network can have, and numbers of a kind that none has."""
        words = whole(self.text_vocab_size, "text_vocab_size", 1, 2**20)
        least = {"max_text_length": 3, "bos_token_id": 0, "eos_token_id": 0}
        most = {"num_hidden_layers": 1000, "bos_token_id": words - 1, "eos_token_id": words - 1}
        for name, kind in ShowoConfig.__annotations__.items():
            if kind is int:
                setattr(self, name, whole(getattr(self, name), name, least.get(name, 1), most.get(name, 2**20)))
            elif kind is bool:
                setattr(self, name, yes_or_no(getattr(self, name), name))
        number(self.partial_rotary_factor, "partial_rotary_factor", above=0, most=1)
        number(self.rope_theta, "rope_theta", 1, 1e9)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be cut into {self.num_attention_heads} heads: give a multiple."
            )

    @property
    def pad_id(self) -> int:
        return self.text_vocab_size

    @property
    def soi_id(self) -> int:
        return self.pad_id + 1 + SPECIAL_TOKENS.index("soi")

    @property
    def eoi_id(self) -> int:
        return self.pad_id + 1 + SPECIAL_TOKENS.index("eoi")

    @property
    def t2i_id(self) -> int:
        return self.pad_id + 1 + SPECIAL_TOKENS.index("t2i")

    @property
    def image_offset(self) -> int:
        """Vocabulary id of image code 0."""
        return self.text_vocab_size + 1 + len(SPECIAL_TOKENS)

    @property
    def mask_id(self) -> int:
        return self.image_offset + self.codebook_size

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    def phi_config(self) -> PhiConfig:
        """The config of the language model inside."""
        return PhiConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            qk_layernorm=self.qk_layernorm,
            partial_rotary_factor=self.partial_rotary_factor,
            rope_theta=self.rope_theta,
            tie_word_embeddings=self.tie_word_embeddings,
            # Phi's gelu_new, the same function, is written out in many operations: far slower on a CPU.
            hidden_act="gelu_pytorch_tanh",
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            attn_implementation="sdpa",
        )


def lite_showo_config(
    text_vocab_size: int, bos_token_id: int, eos_token_id: int, num_image_tokens: int = 64
) -> ShowoConfig:
    """Sizes of the lite generator: 8x8 tokens of 1,024 codes by default, tied embeddings, at most 1.5 M parameters.

    text_vocab_size is `len(tokenizer)`; the bos and eos ids are the tokenizer's.
    """
    return ShowoConfig(
        text_vocab_size=text_vocab_size,
        codebook_size=1024,
        num_image_tokens=num_image_tokens,
        max_text_length=16,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        hidden_size=160,
        num_hidden_layers=5,
        num_attention_heads=5,
        intermediate_size=448,
        max_position_embeddings=512,
        # Of the usual base, 10,000, on half of each head, most would hardly turn over so few positions.
        partial_rotary_factor=1.0,
        rope_theta=100.0,
        tie_word_embeddings=True,
    )


class Showo(PreTrainedModel):
    """Show-o; the Phi model is `self.showo`, so that weights are named as in the released checkpoint."""

    config: ShowoConfig
    config_class = ShowoConfig
    base_model_prefix = "showo"
    _supports_sdpa = True

    def __init__(self, config: ShowoConfig) -> None:
        of_kind(config, "config", ShowoConfig, "a ShowoConfig")
        super().__init__(config)
        self.showo = PhiForCausalLM(config.phi_config())
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "Showo":
        """Load config and weights from a folder or hub name; errors as in `loading.load_exactly`."""
        return load_exactly(super().from_pretrained, folder, "Show-o model", **kwargs)

    def forward(self, input_ids: Tensor, masked: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Logits over the whole vocabulary for full sequences, as the original model gives them.

        input_ids: (B, S) from `build_sequences`. Returns (B, S, vocab_size); or, if `masked`, bool (B, L), says which
        positions of the last image are hidden, logits over the codes there alone, (number of hidden positions, K).
        """
        if masked is not None:
            hidden = self.hidden_states(input_ids)[:, -masked.shape[1] - 1 : -1]
            return code_logits(self, hidden[masked])
        mask = attention_mask(self.config, input_ids, self.dtype)
        return self.showo(input_ids=input_ids, attention_mask=mask, **kwargs).logits

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Last hidden states (B, S, hidden_size) of full sequences (B, S)."""
        mask = attention_mask(self.config, input_ids, self.dtype)
        return self.showo.model(input_ids, attention_mask=mask).last_hidden_state


def text_prefix(config: ShowoConfig, text_ids: Sequence[int]) -> list[int]:
    """What stands before the image: `[t2i][bos] text [eos]`; an empty text is the unconditional prompt.

    ValueError if the text is longer than the model was made for or holds ids that are not words.
    """
    of_kind(config, "config", ShowoConfig, "a ShowoConfig")
    text_ids = _words(config, text_ids)
    if len(text_ids) + 3 > config.max_text_length:
        raise ValueError(
            f"The prompt has {len(text_ids)} tokens; this model reads at most {config.max_text_length - 3}: shorten it."
        )
    return [config.t2i_id, config.bos_token_id, *text_ids, config.eos_token_id]


def _words(config: ShowoConfig, ids: Sequence[int]) -> list[int]:
    """Ids of words as plain numbers; ValueError for others."""
    try:
        numbers = [whole(one, "id", 0, config.text_vocab_size - 1) for one in ids]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Text ids must lie in 0..{config.text_vocab_size - 1}, got {shown(ids)}: "
            "encode the prompt with this model's own tokenizer."
        ) from error
    return numbers


def correction_prefix(
    config: ShowoConfig, text_ids: Sequence[int], reason_ids: Sequence[int], tokens: Sequence[int]
) -> list[int]:
    """What stands before an image that corrects another: `[t2i][bos] prompt [eos] reasons [eos] [soi] tokens [eoi]`.

    tokens: those of the image that is to be corrected. ValueError as in `text_prefix`, or if all of it, with the image
    to be drawn, is longer than the model can read. The course's own layout, on the paper's three inputs (section 5).
    """
    before = [*text_prefix(config, text_ids), *_words(config, reason_ids), config.eos_token_id]
    of_kind(tokens, "tokens", (Sequence, Tensor, np.ndarray), "an image's tokens")
    codes = [whole(token, "each of tokens", 0, config.codebook_size - 1) for token in tokens]
    if len(codes) != config.num_image_tokens:
        raise ValueError(f"An image has {config.num_image_tokens} tokens here, got {len(codes)}: give a whole one.")
    prefix = [*before, config.soi_id, *(config.image_offset + code for code in codes), config.eoi_id]
    longest = config.max_position_embeddings - config.num_image_tokens - 2
    if len(prefix) > longest:
        fits = len(prefix) - len(reason_ids) <= longest
        advice = "shorten the reasons" if fits else "only a model of smaller images, as of 256 px, can correct them"
        raise ValueError(
            f"Prompt, reasons and image take {len(prefix)} positions; this model reads at most {longest} before a new "
            f"image: {advice}."
        )
    return prefix


def pad_prefixes(config: ShowoConfig, prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Prefixes padded at the left to the longest one's length, ids (B, S); RoPE is relative, and nobody sees pads."""
    listed = isinstance(prefixes, list | tuple) and all(isinstance(one, list | tuple) and one for one in prefixes)
    if not listed or not prefixes or not all(isinstance(one, int) for prefix in prefixes for one in prefix):
        raise ValueError(f"prefixes must be lists of ids as `text_prefix` gives, none empty, got {shown(prefixes)}.")
    length = max(len(prefix) for prefix in prefixes)
    return torch.tensor([[config.pad_id] * (length - len(prefix)) + list(prefix) for prefix in prefixes])


def image_span(config: ShowoConfig, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
    """Vocabulary ids of an image: `[soi] codes [eoi]`, with `[mask]` where `masked` is true.

    tokens: codes (B, L); masked: bool (B, L). Returns ids (B, L + 2).
    """
    _check_codes(config, tokens, masked)
    ids = tokens.long() + config.image_offset
    if masked is not None:
        ids = ids.masked_fill(masked, config.mask_id)
    return F.pad(F.pad(ids, (1, 0), value=config.soi_id), (0, 1), value=config.eoi_id)


def build_sequences(
    config: ShowoConfig, prefixes: Sequence[Sequence[int]], tokens: Tensor, masked: Tensor | None = None
) -> Tensor:
    """Full input of the model: left-padded prefixes, then the images.

    prefixes: B lists of ids (`text_prefix`, or longer ones, earlier images included); tokens: codes (B, L);
    masked: bool (B, L), the positions to hide. Returns ids (B, S + L + 2).
    """
    span, before = image_span(config, tokens, masked), pad_prefixes(config, prefixes)
    if len(before) != len(span):
        raise ValueError(f"{len(before)} prompts for {len(span)} images: give one prompt per image.")
    return torch.cat([before.to(span.device), span], dim=1)


def _check_codes(config: ShowoConfig, tokens: Tensor, masked: Tensor | None) -> None:
    """ValueError unless tokens (B, L) are codes wherever they are not masked, and the mask is as large."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not all_whole(tokens):
        raise ValueError(f"Tokens must be whole numbers (B, L), got {shown(tokens)}.")
    if masked is not None and (getattr(masked, "dtype", None) != torch.bool or masked.shape != tokens.shape):
        raise ValueError(f"masked must be a bool tensor of shape {tuple(tokens.shape)}, got {shown(masked)}.")
    wrong = (tokens < 0) | (tokens >= config.codebook_size)
    if (wrong if masked is None else wrong & ~masked).any():
        raise ValueError(
            f"Tokens must lie in 0..{config.codebook_size - 1}: give codes, without the vocabulary's offset."
        )


def attention_mask(config: ShowoConfig, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Additive mask: text sees what stands before it, an image position also all of its image; nobody sees pads.

    ids: (B, S). Returns (B, 1, S, S): 0 where the row may look at the column, else the dtype's lowest number
    (boolean masks are silently wrong under eager attention). With one image at the end this is Show-o's rule;
    an earlier image, in a prefix, does not see what follows it, so that prefixes can be cached. A pad sees
    itself, lest its row be empty.
    """
    whole_numbers = isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int64, torch.int32)
    if not whole_numbers or ((ids < 0) | (ids >= config.vocab_size)).any():
        raise ValueError(f"Ids must be whole numbers (B, S) from 0 to {config.vocab_size - 1}, got {shown(ids)}.")
    check_dtype(dtype)
    position = torch.arange(ids.shape[1], device=ids.device)
    starts = (ids == config.soi_id).cumsum(dim=1)
    ends = (ids == config.eoi_id).cumsum(dim=1)
    # Which image a position belongs to, counted from 1; 0 is text.
    image = torch.where((starts > ends) | (ids == config.eoi_id), starts, 0)
    same_image = (image[:, :, None] == image[:, None, :]) & (image > 0)[:, :, None]
    before = position[:, None] >= position[None, :]
    seen = (before | same_image) & (ids != config.pad_id)[:, None, :]
    seen = seen | (position[:, None] == position[None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=ids.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def code_logits(model: Showo, hidden: Tensor) -> Tensor:
    """Logits (..., K) over the image codes alone: their rows of the lm_head times hidden states (..., D)."""
    width = _config_of(model).hidden_size
    if not isinstance(hidden, Tensor) or hidden.shape[-1:] != (width,):
        raise ValueError(f"Hidden states must be (..., {width}), got {shown(hidden)}.")
    head: nn.Linear = model.showo.lm_head
    codes = slice(model.config.image_offset, model.config.mask_id)
    return F.linear(hidden, head.weight[codes], head.bias[codes])


def _config_of(model: Any) -> ShowoConfig:
    """A Show-o model's config; ValueError for anything else."""
    if not isinstance(config := getattr(model, "config", None), ShowoConfig):
        raise ValueError(f"model must be a Showo, got {shown(model)}.")
    return config


def image_logits(
    model: Any, prefixes: Sequence[Sequence[int]], tokens: Tensor, masked: Tensor, config: ShowoConfig | None = None
) -> Tensor:
    """Logits over the codes at the masked positions only; differentiable, nothing cached.

    model: a Showo, or with its `config` one that accelerate has wrapped. prefixes: B lists of ids; tokens: codes
    (B, L); masked: bool (B, L). Returns (number of masked positions, K), in the order of `tokens[masked]`.
    """
    config = config or _config_of(model)
    if masked is None or not masked.any():
        raise ValueError("masked must say which positions are hidden, at least one of them.")
    return model(build_sequences(config, prefixes, tokens, masked), masked=masked)


def draw_mask(batch: int, length: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
    """Training masks: round(L·cos(πU/2)^power) random positions of each image, at least one, U uniform on 0..1.

    power: below 1 more is hidden than by MaskGIT's cosine, which Show-o trains with (its section 3). Returns bool
    (batch, length) on the generator's device.
    """
    batch = whole(batch, "batch", 0)
    length = whole(length, "length", 1, 2**30 // max(1, batch))
    _check_chance(generator)
    power = number(power, "power", above=0, most=100)
    ratio = torch.cos(torch.rand(batch, 1, generator=generator) * math.pi / 2) ** power
    count = (ratio * length).round().clamp(min=1)
    return random_positions(count, length, generator)


def random_positions(count: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """So many random positions of each image: bool (B, L) from counts (B, 1), on the CPU."""
    rank = torch.rand(len(count), length, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank < count


def _check_chance(generator: torch.Generator) -> None:
    of_kind(generator, "generator", torch.Generator, "a torch.Generator on the CPU")
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be a torch.Generator on the CPU, got one on {generator.device}.")


def masked_loss(
    model: Showo,
    prefixes: Sequence[Sequence[int]],
    tokens: Tensor,
    generator: torch.Generator,
    condition_dropout: float | Sequence[float] = 0.1,
    mask_power: float = 1.0,
) -> Tensor:
    """Masked-token loss: mean cross-entropy over the codes at hidden positions, unshifted.

    prefixes: B lists of ids, whatever stands before the image; tokens: codes (B, L); generator: a CPU generator for
    masks and dropped prefixes; condition_dropout: share of prefixes replaced by the empty prompt, which guidance needs
    (10% in Show-o, section 3), one for all or one of each; mask_power: as in `draw_mask`. Returns a scalar. ValueError
    for tokens of another shape.
    """
    config = _config_of(model)
    _check_codes(config, tokens, None)
    if not len(tokens) or tokens.shape[1] != config.num_image_tokens:
        raise ValueError(f"Tokens must be (B, {config.num_image_tokens}), got {tuple(tokens.shape)}.")
    if len(prefixes) != len(tokens):
        raise ValueError(f"{len(prefixes)} prompts for {len(tokens)} images: give one prompt per image.")
    chances = np.asarray(condition_dropout)
    right = chances.dtype.kind in "biuf" and chances.shape in ((), (len(tokens),))
    if not right or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError(
            f"condition_dropout must be from 0 to 1, one for all or one for each of {len(tokens)} images, "
            f"got {shown(condition_dropout)}."
        )
    tokens = tokens.to(model.device)
    masked = draw_mask(len(tokens), config.num_image_tokens, generator, mask_power).to(model.device)
    dropped = torch.rand(len(tokens), generator=generator) < torch.as_tensor(condition_dropout)
    empty = text_prefix(config, [])
    kept = [empty if drop else prefix for prefix, drop in zip(prefixes, dropped.tolist(), strict=True)]
    return F.cross_entropy(image_logits(model, kept, tokens, masked), tokens[masked])


@dataclass(frozen=True)
class CaptionedTokens:
    """A pre-training set: word ids of each caption, image tokens (N, L), and what it was drawn with."""

    text_ids: list[list[int]]
    tokens: Tensor
    about: dict[str, float]
