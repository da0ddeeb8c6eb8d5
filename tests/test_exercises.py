"""The checkers pass solutions and catch the usual mistakes with a fitting hint."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cotgen_lite.course import ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11
from cotgen_lite.course.checker import check

CHAPTERS = (ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11)
CHECKERS = {
    name.removeprefix("check_"): function
    for chapter in CHAPTERS
    for name, function in vars(chapter).items()
    if name.startswith("check_")
}


def differences(steps: int, places: int, curve: Callable[[int], float]) -> list[int]:
    """What each step commits if `curve` says what stays masked, at least one a step."""
    masked, counts = places, []
    for step in range(steps):
        left = 0 if step == steps - 1 else max(1, min(masked - 1, math.floor(curve(step))))
        counts.append(masked - left)
        masked = left
    return counts


def plainly(steps: int, places: int, curve: Callable[[int], float]) -> list[int]:
    """The same without the rule of at least one, and with nothing left in the end."""
    left = [places, *(math.floor(curve(step)) for step in range(steps - 1)), 0]
    return [before - after for before, after in pairwise(left)]


def pairs(labels: np.ndarray, number: Callable) -> list[tuple[int, int]]:
    """Of each row, `number` of both labels."""
    chosen = []
    for row, right in enumerate(labels):
        yes, no = np.flatnonzero(right), np.flatnonzero(~right)
        kept = number(yes, no)
        chosen += [(row, int(column)) for column in (*yes[:kept], *no[:kept])]
    return chosen


def first_true(hopeless: np.ndarray) -> np.ndarray:
    """The first true step of each row, counted from 1; 0 where there is none."""
    return np.where(hopeless.any(axis=1), hopeless.argmax(axis=1) + 1, 0)


def passed_on(reasons: Sequence[str], tags: Sequence[str], by: int) -> list[str]:
    """Each text at another place of its tag, so many places on."""
    places = {tag: [k for k, one in enumerate(tags) if one == tag] for tag in tags}
    return [reasons[places[tag][(places[tag].index(k) + by) % len(places[tag])]] for k, tag in enumerate(tags)]


def kept_back(reasons: Sequence[str], tags: Sequence[str], place: int) -> str:
    """The first text of the same tag that is not the place's own."""
    return next(text for k, text in enumerate(reasons) if tags[k] == tags[place] and k != place)


def log_p_of(chances: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The sum over places of what each code got, (B,)."""
    return chances.gather(2, codes[..., None])[..., 0].sum(1)


def parm_cost(ran: np.ndarray, step: float, look: float, steps: int, at_the_end: bool = True) -> float:
    """PARM's steps and looks, counted one path and one step at a time."""
    cost = 0.0
    for path in ran:
        cost += sum(step + (look if number < steps else 0.0) for number in range(1, path + 1))
        cost += look if at_the_end and path == steps else 0.0
    return cost


SOLUTIONS: dict[str, Callable] = {
    "schedule": lambda t, k: differences(t, k, lambda s: k * math.cos(math.pi * (s + 1) / (2 * t)) + 1e-9),
    "agreement": lambda tokens: (tokens == tokens[-1]).float().mean(dim=1),
    "guide": lambda c, u, g: u + (1 + g) * (c - u),
    "probability": lambda logits, yes, no: torch.sigmoid(logits[yes].logsumexp(0) - logits[no].logsumexp(0)),
    "oracle": lambda correct: correct.any(axis=1).mean(),
    "best_of_n": lambda scores, correct, n: np.mean(
        [correct[max(subset, key=lambda i: scores[i])] for subset in combinations(range(len(scores)), n)]
    ),
    "balanced": lambda labels: pairs(labels, lambda yes, no: min(len(yes), len(no))),
    "answer_loss": lambda logits, ids, answer: F.cross_entropy(logits[:-1][answer[1:]], ids[1:][answer[1:]]),
    "step_labels": lambda ends: ends.any(axis=2),
    "chance_of_yes": lambda p, rollouts: 1 - (1 - p) ** rollouts,
    "likeness": lambda tokens: np.mean([(a == b).float().mean() for a, b in combinations(tokens, 2)]),
    "margin": lambda pc, pr, rc, rr, beta: beta * ((pc - rc) - (pr - rr)),
    "pull": lambda margin, beta: beta * torch.sigmoid(-margin),
    "elbo": lambda log_p, hidden: len(log_p) * log_p[hidden].mean(),
    "pairs": lambda labels, most: np.minimum(np.minimum(labels.sum(1), (~labels).sum(1)), most).sum(),
    "chance_of_a_pair": lambda p, n: 1 - p**n - (1 - p) ** n,
    "online_pair": lambda odds: (odds.argmax(), odds.argmin()),
    "guided": lambda offline, online, weight: -F.logsigmoid(offline).mean() - weight * F.logsigmoid(online).mean(),
    "break_even": lambda once, a, b: once / (a - b) if a > b else math.inf,
    "first_clear": lambda clarity: np.where((clarity > 0).any(axis=1), (clarity > 0).argmax(axis=1) + 1, 0),
    "stops": lambda clarity, potential: first_true((clarity > 0) & (potential <= 0)),
    "saved": lambda ran, steps: 1 - ran.mean() / steps,
    "kept": lambda odds: next((k for k, one in enumerate(odds) if one > 0), int(np.argmax(odds))),
    "changed": lambda before, after: ((~before & after).sum(), (before & ~after).sum()),
    "others_reasons": lambda reasons, tags: passed_on(reasons, tags, 1),
    "verdict": lambda low, high: "yes" if low > 0 else "no" if high < 0 else "undecided",
    "paired_difference": lambda a, b, rows: (a[rows] - b[rows]).mean(axis=1),
    "whole_after": lambda row, column, side, runs: (row * side + column) // (side * side // runs) + 1,
    "places": lambda words, length, kept: words + length - 1 if kept else sum(words + k for k in range(length)),
    "image_log_probability": lambda logits, codes: log_p_of(logits.log_softmax(2)[:, -len(codes[0]) - 1 : -1], codes),
    "keys_and_values": lambda n, places, layers, heads, width, size: n * 2 * 2 * places * layers * heads * width * size,
    "hours": lambda images, t, places, weights, rate, gpus: images * t * 2 * places * 2 * weights / rate / gpus / 3600,
    "parm_over_best": lambda ran, t, step, look: parm_cost(ran, step, look, t) / (len(ran) * (t * step + look)),
}
MISTAKES: list[tuple[str, Callable, str]] = [
    ("schedule", lambda t, k: plainly(t, k, lambda s: k * math.cos(math.pi * s / (2 * t))), r"\(s \+ 1\) / T"),
    ("schedule", lambda t, k: differences(t, k, lambda s: k * (1 - (s + 1) / t)), "cosine of a quarter turn"),
    (
        "schedule",
        lambda t, k: differences(t, k, lambda s: math.ceil(k * math.cos(math.pi * (s + 1) / (2 * t)) - 1e-9)),
        "down, not up",
    ),
    (
        "schedule",
        lambda t, k: plainly(t, k, lambda s: k * math.cos(math.pi * (s + 1) / (2 * t)) + 1e-9),
        "at least one place a step",
    ),
    (
        "schedule",
        lambda t, k: differences(t, k, lambda s: k * math.cos(math.pi * (s + 1) / (2 * t)))[:-1],
        "One number",
    ),
    ("schedule", lambda t, k: [max(1, k // t)] * t, "add up to"),
    ("agreement", lambda tokens: (tokens == tokens[0]).float().mean(dim=1), r"tokens\[-1\]"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().mean(dim=0), "One number a step"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().mean(), "One number a step"),
    ("agreement", lambda tokens: (tokens == tokens[-1]).float().sum(dim=1), "agrees with itself"),
    ("guide", lambda c, u, g: u + g * (c - u), "conditional logits stay"),
    ("guide", lambda c, u, g: c if g == 0 else u + g * (c - u), "diffusion's form"),
    ("guide", lambda c, u, g: c if g == 0 else (1 + g) * u - g * c, "swapped"),
    ("guide", lambda c, u, g: (1 + g) * c + g * u, "conditional logits stay|expected"),
    ("probability", lambda logits, yes, no: logits.softmax(0)[yes].sum(), "among all words"),
    ("probability", lambda logits, yes, no: torch.sigmoid(logits[yes].sum() - logits[no].sum()), "log-sum-exp"),
    ("probability", lambda logits, yes, no: torch.sigmoid(logits[yes].max() - logits[no].max()), "best spelling"),
    ("probability", lambda logits, yes, no: 1 - SOLUTIONS["probability"](logits, yes, no), "swapped"),
    ("probability", lambda logits, yes, no: logits[yes].logsumexp(0) - logits[no].logsumexp(0), "sigmoid"),
    ("probability", lambda logits, yes, no: logits[yes].exp().sum() / logits[yes + no].exp().sum(), "overflow"),
    ("oracle", lambda correct: correct.mean(), "random choice"),
    ("oracle", lambda correct: correct.any(axis=0).mean(), "expected 0.75|axis"),
    ("oracle", lambda correct: correct.all(axis=1).mean(), "expected 0.75"),
    ("oracle", lambda correct: correct[:, 0].mean(), "expected 0.75"),
    ("best_of_n", lambda scores, correct, n: correct[scores[:n].argmax()], "n = 1"),
    ("best_of_n", lambda scores, correct, n: correct.mean(), "n = 2"),
    ("best_of_n", lambda scores, correct, n: correct[scores.argmin()] if n == 5 else correct.mean(), "n = 2"),
    ("best_of_n", lambda scores, correct, n: float(correct.any()), "n = 1"),
    ("balanced", lambda labels: list(zip(*np.nonzero(labels | ~labels), strict=True)), "Of each prompt as many"),
    (
        "balanced",
        lambda labels: [*zip(*np.nonzero(labels), strict=True)][:8] + [*zip(*np.nonzero(~labels), strict=True)][:8],
        "not for each prompt",
    ),
    ("balanced", lambda labels: pairs(labels, lambda yes, no: min(len(yes), len(no), 1)), "2, 1, 0, 2 pairs"),
    ("balanced", lambda labels: 2 * pairs(labels, lambda yes, no: min(len(yes), len(no))), "twice"),
    ("balanced", lambda labels: [], "2, 1, 0, 2 pairs"),
    ("answer_loss", lambda logits, ids, answer: F.cross_entropy(logits[answer], ids[answer]), "next"),
    ("answer_loss", lambda logits, ids, answer: F.cross_entropy(logits[:-1], ids[1:]), "every token"),
    ("answer_loss", lambda logits, ids, answer: 2 * SOLUTIONS["answer_loss"](logits, ids, answer), "the sum"),
    ("answer_loss", lambda logits, ids, answer: -SOLUTIONS["answer_loss"](logits, ids, answer), "minus"),
    (
        "answer_loss",
        lambda logits, ids, answer: F.cross_entropy(logits[:-1][~answer[1:]], ids[1:][~answer[1:]]),
        "Expected",
    ),
    ("step_labels", lambda ends: ends.all(axis=2), "one is enough"),
    ("step_labels", lambda ends: ends.mean(axis=2) > 0.5, "majority"),
    ("step_labels", lambda ends: ends[:, :, 0], "first rollout"),
    ("step_labels", lambda ends: ends.any(axis=1), "Expected"),
    ("step_labels", lambda ends: ends.any(axis=(1, 2)), "One label a step"),
    ("chance_of_yes", lambda p, rollouts: p**rollouts, "all end well"),
    ("chance_of_yes", lambda p, rollouts: p * rollouts, "Chances add"),
    ("chance_of_yes", lambda p, rollouts: p, "one rollout's"),
    ("chance_of_yes", lambda p, rollouts: (1 - p) ** rollouts, "chance of no"),
    ("likeness", lambda tokens: (tokens[:, None] == tokens[None]).float().mean(), "itself too"),
    ("likeness", lambda tokens: (tokens[1:] == tokens[:1]).float().mean(), "first only"),
    ("likeness", lambda tokens: (tokens == tokens[:1]).float().mean(), "itself included"),
    ("likeness", lambda tokens: 3 * SOLUTIONS["likeness"](tokens), "the sum"),
    ("margin", lambda pc, pr, rc, rr, beta: beta * ((pr - rr) - (pc - rc)), "sign"),
    ("margin", lambda pc, pr, rc, rr, beta: beta * (pc - pr), "policy alone"),
    ("margin", lambda pc, pr, rc, rr, beta: (pc - rc) - (pr - rr), "scale"),
    ("margin", lambda pc, pr, rc, rr, beta: beta * ((pc - rc) + (pr - rr)), "added both"),
    ("pull", lambda margin, beta: beta * torch.sigmoid(margin), "right already"),
    ("pull", lambda margin, beta: torch.sigmoid(-margin), "chain rule"),
    ("pull", lambda margin, beta: -beta * torch.sigmoid(-margin), "positive"),
    ("pull", lambda margin, beta: -F.logsigmoid(margin), "loss itself"),
    ("pull", lambda margin, beta: beta * torch.sigmoid(-margin).mean(), "One number a pair"),
    ("elbo", lambda log_p, hidden: log_p[hidden].sum(), "plain sum"),
    ("elbo", lambda log_p, hidden: log_p[hidden].mean(), "multiply by L"),
    ("elbo", lambda log_p, hidden: len(log_p) * log_p[~hidden].mean(), "visible"),
    ("elbo", lambda log_p, hidden: log_p.sum(), "expected"),
    ("pairs", lambda labels, most: np.minimum(labels.sum(1), (~labels).sum(1)).sum(), "With most = 1"),
    ("pairs", lambda labels, most: np.minimum(labels.sum(1) * (~labels).sum(1), most).sum(), "used once"),
    ("pairs", lambda labels, most: np.minimum(labels.sum(1), most).sum(), "needs a wrong one"),
    ("pairs", lambda labels, most: min(labels.sum(), (~labels).sum()), "by prompt"),
    ("pairs", lambda labels, most: np.minimum(np.minimum(labels.sum(0), (~labels).sum(0)), most).sum(), "wrong axis"),
    ("chance_of_a_pair", lambda p, n: 1 - (1 - p) ** n, "needs a wrong one"),
    ("chance_of_a_pair", lambda p, n: 1 - p**n, "needs a right one"),
    ("chance_of_a_pair", lambda p, n: p**n + (1 - p) ** n, "one label only"),
    ("chance_of_a_pair", lambda p, n: 2 * p * (1 - p), "for two images"),
    ("chance_of_a_pair", lambda p, n: (1 - p**n) * (1 - (1 - p) ** n), "not independent"),
    ("online_pair", lambda odds: (odds.argmin(), odds.argmax()), "swapped"),
    ("online_pair", lambda odds: (odds.argmax(), odds.argsort()[-2]), "lowest"),
    ("online_pair", lambda odds: (0, odds.argmin()), "highest"),
    ("online_pair", lambda odds: (odds.abs().argmax(), odds.abs().argmin()), "log-odds"),
    ("guided", lambda a, b, w: -F.logsigmoid(torch.cat([a, b])).mean(), "one mean"),
    ("guided", lambda a, b, w: -F.logsigmoid(a).mean() - F.logsigmoid(b).mean(), "is missing"),
    ("guided", lambda a, b, w: -F.logsigmoid(a).mean() - w * b.mean(), "margin itself"),
    ("guided", lambda a, b, w: -F.logsigmoid(a).mean() - w * F.logsigmoid(b.detach()).mean(), "online pairs: a reward"),
    ("guided", lambda a, b, w: SOLUTIONS["guided"](a, b, w).detach(), "no gradient"),
    ("break_even", lambda once, a, b: once / a, "divide by what each one saves"),
    ("break_even", lambda once, a, b: once / (a + b), "difference"),
    ("break_even", lambda once, a, b: once / (b - a), "sign"),
    ("break_even", lambda once, a, b: (a - b) / once, "Upside down"),
    ("break_even", lambda once, a, b: once / (a - b), "never pays"),
    ("first_clear", lambda clarity: (clarity > 0).argmax(axis=1), "counted from 1"),
    ("first_clear", lambda clarity: (clarity > 0).argmax(axis=1) + 1, "never clear"),
    ("first_clear", lambda c: np.where((c > 0).any(axis=1), c.argmax(axis=1) + 1, 0), "clearest"),
    ("first_clear", lambda clarity: (clarity > 0).sum(axis=1), "how many steps"),
    ("first_clear", lambda clarity: (clarity > 0).any(axis=1).sum(), "One number a path"),
    ("stops", lambda clarity, potential: first_true(potential <= 0), "only where the path is clear"),
    (
        "stops",
        lambda c, p: first_true((c > 0) & (np.cumsum(c > 0, axis=1) == 1) & (p <= 0)),
        "first clear step only",
    ),
    ("stops", lambda c, p: np.maximum(first_true((c > 0) & (p <= 0)) - 1, 0), "counted from 1"),
    ("stops", lambda c, p: first_true((c > 0) & (p > 0)), "sign"),
    ("stops", lambda c, p: (c > 0) & (p <= 0), "One number a path"),
    ("saved", lambda ran, steps: ran.mean() / steps, "was spent"),
    ("saved", lambda ran, steps: (ran < steps).mean(), "did run some steps"),
    ("saved", lambda ran, steps: (steps - ran).sum(), "number of steps"),
    ("saved", lambda ran, steps: 1 - ran[ran < steps].mean() / steps, "stopped paths only"),
    ("kept", lambda odds: int(np.argmax(odds)), "first yes ends it"),
    ("kept", lambda odds: next((k for k, one in enumerate(odds) if one > 0), len(odds) - 1), "not the last"),
    ("kept", lambda odds: next((k for k, one in enumerate(odds) if one > 0), 0), "not the first"),
    ("kept", lambda odds: 1 + next((k for k, one in enumerate(odds) if one > 0), int(np.argmax(odds))), "from 0"),
    ("kept", lambda odds: len(odds) - 1, "always the last"),
    ("changed", lambda before, after: ((before & ~after).sum(), (~before & after).sum()), "other way round"),
    ("changed", lambda before, after: after.sum() - before.sum(), "hides how many"),
    ("changed", lambda before, after: (after.sum(), (~after).sum()), "were so before"),
    ("changed", lambda before, after: (before.sum(), (~before).sum()), "both verdicts"),
    ("changed", lambda before, after: ((~before & after).mean(), (before & ~after).mean()), "Those are shares: counts"),
    (
        "changed",
        lambda before, after: ((~before & after).sum() / (~before).sum(), (before & ~after).sum() / before.sum()),
        "shares of the wrong",
    ),
    ("others_reasons", lambda reasons, tags: passed_on(reasons, ["all"] * len(tags), 1), "another tag"),
    ("others_reasons", lambda reasons, tags: passed_on(reasons, tags, 2), "keeps its own"),
    ("others_reasons", lambda reasons, tags: [""] * len(tags), "another control"),
    ("others_reasons", lambda reasons, tags: [kept_back(reasons, tags, k) for k in range(len(tags))], "given twice"),
    ("others_reasons", lambda reasons, tags: reasons[1:], "for each of 7"),
    ("others_reasons", lambda reasons, tags: ["it is wrong"] * len(tags), "Only reasons that were given"),
    ("verdict", lambda low, high: "yes" if low >= 0 else "no" if high < 0 else "undecided", "touches zero"),
    ("verdict", lambda low, high: "yes" if (low + high) / 2 > 0 else "no", "either sign"),
    ("verdict", lambda low, high: "yes" if low > 0 else "undecided", "a decision, too"),
    ("verdict", lambda low, high: "no" if low > 0 else "yes" if high < 0 else "undecided", "wholly above zero"),
    ("verdict", lambda low, high: low > 0, "is wanted, not True"),
    ("paired_difference", lambda a, b, rows: (b[rows] - a[rows]).mean(axis=1), "The other way around"),
    ("paired_difference", lambda a, b, rows: np.full(len(rows), (a - b).mean()), "take the prompts"),
    ("paired_difference", lambda a, b, rows: a[rows].mean(axis=1) - b.mean(), "same"),
    ("paired_difference", lambda a, b, rows: (a[rows] - b[rows]).sum(axis=1), "not sums"),
    ("paired_difference", lambda a, b, rows: (a[rows] - b[rows]).mean(), "average over prompts"),
    ("whole_after", lambda row, column, side, runs: (row * side + column) // (side * side // runs), "from 1 here"),
    ("whole_after", lambda row, column, side, runs: -(-(row * side + column) * runs // side**2), "it included"),
    ("whole_after", lambda row, column, side, runs: row + 1, "counts rows"),
    ("whole_after", lambda row, column, side, runs: (column * side + row) * runs // side**2 + 1, "row by row"),
    ("whole_after", lambda row, column, side, runs: row * side + column + 1, "Those are codes"),
    (
        "places",
        lambda words, length, kept: words + length if kept else sum(range(words, words + length + 1)),
        "too many",
    ),
    ("places", lambda words, length, kept: length - 1 if kept else sum(range(length)), "words take places too"),
    ("places", lambda words, length, kept: length, "Those are passes"),
    ("places", lambda words, length, kept: SOLUTIONS["places"](words, length, not kept), "other way round"),
    ("places", lambda words, length, kept: words + length - 1 if kept else (words + length) * length, "grows"),
    (
        "image_log_probability",
        lambda logits, codes: log_p_of(logits.log_softmax(2)[:, -4:], codes),
        "one place earlier",
    ),
    ("image_log_probability", lambda logits, codes: SOLUTIONS["image_log_probability"](logits, codes) / 4, "the mean"),
    ("image_log_probability", lambda logits, codes: log_p_of(logits[:, 4:8], codes), "Those are logits"),
    ("image_log_probability", lambda logits, codes: log_p_of(logits.softmax(2)[:, 4:8], codes), "add up: take the log"),
    ("image_log_probability", lambda logits, codes: log_p_of(logits.log_softmax(1)[:, 4:8], codes), "over the codes"),
    ("image_log_probability", lambda logits, codes: log_p_of(logits.log_softmax(2)[:, :4], codes), "at the end"),
    ("image_log_probability", lambda logits, codes: -SOLUTIONS["image_log_probability"](logits, codes), "The sign"),
    ("keys_and_values", lambda n, p, layers, h, w, size: n * 2 * p * layers * h * w * size, "That is half"),
    ("keys_and_values", lambda n, p, layers, h, w, size: n * p * layers * h * w * size, "a quarter"),
    ("keys_and_values", lambda n, p, layers, h, w, size: 4 * n * p * layers * h * w, "several bytes"),
    ("keys_and_values", lambda n, p, layers, h, w, size: 4 * n * p * layers * w * size, "one head"),
    ("keys_and_values", lambda n, p, layers, h, w, size: 4 * n * p * h * w * size, "one layer"),
    ("keys_and_values", lambda n, p, layers, h, w, size: 4 * p * layers * h * w * size, "one candidate"),
    ("keys_and_values", lambda n, p, layers, h, w, size: 4 * n * p * p * layers * h * w * size, "square"),
    ("keys_and_values", lambda *case: 3 * SOLUTIONS["keys_and_values"](*case), "expected"),
    ("hours", lambda *case: 3 * SOLUTIONS["hours"](*case), "Expected"),
    ("parm_over_best", lambda *case: 3 * SOLUTIONS["parm_over_best"](*case), "expected"),
    ("hours", lambda *case: 3600 * SOLUTIONS["hours"](*case), "Those are seconds"),
    ("hours", lambda *case: 60 * SOLUTIONS["hours"](*case), "Those are minutes"),
    ("hours", lambda *case: SOLUTIONS["hours"](*case) / 2, "Half of it"),
    ("hours", lambda *case: SOLUTIONS["hours"](*case) / 4, "both double it"),
    ("hours", lambda i, t, places, weights, rate, gpus: i * t * 4 * places * weights / rate / 3600, "share the work"),
    ("hours", lambda i, t, places, weights, rate, gpus: i * 4 * places * weights / rate / gpus / 3600, "Every step"),
    ("hours", lambda i, t, places, weights, rate, gpus: i * t * 4 * weights / rate / gpus / 3600, "every place"),
    (
        "parm_over_best",
        lambda ran, t, step, look: parm_cost(ran, step, look, t, False) / (len(ran) * (t * step + look)),
        "once more, to choose",
    ),
    (
        "parm_over_best",
        lambda ran, t, step, look: (ran.sum() * step + (ran == t).sum() * look) / (len(ran) * (t * step + look)),
        "looks at every step",
    ),
    ("parm_over_best", lambda ran, t, step, look: t * (step + look) / (t * step + look), "Stopped paths cost"),
    ("parm_over_best", lambda ran, t, step, look: ran.mean() / t, "generator alone"),
    (
        "parm_over_best",
        lambda ran, t, step, look: (t * step + ran.mean() * look) / (t * step + look),
        "as well as its looks",
    ),
    ("parm_over_best", lambda ran, t, step, look: ran.mean() * (step + look) / (t * step), "Best-of-n looks too"),
    ("parm_over_best", lambda *case: 1 / SOLUTIONS["parm_over_best"](*case), "Upside down"),
    ("parm_over_best", lambda *case: 1 - SOLUTIONS["parm_over_best"](*case), "what is saved"),
]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name: str, capsys: pytest.CaptureFixture) -> None:
    check(CHECKERS[name], SOLUTIONS[name])
    assert capsys.readouterr().out == "✓ Right.\n"


@pytest.mark.parametrize(("name", "mistake", "hint"), MISTAKES)
def test_mistake_is_caught_with_its_hint(name: str, mistake: Callable, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        CHECKERS[name](mistake)


def test_hints_are_printed(capsys: pytest.CaptureFixture) -> None:
    def unanswered(correct: np.ndarray) -> float:
        raise NotImplementedError("how many prompts have one?")

    check(ch01.check_oracle, unanswered)
    check(ch01.check_oracle, np.mean)
    stub, mistake = capsys.readouterr().out.splitlines()
    assert stub == "how many prompts have one?" and "random choice" in mistake


def test_every_exercise_has_four_mistakes() -> None:
    assert SOLUTIONS.keys() == CHECKERS.keys()
    for name in SOLUTIONS:
        assert sum(mistake[0] == name for mistake in MISTAKES) >= 4
    assert torch.is_tensor(SOLUTIONS["guide"](torch.ones(1), torch.zeros(1), 1.0))
