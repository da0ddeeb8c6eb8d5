"""The paper's twelve findings: what each says, and by which rule it counts as seen here.

A finding F13 is added here: its words to `FINDINGS`, its rule as a function `decide_f13`, most often one call of
`compare`; then the step that measures what it asks for gives it to `write_findings`. Rules take verdicts and scores of
pools, not models, so that each is computed again from shipped files in a moment. Read on in `report.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cotgen_lite.experiments.results import SIZES, read_json
from cotgen_lite.hub import write_json
from cotgen_lite.metrics import bootstrap_interval, expected_best_of, roc_auc, roc_auc_within_prompts, tag_means
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.pool_search import Outcome

FINDINGS = {  # the paper's, in plain words
    "F1": "a zero-shot ORM that chooses among twenty helps",
    "F2": "fine-tuning it helps further, and the curve over n rises faster",
    "F3": "a PRM gains less than half of what an ORM does",
    "F4": "early guesses are too blurry to judge, later ones are clear",
    "F5": "DPO helps, and a second round helps further",
    "F6": "DPO and ORM together are better than either, in all three ways to combine them",
    "F7": "PARM chooses better than the ORM and the PRM",
    "F8": "PARM as a guide and on top is the best of all",
    "F9": "PARM as a guide and on top gains most in two objects, position and attribute binding",
    "F10": "the methods carry over to next-token generators",
    "F11": "learning to correct costs the generator a little",
    "F12": "reflecting helps, and its reasons do: more than other samples, or no reasons, at equal cost",
}
# F4, steps counted from 1: the AUC at the early step, what it gains by the late one, and the share of tokens that are
# final by then.
EARLY, LATE = 4, 14
BLURRY, CLEARER, SETTLED = 0.60, 0.10, 0.75
RESAMPLES = 1000
# F6: the integrations of table 2, each with what it is made of.
INTEGRATIONS = {
    "it-dpo-guided-orm": ("it-dpo", "ft-orm"),
    "it-dpo+ft-orm": ("it-dpo", "ft-orm"),
    "it-dpo-guided-orm+ft-orm": ("it-dpo-guided-orm", "ft-orm"),
}
BEST = "it-dpo-guided-parm+parm"  # F8
HARD = ("two_object", "position", "color_attr")  # F9
SLIGHT = (-0.06, 0.02)  # F11: what correction may cost the generator
REFLECTING = {  # F12
    **{"reflect": "reflecting", "not": "not reflecting", "more": "more samples"},
    **{"empty": "no reasons", "shuffled": "shuffled reasons", "judge": "the judge's reasons"},
}


def findings(out: Path) -> dict[str, dict]:
    """The entries of `results/findings.json` under `out`, F1 first."""
    return dict(sorted(read_json(out, "findings").items(), key=_number))


def write_findings(out: Path, rules: Callable[[str], Mapping[str, dict]]) -> None:
    """Decide findings and write them into `results/findings.json`: by the learned judge, and what the other says."""
    merge_findings(out, by_both_judges(rules))


def merge_findings(out: Path, found: Mapping[str, dict]) -> None:
    """Write findings into `results/findings.json`, F1 first whatever was decided when."""
    path = out / "results/findings.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, dict(sorted({**there, **found}.items(), key=_number)))


def _number(finding: tuple[str, dict]) -> int:
    return int(finding[0].removeprefix("F"))


def by_both_judges(rules: Callable[[str], Mapping[str, dict]]) -> dict[str, dict]:
    """Findings by the learned judge, each with what the template judge says to it; rules: judge → name → finding."""
    learned, template = rules("learned"), rules("template")
    also = {name: {"template": brief(found)} for name, found in template.items()}
    return {name: found | also.get(name, {}) for name, found in learned.items()}


def brief(found: Mapping) -> dict:
    """Of a finding its verdict, difference and interval."""
    return {key: found[key] for key in ("seen", "delta", "ci")}


def difference(prompts: Sequence[Prompt], values: npt.NDArray) -> dict:
    """A difference (P,), paired pool by pool: mean over tags, with its interval over prompts."""
    found = decide("", prompts, values, paper="")
    return {key: found[key] for key in ("delta", "ci")}


def resampled(measured: Callable[..., Sequence[float]], *sizes: int) -> tuple[npt.NDArray, npt.NDArray]:
    """Some numbers (K,) of whole sets of rows, and their 95% intervals (2, K) over sets that are drawn from these anew.

    measured: from the row numbers of each set, as many sets as there are sizes, to the numbers.
    """
    rng = np.random.default_rng(0)
    draws = [measured(*(rng.integers(size, size=size) for size in sizes)) for _ in range(RESAMPLES)]
    return np.array(measured(*map(np.arange, sizes))), np.nanpercentile(draws, [2.5, 97.5], axis=0)


def decide(
    claim: str,
    prompts: Sequence[Prompt],
    difference: npt.NDArray,
    paper: str,
    note: str = "",
    below: bool = False,
    smallest: float | None = None,
) -> dict[str, object]:
    """One finding of the form "this difference is above zero": seen if its 95% interval over prompts lies above.

    difference: (P,) what is claimed to be positive, for each pool; or, with `below`, negative. smallest: by the
    rules of the world, if it has any, the effect below which all of the interval must lie for a "no"; then "bound"
    tells the largest effect that is not ruled out. Returns the entry of findings.json.
    """
    low, high = bootstrap_interval(prompts, difference)
    delta = float(np.mean(list(tag_means(prompts, difference).values())))
    least, bound = (-high, -low) if below else (low, high)
    found: dict[str, object] = {
        "claim": claim,
        "seen": "yes" if least > 0 else "no" if bound < (smallest or 0) else "undecided",
        "delta": round(delta, 4),
        "ci": [round(low, 4), round(high, 4)],
        "paper": paper,
        "note": note,
    }
    return found if smallest is None else found | {"bound": round(bound, 4)}


def compare(
    claim: str,
    prompts: Sequence[Prompt],
    right: Mapping[str, npt.NDArray],
    parts: Sequence[tuple[str, str]],
    beside: Sequence[tuple[str, str]] = (),
    paper: str = "",
    reported: Sequence[dict] = (),
) -> dict:
    """A finding that methods are better than others, as sure as the least sure of its parts, whose numbers it takes.

    right: how often each method is right for each pool (P,). parts: pairs, of which the first is to be better than the
    second; beside: pairs that are told too, but decide nothing; reported: findings that are told in the same way.
    """

    def over(pair: tuple[str, str]) -> dict:
        return decide(f"{pair[0]} − {pair[1]} > 0", prompts, right[pair[0]] - right[pair[1]], paper="")

    def said(found: dict) -> str:
        low, high = found["ci"]
        return f"{found['claim']}: {found['seen']}, {found['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"

    decisive, told = [*map(over, parts)], [*map(over, beside), *reported]
    note = [*map(said, decisive), *(f"(reported: {said(found)})" for found in told)]
    return min(decisive, key=lambda found: found["ci"][0]) | {
        "claim": claim,
        "seen": _least(decisive),
        "paper": paper,
        "note": "; ".join(["the weakest part's difference", *note]),
        "parts": {found["claim"].removesuffix(" > 0"): brief(found) for found in (*decisive, *told)},
    }


def _least(parts: Sequence[Mapping]) -> str:
    """The verdict on claims that must all hold."""
    return next((verdict for verdict in ("no", "undecided") if any(one["seen"] == verdict for one in parts)), "yes")


def decide_f1(prompts: Sequence[Prompt], log_odds: npt.NDArray, correct: npt.NDArray, smallest: float | None) -> dict:
    """F1: the zero-shot ORM's choice among all N is better than chance; log_odds, correct: (P, N); smallest: as in
    `decide`."""
    gain = expected_best_of(log_odds, correct, correct.shape[1]) - correct.mean(1)
    return decide("zs-orm − baseline > 0", prompts, gain, paper="0.53 → 0.61", smallest=smallest)


def decide_f2(prompts: Sequence[Prompt], zero_shot: npt.NDArray, tuned: npt.NDArray, correct: npt.NDArray) -> dict:
    """F2: best of all N is better, and accuracy rises more steeply with log n.

    zero_shot, tuned: log-odds (P, N); correct: (P, N), the reporting judge's.
    """
    sizes = np.array([size for size in SIZES if size <= correct.shape[1]])
    gains = np.stack(
        [
            expected_best_of(tuned, correct, int(size)) - expected_best_of(zero_shot, correct, int(size))
            for size in sizes
        ]
    )
    centred = np.log(sizes) - np.log(sizes).mean()
    gain = decide("ft-orm − zs-orm > 0", prompts, gains[-1], paper="0.61 → 0.63")
    steeper = decide("slope on log n", prompts, centred @ gains / (centred @ centred), paper="figure 3")
    note = f"slope of accuracy on log n: {steeper['delta']:+.4f} {steeper['ci']}, {steeper['seen']}"
    return gain | {"seen": _least([gain, steeper]), "note": note}


def decide_f3(prompts: Sequence[Prompt], stepwise: npt.NDArray, best: npt.NDArray, base: npt.NDArray) -> dict:
    """F3: the fine-tuned PRM gains less than half of what the fine-tuned ORM gains.

    For each pool (P,): stepwise, whether the image that the PRM led to is right; best, accuracy of the ORM's best of N;
    base, that of the baseline.
    """
    claim = "gain of ft-prm − half the gain of ft-orm < 0"
    return decide(claim, prompts, (stepwise - base) - (best - base) / 2, paper="+0.02 of +0.10", below=True)


def decide_f4(log_odds: npt.NDArray, correct: npt.NDArray, guesses: Tensor) -> dict:
    """F4: the early AUC is low, the late one higher, most tokens final by then; bootstrap over prompts.

    log_odds: (P, N, T), the zero-shot ORM's; correct: (P, N), verdicts on the final images; guesses: (P, N, T, L). The
    rule takes the AUC of all images together, to which hard and easy prompts contribute; the note has that within
    prompts as well, all that a choice among candidates depends on.
    """
    settled = (guesses[:, :, LATE - 1] == guesses[:, :, -1]).double().mean(dim=(1, 2)).numpy()
    early, late = log_odds[:, :, EARLY - 1], log_odds[:, :, LATE - 1]
    inside = np.array(
        [[roc_auc_within_prompts(o[i, None], correct[i, None]) for o in (early, late)] for i in range(len(correct))]
    )

    def measured(rows: npt.NDArray) -> tuple[float, ...]:
        blurry, clear = (roc_auc(odds[rows], correct[rows]) for odds in (early, late))
        within, clear_within = np.nanmean(inside[rows], axis=0)
        return blurry, clear - blurry, float(settled[rows].mean()), within, clear_within - within

    everything, (low, high) = resampled(measured, len(correct))
    holds = (high[0] < BLURRY, low[1] > CLEARER, low[2] > SETTLED)
    fails = (low[0] > BLURRY, high[1] < CLEARER, high[2] < SETTLED)
    early_auc, gain = f"AUC at step {EARLY}", f"gain from there to step {LATE}"
    also = [f"within prompts, {name}" for name in (early_auc, gain)]
    names = (early_auc, gain, f"tokens final at step {LATE}", *also)
    parts = [f"{name} {x:.3f} [{a:.3f}, {b:.3f}]" for name, x, a, b in zip(names, everything, low, high, strict=True)]
    return {
        "claim": f"AUC < {BLURRY} at step {EARLY}, {CLEARER} more at {LATE}, where {SETTLED:.0%} of tokens are final",
        "seen": "yes" if all(holds) else "no" if any(fails) else "undecided",
        "delta": round(float(everything[1]), 4),
        "ci": [round(float(low[1]), 4), round(float(high[1]), 4)],
        "paper": "clear from steps 8–12 of 18 (figure 5)",
        "note": "; ".join(parts),
    }


def right_by_method(pools: Mapping[str, Pool], n: int, judge: str) -> dict[str, npt.NDArray[np.float64]]:
    """How often each method is right, for each prompt (P,): the generators alone, and every verifier on top of them.

    pools: by generator; n: candidates that a verifier chooses among.
    """
    right = {name: pool.correct[judge].mean(1) for name, pool in pools.items()}
    for name, pool in pools.items():
        for method, order in pool.scores.items():
            label = method if name == "baseline" else f"{name}+{method}"
            right[label] = expected_best_of(order, pool.correct[judge], n)
    return right


def decide_alignment(pools: Mapping[str, Pool], n: int, judge: str) -> dict[str, dict]:
    """F5: both rounds of DPO gain. F6: each integration of DPO and ORM is better than each of its parts.

    pools: of the baseline and every aligned generator, drawn with the same seeds; n: what a verifier chooses among.
    """
    prompts, right = pools["baseline"].prompts, right_by_method(pools, n, judge)
    f5 = compare(
        "dpo − baseline > 0 and it-dpo − dpo > 0",
        prompts,
        right,
        [("dpo", "baseline"), ("it-dpo", "dpo")],
        [("it-dpo", "ft-orm")],
        paper="0.53 → 0.62 → 0.65",
    )
    f6 = compare(
        "each integration − each of its parts > 0",
        prompts,
        right,
        [(whole, part) for whole, parts in INTEGRATIONS.items() for part in parts],
        [("it-dpo-guided-orm+ft-orm", "it-dpo+ft-orm")],
        paper="0.65 (it. DPO), 0.63 (ft. ORM) → 0.67, 0.72, 0.75",
    )
    return {"F5": f5, "F6": f6}


def decide_f7(pool: Pool, prm: Pool, outcome: Outcome, n: int, equal: Mapping[str, Sequence[dict]], judge: str) -> dict:
    """F7: PARM's choice among n is better than the fine-tuned ORM's and the PRM's; at equal cost beside it.

    prm: what the PRM came to for each entry of the pool, one image each. equal: from `at_equal_cost`, of which the
    largest n is told.
    """
    correct, claim = pool.correct[judge], "at equal {}, ORM's n {}, PARM's {:.1f}: parm − ft-orm > 0"
    right = {
        "parm": expected_best_of(outcome.order, correct, n),
        "ft-orm": expected_best_of(pool.scores["ft-orm"], correct, n),
        "ft-prm": prm.correct[judge][:, 0].astype(float),
    }
    at_largest = {measure.replace("_", " "): found[-1] for measure, found in equal.items() if found}
    reported = [
        one | {"claim": claim.format(measure, one["orm_n"], one["parm_n"])} for measure, one in at_largest.items()
    ]
    parts = [("parm", "ft-orm"), ("parm", "ft-prm")]
    both = "parm − ft-orm > 0 and parm − ft-prm > 0"
    return compare(both, pool.prompts, right, parts, paper="0.63 → 0.67", reported=reported)


def decide_best(pools: Mapping[str, Pool], n: int, judge: str) -> dict[str, dict]:
    """F8: PARM with PARM's guidance is the best of all. F9: two objects, position and attribute gain most by it."""
    prompts, right = pools["baseline"].prompts, right_by_method(pools, n, judge)
    others = [label for label in right if label != BEST]
    claim = f"{BEST} − each of {len(others)} others > 0"
    f8 = compare(claim, prompts, right, [(BEST, label) for label in others], paper="0.77, the best of all")
    above = [label for label in others if f8["parts"][f"{BEST} − {label}"]["seen"] == "yes"]
    told = f"surely above {len(above)} of {len(others)} rows: {', '.join(above)}"
    f8["note"] = f"the weakest difference; {told}; PRMs and self-correction are not among them"
    # The mean over tags of a difference, doubled and with its sign turned for half of them, is that of their means.
    hard = np.array([prompt.tag in HARD for prompt in prompts])
    f9 = decide(
        "mean gain of two objects, position, attribute − mean gain of the others > 0",
        prompts,
        np.where(hard, 2, -2) * (right[BEST] - right["baseline"]),
        paper="+.42 beside +.08",
        note=f"gain of {BEST} over the baseline",
    )
    return {"F8": f8, "F9": f9}


def decide_f10(pool: Pool, aligned: Pool, n: int, judge: str) -> dict:
    """F10: each method on the next-token generator is better than the generator alone; retaught verifiers beside it.

    pool: the generator's, with every verifier's order; aligned: the same prompts and seeds after DPO.
    """
    right = {name: expected_best_of(order, pool.correct[judge], n) for name, order in pool.scores.items()}
    right |= {"seq:baseline": pool.correct[judge].mean(1), "dpo": aligned.correct[judge].mean(1)}
    return compare(
        "each method − seq:baseline > 0",
        pool.prompts,
        right,
        [(name, "seq:baseline") for name in ("zs-orm", "ft-orm", "dpo", "parm")],
        [("parm", "ft-orm"), ("ft-orm-retaught", "ft-orm"), ("parm-retaught", "parm")],
        paper="LlamaGen .32 → .35, .39, .41, .46 (zs ORM, ft ORM, DPO, PARM); Janus-Pro .80 → .84, .89, .83, .91",
    )


def decide_f11(prompts: Sequence[Prompt], difference: npt.NDArray) -> dict:
    """F11: the interval of self-correct − baseline lies within `SLIGHT`; "no" if it lies wholly outside."""
    found = decide("self-correct − baseline > 0", prompts, difference, paper="0.53 → 0.51")
    low, high = bootstrap_interval(prompts, difference)
    inside, outside = SLIGHT[0] < low and high < SLIGHT[1], high < SLIGHT[0] or low > SLIGHT[1]
    seen = "yes" if inside else "no" if outside else "undecided"
    return found | {"claim": f"self-correct − baseline inside ({SLIGHT[0]}, {SLIGHT[1]})", "seen": seen}


def decide_f12(prompts: Sequence[Prompt], right: Mapping[str, npt.NDArray]) -> dict:
    """F12: reflecting is better than not, and than each control at equal calls.

    right: by the keys of `REFLECTING` → (P,), whether the image that is kept is right.
    """
    named = {REFLECTING[kind]: values for kind, values in right.items() if kind in REFLECTING}
    return compare(
        "reflecting − not reflecting > 0, and above the controls at equal calls",
        prompts,
        named,
        [("reflecting", REFLECTING[kind]) for kind in ("not", "more", "empty", "shuffled")],
        [("the judge's reasons", "no reasons")],
        paper="0.61 → 0.70",
    )
