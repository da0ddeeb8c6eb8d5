"""Test-time search with a verifier; each search returns its choice together with what it cost.

Paper: section 3.2 (best-of-n with an outcome reward model; step by step with a process reward model).
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from cotgen_lite.generator import Generator
from cotgen_lite.sampling import Ledger, Trajectory, advance, branch, encode_prompts, keep, predict, start
from cotgen_lite.showo import text_prefix
from cotgen_lite.verifier import ORM_QUESTION, PRM_QUESTION, Verifier
from cotgen_lite.vocabulary import encode_text


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
    generator: Generator,
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
    log_odds = verifier.score(images, [prompt] * n, question)
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
    cache = encode_prompts(model, [text_prefix(model.config, encode_text(generator.words, prompt))], ledger)
    state = start(model, cache, [(0, 0)], generator.settings, seed, ledger)
    guesses, committed, beliefs, favourites = [], [], [], []
    while state.step < steps:
        logits = predict(model, state)
        draws, step = advance(branch(state, [0] * n, range(seed * 1000, seed * 1000 + n)), logits[[0] * n])
        log_odds = torch.full((n,), torch.nan)
        if draws.step >= first_step:
            images = generator.decode(step.guess)
            asked = time.perf_counter()
            log_odds = verifier.score(images, [prompt] * n, question)
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
