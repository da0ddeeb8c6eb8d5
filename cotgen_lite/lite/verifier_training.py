"""Pre-training of the lite verifier: a small LLaVA learns to see, from clean scenes only.

Three stages: the vision tower alone on what each patch shows; captions and open facts; matches in short wordings and,
more often, in the paper's. The last two ask several questions an image, each of which sees the image and itself only:
the image is read once, and its keys and values are shared by its questions (`read_together`).
"""

import copy
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from cotgen_lite.hub import in_place_of, write_atomically
from cotgen_lite.identity import fingerprint
from cotgen_lite.inputs import folder, whole
from cotgen_lite.lite.verifier import (
    Group,
    evaluation_set,
    image_features,
    lite_verifier,
    measure_verifier,
    read_together,
    save_verifier,
    sees_enough,
)
from cotgen_lite.lite.verifier_questions import Mix, draw_dialogues, encode_dialogue, training_scene
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import Scene, SceneObject, render, world
from cotgen_lite.prompts import plural
from cotgen_lite.training import CHECKPOINT, LARGEST_SEED, MOST_STEPS, delete_parts, read_checkpoint, refuse_divergence

TOWER_RATE, PEAK_RATE = 1e-3, 1.2e-3  # learning rates of the first stage and of the other two, after the warm-up
PROBE_WEIGHT = 0.3
FACTS, MATCHES = Mix(facts=1.0, official=0.0, caption=True), Mix(facts=0.25, official=0.65)
SAVE_SECONDS = 180
NOTED = ("step", "seconds", "rows", "best", "best_weights")  # of a trainer, in its checkpoint beside the states


def train_verifier(
    work_dir: str | Path,
    save_dir: str | Path,
    tower_steps: int = 500,
    fact_steps: int = 600,
    match_steps: int = 3000,
    images: int = 16,
    questions: int = 12,
    evaluate_every: int = 200,
    scenes_per_tag: int = 80,
    seed: int = 0,
) -> dict[str, Any]:
    """Pre-train the lite verifier, going on from the last checkpoint in `work_dir` if there is one.

    Stops early once it sees enough (`sees_enough`): the zero-shot verifier is to be able, like the paper's, and not
    perfect, so that later chapters have something to teach it.

    work_dir: of checkpoints and `log.jsonl`. save_dir: where the best weights so far (fp16) and the processor are kept,
    as `from_pretrained` reads them. images: a step; `questions` are asked of each. evaluate_every: steps between two
    measurements on the dev prompts, with `scenes_per_tag` scenes each. Returns of the saved weights "auc" (by wording
    and tag), "step" and "seconds". ValueError if the checkpoint is damaged or another run's, or if training diverges.
    """
    sizes = {"tower_steps": tower_steps, "fact_steps": fact_steps, "match_steps": match_steps}
    sizes = {name: whole(value, name, 0, MOST_STEPS) for name, value in sizes.items()}
    images, questions = whole(images, "images", 1, 4096), whole(questions, "questions", 1, 4096)
    evaluate_every = whole(evaluate_every, "evaluate_every", 1)
    scenes_per_tag, seed = whole(scenes_per_tag, "scenes_per_tag", 2, 100_000), whole(seed, "seed", 0, LARGEST_SEED)
    if not fact_steps + match_steps:
        raise ValueError("There is nothing to learn: fact_steps and match_steps are both 0.")
    work, best_folder = folder(work_dir, "work_dir"), folder(save_dir, "save_dir")
    checkpoint = work / CHECKPOINT
    for place in (work, best_folder):
        delete_parts(place)
    torch.manual_seed(seed)
    plan = [("facts", FACTS)] * fact_steps + [("matches", MATCHES)] * match_steps
    trainer = _Trainer(len(plan), seed, (sizes, images, questions, evaluate_every, scenes_per_tag))
    model, tokenizer = trainer.model, trainer.tokenizer
    held_out = evaluation_set(scenes_per_tag, seed + 1)
    started = time.monotonic()
    if checkpoint.exists():
        trainer.load(checkpoint)
        if trainer.best["step"]:  # what stands there may be half-written, or from after the checkpoint
            best = copy.deepcopy(model)
            best.load_state_dict(trainer.best_weights)
            save_verifier(best, tokenizer, best_folder)
    else:
        _train_tower(model, trainer.probes, tower_steps, seed, 2 * images)
        trainer.seconds = time.monotonic() - started
        trainer.save(checkpoint)
    earlier_seconds = trainer.seconds
    saved = started = time.monotonic()
    with tqdm(initial=trainer.step, total=len(plan), desc="verifier") as bar:
        while trainer.step < len(plan) and not trainer.best["enough"]:
            stage, mix = plan[trainer.step]
            losses = trainer.learn(mix, images, questions)
            trainer.seconds = earlier_seconds + time.monotonic() - started
            bar.update()
            bar.set_postfix(stage=stage, **losses)
            last = trainer.step == len(plan)
            if trainer.step % evaluate_every == 0 or last:
                auc = measure_verifier(model, tokenizer, held_out)
                now = {"step": trainer.step, "seconds": trainer.seconds, "auc": auc, "enough": sees_enough(auc)}
                now["mean"] = float(np.mean([value for tags in auc.values() for value in tags.values()]))
                if now["enough"] or now["mean"] > trainer.best["mean"]:
                    trainer.best = now
                    trainer.best_weights = {name: value.half() for name, value in model.state_dict().items()}
                    save_verifier(model, tokenizer, best_folder)
                trainer.rows.append(json.dumps({"stage": stage} | losses | now) + "\n")
                write_atomically(work / "log.jsonl", "".join(trainer.rows))
            if last or trainer.best["enough"] or time.monotonic() - saved > SAVE_SECONDS:
                trainer.save(checkpoint)
                saved = time.monotonic()
    return trainer.best


def _train_tower(model: LlavaForConditionalGeneration, probes: "Probes", steps: int, seed: int, batch: int) -> None:
    """First stage: every patch says which class, colour and part of an icon it shows, and where that icon is."""
    parts = (model.model.vision_tower, model.model.multi_modal_projector, probes.patch)
    weights = [weight for part in parts for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=TOWER_RATE, weight_decay=0.01)
    bar = tqdm(range(steps), desc="verifier: tower")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = TOWER_RATE * _rate(step, steps, 50)
        rng = np.random.default_rng((seed, 0, step))
        scenes = [training_scene(rng) for _ in range(batch)]
        loss = probes.patch_loss(image_features(model, render(scenes)), scenes)
        _descend(loss, optimizer, weights, step + 1)
        bar.set_postfix(loss=round(loss.item(), 4))


def _rate(step: int, steps: int, warm_up: int) -> float:
    """The share of the peak rate: up during the warm-up, down to 0 in the last three tenths."""
    return min(1, (step + 1) / warm_up, (steps - step) / (0.3 * steps))


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, clipped: Iterable[Tensor], step: int) -> None:
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(clipped, 1.0)
    refuse_divergence(step, {"loss": loss.item(), "gradient norm": norm.item()})
    optimizer.step()


class _Trainer:
    """The model with all that training needs beside it, so that it can stop and go on."""

    def __init__(self, steps: int, seed: int, sizes: object) -> None:
        self.seed, self.tokenizer = seed, lite_tokenizer()
        self.model = lite_verifier(self.tokenizer)
        self.probes = Probes(self.tokenizer, self.model.config.text_config.hidden_size)
        weights = [*self.model.parameters(), *self.probes.parameters()]
        self.optimizer = torch.optim.AdamW(weights, lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98))
        warm_up = min(100, max(1, steps // 10))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, steps, warm_up))
        self.kept: tuple[Any, ...] = (self.model, self.probes, self.optimizer, self.schedule)
        # The first scene and its picture stand for the world's names, places, colours and icons.
        scene = training_scene(np.random.default_rng(seed))
        rates = (TOWER_RATE, PEAK_RATE, PROBE_WEIGHT, FACTS, MATCHES)
        self.run = fingerprint((self.model, self.probes), sizes, seed, rates, world(), scene, render([scene]))
        self.step, self.seconds = 0, 0.0
        self.rows: list[str] = []  # of the log
        self.best: dict[str, Any] = {"mean": 0.0, "auc": {}, "step": 0, "seconds": 0.0, "enough": False}
        self.best_weights: dict[str, Tensor] = {}

    def learn(self, mix: Mix, images: int, questions: int) -> dict[str, float]:
        """One step on fresh scenes, drawn by seed and step; returns the losses."""
        rng = np.random.default_rng((self.seed, 1, self.step))
        scenes = [training_scene(rng) for _ in range(images)]
        dialogues = [(row, d) for row, scene in enumerate(scenes) for d in draw_dialogues(scene, questions, mix, rng)]
        # "Yes, it is clear" is true of every clean scene: learned from one dialogue in ten, lest it crowd out "no".
        encoded = [(row, *encode_dialogue(self.tokenizer, d, clarity=bool(rng.random() < 0.1))) for row, d in dialogues]
        answer_loss, noun_loss, facts = torch.zeros(()), torch.zeros(()), _scene_facts(scenes)
        features = image_features(self.model, render(scenes))
        patch_loss = self.probes.patch_loss(features, scenes)
        for group in read_together(self.model, self.tokenizer, features, encoded):
            row, place = group.learned
            logits = self.model.lm_head(group.last[row, place - 1])
            losses = F.cross_entropy(logits, group.ids[row, place], reduction="none")
            answer_loss = answer_loss + (losses / torch.bincount(row)[row]).sum()
            noun_loss = noun_loss + self.probes.noun_loss(group, facts)
        answer_loss, noun_loss = answer_loss / len(encoded), noun_loss / len(encoded)
        loss = answer_loss + PROBE_WEIGHT * (noun_loss + patch_loss)
        _descend(loss, self.optimizer, self.model.parameters(), self.step + 1)
        self.schedule.step()
        self.step += 1
        parts = {"answers": answer_loss, "nouns": noun_loss, "patches": patch_loss}
        return {name: round(part.item(), 4) for name, part in parts.items()}

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all; ValueError if a weight is not finite."""
        refuse_divergence(self.step, {}, self.model)
        state = {"run": self.run, "states": [one.state_dict() for one in self.kept]}
        with in_place_of(path) as part:
            torch.save(state | {name: getattr(self, name) for name in NOTED}, part)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; ValueError if that is damaged or was another run."""
        saved = read_checkpoint(path, self.run)
        for name in NOTED:
            setattr(self, name, saved[name])
        for one, state in zip(self.kept, saved["states"], strict=True):
            one.load_state_dict(state)


class Probes(nn.Module):
    """Used in training only: two heads that ask the verifier's insides what they are to know, before any answer does.

    Each image token must know its patch and where the icon stands that it is part of: otherwise tokens say what they
    are but hardly where, and no question about positions is ever learned. And halfway up the decoder each noun of a
    question must know its object: how many there are and, if one, its colour and place. Matching a prompt is then a
    comparison of what nouns know; without this, position and binding stay at chance for thousands of steps.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        super().__init__()
        objects, colors = world().objects, world().colors
        self.sizes = (len(objects) + 1, len(colors) + 1, world().span ** 2 + 1)
        self.patch, self.noun = nn.Linear(width, sum(self.sizes) + 2), nn.Linear(width, 5 + len(colors) + 2)
        nouns = torch.full((len(tokenizer),), -1)
        for index, name in enumerate(objects):
            for word in (name, plural(name)):
                nouns[tokenizer.convert_tokens_to_ids(word.split()[-1])] = index
        self.nouns = nn.Buffer(nouns, persistent=False)  # of each token: its class, or -1

    def patch_loss(self, features: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Mean loss over the patches of image features (B, 64, width)."""
        truth = torch.from_numpy(np.stack([_patch_truth(scene) for scene in scenes])).flatten(0, 1)
        labels, spots = truth[:, :3].long(), truth[:, 3:]
        *logits, spot = self.patch(features).flatten(0, 1).split((*self.sizes, 2), dim=1)
        losses = [F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)]
        covered = labels[:, 0] > 0
        return torch.stack([*losses, F.mse_loss(spot[covered], spots[covered])]).sum()

    def noun_loss(self, group: Group, facts: dict[str, Tensor]) -> Tensor:
        """Sum over the group's questions of the mean loss over their nouns."""
        noun = self.nouns[group.ids]
        row, place = torch.nonzero(noun >= 0, as_tuple=True)
        if not len(row):
            return torch.zeros(())
        image, kind = group.image[row], noun[row, place]
        count, color, spot = self.noun(group.early[row, place]).split((5, len(world().colors), 2), dim=1)
        weight = 1 / torch.bincount(row)[row]
        alone = facts["count"][image, kind] == 1
        loss = F.cross_entropy(count, facts["count"][image, kind], reduction="none")
        loss = loss + alone * F.cross_entropy(color, facts["color"][image, kind], reduction="none")
        loss = loss + alone * F.mse_loss(spot, facts["spot"][image, kind], reduction="none").sum(1)
        return (loss * weight).sum()


def _patch_truth(scene: Scene) -> np.ndarray:
    """(64, 5) float32: class, colour and part of each patch, 0 for the ground; x and y of its icon in -1..1."""
    grid = np.zeros((world().grid, world().grid, 5), dtype=np.float32)
    for item in scene:
        row, column = item.y // world().lattice, item.x // world().lattice
        cell = grid[row : row + world().span, column : column + world().span]
        cell[..., 0] = world().objects.index(item.name) + 1
        cell[..., 1] = world().colors.index(item.color) + 1
        cell[..., 2] = np.arange(1, world().span ** 2 + 1).reshape(world().span, world().span)
        cell[..., 3:] = _spot(item)
    return grid.reshape(-1, 5)


def _scene_facts(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Per scene and class: how many (B, 16), colour of the last one (B, 16), and its place in -1..1 (B, 16, 2)."""
    count = torch.zeros(len(scenes), len(world().objects), dtype=torch.long)
    color, spot = torch.zeros_like(count), torch.zeros(*count.shape, 2)
    for row, scene in enumerate(scenes):
        for item in scene:
            kind = world().objects.index(item.name)
            count[row, kind] += 1
            color[row, kind] = world().colors.index(item.color)
            spot[row, kind] = torch.tensor(_spot(item))
    return {"count": count, "color": color, "spot": spot}


def _spot(item: SceneObject) -> tuple[float, float]:
    """Where an icon is, from -1 (left, top) to 1 (right, bottom)."""
    room = world().image_size - world().object_size
    return 2 * item.x / room - 1, 2 * item.y / room - 1
