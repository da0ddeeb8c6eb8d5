"""PARM read off a pool: what it says of all paths, which of them it stops and keeps for any n, and what that spends.

Exact, because paths do not depend on each other: `search.parm_search` would do the same, by the same stopping rule.
Paper: section 4. Next: training_data.py, where PARM's examples come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import ImageGenerator, State
from cotgen_lite.identity import fingerprint, named_by
from cotgen_lite.inputs import finite, folder, of_kind, one_of, settle, shaped, verdicts, whole, with_methods, yes_or_no
from cotgen_lite.metrics import expected_best_of
from cotgen_lite.pools import SHARD, Pool, in_shards, read_arrays, write_arrays
from cotgen_lite.prompts import Prompt, each_prompt
from cotgen_lite.verify.search import Assess, shows_no_potential
from cotgen_lite.verify.verifier import Verifier, checked_odds


@dataclass(frozen=True)
class Opinions:
    """What PARM says of the paths of a pool.

    clarity, potential: log-odds float32 (P, N, T − 1), of every step but the last, NaN where not asked, as after the
    step at which a path is stopped; selection: (P, N), of the finished images, those of stopped paths as well.
    """

    clarity: npt.NDArray[np.float32]
    potential: npt.NDArray[np.float32]
    selection: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        finite(shaped(self.selection, "selection", ("P", "N")), "selection")
        shaped(self.clarity, "clarity", (*self.selection.shape, "T − 1"))
        shaped(self.potential, "potential", self.clarity.shape)
        for name, odds in (("clarity", self.clarity), ("potential", self.potential)):
            finite(odds[~np.isnan(odds)] if odds.dtype.kind == "f" else odds, f"{name} where it was asked")


@dataclass(frozen=True)
class Outcome:
    """What `parm_search` would do on a pool: steps that each path runs, int (P, N); whether it survives, bool (P, N);
    and by which order the choice falls, float (P, N): survivors by selection, above the stopped ones by potential.
    first_step: the first at which it asks, counted from 1."""

    steps: npt.NDArray[np.int64]
    survived: npt.NDArray[np.bool_]
    order: npt.NDArray[np.float64]
    first_step: int = 1

    def __post_init__(self) -> None:
        verdicts(self.survived, "survived", ("P", "N"))
        finite(shaped(self.order, "order", self.survived.shape), "order")
        if shaped(self.steps, "steps", self.survived.shape).dtype.kind not in "iu" or self.steps.min(initial=1) < 1:
            raise ValueError("steps must be whole numbers of at least 1: how many each path runs.")
        settle(self, first_step=whole(self.first_step, "first_step", 1))


def ask_of_paths(
    generator: ImageGenerator[State],
    verifier: Verifier,
    guesses: Tensor,
    prompts: Sequence[Prompt],
    work_dir: Path,
    first_step: int = 1,
    stop: bool = True,
) -> Opinions:
    """PARM's opinions of a pool's guesses (P, N, T, L); resumes from shards in `work_dir`.

    A path is asked about from first_step on (counted from 1) until it is clear and without potential, which is all that
    `stop_paths` needs; or, without stop, to its end. Opinions are kept in half precision, as pools keep scores.
    Shards are kept apart by all that they hang on: verifier and its processor, questions, prompts, guesses. ValueError
    for guesses and prompts that do not belong together, a first_step outside 1..T, or log-odds that are not finite.
    """
    work_dir = folder(work_dir, "work_dir")
    with_methods(generator, "generator", ("decode",), "a generator, such as `load_generator` gives")
    with_methods(verifier, "verifier", ("score", "clarity_and_potential"), "a verifier, such as `load_verifier` gives")
    prompts = each_prompt(prompts)
    shaped(of_kind(guesses, "guesses", Tensor, "a tensor of tokens"), "guesses", (len(prompts), "N", "T", "L"))
    if not prompts or not guesses.numel() or guesses.shape[2] < 2:
        raise ValueError(f"There must be paths of two steps at least to ask about, got {tuple(guesses.shape)}.")
    first_step, stop = whole(first_step, "first_step", 1, guesses.shape[2]), yes_or_no(stop, "stop")
    shards = [range(i, min(i + SHARD, len(prompts))) for i in range(0, len(prompts), SHARD)]

    def ask(shard: range) -> dict[str, Tensor]:
        odds = torch.full((len(shard), guesses.shape[1], guesses.shape[2] - 1, 2), torch.nan)
        final = []
        for place, row in enumerate(shard):
            prompt, running = prompts[row].text, torch.arange(guesses.shape[1])
            for step in range(first_step - 1, guesses.shape[2] - 1):
                if not len(running):
                    break
                images = generator.decode(guesses[row, running, step])
                both = [odds.half().float() for odds in verifier.clarity_and_potential(images, prompt)]
                said = torch.stack([checked_odds(odds, verifier, [prompt] * len(images)) for odds in both])
                odds[place, running, step] = said.T
                if stop:
                    running = running[torch.from_numpy(~shows_no_potential(*said[..., None])[:, 0])]
            images = generator.decode(guesses[row, :, -1])
            final.append(checked_odds(verifier.score(images, prompt).half(), verifier, [prompt] * len(images)))
        return {"odds": odds.half(), "final": torch.stack(final)}

    networks, asked = named_by(verifier, generator.image_tokenizer)
    about = asked, prompts, guesses, first_step, stop, SHARD
    name = fingerprint(networks, *about)
    parts = in_shards(shards, ask, work_dir / name, "PARM")
    odds, final = (torch.cat([part[name] for part in parts]).float().numpy() for name in ("odds", "final"))
    return Opinions(odds[..., 0], odds[..., 1], final)


def stop_paths(opinions: Opinions, assess: Assess = "every", first_step: int = 1) -> Outcome:
    """How `parm_search` would treat the paths of a pool; exact, because paths do not depend on each other.

    Arguments as there. ValueError for opinions that end before the stopping rule decides, as of paths that were stopped
    at a step before first_step: ask again with stop=False.
    """
    of_kind(opinions, "opinions", Opinions, "Opinions, as `ask_of_paths` gives")
    first_step = whole(first_step, "first_step", 1, opinions.clarity.shape[2] + 1)
    clarity = opinions.clarity.copy()
    clarity[:, :, : first_step - 1] = np.nan  # PARM would not have asked
    hopeless = shows_no_potential(clarity, opinions.potential, assess)
    decides = clarity > 0 if one_of(assess, "assess", get_args(Assess)) == "first" else hopeless
    undecided = np.cumsum(decides, axis=2) == 0
    if np.isnan(clarity)[:, :, first_step - 1 :][undecided[:, :, first_step - 1 :]].any():
        raise ValueError(
            f"These opinions do not say what PARM does when it asks from step {first_step} on: ask for them again with "
            "that first_step, or with stop=False."
        )
    last = hopeless.argmax(axis=2)
    survived = np.logical_not(np.logical_or.reduce(hopeless, axis=2))
    steps = np.where(survived, hopeless.shape[2] + 1, last + 1)
    doubt = np.take_along_axis(opinions.potential, last[..., None], axis=2)[..., 0].astype(np.float64)
    # Log-odds of selection may be of any size: squeezed into 0..1, above what potential becomes, −1..0.
    order = np.where(survived, _squeeze(opinions.selection), _squeeze(doubt) - 1)
    return Outcome(steps, survived, order, first_step)


def _squeeze(log_odds: npt.NDArray) -> npt.NDArray[np.float64]:
    """Any numbers into 0..1, in the same order, even where a sigmoid would round to 1."""
    ranks = np.unique(log_odds, return_inverse=True)[1].reshape(log_odds.shape)
    return ranks / (ranks.max() + 1)


def spent_by_search(
    outcome: Outcome, n: int, steps: int, length: int | None = None, preview: bool = False
) -> dict[str, float]:
    """What `parm_search` with n paths and guidance spends on one image, in expectation over any n of a pool's paths:
    generator passes, guesses read with both questions, finished images read, and how often no path is left.

    steps: T. The generator's passes: prompt and empty prompt, the first step for all paths together, then two passes a
    path and step; a resumed path's remaining steps on top. length: given for a next-token generator, tokens of an
    image; its passes are over one position each, the last token of an image needs none, and with `preview`, where every
    guess is filled with the likeliest tokens, each of those takes one. ValueError for more paths than the pool has.
    """
    of_kind(outcome, "outcome", Outcome, "an Outcome, as `stop_paths` gives")
    n, preview = whole(n, "n", 1, outcome.steps.shape[1]), yes_or_no(preview, "preview")
    steps = whole(steps, "steps", int(outcome.steps.max(initial=1)))
    length = None if length is None else whole(length, "length", steps)

    def passes(ran: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of one path, with its prompt, after so many steps."""
        if length is None:
            return ran - 1
        run, whole = length // steps, length - 1
        drawn = np.minimum(ran * run, whole)
        return drawn + (ran * whole - run * ran * (ran + 1) // 2 + (ran == steps) if preview else 0)

    ran, number = outcome.steps, outcome.steps.shape[1]
    dead = number - outcome.survived.sum(axis=1)
    none_left = np.array([comb(int(d), n) / comb(number, n) for d in dead])
    to_come = np.where(outcome.survived, 0, passes(np.full_like(ran, steps)) - passes(ran))
    most = max(1, int(to_come.max()))
    resumed = expected_best_of(outcome.order, to_come / most, n) * most  # 0 wherever a survivor is among the n
    found = {
        "generator_passes": (4 if length is None else 2) + 2 * n * passes(ran).mean(axis=1) + 2 * resumed,
        "guesses_read": n * (np.minimum(ran, steps - 1) - outcome.first_step + 1).mean(axis=1),
        "finished_read": n * outcome.survived.mean(axis=1) + none_left,
        "none_left": none_left,
    }
    return {key: round(float(value.mean()), 4) for key, value in found.items()}


def spent_by_best_of_n(n: int, steps: int) -> dict[str, float]:
    """The same of `best_of_n`, which reads finished images only."""
    n, steps = whole(n, "n", 1), whole(steps, "steps", 1)
    return {"generator_passes": 4 + 2.0 * n * (steps - 1), "guesses_read": 0, "finished_read": n, "none_left": 0}


def clear_at(opinions: Opinions) -> list[float]:
    """Share of paths that PARM first calls clear at each step but the last; the last number: never."""
    clear = of_kind(opinions, "opinions", Opinions, "Opinions, as `ask_of_paths` gives").clarity > 0
    never = ~clear.any(axis=2)
    first = np.bincount(clear.argmax(axis=2)[~never], minlength=clear.shape[2])
    return (np.array([*first, never.sum()]) / never.size).round(4).tolist()


def stopping(outcome: Outcome, pool: Pool) -> dict[str, float]:
    """How good the stops are: share of paths stopped; of the stopped, how many would have ended wrong (precision); of
    those that end wrong, how many are stopped (recall); mean step of a stop; of the pools with a right path, how many
    lose all of them; and how many pools lose all their paths. By the verdicts of the judge that reports."""
    of_kind(outcome, "outcome", Outcome, "an Outcome, as `stop_paths` gives")
    learned = of_kind(pool, "pool", Pool, "a Pool, as `load_pool` gives").correct.get("learned")
    wrong, stopped = ~verdicts(learned, "the pool's verdicts (learned)", outcome.survived.shape), ~outcome.survived
    possible = (~wrong).any(axis=1)
    lost = possible & ~(~wrong & outcome.survived).any(axis=1)
    found = {
        "stopped": stopped.mean(),
        "precision": wrong[stopped].mean() if stopped.any() else np.nan,
        "recall": stopped[wrong].mean() if wrong.any() else np.nan,
        "mean_step": outcome.steps[stopped].mean() if stopped.any() else np.nan,
        "pools_lost": lost.sum() / max(1, possible.sum()),
        "none_left": (~outcome.survived.any(axis=1)).mean(),
    }
    return {key: round(float(np.nan_to_num(value)), 4) for key, value in found.items()}


def save_opinions(path: Path, opinions: Opinions) -> None:
    """Write opinions as one safetensors file, atomically."""
    of_kind(opinions, "opinions", Opinions, "Opinions, as `ask_of_paths` gives")
    write_arrays(path, {key: torch.from_numpy(value).half() for key, value in vars(opinions).items()})


def load_opinions(path: Path) -> Opinions:
    """Opinions from disk; FileNotFoundError if they are missing, ValueError if damaged or another kind of file."""
    arrays, _ = read_arrays(path)
    if arrays.keys() != {"clarity", "potential", "selection"}:
        raise ValueError(f"{path} holds no opinions of PARM: give a file that `save_opinions` wrote.")
    return Opinions(**{key: value.float().numpy() for key, value in arrays.items()})
