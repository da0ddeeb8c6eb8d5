"""Test-time search with a verifier; each search returns its choice together with what it cost.

Paper: section 3.2 (best-of-n with an outcome reward model).
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from cotgen_lite.generator import Generator
from cotgen_lite.sampling import Ledger, Trajectory
from cotgen_lite.verifier import ORM_QUESTION, Verifier


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
