"""How everything is measured: draw a pool, judge it, let verifiers score it, write rows for every n, decide.

`Bench` is where a step of the build measures, `measure_pool` the pattern itself. The measure_*.py beside it say what is
special: what is drawn, who verifies, which rows. Rows are made in results.py, findings decided in findings.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.results import (
    SIZES,
    TIMES,
    Price,
    merge_rows,
    note_seconds,
    read_seconds,
    row_name,
    score_rows,
    score_tokens,
)
from cotgen_lite.generate.pipeline import (
    GeneratedPool,
    Generator,
    ImageGenerator,
    generate_pool,
    judge_tokens,
    load_generator,
)
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import write_json
from cotgen_lite.lite.judges import load_judges
from cotgen_lite.pools import Pool, load_pool, save_pool, stratified_subset
from cotgen_lite.prompts import Prompt
from cotgen_lite.verify.search import SearchResult
from cotgen_lite.verify.verifier import Verifier

AnyGenerator = ImageGenerator[Any]
ORMS = {"zs-orm": "verifier", "ft-orm": "orm"}  # method → folder of the verifier
SHORT_NAMES = {  # generator → its images alone, and what stands before a verifier's name
    "baseline": ("baseline", ""),
    "sequential": ("seq:baseline", "seq:"),
    "sequential-dpo": ("seq:dpo", "seq:dpo+"),
}
VERIFIER_NAMES = {"zs-orm": "zero-shot", "ft-orm": "fine-tuned ORM", "zs-prm": "zero-shot", "ft-prm": "fine-tuned PRM"}


@dataclass(frozen=True)
class Bench:
    """Where a step of the build measures: models are read from `out`, pools and results written there; what is drawn is
    kept in `work`, from which an interrupted step goes on. step: its name, which rows tell as the command."""

    out: Path
    work: Path
    config: Config
    step: str

    @cached_property
    def judges(self) -> dict[str, Detector]:
        """Both: "learned", which reports, and "template", which labels what is learned from."""
        return load_judges(self.out / "models")

    @cached_property
    def orms(self) -> dict[str, Verifier]:
        """The zero-shot and the fine-tuned ORM, by method."""
        return {method: self.verifier(folder) for method, folder in ORMS.items()}

    @property
    def sizes(self) -> list[int]:
        """The n of best-of-n that a pool holds."""
        return [n for n in SIZES if n <= self.config.pool_size]

    def generator(self, name: str = "baseline") -> Generator:
        return load_generator("generator" if name == "baseline" else name, models=self.out / "models")

    def verifier(self, folder: str) -> Verifier:
        return Verifier.from_pretrained(self.out / "models" / folder)

    def pool(self, name: str = "baseline") -> Pool:
        return load_pool(self.out / f"pools/{name}.safetensors")

    def save_pool(self, name: str, pool: Pool) -> None:
        save_pool(pool, self.out / f"pools/{name}.safetensors")

    def write(self, name: str, found: object) -> None:
        """Write one of the results, as JSON."""
        write_json(self.out / f"results/{name}.json", found)

    def note_seconds(self, name: str, seconds: Mapping[str, object]) -> None:
        """Write measured seconds beside the work, under the name of the results that they belong to."""
        note_seconds(self.work.parent / TIMES, name, seconds)

    def seconds(self, name: str) -> dict[str, Any]:
        """What was noted under a name; nothing if the folder of work is gone."""
        return read_seconds(self.work.parent / TIMES).get(name, {})

    def generate(self, generator: AnyGenerator, prompts: Sequence[Prompt], n: int, seed: int = 0) -> GeneratedPool:
        """N candidates of every prompt, as `generate_pool`."""
        return generate_pool(generator, prompts, n, seed, self.work / "pool")

    def judge(self, generator: AnyGenerator, tokens: Tensor, prompts: Sequence[Prompt]) -> dict[str, npt.NDArray]:
        """Both judges' verdicts, bool (P, N), on images of tokens (P, N, L)."""
        return {name: judge_tokens(generator, tokens, prompts, one) for name, one in self.judges.items()}

    def generate_dev(
        self, generator: AnyGenerator, n: int, seed: int = 0
    ) -> tuple[tuple[Prompt, ...], GeneratedPool, npt.NDArray]:
        """The dev prompts, n candidates of each, and the training judge's verdicts (P, N)."""
        prompts = self.config.dev_prompts
        drawn = self.generate(generator, prompts, n, seed)
        return prompts, drawn, judge_tokens(generator, drawn.tokens, prompts, self.judges["template"])

    def add_rows(
        self,
        method: str,
        generator: str,
        pool: Pool,
        cost: Price,
        order: npt.NDArray | Mapping[str, npt.NDArray] | None = None,
        by_chance: int = 1,
        **fields: object,
    ) -> None:
        """Write a method's rows into scores.jsonl: for every n by an order, or for one n by chance.

        generator: its name; pool: prompts and verdicts; cost, order: as in `score_rows`. fields: what else a row says
        ("verifier", "seed"), or says otherwise.
        """
        command = f"python -m cotgen_lite.build {self.step}"
        about = {"generator": generator, "verifier": None, "seed": 0, "command": command}
        sizes = (by_chance,) if order is None else self.sizes
        rows = [row | fields for row in score_rows(method, pool.prompts, pool.correct, sizes, about, cost, order)]
        self.note_seconds(
            "scores", {row_name(row): row["cost"].pop("seconds") for row in rows if "seconds" in row["cost"]}
        )
        merge_rows(self.out / "results/scores.jsonl", rows)


def method_name(generator: str, verifier: str = "") -> str:
    """How rows name a generator's images alone, and those that a verifier chose among them."""
    alone, on_top = SHORT_NAMES.get(generator, (generator, f"{generator}+"))
    return on_top + verifier if verifier else alone


def measure_pool(
    bench: Bench,
    generator: AnyGenerator,
    name: str,
    verifiers: Mapping[str, Verifier],
    prompts: Sequence[Prompt] | None = None,
) -> tuple[Pool, GeneratedPool]:
    """Draw a generator's pool, judge it, let verifiers choose in it; the pool and its rows go under `bench.out`.

    name: the pool's and the generator's. verifiers: by method. prompts: by default those of the baseline's pools, whose
    seeds are the same. Returns the pool, with all its steps.
    """
    prompts, n = tuple(prompts or bench.pool().prompts), bench.config.pool_size
    drawn = bench.generate(generator, prompts, n)
    pool = Pool(prompts, drawn.tokens, {}, bench.judge(generator, drawn.tokens, prompts))
    seconds = drawn.cost.seconds / (len(prompts) * n)
    cost = cost_of_best_of(generator, prompts[0].text, seconds)
    bench.add_rows(method_name(name), name, pool, cost)
    if name == "baseline":
        bench.add_rows("random", name, pool, cost, by_chance=n)
    bench.add_rows(method_name(name, "oracle"), name, pool, cost, pool.correct)
    for method, verifier in verifiers.items():
        pool = let_choose(bench, generator, name, pool, method, verifier, seconds)
    return pool, drawn


def let_choose(
    bench: Bench, generator: AnyGenerator, name: str, pool: Pool, method: str, verifier: Verifier, seconds: float
) -> Pool:
    """A verifier's choice in a generator's pool: its rows, and the pool saved and returned with its scores.

    method, name: of verifier and generator; seconds: that drawing one image took.
    """
    log_odds, reading = score_pool(generator, verifier, pool)
    cost = cost_of_best_of(generator, pool.prompts[0].text, seconds + reading, verifier_passes=1)
    bench.add_rows(method_name(name, method), name, pool, cost, log_odds, verifier=VERIFIER_NAMES[method])
    pool = replace(pool, scores=pool.scores | {method: log_odds})
    bench.save_pool(name, pool)
    return pool


def score_pool(generator: AnyGenerator, verifier: Verifier, pool: Pool) -> tuple[npt.NDArray[np.float32], float]:
    """Log-odds (P, N) in half precision, as a pool keeps them, so that its file gives these very results; and seconds
    for each image."""
    log_odds, seconds = score_tokens(generator, verifier, pool.tokens, pool.prompts)
    return log_odds.astype(np.float16).astype(np.float32), seconds / log_odds.size


def cost_of_drawing(generator: AnyGenerator, prompt: str) -> tuple[dict[str, float], dict[str, float]]:
    """Passes and tokens of each further candidate, and what comes on top once: the prompt, the first step."""
    one, two = (generator(prompt, n).cost for n in (1, 2))
    each = {key: float(getattr(two, key) - getattr(one, key)) for key in ("generator_passes", "tokens")}
    return each, {key: getattr(one, key) - value for key, value in each.items()}


def cost_of_best_of(
    generator: AnyGenerator, prompt: str, seconds: float, verifier_passes: float = 0.0
) -> Callable[[int], dict[str, float]]:
    """From n to the cost of n candidates, of each of which seconds and verifier passes are told."""
    each, once = cost_of_drawing(generator, prompt)
    each |= {"seconds": seconds, "verifier_passes": verifier_passes}
    return lambda n: {key: round(value * n + once.get(key, 0), 4) for key, value in each.items()}


def time_search(prompts: Sequence[Prompt], search: Callable[..., SearchResult]) -> float:
    """Mean seconds of a search, on a prompt of each tag. Timed anew: shards may be of other hours."""
    texts = [prompt.text for prompt in stratified_subset(list(dict.fromkeys(prompts)), most=1)]
    return round(float(np.mean([search(prompt=text, seed=0).cost.seconds for text in texts])), 4)


def by_step(measured: Callable[..., float], values: npt.NDArray, correct: npt.NDArray) -> list[float | None]:
    """A measure such as the AUC of values (P, N, T) against verdicts (P, N), step by step."""
    return [rounded(measured(values[:, :, step], correct)) for step in range(values.shape[2])]


def rounded(value: float) -> float | None:
    """To four places, for JSON, which knows no nan."""
    return None if np.isnan(value) else round(float(value), 4)
