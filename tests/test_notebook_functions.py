"""The short from-scratch functions of the notebooks equal the package's."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch

from cotgen_lite.align.dpo import dpo_loss, draw_masks, log_probability, online_pairs
from cotgen_lite.course.ch00 import check_order
from cotgen_lite.generate.autoregressive import (
    AutoregressiveSettings,
    load_autoregressive,
    next_token_loss,
    pad_texts,
    sequence_ids,
)
from cotgen_lite.generate.memory import decoding_bytes, generation_bytes, plan_from_configs
from cotgen_lite.generate.sampling import Cost, path_noise
from cotgen_lite.generate.showo import ShowoConfig, text_prefix
from cotgen_lite.generate.vq import MagvitConfig, images_at_once
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import random_scene, render
from cotgen_lite.metrics import expected_best_of, roc_auc
from cotgen_lite.prompts import encode_text, lite_prompts, parse_prompt
from cotgen_lite.verify import training_data
from cotgen_lite.verify.search import parm_search, prm_search, reflect
from cotgen_lite.verify.training_data import balanced, label_steps
from cotgen_lite.verify.verifier import (
    ORM_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    load_verifier,
)

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def from_scratch(name: str) -> dict[str, Any]:
    """What the cells tagged "from-scratch" of a notebook define."""
    space: dict[str, Any] = {"math": math, "torch": torch, "np": np, "probability_yes": torch.sigmoid}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if "from-scratch" in cell.metadata.get("tags", []):
            exec(cell.source, space)  # the notebook's own text
    return space


def test_decoding_loop(toy_generator: Any) -> None:
    draw, text = from_scratch("00_generate_step_by_step")["draw"], "a photo of a red cat"
    for steps, scale, temperature in ((5, 1.5, 1.0), (18, 0.0, 1.0), (1, 3.0, 1.0), (13, 1.5, 1.0)):
        generator = toy_generator.with_settings(remasking="linear", steps=steps, guidance_scale=scale)
        wanted = generator(text, 3, seed=4, temperature=temperature)
        guesses, committed = draw(generator, text, n=3, seed=4, g=scale, T=steps, tau=temperature)
        assert torch.equal(guesses, wanted.steps.long()) and torch.equal(committed, wanted.committed)


def test_decoding_loop_in_any_order(toy_generator: Any) -> None:
    draw, orders = from_scratch("00_generate_step_by_step")["draw"], []

    def order(hidden: torch.Tensor, left: int, draws: torch.Tensor) -> torch.Tensor:
        orders.append(draws)
        return check_order.solution(hidden, left, draws)

    guesses, committed = draw(toy_generator, "a photo of a red cat", n=2, T=5, order=order)
    assert len(orders) == 5 and not torch.equal(orders[0][0], orders[0][1])
    assert committed[:, -1].all() and (committed[:, 1:] >= committed[:, :-1]).all()
    kept = committed[:, :-1]
    assert torch.equal(guesses[:, 1:][kept], guesses[:, :-1][kept])  # what is committed is never changed again


def test_log_odds() -> None:
    verifier = load_verifier()
    log_odds = from_scratch("01_zero_shot_orm")["log_odds_of_yes"]
    images = render([random_scene(np.random.default_rng(seed)) for seed in range(3)])
    prompt = "a photo of a cat"
    words = verifier.processor.tokenizer
    text = verifier._conversation(prompt, [ORM_QUESTION])
    inputs = verifier.processor(images=list(images), text=[text] * 3, return_tensors="pt")
    with torch.inference_mode():
        logits = verifier.model(**inputs).logits[:, -1]
    ids = {word: words(word, add_special_tokens=False)["input_ids"] for word in ("yes", "no")}
    torch.testing.assert_close(
        log_odds(logits, ids["yes"], ids["no"]), verifier.score(images, prompt), atol=1e-4, rtol=1e-4
    )


def test_simulated_best_of() -> None:
    ours = from_scratch("01_zero_shot_orm")["simulated_best_of"]
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=(2, 20)), rng.random((2, 20)) < 0.5
    for n in (1, 2, 7, 20):
        tried = [ours(s, c, n) for s, c in zip(scores, correct, strict=True)]
        np.testing.assert_allclose(expected_best_of(scores, correct, n), tried, atol=0.05)


def test_roc_auc() -> None:
    ours = from_scratch("02_finetuned_orm")["roc_auc"]
    rng = np.random.default_rng(0)
    correct = rng.random((7, 9)) < 0.4
    scores = (rng.normal(size=correct.shape) + correct).round(1)  # rounded: with ties
    np.testing.assert_allclose(ours(scores, correct), roc_auc(scores, correct))


def test_rollouts(toy_generator: Any, tmp_path: Path) -> None:
    space = from_scratch("03_prm")
    space["generator"] = toy_generator
    prompt = parse_prompt("a photo of a red cat")
    labelled, _ = label_steps(toy_generator, TemplateJudge(), [prompt], 3, 5, tmp_path)
    drawn = training_data._roll_out(toy_generator, [(prompt.text, 0)], 3, 5)
    for step in (1, 3, 5):
        guess, ends = space["roll_out"](prompt.text, step, seed=5, rollouts=3)
        assert torch.equal(guess.short(), labelled.tokens[0, step - 1])
        assert torch.equal(ends.short(), drawn["ends"][0, step - 1])


def test_search_step_by_step(toy_generator: Any) -> None:
    space = from_scratch("03_prm")
    verifier = load_verifier()
    space |= {"generator": toy_generator, "PRM_QUESTION": PRM_QUESTION}
    prompt = "a photo of a red cat"
    found = prm_search(toy_generator, verifier, prompt, 3, 2)
    assert torch.equal(space["search_step_by_step"](verifier, prompt, 3, seed=2).short(), found.path[-1])


def test_log_probability_under_a_mask(toy_generator: Any) -> None:
    ours = from_scratch("04_dpo")["log_probability_under"]
    model, rng = toy_generator.model, torch.Generator().manual_seed(0)
    prefix = text_prefix(model.config, encode_text(toy_generator.text_tokenizer, "a photo of a red cat"))
    codes = torch.randint(1024, (3, 64), generator=rng)
    masks = draw_masks(3, 64, 1, "sum", rng)
    with torch.no_grad():
        package = log_probability(model, model.config, [prefix] * 3, codes, masks)
        alone = torch.stack([ours(model, prefix, *pair) for pair in zip(codes, masks.positions[0], strict=True)])
    torch.testing.assert_close(alone, package, atol=1e-3, rtol=1e-5)


def test_dpo_loss() -> None:
    ours = from_scratch("04_dpo")["dpo_loss"]
    four = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(ours(*four, 0.3), dpo_loss(*four, 0.3), strict=True):
        torch.testing.assert_close(found, wanted)


def test_pairing() -> None:
    ours = from_scratch("05_iterative_dpo")["pair_up"]
    labels = np.random.default_rng(0).random((30, 10)) < 0.3
    labels[0], labels[1] = True, False
    found = ours(labels, 2, np.random.default_rng(5))
    wanted, rng = [], np.random.default_rng(5)
    for row in range(len(labels)):
        columns = [column for _, column in balanced(labels[row : row + 1], 2, rng)]
        half = len(columns) // 2
        wanted += [(row, *pair) for pair in zip(columns[:half], columns[half:], strict=True)]
    mixed = np.flatnonzero(labels.any(axis=1) & ~labels.all(axis=1))
    assert found == wanted and {row for row, _, _ in found} == set(mixed.tolist())


def test_fresh_pair(toy_generator: Any) -> None:
    ours = from_scratch("06_verify_and_align")["fresh_pair"]
    verifier, prompt = load_verifier(), lite_prompts("train")[0]
    rng = np.random.default_rng((1, 4))  # what the package draws at step 4 with seed 1
    rng.choice(1, 1, replace=False)
    pair = online_pairs(toy_generator, verifier, [prompt], 1, 5, seed=1).draw(toy_generator.model, 4)[0]
    chosen, rejected = ours(toy_generator, verifier, prompt.text, 5, int(rng.integers(2**31)))
    assert torch.equal(chosen, pair.chosen) and torch.equal(rejected, pair.rejected)


def test_parm_search(toy_generator: Any) -> None:
    space = from_scratch("07_parm")
    ours = space["search_with_parm"]
    space["generator"] = toy_generator  # as the notebook's first cells define it
    prompt, verifier, stopped = "a photo of a red cat and a blue dog", load_verifier("parm"), 0

    class Moody:
        """Answers that hang on the image, so that some paths are stopped."""

        def score(self, images: torch.Tensor, prompt: str, question: str = "") -> torch.Tensor:
            return torch.sin(images.float().mean(dim=(1, 2, 3)) * 31)

        def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
            mean = images.float().mean(dim=(1, 2, 3))
            return torch.sin(mean * 17), torch.sin(mean * 53) + 0.6

    for one in (Moody(), verifier):
        cost = Cost()
        kept, running = ours(one, prompt, 5, cost)
        found = parm_search(toy_generator, one, prompt, 5, seed=0)  # type: ignore[arg-type]
        stopped += 5 - len(running)
        assert running == [path.candidate for path in found.paths if path.stopped_at is None]
        if kept is not None:
            assert kept == found.kept.candidate
            assert cost.generator_passes == found.cost.generator_passes
    assert stopped


def test_reflect(toy_generator: Any) -> None:
    space = from_scratch("08_parm_plus_plus")
    space["REFLECTION_QUESTION"] = REFLECTION_QUESTION
    ours, prompt, lengths = space["reflect_on"], "a photo of a red cat and a blue dog", set()

    class Moody:
        """Answers that hang on the image, so that some reflections end early."""

        def score(self, images: torch.Tensor, prompt: str, question: str = "") -> torch.Tensor:
            return torch.sin(images.float().mean(dim=(1, 2, 3)) * 41) - 0.3

        def explain(self, images: torch.Tensor, prompt: str) -> list[str]:
            return ["there is no cat" if image.float().mean() > 128 else "the dog is red" for image in images]

    for seed, codes in enumerate(toy_generator(prompt, 6, seed=4).tokens):
        seen, why, kept = ours(toy_generator, Moody(), prompt, codes, seed)
        found = reflect(toy_generator, Moody(), prompt, codes, seed)  # type: ignore[arg-type]
        assert torch.equal(torch.stack(seen), found.tokens) and (why, kept) == (found.reasons, found.chosen)
        lengths.add(len(why))
    assert len(lengths) > 1


def test_most_candidates_at_once() -> None:
    ours = from_scratch("10_full_scale")["most_at_once"]
    config, pixels, found = ShowoConfig(), MagvitConfig(), set()
    decoding = decoding_bytes(pixels, images_at_once(pixels))

    def taken(candidates: int) -> int:
        return max(decoding, generation_bytes(config, candidates, 20, 30, True, torch.bfloat16))

    for free in (3.5e9, 4e9, 6e9, 60e9, taken(7) / 0.8, taken(35) / 0.8):
        plan = plan_from_configs(config, pixels, 3, 20, 30, True, torch.bfloat16, int(np.ceil(free)))
        found.add(ours(taken, 60, int(np.ceil(free))))
        assert ours(taken, 60, int(np.ceil(free))) == plan.at_once
    assert ours(taken, 60, 1e9) == 0 and 60 in found and len(found) > 3


def test_next_token_drawing_and_its_log_probability() -> None:
    generator, space = load_autoregressive(), from_scratch("09_sequential_models")
    space |= {"pad_texts": pad_texts, "sequence_ids": sequence_ids}
    text, settings = encode_text(generator.text_tokenizer, "a photo of a red cat"), AutoregressiveSettings(1.5, top_k=7)
    codes = replace(generator, settings=settings)("a photo of a red cat", 2, seed=3).tokens
    model = generator.model
    with torch.inference_mode():
        for path, row in enumerate(codes.tolist()):
            uniforms = path_noise((3, tuple(text), path), 1, 64)[0, 0]
            assert space["write_image"](model, text, uniforms, 1.5, top_k=7) == row
        found = space["log_probability"](model, text, codes)
        loss = next_token_loss(model, [text] * 2, codes, torch.Generator(), dropout=0.0)
    torch.testing.assert_close(found.mean(), -64 * loss, atol=1e-3, rtol=1e-4)
