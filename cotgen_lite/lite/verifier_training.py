"""Pre-training of the lite verifier: a small LLaVA learns to see, from clean scenes only.

Three stages: the vision tower alone on what each patch shows; captions and open facts; matches in short wordings and,
more often, in the paper's, some with reasons. The last two ask several questions an image, each of which sees the image
and itself only: the image is read once, and its keys and values are shared by its questions (`read_together`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from cotgen_lite.inputs import folder, number, of_kind, settle, whole
from cotgen_lite.lite.verifier import Group, image_features, lite_verifier, read_together
from cotgen_lite.lite.verifier_questions import Mix, draw_dialogues, encode_dialogue, training_scene
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import Scene, SceneObject, render, world
from cotgen_lite.prompts import plural
from cotgen_lite.training import LARGEST_RATE, LARGEST_SEED, MOST_STEPS, TrainingLog, train

PROBE_WEIGHT = 0.3


@dataclass(frozen=True)
class VerifierTraining:
    """How the lite verifier is pre-trained.

    tower_steps, fact_steps, match_steps: of the three stages; the last two are one run, whose rate falls to its own
    end. The zero-shot verifier is to be able, like the paper's, and not perfect, so that later chapters have something
    to teach it: match_steps, arranged and absent (as in `Mix`) are set by that. images: a step, of the first stage
    twice as many; `questions` are asked of each. muon_rate: of weight matrices, learning_rate: of all else, both at
    their peak.
    """

    tower_steps: int = 300
    fact_steps: int = 250
    match_steps: int = 300
    arranged: float = 0.45
    absent: float = 0.25
    images: int = 16
    questions: int = 12
    muon_rate: float = 0.02
    learning_rate: float = 1.2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tower_steps", "fact_steps", "match_steps"):
            settle(self, **{name: whole(getattr(self, name), name, 1, MOST_STEPS)})
        for name in ("images", "questions"):
            settle(self, **{name: whole(getattr(self, name), name, 1, 4096)})
        for name in ("muon_rate", "learning_rate"):
            settle(self, **{name: number(getattr(self, name), name, 0, LARGEST_RATE)})
        for name in ("arranged", "absent"):
            settle(self, **{name: number(getattr(self, name), name, 0, 1)})
        settle(self, seed=whole(self.seed, "seed", 0, LARGEST_SEED))

    def mix(self, step: int) -> Mix:
        """What is asked at a step after the first stage."""
        if step < self.fact_steps:
            return Mix(facts=1.0, official=0.0, absent=self.absent, caption=True)
        return Mix(facts=0.25, official=0.6, reasons=0.15, arranged=self.arranged, absent=self.absent, caption=True)


def train_verifier(
    training: VerifierTraining, work_dir: str | Path
) -> tuple[LlavaForConditionalGeneration, TrainingLog]:
    """A lite verifier pre-trained from nothing, and the log of both runs; resumable from `work_dir`, as `train` is."""
    of_kind(training, "training", VerifierTraining, "a VerifierTraining")
    work, tokenizer = folder(work_dir, "work_dir"), lite_tokenizer()
    torch.manual_seed(training.seed)
    model = lite_verifier(tokenizer)
    probes = Probes(tokenizer, model.config.text_config.hidden_size)
    # The first scene and its picture stand for the world's names, places, colours and icons.
    scene = training_scene(np.random.default_rng(training.seed))
    about = {"training": asdict(training), "world": world(), "scene": scene, "picture": render([scene])}
    about |= {"mixes": [training.mix(0), training.mix(training.fact_steps)], "probe_weight": PROBE_WEIGHT}

    def tower_loss(step: int) -> Tensor:
        """Every patch says which class, colour and part of an icon it shows, and where that icon is."""
        rng = np.random.default_rng((training.seed, 0, step))
        scenes = [training_scene(rng) for _ in range(2 * training.images)]
        return probes.patch_loss(image_features(model, render(scenes)), scenes)

    def answer_loss(step: int) -> Tensor:
        """Answers to questions about fresh scenes, drawn by seed and step; beside it what the probes ask."""
        rng = np.random.default_rng((training.seed, 1, step))
        scenes = [training_scene(rng) for _ in range(training.images)]
        mix = training.mix(step)
        asked = [(row, d) for row, one in enumerate(scenes) for d in draw_dialogues(one, training.questions, mix, rng)]
        # "Yes, it is clear" is true of every clean scene: learned from one dialogue in ten, lest it crowd out "no".
        encoded = [(row, *encode_dialogue(tokenizer, d, clarity=bool(rng.random() < 0.1))) for row, d in asked]
        answers, nouns, facts = torch.zeros(()), torch.zeros(()), _scene_facts(scenes)
        features = image_features(model, render(scenes))
        for group in read_together(model, tokenizer, features, encoded):
            row, place = group.learned
            logits = model.lm_head(group.last[row, place - 1])
            losses = F.cross_entropy(logits, group.ids[row, place], reduction="none")
            answers = answers + (losses / torch.bincount(row)[row]).sum()
            nouns = nouns + probes.noun_loss(group, facts)
        return (answers + PROBE_WEIGHT * nouns) / len(encoded) + PROBE_WEIGHT * probes.patch_loss(features, scenes)

    log = TrainingLog()
    tower = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, probes.patch])
    for name, part, loss_at, steps in (
        ("tower", tower, tower_loss, training.tower_steps),
        ("reader", nn.ModuleList([model, probes]), answer_loss, training.fact_steps + training.match_steps),
    ):
        run = train(
            part,
            loss_at,
            steps,
            training.learning_rate,
            work / name,
            f"verifier: {name}",
            warmup=min(0.1, 100 / steps),
            about=about,
            muon_rate=training.muon_rate,
        )
        log = TrainingLog(log.steps + run.steps, log.seconds + run.seconds, [*log.losses, *run.losses])
    return model, log


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
