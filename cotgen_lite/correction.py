"""Self-correction: a generator learns to draw anew what a verifier found wrong, from prompt, image and reasons.

Paper: section 5 (self-correction fine-tuning).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.drawing import fingerprint
from cotgen_lite.generator import Generator
from cotgen_lite.generator_training import CaptionedTokens
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import Prompt
from cotgen_lite.ranking import refuse_held_out
from cotgen_lite.showo import correction_prefix, masked_loss, text_prefix
from cotgen_lite.training import TrainingLog, train
from cotgen_lite.vocabulary import encode_text


@dataclass(frozen=True)
class Correction:
    """One lesson: what was asked for, an image that misses it and why, and one that does not. Codes are (L,)."""

    prompt: Prompt
    rejected: Tensor
    reasons: str
    target: Tensor


@dataclass(frozen=True)
class CorrectionTraining:
    """How a generator learns to correct itself.

    replay: share of each batch that is plain pre-training data, so that it keeps its old skill. without_reasons: share
    of corrections whose reasons are left out, so that their absence is nothing strange.
    """

    steps: int
    learning_rate: float
    batch_size: int = 64
    replay: float = 0.5
    without_reasons: float = 0.1
    seed: int = 0


def corrections(pool: Pool, reasons: npt.NDArray, most: int, seed: int) -> list[Correction]:
    """Lessons from labelled images: up to `most` wrong ones of each prompt, each with the right one that is nearest.

    Nearest by equal codes, so that what was good may stay as it is. reasons: of each image (P, N), "" where it is
    right. Prompts of which all images are alike give none. Shuffled. ValueError if a dev or test prompt is among them.
    """
    refuse_held_out(pool.prompts)
    rng, lessons = np.random.default_rng(seed), []
    for prompt, codes, texts in zip(pool.prompts, pool.tokens, reasons, strict=True):
        right, wrong = np.flatnonzero(texts == ""), rng.permutation(np.flatnonzero(texts != ""))
        for column in wrong[:most] if len(right) else []:
            alike = (codes[right] == codes[column]).sum(dim=1)
            lessons.append(Correction(prompt, codes[column], texts[column], codes[right[int(alike.argmax())]]))
    return [lessons[i] for i in rng.permutation(len(lessons))]


def train_correction(
    generator: Generator,
    lessons: Sequence[Correction],
    replay: CaptionedTokens,
    settings: CorrectionTraining,
    work_dir: Path,
) -> TrainingLog:
    """Teach a generator in place to correct images, with plain drawing mixed in; resumes from `work_dir`.

    The loss is on the target image alone. ValueError without lessons, or for a `work_dir` that holds another run.
    Paper: section 5.
    """
    if not lessons:
        raise ValueError("There is nothing to learn from: give at least one correction.")
    config, words = generator.model.config, generator.words
    said = [encode_text(words, lesson.prompt.text) for lesson in lessons]
    why = [encode_text(words, lesson.reasons) for lesson in lessons]
    targets = torch.stack([lesson.target for lesson in lessons]).long()

    def loss_at(step: int) -> Tensor:
        drawing = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        plain = round(settings.batch_size * settings.replay)
        some = torch.randint(len(lessons), (settings.batch_size - plain,), generator=drawing).tolist()
        mute = (torch.rand(len(some), generator=drawing) < settings.without_reasons).tolist()
        old = torch.randint(len(replay.text_ids), (plain,), generator=drawing).tolist()
        prefixes = [
            correction_prefix(config, said[i], [] if quiet else why[i], lessons[i].rejected.tolist())
            for i, quiet in zip(some, mute, strict=True)
        ]
        prefixes += [text_prefix(config, replay.text_ids[i]) for i in old]
        return masked_loss(generator.model, prefixes, torch.cat([targets[some], replay.tokens[old].long()]), drawing)

    about = asdict(settings) | replay.about
    about["run"] = fingerprint(
        (generator.model,), [(a, b, t.tolist()) for a, b, t in zip(said, why, targets, strict=True)]
    )
    return train(
        generator.model, loss_at, settings.steps, settings.learning_rate, work_dir, "self-correction", about=about
    )
