"""Self-correction: lessons pair a wrong image with what it should have been, training teaches it, drawing uses it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.align.self_correction import Correction, CorrectionTraining, train_correction
from cotgen_lite.experiments.benchmark import predict_plainly
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.generate.sampling import Cost, SamplingSettings, advance, encode_prompts, predict, start
from cotgen_lite.generate.showo import (
    CaptionedTokens,
    attention_mask,
    build_sequences,
    correction_prefix,
    masked_loss,
    text_prefix,
)
from cotgen_lite.geneval import evaluate
from cotgen_lite.hub import data_path
from cotgen_lite.lite.edit_targets import corrections
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.pools import Pool, load_pool
from cotgen_lite.prompts import encode_text, lite_prompts
from cotgen_lite.training import TrainingLog
from cotgen_lite.verify.reasons import share_told

PROMPTS = lite_prompts("train")[:3]
WHY = "the cat is blue, not red"


def prefix_of(generator: Any, text: str, why: str, codes: list[int]) -> list[int]:
    words = generator.text_tokenizer
    return correction_prefix(generator.model.config, encode_text(words, text), encode_text(words, why), codes)


def test_a_correction_stands_in_the_order_of_its_parts(toy_generator: Any) -> None:
    config, words = toy_generator.model.config, toy_generator.text_tokenizer
    prefix = prefix_of(toy_generator, PROMPTS[0].text, WHY, [5] * 64)
    said, why = (encode_text(words, text) for text in (PROMPTS[0].text, WHY))
    eos, image = config.eos_token_id, [config.image_offset + 5] * 64
    assert prefix == [*text_prefix(config, said), *why, eos, config.soi_id, *image, config.eoi_id]
    ids = build_sequences(config, [prefix], torch.zeros(1, 64, dtype=torch.long))
    seen = attention_mask(config, ids)[0, 0] == 0
    target, rejected = len(prefix) + 1, len(prefix) - 60
    assert seen[target, :].all()  # the new image sees prompt, reasons and both images
    assert not seen[rejected, target] and seen[rejected, rejected + 5]  # the old one all of itself, not the new one
    with pytest.raises(ValueError, match="shorten the reasons"):
        prefix_of(toy_generator, PROMPTS[0].text, f"{WHY}, and " * 30, [5] * 64)


def test_drawing_a_correction_equals_the_plain_loop_over_its_prefix(toy_generator: Any) -> None:
    codes, cost = torch.randint(1024, (2, 64), generator=torch.Generator().manual_seed(0)), Cost()
    prefixes = [prefix_of(toy_generator, p.text, WHY, row.tolist()) for p, row in zip(PROMPTS, codes, strict=False)]
    wordless = [correction_prefix(toy_generator.model.config, [], [], row.tolist()) for row in codes]
    cache = encode_prompts(toy_generator.model, prefixes, cost, wordless)
    state = start(toy_generator.model, cache, [(0, 0), (1, 0)], toy_generator.settings, 4, cost)
    for _ in range(toy_generator.settings.steps):
        logits = predict_plainly(toy_generator.model, state)
        torch.testing.assert_close(predict(toy_generator.model, state), logits, atol=1e-5, rtol=1e-5)
        state, step = advance(state, logits)
    plainly = step.guess
    texts = [p.text for p in PROMPTS[:2]]
    both = toy_generator.correct(texts, codes, WHY, 2, seed=4, batch_size=3)
    assert both.prompts == [texts[0]] * 2 + [texts[1]] * 2
    assert torch.equal(both.tokens[[0, 2]], plainly)
    alone = toy_generator.correct(texts[1], codes[1], WHY, 2, seed=4)
    assert torch.equal(alone.steps, both.steps[2:])
    other = toy_generator.correct(texts[1], codes[1], "", seed=4)
    assert not torch.equal(other.tokens[0], alone.tokens[0])
    with pytest.raises(ValueError, match="one for each"):
        encode_prompts(toy_generator.model, prefixes, cost, wordless[:1])


def test_lessons_are_the_wrong_images_mended() -> None:
    generator, pool = load_generator(), load_pool(data_path("training/images/pool.safetensors"))
    rows, judge = [60, 310, 500, 830], TemplateJudge()
    few = Pool(tuple(pool.prompts[row] for row in rows), pool.tokens[rows], {}, {})
    wrong = ~pool.correct["template"][rows]
    lessons = corrections(generator, judge, few, wrong, most=3, seed=0)
    assert len(lessons) == np.minimum(wrong.sum(axis=1), 3).sum()
    rejected = {row: few.tokens[row][wrong[row]].tolist() for row in range(4)}
    assert all(lesson.rejected.tolist() in rejected[few.prompts.index(lesson.prompt)] for lesson in lessons)
    before, after = (
        judge.detect(generator.decode(torch.stack([getattr(lesson, which) for lesson in lessons])))
        for which in ("rejected", "target")
    )
    for lesson, seen in zip(lessons, before, strict=True):
        assert share_told(lesson.reasons, evaluate(lesson.prompt, seen).reasons) == (1.0, 1.0)
    assert np.mean([evaluate(lesson.prompt, seen).correct for lesson, seen in zip(lessons, after, strict=True)]) > 0.9
    assert np.mean([(lesson.target == lesson.rejected).float().mean() for lesson in lessons]) > 0.6
    again = corrections(generator, judge, few, wrong, most=3, seed=0)
    assert [(a.reasons, a.target.tolist()) for a in again] == [(a.reasons, a.target.tolist()) for a in lessons]
    assert corrections(generator, judge, few, np.zeros_like(wrong), most=3, seed=0) == []
    with pytest.raises(ValueError, match="dev or test prompt"):
        corrections(generator, judge, replace(few, prompts=lite_prompts("test")[:4]), wrong, 1, 0)


def test_without_words_a_correction_sees_the_image_alone(toy_generator: Any, tmp_path: Path) -> None:
    code, replay = torch.full((64,), 7, dtype=torch.int16), CaptionedTokens([[5]], torch.full((1, 64), 3), {})
    losses = {}
    for blind in (0.0, 1.0):
        for number, prompt in enumerate(PROMPTS[:2]):
            settings = CorrectionTraining(1, 1e-3, batch_size=4, without_words=blind, without_reasons=0.0)
            folder = tmp_path / f"{blind}-{number}"
            lesson = Correction(prompt, code, (WHY, "there is no cat")[number], code)
            _, log = train_correction(toy_generator, [lesson], replay, settings, folder)
            losses[blind, number] = log.losses
    assert losses[1.0, 0] == losses[1.0, 1] and losses[0.0, 0] != losses[0.0, 1]


def test_only_plain_captions_are_dropped(toy_generator: Any) -> None:
    config, codes = toy_generator.model.config, torch.full((2, 64), 7)
    prefixes = [prefix_of(toy_generator, PROMPTS[0].text, WHY, [5] * 64), text_prefix(config, [5])]
    bare = [prefixes[0], text_prefix(config, [])]
    losses = [
        masked_loss(toy_generator.model, some, codes, torch.Generator().manual_seed(0), dropout)
        for some, dropout in ((prefixes, [0.0, 1.0]), (bare, 0.0), (prefixes, 0.0))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_training_teaches_to_go_by_the_reasons_and_resumes(toy_generator: Any, tmp_path: Path) -> None:
    old, new = torch.full((64,), 7, dtype=torch.int16), torch.full((64,), 9, dtype=torch.int16)
    lessons = [
        Correction(PROMPTS[0], old, "the cat is blue, not red", new),
        Correction(PROMPTS[0], old, "there is no cat", old),
    ]
    words = encode_text(toy_generator.text_tokenizer, PROMPTS[0].text)
    replay = CaptionedTokens([words], torch.full((1, 64), 3), {"pictures": 1})
    settings = CorrectionTraining(
        steps=200, learning_rate=2e-2, batch_size=8, replay=0.5, without_reasons=0.0, without_words=0.0
    )

    start = replace(toy_generator, settings=SamplingSettings(guidance_scale=0, steps=4))
    before = copy.deepcopy(start.model.state_dict())

    def train(folder: Path, steps: int = 200) -> tuple[Generator, TrainingLog]:
        return train_correction(start, lessons, replay, replace(settings, steps=steps), folder)

    taught, log = train(tmp_path / "a")
    assert log.losses[-1] < 1
    torch.testing.assert_close(start.model.state_dict(), before, rtol=0, atol=0)  # left as it was
    drawn = taught.correct(PROMPTS[0].text, torch.stack([old, old]), [x.reasons for x in lessons]).tokens
    assert (drawn[0] == 9).float().mean() > 0.9 and (drawn[1] == 7).float().mean() > 0.9
    assert (taught(PROMPTS[0].text).tokens == 3).float().mean() > 0.9  # plain drawing stays
    again, _ = train(tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(taught.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="another run"):
        train(tmp_path / "a", steps=201)
    with pytest.raises(ValueError, match="at least one correction"):
        train_correction(taught, [], replay, settings, tmp_path / "b")
