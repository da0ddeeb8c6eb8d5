"""Test-time search with a verifier; each search returns its choice together with what it cost.

Paper: section 3.2 (best-of-n with an outcome reward model; step by step with a process reward model) and section 4
(PARM: stop paths without potential, choose among the others) and section 5 (PARM++: reflect, and correct).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import (
    MASKED,
    Ledger,
    Trajectory,
    advance,
    branch,
    encode_prompts,
    keep,
    predict,
    start,
)
from cotgen_lite.generate.showo import text_prefix
from cotgen_lite.prompts import encode_text
from cotgen_lite.verify.verifier import (
    ORM_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    Verifier,
)


@dataclass(frozen=True)
class Cost:
    """What a search spent: forward passes of both models (the generator's conditional and unconditional ones each
    counted, prompts included), sequence places that the generator computed, and seconds of both."""

    generator_passes: int
    verifier_passes: int
    tokens: int
    generator_seconds: float
    verifier_seconds: float

    @property
    def seconds(self) -> float:
        return self.generator_seconds + self.verifier_seconds


@dataclass(frozen=True)
class SearchResult:
    """The candidates of one prompt and the choice among them.

    images: uint8 (N, 3, H, W), the finished candidates; log_odds: float32 (N,), the verifier's; chosen: its favourite.
    """

    prompt: str
    trajectories: list[Trajectory]
    images: Tensor
    log_odds: Tensor
    chosen: int
    cost: Cost

    @property
    def image(self) -> Tensor:
        """The chosen picture, uint8 (3, H, W)."""
        return self.images[self.chosen]


def best_of_n(
    generator: AnyGenerator,
    verifier: Verifier,
    prompt: str,
    n: int,
    seed: int,
    question: str = ORM_QUESTION,
) -> SearchResult:
    """Draw n pictures, ask the verifier about each, keep the one with the highest log-odds of yes.

    The candidates are the same for every verifier, and the first n of any larger n. ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"Best-of-n chooses among n candidates: n must be 1 or more, got {n}.")
    started = time.perf_counter()
    ledger = Ledger()
    trajectories = generator.draw([prompt], n, seed, ledger=ledger)[0]
    images = generator.decode(torch.stack([trajectory.final for trajectory in trajectories]))
    drawn = time.perf_counter()
    log_odds = verifier.score(images, prompt, question)
    scored = time.perf_counter()
    cost = Cost(ledger.passes + ledger.prefix_passes, n, ledger.places, drawn - started, scored - drawn)
    return SearchResult(prompt, trajectories, images, log_odds, int(log_odds.argmax()), cost)


@dataclass(frozen=True)
class StepwiseResult:
    """One path that was chosen step by step, and what it was chosen from.

    guesses: codes int16 (T, N, L), each step's draws. log_odds: float32 (T, N), the verifier's; NaN before it may
    speak. chosen: (T,), the draw that the path went on from. image: uint8 (3, H, W).
    """

    prompt: str
    trajectory: Trajectory
    guesses: Tensor
    log_odds: Tensor
    chosen: Tensor
    image: Tensor
    cost: Cost


def stepwise_best_of_n(
    generator: Generator,
    verifier: Verifier,
    prompt: str,
    n: int,
    seed: int,
    question: str = PRM_QUESTION,
    first_step: int = 1,
) -> StepwiseResult:
    """At each step draw n guesses with their re-maskings, ask about each, go on from the one with the highest log-odds.

    All draws of a step come from one guided forward pass. first_step: from this step on, counted from 1, the verifier
    chooses; before it the path takes the first draw. ValueError for n < 1 or a first_step outside 1..T.
    Paper: section 3.2 (PRM), as the course's design reads it.
    """
    steps = generator.settings.steps
    if n < 1 or not 1 <= first_step <= steps:
        raise ValueError(
            f"Step by step, n must be 1 or more and first_step 1 to {steps}; got n = {n}, first_step = {first_step}."
        )
    started, asking, ledger, model = time.perf_counter(), 0.0, Ledger(), generator.model
    cache = encode_prompts(model, [text_prefix(model.config, encode_text(generator.text_tokenizer, prompt))], ledger)
    state = start(model, cache, [(0, 0)], generator.settings, seed, ledger)
    guesses, committed, beliefs, favourites = [], [], [], []
    while state.step < steps:
        logits = predict(model, state)
        draws, step = advance(branch(state, [0] * n, range(seed * 1000, seed * 1000 + n)), logits[[0] * n])
        log_odds = torch.full((n,), torch.nan)
        if draws.step >= first_step:
            images = generator.decode(step.guess)
            asked = time.perf_counter()
            log_odds = verifier.score(images, prompt, question)
            asking += time.perf_counter() - asked
        best = int(log_odds.argmax()) if draws.step >= first_step else 0
        state = keep(draws, [best])
        guesses.append(step.guess.to("cpu", torch.int16))
        committed.append(step.committed[best].cpu())
        beliefs.append(log_odds)
        favourites.append(best)
    chosen = torch.tensor(favourites)
    path = torch.stack([guess[best] for guess, best in zip(guesses, favourites, strict=True)])
    image = generator.decode(path[-1])[0]
    cost = Cost(
        ledger.passes + ledger.prefix_passes,
        n * (steps - first_step + 1),
        ledger.places,
        time.perf_counter() - started - asking,
        asking,
    )
    trajectory = Trajectory(prompt, 0, path, torch.stack(committed))
    return StepwiseResult(prompt, trajectory, torch.stack(guesses), torch.stack(beliefs), chosen, image, cost)


Assess = Literal["every", "first"]


@dataclass(frozen=True)
class ParmResult:
    """N paths of one prompt, some of them stopped on the way, and the choice among those that were not.

    guesses: codes int16 (T, N, L), MASKED where a path did not come to the step. clarity, potential: log-odds float32
    (T, N), NaN where not asked. steps: (N,), how many each path ran. survived: bool (N,). log_odds: float32 (N,), the
    verifier's of the finished images, NaN for paths without one. chosen: the path of `image`, uint8 (3, H, W).
    """

    prompt: str
    guesses: Tensor
    clarity: Tensor
    potential: Tensor
    steps: Tensor
    survived: Tensor
    log_odds: Tensor
    chosen: int
    image: Tensor
    cost: Cost


def parm_search(
    generator: AnyGenerator,
    verifier: Verifier,
    prompt: str,
    n: int,
    seed: int,
    assess: Assess = "every",
    first_step: int = 1,
) -> ParmResult:
    """Draw n paths, stop those that show no potential once they are clear, choose the best of the others.

    At each step but the last the verifier reads the guess of every path that still runs: is it clear enough to judge?
    and, in the same pass, has it potential? Clear without potential: the path stops there and costs nothing more. Of
    the finished images the one with the highest log-odds wins. If no path is left, the one that was stopped with the
    least doubt (highest log-odds of potential) is resumed to the end.

    The paths are those of `best_of_n` with the same seed. assess: "every" asks about potential at every clear step, as
    the paper's text says; "first" at a path's first clear step only, as its released code does. first_step: the first
    at which it asks, counted from 1; the paper's is 1. ValueError for n < 1 or a first_step outside 1..T.
    Paper: section 4.
    """
    if n < 1 or not 1 <= first_step <= generator.settings.steps:
        raise ValueError(
            f"PARM chooses among n paths: n must be 1 or more and first_step 1 to {generator.settings.steps}; "
            f"got n = {n}, first_step = {first_step}."
        )
    started, asking, asked, ledger = time.perf_counter(), 0.0, 0, Ledger()
    # The loop is the same for every generator, and so are its names; their states are not of one type.
    source: Any = generator
    state = source.begin([prompt], [(0, path) for path in range(n)], seed, ledger)
    steps, running = generator.settings.steps, list(range(n))
    guesses = torch.full((steps, n, generator.model.config.num_image_tokens), MASKED, dtype=torch.int16)
    clarity, potential = torch.full((steps, n), torch.nan), torch.full((steps, n), torch.nan)
    ran, judged = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
    stopped: dict[int, Any] = {}

    while running and state.step < steps:
        state, step = source.advance(state)
        at = step.index
        guesses[at, running], ran[running] = step.guess.to("cpu", torch.int16), at + 1
        if state.step == steps:
            break
        if state.step < first_step:
            continue
        images, began = generator.decode(step.guess), time.perf_counter()
        odds = torch.stack(verifier.clarity_and_potential(images, prompt), dim=1)
        asking, asked = asking + time.perf_counter() - began, asked + len(running)
        clarity[at, running] = odds[:, 0]
        clear = odds[:, 0] > 0
        if assess == "first":
            clear &= ~judged[running]
        heard = torch.where(clear, odds[:, 1], torch.nan)
        potential[at, running] = heard
        judged[running] |= clear
        hopeless = (heard <= 0).tolist()
        stopped |= {path: source.keep(state, [row]) for row, path in enumerate(running) if hopeless[row]}
        if any(hopeless):
            alive = [row for row in range(len(running)) if not hopeless[row]]
            state, running = source.keep(state, alive), [running[row] for row in alive]

    survived = torch.zeros(n, dtype=torch.bool)
    survived[running] = True
    if not running:
        last = {path: potential[halted.step - 1, path].item() for path, halted in stopped.items()}
        running = [max(last, key=lambda path: last[path])]
        state = stopped[running[0]]
        while state.step < steps:
            state, step = source.advance(state)
            guesses[step.index, running] = step.guess.to("cpu", torch.int16)
        ran[running] = steps

    images, began = generator.decode(guesses[-1, running]), time.perf_counter()
    log_odds = torch.full((n,), torch.nan)
    log_odds[running] = verifier.score(images, prompt)
    asking, asked = asking + time.perf_counter() - began, asked + len(running)
    best = int(log_odds[running].argmax())
    cost = Cost(
        ledger.passes + ledger.prefix_passes,
        asked,
        ledger.places,
        time.perf_counter() - started - asking,
        asking,
    )
    return ParmResult(prompt, guesses, clarity, potential, ran, survived, log_odds, running[best], images[best], cost)


@dataclass(frozen=True)
class ReflectResult:
    """An image and what became of it in R rounds of correction.

    codes: int16 (R + 1, L), the first image's first; images: uint8 (R + 1, 3, H, W); log_odds: float32 (R + 1,), of
    yes to the reflection question; reasons: R texts, each of the image before; chosen: which image is kept.
    """

    prompt: str
    codes: Tensor
    images: Tensor
    log_odds: Tensor
    reasons: list[str]
    chosen: int
    cost: Cost

    @property
    def image(self) -> Tensor:
        """The picture that is kept, uint8 (3, H, W)."""
        return self.images[self.chosen]


def reflect(
    generator: Generator,
    verifier: Verifier,
    prompt: str,
    codes: Tensor,
    seed: int,
    rounds: int = 3,
    explain: Callable[[Tensor, str], str] | None = None,
) -> ReflectResult:
    """Ask whether an image is right; where not, have it corrected by the reasons given, until it is or rounds are over.

    Each round draws one image from prompt, last image and reasons. Without a yes, the image with the highest log-odds
    seen is kept. codes: of the first image, (L,). explain: from an image (3, H, W) and the prompt to the reasons; by
    default the verifier's own. Paper: section 5 (at most three rounds).
    """
    started, asking, ledger = time.perf_counter(), 0.0, Ledger()
    explain = explain or (lambda image, text: verifier.explain(image[None], text)[0])
    drawn, images = [codes.to("cpu", torch.int16)], [generator.decode(codes)[0]]
    odds: list[float] = []
    reasons: list[str] = []

    def ask() -> float:
        return verifier.score(images[-1][None], prompt, REFLECTION_QUESTION).item()

    while True:
        began = time.perf_counter()
        odds.append(ask())
        if odds[-1] > 0 or len(reasons) == rounds:
            asking += time.perf_counter() - began
            break
        reasons.append(explain(images[-1], prompt))
        asking += time.perf_counter() - began
        key = seed * 1000 + len(reasons)
        out = generator.correct(prompt, drawn[-1], reasons[-1], seed=key)
        ledger += out.cost
        drawn.append(out.tokens[0])
        images.append(generator.decode(drawn[-1])[0])

    cost = Cost(
        ledger.passes + ledger.prefix_passes,
        len(odds) + len(reasons),
        ledger.places,
        time.perf_counter() - started - asking,
        asking,
    )
    log_odds = torch.tensor(odds)
    return ReflectResult(
        prompt, torch.stack(drawn), torch.stack(images), log_odds, reasons, int(log_odds.argmax()), cost
    )
