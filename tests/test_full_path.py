"""The whole way of the paper at both released layouts: from files in their released formats to a corrected image.

Show-o (256 or 1,024 codes, 129 text places, 8,192 codes), MAGVIT-v2 (13 bits, released block counts) and a
LLaVA-OneVision, all with random weights and small in width, are saved as they are released and loaded by their paths.
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_verifiers import byte_level_tokenizer, save_onevision
from test_references import pictures, save_magvit, save_showo
from torch import Tensor

from cotgen_lite.align.dpo import DpoTraining, Pair, draw_masks, log_probability, reward_margins, train_dpo
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.generate.showo import correction_prefix, masked_loss, text_prefix
from cotgen_lite.prompts import encode_text, parse_prompt
from cotgen_lite.verify.search import best_of_n, parm_search, prm_search, reflect
from cotgen_lite.verify.verifier import (
    PRM_QUESTION,
    REFLECTION_QUESTION,
    Verifier,
)

PROMPT, OTHER = "a photo of a red apple and a blue car", "a photo of three dogs"
STEPS = 4
SETTINGS = SamplingSettings(guidance_scale=1.75, steps=STEPS)


@dataclass(frozen=True)
class Full:
    """Both models of one layout; size: side of its pictures, px."""

    size: int
    generator: Generator
    verifier: Verifier

    @property
    def length(self) -> int:
        return (self.size // 16) ** 2

    def prefix(self, prompt: str) -> list[int]:
        return text_prefix(self.generator.model.config, encode_text(self.generator.text_tokenizer, prompt))


def save_parts(folder: Path, size: int) -> tuple[Path, Path, Path]:
    """The three parts of a generator, as released; returns where they are."""
    parts = folder / "showo", folder / "words", folder / "magvit"
    words = byte_level_tokenizer()
    save_showo(parts[0], (size // 16) ** 2, len(words), 8192, words.eos_token_id, words.eos_token_id)
    words.save_pretrained(parts[1])
    save_magvit(parts[2])
    return parts


@pytest.fixture(scope="module", params=[256, 512], ids=["256px", "512px"])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Full:
    folder, size = tmp_path_factory.mktemp("full"), request.param
    model, words, pixels = save_parts(folder, size)
    generator = Generator.from_pretrained(model, words, pixels, SETTINGS, device="cpu")
    for seed in range(9, 40):  # until the verifier is unsure: it finds some images right, some not
        torch.manual_seed(seed)  # each torch draws other weights of it
        save_onevision(folder / f"verifier{seed}")
        made = Full(size, generator, Verifier.from_pretrained(folder / f"verifier{seed}", device="cpu"))
        if size != 256 or (odds_of_four(made).min() < 0 and odds_of_four(made).max() > 0.05):
            return made
    raise AssertionError("no verifier is unsure")


# Two images of 512 px do not fit before the model's last place.
ONLY_256 = pytest.mark.parametrize("full", [256], indirect=True, ids=["256px"])


def finals(full: Full, prompt: str, n: int, seed: int) -> Tensor:
    """Codes (n, L) of n finished images."""
    return full.generator(prompt, n, seed=seed).tokens


def odds_of_four(full: Full) -> Tensor:
    """What the verifier says of four finished images, log-odds (4,)."""
    return full.verifier.score(full.generator.decode(finals(full, PROMPT, 4, seed=7)), PROMPT, REFLECTION_QUESTION)


# --- an image, a sample, a score ---


def test_a_picture_becomes_codes_and_a_picture_again(full: Full) -> None:
    seen = pictures(2, full.size)
    codes = full.generator.image_tokenizer.encode(seen)
    assert codes.shape == (2, full.length) and codes.min() >= 0 and codes.max() < 8192
    assert not torch.equal(codes[0], codes[1]) and codes.unique().numel() > 100
    shown = full.generator.decode(codes.to(torch.int16))
    assert shown.shape == seen.shape and shown.dtype == torch.uint8
    assert (shown[0] != shown[1]).any() and shown.float().std() > 10
    alone = full.generator.decode(codes[1])  # (L,) is one image
    assert (alone[0].int() - shown[1].int()).abs().max() <= 1


def test_the_same_seed_draws_the_same_images(full: Full) -> None:
    out = full.generator([PROMPT, OTHER], 2, seed=3)
    assert out.prompts == [PROMPT] * 2 + [OTHER] * 2
    assert out.steps.shape == out.committed.shape == (4, STEPS, full.length)
    assert out.steps.min() >= 0 and out.steps.max() < 8192
    left = [math.floor(full.length * math.cos(math.pi * done / (2 * STEPS))) for done in range(1, STEPS)]
    assert (~out.committed).sum(dim=2).tolist() == [[*left, 0]] * 4
    finished = out.tokens
    assert len({tuple(codes) for codes in finished.tolist()}) == 4
    assert torch.equal(finals(full, OTHER, 1, seed=3), finished[2:3])
    assert not torch.equal(finals(full, OTHER, 1, seed=4), finished[2:3])


def test_the_verifier_reads_what_was_drawn(full: Full) -> None:
    images = full.generator.decode(finals(full, PROMPT, 2, seed=3))
    asked = full.verifier.passes
    odds = full.verifier.score(images[[0, 1, 0]], [PROMPT, PROMPT, OTHER])
    assert full.verifier.passes - asked == 3 and odds.isfinite().all()
    assert odds.unique().numel() == 3  # another image or another prompt, another score
    torch.testing.assert_close(full.verifier.score(images[1:], PROMPT)[0], odds[1], atol=1e-4, rtol=1e-4)


# --- the searches ---


def test_best_of_n_keeps_the_favourite(full: Full) -> None:
    before = full.verifier.passes
    found = best_of_n(full.generator, full.verifier, PROMPT, 3, seed=5)
    cost = found.cost
    assert found.images.shape == (3, 3, full.size, full.size)
    assert torch.equal(found.candidates.tokens, finals(full, PROMPT, 3, seed=5))
    odds = full.verifier.score(found.images, PROMPT)
    torch.testing.assert_close(found.log_odds, odds, atol=1e-4, rtol=1e-4)
    assert found.chosen == int(odds.argmax()) and torch.equal(found.image, found.images[found.chosen])
    # The prompt and the empty one; a first step that all share; then a pass with and one without the prompt for each.
    assert cost.generator_passes == 2 + 2 + 2 * 3 * (STEPS - 1)
    assert cost.tokens == (cost.generator_passes - 2) * (full.length + 2) + len(full.prefix(PROMPT)) + 3
    assert cost.verifier_passes == 3 and full.verifier.passes - before == 3 + 3
    assert cost.seconds == cost.generator_seconds + cost.verifier_seconds > 0


def test_step_by_step_goes_on_from_the_favourite(full: Full) -> None:
    before = full.verifier.passes
    found = prm_search(full.generator, full.verifier, PROMPT, 2, seed=5, first_step=2)
    assert found.guesses.shape == (STEPS, 2, full.length) and found.image.shape == (3, full.size, full.size)
    assert found.step_log_odds[0].isnan().all() and found.step_log_odds[1:].isfinite().all() and found.taken[0] == 0
    assert torch.equal(found.taken[1:], found.step_log_odds[1:].argmax(dim=1))
    assert torch.equal(found.log_odds, found.step_log_odds[-1]) and found.chosen == found.taken[-1]
    images = full.generator.decode(found.guesses[2])
    odds = full.verifier.score(images, PROMPT, PRM_QUESTION)
    torch.testing.assert_close(found.step_log_odds[2], odds, atol=1e-4, rtol=1e-4)
    for step in range(1, STEPS):  # both draws keep what the favourite of the step before had committed
        kept = found.committed[step - 1]
        assert (found.guesses[step][:, kept] == found.path[step - 1][kept]).all()
    assert torch.equal(found.path[-1], found.guesses[-1, found.chosen])
    assert found.cost.generator_passes == 2 + 2 * STEPS
    assert found.cost.verifier_passes == 2 * (STEPS - 1) == full.verifier.passes - before - 2


class Stricter(Verifier):
    """The same verifier, whose log-odds of clarity and of potential must be above `bars` for a yes."""

    bars = torch.zeros(2)

    def clarity_and_potential(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        clarity, potential = super().clarity_and_potential(*args, **kwargs)
        return clarity - self.bars[0], potential - self.bars[1]


def test_parm_stops_what_is_clear_and_hopeless(full: Full) -> None:
    n, seed = (4 if full.size == 256 else 2), 6
    guesses = full.generator(PROMPT, n, seed=seed).steps.transpose(0, 1)  # (T, N, L)
    images = full.generator.decode(guesses[:-1])
    clarity, potential = (odds.view(STEPS - 1, n) for odds in full.verifier.clarity_and_potential(images, PROMPT))
    # One image is not clear; of the clear ones' lowest potentials, a path's, the bar stands in the widest gap.
    enough = clarity.flatten().sort().values[:2].mean()
    heard = torch.where(clarity > enough, potential, math.inf)
    lowest = heard.min(dim=0).values.sort().values
    widest = int(lowest.diff().argmax())
    verifier = Stricter(full.verifier.model, full.verifier.processor)
    verifier.bars = torch.stack([enough, lowest[widest : widest + 2].mean()])
    found = parm_search(full.generator, verifier, PROMPT, n, seed)
    survivors = n - 1 - widest
    alive = [path for path in found.paths if path.stopped_at is None]
    assert len(alive) == survivors < n and found.kept in alive
    for path in found.paths:
        below = (heard[:, path.candidate] <= verifier.bars[1]).nonzero().flatten()
        stopped_at = int(below[0]) + 1 if len(below) else None
        assert path.stopped_at == stopped_at and len(path.guesses) == (stopped_at or STEPS)
        assert torch.equal(torch.stack(path.guesses), guesses[: len(path.guesses), path.candidate])
    finished = full.generator.decode(torch.stack([path.guesses[-1] for path in alive]))
    best = full.verifier.score(finished, PROMPT)
    torch.testing.assert_close(found.log_odds, best, atol=1e-4, rtol=1e-4)
    assert found.kept is alive[int(best.argmax())] and torch.equal(found.image, finished[int(best.argmax())])
    ran = [len(path.guesses) for path in found.paths]
    assert found.cost.generator_passes == 2 + 2 + 2 * sum(steps - 1 for steps in ran)
    assert found.cost.verifier_passes == sum(min(steps, STEPS - 1) for steps in ran) + survivors == verifier.passes


# --- alignment and self-correction ---


def test_one_dpo_step_prefers_the_chosen_image(full: Full, tmp_path: Path) -> None:
    found = best_of_n(full.generator, full.verifier, PROMPT, 2, seed=5)
    codes = found.candidates.tokens[[int(found.log_odds.argmax()), int(found.log_odds.argmin())]]
    pair = Pair(parse_prompt(PROMPT), *codes)
    policy, log = train_dpo(full.generator, [pair], DpoTraining(1e-3, masks=2, warmup=0), tmp_path)
    assert log.steps == 1
    assert log.rows[0]["margin"] == pytest.approx(0, abs=1e-3) and log.losses[0] == pytest.approx(math.log(2), abs=1e-3)
    # How much likelier each image became, under masks that it was not trained on.
    masks = draw_masks(2, full.length, 4, "sum", torch.Generator().manual_seed(7))
    with torch.no_grad():
        after, before = (
            log_probability(one.model, one.model.config, [full.prefix(PROMPT)] * 2, codes, masks)
            for one in (policy, full.generator)
        )
    chosen, rejected = after - before
    assert chosen - rejected > 1
    assert reward_margins(policy, full.generator, [pair], masks=4) > 0.1  # β times as much, so the loss is below log 2
    assert reward_margins(full.generator, full.generator, [pair]) == 0  # the reference stayed what it was


@ONLY_256
def test_a_step_of_self_correction_lowers_its_loss_and_then_it_draws(full: Full) -> None:
    generator, config = full.generator, full.generator.model.config
    rejected, target = finals(full, PROMPT, 2, seed=3)
    why = "the apple is blue, not red"
    words, reasons = encode_text(generator.text_tokenizer, PROMPT), encode_text(generator.text_tokenizer, why)
    taught = replace(generator, model=copy.deepcopy(generator.model))
    prefix = correction_prefix(config, words, reasons, rejected.tolist())
    optimizer = torch.optim.AdamW(taught.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = masked_loss(taught.model, [prefix] * 2, target.repeat(2, 1), torch.Generator().manual_seed(1), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] - 0.1

    codes = rejected[None]
    drawn = taught.correct(PROMPT, codes, why, 2, seed=8)
    assert not torch.equal(*drawn.tokens)
    assert drawn.steps.shape == (2, STEPS, full.length) and drawn.committed[:, -1].all()
    assert torch.equal(taught.correct(PROMPT, codes, why, seed=8).steps, drawn.steps[:1])
    # Without guidance, lest what is guided against hides whether the words and the image before it are read.
    plain = replace(taught, settings=SamplingSettings(0.0, STEPS))
    told = plain.correct(PROMPT, codes, why, seed=8)
    for changed in (
        plain.correct(OTHER, codes, why, seed=8),
        plain.correct(PROMPT, codes, "the car is missing", seed=8),
        plain.correct(PROMPT, codes.flip(1), why, seed=8),
        plain.correct(PROMPT, codes, why, seed=9),
    ):
        assert not torch.equal(changed.steps, told.steps)


@ONLY_256
def test_reflection_corrects_until_it_hears_yes(full: Full) -> None:
    codes = finals(full, PROMPT, 4, seed=7)
    odds = odds_of_four(full)
    first, before = int(odds.argmin()), full.verifier.passes
    assert odds[first] < 0
    found = reflect(full.generator, full.verifier, PROMPT, codes[first], seed=2, rounds=2)
    rounds = len(found.reasons)
    assert 1 <= rounds <= 2 and found.images.shape == (rounds + 1, 3, 256, 256)
    assert rounds == 2 or found.log_odds[-1] > 0
    # Alone an image may be decoded otherwise by one in 255, and the verifier be that much surer or less sure.
    assert found.log_odds[0].item() == pytest.approx(odds[first].item(), abs=1e-2)
    assert torch.equal(found.tokens[0].long(), codes[first]) and not torch.equal(found.tokens[1], found.tokens[0])
    assert (found.images.int() - full.generator.decode(found.tokens).int()).abs().max() <= 1
    assert found.chosen == int(found.log_odds.argmax())
    again = full.generator.correct(PROMPT, found.tokens[0], found.reasons[0], seed=2001)
    assert torch.equal(again.tokens[0], found.tokens[1].long())
    # A round: its prefix and that of the image alone, then a pass with and one without the words for each step.
    assert found.cost.generator_passes == rounds * (2 + 2 * STEPS)
    assert found.cost.verifier_passes == 2 * rounds + 1 == full.verifier.passes - before
    right = int(odds.argmax())
    assert odds[right] > 0.05  # an image that is right stays as it is
    kept = reflect(full.generator, full.verifier, PROMPT, codes[right], seed=2)
    assert kept.reasons == [] and len(kept.images) == 1 and kept.cost.generator_passes == 0


def test_two_images_of_512_px_are_too_long_a_sequence(full: Full) -> None:
    """2,048 places hold the prompt, reasons and two images of 256 codes, but not two of 1,024."""
    codes = torch.zeros(1, full.length, dtype=torch.long)
    if full.size == 256:
        assert full.generator.correct(PROMPT, codes, "").tokens.shape == (1, 256)
    else:
        with pytest.raises(ValueError, match="at most 1022 before a new image: only a model of smaller images"):
            full.generator.correct(PROMPT, codes, "")
