"""Show-o's pass over an image behind prompts that were read before: Phi's layers, written out for drawing.

It computes what transformers' Phi computes, from the same modules, but keeps prompts' keys and values in place, asks
the last layer only for positions whose codes are still open, and writes fewer intermediate results: half of Phi's time
does not go into products. Read next: sampling.py, which calls it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cotgen_lite.generate.showo import Showo

IN_CPU_CACHE = 2**16  # float32 numbers, a quarter of a megabyte


class PathCache:
    """Keys and values of R rows' prompts, with room behind them that each step's image positions overwrite.

    keys and values: per layer (Q, heads, S, head width), of which `rows` are taken; visible: bool (Q, S).
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], visible: Tensor, rows: Tensor, image_positions: int
    ) -> None:
        self.prefix_length = used = int(visible[rows].any(dim=0).sum())  # of these rows' longest prompt
        self.visible = F.pad(visible[rows, -used:], (0, image_positions), value=True)
        self.keys = [F.pad(layer[rows, :, -used:], (0, 0, 0, image_positions)) for layer in keys]
        self.values = [F.pad(layer[rows, :, -used:], (0, 0, 0, image_positions)) for layer in values]


def image_hidden(model: Showo, span: Tensor, wanted: Tensor, cache: PathCache) -> Tensor:
    """Last hidden states (R, U, D) at the positions `wanted` (R, U) of image spans (R, L + 2), behind their prompts."""
    phi = model.showo.model
    hidden = phi.embed_tokens(span)
    # RoPE as transformers computes it, whose angles come twice, for the first and the second half of what is turned.
    angles = phi.rotary_emb(hidden, torch.arange(span.shape[1], device=span.device)[None])
    cos, sin = (each[..., : each.shape[-1] // 2] for each in angles)
    mask = torch.zeros(cache.visible.shape, dtype=hidden.dtype, device=hidden.device)
    mask = mask.masked_fill_(~cache.visible, torch.finfo(hidden.dtype).min)[:, None, None]
    for index, layer in enumerate(phi.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        keys, values = cache.keys[index], cache.values[index]
        _turn(_heads(attention, "k", normed), cos, sin, out=keys[:, :, cache.prefix_length :])
        values[:, :, cache.prefix_length :] = _heads(attention, "v", normed)
        if index == len(phi.layers) - 1:  # whose other positions nobody looks at
            hidden, normed = _at(hidden, wanted), _at(normed, wanted)
            cos, sin = cos[0, wanted], sin[0, wanted]
        queries = _heads(attention, "q", normed)
        queries = _turn(queries, cos, sin, out=torch.empty_like(queries))
        seen = mask.expand(-1, -1, queries.shape[2], -1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        hidden = hidden + attention.dense(mixed.transpose(1, 2).flatten(2))
        hidden += layer.mlp.fc2(_gelu(layer.mlp.fc1(normed)))
    return phi.final_layernorm(hidden)


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def _heads(attention: Any, which: str, normed: Tensor) -> Tensor:
    """Queries ("q"), keys ("k") or values ("v") of all heads, (R, heads, positions, head width)."""
    projected = getattr(attention, f"{which}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
    if attention.qk_layernorm and which != "v":
        projected = getattr(attention, f"{which}_layernorm")(projected)
    return projected.transpose(1, 2)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """RoPE into `out`: number i of the first half and of the second turn as a pair; what lies behind both stays."""
    half, cos, sin = cos.shape[-1], cos[:, None], sin[:, None]
    first, second = heads[..., :half], heads[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    out[..., 2 * half :] = heads[..., 2 * half :]
    return out


def _gelu(x: Tensor) -> Tensor:
    """GELU by its tanh; on a CPU in place and in parts, as x·sigmoid(1.596x + 0.0714x³), which is the same function."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    twice = 2 * (2 / torch.pi) ** 0.5
    for part in x.view(-1).split(IN_CPU_CACHE):
        part.mul_((part * part).mul_(0.044715 * twice).add_(twice).mul_(part).sigmoid_())
    return x
