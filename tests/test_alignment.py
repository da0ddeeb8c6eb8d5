"""Rounds of DPO start where they say, draw what they say, and are decided by the rules of F5 and F6."""

import copy
import json
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cotgen_lite.align.dpo import DpoTraining, Pair
from cotgen_lite.experiments import dpo_studies, measure_alignment, measuring
from cotgen_lite.experiments import train_generators as alignment
from cotgen_lite.experiments.configs import QUICK
from cotgen_lite.experiments.dpo_studies import ESTIMATES, estimator_noise, gains, measure_far
from cotgen_lite.experiments.findings import by_both_judges, decide_alignment
from cotgen_lite.experiments.measure_alignment import (
    FEW_RIGHT,
    _distinct_among,
    disagreement,
    gains_by_tag,
    layouts,
    layouts_of,
)
from cotgen_lite.experiments.results import read_seconds
from cotgen_lite.experiments.train_generators import (
    align,
    draw_second_round,
    pairs_of,
    publish_aligned,
    settings_of,
)
from cotgen_lite.generate.pipeline import GeneratedPool
from cotgen_lite.geneval import Detection
from cotgen_lite.metrics import expected_best_of, score
from cotgen_lite.pools import Pool, load_pool, pool_prompts, save_pool
from cotgen_lite.prompts import TAGS, lite_prompts, meaning

PROMPTS = pool_prompts("dev")[::4]


def triples(number: int = 6) -> list:
    """Pairs of training prompts: chosen images hold low codes, rejected ones high codes."""
    prompts = lite_prompts("train")[:number]
    return [Pair(prompt, torch.full((64,), 7 + i), torch.full((64,), 900 + i)) for i, prompt in enumerate(prompts)]


def test_a_round_leaves_its_start_alone_and_tells_how_it_went(toy_generator, tmp_path):
    before = {name: weight.clone() for name, weight in toy_generator.model.state_dict().items()}
    settings = DpoTraining(3e-3, batch_size=2, watch_every=2)
    aligned, log = align(toy_generator, triples(), settings, tmp_path / "work", QUICK)
    for name, weight in toy_generator.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in aligned.model.state_dict().items())
    assert log["steps"] == 3 and len(log["margin"]) == 3 and log["learning_rate"] == 3e-3
    assert [done for done, _ in log["divergence"]] == [0, 3] and log["divergence"][0][1] == 0
    publish_aligned(aligned, log, "generator", triples(), tmp_path / "models/dpo", tmp_path / "work/dpo")
    assert list(read_seconds(tmp_path / "work/times.json")["training"]) == ["models/dpo"]
    manifest = json.loads((tmp_path / "models/dpo/manifest.json").read_text())["settings"]
    assert (manifest["start"], manifest["pairs"], manifest["pairs_of_prompts"]) == ("generator", 6, 6)
    assert settings_of(tmp_path, "dpo") == settings
    assert next(aligned.model.parameters()).dtype == torch.float32  # saving in half precision leaves it as it is


def test_nothing_to_learn_from_leaves_the_generator_as_it_was(toy_generator, tmp_path):
    same, log = align(toy_generator, [], DpoTraining(1e-3), tmp_path, QUICK)
    assert log["steps"] == 0 and log["divergence"] == [] and log["seconds"] == 0
    for name, weight in same.model.state_dict().items():
        assert torch.equal(weight, toy_generator.model.state_dict()[name])


def test_the_second_rounds_images_ask_nothing_held_out_and_give_pairs_of_both_labels(toy_generator, tmp_path):
    draw_second_round(toy_generator, tmp_path / "images", 0, tmp_path / "work", QUICK)
    pool = load_pool(tmp_path / "images/pool.safetensors")
    held_out = {meaning(prompt) for split in ("dev", "test") for prompt in lite_prompts(split)}
    assert not held_out & set(map(meaning, pool.prompts))
    assert pool.tokens.shape[:2] == (len(pool.prompts), QUICK.round_two_images)
    labels = np.zeros(pool.correct["template"].shape, dtype=bool)
    labels[0, 0] = labels[1, :] = True  # both labels, one label only, one label only
    save_pool(replace(pool, correct={"template": labels}), tmp_path / "images/pool.safetensors")
    pairs = pairs_of(tmp_path / "images", QUICK, seed=0)
    assert [prompt for prompt, _, _ in pairs] == [pool.prompts[0]]
    assert torch.equal(pairs[0][1], pool.tokens[0, 0])


@pytest.mark.parametrize("name", ["it-dpo", "it-dpo-guided-orm"])
def test_policy_and_reference_of_the_second_round_are_the_first_rounds_policy(monkeypatch, tmp_path, name):
    loaded, seen = [], {}
    monkeypatch.setattr(alignment, "pairs_of", lambda *_, **__: ["pair"])
    monkeypatch.setattr(alignment, "load_generator", lambda name="generator", models=None: loaded.append(name) or name)
    monkeypatch.setattr(alignment, "settings_of", lambda *_: DpoTraining(1e-3))
    monkeypatch.setattr(alignment.Verifier, "from_pretrained", lambda path: path.name)
    monkeypatch.setattr(alignment, "guidance", lambda start, verifier, _: (start, verifier))

    def watch(start, pairs, settings, work, config, online=None):
        seen.update(start=start, pairs=pairs, online=online)
        return SimpleNamespace(model=None), {"seconds": 0}

    monkeypatch.setattr(alignment, "align", watch)
    guide = "orm" if name.endswith("orm") else None
    monkeypatch.setattr(alignment, "publish_aligned", lambda g, log, start, *_: seen.update(said=start))
    alignment.build_it_dpo(tmp_path, tmp_path, QUICK, guide)
    assert loaded == ["dpo"] and seen["start"] == "dpo" and seen["said"] == "dpo" and seen["pairs"] == ["pair"]
    assert seen["online"] == (("dpo", "orm") if name.endswith("orm") else None)


def pools(rates: dict[str, float], sharpness: dict[str, float], n: int = 10) -> dict[str, Pool]:
    """Pools whose images are right at given rates, and verifiers that see it more or less sharply."""
    rng, found = np.random.default_rng(0), {}
    luck = rng.random((len(PROMPTS), n))
    for name, rate in rates.items():
        right = luck < rate
        scores = {m: (s * right + rng.normal(size=right.shape)).astype(np.float32) for m, s in sharpness.items()}
        tokens = torch.zeros(len(PROMPTS), n, 4, dtype=torch.int16)
        found[name] = Pool(PROMPTS, tokens, scores, {"learned": right, "template": right})
    return found


GOOD = {"baseline": 0.3, "dpo": 0.5, "it-dpo": 0.7, "it-dpo-guided-orm": 0.9}


def decided(found: dict[str, Pool]) -> dict[str, dict]:
    """F5 and F6, by both judges."""
    return by_both_judges(lambda judge: decide_alignment(found, 10, judge))


def test_f5_needs_both_rounds_to_gain():
    sharp = {"zs-orm": 1.0, "ft-orm": 2.0}
    assert decided(pools(GOOD, sharp))["F5"]["seen"] == "yes"
    assert decided(pools(GOOD | {"it-dpo": 0.3}, sharp))["F5"]["seen"] == "no"
    level = decided(pools(GOOD | {"it-dpo": 0.5}, sharp))["F5"]
    assert level["seen"] == "undecided" and level["delta"] == 0.0  # that of the part which decides
    assert level["parts"]["dpo − baseline"]["delta"] == pytest.approx(0.2, abs=0.05)
    assert list(level["parts"]) == ["dpo − baseline", "it-dpo − dpo", "it-dpo − ft-orm"]
    assert level["template"]["seen"] == "undecided"


def test_f6_needs_every_integration_above_both_its_parts():
    blunt = {"zs-orm": 0.0, "ft-orm": 0.0}  # best of n is a random choice, so the ORM alone is the baseline
    assert decided(pools(GOOD, blunt))["F6"]["seen"] != "yes"  # the second is it-dpo itself then
    some = {"zs-orm": 0.5, "ft-orm": 1.0}
    every = decided(pools(GOOD, some))["F6"]
    assert every["seen"] == "yes" and len(every["parts"]) == 7
    assert every["delta"] == min(part["delta"] for part in list(every["parts"].values())[:6])
    sure = {"zs-orm": 9.0, "ft-orm": 9.0}  # the ORM finds a right image nearly always: no single image beats that
    assert decided(pools(GOOD, sure))["F6"]["seen"] == "no"


@pytest.mark.parametrize("whole", ["it-dpo+ft-orm", "it-dpo-guided-orm+ft-orm"])
def test_f6_compares_what_it_says(whole):
    found = pools(GOOD, {"zs-orm": 0.5, "ft-orm": 1.0})
    name = whole.removesuffix("+ft-orm")
    learned = {name: pool.correct["learned"] for name, pool in found.items()}
    best = expected_best_of(found[name].scores["ft-orm"], learned[name], 10)
    alone = expected_best_of(found["baseline"].scores["ft-orm"], learned["baseline"], 10)
    parts = decided(found)["F6"]["parts"]
    for part, right in ((name, learned[name].mean(1)), ("ft-orm", alone)):
        wanted = score(PROMPTS, best).overall - score(PROMPTS, right).overall
        assert parts[f"{whole} − {part}"]["delta"] == pytest.approx(wanted, abs=1e-4)


def test_gains_by_tag_are_paired_differences():
    found = pools(GOOD, {"ft-orm": 1.0})
    gains = gains_by_tag(found)
    rows = [row for row, prompt in enumerate(PROMPTS) if prompt.tag == "position"]
    difference = found["dpo"].correct["learned"][rows].mean() - found["baseline"].correct["learned"][rows].mean()
    assert gains["dpo"]["position"]["delta"] == pytest.approx(difference, abs=1e-4)
    low, high = gains["dpo"]["position"]["ci"]
    assert low < difference < high and gains["baseline"]["position"] == {"delta": 0.0, "ci": [0.0, 0.0]}


class Sees:
    """A detector that is told what it sees."""

    def __init__(self, scenes: list) -> None:
        self.scenes = scenes

    def detect(self, images):
        return [[Detection(name, 1.0, (x, y, x + 24, y + 24), color) for name, color, x, y in s] for s in self.scenes]


def test_layouts_differ_by_class_colour_and_place_but_not_by_order_or_a_pixel():
    cat, dog = ("cat", "red", 0, 0), ("dog", "blue", 32, 32)
    scenes = [[cat, dog], [dog, cat], [("cat", "red", 1, 0), dog], [cat], [("cat", "green", 0, 0), dog]]
    scenes += [[("cat", "red", 8, 0), dog], []]
    pictures = SimpleNamespace(decode=lambda tokens: tokens)
    found = layouts_of(pictures, Sees(scenes), torch.zeros(7, 64))
    assert found[0] == found[1] == found[2] and len(set(found)) == 5


def test_layouts_among_right_images_are_expected_over_all_subsets():
    row, right = ["a", "a", "b", "c", "b", "d"], np.array([True, True, True, False, True, True])
    kept = [one for one, good in zip(row, right, strict=True) if good]
    wanted = np.mean([len(set(some)) for some in combinations(kept, 3)])
    assert _distinct_among(row, right, 3) == pytest.approx(wanted)
    assert np.isnan(_distinct_among(row, right, 6))


def test_layouts_are_compared_with_the_baselines(monkeypatch):
    found = pools({"baseline": 1.0, "dpo": 1.0}, {"ft-orm": 1.0})
    rows = iter([list("aabbccddee")] * len(PROMPTS) + [list("aaaaabbbbb")] * len(PROMPTS))
    monkeypatch.setattr(measure_alignment, "layouts_of", lambda *_: next(rows))
    counted = layouts(None, found)
    assert counted["dpo"]["all"] == {"of": 10, "overall": 2.0, "delta": -3.0, "ci": [-3.0, -3.0]}
    assert counted["baseline"]["all"]["overall"] == 5.0 and counted["dpo"]["right"]["pools"] == len(PROMPTS)
    assert counted["dpo"]["right"]["delta"] < -1 and counted["dpo"]["right"]["of"] == FEW_RIGHT


def test_noise_of_estimates(toy_generator, monkeypatch, tmp_path):
    aligned = replace(toy_generator, model=copy.deepcopy(toy_generator.model))
    for parameter in aligned.model.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    models = {"generator": toy_generator, "dpo": aligned}
    monkeypatch.setattr(dpo_studies, "load_generator", lambda name="generator", **_: models[name])
    seen = []
    judged = dpo_studies.log_probability
    monkeypatch.setattr(dpo_studies, "log_probability", lambda *given: seen.append(given[-1]) or judged(*given))
    found = estimator_noise(tmp_path, triples(5))
    shared, apart = seen[0], seen[2 * ESTIMATES]
    assert torch.equal(shared.positions[:, :5], shared.positions[:, 5:]) and torch.equal(
        shared.positions, seen[1].positions
    )
    assert not torch.equal(apart.positions[:, :5], apart.positions[:, 5:])
    ratio = found["two masks"]["scatter"] / found["one mask, shared"]["scatter"]
    assert ratio == pytest.approx(0.5**0.5, abs=0.12)
    assert found["two masks"]["mean"] == pytest.approx(found["one mask, shared"]["mean"], rel=0.2)
    assert estimator_noise(tmp_path, [])["two masks"] == {}


def test_a_gap_of_belief_is_that_of_the_choice(toy_generator, monkeypatch, tmp_path):
    class Believes:
        """Log-odds that fall with the place in the pool."""

        @classmethod
        def from_pretrained(cls, path):
            return cls()

    rng = np.random.default_rng(0)
    prompts = [p for p in lite_prompts("test") if p.tag != "single_object"]
    few = [p for tag in TAGS[1:] for p in [q for q in prompts if q.tag == tag][: QUICK.best_of_many_prompts]]
    odds, right = rng.normal(size=(len(few), 6)).astype(np.float32), rng.random((len(few), 6)) < 0.5
    monkeypatch.setattr(measuring, "load_generator", lambda *_, **__: toy_generator)
    monkeypatch.setattr(measuring, "load_judges", lambda _: {"learned": None, "template": None})
    monkeypatch.setattr(measuring, "Verifier", Believes)
    monkeypatch.setattr(
        measuring, "generate_pool", lambda *_, **__: GeneratedPool(torch.zeros(len(few), 6, 5, 64), None, None)
    )
    monkeypatch.setattr(measuring, "judge_tokens", lambda *_: right)
    monkeypatch.setattr(dpo_studies, "score_tokens", lambda *_: (odds, 0.0))
    measure_far(tmp_path, tmp_path, QUICK)
    found = json.loads((tmp_path / "results/best_of_many.json").read_text())
    assert found["n"] == [1, 2, 5] and found["prompts"] == len(few)
    belief = 1 / (1 + np.exp(-odds.astype(float)))
    gaps = [np.mean(expected_best_of(odds, belief, n) - expected_best_of(odds, right, n)) for n in found["n"]]
    assert [gap["delta"] for gap in found["ft-orm"]["gap"]] == pytest.approx(gaps, abs=1e-3)
    assert found["ft-orm"]["gap_since_one"][2]["delta"] == pytest.approx(gaps[2] - gaps[0], abs=1e-3)
    assert found["oracle"]["learned"]["overall"][2] >= found["ft-orm"]["learned"]["overall"][2]


def test_gains_are_of_the_run_that_each_run_started_from():
    number = len(PROMPTS)
    runs = {"baseline": [np.full(number, 0.5)], "dpo-guided-orm": [np.full(number, 0.7)]}
    runs |= {
        "dpo": [np.full(number, 0.6), np.full(number, 0.4)],
        "it-dpo": [np.full(number, 0.8), np.full(number, 0.3)],
    }
    found = gains(PROMPTS, runs)
    deltas = {name: [run["delta"] for run in gain["runs"]] for name, gain in found.items()}
    assert deltas == {
        "dpo − baseline": [0.1, -0.1],
        "it-dpo − dpo": [0.2, -0.1],
        "it-dpo − baseline": [0.3, -0.2],
        "dpo-guided-orm − dpo": [0.1],
    }
    assert found["it-dpo − dpo"]["mean"]["delta"] == pytest.approx(0.05)


def test_gaming_is_what_only_the_labelling_judge_calls_right():
    learned = np.array([[True, False, False, False], [True, True, False, True]])
    template = np.array([[True, True, True, False], [False, True, False, True]])
    odds = np.array([[0.0, 5.0, 1.0, 2.0], [0.0, 1.0, 2.0, 9.0]], dtype=np.float32)
    pool = Pool(
        PROMPTS[:2], torch.zeros(2, 4, 4, dtype=int), {"ft-orm": odds}, {"learned": learned, "template": template}
    )
    found = disagreement(pool)
    assert (found["all"]["gamed"], found["all"]["missed"], found["all"]["images"]) == (0.25, 0.125, 8)
    assert (found["chosen"]["gamed"], found["chosen"]["missed"], found["chosen"]["images"]) == (0.5, 0.0, 2)
