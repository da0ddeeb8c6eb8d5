"""Stand-ins for the public models: the released names, sizes and fields, and loaders that take them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_references import showo_shapes
from test_tokenizer import released_names
from torch import Tensor, nn
from transformers import AutoTokenizer

from cotgen_lite.full_scale import models as released
from cotgen_lite.full_scale import tiny_random_models as s
from cotgen_lite.full_scale.janus import JanusGenerator
from cotgen_lite.full_scale.llamagen import LlamaGenGenerator, read_weights
from cotgen_lite.full_scale.mask2former import Mask2FormerDetector, self_check
from cotgen_lite.generate.autoregressive import AutoregressiveSettings
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.generate.showo import Showo
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.prompts import GENEVAL
from cotgen_lite.verify.verifier import Verifier

OFFICIAL = "pytorch_model.safetensors"  # as Show-o's own classes call their weights
PROMPT = "The red apple was next to the yellow pear."


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return s.save_all(tmp_path_factory.mktemp("small"), seed=14)


def test_showo_has_the_released_names_and_fields(paths: dict[str, Path]) -> None:
    for part, tokens in (("showo", 256), ("showo-512", 1024)):
        config = json.loads((paths[part] / "config.json").read_text())
        words = len(AutoTokenizer.from_pretrained(paths["words"]))
        vocabulary = words + 1 + 9 + 8192 + 1
        assert (config["num_vq_tokens"], config["vocab_size"]) == (tokens, vocabulary)
        assert config["mask_token_id"] == vocabulary - 1
        assert {"_class_name", "llm_vocab_size", "w_clip_vit"} < set(config) and "model_type" not in config
        found = {name: tuple(value.shape) for name, value in load_file(paths[part] / OFFICIAL).items()}
        assert found == showo_shapes(vocabulary, 32, 2, 2, 64)


def test_magvit_has_the_released_names_and_depth(paths: dict[str, Path]) -> None:
    state = load_file(paths["magvit"] / OFFICIAL)
    tables = {"quantize.embedding", "quantize.power_vals"}
    shortcuts = {name.removesuffix(".nin_shortcut.weight") for name in state if "nin_shortcut.weight" in name}
    assert set(state) - tables == released_names([4, 3, 4, 3, 4], [4, 4, 3, 4, 3], shortcuts)
    assert tables < set(state)
    with torch.device("meta"):
        assert set(Magvit(s.MagvitConfig()).state_dict()) == set(state) - tables


def test_llamagens_files_have_its_names(paths: dict[str, Path]) -> None:
    gpt, vq = (read_weights(paths[part]) for part in ("llamagen", "llamagen-vq"))
    assert "layers.1.attention.wqkv.weight" in gpt and len(gpt) == 6 + 2 * 7
    assert {"encoder.mid.1.q.weight", "encoder.conv_blocks.0.res.0.conv1.weight", "decoder.conv_in.bias"} < set(vq)


def draw_one(generator: Generator | LlamaGenGenerator) -> Tensor:
    return generator(PROMPT).images


def test_everything_loads_by_path_and_draws_or_judges(paths: dict[str, Path]) -> None:
    settings, runs = SamplingSettings(1.75, steps=3), AutoregressiveSettings(4.0, top_k=100)
    generator = Generator.from_pretrained(paths["showo"], paths["words"], paths["magvit"], settings, "cpu")
    images = draw_one(generator)
    assert images.shape == (1, 3, 256, 256) and images.float().std() > 10
    large = Showo.from_pretrained(paths["showo-512"])
    pixels = Magvit.from_pretrained(paths["magvit"], image_size=512)
    assert large.config.num_image_tokens == pixels.config.length == 1024
    janus = JanusGenerator.from_pretrained(paths["janus"], runs, "cpu")
    assert (janus.num_image_tokens, janus.image_tokenizer.config.image_size) == (576, 48)  # draws in chapter 10
    files = (paths[part] for part in ("llamagen", "t5", "llamagen-vq"))
    assert draw_one(LlamaGenGenerator.from_pretrained(*files, runs, 16, "cpu")).shape == (1, 3, 32, 32)
    verifier = Verifier.from_pretrained(paths["onevision"], "cpu")
    clarity, potential = verifier.clarity_and_potential(images, PROMPT)
    assert clarity.shape == (1,) and clarity.isfinite() and potential.isfinite()
    detector = Mask2FormerDetector.from_pretrained(
        paths["mask2former"], paths["clip"], device="cpu", input_size=(64, 96)
    )
    assert detector.names == GENEVAL.objects
    with pytest.raises(RuntimeError, match="found 0 of 12"):
        self_check(detector)


def test_the_verifier_has_opinions(paths: dict[str, Path]) -> None:
    verifier = Verifier.from_pretrained(paths["onevision"], "cpu")
    noise = torch.randint(256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert verifier.score(noise, PROMPT).std() > 0.01
    assert verifier.score(noise[:1].expand(2, -1, -1, -1), [PROMPT, "A leather jacket."]).diff().abs() > 0.01


def test_a_seed_is_a_checkpoint(paths: dict[str, Path], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again, other = s.save_all(tmp_path / "a", seed=14), s.save_all(tmp_path / "b", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("showo", "magvit", "onevision", "janus", "mask2former", "clip"):
        name = OFFICIAL if part in ("showo", "magvit") else "model.safetensors"
        ours, same, different = (load_file(each[part] / name) for each in (paths, again, other))
        assert all(torch.equal(ours[name], same[name]) for name in ours)
        assert any(not torch.equal(ours[name], different[name]) for name in ours)


def test_released_sizes_are_those_of_the_public_files() -> None:
    # In millions: what the hub's pages state of the files, or (LlamaGen, T5's encoder) the papers' own sizes.
    stated = {
        "Show-o, 256 px": 1450,
        "Show-o, 512 px": 1450,
        "LLaVA-OneVision-7B": 8030,
        "LlamaGen GPT-XL": 775,
        "its captions' T5": 1220,
        "Mask2Former Swin-S": 69,
        "CLIP ViT-L/14": 428,
    }
    counted = {one.name: one.on_meta() for one in released.RELEASED}
    for name, millions in stated.items():
        assert released.parameters(counted[name]) / 1e6 == pytest.approx(millions, rel=0.01)
    # DeepSeek's 14.84 GB in 16 bits hold a head for words and an attention pool that are not counted here.
    pool = 12 * 1024**2
    for name, width, millions in (("Janus-Pro-7B", 4096, 7420), ("Janus-Pro-1B", 2048, 2089)):
        assert (released.parameters(counted[name]) + 102400 * width + pool) / 1e6 == pytest.approx(millions, rel=0.002)
    real = [weights for model in counted.values() for weights in model.parameters() if not weights.is_meta]
    assert sum(weights.numel() for weights in real) < 1000  # next to nothing is in memory


def test_weights_that_are_shared_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert released.parameters(nn.Sequential(layer, layer)) == 12
