"""Direct preference optimisation: a generator learns from pairs of a right and a wrong image of one prompt.

In reading order: pairs; the estimated log-probability of an image, since a masked model gives no exact one; DPO's loss;
fresh pairs for reward guidance; training; how far a generator prefers what it was taught. At the end the same for
next-token models, whose log-probabilities are exact, by trl. Paper: sections 3.3 and 3.4; DPO: arXiv 2305.18290.
Read next: `self_correction.py`.
"""

import copy
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, Trainer, TrainingArguments

from cotgen_lite.generate.autoregressive import AutoregressiveGenerator, sequence_ids
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import Showo, draw_mask, image_logits, random_positions, text_prefix
from cotgen_lite.hub import work_folder
from cotgen_lite.identity import check_same_run, fingerprint, named_by
from cotgen_lite.inputs import (
    finite,
    number,
    of_kind,
    one_of,
    settle,
    shaped,
    shown,
    text,
    verdicts,
    whole,
    with_methods,
    yes_or_no,
)
from cotgen_lite.muon import Muon
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import Prompt, each_prompt, refuse_held_out
from cotgen_lite.training import (
    LARGEST_RATE,
    MOST_STEPS,
    TrainerSettings,
    TrainingLog,
    refuse_divergence,
    run_trainer,
    stack_tokens,
    trainer_arguments,
)
from cotgen_lite.verify.training_data import balanced
from cotgen_lite.verify.verifier import Verifier

Weighting = Literal["sum", "elbo", "early"]
EARLY = 0.8  # at least so much of an image is hidden while it is decided what is where
MOST_MASKS = 4096


class Pair(NamedTuple):
    """Two images of one prompt, tokens (L,) each: the chosen one is right, the rejected one wrong."""

    prompt: Prompt
    chosen: Tensor
    rejected: Tensor


def preference_pairs(pool: Pool, most: int, seed: int, held_out: Set[str] | None = None) -> list[Pair]:
    """Pairs for DPO: of each pool up to `most` right images, each with a wrong one of its own; shuffled.

    ValueError if a dev or test prompt is among them, or for a pool without labels ("template"); held_out: as in
    `refuse_held_out`. Paper: section 3.3.
    """
    most, seed = whole(most, "most", 1), whole(seed, "seed", 0)
    if "template" not in of_kind(pool, "pool", Pool, "a Pool").correct:
        raise ValueError('The pool has no labels of the judge "template": give one made by `generate_labelled`.')
    labels = verdicts(pool.correct["template"], 'pool.correct["template"]', pool.tokens.shape[:2])
    refuse_held_out(pool.prompts, held_out)
    rng = np.random.default_rng(seed)
    pairs = []
    for row, prompt in enumerate(pool.prompts):
        columns = [column for _, column in balanced(labels[row : row + 1], most, rng)]
        half = len(columns) // 2
        for chosen, rejected in zip(columns[:half], columns[half:], strict=True):
            pairs.append(Pair(prompt, pool.tokens[row, chosen], pool.tokens[row, rejected]))
    return [pairs[i] for i in rng.permutation(len(pairs))]


def read_pairs(generator: Generator, pairs: Sequence[Pair]) -> tuple[list[list[int]], Tensor, Tensor]:
    """What a masked model reads of B pairs: B prefixes (`text_prefix`), chosen and rejected tokens int64 (B, L).

    ValueError without pairs, or for a prompt or an image that is not the generator's.
    """
    _check_pairs(pairs)
    config = of_kind(generator, "generator", Generator, "a Generator").model.config
    prefixes = [text_prefix(config, generator.encode(pair.prompt.text)) for pair in pairs]
    size = (config.num_image_tokens, config.codebook_size)
    return prefixes, stack_tokens([p.chosen for p in pairs], *size), stack_tokens([p.rejected for p in pairs], *size)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    if not of_kind(pairs, "pairs", Sequence, "a list of Pairs"):
        raise ValueError("There is nothing to learn from: give at least one pair.")
    for pair in pairs:
        if not isinstance(getattr(of_kind(pair, "each of pairs", Pair, "a Pair").prompt, "text", None), str):
            raise ValueError(f"A pair's prompt must be a Prompt, got {shown(pair.prompt)}.")


@dataclass(frozen=True)
class Masks:
    """M masks for each of B images: positions that are hidden, bool (M, B, L), and the weight of each mask (M, B)."""

    positions: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        shaped(of_kind(self.positions, "positions", Tensor, "a tensor"), "positions", ("M", "B", "L"))
        if self.positions.dtype != torch.bool:
            raise ValueError(f"positions must be of dtype bool, got {self.positions.dtype}.")
        finite(shaped(self.weight, "weight", self.positions.shape[:2]), "weight")


def draw_masks(batch: int, length: int, number: int, weighting: Weighting, generator: torch.Generator) -> Masks:
    """Random masks for an estimate of `log_probability`, on the CPU.

    batch: images; length: positions of each; number: masks an image. weighting:
    "sum": ratios as in Show-o's training, every hidden token counts once, some 41 of 64 on average. (The paper's
    released code sums so as well, with one mask for each image, and drops some prompts, which is not done here.)
    "elbo": every number k of hidden tokens alike, weighted by L/k. Estimates the mean of log p over all orders in which
    the tokens could be filled in one by one, a lower bound of their log-probability (arXiv 2110.02037).
    "early": the same with at least four fifths hidden, as in the first steps, in which it is decided what is where.
    """
    batch, length = whole(batch, "batch", 1), whole(length, "length", 1)
    number = whole(number, "number", 1, MOST_MASKS)
    of_kind(generator, "generator", torch.Generator, "a torch.Generator")
    if one_of(weighting, "weighting", get_args(Weighting)) == "sum":
        positions = draw_mask(number * batch, length, generator)
        weight = torch.ones(number * batch)
    else:
        fewest = 1 if weighting == "elbo" else math.ceil(EARLY * length)
        count = torch.randint(fewest, length + 1, (number * batch, 1), generator=generator)
        positions = random_positions(count, length, generator)
        weight = length / count[:, 0]
    return Masks(positions.view(number, batch, length), weight.view(number, batch) / number)


def log_probability(model: Any, config: Any, prefixes: Sequence[Sequence[int]], tokens: Tensor, masks: Masks) -> Tensor:
    """Estimated log-probability of images given what stands before them, differentiable.

    model: a Showo, or one wrapped for several devices; config: the Showo's. prefixes: B lists of ids (`text_prefix`);
    tokens: (B, L); masks: of these B images. Returns float32 (B,), nats, on the model's device.
    """
    number, batch, _ = of_kind(masks, "masks", Masks, "Masks").positions.shape
    with_methods(model, "model", ("parameters",), "a Showo")
    if any(isinstance(prefix, str) for prefix in prefixes):
        raise ValueError("prefixes must be lists of ids, as `text_prefix` gives, not texts.")
    tokens = stack_tokens(of_kind(tokens, "tokens", Tensor, "a tensor"), config.num_image_tokens, config.codebook_size)
    device = next(model.parameters()).device
    hidden = masks.positions.to(device).flatten(0, 1)
    every = tokens.to(device).repeat(number, 1)
    log_p = image_logits(model, list(prefixes) * number, every, hidden, config).float().log_softmax(dim=-1)
    row = hidden.nonzero()[:, 0]
    right = log_p.gather(1, every[hidden][:, None].long())[:, 0]
    total = right.new_zeros(number * batch).index_add(0, row, right)
    return (total.view(number, batch) * masks.weight.to(device)).sum(dim=0)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """DPO's loss of each pair, −log σ(margin), and its reward margin, from log-probabilities (B,) in nats.

    The reward of an image is β times how much likelier the policy makes it than the reference. ValueError for
    log-probabilities of different shapes, or that are not finite, and for β ≤ 0.
    """
    beta = number(beta, "beta", above=0)
    shaped(policy_chosen, "policy_chosen", ("B",))
    for name, values in (
        ("policy_chosen", policy_chosen),
        ("policy_rejected", policy_rejected),
        ("reference_chosen", reference_chosen),
        ("reference_rejected", reference_rejected),
    ):
        finite(shaped(of_kind(values, name, Tensor, "a tensor"), name, policy_chosen.shape), name)
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -F.logsigmoid(margin), margin


@dataclass(frozen=True)
class Online:
    """Fresh pairs for guidance. draw: from the policy as it is, and a step's number, to pairs; about: all that these
    depend on beside, so that runs can be told apart."""

    draw: Callable[[Showo, int], list[Pair]]
    about: str

    def __post_init__(self) -> None:
        with_methods(self.draw, "draw", ("__call__",), "a function of a policy and a step")
        text(self.about, "about")


def online_pairs(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    prompts_per_step: int,
    num_images_per_prompt: int,
    seed: int,
    held_out: Set[str] | None = None,
) -> Online:
    """Fresh pairs for reward guidance: of N images of the policy's, the verifier's favourite against its last.

    So guidance has a gradient, unlike the constant that the released code adds. generator: lends tokenizers and
    settings, the policy its weights. ValueError for N < 2, or if a dev or test prompt is among the prompts; held_out:
    as in `refuse_held_out`. Paper: section 3.4.
    """
    of_kind(generator, "generator", Generator, "a Generator")
    with_methods(verifier, "verifier", ("score",), "a Verifier")
    prompts, seed = each_prompt(prompts, none=False), whole(seed, "seed", 0)
    prompts_per_step = whole(prompts_per_step, "prompts_per_step (a step's prompts are all different)", 1, len(prompts))
    num_images_per_prompt = whole(num_images_per_prompt, "num_images_per_prompt", 1, 1024)
    if num_images_per_prompt < 2:
        raise ValueError(f"A pair needs two images: draw at least 2 a prompt, not {num_images_per_prompt}.")
    refuse_held_out(prompts, held_out)

    def draw(policy: Showo, step: int) -> list[Pair]:
        rng = np.random.default_rng((seed, step))
        asked = [prompts[i] for i in rng.choice(len(prompts), prompts_per_step, replace=False)]
        noise = int(rng.integers(2**31))  # fresh at every step
        drawn = replace(generator, model=policy)([p.text for p in asked], num_images_per_prompt, seed=noise)
        pairs = []
        for prompt, tokens in zip(asked, drawn.tokens.split(num_images_per_prompt), strict=True):
            log_odds = finite(verifier.score(generator.decode(tokens), prompt.text), "the verifier's log-odds")
            pairs.append(Pair(prompt, tokens[log_odds.argmax()], tokens[log_odds.argmin()]))
        return pairs

    read = [(prompt.text, generator.encode(prompt.text)) for prompt in prompts]  # by the verifier, by the generator
    networks, asked = named_by(verifier, generator.image_tokenizer)
    sizes = prompts_per_step, num_images_per_prompt, seed
    return Online(draw, fingerprint(networks, asked, read, generator.settings, sizes))


Watch = Callable[[Showo, Showo], float]  # from policy and reference to a number worth watching


def _look(watch: Watch, policy: Showo, reference: Showo) -> float:
    return number(watch(policy, reference), "what is watched")


def divergence_on_samples(generator: Generator, prompts: Sequence[Prompt], n: int, seed: int, masks: int = 8) -> Watch:
    """KL(policy ‖ reference) in nats an image, on n of the policy's own images of each prompt.

    Under random masks, the KL between what both predict at every hidden position (without guidance), added up with the
    ELBO's weighting (`masks` an image): never negative, and what the log-ratio of sampled tokens would scatter about.
    The images are generated as always, with guidance.
    """
    of_kind(generator, "generator", Generator, "a Generator")
    n, seed, masks = whole(n, "n", 1, 1024), whole(seed, "seed", 0), whole(masks, "masks", 1, MOST_MASKS)
    prompts = each_prompt(prompts, none=False)
    texts = [prompt.text for prompt in prompts]

    def measure(policy: Showo, reference: Showo) -> float:
        drawn = replace(generator, model=policy)(texts, n, seed=seed)
        prefixes = [text_prefix(policy.config, generator.encode(text)) for text in drawn.prompts]
        tokens = drawn.tokens.to(policy.device)
        batch, length = tokens.shape
        same = draw_masks(batch, length, masks, "elbo", torch.Generator().manual_seed(seed))
        hidden = same.positions.to(policy.device).flatten(0, 1)
        every = tokens.repeat(masks, 1)
        with torch.no_grad():
            log_p, log_q = (
                image_logits(model, prefixes * masks, every, hidden, policy.config).float().log_softmax(dim=-1)
                for model in (policy, reference)
            )
        apart = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        weight = same.weight.to(policy.device).flatten()[hidden.nonzero()[:, 0]]
        return number(apart @ weight, "the divergence") / batch

    return measure


@dataclass(frozen=True)
class DpoTraining(TrainerSettings):
    """How a generator is aligned; the paper's: 1 epoch, batches of 10, learning rate 1e-5, β 0.1 (released code).

    muon_rate: if given, weight matrices learn by `Muon` at this rate, and only the rest at `learning_rate`, without
    decay. masks: a pair and step; shared: chosen and rejected image under the same masks; weighting: see `draw_masks`;
    guidance: λ, the weight of fresh pairs, if there are any; watch_every: steps between two looks at what is watched.
    """

    batch_size: int = 10
    save_steps: int = 100
    beta: float = 0.1
    muon_rate: float | None = None
    masks: int = 1
    shared: bool = True
    weighting: Weighting = "sum"
    guidance: float = 1.0
    watch_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            beta=number(self.beta, "beta", above=0),
            muon_rate=None if self.muon_rate is None else number(self.muon_rate, "muon_rate", 0, LARGEST_RATE),
            masks=whole(self.masks, "masks", 1, MOST_MASKS),
            shared=yes_or_no(self.shared, "shared"),
            weighting=one_of(self.weighting, "weighting", get_args(Weighting)),
            guidance=number(self.guidance, "guidance", 0),
            watch_every=whole(self.watch_every, "watch_every", 1, MOST_STEPS),
        )


def train_dpo(
    generator: Generator,
    pairs: Sequence[Pair],
    settings: DpoTraining,
    work_dir: str | Path | None = None,
    online: Online | None = None,
    watch: Watch | None = None,
) -> tuple[Generator, TrainingLog]:
    """Align a copy of a generator on pairs; the generator itself is the reference, and its weights stay as they are.

    work_dir: checkpoints, from which an interrupted call, made again, goes on; None keeps none. online: fresh pairs of
    the policy's for each step, whose loss is added `settings.guidance` times. watch: looked at every
    `settings.watch_every` steps and at the end. Returns the aligned generator, and a log whose rows have for each step
    "loss", "margin" and "accuracy" (share of pairs with a positive margin), of fresh pairs "online_margin", and
    "watched" where it was looked. ValueError without pairs, for a `work_dir` that holds another run, or if training
    diverges: it names the step, and the last checkpoint stays.
    """
    of_kind(settings, "settings", DpoTraining, "a DpoTraining")
    of_kind(online, "online", (Online, type(None)), "what `online_pairs` gives, or None")
    if watch is not None and not callable(watch):
        raise ValueError(f"watch must be a function of policy and reference, or None, got {shown(watch)}.")
    data = read_pairs(generator, pairs)
    with work_folder(work_dir) as folder:
        about = (settings, data, online and online.about, watch is None)
        check_same_run(folder, fingerprint((generator.model,), *about))
        given = trainer_arguments(settings, len(pairs), folder, generator.model.device)
        arguments = TrainingArguments(**given, remove_unused_columns=False)
        trainer = DpoTrainer(generator, settings, arguments, pairs, online, watch)
        policy, log = run_trainer(trainer, "DPO")
    kept = ("loss", "margin", "accuracy", "online_margin", "watched")
    log.rows = [{key: row[key] for key in kept if key in row} for row in log.rows]
    if watch is not None:
        log.rows[-1]["watched"] = _look(watch, policy, trainer.reference)
    return replace(generator, model=policy), log


class DpoTrainer(Trainer):
    """transformers' trainer with DPO's loss on estimated log-probabilities, for a copy of the generator's model."""

    def __init__(
        self,
        generator: Generator,
        settings: DpoTraining,
        arguments: TrainingArguments,
        pairs: Sequence[Pair],
        online: Online | None,
        watch: Watch | None,
    ) -> None:
        policy, dataset = copy.deepcopy(generator.model), list(pairs)
        super().__init__(policy, arguments, data_collator=self.read, train_dataset=dataset)
        self.generator, self.reference = generator, generator.model.to(arguments.device).eval()
        self.settings, self.online, self.watch = settings, online, watch
        self.latest: dict[str, float] = {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Muon, if the settings say so; else transformers' AdamW."""
        if self.settings.muon_rate is None:
            return super().create_optimizer(*args, **kwargs)
        self.optimizer = Muon(self.model, self.settings.muon_rate, self.settings.learning_rate, weight_decay=0.0)
        return self.optimizer

    def read(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """What the model reads of a batch."""
        return dict(zip(("prefixes", "chosen", "rejected"), read_pairs(self.generator, pairs), strict=True))

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss of a batch, over masks drawn by seed, process and step; guidance on top."""
        key = self.state.global_step * self.args.world_size + self.args.process_index
        drawing = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + key)
        loss, margin = self._pair_loss(model, inputs, drawing)
        self.latest = {"margin": margin.mean().item(), "accuracy": (margin > 0).float().mean().item()}
        policy = self.accelerator.unwrap_model(model)
        if self.watch is not None and self.state.global_step % self.settings.watch_every == 0:
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                self.latest["watched"] = _look(self.watch, policy.eval(), self.reference)
            policy.train()
        if self.online is None:
            return loss
        fresh = self.read(self.online.draw(policy.eval(), key))
        policy.train()
        guidance, margin = self._pair_loss(model, self._prepare_inputs(fresh), drawing)
        self.latest["online_margin"] = margin.mean().item()
        return loss + self.settings.guidance * guidance

    def _pair_loss(self, model: Any, pairs: dict, drawing: torch.Generator) -> tuple[Tensor, Tensor]:
        settings, config = self.settings, self.reference.config
        prefixes, chosen, rejected = pairs["prefixes"], pairs["chosen"], pairs["rejected"]
        batch, length = chosen.shape
        masks = draw_masks(batch, length, settings.masks, settings.weighting, drawing)
        other = masks if settings.shared else draw_masks(batch, length, settings.masks, settings.weighting, drawing)
        both = Masks(torch.cat([masks.positions, other.positions], dim=1), torch.cat([masks.weight, other.weight], 1))
        tokens = torch.cat([chosen, rejected])
        policy = log_probability(model, config, prefixes * 2, tokens, both)
        # In the policy's precision, or the two would differ before the first step.
        with torch.no_grad(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            reference = log_probability(self.reference, config, prefixes * 2, tokens, both)
        apart = (policy - reference).detach().abs().max().item()  # one number is as wrong as any of them
        refuse_divergence(self.state.global_step + 1, {"log-probability": apart})
        losses, margin = dpo_loss(policy[:batch], policy[batch:], reference[:batch], reference[batch:], settings.beta)
        refuse_divergence(self.state.global_step + 1, {"reward margin": margin.detach().abs().max().item()})
        return losses.mean(), margin

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds margin and accuracy to what is logged of a step."""
        super().log(logs | self.latest if "loss" in logs else logs, *args, **kwargs)


def reward_margins(
    policy: Generator, reference: Generator, pairs: Sequence[Pair], beta: float = 0.1, masks: int = 2, seed: int = 0
) -> Tensor:
    """How far a policy prefers each pair's chosen image, against a reference; positive where it does.

    Estimated under `masks` masks a pair, the same for both images and both models. Returns (B,). ValueError without
    pairs, or if one of the models cannot read them.
    """
    beta, masks, seed = number(beta, "beta", above=0), whole(masks, "masks", 1, MOST_MASKS), whole(seed, "seed", 0)
    read_pairs(reference, pairs)
    prefixes, chosen, rejected = read_pairs(policy, pairs)
    same = draw_masks(len(chosen), chosen.shape[1], masks, "sum", torch.Generator().manual_seed(seed))
    with torch.no_grad():
        new, old = (
            [log_probability(one.model, one.model.config, prefixes, tokens, same) for tokens in (chosen, rejected)]
            for one in (policy, reference)
        )
    return dpo_loss(new[0], new[1], old[0], old[1], beta)[1]


def train_autoregressive_dpo(
    generator: AutoregressiveGenerator, pairs: Sequence[Pair], settings: DpoTraining, work_dir: str | Path | None = None
) -> tuple[AutoregressiveGenerator, TrainingLog]:
    """As `train_dpo`, for a next-token generator: trl's trainer on exact log-probabilities, so masks play no part.

    The log's rows have "loss", "margin" and "accuracy", and the rewards of "chosen" and "rejected" images (β times what
    their log-probability has gained).
    """
    of_kind(settings, "settings", DpoTraining, "a DpoTraining")
    config = of_kind(generator, "generator", AutoregressiveGenerator, "an AutoregressiveGenerator").model.config
    _check_pairs(pairs)
    size = (config.num_image_tokens, config.codebook_size)
    from datasets import Dataset  # these two come with an extra of the package
    from trl import DPOConfig, DPOTrainer

    class ReadyIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # there is no text to tokenise; trl's own would append an end token to every image

    rows = [
        {
            "prompt_ids": sequence_ids(config, generator.encode(pair.prompt.text)),
            "chosen_ids": stack_tokens([pair.chosen], *size)[0].tolist(),
            "rejected_ids": stack_tokens([pair.rejected], *size)[0].tolist(),
        }
        for pair in pairs
    ]
    policy, reference = copy.deepcopy(generator.model), copy.deepcopy(generator.model).requires_grad_(False)
    policy.generation_config = GenerationConfig()  # where trl notes the pad
    with work_folder(work_dir) as folder:
        check_same_run(folder, fingerprint((generator.model,), rows, settings))
        given = trainer_arguments(settings, len(pairs), folder, policy.device)
        arguments = DPOConfig(**given, beta=settings.beta, gradient_checkpointing=False, max_length=None)
        data = Dataset.from_list(rows)
        trainer = ReadyIds(policy, reference, arguments, train_dataset=data, processing_class=generator.text_tokenizer)
        policy, log = run_trainer(trainer, "DPO")
    policy.__dict__.pop("forward", None)  # trl's, which would follow a copy of the model around with the old weights
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    names |= {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
    log.rows = [{ours: row[theirs] for theirs, ours in names.items()} for row in log.rows]
    return replace(generator, model=policy), log
