"""Settings of the whole test run: no network, no window, few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import matplotlib
import torch

# Not through the environment: the kernels of notebooks would inherit it and show no figures.
matplotlib.use("Agg")
torch.set_num_threads(1)  # the models are too small to gain much from more, and two processes test

import pytest  # noqa: E402

from cotgen_lite.generate.pipeline import Generator  # noqa: E402
from cotgen_lite.generate.sampling import SamplingSettings  # noqa: E402
from cotgen_lite.generate.showo import Showo, ShowoConfig  # noqa: E402
from cotgen_lite.generate.vq import Magvit, lite_magvit_config  # noqa: E402
from cotgen_lite.lite.vocabulary import lite_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def toy_generator() -> Generator:
    """An untrained generator, smaller than the lite one, that reads the lite words and draws 64 px pictures."""
    torch.manual_seed(0)
    words = lite_tokenizer()
    config = ShowoConfig(
        text_vocab_size=len(words),
        codebook_size=1024,
        num_image_tokens=64,
        max_text_length=16,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    model = Showo(config).eval()
    return Generator(model, words, Magvit(lite_magvit_config()).eval(), SamplingSettings(guidance_scale=1.5, steps=5))
