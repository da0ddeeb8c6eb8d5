"""A generator from its three parts: full-size formats load by the same call, and parts that do not fit are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cotgen_lite.generate import memory, pipeline
from cotgen_lite.generate import vq as tokenizer
from cotgen_lite.generate.autoregressive import lite_autoregressive_config
from cotgen_lite.generate.memory import SHARE, generation_bytes, plan_generation
from cotgen_lite.generate.pipeline import Generator, ImageGenerator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.generate.showo import Showo, ShowoConfig, lite_showo_config
from cotgen_lite.generate.vq import Magvit, MagvitConfig, lite_magvit_config
from cotgen_lite.lite.vocabulary import lite_tokenizer

SETTINGS = SamplingSettings(guidance_scale=1.75, steps=3)


def save_parts(folder: Path, codebook_size: int = 8192) -> tuple[Path, Path, Path]:
    """Small random parts in the full-size layout: 13 bits, patches of 16 px, untied embeddings."""
    torch.manual_seed(0)
    words = lite_tokenizer()
    config = ShowoConfig(
        text_vocab_size=len(words),
        codebook_size=codebook_size,
        num_image_tokens=16,
        max_text_length=129,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    pixels = MagvitConfig(image_size=64, channels=8, encoder_blocks=(1,) * 5, decoder_blocks=(1,) * 5, norm_groups=4)
    paths = (folder / "model", folder / "words", folder / "pixels")
    for part, path in zip((Showo(config), words, Magvit(pixels)), paths, strict=True):
        part.save_pretrained(path)
    return paths


def test_full_format_parts_draw_pictures(tmp_path: Path) -> None:
    generator = Generator.from_pretrained(*save_parts(tmp_path), SETTINGS, device="cpu")
    out = generator(["a photo of a red cat", "a photo of two dogs"], num_images_per_prompt=2, seed=0)
    assert generator.decode(out.steps).shape == (2 * 2 * 3, 3, 64, 64)
    assert out.images.shape == (2 * 2, 3, 64, 64) and out.images.dtype == torch.uint8
    assert torch.equal(generator("a photo of two dogs", 2, seed=0).tokens, out.tokens[2:])
    # A setting may be given with the call, or for all calls; the generator itself is left as it was.
    hot = generator("a photo of two dogs", steps=2, guidance_scale=0.0, temperature=1.5)
    assert hot.steps.shape[1] == 2 and generator.settings == SETTINGS
    other = generator.with_settings(steps=2, guidance_scale=0.0, temperature=1.5)
    assert torch.equal(other("a photo of two dogs").steps, hot.steps)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 tokens of 4096 codes"):
        Generator.from_pretrained(*save_parts(tmp_path, codebook_size=4096), SETTINGS, device="cpu")


def test_unknown_word_is_named(toy_generator: Generator) -> None:
    with pytest.raises(ValueError, match="'unicorn'"):
        toy_generator("a photo of a unicorn")


def test_a_plan_says_how_many_fit_at_once(toy_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["a photo of a red cat", "a photo of two dogs"]
    whole, reasons = toy_generator(prompts, 4), ["a cat: missing", ""]
    corrected = toy_generator.correct(prompts, whole.tokens[[0, 4]], reasons, 4)
    kept, keep = [], pipeline.keep
    monkeypatch.setattr(pipeline, "keep", lambda state, paths: kept.append(len(paths)) or keep(state, paths))
    monkeypatch.setattr(tokenizer, "PIXELS_AT_ONCE", 1)  # decoding, one by one, is not what fills the memory
    for at_once, goes in ((3, [3, 1, 3, 1]), (8, [8])):
        room = generation_bytes(toy_generator.model.config, at_once, 4, 9, True, torch.float32)
        monkeypatch.setattr(memory, "free_bytes", lambda device, room=room: int(room / SHARE) + 1)
        kept.clear()
        plan = plan_generation(toy_generator, prompts, 4)
        again = toy_generator(prompts, 4, batch_size=plan.at_once)
        assert plan.at_once == at_once and kept == goes
        assert torch.equal(whole.steps, again.steps)
    fewer = plan_generation(toy_generator, prompts, 4, reasons).at_once
    assert fewer < 8  # prompts that hold images take more
    again = toy_generator.correct(prompts, whole.tokens[[0, 4]], reasons, 4, batch_size=fewer)
    with pytest.raises(ValueError, match="2 images came with 1 prompts"):
        toy_generator.correct(prompts[:1], whole.tokens[[0, 4]], reasons)
    assert torch.equal(corrected.steps, again.steps)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    long = "a photo of a red cat and a blue dog"
    assert (
        plan_generation(toy_generator, [prompts[0], long], 4).taken
        == plan_generation(toy_generator, [long] * 2, 4).taken
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="Not even one image"):
        plan_generation(toy_generator, prompts, 4)


def test_the_model_can_be_loaded_in_bfloat16(tmp_path: Path) -> None:
    generator = Generator.from_pretrained(*save_parts(tmp_path), SETTINGS, device="cpu", dtype=torch.bfloat16)
    assert (generator.model.dtype, generator.image_tokenizer.dtype) == (torch.bfloat16, torch.float32)
    assert "64 px, bfloat16" in str(plan_generation(generator, "a photo of two dogs", 2))
    assert generator("a photo of two dogs", 2).images.shape == (2, 3, 64, 64)


def test_a_generator_that_cannot_begin_is_refused_when_it_is_made() -> None:
    class Half(ImageGenerator[Any]):
        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_parts_in_another_order_are_refused_when_it_is_made(toy_generator: Generator) -> None:
    model, words, pixels = toy_generator.model, toy_generator.text_tokenizer, toy_generator.image_tokenizer
    with pytest.raises(ValueError, match=r"^text_tokenizer must be a tokenizer of texts, got Magvit"):
        Generator(model, pixels, words, SETTINGS)  # type: ignore[arg-type]


def test_lite_models_take_their_sizes_from_the_picture() -> None:
    pixels, masked = lite_magvit_config(96), lite_showo_config(300, 0, 0, 144)
    assert pixels.length == masked.num_image_tokens == lite_autoregressive_config(300, 0, 12).num_image_tokens == 144
