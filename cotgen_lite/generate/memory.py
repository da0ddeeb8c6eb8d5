"""How much memory drawing takes, from the configs alone, and how many images can be drawn at once in what is free.

For full scale; chapter 10 derives it. The lite models fit anywhere. With Show-o in bfloat16, an image of 256 px takes
0.15 GB on top of the weights while it is drawn, most of it keys and values, and one of 512 px 0.55 GB; decoding its
tokens comes later, in the same room. Read next: verify/, which chooses among what is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import ShowoConfig, correction_prefix, text_prefix
from cotgen_lite.generate.vq import MagvitConfig, images_at_once

SHARE = 0.8  # of free memory that may be planned with: workspaces of convolutions and gaps between blocks take the rest


def weight_bytes(config: ShowoConfig, dtype: torch.dtype) -> int:
    """Bytes of a Show-o's weights: embeddings, head, and of every layer four projections, an MLP and the norms."""
    width, inner = config.hidden_size, config.intermediate_size
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
    if device.type == "cuda":
        # What torch keeps for itself without using it is free for drawing, though not for other programs.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration) as error:
        raise ValueError("This system does not say how much memory is free: give batch_size a number.") from error
    try:
        limit, taken = (int(Path(f"/sys/fs/cgroup/memory.{part}").read_text()) for part in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - taken)


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
        groups = [min(together, self.prompts - first) for first in range(0, self.prompts, together)]
        return sum(math.ceil(size * self.n / self.at_once) for size in groups)

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
    reasons given. ValueError if not even one image fits, for n < 1 or no prompts, or a text that the model cannot read.
    """
    config, texts = generator.model.config, [prompts] if isinstance(prompts, str) else prompts
    if reasons is None:
        prefixes = [text_prefix(config, generator.encode(text)) for text in texts]
    else:
        image = [0] * config.num_image_tokens
        prefixes = [
            correction_prefix(config, generator.encode(text), generator.encode(reason), image)
            for text, reason in zip(texts, reasons, strict=True)
        ]
    return plan_from_configs(
        config,
        generator.image_tokenizer.config,
        len(texts),
        n,
        max(map(len, prefixes), default=0),
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
    if n < 1 or prompts < 1:
        raise ValueError(f"Sampling needs n >= 1 and a prompt, got {n} and {prompts}.")
    decoding = decoding_bytes(image_tokenizer, images_at_once(image_tokenizer))

    def taken(candidates: int) -> int:
        return max(decoding, generation_bytes(config, candidates, n, prefix_length, guided, dtype))

    fitting = [candidates for candidates in range(1, prompts * n + 1) if taken(candidates) <= SHARE * free]
    if not fitting:
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
        fitting[-1],
        weight_bytes(config, dtype),
        taken(fitting[-1]),
        free,
    )


def _size(number: int) -> str:
    """Bytes as people read them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
