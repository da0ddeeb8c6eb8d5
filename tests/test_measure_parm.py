"""PARM read off a pool: what `parm_search` does, path by path, and what it costs, for every n."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_verifiers import Moody

from cotgen_lite.experiments.findings import decide_best, decide_f7
from cotgen_lite.experiments.measure_parm import at_equal_cost, order_within_rows, unit_costs
from cotgen_lite.experiments.measuring import by_step
from cotgen_lite.lite.verifier import lite_processor, lite_verifier
from cotgen_lite.metrics import expected_best_of, roc_auc_within_prompts
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import TAGS, lite_prompts
from cotgen_lite.verify.pool_search import (
    Opinions,
    Outcome,
    ask_of_paths,
    clear_at,
    load_opinions,
    save_opinions,
    spent_by_best_of_n,
    spent_by_search,
    stop_paths,
    stopping,
)
from cotgen_lite.verify.search import Assess, best_of_n, parm_search
from cotgen_lite.verify.verifier import Verifier

PROMPTS = lite_prompts("train")[:9:4]


@pytest.mark.parametrize("assess", ["every", "first"])
# With a doubt of 2.0 every path is stopped at its first clear step.
@pytest.mark.parametrize(("doubt", "first_step"), [(0.0, 1), (2.0, 1), (0.5, 3)])
def test_a_pool_tells_what_the_search_does(
    toy_generator: Any, tmp_path: Path, assess: Assess, doubt: float, first_step: int
) -> None:
    n, verifier = 5, Moody(doubt)
    out = toy_generator([prompt.text for prompt in PROMPTS], n, seed=3)
    guesses = out.steps.unflatten(0, (len(PROMPTS), n))
    opinions = ask_of_paths(toy_generator, verifier, guesses, PROMPTS, tmp_path, first_step)  # type: ignore[arg-type]
    outcome = stop_paths(opinions, assess, first_step)
    passes = []
    for row, prompt in enumerate(PROMPTS):
        found = parm_search(toy_generator, verifier, prompt.text, n, 3, assess, first_step)  # type: ignore[arg-type]
        survived = [path.stopped_at is None for path in found.paths]
        assert outcome.survived[row].tolist() == survived
        assert int(outcome.order[row].argmax()) == found.kept.candidate
        ran = outcome.steps[row].copy()
        if not any(survived):
            ran[found.kept.candidate] = guesses.shape[2]
        assert ran.tolist() == [len(path.guesses) for path in found.paths]
        passes.append([found.cost.generator_passes, found.cost.verifier_passes, not any(survived)])
    spent = spent_by_search(outcome, n, guesses.shape[2])
    told = [spent["generator_passes"], spent["guesses_read"] + spent["finished_read"], spent["none_left"]]
    assert told == pytest.approx(np.mean(passes, axis=0), abs=1e-4)
    assert (outcome.survived.any() or doubt == 2.0) and not outcome.survived.all()


def test_cost_and_choice_of_fewer_paths_are_means_over_subsets() -> None:
    rng, steps, number, n = np.random.default_rng(0), 6, 6, 2
    odds = SimpleNamespace(clarity=rng.normal(size=(3, number, steps - 1)), potential=rng.normal(size=(3, number, 5)))
    opinions = Opinions(odds.clarity, odds.potential + 0.3, rng.normal(size=(3, number)))
    outcome, correct = stop_paths(opinions), rng.random((3, number)) < 0.5
    right, costs = [], []
    for row in range(3):
        for some in combinations(range(number), n):
            alive = [path for path in some if outcome.survived[row, path]]
            last = {
                path: opinions.potential[row, path, outcome.steps[row, path] - 1] for path in some if path not in alive
            }
            best = max(alive, key=lambda p: opinions.selection[row, p]) if alive else max(last, key=lambda p: last[p])
            ran = [int(outcome.steps[row, path]) for path in some]
            more = 0 if alive else steps - int(outcome.steps[row, best])
            asked = sum(min(r, steps - 1) for r in ran)
            right.append(correct[row, best])
            costs.append([4 + 2 * (sum(ran) - n) + 2 * more, asked, max(1, len(alive)), not alive])
    assert expected_best_of(outcome.order, correct, n).mean() == pytest.approx(np.mean(right))
    spent = spent_by_search(outcome, n, steps)
    assert list(spent.values()) == pytest.approx(np.mean(costs, axis=0), abs=1e-4)
    assert 0 < spent["none_left"] < 1


UNITS = {
    "generator_pass": {"seconds": 1.0, "flops": 2.0},
    "decode": {"seconds": 0.0, "flops": 0.0},
    "read": {"seconds": 3.0, "flops": 1.0},
    "read_twice": {"seconds": 5.0, "flops": 0.0},
}


def a_pool(correct: np.ndarray, orm: np.ndarray, number: int = 0) -> Pool:
    """A pool of training prompts with these verdicts (both judges') and the fine-tuned ORM's scores."""
    prompts = tuple(
        prompt for tag in TAGS for prompt in [p for p in lite_prompts("train") if p.tag == tag][: number or 1]
    )
    prompts = prompts[: len(correct)]
    tokens = torch.zeros(*correct.shape, 64, dtype=torch.int16)
    return Pool(prompts, tokens, {"ft-orm": orm.astype(np.float32)}, {"learned": correct, "template": correct})


def test_stops_are_counted_by_hand() -> None:
    no, yes = -1.0, 1.0
    clarity = np.array([[[no, yes, yes], [yes, yes, yes], [no, no, no], [no, no, yes]]])
    potential = np.array([[[yes, yes, no], [no, yes, yes], [no, no, no], [yes, yes, yes]]])
    opinions = Opinions(clarity, potential, np.zeros((1, 4)))
    assert clear_at(opinions) == [0.25, 0.25, 0.25, 0.25]  # steps 1, 2, 3, never
    every, first = stop_paths(opinions, "every"), stop_paths(opinions, "first")
    assert every.steps.tolist() == [[3, 1, 4, 4]] and every.survived.tolist() == [[False, False, True, True]]
    assert first.steps.tolist() == [[4, 1, 4, 4]] and first.survived.tolist() == [[True, False, True, True]]
    pool = a_pool(np.array([[True, False, False, False]]), np.zeros((1, 4)))
    assert stopping(every, pool) == {
        "stopped": 0.5, "precision": 0.5, "recall": 0.3333, "mean_step": 2.0, "pools_lost": 1.0, "none_left": 0.0
    }  # fmt: skip
    assert stopping(first, pool) == {
        "stopped": 0.25, "precision": 1.0, "recall": 0.3333, "mean_step": 1.0, "pools_lost": 0.0, "none_left": 0.0
    }  # fmt: skip


def test_prompts_without_a_right_image_lose_none() -> None:
    """Only what could have been right counts as lost."""
    clarity, potential = np.ones((3, 2, 1)), -np.ones((3, 2, 1))  # all paths are stopped
    outcome = stop_paths(Opinions(clarity, potential, np.zeros((3, 2))))
    pool = a_pool(np.array([[True, False], [False, False], [False, False]]), np.zeros((3, 2)))
    assert stopping(outcome, pool)["pools_lost"] == 1.0
    none = a_pool(np.zeros((3, 2), dtype=bool), np.zeros((3, 2)))
    assert stopping(outcome, none)["pools_lost"] == 0.0


def test_potential_is_held_against_the_end_of_its_own_path(toy_generator: Any, tmp_path: Path) -> None:
    out = toy_generator([prompt.text for prompt in PROMPTS], 4, seed=1)
    guesses = out.steps.unflatten(0, (len(PROMPTS), 4))
    verifier = Moody()
    at_step_2 = torch.stack([verifier.clarity_and_potential(toy_generator.decode(g[:, 2]), "")[1] for g in guesses])
    # As if the paths ended as their potential at step 3 foretells: the AUC is 1 there.
    ends = (at_step_2 > at_step_2.median(dim=1, keepdim=True).values).numpy()
    opinions = ask_of_paths(toy_generator, verifier, guesses, PROMPTS, tmp_path, stop=False)  # type: ignore[arg-type]
    assert not np.isnan(opinions.potential).any()
    areas = by_step(roc_auc_within_prompts, opinions.potential, ends)
    assert areas[2] == 1 and len(areas) == guesses.shape[2] - 1
    assert by_step(roc_auc_within_prompts, opinions.potential, ~ends)[2] == 0


def opinions(clarity: Any = None, potential: Any = None, selection: Any = None) -> Opinions:
    """Of two prompts with three paths of five steps, all 0 but what is given."""
    zeros = np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.zeros((2, 3))
    return Opinions(*(z if g is None else g for z, g in zip(zeros, (clarity, potential, selection), strict=True)))


NAN = np.full((2, 3, 4), np.nan)
GUESSES = torch.zeros(2, 3, 5, 64, dtype=torch.int16)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: opinions(potential=np.zeros((2, 3, 5))), r"potential must have shape \(2, 3, 4\)"),
        (lambda: opinions(selection=np.zeros((2, 4))), r"clarity must have shape \(2, 4, T"),
        (lambda: opinions(selection=np.full((2, 3), np.nan)), "selection must be finite"),
        (lambda: opinions(clarity=np.full((2, 3, 4), np.inf)), "clarity where it was asked must be finite"),
        (lambda: opinions(clarity=[[[0.0]]]), "clarity must have shape"),
        (lambda: Outcome(np.ones((2, 3), int), np.full((2, 3), 2), np.zeros((2, 3))), "survived must be verdicts"),
        (lambda: Outcome(np.ones((2, 3), int), np.ones((2, 3), bool), np.full((2, 3), np.nan)), "order must be finite"),
        (lambda: Outcome(np.ones((2, 4), int), np.ones((2, 3), bool), np.zeros((2, 3))), "steps must have shape"),
        (lambda: Outcome(np.zeros((2, 3), int), np.ones((2, 3), bool), np.zeros((2, 3))), "steps must be whole"),
        (lambda: Outcome(np.ones((2, 3)), np.ones((2, 3), bool), np.zeros((2, 3))), "steps must be whole"),
        (lambda: Outcome(np.ones((2, 3), int), np.ones((2, 3), bool), np.zeros((2, 3)), 0), "first_step must be"),
        (lambda: stop_paths(None), "opinions must be Opinions"),  # type: ignore[arg-type]
        (lambda: stop_paths(opinions(), "last"), "assess must be one of"),  # type: ignore[arg-type]
        (lambda: stop_paths(opinions(), first_step=6), "first_step must be a whole number from 1 to 5"),
        (lambda: stop_paths(opinions(NAN)), "do not say what PARM does when it asks from step 1"),
        (lambda: spent_by_search(stop_paths(opinions()), 4, 5), "n must be a whole number from 1 to 3"),
        (lambda: spent_by_search(stop_paths(opinions()), 2, 4), "steps must be a whole number of at least 5"),
        (lambda: spent_by_search(stop_paths(opinions()), 2, 5, 3), "length must be a whole number of at least 5"),
        (lambda: spent_by_search(stop_paths(opinions()), 2, 5, 64, "no"), "preview must be True or False"),  # type: ignore[arg-type]
        (lambda: spent_by_best_of_n(0, 5), "n must be a whole number of at least 1"),
        (lambda: clear_at(np.zeros((2, 3, 4))), "opinions must be Opinions"),  # type: ignore[arg-type]
        (lambda: stopping(stop_paths(opinions()), a_pool(np.ones((3, 3), bool), np.zeros((3, 3)))), "must have shape"),
        (lambda: stopping(stop_paths(opinions()), a_pool(np.full((2, 3), 2), np.zeros((2, 3)))), "must be"),
        (lambda: save_opinions(Path("none"), None), "opinions must be Opinions"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_opinions_and_outcomes_that_cannot_be_are_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"generator": "g"}, "generator must be"),
        ({"verifier": "parm"}, "verifier must be"),
        ({"guesses": GUESSES[0]}, "guesses must have shape"),
        ({"guesses": GUESSES.numpy()}, "guesses must be a tensor"),
        ({"guesses": GUESSES[:, :, :1]}, "two steps at least"),
        ({"prompts": PROMPTS[:1]}, "guesses must have shape"),
        ({"prompts": ["a", "b"]}, "Each of prompts must be a Prompt"),
        ({"prompts": None}, "prompts must be a list of Prompts"),
        ({"first_step": 0}, "first_step must be"),
        ({"first_step": 6}, "first_step must be a whole number from 1 to 5"),
        ({"stop": "no"}, "stop must be True or False"),
        ({"work_dir": None}, "work_dir must be the path of a folder"),
    ],
)
def test_what_nobody_can_be_asked_about_is_refused(toy_generator: Any, tmp_path: Path, change: dict, says: str) -> None:
    given = {
        "generator": toy_generator,
        "verifier": Moody(),
        "guesses": GUESSES,
        "prompts": PROMPTS[:2],
        "work_dir": tmp_path,
    }
    with pytest.raises(ValueError, match=says):
        ask_of_paths(**(given | change))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])  # the last is too large for half precision
def test_opinions_that_are_not_finite_are_not_kept(toy_generator: Any, tmp_path: Path, value: float) -> None:
    verifier = Moody()
    for name in ("_mood", "score"):
        setattr(verifier, name, lambda images, *_: torch.full((len(images),), value))
        with pytest.raises(ValueError, match=r"log-odds that Moody gave for 'a photo of .* must be finite"):
            ask_of_paths(toy_generator, verifier, GUESSES, PROMPTS[:2], tmp_path)  # type: ignore[arg-type]
        verifier = Moody()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_opinions_are_kept_apart_by_all_that_they_hang_on(toy_generator: Any, tmp_path: Path) -> None:
    verifier = Verifier(lite_verifier(toy_generator.text_tokenizer), lite_processor(toy_generator.text_tokenizer))
    given: dict = {"guesses": GUESSES[:, :1], "prompts": PROMPTS[:2], "first_step": 4}
    asked = {tuple(sorted(path.name for path in tmp_path.iterdir()))}

    def ask(**change: Any) -> int:
        ask_of_paths(toy_generator, verifier, work_dir=tmp_path, **(given | change))
        asked.add(tuple(sorted(path.name for path in tmp_path.iterdir())))
        return len(asked) - 1

    template = verifier.processor.chat_template
    assert ask() == 1 and ask(first_step=np.int64(4)) == 1 and ask(prompts=list(PROMPTS[:2])) == 1  # the same
    assert ask(guesses=GUESSES[:, :1] + 1) == 2 and ask(prompts=PROMPTS[1:3]) == 3 and ask(stop=False) == 4
    assert ask(first_step=5) == 5
    verifier.processor.chat_template = template.replace("<|endoftext|>", "")
    assert ask() == 6
    verifier.processor.chat_template = template
    verifier.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert ask() == 7
    verifier.model.lm_head.weight.data[0] += 1
    assert ask() == 8


class Plain:
    """A verifier without a network; its opinions are all alike."""

    def __init__(self, odds: float) -> None:
        self.odds = odds

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        return torch.full((len(images),), self.odds)

    def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.score(images, prompt),) * 2


def test_a_verifier_without_a_network_can_be_asked_and_is_told_by_what_it_holds(
    toy_generator: Any, tmp_path: Path
) -> None:
    for odds in (1.0, -1.0):
        opinions = ask_of_paths(toy_generator, Plain(odds), GUESSES, PROMPTS[:2], tmp_path)  # type: ignore[arg-type]
        assert (opinions.selection == odds).all()


def test_paths_that_were_not_asked_far_enough_are_not_taken_for_survivors() -> None:
    clarity, potential = np.ones((2, 3, 4)), -np.ones((2, 3, 4))
    clarity[:, :, 1:], potential[:, :, 1:] = np.nan, np.nan  # all are stopped after the first step
    some = opinions(clarity, potential)
    assert not stop_paths(some).survived.any() and not stop_paths(some, "first").survived.any()
    with pytest.raises(ValueError, match="asks from step 2 on: ask for them again with that first_step, or with stop"):
        stop_paths(some, first_step=2)
    hopeful = opinions(clarity, -potential)  # clear and with potential: "first" has nothing more to ask, "every" has
    assert stop_paths(hopeful, "first").survived.all()
    with pytest.raises(ValueError, match="do not say"):
        stop_paths(hopeful)


def test_opinions_come_back_from_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = Opinions(rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3)))
    save_opinions(tmp_path / "some.safetensors", some)
    back = load_opinions(tmp_path / "some.safetensors")
    for name, values in vars(some).items():
        np.testing.assert_array_equal(vars(back)[name], values.astype(np.float16).astype(np.float32))


def test_a_pool_keeps_the_order_within_rows() -> None:
    order = np.array([[0.1, 0.7, 0.1, -0.5], [3.0, 2.0, 1.0, 0.0]])
    assert order_within_rows(order).tolist() == [[1, 2, 1, 0], [3, 2, 1, 0]]


def test_equal_cost_means_as_many_passes_seconds_or_flops() -> None:
    rng, steps = np.random.default_rng(0), 5
    correct, orm = rng.random((6, 4)) < 0.5, rng.normal(size=(6, 4))
    pool = a_pool(correct, orm)
    # One and the same choice, and every path runs to its end: at equal passes the two are the same.
    outcome = Outcome(np.full((6, 4), steps), np.ones((6, 4), dtype=bool), orm)
    found = at_equal_cost(pool, outcome, UNITS, steps)
    assert [(one["orm_n"], one["parm_n"], one["delta"]) for one in found["generator_passes"]] == [
        (n, n, 0) for n in (2, 3, 4)
    ]
    # Best of n takes 4 + 8n + 3n seconds, PARM 5 · 4n more: 48 for four images, or for PARM's (48 − 4) / 31 paths.
    last = found["seconds"][-1]
    assert (last["orm_n"], last["cost"], last["parm_n"]) == (4, 48.0, round(44 / 31, 2))
    between = [expected_best_of(orm, correct, n) for n in (1, 2, 4)]
    gain = between[0] + (44 / 31 - 1) * (between[1] - between[0]) - between[2]
    assert last["delta"] == pytest.approx(gain.mean(), abs=1e-4)
    # Paths stopped at the first step save passes: PARM gets more paths for them, as many as the pool has.
    half = Outcome(np.tile([1, 1, steps, steps], (6, 1)), np.tile([False, False, True, True], (6, 1)), orm)
    saved = at_equal_cost(pool, half, UNITS, steps)["generator_passes"]
    assert saved and all(one["parm_n"] > one["orm_n"] for one in saved)


def test_unit_costs_add_up_to_a_search(toy_generator: Any) -> None:
    prompt, n = PROMPTS[0], 3
    verifier = Verifier(lite_verifier(toy_generator.text_tokenizer), lite_processor(toy_generator.text_tokenizer))
    units = unit_costs(toy_generator, verifier, [prompt], n)
    assert all(unit["seconds"] > 0 and unit["flops"] > 0 for unit in units.values())
    assert units["read"]["flops"] < units["read_twice"]["flops"]
    found = best_of_n(toy_generator, verifier, prompt.text, n, seed=0)
    spent = spent_by_best_of_n(n, toy_generator.settings.steps)
    assert (spent["generator_passes"], spent["finished_read"]) == (found.cost.generator_passes, n)


def test_findings_hold_parm_against_the_others() -> None:
    correct = np.tile([True, False], (6, 1))
    good, bad = np.tile([1.0, 0.0], (6, 1)), np.tile([0.0, 1.0], (6, 1))
    stopped = Outcome(np.full((6, 2), 18), np.ones((6, 2), dtype=bool), good)
    pools = {
        name: a_pool(correct, bad) for name in ("baseline", "dpo", "it-dpo", "it-dpo-guided-orm", "it-dpo-guided-parm")
    }
    equal = {"seconds": [{"orm_n": 2, "parm_n": 1.0, "seen": "no", "delta": -0.2, "ci": [-0.3, -0.1]}]}
    one = np.arange(6)[:, None] % 2 == 0
    prm = replace(pools["baseline"], tokens=pools["baseline"].tokens[:, :1], scores={}, correct={"learned": one})
    f7 = decide_f7(pools["baseline"], prm, stopped, 2, equal, "learned")
    assert f7["seen"] == "yes" and f7["parts"]["parm − ft-orm"]["delta"] == 1.0
    assert f7["parts"]["parm − ft-prm"]["delta"] == 0.5
    assert "at equal seconds" in f7["note"]
    for name in ("baseline", "dpo", "it-dpo", "it-dpo-guided-parm"):
        pools[name].scores["parm"] = order_within_rows(stopped.order)
    best = decide_best(pools, 2, "learned")
    assert best["F8"]["seen"] == "undecided" and best["F8"]["delta"] == 0  # all PARM rows are alike
    assert "surely above 10 of 13 rows" in best["F8"]["note"]
    # Two objects, position and attribute binding gain a half as well as the others do: no difference.
    assert best["F9"]["delta"] == 0
    easy = [prompt.tag in ("single_object", "counting", "colors") for prompt in pools["baseline"].prompts]
    pools["baseline"].correct["learned"][easy] = True
    assert decide_best(pools, 2, "learned")["F9"]["delta"] == pytest.approx(0.5)
