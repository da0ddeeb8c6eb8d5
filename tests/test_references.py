"""Show-o and MAGVIT-v2 against plain functions of their released weights, at both released layouts, small in width.

The references are written from the published facts alone: no module of the package or of transformers takes part in
them. Weights are drawn under the released names, none of them near zero, so that a lost bias, scale or norm shows.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cotgen_lite.generate.sampling import (
    MASKED,
    Cost,
    Remasking,
    SamplingSettings,
    advance,
    encode_prompts,
    path_noise,
    predict,
    start,
)
from cotgen_lite.generate.showo import Showo, build_sequences, image_logits, text_prefix
from cotgen_lite.generate.vq import Magvit, to_pixels

State = dict[str, Tensor]

# --- Show-o: sizes, and the released checkpoint's files ---

WORDS, CODES, BOS, EOS = 40, 16, 3, 4
PAD, SOI, EOI, T2I = WORDS, WORDS + 1, WORDS + 2, WORDS + 5  # soi eoi sov eov t2i mmu t2v v2v lvg after the pad
FIRST_CODE, MASK = WORDS + 10, WORDS + 10 + CODES
TEXT_PLACES = 129
WIDTH, HEADS, LAYERS, INNER = 32, 2, 3, 80
PROMPTS = [[7, 12, 9, 30, 11, 8, 39], [5], [21, 22, 23, 24]]
EMPTY: list[int] = []


def random_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices and kernels that keep the size of what they read; scales of norms about 1, biases about 0."""
    values = torch.randn(shape, generator=generator)
    return values / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else values * 0.3


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Weights of these names and shapes; the one-dimensional ones that are called weight scale a norm."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: random_weight(shape, generator) for name, shape in shapes.items()}
    return {name: value + 1 if value.ndim == 1 and name.endswith("weight") else value for name, value in state.items()}


def showo_shapes(vocabulary: int, width: int, heads: int, layers: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released Show-o file: a Phi under the prefix `showo.`."""
    head = width // heads
    sizes = {"input_layernorm": (width,), "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    sizes |= {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "dense")}
    sizes |= {f"self_attn.{part}_layernorm": (head,) for part in "qk"}
    named = {f"model.layers.{i}.{name}": size for i in range(layers) for name, size in sizes.items()}
    named |= {"model.final_layernorm": (width,), "lm_head": (vocabulary, width)}
    shapes = {f"showo.{name}.weight": size for name, size in named.items()}
    shapes |= {f"showo.{name}.bias": size[:1] for name, size in named.items()}
    return shapes | {"showo.model.embed_tokens.weight": (vocabulary, width)}


def save_showo(
    folder: Path, length: int, words: int = WORDS, codes: int = CODES, bos: int = BOS, eos: int = EOS
) -> State:
    """A Show-o of random weights in the released format, its config.json in the released fields; returns the weights.

    The released file leaves out the sizes of Phi-1.5, which are the package's defaults; a smaller model states its own.
    """
    vocabulary = words + 10 + codes + 1
    state = random_state(showo_shapes(vocabulary, WIDTH, HEADS, LAYERS, INNER), seed=length)
    # The embeddings feed norms, and need not be small.
    state["showo.model.embed_tokens.weight"] *= math.sqrt(WIDTH)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "pytorch_model.safetensors", metadata={"format": "pt"})
    released = {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "codebook_size": codes,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": words,
        "load_from_showo": True,
        "mask_token_id": vocabulary - 1,
        "num_vq_tokens": length,
        "vocab_size": vocabulary,
        "w_clip_vit": False,
    }
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(released | sizes))
    return state


# --- Show-o: the reference ---


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... on the first half of a head's numbers (B, heads, S, d): i turns with i + d/4."""
    turned = x.shape[-1] // 2
    quarter = turned // 2
    speed = 10000.0 ** (-torch.arange(quarter, dtype=x.dtype) / quarter)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * speed
    a, b = x[..., :quarter], x[..., quarter:turned]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), x[..., turned:]], dim=-1)


def reference_sequences(texts: list[list[int]], tokens: Tensor) -> Tensor:
    """`[pad...][t2i][bos] text [eos]` to 129 places, `[soi]` codes or masks `[eoi]`."""
    rows = []
    for text, image in zip(texts, tokens.tolist(), strict=True):
        words = [T2I, BOS, *text, EOS]
        codes = [MASK if code == MASKED else FIRST_CODE + code for code in image]
        rows.append([PAD] * (TEXT_PLACES - len(words)) + words + [SOI, *codes, EOI])
    return torch.tensor(rows)


def reference_showo(state: State, ids: Tensor, heads: int = HEADS) -> Tensor:
    """Logits (B, S, vocabulary): text reads what stands before it, the image all of the sequence, and no one a pad."""
    state = {name.removeprefix("showo."): value for name, value in state.items()}
    batch, length = ids.shape
    place = torch.arange(length)
    seen = (place[:, None] >= place) | (place >= TEXT_PLACES)[:, None]
    seen = seen & (ids != PAD)[:, None, :]
    seen[(ids == PAD)] = True  # what a pad sees matters to nobody
    x = state["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        h = layer_norm(x, state, f"{name}.input_layernorm")
        q, k, v = (
            linear(h, state, f"{name}.self_attn.{part}_proj").view(batch, length, heads, -1).transpose(1, 2)
            for part in "qkv"
        )
        q, k = (
            rotate(layer_norm(part, state, f"{name}.self_attn.{which}_layernorm"))
            for part, which in ((q, "q"), (k, "k"))
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(dim=-1)
        attention = linear((weights @ v).transpose(1, 2).reshape(x.shape), state, f"{name}.self_attn.dense")
        x = x + attention + linear(gelu_new(linear(h, state, f"{name}.mlp.fc1")), state, f"{name}.mlp.fc2")
    return linear(layer_norm(x, state, "model.final_layernorm"), state, "lm_head")


def reference_step(
    logits: Tensor, tokens: Tensor, uniforms: Tensor, temperature: float, chance: float, masked: int | None
) -> tuple[Tensor, Tensor]:
    """One step of one path: from guided logits (L, K), codes (L,) and uniforms (2, L) to its guess and new codes.

    chance: of re-masking, at this step; masked: positions that the schedule wants masked after it, None for the last.
    """
    length = len(tokens)
    guess, confidence = tokens.clone(), {}
    for place in range(length):
        if tokens[place] != MASKED:
            continue
        p = (logits[place].double() / temperature).softmax(dim=-1)
        code = int((p.cumsum(0) <= uniforms[0, place]).sum().clamp(max=len(p) - 1))  # the inverse of the distribution
        gumbel = -math.log(-math.log(float(uniforms[1, place])))
        guess[place] = code
        confidence[place] = math.log(float(p[code])) + chance * gumbel
    after = guess.clone()
    if masked is not None:
        left = max(1, min(len(confidence) - 1, masked))
        after[sorted(confidence, key=confidence.__getitem__)[:left]] = MASKED
    return guess, after


# --- Show-o: the tests ---

LAYOUTS = pytest.mark.parametrize("length", [256, 1024], ids=["256px", "512px"])


def some_codes(rows: int, length: int) -> Tensor:
    """Codes with two thirds of the places open."""
    generator = torch.Generator().manual_seed(9)
    codes = torch.randint(CODES, (rows, length), generator=generator)
    return codes.masked_fill(torch.rand(rows, length, generator=generator) < 2 / 3, MASKED)


@LAYOUTS
def test_show_o_equals_the_reference(tmp_path: Path, length: int) -> None:
    state = save_showo(tmp_path, length)
    model = Showo.from_pretrained(tmp_path)
    tokens, texts = some_codes(3, length), [*PROMPTS[:2], EMPTY]
    ids, masked = reference_sequences(texts, tokens), tokens == MASKED
    prefixes = [text_prefix(model.config, text) for text in texts]
    ours = build_sequences(model.config, prefixes, tokens.clamp(min=0), masked)
    fewer = ids.shape[1] - ours.shape[1]  # pads: ours reach to the longest text alone
    assert torch.equal(ours, ids[:, fewer:]) and (ids[:, :fewer] == PAD).all()
    expected = reference_showo(state, ids)
    assert expected.std() > 0.5
    with torch.no_grad():
        whole = model(ids)
        at_masks = image_logits(model, prefixes, tokens.clamp(min=0), masked)  # with fewer pads: the longest text's
    real = ids != PAD
    torch.testing.assert_close(whole[real], expected[real], atol=1e-4, rtol=1e-4)
    wanted = expected[:, TEXT_PLACES + 1 : -1, FIRST_CODE:MASK][masked]
    torch.testing.assert_close(at_masks, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    # With these seeds no draw lies so near to the edge between two codes (5e-6) that rounding could decide.
    ("length", "steps", "paths", "temperature", "seed", "remasking"),
    [
        (256, 18, [(0, 0), (1, 3)], 1.0, 4, "linear"),
        (256, 18, [(0, 0), (1, 3)], 1.0, 4, "show-o"),
        (1024, 5, [(0, 0), (2, 1)], 0.7, 5, "linear"),
    ],
    ids=["256px", "256px as Show-o", "512px"],
)
def test_decoding_equals_the_reference(
    tmp_path: Path,
    length: int,
    steps: int,
    paths: list[tuple[int, int]],
    temperature: float,
    seed: int,
    remasking: Remasking,
) -> None:
    state, g, compounded = save_showo(tmp_path, length), 1.75, temperature
    model, cost = Showo.from_pretrained(tmp_path), Cost()
    cache = encode_prompts(model, [text_prefix(model.config, text) for text in PROMPTS], cost)
    decoding = start(model, cache, paths, SamplingSettings(g, steps, temperature, remasking), seed, cost)
    tokens = torch.full((len(paths), length), MASKED)
    texts = [PROMPTS[row] for row, _ in paths]
    noise = [path_noise((seed, (T2I, BOS, *PROMPTS[row], EOS), candidate), steps, length) for row, candidate in paths]
    for step in range(steps):
        ids = reference_sequences([*texts, *[EMPTY] * len(paths)], tokens.repeat(2, 1))
        logits = reference_showo(state, ids)[:, TEXT_PLACES + 1 : -1, FIRST_CODE:MASK]
        conditional, unconditional = logits.chunk(2)
        guided = (1 + g) * conditional - g * unconditional

        ours, open_places = predict(model, decoding), tokens == MASKED
        torch.testing.assert_close(ours.flatten(0, 1), guided[open_places], atol=1e-4, rtol=1e-4)
        decoding, done = advance(decoding, ours)
        ratio = (step + 1) / steps
        chance, masked = temperature * (1 - ratio), math.floor(length * math.cos(math.pi * ratio / 2))
        if remasking == "show-o":  # multiplied in place, and counted in float32
            compounded *= 1 - ratio
            cosine = torch.cos(torch.tensor(ratio, dtype=torch.float32) * math.pi / 2)
            chance, masked = compounded, int((length * cosine).floor())
        found = [
            reference_step(
                guided[path], tokens[path], noise[path][step], temperature, chance, masked if ratio < 1 else None
            )
            for path in range(len(paths))
        ]
        guess, tokens = (torch.stack(rows) for rows in zip(*found, strict=True))
        assert torch.equal(done.guess, guess)
        assert torch.equal(done.committed, tokens != MASKED)
        assert torch.equal(decoding.tokens, tokens)
    assert (tokens != MASKED).all() and len({tuple(row) for row in tokens.tolist()}) == len(paths)
    assert tokens.unique().numel() > CODES / 2  # no code has swallowed the image


# --- MAGVIT-v2: the released file ---

ENCODER, ENCODER_BLOCKS = (1, 2, 2, 4, 4), (4, 3, 4, 3, 4)
DECODER, DECODER_BLOCKS = (1, 1, 2, 2, 4), (4, 4, 3, 4, 3)
CHANNELS, GROUPS, BITS = 8, 4, 13


def block_shapes(name: str, width: int, wider: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.norm1": (width,),
        f"{name}.conv1": (wider, width, 3, 3),
        f"{name}.norm2": (wider,),
        f"{name}.conv2": (wider, wider, 3, 3),
    }
    return shapes if width == wider else shapes | {f"{name}.nin_shortcut": (wider, width, 1, 1)}


def middle_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    attention: dict[str, tuple[int, ...]] = {
        f"{name}.attn_1.{part}": (width, width, 1, 1) for part in ("q", "k", "v", "proj_out")
    }
    blocks = block_shapes(f"{name}.block_1", width, width) | block_shapes(f"{name}.block_2", width, width)
    return attention | blocks | {f"{name}.attn_1.norm": (width,)}


def magvit_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of showlab/magvitv2, whose 128 channels are `CHANNELS` here."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.conv_in": (CHANNELS, 3, 3, 3)}
    width = CHANNELS
    for level, (multiplier, blocks) in enumerate(zip(ENCODER, ENCODER_BLOCKS, strict=True)):
        for i in range(blocks):
            shapes |= block_shapes(f"encoder.down.{level}.block.{i}", width, CHANNELS * multiplier)
            width = CHANNELS * multiplier
        if level < 4:
            shapes[f"encoder.down.{level}.downsample.conv"] = (width, width, 3, 3)
    shapes |= middle_shapes("encoder.mid", width)
    shapes |= {"encoder.norm_out": (width,), "encoder.conv_out": (BITS, width, 3, 3)}
    shapes |= {"encoder.quant_conv": (BITS, BITS, 1, 1), "decoder.post_quant_conv": (BITS, BITS, 1, 1)}
    width = CHANNELS * DECODER[-1]
    shapes |= {"decoder.conv_in": (width, BITS, 3, 3)} | middle_shapes("decoder.mid", width)
    for level in reversed(range(5)):
        for i in range(DECODER_BLOCKS[level]):
            shapes |= block_shapes(f"decoder.up.{level}.block.{i}", width, CHANNELS * DECODER[level])
            width = CHANNELS * DECODER[level]
        if level > 0:
            shapes[f"decoder.up.{level}.upsample.conv"] = (width, width, 3, 3)
    shapes |= {"decoder.norm_out": (width,), "decoder.conv_out": (3, width, 3, 3)}
    named = {f"{name}.weight": size for name, size in shapes.items()}
    return named | {f"{name}.bias": size[:1] for name, size in shapes.items()}


def save_magvit(folder: Path) -> State:
    """A MAGVIT-v2 of random weights in the released format; returns the weights.

    The released config.json states no size at all. A narrower model states its own, but not the image's.
    """
    state = random_state(magvit_shapes(), seed=0)
    tables = {"quantize.embedding": torch.zeros(2**BITS, BITS), "quantize.power_vals": torch.zeros(BITS)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state | tables, folder / "pytorch_model.safetensors", metadata={"format": "pt"})
    fields = {"_class_name": "MAGViTv2", "_diffusers_version": "0.30.1", "channels": CHANNELS, "norm_groups": GROUPS}
    (folder / "config.json").write_text(json.dumps(fields))
    return state


# --- MAGVIT-v2: the reference ---


def conv(x: Tensor, state: State, name: str, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = state[f"{name}.weight"]
    around = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=around)


def group_norm(x: Tensor, state: State, name: str) -> Tensor:
    grouped = x.reshape(len(x), GROUPS, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    flat = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view(x.shape)
    return flat * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def activated(x: Tensor, state: State, name: str) -> Tensor:
    normed = group_norm(x, state, name)
    return normed / (1 + torch.exp(-normed))


def block(x: Tensor, state: State, name: str) -> Tensor:
    h = conv(activated(x, state, f"{name}.norm1"), state, f"{name}.conv1")
    h = conv(activated(h, state, f"{name}.norm2"), state, f"{name}.conv2")
    return h + (conv(x, state, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in state else x)


def middle(x: Tensor, state: State, name: str) -> Tensor:
    x = block(x, state, f"{name}.block_1")
    h = group_norm(x, state, f"{name}.attn_1.norm")
    q, k, v = (conv(h, state, f"{name}.attn_1.{part}").flatten(2) for part in "qkv")
    weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(dim=2)
    mixed = (v @ weights.transpose(1, 2)).view(x.shape)
    return block(x + conv(mixed, state, f"{name}.attn_1.proj_out"), state, f"{name}.block_2")


def reference_values(state: State, images: Tensor) -> Tensor:
    """What the signs are read off: images uint8 (B, 3, H, W) to (B, 13, H/16, W/16)."""
    state = {name.removeprefix("encoder."): value for name, value in state.items() if "encoder." in name}
    x = conv(images.to(state["conv_in.weight"].dtype) / 255 * 2 - 1, state, "conv_in")
    for level in range(5):
        for i in range(ENCODER_BLOCKS[level]):
            x = block(x, state, f"down.{level}.block.{i}")
        if level < 4:
            below = torch.cat([x, torch.zeros_like(x[..., :1])], dim=3)  # one column on the right,
            below = torch.cat([below, torch.zeros_like(below[..., :1, :])], dim=2)  # one row at the bottom
            x = conv(below, state, f"down.{level}.downsample.conv", stride=2, padding=0)
    x = activated(middle(x, state, "mid"), state, "norm_out")
    return conv(conv(x, state, "conv_out"), state, "quant_conv")


def reference_pixels(state: State, tokens: Tensor) -> Tensor:
    """Pixels of tokens (B, L), row by row: each one's 13 binary digits, most significant first, 1 as +1 and 0 as -1."""
    state = {name.removeprefix("decoder."): value for name, value in state.items() if "decoder." in name}
    digits = [[[2.0 * int(digit) - 1 for digit in f"{token:013b}"] for token in row] for row in tokens.tolist()]
    side = math.isqrt(tokens.shape[1])
    codes = torch.tensor(digits).view(len(tokens), side, side, BITS).permute(0, 3, 1, 2)
    x = middle(conv(conv(codes, state, "post_quant_conv"), state, "conv_in"), state, "mid")
    for level in reversed(range(5)):
        for i in range(DECODER_BLOCKS[level]):
            x = block(x, state, f"up.{level}.block.{i}")
        if level > 0:
            doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(doubled, state, f"up.{level}.upsample.conv")
    return conv(activated(x, state, "norm_out"), state, "conv_out")


# --- MAGVIT-v2: the tests ---

SIZES = pytest.mark.parametrize(("size", "batch"), [(256, 2), (512, 1)], ids=["256px", "512px"])


def pictures(batch: int, size: int) -> Tensor:
    """Noise at two scales, unlike in every direction."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 160, (batch, 3, size // 32, size // 32), generator=generator)
    fine = torch.randint(0, 96, (batch, 3, size, size), generator=generator)
    return (coarse.repeat_interleave(32, 2).repeat_interleave(32, 3) + fine).to(torch.uint8)


@SIZES
def test_magvit_encodes_as_the_reference(tmp_path: Path, size: int, batch: int) -> None:
    state, images = save_magvit(tmp_path), pictures(batch, size)
    values = reference_values(state, images)
    digits = (values > 0).permute(0, 2, 3, 1).flatten(1, 2).tolist()
    expected = torch.tensor([[int("".join(str(int(one)) for one in place), 2) for place in row] for row in digits])
    model = Magvit.from_pretrained(tmp_path, image_size=size)
    tokens = model.encode(images)
    assert tokens.shape == (batch, (size // 16) ** 2) and tokens.unique().numel() > 50
    sure = (values.abs() > 1e-4).all(dim=1).flatten(1)  # elsewhere rounding may turn a sign
    assert sure.float().mean() > 0.95
    assert torch.equal(tokens[sure], expected[sure])
    with torch.no_grad():  # as numbers, in float64: after so many convolutions float32 is off by up to 2e-4
        exact = reference_values({name: value.double() for name, value in state.items()}, images)
        torch.testing.assert_close(model.double().encoder(to_pixels(images).double()), exact, atol=1e-5, rtol=1e-5)


@SIZES
def test_magvit_decodes_as_the_reference(tmp_path: Path, size: int, batch: int) -> None:
    state = save_magvit(tmp_path)
    tokens = torch.randint(2**BITS, (batch, (size // 16) ** 2), generator=torch.Generator().manual_seed(3))
    expected = reference_pixels(state, tokens).clamp(-1, 1)
    assert 0.2 < expected.std() < 0.9  # neither grey nor all clipped
    images = Magvit.from_pretrained(tmp_path, image_size=size).decode(tokens)
    assert images.dtype == torch.uint8
    # A pixel is the nearest of 256 levels; 1e-4 of [-1, 1] is what float32 may be off.
    assert (images.float() / 127.5 - 1 - expected).abs().max() < 0.5 / 127.5 + 1e-4
