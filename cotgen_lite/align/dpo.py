"""Direct preference optimisation of a masked image model: log-probabilities, the loss, training, reward guidance.

A masked model gives no exact log-probability of an image: it is estimated over random masks, with the same masks for
policy and reference. Guidance adds pairs of the policy's own fresh images, ranked by a verifier; so it has a gradient,
unlike the constant that the released code adds. Paper: sections 3.3 and 3.4; DPO: arXiv 2305.18290.
"""

import copy
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from cotgen_lite.generate.autoregressive import AutoregressiveModel, sequence_ids
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import Showo, draw_mask, image_logits, text_prefix
from cotgen_lite.prompts import Prompt, encode_text, refuse_held_out
from cotgen_lite.training import TrainerSettings, check_same_run, fingerprint, run_trainer, trainer_arguments
from cotgen_lite.verify.verifier import Verifier

Weighting = Literal["sum", "elbo"]


@dataclass(frozen=True)
class Masks:
    """M masks for each of B images: places that are hidden, bool (M, B, L), and the weight of each mask (M, B)."""

    places: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, of which the chosen one is right: what stands before them, and their codes (L,)."""

    prefix: list[int]
    chosen: Tensor
    rejected: Tensor


def draw_masks(batch: int, length: int, number: int, weighting: Weighting, generator: torch.Generator) -> Masks:
    """Random masks for an estimate of `log_probability`, on the CPU.

    batch: images; length: places of each; number: masks an image. weighting:
    "sum": ratios as in Show-o's training, every hidden place counts once, some 41 of 64 on average. (The paper's
    released code sums so as well, with one mask for each image, and drops some prompts, which is not done here.)
    "elbo": every number k of hidden places alike, weighted by L/k. Estimates the mean of log p over all orders in which
    the places could be filled one by one, a lower bound of their log-probability (arXiv 2110.02037).
    """
    if weighting == "sum":
        places = draw_mask(number * batch, length, generator)
        weight = torch.ones(number * batch)
    else:
        count = torch.randint(1, length + 1, (number * batch, 1), generator=generator)
        rank = torch.rand(number * batch, length, generator=generator).argsort(dim=1).argsort(dim=1)
        places = rank < count
        weight = length / count[:, 0]
    return Masks(places.view(number, batch, length), weight.view(number, batch) / number)


def log_probability(model: Any, config: Any, prefixes: Sequence[Sequence[int]], codes: Tensor, masks: Masks) -> Tensor:
    """Estimated log-probability of images given what stands before them, differentiable.

    model: a Showo, or one wrapped for several devices; config: the Showo's. prefixes: B lists of ids (`text_prefix`);
    codes: (B, L); masks: of these B images. Returns float32 (B,), nats, on the model's device.
    """
    number, batch, _ = masks.places.shape
    device = next(model.parameters()).device
    places = masks.places.to(device).flatten(0, 1)
    every = codes.to(device).repeat(number, 1)
    log_p = image_logits(model, list(prefixes) * number, every, places, config).float().log_softmax(dim=-1)
    row = places.nonzero()[:, 0]
    chosen = log_p.gather(1, every[places][:, None].long())[:, 0]
    total = chosen.new_zeros(number * batch).index_add(0, row, chosen)
    return (total.view(number, batch) * masks.weight.to(device)).sum(dim=0)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """DPO's loss of each pair, −log σ(margin), and its reward margin, from log-probabilities (B,) in nats.

    The reward of an image is β times how much likelier the policy makes it than the reference.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -F.logsigmoid(margin), margin


@dataclass(frozen=True)
class Online:
    """Fresh pairs for guidance. draw: from the policy as it is, and a step's number, to pairs; about: all that these
    depend on beside, so that runs can be told apart."""

    draw: Callable[[Showo, int], list[Pair]]
    about: str


Watch = Callable[[Showo, Showo], float]  # from policy and reference to a number worth watching


@dataclass(frozen=True)
class DpoTraining(TrainerSettings):
    """How a generator is aligned; the paper's: 1 epoch, batches of 10, learning rate 1e-5, β 0.1 (released code).

    masks: a pair and step; shared: chosen and rejected image under the same masks; weighting: see `draw_masks`;
    guidance: λ, the weight of fresh pairs, if there are any; watch_every: steps between two looks at what is watched.
    """

    batch_size: int = 10
    save_steps: int = 100
    beta: float = 0.1
    masks: int = 1
    shared: bool = True
    weighting: Weighting = "sum"
    guidance: float = 1.0
    watch_every: int = 100


def as_pairs(generator: Generator, triples: Sequence[tuple[Prompt, Tensor, Tensor]]) -> list[Pair]:
    """Pairs to train on from `ranking.preference_pairs`; ValueError if the generator cannot read a prompt."""
    config, words = generator.model.config, generator.text_tokenizer
    return [Pair(text_prefix(config, encode_text(words, p.text)), right, wrong) for p, right, wrong in triples]


def online_pairs(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    a_step: int,
    samples: int,
    seed: int,
    held_out: Set[str] | None = None,
) -> Online:
    """Fresh pairs for reward guidance: of `samples` images of the policy's, the verifier's favourite against its last.

    generator: lends words, pixels and settings, the policy its weights. a_step: prompts drawn anew at each step.
    ValueError for fewer than two samples, or if a dev or test prompt is among the prompts; held_out: as in
    `ranking.refuse_held_out`.
    """
    if samples < 2:
        raise ValueError(f"A pair needs two images: draw at least 2 samples, not {samples}.")
    refuse_held_out(prompts, held_out)

    def draw(policy: Showo, step: int) -> list[Pair]:
        rng = np.random.default_rng((seed, step))
        chosen = [prompts[i].text for i in rng.choice(len(prompts), a_step, replace=False)]
        current = replace(generator, model=policy)
        key = int(rng.integers(2**31))  # fresh noise at every step
        pairs = []
        for prompt, paths in zip(chosen, current.draw(chosen, samples, key), strict=True):
            codes = torch.stack([path.final for path in paths])
            log_odds = verifier.score(current.decode(codes), prompt)
            prefix = text_prefix(policy.config, encode_text(generator.text_tokenizer, prompt))
            pairs.append(Pair(prefix, codes[int(log_odds.argmax())], codes[int(log_odds.argmin())]))
        return pairs

    about = fingerprint((verifier.model,), [prompt.text for prompt in prompts], a_step, samples, seed)
    return Online(draw, about)


def divergence_on_samples(generator: Generator, prompts: Sequence[Prompt], n: int, seed: int, masks: int = 8) -> Watch:
    """KL(policy ‖ reference) in nats an image, on n of the policy's own images of each prompt.

    Under random masks, the KL between what both predict at every hidden place (without guidance), added up with the
    ELBO's weighting (`masks` an image): never negative, and what the log-ratio of sampled codes would scatter about.
    The images are drawn as always, with guidance.
    """

    def measure(policy: Showo, reference: Showo) -> float:
        drawn = replace(generator, model=policy).draw([prompt.text for prompt in prompts], n, seed)
        codes = torch.stack([path.final for paths in drawn for path in paths]).to(policy.device)
        prefixes = [
            text_prefix(policy.config, encode_text(generator.text_tokenizer, p.text)) for p in prompts for _ in range(n)
        ]
        drawing = torch.Generator().manual_seed(seed)
        same = draw_masks(len(codes), codes.shape[1], masks, "elbo", drawing)
        places = same.places.to(codes.device).flatten(0, 1)
        every = codes.repeat(masks, 1)
        with torch.no_grad():
            log_p, log_q = (
                image_logits(m, prefixes * masks, every, places, policy.config).float().log_softmax(dim=-1)
                for m in (policy, reference)
            )
        apart = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        weight = same.weight.to(codes.device).flatten()[places.nonzero()[:, 0]]
        return float(apart @ weight) / len(codes)

    return measure


def train_dpo(
    model: Showo,
    pairs: Sequence[Pair],
    settings: DpoTraining,
    work_dir: Path,
    online: Online | None = None,
    watch: Watch | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Align a generator in place on pairs; the reference is what it is at the start, frozen.

    work_dir: checkpoints; an interrupted call, made again with the same model, goes on from the last. online: fresh
    pairs of the policy's for each step, whose loss is added `settings.guidance` times. watch: looked at every
    `settings.watch_every` steps and at the end. Returns for each step its loss, mean reward margin and accuracy (share
    of pairs with a positive margin), and "watched" where it was looked; and the seconds of the whole run. ValueError
    without pairs, or for a `work_dir` that holds another run.
    """
    if not pairs:
        raise ValueError("There is nothing to learn from: give at least one pair.")
    said = [(pair.prefix, pair.chosen.tolist(), pair.rejected.tolist()) for pair in pairs]
    check_same_run(work_dir, fingerprint((model,), settings, said, online and online.about, watch is None))
    arguments = TrainingArguments(
        **trainer_arguments(settings, len(pairs), work_dir, model.device), remove_unused_columns=False
    )
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    trainer = DpoTrainer(reference, settings, model, arguments, pairs, online, watch)
    policy, log = run_trainer(trainer, "DPO")
    kept = ("loss", "margin", "accuracy", "online_margin", "watched")
    steps = [{key: row[key] for key in kept if key in row} for row in log.rows]
    if watch is not None:
        steps[-1]["watched"] = watch(policy, reference)
    return steps, log.seconds


class DpoTrainer(Trainer):
    """transformers' trainer with DPO's loss on estimated log-probabilities."""

    def __init__(
        self,
        reference: Showo,
        settings: DpoTraining,
        model: Showo,
        arguments: TrainingArguments,
        pairs: Sequence[Pair],
        online: Online | None,
        watch: Watch | None,
    ) -> None:
        super().__init__(model, arguments, data_collator=_collate, train_dataset=_Pairs(pairs))
        self.reference, self.settings = reference.to(arguments.device), settings
        self.online, self.watch = online, watch
        self.latest: dict[str, float] = {}

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
                self.latest["watched"] = self.watch(policy.eval(), self.reference)
            policy.train()
        if self.online is None:
            return loss
        fresh = _collate(self.online.draw(policy.eval(), key))
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
        both = Masks(torch.cat([masks.places, other.places], dim=1), torch.cat([masks.weight, other.weight], dim=1))
        codes = torch.cat([chosen, rejected])
        policy = log_probability(model, config, prefixes * 2, codes, both)
        # In the policy's precision, or the two would differ before the first step.
        with torch.no_grad(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            reference = log_probability(self.reference, config, prefixes * 2, codes, both)
        losses, margin = dpo_loss(policy[:batch], policy[batch:], reference[:batch], reference[batch:], settings.beta)
        return losses.mean(), margin

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds margin and accuracy to what is logged of a step."""
        super().log(logs | self.latest if "loss" in logs else logs, *args, **kwargs)


class _Pairs(Dataset):
    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


def _collate(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {
        "prefixes": [pair.prefix for pair in pairs],
        "chosen": torch.stack([pair.chosen for pair in pairs]).long(),
        "rejected": torch.stack([pair.rejected for pair in pairs]).long(),
    }


def reward_margins(
    policy: Generator, reference: Generator, pairs: Sequence[Pair], beta: float = 0.1, masks: int = 2, seed: int = 0
) -> Tensor:
    """How far a policy prefers each pair's chosen image, against a reference; positive where it does.

    Estimated under `masks` masks a pair, the same for both images and both models. Returns (B,). ValueError without
    pairs.
    """
    if not pairs:
        raise ValueError("There is nothing to estimate: give at least one pair.")
    same = draw_masks(len(pairs), len(pairs[0].chosen), masks, "sum", torch.Generator().manual_seed(seed))
    prefixes = [pair.prefix for pair in pairs]
    sides = (torch.stack([pair.chosen for pair in pairs]), torch.stack([pair.rejected for pair in pairs]))
    with torch.no_grad():
        new, old = (
            [log_probability(one.model, one.model.config, prefixes, side.long(), same) for side in sides]
            for one in (policy, reference)
        )
    return dpo_loss(new[0], new[1], old[0], old[1], beta)[1]


class _ReadyIds(DPOTrainer):
    """trl's trainer on ids as they are: there is no text to tokenise, and an image needs no end token."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # trl's own would append an end token to every image


def train_sequential_dpo(
    model: AutoregressiveModel,
    words: PreTrainedTokenizerBase,
    triples: Sequence[tuple[Prompt, Tensor, Tensor]],
    learning_rate: float,
    work_dir: Path,
    beta: float = 0.1,
    batch_size: int = 10,
    seed: int = 0,
) -> tuple[list[dict[str, float]], float]:
    """Align a next-token generator in place, one epoch; the reference is what it is at the start, frozen.

    triples: prompt, chosen and rejected codes (L,). Resumes from `work_dir`. Returns for every step the loss, reward
    margin and accuracy, and the rewards of chosen and rejected images (β times what their log-probability has gained);
    and the seconds of training. ValueError without pairs, or for a `work_dir` that holds another run.
    """
    if not triples:
        raise ValueError("There is nothing to learn from: give at least one pair.")
    from datasets import Dataset as Rows

    rows = [
        {
            "prompt_ids": sequence_ids(model.config, encode_text(words, prompt.text)),
            "chosen_ids": chosen.tolist(),
            "rejected_ids": rejected.tolist(),
        }
        for prompt, chosen, rejected in triples
    ]
    settings = TrainerSettings(learning_rate, batch_size=batch_size, save_steps=50, seed=seed)
    check_same_run(work_dir, fingerprint((model,), rows, settings, beta))
    arguments = DPOConfig(
        **trainer_arguments(settings, len(triples), work_dir, model.device),
        beta=beta,
        gradient_checkpointing=False,
        max_length=None,
    )
    model.generation_config = GenerationConfig()  # where trl notes the pad
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    trainer = _ReadyIds(model, reference, arguments, train_dataset=Rows.from_list(rows), processing_class=words)
    _, log = run_trainer(trainer, "DPO")
    model.__dict__.pop("forward", None)  # trl's, which would follow a copy of the model around with the old weights
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    names |= {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
    return [{ours: row[theirs] for theirs, ours in names.items()} for row in log.rows], log.seconds
