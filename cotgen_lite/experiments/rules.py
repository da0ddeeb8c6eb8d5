"""The rules by which the paper's findings are decided, and the log of what was scored on test prompts.

A world's rules, `results/rules.json`, are committed before any of its test prompts is scored; a rule that proves
unmeasurable is amended there in the open, with its old text, the reason and the date. Every step that scores test
prompts notes itself in `results/test_runs.jsonl`. The first world has neither. Read on in `findings.py`.
"""

import json
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cotgen_lite.hub import write_atomically

RULES, TEST_RUNS = "results/rules.json", "results/test_runs.jsonl"


@dataclass(frozen=True)
class Rule:
    """When a finding counts as seen.

    rows: what is compared, contrast: how, seen_when: on which side its interval must lie. smallest_effect: a finding is
    "not seen" only if the whole interval is below this one, which is stated, and why, in `because`.
    """

    claim: str
    rows: tuple[str, ...]
    contrast: str
    seen_when: str
    smallest_effect: float
    because: str


def read_rules(out: Path) -> dict[str, Rule]:
    """The rules of a world by finding, F1 first; none where it has no file of rules. ValueError if that is damaged."""
    path = out / RULES
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["findings"]
        return {name: Rule(**rule | {"rows": tuple(rule["rows"])}) for name, rule in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): get it back from the repository.") from error


def smallest_effect(out: Path, finding: str) -> float | None:
    """The smallest effect of a finding that matters by the rules; None where there are none."""
    rules = read_rules(out)
    return rules[finding].smallest_effect if finding in rules else None


def note_test_run(out: Path, step: str) -> None:
    """Note that a step of the build scores test prompts now: its date and the code's commit, where there are rules."""
    if not (out / RULES).exists():
        return
    path = out / TEST_RUNS
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = "unknown"
    row = {"step": step, "date": date.today().isoformat(), "commit": commit}
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, there + json.dumps(row) + "\n")
