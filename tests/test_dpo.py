"""Log-probabilities against enumeration, the loss against trl's, and that training does what it says."""

import copy
import shutil
from dataclasses import replace
from itertools import combinations, permutations
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_verifiers import byte_level_tokenizer, token_settings
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from cotgen_lite.align import dpo
from cotgen_lite.align.dpo import (
    DpoTraining,
    Masks,
    Online,
    Pair,
    divergence_on_samples,
    dpo_loss,
    draw_masks,
    log_probability,
    online_pairs,
    preference_pairs,
    read_pairs,
    reward_margins,
    train_dpo,
)
from cotgen_lite.generate.pipeline import PAPER_SETTINGS, Generator
from cotgen_lite.generate.showo import Showo, ShowoConfig, draw_mask, text_prefix
from cotgen_lite.lite.verifier import lite_processor, lite_verifier
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import lite_prompts, parse_prompt
from cotgen_lite.training import WHOLE, WholeCheckpoints, is_whole
from cotgen_lite.verify.verifier import Verifier

LENGTH, CODES = 4, 3


def tiny(seed: int = 0, length: int = LENGTH) -> Showo:
    torch.manual_seed(seed)
    config = ShowoConfig(
        text_vocab_size=12,
        codebook_size=CODES,
        num_image_tokens=length,
        max_text_length=8,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return Showo(config).eval()


class Numbers:
    """A tokenizer of texts that are numbers."""

    unk_token_id = None
    added_tokens_decoder: dict[int, str] = {}
    all_special_ids: list[int] = []
    all_special_tokens: list[str] = []

    def __len__(self) -> int:
        return 12

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def tiny_generator(length: int = LENGTH) -> Generator:
    return Generator(tiny(length=length), Numbers(), None, PAPER_SETTINGS)


def weights_of(generator: Generator) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in generator.model.state_dict().items()}


def subset_values(model: Showo, prefix: list[int], codes: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    """For every set of hidden places, the log-probability of each of them (places in order)."""
    values = {}
    for size in range(1, LENGTH + 1):
        for hidden in combinations(range(LENGTH), size):
            places = torch.zeros(1, LENGTH, dtype=torch.bool)
            places[0, list(hidden)] = True
            with torch.no_grad():
                ids = dpo.image_logits(model, [prefix], codes[None], places)
            values[hidden] = ids.log_softmax(-1)[range(size), codes[list(hidden)]]
    return values


@pytest.fixture(scope="module")
def case():
    model = tiny()
    prefix, codes = text_prefix(model.config, [3, 5]), torch.tensor([2, 0, 1, 1])
    return model, prefix, codes, subset_values(model, prefix, codes)


def estimates(case, weighting: str, number: int) -> torch.Tensor:
    """`number` independent one-mask estimates of one image's log-probability."""
    model, prefix, codes, _ = case
    masks = draw_masks(number, LENGTH, 1, weighting, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return log_probability(model, model.config, [prefix] * number, codes.repeat(number, 1), masks).double()


def test_elbo_weighting_is_unbiased_for_the_mean_over_all_orders(case):
    *_, values = case
    orders = []
    for order in permutations(range(LENGTH)):
        total = 0.0
        for filled in range(LENGTH):
            hidden = tuple(sorted(order[filled:]))
            total += float(values[hidden][hidden.index(order[filled])])
        orders.append(total)
    exact = sum(orders) / len(orders)
    drawn = estimates(case, "elbo", 6000)
    assert drawn.mean().item() == pytest.approx(exact, abs=4 * drawn.std().item() / 6000**0.5)
    assert drawn.std() > 0
    # a lower bound of the log of the mean probability over orders (Jensen)
    assert exact <= torch.logsumexp(torch.tensor(orders), 0).item() - torch.tensor(24.0).log().item()


def test_plain_sum_is_unbiased_for_the_training_loss(case):
    *_, values = case
    counts = torch.bincount(draw_mask(200_000, LENGTH, torch.Generator().manual_seed(2)).sum(1), minlength=LENGTH + 1)
    exact = 0.0
    for hidden, log_p in values.items():
        exact += float(log_p.sum()) * float(counts[len(hidden)]) / 200_000 / comb(LENGTH, len(hidden))
    drawn = estimates(case, "sum", 6000)
    assert drawn.mean().item() == pytest.approx(exact, abs=5 * drawn.std().item() / 6000**0.5)


@pytest.mark.parametrize("weighting", ["sum", "elbo", "early"])
def test_more_masks_are_the_mean_of_single_ones(case, weighting):
    model, prefix, codes, _ = case
    masks = draw_masks(2, LENGTH, 5, weighting, torch.Generator().manual_seed(3))
    both = torch.stack([codes, codes.flip(0)])
    whole = log_probability(model, model.config, [prefix] * 2, both, masks)
    single = [
        log_probability(
            model, model.config, [prefix] * 2, both, Masks(masks.positions[m : m + 1], masks.weight[m : m + 1] * 5)
        )
        for m in range(5)
    ]
    torch.testing.assert_close(whole, torch.stack(single).mean(0))
    variances = [estimates_of(case, weighting, number).var() for number in (1, 8)]
    assert variances[1] < variances[0] / 4


def estimates_of(case, weighting: str, number: int) -> torch.Tensor:
    model, prefix, codes, _ = case
    masks = draw_masks(400, LENGTH, number, weighting, torch.Generator().manual_seed(4))
    with torch.no_grad():
        return log_probability(model, model.config, [prefix] * 400, codes.repeat(400, 1), masks)


def test_an_image_is_judged_under_its_own_prompt_and_masks(case):
    model, prefix, codes, _ = case
    other = text_prefix(model.config, [7])
    masks = draw_masks(2, LENGTH, 2, "elbo", torch.Generator().manual_seed(5))
    both = torch.stack([codes, codes.flip(0)])
    together = log_probability(model, model.config, [prefix, other], both, masks)
    for row, before in enumerate((prefix, other)):
        alone = Masks(masks.positions[:, row : row + 1], masks.weight[:, row : row + 1])
        torch.testing.assert_close(
            log_probability(model, model.config, [before], both[row : row + 1], alone), together[row : row + 1]
        )


class ReadyTokens(DPOTrainer):
    """trl's trainer on token ids as they are, without an end token."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def test_the_loss_is_trls_on_the_same_log_probabilities(tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer()
    policy, reference = (LlamaForCausalLM(LlamaConfig(**token_settings(tokenizer))).eval() for _ in range(2))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 200, (4, 3, 5), generator=draw).tolist()  # prompt, chosen, rejected of four pairs
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in ids]

    def log_probabilities(model, which: int) -> torch.Tensor:
        sequences = torch.tensor([pair[0] + pair[which] for pair in ids])
        with torch.no_grad():
            log_p = model(sequences).logits[:, :-1].log_softmax(-1)
        return log_p.gather(2, sequences[:, 1:, None])[:, 4:, 0].sum(1)

    given = [log_probabilities(model, which) for model in (policy, reference) for which in (1, 2)]
    losses, margin = dpo_loss(*given, beta=0.3)
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        per_device_train_batch_size=4,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
    )
    trainer = ReadyTokens(
        policy, reference, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "loss" in row)
    assert logged["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert logged["rewards/margins"] == pytest.approx(margin.mean().item(), rel=1e-3)


def pairs_of(generator: Generator, number: int = 24) -> list[Pair]:
    """Chosen images hold more zeros than rejected ones."""
    draw = torch.Generator().manual_seed(7)
    length = generator.model.config.num_image_tokens
    few = torch.randint(1, CODES, (number, length), generator=draw)
    many = few.masked_fill(torch.rand(number, length, generator=draw) < 0.7, 0)
    return [Pair(SimpleNamespace(text=str(row % 5 + 1)), many[row], few[row]) for row in range(number)]


def test_training_starts_at_log_two_and_prefers_the_chosen(tmp_path):
    start = tiny_generator(length=9)
    pairs, before = pairs_of(start), weights_of(start)
    aligned, log = train_dpo(start, pairs, DpoTraining(3e-3, epochs=12, batch_size=8, masks=2), tmp_path)
    first, last = log.rows[0], log.rows[-1]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < 0.5 and last["accuracy"] > 0.9 and last["margin"] > 0.5
    assert log.steps == 36 and log.losses == [row["loss"] for row in log.rows] and log.seconds > 0
    model, reference = aligned.model, start.model
    assert not model.training
    assert all(torch.equal(weight, before[name]) for name, weight in reference.state_dict().items())  # left as it was
    masks = draw_masks(len(pairs), 9, 4, "elbo", torch.Generator().manual_seed(0))
    prefixes, chosen, rejected = read_pairs(start, pairs)
    with torch.no_grad():
        gains = [
            log_probability(model, model.config, prefixes, codes, masks)
            - log_probability(reference, model.config, prefixes, codes, masks)
            for codes in (chosen, rejected)
        ]
    assert gains[0].mean() > gains[1].mean()


def test_a_run_of_a_single_step_learns_too_and_needs_no_folder():
    start = tiny_generator(length=9)
    aligned, log = train_dpo(start, pairs_of(start)[:4], DpoTraining(1e-3, batch_size=4))
    head, before = (one.model.state_dict()["showo.lm_head.weight"] for one in (aligned, start))
    assert log.steps == 1 and not torch.equal(head, before)


@pytest.mark.parametrize("shared", [True, False])
def test_chosen_and_rejected_share_masks_if_asked(tmp_path, monkeypatch, shared):
    start, seen = tiny_generator(), []
    judged = dpo.log_probability

    def watch(model, config, prefixes, codes, masks):
        seen.append(masks)
        return judged(model, config, prefixes, codes, masks)

    monkeypatch.setattr(dpo, "log_probability", watch)
    train_dpo(start, pairs_of(start, 4), DpoTraining(1e-4, batch_size=4, masks=3, shared=shared), tmp_path)
    policy, reference = seen
    assert torch.equal(policy.positions, reference.positions) and torch.equal(policy.weight, reference.weight)
    assert torch.equal(policy.positions[:, :4], policy.positions[:, 4:]) == shared


class Stop(TrainerCallback):
    """Breaks off after three steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_it_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    settings = DpoTraining(1e-3, batch_size=4, save_steps=2)
    start = tiny_generator()
    whole, log = train_dpo(start, pairs_of(start), settings, tmp_path / "whole")
    trainer = dpo.DpoTrainer

    def stopping(*given):
        made = trainer(*given)
        made.add_callback(Stop())
        return made

    monkeypatch.setattr(dpo, "DpoTrainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(start, pairs_of(start), settings, tmp_path / "parted")
    monkeypatch.setattr(dpo, "DpoTrainer", trainer)
    parted, again = train_dpo(start, pairs_of(start), settings, tmp_path / "parted")
    assert again.losses == pytest.approx(log.losses)
    torch.testing.assert_close(weights_of(parted), weights_of(whole))


class LikesLowCodes:
    """A verifier whose log-odds are the share of codes in the lower half; it is shown codes, not pictures."""

    model = torch.nn.Identity()

    def score(self, codes: torch.Tensor, prompt: str) -> torch.Tensor:
        assert isinstance(prompt, str)
        return (codes < 512).float().mean(dim=1)


@pytest.fixture
def unpictured(toy_generator):
    """The toy generator, whose pictures are the codes themselves."""
    pixels = SimpleNamespace(decode=lambda codes: codes)
    return replace(toy_generator, model=copy.deepcopy(toy_generator.model), image_tokenizer=pixels)


def test_guidance_alone_has_a_gradient_and_raises_the_verifiers_score(unpictured, tmp_path):
    generator = unpictured
    prompts = lite_prompts("train")[:6]

    def mean_score(generator: Generator) -> float:
        drawn = generator([prompt.text for prompt in prompts], 8, seed=99)
        return float(LikesLowCodes().score(drawn.tokens, "").mean())

    same = torch.zeros(64, dtype=torch.int16)
    dummies = [Pair(prompts[0], same, same)] * 30  # a pair of equal images teaches nothing
    online = online_pairs(generator, LikesLowCodes(), prompts, prompts_per_step=3, num_images_per_prompt=4, seed=0)
    fresh = online.draw(generator.model, 0)
    masks = draw_masks(6, 64, 1, "sum", torch.Generator().manual_seed(0))
    prefixes, *both = read_pairs(generator, fresh)
    log_p = log_probability(generator.model, generator.model.config, prefixes * 2, torch.cat(both), masks)
    dpo_loss(log_p[:3], log_p[3:], log_p[:3].detach(), log_p[3:].detach(), beta=0.1)[0].mean().backward()
    assert sum(float(weight.grad.norm()) for weight in generator.model.parameters() if weight.grad is not None) > 1e-2
    generator.model.zero_grad()
    aligned, log = train_dpo(generator, dummies, DpoTraining(1e-2, batch_size=1, masks=2), tmp_path, online)
    assert "online_margin" in log.rows[0]
    assert mean_score(aligned) > mean_score(generator) + 0.1


def test_fresh_pairs_are_the_verifiers_favourite_and_last(unpictured):
    prompts = lite_prompts("train")[:4]
    draw = online_pairs(unpictured, LikesLowCodes(), prompts, prompts_per_step=2, num_images_per_prompt=4, seed=0).draw
    pairs, again, later = (draw(unpictured.model, step) for step in (0, 0, 1))
    assert len(pairs) == 2 and all(torch.equal(a.chosen, b.chosen) for a, b in zip(pairs, again, strict=True))
    assert any(not torch.equal(a.chosen, b.chosen) for a, b in zip(pairs, later, strict=True))
    for pair in pairs:
        best, worst = LikesLowCodes().score(torch.stack([pair.chosen, pair.rejected]), "")
        assert best > worst
    with pytest.raises(ValueError, match="at least 2 a prompt"):
        online_pairs(unpictured, LikesLowCodes(), prompts, 2, 1, 0)
    with pytest.raises(ValueError, match="dev or test prompt"):
        online_pairs(unpictured, LikesLowCodes(), [*prompts, lite_prompts("test")[-1]], 2, 4, 0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_guidance_is_added_as_often_as_its_weight_says(unpictured, tmp_path, weight):
    prompt = lite_prompts("train")[0]
    pair = Pair(prompt, torch.zeros(64).long(), torch.ones(64).long())
    fresh = Pair(prompt, torch.full((64,), 7), torch.full((64,), 900))
    settings = DpoTraining(1e-3, batch_size=1, beta=0.5, guidance=weight, seed=3)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    losses = {}
    for name, online in (("offline", None), ("both", Online(lambda policy, step: [fresh], ""))):
        trainer = dpo.DpoTrainer(unpictured, settings, arguments, [pair], online, None)
        for parameter in trainer.model.parameters():  # away from the reference, lest all losses be log 2
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        losses[name] = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.read([pair]))).item()
    drawing = torch.Generator().manual_seed(3 * 1_000_003)
    draw_masks(1, 64, 1, "sum", drawing)  # the offline pair's
    masks = draw_masks(1, 64, 1, "sum", drawing)
    both = Masks(masks.positions.repeat(1, 2, 1), masks.weight.repeat(1, 2))
    prefixes, *codes = read_pairs(unpictured, [fresh])
    with torch.no_grad():
        policy, before = (
            log_probability(model, model.config, prefixes * 2, torch.cat(codes), both)
            for model in (trainer.model, unpictured.model)
        )
    alone = dpo_loss(policy[:1], policy[1:], before[:1], before[1:], beta=0.5)[0].item()
    assert abs(alone - 0.6931) > 0.01
    assert losses["both"] == pytest.approx(losses["offline"] + weight * alone, rel=1e-4)


def test_every_step_has_masks_of_its_own(tmp_path, monkeypatch):
    seen, judged = [], dpo.log_probability
    monkeypatch.setattr(dpo, "log_probability", lambda *given: seen.append(given[-1].positions) or judged(*given))
    start = tiny_generator(length=9)
    train_dpo(start, pairs_of(start, 12), DpoTraining(1e-4, batch_size=4), tmp_path)
    policies = seen[::2]
    assert len(policies) == 3 and not torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[1], policies[2])


def test_divergence_is_zero_from_itself_and_grows_with_training(toy_generator, tmp_path):
    watch = divergence_on_samples(toy_generator, lite_prompts("train")[:3], n=2, seed=1)
    assert watch(toy_generator.model, toy_generator.model) == 0
    pairs = [Pair(prompt, torch.full((64,), 7), torch.full((64,), 900)) for prompt in lite_prompts("train")[:8]]
    settings = DpoTraining(3e-3, batch_size=2, watch_every=2)
    _, log = train_dpo(toy_generator, pairs, settings, tmp_path, watch=watch)
    assert [step for step, row in enumerate(log.rows) if "watched" in row] == [0, 2, 3]
    assert log.rows[0]["watched"] == 0 and log.rows[-1]["watched"] > 0.01 and log.seconds > 0
    # nothing is left to do: the same log and seconds
    assert train_dpo(toy_generator, pairs, settings, tmp_path, watch=watch)[1] == log


def test_divergence_is_what_the_log_ratio_of_drawn_codes_comes_to(toy_generator):
    policy, reference = copy.deepcopy(toy_generator.model), toy_generator.model
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    prompts = lite_prompts("train")[:2]
    found = divergence_on_samples(toy_generator, prompts, n=3, seed=5, masks=4)(policy, reference)
    drawn = replace(toy_generator, model=policy)([prompt.text for prompt in prompts], 3, seed=5)
    masks = draw_masks(6, 64, 4, "elbo", torch.Generator().manual_seed(5))
    rng, ratios = torch.Generator().manual_seed(2), []
    for row, (prompt, tokens) in enumerate(zip(drawn.prompts, drawn.tokens, strict=True)):
        prefix = text_prefix(policy.config, toy_generator.encode(prompt))
        for mask in range(4):
            hidden, codes = masks.positions[mask, row], tokens[None]
            with torch.no_grad():
                p, q = (dpo.image_logits(m, [prefix], codes, hidden[None]).log_softmax(-1) for m in (policy, reference))
            redrawn = torch.multinomial(p.exp(), 4000, replacement=True, generator=rng)  # of the hidden codes alone
            ratios.append(masks.weight[mask, row] * (p - q).gather(1, redrawn).mean(1).sum())
    assert found == pytest.approx(float(torch.stack(ratios).sum() / 6), rel=0.03)
    assert found > 0.1


def test_another_runs_folder_is_refused(tmp_path):
    start = tiny_generator()
    train_dpo(start, pairs_of(start, 4), DpoTraining(1e-4, batch_size=4), tmp_path)
    for settings, number in ((DpoTraining(1e-3, batch_size=4), 4), (DpoTraining(1e-4, batch_size=4), 3)):
        with pytest.raises(ValueError, match="another run"):
            train_dpo(start, pairs_of(start, number), settings, tmp_path)


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(ValueError, match="at least one pair"):
        train_dpo(tiny_generator(), [], DpoTraining(1e-4), tmp_path)


def test_margins_are_what_changed_for_the_chosen_minus_the_rejected(toy_generator):
    prompt = parse_prompt("a photo of a red cat")
    codes = torch.randint(1024, (3, 2, 64), generator=torch.Generator().manual_seed(0)).short()
    pairs = [Pair(prompt, right, wrong) for right, wrong in codes]
    policy = replace(toy_generator, model=copy.deepcopy(toy_generator.model))
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    found = reward_margins(policy, toy_generator, pairs, beta=0.5, masks=3, seed=4)
    prefixes = read_pairs(toy_generator, pairs)[0]
    same = draw_masks(3, 64, 3, "sum", torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = [
            sign * log_probability(one.model, one.model.config, prefixes, codes[:, side].long(), same)
            for side, one, sign in ((0, policy, 1), (0, toy_generator, -1), (1, policy, -1), (1, toy_generator, 1))
        ]
    torch.testing.assert_close(found, 0.5 * sum(wanted), atol=1e-3, rtol=1e-4)
    swapped = [Pair(prompt, pair.rejected, pair.chosen) for pair in pairs]
    torch.testing.assert_close(reward_margins(policy, toy_generator, swapped, 0.5, 3, 4), -found)
    assert not reward_margins(toy_generator, toy_generator, pairs).any()
    with pytest.raises(ValueError, match="at least one pair"):
        reward_margins(policy, toy_generator, [])


def test_a_training_that_diverges_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    start = tiny_generator(length=9)
    settings = DpoTraining(1e8, epochs=4, batch_size=4, save_steps=1)
    with pytest.raises(ValueError, match=r"Training diverged at step \d+: "):
        train_dpo(start, pairs_of(start), settings, tmp_path)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        assert is_whole(checkpoint)
        saved = Showo.from_pretrained(checkpoint)
        assert all(weight.isfinite().all() for weight in saved.parameters())
    with pytest.raises(ValueError, match="Training diverged at step"):  # it goes on from there, and says so again
        train_dpo(start, pairs_of(start), settings, tmp_path)


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, monkeypatch, broken):
    start, learned = tiny_generator(length=9), dpo.DpoTrainer._pair_loss

    def spoil(trainer, model, *given):
        loss, margin = learned(trainer, model, *given)
        if trainer.state.global_step == 3:  # the fourth step
            if broken == "weights":
                model.idle.data[0] = float("nan")
            else:
                loss = loss * float("inf")
        return loss, margin

    start.model.idle = torch.nn.Parameter(torch.ones(2))  # plays no part in the loss
    monkeypatch.setattr(dpo.DpoTrainer, "_pair_loss", spoil)
    with pytest.raises(ValueError, match="Training diverged at step 4: "):
        train_dpo(start, pairs_of(start), DpoTraining(1e-3, batch_size=4, save_steps=2), tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_log_probabilities_that_are_not_finite_name_the_step(tmp_path, monkeypatch):
    start, judged = tiny_generator(length=9), dpo.log_probability
    monkeypatch.setattr(dpo, "log_probability", lambda *given: judged(*given) - float("inf"))
    with pytest.raises(ValueError, match="diverged at step 1: its log-probability"):
        train_dpo(start, pairs_of(start), DpoTraining(1e-3, batch_size=4), tmp_path)


def test_early_masks_hide_four_fifths_or_more_and_weigh_each_hidden_place_alike():
    masks = draw_masks(3000, 64, 1, "early", torch.Generator().manual_seed(0))
    hidden = masks.positions[0].sum(1)
    assert sorted(set(hidden.tolist())) == list(range(52, 65))
    assert torch.bincount(hidden)[52:].min() > 3000 / 13 * 0.7, "each number alike"
    torch.testing.assert_close(masks.weight[0], 64 / hidden)


def test_muon_turns_weight_matrices_and_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    start = tiny_generator(length=9)
    settings = DpoTraining(1e-3, batch_size=4, save_steps=2, warmup=0.0, muon_rate=0.01)
    one_step, _ = train_dpo(start, pairs_of(start), replace(settings, batch_size=len(pairs_of(start))))
    name = "showo.model.layers.0.mlp.fc2.weight"
    moved = one_step.model.get_parameter(name) - start.model.get_parameter(name)
    assert 0.0065 < torch.linalg.matrix_norm(moved, 2) < 0.0125, "its largest singular value is about the rate"
    whole, log = train_dpo(start, pairs_of(start), settings, tmp_path / "whole")
    saving, stops = WholeCheckpoints.on_save, iter((False, True))

    def interrupted(self, *given, **more):
        saving(self, *given, **more)
        if next(stops, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(WholeCheckpoints, "on_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(start, pairs_of(start), settings, tmp_path / "stopped")
    again, found = train_dpo(start, pairs_of(start), settings, tmp_path / "stopped")
    assert found.rows == log.rows
    assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [Path.unlink, cut], ids=["missing", "cut"])
def test_a_half_written_checkpoint_is_passed_over(tmp_path, damage):
    settings, start = DpoTraining(1e-3, batch_size=4, save_steps=2), tiny_generator()
    whole, log = train_dpo(start, pairs_of(start), settings, tmp_path / "whole")
    last = tmp_path / "whole/checkpoint-6"
    names = [path.name for path in last.iterdir()]
    assert {WHOLE, "trainer_state.json", "optimizer.pt", "rng_state.pth", "model.safetensors"} <= set(names)
    for name in names:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "checkpoint-2-kept").mkdir()  # somebody's own
        damage(folder / "checkpoint-6" / name)
        (folder / "run.txt.0123456789abcdef0123456789abcdef.part").write_text("half")
        again, found = train_dpo(start, pairs_of(start), settings, folder)
        assert found.rows == log.rows and not list(folder.glob("*.part")), name
        assert (folder / "checkpoint-2-kept").is_dir()
        for weight, expected in weights_of(again).items():
            assert torch.equal(expected, weights_of(whole)[weight]), name


def test_older_checkpoints_go_only_when_a_newer_one_is_whole(tmp_path, monkeypatch):
    from cotgen_lite import training

    start, noted = tiny_generator(), training.write_json

    def interrupted(path, value):
        if path.parent.name == "checkpoint-4":
            raise KeyboardInterrupt
        noted(path, value)

    monkeypatch.setattr(training, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(start, pairs_of(start), DpoTraining(1e-3, batch_size=4, save_steps=2), tmp_path)
    found = {path.name: is_whole(path) for path in tmp_path.glob("checkpoint-*")}
    assert found == {"checkpoint-2": True, "checkpoint-4": False}


def test_a_folder_of_somebody_elses_checkpoints_is_left_alone(tmp_path):
    (tmp_path / "checkpoint-8").mkdir()
    start = tiny_generator()
    with pytest.raises(ValueError, match="another run"):
        train_dpo(start, pairs_of(start, 4), DpoTraining(1e-4, batch_size=4), tmp_path)
    assert (tmp_path / "checkpoint-8").is_dir()


def test_the_policy_learns_in_training_mode_and_draws_in_evaluation_mode(unpictured, tmp_path, monkeypatch):
    learning, judged, prompts = [], dpo.log_probability, lite_prompts("train")[:2]
    drawing = []

    def note(model, *given):
        if torch.is_grad_enabled():
            learning.append(model.training)
        return judged(model, *given)

    def draw(policy, step):
        drawing.append(policy.training)
        return [Pair(prompts[0], torch.zeros(64).long(), torch.ones(64).long())]

    def watch(policy, reference):
        drawing.append(policy.training)
        return 0.0

    monkeypatch.setattr(dpo, "log_probability", note)
    pairs = [Pair(prompts[1], torch.zeros(64).long(), torch.ones(64).long())] * 3
    settings = DpoTraining(1e-3, batch_size=1, watch_every=1)
    for number, online in enumerate((None, Online(draw, ""))):
        train_dpo(unpictured, pairs, settings, tmp_path / str(number), online, watch)
    assert learning == [True] * 9 and drawing[:-1] == [False] * len(drawing[:-1])


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "beta": (0, -0.1, float("nan"), float("inf"), "0.1"),
        "masks": (0, 1.5, 10**9),
        "shared": (0, "no", None),
        "weighting": ("elboo", "mean", "", None, 1),
        "guidance": (-1, float("nan")),
        "watch_every": (0, 2.5),
        "epochs": (0,),
        "batch_size": (0,),
    }.items(),
)
def test_impossible_settings_are_refused_in_a_sentence(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            DpoTraining(1e-4, **{name: value})


def test_settings_of_equal_worth_are_equal():
    assert repr(DpoTraining(np.float64(1e-4), masks=np.int64(2))) == repr(DpoTraining(1e-4, masks=2))


TWO = torch.zeros(2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((TWO[:, None], TWO, TWO, TWO, 0.1), "policy_chosen must have shape"),
        ((TWO, TWO[:, None], TWO, TWO, 0.1), "policy_rejected must have shape"),
        ((TWO, TWO, torch.zeros(1), TWO, 0.1), "reference_chosen must have shape"),
        ((TWO, TWO, TWO, torch.zeros(()), 0.1), "reference_rejected must have shape"),
        ((TWO, TWO, TWO, torch.tensor([0.0, float("nan")]), 0.1), "reference_rejected must be finite"),
        ((TWO, -torch.tensor([0.0, float("inf")]), TWO, TWO, 0.1), "policy_rejected must be finite"),
        (([0.0, 0.0], TWO, TWO, TWO, 0.1), "policy_chosen must"),
        ((TWO, TWO, TWO, TWO, 0), "beta must be"),
        ((TWO, TWO, TWO, TWO, float("nan")), "beta must be"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(given, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        dpo_loss(*given)


def pair_with(**changes: Any) -> Pair:
    prompt = SimpleNamespace(text="1")
    return Pair(prompt, torch.zeros(LENGTH).long(), torch.ones(LENGTH).long())._replace(**changes)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "at least one pair"),
        (None, "pairs must be a list of Pairs"),
        (5, "pairs must be a list of Pairs"),
        ([("a", 1)], "each of pairs must be a Pair"),
        ([None], "each of pairs must be a Pair"),
        ([pair_with(prompt="a photo of a cat")], "prompt must be a Prompt"),
        ([pair_with(prompt=SimpleNamespace(text="99"))], "Text ids must lie in"),
        ([pair_with(chosen=torch.full((LENGTH,), CODES))], f"from 0 to {CODES - 1}"),
        ([pair_with(rejected=torch.full((LENGTH,), -1))], f"from 0 to {CODES - 1}"),
        ([pair_with(rejected=torch.zeros(LENGTH))], "whole numbers"),
        ([pair_with(chosen=torch.zeros(LENGTH + 1).long())], "must have shape"),
        ([pair_with(chosen=[0] * LENGTH)], "must be a tensor"),
    ],
)
def test_pairs_that_cannot_be_learned_from_are_refused(pairs, said):
    start = tiny_generator()
    for call in (lambda: train_dpo(start, pairs, DpoTraining(1e-4)), lambda: reward_margins(start, start, pairs)):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": "generator"}, "generator must be a Generator"),
        ({"settings": {"learning_rate": 1e-3}}, "settings must be a DpoTraining"),
        ({"settings": None}, "settings must be a DpoTraining"),
        ({"online": lambda policy, step: []}, "online must be what `online_pairs` gives"),
        ({"watch": 5}, "watch must be a function"),
        ({"work_dir": 5}, "work_dir must be the path"),
    ],
)
def test_what_training_is_given_is_checked(change, said):
    given = {"generator": tiny_generator(), "pairs": pairs_of(tiny_generator(), 4), "settings": DpoTraining(1e-4)}
    with pytest.raises(ValueError, match=said):
        train_dpo(**(given | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta": 0}, "beta must be"),
        ({"masks": 0}, "masks must be"),
        ({"seed": -1}, "seed must be"),
        ({"reference": None}, "generator must be a Generator"),
    ],
)
def test_what_margins_are_given_is_checked(change, said):
    start = tiny_generator()
    with pytest.raises(ValueError, match=said):
        reward_margins(**({"policy": start, "reference": start, "pairs": pairs_of(start, 2)} | change))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, 4, 1, "sum"), "batch must be"),
        ((2, 0, 1, "sum"), "length must be"),
        ((2, 4, 0, "sum"), "number must be"),
        ((2, 4, 10**9, "sum"), "number must be"),
        ((2, 4, 1, "elboo"), "weighting must be one of 'sum', 'elbo'"),
    ],
)
def test_masks_are_drawn_of_what_there_is(given, said):
    with pytest.raises(ValueError, match=said):
        draw_masks(*given, torch.Generator())
    with pytest.raises(ValueError, match=r"generator must be a torch\.Generator"):
        draw_masks(2, 4, 1, "sum", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": None}, "generator must be a Generator"),
        ({"verifier": "orm"}, "verifier must"),
        ({"prompts": []}, "at least one Prompt"),
        ({"prompts": ["a photo of a cat"]}, "Each of prompts must be a Prompt"),
        ({"prompts": 3}, "prompts must be a list"),
        ({"prompts_per_step": 0}, "prompts_per_step"),
        ({"prompts_per_step": 9}, "from 1 to 4"),
        ({"num_images_per_prompt": 1}, "at least 2 a prompt"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt must be"),
        ({"seed": "0"}, "seed must be"),
    ],
)
def test_what_fresh_pairs_are_drawn_of_is_checked(unpictured, change, said):
    given = {"generator": unpictured, "verifier": LikesLowCodes(), "prompts": lite_prompts("train")[:4]}
    given |= {"prompts_per_step": 2, "num_images_per_prompt": 2, "seed": 0}
    with pytest.raises(ValueError, match=said):
        online_pairs(**(given | change))


def test_log_odds_that_are_no_numbers_choose_nothing(unpictured):
    class Undecided(LikesLowCodes):
        def score(self, codes, prompt):
            return super().score(codes, prompt).index_fill(0, torch.tensor([1]), float("nan"))

    online = online_pairs(unpictured, Undecided(), lite_prompts("train")[:2], 1, 3, seed=0)
    with pytest.raises(ValueError, match="verifier's log-odds must be finite"):
        online.draw(unpictured.model, 0)


def test_fresh_pairs_are_told_apart_by_how_they_are_drawn(unpictured):
    def about(**changes: float) -> str:
        changed = unpictured.with_settings(**changes)
        return online_pairs(changed, LikesLowCodes(), lite_prompts("train")[:2], 1, 3, seed=0).about

    assert about() == about() != about(temperature=1.7)


class Opposite(LikesLowCodes):
    def __init__(self, sign: int) -> None:
        self.sign = sign

    def score(self, codes: torch.Tensor, prompt: str) -> torch.Tensor:
        return self.sign * super().score(codes, prompt)


def test_fresh_pairs_are_told_apart_by_all_that_the_verifier_and_the_words_are(unpictured):
    words = unpictured.text_tokenizer
    verifier = Verifier(lite_verifier(words), lite_processor(words))

    def about(asked: Any = verifier, generator: Generator = unpictured) -> str:
        return online_pairs(generator, asked, lite_prompts("train")[:2], 1, 3, seed=0).about

    told = [about(), about(Opposite(1)), about(Opposite(-1))]
    assert about() == told[0] and about(Opposite(1)) == told[1]
    verifier._yes, verifier._no = verifier._no, verifier._yes
    told += [about()]
    verifier.processor.chat_template = verifier.processor.chat_template.replace("<|assistant|>", "<|user|>")
    told += [about()]
    other = replace(unpictured)
    vars(other)["encode"] = lambda prompt: [5, 6, 7]  # as another tokenizer would
    told += [about(generator=other)]
    assert len(set(told)) == len(told) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": 1}, "generator must be"),
        ({"prompts": []}, "at least one Prompt"),
        ({"n": 0}, "n must be"),
        ({"seed": -1}, "seed must be"),
        ({"masks": 0}, "masks must be"),
    ],
)
def test_what_divergence_is_measured_on_is_checked(toy_generator, change, said):
    given = {"generator": toy_generator, "prompts": lite_prompts("train")[:1], "n": 1, "seed": 0}
    with pytest.raises(ValueError, match=said):
        divergence_on_samples(**(given | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": None}, "pool must be a Pool"),
        ({"pool": "data/pools/baseline.safetensors"}, "pool must be a Pool"),
        ({"correct": {}}, 'no labels of the judge "template"'),
        ({"correct": {"template": np.ones((1, 3), bool)}}, "must have shape"),
        ({"correct": {"template": np.full((2, 3), np.nan)}}, "must"),
        ({"most": 0}, "most must be"),
        ({"most": 1.5}, "most must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_pools_that_give_no_pairs_are_refused(change, said):
    labels = {"template": np.array([[True, False, True]] * 2)}
    pool = Pool(lite_prompts("train")[:2], torch.zeros(2, 3, 4).short(), {}, labels)
    pool, given = change.get("pool", pool), {name: change.get(name, 1) for name in ("most", "seed")}
    with pytest.raises(ValueError, match=said):
        preference_pairs(replace(pool, correct=change["correct"]) if "correct" in change else pool, **given)


HIDDEN = torch.ones(1, 2, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model must"),
        ({"prefixes": ["1", "2"]}, "lists of ids"),
        ({"prefixes": [[1]]}, "prompt"),
        ({"masks": None}, "masks must be Masks"),
        ({"masks": Masks(HIDDEN[:, :1], torch.ones(1, 1))}, "must"),
        ({"tokens": torch.zeros(2, 5).long()}, "must"),
        ({"tokens": torch.full((2, 9), 99)}, "must"),
    ],
)
def test_what_log_probabilities_are_asked_of_is_checked(change, said):
    model = tiny(length=9)
    prefix = text_prefix(model.config, [3, 5])
    given = {"model": model, "config": model.config, "prefixes": [prefix] * 2, "tokens": torch.zeros(2, 9).long()}
    with pytest.raises(ValueError, match=said):
        log_probability(**(given | {"masks": Masks(HIDDEN, torch.ones(1, 2))} | change))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Masks(HIDDEN.float(), torch.ones(1, 2)), "positions must be of dtype bool"),
        (lambda: Masks(HIDDEN[0], torch.ones(1, 2)), "positions must have shape"),
        (lambda: Masks(HIDDEN, torch.ones(2)), "weight must have shape"),
        (lambda: Masks(HIDDEN, torch.full((1, 2), float("nan"))), "weight must be finite"),
        (lambda: Online(5, ""), "draw must be"),
        (lambda: Online(lambda policy, step: [], None), "about must be"),
    ],
)
def test_parts_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("seen", [None, float("nan"), "much"])
def test_what_is_watched_is_a_number(seen):
    start = tiny_generator()
    with pytest.raises(ValueError, match="what is watched must be"):
        train_dpo(start, pairs_of(start, 4), DpoTraining(1e-3), watch=lambda policy, reference: seen)


def test_pairs_are_shuffled_by_the_seed_and_at_most_so_many_of_a_prompt():
    prompts = lite_prompts("train")[:12]
    pool = Pool(
        prompts,
        torch.arange(12 * 6 * 4).view(12, 6, 4).short(),
        {},
        {"template": np.arange(72).reshape(12, 6) % 2 == 0},
    )
    pairs = preference_pairs(pool, 2, 0)
    asked = [prompts.index(pair.prompt) for pair in pairs]
    assert sorted(asked) == sorted([*range(12)] * 2) and asked != sorted(asked)
    again, other = ([tuple(pair.chosen.tolist()) for pair in preference_pairs(pool, 2, seed)] for seed in (0, 1))
    assert again == [tuple(pair.chosen.tolist()) for pair in pairs] != other


def test_the_elbo_hides_every_number_of_tokens_alike():
    masks = draw_masks(4000, LENGTH, 1, "elbo", torch.Generator().manual_seed(6))
    counts = masks.positions[0].sum(dim=1)
    shares = torch.bincount(counts, minlength=LENGTH + 1) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, *[1 / LENGTH] * LENGTH]), atol=0.03, rtol=0)
    torch.testing.assert_close(masks.weight[0], LENGTH / counts)


def test_a_step_draws_different_prompts_and_every_step_other_images(unpictured):
    prompts = lite_prompts("train")[:3]
    online = online_pairs(unpictured, LikesLowCodes(), prompts, prompts_per_step=3, num_images_per_prompt=2, seed=0)
    steps = [{pair.prompt: pair.chosen for pair in online.draw(unpictured.model, step)} for step in range(4)]
    assert all(step.keys() == set(prompts) for step in steps)
    assert not any(torch.equal(steps[0][prompt], steps[1][prompt]) for prompt in prompts)


def test_equal_images_are_no_success_and_other_fresh_pairs_another_run(tmp_path):
    start = tiny_generator()
    same = [pair._replace(rejected=pair.chosen) for pair in pairs_of(start, 4)]

    def run(online: Online | None) -> list[dict[str, float]]:
        return train_dpo(start, same, DpoTraining(1e-4, batch_size=4), tmp_path, online)[1].rows

    rows = run(Online(lambda policy, step: same, "some"))
    assert rows[0]["accuracy"] == rows[0]["margin"] == 0
    for other in (Online(lambda policy, step: same, "others"), None):
        with pytest.raises(ValueError, match="another run"):
            run(other)
