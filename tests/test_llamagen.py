"""LlamaGen's weights after conversion against its network written out plainly; its image tokenizer; T5's features."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusVQVAE, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from cotgen_lite.full_scale.llamagen import (
    LlamaGenGenerator,
    convert_gpt,
    load_llamagen,
    load_vq,
    plain_caption,
    t5_features,
)
from cotgen_lite.generate.autoregressive import GREY, AutoregressiveModel, AutoregressiveSettings
from cotgen_lite.generate.sampling import MASKED, Cost, path_noise
from cotgen_lite.generate.vq import VqTokenizer

GRID, LAYERS, HEADS, WIDTH, INNER, CODES, WORDS, TEXT_WIDTH = 4, 2, 2, 32, 48, 40, 9, 24
LENGTH = GRID**2
SETTINGS = AutoregressiveSettings(guidance_scale=1.5, steps=4, top_k=12)
PROMPTS = ["a photo of a cat", "two dogs left of a red car"]
WEIGHTS = torch.Generator().manual_seed(0)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=WEIGHTS) * scale / shape[-1] ** 0.5


@pytest.fixture(scope="module")
def gpt() -> dict[str, Tensor]:
    """Random weights by LlamaGen's names."""
    WEIGHTS.manual_seed(1)
    state = {
        "cls_embedding.uncond_embedding": random(WORDS, TEXT_WIDTH, scale=3),
        "cls_embedding.cap_proj.fc1.weight": random(WIDTH, TEXT_WIDTH, scale=3),
        "cls_embedding.cap_proj.fc2.weight": random(WIDTH, WIDTH, scale=3),
        "tok_embeddings.weight": random(CODES, WIDTH, scale=4),
        "norm.weight": 1 + random(WIDTH),
        "output.weight": random(CODES, WIDTH, scale=2),
    }
    for layer in range(LAYERS):
        for name, shape in (
            ("attention.wqkv", (3 * WIDTH, WIDTH)),
            ("attention.wo", (WIDTH, WIDTH)),
            ("feed_forward.w1", (INNER, WIDTH)),
            ("feed_forward.w3", (INNER, WIDTH)),
            ("feed_forward.w2", (WIDTH, INNER)),
        ):
            state[f"layers.{layer}.{name}.weight"] = random(*shape, scale=2)
        for name in ("attention_norm", "ffn_norm"):
            state[f"layers.{layer}.{name}.weight"] = 1 + 2 * random(WIDTH)
    return state


def plain_gpt(state: dict[str, Tensor], features: Tensor, visible: Tensor, codes: Tensor) -> Tensor:
    """LlamaGen's logits of the code behind each of one image's (C,): (C + 1, K), the whole sequence anew."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    hidden = features * visible[:, None] @ state["cls_embedding.cap_proj.fc1.weight"].T
    hidden = F.gelu(hidden, approximate="tanh") @ state["cls_embedding.cap_proj.fc2.weight"].T
    x = torch.cat([hidden, state["tok_embeddings.weight"][codes]])
    places, head = len(x), WIDTH // HEADS
    # Each pair of neighbours is a complex number: pairs of the first half turn by row, of the second by column.
    speeds = 10000.0 ** (-2 * torch.arange(head // 4) / (head // 2))
    at = torch.arange(LENGTH)
    angles = torch.cat([(at // GRID)[:, None] * speeds, (at % GRID)[:, None] * speeds], dim=1)
    table = torch.cat([torch.zeros(WORDS, head // 2), torch.polar(torch.ones_like(angles), angles)])[:places]
    seen = torch.ones(places, places, dtype=torch.bool).tril()
    seen[:, :WORDS] &= visible
    seen |= torch.eye(places, dtype=torch.bool)
    for layer in range(LAYERS):
        weights = {name: state[f"layers.{layer}.{name}.weight"] for name in ("attention.wqkv", "attention.wo")}
        y = norm(x, state[f"layers.{layer}.attention_norm.weight"]) @ weights["attention.wqkv"].T
        query, key, value = (part.view(places, HEADS, head).transpose(0, 1) for part in y.split(WIDTH, dim=1))
        query, key = (
            torch.view_as_real(torch.view_as_complex(part.reshape(HEADS, places, -1, 2)) * table).flatten(2)
            for part in (query, key)
        )
        scores = (query @ key.transpose(1, 2) / head**0.5).masked_fill(~seen, -torch.inf)
        x = x + (scores.softmax(-1) @ value).transpose(0, 1).reshape(places, WIDTH) @ weights["attention.wo"].T
        y = norm(x, state[f"layers.{layer}.ffn_norm.weight"])
        gate, up = (y @ state[f"layers.{layer}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ state[f"layers.{layer}.feed_forward.w2.weight"].T
    return norm(x, state["norm.weight"])[WORDS - 1 :] @ state["output.weight"].T


@pytest.fixture(scope="module")
def model(gpt: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> AutoregressiveModel:
    path = tmp_path_factory.mktemp("llamagen") / "t2i.pt"
    table = torch.zeros(3, 2, 2)  # which some of LlamaGen's files hold beside the weights
    torch.save({"model": gpt | {"freqs_cis": table}, "steps": 3, "args": Namespace(lr=0.1)}, path)
    return load_llamagen(path, grid=GRID, heads=HEADS)


@torch.no_grad()
def test_converted_weights_give_llamagens_logits(gpt: dict[str, Tensor], model: AutoregressiveModel) -> None:
    WEIGHTS.manual_seed(3)
    config = model.config
    assert (config.grid, config.text_length, config.text_width, config.text_cosine) == (GRID, WORDS, TEXT_WIDTH, 0)
    features, codes = random(3, WORDS, TEXT_WIDTH, scale=5), torch.randint(CODES, (3, LENGTH), generator=WEIGHTS)
    visible = torch.arange(WORDS) >= torch.tensor([[0], [4], [8]])
    inputs, seen = model.embed(features, visible, codes)
    logits = model.head(model.llama(inputs_embeds=inputs, attention_mask=seen).last_hidden_state)[:, WORDS - 1 :]
    expected = torch.stack([plain_gpt(gpt, *row) for row in zip(features, visible, codes, strict=True)])
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_weights_convert_as_they_are(gpt: dict[str, Tensor], model: AutoregressiveModel) -> None:
    converted = convert_gpt({name: value.bfloat16() for name, value in gpt.items()}, model)
    assert {value.dtype for value in converted.values()} == {torch.bfloat16}
    assert converted.keys() == model.state_dict().keys()


def tiny_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    entries = [*special.values(), *["a", "photo", "of", "the", "cat", "two", "dogs", "left", "red", "car"]]
    tokenizer = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(dict.fromkeys(entries))}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def t5() -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=20, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3, num_decoder_layers=0
    )
    encoder = T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def ids_of(words: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [words(plain_caption(text), add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def test_captions_are_read_alone_and_stand_at_the_right(t5: T5EncoderModel, words: PreTrainedTokenizerFast) -> None:
    features, visible = t5_features(t5, words, ids_of(words, ["a Photo  of the CAT", *PROMPTS]), length=WORDS)
    assert features.shape == (3, WORDS, TEXT_WIDTH) and visible.sum(dim=1).tolist() == [6, 6, 8]
    for row, text in enumerate(["a photo of the cat", *PROMPTS]):
        ids = words(text, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
        assert visible[row].tolist() == [False] * (WORDS - len(ids)) + [True] * len(ids)
        alone = t5(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(features[row, -len(ids) :], alone, atol=1e-5, rtol=1e-5)
        assert (features[row, : -len(ids)] == 0).all()
        # As LlamaGen does it: pads at the right while T5 reads, then moved to the front.
        padded = torch.tensor([ids + [words.pad_token_id] * (WORDS - len(ids))])
        read = t5(padded, attention_mask=(padded != words.pad_token_id).long()).last_hidden_state[0]
        moved = read.roll(WORDS - len(ids), dims=0) * visible[row][:, None]
        torch.testing.assert_close(features[row], moved, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="at most 5 can be read"):
        t5_features(t5, words, ids_of(words, PROMPTS), length=5)


def draw_plainly(
    gpt: dict[str, Tensor],
    features: Tensor,
    visible: Tensor,
    key: tuple[int, ...],
    candidate: int,
    settings: AutoregressiveSettings,
) -> Tensor:
    """One image, code by code, without a cache: LlamaGen's u + s(c - u) with s = 1 + g, among its likeliest codes."""
    noise, codes = path_noise((5, key, candidate), 1, LENGTH)[0, 0], torch.empty(0, dtype=torch.long)
    for place in range(LENGTH):
        texts = (features, gpt["cls_embedding.uncond_embedding"])
        with_text, without = (plain_gpt(gpt, text, visible, codes)[-1] for text in texts)
        logits = without + (1 + settings.guidance_scale) * (with_text - without)
        order = logits.argsort(descending=True)[: settings.top_k or None]
        chances = torch.zeros(CODES).index_copy(0, order, (logits[order] / settings.temperature).softmax(0))
        codes = torch.cat([codes, (chances.cumsum(0) <= noise[place]).sum()[None]])
    return codes


@pytest.fixture(scope="module")
def generator(
    model: AutoregressiveModel,
    t5: T5EncoderModel,
    words: PreTrainedTokenizerFast,
    vq: dict[str, Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> LlamaGenGenerator:
    path = tmp_path_factory.mktemp("vq") / "vq.pt"
    torch.save({"model": vq}, path)
    return LlamaGenGenerator(model, words, load_vq(path, GRID), SETTINGS, t5)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, guidance_scale=0.0, top_k=0, temperature=0.7)])
def test_drawing_equals_the_plain_loop(
    generator: LlamaGenGenerator, gpt: dict[str, Tensor], settings: AutoregressiveSettings
) -> None:
    out = replace(generator, settings=settings)(PROMPTS, 2, seed=5, batch_size=3)
    features, visible = t5_features(
        generator.encoder, generator.text_tokenizer, ids_of(generator.text_tokenizer, PROMPTS), WORDS
    )
    for row, prompt in enumerate(PROMPTS):
        key = tuple(generator.text_tokenizer(prompt, add_special_tokens=False)["input_ids"])
        for candidate in range(2):
            at, expected = 2 * row + candidate, draw_plainly(gpt, features[row], visible[row], key, candidate, settings)
            assert out.prompts[at] == prompt and torch.equal(out.tokens[at], expected)
            assert (out.steps[at, 1, :8] == expected[:8]).all() and (out.steps[at, 1, 8:] == MASKED).all()
    assert len(out.tokens.unique()) > 8


def test_generator_is_used_like_the_lite_one(generator: LlamaGenGenerator) -> None:
    out, lower = generator("A photo of the CAT", seed=1), generator("a photo of the cat", 2, seed=1)
    assert out.prompts == ["A photo of the CAT"] and torch.equal(out.steps, lower.steps[:1])
    images = generator.decode(out.steps)
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.uint8
    assert (images[0, :, 2:] == GREY).all() and not (images[0, :, :2] == GREY).all()
    assert torch.equal(images[-1], out.images[0])
    cost = Cost()
    generator.advance(generator.begin(["a cat"], [(0, 0), (0, 1)], 1, cost))
    assert cost.generator_passes == 2 + 2 * 2 * 4
    with pytest.raises(ValueError, match="divisor of 16"):
        generator(PROMPTS, steps=5)
    with pytest.raises(ValueError, match=r"\d tokens; this model reads at most \d: shorten"):
        generator("a photo of two red cat dogs left car")
    with pytest.raises(ValueError, match="holds '</s>'"):
        generator("a cat </S>")  # captions are read in lower case
    with pytest.raises(ValueError, match="must be a text, got 3"):
        generator([3])  # type: ignore[list-item]


def test_parts_are_loaded_together_or_refused(
    generator: LlamaGenGenerator, gpt: dict[str, Tensor], vq: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"module": gpt}, tmp_path / "gpt.pt")
    torch.save({"state_dict": vq}, tmp_path / "vq.pt")
    generator.text_tokenizer.save_pretrained(tmp_path / "t5")
    generator.encoder.save_pretrained(tmp_path / "t5")
    parts = (tmp_path / "gpt.pt", tmp_path / "t5", tmp_path / "vq.pt", SETTINGS)
    again = LlamaGenGenerator.from_pretrained(*parts, device="cpu", grid=GRID)
    assert again.model.config.num_attention_heads == 1  # 32 wide: less than one head of 64
    assert again(PROMPTS, seed=1).tokens.shape == (len(PROMPTS), LENGTH)
    half = LlamaGenGenerator.from_pretrained(*parts, device="cpu", grid=GRID, dtype=torch.bfloat16)
    assert half.model.dtype == half.encoder.dtype == torch.bfloat16
    assert half(PROMPTS, seed=1).tokens.max() < CODES
    state = generator.encoder.state_dict()
    state.pop("encoder.final_layer_norm.weight")
    generator.encoder.save_pretrained(tmp_path / "t5", state_dict=state)
    with pytest.raises(ValueError, match="lacks 1 weights of a T5EncoderModel"):
        LlamaGenGenerator.from_pretrained(*parts, device="cpu", grid=GRID)
    T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(ValueError, match=r"features of 24 numbers.*40 and 8"):
        LlamaGenGenerator.from_pretrained(*parts, device="cpu", grid=GRID)


VQ_CHANNELS, VQ_LATENT, VQ_NUMBERS = 32, 12, 3  # GroupNorm takes 32 groups, so 32 channels are the fewest


@pytest.fixture(scope="module")
def vq() -> dict[str, Tensor]:
    """Random weights of a small image tokenizer of two levels, 32 and 64 wide, by LlamaGen's names."""
    WEIGHTS.manual_seed(2)
    state = {
        "quantize.embedding.weight": random(CODES, VQ_NUMBERS, scale=5),
        "quantize.codebook_used": torch.zeros(64),
    }

    def convolution(name: str, into: int, out: int, size: int) -> None:
        state[f"{name}.weight"] = random(out, into, size, size, scale=2 / into**0.5)
        state[f"{name}.bias"] = 0.2 * random(out, 1).flatten()

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            1 + 0.3 * random(width, 1).flatten(),
            0.3 * random(width, 1).flatten(),
        )

    def block(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        convolution(f"{name}.conv1", into, out, 3)
        norm(f"{name}.norm2", out)
        convolution(f"{name}.conv2", out, out, 3)
        if into != out:
            convolution(f"{name}.nin_shortcut", into, out, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", width, width, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.mid.0", width, width)
        attention(f"{name}.mid.1", width)
        block(f"{name}.mid.2", width, width)

    low, high = VQ_CHANNELS, 2 * VQ_CHANNELS
    convolution("encoder.conv_in", 3, low, 3)
    block("encoder.conv_blocks.0.res.0", low, low)
    block("encoder.conv_blocks.0.res.1", low, low)
    convolution("encoder.conv_blocks.0.downsample.conv", low, low, 3)
    block("encoder.conv_blocks.1.res.0", low, high)
    attention("encoder.conv_blocks.1.attn.0", high)
    block("encoder.conv_blocks.1.res.1", high, high)
    attention("encoder.conv_blocks.1.attn.1", high)
    middle("encoder", high)
    norm("encoder.norm_out", high)
    convolution("encoder.conv_out", high, VQ_LATENT, 3)
    convolution("quant_conv", VQ_LATENT, VQ_NUMBERS, 1)
    convolution("post_quant_conv", VQ_NUMBERS, VQ_LATENT, 1)
    convolution("decoder.conv_in", VQ_LATENT, high, 3)
    middle("decoder", high)
    for number in range(3):  # the decoder's first level is the coarse one
        block(f"decoder.conv_blocks.0.res.{number}", high, high)
        attention(f"decoder.conv_blocks.0.attn.{number}", high)
        block(f"decoder.conv_blocks.1.res.{number}", low if number else high, low)
    convolution("decoder.conv_blocks.0.upsample.conv", high, high, 3)
    norm("decoder.norm_out", low)
    convolution("decoder.conv_out", low, 3, 3)
    return state


class PlainVq:
    """LlamaGen's image tokenizer written out over its own names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def convolution(self, name: str, x: Tensor, **kwargs: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **kwargs)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        spread = groups.var(2, unbiased=False, keepdim=True) + 1e-6
        groups = ((groups - groups.mean(2, keepdim=True)) / spread.sqrt()).view(x.shape)
        return groups * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def block(self, name: str, x: Tensor) -> Tensor:
        y = self.convolution(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        y = self.convolution(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)), padding=1)
        return y + (self.convolution(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        y = self.norm(f"{name}.norm", x)
        query, key, value = (self.convolution(f"{name}.{part}", y).flatten(2) for part in "qkv")
        weights = (query.transpose(1, 2) @ key / x.shape[1] ** 0.5).softmax(-1)
        y = (weights @ value.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return x + self.convolution(f"{name}.proj_out", y)

    def middle(self, name: str, x: Tensor) -> Tensor:
        return self.block(f"{name}.mid.2", self.attention(f"{name}.mid.1", self.block(f"{name}.mid.0", x)))

    def encode(self, images: Tensor) -> Tensor:
        x = self.convolution("encoder.conv_in", images / 127.5 - 1, padding=1)
        x = self.block("encoder.conv_blocks.0.res.1", self.block("encoder.conv_blocks.0.res.0", x))
        x = self.convolution("encoder.conv_blocks.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        for number in range(2):
            x = self.block(f"encoder.conv_blocks.1.res.{number}", x)
            x = self.attention(f"encoder.conv_blocks.1.attn.{number}", x)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        x = self.convolution("quant_conv", self.convolution("encoder.conv_out", x, padding=1))
        x, codebook = x.flatten(2).transpose(1, 2), self.state["quantize.embedding.weight"]
        distances = torch.cdist(x / x.norm(dim=-1, keepdim=True), codebook / codebook.norm(dim=-1, keepdim=True))
        return distances.argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        entries = self.state["quantize.embedding.weight"][codes]
        entries = (entries / entries.norm(dim=-1, keepdim=True)).transpose(1, 2).view(len(codes), -1, GRID, GRID)
        x = self.convolution("decoder.conv_in", self.convolution("post_quant_conv", entries), padding=1)
        x = self.middle("decoder", x)
        for number in range(3):
            x = self.block(f"decoder.conv_blocks.0.res.{number}", x)
            x = self.attention(f"decoder.conv_blocks.0.attn.{number}", x)
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = self.convolution("decoder.conv_blocks.0.upsample.conv", x, padding=1)
        for number in range(3):
            x = self.block(f"decoder.conv_blocks.1.res.{number}", x)
        x = self.convolution("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), padding=1)
        return ((x.clamp(-1, 1) + 1) * 127.5).round()


def test_pixel_tokenizer_equals_llamagens(vq: dict[str, Tensor], generator: LlamaGenGenerator) -> None:
    WEIGHTS.manual_seed(4)
    pixels, plain = generator.image_tokenizer, PlainVq(vq)
    assert (pixels.config.codebook_size, pixels.config.length, pixels.config.image_size) == (CODES, LENGTH, 8)
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=WEIGHTS)
    codes = pixels.encode(images)
    assert codes.dtype == torch.int64 and torch.equal(codes, plain.encode(images)) and len(codes.unique()) > 10
    decoded = pixels.decode(codes)
    assert decoded.dtype == torch.uint8 and decoded.float().std() > 10
    assert (decoded - plain.decode(codes)).abs().max() <= 1  # a half may be rounded either way
    for wrong in (images.float(), images[:, :, :6], images[0]):
        with pytest.raises(ValueError, match="uint8"):
            pixels.encode(wrong)
    for wrong in (codes[:, :5], codes + CODES, codes - CODES, codes[0]):
        with pytest.raises(ValueError, match=r"0 to 39|16 tokens an image"):
            pixels.decode(wrong)


def test_transformers_own_encoding_would_find_other_codes(generator: LlamaGenGenerator) -> None:
    """Why `VqTokenizer` looks codes up itself."""
    WEIGHTS.manual_seed(5)
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=WEIGHTS)
    theirs: JanusVQVAE = generator.image_tokenizer.vq
    with torch.no_grad():
        found = theirs.encode(images / 127.5 - 1, return_dict=True).image_tokens
    assert not torch.equal(found.view(4, -1), generator.image_tokenizer.encode(images))


@pytest.mark.parametrize("name", ["layers.1.attention.wqkv.weight", "layers.0.ffn_norm.weight", "output.weight"])
def test_other_weights_are_refused_by_name(name: str, gpt: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "t2i.pt"
    missing = {key: value for key, value in gpt.items() if key != name}
    for state, complaint in (
        (missing, f"{name} is missing"),
        (missing | {f"more.{name}": gpt[name]}, f"{name} is missing"),
        (gpt | {f"more.{name}": gpt[name]}, rf"more\.{name} is .* but unexpected"),
        (gpt | {name: gpt[name][:-1]}, rf"{name} is \(.*\), but \("),
    ):
        torch.save({"model": state}, path)
        with pytest.raises(ValueError, match=complaint) as error:
            load_llamagen(path, GRID, HEADS)
        assert "\n" not in str(error.value)


def test_other_pixel_tokenizers_are_refused_by_name(vq: dict[str, Tensor], tmp_path: Path) -> None:
    first, later = "quantize.embedding.weight", "decoder.conv_blocks.0.attn.2.k.bias"
    for state, complaint in (
        ({key: value for key, value in vq.items() if key != first}, f"{first} is missing"),
        ({key: value for key, value in vq.items() if key != later}, f"{later} is missing"),
        (vq | {later: vq[later][None]}, rf"{later} is \(1, 64\), but \(64,\)"),
        (vq | {"encoder.more": vq[later]}, r"encoder\.more is .* but unexpected"),
    ):
        torch.save({"model": state}, tmp_path / "vq.pt")
        with pytest.raises(ValueError, match=complaint):
            load_vq(tmp_path / "vq.pt", GRID)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped", "text", "no weights", "a list", "an object"])
def test_damaged_files_are_one_clear_sentence(damage: str, gpt: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "t2i.pt"
    torch.save({"model": gpt}, path)
    whole = path.read_bytes()
    if damage in ("no weights", "a list", "an object"):
        torch.save({"no weights": {"steps": 1}, "a list": [1], "an object": {"model": Path()}}[damage], path)
    else:
        flipped = bytearray(whole)
        flipped[whole.index(gpt["output.weight"].numpy().tobytes()) + 2] ^= 1
        held = {"cut": whole[: len(whole) // 2], "flipped": flipped, "text": b"<html>not found"}
        path.write_bytes(held.get(damage, b""))
    if damage == "absent":
        path.unlink()
    for load in (load_llamagen, load_vq):
        said = "cannot be read .*checksum.* fetch it again" if damage == "flipped" else r".*\.pt file"
        with pytest.raises(ValueError, match=rf"t2i\.pt {said}") as error:
            load(path, GRID)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        *(lambda grid=grid: load_llamagen("x.pt", grid) for grid in (0, -1, 1.5, None, 10**6)),
        *(lambda heads=heads: load_llamagen("x.pt", 4, heads) for heads in (0, -1, "2")),
        *(lambda path=path: load_llamagen(path, 4) for path in (None, 3, "", "x.pt", "/")),
        *(lambda grid=grid: load_vq("x.pt", grid) for grid in (0, "4")),
        lambda: plain_caption(None),  # type: ignore[arg-type]
        lambda: LlamaGenGenerator.from_pretrained("a", "b", "c", None, 4),  # type: ignore[arg-type]
        lambda: LlamaGenGenerator.from_pretrained("a", "b", "c", SETTINGS, 4, dtype="f"),  # type: ignore[arg-type]
        lambda: LlamaGenGenerator.from_pretrained("a", "b", "c", SETTINGS, 4, device="gpu"),
    ],
)
def test_wrong_values_are_one_clear_sentence(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot be read") as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("held", [{"model": {"a": 3}}, {"model": {3: torch.zeros(1)}}, {"model": 3}, [1], {}, 3])
def test_files_without_named_tensors_are_refused(held: object, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no named tensors"):
        load_llamagen(tmp_path / "x.pt", 4)


def test_heads_that_do_not_divide_are_refused(gpt: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": gpt}, tmp_path / "t2i.pt")
    with pytest.raises(ValueError, match="another `heads`"):
        load_llamagen(tmp_path / "t2i.pt", GRID, heads=3)


def test_pixel_tokenizer_of_the_released_size() -> None:
    """VQ-16's names and sizes, on no memory."""
    with torch.device("meta"):
        released = JanusVQVAE._from_config(JanusVQVAE.config_class(num_patches=16))
    assert sum(parameter.numel() for parameter in released.parameters()) == pytest.approx(72e6, rel=0.01)
    config = VqTokenizer(released).config
    assert (config.codebook_size, config.length, config.image_size) == (16384, 256, 256)
