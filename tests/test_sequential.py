"""Next-token drawing against a plain loop without any cache; the loss in closed form; states that can be resumed."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from cotgen_lite.align.dpo import DpoTraining, Pair, train_autoregressive_dpo
from cotgen_lite.generate.autoregressive import (
    GREY,
    AutoregressiveConfig,
    AutoregressiveGenerator,
    AutoregressiveModel,
    AutoregressiveSettings,
    next_token_loss,
    pad_texts,
    sequence_ids,
)
from cotgen_lite.generate.sampling import MASKED, Cost, path_noise
from cotgen_lite.generate.showo import CaptionedTokens
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.hub import model_path
from cotgen_lite.lite.generator_training import Stage, train_generator
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.prompts import encode_text, parse_prompt

CODES, LENGTH, TEXTS = 1024, 64, [[7, 8, 9], [10, 11, 12, 13, 14]]
PROMPTS = [" ".join(map(str, text)) for text in TEXTS]  # for a generator that is given ids
SETTINGS = AutoregressiveSettings(guidance_scale=1.5, steps=8, top_k=40)


@pytest.fixture(scope="module")
def model() -> AutoregressiveModel:
    torch.manual_seed(0)
    config = AutoregressiveConfig(
        codebook_size=CODES,
        grid=8,
        text_length=7,
        text_width=24,
        text_vocab_size=len(lite_tokenizer()),
        text_pad_id=lite_tokenizer().pad_token_id,
        text_cosine=1.0,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.3,
    )
    return AutoregressiveModel(config).eval()


@torch.no_grad()
def plain_logits(
    model: AutoregressiveModel, text: list[int], codes: torch.Tensor, nothing: bool = False
) -> torch.Tensor:
    """Logits of the code behind each of these, (C + 1, K), the whole sequence anew and without any padding."""
    features, visible = model.read(pad_texts(model.config, [text]))
    features = model.nothing[None] if nothing else features
    here = visible[0]
    inputs = torch.cat([model.project(features)[:, here], model.llama.embed_tokens(codes)[None]], dim=1)
    places = torch.arange(model.config.text_length + len(codes))
    places = torch.cat([places[: model.config.text_length][here], places[model.config.text_length :]])
    hidden = model.llama(inputs_embeds=inputs, position_ids=places[None]).last_hidden_state[0]
    return model.head(hidden[here.sum() - 1 :])


def draw_plainly(
    model: AutoregressiveModel, text: list[int], settings: AutoregressiveSettings, seed: int, candidate: int
) -> torch.Tensor:
    noise, codes = path_noise((seed, tuple(text), candidate), 1, LENGTH)[0, 0], torch.empty(0, dtype=torch.long)
    for place in range(LENGTH):
        with_text, without = (plain_logits(model, text, codes, nothing)[-1] for nothing in (False, True))
        logits = with_text + settings.guidance_scale * (with_text - without)
        order = logits.argsort(descending=True)[: settings.top_k or None]
        chances = torch.zeros(CODES).index_copy(0, order, (logits[order] / settings.temperature).softmax(0))
        codes = torch.cat([codes, (chances.cumsum(0) <= noise[place]).sum()[None]])
    return codes


class ByIds(AutoregressiveGenerator):
    """Reads ids where others read words."""

    def encode(self, prompt: str) -> list[int]:
        return [int(word) for word in prompt.split()]


def by_ids(model: AutoregressiveModel, settings: AutoregressiveSettings = SETTINGS) -> ByIds:
    return ByIds(model, lite_tokenizer(), Magvit(lite_magvit_config()), settings)


def run(generator: ByIds, state) -> torch.Tensor:
    return list(generator.stream(state))[-1].guess


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, guidance_scale=0.0, top_k=0, temperature=0.7)])
def test_drawing_equals_the_plain_loop(model: AutoregressiveModel, settings: AutoregressiveSettings) -> None:
    generator = by_ids(model, settings)
    drawn = run(generator, generator.begin(PROMPTS, [(1, 0), (0, 3)], 5, Cost()))
    for row, (text, candidate) in enumerate(((TEXTS[1], 0), (TEXTS[0], 3))):
        assert torch.equal(drawn[row], draw_plainly(model, text, settings, 5, candidate))
    assert len(drawn.unique()) > 5


def test_pads_and_places_count_for_nothing_but_their_turning(model: AutoregressiveModel) -> None:
    codes = torch.randint(CODES, (LENGTH,), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([sequence_ids(model.config, TEXTS[0]) + codes.tolist()])
    with torch.no_grad():
        logits = model(ids).logits[0, model.config.text_length - 1 :]
    torch.testing.assert_close(logits, plain_logits(model, TEXTS[0], codes), atol=1e-5, rtol=1e-5)
    cosine, sine = model.llama.rotary_emb(torch.zeros(1), torch.arange(7 + LENGTH)[None])
    width = model.config.hidden_size // model.config.num_attention_heads
    assert cosine.shape == (1, 7 + LENGTH, width) and (cosine[0, :7] == 1).all() and (sine[0, :7] == 0).all()
    at = 7 + 3 * 8 + 5  # row 3, column 5: the first quarter of each half turns by rows, the second by columns
    speeds = [10000.0 ** (-k / (width // 4)) for k in range(width // 4)]
    angles = torch.tensor([3 * speed for speed in speeds] + [5 * speed for speed in speeds])
    torch.testing.assert_close(cosine[0, at], angles.cos().repeat(2))
    torch.testing.assert_close(sine[0, at], angles.sin().repeat(2))


def test_a_kept_path_goes_on_as_it_would_have(model: AutoregressiveModel) -> None:
    generator, cost = by_ids(model), Cost()
    state = generator.begin(PROMPTS, [(0, 0), (0, 1), (1, 0)], 2, cost)
    assert cost.generator_passes == 4  # two captions, each with and without
    whole = run(generator, state)
    for _ in range(3):
        state, _ = generator.advance(state)
    before, halted = cost.generator_passes, generator.keep(state, [2, 0])
    assert torch.equal(run(generator, halted), whole[[2, 0]])
    # Two paths, with and without; the last token needs no pass.
    assert cost.generator_passes - before == 2 * 2 * (5 * 8 - 1)
    assert torch.equal(run(generator, generator.keep(state, [1])), whole[[1]])  # the old state is as it was


def test_unfinished_images_are_grey_or_the_likeliest(model: AutoregressiveModel) -> None:
    grey, likely = (
        generator.advance(generator.begin(PROMPTS, [(0, 0)], 2, Cost()))[1]
        for generator in (by_ids(model), by_ids(model).with_settings(fill="likeliest"))
    )
    assert grey.committed.sum() == 8 and torch.equal(grey.committed, likely.committed)
    assert (grey.guess[0, 8:] == MASKED).all() and torch.equal(grey.guess[0, :8], likely.guess[0, :8])
    codes = grey.guess[0, :8]
    for _ in range(8, LENGTH):
        with_text, without = (plain_logits(model, TEXTS[0], codes, nothing)[-1] for nothing in (False, True))
        codes = torch.cat([codes, (2.5 * with_text - 1.5 * without).argmax()[None]])
    assert torch.equal(likely.guess[0], codes)


def test_loss_is_the_mean_over_codes(model: AutoregressiveModel) -> None:
    codes = torch.randint(CODES, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    draw = torch.Generator().manual_seed(0)
    for dropout, nothing in ((0.0, False), (1.0, True)):
        found = next_token_loss(model, TEXTS, codes, draw, dropout)
        each = [
            plain_logits(model, text, row[:-1], nothing).log_softmax(1)[torch.arange(LENGTH), row].mean()
            for text, row in zip(TEXTS, codes, strict=True)
        ]
        torch.testing.assert_close(found, -torch.stack(each).mean(), atol=1e-4, rtol=1e-4)


def test_generator_draws_alike_in_any_company(model: AutoregressiveModel) -> None:
    generator = AutoregressiveGenerator(
        model, lite_tokenizer(), Magvit.from_pretrained(model_path("tokenizer")), SETTINGS
    )
    prompts = ["a photo of a cat", "a photo of a red car", "a photo of a cat"]
    out = generator(prompts, 2, seed=1, batch_size=3)
    assert out.prompts == [prompts[0]] * 2 + [prompts[1]] * 2 + [prompts[0]] * 2 and out.steps.shape == (6, 8, LENGTH)
    alone = generator(prompts[0], 4, seed=1)
    assert torch.equal(alone.steps, out.steps[[0, 1, 4, 5]])  # listed again: the candidates that follow
    images = generator.decode(alone.steps[0])
    assert images.shape == (8, 3, 64, 64)
    assert (images[0, :, 8:] == GREY).all() and not (images[0, :, :8] == GREY).all()
    finished = alone.images[0]
    assert (images[-1].int() - finished.int()).abs().max() <= 1  # rounded otherwise in another batch
    with pytest.raises(ValueError, match="num_images_per_prompt must be"):
        generator(prompts, 0)
    with pytest.raises(ValueError, match="gray"):
        replace(SETTINGS, fill="gray")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="equal runs"):
        generator(prompts, steps=9)
    with pytest.raises(ValueError, match="too long"):
        generator("a photo of a red cat and a blue dog")


def test_saved_and_loaded(model: AutoregressiveModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoregressiveModel.from_pretrained(tmp_path)
    ids = torch.cat([pad_texts(model.config, TEXTS) + CODES, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="build or download it again"):
        AutoregressiveModel.from_pretrained(tmp_path)


def test_dpo_teaches_what_is_preferred_and_resumes(
    model: AutoregressiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(4)
    chosen, rejected = (torch.randint(low, low + 40, (24, LENGTH), generator=draw) for low in (0, 500))
    prompts = [parse_prompt("a photo of a cat"), parse_prompt("a photo of a red car")] * 12
    pairs = list(map(Pair, prompts, chosen, rejected))
    start = AutoregressiveGenerator(model, lite_tokenizer(), Magvit.from_pretrained(model_path("tokenizer")), SETTINGS)
    settings = DpoTraining(1e-3, batch_size=4)

    def log_p(one: AutoregressiveModel, codes: torch.Tensor) -> torch.Tensor:
        texts = [encode_text(lite_tokenizer(), prompt.text) for prompt in prompts]
        each = [
            plain_logits(one, text, row[:-1]).log_softmax(1)[torch.arange(LENGTH), row].sum()
            for text, row in zip(texts, codes, strict=True)
        ]
        return torch.stack(each)

    aligned, log = train_autoregressive_dpo(start, pairs, settings, tmp_path)
    taught, last = aligned.model, log.rows[-1]
    assert log.steps == 6 and log.losses[0] == pytest.approx(0.6931, abs=1e-3) and log.losses[-1] < 0.3
    assert last["margin"] > 1 and last["accuracy"] == 1
    gains = [(log_p(taught, codes) - log_p(model, codes)).mean() for codes in (chosen, rejected)]
    assert gains[0] > gains[1]
    assert last["chosen"] - last["rejected"] == pytest.approx(last["margin"], abs=1e-4)
    # What trl counts is whole images, from the first code to the last: in a run of one batch, before its only step.
    train_autoregressive_dpo(start, pairs, replace(settings, batch_size=len(pairs)), tmp_path / "one")
    (state,) = (tmp_path / "one").glob("checkpoint-*/trainer_state.json")
    counted = json.loads(state.read_text())["log_history"][0]
    for side, codes in (("chosen", chosen), ("rejected", rejected)):
        assert counted[f"logps/{side}"] == pytest.approx(float(log_p(model, codes).mean()), abs=1e-3)
    monkeypatch.setattr(DPOTrainer, "training_step", None)  # nothing is left to do
    train_autoregressive_dpo(start, pairs, settings, tmp_path)
    ids = torch.tensor([sequence_ids(model.config, TEXTS[0]) + [3] * LENGTH])
    silent = copy.deepcopy(taught)
    silent.head.weight.data.zero_()
    assert not silent(ids).logits.any() and taught(ids).logits.any()  # trl leaves nothing behind
    with pytest.raises(ValueError, match="another run"):
        train_autoregressive_dpo(start, pairs, replace(settings, learning_rate=2e-3), tmp_path)
    with pytest.raises(ValueError, match="at least one pair"):
        train_autoregressive_dpo(start, [], settings)


def test_pre_training_learns_captions_and_resumes(
    model: AutoregressiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CaptionedTokens(TEXTS, torch.tensor([[3] * LENGTH, [5] * LENGTH]), {"pictures": 2})
    taught, again = copy.deepcopy(model), copy.deepcopy(model)
    stage = Stage(30, noisy=True, muon_rate=None, learning_rate=1e-2)
    log = train_generator(taught, data, stage, tmp_path)
    assert log.losses[-1] < 4 and not taught.training
    with torch.no_grad():
        for text, code in zip(TEXTS, (3, 5), strict=True):
            assert plain_logits(taught, text, torch.empty(0, dtype=torch.long))[-1].argmax() == code
    monkeypatch.setattr("cotgen_lite.lite.generator_training.next_token_loss", None)  # nothing is left to do
    train_generator(again, data, stage, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model must be"),
        ({"data": []}, "data must be CaptionedTokens"),
        ({"data": CaptionedTokens([], torch.zeros(0, LENGTH).long(), {})}, "one caption an image"),
        ({"data": CaptionedTokens(TEXTS, torch.zeros(1, LENGTH).long(), {})}, "one caption an image"),
        ({"data": CaptionedTokens(TEXTS, torch.zeros(2, LENGTH + 1).long(), {})}, "must have shape"),
        ({"data": CaptionedTokens(TEXTS, torch.full((2, LENGTH), 10**6), {})}, "tokens must be whole numbers"),
        ({"stage": Stage(0, noisy=True)}, "steps must be"),
        ({"stage": Stage(1, noisy=True, learning_rate=float("nan"))}, "learning_rate must be"),
        ({"stage": Stage(1, noisy=True, muon_rate=-1.0)}, "muon_rate must be"),
        ({"stage": 4000}, "stage must be"),
        ({"work_dir": 7}, "work_dir must be"),
    ],
)
def test_what_pre_training_is_given_is_checked(model: AutoregressiveModel, change: dict[str, Any], said: str) -> None:
    data = CaptionedTokens(TEXTS, torch.zeros(2, LENGTH).long(), {})
    with pytest.raises(ValueError, match=said):
        train_generator(**({"model": model, "data": data, "stage": Stage(1, noisy=True), "work_dir": None} | change))


def test_pre_training_tells_its_data_apart(model: AutoregressiveModel, tmp_path: Path) -> None:
    def run(first: int, seed: int = 0) -> None:
        tokens, stage = torch.tensor([[first] * LENGTH, [5] * LENGTH]), Stage(1, noisy=True, seed=seed)
        train_generator(copy.deepcopy(model), CaptionedTokens(TEXTS, tokens, {"pictures": 2}), stage, tmp_path)

    run(3)
    for other in ((4, 0), (3, 1)):
        with pytest.raises(ValueError, match="another run"):
            run(*other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": "sequential"}, "generator must be an AutoregressiveGenerator"),
        ({"settings": None}, "settings must be a DpoTraining"),
        ({"pairs": [1]}, "each of pairs must be a Pair"),
        ({"pairs": 5}, "pairs must be a list"),
    ],
)
def test_what_dpo_is_given_is_checked(model: AutoregressiveModel, change: dict[str, Any], said: str) -> None:
    words, settings = lite_tokenizer(), AutoregressiveSettings()
    generator = AutoregressiveGenerator(model, words, None, settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        train_autoregressive_dpo(**({"generator": generator, "pairs": [], "settings": DpoTraining(1e-4)} | change))
