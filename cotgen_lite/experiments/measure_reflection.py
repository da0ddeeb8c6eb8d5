"""What PARM++ brings: a generator that corrects itself, reflection with its controls, F11 and F12; chapter 08."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f11, decide_f12, write_findings
from cotgen_lite.experiments.measure import cost_of_drawing
from cotgen_lite.experiments.measure_alignment import ON_TOP, measure_generator
from cotgen_lite.experiments.results import SIZES, merge_rows, score_rows, write_rows
from cotgen_lite.generate.drawing import draw_pool, judge_tokens
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.geneval import Detector, evaluate
from cotgen_lite.hub import write_json
from cotgen_lite.lite.judges import TemplateJudge, load_judges
from cotgen_lite.pools import SHARD, in_shards, load_pool
from cotgen_lite.prompts import Prompt
from cotgen_lite.training import fingerprint
from cotgen_lite.verify.pool_search import ask_of_paths, spent_by_search, stop_paths
from cotgen_lite.verify.reasons import share_told, write_reasons
from cotgen_lite.verify.search import reflect
from cotgen_lite.verify.verifier import REFLECTION_QUESTION, Verifier

COMMAND = "python -m cotgen_lite.build reflection_results"
ROUNDS = 3  # at most (paper: section 5)
NAMES = {
    "reflect": "reflect",
    "empty": "-no-reasons",
    "shuffled": "-shuffled-reasons",
    "judge": "-judges-reasons",
    "more": "-more-samples",
}
Explain = Callable[[int, int, Tensor, str], str]  # from row, round, image (3, H, W) and prompt to the reasons


@dataclass(frozen=True)
class Reflections:
    """What became of P images in up to `ROUNDS` rounds each.

    codes: int16 (P, ROUNDS + 1, L), a row's last image repeated where it had fewer rounds. log_odds: (P, ROUNDS + 1),
    NaN there. rounds: (P,). chosen: (P,), the image kept. reasons: of each row and round.
    """

    codes: Tensor
    log_odds: npt.NDArray[np.float32]
    rounds: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    reasons: list[list[str]]


def measure_reflection(out: Path, work: Path, config: Config) -> None:
    """All of table 5 on the generator that corrects itself, its controls at equal calls, F11 and F12; under `out`.

    Pools, opinions and reflections in `work` let it resume.
    """
    models, results, n = out / "models", out / "results", config.pool_size
    judges = load_judges(models)
    orms = {method: Verifier.from_pretrained(models / folder) for method, folder in ON_TOP.items()}
    pool = measure_generator(out, work, "self-correct", judges, orms, config, COMMAND)
    generator, prompts = load_generator("self-correct", models=models), pool.prompts
    guesses, _, _ = draw_pool(generator, prompts, n, seed=0, work_dir=work / "pool")
    about = {"generator": "self-correct", "seed": 0, "command": COMMAND}
    rows, orders = [], {}
    for name, folder in (("PARM", "parm"), ("PARM++", "parm-plus-plus")):
        opinions = ask_of_paths(
            generator, Verifier.from_pretrained(models / folder), guesses, prompts, work / f"{folder}-opinions"
        )
        outcome = stop_paths(opinions)
        orders[name] = outcome.order
        label, sizes = f"self-correct+{name.lower()}", [size for size in SIZES if size <= n]
        some = score_rows(label, prompts, outcome.order, pool.correct, sizes, about | {"verifier": name}, {})
        for row in some:
            spent = spent_by_search(outcome, row["n"], guesses.shape[2])
            reads = spent["guesses_read"] + spent["finished_read"]
            row["cost"] = {"generator_passes": spent["generator_passes"], "verifier_passes": round(reads, 4)}
        rows += some
    searched = rows[-1]["cost"]  # PARM++'s search among all n

    critic, best = Verifier.from_pretrained(models / "parm-plus-plus"), orders["PARM++"].argmax(axis=1)
    first = guesses[torch.arange(len(prompts)), torch.from_numpy(best), -1]
    right = {"not": {judge: pool.correct[judge][np.arange(len(prompts)), best] for judge in judges}}
    own = run_reflections(generator, critic, prompts, first, None, work / "own")
    told = own.reasons
    other = shuffled(prompts, told)
    facts = lambda row, _, image, __: _judges_reasons(image, prompts[row])  # noqa: E731
    runs = {
        "reflect": own,
        "empty": run_reflections(generator, critic, prompts, first, lambda *_: "", work / "empty"),
        "shuffled": run_reflections(
            generator, critic, prompts, first, lambda row, k, *_: other[row][k % len(other[row])], work / "shuffled"
        ),
        "judge": run_reflections(generator, critic, prompts, first, facts, work / "judge"),
    }
    verdicts = {
        kind: {judge: judge_tokens(generator, run.codes, prompts, one) for judge, one in judges.items()}
        for kind, run in runs.items()
    }
    pick = np.arange(len(prompts))
    for kind, run in runs.items():
        right[kind] = {judge: verdicts[kind][judge][pick, run.chosen] for judge in judges}
    right["more"] = draw_more(generator, critic, prompts, first, own, judges, work / "more")
    each, once = (cost["generator_passes"] for cost in cost_of_drawing(generator, prompts[0].text))
    for kind, name in NAMES.items():
        label = f"self-correct+parm++{name}"
        shown = {judge: verdict[:, None] for judge, verdict in right[kind].items()}
        chance = np.zeros((len(prompts), 1))
        some = score_rows(label, prompts, chance, shown, (1,), about | {"verifier": "PARM++"}, {})
        rounds = runs.get(kind, own).rounds
        of_one = each if kind == "more" else each + once  # a correction reads a prompt of its own
        spent = spent_with_rounds(searched, rounds, of_one, explained=kind == "reflect")
        rows += [row | {"n": n, "cost": spent} for row in some]
    merge_rows(results / "scores.jsonl", rows)

    baseline = load_pool(out / "pools/baseline.safetensors")

    def rules(judge: str) -> dict[str, dict]:
        cost = pool.correct[judge].mean(1) - baseline.correct[judge].mean(1)
        reflecting = decide_f12(prompts, {kind: right[kind][judge].astype(float) for kind in right})
        return {"F11": decide_f11(prompts, cost), "F12": reflecting}

    write_findings(out, rules)
    lines = [
        {"prompt": prompt.text, "codes": own.codes[row].tolist(), "reasons": own.reasons[row], "kind": "reflect"}
        | {"log_odds": [round(float(x), 3) for x in own.log_odds[row] if not np.isnan(x)]}
        | {"right": verdicts["reflect"]["learned"][row].tolist(), "chosen": int(own.chosen[row])}
        for row, prompt in enumerate(prompts)
    ]
    write_rows(out / "pools/reflections.jsonl", lines)
    summary = {
        "by_round": {kind: by_round(run, verdicts[kind]["learned"]) for kind, run in runs.items()},
        "reasons": reasons_told(generator, own, prompts),
    }
    write_json(results / "reflection.json", summary)


def run_reflections(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    first: Tensor,
    explain: Explain | None,
    work_dir: Path,
) -> Reflections:
    """`reflect` for one image of every prompt; resumes from shards in `work_dir`.

    first: codes (P, L). explain: who gives the reasons, by default the verifier.
    """
    shards = [range(i, min(i + SHARD, len(prompts))) for i in range(0, len(prompts), SHARD)]

    def run(shard: range) -> dict[str, Tensor]:
        codes = torch.empty(len(shard), ROUNDS + 1, first.shape[1], dtype=torch.int16)
        odds = torch.full((len(shard), ROUNDS + 1), torch.nan)
        told: list[list[str]] = []
        for place, row in enumerate(shard):
            done: list[str] = []

            def say(image: Tensor, text: str, row: int = row, done: list[str] = done) -> str:
                done.append(explain(row, len(done), image, text) if explain else "")
                return done[-1]

            speaker = say if explain else None
            found = reflect(generator, verifier, prompts[row].text, first[row], row, ROUNDS, speaker)
            codes[place] = found.codes[[min(k, len(found.codes) - 1) for k in range(ROUNDS + 1)]]
            odds[place, : len(found.log_odds)] = found.log_odds
            told.append(found.reasons)
        text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        return {"codes": codes, "odds": odds, "reasons": text}

    about = generator.settings, [prompt.text for prompt in prompts], first.tolist()
    folder = work_dir / fingerprint((generator.model, verifier.model), *about)
    parts = in_shards(shards, run, folder, f"reflect ({work_dir.name})")
    odds = torch.cat([part["odds"] for part in parts]).numpy()
    reasons = [texts for part in parts for texts in json.loads(bytes(part["reasons"].tolist()))]
    rounds = (~np.isnan(odds)).sum(axis=1) - 1
    chosen = np.nanargmax(odds, axis=1)
    return Reflections(torch.cat([part["codes"] for part in parts]), odds, rounds, chosen, reasons)


def spent_with_rounds(
    searched: Mapping[str, float], rounds: npt.NDArray[np.int64], of_one: float, explained: bool
) -> dict[str, float]:
    """Passes of both models for one image kept, a mean over pools: the search's, and those of the rounds after it.

    rounds: of each pool (P,); of_one: generator passes of a round's image. The verifier is asked once, and once more
    after each round; where it gives the reasons itself (explained), that counts as one pass more a round, as in
    `reflect`, however long they are.
    """
    mean = float(rounds.mean())
    looks = 1 + mean * (2 if explained else 1)
    spent = {"generator_passes": of_one * mean, "verifier_passes": looks}
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


def draw_more(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    first: Tensor,
    own: Reflections,
    judges: Mapping[str, Detector],
    work_dir: Path,
) -> dict[str, npt.NDArray[np.bool_]]:
    """The control at equal calls: instead of each round of a reflection one more image from the prompt alone, and of
    all the one with the highest log-odds of yes to the reflection question. Returns judge → verdicts (P,)."""
    fresh, _, _ = draw_pool(generator, prompts, ROUNDS, seed=1, work_dir=work_dir)
    codes = torch.cat([first[:, None], fresh[:, :, -1]], dim=1)
    chosen = []
    for row, prompt in enumerate(prompts):
        some = codes[row, : own.rounds[row] + 1]
        images = generator.decode(some)
        chosen.append(int(verifier.score(images, prompt.text, REFLECTION_QUESTION).argmax()))
    kept = codes[torch.arange(len(prompts)), torch.tensor(chosen)][:, None]
    return {name: judge_tokens(generator, kept, prompts, judge)[:, 0] for name, judge in judges.items()}


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
    found = TemplateJudge().detect(generator.decode(run.codes[rows, 0])) if rows else []
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
