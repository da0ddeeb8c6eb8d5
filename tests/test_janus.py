"""Janus drawn run by run against transformers' own `generate`, on a small random checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from cotgen_lite.full_scale.janus import JanusGenerator
from cotgen_lite.generate.autoregressive import GREY, AutoregressiveSettings
from cotgen_lite.generate.sampling import MASKED, Cost, path_noise

LENGTH, CODES, START, IMAGE, PAD = 16, 50, "<start>", "<begin_of_image>", "<pad>"
SETTINGS = AutoregressiveSettings(guidance_scale=4.0, steps=4, top_k=12)
PROMPTS = ["a photo of a cat", "a photo of two dogs left of a red car"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As DeepSeek's: byte-level BPE, spaces being letters of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [START, IMAGE, PAD]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, pad_token=PAD, additional_special_tokens=[IMAGE]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the released one, its tokenizer labelled as Llama's too."""
    path = tmp_path_factory.mktemp("janus")
    words = byte_level_tokenizer()
    words.save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"}))
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=words.pad_token_id,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=2,
            projection_dim=32,
            num_image_tokens=LENGTH,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=CODES,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=(1, 2),
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=0,
    )
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # an untrained model is nearly blind to its input
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> JanusGenerator:
    return JanusGenerator.from_pretrained(folder, SETTINGS, device="cpu")


def requests(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts in Janus's format, padded at the left, as its processor makes them."""
    words = byte_level_tokenizer()
    texts = [f"{START}<|User|>: {prompt}\n\n<|Assistant|>:{IMAGE}" for prompt in prompts]
    inputs = words(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]


def library(generator: JanusGenerator, prompts: list[str], scale: float) -> Tensor:
    """Codes (B, L) of transformers' own loop, each place's likeliest."""
    janus, words = generator.model.janus, generator.text_tokenizer
    ids, mask = requests(prompts)
    settings = janus.generation_config
    settings.bos_token_id, settings.pad_token_id = words.bos_token_id, words.pad_token_id
    settings.generation_kwargs = {"boi_token_id": words.convert_tokens_to_ids(IMAGE)}
    return janus.generate(
        input_ids=ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=scale
    )


@pytest.mark.parametrize("guidance", [4.0, 1.5])
def test_greedy_codes_are_the_librarys(generator: JanusGenerator, guidance: float) -> None:
    greedy = replace(generator, settings=AutoregressiveSettings(guidance, steps=4, top_k=1))
    expected = library(generator, PROMPTS, guidance + 1)
    assert torch.equal(greedy(PROMPTS).tokens, expected)
    assert not torch.equal(*expected) and len(expected.unique()) > 6
    assert torch.equal(greedy(PROMPTS[0]).tokens, expected[:1])  # no pads beside it


@torch.no_grad()
def plain_logits(generator: JanusGenerator, prompt: str, codes: Tensor, blank: bool) -> Tensor:
    """Logits of the next code (K,), the whole sequence anew; blank: with pads in place of the prompt's words."""
    janus, ids = generator.model.janus, requests([prompt])[0]
    if blank:
        ids[:, 1:-1] = generator.text_tokenizer.pad_token_id
    inputs = torch.cat(
        [janus.get_input_embeddings()(ids), janus.prepare_embeddings_for_image_generation(codes[None])], dim=1
    )
    hidden = janus.model.language_model(inputs_embeds=inputs).last_hidden_state[0, -1]
    return janus.model.generation_head(hidden)


def draw_plainly(generator: JanusGenerator, prompt: str, candidate: int) -> Tensor:
    settings, words = generator.settings, generator.text_tokenizer
    key = tuple(words(f"<|User|>: {prompt}\n\n<|Assistant|>:", add_special_tokens=False)["input_ids"])
    noise, codes = path_noise((3, key, candidate), 1, LENGTH)[0, 0], torch.empty(0, dtype=torch.long)
    for place in range(LENGTH):
        with_text, without = (plain_logits(generator, prompt, codes, blank) for blank in (False, True))
        logits = without + (settings.guidance_scale + 1) * (with_text - without)
        order = logits.argsort(descending=True)[: settings.top_k or None]
        chances = torch.zeros(CODES).index_copy(0, order, (logits[order] / settings.temperature).softmax(0))
        codes = torch.cat([codes, (chances.cumsum(0) <= noise[place]).sum()[None]])
    return codes


@pytest.mark.parametrize("settings", [SETTINGS, AutoregressiveSettings(0.0, steps=2, temperature=0.8)])
def test_drawing_equals_the_plain_loop(generator: JanusGenerator, settings: AutoregressiveSettings) -> None:
    generator = replace(generator, settings=settings)
    out = generator(PROMPTS, 2, seed=3, batch_size=3)
    assert out.prompts == [prompt for prompt in PROMPTS for _ in range(2)]
    assert out.steps.shape == out.committed.shape == (2 * len(PROMPTS), settings.steps, LENGTH)
    for row, candidate in ((0, 0), (1, 1)):
        assert torch.equal(out.tokens[2 * row + candidate], draw_plainly(generator, PROMPTS[row], candidate))
    assert len(out.tokens.unique()) > 10


def test_paths_may_be_stopped_and_cost_nothing_then(generator: JanusGenerator) -> None:
    whole, cost = generator(PROMPTS, 2, seed=3), Cost()
    state = generator.begin(PROMPTS, [(0, 0), (0, 1), (1, 1)], 3, cost)
    assert cost.generator_passes == 4
    state, step = generator.advance(state)
    assert torch.equal(step.guess[2], whole.steps[3, 0].long())
    before, state = cost.generator_passes, generator.keep(state, [2])
    (*_, step) = generator.stream(state)
    assert torch.equal(step.guess[0], whole.tokens[3])
    assert cost.generator_passes - before == 2 * (3 * 4 - 1)


def test_codes_become_pictures(generator: JanusGenerator) -> None:
    out = generator(PROMPTS[0], seed=1)
    assert (out.steps[0, 0, 4:] == MASKED).all()
    images = generator.decode(out.steps)
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.uint8
    assert (images[0, :, 2:] == GREY).all() and not (images[0, :, :2] == GREY).all()
    with torch.no_grad():
        values = generator.model.janus.decode_image_tokens(out.tokens)[0].permute(2, 0, 1)
    assert (images[-1].float() - (values.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51


def test_prompts_keep_their_spaces(generator: JanusGenerator) -> None:
    assert generator.text_tokenizer.decode(generator.encode(" a cat ")) == "<|User|>: a cat\n\n<|Assistant|>:"


def test_half_precision_draws(folder: Path) -> None:
    half = JanusGenerator.from_pretrained(folder, SETTINGS, device="cpu", dtype=torch.bfloat16)
    out = half(PROMPTS[0], seed=1)
    assert half.model.janus.dtype == torch.bfloat16 and out.tokens.max() < CODES
    assert half.image_tokenizer.vq.quantize.embedding.weight.dtype == torch.float32
    assert out.images.shape == (1, 3, 8, 8)


def test_bad_requests_and_folders_are_one_clear_sentence(
    generator: JanusGenerator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="divisor of 16"):
        generator(PROMPTS, steps=5)
    with pytest.raises(ValueError, match="num_images_per_prompt must be"):
        generator(PROMPTS, 0)
    for text, why in (
        ("cat" * 99, r"tokens; this model reads at most 110"),
        (f"cat{IMAGE}", "holds '<begin_of_image>'"),
    ):
        with pytest.raises(ValueError, match=why):
            generator(text)

    def damaged(change: str) -> Path:
        path = tmp_path / change.replace(" ", "_")
        path.mkdir()
        for file in folder.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        weights = load_file(path / "model.safetensors")
        if change == "missing":
            del weights["model.generation_head.vision_head.bias"]
        elif change == "unexpected":
            weights["model.more"] = torch.zeros(2)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        if change == "cut":
            (path / "model.safetensors").write_bytes(b"nothing")
        elif change == "no words":
            (path / "tokenizer.json").unlink()
        elif change == "other words":
            PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.BPE()), bos_token=START, pad_token=PAD
            ).save_pretrained(path)
        return path

    for change, complaint in (
        ("missing", r"vision_head\.bias first"),
        ("unexpected", r"model\.more first"),
        ("cut", "download it again"),
        ("no words", "download it again"),
        ("other words", "lacks a start, a pad or <begin_of_image>"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            JanusGenerator.from_pretrained(damaged(change), SETTINGS)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="download it again"):
        JanusGenerator.from_pretrained(tmp_path / "nowhere", SETTINGS)

    def end_of_file(*_: object, **__: object) -> None:
        raise EOFError

    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", classmethod(end_of_file))
    with pytest.raises(ValueError, match=r"\(EOFError\).*download it again"):
        JanusGenerator.from_pretrained(folder, SETTINGS)
