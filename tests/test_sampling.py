"""Decoding: the cache equals the plain loop, noise belongs to the path, schedule and guidance are Show-o's."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cotgen_lite.experiments.benchmark import decoding_flops, measure, predict_plainly, time_shares
from cotgen_lite.generate import forward
from cotgen_lite.generate.autoregressive import AutoregressiveSettings
from cotgen_lite.generate.forward import PathCache, image_hidden
from cotgen_lite.generate.pipeline import Generator, GeneratorOutput, check_tokens
from cotgen_lite.generate.sampling import (
    MASKED,
    Cost,
    DecodingState,
    Remasking,
    SamplingSettings,
    advance,
    branch,
    encode_prompts,
    keep,
    masked_after,
    path_noise,
    predict,
    remasking_temperature,
    start,
)
from cotgen_lite.generate.showo import (
    Showo,
    ShowoConfig,
    build_sequences,
    image_logits,
    image_span,
    masked_loss,
    text_prefix,
)
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.identity import fingerprint
from cotgen_lite.lite.vocabulary import lite_tokenizer

WORDS = lite_tokenizer()
PROMPTS = ["a photo of a dog", "a photo of a red apple and a blue car", "a photo of three cats"]
SETTINGS = SamplingSettings(guidance_scale=1.5, steps=6, remasking="linear")


@pytest.fixture(scope="module")
def model() -> Showo:
    torch.manual_seed(0)
    config = ShowoConfig(
        text_vocab_size=len(WORDS),
        codebook_size=32,
        num_image_tokens=16,
        max_text_length=16,
        bos_token_id=WORDS.bos_token_id,
        eos_token_id=WORDS.eos_token_id,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = Showo(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # an untrained model is nearly blind to its input
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def prefixes(model: Showo) -> list[list[int]]:
    words = [WORDS(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    return [text_prefix(model.config, ids) for ids in words]


def begin(model: Showo, paths: list[tuple[int, int]], settings: SamplingSettings = SETTINGS) -> DecodingState:
    cost = Cost()
    return start(model, encode_prompts(model, prefixes(model), cost), paths, settings, 3, cost)


def whole(model: Showo) -> Generator:
    return Generator(model, WORDS, Magvit(lite_magvit_config()), SETTINGS)


def generate(
    model: Showo, prompts: str | list[str], n: int, seed: int = 1, remasking: Remasking = "linear", **changes
) -> GeneratorOutput:
    return whole(model).with_settings(remasking=remasking)(prompts, n, seed=seed, **changes)


def run(model: Showo, state: DecodingState) -> torch.Tensor:
    return list(whole(model).stream(state))[-1].guess


@pytest.mark.parametrize("guidance", [0.0, 1.75])
def test_cache_equals_the_plain_loop(model, guidance):
    settings = SamplingSettings(guidance, steps=6)
    state = begin(model, [(0, 0), (1, 0), (1, 1), (2, 5), (0, 2)], settings)
    for _ in range(settings.steps):
        logits = predict(model, state)
        torch.testing.assert_close(logits, predict_plainly(model, state), atol=1e-5, rtol=1e-5)
        state, _ = advance(state, logits)


@pytest.mark.parametrize("changes", [{}, {"qk_layernorm": False, "partial_rotary_factor": 1.0, "num_hidden_layers": 1}])
def test_the_pass_over_an_image_is_transformers_phi(model, changes, monkeypatch):
    """At the positions asked for, with the weights that a model has at that moment, in parts of any size."""
    torch.manual_seed(1)
    phi = Showo(ShowoConfig(**{**model.config.to_dict(), **changes})).eval()
    for _ in range(2):
        with torch.no_grad():
            for parameter in phi.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        cache = encode_prompts(phi, prefixes(phi), Cost())
        tokens, rows = torch.randint(32, (3, 16)), torch.tensor([2, 0, 1])
        masked = torch.rand(3, 16).argsort(dim=1) < 5
        span, wanted = image_span(phi.config, tokens, masked), 1 + masked.nonzero()[:, 1].view(3, 5)
        ids = build_sequences(phi.config, [prefixes(phi)[row] for row in rows], tokens, masked)
        expected = phi.hidden_states(ids)[:, -17:-1][masked].view(3, 5, -1)
        for at_once in (100, 2**16):
            monkeypatch.setattr(forward, "IN_CPU_CACHE", at_once)
            drawn = PathCache(cache.keys, cache.values, cache.visible, rows, 18)
            with torch.inference_mode():
                torch.testing.assert_close(image_hidden(phi, span, wanted, drawn), expected, atol=1e-5, rtol=1e-5)


def test_guidance_has_show_os_form_over_the_empty_prompt(model):
    state = begin(model, [(1, 0)], SamplingSettings(2.0, steps=6))
    state, _ = advance(state, predict(model, state))
    masked = state.tokens == MASKED
    tokens = state.tokens.clamp(min=0)
    conditional = image_logits(model, [prefixes(model)[1]], tokens, masked)
    unconditional = image_logits(model, [text_prefix(model.config, [])], tokens, masked)
    expected = 3.0 * conditional - 2.0 * unconditional
    torch.testing.assert_close(predict(model, state)[0], expected, atol=2e-5, rtol=1e-5)


def test_each_prompt_may_be_guided_against_another_prefix(model):
    cost, (dog, fruit, cats) = Cost(), prefixes(model)
    cache = encode_prompts(model, [dog, fruit, cats], cost, [cats, dog, cats])
    assert cost.generator_passes == 5  # three prompts, and two distinct prefixes held against them
    state = start(model, cache, [(2, 0), (0, 0), (1, 0), (0, 1)], SETTINGS, 3, cost)
    for _ in range(SETTINGS.steps):
        logits = predict(model, state)
        torch.testing.assert_close(logits, predict_plainly(model, state), atol=1e-5, rtol=1e-5)
        state, _ = advance(state, logits)
    # Held against itself, a prompt is not guided at all: what it draws is what it draws without guidance.
    cats_alone, alone = start(model, cache, [(2, 0)], SETTINGS, 3, Cost()), whole(model).with_settings(guidance_scale=0)
    unguided = begin(model, [(2, 0)], alone.settings)
    assert torch.equal(run(model, cats_alone), list(alone.stream(unguided))[-1].guess)


def test_prefixes_may_hold_an_earlier_image(model):
    config = model.config
    earlier = [config.soi_id, *range(config.image_offset, config.image_offset + 16), config.eoi_id]
    cost = Cost()
    cache = encode_prompts(model, [[*prefixes(model)[0], *earlier], prefixes(model)[1]], cost)
    state = start(model, cache, [(0, 0), (1, 0)], SETTINGS, 3, cost)
    for _ in range(3):
        logits = predict(model, state)
        torch.testing.assert_close(logits, predict_plainly(model, state), atol=1e-5, rtol=1e-5)
        state, _ = advance(state, logits)


def test_schedule_is_the_closed_form():
    length, steps, open_places = 256, 18, 256
    for step in range(steps):
        left = masked_after(step, steps, open_places, length, "linear")
        wanted = math.floor(length * math.cos(math.pi * (step + 1) / 36) + 1e-9)
        assert left == (0 if step == 17 else max(1, min(open_places - 1, wanted)))
        open_places = left
    for steps in range(3, 300, 3):  # cos(pi / 3) is one half, whatever the rounding
        assert masked_after(2 * steps // 3 - 1, steps, 200, 256, "linear") == 128
    assert masked_after(0, 18, 1, 1, "linear") == 1  # never below one before the end
    assert masked_after(0, 18, 64, 64, "linear") == 63  # always commits one


@pytest.mark.parametrize(("steps", "length"), [(18, 256), (18, 1024), (12, 64), (39, 256), (7, 64)])
def test_show_os_own_loop_multiplies_its_temperature_in_place_and_counts_in_float32(steps: int, length: int):
    settings, temperature, open_places = SamplingSettings(steps=steps, temperature=1.3), 1.3, length
    assert settings.remasking == "show-o"
    for step in range(steps):
        ratio = (step + 1) / steps
        mask_ratio = torch.cos(torch.tensor(ratio, dtype=torch.float32) * math.pi / 2)
        temperature *= 1 - ratio
        assert remasking_temperature(step, settings) == temperature
        left = masked_after(step, steps, open_places, length, "show-o")
        assert left == (0 if ratio == 1 else max(1, min(open_places - 1, int((length * mask_ratio).floor()))))
        open_places = left


def test_schedules_differ_as_stated(model):
    ours, original = SamplingSettings(remasking="linear"), SamplingSettings()
    assert [round(remasking_temperature(step, ours), 3) for step in (0, 8, 12, 17)] == [0.944, 0.5, 0.278, 0]
    assert [round(remasking_temperature(step, original), 3) for step in (0, 8, 12, 17)] == [0.944, 0.044, 0.001, 0]
    assert remasking_temperature(12, original) < 0.001
    assert [masked_after(11, 18, 200, 256, each) for each in ("linear", "show-o")] == [128, 127]
    with pytest.raises(TypeError, match="remasking"):  # another default than that of SamplingSettings would mislead
        masked_after(11, 18, 200, 256)
    drawn = [generate(model, PROMPTS, 4).steps, generate(model, PROMPTS, 4, remasking="show-o").steps]
    assert torch.equal(drawn[0][:, 0], drawn[1][:, 0]) and not torch.equal(drawn[0], drawn[1])


def test_steps_commit_by_schedule_and_keep_what_they_committed(model):
    steps = list(whole(model).stream(begin(model, [(0, 0), (1, 4)])))
    assert [step.index for step in steps] == list(range(6))
    open_places = 16
    for before, after in pairwise(steps):
        assert bool((after.committed | ~before.committed).all())
        assert torch.equal(after.guess[before.committed], before.guess[before.committed])
    for step in steps:
        open_places = masked_after(step.index, 6, open_places, 16, "linear")
        assert (~step.committed).sum(dim=1).tolist() == [open_places] * 2
        assert bool((step.guess >= 0).all())
        assert bool((step.guess < 32).all())
    assert bool(steps[-1].committed.all())


def test_samples_follow_the_distribution(model):
    state = begin(model, [(0, k) for k in range(3000)], SamplingSettings(0.0, steps=1, temperature=0.7))
    logits = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)).expand(3000, -1, -1)
    _, step = advance(state, logits)
    counts = torch.nn.functional.one_hot(step.guess, 32).float().mean(dim=0)
    expected = (logits[0] / 0.7).softmax(dim=-1)
    assert (counts - expected).abs().max() < 4.5 * math.sqrt(0.25 / 3000)


@pytest.mark.parametrize(("remasking", "chance"), [("linear", 3 / 6), ("show-o", 5 / 6 * 4 / 6 * 3 / 6)])
def test_remasking_adds_annealed_gumbel_to_log_p(model, remasking, chance):
    """Brute force over a step in the middle: who stays masked, with the temperature of that step."""
    state = begin(model, [(0, 0), (0, 1)], SamplingSettings(1.0, 6, 2.0, remasking))
    for _ in range(2):
        state, _ = advance(state, predict(model, state))
    logits = predict(model, state)
    after, step = advance(state, logits)
    for path in range(2):
        places = [i for i in range(16) if state.tokens[path, i] == MASKED]
        confidence = {}
        for order, place in enumerate(places):
            code = int(step.guess[path, place])
            u = float(state.noise[path, 2, 1, place])
            log_p = float((logits[path, order] / 2.0).log_softmax(-1)[code])
            confidence[place] = log_p + 2.0 * chance * -math.log(-math.log(u))
        left = masked_after(2, 6, len(places), 16, remasking)
        expected = set(sorted(places, key=confidence.__getitem__)[:left])
        assert {i for i in range(16) if after.tokens[path, i] == MASKED} == expected


def test_noise_belongs_to_the_candidate_alone(model):
    whole = generate(model, PROMPTS, 5)
    assert whole.prompts == [prompt for prompt in PROMPTS for _ in range(5)]
    for n, batch_size in ((5, 1), (5, 3), (2, 20)):
        again = generate(model, PROMPTS[::-1], n, batch_size=batch_size)
        for ours, theirs in ((whole.steps, again.steps), (whole.committed, again.committed)):
            assert torch.equal(ours.unflatten(0, (3, 5))[:, :n], theirs.unflatten(0, (3, n)).flip(0))
    later = generate(model, PROMPTS[1], 2, first_candidate=3)
    assert torch.equal(later.tokens, whole.tokens[[8, 9]])
    assert not torch.equal(generate(model, PROMPTS, 5, seed=2).tokens[0], whole.tokens[0])
    assert len({tuple(row) for row in whole.tokens.tolist()}) == 15


def test_a_prompt_listed_again_gets_fresh_candidates(model):
    assert torch.equal(generate(model, [PROMPTS[0]] * 2, 2).tokens, generate(model, PROMPTS[0], 4).tokens)


def test_noise_is_uniform_and_its_own():
    noise = path_noise((1, (5, 6), 0), 18, 64)
    assert noise.shape == (18, 2, 64)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(noise, path_noise((1, (5, 6), 0), 18, 64))
    assert not torch.equal(noise, path_noise((1, (5, 6), 1), 18, 64))
    for key in ((np.int64(1), (np.int32(5), 6), np.uint8(0)), [1, [5, 6], 0], (1, np.array([5, 6]), torch.tensor(0))):
        assert torch.equal(noise, path_noise(key, np.int64(18), 64))  # the kind of number is not drawn from
    assert torch.equal(path_noise((np.str_("a"), 1), 2, 3), path_noise(("a", 1), 2, 3))
    for key in (1, (True,), (1.0,), (None,), "a"):
        with pytest.raises(ValueError, match="key must be"):
            path_noise(key, 18, 64)


def test_numpys_numbers_draw_the_same_images(model):
    generator, plain = whole(model), generate(model, PROMPTS[0], 2, seed=3)
    given = generator(np.array(PROMPTS[:1]), np.int64(2), seed=np.int32(3), batch_size=np.int16(1), steps=np.int64(6))
    assert torch.equal(given.steps, plain.steps) and type(given.prompts[0]) is str
    later = generator(PROMPTS[0], np.int64(1), seed=3, first_candidate=np.uint8(1))
    assert torch.equal(later.tokens, plain.tokens[1:])
    assert not torch.equal(generator(PROMPTS[0], 2, seed=-3).tokens, plain.tokens)  # any whole number is a seed
    corrected = [generator.correct(PROMPTS[0], plain.tokens[:1], "", n, seed=n) for n in (2, np.int64(2))]
    assert torch.equal(corrected[0].steps, corrected[1].steps)


def test_kept_paths_go_on_as_if_alone_and_the_rest_costs_nothing(model):
    paths = [(0, 0), (1, 0), (2, 1), (1, 7)]
    state = begin(model, paths)
    for _ in range(3):
        state, _ = advance(state, predict(model, state))
    stopped = keep(state, [0])
    passes = state.cost.generator_passes
    final = run(model, keep(state, [3, 1]))
    assert state.cost.generator_passes - passes == 2 * 2 * 3  # two paths, with and without prompt, three steps
    assert torch.equal(final[0], run(model, begin(model, [paths[3]]))[0])
    assert torch.equal(final[1], run(model, begin(model, [paths[1]]))[0])
    assert torch.equal(run(model, stopped)[0], run(model, begin(model, [paths[0]]))[0])  # resumed later


def test_branches_share_the_past_and_draw_their_own_future(model):
    state = begin(model, [(0, 0), (1, 0)])
    for _ in range(3):
        state, _ = advance(state, predict(model, state))
    rollouts = branch(state, [1, 1, 1, 0], [10, 11, 12, 10])
    final = run(model, rollouts)
    assert len({tuple(row) for row in final.tolist()}) == 4
    committed = state.tokens[1] != MASKED
    assert bool((final[:3, committed] == state.tokens[1, committed]).all())
    assert torch.equal(final[1], run(model, branch(state, [1], [11]))[0])
    # the same seeds may be given at every step: the step is drawn from as well
    later, _ = advance(state, predict(model, state))
    noise = branch(state, [1], [10]).noise
    assert torch.equal(noise, branch(state, [1], [np.int64(10)]).noise)
    assert not torch.equal(noise, branch(later, [1], [10]).noise)
    assert not torch.equal(noise, branch(state, [1], [11]).noise)
    assert not torch.equal(branch(state, [0], [10]).noise, noise)
    # several draws of one step from one pass
    passes = state.cost.generator_passes
    logits = predict(model, keep(state, [1]))
    drawn, step = advance(branch(state, [1, 1, 1], [10, 11, 12]), logits[[0, 0, 0]])
    assert state.cost.generator_passes - passes == 2
    assert len({tuple(row) for row in step.guess.tolist()}) == 3
    assert torch.equal(run(model, drawn), final[:3])


def test_cost_counts_what_is_computed(model):
    cost = generate(model, PROMPTS[:2], 4, batch_size=8).cost
    # Two prompts and the empty one are read, and so it is in the first step; from then on each candidate is.
    assert cost.generator_passes == 3 + (2 + 1) + 5 * 2 * 8
    lengths = sum(len(prefix) for prefix in prefixes(model)[:2]) + 3
    assert cost.tokens == 18 * (cost.generator_passes - 3) + lengths
    assert cost.verifier_passes == cost.verifier_seconds == 0 < cost.seconds == cost.generator_seconds
    unguided = generate(model, PROMPTS[:2], 4, guidance_scale=0.0, batch_size=8).cost
    assert unguided.generator_passes == 3 + 2 + 5 * 8
    both = Cost()
    both += cost
    both += unguided
    assert (both.tokens, both.seconds) == (cost.tokens + unguided.tokens, cost.seconds + unguided.seconds)


def test_generated_tokens_can_be_trained_on(model):
    out = generate(model, PROMPTS[0], 1)
    assert out.steps.dtype == torch.int16 and out.tokens.dtype == torch.int64
    assert out.steps.shape == out.committed.shape == (1, 6, 16)
    loss = masked_loss(model, [[7]], out.tokens, torch.Generator().manual_seed(0))
    loss.backward()
    model.zero_grad()
    state = begin(model, [(0, 0)])
    for step in whole(model).stream(state):
        assert not step.guess.is_inference()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 1024"),
        ({"steps": 10**7}, "steps must be"),
        ({"steps": 18.0}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number from 0 to 100"),
        ({"guidance_scale": math.nan}, "guidance_scale must be"),
        ({"guidance_scale": "1.5"}, "guidance_scale must be"),
        ({"guidance_scale": 1e8}, "guidance_scale must be"),
        ({"temperature": 0.0}, "temperature must be a finite number from 1e-06 to 100"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": None}, "temperature must be"),
        ({"temperature": 101}, "temperature must be"),
        ({"remasking": "showo"}, "remasking must be one of 'show-o', 'linear'"),
        ({"remasking": None}, "remasking must be"),
    ],
)
def test_impossible_settings_are_one_sentence(changes: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said) as error:
        SamplingSettings(**changes)
    assert "\n" not in str(error.value)


def test_settings_become_plain_numbers():
    plain, given = SamplingSettings(2.0, 6, 1.5), SamplingSettings(np.float32(2), np.int64(6), np.float64(1.5))
    assert given == plain and [type(value) for value in vars(given).values()] == [float, int, float, str]
    assert fingerprint((), given) == fingerprint((), plain) == fingerprint((), SamplingSettings(2, 6, 1.5))


def test_bad_arguments_are_one_clear_sentence(model):
    with pytest.raises(ValueError, match="'zebra'"):
        generate(model, "a photo of a zebra", 1)
    with pytest.raises(ValueError, match="one seed per branch"):
        branch(begin(model, [(0, 0)]), [0], [1, 2])
    with pytest.raises(ValueError, match="nothing to decode"):
        begin(model, [])


PROMPT, IMAGE = PROMPTS[0], torch.zeros(1, 16, dtype=torch.long)
BAD_CALLS: list[tuple[str, Callable[[Generator, DecodingState], object]]] = [
    ("num_images_per_prompt must be", lambda g, s: g(PROMPT, 0)),
    ("num_images_per_prompt must be", lambda g, s: g(PROMPT, 10**9)),
    ("num_images_per_prompt must be", lambda g, s: g(PROMPT, 2.0)),
    ("num_images_per_prompt must be", lambda g, s: g.correct(PROMPT, IMAGE, "", True)),
    ("more than 100000 images", lambda g, s: g([PROMPT] * 11, 10_000)),
    ("batch_size must be", lambda g, s: g(PROMPT, batch_size=0)),
    ("first_candidate must be", lambda g, s: g(PROMPT, first_candidate=-1)),
    ("progress_bar must be", lambda g, s: g(PROMPT, progress_bar="no")),
    ("prompt must hold at least one", lambda g, s: g([])),
    ("prompt must be a text", lambda g, s: g(None)),
    ("each of prompt must be a text", lambda g, s: g([PROMPT, 7])),
    ("prompt must be a text", lambda g, s: g.encode(7)),
    ("seed must be", lambda g, s: g(PROMPT, seed=True)),
    ("seed must be", lambda g, s: g.correct(PROMPT, IMAGE, "", seed=0.5)),
    ("seed must be", lambda g, s: g.begin([PROMPT], [(0, 0)], None, Cost())),
    ("seed of each branch must be", lambda g, s: branch(s, [0], ["1"])),
    ("no setting 'top_k'", lambda g, s: g.with_settings(top_k=3)),
    ("row of a path's prompt must be .* from 0 to 0", lambda g, s: g.begin([PROMPT], [(1, 0)], 0, Cost())),
    ("path's candidate must be", lambda g, s: g.begin([PROMPT], [(0, -1)], 0, Cost())),
    ("paths must be pairs", lambda g, s: g.begin([PROMPT], [0], 0, Cost())),
    ("too many at once", lambda g, s: g.begin([PROMPT], [(0, k) for k in range(10_001)], 0, Cost())),
    ("prompts must hold at least one", lambda g, s: g.begin([], [(0, 0)], 0, Cost())),
    ("cost must be a Cost", lambda g, s: g.begin([PROMPT], [(0, 0)], 0, None)),
    ("number of each path must be .* from 0 to 1", lambda g, s: g.keep(s, [2])),
    ("number of each path must be", lambda g, s: g.keep(s, [-1])),
    ("number of each path must be", lambda g, s: g.keep(s, [True, False])),
    ("paths must be 1 to", lambda g, s: g.keep(s, [])),
    ("paths must be a list", lambda g, s: g.keep(s, 0)),
    ("state must be", lambda g, s: g.keep("state", [0])),
    ("state must be", lambda g, s: g.advance(None)),
    ("state must be", lambda g, s: list(g.stream("state"))),
    ("state must be", lambda g, s: branch(s.tokens, [0], [0])),
    ("begun with", lambda g, s: list(g.with_settings(steps=3).stream(s))),
    ("All 6 steps are done", lambda g, s: g.advance(replace(s, step=6))),
    ("All 6 steps are done", lambda g, s: predict(g.model, replace(s, step=6))),
    ("must have shape", lambda g, s: advance(s, torch.zeros(2, 3, 32))),
    ("tokens must be a tensor", lambda g, s: g.decode([[0] * 16])),
    ("tokens must be a tensor .* torch.float32", lambda g, s: g.decode(IMAGE.float())),
    ("tokens must be a tensor .* torch.bool", lambda g, s: g.decode(IMAGE.bool())),
    ("tokens must be a tensor", lambda g, s: g.decode(IMAGE[:, :9])),
    ("tokens must be a tensor", lambda g, s: g.decode(IMAGE[:0])),
    ("tokens must lie between 0 and 31", lambda g, s: g.decode(IMAGE - 1)),
    ("tokens must lie between 0 and 31", lambda g, s: g.correct(PROMPT, IMAGE + 32, "")),
    ("0 and 31, without MASKED, got -1", lambda g, s: check_tokens(IMAGE - 1, 16, 32)),
    ("0 and 31, or be MASKED, got 32", lambda g, s: check_tokens(IMAGE + 32, 16, 32, masked=True)),
    ("reasons must be", lambda g, s: g.correct(PROMPT, IMAGE, None)),
    ("1 images came with 1 prompts and 2", lambda g, s: g.correct(PROMPT, IMAGE, ["", ""])),
    ("each id of a prompt must be", lambda g, s: encode_prompts(g.model, [[-1]], Cost())),
    ("at least one", lambda g, s: encode_prompts(g.model, [], Cost())),
    ("each of prefixes must be", lambda g, s: encode_prompts(g.model, [None], Cost())),
    ("model must be a Showo", lambda g, s: encode_prompts(g, [[1]], Cost())),
    ("settings must be SamplingSettings", lambda g, s: replace(g, settings=AutoregressiveSettings())),
    ("model must be a Showo", lambda g, s: replace(g, model="showlab/show-o")),
    ("step must be .* from 0 to 17", lambda g, s: masked_after(18, 18, 64, 64, "linear")),
    ("open_positions must be", lambda g, s: masked_after(0, 18, 0, 64, "linear")),
    ("remasking must be", lambda g, s: masked_after(0, 18, 64, 64, "cosine")),
    ("step must be", lambda g, s: remasking_temperature(6, g.settings)),
]


@pytest.mark.parametrize(("said", "call"), BAD_CALLS, ids=map(str, range(len(BAD_CALLS))))
def test_what_cannot_be_drawn_is_said_in_one_sentence(model, said, call):
    with pytest.raises(ValueError, match=said) as error:
        call(whole(model), begin(model, [(0, 0), (1, 0)]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_said_and_not_drawn_from(model, wrong: float):
    damaged = copy.deepcopy(model)
    damaged.showo.model.final_layernorm.weight.data[3] = wrong
    with pytest.raises(ValueError, match=r"logits are not finite at .* weights are damaged, or half precision"):
        generate(damaged, PROMPTS[0], 1)
    state = begin(model, [(0, 0)])
    logits = predict(model, state).clone()
    logits[0, 5, 7] = wrong
    with pytest.raises(ValueError, match="not finite at 1 of 16 positions"):
        advance(state, logits)


def test_time_is_shared_out_among_products_attention_and_all_else(model):
    shares = time_shares(model.config, [3, 5], candidates=2)
    assert list(shares) == ["products", "attention", "all else"] and all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


def test_benchmark_counts_the_flops_that_torch_counts(model):
    state = begin(model, [(1, 0), (1, 1)])
    state, _ = advance(state, predict(model, state))
    with FlopCounterMode(display=False) as counter:
        logits = predict(model, state)
    counted = sum(counter.get_flop_counts()["Global"].values())
    config, layers = model.config, model.config.num_hidden_layers
    longest = len(prefixes(model)[1])
    left, seen = logits.shape[1], 18 + longest
    attention = (
        4 * (18 * (layers - 1) + left) * 2 * config.hidden_size * seen * 2
    )  # which torch does not count on a CPU
    assert decoding_flops(config, 4, longest, 4 * left, 2 * left) == counted + attention
    assert all(speed > 0 for speed in measure(config, [3, 5], 2))


def test_bfloat16_draws_valid_codes_from_float32_probabilities(model):
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    state = begin(rounded, [(0, 0), (1, 0), (2, 1)])
    for _ in range(2):
        logits = predict(rounded, state)
        assert logits.dtype == torch.float32
        state, _ = advance(state, logits)
    alone = predict(rounded, keep(state, [1]))[0]
    together = predict(rounded, state)[1]
    # Sums in another order may round otherwise: to one part in 2**8 of the largest logit at each of a few places.
    assert (together - alone).abs().max() < together.abs().max() * 2**-5
    tokens = generate(rounded, PROMPTS, 5).steps
    assert tokens.min() >= 0 and tokens.max() < model.config.codebook_size
    assert torch.equal(tokens, generate(rounded, PROMPTS, 5).steps)
    # A rounding that turns one choice changes what follows; most images stay as they were, one by one or together.
    same = tokens == generate(rounded, PROMPTS, 5, batch_size=1).steps
    assert same.float().mean() > 0.8


def test_probabilities_do_not_round_with_the_model(model, monkeypatch):
    """1,000 codes all but equally likely: a cumulative sum in bfloat16 would stop growing long before its end."""
    state = begin(copy.deepcopy(model).to(torch.bfloat16), [(0, candidate) for candidate in range(40)])
    _, step = advance(state, torch.zeros(40, 16, 1000))
    assert step.guess.float().mean().item() == pytest.approx(499.5, abs=45)
    assert step.guess.max() > 950
