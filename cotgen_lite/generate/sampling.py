"""Step-by-step decoding of images: guess every masked position, commit the surest guesses, mask the rest again.

Paper: section 2.1 (MaskGIT, arXiv 2202.04200, as in Show-o, arXiv 2408.12528). Between
`start` and the last `advance` a search may `keep` or `branch` paths. Read next: pipeline.py, which runs them all.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache

from cotgen_lite.generate.forward import PathCache, image_hidden
from cotgen_lite.generate.showo import Showo, attention_mask, code_logits, image_span, pad_prefixes, text_prefix
from cotgen_lite.inputs import number, of_kind, one_of, settle, shaped, shown, whole

MASKED = -1  # marks a position without a token yet
MOST_STEPS = 1024  # the tokens of Show-o's largest images; every step commits at least one
MOST_PATHS = 10_000  # at once: each keeps its noise and tokens, and many more would fill the memory
Remasking = Literal["show-o", "linear"]


@dataclass(frozen=True)
class SamplingSettings:
    """How images are decoded; by default as the paper has it.

    guidance_scale: g from 0 to 100 in Show-o's form, (1+g)·conditional − g·unconditional. steps: 1 to 1,024.
    temperature, 1e-6 to 100, divides the logits (Show-o's own code leaves them) and scales the Gumbel noise of
    re-masking. remasking: how fast that noise fades, "show-o" as in Show-o's own loop or "linear", as the lite models
    are used (`remasking_temperature`), and how the masked positions are counted (`masked_after`). ValueError otherwise.
    """

    guidance_scale: float = 1.75
    steps: int = 18
    temperature: float = 1.0
    remasking: Remasking = "show-o"

    def __post_init__(self) -> None:
        settle(
            self,
            guidance_scale=number(self.guidance_scale, "guidance_scale", 0, 100),
            steps=whole(self.steps, "steps", 1, MOST_STEPS),
            temperature=number(self.temperature, "temperature", 1e-6, 100),
            remasking=one_of(self.remasking, "remasking", get_args(Remasking)),
        )


@dataclass
class Cost:
    """What generating or searching has cost so far; everything that is handed it adds to it.

    generator_passes: forward passes over a prompt or over an image's positions (of next-token generators: over one),
    conditional and unconditional each counted; tokens: sequence positions computed in all of them; verifier_passes:
    calls of a verifier on one image; and the seconds of both.
    """

    generator_passes: int = 0
    verifier_passes: int = 0
    tokens: int = 0
    generator_seconds: float = 0.0
    verifier_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.generator_seconds + self.verifier_seconds

    def __iadd__(self, other: "Cost") -> "Cost":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class PromptCache:
    """Keys and values of Q prompts, and then of the E that they are guided against, aligned at the right.

    prefixes: Q + E tuples of ids; keys and values: per layer (Q + E, heads, S, head width); visible: bool (Q + E, S).
    against: (Q,), the row that each prompt is guided against; one for all, the empty prompt's, but for corrections.
    """

    prefixes: tuple[tuple[int, ...], ...]
    against: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    visible: Tensor


@dataclass(frozen=True)
class DecodingState:
    """P paths after `step` of the steps; never changed in place, so an old one can be resumed.

    prompt: (P,) row in the prompt cache; candidate: P numbers; tokens: codes (P, L), MASKED where open, equally many
    in each path; noise: uniforms (P, steps, 2, L) on the CPU, for guesses and for re-masking.
    """

    settings: SamplingSettings
    prompts: PromptCache
    prompt: Tensor
    candidate: tuple[int, ...]
    tokens: Tensor
    noise: Tensor
    cost: Cost
    step: int = 0
    path_cache: list[PathCache] = field(default_factory=list, repr=False)  # filled by the first `predict`


@dataclass(frozen=True)
class Step:
    """What one step did. index from 0; guess: codes (P, L), committed ones and a sample everywhere else, before
    re-masking; committed: bool (P, L), the positions that keep their code from here on."""

    index: int
    guess: Tensor
    committed: Tensor


@torch.inference_mode()
def encode_prompts(
    model: Showo, prefixes: Sequence[Sequence[int]], cost: Cost, unguided: Sequence[Sequence[int]] | None = None
) -> PromptCache:
    """One pass over Q prefixes (`text_prefix`, or longer ones) and what they are guided against, charged to `cost`.

    unguided: the prefix against which each is guided, by default the empty prompt. ValueError if not one for each, or
    for ids that the model does not know.
    """
    of_kind(model, "model", Showo, "a Showo model")
    of_kind(cost, "cost", Cost, "a Cost")
    for prefix in (*of_kind(prefixes, "prefixes", (list, tuple), "a list of prefixes"), *(unguided or ())):
        of_kind(prefix, "each of prefixes", (list, tuple), "a list of ids, as `text_prefix` gives")
    if not prefixes:
        raise ValueError("There is no prompt to read: give at least one.")
    held_against = [text_prefix(model.config, [])] * len(prefixes) if unguided is None else unguided
    if len(held_against) != len(prefixes):
        raise ValueError(f"{len(held_against)} prefixes to guide {len(prefixes)} against: give one for each.")
    distinct = list(dict.fromkeys(tuple(prefix) for prefix in held_against))
    most = model.config.vocab_size - 1
    every = [[whole(id_, "each id of a prompt", 0, most) for id_ in prefix] for prefix in (*prefixes, *distinct)]
    ids = pad_prefixes(model.config, every).to(model.device)
    against = [len(prefixes) + distinct.index(tuple(prefix)) for prefix in held_against]
    cache = DynamicCache()
    model.showo.model(
        ids,
        attention_mask=attention_mask(model.config, ids, model.dtype),
        # RoPE sees only distances: with [soi] at 0 in every row, prompts of any length stand before it.
        position_ids=torch.arange(-ids.shape[1], 0, device=ids.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    cost.generator_passes += len(every)
    cost.tokens += sum(len(prefix) for prefix in every)
    return PromptCache(
        tuple(tuple(prefix) for prefix in every),
        torch.tensor(against, device=ids.device),
        [layer.keys for layer in cache.layers],
        [layer.values for layer in cache.layers],
        ids != model.config.pad_id,
    )


def path_noise(key: Sequence[object], steps: int, length: int) -> Tensor:
    """A path's own uniforms (steps, 2, length), drawn on the CPU from a hash of `key` alone.

    key: whole numbers, texts, and sequences of them, whatever they are held in: numpy's 2 draws what 2 draws. Nothing
    else enters, so a path's draws do not depend on its batch, its neighbours or the device.
    """
    size = whole(steps, "steps", 1, MOST_STEPS), 2, whole(length, "length", 1, 2**16)
    digest = hashlib.sha256(repr(_plain(of_kind(key, "key", (tuple, list), "a tuple"))).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(size, generator=generator)


def _plain(part: Any) -> object:
    """A part of a noise's key as plain Python: its text is what is hashed."""
    if isinstance(part, str):
        return str(part)
    if isinstance(part, list | tuple) or getattr(part, "ndim", False):
        return tuple(map(_plain, part))
    return whole(part, "each number of a noise's key")


def check_paths(paths: Any, prompts: int) -> list[tuple[int, int]]:
    """Paths as plain numbers: each a row of so many prompts and a candidate's number; ValueError for anything else."""
    try:
        pairs = [(row, candidate) for row, candidate in paths]
    except (TypeError, ValueError):
        raise ValueError(f"paths must be pairs (row of the prompts, candidate), got {shown(paths)}.") from None
    if not 1 <= len(pairs) <= MOST_PATHS:
        nothing = "There is nothing to decode: give" if not pairs else f"{len(pairs)} paths are too many at once: give"
        raise ValueError(f"{nothing} 1 to {MOST_PATHS} paths, each (row of the prompts, candidate).")
    return [
        (whole(row, "the row of a path's prompt", 0, prompts - 1), whole(candidate, "a path's candidate", 0))
        for row, candidate in pairs
    ]


def check_rows(paths: Any, number: int) -> list[int]:
    """Which of so many paths as plain numbers; ValueError unless there is at least one, and each is one of them."""
    if isinstance(paths, str) or not hasattr(paths, "__iter__"):
        raise ValueError(f"paths must be a list of their numbers from 0 to {number - 1}, got {shown(paths)}.")
    chosen = [whole(path, "the number of each path", 0, number - 1) for path in paths]
    if not 1 <= len(chosen) <= MOST_PATHS:
        raise ValueError(f"paths must be 1 to {MOST_PATHS} of their numbers, got {len(chosen)}.")
    return chosen


def check_logits(normaliser: Tensor) -> None:
    """ValueError if a row's sum of probabilities is not a number, as it is if one of its logits is NaN or infinity."""
    if not bool(torch.isfinite(normaliser).all()):
        wrong = int((~torch.isfinite(normaliser)).sum())
        raise ValueError(
            f"The model's logits are not finite at {wrong} of {normaliser.numel()} positions: its weights are damaged, "
            "or half precision overflows; load it again, or in float32 or bfloat16."
        )


def start(
    model: Showo,
    prompts: PromptCache,
    paths: Sequence[tuple[int, int]],
    settings: SamplingSettings,
    seed: int,
    cost: Cost,
) -> DecodingState:
    """Fully masked paths, one for each (row of `prompts`, candidate number); seed: any whole number."""
    of_kind(prompts, "prompts", PromptCache, "what `encode_prompts` gives")
    of_kind(settings, "settings", SamplingSettings, "SamplingSettings")
    of_kind(cost, "cost", Cost, "a Cost")
    seed, length = whole(seed, "seed"), of_kind(model, "model", Showo, "a Showo model").config.num_image_tokens
    paths = check_paths(paths, int(prompts.against.min()))
    keys = [(seed, prompts.prefixes[row], candidate) for row, candidate in paths]
    return DecodingState(
        settings=settings,
        prompts=prompts,
        prompt=torch.tensor([row for row, _ in paths], device=model.device),
        candidate=tuple(candidate for _, candidate in paths),
        tokens=torch.full((len(paths), length), MASKED, device=model.device),
        noise=torch.stack([path_noise(key, settings.steps, length) for key in keys]),
        cost=cost,
    )


def keep(state: DecodingState, paths: Sequence[int]) -> DecodingState:
    """The state with only these paths, in this order; the others cost nothing from here on."""
    chosen = check_rows(paths, len(_checked(state).candidate))
    return replace(
        state,
        prompt=state.prompt[chosen],
        candidate=tuple(state.candidate[i] for i in chosen),
        tokens=state.tokens[chosen],
        noise=state.noise[chosen],
        path_cache=[],
    )


def branch(state: DecodingState, paths: Sequence[int], seeds: Sequence[int]) -> DecodingState:
    """A copy of path `paths[i]` with fresh noise of `seeds[i]`, for each i: rollouts, or several draws of one step.

    The noise is drawn from seed, prompt, candidate and step, so the same seeds may be given at every step. Draws of
    one step share a forward pass: `advance(branch(state, [i] * n, seeds), predict(model, state)[[i] * n])`.
    """
    copies, seeds = keep(state, paths), [whole(seed, "the seed of each branch") for seed in seeds]
    if len(copies.candidate) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {len(copies.candidate)} branches: give one seed per branch.")
    rows = zip(seeds, copies.prompt.tolist(), copies.candidate, strict=True)
    keys = [(seed, state.prompts.prefixes[row], candidate, state.step) for seed, row, candidate in rows]
    steps, length = state.settings.steps, state.tokens.shape[1]
    return replace(copies, noise=torch.stack([path_noise(key, steps, length) for key in keys]))


@torch.inference_mode()
def predict(model: Showo, state: DecodingState) -> Tensor:
    """Guided logits over the codes at each path's open positions, float32 (P, U, K), positions in raster order.

    Before the first step all paths of a prompt are alike: one pass per prompt, and one for what it is guided against.
    """
    g = _checked(state, unfinished=True).settings.guidance_scale
    if state.step == 0:
        prompts, member = state.prompt.unique(return_inverse=True)
        against, shared = state.prompts.against[prompts].unique(return_inverse=True)
        tokens, cache = state.tokens[: len(prompts)], []
    else:
        prompts, tokens, cache = state.prompt, state.tokens, state.path_cache
        against = state.prompts.against[prompts]
    if g == 0:
        against = against[:0]
    rows, row_tokens = torch.cat([prompts, against]), torch.cat([tokens, tokens[: len(against)]])
    if not cache:
        read = state.prompts
        cache.append(PathCache(read.keys, read.values, read.visible, rows, tokens.shape[1] + 2))
    span = image_span(model.config, row_tokens, row_tokens == MASKED)
    hidden = image_hidden(model, span, 1 + _open_positions(row_tokens), cache[0])
    state.cost.generator_passes += len(rows)
    state.cost.tokens += len(rows) * (tokens.shape[1] + 2)

    guided = hidden[: len(prompts)]
    if g > 0:  # The head is linear, so guiding the hidden states is guiding the logits, at half the cost.
        unguided = hidden[len(prompts) :]
        guided = (1 + g) * guided - g * (unguided[shared] if state.step == 0 else unguided)
    logits = code_logits(model, guided).float()
    return logits[member] if state.step == 0 else logits


def _checked(state: DecodingState, unfinished: bool = False) -> DecodingState:
    of_kind(state, "state", DecodingState, "a DecodingState, as `start` or a Generator's `begin` gives")
    if unfinished and state.step >= state.settings.steps:
        raise ValueError(f"All {state.settings.steps} steps are done: begin anew, or go on from an earlier state.")
    return state


def _open_positions(tokens: Tensor) -> Tensor:
    """Indices (R, U) of the MASKED positions of tokens (R, L), in raster order; every row has equally many."""
    return (tokens == MASKED).nonzero()[:, 1].view(len(tokens), -1)


def masked_after(step: int, steps: int, open_positions: int, length: int, remasking: Remasking) -> int:
    """How many positions stay masked after step 0..steps-1: the cosine schedule, at least one committed and one left.

    After the last step none is left; before it max(1, min(open − 1, ⌊L·cos(π(s+1)/2T)⌋)). remasking: with "show-o" the
    cosine is float32's, as in Show-o's code, which leaves 127 of 256 positions where the cosine is one half.
    """
    steps = whole(steps, "steps", 1, MOST_STEPS)
    step = whole(step, "step", 0, steps - 1)
    open_positions, length = whole(open_positions, "open_positions", 1), whole(length, "length", 1)
    if step == steps - 1:
        return 0
    if one_of(remasking, "remasking", get_args(Remasking)) == "show-o":
        left = int((length * torch.cos(torch.tensor((step + 1) / steps, dtype=torch.float32) * math.pi * 0.5)).floor())
    else:  # 1e-9: with some T (39, 51, ...) the cosine that is one half comes out a hair below it.
        left = math.floor(length * math.cos(math.pi * (step + 1) / (2 * steps)) + 1e-9)
    return max(1, min(open_positions - 1, left))


def remasking_temperature(step: int, settings: SamplingSettings) -> float:
    """How much chance decides what step 0..T-1 masks again; it falls to 0 within a call and starts afresh at the next.

    "show-o": each step multiplies it by 1 − (s+1)/T, so that it compounds, as in Show-o's own loop (of 18 steps, .04
    after the ninth and below .001 after the thirteenth). "linear": τ(1 − (s+1)/T). To try another, write it here.
    """
    step = whole(step, "step", 0, of_kind(settings, "settings", SamplingSettings, "SamplingSettings").steps - 1)
    left = [1 - (each + 1) / settings.steps for each in range(step + 1)]
    return (
        settings.temperature * left[-1]
        if settings.remasking == "linear"
        else math.prod(left, start=settings.temperature)
    )


@torch.no_grad()
def advance(state: DecodingState, logits: Tensor) -> tuple[DecodingState, Step]:
    """Sample every open position, commit the surest, mask the rest again.

    logits: (P, U, K) from `predict`. Confidence is log p + `remasking_temperature`·Gumbel. How many are masked again is
    `masked_after`'s to say. Returns the next state and what the step did. ValueError for logits that are not finite, or
    if all steps are done.
    """
    settings, positions = _checked(state, unfinished=True).settings, _open_positions(state.tokens)
    shaped(of_kind(logits, "logits", Tensor, "a tensor"), "logits", (*positions.shape, "K"))
    uniform = state.noise[:, state.step].to(state.tokens.device).gather(2, positions[:, None].expand(-1, 2, -1))
    log_p = (logits / settings.temperature).log_softmax(dim=-1)
    cumulative = log_p.exp().cumsum(dim=-1)
    check_logits(cumulative[..., -1])
    target = uniform[:, 0, :, None] * cumulative[..., -1:]
    sampled = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    gumbel = -torch.log(-torch.log(uniform[:, 1].clamp(min=1e-20)))
    confidence = log_p.gather(2, sampled)[..., 0] + remasking_temperature(state.step, settings) * gumbel

    guess = state.tokens.scatter(1, positions, sampled[..., 0])
    left = masked_after(state.step, settings.steps, positions.shape[1], guess.shape[1], settings.remasking)
    lowest = confidence.argsort(dim=1, stable=True)[:, :left]
    tokens = guess.scatter(1, positions.gather(1, lowest), MASKED)
    step = Step(state.step, guess, tokens != MASKED)
    return replace(state, tokens=tokens, step=state.step + 1), step
