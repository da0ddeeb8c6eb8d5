"""A generator from its three parts: full-size formats load by the same call, and parts that do not fit are refused."""

from pathlib import Path

import pytest
import torch

from cotgen_lite.generate import pipeline as generator_module
from cotgen_lite.generate import sampling
from cotgen_lite.generate import vq as tokenizer
from cotgen_lite.generate.memory import SHARE, drawing_bytes
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings, Trajectory
from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.generate.vq import Magvit, MagvitConfig
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
    drawn = generator.draw(["a photo of a red cat", "a photo of two dogs"], n=2, seed=0)
    images = generator.decode(torch.stack([path.tokens for candidates in drawn for path in candidates]))
    assert images.shape == (2 * 2 * 3, 3, 64, 64) and images.dtype == torch.uint8
    again = generator.draw(["a photo of two dogs"], n=2, seed=0)
    assert torch.equal(again[0][1].final, drawn[1][1].final)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 tokens of 4096 codes"):
        Generator.from_pretrained(*save_parts(tmp_path, codebook_size=4096), SETTINGS, device="cpu")


def test_unknown_word_is_named(toy_generator: Generator) -> None:
    with pytest.raises(ValueError, match="'unicorn'"):
        toy_generator.draw(["a photo of a unicorn"], n=1, seed=0)


def same_tokens(one: list[list[Trajectory]], other: list[list[Trajectory]]) -> bool:
    tokens = [torch.stack([path.tokens for paths in drawn for path in paths]) for drawn in (one, other)]
    return torch.equal(*tokens)


def test_without_a_batch_size_as_many_are_drawn_as_fit(
    toy_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a photo of a red cat", "a photo of two dogs"]
    drawn = toy_generator.draw(prompts, n=4, seed=0)
    codes, reasons = torch.stack([paths[0].final for paths in drawn]), ["a cat: missing", ""]
    corrected = toy_generator.correct(prompts, codes, reasons, n=4, seed=0)
    started, start = [], sampling.start
    monkeypatch.setattr(sampling, "start", lambda *args: started.append(len(args[2])) or start(*args))
    monkeypatch.setattr(tokenizer, "PIXELS_AT_ONCE", 1)  # decoding, one by one, is not what fills the memory
    for at_once, goes in ((3, [3, 1, 3, 1]), (8, [8])):
        room = drawing_bytes(toy_generator.model.config, at_once, 4, 9, True, torch.float32)
        monkeypatch.setattr(generator_module, "free_bytes", lambda device, room=room: int(room / SHARE) + 1)
        started.clear()
        again = toy_generator.draw(prompts, n=4, seed=0, batch_size=None)
        assert started == goes and toy_generator.plan(prompts, 4).at_once == at_once
        assert same_tokens(drawn, again)
    started.clear()
    assert same_tokens(corrected, toy_generator.correct(prompts, codes, reasons, n=4, seed=0, batch_size=None))
    assert max(started) < 8  # prompts that hold images take more
    monkeypatch.setattr(generator_module, "free_bytes", lambda device: 10**9)
    long = "a photo of a red cat and a blue dog"
    assert toy_generator.plan([prompts[0], long], 4).taken == toy_generator.plan([long, long], 4).taken
    monkeypatch.setattr(generator_module, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="Not even one image"):
        toy_generator.draw(prompts, n=4, seed=0, batch_size=None)


def test_the_model_can_be_loaded_in_bfloat16(tmp_path: Path) -> None:
    generator = Generator.from_pretrained(*save_parts(tmp_path), SETTINGS, device="cpu", dtype=torch.bfloat16)
    assert (generator.model.dtype, generator.image_tokenizer.dtype) == (torch.bfloat16, torch.float32)
    assert "64 px, bfloat16" in str(generator.plan(["a photo of two dogs"], 2))
    final = generator.draw(["a photo of two dogs"], n=2, seed=0)[0][0].final
    assert generator.decode(final).shape == (1, 3, 64, 64)
