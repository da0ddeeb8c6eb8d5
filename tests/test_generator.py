"""A generator from its three parts: full-size formats load by the same call, and parts that do not fit are refused."""

from pathlib import Path

import pytest
import torch

from cotgen_lite.generator import Generator
from cotgen_lite.sampling import SamplingSettings
from cotgen_lite.showo import Showo, ShowoConfig
from cotgen_lite.tokenizer import Magvit, MagvitConfig
from cotgen_lite.vocabulary import lite_tokenizer

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
