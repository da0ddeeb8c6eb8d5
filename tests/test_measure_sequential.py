"""PARM on next-token generators: what a pool tells is what the search does, at its cost; and F10's rule."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from small_verifiers import Moody

from cotgen_lite.experiments import measuring
from cotgen_lite.experiments.configs import QUICK
from cotgen_lite.experiments.findings import decide_f10
from cotgen_lite.experiments.measure_sequential import add_choices, measure_fills
from cotgen_lite.experiments.measuring import Bench
from cotgen_lite.experiments.results import read_rows
from cotgen_lite.generate.autoregressive import (
    AutoregressiveConfig,
    AutoregressiveGenerator,
    AutoregressiveModel,
    AutoregressiveSettings,
    Fill,
)
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.metrics import roc_auc_within_prompts
from cotgen_lite.pools import Pool, stratified_subset
from cotgen_lite.prompts import TAGS, lite_prompts
from cotgen_lite.verify.pool_search import Outcome, ask_of_paths, spent_by_search, stop_paths
from cotgen_lite.verify.search import best_of_n, parm_search

PROMPTS = lite_prompts("train")[:9:4]


@pytest.fixture(scope="module")
def generator() -> AutoregressiveGenerator:
    torch.manual_seed(0)
    words = lite_tokenizer()
    config = AutoregressiveConfig(
        codebook_size=1024,
        grid=8,
        text_length=16,
        text_width=16,
        text_vocab_size=len(words),
        text_pad_id=words.pad_token_id,
        text_cosine=1.0,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        initializer_range=0.3,
    )
    return AutoregressiveGenerator(
        AutoregressiveModel(config).eval(), words, Magvit(lite_magvit_config()).eval(), AutoregressiveSettings(1.5, 8)
    )


@pytest.mark.parametrize("fill", ["grey", "likeliest"])
@pytest.mark.parametrize("doubt", [-0.9, 2.0])  # with a doubt of 2 every path is stopped at its first clear step
def test_a_pool_tells_what_the_search_does(
    generator: AutoregressiveGenerator, tmp_path: Path, fill: Fill, doubt: float
) -> None:
    n, verifier = 4, Moody(doubt)
    filled = generator.with_settings(fill=fill)
    guesses = filled([prompt.text for prompt in PROMPTS], n, seed=3).steps.unflatten(0, (len(PROMPTS), n))
    opinions = ask_of_paths(filled, verifier, guesses, PROMPTS, tmp_path)  # type: ignore[arg-type]
    outcome, passes = stop_paths(opinions), []
    for row, prompt in enumerate(PROMPTS):
        found = parm_search(filled, verifier, prompt.text, n, seed=3)  # type: ignore[arg-type]
        assert outcome.survived[row].tolist() == [path.stopped_at is None for path in found.paths]
        assert int(outcome.order[row].argmax()) == found.kept.candidate
        for path in found.paths:
            assert torch.equal(torch.stack(path.guesses), guesses[row, path.candidate, : len(path.guesses)])
        passes.append([found.cost.generator_passes, found.cost.verifier_passes])
    preview, few = fill == "likeliest", []
    spent = spent_by_search(outcome, n, 8, 64, preview)
    told = [spent["generator_passes"], spent["guesses_read"] + spent["finished_read"]]
    assert told == pytest.approx(np.mean(passes, axis=0), abs=1e-4)
    assert outcome.survived.any() == (doubt < 0) and not outcome.survived.all()
    for some in combinations(range(n), 2):  # what two of the paths cost is the mean over all pairs
        part = Outcome(*(values[:, some] for values in (outcome.steps, outcome.survived, outcome.order)))
        few.append(list(spent_by_search(part, 2, 8, 64, preview).values()))
    two = spent_by_search(outcome, 2, 8, 64, preview)
    assert list(two.values()) == pytest.approx(np.mean(few, axis=0), abs=2e-4)


def test_costs_of_choices_are_the_searches_own(generator: AutoregressiveGenerator, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    correct, order = np.array([[True, False, False]] * 3), np.arange(9.0, dtype=np.float32).reshape(3, 3)
    tokens = torch.zeros(3, 3, 64, dtype=torch.int16)
    scores = dict.fromkeys(("parm", "parm-retaught", "ft-orm-retaught"), order)
    pool = Pool(PROMPTS, tokens, scores, {"learned": correct, "template": correct})
    whole = Outcome(np.full((3, 3), 8), np.ones((3, 3), dtype=bool), order)
    units = {key: {"seconds": 1.0, "flops": 2.0} for key in ("generator_pass", "decode", "read", "read_twice")}
    bench = Bench(tmp_path, tmp_path / "work", replace(QUICK, pool_size=3), "test")
    add_choices(bench, generator, pool, {"parm": whole, "parm-retaught": whole}, units)
    rows = {(row["method"], row["n"], row["judge"]): row for row in read_rows(tmp_path / "results/scores.jsonl")}
    found = best_of_n(generator, Moody(), PROMPTS[0].text, 3, seed=0)  # type: ignore[arg-type]
    cost = rows["seq:ft-orm-retaught", 3, "learned"]["cost"]
    assert (cost["generator_passes"], cost["verifier_passes"]) == (found.cost.generator_passes, 3)
    seconds = bench.seconds("scores")["seq:ft-orm-retaught of sequential, n 3, seed 0"]
    assert seconds == found.cost.generator_passes + 3 + 3  # passes, decoding, reading
    parm = rows["seq:parm", 3, "learned"]["cost"]
    assert parm["generator_passes"] == cost["generator_passes"] and parm["verifier_passes"] == 3 * 7 + 3


def test_fills_are_compared_run_by_run(
    generator: AutoregressiveGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, prompt_stride=100, generator_dev_images=4)
    prompts = stratified_subset(lite_prompts("dev"), 100)
    right = np.random.default_rng(0).permuted(np.tile([True, True, False, False], (len(prompts), 1)), axis=1)
    monkeypatch.setattr(measuring, "judge_tokens", lambda *_: right)
    monkeypatch.setattr(measuring, "load_judges", lambda _: {"template": None})
    moody, grumpy = Moody(-0.9), Moody(0.2)
    verifiers: Any = {"zs-orm": moody, "parm": moody, "parm-retaught": grumpy}
    found = measure_fills(Bench(tmp_path, tmp_path, config, "test"), generator, verifiers)
    for fill in get_args(Fill):
        out = generator.with_settings(fill=fill)([prompt.text for prompt in prompts], 4, seed=5)
        for run in (0, 6):
            odds, clear = np.zeros((2, *right.shape))
            for row, paths in enumerate(out.steps.unflatten(0, (len(prompts), 4))):
                images = generator.decode(paths[:, run])
                odds[row] = moody.score(images, [prompts[row].text] * 4)
                clear[row] = grumpy.clarity_and_potential(images, prompts[row].text)[0] > 0
            told = found[fill]["auc_within_prompts"]["zs-orm"][run]
            assert told == pytest.approx(roc_auc_within_prompts(odds, right), abs=1e-4)
            assert found[fill]["parm-retaught_clear"][run] == pytest.approx(clear.mean(), abs=1e-4)
    assert found["likeliest"]["generator_passes"] > 4 * found["grey"]["generator_passes"]


def test_f10_asks_that_each_method_gains() -> None:
    rng = np.random.default_rng(0)
    prompts = tuple(p for tag in TAGS for p in [p for p in lite_prompts("train") if p.tag == tag][:4])
    correct = rng.random((len(prompts), 6)) < 0.5
    correct[:, 0], correct[:, 1] = True, False
    good, bad = correct.astype(np.float32), -correct.astype(np.float32)
    scores = dict.fromkeys(("zs-orm", "ft-orm", "parm", "ft-orm-retaught", "parm-retaught"), good)
    tokens = torch.zeros(*correct.shape, 64, dtype=torch.int16)
    pool = Pool(prompts, tokens, scores, {"learned": correct})
    always = replace(pool, scores={}, correct={"learned": np.ones_like(correct)})
    assert decide_f10(pool, always, 6, "learned")["seen"] == "yes"
    assert decide_f10(pool, pool, 6, "learned")["seen"] == "undecided"  # DPO that changes nothing
    worse = replace(pool, scores=scores | {"parm": bad})
    found = decide_f10(worse, always, 6, "learned")
    assert found["seen"] == "no" and found["parts"]["parm − seq:baseline"]["seen"] == "no"
    assert decide_f10(replace(pool, scores=scores | {"parm-retaught": bad}), always, 6, "learned")["seen"] == "yes"
