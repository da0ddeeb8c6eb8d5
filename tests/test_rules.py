"""The rules of the second world: whole, committed with its data, and obeyed."""

import json
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cotgen_lite.experiments.findings import FINDINGS, decide
from cotgen_lite.experiments.rules import RULES, TEST_RUNS, Rule, note_test_run, read_rules, smallest_effect
from cotgen_lite.hub import SHIPPED
from cotgen_lite.metrics import tag_means
from cotgen_lite.prompts import lite_prompts

NEXT = SHIPPED / "next"


def test_every_finding_has_a_rule() -> None:
    rules = read_rules(NEXT)
    assert list(rules) == list(FINDINGS)
    for rule in rules.values():
        assert rule.rows and all(rule.rows) and 0 < rule.smallest_effect <= 0.1
        assert all(isinstance(getattr(rule, field.name), str | tuple | float) for field in fields(Rule))
        assert rule.seen_when and rule.because and any(row in rule.contrast for row in rule.rows)


def test_a_world_without_rules_has_none(tmp_path: Path) -> None:
    assert read_rules(tmp_path) == {} and smallest_effect(tmp_path, "F1") is None
    note_test_run(tmp_path, "results")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("text", ["", "[]", '{"findings": {"F1": {"claim": "x"}}}', '{"findings": {"F1": 3}}'])
def test_damaged_rules_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / RULES).write_text(text)
    with pytest.raises(ValueError, match=r"rules\.json is damaged"):
        read_rules(tmp_path)


def test_each_scoring_of_test_prompts_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / RULES).write_bytes((NEXT / RULES).read_bytes())
    note_test_run(tmp_path, "results")
    note_test_run(tmp_path, "orm_results")
    rows = [json.loads(line) for line in (tmp_path / TEST_RUNS).read_text().splitlines()]
    assert [row["step"] for row in rows] == ["results", "orm_results"]
    assert all(row.keys() == {"step", "date", "commit"} and row["commit"] for row in rows)


def test_rules_were_committed_before_any_test_prompt_was_scored() -> None:
    runs = NEXT / TEST_RUNS
    if not runs.exists():
        pytest.skip("no test prompt was scored yet")
    first = json.loads(runs.read_text().splitlines()[0])
    asked = ["git", "-C", str(NEXT), "cat-file", "-e", f"{first['commit']}:data/next/{RULES}"]
    known = ["git", "-C", str(NEXT), "cat-file", "-e", first["commit"]]
    if subprocess.run(known, capture_output=True).returncode:
        pytest.skip("this copy has not the history of the repository")
    assert subprocess.run(asked, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("mean", "smallest", "seen"),
    [
        (0.1, 0.02, "yes"),
        (0.002, 0.03, "no"),
        (0.002, None, "undecided"),
        (-0.1, 0.02, "no"),
        (0.004, 0.01, "undecided"),
    ],
)
def test_not_seen_needs_all_of_the_interval_below_what_matters(mean: float, smallest: float, seen: str) -> None:
    prompts = lite_prompts("dev")
    values = 0.1 * np.random.default_rng(0).standard_normal(len(prompts))
    values += mean - np.mean(list(tag_means(prompts, values).values()))
    found = decide("x > 0", prompts, values, paper="", smallest=smallest)
    assert found["seen"] == seen and ("bound" in found) == (smallest is not None)
    turned = decide("x < 0", prompts, -values, paper="", below=True, smallest=smallest)
    assert turned["seen"] == seen and turned.get("bound") == found.get("bound")
