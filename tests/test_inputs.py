"""Inputs: one plain value out of every kind that means it, one sentence for all others; identities of equal inputs."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.identity import fingerprint, identity, named_by
from cotgen_lite.inputs import (
    finite,
    folder,
    number,
    numbers,
    of_kind,
    one_of,
    shaped,
    text,
    texts,
    verdicts,
    whole,
    with_methods,
    yes_or_no,
)


@pytest.mark.parametrize("three", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_become_ints(three):
    assert whole(three, "n", 1, 3) == 3 and type(whole(three, "n")) is int


@pytest.mark.parametrize("wrong", [2.0, "2", True, np.True_, torch.tensor(True), None, [2], float("nan"), 0, 4])
def test_what_is_no_whole_number_in_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^n must be a whole number from 1 to 3, got "):
        whole(wrong, "n", 1, 3)


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_numbers_become_floats(half):
    assert number(half, "beta", above=0) == 0.5 and type(number(half, "beta")) is float


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), "1", None, True, np.array(True), torch.tensor(True), 0, -1, torch.ones(2), 1j]
)
def test_what_is_no_finite_number_in_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^beta must be a finite number above 0, got "):
        number(wrong, "beta", above=0)


def test_ends_of_ranges_are_said_in_all_their_digits():
    for call, said in (
        (lambda: whole(2**32, "seed", 0, 2**32 - 1), "from 0 to 4294967295, got 4294967296"),
        (lambda: whole(0, "steps", 1_000_000), "of at least 1000000, got"),
        (lambda: number(2e9, "rate", 0.01, 1e9), "from 0.01 to 1000000000, got"),
        (lambda: number(0, "rate", above=1234567), "above 1234567, got"),
        (lambda: numbers([0, 1.0000001], "shares", 0, 1), "from 0 to 1, but they run from 0 to 1.0000001."),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            call()


@pytest.mark.parametrize("wrong", ["", " ", "a" * 5000, "a\0b", __file__, f"{__file__}/a", 3, None, b"a"])
def test_what_no_folder_can_be_called_is_refused(wrong, tmp_path):
    assert folder(str(tmp_path), "work_dir") == tmp_path and folder(tmp_path / "to/come", "work_dir")
    with pytest.raises(ValueError, match=r"^work_dir must be the path of a folder, got "):
        folder(wrong, "work_dir")


def test_words_texts_and_answers_are_checked():
    assert one_of(np.str_("elbo"), "weighting", ["elbo", "mean"]) == "elbo"
    assert type(text(np.str_("a cat"), "prompt")) is str
    assert texts("a cat", "prompt") == ["a cat"] and texts(np.array(["a", "b"]), "prompt") == ["a", "b"]
    assert yes_or_no(np.True_, "progress_bar") is True
    for call, said in (
        (lambda: one_of("elboo", "weighting", ["elbo", "mean"]), "one of 'elbo', 'mean', got 'elboo'"),
        (lambda: one_of(["elbo"], "weighting", ["elbo"]), "one of 'elbo'"),
        (lambda: text(3, "prompt"), "must be a text, got 3 \\(int\\)"),
        (lambda: texts([], "prompt"), "at least one text"),
        (lambda: texts(["a", None], "prompt"), "each of prompt must be a text"),
        (lambda: texts({"a": 1}, "prompt"), "a text or a list of texts"),
        (lambda: texts(np.array("a cat"), "prompt"), "a text or a list of texts, got .*a cat"),
        (lambda: texts({"a", "b"}, "prompt"), "prompt must be a list, as their order counts, got {.*: make it with"),
        (lambda: texts({"a": 1}.keys(), "prompt"), "as their order counts, got dict_keys"),
        (lambda: texts({1: "a"}.values(), "prompt"), "as their order counts, got dict_values"),
        (lambda: numbers(np.ma.array([1, 2], mask=[0, 1]), "scores"), "a value everywhere, but some entries are mask"),
        (lambda: verdicts(np.ma.array([1, 0], mask=[0, 1]), "right", (2,)), "right must have a value everywhere"),
        (lambda: yes_or_no(0, "progress_bar"), "True or False"),
        (lambda: of_kind("orm", "verifier", dict, "a Verifier"), "verifier must be a Verifier, got 'orm'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_mask_that_hides_nothing_is_none():
    assert numbers(np.ma.array([1, 2]), "scores").tolist() == [1, 2]


def test_nan_infinity_and_shapes_are_named():
    scores = torch.tensor([[1.0, float("nan")], [float("-inf"), 0.0]])
    with pytest.raises(ValueError, match="scores must be finite, but 2 of 4 are NaN or infinite"):
        finite(scores, "scores")
    with pytest.raises(ValueError, match="scores must be numbers"):
        finite(np.array(["a"]), "scores")
    assert shaped(scores, "scores", ("P", "N")) is scores and shaped(scores, "scores", ("P", "P")) is scores
    for values in (torch.zeros(2), torch.zeros(2, 3), [[1]]):
        with pytest.raises(ValueError, match=r"scores must have shape \(P, P\)"):
            shaped(values, "scores", ("P", "P"))


def test_verdicts_are_yes_or_no_and_things_have_the_methods_they_need():
    assert verdicts([[1, 0]], "verdicts", ("P", "N")).tolist() == [[True, False]]
    for wrong in ([[0.5, 1]], [[2, 0]], [[-1, 0]], [["a", "b"]], [[float("nan"), 1]]):
        with pytest.raises(ValueError, match="verdicts must be verdicts, each yes or no"):
            verdicts(wrong, "verdicts", ("P", "N"))
    with pytest.raises(ValueError, match=r"must have shape \(P, N\)"):
        verdicts([1, 0], "verdicts", ("P", "N"))
    assert with_methods("a", "word", ("upper", "lower"), "a word") == "a"
    for wrong in (None, 3, str):
        with pytest.raises(ValueError, match="word must be a word, got"):
            with_methods(wrong, "word", ("upper",), "a word")


@dataclasses.dataclass(frozen=True)
class Asked:
    what: str
    n: int


def test_equal_inputs_of_any_kind_have_one_identity():
    assert identity(Asked("a", 2), {"b": 1.5, "a": (1, 2)}) == identity(
        Asked(np.str_("a"), np.int64(2)), {"a": [1, 2], "b": np.float64(1.5)}
    )
    ones = torch.ones(2, 3)
    assert identity(ones) == identity(ones.numpy())
    different = [
        identity(x)
        for x in (ones, torch.ones(3, 2), 0 * ones, ones.long(), Asked("a", 2), Asked("a", 3), [], b"a", b"b")
    ]
    assert len(set(different)) == len(different)
    assert identity({"a", 1, None}) == identity({None, 1, "a"})
    keyed = [{1: "a", "1": "b"}, {"1": "b"}, {1: "b"}, {"1": "b", 1: "c"}, {None: 1}, {"None": 1}, {(1, 2): 1}]
    assert len(set(map(identity, keyed))) == len(keyed)
    assert identity({1: "a", "1": "b"}) == identity({"1": "b", np.int64(1): "a"})
    for unnameable in (float("nan"), len, object(), np.array(["a", 1], dtype=object)):
        with pytest.raises(ValueError, match="part of what a run is named by"):
            identity(unnameable)


def test_identities_do_not_depend_on_the_process():
    code = "from cotgen_lite.identity import identity; print(identity({'b', 'a', 'c'}, {'y': 1, 'x': 2}))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_a_fingerprint_tells_weights_and_settings_apart():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint((one,), 1) == fingerprint((one,), 1)
    assert (
        len({fingerprint((one,), 1), fingerprint((other,), 1), fingerprint((one,), 2), fingerprint((one, other))}) == 4
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(1.0, dtype=torch.float64), torch.tensor(1 + 1e-12, dtype=torch.float64)),
        (torch.tensor(2**24), torch.tensor(2**24 + 1)),
        (torch.tensor(1 + 0j), torch.tensor(1 + 1j)),
        (torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0]).to(torch.float8_e4m3fn), torch.tensor([2.0]).to(torch.float8_e4m3fn)),
    ],
)
def test_a_fingerprint_tells_values_apart_that_float32_does_not(one, other):
    def named(values: torch.Tensor) -> str:
        model = torch.nn.Module()
        model.register_buffer("values", values)
        return fingerprint((model,))

    assert named(one) == named(one.clone()) != named(other)


class Scorer:
    def __init__(self, sign: int = 1, **more: object) -> None:
        self.sign, self.passes, self._cache = sign, 0, object()
        vars(self).update(more)

    def at(self, odds: int) -> bool:
        return odds > self.sign


def test_judges_are_named_by_all_that_their_answers_depend_on():
    def named(judge: object) -> str:
        networks, data = named_by(judge)
        return fingerprint(networks, data)

    asked, network = Scorer(), torch.nn.Linear(2, 2)
    asked.passes = 7
    assert named(asked) == named(Scorer()) and named(Scorer(model=network)) == named(Scorer(model=network))
    tempered = torch.nn.Identity()
    tempered.temperature = 2.0
    described = [Scorer(described=["yes", "no"]), Scorer(described=["no", "yes"])]
    judges = [asked, Scorer(-1), Scorer(model=network), Scorer(tail=torch.nn.Linear(2, 2)), tempered, *described]
    judges += [Scorer(tails=[torch.nn.Linear(2, 2)]), Scorer(tails={"one": (torch.nn.Linear(2, 2),)})]
    assert len(set(map(named, judges))) == len(judges)
    assert named_by(network, Scorer(model=network))[0] == [network]


def test_judges_are_named_by_the_functions_that_they_hold():
    def at_least(bound: int) -> Callable[[int], bool]:
        return lambda odds: odds >= bound

    def rules() -> list[Any]:
        ways = [max, min, lambda odds: odds > 1, lambda odds: odds > 2, lambda odds: odds < 1, at_least(1), at_least(2)]
        return [*ways, partial(max, 1), partial(max, 2), partial(at_least(1)), Scorer(1).at, Scorer(2).at]

    def names() -> list[str]:
        return [fingerprint(*named_by(Scorer(rules=[rule]))) for rule in rules()]

    assert len(set(names())) == len(rules())
    assert names() == names()


def test_a_fingerprint_tells_buffers_apart():
    one = torch.nn.BatchNorm2d(2)
    before = fingerprint((one,), 1)
    one.running_mean += 1
    assert fingerprint((one,), 1) != before
