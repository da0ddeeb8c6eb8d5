"""Image <-> token grid: MAGVIT-v2's convolutional autoencoder with lookup-free quantisation (LFQ).

The encoder turns every patch of an image into a vector of `bits` numbers; their signs *are* the token: no codebook is
stored or searched (arXiv 2310.05737). One class serves the course's 64 px model and Show-o's released 13-bit one
(showlab/magvitv2): modules carry the released names. Paper: section 2.1. Read next: showo.py, which draws such tokens.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE, PreTrainedConfig, PreTrainedModel

from cotgen_lite.inputs import finite, of_kind, settle, shown, whole
from cotgen_lite.loading import load_exactly

# Pixels that pass through the network at once, for memory follows them and not the number of images: 256 images of the
# lite model, 16 of Show-o's 256 px (2.7 GB of float32 feature maps), 4 of its 512 px. It does not follow what is free:
# convolutions that see more images or fewer round otherwise, by one in 255 at times, and pictures should not differ.
PIXELS_AT_ONCE = 2**20


# Of MagvitConfig's numbers, and of those in its lists: the least and the most.
_SIZES = (("image_size", 1, 2**14), ("channels", 1, 2**14), ("bits", 1, 30), ("norm_groups", 1, 2**14))
_LEVELS = (
    *(("encoder_multipliers", 1, 1000), ("encoder_blocks", 0, 100)),
    *(("decoder_multipliers", 1, 1000), ("decoder_blocks", 0, 100)),
)


class MagvitConfig(PreTrainedConfig):
    """Sizes of a MAGVIT-v2 tokenizer; the defaults are Show-o's released one (256 px, 13 bits, 16 px a patch).

    image_size: side of the square images, px. channels: width at full resolution, times a multiplier per level.
    encoder_multipliers, encoder_blocks, decoder_multipliers, decoder_blocks: per level, finest level first; each level
    but the coarsest halves the resolution. bits: log2 of the number of tokens. norm_groups: of every GroupNorm.
    """

    model_type = "magvit"

    image_size: int = 256
    channels: int = 128
    encoder_multipliers: list[int] | tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: list[int] | tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: list[int] | tuple[int, ...] = (4, 4, 3, 4, 3)
    bits: int = 13
    norm_groups: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        for name, least, most in _SIZES:
            setattr(self, name, whole(getattr(self, name), name, least, most))
        levels = None
        for name, least, most in _LEVELS:
            given = getattr(self, name)
            if not isinstance(given, list | tuple) or not 1 <= len(given) <= 10 or len(given) != (levels or len(given)):
                raise ValueError(f"{name} must be a list of 1 to 10 levels, as many as the others, got {shown(given)}.")
            levels = len(given)
            setattr(self, name, type(given)(whole(one, f"each of {name}", least, most) for one in given))
        widths = [1, *self.encoder_multipliers, *self.decoder_multipliers]
        if any(self.channels * width % self.norm_groups for width in widths) or self.image_size % self.patch_size:
            raise ValueError(
                f"channels {self.channels}, times each multiplier, must be a multiple of norm_groups "
                f"{self.norm_groups}, and image_size {self.image_size} of the {self.patch_size} px of a patch."
            )
        super().__post_init__(**kwargs)

    @property
    def patch_size(self) -> int:
        """Side of the square of pixels behind one token."""
        return 2 ** (len(self.encoder_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def length(self) -> int:
        """Tokens of one image, L."""
        return self.grid**2

    @property
    def codebook_size(self) -> int:
        """Number of different tokens, K."""
        return 2**self.bits


def lite_magvit_config(image_size: int = 64) -> MagvitConfig:
    """Sizes of the course's own tokenizer: one token of 10 bits for every 8 x 8 px, so 8x8 of them for 64 px.

    Few channels and no blocks at 64x64 px, where a convolution costs most: 60,000 scenes take minutes on a CPU.
    """
    return MagvitConfig(
        image_size=image_size,
        channels=8,
        encoder_multipliers=(1, 2, 4, 6),
        encoder_blocks=(0, 1, 1, 1),
        decoder_multipliers=(1, 2, 4, 6),
        decoder_blocks=(0, 1, 1, 1),
        bits=10,
        norm_groups=8,
    )


def images_at_once(config: MagvitConfig) -> int:
    """How many images pass through the network together, whatever the batch; at least one."""
    of_kind(config, "config", MagvitConfig, "a MagvitConfig")
    return max(1, PIXELS_AT_ONCE // config.image_size**2)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.nin_shortcut(x)


def resnet_blocks(channels_in: int, channels_out: int, count: int, groups: int) -> nn.Sequential:
    """The blocks of one resolution; none of them (count 0) hands its input on."""
    widths = [channels_in] + [channels_out] * count
    return nn.Sequential(*(ResnetBlock(a, b, groups) for a, b in pairwise(widths)))


class Attention(nn.Module):
    """One head of self-attention among all places of the coarsest grid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """The coarsest grid's own blocks: the only place where distant patches meet."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halves the resolution; padding on the right and the bottom alone keeps the grid exact."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then smooths by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownLevel(nn.Module):
    """One resolution of the encoder: its blocks, then the way to the next coarser one, if there is one."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int, coarsest: bool) -> None:
        super().__init__()
        self.block = resnet_blocks(channels_in, channels_out, blocks, groups)
        self.downsample = nn.Identity() if coarsest else Downsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.block(x))


class UpLevel(nn.Module):
    """One resolution of the decoder: its blocks, then the way to the next finer one, if there is one."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int, finest: bool) -> None:
        super().__init__()
        self.block = resnet_blocks(channels_in, channels_out, blocks, groups)
        self.upsample = nn.Identity() if finest else Upsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> one vector of `bits` numbers a patch, (B, bits, H/patch, W/patch)."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        width, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Sequential()
        for multiplier, blocks in zip(config.encoder_multipliers, config.encoder_blocks, strict=True):
            wider = config.channels * multiplier if blocks else width  # only a block can change the width
            coarsest = len(self.down) == len(config.encoder_blocks) - 1
            self.down.append(DownLevel(width, wider, blocks, groups, coarsest))
            width = wider
        self.mid = Middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(pixels)))
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(x))))


class Decoder(nn.Module):
    """Codes (B, bits, h, w), each +1 or -1 -> pixels (B, 3, h·patch, w·patch), about in [-1, 1]."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        width, groups = config.channels * config.decoder_multipliers[-1], config.norm_groups
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, width, 3, padding=1)
        self.mid = Middle(width, groups)
        levels = []
        for i in reversed(range(len(config.decoder_blocks))):
            narrower = config.channels * config.decoder_multipliers[i] if config.decoder_blocks[i] else width
            levels.append(UpLevel(width, narrower, config.decoder_blocks[i], groups, finest=i == 0))
            width = narrower
        self.up = nn.ModuleList(reversed(levels))  # the released names count from the finest level
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        codes = codes.contiguous(memory_format=torch.channels_last)  # see to_pixels
        x = self.mid(self.conv_in(self.post_quant_conv(codes)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def tokens_to_bits(tokens: Tensor, bits: int) -> Tensor:
    """Codes float32 (..., bits), each +1 or -1, most significant bit first (Show-o's layout), of tokens int64 (...).

    ValueError for tokens that are not whole numbers of so many bits.
    """
    bits = whole(bits, "bits", 1, 62)
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or ((tokens < 0) | (tokens >= 2**bits)).any():
        raise ValueError(f"Tokens must be torch.int64 from 0 to {2**bits - 1}, got {shown(tokens)}.")
    shifts = torch.arange(bits - 1, -1, -1, device=tokens.device)
    return ((tokens.unsqueeze(-1) >> shifts) & 1).float() * 2 - 1


def bits_to_tokens(values: Tensor) -> Tensor:
    """Tokens int64 (...) by the signs of values (..., bits), zero counting as -1; inverse of `tokens_to_bits`.

    ValueError for values that are not finite.
    """
    finite(of_kind(values, "values", Tensor, "a tensor"), "What becomes tokens")
    if not values.ndim or not 1 <= values.shape[-1] <= 62:
        raise ValueError(f"values must be (..., bits) of 1 to 62 bits, got {shown(values)}.")
    bits = values.shape[-1]
    weights = 2 ** torch.arange(bits - 1, -1, -1, device=values.device)
    return ((values > 0).long() * weights).sum(-1)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W), 0..255 -> float32 pixels in [-1, 1], the same shape."""
    of_kind(images, "images", Tensor, "a uint8 tensor (B, 3, H, W)")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be torch.uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}.")
    # Channels last in memory: convolutions this narrow run up to twice as fast on a CPU.
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_images(pixels: Tensor) -> Tensor:
    """Float pixels, clipped to [-1, 1] -> uint8 images 0..255; inverse of `to_pixels`. ValueError for NaN pixels."""
    finite(of_kind(pixels, "pixels", Tensor, "a tensor"), "Pixels")
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _check_images(images: Tensor, size: int) -> None:
    of_kind(images, "images", Tensor, "a uint8 tensor (B, 3, H, W)")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"Images are {images.dtype} {tuple(images.shape)}, but this tokenizer reads torch.uint8 "
            f"(batch, 3, {size}, {size}): resize them and keep values 0..255."
        )


def _check_tokens(tokens: Tensor, length: int, size: int) -> None:
    of_kind(tokens, "tokens", Tensor, "an int64 tensor (B, L)")
    wrong = tokens.dtype != torch.int64 or tokens.dim() != 2 or tokens.shape[1] != length
    if wrong or bool(((tokens < 0) | (tokens >= size)).any()):
        raise ValueError(
            f"Tokens are {tokens.dtype} {tuple(tokens.shape)}, but this tokenizer draws an image from torch.int64 "
            f"(batch, {length}), and knows 0 to {size - 1}: pass {length} tokens an image, without the generator's "
            "vocabulary offset or a mask token."
        )


class Magvit(PreTrainedModel):
    """MAGVIT-v2 with lookup-free quantisation: `encode` images to tokens, `decode` tokens to images."""

    config_class = MagvitConfig
    base_model_prefix = ""
    main_input_name = "images"
    # The released file stores two tables of the quantiser; both follow from the number of bits.
    _keys_to_ignore_on_load_unexpected = [r"^quantize\.embedding$", r"^quantize\.power_vals$"]

    def __init__(self, config: MagvitConfig) -> None:
        of_kind(config, "config", MagvitConfig, "a MagvitConfig")
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps PyTorch's own initialisation: transformers' normal(0, 0.02) starves convolutions."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> "Magvit":
        """Load from a folder or hub name, in our own format or the released one (showlab/magvitv2).

        Other arguments are transformers', e.g. image_size=512 for Show-o's larger pictures. Errors as in
        `loading.load_exactly`.
        """
        return load_exactly(super().from_pretrained, path, "image tokenizer", **kwargs)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens int64 (B, L), row by row, of uint8 images (B, 3, H, W); ValueError for another dtype or size."""
        _check_images(images, self.config.image_size)
        tokens = []
        for chunk in images.split(images_at_once(self.config)):
            values = self.encoder(to_pixels(chunk.to(self.device)).to(self.dtype))
            tokens.append(bits_to_tokens(values.permute(0, 2, 3, 1)).flatten(1))
        return torch.cat(tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) of tokens int64 (B, L); ValueError for another length or a token out of range."""
        _check_tokens(tokens, self.config.length, self.config.codebook_size)
        bits, grid, images = self.config.bits, self.config.grid, []
        for chunk in tokens.split(images_at_once(self.config)):
            codes = tokens_to_bits(chunk.to(self.device), bits).to(self.dtype).transpose(1, 2)
            images.append(to_images(self.decoder(codes.reshape(len(chunk), bits, grid, grid))))
        return torch.cat(images)

    def rebuild(self, images: Tensor) -> Tensor:
        """What is left of images after encoding and decoding; uint8 (B, 3, H, W) in and out, errors as in `encode`."""
        return self.decode(self.encode(images))


CHUNK = 8  # images that pass through the image tokenizer at once: one feature map of a 384 px image takes 75 MB


@dataclass(frozen=True)
class VqConfig:
    """Sizes of a `VqTokenizer`, named as those of Magvit: K codes, grid x grid of them, patch_size px each."""

    codebook_size: int
    grid: int
    patch_size: int

    def __post_init__(self) -> None:
        for name in ("codebook_size", "grid", "patch_size"):
            settle(self, **{name: whole(getattr(self, name), name, 1)})

    @property
    def length(self) -> int:
        return self.grid**2

    @property
    def image_size(self) -> int:
        return self.grid * self.patch_size


class VqTokenizer(nn.Module):
    """Image <-> token grid by a learned codebook of directions, used like `Magvit`."""

    def __init__(self, vq: JanusVQVAE) -> None:
        super().__init__()
        self.vq = of_kind(vq, "vq", JanusVQVAE, "a JanusVQVAE").eval()
        sizes = vq.config
        self.config = VqConfig(sizes.num_embeddings, sizes.num_patches, 2 ** (len(sizes.channel_multiplier) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """As in `Magvit`."""
        _check_images(images, self.config.image_size)
        codebook = F.normalize(self.vq.quantize.embedding.weight, dim=1)
        codes = []
        for chunk in images.to(codebook.device).split(CHUNK):
            values = self.vq.quant_conv(self.vq.encoder(to_pixels(chunk).to(codebook.dtype)))
            # The code of the nearest direction: LlamaGen compares unit vectors, transformers' own `encode` does not.
            codes.append((codebook @ values.flatten(2)).argmax(dim=1))
        return torch.cat(codes)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """As in `Magvit`."""
        _check_tokens(tokens, self.config.length, self.config.codebook_size)
        tokens = tokens.to(self.vq.quantize.embedding.weight.device)
        return torch.cat([to_images(self.vq.decode(chunk)) for chunk in tokens.split(CHUNK)])


ImageTokenizer = Magvit | VqTokenizer  # both encode, decode, and say their sizes in `config`
