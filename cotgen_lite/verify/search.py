"""Test-time search with a verifier; each search returns its choice together with what it cost.

Best-of-n with an outcome reward model, and the process reward model's choice at every step (section 3.2); PARM, which
stops paths without potential and chooses among the others (section 4); PARM++, which reflects on an image and has it
corrected (section 5). Next: pool_search.py, which reads PARM's choices for every n off one pool.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator, GeneratorOutput, ImageGenerator, State
from cotgen_lite.generate.sampling import Cost, advance, branch, predict
from cotgen_lite.generate.showo import Showo
from cotgen_lite.inputs import of_kind, one_of, shaped, shown, text, whole, whole_numbers, with_methods
from cotgen_lite.verify.verifier import (
    ORM_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    Verifier,
    checked_odds,
    checked_prompt,
    checked_question,
)

MOST = 1000  # candidates or rounds: fresh noise has seeds 1000 · seed + number, so that more were another seed's


@dataclass(frozen=True)
class SearchResult:
    """The images among which a search chose at last, uint8 (K, 3, H, W), and its choice.

    log_odds: float32 (K,), the verifier's of them; chosen: which of them is its favourite.
    """

    prompt: str
    images: Tensor
    log_odds: Tensor
    chosen: int
    cost: Cost

    @property
    def image(self) -> Tensor:
        """The chosen image, uint8 (3, H, W)."""
        return self.images[self.chosen]


@contextmanager
def _searching() -> Iterator[Cost]:
    """A search's cost; all of its seconds that no verifier takes are the generator's."""
    cost, began = Cost(), time.perf_counter()
    yield cost
    cost.generator_seconds = time.perf_counter() - began - cost.verifier_seconds


@contextmanager
def _asking(cost: Cost, passes: int) -> Iterator[None]:
    """Charge what a verifier does here, in so many passes."""
    began = time.perf_counter()
    yield
    cost.verifier_passes += passes
    cost.verifier_seconds += time.perf_counter() - began


def _checked(
    generator: Any, verifier: Any, prompt: Any, n: Any, seed: Any, first_step: Any = 1, method: str = "score"
) -> tuple[str, int, int, int]:
    """Prompt, n, seed and first_step as plain values; ValueError for what no search can do, or for the wrong things."""
    with_methods(generator, "generator", ("begin", "decode"), "a generator, such as `load_generator` gives")
    with_methods(verifier, "verifier", ("score", method), "a verifier, such as `load_verifier` gives")
    first_step = whole(first_step, "first_step", 1, generator.settings.steps)
    return checked_prompt(prompt), whole(n, "n", 1, MOST), whole(seed, "seed"), first_step


@dataclass(frozen=True)
class BestOfN(SearchResult):
    """candidates: all n, with their tokens at every step."""

    candidates: GeneratorOutput


def best_of_n(
    generator: ImageGenerator[State],
    verifier: Verifier,
    prompt: str,
    n: int = 20,
    seed: int = 0,
    question: str = ORM_QUESTION,
) -> BestOfN:
    """Draw n images, ask the verifier about each, keep the one with the highest log-odds of yes.

    The candidates are the same for every verifier, and the first n of any larger n. n: 1 to 1000. ValueError for other
    n, a question without {prompt}, or log-odds that are not finite. Paper: section 3.2 (ORM).
    """
    prompt, n, seed, _ = _checked(generator, verifier, prompt, n, seed)
    question = checked_question(question)
    with _searching() as cost:
        out = generator(prompt, n, seed=seed)
        cost += out.cost
        images = out.images
        with _asking(cost, n):
            log_odds = checked_odds(verifier.score(images, prompt, question), verifier, [prompt] * n)
    return BestOfN(prompt, images, log_odds, int(log_odds.argmax()), cost, out)


@dataclass(frozen=True)
class PrmResult(SearchResult):
    """One path that was chosen step by step, and what it was chosen from; its images are those of the last
    step, decoded together.

    guesses: tokens int16 (T, N, L), each step's draws; step_log_odds: float32 (T, N), the verifier's, NaN before it may
    speak; taken: (T,), the draw that the path went on from; committed: bool (T, L), the path's.
    """

    guesses: Tensor
    step_log_odds: Tensor
    taken: Tensor
    committed: Tensor

    @property
    def path(self) -> Tensor:
        """The path's own guess at each step, int16 (T, L)."""
        return self.guesses[torch.arange(len(self.taken)), self.taken]


def prm_search(
    generator: Generator,
    verifier: Verifier,
    prompt: str,
    n: int = 20,
    seed: int = 0,
    question: str = PRM_QUESTION,
    first_step: int = 1,
) -> PrmResult:
    """At each step draw n guesses with their re-maskings, ask about each, go on from the one with the highest log-odds.

    All draws of a step come from one guided forward pass. first_step: from this step on, counted from 1, the verifier
    chooses; before it the path takes the first draw. ValueError for a first_step outside 1..T, or as `best_of_n`.
    Paper: section 3.2 (PRM), as the course's design reads it.
    """
    prompt, n, seed, first_step = _checked(generator, verifier, prompt, n, seed, first_step)
    if not isinstance(getattr(generator, "model", None), Showo):
        wanted = "a masked-token one for PRM search, as `load_generator` gives"
        raise ValueError(f"generator must be {wanted}, got {shown(generator)}.")
    question = checked_question(question)
    guesses, committed, beliefs, taken = [], [], [], []
    with _searching() as cost:
        state = generator.begin([prompt], [(0, 0)], seed, cost)
        while state.step < generator.settings.steps:
            logits = predict(generator.model, state)
            draws, step = advance(branch(state, [0] * n, range(seed * 1000, seed * 1000 + n)), logits[[0] * n])
            log_odds, best = torch.full((n,), torch.nan), 0
            if draws.step >= first_step:
                images = generator.decode(step.guess)
                with _asking(cost, n):
                    log_odds = checked_odds(verifier.score(images, prompt, question), verifier, [prompt] * n)
                best = int(log_odds.argmax())
            state = generator.keep(draws, [best])
            guesses.append(step.guess.to("cpu", torch.int16))
            committed.append(step.committed[best].cpu())
            beliefs.append(log_odds)
            taken.append(best)
    steps = torch.stack(guesses), torch.stack(beliefs), torch.tensor(taken), torch.stack(committed)
    return PrmResult(prompt, images, log_odds, best, cost, *steps)


Assess = Literal["every", "first"]


def shows_no_potential(
    clarity: npt.ArrayLike, potential: npt.ArrayLike, assess: Assess = "every"
) -> npt.NDArray[np.bool_]:
    """PARM's stopping rule: at which steps an image is clear, and has no potential. There a path is stopped.

    clarity, potential: log-odds of yes (..., steps), NaN where not asked. assess: "every" asks about potential at every
    clear step, as the paper's text says; "first" at a path's first clear step only, as its released code does, which
    differs otherwise: see "Where the released program differs" in notebooks/FULL_SCALE.md.
    ValueError for other words, log-odds that are infinite, or no potential of a clear image.
    """
    clear, hopeful = np.asarray(clarity), np.asarray(potential)
    for name, odds in (("clarity", clear), ("potential", hopeful)):
        if odds.dtype.kind not in "iuf" or not odds.ndim or np.isinf(odds).any():
            raise ValueError(f"{name} must be log-odds (..., steps), finite or NaN for not asked, got {shown(odds)}.")
    shaped(hopeful, "potential", clear.shape)
    asked = clear > 0
    if one_of(assess, "assess", get_args(Assess)) == "first":
        asked &= np.cumsum(asked, axis=-1) == 1
    if np.isnan(hopeful[asked]).any():
        raise ValueError("potential must be a number wherever an image is clear, but it is NaN at some of these steps.")
    return asked & (hopeful <= 0)


@dataclass
class ParmPath:
    """One of PARM's paths, and what PARM said of it.

    guesses: of each step that it ran, tokens int16 (L,); clarity, potential: log-odds at each step at which it ran on
    or was stopped, NaN before PARM asks (potential counts only where the image is clear); stopped_at: the step, counted
    from 1, after which PARM stopped it, if it did.
    """

    candidate: int
    guesses: list[Tensor] = field(default_factory=list, repr=False)
    clarity: list[float] = field(default_factory=list)
    potential: list[float] = field(default_factory=list)
    stopped_at: int | None = None


@dataclass(frozen=True)
class ParmResult(SearchResult):
    """PARM's paths and choice; its images are the finished ones: of the paths that were not stopped, or of the resumed
    one. kept: the path of the chosen image."""

    paths: list[ParmPath]
    kept: ParmPath


def parm_search(
    generator: ImageGenerator[State],
    verifier: Verifier,
    prompt: str,
    n: int = 20,
    seed: int = 0,
    assess: Assess = "every",
    first_step: int = 1,
) -> ParmResult:
    """Draw n paths, stop those that show no potential once they are clear, choose the best of the others.

    A stopped path costs nothing more. If no path is left, the one that was stopped with the least doubt (highest
    log-odds of potential) is resumed to the end. The paths are those of `best_of_n` with the same seed.
    assess: as in `shows_no_potential`. first_step: the first at which PARM asks, counted from 1; the paper's is 1.
    ValueError for a first_step outside 1..T, or as `best_of_n`. Paper: section 4.
    """
    prompt, n, seed, first_step = _checked(
        generator, verifier, prompt, n, seed, first_step, method="clarity_and_potential"
    )
    one_of(assess, "assess", get_args(Assess))
    unasked = [math.nan] * (first_step - 1)
    paths = [ParmPath(candidate, [], [*unasked], [*unasked]) for candidate in range(n)]
    running, least_doubted, steps = paths, None, generator.settings.steps
    with _searching() as cost:
        state = generator.begin([prompt], [(0, path.candidate) for path in paths], seed, cost)
        while state.step < steps:
            state, step = generator.advance(state)
            for path, guess in zip(running, step.guess.to("cpu", torch.int16), strict=True):
                path.guesses.append(guess)
            if not first_step <= state.step < steps or running[0].stopped_at:  # a resumed path is not asked about
                continue
            images = generator.decode(step.guess)
            with _asking(cost, len(images)):  # tasks 1 and 2: clarity judgement and potential assessment
                said, asked = verifier.clarity_and_potential(images, prompt), [prompt] * len(images)
            clarity, potential = (checked_odds(odds, verifier, asked) for odds in said)
            for row, path in enumerate(running):
                path.clarity.append(clarity[row].item())
                path.potential.append(potential[row].item())
                if shows_no_potential(path.clarity, path.potential, assess)[-1]:
                    path.stopped_at = state.step
                    if least_doubted is None or path.potential[-1] > least_doubted[0].potential[-1]:
                        least_doubted = path, generator.keep(state, [row])
            alive = [row for row, path in enumerate(running) if not path.stopped_at]
            if not alive and least_doubted is not None:
                running, state = [least_doubted[0]], least_doubted[1]
            elif len(alive) < len(running):
                running, state = [running[row] for row in alive], generator.keep(state, alive)
        images = generator.decode(step.guess)
        with _asking(cost, len(images)):  # task 3: best-of-n selection among what is left
            log_odds = checked_odds(verifier.score(images, prompt), verifier, [prompt] * len(images))
    best = int(log_odds.argmax())
    return ParmResult(prompt, images, log_odds, best, cost, paths, running[best])


@dataclass(frozen=True)
class Reflection(SearchResult):
    """An image and what became of it in R rounds of correction: R + 1 images, the first one first.

    log_odds: of yes to the reflection question; tokens: int16 (R + 1, L); reasons: R texts, each of the image before.
    """

    tokens: Tensor
    reasons: list[str]


def reflect(
    generator: Generator,
    verifier: Verifier,
    prompt: str,
    tokens: Tensor,
    seed: int = 0,
    rounds: int = 3,
    explain: Callable[[Tensor, str], str] | None = None,
) -> Reflection:
    """Ask whether an image is right; where not, have it corrected by the reasons given, until it is or rounds are over.

    Each round draws one image from prompt, last image and reasons. Without a yes, the image with the highest log-odds
    seen is kept. tokens: of the first image, int (L,). rounds: 0 to 999. explain: from an image (3, H, W) and the
    prompt to the reasons; by default the verifier's own. ValueError for tokens of another shape, other rounds, or
    log-odds that are not finite. Paper: section 5 (at most three rounds).
    """
    able = 'a generator that corrects, such as `load_generator("self-correct")` gives'
    with_methods(generator, "generator", ("correct", "decode"), able)
    methods = ("score",) if explain else ("score", "explain")
    with_methods(verifier, "verifier", methods, "a verifier, such as `load_verifier` gives")
    prompt, seed, rounds = checked_prompt(prompt), whole(seed, "seed"), whole(rounds, "rounds", 0, MOST - 1)
    if explain is not None and not callable(explain):
        raise ValueError(f"explain must be a function from image and prompt to reasons, got {shown(explain)}.")
    shaped(of_kind(tokens, "tokens", Tensor, "a tensor of tokens"), "tokens", (generator.num_image_tokens,))
    whole_numbers(tokens, "tokens")
    odds: list[float] = []
    reasons: list[str] = []
    with _searching() as cost:
        drawn, images = [tokens.to("cpu", torch.int16)], [generator.decode(tokens)]
        while True:
            with _asking(cost, 1):
                said = verifier.score(images[-1], prompt, REFLECTION_QUESTION)
            odds.append(checked_odds(said, verifier, [prompt]).item())
            if odds[-1] > 0 or len(reasons) == rounds:
                break
            with _asking(cost, 1):
                why = explain(images[-1][0], prompt) if explain else verifier.explain(images[-1], prompt)[0]
            reasons.append(text(why, "what explain gives"))
            out = generator.correct(prompt, drawn[-1], reasons[-1], seed=seed * 1000 + len(reasons))
            cost += out.cost
            drawn.append(out.steps[0, -1])
            images.append(out.images)
    log_odds = torch.tensor(odds)
    best = int(log_odds.argmax())
    return Reflection(prompt, torch.cat(images), log_odds, best, cost, torch.stack(drawn), reasons)
