"""Measurements: AUC by brute force, findings decided by their interval."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cotgen_lite.experiments.findings import decide, findings, merge_findings
from cotgen_lite.experiments.results import (
    merge_rows,
    read_rows,
    results,
    score_rows,
    steps_profile,
    write_rows,
)
from cotgen_lite.hub import data_root
from cotgen_lite.pools import pool_prompts
from cotgen_lite.prompts import TAGS, lite_prompts


def test_decide_needs_the_interval_on_one_side() -> None:
    prompts = lite_prompts("dev")
    rng = np.random.default_rng(1)
    noise = rng.random(len(prompts)) - 0.5
    better, worse = noise + 0.3, noise - 0.3
    assert decide("", prompts, better, "")["seen"] == "yes"
    assert decide("", prompts, worse, "")["seen"] == "no"
    assert decide("", prompts, noise - noise.mean(), "")["seen"] == "undecided"
    assert decide("", prompts, better, "", below=True)["seen"] == "no"
    assert decide("", prompts, worse, "", below=True)["seen"] == "yes"
    by_tag = [noise[[p.tag == tag for p in prompts]].mean() for tag in TAGS]
    assert decide("", prompts, better, "")["delta"] == pytest.approx(0.3 + np.mean(by_tag), abs=1e-3)


def test_score_rows_of_the_largest_n_follow_the_scores() -> None:
    prompts = pool_prompts("dev")[:20] + pool_prompts("dev")[-20:]
    rng = np.random.default_rng(2)
    correct = rng.random((40, 5)) < 0.4
    rows = score_rows(
        "oracle", prompts, {"learned": correct}, (1, 5), {"seed": 0}, lambda n: {"seconds": n / 10}, correct
    )
    by_tag = {tag: [] for tag in {prompt.tag for prompt in prompts}}
    for prompt, row in zip(prompts, correct, strict=True):
        by_tag[prompt.tag].append(row.any())
    assert rows[1]["tags"] == {tag: pytest.approx(np.mean(hits), abs=1e-4) for tag, hits in by_tag.items()}
    assert rows[1]["cost"] == {"seconds": 0.5} and rows[1]["images"] == 200
    assert rows[0]["overall"] < rows[1]["overall"]
    both = {"learned": correct, "template": ~correct}
    rows = score_rows("oracle", prompts, both, (5,), {}, {"seconds": 1.0}, order=both)
    assert rows[0]["tags"] == {tag: pytest.approx(np.mean(hits), abs=1e-4) for tag, hits in by_tag.items()}
    assert rows[1]["overall"] > 0.9 and rows[1]["cost"] == {"seconds": 1.0}
    by_chance = score_rows("random", prompts, {"learned": correct}, (1, 5), {}, {})
    assert by_chance[0]["tags"] == by_chance[1]["tags"] and by_chance[0]["overall"] < rows[0]["overall"]


def test_steps_profile() -> None:
    guesses = torch.tensor([[[1, 2], [1, 3], [4, 3]]])
    np.testing.assert_allclose(steps_profile(guesses), [0.0, 0.5, 1.0])


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = [{"method": "baseline", "n": 1}, {"method": "oracle", "n": 20}]
    write_rows(tmp_path / "scores.jsonl", rows)
    assert read_rows(tmp_path / "scores.jsonl") == rows


def test_results_are_a_table_of_every_measured_row(tmp_path: Path) -> None:
    table = results()
    rows = read_rows(data_root() / "results/scores.jsonl")
    assert len(table) == len(rows) and set(TAGS) <= set(table.columns)
    best = table[(table.method == "ft-orm") & (table.judge == "learned") & (table.n == 20)].iloc[0]
    (row,) = [r for r in rows if (r["method"], r["judge"], r["n"]) == ("ft-orm", "learned", 20)]
    assert best.overall == row["overall"] and [best.low, best.high] == row["ci"]
    assert best.verifier_passes == row["cost"]["verifier_passes"] and best["position"] == row["tags"]["position"]
    with pytest.raises(FileNotFoundError, match="build --out"):
        results(tmp_path)


def test_merging_replaces_what_was_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"

    def row(method: str, generator: str, n: int, seed: int = 0) -> dict:
        return {"method": method, "generator": generator, "seed": seed, "n": n}

    merge_rows(path, [row(method, "baseline", n) for method in ("a", "b") for n in (1, 20)])
    merge_rows(path, [row("b", "baseline", 5), row("b", "dpo", 1), row("a", "baseline", 2, seed=1)])
    assert read_rows(path) == [
        *(row("a", "baseline", n) for n in (1, 20)),
        row("b", "baseline", 5),
        row("b", "dpo", 1),
        row("a", "baseline", 2, seed=1),
    ]
    merge_rows(path, [row("a", "baseline", 3)])  # made again: it stands where it stood
    assert [one["n"] for one in read_rows(path)] == [3, 5, 1, 2]
    merge_findings(tmp_path, {"F10": {"delta": 1}, "F2": {"delta": 2}})
    merge_findings(tmp_path, {"F2": {"delta": 3}})
    assert list(findings(tmp_path).items()) == [("F2", {"delta": 3}), ("F10", {"delta": 1})]
    written = json.loads((tmp_path / "results/findings.json").read_text())
    assert list(written) == ["F2", "F10"]  # so that the file is the same whatever was decided when
