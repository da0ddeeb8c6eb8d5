"""Log-probabilities against enumeration, the loss against trl's, and that training does what it says."""

import copy
from dataclasses import replace
from itertools import combinations, permutations
from math import comb
from types import SimpleNamespace

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
    train_dpo,
)
from cotgen_lite.generate.showo import Showo, ShowoConfig, draw_mask, text_prefix
from cotgen_lite.prompts import encode_text, lite_prompts

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


@pytest.mark.parametrize("weighting", ["sum", "elbo"])
def test_more_masks_are_the_mean_of_single_ones(case, weighting):
    model, prefix, codes, _ = case
    masks = draw_masks(2, LENGTH, 5, weighting, torch.Generator().manual_seed(3))
    both = torch.stack([codes, codes.flip(0)])
    whole = log_probability(model, model.config, [prefix] * 2, both, masks)
    single = [
        log_probability(
            model, model.config, [prefix] * 2, both, Masks(masks.places[m : m + 1], masks.weight[m : m + 1] * 5)
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
        alone = Masks(masks.places[:, row : row + 1], masks.weight[:, row : row + 1])
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


def pairs_of(model: Showo, number: int = 24) -> list[Pair]:
    """Chosen images hold more zeros than rejected ones."""
    draw = torch.Generator().manual_seed(7)
    length = model.config.num_image_tokens
    few = torch.randint(1, CODES, (number, length), generator=draw)
    many = few.masked_fill(torch.rand(number, length, generator=draw) < 0.7, 0)
    return [Pair(text_prefix(model.config, [row % 5 + 1]), many[row], few[row]) for row in range(number)]


def test_training_starts_at_log_two_and_prefers_the_chosen(tmp_path):
    model = tiny(length=9)
    pairs = pairs_of(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    log, _ = train_dpo(model, pairs, DpoTraining(3e-3, epochs=12, batch_size=8, masks=2), tmp_path)
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and log[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert log[-1]["loss"] < 0.5 and log[-1]["accuracy"] > 0.9 and log[-1]["margin"] > 0.5
    assert not model.training
    reference = tiny(length=9)
    reference.load_state_dict(before)
    masks = draw_masks(len(pairs), 9, 4, "elbo", torch.Generator().manual_seed(0))
    chosen, rejected = (torch.stack([getattr(pair, side) for pair in pairs]) for side in ("chosen", "rejected"))
    prefixes = [pair.prefix for pair in pairs]
    with torch.no_grad():
        gains = [
            log_probability(model, model.config, prefixes, codes, masks)
            - log_probability(reference, model.config, prefixes, codes, masks)
            for codes in (chosen, rejected)
        ]
    assert gains[0].mean() > gains[1].mean()


def test_a_run_of_a_single_step_learns_too(tmp_path):
    model = tiny(length=9)
    before = model.state_dict()["showo.lm_head.weight"].clone()
    log, _ = train_dpo(model, pairs_of(model)[:4], DpoTraining(1e-3, batch_size=4), tmp_path)
    assert len(log) == 1 and not torch.equal(model.state_dict()["showo.lm_head.weight"], before)


@pytest.mark.parametrize("shared", [True, False])
def test_chosen_and_rejected_share_masks_if_asked(tmp_path, monkeypatch, shared):
    model, seen = tiny(), []
    judged = dpo.log_probability

    def watch(model, config, prefixes, codes, masks):
        seen.append(masks)
        return judged(model, config, prefixes, codes, masks)

    monkeypatch.setattr(dpo, "log_probability", watch)
    train_dpo(model, pairs_of(model, 4), DpoTraining(1e-4, batch_size=4, masks=3, shared=shared), tmp_path)
    policy, reference = seen
    assert torch.equal(policy.places, reference.places) and torch.equal(policy.weight, reference.weight)
    assert torch.equal(policy.places[:, :4], policy.places[:, 4:]) == shared


class Stop(TrainerCallback):
    """Breaks off after three steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_it_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    settings = DpoTraining(1e-3, batch_size=4, save_steps=2)
    whole, parted = tiny(), tiny()
    log, _ = train_dpo(whole, pairs_of(whole), settings, tmp_path / "whole")
    trainer = dpo.DpoTrainer

    def stopping(*given):
        made = trainer(*given)
        made.add_callback(Stop())
        return made

    monkeypatch.setattr(dpo, "DpoTrainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(parted, pairs_of(parted), settings, tmp_path / "parted")
    monkeypatch.setattr(dpo, "DpoTrainer", trainer)
    parted = tiny()  # the reference is the model as it is given
    again, _ = train_dpo(parted, pairs_of(parted), settings, tmp_path / "parted")
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in log])
    for name, weight in parted.state_dict().items():
        torch.testing.assert_close(weight, whole.state_dict()[name])


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

    def mean_score() -> float:
        drawn = generator.draw([prompt.text for prompt in prompts], 8, seed=99)
        codes = torch.stack([path.final for paths in drawn for path in paths])
        return float(LikesLowCodes().score(codes, [""] * len(codes)).mean())

    prefix = text_prefix(generator.model.config, [3])
    same = torch.zeros(64, dtype=torch.int16)
    dummies = [Pair(prefix, same, same)] * 30  # a pair of equal images teaches nothing
    online = online_pairs(generator, LikesLowCodes(), prompts, a_step=3, samples=4, seed=0)
    fresh = online.draw(generator.model, 0)
    masks = draw_masks(6, 64, 1, "sum", torch.Generator().manual_seed(0))
    codes = torch.stack([pair.chosen for pair in fresh] + [pair.rejected for pair in fresh])
    prefixes = [pair.prefix for pair in fresh] * 2
    log_p = log_probability(generator.model, generator.model.config, prefixes, codes, masks)
    dpo_loss(log_p[:3], log_p[3:], log_p[:3].detach(), log_p[3:].detach(), beta=0.1)[0].mean().backward()
    assert sum(float(weight.grad.norm()) for weight in generator.model.parameters() if weight.grad is not None) > 1e-2
    generator.model.zero_grad()
    before = mean_score()
    log, _ = train_dpo(generator.model, dummies, DpoTraining(1e-2, batch_size=1, masks=2), tmp_path, online)
    assert "online_margin" in log[0]
    assert mean_score() > before + 0.1


def test_fresh_pairs_are_the_verifiers_favourite_and_last(unpictured):
    prompts = lite_prompts("train")[:4]
    draw = online_pairs(unpictured, LikesLowCodes(), prompts, a_step=2, samples=4, seed=0).draw
    pairs, again, later = (draw(unpictured.model, step) for step in (0, 0, 1))
    assert len(pairs) == 2 and all(torch.equal(a.chosen, b.chosen) for a, b in zip(pairs, again, strict=True))
    assert any(not torch.equal(a.chosen, b.chosen) for a, b in zip(pairs, later, strict=True))
    for pair in pairs:
        best, worst = LikesLowCodes().score(torch.stack([pair.chosen, pair.rejected]), ["", ""])
        assert best > worst
    with pytest.raises(ValueError, match="at least 2 samples"):
        online_pairs(unpictured, LikesLowCodes(), prompts, 2, 1, 0)
    with pytest.raises(ValueError, match="dev or test prompt"):
        online_pairs(unpictured, LikesLowCodes(), [*prompts, lite_prompts("test")[-1]], 2, 4, 0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_guidance_is_added_as_often_as_its_weight_says(unpictured, tmp_path, weight):
    model = unpictured.model
    pair = Pair(text_prefix(model.config, [3]), torch.zeros(64).long(), torch.ones(64).long())
    fresh = Pair(pair.prefix, torch.full((64,), 7), torch.full((64,), 900))
    settings = DpoTraining(1e-3, batch_size=1, beta=0.5, guidance=weight, seed=3)
    reference = copy.deepcopy(model)
    for parameter in model.parameters():  # away from the reference, lest all losses be log 2
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    losses = {}
    for name, online in (("offline", None), ("both", Online(lambda policy, step: [fresh], ""))):
        trainer = dpo.DpoTrainer(reference, settings, model, arguments, [pair], online, None)
        losses[name] = trainer.compute_loss(model, trainer._prepare_inputs(dpo._collate([pair]))).item()
    drawing = torch.Generator().manual_seed(3 * 1_000_003)
    draw_masks(1, 64, 1, "sum", drawing)  # the offline pair's
    masks = draw_masks(1, 64, 1, "sum", drawing)
    both = Masks(masks.places.repeat(1, 2, 1), masks.weight.repeat(1, 2))
    codes = torch.stack([fresh.chosen, fresh.rejected])
    with torch.no_grad():
        policy, before = (log_probability(m, m.config, [pair.prefix] * 2, codes, both) for m in (model, reference))
    alone = dpo_loss(policy[:1], policy[1:], before[:1], before[1:], beta=0.5)[0].item()
    assert abs(alone - 0.6931) > 0.01
    assert losses["both"] == pytest.approx(losses["offline"] + weight * alone, rel=1e-4)


def test_every_step_has_masks_of_its_own(tmp_path, monkeypatch):
    seen, judged = [], dpo.log_probability
    monkeypatch.setattr(dpo, "log_probability", lambda *given: seen.append(given[-1].places) or judged(*given))
    train_dpo(tiny(length=9), pairs_of(tiny(length=9), 12), DpoTraining(1e-4, batch_size=4), tmp_path)
    policies = seen[::2]
    assert len(policies) == 3 and not torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[1], policies[2])


def test_divergence_is_zero_from_itself_and_grows_with_training(toy_generator, tmp_path):
    model = copy.deepcopy(toy_generator.model)
    watch = divergence_on_samples(toy_generator, lite_prompts("train")[:3], n=2, seed=1)
    assert watch(model, model) == 0
    pairs = [Pair(text_prefix(model.config, [row]), torch.full((64,), 7), torch.full((64,), 900)) for row in range(8)]
    log, seconds = train_dpo(model, pairs, DpoTraining(3e-3, batch_size=2, watch_every=2), tmp_path, watch=watch)
    assert [step for step, row in enumerate(log) if "watched" in row] == [0, 2, 3]
    assert log[0]["watched"] == 0 and log[-1]["watched"] > 0.01 and seconds > 0
    # nothing is left to do: the same log and seconds
    again = copy.deepcopy(toy_generator.model)
    assert train_dpo(again, pairs, DpoTraining(3e-3, batch_size=2, watch_every=2), tmp_path, watch=watch) == (
        log,
        seconds,
    )


def test_divergence_is_what_the_log_ratio_of_drawn_codes_comes_to(toy_generator):
    policy, reference = copy.deepcopy(toy_generator.model), toy_generator.model
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    prompts = lite_prompts("train")[:2]
    found = divergence_on_samples(toy_generator, prompts, n=3, seed=5, masks=4)(policy, reference)
    drawn = replace(toy_generator, model=policy).draw([prompt.text for prompt in prompts], 3, 5)
    masks = draw_masks(6, 64, 4, "elbo", torch.Generator().manual_seed(5))
    rng, ratios = torch.Generator().manual_seed(2), []
    for row, path in enumerate(path for paths in drawn for path in paths):
        prefix = text_prefix(policy.config, encode_text(toy_generator.text_tokenizer, prompts[row // 3].text))
        for mask in range(4):
            hidden, codes = masks.places[mask, row], path.final[None]
            with torch.no_grad():
                p, q = (dpo.image_logits(m, [prefix], codes, hidden[None]).log_softmax(-1) for m in (policy, reference))
            redrawn = torch.multinomial(p.exp(), 4000, replacement=True, generator=rng)  # of the hidden codes alone
            ratios.append(masks.weight[mask, row] * (p - q).gather(1, redrawn).mean(1).sum())
    assert found == pytest.approx(float(torch.stack(ratios).sum() / 6), rel=0.03)
    assert found > 0.1


def test_another_runs_folder_is_refused(tmp_path):
    model = tiny()
    train_dpo(model, pairs_of(model, 4), DpoTraining(1e-4, batch_size=4), tmp_path)
    for settings, number in ((DpoTraining(1e-3, batch_size=4), 4), (DpoTraining(1e-4, batch_size=4), 3)):
        with pytest.raises(ValueError, match="another run"):
            train_dpo(tiny(), pairs_of(tiny(), number), settings, tmp_path)


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(ValueError, match="at least one pair"):
        train_dpo(tiny(), [], DpoTraining(1e-4), tmp_path)
