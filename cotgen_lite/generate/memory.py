"""How much memory drawing takes, from the configs alone, and how many images can be drawn at once in what is free.

For full scale; chapter 10 derives it. The lite models fit anywhere. With Show-o in bfloat16, an image of 256 px takes
0.15 GB on top of the weights while it is drawn, most of it keys and values, and one of 512 px 0.55 GB; decoding its
tokens comes later, in the same room. Read next: verify/, which chooses among what is drawn.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import MOST_PATHS
from cotgen_lite.generate.showo import ShowoConfig, correction_prefix, text_prefix
from cotgen_lite.generate.vq import MagvitConfig, images_at_once
from cotgen_lite.hub import free_memory
from cotgen_lite.inputs import of_kind, texts, whole, yes_or_no

T = TypeVar("T")
SHARE = 0.8  # of free memory that may be planned with: workspaces of convolutions and gaps between blocks take the rest


def weight_bytes(config: ShowoConfig, dtype: torch.dtype) -> int:
    """Bytes of a Show-o's weights: embeddings, head, and of every layer four projections, an MLP and the norms."""
    width, inner = _check(config, ShowoConfig).hidden_size, config.intermediate_size
    of_kind(dtype, "dtype", torch.dtype, "a torch.dtype")
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2) + config.vocab_size
    attention = 4 * width * (width + 1) + (4 * width // config.num_attention_heads if config.qk_layernorm else 0)
    layer = attention + 2 * width * inner + inner + width + 2 * width
    return (embeddings + config.num_hidden_layers * layer + 2 * width) * dtype.itemsize


def generation_bytes(
    config: ShowoConfig, candidates: int, n: int, prefix_length: int, guided: bool, dtype: torch.dtype
) -> int:
    """Most bytes in use, beyond the weights, while `candidates` images are drawn at once.

    n: candidates of each prompt; prefix_length: positions before the image, of the longest prompt; guided: whether each
    candidate has a second row, without its prompt. Three things add up:
    keys and values of every layer, of the prompts and once more, with the image behind them, of every row;
    one layer's activations, 2 of the MLP's width and 6 of the model's at each position, and the mask; or, if more,
    four float32 tables of each candidate's logits over the codes, of which sampling makes probabilities.
    Attention is taken to be fused, as it is on CPUs and on any GPU that knows bfloat16: it stores no scores.
    """
    _check(config, ShowoConfig)
    of_kind(dtype, "dtype", torch.dtype, "a torch.dtype")
    candidates, n = whole(candidates, "candidates", 1), whole(n, "n", 1)
    prefix_length, guided = whole(prefix_length, "prefix_length", 0), yes_or_no(guided, "guided")
    rows = candidates * (2 if guided else 1)
    prompt_rows = max(1, candidates // n) * (2 if guided else 1)
    image_positions = config.num_image_tokens + 2
    cached_positions = prompt_rows * prefix_length + rows * (prefix_length + image_positions)
    cache = 2 * config.num_hidden_layers * config.hidden_size * cached_positions * dtype.itemsize
    # Prompts are read once for all their candidates; where they hold images, it may be they that are dearer to read.
    positions = max(prompt_rows * prefix_length, rows * image_positions)
    activations = 2 * config.intermediate_size + 6 * config.hidden_size + prefix_length + image_positions
    logits = 4 * candidates * config.num_image_tokens * config.codebook_size * torch.float32.itemsize
    return cache + max(positions * activations * dtype.itemsize, logits)


def decoding_bytes(config: MagvitConfig, images: int, dtype: torch.dtype = torch.float32) -> int:
    """Most bytes in use, beyond the weights, while `Magvit` decodes so many images in one go.

    Of the dearest level, at full size the finest, whichever is more: in its first block three feature maps as they come
    in and one as they go out; in a later one the level's input and four of its own, before and after norm, swish and
    convolution. And twice the weights of the widest convolution, which kernels lay out anew.
    """
    images = whole(images, "images", 1)
    of_kind(dtype, "dtype", torch.dtype, "a torch.dtype")
    _check(config, MagvitConfig)
    widths = [config.channels * multiplier for multiplier in config.decoder_multipliers]
    for level in reversed(range(len(widths) - 1)):
        if not config.decoder_blocks[level]:  # only a block can change the width
            widths[level] = widths[level + 1]
    levels = zip([*widths[1:], widths[-1]], widths, range(len(widths)), strict=True)
    maps = max(max(3 * into + out, into + 4 * out) * (config.image_size >> level) ** 2 for into, out, level in levels)
    return (images * maps + 2 * 9 * max(widths) ** 2) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on a device: a GPU's, or the computer's own, or what a container is allowed of it.

    ValueError where the system does not say.
    """
    if of_kind(device, "device", torch.device, "a torch.device").type == "cuda":
        # What torch keeps for itself without using it is free for drawing, though not for other programs.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = free_memory()
    if free is None:
        raise ValueError("This system does not say how much memory is free: give batch_size a number.")
    return free


@dataclass(frozen=True)
class GenerationPlan:
    """How a generator will draw `n` candidates of each of `prompts` prompts; as text, one line that says so.

    weights, taken, free: bytes of Show-o's weights, of what drawing takes beyond them, and free before it starts;
    at_once: the candidates drawn together.
    """

    image_size: int
    dtype: torch.dtype
    prompts: int
    n: int
    at_once: int
    weights: int
    taken: int
    free: int

    @property
    def goes(self) -> int:
        """How often `at_once` candidates are drawn; whole prompts go together where they fit."""
        together = max(1, self.at_once // self.n)
        groups, left = divmod(self.prompts, together)
        return groups * math.ceil(together * self.n / self.at_once) + math.ceil(left * self.n / self.at_once)

    def __str__(self) -> str:
        number, goes = str(self.dtype).removeprefix("torch."), "go" if self.goes == 1 else "goes"
        return (
            f"Show-o {self.image_size} px, {number}: weights {_size(self.weights)}; {self.at_once} candidates at once "
            f"take {_size(self.taken)} of {_size(self.free)} free; "
            f"{self.prompts * self.n} candidates in {self.goes} {goes}"
        )


def plan_generation(
    generator: Generator, prompts: str | Sequence[str], n: int, reasons: Sequence[str] | None = None
) -> GenerationPlan:
    """How many of n images of each prompt to draw at once in the memory that is free now: its `at_once`, as batch_size.

    Printed, it is one line to read before hours of drawing. reasons: if images are to be corrected (`correct`), the
    reasons given, one for each prompt or one for all. ValueError if not even one image fits, for n outside 1 to 10,000,
    no prompts, or a text that the model cannot read.
    """
    config = of_kind(generator, "generator", Generator, "a Generator, such as `load_generator` gives").model.config
    asked = texts(prompts, "prompts")
    if reasons is None:
        prefixes = [text_prefix(config, generator.encode(text)) for text in asked]
    else:
        image, why = [0] * config.num_image_tokens, texts(reasons, "reasons")
        why *= len(asked) if isinstance(reasons, str) else 1
        if len(why) != len(asked):
            raise ValueError(f"{len(asked)} prompts came with {len(why)} reasons: give one of both for each image.")
        prefixes = [
            correction_prefix(config, generator.encode(text), generator.encode(reason), image)
            for text, reason in zip(asked, why, strict=True)
        ]
    return plan_from_configs(
        config,
        generator.image_tokenizer.config,
        len(asked),
        n,
        max(map(len, prefixes)),
        generator.settings.guidance_scale > 0,
        generator.model.dtype,
        free_bytes(generator.model.device),
    )


def plan_from_configs(
    config: ShowoConfig,
    image_tokenizer: MagvitConfig,
    prompts: int,
    n: int,
    prefix_length: int,
    guided: bool,
    dtype: torch.dtype,
    free: int,
) -> GenerationPlan:
    """The most candidates at once that take, to be drawn and then decoded, no more than SHARE of what is free.

    config, image_tokenizer: of the generator and of its tokenizer, which decodes in float32; prompts: how many; n:
    candidates of each; prefix_length, guided: as in `generation_bytes`; dtype: of the generator; free: bytes, with the
    weights in place. ValueError if not even one fits.
    """
    prompts, n = whole(prompts, "prompts", 1, 10**9), whole(n, "n", 1, MOST_PATHS)
    free, guided = whole(free, "free", 0), yes_or_no(guided, "guided")
    decoding = decoding_bytes(image_tokenizer, images_at_once(_check(image_tokenizer, MagvitConfig)))

    def taken(candidates: int) -> int:
        return max(decoding, generation_bytes(config, candidates, n, prefix_length, guided, dtype))

    most = bisect_right(range(1, min(prompts * n, MOST_PATHS) + 1), SHARE * free, key=taken)  # more never take less
    if not most:
        raise ValueError(
            "Not even one image at a time can be made: to draw it and to decode it among others takes "
            f"{_size(taken(1))}, more than {SHARE:.0%} of the {_size(free)} that are free. Load the generator in "
            "bfloat16, or a smaller one, or the verifier in 4 bits, or close what else holds memory."
        )
    return GenerationPlan(
        image_tokenizer.image_size,
        dtype,
        prompts,
        n,
        most,
        weight_bytes(config, dtype),
        taken(most),
        free,
    )


def _check(config: T, kind: type) -> T:
    return of_kind(config, "config", kind, f"a {kind.__name__}")


def _size(number: int) -> str:
    """Bytes as people read them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
