"""The tokenizer: exact codes, the released format, errors for people, and a training run that resumes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cotgen_lite.generate import vq as tokenizer
from cotgen_lite.generate.vq import Magvit, MagvitConfig, bits_to_tokens, lite_magvit_config, tokens_to_bits
from cotgen_lite.lite.tokenizer_training import (
    TokenizerTraining,
    foreground,
    mean_token_entropy,
    token_entropies,
    tokenizer_loss,
    train_tokenizer,
)
from cotgen_lite.lite.world import random_scene, render

# Three levels of unlike widths and block counts, so that no two parameters could be swapped unseen.
SMALL = {
    "image_size": 16,
    "channels": 4,
    "encoder_multipliers": [1, 2, 2],
    "encoder_blocks": [2, 1, 1],
    "decoder_multipliers": [1, 1, 3],
    "decoder_blocks": [1, 2, 1],
    "bits": 5,
    "norm_groups": 2,
}


def small_model(seed: int = 0) -> Magvit:
    torch.manual_seed(seed)
    return Magvit(MagvitConfig(**SMALL)).eval()


def noise_images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def draw_scenes(rng: np.random.Generator, count: int) -> torch.Tensor:
    return render([random_scene(rng) for _ in range(count)])


# --- codes ---


@pytest.mark.parametrize("bits", [1, 5, 10, 13])
def test_codes_are_the_binary_digits_most_significant_first(bits: int) -> None:
    tokens = torch.arange(2**bits)
    codes = tokens_to_bits(tokens, bits)
    digits = [[1.0 if digit == "1" else -1.0 for digit in format(token, f"0{bits}b")] for token in range(2**bits)]
    assert codes.tolist() == digits
    assert torch.equal(bits_to_tokens(codes * 0.3), tokens)  # only the sign speaks


def test_a_value_of_zero_counts_as_minus_one() -> None:
    assert bits_to_tokens(torch.tensor([[0.0, 0.0, 1.0]])).tolist() == [1]


# --- the network ---


def test_encode_and_decode_have_the_documented_shapes_and_ranges() -> None:
    torch.manual_seed(0)
    model = Magvit(lite_magvit_config()).eval()
    tokens = model.encode(noise_images(3, 64))
    assert tokens.dtype == torch.int64
    assert tokens.shape == (3, 64)
    assert (model.config.grid, model.config.patch_size, model.config.codebook_size) == (8, 8, 1024)
    images = model.decode(torch.randint(0, 1024, (3, 64)))
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 64, 64)
    assert model.encode(noise_images(0, 64)).shape == (0, 64)


def test_lite_weights_stay_small() -> None:
    assert sum(p.numel() for p in Magvit(lite_magvit_config()).parameters()) < 450_000


def test_a_level_without_blocks_keeps_its_width() -> None:
    model = Magvit(MagvitConfig(**{**SMALL, "encoder_blocks": [1, 0, 1], "decoder_blocks": [1, 0, 1]})).eval()
    assert model.rebuild(noise_images(2)).shape == (2, 3, 16, 16)


def test_a_batch_in_chunks_equals_each_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PIXELS_AT_ONCE", 2 * small_model().config.image_size ** 2)
    model, images = small_model(), noise_images(5)
    tokens = model.encode(images)
    assert torch.equal(tokens, torch.cat([model.encode(image[None]) for image in images]))
    alone = torch.cat([model.decode(row[None]) for row in tokens])
    assert (model.decode(tokens).int() - alone.int()).abs().max() <= 1


def test_a_token_is_the_sign_of_the_encoder_at_its_place() -> None:
    model, images = small_model(), noise_images(2)
    values = model.encoder(tokenizer.to_pixels(images))
    tokens = model.encode(images)
    row, column = 2, 1
    digits = "".join("1" if value > 0 else "0" for value in values[1, :, row, column])
    assert tokens[1, row * 4 + column].item() == int(digits, 2)


def test_pixels_round_trip_exactly() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, :, None]
    assert torch.equal(tokenizer.to_images(tokenizer.to_pixels(images)), images)


# --- the released format ---


def reference_encode(
    state: dict[str, torch.Tensor], images: torch.Tensor, blocks: list[int], groups: int
) -> torch.Tensor:
    """The released encoder written out over its own parameter names, for equality with ours."""

    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        h = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = conv(swish(norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in state else x)

    x = conv(images.float() / 255 * 2 - 1, "encoder.conv_in", padding=1)
    for level, count in enumerate(blocks):
        for i in range(count):
            x = block(x, f"encoder.down.{level}.block.{i}")
        if level < len(blocks) - 1:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
    x = block(x, "encoder.mid.block_1")
    h = norm(x, "encoder.mid.attn_1.norm")
    q, k, v = (conv(h, f"encoder.mid.attn_1.{part}").flatten(2) for part in "qkv")
    attention = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), dim=2)
    mixed = torch.einsum("bij,bcj->bci", attention, v).reshape(x.shape)
    x = block(x + conv(mixed, "encoder.mid.attn_1.proj_out"), "encoder.mid.block_2")
    x = conv(swish(norm(x, "encoder.norm_out")), "encoder.conv_out", padding=1)
    return conv(x, "encoder.quant_conv")


def released_names(encoder_blocks: list[int], decoder_blocks: list[int], shortcuts: set[str]) -> set[str]:
    """The names of showlab/magvitv2's file for given block counts; `shortcuts`: blocks that change their width."""
    block = ["norm1", "conv1", "norm2", "conv2"]
    middle = [f"mid.{part}.{layer}" for part in ("block_1", "block_2") for layer in block]
    middle += [f"mid.attn_1.{layer}" for layer in ("norm", "q", "k", "v", "proj_out")]
    layers = [
        f"{side}.{name}" for side in ("encoder", "decoder") for name in ["conv_in", "norm_out", "conv_out", *middle]
    ]
    layers += ["encoder.quant_conv", "decoder.post_quant_conv"]
    for level, count in enumerate(encoder_blocks):
        layers += [f"encoder.down.{level}.block.{i}.{layer}" for i in range(count) for layer in block]
        layers += [f"encoder.down.{level}.downsample.conv"] if level < len(encoder_blocks) - 1 else []
    for level, count in enumerate(decoder_blocks):
        layers += [f"decoder.up.{level}.block.{i}.{layer}" for i in range(count) for layer in block]
        layers += [f"decoder.up.{level}.upsample.conv"] if level > 0 else []
    layers += [f"{name}.nin_shortcut" for name in shortcuts]
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_the_default_sizes_are_the_released_model() -> None:
    with torch.device("meta"):
        model = Magvit(MagvitConfig())
    shortcuts = {
        "encoder.down.1.block.0",
        "encoder.down.3.block.0",
        "decoder.up.1.block.0",
        "decoder.up.3.block.0",
    }
    assert set(model.state_dict()) == released_names([4, 3, 4, 3, 4], [4, 4, 3, 4, 3], shortcuts)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["encoder.down.3.block.0.conv1.weight"] == (512, 256, 3, 3)
    assert shapes["decoder.up.1.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["encoder.conv_out.weight"] == (13, 512, 3, 3)
    assert shapes["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert (model.config.length, model.config.codebook_size, model.config.patch_size) == (256, 8192, 16)


@pytest.mark.parametrize("file_name", ["pytorch_model.bin", "pytorch_model.safetensors", "model.safetensors"])
def test_a_folder_in_the_released_format_loads(tmp_path: Path, file_name: str) -> None:
    from safetensors.torch import save_file

    original = small_model()
    state = {name: value.clone().contiguous() for name, value in original.state_dict().items()}
    table = tokens_to_bits(torch.arange(32), 5)
    released = {**state, "quantize.embedding": table, "quantize.power_vals": 2 ** torch.arange(4, -1, -1)}
    if file_name.endswith(".bin"):
        torch.save(released, tmp_path / file_name)
    else:
        save_file(released, tmp_path / file_name, metadata={"format": "pt"})
    # The released config.json names the class and its library, and no size.
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "MAGViTv2", "_diffusers_version": "0.30.1"}))

    model = Magvit.from_pretrained(tmp_path, config=MagvitConfig(**SMALL))
    images = noise_images(4)
    expected = reference_encode(state, images, SMALL["encoder_blocks"], SMALL["norm_groups"])
    torch.testing.assert_close(model.encoder(tokenizer.to_pixels(images)), expected, atol=1e-5, rtol=1e-4)
    tokens = model.encode(images)
    assert len(tokens.unique()) > 3  # random weights still tell patches apart
    assert torch.equal(tokens, original.encode(images))
    assert torch.equal(model.decode(tokens), original.decode(tokens))


def test_weights_saved_as_fp16_load_as_float32(tmp_path: Path) -> None:
    model = small_model()
    model.half().save_pretrained(tmp_path)
    loaded = Magvit.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert loaded.config.to_diff_dict() | {"dtype": ""} == model.config.to_diff_dict() | {"dtype": ""}
    images = noise_images(4)
    assert torch.equal(loaded.encode(images), model.float().encode(images))


def test_another_image_size_takes_the_same_weights(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    larger = Magvit.from_pretrained(tmp_path, image_size=32)
    tokens = larger.encode(noise_images(1, 32))
    assert tokens.shape == (1, 64)
    assert larger.decode(tokens).shape == (1, 3, 32, 32)


# --- errors ---


def test_a_wrong_image_says_what_is_accepted() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"reads torch\.uint8 \(batch, 3, 16, 16\)"):
        model.encode(noise_images(1, 32))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        model.encode(noise_images(1).float())
    with pytest.raises(ValueError, match="batch"):
        model.encode(noise_images(1)[0])


def test_wrong_tokens_say_what_is_accepted() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="16 tokens an image"):
        model.decode(torch.zeros(2, 15, dtype=torch.int64))
    for token in (-1, 32):
        with pytest.raises(ValueError, match="knows 0 to 31"):
            model.decode(torch.full((1, 16), token))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="mismatched keys"):
        Magvit.from_pretrained(tmp_path / "saved", config=MagvitConfig(**{**SMALL, "bits": 6}))
    with pytest.raises(ValueError, match="missing keys"):
        Magvit.from_pretrained(tmp_path / "saved", config=MagvitConfig(**{**SMALL, "encoder_blocks": [2, 1, 2]}))
    with pytest.raises(ValueError, match="unexpected keys"):
        Magvit.from_pretrained(tmp_path / "saved", config=MagvitConfig(**{**SMALL, "encoder_blocks": [1, 1, 1]}))
    file = tmp_path / "saved" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        Magvit.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_size", value) for value in (float("nan"), 15, 0, "16", 10**9)),
        *(("channels", 3), ("bits", 0), ("bits", 64), ("norm_groups", 0), ("norm_groups", 3)),
        *(("encoder_blocks", value) for value in ([1], [], None, "112", [1, -1, 1], [1, 1, 1.5])),
        *(("decoder_multipliers", value) for value in ([1, 0, 1], [1, 1, 10**6])),
    ],
)
def test_a_config_checks_itself(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"must be.*{field}|{field}.*must be"):
        MagvitConfig(**{**SMALL, field: value})


NAN = torch.full((1, 3, 4, 4), float("nan"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: small_model().encode(None), "must be a uint8 tensor"),
        (lambda: small_model().encode(noise_images(1).numpy()), "must be a uint8 tensor"),
        (lambda: small_model().decode([[0] * 16]), "must be an int64 tensor"),
        (lambda: bits_to_tokens(NAN), "must be finite"),
        (lambda: bits_to_tokens(torch.tensor(1.0)), "1 to 62 bits"),
        (lambda: bits_to_tokens(torch.ones(2, 64)), "1 to 62 bits"),
        (lambda: tokens_to_bits(torch.tensor([32]), 5), "from 0 to 31"),
        (lambda: tokens_to_bits(torch.tensor([1.0]), 5), "torch.int64"),
        (lambda: tokenizer.to_images(NAN), "must be finite"),
        (lambda: tokenizer.to_pixels(NAN), "must be torch.uint8"),
        (lambda: tokenizer.VqConfig(0, 4, 2), "codebook_size must be"),
        (lambda: tokenizer.VqTokenizer(None), "a JanusVQVAE"),  # type: ignore[arg-type]
        (lambda: Magvit(None), "a MagvitConfig"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_one_clear_sentence(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_weights_that_are_no_numbers_draw_nothing() -> None:
    model = small_model()
    with torch.no_grad():
        model.decoder.conv_out.bias[0] = float("nan")
        model.encoder.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="Pixels must be finite"):
        model.decode(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be finite"):
        model.encode(noise_images(1))


# --- training ---


def brute_entropies(values: torch.Tensor) -> tuple[float, float]:
    """Certainty and diversity by enumerating every code of every token, from squared distances to the codes."""
    bits = values.shape[1]
    codes = tokens_to_bits(torch.arange(2**bits), bits)
    p = torch.softmax(-((values[:, None] - codes[None]) ** 2).sum(-1), dim=1)
    each = -(p * p.log()).sum(1)
    mean = p.mean(0)
    return each.mean().item(), -(mean * mean.log()).sum().item()


def test_entropies_equal_enumeration() -> None:
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    certainty, diversity = brute_entropies(values)
    assert token_entropies(values).mean().item() == pytest.approx(certainty, abs=1e-5)
    assert mean_token_entropy(values, torch.full((20,), 0.3)).item() == pytest.approx(diversity, abs=1e-5)
    twice = torch.cat([values, values[:5]])  # a token that counts double
    share = torch.tensor([2.0] * 5 + [1.0] * 15)
    assert mean_token_entropy(values, share).item() == pytest.approx(brute_entropies(twice)[1], abs=1e-5)


def test_entropies_in_closed_form() -> None:
    every_code = 20 * tokens_to_bits(torch.arange(16), 4)
    torch.testing.assert_close(token_entropies(every_code), torch.zeros(16))
    assert mean_token_entropy(every_code, torch.ones(16)).item() == pytest.approx(math.log(16), abs=1e-4)
    assert mean_token_entropy(every_code[:1], torch.ones(1)).item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(token_entropies(torch.zeros(3, 4)), torch.full((3,), math.log(16)))
    assert mean_token_entropy(every_code[:0], torch.ones(0)).item() == 0


def test_foreground_is_what_leaves_the_ground() -> None:
    image = torch.full((1, 3, 32, 32), 240, dtype=torch.uint8)
    image[:, 2, 10:14, 20:22] = 20
    marked = foreground(tokenizer.to_pixels(image))[0, 0]
    expected = torch.zeros(32, 32)
    expected[8:16, 18:24] = 1
    assert torch.equal(marked, expected)


def test_the_loss_reaches_the_encoder_through_the_signs() -> None:
    model = small_model()
    only_rebuild = TokenizerTraining(steps=1, certainty=0, diversity=0, commitment=0)
    images = noise_images(2)
    loss = tokenizer_loss(model, images, only_rebuild)
    loss.backward()
    pixels = tokenizer.to_pixels(images)
    weight = 1 + only_rebuild.foreground * foreground(pixels)
    error = model.decoder(torch.where(model.encoder(pixels) > 0, 1.0, -1.0)) - pixels
    assert loss.item() == pytest.approx((weight * (error.abs() + error**2)).sum().item() / (3 * weight.sum().item()))
    assert model.encoder.conv_in.weight.grad is not None
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_training_rebuilds_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Magvit(lite_magvit_config())
    images = draw_scenes(np.random.default_rng(99), 16)
    before = (model.decode(model.encode(images)).float() - images).abs().mean()
    log = train_tokenizer(model, draw_scenes, TokenizerTraining(steps=25, batch=8), tmp_path)
    after = (model.decode(model.encode(images)).float() - images).abs().mean()
    assert after < before / 3
    assert log.steps == 25
    assert not model.training


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "steps": (0, -1, 1.5, 10**9),
        "batch": (0, None),
        "learning_rate": (float("nan"), -1, 1e39),
        "foreground": (float("inf"), -0.1),
        "commitment": ("much",),
        "seed": (-1, 0.5),
    }.items(),
)
def test_impossible_settings_are_refused_in_a_sentence(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            TokenizerTraining(**({"steps": 5} | {name: value}))


@pytest.mark.parametrize(
    "images", [None, torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2, 3, 64, 64), torch.zeros(0, 3, 64, 64).byte()]
)
def test_images_that_cannot_be_learned_from_are_refused(tmp_path: Path, images: Any) -> None:
    model = Magvit(lite_magvit_config())
    with pytest.raises(ValueError, match=r"images.*must"):
        train_tokenizer(model, lambda rng, n: images, TokenizerTraining(steps=1), tmp_path)
    with pytest.raises(ValueError, match="model must be"):
        train_tokenizer(None, draw_scenes, TokenizerTraining(steps=1), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="config must be"):
        train_tokenizer(model, draw_scenes, None, tmp_path)  # type: ignore[arg-type]


def test_training_tells_its_images_and_weights_of_the_loss_apart(tmp_path: Path) -> None:
    def run(darker: int = 1, **changes: Any) -> None:
        torch.manual_seed(0)
        settings = TokenizerTraining(**({"steps": 1, "batch": 1} | changes))
        train_tokenizer(Magvit(lite_magvit_config()), lambda rng, n: draw_scenes(rng, n) // darker, settings, tmp_path)

    run()
    for other in ({"darker": 2}, {"commitment": 0.04}, {"seed": 1}):
        with pytest.raises(ValueError, match="another run"):
            run(**other)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: foreground(torch.zeros(3, 64, 64)), "pixels must have shape"),
        (lambda: foreground(None), "pixels must have shape"),
        (lambda: token_entropies(torch.zeros(3)), "values must have shape"),
        (lambda: mean_token_entropy(torch.zeros(3, 4), torch.ones(2)), "share must have shape"),
        (lambda: mean_token_entropy(torch.zeros(3, 40), torch.ones(3)), "bits must be"),
        (lambda: tokenizer_loss(None, noise_images(1), TokenizerTraining(1)), "model must be"),
        (lambda: tokenizer_loss(small_model(), noise_images(1), None), "config must be"),
    ],
)
def test_terms_of_the_loss_check_what_they_are_given(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
