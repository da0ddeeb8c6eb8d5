"""The pixel tokenizer of LlamaGen and Janus-Pro: transformers' network, used like our own `Magvit`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusVQVAE

from cotgen_lite.generate.vq import to_images, to_pixels

CHUNK = 8  # images that pass through the pixel tokenizer at once: one feature map of a 384 px image takes 75 MB


@dataclass(frozen=True)
class VqConfig:
    """Sizes of a `VqTokenizer`, named as those of Magvit: K codes, grid x grid of them, patch_size px each."""

    codebook_size: int
    grid: int
    patch_size: int

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
        self.vq = vq.eval()
        sizes = vq.config
        self.config = VqConfig(sizes.num_embeddings, sizes.num_patches, 2 ** (len(sizes.channel_multiplier) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, L), int64, row by row, of uint8 images (B, 3, H, W); ValueError for another dtype or size."""
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"Images are {images.dtype} {tuple(images.shape)}, but this tokenizer reads torch.uint8 "
                f"(batch, 3, {size}, {size}): resize them and keep values 0..255."
            )
        codebook = F.normalize(self.vq.quantize.embedding.weight, dim=1)
        codes = []
        for chunk in images.to(codebook.device).split(CHUNK):
            values = self.vq.quant_conv(self.vq.encoder(to_pixels(chunk).to(codebook.dtype)))
            # The code of the nearest direction: LlamaGen compares unit vectors, transformers' own `encode` does not.
            codes.append((codebook @ values.flatten(2)).argmax(dim=1))
        return torch.cat(codes)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) of codes (B, L); ValueError for another length or a code that does not exist."""
        length, size = self.config.length, self.config.codebook_size
        if tokens.dim() != 2 or tokens.shape[1] != length or not bool(((tokens >= 0) & (tokens < size)).all()):
            raise ValueError(
                f"Codes are {tuple(tokens.shape)}, but this tokenizer draws an image from (batch, {length}) of "
                f"0 to {size - 1}: pass {length} codes an image and leave no open place."
            )
        tokens = tokens.to(self.vq.quantize.embedding.weight.device)
        return torch.cat([to_images(self.vq.decode(chunk)) for chunk in tokens.split(CHUNK)])
