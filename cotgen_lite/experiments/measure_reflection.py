"""What PARM++ brings: a generator that corrects itself, reflection with its controls; chapter 08, findings F11 and F12.

Paper: section 5. How: measuring.py; one reflection: `reflect` in verify/search.py.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f11, decide_f12, write_findings
from cotgen_lite.experiments.measuring import Bench, cost_of_drawing, measure_pool, method_name
from cotgen_lite.experiments.results import write_rows
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.geneval import evaluate
from cotgen_lite.identity import fingerprint
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.pools import SHARD, Pool, in_shards
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.pool_search import Outcome, ask_of_paths, spent_by_search, stop_paths
from cotgen_lite.verify.reasons import share_told, write_reasons
from cotgen_lite.verify.search import reflect
from cotgen_lite.verify.verifier import REFLECTION_QUESTION, Verifier

ROUNDS = 3  # at most (paper: section 5)
NAMES = {
    "reflect": "reflect",
    "empty": "-no-reasons",
    "shuffled": "-shuffled-reasons",
    "judge": "-judges-reasons",
    "more": "-more-samples",
}
Explain = Callable[[int, int, Tensor, str], str]  # from row, round, image (3, H, W) and prompt to the reasons


def measure_reflection(out: Path, work: Path, config: Config) -> None:
    """PARM++ on the generator that corrects itself, with its controls at equal calls; scores and findings."""
    bench, name = Bench(out, work, config, "reflection_results"), "self-correct"
    generator = bench.generator(name)
    pool, drawn = measure_pool(bench, generator, name, bench.orms)
    prompts, correct, every = pool.prompts, pool.correct, np.arange(len(pool.prompts))
    critics = {"PARM": bench.verifier("parm"), "PARM++": bench.verifier("parm-plus-plus")}
    for verifier, critic in critics.items():
        outcome = stop_paths(ask_of_paths(generator, critic, drawn.steps, prompts, work / "opinions"))

        def searched(n: int, outcome: Outcome = outcome) -> dict[str, float]:
            spent = spent_by_search(outcome, n, drawn.steps.shape[2])
            reads = round(spent["guesses_read"] + spent["finished_read"], 4)
            return {"generator_passes": spent["generator_passes"], "verifier_passes": reads}

        bench.add_rows(method_name(name, verifier.lower()), name, pool, searched, outcome.order, verifier=verifier)
    # What follows goes on from PARM++'s choice, after its search among all candidates.
    best, cost = outcome.order.argmax(axis=1), searched(bench.sizes[-1])
    first = pool.tokens[torch.arange(len(prompts)), torch.from_numpy(best)]
    own = run_reflections(generator, critic, prompts, first, None, work / "own")
    other = shuffled(prompts, own.reasons)
    controls: dict[str, Explain] = {
        "empty": lambda *_: "",
        "shuffled": lambda row, k, *_: other[row][k % len(other[row])],
        "judge": lambda row, _, image, __: _judges_reasons(image, prompts[row]),
    }
    runs = {"reflect": own} | {
        kind: run_reflections(generator, critic, prompts, first, explain, work / kind)
        for kind, explain in controls.items()
    }
    verdicts = {kind: bench.judge(generator, run.tokens, prompts) for kind, run in runs.items()}
    more = sample_more(bench, generator, critic, prompts, first, own.rounds)
    right = {"not": {judge: one[every, best] for judge, one in correct.items()}, "more": more} | {
        kind: {judge: one[every, run.chosen] for judge, one in verdicts[kind].items()} for kind, run in runs.items()
    }
    each, once = (spent["generator_passes"] for spent in cost_of_drawing(generator, prompts[0].text))
    for kind, suffix in NAMES.items():
        of_one = each if kind == "more" else each + once  # a correction reads a prompt of its own
        spent = spent_with_rounds(cost, runs.get(kind, own).rounds, of_one, explained=kind == "reflect")
        shown = Pool(prompts, first[:, None], {}, {judge: one[:, None] for judge, one in right[kind].items()})
        bench.add_rows(f"{name}+parm++{suffix}", name, shown, spent, verifier="PARM++", n=config.pool_size)

    def decide_by(judge: str) -> dict[str, dict]:
        gain = correct[judge].mean(1) - bench.pool().correct[judge].mean(1)
        kept = {kind: one[judge].astype(float) for kind, one in right.items()}
        return {"F11": decide_f11(prompts, gain), "F12": decide_f12(prompts, kept)}

    write_findings(out, decide_by)
    lines = [
        {"prompt": prompt.text, "codes": own.tokens[row].tolist(), "reasons": own.reasons[row], "kind": "reflect"}
        | {"log_odds": [round(float(x), 3) for x in own.log_odds[row] if not np.isnan(x)]}
        | {"right": verdicts["reflect"]["learned"][row].tolist(), "chosen": int(own.chosen[row])}
        for row, prompt in enumerate(prompts)
    ]
    write_rows(out / "pools/reflections.jsonl", lines)
    rounds = {kind: by_round(run, verdicts[kind]["learned"]) for kind, run in runs.items()}
    bench.write("reflection", {"by_round": rounds, "reasons": reasons_told(generator, own, prompts)})


@dataclass(frozen=True)
class Reflections:
    """What became of P images in up to `ROUNDS` rounds each.

    tokens: int16 (P, ROUNDS + 1, L), a row's last image repeated where it had fewer rounds. log_odds: (P, ROUNDS + 1),
    NaN there. rounds: (P,). chosen: (P,), the image kept. reasons: of each row and round.
    """

    tokens: Tensor
    log_odds: npt.NDArray[np.float32]
    rounds: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    reasons: list[list[str]]


def run_reflections(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    first: Tensor,
    explain: Explain | None,
    work_dir: Path,
) -> Reflections:
    """`reflect` for one image of every prompt; resumes from shards in `work_dir`.

    first: tokens (P, L). explain: who gives the reasons, by default the verifier.
    """
    shards = [range(i, min(i + SHARD, len(prompts))) for i in range(0, len(prompts), SHARD)]

    def run(shard: range) -> dict[str, Tensor]:
        tokens = torch.empty(len(shard), ROUNDS + 1, first.shape[1], dtype=torch.int16)
        odds = torch.full((len(shard), ROUNDS + 1), torch.nan)
        told: list[list[str]] = []
        for at, row in enumerate(shard):
            speaker = explain and partial(_in_turn, explain, row, count())
            found = reflect(generator, verifier, prompts[row].text, first[row], row, ROUNDS, speaker)
            tokens[at] = found.tokens[[min(k, len(found.tokens) - 1) for k in range(ROUNDS + 1)]]
            odds[at, : len(found.log_odds)] = found.log_odds
            told.append(found.reasons)
        text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        return {"tokens": tokens, "odds": odds, "reasons": text}

    about = generator.settings, [prompt.text for prompt in prompts], first.tolist()
    folder = work_dir / fingerprint((generator.model, verifier.model), *about)
    parts = in_shards(shards, run, folder, f"reflect ({work_dir.name})")
    odds = torch.cat([part["odds"] for part in parts]).numpy()
    reasons = [texts for part in parts for texts in json.loads(bytes(part["reasons"].tolist()))]
    rounds = (~np.isnan(odds)).sum(axis=1) - 1
    chosen = np.nanargmax(odds, axis=1)
    return Reflections(torch.cat([part["tokens"] for part in parts]), odds, rounds, chosen, reasons)


def _in_turn(explain: Explain, row: int, rounds: Iterator[int], image: Tensor, prompt: str) -> str:
    return explain(row, next(rounds), image, prompt)


def spent_with_rounds(
    searched: Mapping[str, float], rounds: npt.NDArray[np.int64], of_one: float, explained: bool
) -> dict[str, float]:
    """Passes of both models for one image kept, a mean over pools: the search's, and those of the rounds after it.

    rounds: of each pool (P,); of_one: generator passes of a round's image. The verifier is asked once, and once more
    after each round; where it gives the reasons itself (explained), that counts as one pass more a round, as in
    `reflect`, however long they are.
    """
    mean = float(rounds.mean())
    spent = {"generator_passes": of_one * mean, "verifier_passes": 1 + mean * (2 if explained else 1)}
    return {key: round(searched[key] + more, 4) for key, more in spent.items()}


def shuffled(prompts: Sequence[Prompt], reasons: Sequence[Sequence[str]]) -> list[list[str]]:
    """For every prompt the reasons that were given for another image, of the same tag where there is one."""
    speakers = [row for row, texts in enumerate(reasons) if texts]
    found = []
    for row, prompt in enumerate(prompts):
        others = [k for k in speakers if prompts[k] != prompt]
        alike = [k for k in others if prompts[k].tag == prompt.tag] or others
        found.append(list(reasons[alike[row % len(alike)]]) if alike else [""])
    return found


def sample_more(
    bench: Bench,
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    first: Tensor,
    rounds: npt.NDArray[np.int64],
) -> dict[str, npt.NDArray[np.bool_]]:
    """The control at equal calls: instead of each round of a reflection one more image from the prompt alone, and of
    all the one with the highest log-odds of yes to the reflection question. Returns judge → verdicts (P,)."""
    fresh = bench.generate(generator, prompts, ROUNDS, seed=1)
    tokens = torch.cat([first[:, None], fresh.tokens], dim=1)
    kept = []
    for row, prompt in enumerate(prompts):
        some = tokens[row, : rounds[row] + 1]
        kept.append(some[verifier.score(generator.decode(some), prompt.text, REFLECTION_QUESTION).argmax()])
    return {name: right[:, 0] for name, right in bench.judge(generator, torch.stack(kept)[:, None], prompts).items()}


def by_round(run: Reflections, right: npt.NDArray[np.bool_]) -> dict[str, list[float] | int]:
    """After 0, 1, 2 … rounds: the share of images that are right if the best seen so far is kept, and of all the number
    that became right, and wrong, by it. right: verdicts (P, ROUNDS + 1)."""
    pick = np.arange(len(right))
    kept = [right[pick, np.nanargmax(run.log_odds[:, : k + 1], axis=1)] for k in range(ROUNDS + 1)]
    return {
        "right": [round(float(share.mean()), 4) for share in kept],
        "reflected_on": [int((run.rounds > k).sum()) for k in range(ROUNDS)],
        "mended": int((~kept[0] & kept[-1]).sum()),
        "spoiled": int((kept[0] & ~kept[-1]).sum()),
        "right_but_reflected_on": int((kept[0] & (run.rounds > 0)).sum()),
    }


def reasons_told(generator: Generator, run: Reflections, prompts: Sequence[Prompt]) -> dict[str, float]:
    """How true the verifier's first reasons are by the training judge: the share of their parts that are, the share of
    what is wrong that they tell, over images that are wrong; and how many images they were given for."""
    rows = [row for row, texts in enumerate(run.reasons) if texts]
    found = TemplateJudge().detect(generator.decode(run.tokens[rows, 0])) if rows else []
    told = [
        share_told(run.reasons[row][0], verdict.reasons)
        for row, seen in zip(rows, found, strict=True)
        if not (verdict := evaluate(prompts[row], seen)).correct
    ]
    true, all_of = np.mean(told, axis=0).tolist() if told else (0.0, 0.0)
    return {"given": len(rows), "of_wrong": len(told), "true": round(true, 4), "told": round(all_of, 4)}


def _judges_reasons(image: Tensor, prompt: Prompt) -> str:
    """What the training judge finds wrong, in words; "" where it finds nothing."""
    reasons = evaluate(prompt, TemplateJudge().detect(image[None])[0]).reasons
    return write_reasons(reasons, np.random.default_rng(0)) if reasons else ""
