"""Self-correction: lessons pair a wrong image with what it should have been, training teaches it, drawing uses it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.align import self_correction
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
from cotgen_lite.lite import edit_targets
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


def lesson_of(number: int = 0, **changes: Any) -> Correction:
    codes = torch.full((64,), 7 + number, dtype=torch.int16)
    return replace(Correction(PROMPTS[number], codes, WHY, codes + 1), **changes)


def replay_of(generator: Generator) -> CaptionedTokens:
    words = encode_text(generator.text_tokenizer, PROMPTS[0].text)
    return CaptionedTokens([words], torch.full((1, 64), 3), {"pictures": 1})


def test_batches_are_drawn_anew_and_as_the_settings_say(toy_generator: Any, monkeypatch: Any) -> None:
    """What the loss is asked of: each step another batch, plain ones dropped in a tenth, the others by their shares."""
    config, seen = toy_generator.model.config, []

    def noted(model: Any, prefixes: Any, tokens: Any, drawing: Any, dropout: Any) -> Any:
        seen.append(([tuple(prefix) for prefix in prefixes], tokens[:, 0].tolist(), list(dropout)))
        return masked_loss(model, prefixes, tokens, drawing, dropout)

    monkeypatch.setattr(self_correction, "masked_loss", noted)
    lessons = [lesson_of(number) for number in range(3)]
    settings = CorrectionTraining(40, 1e-4, batch_size=16, replay=0.25, without_reasons=0.3, without_words=0.2, seed=3)
    train_correction(toy_generator, lessons, replay_of(toy_generator), settings)
    said = {number: prefix_of(toy_generator, PROMPTS[number].text, WHY, [7 + number] * 64) for number in range(3)}
    kinds = []
    for prefixes, first, dropout in seen:
        assert dropout == [0.0] * 12 + [0.1] * 4 and first[12:] == [3] * 4
        assert all(
            prefix == tuple(text_prefix(config, replay_of(toy_generator).text_ids[0])) for prefix in prefixes[12:]
        )
        for prefix, target in zip(prefixes[:12], first[:12], strict=True):
            number = target - 8
            mute = tuple(prefix_of(toy_generator, PROMPTS[number].text, "", [7 + number] * 64))
            blind = tuple(correction_prefix(config, [], [], [7 + number] * 64))
            kinds.append({tuple(said[number]): "told", mute: "mute", blind: "blind"}[prefix])
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("told", "mute", "blind")}
    assert shares == pytest.approx({"told": 0.5, "mute": 0.3, "blind": 0.2}, abs=0.08)
    assert len({tuple(first) for _, first, _ in seen}) > 30
    again = []
    monkeypatch.setattr(
        self_correction, "masked_loss", lambda *given: again.append(given[2][:, 0].tolist()) or noted(*given)
    )
    train_correction(toy_generator, lessons, replay_of(toy_generator), replace(settings, steps=2, seed=4))
    assert again != [first for _, first, _ in seen[:2]]


def test_images_in_which_nothing_is_wrong_give_no_lesson(toy_generator: Any, monkeypatch: Any) -> None:
    pool = Pool(PROMPTS, torch.zeros(3, 2, 64, dtype=torch.int16), {}, {})
    found = evaluate(PROMPTS[0], [])
    verdicts = iter([replace(found, reasons=()), found] * 3)
    monkeypatch.setattr(edit_targets, "evaluate", lambda *_: next(verdicts))
    lessons = corrections(toy_generator, TemplateJudge(), pool, np.ones((3, 2), dtype=bool), most=2, seed=0)
    assert len(lessons) == 3 and all(lesson.reasons for lesson in lessons)


@pytest.mark.parametrize("changed", ["reasons", "target", "rejected", "replay", "replay text"])
def test_what_is_learned_from_tells_runs_apart(toy_generator: Any, tmp_path: Path, changed: str) -> None:
    settings, replay = CorrectionTraining(1, 1e-3, batch_size=4), replay_of(toy_generator)
    train_correction(toy_generator, [lesson_of()], replay, settings, tmp_path)
    train_correction(toy_generator, [lesson_of()], replay, settings, tmp_path)
    swapped = torch.full((64,), 7, dtype=torch.int16)
    swapped[:2] = torch.tensor([6, 8])  # the same sum
    lesson = {
        "reasons": lesson_of(reasons="there is no cat"),
        "target": lesson_of(target=swapped + 1),
        "rejected": lesson_of(rejected=swapped),
    }.get(changed, lesson_of())
    if changed == "replay":
        replay = replace(replay, tokens=(swapped[None] - 4).long())
    if changed == "replay text":
        replay = replace(replay, text_ids=[replay.text_ids[0][::-1]])
    with pytest.raises(ValueError, match="another run"):
        train_correction(toy_generator, [lesson], replay, settings, tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "steps": (0, -1, 2.5, 10**9),
        "learning_rate": (float("nan"), -1.0, "1e-3"),
        "batch_size": (0, None),
        "replay": (-0.1, 1.1, 1.0, float("nan")),
        "without_reasons": (-0.1, 1.1, 0.95),
        "without_words": (2, float("inf")),
        "seed": (-1, 1.0),
    }.items(),
)
def test_impossible_settings_are_refused_in_a_sentence(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} (must|of|and)"):
            CorrectionTraining(**({"steps": 5, "learning_rate": 1e-3} | {name: value}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": "generator"}, "generator must be a Generator"),
        ({"lessons": None}, "lessons must be a list"),
        ({"lessons": [None]}, "each of lessons must be a Correction"),
        ({"lessons": [lesson_of(prompt="a photo of a cat")]}, "prompt must be a Prompt"),
        ({"lessons": [lesson_of(reasons=None)]}, "reasons must be a text"),
        ({"lessons": [lesson_of(reasons="the zebra is blue")]}, "do not know"),
        ({"lessons": [lesson_of(target=torch.full((64,), 1024))]}, "from 0 to 1023"),
        ({"lessons": [lesson_of(rejected=torch.full((64,), -1))]}, "from 0 to 1023"),
        ({"lessons": [lesson_of(target=torch.zeros(63).long())]}, "must have shape"),
        ({"lessons": [lesson_of(reasons=f"{WHY}, and " * 30)]}, "shorten the reasons"),
        ({"replay": None}, "replay must be CaptionedTokens"),
        ({"replay": CaptionedTokens([], torch.zeros(0, 64).long(), {})}, "replay must hold"),
        ({"replay": CaptionedTokens([[5]], torch.zeros(2, 64).long(), {})}, "replay must hold"),
        ({"replay": CaptionedTokens([[5]], torch.full((1, 64), 5000), {})}, "from 0 to 1023"),
        ({"settings": {"steps": 1}}, "settings must be a CorrectionTraining"),
        ({"work_dir": 5}, "work_dir must be"),
    ],
)
def test_what_training_is_given_is_checked(toy_generator: Any, change: dict[str, Any], said: str) -> None:
    given = {"generator": toy_generator, "lessons": [lesson_of()], "replay": replay_of(toy_generator)}
    with pytest.raises(ValueError, match=said):
        train_correction(**(given | {"settings": CorrectionTraining(1, 1e-3, batch_size=4)} | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": None}, "generator must be a Generator"),
        ({"judge": "template"}, "judge must"),
        ({"pool": []}, "pool must be a Pool"),
        ({"wrong": np.ones((3, 1), dtype=bool)}, "must have shape"),
        ({"wrong": np.full((3, 2), 0.5)}, "wrong must"),
        ({"most": 0}, "most must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_what_lessons_are_made_of_is_checked(toy_generator: Any, change: dict[str, Any], said: str) -> None:
    pool = Pool(PROMPTS, torch.zeros(3, 2, 64, dtype=torch.int16), {}, {})
    given = {"generator": toy_generator, "judge": TemplateJudge(), "pool": pool, "wrong": np.ones((3, 2), dtype=bool)}
    with pytest.raises(ValueError, match=said):
        corrections(**(given | {"most": 1, "seed": 0} | change))
